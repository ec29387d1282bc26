//! The cryptography of sessions: key agreement, key derivation, identity proof, and the seal of a message.
//!
//! What costs tens of microseconds (elliptic curves) stands behind the trait [`Crypto`], so that a simulation of ten
//! thousand nodes can put something cheap in its place; a [`NodeKey`] is the real thing. What costs less than one
//! microsecond (HKDF, AES-GCM) is always real.
//!
//! Source: devp2p, discv5/discv5-theory.md, "Sessions" and "Identity-Specific Cryptography"; AES-128-GCM with a tag
//! of 16 bytes behind the ciphertext.

use std::fmt;

use aes_gcm::{
    Aes128Gcm, KeyInit, Tag,
    aead::{AeadInOut, inout::InOutBuf},
};
use bytes::BytesMut;
use hkdf::Hkdf;
use rand::RngCore;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::header::{ChallengeData, Nonce};
use crate::node::{NodeId, NodeKey, PublicKey, Record, record::RecordError};

const TAG: usize = 16;

/// The elliptic-curve work of handshakes. The answers of one node's [`Crypto`] must fit those of another's.
pub trait Crypto {
    /// Makes an ephemeral key for a handshake with `dest`: its public half, compressed, and the agreed secret.
    fn agree_ephemeral(&self, rng: &mut dyn RngCore, dest: &PublicKey) -> ([u8; 33], Zeroizing<[u8; 33]>);

    /// The secret agreed between our node key and a stranger's `ephemeral` key; none if that is no point.
    fn agree_static(&self, ephemeral: &[u8; 33]) -> Option<Zeroizing<[u8; 33]>>;

    /// Signs the digest of an identity proof with our node key: `r ‖ s`.
    fn sign_proof(&self, digest: &[u8; 32]) -> [u8; 64];

    /// Whether `signature` over `digest` is that of `key`.
    fn verify_proof(&self, key: &PublicKey, digest: &[u8; 32], signature: &[u8; 64]) -> bool;

    /// Reads a stranger's record and checks its signature.
    fn decode_record(&self, bytes: &[u8]) -> Result<Record, RecordError>;
}

impl Crypto for NodeKey {
    fn agree_ephemeral(&self, rng: &mut dyn RngCore, dest: &PublicKey) -> ([u8; 33], Zeroizing<[u8; 33]>) {
        let ephemeral = NodeKey::random(rng);
        (ephemeral.public().to_compressed(), ephemeral.agree(dest).compressed())
    }

    fn agree_static(&self, ephemeral: &[u8; 33]) -> Option<Zeroizing<[u8; 33]>> {
        let point = PublicKey::from_compressed(ephemeral).ok()?;
        Some(self.agree(&point).compressed())
    }

    fn sign_proof(&self, digest: &[u8; 32]) -> [u8; 64] {
        self.sign(digest)
    }

    fn verify_proof(&self, key: &PublicKey, digest: &[u8; 32], signature: &[u8; 64]) -> bool {
        key.verify(digest, signature).is_ok()
    }

    fn decode_record(&self, bytes: &[u8]) -> Result<Record, RecordError> {
        Record::decode(bytes)
    }
}

/// What the initiator of a handshake signs: it binds the challenge, the ephemeral key and the recipient, so that a
/// proof can be used only once and only there.
#[must_use]
pub fn proof_digest(challenge: &ChallengeData, ephemeral: &[u8; 33], recipient: &NodeId) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(b"discovery v5 identity proof");
    hasher.update(challenge);
    hasher.update(ephemeral);
    hasher.update(recipient.0);
    hasher.finalize().into()
}

/// The AES-128 key of one direction of a session. Wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct MessageKey(Zeroizing<[u8; 16]>);

impl fmt::Debug for MessageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageKey(redacted)")
    }
}

/// The keys that a handshake yields, named by the side that writes with them.
#[derive(Clone, Debug)]
pub struct SessionKeys {
    /// The write key of the node that answered the WHOAREYOU.
    pub initiator: MessageKey,
    /// The write key of the node that sent the WHOAREYOU.
    pub recipient: MessageKey,
}

impl SessionKeys {
    /// Derives the keys from the agreed secret (HKDF-SHA256, salted with the challenge).
    #[must_use]
    pub fn derive(
        secret: &[u8; 33],
        challenge: &ChallengeData,
        initiator: &NodeId,
        recipient: &NodeId,
    ) -> Self {
        let mut okm = Zeroizing::new([0; 32]);
        let info: [&[u8]; 3] = [b"discovery v5 key agreement", &initiator.0, &recipient.0];
        // Fails only for more than 255 digests of output; 32 bytes are one.
        let _ = Hkdf::<Sha256>::new(Some(challenge), secret).expand_multi_info(&info, okm.as_mut());
        let (mut first, mut second) = (Zeroizing::new([0; 16]), Zeroizing::new([0; 16]));
        first.iter_mut().chain(second.iter_mut()).zip(okm.iter()).for_each(|(to, from)| *to = *from);
        Self { initiator: MessageKey(first), recipient: MessageKey(second) }
    }
}

impl MessageKey {
    /// The key that is `bytes`.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Seals what follows the first `ad` bytes of `packet`, which are the additional data, and appends the tag.
    /// `nonce` must never have been used with this key.
    pub fn seal(&self, nonce: &Nonce, packet: &mut BytesMut, ad: usize) {
        let Some((ad, message)) = packet.split_at_mut_checked(ad) else { return };
        let cipher = Aes128Gcm::new((&*self.0).into());
        // Fails only beyond the 64 GiB that one GCM message may have.
        if let Ok(tag) = cipher.encrypt_inout_detached(nonce.into(), ad, message.into()) {
            packet.extend_from_slice(&tag);
        }
    }

    /// Opens `sealed` into `plaintext` (whose old content goes). False if key, nonce, `ad` or bytes are not those it
    /// was sealed with; `plaintext` is empty then.
    #[must_use]
    pub fn open(&self, nonce: &Nonce, ad: &[u8], sealed: &[u8], plaintext: &mut Vec<u8>) -> bool {
        plaintext.clear();
        let Some((sealed, tag)) = sealed.split_last_chunk::<TAG>() else { return false };
        plaintext.resize(sealed.len(), 0);
        let Ok(buffers) = InOutBuf::new(sealed, plaintext) else { return false };
        let cipher = Aes128Gcm::new((&*self.0).into());
        let opened = cipher.decrypt_inout_detached(nonce.into(), ad, buffers, &Tag::from(*tag)).is_ok();
        if !opened {
            plaintext.clear();
        }
        opened
    }
}
