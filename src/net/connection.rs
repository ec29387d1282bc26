//! One task per connection: moves bytes between a socket and the engine that understands them (`p2p::Connection`).
//!
//! The task decides nothing about peers. At the engine's two checkpoints it asks the owner of peers (the switch) by
//! an [`Event`] and does as the reply says. From then on a message goes from here straight to the queue of the
//! registration that owns its capability ([`MessageSink`]), and messages to the peer come straight out of the
//! session's [`Outbound`]: neither passes the switch, and nothing here waits for another peer.
//!
//! One read takes all that is there, one write carries all that is queued. Whether the socket is read at all is decided by
//! the engine's intake; meanwhile writing and pinging go on. A socket that takes nothing any more is still read to its
//! end: what the peer wrote before it left belongs to the applications.
//!
//! Left out: what a connection reads and writes when (`p2p`), what it may hold (`buffers`, `bandwidth`), and who is a peer.

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

pub use crate::p2p::session::{ConnectionId, Control, End, MessageSink, Open, Role, Sinks};
pub use checkpoint::Event;

use super::{
    bandwidth::{Bandwidth, Pacer},
    buffers::{BufferPool, ReceiveBudget, ReceiveBuffer},
    clock,
    turns::Turns,
};
use crate::{
    Now,
    delivery::{Budget, Share},
    p2p::{self, Action, BaseTotals, LocalNode, Outbound, ToSinks, Traffic},
};
use checkpoint::{Awaiting, Verdict};

/// How long a connection waits before it looks again whether the budget over all applications has room. Short enough that
/// nobody notices, long enough that a thousand connections cost nothing while they wait.
const MEMORY_SHORT: Duration = Duration::from_millis(100);

/// How long the last bytes, Disconnect among them, may take to leave (geth allows 1 s).
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    /// Drained buffers.
    pub pool: BufferPool,
    /// What receive buffers may hold in all.
    pub budget: ReceiveBudget,
    /// Who does the arithmetic of a handshake now.
    pub turns: Turns,
    /// How much may go over them.
    pub bandwidth: Bandwidth,
    /// What was counted on connections that have ended.
    pub base: Arc<BaseTotals>,
    /// What waits for all applications, messages that connections hold included.
    pub inbound: Arc<Budget>,
}

/// One connection, about to run.
pub struct Connection {
    /// Its number.
    pub id: ConnectionId,
    /// The connected socket.
    pub stream: TcpStream,
    /// Which side opened it.
    pub role: Role,
    /// Who we are.
    pub local: Arc<LocalNode>,
    /// For keys, nonces and padding of this connection.
    pub rng: StdRng,
    /// Messages to the peer.
    pub outbound: Arc<Outbound>,
    /// Counters.
    pub traffic: Arc<Traffic>,
    /// Notified when a sink that wanted the connection held has room.
    pub space: Arc<Notify>,
    /// What the owner of peers tells it.
    pub control: mpsc::Receiver<Control>,
    /// Where events go.
    pub events: mpsc::Sender<Event>,
    /// What all connections share.
    pub shared: Arc<Shared>,
}

impl Connection {
    /// Runs the connection to its end. The last event is [`Event::Closed`].
    pub async fn run(self) {
        let Self { id, stream, role, local, rng, outbound, traffic, space, mut control, events, shared } =
            self;
        // Made here and not by the caller: a dial's first packet costs EC arithmetic.
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
            sinks: Vec::new(),
            awaiting: Awaiting::Nothing,
            received: ReceiveBuffer::new(&shared.pool, &shared.budget),
            waiting: Share::new(Arc::clone(&shared.inbound)),
            out: BytesMut::new(),
            pacer: Pacer::new(&shared.bandwidth),
            end: None,
        };
        let mut end = task.drive(&stream, &mut control, &work, &space).await;
        end.proven = task.engine.remote_hello().is_some();
        task.engine.deliver_last(clock::now(), &mut ToSinks::new(&task.sinks, &traffic));
        shared.base.add(task.engine.counters());
        outbound.close();
        drop(stream);
        // The owner of peers outlives its connections unless the process is ending.
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
    sinks: Sinks,
    awaiting: Awaiting,
    /// Received bytes that are not a whole frame yet, or that the engine has not looked at.
    received: ReceiveBuffer<'a>,
    /// What the messages that wait in the engine take of the budget over all applications.
    waiting: Share,
    /// Encrypted bytes that the socket has not taken.
    out: BytesMut,
    /// What the caps allow.
    pacer: Pacer<'a>,
    end: Option<End>,
}

impl Task<'_> {
    /// Moves bytes and messages until the connection ends.
    ///
    /// Each turn lets the engine do all it can with what it has, and then waits for one thing that gives it more. Every
    /// condition of a wait is a question to the engine or to a buffer, so that no state here can differ from theirs.
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
            // First without waiting: the budget nearly always covers what was read, and then the socket is polled in this
            // turn.
            let covered = self.received.settle();
            self.engine.set_starved(now, !covered);
            if self.engine.wants_bytes() && self.shared.inbound.is_full() {
                // What was read and waits is bounded over all connections: none reads a message that would only be held.
                self.engine.pause(now, now.mono + MEMORY_SHORT);
            }
            self.engine.poll_transmit(now, &mut self.pacer.pace(self.outbound), &mut self.out);
            self.act().await;
            self.traffic.show_hold(now, self.engine.hold());
            if let Some(end) = self.end.take() {
                self.flush(stream).await;
                return end;
            }
            arm(timer.as_mut(), self.engine.poll_timeout());
            tokio::select! {
                ready = stream.readable(), if self.engine.wants_bytes() => {
                    // What comes before the keys costs EC arithmetic, and a task that waits here waits for no socket.
                    let _turn =
                        if self.engine.is_authenticating() { self.shared.turns.take().await } else { None };
                    if let Err(error) = ready.and_then(|()| self.read(stream)) {
                        self.lost(&error);
                    }
                }
                () = self.received.covered(), if !covered => {}
                ready = stream.writable(), if !self.out.is_empty() => {
                    if let Err(error) = ready.and_then(|()| self.write(stream)) {
                        self.write_failed(&error);
                    }
                }
                () = work.notified() => {}
                () = space.notified(), if self.engine.hold().is_some() => {}
                verdict = self.awaiting.reply() => self.obey(verdict),
                Some(control) = control.recv() => self.control(control),
                () = timer.as_mut() => self.engine.handle_timeout(clock::now()),
            }
        }
    }

    /// Lets the engine look at all that was received, does what it asks for, and delivers what was read.
    async fn read_on(&mut self, now: Now) {
        self.act().await;
        self.deliver(now).await;
        while self.engine.is_behind() {
            // Called even with nothing in the buffer: the engine goes on only when it is called.
            self.engine.handle_bytes(now, self.received.bytes());
            self.act().await;
            self.deliver(now).await;
        }
    }

    /// Hands the messages that were read to their applications' queues.
    async fn deliver(&mut self, now: Now) {
        let mut sinks = ToSinks::new(&self.sinks, self.traffic);
        self.engine.deliver(now, &mut sinks);
        let closed = sinks.take_closed();
        match self.engine.backlog() {
            0 => self.waiting.release(),
            bytes => self.waiting.hold(bytes as u64),
        }
        for channel in closed {
            let _ = self.events.send(Event::ChannelClosed { connection: self.id, channel }).await;
        }
    }

    /// Does what the engine asks for.
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

    /// One read, as large as the buffer and the caps allow.
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
        // The handshake goes on whatever the caps say.
        if self.engine.is_open()
            && let Some(until) = self.pacer.read(now.mono, count)
        {
            self.engine.pause(now, until);
        }
        Ok(())
    }

    /// One write of all that is encrypted.
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

    /// Lets the last bytes leave, within a bounded time.
    async fn flush(&mut self, stream: &TcpStream) {
        let writing = async {
            while !self.out.is_empty() {
                if stream.writable().await.and_then(|()| self.write(stream)).is_err() {
                    return;
                }
            }
        };
        // A peer that takes nothing loses the reason, not our time.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, writing).await;
    }

    fn obey(&mut self, verdict: Verdict) {
        let now = clock::now();
        match verdict {
            Verdict::Admission(Ok(capabilities)) => self.engine.greet(now, &capabilities),
            Verdict::Opening(Ok(Open::Session(sinks))) => {
                self.sinks = sinks;
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
            Control::Promote(sinks) => {
                self.sinks = sinks;
                self.engine.promote(now);
            }
        }
    }

    /// The socket takes nothing any more, which senders hear at once. It is read to its end all the same.
    fn write_failed(&mut self, error: &io::Error) {
        self.out = BytesMut::new();
        self.outbound.close();
        self.engine.handle_write_error(clock::now());
        if !self.engine.is_open() {
            self.lost(error);
        }
    }

    /// The socket has nothing more to read.
    fn lost(&mut self, error: &io::Error) {
        let detail = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the remote closed the connection".to_owned(),
            _ => format!("the connection broke: {error}"),
        };
        self.end.get_or_insert(End::lost(detail));
    }
}

/// Sets the timer to a deadline. Moving it later is left to its firing: idle deadlines move with every frame, and
/// re-arming a timer per frame costs more than one early wake-up.
fn arm(timer: Pin<&mut Sleep>, deadline: Option<Instant>) {
    let Some(deadline) = deadline else { return };
    let armed = timer.deadline();
    if timer.is_elapsed() || deadline < armed.into_std() {
        timer.reset(deadline.into());
    }
}
