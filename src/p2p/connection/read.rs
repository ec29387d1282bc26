//! The reading half of the engine: one packet or frame at a time.

use std::{mem, sync::Arc};

use bytes::BytesMut;

use super::{
    Connection,
    stage::{Greeted, Shared, Stage},
};
use crate::{
    Now,
    p2p::{
        Action, BASE_CODES, DisconnectReason, Fault, Inbound, MAX_BASE_MESSAGE, RemoteHello, Side,
        capability::negotiate, code, hello, keepalive::Pong,
    },
    rlpx::{
        Recipient,
        frame::{Frame, MAX_FRAME},
        handshake::take_packet,
        snappy::MAX_PAYLOAD,
    },
};

/// What came of looking at the received bytes once.
pub(super) enum Step {
    /// Something was consumed; look again.
    Again,
    /// Nothing can be done before more bytes or an answer come.
    Wait,
}

impl Connection {
    /// Reads one packet or frame, if all of it is there.
    pub(super) fn step(&mut self, now: Now, received: &mut BytesMut) -> Result<Step, Fault> {
        match &mut self.stage {
            Stage::AwaitAuth | Stage::AwaitAck(_) => {
                let Some(packet) = take_packet(received)? else { return Ok(Step::Wait) };
                let session = match mem::replace(&mut self.stage, Stage::AwaitAuth) {
                    Stage::AwaitAck(initiator) => initiator.finish(&self.local.key, &packet)?,
                    _ => Recipient.answer(&self.local.key, &packet, &mut self.rng, &mut self.early)?,
                };
                let remote = session.remote;
                self.remote = Some(remote);
                self.stage = Stage::Authenticated(Box::new(session));
                self.actions.push_back(Action::Authenticated { remote });
            }
            Stage::AwaitHello(greeted) => {
                // Nothing but Hello and Disconnect can come, so a larger frame is refused before it is received.
                let frame = greeted.session.reader.read(received, MAX_BASE_MESSAGE + 1)?;
                let Some(Frame { code, payload, .. }) = frame else { return Ok(Step::Wait) };
                match code {
                    code::HELLO => self.hello_read(&payload)?,
                    code::DISCONNECT => self.left(DisconnectReason::decode(&payload, false)),
                    code => return Err(Fault::HelloExpected { code }),
                }
            }
            Stage::Open(open) => {
                let Some(frame) = open.shared.session.reader.read(received, MAX_FRAME)? else {
                    return Ok(Step::Wait);
                };
                open.keepalive.frame_read(now.mono);
                self.intake.frame_read(frame.wire_len);
                if mem::take(&mut self.probing) {
                    self.actions.push_back(Action::Heard);
                }
                if frame.code < BASE_CODES { self.base_message(now, &frame)? } else { self.message(&frame)? }
            }
            Stage::Closing(_) | Stage::Closed => {
                // What comes after the end is not looked at.
                received.clear();
                return Ok(Step::Wait);
            }
            Stage::Authenticated(_) | Stage::Negotiated(_) => return Ok(Step::Wait),
        }
        Ok(Step::Again)
    }

    fn hello_read(&mut self, payload: &[u8]) -> Result<(), Fault> {
        let (hello, key) = RemoteHello::decode(payload)?;
        let hello = Arc::new(hello);
        // From here on both sides compress, also what they say to part.
        self.snappy = hello.has_snappy();
        self.hello = Some(hello.clone());
        let Stage::AwaitHello(greeted) = &self.stage else { return Ok(()) };
        hello::check_identity(key, &greeted.session.remote)?;
        let channels = negotiate(&greeted.capabilities, &hello.capabilities);
        if channels.is_empty() {
            return Err(Fault::NoSharedCapability);
        }
        if let Stage::AwaitHello(greeted) = mem::replace(&mut self.stage, Stage::Closed) {
            let Greeted { session, .. } = *greeted;
            self.stage = Stage::Negotiated(Box::new(Shared { session, channels: channels.clone() }));
            self.actions.push_back(Action::Negotiated { hello, channels });
        }
        Ok(())
    }

    fn message(&mut self, frame: &Frame) -> Result<(), Fault> {
        let Stage::Open(open) = &self.stage else { return Ok(()) };
        let code = frame.code;
        let found = open.shared.channels.iter().find_map(|to| Some((to.index, to.relative(code)?)));
        let (channel, relative) = found.ok_or(Fault::CodeOutOfRange { code })?;
        let payload = if self.snappy {
            self.decompressor.decompress(&frame.payload, MAX_PAYLOAD)?
        } else {
            self.decompressor.copy(&frame.payload)
        };
        self.intake.push(Inbound { channel, code: relative, payload, wire_bytes: frame.wire_len });
        Ok(())
    }

    fn base_message(&mut self, now: Now, frame: &Frame) -> Result<(), Fault> {
        let (code, payload) = (frame.code, &frame.payload);
        if payload.len() > MAX_BASE_MESSAGE {
            return Err(Fault::BaseMessageTooLarge { code, size: payload.len() });
        }
        let Stage::Open(open) = &mut self.stage else { return Ok(()) };
        match code {
            code::DISCONNECT => self.left(DisconnectReason::decode(payload, self.snappy)),
            code::PING => {
                if !self.pings.owe_pong() {
                    self.counters.pings_unanswered += 1;
                }
            }
            code::PONG => match open.keepalive.pong_read(now.mono) {
                Pong::Answer(round_trip) => {
                    self.intake.pong_read();
                    self.actions.extend(round_trip.map(Action::RoundTrip));
                }
                Pong::Unasked => self.counters.base_ignored += 1,
            },
            // A second Hello, and codes that nobody has given a meaning.
            _ => self.counters.base_ignored += 1,
        }
        Ok(())
    }

    /// The peer left and said why. It is not answered.
    fn left(&mut self, reason: DisconnectReason) {
        self.finish(Side::Remote, Some(reason), None);
    }
}
