//! The header of every packet: `hash (32) ‖ signature (65) ‖ type (1)`, then the body.
//!
//! `signature = sign(keccak(type ‖ body))` and `hash = keccak(signature ‖ type ‖ body)`. The hash protects nothing,
//! since it needs no secret; it distinguishes discv4 from other protocols on the same port.

use ::rlp::RlpStream;
use bytes::BytesMut;

use crate::{discv4::crypto::Crypto, node::PublicKey, rlp::Reader};

/// The most bytes of a packet (discv4.md).
pub const MAX_PACKET: usize = 1280;
/// The bytes before the body.
pub const HEADER: usize = HASH + SIGNATURE + 1;
const HASH: usize = 32;
const SIGNATURE: usize = 65;

/// The type of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// 0x01
    Ping = 1,
    /// 0x02
    Pong = 2,
    /// 0x03
    FindNode = 3,
    /// 0x04
    Neighbors = 4,
    /// 0x05
    EnrRequest = 5,
    /// 0x06
    EnrResponse = 6,
}

impl Type {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Ping,
            2 => Self::Pong,
            3 => Self::FindNode,
            4 => Self::Neighbors,
            5 => Self::EnrRequest,
            6 => Self::EnrResponse,
            _ => return None,
        })
    }
}

/// Why a datagram cannot be a discv4 packet, as far as that shows without hashing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Shorter than a header.
    TooShort,
    /// Longer than a packet may be.
    TooLong,
    /// A type that does not exist.
    UnknownType,
    /// The body is no RLP list, or one that is longer than the datagram.
    NotAList,
}

/// A datagram that looks like a packet. Nothing in it is proven yet.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// The packet's name in the answers to it.
    pub hash: [u8; 32],
    /// The kind of the body.
    pub kind: Type,
    /// The body, and whatever follows it.
    pub body: &'a [u8],
    signature: &'a [u8; SIGNATURE],
    /// `type ‖ body`, which is signed.
    signed: &'a [u8],
    /// `signature ‖ type ‖ body`, which is hashed.
    hashed: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads the header by its cheap marks alone: length, type, and an RLP list header that fits.
    pub fn read(datagram: &'a [u8]) -> Result<Self, HeaderError> {
        if datagram.len() > MAX_PACKET {
            return Err(HeaderError::TooLong);
        }
        let (hash, hashed) = datagram.split_first_chunk::<HASH>().ok_or(HeaderError::TooShort)?;
        let (signature, signed) = hashed.split_first_chunk::<SIGNATURE>().ok_or(HeaderError::TooShort)?;
        let (kind, body) = signed.split_first().ok_or(HeaderError::TooShort)?;
        let kind = Type::from_byte(*kind).ok_or(HeaderError::UnknownType)?;
        Reader::list_prefix(body).map_err(|_| HeaderError::NotAList)?;
        Ok(Self { hash: *hash, kind, body, signature, signed, hashed })
    }

    /// Whether the hash is that of the rest: one Keccak-256 over the datagram.
    #[must_use]
    pub fn hash_is_right(&self, crypto: &impl Crypto) -> bool {
        crypto.hash(self.hashed) == self.hash
    }

    /// The key that signed the packet: one Keccak-256 and one key recovery, the dearest step of all.
    #[must_use]
    pub fn signer(&self, crypto: &impl Crypto) -> Option<PublicKey> {
        crypto.recover(&crypto.hash(self.signed), self.signature)
    }
}

/// Writes a packet into `out`, which is cleared: the body from `append`, then signature and hash before it. Returns the
/// hash, by which the answer will name the packet.
pub fn seal(
    crypto: &impl Crypto,
    kind: Type,
    out: &mut BytesMut,
    append: impl FnOnce(&mut RlpStream),
) -> [u8; 32] {
    out.clear();
    out.resize(HEADER - 1, 0);
    out.extend_from_slice(&[kind as u8]);
    let mut stream = RlpStream::new_with_buffer(std::mem::take(out));
    append(&mut stream);
    *out = stream.out();
    let mut hash = [0; HASH];
    if let Some((head, hashed)) = out.split_first_chunk_mut::<HASH>() {
        if let Some((signature, signed)) = hashed.split_first_chunk_mut::<SIGNATURE>() {
            *signature = crypto.sign(&crypto.hash(signed));
        }
        hash = crypto.hash(hashed);
        *head = hash;
    }
    hash
}
