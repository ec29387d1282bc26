//! Counters of one connection. Its task counts without locks; any task may read.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{ChannelIndex, Counters, intake::Hold};
use crate::Now;

/// Messages of the base protocol that had no effect, over all connections that have ended.
#[derive(Debug, Default)]
pub struct BaseTotals {
    pings_unanswered: AtomicU64,
    ignored: AtomicU64,
}

impl BaseTotals {
    /// Adds the counts of a connection that has ended.
    pub(crate) fn add(&self, counters: Counters) {
        let Counters { pings_unanswered, base_ignored } = counters;
        self.pings_unanswered.fetch_add(pings_unanswered, Ordering::Relaxed);
        self.ignored.fetch_add(base_ignored, Ordering::Relaxed);
    }

    /// The sums over all connections that have ended.
    #[must_use]
    pub fn sums(&self) -> Counters {
        Counters {
            pings_unanswered: self.pings_unanswered.load(Ordering::Relaxed),
            base_ignored: self.ignored.load(Ordering::Relaxed),
        }
    }
}

/// Counters of one session. Bytes are those of the socket, messages those of sub-protocols.
#[derive(Debug, Default)]
pub struct Traffic {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    messages_in: AtomicU64,
    messages_out: AtomicU64,
    /// Round trip of the last Ping in microseconds, plus one; 0 means none yet.
    round_trip: AtomicU64,
    /// Microseconds for which a full application queue kept the socket from being read, without the current hold.
    stalled: AtomicU64,
    /// The current hold: when it began in microseconds of wall time (0: not held), its channel, and the messages that
    /// wait.
    held_since: AtomicU64,
    held_channel: AtomicU64,
    held_messages: AtomicU64,
    held_bytes: AtomicU64,
    /// Counters of each channel's received messages. Sent messages are counted in the outbound queue (`outbound`).
    channels: OnceLock<Box<[Received]>>,
}

/// Messages received on one channel, and the bytes of their payloads.
#[derive(Debug, Default)]
struct Received {
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// Messages of one channel, and the bytes of their payloads, uncompressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelTraffic {
    /// Messages received.
    pub messages_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Messages that the socket took.
    pub messages_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

impl ChannelTraffic {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.messages_in += other.messages_in;
        self.bytes_in += other.bytes_in;
        self.messages_out += other.messages_out;
        self.bytes_out += other.bytes_out;
    }
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficSnapshot {
    /// Bytes read from the socket.
    pub bytes_in: u64,
    /// Bytes that the socket took.
    pub bytes_out: u64,
    /// Sub-protocol messages received.
    pub messages_in: u64,
    /// Sub-protocol messages that the socket took.
    pub messages_out: u64,
    /// The last Ping's round trip; `None` before the first.
    pub round_trip: Option<Duration>,
    /// How long a full application queue has kept the socket from being read, in all holds that have ended.
    pub stalled: Duration,
    /// The current hold, if there is one.
    pub hold: Option<HoldView>,
}

/// A connection that is not read because a message waits for room in its application's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldView {
    /// The channel whose message waits.
    pub channel: ChannelIndex,
    /// Wall time at which the hold began.
    pub since: Duration,
    /// Messages that were read and wait.
    pub messages: u64,
    /// The bytes of their payloads.
    pub bytes: u64,
}

impl Traffic {
    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn messages_sent(&self, count: usize) {
        self.messages_out.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn message_received(&self, channel: ChannelIndex, bytes: usize) {
        self.messages_in.fetch_add(1, Ordering::Relaxed);
        if let Some(received) = self.channels.get().and_then(|all| all.get(usize::from(channel.0))) {
            received.messages.fetch_add(1, Ordering::Relaxed);
            received.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Makes room for `count` channels. Only the first call has an effect.
    pub fn set_channels(&self, count: usize) {
        self.channels.get_or_init(|| (0..count).map(|_| Received::default()).collect());
    }

    /// Messages received on a channel, and the bytes of their payloads.
    #[must_use]
    pub fn received_on(&self, channel: ChannelIndex) -> (u64, u64) {
        let received = self.channels.get().and_then(|all| all.get(usize::from(channel.0)));
        let load = |received: &Received| {
            (received.messages.load(Ordering::Relaxed), received.bytes.load(Ordering::Relaxed))
        };
        received.map(load).unwrap_or_default()
    }

    pub(crate) fn round_trip(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX - 1);
        self.round_trip.store(micros.saturating_add(1), Ordering::Relaxed);
    }

    /// Shows the current hold, or that there is none. The end of a hold adds its length to `stalled`.
    pub(crate) fn show_hold(&self, now: Now, hold: Option<Hold>) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let before = self.held_since.load(Ordering::Relaxed);
        match hold {
            Some(Hold { channel, since, messages, bytes }) => {
                self.held_channel.store(u64::from(channel.0), Ordering::Relaxed);
                self.held_messages.store(messages as u64, Ordering::Relaxed);
                self.held_bytes.store(bytes as u64, Ordering::Relaxed);
                if before == 0 {
                    let since = now.unix.saturating_sub(now.mono.saturating_duration_since(since));
                    self.held_since.store(micros(since).max(1), Ordering::Relaxed);
                }
            }
            None if before > 0 => {
                self.held_since.store(0, Ordering::Relaxed);
                self.stalled.fetch_add(micros(now.unix).saturating_sub(before), Ordering::Relaxed);
            }
            None => {}
        }
    }

    fn hold(&self) -> Option<HoldView> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let since = Some(load(&self.held_since)).filter(|since| *since > 0).map(Duration::from_micros)?;
        let channel = ChannelIndex(u16::try_from(load(&self.held_channel)).unwrap_or(u16::MAX));
        Some(HoldView { channel, since, messages: load(&self.held_messages), bytes: load(&self.held_bytes) })
    }

    /// The counters now.
    #[must_use]
    pub fn snapshot(&self) -> TrafficSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TrafficSnapshot {
            bytes_in: load(&self.bytes_in),
            bytes_out: load(&self.bytes_out),
            messages_in: load(&self.messages_in),
            messages_out: load(&self.messages_out),
            round_trip: load(&self.round_trip).checked_sub(1).map(Duration::from_micros),
            stalled: Duration::from_micros(load(&self.stalled)),
            hold: self.hold(),
        }
    }
}
