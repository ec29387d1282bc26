//! One task per connection: moves bytes between a socket and the engine that understands them (`p2p::Connection`).
//!
//! The task decides nothing about peers. At the engine's two checkpoints it asks the owner of peers (the switch) by
//! an [`Event`] and does as the reply says. From then on a message goes from here straight to the queue of the
//! registration that owns its capability ([`MessageSink`]), and messages to the peer come straight out of the
//! session's [`Outbound`]: neither passes the switch, and nothing here waits for another peer.
//!
//! One read takes all that is there, one write carries all that is queued. A full queue of an application holds this
//! socket alone, for as long as the sink says; meanwhile writing and pinging go on.

mod checkpoint;

use std::{
    collections::VecDeque,
    future::pending,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use rand::rngs::StdRng;
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc, oneshot},
    time::{Sleep, sleep_until},
};

pub use checkpoint::{
    Admission, ConnectionId, Control, End, Event, MessageSink, Offer, Open, Opening, Role, Sinks,
};

use super::{
    bandwidth::{Bandwidth, Direction, Pacer},
    buffers::{BudgetShare, BufferPool, CHUNK, ReceiveBudget},
    clock,
    outbound::{Outbound, Receipt},
    traffic::Traffic,
    turns::Turns,
};
use crate::{
    Now,
    p2p::{self, Action, ChannelIndex, DisconnectReason, Fault, LocalNode},
};

/// How long a parked connection holds what it heard before it looks again whether it still is: longer than any
/// decision takes.
const PARKED: Duration = Duration::from_secs(60);

/// What is encrypted ahead of the socket, which is also what the engine fills at once: enough for a full write, little
/// enough that it is still in cache and Disconnect is not stuck behind.
const WRITE_AHEAD: usize = 64 * 1024;

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
    /// Notified when a sink that said `Wait` has space.
    pub space: Arc<Notify>,
    /// What the owner of peers tells it.
    pub control: mpsc::Receiver<Control>,
    /// Where events go.
    pub events: mpsc::Sender<Event>,
    /// What all connections share.
    pub shared: Arc<Shared>,
}

/// A message that its queue had no room for.
struct Held {
    channel: ChannelIndex,
    code: u64,
    payload: Bytes,
    until: Instant,
    since: Instant,
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
        let mut task = Task {
            id,
            engine,
            outbound: &outbound,
            traffic: &traffic,
            events: &events,
            sinks: Vec::new(),
            open: false,
            parked: false,
            probing: false,
            awaiting: Awaiting::Nothing,
            held: VecDeque::new(),
            buffer: None,
            full: false,
            out: BytesMut::new(),
            handed_out: 0,
            written: 0,
            encoding: VecDeque::new(),
            receipts: VecDeque::new(),
            pacer: Pacer::new(&shared.bandwidth),
            unread_until: None,
            unread_since: clock::now().mono,
            has_read: false,
            unsent_until: None,
            end: None,
        };
        let end = task.drive(&stream, &mut control, &space, &shared).await;
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
    /// Whether the engine takes messages: from the answer to the second checkpoint on.
    open: bool,
    /// Whether the node is a peer over another connection at present.
    parked: bool,
    /// Whether the next thing heard is to be reported.
    probing: bool,
    awaiting: Awaiting,
    /// Messages read and decoded but not taken yet. While there are any, the socket is not read, so these are at
    /// most what one read contained.
    held: VecDeque<Held>,
    /// Received bytes that are not a whole frame yet, or that the engine was paused before.
    buffer: Option<BytesMut>,
    /// Whether the engine stopped for want of room for actions: it goes on once they are taken.
    full: bool,
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
    /// Until when the socket is not read because of a cap, and whether it was read since the last such pause.
    unread_until: Option<Instant>,
    unread_since: Instant,
    has_read: bool,
    /// Until when messages wait because of a cap.
    unsent_until: Option<Instant>,
    end: Option<End>,
}

impl Task<'_> {
    async fn drive(
        &mut self,
        stream: &TcpStream,
        control: &mut mpsc::Receiver<Control>,
        space: &Notify,
        shared: &Shared,
    ) -> End {
        let mut share = BudgetShare::new(&shared.budget);
        // Whether the receive buffer is larger than what the share covers: no reading until it does.
        let mut starved = false;
        let mut timer = std::pin::pin!(sleep_until(clock::now().mono.into()));
        loop {
            let now = clock::now();
            self.read_again(now);
            self.act(now).await;
            while self.full && self.held.is_empty() {
                self.digest(now);
                self.act(now).await;
            }
            self.fill(now);
            if let Some(end) = self.end.take() {
                self.flush(stream).await;
                return end;
            }
            self.hold_reading(now);
            let held = self.held.front().map(|held| held.until);
            let deadlines = [self.engine.poll_timeout(), held, self.unread_until, self.unsent_until];
            arm(timer.as_mut(), deadlines.into_iter().flatten().min());
            let waiting = !self.held.is_empty();
            let beyond_chunk = self.buffer.as_ref().map_or(0, BytesMut::capacity).saturating_sub(CHUNK);
            tokio::select! {
                ready = stream.readable(), if !waiting && !starved && self.engine.wants_bytes() => {
                    // What comes before the keys costs EC arithmetic, and whoever waits here waits for no socket.
                    let _turn = if self.engine.is_authenticating() { shared.turns.take().await } else { None };
                    if let Err(error) = ready.and_then(|()| self.read(stream, shared)) {
                        self.lost(&error);
                    }
                    starved = true;
                }
                () = share.resize(beyond_chunk), if starved => starved = false,
                ready = stream.writable(), if !self.out.is_empty() => {
                    if let Err(error) = ready.and_then(|()| self.write(stream)) {
                        self.lost(&error);
                    }
                }
                () = self.outbound.woken() => {}
                verdict = reply(&mut self.awaiting) => self.obey(verdict),
                Some(control) = control.recv() => self.control(control),
                () = space.notified(), if waiting => self.offer_held(clock::now()),
                () = timer.as_mut() => {
                    let now = clock::now();
                    self.offer_held(now);
                    self.engine.handle_timeout(now);
                }
            }
        }
    }

    /// Does what the engine asks for.
    async fn act(&mut self, now: Now) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Message { channel, code, payload, .. } => {
                    self.traffic.message_received(channel, payload.len());
                    self.heard().await;
                    if self.held.is_empty() {
                        self.offer(now, channel, code, payload, now.mono);
                    } else {
                        // Behind a held message of any channel: the order of a channel must not change, and the
                        // socket is held as a whole.
                        self.held.push_back(Held {
                            channel,
                            code,
                            payload,
                            until: now.mono,
                            since: now.mono,
                        });
                    }
                }
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
                Action::RoundTrip(time) => {
                    self.traffic.round_trip(time);
                    self.heard().await;
                }
                Action::Written { messages, .. } => {
                    let count = messages.min(self.encoding.len());
                    let end = self.handed_out;
                    self.receipts.extend(self.encoding.drain(..count).map(|receipt| (end, receipt)));
                }
                Action::Closed { by, reason, fault, .. } => {
                    let timed_out =
                        matches!(fault, Some(Fault::HandshakeTimeout | Fault::Silence | Fault::FrameTimeout));
                    let detail = fault.map(|fault| fault.to_string()).unwrap_or_default();
                    self.end.get_or_insert(End { by, reason, detail, timed_out });
                }
            }
        }
        self.settle();
    }

    /// Reports the first thing heard since a probe.
    async fn heard(&mut self) {
        if std::mem::take(&mut self.probing) {
            let _ = self.events.send(Event::Heard { connection: self.id }).await;
        }
    }

    fn offer(&mut self, now: Now, channel: ChannelIndex, code: u64, payload: Bytes, since: Instant) {
        if self.parked {
            let until = now.mono + PARKED;
            self.held.push_front(Held { channel, code, payload, until, since });
            self.engine.pause();
            return;
        }
        let Some(sink) = self.sinks.get(usize::from(channel.0)) else { return };
        match sink.offer(now, code, payload) {
            Offer::Taken => {}
            Offer::Wait { payload, until } => {
                self.held.push_front(Held { channel, code, payload, until, since });
                self.engine.pause();
            }
            Offer::Disconnect(reason) => self.engine.disconnect(now, reason),
        }
    }

    /// Offers what was held, oldest first, until one has to wait again.
    fn offer_held(&mut self, now: Now) {
        while let Some(Held { channel, code, payload, since, .. }) = self.held.pop_front() {
            let before = self.held.len();
            self.offer(now, channel, code, payload, since);
            if self.held.len() > before {
                return;
            }
            if self.held.is_empty() {
                self.traffic.stalled(now.mono.saturating_duration_since(since));
                if self.unread_until.is_none() {
                    self.engine.resume(now);
                    self.digest(now);
                }
            }
        }
    }

    /// Stops reading while a cap on what comes is exceeded. Not before the first message, and never inside a pause for
    /// other reasons. The time does not count against the peer's deadlines, which it does not move either.
    fn hold_reading(&mut self, now: Now) {
        if !self.open || !self.has_read || !self.held.is_empty() || self.unread_until.is_some() {
            return;
        }
        self.unread_until = self.pacer.held_until(now.mono, Direction::In);
        if self.unread_until.is_some() {
            (self.unread_since, self.has_read) = (now.mono, false);
            self.engine.pause();
        }
    }

    /// Reads again when the time of [`Self::hold_reading`] is over.
    fn read_again(&mut self, now: Now) {
        if self.unread_until.take_if(|until| *until <= now.mono).is_some() && self.held.is_empty() {
            self.engine.resume_after(now, now.mono.saturating_duration_since(self.unread_since));
            self.digest(now);
        }
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
            self.has_read = true;
            if self.open {
                self.pacer.spend(now.mono, Direction::In, count);
            }
            self.full = self.engine.handle_bytes(now, &mut buffer);
        }
        if buffer.is_empty() {
            shared.pool.give_back(buffer);
        } else {
            self.buffer = Some(buffer);
        }
        count.map(drop)
    }

    /// Gives the engine what it left in the buffer when it stopped at a checkpoint, was paused or had no room. Also
    /// when that is nothing: an engine that stopped for want of room reads on only when it is called again.
    fn digest(&mut self, now: Now) {
        // Called even with nothing in the buffer: the engine reads the socket again only once it has seen that its
        // actions were taken.
        let mut nothing = BytesMut::new();
        self.full = self.engine.handle_bytes(now, self.buffer.as_mut().unwrap_or(&mut nothing));
    }

    /// Encrypts what is queued, ahead of the socket by a bounded amount.
    fn fill(&mut self, now: Now) {
        self.transmit(now);
        self.unsent_until = None;
        while self.out.len() < WRITE_AHEAD {
            // Whoever is told to go takes what was accepted for it at full speed.
            if let Some(until) = self.pacer.held_until(now.mono, Direction::Out)
                && self.outbound.wants_disconnect(false).is_none()
            {
                self.unsent_until = Some(until);
                return;
            }
            // A greeting is queued just before the answer that opens the engine: it waits for that answer.
            let Some(queued) = self.open.then(|| self.outbound.take()).flatten() else {
                if let Some(reason) = self.outbound.wants_disconnect(self.open) {
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
                self.open = true;
                self.engine.open(now);
            }
            Verdict::Opening(Ok(Open::Parked)) => {
                self.parked = true;
                self.open = true;
                self.engine.open(now);
            }
            Verdict::Admission(Err(reason)) | Verdict::Opening(Err(reason)) => {
                self.engine.disconnect(now, reason)
            }
        }
        self.digest(now);
    }

    fn control(&mut self, control: Control) {
        let now = clock::now();
        match control {
            Control::Probe => {
                self.probing = true;
                self.engine.ping(now);
            }
            Control::Promote(sinks) => {
                self.sinks = sinks;
                self.parked = false;
                self.offer_held(now);
            }
        }
    }

    fn lost(&mut self, error: &io::Error) {
        let detail = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the remote closed the connection".to_owned(),
            _ => format!("the connection broke: {error}"),
        };
        self.end.get_or_insert(End { by: p2p::Side::Remote, reason: None, detail, timed_out: false });
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
