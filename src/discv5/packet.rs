//! Whole packets, assembled: header, sealed message, mask.
//!
//! Each packet is built in one buffer of the caller, in the order of its bytes, and sealed and masked in place.

use bytes::BytesMut;
use rand::RngCore;

use super::{
    crypto::MessageKey,
    header::{self, CHALLENGE_DATA, ChallengeData, Nonce, WriteAuth},
};
use crate::node::NodeId;

/// The number of random bytes in place of a message when there is no session. They look like a short message with the
/// tag's 16 bytes, and the packet reaches the least size (87 bytes) that others answer.
const RANDOM_MESSAGE: usize = 20;

/// Replaces `out` by a packet whose message is `plaintext`, sealed with `key` under `nonce`.
pub fn sealed(
    out: &mut BytesMut,
    rng: &mut dyn RngCore,
    dest: &NodeId,
    auth: &WriteAuth<'_>,
    (key, nonce): (&MessageKey, &Nonce),
    plaintext: &[u8],
) {
    let header = begin(out, rng, nonce, auth);
    out.extend_from_slice(plaintext);
    key.seal(nonce, out, header);
    header::mask(out, header, dest);
}

/// Replaces `out` by a packet that `dest` cannot read: it requests a WHOAREYOU, which will carry `nonce`.
pub fn random(out: &mut BytesMut, rng: &mut dyn RngCore, dest: &NodeId, src: NodeId, nonce: &Nonce) {
    let header = begin(out, rng, nonce, &WriteAuth::Message { src });
    let mut message = [0; RANDOM_MESSAGE];
    rng.fill_bytes(&mut message);
    out.extend_from_slice(&message);
    header::mask(out, header, dest);
}

/// Replaces `out` by a new WHOAREYOU for the packet that carried `nonce`, and returns its bytes before masking.
pub fn challenge(
    out: &mut BytesMut,
    rng: &mut dyn RngCore,
    dest: &NodeId,
    nonce: &Nonce,
    enr_seq: u64,
) -> ChallengeData {
    let mut id_nonce = [0; 16];
    rng.fill_bytes(&mut id_nonce);
    begin(out, rng, nonce, &WriteAuth::WhoAreYou { id_nonce: &id_nonce, enr_seq });
    let mut data = [0; CHALLENGE_DATA];
    data.iter_mut().zip(out.iter()).for_each(|(to, from)| *to = *from);
    header::mask(out, CHALLENGE_DATA, dest);
    data
}

/// Replaces `out` by the WHOAREYOU whose bytes before masking are `data`: the same packet that was sent first.
pub fn repeat_challenge(out: &mut BytesMut, dest: &NodeId, data: &ChallengeData) {
    out.clear();
    out.extend_from_slice(data);
    header::mask(out, CHALLENGE_DATA, dest);
}

fn begin(out: &mut BytesMut, rng: &mut dyn RngCore, nonce: &Nonce, auth: &WriteAuth<'_>) -> usize {
    let mut iv = [0; 16];
    rng.fill_bytes(&mut iv);
    out.clear();
    header::write(out, &iv, nonce, auth);
    out.len()
}

#[cfg(test)]
mod tests;
