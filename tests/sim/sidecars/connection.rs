//! The driver of one connection: the steps of `net::connection`, on a socket of [`Links`] and in virtual time.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf as _, BytesMut};
use devp2pd::{
    Now, PublicKey,
    budget::{Budget, Share},
    p2p::{
        self, Action, Channel, ChannelIndex, LocalNode, Outbound, RemoteHello, SessionDelivery, Traffic,
        session::{Admission, ChannelInboxes, ConnectionId, Control, End, Open, Opening, Role},
    },
    switch::Run,
};
use rand::{Rng as _, rngs::StdRng};

use super::{
    link::{Links, Reset, Socket},
    mailbox::{Flag, Mailbox},
};

/// The pause of a connection while the budget over all applications is full.
const MEMORY_SHORT: Duration = Duration::from_millis(100);
/// The longest time for the write of the last bytes.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The most bytes that one read takes.
const READ: usize = 64 << 10;

/// A report of a connection to its switch.
pub(super) enum Report {
    Authenticated(PublicKey),
    Negotiated(Arc<RemoteHello>, Arc<[Channel]>),
    Heard,
    ChannelClosed(ChannelIndex),
    Closed(End),
}

impl Report {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Authenticated(_) => "authenticated".to_owned(),
            Self::Negotiated(..) => "negotiated".to_owned(),
            Self::Heard => "heard".to_owned(),
            Self::ChannelClosed(channel) => format!("{channel:?} closed"),
            Self::Closed(end) => format!("closed by {:?}: {:?}, {}", end.by, end.reason, end.detail),
        }
    }
}

/// The reply of a switch at a checkpoint.
pub(super) enum Verdict {
    Admission(Admission),
    Opening(Opening),
}

/// The events for which a connection waits.
#[derive(Clone, Copy)]
enum Ready {
    Read,
    Write,
    Work,
    Space,
    Verdict,
    Control,
    Timer,
}

pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) socket: Socket,
    engine: p2p::Connection,
    outbound: Arc<Outbound>,
    traffic: Arc<Traffic>,
    inboxes: ChannelInboxes,
    received: BytesMut,
    waiting: Share,
    inbound: Arc<Budget>,
    out: BytesMut,
    end: Option<End>,
    /// The time until which the last bytes may be written. Set when the connection has ended.
    flush_until: Option<Instant>,
    work: Arc<Flag>,
    space: Arc<Flag>,
    pub(super) verdicts: Mailbox<Verdict>,
    pub(super) controls: Mailbox<Control>,
    reports: Vec<Report>,
}

impl Connection {
    /// A connection that is about to run.
    pub(super) fn new(
        now: Now,
        run: Run,
        socket: Socket,
        local: Arc<LocalNode>,
        inbound: Arc<Budget>,
    ) -> Self {
        let Run { id, role, rng, outbound, traffic, space: slot } = run;
        let engine = match role {
            Role::Dial(remote) => p2p::Connection::dial(local, remote, now, rng),
            Role::Accept => p2p::Connection::accept(local, now, rng),
        };
        let (work, space) = (Arc::<Flag>::default(), Arc::<Flag>::default());
        outbound.wake_by(Arc::clone(&work) as _);
        slot.fill(Arc::clone(&space) as _);
        Self {
            id,
            socket,
            engine,
            outbound,
            traffic,
            inboxes: ChannelInboxes::new(),
            received: BytesMut::new(),
            waiting: Share::in_steps(Arc::clone(&inbound)),
            inbound,
            out: BytesMut::new(),
            end: None,
            flush_until: None,
            work,
            space,
            verdicts: Mailbox::default(),
            controls: Mailbox::default(),
            reports: Vec::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.engine.is_open()
    }

    /// A text that describes its state.
    pub(super) fn state(&self, now: Now, links: &Links) -> String {
        format!(
            "{:?}, wants bytes {}, hold {:?}, backlog {}, received {}, out {}, next {:?}, timeout {:?}",
            self.engine,
            self.engine.wants_bytes(),
            self.engine.hold(),
            self.engine.backlog(),
            self.received.len(),
            self.out.len(),
            links.read_time(self.socket).map(|at| at.saturating_duration_since(now.mono)),
            self.engine.poll_timeout().map(|at| at.saturating_duration_since(now.mono)),
        )
    }

    /// The events that are ready. The loop of `net::connection` may handle any of them next, so the seed chooses one.
    /// After the end of the connection only the write of the last bytes is left.
    fn ready(&self, now: Now, links: &Links) -> Vec<Ready> {
        let mut ready = Vec::new();
        let mut add = |when: bool, what| ready.extend(when.then_some(what));
        let writable = !self.out.is_empty() && links.is_writable(now.mono, self.socket);
        if let Some(until) = self.flush_until {
            add(writable || until <= now.mono, Ready::Write);
            return ready;
        }
        add(self.engine.wants_bytes() && links.is_readable(now.mono, self.socket), Ready::Read);
        add(writable, Ready::Write);
        add(self.work.is_set(), Ready::Work);
        add(self.space.is_set() && self.engine.hold().is_some(), Ready::Space);
        add(self.verdicts.is_due(now.mono), Ready::Verdict);
        add(self.engine.is_open() && self.controls.is_due(now.mono), Ready::Control);
        add(self.engine.poll_timeout().is_some_and(|at| at <= now.mono), Ready::Timer);
        ready
    }

    /// Whether the task can go on.
    pub(super) fn is_ready(&self, now: Now, links: &Links) -> bool {
        !self.ready(now, links).is_empty()
    }

    /// When it can go on if nothing else happens.
    pub(super) fn next(&self, links: &Links) -> Option<Instant> {
        let write = (!self.out.is_empty()).then(|| links.write_time(self.socket)).flatten();
        if self.flush_until.is_some() {
            return [self.flush_until, write].into_iter().flatten().min();
        }
        let read = self.engine.wants_bytes().then(|| links.read_time(self.socket)).flatten();
        let control = self.engine.is_open().then(|| self.controls.next()).flatten();
        let times = [read, write, self.verdicts.next(), control, self.engine.poll_timeout()];
        times.into_iter().flatten().min()
    }

    /// One turn of the loop: handles one event, and does all that follows until it waits again. Returns its reports;
    /// the end is the last.
    pub(super) fn step(&mut self, now: Now, rng: &mut StdRng, links: &mut Links) -> Vec<Report> {
        let ready = self.ready(now, links);
        if !ready.is_empty() {
            let chosen = ready[rng.random_range(0..ready.len())];
            self.act_on(now, chosen, links);
        }
        self.turn(now, links)
    }

    /// Does all that can be done without waiting. Returns its reports.
    pub(super) fn turn(&mut self, now: Now, links: &mut Links) -> Vec<Report> {
        if self.flush_until.is_none() {
            self.read_on(now);
            self.engine.set_starved(now, false);
            if self.engine.wants_bytes() && self.inbound.is_full() {
                self.engine.pause(now, now.mono + MEMORY_SHORT);
            }
            self.engine.poll_transmit(now, &mut &*self.outbound, &mut self.out);
            self.act();
            if self.end.is_some() {
                self.flush_until = Some(now.mono + FLUSH_TIMEOUT);
            }
        }
        if let Some(until) = self.flush_until
            && (self.out.is_empty() || until <= now.mono)
            && let Some(mut end) = self.end.take()
        {
            end.proven = self.engine.remote_hello().is_some();
            self.engine.deliver_last(now, &mut SessionDelivery::new(&self.inboxes, &self.traffic));
            self.waiting.release();
            self.outbound.close();
            links.close(now.mono, self.socket, false);
            self.reports.push(Report::Closed(end));
        }
        mem::take(&mut self.reports)
    }

    fn act_on(&mut self, now: Now, chosen: Ready, links: &mut Links) {
        match chosen {
            Ready::Read => match links.read(now.mono, self.socket, READ, &mut self.received) {
                Ok(Some(0)) => self.lost("the remote closed the connection"),
                Ok(Some(_)) => self.engine.handle_bytes(now, &mut self.received),
                Ok(None) => {}
                Err(Reset) => self.lost("the connection broke"),
            },
            Ready::Write => self.write(now, links),
            Ready::Work => drop(self.work.take()),
            Ready::Space => drop(self.space.take()),
            Ready::Verdict => {
                if let Some(verdict) = self.verdicts.receive(now.mono) {
                    self.obey(now, verdict);
                }
            }
            Ready::Control => match self.controls.receive(now.mono) {
                Some(Control::Probe) => self.engine.probe(now),
                Some(Control::Promote(inboxes)) => {
                    self.inboxes = inboxes;
                    self.engine.promote(now);
                }
                None => {}
            },
            Ready::Timer => self.engine.handle_timeout(now),
        }
    }

    fn read_on(&mut self, now: Now) {
        self.act();
        self.deliver(now);
        while self.engine.is_behind() {
            self.engine.handle_bytes(now, &mut self.received);
            self.act();
            self.deliver(now);
        }
    }

    fn deliver(&mut self, now: Now) {
        let mut inboxes = SessionDelivery::new(&self.inboxes, &self.traffic);
        self.engine.deliver(now, &mut inboxes);
        let closed = inboxes.take_closed();
        match self.engine.backlog() {
            0 => self.waiting.release(),
            bytes => self.waiting.hold(bytes as u64),
        }
        self.reports.extend(closed.into_iter().map(Report::ChannelClosed));
    }

    fn act(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            self.reports.push(match action {
                Action::Authenticated { remote } => Report::Authenticated(remote),
                Action::Negotiated { hello, channels } => Report::Negotiated(hello, channels),
                Action::Heard => Report::Heard,
                Action::RoundTrip(_) => continue,
                Action::Closed { by, reason, fault } => {
                    self.end.get_or_insert(End::closed(by, reason, fault));
                    continue;
                }
            });
        }
    }

    fn write(&mut self, now: Now, links: &mut Links) {
        match links.write(now.mono, self.socket, &self.out) {
            Ok(count) => {
                self.out.advance(count);
                let messages = self.engine.handle_written(now, count);
                self.outbound.written(messages);
            }
            Err(Reset) => {
                self.out.clear();
                self.outbound.close();
                self.engine.handle_write_error(now);
                if !self.engine.is_open() {
                    self.lost("the connection broke");
                }
            }
        }
    }

    fn obey(&mut self, now: Now, verdict: Verdict) {
        match verdict {
            Verdict::Admission(Ok(capabilities)) => self.engine.greet(now, &capabilities),
            Verdict::Opening(Ok(Open::Session(inboxes))) => {
                self.inboxes = inboxes;
                self.engine.open(now);
            }
            Verdict::Opening(Ok(Open::Parked)) => self.engine.park(now),
            Verdict::Admission(Err(reason)) | Verdict::Opening(Err(reason)) => {
                self.engine.disconnect(now, reason);
            }
        }
    }

    fn lost(&mut self, detail: &str) {
        self.end.get_or_insert_with(|| End::lost(detail.to_owned()));
    }
}
