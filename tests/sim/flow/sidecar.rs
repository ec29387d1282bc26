//! Our side of one connection: the real intake, keepalive and queues, driven as `p2p::Connection` and
//! `net::connection` drive them, without RLPx.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use devp2pd::{
    budget::{Budget, Share},
    delivery::{
        About, Action, Arrival, ChannelKey, Close, ClosedBy, Held, Push, Sharing, overflow::MAX_STALL_LIMIT,
    },
    p2p::{
        ChannelIndex, Delivery, DisconnectReason, HeldTime, Inbound, Intake, Offer,
        keepalive::{Keepalive, Pong},
    },
};

use super::{
    application::Application,
    pipe::{Frame, Pipe, time_for},
    referee::Referee,
};

/// The most bytes that one read of the socket takes.
const CHUNK: u64 = 64 << 10;

/// The longest hold that the operator allows on a connection that applications share.
pub(crate) const MAX_SHARED_STALL: Duration = Duration::from_millis(500);

/// A channel of the connection.
pub(crate) struct Route {
    /// The index of the application.
    pub(crate) application: usize,
    pub(crate) key: ChannelKey,
    /// Whether it was closed: by the policy of its registration, or because the registration or the connection ended.
    pub(crate) closed: bool,
    /// Messages, and bytes of payload, that were read from the peer on this channel.
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// The messages among them that arrived after the channel was closed.
    pub(crate) unheard: u64,
}

pub(crate) struct Sidecar {
    pub(crate) intake: Intake,
    pub(crate) keepalive: Keepalive,
    pub(crate) routes: Vec<Route>,
    /// The indices of the pipes from the peer and to it.
    pub(crate) from_peer: usize,
    pub(crate) to_peer: usize,
    zeros: Bytes,
    waiting: Share,
    ping: bool,
    pongs: u64,
    /// Messages to the peer that are not written yet.
    pub(crate) outbox: VecDeque<Frame>,
    written: u64,
    /// Whether messages are to be offered again: an application has room, or the connection has changed.
    pub(crate) woken: bool,
    /// A cap in bytes a second, and the time until which the bytes that were read use it up.
    pub(crate) cap: Option<u64>,
    paid: Instant,
    parked: bool,
    starved: bool,
    paused_until: Option<Instant>,
    /// Whether the process may be short of memory. If so, it is not known here whether a message fits.
    pub(crate) memory_may_be_short: bool,
    pub(crate) referee: Referee,
    /// When and why it ended.
    pub(crate) ended: Option<(Instant, String)>,
    pub(crate) pings_written: Vec<Instant>,
}

impl Sidecar {
    pub(crate) fn new(
        now: Instant,
        zeros: Bytes,
        applications: &[Application],
        owners: &[usize],
        (from_peer, to_peer): (usize, usize),
        budget: Arc<Budget>,
    ) -> Self {
        let open = |(channel, &application): (usize, &usize)| {
            let peer = u32::try_from(from_peer * 100 + channel).unwrap();
            let about = About { session_id: from_peer as u64, peer, keep_first: 0, greeting_sent: false };
            let key = applications[application].inbox.lock().open(about).unwrap();
            Route { application, key, closed: false, messages: 0, bytes: 0, unheard: 0 }
        };
        Self {
            intake: Intake::new(now),
            keepalive: Keepalive::new(now),
            routes: owners.iter().enumerate().map(open).collect(),
            from_peer,
            to_peer,
            zeros,
            waiting: Share::in_steps(budget),
            ping: false,
            pongs: 0,
            outbox: VecDeque::new(),
            written: 0,
            woken: false,
            cap: None,
            paid: now,
            parked: false,
            starved: false,
            paused_until: None,
            memory_may_be_short: false,
            referee: Referee::new(now),
            ended: None,
            pings_written: Vec::new(),
        }
    }

    /// Sends `count` requests of 100 bytes on the first channel.
    pub(crate) fn ask(&mut self, count: u64) {
        let request = |serial| Frame::Message { channel: 0, serial, len: 100, wire: 144 };
        self.outbox.extend((0..count).map(request));
    }

    /// The number by which the application knows a channel of this connection.
    pub(crate) fn name(&self, channel: usize) -> u32 {
        u32::try_from(self.from_peer * 100 + channel).unwrap()
    }

    pub(crate) fn park(&mut self, now: Instant) {
        self.referee.count(now);
        self.parked = true;
        self.intake.park();
    }

    pub(crate) fn promote(&mut self, now: Instant) {
        self.referee.count(now);
        self.parked = false;
        self.intake.promote();
        self.settle(now);
        self.woken = true;
    }

    pub(crate) fn set_starved(&mut self, now: Instant, starved: bool) {
        self.referee.count(now);
        self.starved = starved;
        self.intake.set_starved(now, starved);
        self.settle(now);
    }

    /// Does everything that can be done now. Returns whether it did anything.
    pub(crate) fn go(&mut self, now: Instant, applications: &[Application], pipes: &mut [Pipe]) -> bool {
        if self.ended.is_some() {
            // The socket is closed: nothing is read or written any more.
            return false;
        }
        let mut moved = false;
        let written = pipes[self.to_peer].written();
        if written > self.written {
            self.written = written;
            self.keepalive.written(now, !pipes[self.to_peer].is_free());
        }
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.handle_timeout(now, applications);
            self.digest(now, applications, pipes);
            moved = true;
        }
        if self.ended.is_none() && std::mem::take(&mut self.woken) {
            self.digest(now, applications, pipes);
            moved = true;
        }
        if self.ended.is_none() && self.intake.wants_bytes() {
            let count = pipes[self.from_peer].read(now, CHUNK);
            if count > 0 {
                self.take_frames(now, &mut pipes[self.from_peer]);
                self.spend(now, count);
                self.digest(now, applications, pipes);
                moved = true;
            }
        }
        moved | self.transmit(now, &mut pipes[self.to_peer])
    }

    /// Counts bytes that were read against the cap.
    fn spend(&mut self, now: Instant, count: u64) {
        let Some(cap) = self.cap else { return };
        self.paid = self.paid.max(now) + time_for(count, cap);
        if self.paid > now {
            self.referee.count(now);
            self.paused_until = Some(self.paid);
            self.intake.pause(now, self.paid);
        }
    }

    /// Delivers messages and takes frames that were received, until neither makes progress.
    fn digest(&mut self, now: Instant, applications: &[Application], pipes: &mut [Pipe]) {
        loop {
            self.deliver(now, applications);
            if self.ended.is_some() || self.take_frames(now, &mut pipes[self.from_peer]) == 0 {
                return;
            }
        }
    }

    fn deliver(&mut self, now: Instant, applications: &[Application]) {
        self.referee.stopped_otherwise = self.parked || self.starved || self.paused_until.is_some();
        if !self.parked && !self.intake.is_empty() {
            self.referee.delivering(now);
        }
        let sharing = self.sharing(applications);
        let mut delivery = ToInboxes {
            routes: &mut self.routes,
            applications,
            sharing,
            referee: &mut self.referee,
            memory_may_be_short: self.memory_may_be_short,
        };
        let disconnect = self.intake.deliver(now, &mut delivery);
        self.referee.delivered(now, self.intake.hold().is_some());
        self.waiting.hold(self.intake.bytes() as u64);
        self.settle(now);
        if let Some(reason) = disconnect {
            self.end(now, applications, format!("{reason:?}"));
        }
    }

    fn sharing(&self, applications: &[Application]) -> Sharing {
        let mut owners: Vec<usize> = self
            .routes
            .iter()
            .map(|route| route.application)
            .filter(|of| applications[*of].registered)
            .collect();
        owners.sort_unstable();
        owners.dedup();
        if owners.len() > 1 { Sharing::Shared(MAX_SHARED_STALL) } else { Sharing::Alone }
    }

    /// Takes the frames that were read, while the intake reads. Returns their number.
    fn take_frames(&mut self, now: Instant, pipe: &mut Pipe) -> usize {
        self.settle(now);
        let mut count = 0;
        while self.intake.is_reading() {
            let Some(frame) = pipe.take() else {
                self.keepalive.received(now, pipe.is_inside_frame());
                break;
            };
            count += 1;
            self.keepalive.frame_read(now);
            self.intake.frame_read(usize::try_from(frame.wire()).unwrap());
            self.referee.count(now);
            self.referee.frame_read(frame.wire());
            match frame {
                Frame::Ping => self.pongs = (self.pongs + 1).min(16),
                Frame::Pong => {
                    if let Pong::Answer(_) = self.keepalive.pong_read(now) {
                        self.intake.pong_read();
                        self.referee.pong_read();
                    }
                }
                Frame::Message { channel, serial, len, wire } => {
                    let route = &mut self.routes[usize::from(channel)];
                    assert_eq!(serial, route.messages);
                    route.messages += 1;
                    route.bytes += len as u64;
                    self.intake.push(Inbound {
                        channel: ChannelIndex(channel),
                        code: serial,
                        payload: self.zeros.slice(..len),
                        wire_bytes: wire,
                    });
                }
            }
        }
        self.settle(now);
        count
    }

    fn settle(&mut self, now: Instant) {
        if let Some(pause) = self.intake.settle(now) {
            self.keepalive.waited(now, pause);
        }
        self.keepalive.set_held(self.intake.hold().is_some());
    }

    fn handle_timeout(&mut self, now: Instant, applications: &[Application]) {
        self.referee.count(now);
        self.paused_until = self.paused_until.filter(|until| *until > now);
        self.referee.stopped_otherwise = self.parked || self.starved || self.paused_until.is_some();
        self.intake.handle_timeout(now);
        self.settle(now);
        self.ping |= self.keepalive.ping_due(now);
        if self.intake.wants_ping(now, self.keepalive.unanswered()) {
            self.keepalive.ping_early(now);
            self.ping = true;
        }
        if let Some(fault) = self.keepalive.fault(now, self.intake.wants_bytes()) {
            self.end(now, applications, format!("{fault:?}"));
        }
    }

    fn transmit(&mut self, now: Instant, pipe: &mut Pipe) -> bool {
        let mut moved = false;
        while self.ended.is_none() && pipe.is_free() {
            let frame = if std::mem::take(&mut self.ping) {
                self.keepalive.ping_written(now);
                self.intake.ping_written(now, self.keepalive.unanswered());
                self.referee.ping_written();
                self.pings_written.push(now);
                Frame::Ping
            } else if self.pongs > 0 {
                self.pongs -= 1;
                Frame::Pong
            } else if let Some(message) = self.outbox.pop_front() {
                message
            } else {
                break;
            };
            pipe.write(now, frame);
            self.written = pipe.written();
            if !pipe.is_free() {
                self.keepalive.writing(now);
            }
            moved = true;
        }
        moved
    }

    /// Ends the connection: delivers its messages for the last time, and closes its channels.
    pub(crate) fn end(&mut self, now: Instant, applications: &[Application], why: String) {
        self.referee.count(now);
        self.ended = Some((now, why));
        let mut delivery = ToInboxes {
            routes: &mut self.routes,
            applications,
            sharing: Sharing::Alone,
            referee: &mut self.referee,
            memory_may_be_short: self.memory_may_be_short,
        };
        self.intake.deliver_last(now, &mut delivery);
        self.referee.delivered(now, false);
        self.waiting.hold(0);
        for route in &mut self.routes {
            close(&applications[route.application], route);
        }
    }

    /// The registration of an application ends: its channels are closed, and its queue is emptied.
    pub(crate) fn unregister(&mut self, application: usize, applications: &[Application]) {
        for route in self.routes.iter_mut().filter(|route| route.application == application) {
            close(&applications[application], route);
        }
        applications[application].inbox.lock().clear();
        self.woken = true;
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.ended.is_some() {
            return None;
        }
        let deadline = self.keepalive.deadline(self.intake.wants_bytes());
        Some(self.intake.poll_timeout().map_or(deadline, |at| at.min(deadline)))
    }
}

fn close(application: &Application, route: &mut Route) {
    if !std::mem::replace(&mut route.closed, true) {
        let close = Close { reason: 0x10, by: ClosedBy::Sidecar, detail: "".into(), unsent_messages: 0 };
        application.inbox.lock().close(route.key, close);
    }
}

/// Delivers from the intake to the queues of the applications.
struct ToInboxes<'a> {
    routes: &'a mut [Route],
    applications: &'a [Application],
    sharing: Sharing,
    referee: &'a mut Referee,
    memory_may_be_short: bool,
}

impl ToInboxes<'_> {
    /// Whether a message for this application certainly fits: all its channels together have fewer bytes waiting than
    /// one of them may have.
    fn fits(&self, application: &Application, waiting: u64) -> bool {
        let config = application.config;
        let bound = if application.stream.is_some() {
            config.channel_bytes
        } else {
            config.channel_bytes.min(config.away_bytes)
        };
        waiting < bound && !self.memory_may_be_short
    }
}

impl Delivery for ToInboxes<'_> {
    fn offer(&mut self, now: Instant, message: Inbound, held: HeldTime) -> Offer {
        let channel = message.channel;
        self.referee.offered(channel, held);
        let Some(route) = self.routes.get(usize::from(channel.0)) else { panic!("no such channel") };
        let application = &self.applications[route.application];
        if route.closed {
            self.routes[usize::from(channel.0)].unheard += 1;
            return Offer::Taken;
        }
        let fits = self.fits(application, application.inbox.lock().waiting());
        let HeldTime { channel: spent, total } = held;
        let Inbound { code, payload, wire_bytes, .. } = message;
        let arrival = Arrival { code: u32::try_from(code).unwrap(), payload, wire_bytes };
        let push = application.inbox.lock().push(
            now,
            route.key,
            self.sharing,
            Held { channel: spent, total },
            arrival,
        );
        assert!(!fits || matches!(push, Push::Queued), "what fits is taken: {push:?}");
        match push {
            Push::Queued | Push::Dropped => Offer::Taken,
            Push::Hold { payload, until, charged } => {
                assert!(until > now && until <= now + Duration::from_secs(1));
                let policy = application.config.overflow;
                let waits = policy.action == Action::Wait && self.sharing == Sharing::Alone;
                if charged && !waits {
                    let limit = match self.sharing {
                        Sharing::Alone => policy.stall_limit,
                        Sharing::Shared(allowed) => policy.stall_limit.min(allowed),
                    };
                    let length = until - now;
                    assert!(
                        spent + length <= limit && total + length <= MAX_STALL_LIMIT,
                        "held for too long"
                    );
                }
                self.referee.held(now, channel, charged);
                Offer::Hold { payload, until, charged }
            }
            Push::ClosedChannel => {
                let route = &mut self.routes[usize::from(channel.0)];
                close(application, route);
                Offer::Taken
            }
            Push::Disconnect => Offer::Disconnect(DisconnectReason::SubprotocolError),
            Push::Closed => panic!("a channel that is open"),
        }
    }

    fn offer_last(&mut self, _: Instant, message: Inbound) {
        let route = &mut self.routes[usize::from(message.channel.0)];
        if route.closed {
            route.unheard += 1;
            return;
        }
        let Inbound { code, payload, wire_bytes, .. } = message;
        let arrival = Arrival { code: u32::try_from(code).unwrap(), payload, wire_bytes };
        self.applications[route.application].inbox.lock().push_last(route.key, arrival);
    }
}
