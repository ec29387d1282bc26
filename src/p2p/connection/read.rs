//! The reading half of the engine: one handshake packet or message at a time.
//!
//! Left out: the format of a packet or a message (`wire`), and whether reading goes on (`intake`).

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
        capability::negotiate,
        code, hello,
        keepalive::Pong,
        wire::{MAX_MESSAGE, Message},
    },
};

/// The result of handling the received bytes once.
pub(super) enum Step {
    /// Something was consumed; call again.
    Again,
    /// Nothing can be done before more bytes come or a checkpoint is answered.
    Wait,
}

impl Connection {
    /// Reads one handshake packet or message, if all of it is there.
    pub(super) fn step(&mut self, now: Now, received: &mut BytesMut) -> Result<Step, Fault> {
        match &mut self.stage {
            Stage::Handshake(handshake) => {
                let wire = handshake.read(&self.local.key, &mut self.rng, received, &mut self.early)?;
                let Some(wire) = wire else { return Ok(Step::Wait) };
                let remote = wire.remote();
                self.remote = Some(remote);
                self.stage = Stage::Authenticated(Box::new(wire));
                self.actions.push_back(Action::Authenticated { remote });
            }
            Stage::AwaitHello(greeted) => {
                // Only Hello and Disconnect may come here, so a larger message is refused before it is received.
                let message = greeted.wire.read(received, MAX_BASE_MESSAGE + 1)?;
                let Some(Message { code, payload, .. }) = message else { return Ok(Step::Wait) };
                match code {
                    code::HELLO => self.hello_read(&payload)?,
                    code::DISCONNECT => self.left(DisconnectReason::decode(&payload, false)),
                    code => return Err(Fault::HelloExpected { code }),
                }
            }
            Stage::Open(open) => {
                let Some(message) = open.shared.wire.read(received, MAX_MESSAGE)? else {
                    return Ok(Step::Wait);
                };
                open.keepalive.frame_read(now.mono);
                self.intake.frame_read(message.wire_bytes);
                if mem::take(&mut self.probing) {
                    self.actions.push_back(Action::Heard);
                }
                if message.code < BASE_CODES {
                    self.base_message(now, &message)?;
                } else {
                    self.message(&message)?;
                }
            }
            Stage::Closing(_) | Stage::Closed => {
                // Bytes that come after the end are dropped.
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
        self.hello = Some(hello.clone());
        let Stage::AwaitHello(greeted) = &mut self.stage else { return Ok(()) };
        if hello.has_snappy() {
            // From here on both sides compress, Disconnect included.
            greeted.wire.compress();
        }
        hello::check_identity(key, &greeted.wire.remote())?;
        let channels = negotiate(&greeted.capabilities, &hello.capabilities);
        if channels.is_empty() {
            return Err(Fault::NoSharedCapability);
        }
        if let Stage::AwaitHello(greeted) = mem::replace(&mut self.stage, Stage::Closed) {
            let Greeted { wire, .. } = *greeted;
            self.stage = Stage::Negotiated(Box::new(Shared { wire, channels: channels.clone() }));
            self.actions.push_back(Action::Negotiated { hello, channels });
        }
        Ok(())
    }

    fn message(&mut self, message: &Message) -> Result<(), Fault> {
        let Stage::Open(open) = &mut self.stage else { return Ok(()) };
        let code = message.code;
        let found = open.shared.channels.iter().find_map(|to| Some((to.index, to.relative(code)?)));
        let (channel, relative) = found.ok_or(Fault::CodeOutOfRange { code })?;
        let payload = open.shared.wire.payload(message)?;
        self.intake.push(Inbound { channel, code: relative, payload, wire_bytes: message.wire_bytes });
        Ok(())
    }

    fn base_message(&mut self, now: Now, message: &Message) -> Result<(), Fault> {
        let (code, payload) = (message.code, &message.payload);
        if payload.len() > MAX_BASE_MESSAGE {
            return Err(Fault::BaseMessageTooLarge { code, size: payload.len() });
        }
        let Stage::Open(open) = &mut self.stage else { return Ok(()) };
        match code {
            code::DISCONNECT => {
                let reason = DisconnectReason::decode(payload, open.shared.wire.is_compressed());
                self.left(reason);
            }
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
            // A second Hello, and codes without a meaning in the specification.
            _ => self.counters.base_ignored += 1,
        }
        Ok(())
    }

    /// The peer sent a Disconnect. It gets no answer.
    fn left(&mut self, reason: DisconnectReason) {
        self.finish(Side::Remote, Some(reason), None);
    }
}
