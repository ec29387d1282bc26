//! Frames: one message each, encrypted and authenticated in the caller's buffers.
//!
//! ```text
//! header (16) ‖ header tag (16) ‖ body, padded to 16 ‖ body tag (16)
//! header = size (24 bits, without padding) ‖ header-data C2 80 80 ‖ zeros
//! body   = RLP(message code) ‖ payload
//! ```
//!
//! Header-data is left over from chunked frames: every implementation writes C2 80 80 and none reads it (rlpx.md,
//! "Framing").
//!
//! The reader never reserves memory. A frame that announces 16 MiB waits in the receive buffer, which grows with the
//! bytes that were received and not with the announced size.

use std::fmt;

use aes::Aes256;
use bytes::{Buf, BufMut, BytesMut};
use ctr::{
    Ctr128BE,
    cipher::{KeyIvInit, StreamCipher},
};

use super::{
    mac::{Mac, TAG_LEN, tags_equal},
    snappy::MessageTooLarge,
};
use crate::rlp::{self, Reader};

/// The largest size that a header can hold, in bytes.
pub const MAX_FRAME: usize = (1 << 24) - 1;
/// The bytes of a header and its tag.
const HEADER_LEN: usize = 16 + TAG_LEN;
const HEADER_DATA: [u8; 3] = [0xc2, 0x80, 0x80];
/// Bodies are padded to whole AES blocks.
const BLOCK: usize = 16;
/// How many bytes are encrypted before the MAC absorbs them (and the other way round when reading): both passes then
/// find them in the first-level cache, which has 32 KiB or more.
const PIECE: usize = 4096;

/// A frame that breaks the format. The connection is over: no byte after it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The header's tag is wrong.
    #[error("the tag of a frame header is wrong")]
    HeaderTag,
    /// The body's tag is wrong.
    #[error("the tag of a frame body is wrong")]
    BodyTag,
    /// A frame without a body, which has no message code.
    #[error("an empty frame; a frame carries at least a message code")]
    Empty,
    /// A frame larger than the connection accepts in its present state.
    #[error("a frame of {size} bytes, at most {limit} are accepted here")]
    TooLarge {
        /// The size in the header, in bytes.
        size: usize,
        /// The largest size that was accepted, in bytes.
        limit: usize,
    },
    /// The body does not start with an unsigned integer.
    #[error("a frame whose message code is not an RLP integer")]
    Code,
}

/// The key stream of one direction: AES-256 in counter mode with a zero IV, never rewound.
type KeyStream = Ctr128BE<Aes256>;

fn key_stream(key: &[u8; 32]) -> KeyStream {
    KeyStream::new(key.into(), &[0; 16].into())
}

/// Encrypts messages into frames.
pub struct FrameWriter {
    stream: KeyStream,
    mac: Mac,
}

impl FrameWriter {
    /// A writer at the start of a connection.
    #[must_use]
    pub fn new(key: &[u8; 32], mac: Mac) -> Self {
        Self { stream: key_stream(key), mac }
    }

    /// Appends the frame of one message to `out`. Nothing is appended when the message does not fit.
    pub fn write(&mut self, code: u64, payload: &[u8], out: &mut BytesMut) -> Result<(), MessageTooLarge> {
        let (code, skip) = encode_code(code);
        let code = code.get(skip..).unwrap_or_default();
        let size = body_len(code.len(), payload.len())?;
        let padded = size.next_multiple_of(BLOCK);
        out.reserve(HEADER_LEN + padded + TAG_LEN);

        let mut header = [0; 16];
        let [_, size_bytes @ ..] = u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes();
        let fields = size_bytes.into_iter().chain(HEADER_DATA);
        header.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        self.stream.apply_keystream(&mut header);
        out.put_slice(&header);
        out.put_slice(&self.mac.header(&header));

        let start = out.len();
        out.put_slice(code);
        out.put_slice(payload);
        out.put_bytes(0, padded - size);
        for piece in out.get_mut(start..).unwrap_or_default().chunks_mut(PIECE) {
            self.stream.apply_keystream(piece);
            self.mac.absorb(piece);
        }
        out.put_slice(&self.mac.body());
        Ok(())
    }
}

/// The size of a body in bytes, or an error if a header cannot hold it.
fn body_len(code: usize, payload: usize) -> Result<usize, MessageTooLarge> {
    let size = code.saturating_add(payload);
    if size > MAX_FRAME { Err(MessageTooLarge::compressed(payload)) } else { Ok(size) }
}

/// How many bytes a frame takes on the wire, given the bytes of its code and payload together.
#[must_use]
pub fn wire_len(body: usize) -> usize {
    body.next_multiple_of(BLOCK).saturating_add(HEADER_LEN + TAG_LEN)
}

/// The code as a canonical RLP integer: the bytes of the array from the returned index to its end.
fn encode_code(code: u64) -> ([u8; 9], usize) {
    let bytes = code.to_be_bytes();
    let zeros = code.leading_zeros() as usize / 8;
    let prefix = match code {
        0 => 0x80,
        1..=0x7f => code.to_be_bytes()[7],
        _ => 0x88 - u8::try_from(zeros).unwrap_or(8),
    };
    let mut out = [0; 9];
    out.iter_mut().skip(1).zip(bytes).for_each(|(to, from)| *to = from);
    let start = if code <= 0x7f { 8 } else { zeros };
    if let Some(first) = out.get_mut(start) {
        *first = prefix;
    }
    (out, start)
}

/// Checks whether a frame can carry a message with this code and this many bytes of payload.
pub fn check_len(code: u64, payload: usize) -> Result<(), MessageTooLarge> {
    let (code, skip) = encode_code(code);
    body_len(code.len().saturating_sub(skip), payload).map(|_| ())
}

/// A message, as it was read from a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The message code on the wire.
    pub code: u64,
    /// The rest of the body, compressed or not.
    pub payload: BytesMut,
    /// How many bytes the frame took on the wire.
    pub wire_len: usize,
}

/// Authenticates and decrypts frames.
pub struct FrameReader {
    stream: KeyStream,
    mac: Mac,
    /// The size of the frame whose header has been read.
    size: Option<usize>,
}

impl FrameReader {
    /// A reader at the start of a connection.
    #[must_use]
    pub fn new(key: &[u8; 32], mac: Mac) -> Self {
        Self { stream: key_stream(key), mac, size: None }
    }

    /// Reads the next frame from the front of `received`; `None` until all of it is there. Bodies over `limit` bytes
    /// are refused when their header is read.
    ///
    /// The message is decrypted in place and split off, so it shares memory with `received` until it is dropped.
    pub fn read(&mut self, received: &mut BytesMut, limit: usize) -> Result<Option<Frame>, FrameError> {
        let size = match self.size {
            Some(size) => size,
            None => match self.read_header(received)? {
                Some(size) => size,
                None => return Ok(None),
            },
        };
        if size > limit {
            return Err(FrameError::TooLarge { size, limit });
        }
        let padded = size.next_multiple_of(BLOCK);
        if received.len() < padded + TAG_LEN {
            return Ok(None);
        }
        self.size = None;
        let mut body = received.split_to(padded);
        for piece in body.chunks_mut(PIECE) {
            self.mac.absorb(piece);
            self.stream.apply_keystream(piece);
        }
        let tag = received.first_chunk::<TAG_LEN>().ok_or(FrameError::BodyTag)?;
        if !tags_equal(&self.mac.body(), tag) {
            return Err(FrameError::BodyTag);
        }
        received.advance(TAG_LEN);
        body.truncate(size);
        let code = take_code(&mut body).ok_or(FrameError::Code)?;
        Ok(Some(Frame { code, payload: body, wire_len: wire_len(size) }))
    }

    fn read_header(&mut self, received: &mut BytesMut) -> Result<Option<usize>, FrameError> {
        let Some(bytes) = received.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let (header, tag) = bytes.split_first_chunk::<16>().ok_or(FrameError::HeaderTag)?;
        let tag = tag.first_chunk::<TAG_LEN>().ok_or(FrameError::HeaderTag)?;
        if !tags_equal(&self.mac.header(header), tag) {
            return Err(FrameError::HeaderTag);
        }
        let mut header = *header;
        self.stream.apply_keystream(&mut header);
        received.advance(HEADER_LEN);
        let [a, b, c, ..] = header;
        let size = u32::from_be_bytes([0, a, b, c]) as usize;
        if size == 0 {
            return Err(FrameError::Empty);
        }
        self.size = Some(size);
        Ok(Some(size))
    }

    /// Whether a header has been read and its body has not.
    #[must_use]
    pub fn is_inside_frame(&self) -> bool {
        self.size.is_some()
    }
}

/// Splits the message code off a body.
fn take_code(body: &mut BytesMut) -> Option<u64> {
    let item = Reader::items(body).raw().ok()?;
    let (code, len) = (rlp::integer(item).ok()?, item.len());
    body.advance(len);
    Some(code)
}

impl fmt::Debug for FrameWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameWriter(keys redacted)")
    }
}

impl fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameReader(keys redacted, inside a frame of {:?})", self.size)
    }
}

#[cfg(test)]
mod tests;
