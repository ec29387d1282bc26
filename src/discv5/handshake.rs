//! The handshake: answering a challenge, and checking the answer to one of ours.
//!
//! ```text
//! initiator                                   recipient
//!     │ ── unreadable message ──────────────────> │
//!     │ <──────────────── WHOAREYOU (challenge) ── │
//!     │ ── ephemeral key, proof, message ────────> │   both derive the same keys
//! ```
//!
//! Source: devp2p, discv5/discv5-theory.md, "Handshake Steps".

use std::time::Instant;

use bytes::BytesMut;
use rand::RngCore;

use super::{
    challenge::Challenge,
    crypto::{Crypto, SessionKeys, proof_digest},
    header::{ChallengeData, Nonce, WriteAuth},
    packet,
    session::{Role, Session},
};
use crate::{
    kademlia::Contact,
    node::{NodeId, Record, record::RecordError},
};

/// The reason why a handshake packet does not answer our challenge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// We have no record of the sender, and it sent none.
    #[error("the handshake has no record, and none is known")]
    NoRecord,
    /// The record is not valid.
    #[error("the handshake's record: {0}")]
    Record(#[from] RecordError),
    /// The record is another node's.
    #[error("the handshake's record belongs to another node than its sender")]
    Sender,
    /// The identity proof is not one of the record's key.
    #[error("the handshake's identity proof is not valid")]
    Proof,
    /// The ephemeral key is no point of the curve.
    #[error("the handshake's ephemeral key is no point of the curve")]
    EphemeralKey,
    /// The message inside cannot be opened with the keys that were agreed on.
    #[error("the handshake's message cannot be opened with the agreed keys")]
    Message,
}

/// The contents of a handshake packet beside its message.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The claimed sender.
    pub src: NodeId,
    /// The identity proof.
    pub signature: &'a [u8; 64],
    /// The ephemeral key.
    pub ephemeral: &'a [u8; 33],
    /// The record as RLP, or nothing.
    pub record: &'a [u8],
}

/// Our identity in a handshake.
#[derive(Debug)]
pub struct Local<'a, C> {
    /// The arithmetic with our key.
    pub crypto: &'a C,
    /// Our record.
    pub record: &'a Record,
}

/// Replaces `out` by the handshake packet that answers `challenge` of `dest` and carries `plaintext`. Returns the
/// session, which is valid from now on, and the packet's nonce. Our record is sent along if `dest` has an older one, or
/// none (`known_seq`).
pub fn answer<C: Crypto>(
    out: &mut BytesMut,
    rng: &mut dyn RngCore,
    local: &Local<'_, C>,
    dest: &Contact,
    (challenge, known_seq): (&ChallengeData, u64),
    plaintext: &[u8],
    now: Instant,
) -> Option<(Session, Nonce)> {
    let (ephemeral, secret) = local.crypto.agree_ephemeral(rng, &dest.public_key);
    let signature = local.crypto.sign_proof(&proof_digest(challenge, &ephemeral, &dest.id));
    let src = local.record.id();
    let keys = SessionKeys::derive(&secret, challenge, &src, &dest.id);
    let mut session = Session::new(keys, Role::Initiator, dest.record.clone(), now);
    let record = if known_seq < local.record.seq() { local.record.encoded() } else { &[] };
    let auth = WriteAuth::Handshake { src, signature: &signature, ephemeral: &ephemeral, record };
    // A new session always has a nonce.
    let (key, nonce) = session.seal(rng)?;
    packet::sealed(out, rng, &dest.id, &auth, (key, &nonce), plaintext);
    Some((session, nonce))
}

/// Checks an answer to one of the WHOAREYOUs of `challenge`, and returns the session if it is good. The caller must still check that its message
/// can be opened.
pub fn accept<C: Crypto>(
    local: &Local<'_, C>,
    challenge: &Challenge,
    answer: &Answer<'_>,
    now: Instant,
) -> Result<Session, HandshakeError> {
    let Local { crypto, record: own } = local;
    let record = newest(*crypto, challenge.record.as_ref(), answer)?;
    let key = record.public_key();
    let proves = |data: &&ChallengeData| {
        let digest = proof_digest(data, answer.ephemeral, &own.id());
        crypto.verify_proof(&key, &digest, answer.signature)
    };
    let data = challenge.data().find(proves).ok_or(HandshakeError::Proof)?;
    let secret = crypto.agree_static(answer.ephemeral).ok_or(HandshakeError::EphemeralKey)?;
    let keys = SessionKeys::derive(&secret, data, &answer.src, &own.id());
    Ok(Session::new(keys, Role::Recipient, Some(record), now))
}

/// The newer one of the known record and the record in the packet.
fn newest(
    crypto: &impl Crypto,
    known: Option<&Record>,
    answer: &Answer<'_>,
) -> Result<Record, HandshakeError> {
    if answer.record.is_empty() {
        return known.cloned().ok_or(HandshakeError::NoRecord);
    }
    if let Some(known) = known.filter(|known| known.encoded() == answer.record) {
        return Ok(known.clone());
    }
    let sent = crypto.decode_record(answer.record)?;
    if sent.id() != answer.src {
        return Err(HandshakeError::Sender);
    }
    Ok(known.filter(|known| known.seq() >= sent.seq()).cloned().unwrap_or(sent))
}
