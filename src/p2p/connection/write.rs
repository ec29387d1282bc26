//! The writing half of the engine: frames into the caller's buffer.

use std::mem;

use bytes::BytesMut;

use super::{
    Connection,
    stage::{Closing, Stage},
};
use crate::{
    Now,
    p2p::{Next, Outgoing, Side, Source, code},
    rlpx::{Compressor, Decompressor, snappy::MAX_PAYLOAD},
};

/// Frames are added until the buffer holds this much: one write carries many frames, and they are still in cache.
const TRANSMIT: usize = 64 * 1024;

/// An empty list, the payload of Ping and Pong; and the same compressed.
const EMPTY: &[u8] = &[0xc0];
const EMPTY_COMPRESSED: &[u8] = &[0x01, 0x00, 0xc0];

impl Connection {
    /// Appends what is to be written to `out`, until `out` holds 64 KiB or nothing is left. Returns whether anything
    /// was appended. A message is never cut, so one large message goes beyond the bound.
    pub fn poll_transmit(&mut self, now: Now, messages: &mut impl Source, out: &mut BytesMut) -> bool {
        self.unsent_until = None;
        let before = out.len();
        if !self.unwritable {
            out.extend_from_slice(&mem::take(&mut self.early));
            self.in_flight.append(out.len().saturating_sub(before));
        }
        match &self.stage {
            Stage::Open(_) if !self.unwritable => {
                self.write_keepalive(now, out);
                self.write_messages(now, messages, out);
            }
            Stage::Closing(_) | Stage::Closed => {}
            // Messages cannot be written yet, or not any more: there is nothing to wait for.
            _ => {
                if let Some(reason) = messages.leaving() {
                    self.disconnect(now, reason);
                }
            }
        }
        if !self.unwritable {
            self.write_disconnect(out);
        }
        if let Stage::Open(open) = &mut self.stage
            && !self.in_flight.is_empty()
        {
            open.keepalive.writing(now.mono);
        }
        out.len() > before
    }

    /// Pings and pongs go before messages: they are what keeps the connection.
    fn write_keepalive(&mut self, now: Now, out: &mut BytesMut) {
        let Stage::Open(open) = &mut self.stage else { return };
        let payload = if self.snappy { EMPTY_COMPRESSED } else { EMPTY };
        let (writer, before) = (&mut open.shared.session.writer, out.len());
        if self.pings.take_ping() && writer.write(code::PING, payload, out).is_ok() {
            open.keepalive.ping_written(now.mono);
            self.intake.ping_written(now.mono, open.keepalive.unanswered());
        }
        while out.len() < TRANSMIT && self.pings.take_pong() {
            // Cannot fail: a pong fits a frame.
            let _ = writer.write(code::PONG, payload, out);
        }
        self.in_flight.append(out.len().saturating_sub(before));
    }

    fn write_messages(&mut self, now: Now, messages: &mut impl Source, out: &mut BytesMut) {
        while out.len() < TRANSMIT {
            let Stage::Open(open) = &mut self.stage else { return };
            let Outgoing { code, message } = match messages.next(now.mono) {
                Next::Message(message) => message,
                Next::Nothing => return,
                Next::NotBefore(until) => {
                    self.unsent_until = Some(until);
                    return;
                }
                Next::Leave(reason) => return self.disconnect(now, reason),
            };
            let (writer, before) = (&mut open.shared.session.writer, out.len());
            // Cannot fail: the queue takes only what a frame can carry, compressed or not.
            let _ = if self.snappy {
                writer.write(code, message.as_bytes(), out)
            } else {
                let payload = Decompressor::default().decompress(message.as_bytes(), MAX_PAYLOAD);
                writer.write(code, &payload.unwrap_or_default(), out)
            };
            let bytes = out.len().saturating_sub(before);
            self.in_flight.append_message(bytes);
            messages.appended(now.mono, bytes);
        }
    }

    fn write_disconnect(&mut self, out: &mut BytesMut) {
        let Stage::Closing(closing) = &mut self.stage else { return };
        let Closing { session, reason, fault, .. } = &mut **closing;
        let (reason, fault, raw) = (*reason, *fault, reason.encode());
        let compressed = if self.snappy { Compressor::default().compress(&raw).ok() } else { None };
        let payload = compressed.as_ref().map_or(raw.as_slice(), |compressed| compressed.as_bytes());
        let before = out.len();
        // Cannot fail: a Disconnect fits a frame.
        let _ = session.writer.write(code::DISCONNECT, payload, out);
        self.in_flight.append(out.len().saturating_sub(before));
        self.finish(Side::Local, Some(reason), fault);
    }
}
