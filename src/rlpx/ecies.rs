//! ECIES as RLPx uses it: one message to the holder of a secp256k1 key.
//!
//! Ciphertext: `04 ‖ R ‖ iv ‖ c ‖ tag`. R is the sender's ephemeral public key, c is the message under AES-128-CTR, and
//! the tag is an HMAC-SHA256 over `iv ‖ c ‖ auth-data` (rlpx.md, "ECIES Encryption"). The key derivation is the NIST SP
//! 800-56 concat-KDF without shared info; 32 bytes are needed, so it is one SHA-256.
//!
//! Strangers can make us decrypt, so the steps are fixed: parse the point (an invalid point is never multiplied), one
//! agreement, one HMAC, compare in constant time. A point that does not parse is replaced by a valid one and refused
//! with the tag, so that it takes the same time as a wrong tag.

use aes::Aes128;
use bytes::{BufMut, BytesMut};
use ctr::{
    Ctr128BE,
    cipher::{KeyIvInit, StreamCipher},
};
use hmac::{Hmac, KeyInit, Mac};
use rand::RngCore;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::node::{NodeKey, PublicKey, key::SharedPoint};

/// Prefix and point, in bytes.
const POINT: usize = 65;
const IV: usize = 16;
const TAG: usize = 32;

/// The bytes that encryption adds to a message; no ciphertext is shorter.
pub const OVERHEAD: usize = POINT + IV + TAG;

/// A handshake that did not succeed. It gives no reason: a reason would help only an attacker who probes the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the RLPx handshake packet is not valid for our key")]
pub struct Refused;

/// The keys of one message.
struct Keys {
    cipher: Zeroizing<[u8; 16]>,
    /// An HMAC key is padded with zeros to a block of the hash; the first 32 bytes are the key.
    tag: Zeroizing<[u8; 64]>,
}

impl Keys {
    /// Concat-KDF: SHA-256 of a 32-bit counter starting at 1, and the x coordinate. The first half encrypts, the
    /// SHA-256 of the second half authenticates.
    fn derive(shared: &SharedPoint) -> Self {
        let okm = Zeroizing::new(<[u8; 32]>::from(
            Sha256::new().chain_update(1_u32.to_be_bytes()).chain_update(shared.x().as_ref()).finalize(),
        ));
        let (first, second) = okm.split_at(16);
        let mut cipher = Zeroizing::new([0; 16]);
        cipher.copy_from_slice(first);
        let mut tag = Zeroizing::new([0; 64]);
        tag.iter_mut().zip(Sha256::digest(second)).for_each(|(to, from)| *to = from);
        Self { cipher, tag }
    }

    fn crypt(&self, iv: &[u8; IV], bytes: &mut [u8]) {
        Ctr128BE::<Aes128>::new((&*self.cipher).into(), iv.into()).apply_keystream(bytes);
    }

    fn authenticator(&self, iv_and_ciphertext: &[u8], auth_data: &[u8]) -> Hmac<Sha256> {
        <Hmac<Sha256> as KeyInit>::new((&*self.tag).into())
            .chain_update(iv_and_ciphertext)
            .chain_update(auth_data)
    }
}

/// Appends to `out` the encryption of `plaintext` to `recipient`. `auth_data` is authenticated, not sent.
pub fn encrypt(
    recipient: &PublicKey,
    plaintext: &[u8],
    auth_data: &[u8],
    rng: &mut dyn RngCore,
    out: &mut BytesMut,
) {
    let ephemeral = NodeKey::random(rng);
    let keys = Keys::derive(&ephemeral.agree(recipient));
    let mut iv = [0; IV];
    rng.fill_bytes(&mut iv);

    out.reserve(OVERHEAD + plaintext.len());
    out.put_u8(4);
    out.put_slice(&ephemeral.public().to_uncompressed());
    let start = out.len();
    out.put_slice(&iv);
    out.put_slice(plaintext);
    if let Some(ciphertext) = out.get_mut(start + IV..) {
        keys.crypt(&iv, ciphertext);
    }
    let tag = keys.authenticator(out.get(start..).unwrap_or_default(), auth_data).finalize().into_bytes();
    out.put_slice(&tag);
}

/// Decrypts `message` with `key`. `auth_data` must be what the sender authenticated with it.
pub fn decrypt(key: &NodeKey, message: &[u8], auth_data: &[u8]) -> Result<Vec<u8>, Refused> {
    let (prefix, rest) = message.split_first().ok_or(Refused)?;
    let (point, rest) = rest.split_first_chunk::<64>().ok_or(Refused)?;
    let (sealed, tag) = rest.split_last_chunk::<TAG>().ok_or(Refused)?;
    let (iv, ciphertext) = sealed.split_first_chunk::<IV>().ok_or(Refused)?;

    let point = (*prefix == 4).then(|| PublicKey::from_uncompressed(point).ok()).flatten();
    let keys = Keys::derive(&key.agree(&point.unwrap_or_else(|| key.public())));
    let authentic = keys.authenticator(sealed, auth_data).verify_slice(tag).is_ok();
    if !authentic || point.is_none() {
        return Err(Refused);
    }
    let mut plaintext = ciphertext.to_vec();
    keys.crypt(iv, &mut plaintext);
    Ok(plaintext)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::rlpx::tests::vectors;

    #[test]
    fn opens_the_recorded_auth() {
        let vectors = vectors(include_str!("../../tests/vectors/rlpx-session.txt"));
        let key = vectors.key("receiver_private_key");
        assert_eq!(decrypt(&key, vectors.get("auth"), &[]).as_deref(), Ok(vectors.get("auth_plaintext")));
    }

    #[test]
    fn refuses_whatever_was_changed() {
        let mut rng = StdRng::seed_from_u64(1);
        let key = NodeKey::random(&mut rng);
        let mut message = BytesMut::new();
        encrypt(&key.public(), b"plaintext", b"data", &mut rng, &mut message);
        assert_eq!(message.len(), OVERHEAD + 9);
        assert_eq!(decrypt(&key, &message, b"data").unwrap(), b"plaintext");
        assert_eq!(decrypt(&key, &message, b"other"), Err(Refused));
        for at in 0..message.len() {
            let mut changed = message.clone();
            changed[at] ^= 1;
            assert_eq!(decrypt(&key, &changed, b"data"), Err(Refused), "byte {at}");
        }
        // Every length that is too short, with the lengths around each field's end (CVE-2026-22862).
        for len in 0..message.len() {
            assert_eq!(decrypt(&key, &message[..len], b"data"), Err(Refused), "{len} bytes");
        }
    }

    #[test]
    fn the_empty_message_has_the_shortest_ciphertext() {
        let mut rng = StdRng::seed_from_u64(2);
        let key = NodeKey::random(&mut rng);
        let mut message = BytesMut::new();
        encrypt(&key.public(), b"", b"", &mut rng, &mut message);
        assert_eq!(message.len(), OVERHEAD);
        assert_eq!(decrypt(&key, &message, b"").unwrap(), b"");
        assert_eq!(decrypt(&key, &message[..OVERHEAD - 1], b""), Err(Refused));
    }

    /// A sender that chooses a bad point knows the tag that the bad arithmetic would give. Here the tag even fits the
    /// point that decryption puts in its place, and the message is still refused (CVE-2026-26315, GHSA-2gjw-fg97-vg3r).
    #[test]
    fn bad_points_are_refused_even_with_a_tag_that_fits() {
        let mut rng = StdRng::seed_from_u64(3);
        let key = NodeKey::random(&mut rng);
        let zero = [0; 64];
        let mut off_curve = key.public().to_uncompressed();
        off_curve[63] ^= 1;
        // Coordinates of 2^256 - 1 are above the field prime.
        let not_canonical = [0xff; 64];
        for point in [zero, off_curve, not_canonical] {
            let keys = Keys::derive(&key.agree(&key.public()));
            let sealed = [7; 40];
            let tag = keys.authenticator(&sealed, b"").finalize().into_bytes();
            let message = [&[4][..], &point, &sealed, &tag].concat();
            assert_eq!(decrypt(&key, &message, b""), Err(Refused));
        }
    }

    #[test]
    fn only_the_uncompressed_prefix_is_read() {
        let mut rng = StdRng::seed_from_u64(4);
        let key = NodeKey::random(&mut rng);
        let mut message = BytesMut::new();
        encrypt(&key.public(), b"m", b"", &mut rng, &mut message);
        for prefix in [0, 2, 3, 5, 6, 7, 0xff] {
            message[0] = prefix;
            assert_eq!(decrypt(&key, &message, b""), Err(Refused));
        }
    }
}
