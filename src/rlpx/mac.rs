//! The frame MAC: one Keccak-256 state for each direction and the whole connection, into which every tag is mixed with
//! AES.
//!
//! rlpx.md, "MAC": the state first absorbs `mac-secret ^ nonce` and the handshake packet, then for every frame
//!
//! ```text
//! header: seed = AES(mac-secret, digest)      ^ header-ciphertext;  absorb seed;              tag = digest
//! body:   absorb body-ciphertext; s = digest; seed = AES(mac-secret, s) ^ s;  absorb seed;    tag = digest
//! ```
//!
//! where every digest is cut to 16 bytes. A digest costs one Keccak permutation on a copy of the state. The first
//! digest of a header equals the tag of the frame before, so it is kept: tags cost three permutations a frame instead
//! of four.

use std::fmt;

use aes::{
    Aes256,
    cipher::{BlockCipherEncrypt, KeyInit},
};
use sha3::{Digest, Keccak256};

/// The bytes of a tag on the wire.
pub const TAG_LEN: usize = 16;

/// The MAC of one direction.
pub struct Mac {
    cipher: Aes256,
    state: Keccak256,
    /// The digest of [`Self::state`] now, cut to 16 bytes.
    digest: [u8; TAG_LEN],
}

impl Mac {
    /// A MAC with the key `secret`, whose state has absorbed the nonce and the packet of the handshake.
    #[must_use]
    pub fn new(secret: &[u8; 32], state: Keccak256) -> Self {
        let mut mac = Self { cipher: Aes256::new(secret.into()), state, digest: [0; TAG_LEN] };
        mac.refresh();
        mac
    }

    /// The tag of a header, given its ciphertext.
    pub fn header(&mut self, ciphertext: &[u8; 16]) -> [u8; TAG_LEN] {
        self.stir(ciphertext)
    }

    /// Absorbs the next piece of a body's ciphertext.
    pub fn absorb(&mut self, ciphertext: &[u8]) {
        self.state.update(ciphertext);
    }

    /// The tag of the body that was absorbed since the header.
    pub fn body(&mut self) -> [u8; TAG_LEN] {
        self.refresh();
        let seed = self.digest;
        self.stir(&seed)
    }

    fn stir(&mut self, with: &[u8; 16]) -> [u8; TAG_LEN] {
        let mut seed = self.digest.into();
        self.cipher.encrypt_block(&mut seed);
        seed.iter_mut().zip(with).for_each(|(seed, with)| *seed ^= with);
        self.state.update(seed);
        self.refresh();
        self.digest
    }

    fn refresh(&mut self) {
        let digest: [u8; 32] = self.state.clone().finalize().into();
        self.digest.copy_from_slice(digest.split_at(TAG_LEN).0);
    }
}

/// Whether two tags are equal, in a time that does not depend on where they differ.
#[must_use]
pub(super) fn tags_equal(a: &[u8; TAG_LEN], b: &[u8; TAG_LEN]) -> bool {
    a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mac(redacted)")
    }
}

// The recorded session in the tests of `frame` compares the MAC with the bytes of other implementations.
#[cfg(test)]
mod tests {
    use super::*;

    /// The kept digest equals a newly computed one.
    #[test]
    fn the_kept_digest_is_the_digest() {
        let mut mac = Mac::new(&[1; 32], Keccak256::new().chain_update(b"state"));
        for round in 0..5_u8 {
            let _ = mac.header(&[round; 16]);
            mac.absorb(&[round; 48]);
            let tag = mac.body();
            let anew: [u8; 32] = mac.state.clone().finalize().into();
            assert_eq!(tag, anew[..16]);
            assert_eq!(mac.digest, tag);
        }
    }

    #[test]
    fn tags_that_differ_in_one_bit_differ() {
        for byte in 0..16 {
            let mut tag = [9; 16];
            assert!(tags_equal(&tag, &[9; 16]));
            tag[byte] ^= 0x80;
            assert!(!tags_equal(&tag, &[9; 16]));
        }
    }
}
