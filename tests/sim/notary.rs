//! Signatures without elliptic curves, so that a protocol can be simulated with ten thousand nodes.

use std::sync::Arc;

use devp2pd::{discv4::crypto::Crypto, node::PublicKey};

/// A signature contains the number of the signer's key. Every node looks up the key in `keys`.
#[derive(Clone, Debug)]
pub(crate) struct Notary {
    pub(crate) number: u32,
    pub(crate) keys: Arc<Vec<PublicKey>>,
}

impl Crypto for Notary {
    fn sign(&self, digest: &[u8; 32]) -> [u8; 65] {
        let mut signature = [0; 65];
        signature[..32].copy_from_slice(digest);
        signature[32..36].copy_from_slice(&self.number.to_be_bytes());
        signature
    }

    fn recover(&self, digest: &[u8; 32], signature: &[u8; 65]) -> Option<PublicKey> {
        let number = u32::from_be_bytes(signature[32..36].try_into().unwrap());
        (signature[..32] == digest[..]).then(|| self.keys.get(usize::try_from(number).unwrap()).copied())?
    }

    /// Two words that depend on every byte. They need not be secure, because no node of the simulation forges a hash.
    fn hash(&self, bytes: &[u8]) -> [u8; 32] {
        let (mut a, mut b) = (0xcbf2_9ce4_8422_2325_u64, bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            a = (a ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            b = b.wrapping_add(a).rotate_left(17);
        }
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&a.to_be_bytes());
        hash[8..16].copy_from_slice(&b.to_be_bytes());
        hash
    }
}
