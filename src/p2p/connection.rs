//! One connection's engine: from the first byte of the RLPx handshake to the last Disconnect.
//!
//! ```text
//! dial ──▶ AwaitAck ───┐                 greet                             open
//!                      ├─▶ Authenticated ─────▶ AwaitHello ─▶ Negotiated ───────▶ Open
//! accept ▶ AwaitAuth ──┘        │                   │              │                │
//!              │                └───────────────────┴──────────────┴────────────────┤
//!              │ no keys yet: without a word                      fault, disconnect │
//!              └──────────────▶ Closed ◀──────────────────────────────── Closing ◀──┘
//! ```
//!
//! The shape is the engine contract of the crate root. What a driver must know beyond it:
//!
//! - It owns the receive buffer: append what was read, call [`Connection::handle_bytes`], keep what that leaves. While
//!   [`Connection::wants_bytes`] is false, do not read; TCP then holds the peer back. After `greet`, `open`, `resume`
//!   and after taking the actions that made `handle_bytes` stop, call it again, with nothing new if need be.
//! - It owns the send buffer: while that is empty call [`Connection::poll_transmit`], write, and repeat until the
//!   answer is false. Take the actions afterwards: writing makes some.
//! - After [`Action::Closed`] only what stands in the send buffer is left to write.
//!
//! Memory: what waits to be written is bounded ([`LocalNode::outbound_limit`]), and so is what was read and not taken
//! ([`MAX_BACKLOG`] and one message). One deadline covers all that comes before `open`.

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
    Action, ChannelIndex, DisconnectReason, Fault, LocalCapability, LocalNode, RemoteHello, SendError, Side,
    code, hello,
    keepalive::Keepalive,
    outbox::{Outbox, Queued},
};
use crate::{
    Now,
    node::PublicKey,
    rlpx::{Compressed, Decompressor, Initiator, frame},
};
use read::Step;
use stage::{Closing, Greeted, Open, Stage};

/// How long everything before `open` may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a Disconnect, and what waits before it, may take to be handed over for writing.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Reading stops while this many bytes of payload wait to be taken by `poll_action`.
pub const MAX_BACKLOG: usize = 1 << 20;
/// Reading stops while this many actions wait; bounds what tiny messages cost.
pub const MAX_BACKLOG_ACTIONS: usize = 1024;

/// What was counted on one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of all frames read while open.
    pub wire_bytes_in: u64,
    /// Bytes written, handshake included.
    pub wire_bytes_out: u64,
    /// Messages of shared capabilities read.
    pub messages_in: u64,
    /// Messages of shared capabilities written.
    pub messages_out: u64,
    /// Pings that were not answered because too many pongs were owed.
    pub pings_unanswered: u64,
    /// Base messages without effect: a second Hello, an unexpected Pong, unknown codes.
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
    /// Whether payloads are compressed: from the peer's Hello on, if its version has it.
    snappy: bool,
    /// The driver wants no more messages.
    paused: bool,
    /// Too much waits to be taken.
    stalled: bool,
    /// Handshake packets and Hello, encrypted when we had them.
    early: BytesMut,
    outbox: Outbox,
    /// Accepted messages that will never be written.
    dropped: usize,
    actions: VecDeque<Action>,
    /// Bytes of payload in `actions`.
    backlog: usize,
    decompressor: Decompressor,
    counters: Counters,
}

impl Connection {
    /// The engine of a connection that we opened to the node with the key `remote`. Writes auth: two key generations,
    /// two agreements and a signature.
    #[must_use]
    pub fn dial(local: Arc<LocalNode>, remote: PublicKey, now: Now, mut rng: StdRng) -> Self {
        let mut early = BytesMut::new();
        let initiator = Initiator::start(&local.key, remote, &mut rng, &mut early);
        Self {
            remote: Some(remote),
            early,
            ..Self::new(local, Stage::AwaitAck(Box::new(initiator)), now, rng)
        }
    }

    /// The engine of a connection that somebody opened to us.
    #[must_use]
    pub fn accept(local: Arc<LocalNode>, now: Now, rng: StdRng) -> Self {
        Self::new(local, Stage::AwaitAuth, now, rng)
    }

    fn new(local: Arc<LocalNode>, stage: Stage, now: Now, rng: StdRng) -> Self {
        let outbox = Outbox::new(local.outbound_limit);
        Self {
            local,
            rng,
            stage,
            handshake_deadline: now.mono + HANDSHAKE_TIMEOUT,
            remote: None,
            hello: None,
            snappy: false,
            paused: false,
            stalled: false,
            early: BytesMut::new(),
            outbox,
            dropped: 0,
            actions: VecDeque::new(),
            backlog: 0,
            decompressor: Decompressor::default(),
            counters: Counters::default(),
        }
    }

    /// Reads what it can from the front of `received` and leaves the rest there. Answers whether it stopped because
    /// too many actions wait: take them and call again.
    pub fn handle_bytes(&mut self, now: Now, received: &mut BytesMut) -> bool {
        if mem::take(&mut self.stalled) {
            self.reading_again(now);
        }
        while !self.paused {
            if self.backlog >= MAX_BACKLOG || self.actions.len() >= MAX_BACKLOG_ACTIONS {
                self.stalled = true;
                break;
            }
            match self.step(now, received) {
                Ok(Step::Again) => {}
                Ok(Step::Wait) => {
                    if let Stage::Open(open) = &mut self.stage {
                        let partial = !received.is_empty() || open.shared.session.reader.is_inside_frame();
                        open.keepalive.received(now.mono, partial);
                    }
                    break;
                }
                Err(fault) => self.fail(now, fault),
            }
        }
        self.decompressor.release();
        self.stalled
    }

    /// Acts on deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Now) {
        let reading = self.is_reading();
        match &mut self.stage {
            Stage::Open(open) => {
                self.outbox.ping |= open.keepalive.ping_due(now.mono);
                if let Some(fault) = open.keepalive.fault(now.mono).filter(|_| reading) {
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

    /// When to call [`Self::handle_timeout`]; `None` once closed.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Open(open) => Some(open.keepalive.deadline(self.is_reading())),
            Stage::Closing(closing) => Some(closing.deadline),
            Stage::Closed => None,
            _ => Some(self.handshake_deadline),
        }
    }

    /// The next thing that happened.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front();
        if let Some(Action::Message { payload, .. }) = &action {
            self.backlog = self.backlog.saturating_sub(payload.len());
        }
        if self.actions.is_empty() && self.actions.capacity() > 64 {
            // After a burst, an idle connection holds no large queue.
            self.actions = VecDeque::new();
        }
        action
    }

    /// The answer to [`Action::Authenticated`]: writes our Hello. What can be shared is fixed from here on. Peers
    /// refuse a list that does not fit ([`hello::fits`]).
    pub fn greet(&mut self, _now: Now, capabilities: &[LocalCapability]) {
        match mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Authenticated(mut session) => {
                let hello = hello::encode(&self.local.client, capabilities, &self.local.key.public());
                // Cannot fail: a Hello fits a frame.
                let _ = session.writer.write(code::HELLO, &hello, &mut self.early);
                let greeted = Greeted { session: *session, capabilities: capabilities.to_vec() };
                self.stage = Stage::AwaitHello(Box::new(greeted));
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
            }
            other => self.stage = other,
        }
    }

    /// Accepts a message for the peer, or says why not. Never waits; [`Action::Written`] tells when it left.
    pub fn send(&mut self, channel: ChannelIndex, code: u64, message: &Compressed) -> Result<(), SendError> {
        let Stage::Open(open) = &self.stage else { return Err(SendError::NotOpen) };
        let found = open.shared.channels.get(usize::from(channel.0));
        let found = found.ok_or(SendError::UnknownChannel(channel))?;
        if code >= found.message_count {
            return Err(SendError::CodeOutOfRange { code, message_count: found.message_count });
        }
        let code = found.offset.saturating_add(code);
        frame::check_len(code, if self.snappy { message.as_bytes().len() } else { message.raw_len() })?;
        self.outbox.push(Queued { code, message: message.clone() })
    }

    /// Pings now, whatever the keepalive's schedule says: to learn whether the other side holds on to this connection.
    pub fn ping(&mut self, now: Now) {
        if let Stage::Open(open) = &mut self.stage {
            open.keepalive.ping_early(now.mono);
            self.outbox.ping = true;
        }
    }

    /// Stops reading: what was received stays in the caller's buffer, and the peer's silence does not count.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Reads again.
    pub fn resume(&mut self, now: Now) {
        self.paused = false;
        self.reading_again(now);
    }

    /// Reads again after a pause of this length, which the deadlines of the peer leave out.
    pub fn resume_after(&mut self, now: Now, pause: Duration) {
        self.paused = false;
        if let Stage::Open(open) = &mut self.stage {
            open.keepalive.waited(now.mono, pause);
        }
    }

    /// Leaves the peer: what was accepted is written first, then the reason, all within [`CLOSE_TIMEOUT`]. Before
    /// there are keys the connection ends without a word.
    pub fn disconnect(&mut self, now: Now, reason: DisconnectReason) {
        self.close(now, reason, None);
    }

    /// The peer closed its side of the socket, or the socket failed.
    pub fn handle_eof(&mut self) {
        match &self.stage {
            Stage::Closed => {}
            Stage::Closing(closing) => self.finish(Side::Local, None, closing.fault),
            _ => self.finish(Side::Remote, None, None),
        }
    }

    /// A peer that broke the rules gets the reason and nothing else.
    fn fail(&mut self, now: Now, fault: Fault) {
        self.drop_outbox();
        self.close(now, fault.reason(), Some(fault));
    }

    fn close(&mut self, now: Now, reason: DisconnectReason, fault: Option<Fault>) {
        let session = match mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Authenticated(session) => *session,
            Stage::AwaitHello(greeted) => greeted.session,
            Stage::Negotiated(shared) => shared.session,
            Stage::Open(open) => open.shared.session,
            Stage::AwaitAuth | Stage::AwaitAck(_) => return self.finish(Side::Local, None, fault),
            ended @ (Stage::Closing(_) | Stage::Closed) => {
                self.stage = ended;
                return;
            }
        };
        let deadline = now.mono + CLOSE_TIMEOUT;
        self.stage = Stage::Closing(Box::new(Closing { session, reason, fault, deadline }));
    }

    fn finish(&mut self, by: Side, reason: Option<DisconnectReason>, fault: Option<Fault>) {
        self.stage = Stage::Closed;
        self.early = BytesMut::new();
        self.drop_outbox();
        self.actions.push_back(Action::Closed { by, reason, fault, unsent: self.dropped });
    }

    fn drop_outbox(&mut self) {
        self.dropped = self.dropped.saturating_add(self.outbox.len());
        self.outbox.clear();
    }

    fn reading_again(&mut self, now: Now) {
        if let Stage::Open(open) = &mut self.stage {
            open.keepalive.resumed(now.mono);
        }
    }

    fn is_reading(&self) -> bool {
        !self.paused && !self.stalled
    }

    /// Whether bytes of the peer would be looked at now. While they would not, do not read from the socket.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        let waits = matches!(self.stage, Stage::Authenticated(_) | Stage::Negotiated(_) | Stage::Closed);
        self.is_reading() && !waits
    }

    /// Whether the peer's handshake packet is awaited: reading it costs elliptic-curve arithmetic.
    #[must_use]
    pub fn is_authenticating(&self) -> bool {
        matches!(self.stage, Stage::AwaitAuth | Stage::AwaitAck(_))
    }

    /// How many bytes beyond the `have` in the receive buffer the present frame needs; 0 if it cannot be said. Lets a
    /// driver budget for a large frame before it has arrived.
    #[must_use]
    pub fn missing(&self, have: usize) -> usize {
        match &self.stage {
            Stage::AwaitHello(greeted) => greeted.session.reader.missing(have),
            Stage::Open(open) => open.shared.session.reader.missing(have),
            _ => 0,
        }
    }

    /// The peer's key: known from the start when we dialed, from [`Action::Authenticated`] on otherwise.
    #[must_use]
    pub fn remote(&self) -> Option<PublicKey> {
        self.remote
    }

    /// What the peer said of itself, once it did; also when nothing was shared.
    #[must_use]
    pub fn remote_hello(&self) -> Option<&Arc<RemoteHello>> {
        self.hello.as_ref()
    }

    /// How many bytes of accepted messages wait, with [`super::outbox::OVERHEAD`] for each.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.outbox.bytes()
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
