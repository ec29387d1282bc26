//! The cryptography of packets, as a parameter: a simulation of ten thousand nodes can fake it, and a fuzzer can reach
//! the code behind it.

use crate::node::{NodeKey, PublicKey, id::keccak256};

/// Signs for one node and recovers the signers of others' packets.
pub trait Crypto {
    /// Signs `digest` so that the signer can be recovered: `r ‖ s ‖ v`.
    fn sign(&self, digest: &[u8; 32]) -> [u8; 65];
    /// The key that signed `digest`, if `signature` is one.
    fn recover(&self, digest: &[u8; 32], signature: &[u8; 65]) -> Option<PublicKey>;
    /// The hash of packets: Keccak-256 everywhere but in simulations.
    fn hash(&self, bytes: &[u8]) -> [u8; 32] {
        keccak256(&[bytes])
    }
}

impl Crypto for NodeKey {
    fn sign(&self, digest: &[u8; 32]) -> [u8; 65] {
        self.sign_recoverable(digest)
    }

    fn recover(&self, digest: &[u8; 32], signature: &[u8; 65]) -> Option<PublicKey> {
        PublicKey::recover(digest, signature).ok()
    }
}
