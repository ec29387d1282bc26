//! The WHOAREYOUs that we sent and that are not answered yet.
//!
//! A challenge lives one second. The next unreadable packet of the same peer gets it again, byte for byte, as the
//! specification asks for: a node whose first packet crossed with another one answers either. But a WHOAREYOU names the
//! packet that it answers, and a node ignores one that names a packet of somebody else. An attacker that forges a node's
//! packets would thus lock it out. So a challenge is repeated once, and after that each further packet gets a challenge
//! of its own; a peer has up to [`MAX_PENDING`] of them.
//!
//! All of them are removed with the first handshake, good or bad, so they cost us at most one round of elliptic-curve
//! arithmetic and a check of the proof against each. The number of peers with challenges is limited, because finishing
//! a handshake costs about 0.15 ms of arithmetic, and each one begins with a challenge of ours
//! ([`crate::node::ration`]).
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
    header::{ChallengeData, Nonce},
    peer::{Peer, PeerStore},
    session::MAX_PER_SUBNET,
};
use crate::node::{
    Record,
    ration::{Rate, SubnetRations},
};

/// How long a challenge may be answered (geth: 1 s).
pub const LIFETIME: Duration = Duration::from_secs(1);
/// The most challenges of one peer at a time. An attacker that sends fewer forged packets than this in a round trip to
/// the node does not push the node's own challenge out.
const MAX_PENDING: usize = 4;
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

/// One WHOAREYOU.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// The nonce of the packet that it answers.
    nonce: Nonce,
    /// The WHOAREYOU before masking.
    data: ChallengeData,
    expires: Instant,
    repeated: bool,
}

/// The challenges of one peer.
#[derive(Clone, Debug)]
pub struct Challenge {
    /// The peer's record as we had it then; each WHOAREYOU carried its sequence number.
    pub record: Option<Record>,
    /// Oldest first, at least one.
    pending: Vec<Pending>,
}

impl Challenge {
    /// The WHOAREYOUs before masking, of which a handshake answers one.
    pub fn data(&self) -> impl Iterator<Item = &ChallengeData> {
        self.pending.iter().map(|pending| &pending.data)
    }

    fn expires(&self) -> Option<Instant> {
        self.pending.last().map(|newest| newest.expires)
    }
}

/// The reply to an unreadable packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The peer has no challenge.
    New,
    /// This challenge again.
    Repeat(ChallengeData),
    /// One more challenge, with the sequence number of the same record.
    Another {
        /// That sequence number; 0 without a record.
        seq: u64,
    },
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

    /// The reply to an unreadable packet of `peer` with this nonce.
    pub fn reply(&mut self, peer: &Peer, nonce: &Nonce, now: Instant) -> Reply {
        let Some(challenge) = self.stored(peer) else { return Reply::New };
        challenge.pending.retain(|pending| pending.expires > now);
        if let Some(same) = challenge.pending.iter().find(|pending| pending.nonce == *nonce) {
            return Reply::Repeat(same.data);
        }
        match challenge.pending.last_mut() {
            None => Reply::New,
            Some(newest) if !newest.repeated => {
                newest.repeated = true;
                Reply::Repeat(newest.data)
            }
            Some(_) => Reply::Another { seq: challenge.record.as_ref().map_or(0, Record::seq) },
        }
    }

    /// Stores one more challenge of a peer that has some. The oldest is dropped if there are too many.
    pub fn add(&mut self, peer: &Peer, nonce: Nonce, data: ChallengeData, now: Instant) {
        let Some(challenge) = self.stored(peer) else { return };
        if challenge.pending.len() >= MAX_PENDING {
            challenge.pending.remove(0);
        }
        challenge.pending.push(Pending { nonce, data, expires: now + LIFETIME, repeated: true });
    }

    fn stored(&mut self, peer: &Peer) -> Option<&mut Challenge> {
        let Self { strangers, known } = self;
        known.store.get_mut(peer).or_else(|| strangers.store.get_mut(peer))
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
        (nonce, data): (Nonce, ChallengeData),
        record: Option<Record>,
        now: Instant,
    ) {
        let store = &mut self.class(standing).store;
        // Challenges expire nearly in the order in which they were used. Up to two expired ones are removed for each new
        // one, so no sweep is needed.
        for _ in 0..2 {
            let is_over = |oldest: &Challenge| oldest.expires().is_none_or(|expires| expires <= now);
            let expired = store.oldest().filter(|(_, oldest)| is_over(oldest)).map(|(peer, _)| *peer);
            expired.map(|peer| store.remove(&peer));
        }
        let pending = vec![Pending { nonce, data, expires: now + LIFETIME, repeated: false }];
        store.insert(peer, Challenge { record, pending }, false);
    }

    /// Takes the challenges of which `peer` answers one. They cannot be answered twice.
    pub fn take(&mut self, peer: &Peer, now: Instant) -> Option<Challenge> {
        let mut stored = self.known.store.remove(peer).or_else(|| self.strangers.store.remove(peer))?;
        stored.pending.retain(|pending| pending.expires > now);
        (!stored.pending.is_empty()).then_some(stored)
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
        let (nonce, data) = ([1; 12], [7; CHALLENGE_DATA]);
        let mut challenges = Challenges::default();
        for standing in [Standing::Stranger, Standing::Known] {
            challenges.insert(a, standing, (nonce, data), None, now);
            assert_eq!(challenges.reply(&b, &nonce, now), Reply::New, "another endpoint");
            let almost = now + LIFETIME - Duration::from_millis(1);
            assert_eq!(challenges.reply(&a, &nonce, almost), Reply::Repeat(data));
            assert_eq!(challenges.take(&a, almost).unwrap().data().collect::<Vec<_>>(), [&data]);
            assert!(challenges.take(&a, almost).is_none());
            challenges.insert(a, standing, (nonce, data), None, now);
            assert!(challenges.take(&a, now + LIFETIME).is_none());
            challenges.insert(a, standing, (nonce, data), None, now);
            assert_eq!(challenges.reply(&a, &nonce, now + LIFETIME), Reply::New);
        }
    }

    #[test]
    fn each_packet_after_the_second_gets_a_challenge_of_its_own() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let a = peer(1, "1.2.3.4:5");
        let mut challenges = Challenges::default();
        challenges.insert(a, Standing::Stranger, ([1; 12], [1; CHALLENGE_DATA]), None, now);
        assert_eq!(challenges.reply(&a, &[2; 12], now), Reply::Repeat([1; CHALLENGE_DATA]), "once");
        for n in 3..8 {
            assert_eq!(challenges.reply(&a, &[n; 12], now), Reply::Another { seq: 0 });
            challenges.add(&a, [n; 12], [n; CHALLENGE_DATA], now + Duration::from_millis(100));
            assert_eq!(challenges.reply(&a, &[n; 12], now), Reply::Repeat([n; CHALLENGE_DATA]), "replayed");
        }
        let kept: Vec<u8> = challenges.take(&a, now + LIFETIME).unwrap().data().map(|data| data[0]).collect();
        assert_eq!(kept, [4, 5, 6, 7]);
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
                challenges.insert(peer, Standing::Stranger, ([0; 12], [0; CHALLENGE_DATA]), None, now);
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
