//! The EIP-8 handshake: auth from the side that dialed, ack from the side that accepted.
//!
//! ```text
//!   Initiator::start ── auth ──▶ Recipient::answer
//!          │                          │
//!   Initiator::finish ◀── ack ────────┤
//!          ▼                          ▼
//!       Session                    Session
//! ```
//!
//! A packet is a 16-bit size and an ECIES message of that size, whose authenticated data is the size. The message
//! contains an RLP list and padding. Versions, further list elements and bytes after the list are ignored (EIP-8). The
//! format before EIP-8 is not on the network any more, and is not read.
//!
//! Each side computes two key generations and four agreements, and one signature (initiator) or one recovery
//! (recipient): about 0.2 ms. [`Recipient::answer`] and [`Initiator::finish`] take and return owned values and use no
//! connection, so a driver may run them where such work is bounded.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use rand::RngCore;
use zeroize::Zeroizing;

use super::{
    ecies::{self, Refused},
    frame::{FrameReader, FrameWriter},
    mac::Mac,
    secrets::{Contribution, Role, Secrets},
};
use crate::{
    node::{NodeKey, PublicKey},
    rlp::Reader,
};

/// The largest size that a packet may announce, in bytes. Real packets have 370 to 700; the format allows 64 KiB.
const MAX_PACKET: usize = 2048;
/// The version of the handshake that we send; readers ignore it (EIP-8).
const VERSION: u8 = 4;
/// Padding is 100 to 300 zero bytes under the encryption, which makes sizes vary (EIP-8).
const MIN_PADDING: u32 = 100;
const PADDING_SPREAD: u32 = 201;

/// Splits the first handshake packet off the received bytes; `None` while it is incomplete. A size out of range is
/// refused as soon as it is read.
pub fn take_packet(received: &mut BytesMut) -> Result<Option<Bytes>, Refused> {
    let Some(prefix) = received.first_chunk::<2>() else { return Ok(None) };
    let size = usize::from(u16::from_be_bytes(*prefix));
    if !(ecies::OVERHEAD..=MAX_PACKET).contains(&size) {
        return Err(Refused);
    }
    Ok((received.len() >= 2 + size).then(|| received.split_to(2 + size).freeze()))
}

fn seal(to: &PublicKey, mut body: Vec<u8>, rng: &mut dyn RngCore) -> Bytes {
    let padding = MIN_PADDING + rng.next_u32() % PADDING_SPREAD;
    body.resize(body.len().saturating_add(padding as usize), 0);
    let size = u16::try_from(body.len() + ecies::OVERHEAD).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = BytesMut::with_capacity(2 + ecies::OVERHEAD + body.len());
    packet.put_slice(&size);
    ecies::encrypt(to, &body, &size, rng, &mut packet);
    packet.freeze()
}

fn unseal(key: &NodeKey, packet: &[u8]) -> Result<Vec<u8>, Refused> {
    let (size, message) = packet.split_first_chunk::<2>().ok_or(Refused)?;
    ecies::decrypt(key, message, size)
}

/// The contents of auth: the dialing node's key, and a signature by its ephemeral key over the static agreement xor the
/// nonce.
#[derive(Debug)]
struct Auth {
    signature: [u8; 65],
    initiator: PublicKey,
    nonce: [u8; 32],
}

impl Auth {
    fn encode(&self) -> Vec<u8> {
        let mut stream = ::rlp::RlpStream::new_list(4);
        stream.append(&self.signature.as_slice()).append(&self.initiator.to_uncompressed().as_slice());
        stream.append(&self.nonce.as_slice()).append(&VERSION);
        stream.out().to_vec()
    }

    fn decode(body: &[u8]) -> Result<Self, Refused> {
        let (mut list, _padding) = Reader::list_prefix(body).map_err(|_| Refused)?;
        Ok(Self {
            signature: list.array().map_err(|_| Refused)?,
            initiator: point(&mut list)?,
            nonce: list.array().map_err(|_| Refused)?,
        })
    }
}

/// The contents of ack: the recipient's ephemeral key and nonce.
#[derive(Debug)]
struct Ack {
    ephemeral: PublicKey,
    nonce: [u8; 32],
}

impl Ack {
    fn encode(&self) -> Vec<u8> {
        let mut stream = ::rlp::RlpStream::new_list(3);
        stream.append(&self.ephemeral.to_uncompressed().as_slice());
        stream.append(&self.nonce.as_slice()).append(&VERSION);
        stream.out().to_vec()
    }

    fn decode(body: &[u8]) -> Result<Self, Refused> {
        let (mut list, _padding) = Reader::list_prefix(body).map_err(|_| Refused)?;
        Ok(Self { ephemeral: point(&mut list)?, nonce: list.array().map_err(|_| Refused)? })
    }
}

fn point(list: &mut Reader<'_>) -> Result<PublicKey, Refused> {
    PublicKey::from_uncompressed(&list.array().map_err(|_| Refused)?).map_err(|_| Refused)
}

/// The digest that the initiator's ephemeral key signs.
fn challenge(key: &NodeKey, other: &PublicKey, nonce: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let mut digest = key.agree(other).x();
    digest.iter_mut().zip(nonce).for_each(|(digest, nonce)| *digest ^= nonce);
    digest
}

fn random_nonce(rng: &mut dyn RngCore) -> [u8; 32] {
    let mut nonce = [0; 32];
    rng.fill_bytes(&mut nonce);
    nonce
}

/// The side that dialed: auth is written, ack is awaited.
pub struct Initiator {
    remote: PublicKey,
    ephemeral: NodeKey,
    nonce: [u8; 32],
    auth: Bytes,
}

impl Initiator {
    /// Appends auth to `out`.
    pub fn start(key: &NodeKey, remote: PublicKey, rng: &mut dyn RngCore, out: &mut BytesMut) -> Self {
        let (ephemeral, nonce) = (NodeKey::random(rng), random_nonce(rng));
        let signature = ephemeral.sign_recoverable(&challenge(key, &remote, &nonce));
        let auth = seal(&remote, Auth { signature, initiator: key.public(), nonce }.encode(), rng);
        out.extend_from_slice(&auth);
        Self { remote, ephemeral, nonce, auth }
    }

    /// Reads the ack `packet` (from [`take_packet`]).
    pub fn finish(self, key: &NodeKey, packet: &[u8]) -> Result<Session, Refused> {
        let ack = Ack::decode(&unseal(key, packet)?)?;
        let secrets = Secrets::derive(
            Role::Initiator,
            &self.ephemeral.agree(&ack.ephemeral),
            Contribution { nonce: &self.nonce, packet: &self.auth },
            Contribution { nonce: &ack.nonce, packet },
        );
        Ok(Session::new(self.remote, secrets))
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Initiator(to {:?})", self.remote)
    }
}

/// The side that accepted: auth is awaited.
#[derive(Debug, Default)]
pub struct Recipient;

impl Recipient {
    /// Reads the auth `packet` (from [`take_packet`]) and appends ack to `out`. Nothing is appended on refusal.
    pub fn answer(
        self,
        key: &NodeKey,
        packet: &[u8],
        rng: &mut dyn RngCore,
        out: &mut BytesMut,
    ) -> Result<Session, Refused> {
        let auth = Auth::decode(&unseal(key, packet)?)?;
        let digest = challenge(key, &auth.initiator, &auth.nonce);
        let remote_ephemeral = PublicKey::recover(&digest, &auth.signature).map_err(|_| Refused)?;

        let (ephemeral, nonce) = (NodeKey::random(rng), random_nonce(rng));
        let ack = seal(&auth.initiator, Ack { ephemeral: ephemeral.public(), nonce }.encode(), rng);
        out.extend_from_slice(&ack);
        let secrets = Secrets::derive(
            Role::Recipient,
            &ephemeral.agree(&remote_ephemeral),
            Contribution { nonce: &auth.nonce, packet },
            Contribution { nonce: &nonce, packet: &ack },
        );
        Ok(Session::new(auth.initiator, secrets))
    }
}

/// A finished handshake: the other side's key, and the codec of each direction.
#[derive(Debug)]
pub struct Session {
    /// The other side's key. It is proven by the first frame that `reader` accepts.
    pub remote: PublicKey,
    /// Encrypts everything that we send.
    pub writer: FrameWriter,
    /// Decrypts everything that we receive.
    pub reader: FrameReader,
}

impl Session {
    /// The codecs of a connection with these secrets.
    #[must_use]
    pub fn new(remote: PublicKey, secrets: Secrets) -> Self {
        let Secrets { aes, mac, egress, ingress } = secrets;
        Self {
            remote,
            writer: FrameWriter::new(&aes, Mac::new(&mac, egress)),
            reader: FrameReader::new(&aes, Mac::new(&mac, ingress)),
        }
    }
}

#[cfg(test)]
mod tests;
