//! One connection's engine: from the first byte of the handshake to the last Disconnect.
//!
//! ```text
//!                                            greet                          open
//! dial, accept ─▶ Handshake ─▶ Authenticated ─────▶ AwaitHello ─▶ Negotiated ────▶ Open
//!                     │              │                  │              │             │
//!                     │              └──────────────────┴──────────────┴─────────────┤
//!                     │ no keys: without Disconnect                fault, disconnect │
//!                     └──────────────▶ Closed ◀────────────────────────── Closing ◀──┘
//! ```
//!
//! The engine has the shape that the crate root documents ("The engine contract"). Its driver must also follow these
//! rules:
//!
//! - The driver owns the receive buffer: append the bytes that were read, call [`Connection::handle_bytes`], and keep
//!   what that leaves. While [`Connection::wants_bytes`] is false, do not read; TCP then holds the peer back.
//! - After each call take the actions and call [`Connection::deliver`]. While [`Connection::is_behind`] is true, call
//!   [`Connection::handle_bytes`] again, even with no new bytes. When an application has room again, call
//!   [`Connection::deliver`].
//! - The driver owns the send buffer: call [`Connection::poll_transmit`], write, report the bytes that the socket took
//!   to [`Connection::handle_written`], and repeat until nothing is appended. Take the actions afterwards: writing adds
//!   some.
//! - When the connection is over, call [`Connection::deliver_last`]: messages may still wait.
//! - After [`Action::Closed`] write what is left in the send buffer, and nothing else.
//!
//! Memory: messages that were read and not delivered are bounded ([`MAX_BACKLOG`](super::intake::MAX_BACKLOG) and one
//! message). No outgoing message waits here: it is pulled when the send buffer has room. One deadline covers everything
//! before `open`.
//!
//! Left out: the transport (`wire`), the queue of messages to the peer and the progress that senders see (`outbound`),
//! caps, sockets.

mod stage;

use std::{
    collections::VecDeque,
    fmt, mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use rand::rngs::StdRng;

use super::{
    Action, BASE_CODES, Delivery, DisconnectReason, Fault, Inbound, Intake, LocalCapability, LocalNode,
    MAX_BASE_MESSAGE, Next, Outgoing, RemoteHello, Side, Source,
    capability::negotiate,
    code, hello,
    in_flight::InFlight,
    intake::Hold,
    keepalive::{Keepalive, Pong},
    pings::Pings,
    wire::{Handshake, MAX_MESSAGE, Message},
};
use crate::{Now, node::PublicKey};
use stage::{Closing, Greeted, Open, Shared, Stage};

/// How long everything before `open` may take: 5 s, as in go-ethereum.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a Disconnect may wait for the driver to take it into the send buffer: 1 s, as in go-ethereum.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Reading stops while this many actions wait to be taken: it bounds the memory that a peer's frames can take here.
pub const MAX_ACTIONS: usize = 1024;
/// Frames are added until the buffer holds this many bytes: one write then carries many frames, and they are still in
/// the CPU's cache.
const TRANSMIT: usize = 64 * 1024;

/// The result of handling the received bytes once.
enum Step {
    /// Something was consumed; call again.
    Again,
    /// Nothing can be done before more bytes come or a checkpoint is answered.
    Wait,
}

/// Messages of the base protocol that had no effect on one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pings that were not answered because too many Pongs were due.
    pub pings_unanswered: u64,
    /// A second Hello, a Pong without a Ping, unknown codes.
    pub base_ignored: u64,
}

/// The engine of one connection. See the module's documentation for how to drive it.
pub struct Connection {
    local: Arc<LocalNode>,
    rng: StdRng,
    stage: Stage,
    handshake_deadline: Instant,
    remote: Option<PublicKey>,
    hello: Option<Arc<RemoteHello>>,
    /// Messages that were read and not delivered, and whether reading goes on.
    intake: Intake,
    /// Reading stopped before all received bytes were handled.
    behind: bool,
    /// The next frame is to be reported ([`Action::Heard`]).
    probing: bool,
    /// The socket takes nothing more.
    unwritable: bool,
    /// Handshake packets and Hello, as they go on the wire: Hello is encrypted.
    early: BytesMut,
    pings: Pings,
    /// Bytes and messages that were appended to the send buffer and that the socket has not taken.
    in_flight: InFlight,
    /// The time until which messages wait because of a cap.
    unsent_until: Option<Instant>,
    actions: VecDeque<Action>,
    counters: Counters,
}

impl Connection {
    /// The engine of a connection that we opened to the node with the key `remote`. Writes auth, which costs two key
    /// generations, two key agreements and a signature.
    #[must_use]
    pub fn dial(local: Arc<LocalNode>, remote: PublicKey, now: Now, mut rng: StdRng) -> Self {
        let mut early = BytesMut::new();
        let handshake = Handshake::dial(&local.key, remote, &mut rng, &mut early);
        Self { remote: Some(remote), early, ..Self::new(local, Stage::Handshake(handshake), now, rng) }
    }

    /// The engine of a connection that another node opened to us.
    #[must_use]
    pub fn accept(local: Arc<LocalNode>, now: Now, rng: StdRng) -> Self {
        Self::new(local, Stage::Handshake(Handshake::Accept), now, rng)
    }

    fn new(local: Arc<LocalNode>, stage: Stage, now: Now, rng: StdRng) -> Self {
        Self {
            local,
            rng,
            stage,
            handshake_deadline: now.mono + HANDSHAKE_TIMEOUT,
            remote: None,
            hello: None,
            intake: Intake::new(now.mono),
            behind: false,
            probing: false,
            unwritable: false,
            early: BytesMut::new(),
            pings: Pings::default(),
            in_flight: InFlight::default(),
            unsent_until: None,
            actions: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Reads handshake packets and messages from the front of `received`, and leaves there what it cannot take yet.
    pub fn handle_bytes(&mut self, now: Now, received: &mut BytesMut) {
        self.settle(now);
        loop {
            self.behind = !self.may_read();
            if self.behind {
                break;
            }
            match self.step(now, received) {
                Ok(Step::Again) => {}
                Ok(Step::Wait) => {
                    if let Stage::Open(open) = &mut self.stage {
                        let partial = !received.is_empty() || open.shared.wire.is_inside_message();
                        open.keepalive.received(now.mono, partial);
                    }
                    break;
                }
                Err(fault) => self.fail(now, fault),
            }
        }
        if let Stage::Open(open) = &mut self.stage {
            open.shared.wire.release();
        }
        self.settle(now);
    }

    /// Reads one handshake packet or message, if all of it is there.
    fn step(&mut self, now: Now, received: &mut BytesMut) -> Result<Step, Fault> {
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

    /// Offers the messages that were read to their applications, oldest first, until one has to wait for room.
    pub fn deliver(&mut self, now: Now, delivery: &mut impl Delivery) {
        if !matches!(self.stage, Stage::Open(_)) {
            return;
        }
        if let Some(reason) = self.intake.deliver(now.mono, delivery) {
            self.disconnect(now, reason);
        }
        self.settle(now);
    }

    /// The connection is over: messages that were read and still wait are offered to their applications for the last
    /// time.
    pub fn deliver_last(&mut self, now: Now, delivery: &mut impl Delivery) {
        self.intake.deliver_last(now.mono, delivery);
    }

    /// Whether [`Self::handle_bytes`] can do more than it did, though no new bytes were received.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind && self.may_read()
    }

    fn may_read(&self) -> bool {
        self.intake.is_reading() && self.actions.len() < MAX_ACTIONS
    }

    /// Updates the keepalive: moves the peer's deadlines by the time in which we did not read, and tells it whether the
    /// peer is held.
    fn settle(&mut self, now: Now) {
        let pause = self.intake.settle(now.mono);
        if let Stage::Open(open) = &mut self.stage {
            if let Some(pause) = pause {
                open.keepalive.waited(now.mono, pause);
            }
            open.keepalive.set_held(self.intake.hold().is_some());
        }
    }

    /// Acts on deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.intake.handle_timeout(now.mono);
        self.unsent_until = self.unsent_until.filter(|until| *until > now.mono);
        self.settle(now);
        let reading = self.wants_bytes();
        match &mut self.stage {
            Stage::Open(open) => {
                if open.keepalive.ping_due(now.mono) {
                    self.pings.owe_ping();
                }
                if self.intake.wants_ping(now.mono, open.keepalive.unanswered()) {
                    open.keepalive.ping_early(now.mono);
                    self.pings.owe_ping();
                }
                if let Some(fault) = open.keepalive.fault(now.mono, reading) {
                    self.fail(now, fault);
                }
            }
            Stage::Closing(closing) => {
                if now.mono >= closing.deadline {
                    let fault = closing.fault;
                    self.finish(Side::Local, None, fault);
                }
            }
            Stage::Closed => {}
            _ => {
                if now.mono >= self.handshake_deadline {
                    self.fail(now, Fault::HandshakeTimeout);
                }
            }
        }
    }

    /// When to call [`Self::handle_timeout`], then [`Self::deliver`] and [`Self::poll_transmit`]; `None` once closed.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Open(open) => {
                let deadline = open.keepalive.deadline(self.wants_bytes());
                let others = [self.intake.poll_timeout(), self.unsent_until];
                Some(others.into_iter().flatten().fold(deadline, Instant::min))
            }
            Stage::Closing(closing) => Some(closing.deadline),
            Stage::Closed => None,
            _ => Some(self.handshake_deadline),
        }
    }

    /// Returns the next action, oldest first.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if self.actions.is_empty() && self.actions.capacity() > 64 {
            // After a burst, an idle connection holds no large queue.
            self.actions = VecDeque::new();
        }
        action
    }

    /// The answer to [`Action::Authenticated`]: writes our Hello. The capabilities that can be shared are fixed from
    /// here on. Peers refuse a Hello that is longer than [`MAX_BASE_MESSAGE`], so the list must leave room for the
    /// rest.
    pub fn greet(&mut self, _now: Now, capabilities: &[LocalCapability]) {
        match mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Authenticated(mut wire) => {
                let hello = hello::encode(&self.local.client, capabilities, &self.local.key.public());
                wire.write_hello(code::HELLO, &hello, &mut self.early);
                let greeted = Greeted { wire: *wire, capabilities: capabilities.to_vec() };
                self.stage = Stage::AwaitHello(Box::new(greeted));
                self.behind = true;
            }
            other => self.stage = other,
        }
    }

    /// The answer to [`Action::Negotiated`]: opens the connection, and messages flow.
    pub fn open(&mut self, now: Now) {
        match mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Negotiated(shared) => {
                let open = Open { shared: *shared, keepalive: Keepalive::new(now.mono) };
                self.stage = Stage::Open(Box::new(open));
                self.behind = true;
            }
            other => self.stage = other,
        }
    }

    /// The answer to [`Action::Negotiated`] for a node that is a peer over another connection. This one stays and
    /// answers pings; from the first message on it is not read.
    pub fn park(&mut self, now: Now) {
        // Only before messages flow: a message that is held already would wait for a deadline that cannot be met while
        // the connection is parked.
        if matches!(self.stage, Stage::Negotiated(_)) {
            self.intake.park();
            self.open(now);
        }
    }

    /// A parked connection becomes its node's session.
    pub fn promote(&mut self, now: Now) {
        self.intake.promote();
        self.settle(now);
    }

    /// Whether messages flow.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    /// Sends a Ping now, independent of the keepalive's schedule, and reports the next frame ([`Action::Heard`]). This
    /// tells whether the other side still has this connection.
    pub fn probe(&mut self, now: Now) {
        if let Stage::Open(open) = &mut self.stage {
            open.keepalive.ping_early(now.mono);
            self.pings.owe_ping();
            self.probing = true;
        }
    }

    /// Stops reading until the time `until`, because a cap is exceeded; received bytes stay in the caller's buffer. The
    /// deadlines of the peer do not count the pause.
    pub fn pause(&mut self, now: Now, until: Instant) {
        if self.is_open() {
            self.intake.pause(now.mono, until);
            self.settle(now);
        }
    }

    /// Sets whether the receive buffer needs memory that the process does not have: while that is so, the socket is not
    /// read. The deadlines of the peer do not count that time.
    pub fn set_starved(&mut self, now: Now, starved: bool) {
        self.intake.set_starved(now.mono, starved);
        self.settle(now);
    }

    /// Ends the connection, because others wait for the memory that the peer's incomplete message takes
    /// ([`verdict`](super::incomplete::verdict)).
    pub fn give_way(&mut self, now: Now) {
        self.fail(now, Fault::GaveWay);
    }

    /// The socket took this many bytes of the send buffer. Returns how many messages are complete with them, in the
    /// order in which they were pulled.
    #[must_use]
    pub fn handle_written(&mut self, now: Now, bytes: usize) -> usize {
        let messages = self.in_flight.take(bytes);
        if bytes > 0 {
            self.show_written(now);
        }
        messages
    }

    /// The socket takes nothing more: drop the send buffer. Bytes that the peer wrote before are still read.
    pub fn handle_write_error(&mut self, now: Now) {
        self.unwritable = true;
        self.in_flight.clear();
        self.show_written(now);
    }

    fn show_written(&mut self, now: Now) {
        if let Stage::Open(open) = &mut self.stage {
            open.keepalive.written(now.mono, !self.in_flight.is_empty());
        }
    }

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

    /// The current hold on this connection, if a message waits for room in its application's queue.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        self.intake.hold()
    }

    /// Bytes of payload that were read and wait to be delivered.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.intake.bytes()
    }

    /// Disconnects from the peer now: the reason is written next, within [`CLOSE_TIMEOUT`], and messages that wait in
    /// the session's queue are not. To write the queue first, let the queue itself end the session
    /// ([`Next::Leave`]). Before there are keys the connection ends without a Disconnect.
    pub fn disconnect(&mut self, now: Now, reason: DisconnectReason) {
        self.close(now, reason, None);
    }

    /// A peer that broke the rules gets the Disconnect reason and no further message.
    fn fail(&mut self, now: Now, fault: Fault) {
        self.close(now, fault.reason(), Some(fault));
    }

    fn close(&mut self, now: Now, reason: DisconnectReason, fault: Option<Fault>) {
        let wire = match mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Authenticated(wire) => *wire,
            Stage::AwaitHello(greeted) => greeted.wire,
            Stage::Negotiated(shared) => shared.wire,
            Stage::Open(open) => open.shared.wire,
            Stage::Handshake(_) => return self.finish(Side::Local, None, fault),
            ended @ (Stage::Closing(_) | Stage::Closed) => {
                self.stage = ended;
                return;
            }
        };
        if self.unwritable {
            return self.finish(Side::Local, None, fault);
        }
        let deadline = now.mono + CLOSE_TIMEOUT;
        self.stage = Stage::Closing(Box::new(Closing { wire, reason, fault, deadline }));
    }

    fn finish(&mut self, by: Side, reason: Option<DisconnectReason>, fault: Option<Fault>) {
        self.stage = Stage::Closed;
        self.early = BytesMut::new();
        self.actions.push_back(Action::Closed { by, reason, fault });
    }

    /// Whether the engine would handle bytes of the peer now. While it would not, do not read from the socket.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        let waits = matches!(self.stage, Stage::Authenticated(_) | Stage::Negotiated(_) | Stage::Closed);
        self.may_read() && self.intake.wants_bytes() && !waits
    }

    /// Whether the peer's handshake packet is awaited: reading it costs elliptic-curve arithmetic, so drivers take
    /// turns.
    #[must_use]
    pub fn is_authenticating(&self) -> bool {
        matches!(self.stage, Stage::Handshake(_))
    }

    /// The peer's Hello, once it was read; also when no capability is shared.
    #[must_use]
    pub fn remote_hello(&self) -> Option<&Arc<RemoteHello>> {
        self.hello.as_ref()
    }

    /// The counts so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({}, remote {:?})", self.stage.name(), self.remote.map(|key| key.id()))
    }
}

#[cfg(test)]
mod tests;
