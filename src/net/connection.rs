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

mod checkpoint;

use std::{
    collections::VecDeque,
    future::pending,
    io,
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

pub use crate::p2p::session::{
    Admission, ConnectionId, Control, End, MessageSink, Open, Opening, Role, Sinks, Sunk,
};
pub use checkpoint::Event;

use super::{
    bandwidth::{Bandwidth, Direction, Pacer},
    buffers::{BudgetShare, BufferPool, CHUNK, ReceiveBudget},
    clock,
    turns::Turns,
};
use crate::{
    Now,
    delivery::{Budget, Share},
    p2p::{
        self, Action, BaseTotals, ChannelIndex, DisconnectReason, Fault, HeldTime, Inbound, LocalNode, Offer,
        Outbound, Traffic, outbound::Receipt,
    },
};

/// What is encrypted ahead of the socket, which is also what the engine fills at once: enough for a full write, little
/// enough that it is still in cache and Disconnect is not stuck behind.
const WRITE_AHEAD: usize = 64 * 1024;

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

/// The reply that is awaited.
enum Awaiting {
    Nothing,
    Admission(oneshot::Receiver<Admission>),
    Opening(oneshot::Receiver<Opening>),
}

enum Verdict {
    Admission(Admission),
    Opening(Opening),
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
            sinks: Vec::new(),
            closed: Vec::new(),
            awaiting: Awaiting::Nothing,
            buffer: None,
            waiting: Share::new(Arc::clone(&shared.inbound)),
            out: BytesMut::new(),
            handed_out: 0,
            written: 0,
            encoding: VecDeque::new(),
            receipts: VecDeque::new(),
            pacer: Pacer::new(&shared.bandwidth),
            unsent_until: None,
            unwritable: false,
            end: None,
        };
        let mut end = task.drive(&stream, &mut control, &work, &space, &shared).await;
        end.proven = task.engine.remote_hello().is_some();
        task.deliver_last();
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
    sinks: Sinks,
    /// Channels that their sinks closed and the owner of peers does not know of yet.
    closed: Vec<ChannelIndex>,
    awaiting: Awaiting,
    /// Received bytes that are not a whole frame yet, or that the engine has not looked at.
    buffer: Option<BytesMut>,
    /// What the messages that wait in the engine take of the budget over all applications.
    waiting: Share,
    /// Encrypted bytes that the socket has not taken.
    out: BytesMut,
    /// Bytes ever put into `out`, and bytes ever taken from it by the socket.
    handed_out: u64,
    written: u64,
    /// Messages that the engine has and `out` has not.
    encoding: VecDeque<Receipt>,
    /// Where in the byte stream each message of `out` ends, at the latest.
    receipts: VecDeque<(u64, Receipt)>,
    /// What the caps allow.
    pacer: Pacer<'a>,
    /// Until when messages wait because of a cap.
    unsent_until: Option<Instant>,
    /// The socket takes nothing any more.
    unwritable: bool,
    end: Option<End>,
}

impl Task<'_> {
    async fn drive(
        &mut self,
        stream: &TcpStream,
        control: &mut mpsc::Receiver<Control>,
        work: &Notify,
        space: &Notify,
        shared: &Shared,
    ) -> End {
        let mut share = BudgetShare::new(&shared.budget);
        // Whether the receive buffer is larger than what the share covers: no reading until it does.
        let mut starved = false;
        let mut timer = std::pin::pin!(sleep_until(clock::now().mono.into()));
        loop {
            let now = clock::now();
            self.digest(now).await;
            if let Some(buffer) = self.buffer.take_if(|buffer| buffer.is_empty()) {
                shared.pool.give_back(buffer);
                share.try_resize(0);
            }
            self.fill(now);
            self.show_hold(now);
            if let Some(end) = self.end.take() {
                self.flush(stream).await;
                return end;
            }
            if self.engine.wants_bytes() && shared.inbound.is_full() {
                // What was read and waits is bounded over all connections: none reads a message that would only be held.
                self.engine.pause(now, now.mono + MEMORY_SHORT);
            }
            arm(timer.as_mut(), [self.engine.poll_timeout(), self.unsent_until].into_iter().flatten().min());
            let held = self.engine.hold().is_some();
            let beyond_chunk = self.buffer.as_ref().map_or(0, BytesMut::capacity).saturating_sub(CHUNK);
            tokio::select! {
                ready = stream.readable(), if self.engine.wants_bytes() => {
                    // What comes before the keys costs EC arithmetic, and a task that waits here waits for no socket.
                    let _turn = if self.engine.is_authenticating() { shared.turns.take().await } else { None };
                    if let Err(error) = ready.and_then(|()| self.read(stream, shared)) {
                        self.lost(&error);
                    }
                    let beyond_chunk =
                        self.buffer.as_ref().map_or(0, BytesMut::capacity).saturating_sub(CHUNK);
                    starved = !share.try_resize(beyond_chunk);
                    self.engine.set_starved(clock::now(), starved);
                }
                () = share.resize(beyond_chunk), if starved => {
                    starved = false;
                    self.engine.set_starved(clock::now(), starved);
                }
                ready = stream.writable(), if !self.out.is_empty() => {
                    if let Err(error) = ready.and_then(|()| self.write(stream)) {
                        self.write_failed(&error);
                    }
                }
                () = work.notified() => {}
                verdict = reply(&mut self.awaiting) => self.obey(verdict),
                Some(control) = control.recv() => self.control(control),
                () = space.notified(), if held => {}
                () = timer.as_mut() => self.engine.handle_timeout(clock::now()),
            }
        }
    }

    /// Lets the engine look at all that was received, does what it asks for, and delivers what was read.
    async fn digest(&mut self, now: Now) {
        self.act().await;
        self.deliver(now).await;
        while self.engine.is_behind() {
            // Called even with nothing in the buffer: the engine goes on only when it is called.
            let mut nothing = BytesMut::new();
            self.engine.handle_bytes(now, self.buffer.as_mut().unwrap_or(&mut nothing));
            self.act().await;
            self.deliver(now).await;
        }
    }

    /// Hands the messages that were read to their applications' queues.
    async fn deliver(&mut self, now: Now) {
        let mut sinks = ToSinks { sinks: &self.sinks, traffic: self.traffic, closed: &mut self.closed };
        self.engine.deliver(now, &mut sinks);
        match self.engine.backlog() {
            0 => self.waiting.release(),
            bytes => self.waiting.hold(bytes as u64),
        }
        for channel in std::mem::take(&mut self.closed) {
            let _ = self.events.send(Event::ChannelClosed { connection: self.id, channel }).await;
        }
    }

    /// The connection is over: what was read before goes to its queues, or is reported as lost.
    fn deliver_last(&mut self) {
        let mut sinks = ToSinks { sinks: &self.sinks, traffic: self.traffic, closed: &mut self.closed };
        self.engine.deliver_last(clock::now(), &mut sinks);
    }

    /// Shows people whether the connection is held.
    fn show_hold(&mut self, now: Now) {
        self.traffic.show_hold(now, self.engine.hold());
    }

    /// Does what the engine asks for.
    async fn act(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Authenticated { remote } => {
                    let (reply, receiver) = oneshot::channel();
                    self.awaiting = Awaiting::Admission(receiver);
                    let event = Event::Authenticated { connection: self.id, remote, reply };
                    let _ = self.events.send(event).await;
                }
                Action::Negotiated { hello, channels } => {
                    let (reply, receiver) = oneshot::channel();
                    self.awaiting = Awaiting::Opening(receiver);
                    let event = Event::Negotiated { connection: self.id, hello, channels, reply };
                    let _ = self.events.send(event).await;
                }
                Action::RoundTrip(time) => self.traffic.round_trip(time),
                Action::Heard => {
                    let _ = self.events.send(Event::Heard { connection: self.id }).await;
                }
                Action::Written { messages, .. } => {
                    let count = messages.min(self.encoding.len());
                    let end = self.handed_out;
                    self.receipts.extend(self.encoding.drain(..count).map(|receipt| (end, receipt)));
                }
                Action::Closed { by, reason, fault, .. } => {
                    let timed_out = matches!(
                        fault,
                        Some(
                            Fault::HandshakeTimeout
                                | Fault::Silence
                                | Fault::FrameTimeout
                                | Fault::WriteTimeout
                        )
                    );
                    let detail = fault.map(|fault| fault.to_string()).unwrap_or_default();
                    self.end.get_or_insert(End { by, reason, detail, timed_out, proven: false });
                }
            }
        }
        self.settle();
    }

    fn read(&mut self, stream: &TcpStream, shared: &Shared) -> io::Result<()> {
        let mut buffer = self.buffer.take().unwrap_or_else(|| shared.pool.take());
        if buffer.capacity() - buffer.len() < CHUNK / 4 {
            buffer.reserve(CHUNK);
        }
        let count = match stream.try_read_buf(&mut (&mut buffer).limit(self.pacer.read_limit())) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => Ok(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        };
        if let Ok(count @ 1..) = count {
            let now = clock::now();
            self.traffic.received(count);
            self.engine.handle_bytes(now, &mut buffer);
            if self.engine.is_open() {
                self.pacer.spend(now.mono, Direction::In, count);
                if let Some(until) = self.pacer.held_until(now.mono, Direction::In) {
                    self.engine.pause(now, until);
                }
            }
        }
        if buffer.is_empty() {
            shared.pool.give_back(buffer);
        } else {
            self.buffer = Some(buffer);
        }
        count.map(drop)
    }

    /// Encrypts what is queued, ahead of the socket by a bounded amount.
    fn fill(&mut self, now: Now) {
        if self.unwritable {
            if let Some(reason) = self.outbound.wants_disconnect(false) {
                self.engine.disconnect(now, reason);
            }
            return;
        }
        self.transmit(now);
        self.unsent_until = None;
        while self.out.len() < WRITE_AHEAD {
            // A peer that is told to go takes what was accepted for it at full speed.
            if let Some(until) = self.pacer.held_until(now.mono, Direction::Out)
                && self.outbound.wants_disconnect(false).is_none()
            {
                self.unsent_until = Some(until);
                return;
            }
            // A greeting is queued just before the answer that opens the engine: it waits for that answer.
            let open = self.engine.is_open();
            let Some(queued) = open.then(|| self.outbound.take()).flatten() else {
                if let Some(reason) = self.outbound.wants_disconnect(open) {
                    self.engine.disconnect(now, reason);
                    self.transmit(now);
                }
                return;
            };
            // Senders have checked what the engine checks; it refuses only while it is ending, and then nothing more
            // is written.
            if self.engine.send(queued.channel, queued.code, &queued.message).is_ok() {
                self.encoding.push_back(queued.receipt);
                let before = self.out.len();
                self.transmit(now);
                self.pacer.spend(now.mono, Direction::Out, self.out.len().saturating_sub(before));
            }
        }
    }

    fn transmit(&mut self, now: Now) {
        let before = self.out.len();
        while self.engine.poll_transmit(now, &mut self.out) {}
        self.handed_out += (self.out.len() - before) as u64;
    }

    fn write(&mut self, stream: &TcpStream) -> io::Result<()> {
        let count = match stream.try_write(&self.out) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        self.out.advance(count);
        self.written += count as u64;
        self.traffic.sent(count);
        if count > 0 {
            self.engine.handle_written(clock::now(), !self.out.is_empty());
        }
        self.settle();
        if self.out.is_empty() {
            // An idle connection holds no buffer.
            self.out = BytesMut::new();
        }
        Ok(())
    }

    /// Reports the messages that the socket has taken whole.
    fn settle(&mut self) {
        let done = self.receipts.iter().take_while(|(end, _)| *end <= self.written).count();
        if done > 0 {
            self.traffic.messages_sent(done);
            self.outbound.written(self.receipts.drain(..done).map(|(_, receipt)| receipt));
        }
    }

    /// Lets the last bytes leave, for a moment.
    async fn flush(&mut self, stream: &TcpStream) {
        self.transmit(clock::now());
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
        if std::mem::replace(&mut self.unwritable, true) {
            return;
        }
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
        let by = p2p::Side::Remote;
        self.end.get_or_insert(End { by, reason: None, detail, timed_out: false, proven: false });
    }
}

/// The way from the engine's intake to the applications' queues.
struct ToSinks<'a> {
    sinks: &'a Sinks,
    traffic: &'a Traffic,
    closed: &'a mut Vec<ChannelIndex>,
}

impl p2p::Delivery for ToSinks<'_> {
    fn offer(&mut self, now: Instant, message: Inbound, held: HeldTime) -> Offer {
        let (channel, bytes) = (message.channel, message.payload.len());
        let Some(sink) = self.sinks.get(usize::from(channel.0)) else { return Offer::Taken };
        let offer = match sink.offer(now, message, held) {
            Sunk::Offer(offer) => offer,
            Sunk::ChannelClosed => {
                self.closed.push(channel);
                Offer::Taken
            }
        };
        if !matches!(offer, Offer::Hold { .. }) {
            self.traffic.message_received(channel, bytes);
        }
        offer
    }

    fn offer_last(&mut self, now: Instant, message: Inbound) {
        let (channel, bytes) = (message.channel, message.payload.len());
        if let Some(sink) = self.sinks.get(usize::from(channel.0)) {
            self.traffic.message_received(channel, bytes);
            sink.offer_last(now, message);
        }
    }
}

async fn reply(awaiting: &mut Awaiting) -> Verdict {
    // A dropped sender means that the switch is gone: the process is quitting.
    let verdict = match awaiting {
        Awaiting::Nothing => pending().await,
        Awaiting::Admission(receiver) => {
            Verdict::Admission(receiver.await.unwrap_or(Err(DisconnectReason::Quitting)))
        }
        Awaiting::Opening(receiver) => {
            Verdict::Opening(receiver.await.unwrap_or(Err(DisconnectReason::Quitting)))
        }
    };
    *awaiting = Awaiting::Nothing;
    verdict
}

/// Sets the timer to a deadline. Moving it later is left to its firing: idle deadlines move with every frame, and
/// re-arming a timer per frame costs more than one early wake-up.
fn arm(timer: std::pin::Pin<&mut Sleep>, deadline: Option<Instant>) {
    let Some(deadline) = deadline else { return };
    let armed = timer.deadline();
    if timer.is_elapsed() || deadline < armed.into_std() {
        timer.reset(deadline.into());
    }
}
