//! secp256k1 keys and the four operations of devp2p on them: sign, recover, verify, agree on a secret.
//!
//! This is the only file that uses the `secp256k1` crate. When libsecp256k1 parses a point, it checks that the point is
//! on the curve and that its coordinates are canonical, before any arithmetic. A [`PublicKey`] that exists is therefore
//! valid, and the flaw behind CVE-2026-26315 (geth's invalid-curve oracle) is not possible with this module.
//!
//! One context is blinded once for the process. Version 0.33 of the crate blinds a thread-local context again at every
//! signature, which costs 44 % of discv4's sending rate (docs/decisions/0001).

use std::{fmt, str::FromStr, sync::OnceLock};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use rand::RngCore;
use secp256k1::{All, Message, Secp256k1, SecretKey, ecdh, ecdsa};
use zeroize::{Zeroize, Zeroizing};

use super::id::{NodeId, keccak256};

fn context() -> &'static Secp256k1<All> {
    static CONTEXT: OnceLock<Secp256k1<All>> = OnceLock::new();
    CONTEXT.get_or_init(Secp256k1::new)
}

/// The reason why bytes or text are not the expected key or signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes.
    #[error("a private key is 32 bytes (64 hex digits)")]
    SecretLength,
    /// Zero, or not below the order of the curve.
    #[error("a private key must be above zero and below the order of secp256k1")]
    SecretRange,
    /// Not a point of the curve in its canonical form.
    #[error("not a point of the secp256k1 curve in canonical form")]
    PublicKey,
    /// Not 64 bytes uncompressed.
    #[error("a public key is 64 bytes (128 hex digits): both coordinates without a prefix")]
    PublicLength,
    /// A signature from which no key can be recovered, or that does not verify.
    #[error("the signature is not valid")]
    Signature,
}

/// A node's private key. It is wiped when dropped, and never printed.
pub struct NodeKey {
    secret: SecretKey,
    public: PublicKey,
}

impl NodeKey {
    /// A new key from `rng`, which must be cryptographically secure.
    pub fn random(rng: &mut dyn RngCore) -> Self {
        // A random string is out of range once in 2^128 tries. The loop is there because `from_bytes` can fail, not
        // because it will.
        loop {
            let mut bytes = Zeroizing::new([0; 32]);
            rng.fill_bytes(bytes.as_mut());
            if let Ok(key) = Self::from_bytes(&bytes) {
                return key;
            }
        }
    }

    /// The key whose scalar is `bytes`, big-endian.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let secret = SecretKey::from_byte_array(*bytes).map_err(|_| KeyError::SecretRange)?;
        let public = PublicKey(secp256k1::PublicKey::from_secret_key(context(), &secret));
        Ok(Self { secret, public })
    }

    /// The key written as 64 hex digits, as geth's `nodekey` file has it.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let bytes = Zeroizing::new(
            HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).map_err(|_| KeyError::SecretLength)?,
        );
        let bytes: Zeroizing<[u8; 32]> =
            Zeroizing::new(bytes.as_slice().try_into().map_err(|_| KeyError::SecretLength)?);
        Self::from_bytes(&bytes)
    }

    /// The key as 64 hex digits, for the key file. The caller must protect the secret from here on.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new(self.secret.secret_bytes());
        Zeroizing::new(HEXLOWER.encode(bytes.as_ref()))
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The id of the node that has this key.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.public.id()
    }

    /// The Diffie-Hellman point of this key and `other`.
    #[must_use]
    pub fn agree(&self, other: &PublicKey) -> SharedPoint {
        SharedPoint(Zeroizing::new(ecdh::shared_secret_point(&other.0, &self.secret)))
    }

    /// Signs a 32-byte digest: `r ‖ s`, low s, deterministic nonce (RFC 6979).
    #[must_use]
    pub fn sign(&self, digest: &[u8; 32]) -> [u8; 64] {
        context().sign_ecdsa(Message::from_digest(*digest), &self.secret).serialize_compact()
    }

    /// Signs a 32-byte digest so that the key can be recovered: `r ‖ s ‖ v` with v in 0..=3.
    #[must_use]
    pub fn sign_recoverable(&self, digest: &[u8; 32]) -> [u8; 65] {
        let (id, rs) =
            context().sign_ecdsa_recoverable(Message::from_digest(*digest), &self.secret).serialize_compact();
        let mut out = [0; 65];
        let (head, tail) = out.split_at_mut(64);
        head.copy_from_slice(&rs);
        tail.fill(u8::try_from(i32::from(id)).unwrap_or_default());
        out
    }
}

impl Clone for NodeKey {
    fn clone(&self) -> Self {
        Self { secret: self.secret, public: self.public }
    }
}

impl Drop for NodeKey {
    fn drop(&mut self) {
        self.secret.non_secure_erase();
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({:?}, secret redacted)", self.id())
    }
}

/// A Diffie-Hellman result: a point of the curve, wiped when dropped.
pub struct SharedPoint(Zeroizing<[u8; 64]>);

impl SharedPoint {
    /// The x coordinate, which RLPx and ECIES use.
    #[must_use]
    pub fn x(&self) -> Zeroizing<[u8; 32]> {
        let mut out = Zeroizing::new([0; 32]);
        out.iter_mut().zip(self.0.iter()).for_each(|(to, from)| *to = *from);
        out
    }

    /// The compressed point (02 or 03, then x), which discv5 uses.
    #[must_use]
    pub fn compressed(&self) -> Zeroizing<[u8; 33]> {
        let mut out = Zeroizing::new([0; 33]);
        let odd = self.0.last().is_some_and(|byte| byte & 1 == 1);
        let prefix = if odd { 0x03 } else { 0x02 };
        out.iter_mut().zip(std::iter::once(&prefix).chain(self.0.iter())).for_each(|(to, from)| *to = *from);
        out
    }
}

impl fmt::Debug for SharedPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedPoint(redacted)")
    }
}

/// A public key: a valid point of the curve.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(secp256k1::PublicKey);

impl PublicKey {
    /// Reads both coordinates, 64 bytes without a prefix, as in RLPx, discv4 and enode URLs.
    pub fn from_uncompressed(bytes: &[u8; 64]) -> Result<Self, KeyError> {
        let mut prefixed = [4; 65];
        prefixed.iter_mut().skip(1).zip(bytes).for_each(|(to, from)| *to = *from);
        secp256k1::PublicKey::from_byte_array_uncompressed(prefixed)
            .map(Self)
            .map_err(|_| KeyError::PublicKey)
    }

    /// Reads a compressed point, 33 bytes, as in ENR and discv5.
    pub fn from_compressed(bytes: &[u8; 33]) -> Result<Self, KeyError> {
        secp256k1::PublicKey::from_byte_array_compressed(*bytes).map(Self).map_err(|_| KeyError::PublicKey)
    }

    /// Both coordinates without a prefix.
    #[must_use]
    pub fn to_uncompressed(&self) -> [u8; 64] {
        let mut out = [0; 64];
        out.iter_mut().zip(self.0.serialize_uncompressed().iter().skip(1)).for_each(|(to, from)| *to = *from);
        out
    }

    /// The compressed point.
    #[must_use]
    pub fn to_compressed(&self) -> [u8; 33] {
        self.0.serialize()
    }

    /// The id of the node that has this key.
    #[must_use]
    pub fn id(&self) -> NodeId {
        NodeId(keccak256(&[&self.to_uncompressed()]))
    }

    /// The key that made `signature` (`r ‖ s ‖ v`) over `digest`.
    pub fn recover(digest: &[u8; 32], signature: &[u8; 65]) -> Result<Self, KeyError> {
        let [rs @ .., v] = signature;
        let id = ecdsa::RecoveryId::try_from(i32::from(*v)).map_err(|_| KeyError::Signature)?;
        let signature = ecdsa::RecoverableSignature::from_compact(rs, id).map_err(|_| KeyError::Signature)?;
        context()
            .recover_ecdsa(Message::from_digest(*digest), &signature)
            .map(Self)
            .map_err(|_| KeyError::Signature)
    }

    /// Checks that this key made `signature` (`r ‖ s`, low s) over `digest`.
    pub fn verify(&self, digest: &[u8; 32], signature: &[u8; 64]) -> Result<(), KeyError> {
        let signature = ecdsa::Signature::from_compact(signature).map_err(|_| KeyError::Signature)?;
        context()
            .verify_ecdsa(Message::from_digest(*digest), &signature, &self.0)
            .map_err(|_| KeyError::Signature)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.to_uncompressed()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?})", self.id())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// 128 hex digits, with or without `0x`.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let mut bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).map_err(|_| KeyError::PublicLength)?;
        let array: [u8; 64] = bytes.as_slice().try_into().map_err(|_| KeyError::PublicLength)?;
        bytes.zeroize();
        Self::from_uncompressed(&array)
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn points_off_the_curve_and_non_canonical_ones_are_refused() {
        assert_eq!(PublicKey::from_uncompressed(&[0; 64]), Err(KeyError::PublicKey));
        assert_eq!(PublicKey::from_uncompressed(&[1; 64]), Err(KeyError::PublicKey));
        // x = p + 1 has a valid residue, but is not canonical.
        let mut bytes = [0xff; 64];
        bytes[27] = 0xfe;
        bytes[28..32].copy_from_slice(&0xffff_fc30_u32.to_be_bytes());
        assert_eq!(PublicKey::from_uncompressed(&bytes), Err(KeyError::PublicKey));
        let mut compressed = NodeKey::random(&mut StdRng::seed_from_u64(1)).public().to_compressed();
        compressed[0] = 0x04;
        assert_eq!(PublicKey::from_compressed(&compressed), Err(KeyError::PublicKey));
    }

    #[test]
    fn private_keys_are_in_range() {
        let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
        let last = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364140";
        assert_eq!(NodeKey::from_hex(&"0".repeat(64)).unwrap_err(), KeyError::SecretRange);
        assert_eq!(NodeKey::from_hex(order).unwrap_err(), KeyError::SecretRange);
        assert_eq!(NodeKey::from_hex(last).unwrap().to_hex().as_str(), last);
        assert_eq!(NodeKey::from_hex("00").unwrap_err(), KeyError::SecretLength);
        assert_eq!(NodeKey::from_hex("zz").unwrap_err(), KeyError::SecretLength);
    }

    #[test]
    fn signatures_verify_and_recover() {
        let key = NodeKey::random(&mut StdRng::seed_from_u64(2));
        let digest = keccak256(&[b"digest"]);
        key.public().verify(&digest, &key.sign(&digest)).unwrap();
        let signature = key.sign_recoverable(&digest);
        assert_eq!(PublicKey::recover(&digest, &signature), Ok(key.public()));
        let mut v = signature;
        v[64] = 4;
        assert_eq!(PublicKey::recover(&digest, &v), Err(KeyError::Signature));
        assert_eq!(PublicKey::recover(&digest, &[0; 65]), Err(KeyError::Signature));
        assert_eq!(key.public().verify(&[0; 32], &key.sign(&digest)), Err(KeyError::Signature));
    }

    /// ethereum/devp2p, discv5/discv5-wire-test-vectors.md, "ECDH".
    #[test]
    fn agreement_matches_the_discv5_vector() {
        let public = "039961e4c2356d61bedb83052c115d311acb3a96f5777296dcf297351130266231";
        let secret = "fb757dc581730490a1d7a00deea65e9b1936924caaea8f44d476014856b68736";
        let public: [u8; 33] = data_encoding::HEXLOWER.decode(public.as_bytes()).unwrap().try_into().unwrap();
        let shared = NodeKey::from_hex(secret).unwrap().agree(&PublicKey::from_compressed(&public).unwrap());
        let expected = "033b11a2a1f214567e1537ce5e509ffd9b21373247f2a3ff6841f4976f53165e7e";
        assert_eq!(data_encoding::HEXLOWER.encode(shared.compressed().as_ref()), expected);
        assert_eq!(shared.x().as_ref(), &shared.compressed()[1..]);
    }

    #[test]
    fn secrets_are_not_printed() {
        let key = NodeKey::random(&mut StdRng::seed_from_u64(3));
        let hex = key.to_hex();
        assert!(!format!("{key:?}").contains(hex.as_str()));
    }
}
