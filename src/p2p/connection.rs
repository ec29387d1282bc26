//! One connection's engine: from the first byte of the handshake to the last Disconnect.
//!
//! ```text
//!                                            greet                          open
//! dial, accept ─▶ Handshake ─▶ Authenticated ─────▶ AwaitHello ─▶ Negotiated ────▶ Open
//!                     │              │                  │              │             │
//!                     │              └──────────────────┴──────────────┴─────────────┤
//!                     │ no keys yet: without a word                fault, disconnect │
//!                     └──────────────▶ Closed ◀────────────────────────── Closing ◀──┘
//! ```
//!
//! The shape is the engine contract of the crate root. What a driver must know beyond it:
//!
//! - It owns the receive buffer: append what was read, call [`Connection::handle_bytes`], keep what that leaves. While
//!   [`Connection::wants_bytes`] is false, do not read; TCP then holds the peer back.
//! - After each call take the actions, call [`Connection::deliver`], and while [`Connection::is_behind`] call
//!   [`Connection::handle_bytes`] again, with nothing new if need be. When an application has room again, call
//!   [`Connection::deliver`].
//! - It owns the send buffer: call [`Connection::poll_transmit`], write, report what the socket took by
//!   [`Connection::handle_written`], and repeat until nothing is appended. Take the actions afterwards: writing makes
//!   some.
//! - When it is over call [`Connection::deliver_last`]: messages may still wait.
//! - After [`Action::Closed`] only what stands in the send buffer is left to write.
//!
//! Memory: what was read and not taken is bounded ([`MAX_BACKLOG`](super::intake::MAX_BACKLOG) and one message), and no
//! message that is to be written waits here: it is pulled when the send buffer has room. One deadline covers all that
//! comes before `open`.
//!
//! Left out: the transport (`wire`), the queue of messages to the peer and what their senders are told (`outbound`), caps,
//! sockets.

mod read;
mod stage;
mod write;

use std::{
    collections::VecDeque,
    fmt, mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use rand::rngs::StdRng;

use super::{
    Action, Delivery, DisconnectReason, Fault, Intake, LocalCapability, LocalNode, RemoteHello, Side, code,
    hello, in_flight::InFlight, intake::Hold, keepalive::Keepalive, pings::Pings, wire::Handshake,
};
use crate::{Now, node::PublicKey};
use read::Step;
use stage::{Closing, Greeted, Open, Stage};

/// How long everything before `open` may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a Disconnect may take to be handed over for writing.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Reading stops while this many actions wait to be taken.
pub const MAX_ACTIONS: usize = 1024;

/// Messages of the base protocol that had no effect on one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pings that were not answered because too many pongs were owed.
    pub pings_unanswered: u64,
    /// A second Hello, an unexpected Pong, unknown codes.
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
    /// Reading stopped before all that was received had been looked at.
    behind: bool,
    /// The next message is to be reported.
    probing: bool,
    /// The socket takes nothing any more.
    unwritable: bool,
    /// Handshake packets and Hello, encrypted when we had them.
    early: BytesMut,
    pings: Pings,
    /// What was appended to the send buffer and the socket has not taken.
    in_flight: InFlight,
    /// Until when messages wait because of a cap.
    unsent_until: Option<Instant>,
    actions: VecDeque<Action>,
    counters: Counters,
}

impl Connection {
    /// The engine of a connection that we opened to the node with the key `remote`. Writes auth: two key generations,
    /// two agreements and a signature.
    #[must_use]
    pub fn dial(local: Arc<LocalNode>, remote: PublicKey, now: Now, mut rng: StdRng) -> Self {
        let mut early = BytesMut::new();
        let handshake = Handshake::dial(&local.key, remote, &mut rng, &mut early);
        Self { remote: Some(remote), early, ..Self::new(local, Stage::Handshake(handshake), now, rng) }
    }

    /// The engine of a connection that somebody opened to us.
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

    /// Reads what it can from the front of `received` and leaves the rest there.
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

    /// The connection is over: messages that were read and still wait go to their applications as far as they are taken.
    pub fn deliver_last(&mut self, now: Now, delivery: &mut impl Delivery) {
        self.intake.deliver_last(now.mono, delivery);
    }

    /// Whether [`Self::handle_bytes`] has more to do than it did, though nothing new was received.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind && self.may_read()
    }

    fn may_read(&self) -> bool {
        self.intake.is_reading() && self.actions.len() < MAX_ACTIONS
    }

    /// Brings the peer's deadlines in step with whether we read.
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
        let reading = self.may_read();
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
                let deadline = open.keepalive.deadline(self.may_read());
                let others = [self.intake.poll_timeout(), self.unsent_until];
                Some(others.into_iter().flatten().fold(deadline, Instant::min))
            }
            Stage::Closing(closing) => Some(closing.deadline),
            Stage::Closed => None,
            _ => Some(self.handshake_deadline),
        }
    }

    /// The next thing that happened.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if self.actions.is_empty() && self.actions.capacity() > 64 {
            // After a burst, an idle connection holds no large queue.
            self.actions = VecDeque::new();
        }
        action
    }

    /// The answer to [`Action::Authenticated`]: writes our Hello. What can be shared is fixed from here on. Peers
    /// refuse a Hello that is longer than [`MAX_BASE_MESSAGE`](super::MAX_BASE_MESSAGE), so the list must leave room for the rest.
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

    /// The answer to [`Action::Negotiated`]: messages flow.
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

    /// Opens a connection to a node that is a peer over another one: it stays and answers pings, and from the first
    /// message on it is not read.
    pub fn park(&mut self, now: Now) {
        // Only before messages flow: a hold would keep a deadline that nothing could meet while the connection is parked.
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

    /// Pings now, whatever the keepalive's schedule says, and reports the next frame ([`Action::Heard`]): to learn whether
    /// the other side holds on to this connection.
    pub fn probe(&mut self, now: Now) {
        if let Stage::Open(open) = &mut self.stage {
            open.keepalive.ping_early(now.mono);
            self.pings.owe_ping();
            self.probing = true;
        }
    }

    /// Stops reading until then, because a cap is exceeded: what was received stays in the caller's buffer. The deadlines
    /// of the peer leave the time out.
    pub fn pause(&mut self, now: Now, until: Instant) {
        if self.is_open() {
            self.intake.pause(now.mono, until);
            self.settle(now);
        }
    }

    /// Whether the receive buffer needs memory that the process does not have: no reading until it has.
    pub fn set_starved(&mut self, now: Now, starved: bool) {
        self.intake.set_starved(now.mono, starved);
    }

    /// The socket took so many bytes of the send buffer. Returns how many messages that completed, in the order in which
    /// they were pulled.
    #[must_use]
    pub fn handle_written(&mut self, now: Now, bytes: usize) -> usize {
        let messages = self.in_flight.take(bytes);
        if bytes > 0 {
            self.show_written(now);
        }
        messages
    }

    /// The socket takes nothing any more: drop the send buffer. What the peer wrote before is still read.
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

    /// The hold on this connection, if a message waits for room in its application's queue.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        self.intake.hold()
    }

    /// Bytes of payload that were read and wait to be delivered.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.intake.bytes()
    }

    /// Leaves the peer now: the reason is written next, within [`CLOSE_TIMEOUT`], and what waits in the session's queue is
    /// not. A queue that is to be written first says so itself ([`Next::Leave`](super::Next::Leave)). Before there are keys
    /// the connection ends without a word.
    pub fn disconnect(&mut self, now: Now, reason: DisconnectReason) {
        self.close(now, reason, None);
    }

    /// A peer that broke the rules gets the reason and nothing else.
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

    /// Whether bytes of the peer would be looked at now. While they would not, do not read from the socket.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        let waits = matches!(self.stage, Stage::Authenticated(_) | Stage::Negotiated(_) | Stage::Closed);
        self.may_read() && self.intake.wants_bytes() && !waits
    }

    /// Whether the peer's handshake packet is awaited: reading it costs elliptic-curve arithmetic.
    #[must_use]
    pub fn is_authenticating(&self) -> bool {
        matches!(self.stage, Stage::Handshake(_))
    }

    /// What the peer said of itself, once it did; also when nothing was shared.
    #[must_use]
    pub fn remote_hello(&self) -> Option<&Arc<RemoteHello>> {
        self.hello.as_ref()
    }

    /// What was counted so far.
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
