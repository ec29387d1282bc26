//! An inbox against a model that counts the messages that arrived, that were handed over, and that the application
//! processed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use devp2pd::Now;
use devp2pd::budget::{Budget, Resource};
use devp2pd::delivery::credit::MESSAGE_COST;
use devp2pd::delivery::overflow::MAX_STALL_LIMIT;
use devp2pd::delivery::{
    About, Action, Arrival, AttachParams, ChannelKey, Close, ClosedBy, Config, Event, Held, Inbox,
    OverflowPolicy, Pull, Push, Sharing, StreamId,
};

use super::{Script, origin};

const CHANNEL_BYTES: u64 = 2_000;
const AWAY_BYTES: u64 = 6_000;
const LARGEST: usize = 150_000;

/// The model of one channel.
struct Known {
    key: ChannelKey,
    open: bool,
    /// The inbox ordered its owner to close it (`Push::ClosedChannel`).
    muted: bool,
    /// Messages that the inbox queued or counted as lost.
    arrived: u64,
    /// The position according to the inbox's events: messages that were handed over or reported in gaps.
    position: u64,
    /// Messages that were handed over completely.
    handed: u64,
    /// Of those, the number that the application processed and returned credit for.
    processed: u64,
    /// Costs of messages handed over on this stream and not processed yet.
    unprocessed: Vec<u64>,
    /// False after a stream with automatic credit that announced the channel, until the application gives credit again.
    /// While it is false, the inbox need not know how many messages have no credit.
    counted: bool,
    /// Bytes of the current message that arrived in parts so far.
    partial: usize,
    announced: bool,
    ended: bool,
    number: Option<u32>,
    window: i64,
}

struct World {
    inbox: Inbox<usize>,
    known: Vec<Known>,
    numbers: HashMap<u32, usize>,
    last_number: u32,
    stream: Option<(StreamId, bool)>,
    streams: u64,
    window: i64,
    channel_window: i64,
    overflow: OverflowPolicy,
    folded_messages: u64,
    now: Now,
}

impl World {
    fn session(&self, index: usize) -> u64 {
        // Two channels a session.
        (index / 2) as u64
    }

    fn open(&mut self) {
        let index = self.known.len();
        let about = About {
            session_id: self.session(index),
            peer: index,
            keep_first: index % 3,
            greeting_sent: false,
        };
        let key = self.inbox.open(about).expect("a key");
        self.known.push(Known {
            key,
            open: true,
            muted: false,
            arrived: 0,
            position: 0,
            handed: 0,
            processed: 0,
            unprocessed: Vec::new(),
            counted: true,
            partial: 0,
            announced: false,
            ended: false,
            number: None,
            window: self.channel_window,
        });
    }

    fn push(&mut self, index: usize, len: usize, sharing: Sharing) {
        let Some(known) = self.known.get_mut(index) else { return };
        // The payload carries the number of the message on its channel, and the channel.
        let mut payload = vec![index as u8; len.max(8)];
        payload[..8].copy_from_slice(&known.arrived.to_be_bytes());
        let code = (known.arrived % 300) as u32;
        let attached = self.stream.is_some();
        let mut payload = Bytes::from(payload);
        let mut held = Held::default();
        // No proof of progress comes, so the inbox decides on the message before the limits are used up.
        loop {
            let now = self.now.mono;
            let arrival = Arrival { code, payload, wire_bytes: len };
            match self.inbox.push(now, known.key, sharing, held, arrival) {
                Push::Queued | Push::Dropped | Push::Disconnect => {
                    assert!(known.open && !known.muted);
                    known.arrived += 1;
                    return;
                }
                Push::ClosedChannel => {
                    assert!(known.open && !known.muted && matches!(sharing, Sharing::Shared(_)));
                    known.arrived += 1;
                    known.muted = true;
                    return;
                }
                Push::Closed => {
                    assert!(!known.open || known.muted);
                    return;
                }
                Push::Hold { until, charged, payload: back } => {
                    assert!(attached && known.open && sharing == Sharing::Alone);
                    assert_eq!(back.len(), len.max(8), "the payload comes back");
                    assert!(until > now && until - now <= Duration::from_secs(1));
                    if self.overflow.action == Action::Wait {
                        // The connection gives up here.
                        return;
                    }
                    let time = until - now;
                    if charged {
                        held = Held { channel: held.channel + time, total: held.total + time };
                    }
                    assert!(held.channel <= self.overflow.stall_limit && held.total <= MAX_STALL_LIMIT);
                    self.now = self.now.after(time);
                    payload = back;
                }
            }
        }
    }

    fn push_last(&mut self, index: usize, len: usize) {
        let Some(known) = self.known.get_mut(index) else { return };
        let mut payload = vec![index as u8; len.max(8)];
        payload[..8].copy_from_slice(&known.arrived.to_be_bytes());
        let code = (known.arrived % 300) as u32;
        let arrival = Arrival { code, payload: Bytes::from(payload), wire_bytes: len };
        match self.inbox.push_last(known.key, arrival) {
            Push::Queued | Push::Dropped => known.arrived += 1,
            other => assert!(matches!(other, Push::Closed) && (!known.open || known.muted)),
        }
        // The message was read before the connection ended.
        self.close(index);
    }

    fn attach(&mut self, auto_credit: bool, windows: u64) {
        let max_frame_bytes = 64 << 10;
        let params = AttachParams {
            stream_window: windows * 4,
            channel_window: windows,
            max_frame_bytes,
            auto_credit,
        };
        let old = self.stream;
        self.streams += 1;
        let stream = StreamId(self.streams);
        self.inbox.attach(stream, params);
        if let Some((old, _)) = old {
            assert_eq!(self.inbox.pull(old, 1, 1, &mut Vec::new()), Pull::Ended);
        }
        self.leave();
        self.stream = Some((stream, auto_credit));
        self.window = (windows * 4) as i64;
        self.channel_window = windows as i64;
        for known in &mut self.known {
            known.window = windows as i64;
        }
    }

    fn leave(&mut self) {
        let auto = self.stream.take().is_some_and(|(_, auto)| auto);
        self.numbers.clear();
        self.last_number = 0;
        for known in &mut self.known {
            known.counted &= !(auto && known.number.is_some());
            known.number = None;
            known.partial = 0;
            known.unprocessed.clear();
        }
    }

    fn pull(&mut self, max_bytes: usize, max_events: usize) -> Pull {
        let Some((stream, auto)) = self.stream else { return Pull::Ended };
        let mut out = Vec::new();
        let pull = self.inbox.pull(stream, max_bytes, max_events, &mut out);
        assert!(out.len() <= max_events);
        for event in out {
            self.take(event, auto);
        }
        pull
    }

    fn take(&mut self, event: Event<usize>, auto: bool) {
        match event {
            Event::Opened(opened) => {
                let index = opened.about.peer;
                let known = &mut self.known[index];
                assert!(opened.channel > self.last_number, "numbers are not used again");
                self.last_number = opened.channel;
                assert!(!known.ended && known.number.is_none());
                assert_eq!(opened.existing, known.announced);
                assert_eq!(opened.position, known.position, "what was handed over or reported so far");
                match opened.uncredited_messages {
                    None => assert!(!known.counted),
                    Some(bound) => assert!(
                        bound >= known.handed - known.processed || !known.counted,
                        "{bound} is no bound for {} handed over and {} processed",
                        known.handed,
                        known.processed
                    ),
                }
                known.announced = true;
                known.number = Some(opened.channel);
                self.numbers.insert(opened.channel, index);
            }
            Event::Message { channel, code, payload, part } => {
                let known = &mut self.known[self.numbers[&channel]];
                if !auto {
                    assert!(self.window > 0 && known.window > 0, "sent with a closed window");
                }
                let mut price = payload.len() as u64;
                let (total, offset) = part.map_or((payload.len(), 0), |part| (part.total, part.offset));
                assert_eq!(offset, known.partial, "parts are consecutive");
                if offset == 0 {
                    let mut sequence = [0; 8];
                    sequence.copy_from_slice(&payload[..8]);
                    assert_eq!(
                        u64::from_be_bytes(sequence),
                        known.position,
                        "never twice, never out of order"
                    );
                    assert_eq!(u64::from(code), known.position % 300);
                }
                known.partial += payload.len();
                if known.partial == total {
                    price += MESSAGE_COST;
                    known.partial = 0;
                    known.position += 1;
                    known.handed += 1;
                    known.unprocessed.push(total as u64 + MESSAGE_COST);
                }
                self.window -= price as i64;
                known.window -= price as i64;
            }
            Event::Gap { channel: 0, sessions, messages, .. } => {
                assert!(sessions > 0);
                self.folded_messages += messages;
            }
            Event::Gap { channel, sessions, messages, .. } => {
                let known = &mut self.known[self.numbers[&channel]];
                assert!(sessions == 0 && messages > 0);
                // After a part of a message, its rest is dropped only if the session is over and too much waits.
                assert!(known.partial == 0 || !known.open);
                known.partial = 0;
                known.position += messages;
            }
            Event::Closed { channel, .. } => {
                let index = self.numbers.remove(&channel).expect("an announced channel");
                let known = &mut self.known[index];
                assert!(!known.open && known.partial == 0);
                assert_eq!(known.position, known.arrived, "all of it was handed over or reported");
                known.ended = true;
            }
        }
    }

    /// The application processes some messages and returns their credit.
    fn credit(&mut self, index: usize, count: usize) {
        let Some((stream, _)) = self.stream else { return };
        let Some(known) = self.known.get_mut(index) else { return };
        let Some(number) = known.number else { return };
        let count = count.min(known.unprocessed.len());
        let bytes: u64 = known.unprocessed.drain(..count).sum();
        if count == 0 {
            return;
        }
        if known.unprocessed.is_empty() {
            known.processed = known.handed;
        } else {
            known.processed = known.handed - known.unprocessed.len() as u64;
        }
        known.counted = true; // the inbox counts from this announcement on
        known.window += bytes as i64;
        self.window += bytes as i64;
        self.inbox.credit(stream, number, bytes).expect("a number of this stream");
        self.inbox.credit(stream, 0, bytes).expect("a number of this stream");
    }

    fn close(&mut self, index: usize) {
        let Some(known) = self.known.get_mut(index).filter(|known| known.open) else { return };
        known.open = false;
        let close = Close { reason: 0, by: ClosedBy::Remote, detail: "".into(), unsent_messages: 0 };
        self.inbox.close(known.key, close);
    }

    fn check(&self) {
        let open = self.known.iter().filter(|known| known.open).count() as u64;
        let records = self.known.iter().filter(|known| !known.ended).count() as u64;
        let crossing = LARGEST as u64 + MESSAGE_COST;
        // Each gap costs as much as an empty message, and each closed channel has a record.
        let gaps = records * (2 * MESSAGE_COST + 1024 + 16_384);
        let bound = if self.stream.is_some() {
            open * (2 * CHANNEL_BYTES + crossing) + AWAY_BYTES + crossing + gaps
        } else {
            AWAY_BYTES + crossing + gaps
        };
        assert!(self.inbox.waiting() <= bound, "{} waits, at most {bound} may", self.inbox.waiting());
    }

    fn configure(&mut self, choice: usize) {
        let actions = [Action::DropAndReport, Action::DisconnectPeer, Action::Wait];
        let stall_limit = Duration::from_secs((choice / 3 % 10) as u64);
        self.overflow = OverflowPolicy { stall_limit, action: actions[choice % 3] };
        self.inbox.configure(Config {
            channel_bytes: CHANNEL_BYTES,
            away_bytes: AWAY_BYTES,
            overflow: self.overflow,
        });
    }
}

/// Runs the script.
pub(super) fn run(data: &[u8]) {
    let mut script = Script(data);
    let budget = Budget::new(Resource::Delivery, 64 << 20);
    let config =
        Config { channel_bytes: CHANNEL_BYTES, away_bytes: AWAY_BYTES, overflow: OverflowPolicy::default() };
    let mut world = World {
        inbox: Inbox::new(config, Arc::clone(&budget)),
        known: Vec::new(),
        numbers: HashMap::new(),
        last_number: 0,
        stream: None,
        streams: 0,
        window: 0,
        channel_window: 0,
        overflow: OverflowPolicy::default(),
        folded_messages: 0,
        now: origin(),
    };
    let mut steps = 0;
    while let Some(operation) = script.below(16)
        && steps < 2_000
    {
        steps += 1;
        let argument = script.next().unwrap_or(0);
        let index = argument % world.known.len().max(1);
        match operation {
            0 if world.known.len() < 200 => world.open(),
            1..=4 => world.push(index, argument * 5, Sharing::Shared(Duration::ZERO)),
            5 => world.push(index, argument * 5, Sharing::Alone),
            6 => world.push(index, LARGEST - argument, Sharing::Shared(Duration::ZERO)),
            7 | 8 => {
                world.pull(argument * 100, 1 + argument % 20);
            }
            9 | 10 => world.credit(index, argument % 7),
            11 => world.close(index),
            12 => world.attach(argument.is_multiple_of(2), 100 + argument as u64 * 50),
            13 if argument.is_multiple_of(2) => {
                if let Some((stream, _)) = world.stream {
                    world.inbox.detach(stream);
                    world.leave();
                }
            }
            13 => world.push_last(index, argument * 5),
            14 if argument.is_multiple_of(2) => {
                world.now = world.now.after(Duration::from_millis(argument as u64 * 20));
            }
            14 => world.configure(argument / 2),
            15 => {
                // A burst of messages.
                for _ in 0..argument {
                    world.push(index, 20, Sharing::Shared(Duration::ZERO));
                }
            }
            _ => {}
        }
        world.check();
    }

    // At the end all sessions end, and an application takes everything. Every message that arrived must be accounted
    // for.
    for index in 0..world.known.len() {
        world.close(index);
    }
    world.attach(true, 1);
    while world.pull(1 << 20, 64) == Pull::Full {}
    let unheard: u64 = world.known.iter().filter(|known| !known.ended).map(|known| known.arrived).sum();
    assert_eq!(world.folded_messages, unheard, "whole sessions that were folded");
    assert!(world.known.iter().all(|known| known.ended || !known.announced));
    let counters = world.inbox.counters();
    let told = counters.handed_over + counters.reported.messages + counters.folded.lost.messages;
    assert_eq!(told, world.known.iter().map(|known| known.arrived).sum::<u64>());
    assert_eq!(world.inbox.waiting(), 0);
    assert_eq!(world.inbox.open_channels(), 0);
    drop(world);
    assert_eq!(budget.used(), 0);
}
