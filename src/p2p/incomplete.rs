//! Messages that are not complete, and which of them gives way when the memory for them is used up.
//!
//! A peer announces a message of up to 16 MiB and then sends it. Until the last byte is here, the bytes take memory of
//! one budget over all peers. A peer that sends slowly holds that memory for a long time, and other peers wait for it.
//! So the one that waits looks at all others ([`verdict`]):
//!
//! 1. The oldest message of those that wait may use all that is left. It keeps that right until it is complete, so
//!    messages that wait for each other are complete one after the other.
//! 2. A message that arrives at less than [`MIN_RATE`] gives way; of several, the largest.
//! 3. Otherwise, while some messages arrive, their memory is free soon: the connection waits.
//! 4. Otherwise all of them wait for each other, and what is left is too little for the oldest. Then the largest of the
//!    others gives way; if one of them waits for a slow application, after [`PATIENCE`].
//!
//! To give way is to lose the connection, because a part of a message cannot be given back.
//!
//! Left out: the budget (`crate::budget`), the buffers and the wake-ups (`net::buffers`).

use std::time::{Duration, Instant};

/// The least rate, in bytes per second, of a message that others wait for. The largest message (16 MiB) has 30 s and
/// so needs more than twice as much.
pub const MIN_RATE: u64 = 256 << 10;

/// The time for which a message may arrive at any rate: a new connection begins slowly, and links have pauses.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Why the bytes of a message do or do not grow now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The socket is read.
    Reads,
    /// The socket is not read, for another reason than memory: the application is slow, or a cap is exceeded.
    Stopped { since: Instant },
    /// There is no memory for more of it.
    Waits { since: Instant },
}

/// The incomplete message of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Incomplete {
    bytes: u64,
    /// When the first of these bytes came.
    since: Instant,
    /// How long the socket was not read since then.
    unread: Duration,
    state: State,
    gives_way: bool,
}

impl Incomplete {
    /// Returns the state of a connection that has no incomplete message.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { bytes: 0, since: now, unread: Duration::ZERO, state: State::Reads, gives_way: false }
    }

    /// The message has this many bytes now. Fewer than before: one was complete, and these belong to the next.
    pub fn resize(&mut self, now: Instant, bytes: u64) {
        if bytes < self.bytes || self.bytes == 0 {
            (self.since, self.unread) = (now, Duration::ZERO);
            match &mut self.state {
                State::Reads => {}
                State::Stopped { since } | State::Waits { since } => *since = now,
            }
        }
        self.bytes = bytes;
    }

    /// There is no memory for more of the message.
    pub fn wait(&mut self, now: Instant) {
        if !matches!(self.state, State::Waits { .. }) {
            self.unread = self.unread(now);
            self.state = State::Waits { since: now };
        }
    }

    /// There is memory. `reading`: the socket is read.
    pub fn go_on(&mut self, now: Instant, reading: bool) {
        self.unread = self.unread(now);
        self.state = if reading { State::Reads } else { State::Stopped { since: now } };
    }

    /// The connection is to end, so that its memory is free for others.
    pub fn give_way(&mut self) {
        self.gives_way = true;
    }

    /// Whether it is to end.
    #[must_use]
    pub fn gives_way(&self) -> bool {
        self.gives_way
    }

    fn unread(&self, now: Instant) -> Duration {
        match self.state {
            State::Reads => self.unread,
            State::Stopped { since } | State::Waits { since } => {
                self.unread.saturating_add(now.saturating_duration_since(since))
            }
        }
    }

    fn is_slow(&self, now: Instant) -> bool {
        let read = now.saturating_duration_since(self.since).saturating_sub(self.unread(now));
        // The product is below 2^64 for 18 hours.
        let due = u128::from(MIN_RATE) * read.as_millis() / 1000;
        matches!(self.state, State::Reads) && read >= PATIENCE && u128::from(self.bytes) < due
    }

    fn waits(&self) -> bool {
        matches!(self.state, State::Waits { .. })
    }

    fn has_waited(&self, now: Instant) -> Duration {
        match self.state {
            State::Waits { since } => now.saturating_duration_since(since),
            State::Reads | State::Stopped { .. } => Duration::ZERO,
        }
    }
}

/// What a connection does that needs memory for its incomplete message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<K> {
    /// It waits for memory, or for a second, and asks again.
    Wait,
    /// It takes what it needs, whatever its share is, if the limit has room for it.
    Take,
    /// This other connection gives way.
    GiveWay(K),
}

/// Returns what the connection `own` does, which needs memory and does not get it within its share. `all`: the
/// incomplete messages of all connections, with its own. `fits`: the limit has room for what it needs.
pub fn verdict<K: Copy + Ord>(now: Instant, own: K, all: &[(K, Incomplete)], fits: bool) -> Verdict<K> {
    let held = || all.iter().filter(|(_, message)| message.bytes > 0);
    if held().any(|(_, message)| message.gives_way) {
        return Verdict::Wait;
    }
    let waiting = all.iter().filter(|(_, message)| message.waits());
    let oldest = waiting.min_by_key(|(key, message)| (message.since, *key)).filter(|(key, _)| *key == own);
    if oldest.is_some() && fits {
        return Verdict::Take;
    }
    let largest = |(key, message): &&(K, Incomplete)| (message.bytes, *key);
    if let Some((key, _)) = held().filter(|(_, message)| message.is_slow(now)).max_by_key(largest) {
        return Verdict::GiveWay(*key);
    }
    let some_arrive = held().any(|(_, message)| message.state == State::Reads);
    let others = held().filter(|(key, _)| *key != own);
    // An application that is slow may go on. Messages that all wait for memory do not, however long they wait.
    let patience = if others.clone().all(|(_, message)| message.waits()) { Duration::ZERO } else { PATIENCE };
    match (oldest, others.max_by_key(largest)) {
        (Some((_, own)), Some((key, _))) if !some_arrive && own.has_waited(now) >= patience => {
            Verdict::GiveWay(*key)
        }
        _ => Verdict::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);

    #[allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn start() -> Instant {
        Instant::now()
    }

    fn message(start: Instant, bytes: u64) -> Incomplete {
        let mut message = Incomplete::new(start);
        message.resize(start, bytes);
        message
    }

    #[test]
    fn the_largest_of_the_slow_ones_gives_way_after_its_time() {
        let start = start();
        let mut own = message(start, MIB);
        own.wait(start);
        let all =
            [(0, own), (1, message(start, 4 * MIB)), (2, message(start, MIB)), (3, message(start, 16 * MIB))];
        // After 5 s a message must have 1.25 MiB, after 17 s 4.25 MiB.
        let table = [
            (4 * SECOND, Verdict::Wait),
            (5 * SECOND, Verdict::GiveWay(2)),
            (17 * SECOND, Verdict::GiveWay(1)),
            (65 * SECOND, Verdict::GiveWay(3)),
        ];
        for (after, expected) in table {
            assert_eq!(verdict(start + after, 0, &all, false), expected, "{after:?}");
        }
    }

    #[test]
    fn one_that_gives_way_is_waited_for() {
        let start = start();
        let mut own = message(start, MIB);
        own.wait(start);
        let mut leaving = message(start, 2 * MIB);
        leaving.give_way();
        let mut all = [(0, own), (1, leaving), (2, message(start, MIB))];
        let later = start + 60 * SECOND;
        assert_eq!(verdict(later, 0, &all, false), Verdict::Wait);
        all[1].1.resize(later, 0);
        assert_eq!(verdict(later, 0, &all, false), Verdict::GiveWay(2), "its memory is free");
    }

    #[test]
    fn time_in_which_we_did_not_read_does_not_count() {
        let start = start();
        let mut own = message(start, MIB);
        own.wait(start);
        for stop in [
            |message: &mut Incomplete, at| message.go_on(at, false),
            |message: &mut Incomplete, at| message.wait(at),
        ] {
            let mut other = message(start, MIB);
            stop(&mut other, start + SECOND);
            other.go_on(start + 60 * SECOND, true);
            for (after, expected) in [(63, Verdict::Wait), (64, Verdict::GiveWay(1))] {
                let all = [(0, own), (1, other)];
                assert_eq!(verdict(start + after * SECOND, 0, &all, false), expected, "{after}");
            }
        }
    }

    /// A peer that sends large messages without a pause always has an incomplete one.
    #[test]
    fn each_message_has_its_own_time() {
        let start = start();
        let mut own = message(start, MIB);
        own.wait(start);
        let mut busy = message(start, MIB);
        for second in 1..60 {
            busy.resize(start + second * SECOND, MIB / 2);
            busy.resize(start + second * SECOND + SECOND / 2, MIB);
            assert_eq!(
                verdict(start + second * SECOND + SECOND / 2, 0, &[(0, own), (1, busy)], false),
                Verdict::Wait
            );
        }
    }

    #[test]
    fn of_those_that_wait_for_each_other_one_goes_on() {
        let start = start();
        let waits = |bytes, since| {
            let mut message = message(start + since, bytes);
            message.wait(start + since);
            message
        };
        let mut stopped = message(start, 3 * MIB);
        stopped.go_on(start, false);
        let all = [
            (0, waits(MIB, 2 * SECOND)),
            (1, waits(6 * MIB, SECOND)),
            (2, waits(2 * MIB, 3 * SECOND)),
            (3, stopped),
        ];
        // who asks, whether it fits, when → what it does.
        let table = [
            (0, true, 4, Verdict::Wait),
            (1, true, 4, Verdict::Take),
            (2, true, 4, Verdict::Wait),
            (1, false, 4, Verdict::Wait),
            (1, false, 6, Verdict::GiveWay(3)),
            (0, false, 60, Verdict::Wait),
        ];
        for (own, fits, after, expected) in table {
            assert_eq!(verdict(start + after * SECOND, own, &all, fits), expected, "{own} {fits} {after}");
        }
        assert_eq!(verdict(start + 60 * SECOND, 1, &all[1..2], false), Verdict::Wait, "there is no other");
    }

    /// Thirty peers that all send the largest message again and again, with a limit of four: some always go on.
    #[test]
    fn somebody_always_goes_on() {
        const LIMIT: u64 = 64 * MIB;
        let start = start();
        let mut all: Vec<_> = (0..30).map(|key| (key, Incomplete::new(start))).collect();
        let (mut complete, mut ended) = (0, 0);
        for tick in 0..600_u32 {
            let now = start + tick * SECOND / 2;
            for index in 0..all.len() {
                let used: u64 = all.iter().map(|(_, message)| message.bytes).sum();
                let (key, mut message) = all[index];
                // Every third sends 16 KiB a second, the others 2 MiB.
                let piece = if key % 3 == 0 { 8 << 10 } else { MIB };
                let fits = used + piece <= LIMIT;
                let mut goes_on = used + piece <= LIMIT * 3 / 4;
                if !goes_on {
                    all[index].1.wait(now);
                    match verdict(now, key, &all, fits) {
                        Verdict::Take => goes_on = true,
                        Verdict::GiveWay(other) => {
                            all[other] = (other, Incomplete::new(now));
                            ended += 1;
                        }
                        Verdict::Wait => {}
                    }
                    message = all[index].1;
                }
                if goes_on {
                    message.go_on(now, true);
                    message.resize(now, message.bytes + piece);
                    if message.bytes >= 16 * MIB {
                        message.resize(now, 0);
                        complete += 1;
                    }
                    all[index].1 = message;
                }
            }
        }
        // The oldest needs 8 s for its message, so 37 at most can be complete one after the other.
        assert!(complete >= 30 && ended > 10, "{complete} were complete, {ended} gave way");
    }
}
