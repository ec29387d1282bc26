//! Derives the keys of a connection from two nonces and one shared point.
//!
//! rlpx.md, "Initial Handshake": every secret is a Keccak-256 of the ephemeral agreement and the secret before it. The
//! MAC states absorb the handshake packets as they were on the wire. So the first frame of each side proves that no
//! byte of them was changed.

use std::fmt;

use sha3::{Digest, Keccak256};
use zeroize::Zeroizing;

use crate::node::{id::keccak256, key::SharedPoint};

/// Which side of the handshake we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We dialed and sent auth.
    Initiator,
    /// We accepted and sent ack.
    Recipient,
}

/// The contribution of one side, as it was on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Contribution<'a> {
    /// The random nonce inside the packet.
    pub nonce: &'a [u8; 32],
    /// The whole packet, size prefix included.
    pub packet: &'a [u8],
}

/// The keys of one connection, from our side.
pub struct Secrets {
    /// AES-256 key of both directions.
    pub aes: Zeroizing<[u8; 32]>,
    /// AES-256 key of both MACs.
    pub mac: Zeroizing<[u8; 32]>,
    /// MAC state of the frames that we send.
    pub egress: Keccak256,
    /// MAC state of the frames that we receive.
    pub ingress: Keccak256,
}

impl Secrets {
    /// Derives the keys from the agreement of both ephemeral keys, and from what the initiator (auth) and the recipient
    /// (ack) sent.
    #[must_use]
    pub fn derive(
        role: Role,
        agreement: &SharedPoint,
        auth: Contribution<'_>,
        ack: Contribution<'_>,
    ) -> Self {
        let ephemeral = agreement.x();
        let keccak = |tail: &[u8]| Zeroizing::new(keccak256(&[ephemeral.as_ref(), tail]));
        let nonces = keccak256(&[ack.nonce, auth.nonce]);
        let shared = keccak(&nonces);
        let aes = keccak(shared.as_ref());
        let mac = keccak(aes.as_ref());
        // Each state starts with the nonce of the side that reads: the recipient's for frames of the initiator.
        let from_initiator = state(&mac, ack.nonce, auth.packet);
        let from_recipient = state(&mac, auth.nonce, ack.packet);
        let (egress, ingress) = match role {
            Role::Initiator => (from_initiator, from_recipient),
            Role::Recipient => (from_recipient, from_initiator),
        };
        Self { aes, mac, egress, ingress }
    }
}

fn state(mac: &[u8; 32], nonce: &[u8; 32], packet: &[u8]) -> Keccak256 {
    let mut seed = Zeroizing::new(*mac);
    seed.iter_mut().zip(nonce).for_each(|(seed, nonce)| *seed ^= nonce);
    Keccak256::new().chain_update(seed.as_ref()).chain_update(packet)
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rlpx::tests::vectors;

    #[test]
    fn matches_eip_8() {
        let vectors = vectors(include_str!("../../tests/vectors/rlpx-eip8.txt"));
        let agreement = vectors.key("ephemeral_key_b").agree(&vectors.key("ephemeral_key_a").public());
        let auth = Contribution { nonce: vectors.array("nonce_a"), packet: vectors.get("auth2") };
        let ack = Contribution { nonce: vectors.array("nonce_b"), packet: vectors.get("ack2") };
        let secrets = Secrets::derive(Role::Recipient, &agreement, auth, ack);
        assert_eq!(secrets.aes.as_ref(), vectors.get("aes_secret"));
        assert_eq!(secrets.mac.as_ref(), vectors.get("mac_secret"));
        let foo = secrets.ingress.chain_update(b"foo").finalize();
        assert_eq!(foo.as_slice(), vectors.get("ingress_mac_foo"));
    }

    #[test]
    fn matches_the_recorded_session() {
        let vectors = vectors(include_str!("../../tests/vectors/rlpx-session.txt"));
        let agreement = vectors
            .key("initiator_ephemeral_private_key")
            .agree(&vectors.key("receiver_ephemeral_private_key").public());
        assert_eq!(agreement.x().as_ref(), vectors.get("ecdhe_shared_secret"));
        let auth = Contribution { nonce: vectors.array("initiator_nonce"), packet: vectors.get("auth") };
        let ack = Contribution { nonce: vectors.array("receiver_nonce"), packet: vectors.get("ack") };
        let secrets = Secrets::derive(Role::Initiator, &agreement, auth, ack);
        assert_eq!(secrets.aes.as_ref(), vectors.get("aes_secret"));
        assert_eq!(secrets.mac.as_ref(), vectors.get("mac_secret"));
        assert_eq!(secrets.egress.finalize().as_slice(), vectors.get("initial_egress_mac"));
        assert_eq!(secrets.ingress.finalize().as_slice(), vectors.get("initial_ingress_mac"));
    }
}
