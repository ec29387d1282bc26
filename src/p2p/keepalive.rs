//! Whether the other side is alive: when to ping, and when to give up.
//!
//! A ping goes out every 15 s, whatever else is written. Any complete frame proves that the peer is alive; without one
//! for 30 s the connection ends. A frame that has begun gets 30 s of its own, which further bytes of it do not extend.
//!
//! While we do not read ourselves (back-pressure), silence proves nothing: only our pings go on. They go a little more
//! often, because a held peer reads nothing else from us (Besu leaves after 15 s without a byte).
//!
//! Writing has one deadline: if the socket takes no byte for 20 s while bytes wait, the peer does not read
//! ([`WRITE_TIMEOUT`]).

use std::time::{Duration, Instant};

use super::Fault;

/// How often we ping. Other stacks expect a frame within 30 s at the latest; go-ethereum pings as often.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);
/// How often we ping a peer that is held. Besu finds us idle after 15 s, so the interval is shorter. In the minute for
/// which reth may not read, at most five pings may come: its bucket holds five, and it leaves at the sixth.
pub const HELD_PING_INTERVAL: Duration = Duration::from_secs(13);
/// How long the socket may take no byte while bytes wait, as in go-ethereum.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a peer may be silent, and how long one frame may take.
pub const MAX_SILENCE: Duration = Duration::from_secs(30);

/// The timers of one connection.
#[derive(Debug)]
pub struct Keepalive {
    last_ping: Instant,
    /// Whether the peer is held.
    held: bool,
    /// Pings whose pongs have not come.
    unanswered: u32,
    /// When the oldest of them was written, if that is known.
    pinged: Option<Instant>,
    /// Since when we wait for the next frame to begin or, if one has begun, to end.
    waiting_since: Instant,
    inside_frame: bool,
    /// Since when the socket has taken none of the waiting bytes; `None` while nothing waits.
    writing_since: Option<Instant>,
}

/// How a pong matches our pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pong {
    /// No ping was unanswered.
    Unasked,
    /// The answer to the oldest unanswered ping, with the time since then; `None` if an older ping was unanswered when
    /// that one was written.
    Answer(Option<Duration>),
}

impl Keepalive {
    /// Timers of a connection that opens `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            last_ping: now,
            held: false,
            unanswered: 0,
            pinged: None,
            waiting_since: now,
            inside_frame: false,
            writing_since: None,
        }
    }

    /// A whole frame was read.
    pub fn frame_read(&mut self, now: Instant) {
        self.waiting_since = now;
        self.inside_frame = false;
    }

    /// All whole frames have been read; `inside_frame` says whether a part of another one is there.
    pub fn received(&mut self, now: Instant, inside_frame: bool) {
        if inside_frame && !self.inside_frame {
            self.waiting_since = now;
        }
        self.inside_frame = inside_frame;
    }

    /// Reading goes on after a pause of this length. The peer has the rest of its 30 s that it had before the pause,
    /// and no more: repeated pauses and holds must not help a peer that sends a few bytes at a time.
    pub fn waited(&mut self, now: Instant, pause: Duration) {
        self.waiting_since = (self.waiting_since + pause).min(now);
    }

    /// A ping was written.
    pub fn ping_written(&mut self, now: Instant) {
        self.pinged = (self.unanswered == 0).then_some(now).or(self.pinged);
        self.unanswered = self.unanswered.saturating_add(1);
    }

    /// Pings whose pongs have not come.
    #[must_use]
    pub fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// A pong was read.
    pub fn pong_read(&mut self, now: Instant) -> Pong {
        let Some(left) = self.unanswered.checked_sub(1) else { return Pong::Unasked };
        self.unanswered = left;
        Pong::Answer(self.pinged.take().map(|pinged| now.saturating_duration_since(pinged)))
    }

    /// Sets whether the peer is held.
    pub fn set_held(&mut self, held: bool) {
        self.held = held;
    }

    /// Bytes wait to be written.
    pub fn writing(&mut self, now: Instant) {
        self.writing_since.get_or_insert(now);
    }

    /// The socket took some bytes; `left`: more bytes wait.
    pub fn written(&mut self, now: Instant, left: bool) {
        self.writing_since = left.then_some(now);
    }

    fn next_ping(&self) -> Instant {
        self.last_ping + if self.held { HELD_PING_INTERVAL } else { PING_INTERVAL }
    }

    /// The next moment at which [`Self::ping_due`] or [`Self::fault`] changes.
    #[must_use]
    pub fn deadline(&self, reading: bool) -> Instant {
        let silence = reading.then(|| self.waiting_since + MAX_SILENCE);
        let writing = self.writing_since.map(|since| since + WRITE_TIMEOUT);
        [silence, writing].into_iter().flatten().fold(self.next_ping(), Instant::min)
    }

    /// A ping goes out now for another reason: the next one is due a whole interval later.
    pub fn ping_early(&mut self, now: Instant) {
        self.last_ping = now;
    }

    /// Whether a ping is due. If so, the next one is scheduled.
    pub fn ping_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next_ping();
        if due {
            self.last_ping = now;
        }
        due
    }

    /// The peer's timeout, if one has passed. `reading`: we read, so silence is the peer's fault.
    #[must_use]
    pub fn fault(&self, now: Instant, reading: bool) -> Option<Fault> {
        if self.writing_since.is_some_and(|since| now >= since + WRITE_TIMEOUT) {
            return Some(Fault::WriteTimeout);
        }
        let late = reading && now >= self.waiting_since + MAX_SILENCE;
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
        assert_eq!(keepalive.pong_read(start + seconds(16)), Pong::Unasked);
        keepalive.ping_written(start + seconds(16));
        keepalive.ping_written(start + seconds(31));
        assert_eq!(keepalive.unanswered(), 2);
        let first = keepalive.pong_read(start + seconds(32));
        assert_eq!(first, Pong::Answer(Some(seconds(16))), "it answers the older ping");
        assert_eq!(
            keepalive.pong_read(start + seconds(33)),
            Pong::Answer(None),
            "an older ping was unanswered then"
        );
        assert_eq!(keepalive.pong_read(start + seconds(34)), Pong::Unasked);
    }

    #[test]
    fn frames_begun_have_their_own_time() {
        let start = start();
        let mut keepalive = Keepalive::new(start);
        assert_eq!(keepalive.fault(start + seconds(29), true), None);
        assert_eq!(keepalive.fault(start + seconds(30), true), Some(Fault::Silence));
        // A frame begins after 29 s and its bytes come slowly: it must end 30 s after it began.
        for at in 29..59 {
            keepalive.received(start + seconds(at), true);
            assert_eq!(keepalive.fault(start + seconds(at), true), None);
        }
        assert_eq!(keepalive.fault(start + seconds(59), true), Some(Fault::FrameTimeout));
        keepalive.frame_read(start + seconds(59));
        assert_eq!(keepalive.fault(start + seconds(88), true), None);
    }

    #[test]
    fn pauses_in_a_row_do_not_spare_a_peer_that_dribbles() {
        let start = start();
        let mut keepalive = Keepalive::new(start);
        keepalive.received(start, true);
        // We read for one second in ten.
        for round in 1..30 {
            let now = start + seconds(10 * round);
            keepalive.waited(now, seconds(9));
            keepalive.received(now, true);
            assert_eq!(keepalive.fault(now, true), None, "round {round}");
        }
        keepalive.waited(start + seconds(300), seconds(9));
        assert_eq!(keepalive.fault(start + seconds(300), true), Some(Fault::FrameTimeout));
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
        keepalive.waited(start + seconds(100), seconds(80));
        assert_eq!(keepalive.fault(start + seconds(109), true), None);
        assert_eq!(
            keepalive.fault(start + seconds(110), true),
            Some(Fault::Silence),
            "20 of the 30 s passed before the pause"
        );
    }

    #[test]
    fn a_held_peer_is_pinged_every_thirteen_seconds() {
        let start = start();
        let mut keepalive = Keepalive::new(start);
        keepalive.set_held(true);
        for round in 1..100 {
            assert_eq!(keepalive.deadline(false), start + seconds(13 * round));
            assert!(keepalive.ping_due(start + seconds(13 * round)));
        }
        keepalive.set_held(false);
        assert_eq!(keepalive.deadline(false), start + seconds(99 * 13 + 15));
    }

    #[test]
    fn a_socket_that_takes_nothing_for_twenty_seconds_ends_the_connection() {
        let start = start();
        let mut keepalive = Keepalive::new(start);
        keepalive.writing(start);
        keepalive.writing(start + seconds(5));
        assert_eq!(keepalive.fault(start + seconds(19), false), None);
        assert_eq!(keepalive.fault(start + seconds(20), false), Some(Fault::WriteTimeout));
        assert_eq!(keepalive.deadline(false), start + seconds(15), "the ping comes first");
        keepalive.written(start + seconds(19), true);
        assert_eq!(keepalive.fault(start + seconds(38), false), None);
        assert_eq!(keepalive.fault(start + seconds(39), false), Some(Fault::WriteTimeout));
        keepalive.written(start + seconds(38), false);
        assert_eq!(keepalive.fault(start + seconds(100), false), None, "nothing waits");
    }
}
