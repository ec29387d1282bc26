//! The writing half of the engine: messages into the caller's buffer.
//!
//! Left out: how a message is encrypted and compressed (`wire`), and where messages wait (`outbound`).

use std::mem;

use bytes::BytesMut;

use super::{Connection, stage::Stage};
use crate::{
    Now,
    p2p::{Next, Outgoing, Side, Source, code},
};

/// Frames are added until the buffer holds this many bytes: one write then carries many frames, and they are still in
/// the CPU's cache.
const TRANSMIT: usize = 64 * 1024;

impl Connection {
    /// Appends to `out` until `out` holds 64 KiB or nothing is left to write. Returns whether anything was appended. A
    /// message is never cut, so one large message may exceed the bound.
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
            // Messages cannot be written in these states, so a queue that wants to disconnect does not have to be
            // written first.
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

    /// Pings and Pongs go before messages: without them the peer ends the connection.
    fn write_keepalive(&mut self, now: Now, out: &mut BytesMut) {
        let Stage::Open(open) = &mut self.stage else { return };
        let (wire, before) = (&mut open.shared.wire, out.len());
        if self.pings.take_ping() {
            wire.write_empty(code::PING, out);
            open.keepalive.ping_written(now.mono);
            self.intake.ping_written(now.mono, open.keepalive.unanswered());
        }
        while out.len() < TRANSMIT && self.pings.take_pong() {
            wire.write_empty(code::PONG, out);
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
            let before = out.len();
            open.shared.wire.write(code, &message, out);
            let bytes = out.len().saturating_sub(before);
            self.in_flight.append_message(bytes);
            messages.appended(now.mono, bytes);
        }
    }

    fn write_disconnect(&mut self, out: &mut BytesMut) {
        let Stage::Closing(closing) = &mut self.stage else { return };
        let (reason, fault, before) = (closing.reason, closing.fault, out.len());
        closing.wire.write_last(code::DISCONNECT, &reason.encode(), out);
        self.in_flight.append(out.len().saturating_sub(before));
        self.finish(Side::Local, Some(reason), fault);
    }
}
