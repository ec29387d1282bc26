//! Whether the other side lives: when to ping, and when to stop waiting.
//!
//! A ping goes out every 15 s whatever else does. Any complete frame is a sign of life; without one for 30 s the peer
//! is gone. A frame that has begun gets 30 s of its own, which trickling bytes do not extend.
//!
//! While we do not read ourselves (back-pressure), silence proves nothing: only pings go on.

use std::time::{Duration, Instant};

use super::Fault;

/// How often we ping. Others expect a sign of life within 30 s at the latest; geth pings as often.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);
/// How long a peer may be silent, and how long one frame may take.
pub const MAX_SILENCE: Duration = Duration::from_secs(30);

/// The timers of one connection.
#[derive(Debug)]
pub struct Keepalive {
    next_ping: Instant,
    /// When the ping whose pong is awaited was written.
    pinged: Option<Instant>,
    /// Since when we wait for the next frame to begin or, if one has begun, to end.
    waiting_since: Instant,
    inside_frame: bool,
}

impl Keepalive {
    /// Timers of a connection whose Hello came `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { next_ping: now + PING_INTERVAL, pinged: None, waiting_since: now, inside_frame: false }
    }

    /// A whole frame was read.
    pub fn frame_read(&mut self, now: Instant) {
        self.waiting_since = now;
        self.inside_frame = false;
    }

    /// All whole frames have been read; `inside_frame` says whether part of another is there.
    pub fn received(&mut self, now: Instant, inside_frame: bool) {
        if inside_frame && !self.inside_frame {
            self.waiting_since = now;
        }
        self.inside_frame = inside_frame;
    }

    /// Reading goes on after a time in which we did not read.
    pub fn resumed(&mut self, now: Instant) {
        self.waiting_since = now;
    }

    /// Reading goes on after a pause of this length: what was there of 30 s before it is there again, and no more, so
    /// that pauses in a row do not spare a peer that dribbles.
    pub fn waited(&mut self, now: Instant, pause: Duration) {
        self.waiting_since = (self.waiting_since + pause).min(now);
    }

    /// A ping was written.
    pub fn ping_written(&mut self, now: Instant) {
        self.pinged.get_or_insert(now);
    }

    /// A pong was read: the time since its ping, if one was awaited.
    pub fn pong_read(&mut self, now: Instant) -> Option<Duration> {
        self.pinged.take().map(|pinged| now.saturating_duration_since(pinged))
    }

    /// The next moment at which [`Self::ping_due`] or [`Self::fault`] changes.
    #[must_use]
    pub fn deadline(&self, reading: bool) -> Instant {
        if reading { self.next_ping.min(self.waiting_since + MAX_SILENCE) } else { self.next_ping }
    }

    /// A ping goes out now for another reason: the next one is due an interval later.
    pub fn ping_early(&mut self, now: Instant) {
        self.next_ping = now + PING_INTERVAL;
    }

    /// Whether a ping is due; if so the next one is scheduled.
    pub fn ping_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next_ping;
        if due {
            self.next_ping = now + PING_INTERVAL;
        }
        due
    }

    /// What the peer failed to do in time.
    #[must_use]
    pub fn fault(&self, now: Instant) -> Option<Fault> {
        let late = now >= self.waiting_since + MAX_SILENCE;
        late.then_some(if self.inside_frame { Fault::FrameTimeout } else { Fault::Silence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn start() -> Instant {
        Instant::now()
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn pings_are_spaced_and_timed() {
        let start = start();
        let mut keepalive = Keepalive::new(start);
        assert_eq!(keepalive.deadline(true), start + seconds(15));
        assert!(!keepalive.ping_due(start + seconds(14)));
        assert!(keepalive.ping_due(start + seconds(15)));
        assert!(!keepalive.ping_due(start + seconds(15)));
        assert_eq!(keepalive.pong_read(start + seconds(16)), None, "not pinged yet");
        keepalive.ping_written(start + seconds(16));
        keepalive.ping_written(start + seconds(31));
        assert_eq!(keepalive.pong_read(start + seconds(32)), Some(seconds(16)), "the first ping counts");
        assert_eq!(keepalive.pong_read(start + seconds(33)), None);
    }

    #[test]
    fn frames_begun_have_their_own_time() {
        let start = start();
        let mut keepalive = Keepalive::new(start);
        assert_eq!(keepalive.fault(start + seconds(29)), None);
        assert_eq!(keepalive.fault(start + seconds(30)), Some(Fault::Silence));
        // A frame begins after 29 s and trickles on: it must end 30 s after it began.
        for at in 29..59 {
            keepalive.received(start + seconds(at), true);
            assert_eq!(keepalive.fault(start + seconds(at)), None);
        }
        assert_eq!(keepalive.fault(start + seconds(59)), Some(Fault::FrameTimeout));
        keepalive.frame_read(start + seconds(59));
        assert_eq!(keepalive.fault(start + seconds(88)), None);
    }

    #[test]
    fn pauses_in_a_row_do_not_spare_a_peer_that_dribbles() {
        let start = start();
        let mut keepalive = Keepalive::new(start);
        keepalive.received(start, true);
        // Of each ten seconds we read one.
        for round in 1..30 {
            let now = start + seconds(10 * round);
            keepalive.waited(now, seconds(9));
            keepalive.received(now, true);
            assert_eq!(keepalive.fault(now), None, "round {round}");
        }
        keepalive.waited(start + seconds(300), seconds(9));
        assert_eq!(keepalive.fault(start + seconds(300)), Some(Fault::FrameTimeout));
    }

    #[test]
    fn silence_that_we_caused_does_not_count() {
        let start = start();
        let mut keepalive = Keepalive::new(start);
        assert!(keepalive.ping_due(start + seconds(15)));
        assert_eq!(keepalive.deadline(true), start + seconds(30));
        assert_eq!(keepalive.deadline(false), start + seconds(30), "the next ping");
        assert!(keepalive.ping_due(start + seconds(30)));
        assert_eq!(keepalive.deadline(false), start + seconds(45));
        keepalive.resumed(start + seconds(100));
        assert_eq!(keepalive.fault(start + seconds(129)), None);
    }
}
