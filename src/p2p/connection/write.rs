//! The writing half of the engine: frames into the caller's buffer.

use std::mem;

use bytes::BytesMut;

use super::{
    Connection,
    stage::{Closing, Stage},
};
use crate::{
    Now,
    p2p::{Action, Side, code, outbox::Queued},
    rlpx::{Compressor, Decompressor, snappy::MAX_PAYLOAD},
};

/// Frames are added until the buffer holds this much: one write carries many frames, and they are still in cache.
const TRANSMIT: usize = 64 * 1024;

/// An empty list, the payload of Ping and Pong; and the same compressed.
const EMPTY: &[u8] = &[0xc0];
const EMPTY_COMPRESSED: &[u8] = &[0x01, 0x00, 0xc0];

impl Connection {
    /// Appends what is to be written to `out`, until `out` holds 64 KiB or nothing is left. Answers whether anything
    /// was appended. A message is never cut, so one large message goes beyond the bound.
    pub fn poll_transmit(&mut self, now: Now, out: &mut BytesMut) -> bool {
        if self.unwritable {
            return false;
        }
        let before = out.len();
        out.extend_from_slice(&mem::take(&mut self.early));
        match &self.stage {
            Stage::Open(_) => {
                self.write_keepalive(now, out);
                self.write_messages(out);
            }
            Stage::Closing(_) => {
                self.write_messages(out);
                if self.outbox.is_empty() {
                    self.write_disconnect(out);
                }
            }
            _ => {}
        }
        let written = out.len().saturating_sub(before);
        if let Stage::Open(open) = &mut self.stage
            && !out.is_empty()
        {
            open.keepalive.writing(now.mono);
        }
        written > 0
    }

    /// Pings and pongs go before messages: they are what keeps the connection.
    fn write_keepalive(&mut self, now: Now, out: &mut BytesMut) {
        let Stage::Open(open) = &mut self.stage else { return };
        let payload = if self.snappy { EMPTY_COMPRESSED } else { EMPTY };
        let writer = &mut open.shared.session.writer;
        if mem::take(&mut self.outbox.ping) && writer.write(code::PING, payload, out).is_ok() {
            open.keepalive.ping_written(now.mono);
            self.intake.ping_written(now.mono, open.keepalive.unanswered());
        }
        while out.len() < TRANSMIT && self.outbox.pop_pong() {
            // Cannot fail: a pong fits a frame.
            let _ = writer.write(code::PONG, payload, out);
        }
    }

    fn write_messages(&mut self, out: &mut BytesMut) {
        let writer = match &mut self.stage {
            Stage::Open(open) => &mut open.shared.session.writer,
            Stage::Closing(closing) => &mut closing.session.writer,
            _ => return,
        };
        let (before, mut messages) = (out.len(), 0);
        while out.len() < TRANSMIT {
            let Some(Queued { code, message }) = self.outbox.pop() else { break };
            // Cannot fail: `send` accepts only what a frame can carry, compressed or not.
            let _ = if self.snappy {
                writer.write(code, message.as_bytes(), out)
            } else {
                let payload = Decompressor::default().decompress(message.as_bytes(), MAX_PAYLOAD);
                writer.write(code, &payload.unwrap_or_default(), out)
            };
            messages += 1;
        }
        if messages > 0 {
            self.written(messages, out.len().saturating_sub(before));
        }
    }

    /// Tells the driver, in one action for all that it has not been told yet.
    fn written(&mut self, more_messages: usize, more_bytes: usize) {
        if let Some(Action::Written { messages, wire_bytes }) = self.actions.back_mut() {
            *messages = messages.saturating_add(more_messages);
            *wire_bytes = wire_bytes.saturating_add(more_bytes);
        } else {
            self.actions.push_back(Action::Written { messages: more_messages, wire_bytes: more_bytes });
        }
    }

    fn write_disconnect(&mut self, out: &mut BytesMut) {
        let Stage::Closing(closing) = &mut self.stage else { return };
        let Closing { session, reason, fault, .. } = &mut **closing;
        let (reason, fault, raw) = (*reason, *fault, reason.encode());
        let compressed = if self.snappy { Compressor::default().compress(&raw).ok() } else { None };
        let payload = compressed.as_ref().map_or(raw.as_slice(), |compressed| compressed.as_bytes());
        // Cannot fail: a Disconnect fits a frame.
        let _ = session.writer.write(code::DISCONNECT, payload, out);
        self.finish(Side::Local, Some(reason), fault);
    }
}
