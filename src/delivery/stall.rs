//! What happens when a channel's queue is full: hold the peer for a while, then drop or disconnect.
//!
//! Holding means that the connection task stops reading the peer's socket, so that TCP slows the peer down. It holds
//! everything of that peer, pings and other capabilities too. So it is rationed per session: in any [`WINDOW`] at most
//! the registration's `stall_limit`, whatever the reader does; a reader that takes one message now and then cannot
//! stop the pings. It is not used at all where another application shares the connection (unless the operator allows
//! some), nor while the application is away: nobody would end the stall.

use std::time::{Duration, Instant};

/// Within any span of this length a session is stalled for at most the limit. geth reads with a 30 s timeout and
/// pings every 15 s: a limit of 5 s in 15 leaves every ping answered in time.
pub const WINDOW: Duration = Duration::from_secs(15);

/// The stall limit of a registration that names none.
pub const DEFAULT_STALL_LIMIT: Duration = Duration::from_secs(5);

/// The largest stall limit. geth gives a session up when a write takes 20 s; half of that leaves room for the network.
pub const MAX_STALL_LIMIT: Duration = Duration::from_secs(10);

/// A stall shorter than this is not worth a timer: the message is dropped at once instead.
const MIN_STALL: Duration = Duration::from_millis(50);

/// How many past stalls are remembered apart; older ones are joined, gaps between them counting as stalled.
const MAX_SPANS: usize = 8;

/// What a registration wants when a channel's queue is full for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// New messages of the channel are dropped and a gap stands in their place.
    DropAndReport,
    /// The peer is disconnected (reason 0x10).
    DisconnectPeer,
}

/// A registration's overflow policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverflowPolicy {
    /// For how long the peer's socket may be held, at most [`MAX_STALL_LIMIT`]; zero for never.
    pub stall_limit: Duration,
    /// What comes then.
    pub action: Action,
}

impl Default for OverflowPolicy {
    fn default() -> Self {
        Self { stall_limit: DEFAULT_STALL_LIMIT, action: Action::DropAndReport }
    }
}

/// Whether another application has a channel on the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// None has.
    Alone,
    /// One has; the operator allows stalls of this length nevertheless (`max_shared_stall`, by default zero).
    Shared(Duration),
}

/// What to do with a message that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Stop reading the peer until there is room, at most until then.
    Stall(Instant),
    /// Drop the message and report it.
    Drop,
    /// Disconnect the peer.
    Disconnect,
}

/// How long one session was stalled lately. One per session, whatever registrations its channels belong to.
#[derive(Debug, Default)]
pub struct Stalls {
    since: Option<Instant>,
    past: Vec<(Instant, Instant)>,
    total: Duration,
}

impl Stalls {
    /// Whether the session is stalled now.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.since.is_some()
    }

    /// How long this session was stalled over its life, stalls that still last not included.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.total
    }

    /// The connection reads again.
    pub fn end(&mut self, now: Instant) {
        let Some(since) = self.since.take() else { return };
        self.total = self.total.saturating_add(now.saturating_duration_since(since));
        self.past.retain(|(_, end)| now.saturating_duration_since(*end) < WINDOW);
        self.past.push((since, now));
        if let [(start, _), (_, end), ..] = *self.past.as_slice()
            && self.past.len() > MAX_SPANS
        {
            self.past.remove(0);
            if let Some(first) = self.past.first_mut() {
                *first = (start, end);
            }
        }
    }

    /// How much of the [`WINDOW`] that ends now the session was stalled.
    #[must_use]
    pub fn used(&self, now: Instant) -> Duration {
        let current = self.since.map(|since| (since, now));
        self.past.iter().copied().chain(current).fold(Duration::ZERO, |sum, (start, end)| {
            let age = now.saturating_duration_since(start).min(WINDOW);
            sum.saturating_add(age.saturating_sub(now.saturating_duration_since(end)))
        })
    }

    /// Stalls the session, or goes on stalling it, if `limit` allows; answers until when at most.
    fn begin(&mut self, now: Instant, limit: Duration) -> Option<Instant> {
        let left = limit.min(MAX_STALL_LIMIT).saturating_sub(self.used(now));
        let least = if self.since.is_some() { Duration::from_nanos(1) } else { MIN_STALL };
        if left < least {
            return None;
        }
        let until = now.checked_add(left)?;
        self.since.get_or_insert(now);
        Some(until)
    }
}

/// The overflow policy, applied to one message that does not fit.
///
/// `attached`: the application's stream is there. `forced`: memory of the whole process is short, so nothing waits.
#[must_use]
pub fn decide(
    now: Instant,
    policy: OverflowPolicy,
    attached: bool,
    forced: bool,
    sharing: Sharing,
    stalls: &mut Stalls,
) -> Decision {
    if !attached {
        return Decision::Drop;
    }
    let limit = match sharing {
        Sharing::Alone => policy.stall_limit,
        Sharing::Shared(allowed) => policy.stall_limit.min(allowed),
    };
    if !forced && let Some(until) = stalls.begin(now, limit) {
        return Decision::Stall(until);
    }
    match policy.action {
        Action::DropAndReport => Decision::Drop,
        Action::DisconnectPeer => Decision::Disconnect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn the_policy_as_a_table() {
        let now = Instant::now();
        let policy = |action| OverflowPolicy { stall_limit: 5 * SECOND, action };
        let (drop, disconnect) = (policy(Action::DropAndReport), policy(Action::DisconnectPeer));
        let (alone, shared) = (Sharing::Alone, Sharing::Shared(Duration::ZERO));
        let stall = |seconds| Decision::Stall(now + seconds * SECOND);
        // policy, attached, forced, sharing → decision
        let table = [
            (drop, true, false, alone, stall(5)),
            (disconnect, true, false, alone, stall(5)),
            (drop, true, false, Sharing::Shared(2 * SECOND), stall(2)),
            (drop, true, false, shared, Decision::Drop),
            (disconnect, true, false, shared, Decision::Disconnect),
            (drop, true, true, alone, Decision::Drop),
            (disconnect, true, true, alone, Decision::Disconnect),
            (drop, false, false, alone, Decision::Drop),
            (disconnect, false, false, alone, Decision::Drop),
            (disconnect, false, true, shared, Decision::Drop),
        ];
        for (policy, attached, forced, sharing, expected) in table {
            let got = decide(now, policy, attached, forced, sharing, &mut Stalls::default());
            assert_eq!(got, expected, "{policy:?} attached {attached} forced {forced} {sharing:?}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn a_trickling_reader_cannot_stop_the_pings() {
        let start = Instant::now();
        let mut stalls = Stalls::default();
        let mut now = start;
        let mut stalled = Vec::new(); // one entry for each tenth of a second
        let mut dropped = 0;
        for tick in 0..3_000 {
            match decide(now, OverflowPolicy::default(), true, false, Sharing::Alone, &mut stalls) {
                Decision::Stall(until) => {
                    assert!(until > now);
                    stalled.push(1);
                }
                Decision::Drop => {
                    stalls.end(now);
                    stalled.push(0);
                    dropped += 1;
                }
                Decision::Disconnect => panic!("not this policy"),
            }
            now += SECOND / 10;
            // The reader takes one message now and then.
            if tick % 7 == 0 {
                stalls.end(now);
            }
        }
        assert!(dropped > 0);
        for window in stalled.windows(150) {
            let sum: u32 = window.iter().sum();
            assert!(sum <= 51, "{sum} tenths of a second in 15 s");
        }
    }
}
