//! One task per connection: moves bytes between a socket and the engine that understands them (`p2p::Connection`).
//!
//! The task decides nothing about peers. At the engine's two checkpoints it asks the owner of peers (the switch) with
//! an [`Event`], and does what the reply says. After that, a message goes from here directly to the queue of the
//! registration that owns its capability ([`ChannelInbox`]), and messages to the peer come directly from the session's
//! [`Outbound`]. Neither passes the switch, and nothing here waits for another peer.
//!
//! One read takes all bytes that are there, and one write carries all bytes that are queued. The engine's intake
//! decides whether the socket is read; while it is not, writes and pings go on. A socket that takes no more bytes is
//! still read to its end: the applications must get the messages that the peer sent before it disconnected.
//!
//! Left out: when a connection reads and writes (`p2p`), its limits (`buffers`, `bandwidth`), and which nodes become
//! peers.

mod checkpoint;

use std::{
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut as _, BytesMut};
use rand::rngs::StdRng;
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc, oneshot},
    time::{Sleep, sleep_until},
};

pub use crate::p2p::session::{ChannelInbox, ChannelInboxes, ConnectionId, Control, End, Open, Role};
pub use checkpoint::Event;

use super::{
    bandwidth::{Bandwidth, Pacer},
    buffers::{BufferPool, ReceiveBudget, ReceiveBuffer, Room},
    clock,
    turns::Turns,
};
use crate::{
    Now,
    budget::{Budget, Share},
    p2p::{self, Action, BaseTotals, LocalNode, Outbound, SessionDelivery, Traffic},
};
use checkpoint::{Awaiting, Verdict};

/// The pause before a connection checks again whether the budget over all applications has room. It is too short for an
/// application to notice, and long enough that a thousand waiting connections cost almost no time.
const MEMORY_SHORT: Duration = Duration::from_millis(100);

/// The time in which the last bytes must be written, Disconnect included (geth allows 1 s).
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The state that all connections share.
#[derive(Debug)]
pub struct Shared {
    /// Drained buffers.
    pub pool: BufferPool,
    /// The budget of all receive buffers.
    pub budget: ReceiveBudget,
    /// The turns for the arithmetic of handshakes.
    pub turns: Turns,
    /// The caps on bytes per second.
    pub bandwidth: Bandwidth,
    /// The counters of connections that have ended.
    pub base: Arc<BaseTotals>,
    /// The budget over the messages that wait for all applications, including those that connections hold.
    pub inbound: Arc<Budget>,
}

/// One connection before it runs.
pub struct Connection {
    /// Its number.
    pub id: ConnectionId,
    /// The connected socket.
    pub stream: TcpStream,
    /// Which side opened it.
    pub role: Role,
    /// Our key, and our name in Hello.
    pub local: Arc<LocalNode>,
    /// The source of keys, nonces and padding for this connection.
    pub rng: StdRng,
    /// Messages to the peer.
    pub outbound: Arc<Outbound>,
    /// The counters of this connection.
    pub traffic: Arc<Traffic>,
    /// Notified when a inbox that asked for a hold has room again.
    pub space: Arc<Notify>,
    /// Orders of the owner of peers.
    pub control: mpsc::Receiver<Control>,
    /// Events for the owner of peers.
    pub events: mpsc::Sender<Event>,
    /// The state that all connections share.
    pub shared: Arc<Shared>,
}

impl Connection {
    /// Runs the connection to its end. The last event is [`Event::Closed`].
    pub async fn run(self) {
        let Self { id, stream, role, local, rng, outbound, traffic, space, mut control, events, shared } =
            self;
        // The engine is made in this task, as the first packet of a dial costs elliptic-curve arithmetic.
        let engine = match role {
            Role::Dial(remote) => {
                let _turn = shared.turns.take().await;
                p2p::Connection::dial(local, remote, clock::now(), rng)
            }
            Role::Accept => p2p::Connection::accept(local, clock::now(), rng),
        };
        let work = Arc::new(Notify::new());
        outbound.wake_by(Arc::clone(&work) as _);
        let mut task = Task {
            id,
            engine,
            outbound: &outbound,
            traffic: &traffic,
            events: &events,
            shared: &shared,
            inboxes: Vec::new(),
            awaiting: Awaiting::Nothing,
            received: ReceiveBuffer::new(&shared.pool, &shared.budget),
            waiting: Share::in_steps(Arc::clone(&shared.inbound)),
            out: BytesMut::new(),
            pacer: Pacer::new(&shared.bandwidth),
            end: None,
        };
        let mut end = task.drive(&stream, &mut control, &work, &space).await;
        end.proven = task.engine.remote_hello().is_some();
        task.engine.deliver_last(clock::now(), &mut SessionDelivery::new(&task.inboxes, &traffic));
        shared.base.add(task.engine.counters());
        outbound.close();
        drop(stream);
        // Sending fails only if the process is ending: the owner of peers lives longer than its connections.
        let _ = events.send(Event::Closed { connection: id, end }).await;
    }
}

struct Task<'a> {
    id: ConnectionId,
    engine: p2p::Connection,
    outbound: &'a Outbound,
    traffic: &'a Traffic,
    events: &'a mpsc::Sender<Event>,
    shared: &'a Shared,
    inboxes: ChannelInboxes,
    awaiting: Awaiting,
    /// Received bytes that are not a whole frame yet, or that the engine has not read.
    received: ReceiveBuffer<'a>,
    /// The part of the budget over all applications that the messages in the engine take.
    waiting: Share,
    /// Encrypted bytes that the socket has not taken.
    out: BytesMut,
    /// The caps, and how much of them this connection has used.
    pacer: Pacer<'a>,
    end: Option<End>,
}

impl Task<'_> {
    /// Moves bytes and messages until the connection ends. Returns how it ended.
    ///
    /// Each round lets the engine do all that it can, and then waits for one event that lets it go on. Each condition
    /// of a wait is a call to the engine or to a buffer, so that no state here can differ from theirs.
    async fn drive(
        &mut self,
        stream: &TcpStream,
        control: &mut mpsc::Receiver<Control>,
        work: &Notify,
        space: &Notify,
    ) -> End {
        let mut timer = std::pin::pin!(sleep_until(clock::now().mono.into()));
        loop {
            let now = clock::now();
            self.read_on(now).await;
            // Try first without waiting. The budget nearly always covers the bytes that were read, and then the socket
            // is polled in this round.
            let covered = self.received.settle(now.mono);
            self.engine.set_starved(now, !covered);
            if self.engine.wants_bytes() && self.shared.inbound.is_full() {
                // The messages that wait have a budget over all connections. While it is full, no connection reads a
                // message that it could not deliver.
                self.engine.pause(now, now.mono + MEMORY_SHORT);
            }
            self.engine.poll_transmit(now, &mut self.pacer.pace(self.outbound), &mut self.out);
            self.act().await;
            self.traffic.show_hold(now, self.engine.hold());
            if let Some(end) = self.end.take() {
                self.flush(stream).await;
                return end;
            }
            if covered {
                self.received.set_reading(now.mono, self.engine.wants_bytes());
            }
            arm(timer.as_mut(), self.engine.poll_timeout());
            // Wait for the first of these: bytes from the peer, if the engine wants any; room in the receive budget;
            // room in the socket, if bytes wait for it; messages to send (`work`); room in an inbox, during a hold
            // (`space`); the reply at a checkpoint; an order of the switch; a deadline of the engine.
            tokio::select! {
                ready = stream.readable(), if self.engine.wants_bytes() => {
                    // Until both sides have keys, the bytes cost elliptic-curve arithmetic, which needs a turn. The
                    // bytes are already here, so no turn is held while waiting for a socket.
                    let _turn =
                        if self.engine.is_authenticating() { self.shared.turns.take().await } else { None };
                    if let Err(error) = ready.and_then(|()| self.read(stream)) {
                        self.lost(&error);
                    }
                }
                room = self.received.memory(covered) => if room == Room::GivesWay {
                    self.received.bytes().clear();
                    self.engine.give_way(clock::now());
                },
                ready = stream.writable(), if !self.out.is_empty() => {
                    if let Err(error) = ready.and_then(|()| self.write(stream)) {
                        self.write_failed(&error);
                    }
                }
                () = work.notified() => {}
                () = space.notified(), if self.engine.hold().is_some() => {}
                verdict = self.awaiting.reply() => self.obey(verdict),
                // The switch gives orders after its verdict on the Hello. Both travel apart, so an order waits for the
                // verdict.
                Some(control) = control.recv(), if self.engine.is_open() => self.control(control),
                () = timer.as_mut() => self.engine.handle_timeout(clock::now()),
            }
        }
    }

    /// Lets the engine read all received bytes, carries out its actions, and delivers the messages.
    async fn read_on(&mut self, now: Now) {
        self.act().await;
        self.deliver(now).await;
        while self.engine.is_behind() {
            // Called even with an empty buffer, as the engine goes on only when it is called.
            self.engine.handle_bytes(now, self.received.bytes());
            self.act().await;
            self.deliver(now).await;
        }
    }

    /// Delivers the messages that were read to the queues of their registrations.
    async fn deliver(&mut self, now: Now) {
        let mut inboxes = SessionDelivery::new(&self.inboxes, self.traffic);
        self.engine.deliver(now, &mut inboxes);
        let closed = inboxes.take_closed();
        match self.engine.backlog() {
            0 => self.waiting.release(),
            bytes => self.waiting.hold(bytes as u64),
        }
        for channel in closed {
            let _ = self.events.send(Event::ChannelClosed { connection: self.id, channel }).await;
        }
    }

    /// Carries out the engine's actions.
    async fn act(&mut self) {
        let connection = self.id;
        while let Some(action) = self.engine.poll_action() {
            let event = match action {
                Action::Authenticated { remote } => {
                    let (reply, receiver) = oneshot::channel();
                    self.awaiting = Awaiting::Admission(receiver);
                    Event::Authenticated { connection, remote, reply }
                }
                Action::Negotiated { hello, channels } => {
                    let (reply, receiver) = oneshot::channel();
                    self.awaiting = Awaiting::Opening(receiver);
                    Event::Negotiated { connection, hello, channels, reply }
                }
                Action::Heard => Event::Heard { connection },
                Action::RoundTrip(time) => {
                    self.traffic.round_trip(time);
                    continue;
                }
                Action::Closed { by, reason, fault } => {
                    self.end.get_or_insert(End::closed(by, reason, fault));
                    continue;
                }
            };
            let _ = self.events.send(event).await;
        }
    }

    /// Reads once, as many bytes as the buffer and the caps allow.
    fn read(&mut self, stream: &TcpStream) -> io::Result<()> {
        let limit = self.pacer.read_limit();
        let count = match stream.try_read_buf(&mut self.received.space().limit(limit)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let now = clock::now();
        self.traffic.received(count);
        self.engine.handle_bytes(now, self.received.bytes());
        // The caps do not apply to the handshake.
        if self.engine.is_open()
            && let Some(until) = self.pacer.read(now.mono, count)
        {
            self.engine.pause(now, until);
        }
        Ok(())
    }

    /// Writes once, all encrypted bytes.
    fn write(&mut self, stream: &TcpStream) -> io::Result<()> {
        let count = match stream.try_write(&self.out) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        self.out.advance(count);
        if self.out.is_empty() {
            // An idle connection holds no buffer.
            self.out = BytesMut::new();
        }
        self.traffic.sent(count);
        let messages = self.engine.handle_written(clock::now(), count);
        self.traffic.messages_sent(messages);
        self.outbound.written(messages);
        Ok(())
    }

    /// Writes the last bytes, for at most [`FLUSH_TIMEOUT`].
    async fn flush(&mut self, stream: &TcpStream) {
        let writing = async {
            while !self.out.is_empty() {
                if stream.writable().await.and_then(|()| self.write(stream)).is_err() {
                    return;
                }
            }
        };
        // A peer that reads nothing does not get the reason of the disconnect. We do not wait longer for it.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, writing).await;
    }

    fn obey(&mut self, verdict: Verdict) {
        let now = clock::now();
        match verdict {
            Verdict::Admission(Ok(capabilities)) => self.engine.greet(now, &capabilities),
            Verdict::Opening(Ok(Open::Session(inboxes))) => {
                self.inboxes = inboxes;
                self.engine.open(now);
            }
            Verdict::Opening(Ok(Open::Parked)) => self.engine.park(now),
            Verdict::Admission(Err(reason)) | Verdict::Opening(Err(reason)) => {
                self.engine.disconnect(now, reason)
            }
        }
    }

    fn control(&mut self, control: Control) {
        let now = clock::now();
        match control {
            Control::Probe => self.engine.probe(now),
            Control::Promote(inboxes) => {
                self.inboxes = inboxes;
                self.engine.promote(now);
            }
        }
    }

    /// Handles that the socket takes no more bytes. Senders learn it at once. The socket is still read to its end,
    /// unless the session is not open.
    fn write_failed(&mut self, error: &io::Error) {
        self.out = BytesMut::new();
        self.outbound.close();
        self.engine.handle_write_error(clock::now());
        if !self.engine.is_open() {
            self.lost(error);
        }
    }

    /// Ends the connection, because the socket has nothing more to read.
    fn lost(&mut self, error: &io::Error) {
        let detail = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the remote closed the connection".to_owned(),
            _ => format!("the connection broke: {error}"),
        };
        self.end.get_or_insert(End::lost(detail));
    }
}

/// Sets the timer to a deadline. A deadline that moves later leaves the timer as it is until it fires. Idle deadlines
/// move with every frame, and setting a timer for every frame costs more than one early wake-up.
fn arm(timer: Pin<&mut Sleep>, deadline: Option<Instant>) {
    let Some(deadline) = deadline else { return };
    let armed = timer.deadline();
    if timer.is_elapsed() || deadline < armed.into_std() {
        timer.reset(deadline.into());
    }
}
