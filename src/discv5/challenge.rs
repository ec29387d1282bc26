//! The WHOAREYOUs that we sent and that are not answered yet.
//!
//! A challenge is valid for one second. In this time further unreadable packets of the same peer get the same
//! challenge again, byte for byte: an attacker who writes in a node's name cannot replace the challenge that this
//! node is about to answer. It is gone with the first handshake that names it, good or bad, so each costs us at most
//! one round of elliptic-curve arithmetic; how many are made is rationed: finishing a handshake costs about
//! 0.15 ms of arithmetic, and each one begins with a challenge of ours ([`crate::node::ration`]).
//!
//! Peers with whom we have a session, or whom the table holds at that endpoint, have a ration and a store of their
//! own. So a flood in an honest node's name neither ends its session nor keeps it from making a new one.
//!
//! Source: devp2p, discv5/discv5-theory.md, "Handshake"; devp2p#278 for the repetition.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use super::{
    header::ChallengeData,
    peer::{Peer, PeerStore},
    session::MAX_PER_SUBNET,
};
use crate::node::{
    Record,
    ration::{Rate, SubnetRations},
};

/// How long a challenge may be answered (geth: 1 s).
pub const LIFETIME: Duration = Duration::from_secs(1);
/// The most challenges made per second for strangers: if all are answered, 0.15 s of arithmetic.
pub const STRANGERS_PER_SECOND: u32 = 1024;
/// The most challenges made per second for strangers of one subnet.
const SUBNET_PER_SECOND: u32 = 16;
/// The most challenges made per second for known peers of one subnet: one for each session it can have.
const KNOWN_SUBNET_PER_SECOND: u32 = 2 * MAX_PER_SUBNET as u32;
/// The most subnets whose rations are stored, about 0.4 MB.
const MAX_SUBNETS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Room for the challenges of one lifetime: a full burst, and as much again that comes meanwhile.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(2 * STRANGERS_PER_SECOND as usize).unwrap();

/// One challenge.
#[derive(Clone, Debug)]
pub struct Challenge {
    /// The WHOAREYOU before masking.
    pub data: ChallengeData,
    /// The peer's record as we knew it then, whose sequence number the WHOAREYOU told.
    pub record: Option<Record>,
    expires: Instant,
}

/// Whether a peer is known: by a session, or by the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Neither.
    Stranger,
    /// Challenges of strangers do not replace its challenge.
    Known,
}

#[derive(Debug)]
struct Class {
    store: PeerStore<Challenge>,
    rations: SubnetRations,
}

/// The challenges that wait for their answers.
#[derive(Debug)]
pub struct Challenges {
    strangers: Class,
    known: Class,
}

impl Default for Challenges {
    fn default() -> Self {
        Self::new(STRANGERS_PER_SECOND)
    }
}

impl Challenges {
    /// No challenges; strangers may cause so many per second, at most [`STRANGERS_PER_SECOND`].
    #[must_use]
    pub fn new(strangers_per_second: u32) -> Self {
        let class = |per_subnet, in_all| Class {
            store: PeerStore::new(CAPACITY),
            rations: SubnetRations::new(Rate::per_second(per_subnet), Rate::per_second(in_all), MAX_SUBNETS),
        };
        Self {
            strangers: class(SUBNET_PER_SECOND, strangers_per_second.min(STRANGERS_PER_SECOND)),
            known: class(KNOWN_SUBNET_PER_SECOND, STRANGERS_PER_SECOND),
        }
    }

    /// How many are stored; some may have expired.
    #[must_use]
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.strangers.store.len() + self.known.store.len()
    }

    /// The challenge that `peer` has not answered yet.
    #[must_use]
    pub fn pending(&self, peer: &Peer, now: Instant) -> Option<&Challenge> {
        let stored = self.known.store.peek(peer).or_else(|| self.strangers.store.peek(peer));
        stored.filter(|challenge| challenge.expires > now)
    }

    /// Whether one more may be made for `peer`; if so, it is taken from the ration.
    pub fn ration(&mut self, peer: &Peer, standing: Standing, now: Instant, exempt: bool) -> bool {
        self.class(standing).rations.take(now, peer.addr.ip(), exempt)
    }

    /// Stores the challenge that was made for `peer`.
    pub fn insert(
        &mut self,
        peer: Peer,
        standing: Standing,
        data: ChallengeData,
        record: Option<Record>,
        now: Instant,
    ) {
        let store = &mut self.class(standing).store;
        // Challenges expire in the order in which they came. Two go for each that comes: no sweep is needed.
        for _ in 0..2 {
            let expired = store.oldest().filter(|(_, oldest)| oldest.expires <= now).map(|(peer, _)| *peer);
            expired.map(|peer| store.remove(&peer));
        }
        store.insert(peer, Challenge { data, record, expires: now + LIFETIME }, false);
    }

    /// Takes the challenge that `peer` answers. It cannot be answered twice.
    pub fn take(&mut self, peer: &Peer, now: Instant) -> Option<Challenge> {
        let stored = self.known.store.remove(peer).or_else(|| self.strangers.store.remove(peer))?;
        (stored.expires > now).then_some(stored)
    }

    fn class(&mut self, standing: Standing) -> &mut Class {
        match standing {
            Standing::Stranger => &mut self.strangers,
            Standing::Known => &mut self.known,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{discv5::header::CHALLENGE_DATA, node::NodeId};

    fn peer(id: u8, addr: &str) -> Peer {
        Peer::new(NodeId([id; 32]), addr.parse().unwrap())
    }

    #[test]
    fn one_second_one_answer() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let (a, b) = (peer(1, "1.2.3.4:5"), peer(1, "1.2.3.4:6"));
        let mut challenges = Challenges::default();
        for standing in [Standing::Stranger, Standing::Known] {
            challenges.insert(a, standing, [7; CHALLENGE_DATA], None, now);
            assert!(challenges.pending(&a, now).is_some());
            assert!(challenges.pending(&b, now).is_none(), "another endpoint");
            let almost = now + LIFETIME - Duration::from_millis(1);
            assert_eq!(challenges.pending(&a, almost).map(|c| c.data), Some([7; CHALLENGE_DATA]));
            assert!(challenges.pending(&a, now + LIFETIME).is_none());
            assert!(challenges.take(&a, almost).is_some());
            assert!(challenges.take(&a, almost).is_none());
            challenges.insert(a, standing, [7; CHALLENGE_DATA], None, now);
            assert!(challenges.take(&a, now + LIFETIME).is_none());
        }
    }

    #[test]
    fn a_flood_is_bounded_and_leaves_known_peers_alone() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let mut now = Instant::now();
        let mut challenges = Challenges::default();
        let (mut made, mut refused) = (0_u32, 0_u32);
        for index in 0..100_000_u32 {
            let [a, b, c, d] = index.wrapping_mul(2_654_435_761).to_be_bytes();
            let peer = peer(1, &format!("{a}.{b}.{c}.{d}:9"));
            if challenges.ration(&peer, Standing::Stranger, now, false) {
                challenges.insert(peer, Standing::Stranger, [0; CHALLENGE_DATA], None, now);
                made += 1;
            } else {
                refused += 1;
            }
            now += Duration::from_micros(20);
        }
        // Two seconds at 1,024 a second, and the burst at the start.
        assert!((3 * 1024 - 2..=3 * 1024 + 2).contains(&made), "{made} made, {refused} refused");
        assert!(challenges.len() <= CAPACITY.get());
        let known = peer(2, "1.2.3.4:5");
        assert!(challenges.ration(&known, Standing::Known, now, false));
    }
}
