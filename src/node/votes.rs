//! Endpoint votes: the address that other nodes see for us, and when we use it.
//!
//! Every PONG contains the address from which its PING came. One sender may lie, or may be on our side of the address
//! translation, so an endpoint is used when ten agreed on it within five minutes. Senders in one network count once: an
//! attacker with one /24 has one vote, however many nodes run there.
//!
//! Left out: whether a statement answers us. The engines pass only statements of nodes in their tables that answer our
//! own packets; an unrequested packet is no vote.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::endpoint::{Subnet, canonical, may_relay};

/// How many networks must agree: 10, as in go-ethereum.
const QUORUM: usize = 10;

/// How long a statement counts: 5 minutes, as in go-ethereum.
const WINDOW: Duration = Duration::from_secs(5 * 60);

/// How many networks are remembered. Two protocols that each ping a node every two seconds get statements from 300 in a
/// window. When the map is full, the oldest statement is dropped.
const MAX_VOTES: usize = 512;

/// The statements about our address in one address family.
#[derive(Debug, Default)]
pub struct EndpointVotes {
    votes: HashMap<Subnet, Vote>,
    /// The order in which statements expire. An entry whose time differs from its vote's was replaced by a newer one.
    order: VecDeque<(Instant, Subnet)>,
    winner: Option<SocketAddr>,
}

#[derive(Debug)]
struct Vote {
    observed: SocketAddr,
    at: Instant,
}

impl EndpointVotes {
    /// Counts that the node at `teller` sees us at `observed`. Returns whether the winner has changed.
    ///
    /// A statement that cannot be true is not counted: an address of the other family, one without a port, and one that
    /// the sender cannot have seen (a private address, from a sender on the Internet).
    pub fn add(&mut self, now: Instant, teller: IpAddr, observed: SocketAddr) -> bool {
        let observed = SocketAddr::new(canonical(observed.ip()), observed.port());
        let same_family = canonical(teller).is_ipv4() == observed.is_ipv4();
        if !same_family || observed.port() == 0 || !may_relay(teller, observed.ip()) {
            return false;
        }
        self.expire(now);
        let network = Subnet::wide(teller);
        if !self.votes.contains_key(&network) && self.votes.len() >= MAX_VOTES {
            self.drop_oldest();
        }
        // At one instant a network gets one entry in the queue.
        if self.votes.insert(network, Vote { observed, at: now }).is_none_or(|before| before.at != now) {
            self.order.push_back((now, network));
        }
        // A network that repeats its statement leaves its earlier entries in the queue; they are removed before the
        // queue grows large.
        if self.order.len() > 2 * MAX_VOTES {
            let votes = &self.votes;
            self.order.retain(|(at, network)| votes.get(network).is_some_and(|vote| vote.at == *at));
        }
        self.elect()
    }

    /// The endpoint that is used. It stays until another one wins, so that an hour without statements does not remove
    /// it.
    #[must_use]
    pub fn winner(&self) -> Option<SocketAddr> {
        self.winner
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW) {
            self.drop_oldest();
        }
    }

    /// Removes the oldest statement. Queue entries before it that were replaced by newer ones are removed with it.
    fn drop_oldest(&mut self) {
        while let Some((at, network)) = self.order.pop_front() {
            if self.votes.get(&network).is_some_and(|vote| vote.at == at) {
                self.votes.remove(&network);
                return;
            }
        }
    }

    /// Counts the votes and updates the winner. At most [`MAX_VOTES`] are counted, which takes a few microseconds, and
    /// only after an answer to a packet of ours.
    fn elect(&mut self) -> bool {
        let mut counts: HashMap<SocketAddr, usize> = HashMap::new();
        for vote in self.votes.values() {
            *counts.entry(vote.observed).or_default() += 1;
        }
        let holder = self.winner.and_then(|addr| counts.get(&addr).copied()).unwrap_or(0);
        // On a tie the winner stays. Between new addresses the larger one wins, so that the order of the hash map has
        // no influence.
        let best = counts.into_iter().max_by_key(|(addr, count)| (*count, *addr));
        match best {
            Some((addr, count)) if count >= QUORUM && count > holder => {
                let changed = self.winner != Some(addr);
                self.winner = Some(addr);
                changed
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[expect(clippy::disallowed_methods, reason = "virtual time needs a beginning")]
    fn start() -> Instant {
        Instant::now()
    }

    fn teller(network: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(8, 8, network, 1))
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ten_networks_decide() {
        let (mut votes, now) = (EndpointVotes::default(), start());
        for network in 0..9 {
            assert!(!votes.add(now, teller(network), addr("1.2.3.4:30303")));
        }
        assert_eq!(votes.winner(), None);
        assert!(votes.add(now, teller(9), addr("1.2.3.4:30303")));
        assert!(!votes.add(now, teller(10), addr("1.2.3.4:30303")), "the same winner is no news");
        assert_eq!(votes.winner(), Some(addr("1.2.3.4:30303")));
    }

    #[test]
    fn a_network_votes_once() {
        let (mut votes, now) = (EndpointVotes::default(), start());
        for host in 0..255 {
            votes.add(now, IpAddr::V4(Ipv4Addr::new(8, 8, 8, host)), addr("1.2.3.4:30303"));
        }
        for host in 0..255u16 {
            let teller = std::net::Ipv6Addr::new(0x2a00, 1, 2, host, 0, 0, 0, 1);
            votes.add(now, teller.into(), addr("[2a00:9::1]:30303"));
        }
        assert_eq!((votes.votes.len(), votes.winner()), (2, None));
    }

    #[test]
    fn statements_run_out_but_the_winner_stays_until_another_wins() {
        let (mut votes, now) = (EndpointVotes::default(), start());
        (0..10).for_each(|network| {
            votes.add(now, teller(network), addr("1.2.3.4:30303"));
        });
        let later = now + WINDOW + SECOND;
        for network in 0..9 {
            assert!(!votes.add(later, teller(network), addr("1.2.3.5:30303")));
            assert_eq!(votes.winner(), Some(addr("1.2.3.4:30303")));
        }
        assert_eq!(votes.votes.len(), 9, "the first ten ran out");
        assert!(votes.add(later, teller(9), addr("1.2.3.5:30303")));
        assert_eq!(votes.winner(), Some(addr("1.2.3.5:30303")));
    }

    #[test]
    fn nine_in_one_window_and_one_in_the_next_do_not_add_up() {
        let (mut votes, now) = (EndpointVotes::default(), start());
        (0..9).for_each(|network| {
            votes.add(now, teller(network), addr("1.2.3.4:30303"));
        });
        assert!(!votes.add(now + WINDOW + SECOND, teller(9), addr("1.2.3.4:30303")));
        assert_eq!(votes.votes.len(), 1);
    }

    #[test]
    fn a_tie_changes_nothing() {
        let (mut votes, now) = (EndpointVotes::default(), start());
        (0..10).for_each(|network| {
            votes.add(now, teller(network), addr("1.2.3.4:1"));
        });
        (10..20).for_each(|network| assert!(!votes.add(now, teller(network), addr("1.2.3.4:2"))));
        assert_eq!(votes.winner(), Some(addr("1.2.3.4:1")));
        assert!(votes.add(now, teller(20), addr("1.2.3.4:2")), "one more decides");
    }

    #[test]
    fn what_cannot_be_true_is_not_counted() {
        let (mut votes, now) = (EndpointVotes::default(), start());
        let table = [
            ("8.8.8.8", "10.0.0.1:30303"),  // a private address, seen from the Internet
            ("8.8.8.8", "127.0.0.1:30303"), // loopback, seen from the Internet
            ("8.8.8.8", "0.0.0.0:30303"),   // unspecified
            ("8.8.8.8", "224.0.0.1:30303"), // multicast
            ("8.8.8.8", "1.2.3.4:0"),       // no port
            ("8.8.8.8", "[2a00::1]:30303"), // the other family
            ("2a00::1", "1.2.3.4:30303"),   // the other family
        ];
        for (teller, observed) in table {
            assert!(!votes.add(now, teller.parse().unwrap(), addr(observed)));
            assert!(votes.votes.is_empty(), "{teller} {observed}");
        }
        votes.add(now, "::ffff:8.8.8.8".parse().unwrap(), addr("[::ffff:1.2.3.4]:30303"));
        assert_eq!(votes.votes.len(), 1, "mapped addresses are the IPv4 addresses they are");
    }

    #[test]
    fn memory_is_bounded() {
        let (mut votes, mut now) = (EndpointVotes::default(), start());
        for network in 0..20_000u32 {
            now += Duration::from_millis(1);
            let teller = Ipv4Addr::from(0x0900_0001 + ((network % 3_000) << 8));
            votes.add(now, teller.into(), addr("1.2.3.4:1"));
            assert!(votes.votes.len() <= MAX_VOTES && votes.order.len() <= 2 * MAX_VOTES + 1);
        }
        // One network that repeats its statement does not make the queue grow either.
        for _ in 0..5_000 {
            now += Duration::from_millis(1);
            votes.add(now, teller(1), addr("1.2.3.4:1"));
        }
        assert!(votes.order.len() <= 2 * MAX_VOTES + 1, "{}", votes.order.len());
    }
}
