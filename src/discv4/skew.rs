//! The error of our clock, by the expiration times in others' packets.
//!
//! A wrong clock stops discv4 without a message (go-ethereum#14717, #20498): we drop all packets of others as expired,
//! or they drop ours. Honest packets expire some 20 s (geth) to 60 s after they are sent. When the median over many
//! networks lies in our past, our clock is ahead; when it lies minutes in our future, our clock is behind. One subnet
//! has one vote, so that a single sender cannot make us doubt our clock.

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::packet::expiration::LIFETIME;
use crate::node::endpoint::Subnet;

/// How many votes are held; the verdict needs all of them.
const VOTES: usize = 16;
/// How old a vote may be.
const MAX_AGE: Duration = Duration::from_secs(10 * 60);
/// The shortest time between two reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// The shortest time between two recoveries of keys that are spent on expired packets, which are otherwise dropped
/// unrecovered.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Expirations further ahead than any implementation's, in seconds: we are behind.
const TOO_FAR_AHEAD: i64 = 120;

/// The votes.
#[derive(Debug, Default)]
pub struct Skew {
    /// Seconds by which a packet's expiration lay ahead of our clock, oldest first.
    votes: VecDeque<(Instant, Subnet, i64)>,
    sampled: Option<Instant>,
    reported: Option<Instant>,
}

impl Skew {
    /// Whether an expired packet is worth the recovery of its key now.
    pub fn wants_expired(&mut self, now: Instant) -> bool {
        let wants = self.sampled.is_none_or(|at| now.saturating_duration_since(at) >= SAMPLE_INTERVAL);
        if wants {
            self.sampled = Some(now);
        }
        wants
    }

    /// A packet that its sender signed expires this many seconds ahead of our clock. Returns by how many seconds our
    /// clock is ahead (negative: behind) if that is certain enough and was not reported recently.
    pub fn vote(&mut self, now: Instant, from: IpAddr, seconds_ahead: i64) -> Option<i64> {
        let subnet = Subnet::wide(from);
        let fresh = |at: Instant| now.saturating_duration_since(at) < MAX_AGE;
        self.votes.retain(|(at, voter, _)| fresh(*at) && *voter != subnet);
        self.votes.push_back((now, subnet, seconds_ahead));
        if self.votes.len() > VOTES {
            self.votes.pop_front();
        }
        if self.votes.len() < VOTES
            || self.reported.is_some_and(|at| now.duration_since(at) < REPORT_INTERVAL)
        {
            return None;
        }
        let mut seconds: Vec<i64> = self.votes.iter().map(|(_, _, seconds)| *seconds).collect();
        seconds.sort_unstable();
        let median = *seconds.get(VOTES / 2)?;
        if (0..=TOO_FAR_AHEAD).contains(&median) {
            return None;
        }
        self.reported = Some(now);
        Some(LIFETIME.as_secs().cast_signed().saturating_sub(median))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_networks_convince_one_does_not() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let ip = |n: u8| IpAddr::from([n, 1, 1, 1]);
        let mut skew = Skew::default();
        for _ in 0..100 {
            assert_eq!(skew.vote(now, ip(1), -1_000), None, "one network");
        }
        for n in 2..16 {
            assert_eq!(skew.vote(now, ip(n), -40), None);
        }
        assert_eq!(skew.vote(now, ip(16), -40), Some(60), "we are a minute ahead");
        assert_eq!(skew.vote(now, ip(17), -40), None, "reported once");
        let later = now + REPORT_INTERVAL;
        for n in 1..16 {
            assert_eq!(skew.vote(later, ip(n), 600), None, "old votes have expired");
        }
        assert_eq!(skew.vote(later, ip(16), 600), Some(-580), "we are ten minutes behind");
        let mut right = Skew::default();
        for n in 0..200 {
            assert_eq!(right.vote(now, ip(n), if n % 3 == 0 { -500 } else { 20 + i64::from(n % 40) }), None);
        }
    }

    #[test]
    fn expired_packets_cost_one_recovery_a_second() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut skew = Skew::default();
        let wanted = (0..10_000).filter(|n| skew.wants_expired(now + Duration::from_millis(*n))).count();
        assert_eq!(wanted, 10);
    }
}
