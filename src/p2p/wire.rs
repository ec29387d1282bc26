//! The message wire: all that the engine needs of a transport, which is RLPx.
//!
//! The engine reads a message, writes a message, and ends the connection with a reason; Hello, channels, intake,
//! keepalive and queues use nothing else of the transport. Only this file knows how a message is framed, encrypted and
//! compressed (`tests/layering.rs` checks it). Another transport would be another implementation of [`Handshake`] and
//! [`Wire`].
//!
//! Everything works on buffers that the caller owns, and nothing is allocated per message.
//!
//! Left out: cryptography and compression themselves (`rlpx`), sockets, and the meaning of messages.

use std::mem;

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;

use super::Fault;
pub use crate::rlpx::{Compressed, Decompressor, FrameError, Refused, SnappyError};
use crate::{
    node::{NodeKey, PublicKey},
    rlpx::{
        Compressor, Frame, Initiator, Recipient, Session,
        frame::{MAX_FRAME, check_len},
        handshake::take_packet,
        snappy::MAX_PAYLOAD,
    },
};

/// The transport's name, as the API shows it.
pub const TRANSPORT: &str = "rlpx";

/// The largest message that is received at all, in bytes, its code included.
pub(super) const MAX_MESSAGE: usize = MAX_FRAME;

/// The RLP of an empty list, and the same compressed with snappy.
const EMPTY: &[u8] = &[0xc0];
const EMPTY_COMPRESSED: &[u8] = &[0x01, 0x00, 0xc0];

/// Whether a message with this code on the wire can be carried. `compressed`: the peer takes compressed payloads.
pub(super) fn fits(code: u64, message: &Compressed, compressed: bool) -> bool {
    let bytes = if compressed { message.as_bytes().len() } else { message.raw_len() };
    check_len(code, bytes).is_ok()
}

/// The exchange before messages, in which each side proves its key.
pub(super) enum Handshake {
    /// We accepted the connection and wait for the first packet.
    Accept,
    /// We dialed and wrote the first packet; we wait for the second.
    Dial(Box<Initiator>),
}

impl Handshake {
    /// Begins a handshake with the node that has the key `remote`, and appends the first packet to `out`.
    pub(super) fn dial(key: &NodeKey, remote: PublicKey, rng: &mut StdRng, out: &mut BytesMut) -> Self {
        Self::Dial(Box::new(Initiator::start(key, remote, rng, out)))
    }

    /// Reads the other side's packet from the front of `received`, and appends ours to `out` if one is due. Returns
    /// `None` until the whole packet is there.
    pub(super) fn read(
        &mut self,
        key: &NodeKey,
        rng: &mut StdRng,
        received: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Wire>, Fault> {
        let Some(packet) = take_packet(received)? else { return Ok(None) };
        let session = match mem::replace(self, Self::Accept) {
            Self::Dial(initiator) => initiator.finish(key, &packet)?,
            Self::Accept => Recipient.answer(key, &packet, rng, out)?,
        };
        Ok(Some(Wire { session, compressed: false, decompressor: Decompressor::default() }))
    }
}

/// A message as it was read.
pub(super) struct Message {
    /// The code on the wire.
    pub(super) code: u64,
    /// The payload, compressed or not.
    pub(super) payload: BytesMut,
    /// How many bytes it took on the wire.
    pub(super) wire_bytes: usize,
}

/// Messages in both directions, after the handshake.
pub(super) struct Wire {
    session: Session,
    /// Whether payloads are compressed: true after a Hello of the peer whose version has compression.
    compressed: bool,
    decompressor: Decompressor,
}

impl Wire {
    /// The other side's key. It is proven to us by the first message that can be read.
    pub(super) fn remote(&self) -> PublicKey {
        self.session.remote
    }

    /// Turns compression on for all later payloads, in both directions.
    pub(super) fn compress(&mut self) {
        self.compressed = true;
    }

    /// Whether payloads are compressed.
    pub(super) fn is_compressed(&self) -> bool {
        self.compressed
    }

    /// Reads one message of at most `limit` bytes from the front of `received`, if all of it is there.
    pub(super) fn read(&mut self, received: &mut BytesMut, limit: usize) -> Result<Option<Message>, Fault> {
        let frame = self.session.reader.read(received, limit)?;
        Ok(frame.map(|Frame { code, payload, wire_len }| Message { code, payload, wire_bytes: wire_len }))
    }

    /// Whether a part of a message has been consumed.
    pub(super) fn is_inside_message(&self) -> bool {
        self.session.reader.is_inside_frame()
    }

    /// The payload as the peer's application gave it: decompressed if the connection is compressed.
    pub(super) fn payload(&mut self, message: &Message) -> Result<Bytes, Fault> {
        Ok(if self.compressed {
            self.decompressor.decompress(&message.payload, MAX_PAYLOAD)?
        } else {
            self.decompressor.copy(&message.payload)
        })
    }

    /// Releases the memory that small payloads share, because nothing more is read now.
    pub(super) fn release(&mut self) {
        self.decompressor.release();
    }

    /// Appends a message to `out`. Its size must have been checked with [`fits`].
    pub(super) fn write(&mut self, code: u64, message: &Compressed, out: &mut BytesMut) {
        let writer = &mut self.session.writer;
        // Cannot fail: the size was checked.
        let _ = if self.compressed {
            writer.write(code, message.as_bytes(), out)
        } else {
            let payload = Decompressor::default().decompress(message.as_bytes(), MAX_PAYLOAD);
            writer.write(code, &payload.unwrap_or_default(), out)
        };
    }

    /// Appends a Hello, which is never compressed.
    pub(super) fn write_hello(&mut self, code: u64, payload: &[u8], out: &mut BytesMut) {
        // Cannot fail: a Hello fits a frame.
        let _ = self.session.writer.write(code, payload, out);
    }

    /// Appends a message whose payload is an empty list: a Ping or a Pong.
    pub(super) fn write_empty(&mut self, code: u64, out: &mut BytesMut) {
        let payload = if self.compressed { EMPTY_COMPRESSED } else { EMPTY };
        // Cannot fail: it fits a frame.
        let _ = self.session.writer.write(code, payload, out);
    }

    /// Appends the last message: a Disconnect.
    pub(super) fn write_last(&mut self, code: u64, payload: &[u8], out: &mut BytesMut) {
        let compressed = if self.compressed { Compressor::default().compress(payload).ok() } else { None };
        let payload = compressed.as_ref().map_or(payload, |compressed| compressed.as_bytes());
        // Cannot fail: it fits a frame.
        let _ = self.session.writer.write(code, payload, out);
    }
}
