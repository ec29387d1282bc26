//! What went over one connection, counted without locks by its task and read by whoever asks.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Counters of one session. Bytes are those of the socket, messages those of sub-protocols.
#[derive(Debug, Default)]
pub struct Traffic {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    messages_in: AtomicU64,
    messages_out: AtomicU64,
    /// Microseconds of the last Ping's round trip plus one; 0 means none yet.
    round_trip: AtomicU64,
    /// Microseconds for which a full application queue kept the socket unread.
    stalled: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficSnapshot {
    /// Bytes read from the socket.
    pub bytes_in: u64,
    /// Bytes the socket took.
    pub bytes_out: u64,
    /// Sub-protocol messages received.
    pub messages_in: u64,
    /// Sub-protocol messages the socket took.
    pub messages_out: u64,
    /// The last Ping's round trip, once there was one.
    pub round_trip: Option<Duration>,
    /// How long a full application queue has kept the socket unread, in all.
    pub stalled: Duration,
}

impl Traffic {
    pub(super) fn received(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn messages_sent(&self, count: usize) {
        self.messages_out.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn messages_received(&self, count: u64) {
        self.messages_in.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn round_trip(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX - 1);
        self.round_trip.store(micros.saturating_add(1), Ordering::Relaxed);
    }

    pub(super) fn stalled(&self, time: Duration) {
        self.stalled.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
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
        }
    }
}
