//! An application: an inbox with its stream, and a reader that reads at a rate, with pauses, or not at all.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use devp2pd::budget::Budget;
use devp2pd::delivery::{
    AttachParams, ChannelKey, Config, Event, Hooks, Inbox, Lost, Pull, SharedInbox, StreamId,
    credit::MESSAGE_COST,
};

use super::pipe::time_for;

/// The most bytes and events that a stream takes at once, as in the gRPC service.
const FRAME_BYTES: usize = 256 << 10;
const FRAME_EVENTS: usize = 512;

/// The rate of a reader that takes messages as fast as they arrive.
pub(crate) const FULL_SPEED: u64 = u64::MAX;

/// The counts of one channel.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Messages and bytes of payload that gaps reported.
    pub(crate) lost: u64,
    pub(crate) lost_bytes: u64,
    /// Bytes of the current message that arrived in parts so far.
    part: usize,
    /// The time of the last message, and the longest time between two.
    last: Option<Instant>,
    pub(crate) longest_wait: Duration,
}

pub(crate) struct Application {
    pub(crate) inbox: SharedInbox<u32>,
    pub(crate) config: Config,
    params: AttachParams,
    pub(crate) stream: Option<StreamId>,
    /// Whether its registration exists.
    pub(crate) registered: bool,
    readable: Arc<AtomicBool>,
    space: Arc<Mutex<Vec<ChannelKey>>>,
    /// Bytes a second, as credit counts them: payload, and `MESSAGE_COST` for each message.
    rate: u64,
    /// A period, and the length of the pause at its end, in which it does nothing.
    pub(crate) pauses: Option<(Duration, Duration)>,
    start: Instant,
    /// Messages that the stream handed over and that are not processed yet: the channel's number, and the cost in
    /// bytes.
    pulled: VecDeque<(u32, u64)>,
    busy_until: Option<Instant>,
    /// Channels whose messages it takes and never gives credit for.
    pub(crate) ignored: BTreeSet<u32>,
    /// Channels by their numbers on the stream.
    numbers: BTreeMap<u32, u32>,
    /// The counts of each channel.
    pub(crate) tallies: BTreeMap<u32, Tally>,
    /// The number of streams so far.
    streams: u64,
}

impl Application {
    pub(crate) fn new(
        now: Instant,
        config: Config,
        params: AttachParams,
        rate: u64,
        budget: Arc<Budget>,
    ) -> Self {
        let (readable, space) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
        let (tell_readable, tell_space) = (Arc::clone(&readable), Arc::clone(&space));
        let hooks = Hooks {
            on_readable: Box::new(move || tell_readable.store(true, Ordering::Relaxed)),
            on_space: Box::new(move |key| tell_space.lock().unwrap().push(key)),
        };
        let mut application = Self {
            inbox: SharedInbox::new(Inbox::new(config, budget), hooks),
            config,
            params,
            stream: None,
            registered: true,
            readable,
            space,
            rate,
            pauses: None,
            start: now,
            pulled: VecDeque::new(),
            busy_until: None,
            ignored: BTreeSet::new(),
            numbers: BTreeMap::new(),
            tallies: BTreeMap::new(),
            streams: 0,
        };
        application.attach();
        application
    }

    pub(crate) fn attach(&mut self) {
        self.streams += 1;
        let stream = StreamId(self.streams);
        self.inbox.lock().attach(stream, self.params);
        self.stream = Some(stream);
        self.forget_stream();
    }

    pub(crate) fn detach(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.inbox.lock().detach(stream);
        }
        self.forget_stream();
    }

    fn forget_stream(&mut self) {
        self.pulled.clear();
        self.busy_until = None;
        self.numbers.clear();
        self.tallies.values_mut().for_each(|tally| tally.part = 0);
    }

    /// Changes the configuration, as UpdateRegistration does.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        self.inbox.lock().configure(self.config);
    }

    /// Reads at another rate from now on. With 0 it does not read.
    pub(crate) fn set_rate(&mut self, rate: u64) {
        self.rate = rate;
        self.busy_until = None; // the current message begins again at the new rate
    }

    /// Reads everything from now on: at full speed, without pauses, with a stream, and with credit for every channel.
    pub(crate) fn read_all(&mut self) {
        self.set_rate(FULL_SPEED);
        self.pauses = None;
        if self.stream.is_none() && self.registered {
            self.attach();
        }
        let ignored = std::mem::take(&mut self.ignored);
        if let Some(stream) = self.stream {
            for (number, _) in self.numbers.iter().filter(|(_, channel)| ignored.contains(channel)) {
                self.inbox.lock().credit(stream, *number, 1 << 40).unwrap();
            }
        }
    }

    /// Takes the channels that have room again for a connection that waits.
    pub(crate) fn take_space(&self) -> Vec<ChannelKey> {
        std::mem::take(&mut self.space.lock().unwrap())
    }

    /// Returns whether it is in a pause, and the end of that pause or the beginning of the next one.
    fn pause(&self, now: Instant) -> Option<(bool, Instant)> {
        let (every, length) = self.pauses?;
        let at = Duration::from_nanos(((now - self.start).as_nanos() % every.as_nanos()) as u64);
        let begin = now - at;
        // A period begins with work.
        let pause = every - length;
        Some(if at < pause { (false, begin + pause) } else { (true, begin + every) })
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.rate == 0 || self.pause(now).is_some_and(|(paused, _)| paused)
    }

    /// Does everything that can be done now. Returns whether it did anything.
    pub(crate) fn go(&mut self, now: Instant) -> bool {
        let mut moved = false;
        if self.busy_until.is_some_and(|until| until <= now) {
            self.busy_until = None;
            if let Some((number, price)) = self.pulled.pop_front() {
                self.credit(number, price);
            }
            moved = true;
        }
        let paused = self.is_paused(now);
        // With manual credit the window limits the messages that it pulls. With automatic credit the flow control of
        // HTTP/2 does.
        let takes = if self.params.auto_credit { self.pulled.is_empty() && !paused } else { true };
        if takes
            && let Some(stream) = self.stream
            && self.readable.load(Ordering::Relaxed)
        {
            let mut events = Vec::new();
            let pull = self.inbox.lock().pull(stream, FRAME_BYTES, FRAME_EVENTS, &mut events);
            assert_ne!(pull, Pull::Ended);
            if pull == Pull::Idle {
                self.readable.store(false, Ordering::Relaxed);
            }
            events.into_iter().for_each(|event| self.hear(now, event));
            moved = true;
        }
        while self.rate == FULL_SPEED
            && !paused
            && let Some((number, price)) = self.pulled.pop_front()
        {
            self.credit(number, price);
            moved = true;
        }
        if self.busy_until.is_none()
            && !paused
            && let Some((_, price)) = self.pulled.front()
        {
            let time = time_for(*price, self.rate);
            self.busy_until = Some(now + time);
            moved = true;
        }
        moved
    }

    fn credit(&mut self, number: u32, price: u64) {
        let Some(stream) = self.stream.filter(|_| !self.params.auto_credit) else { return };
        let mut inbox = self.inbox.lock();
        inbox.credit(stream, 0, price).unwrap();
        if !self.numbers.get(&number).is_some_and(|channel| self.ignored.contains(channel)) {
            inbox.credit(stream, number, price).unwrap();
        }
    }

    fn hear(&mut self, now: Instant, event: Event<u32>) {
        match event {
            Event::Opened(opened) => {
                let channel = opened.about.peer;
                self.numbers.insert(opened.channel, channel);
                let tally = self.tallies.entry(channel).or_default();
                assert_eq!(opened.position, tally.messages + tally.lost, "the position of channel {channel}");
            }
            Event::Message { channel: number, code, payload, part } => {
                let tally = self.tallies.get_mut(&self.numbers[&number]).unwrap();
                assert_eq!(u64::from(code), tally.messages + tally.lost, "the order of channel {number}");
                let mut price = payload.len() as u64;
                let whole = match part {
                    None => Some(payload.len()),
                    Some(part) => {
                        assert_eq!(part.offset, tally.part, "the parts of a message");
                        tally.part += payload.len();
                        (tally.part == part.total).then_some(part.total)
                    }
                };
                if let Some(len) = whole {
                    tally.part = 0;
                    tally.messages += 1;
                    tally.bytes += len as u64;
                    price += MESSAGE_COST;
                }
                if let Some(last) = tally.last {
                    tally.longest_wait = tally.longest_wait.max(now - last);
                }
                tally.last = Some(now);
                self.pulled.push_back((number, price));
            }
            Event::Gap { channel: 0, .. } => panic!("no session ends unseen here"),
            Event::Gap { channel: number, messages, bytes, .. } => {
                let tally = self.tallies.get_mut(&self.numbers[&number]).unwrap();
                tally.lost += messages;
                tally.lost_bytes += bytes;
                tally.part = 0; // the message that arrived in part is among the lost ones
            }
            Event::Closed { .. } => {}
        }
    }

    /// All losses, also those whose gaps the stream has not reached.
    pub(crate) fn lost(&self) -> Lost {
        self.inbox.lock().counters().lost()
    }

    /// The sum of the counts of all channels.
    pub(crate) fn sum(&self) -> Tally {
        self.tallies.values().fold(Tally::default(), |mut sum, tally| {
            sum.messages += tally.messages;
            sum.bytes += tally.bytes;
            sum.lost += tally.lost;
            sum.lost_bytes += tally.lost_bytes;
            sum.longest_wait = sum.longest_wait.max(tally.longest_wait);
            sum
        })
    }

    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let pause = self.pause(now).map(|(_, until)| until);
        [self.busy_until, pause].into_iter().flatten().min()
    }
}
