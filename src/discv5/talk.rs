//! TALKREQs of other nodes that wait for our applications.
//!
//! Each waits under a token until its application answers, or until the time is up: the asker waits 700 ms, so that an
//! answer after half a second may still arrive. Then, or when too many wait already, the asker gets the empty TALKRESP
//! that the specification gives to protocols that are not served.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    time::{Duration, Instant},
};

use super::{header::MAX_MESSAGE, message::RequestId, peer::Peer};
use crate::node::{NodeId, endpoint::Subnet};

/// The longest time that an application may take for its answer.
pub const ANSWER_TIME: Duration = Duration::from_millis(500);
/// The most requests that wait for applications (geth: 1024).
pub const MAX_OUTSTANDING: usize = 1024;
/// The most requests of one node that wait. A node that sends one request at a time has one.
pub const MAX_PER_NODE: usize = 16;

/// The most of one network (IPv4 /24, IPv6 /64): ids cost nothing.
pub const MAX_PER_SUBNET: usize = 32;

/// The most bytes that an application may answer to a TALKREQ, so that the TALKRESP fits a packet. The packet also has
/// the type byte, the list's header, the request id with its header, and the header of the response.
pub const MAX_TALK_RESPONSE: usize = MAX_MESSAGE - (1 + 3 + 9 + 3);

/// Why an answer to a TALKREQ was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TalkError {
    /// The asker has got an empty answer already, or can no longer be reached.
    #[error("the time to answer this TALKREQ is up")]
    Expired,
    /// The answer does not fit into a packet. It may be tried again with a shorter one.
    #[error("the response has {0} bytes; a packet has room for {1}")]
    TooLarge(usize, usize),
}

/// Names a TALKREQ that waits for its answer. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TalkToken(pub u64);

/// A TALKREQ that waits: the recipient and the id of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The peer that asked.
    pub peer: Peer,
    /// The id that the answer repeats.
    pub id: RequestId,
}

/// What to do with a TALKREQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It waits for its application.
    Waits(TalkToken),
    /// No application serves the protocol.
    Unknown,
    /// Too many wait.
    Full,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    deadline: Instant,
    asker: Asker,
    /// The network that it counts for, if it is not exempt.
    subnet: Option<Subnet>,
}

/// The protocols that are served, and the requests that wait.
#[derive(Debug, Default)]
pub struct TalkServer {
    protocols: HashSet<Vec<u8>>,
    /// By token: the order of tokens is that of deadlines.
    waiting: BTreeMap<TalkToken, Waiting>,
    per_node: HashMap<NodeId, usize>,
    /// Requests that are not exempt.
    per_subnet: HashMap<Subnet, usize>,
    next: u64,
}

impl TalkServer {
    /// Sets the protocols that applications serve.
    pub fn set_protocols(&mut self, protocols: impl IntoIterator<Item = Vec<u8>>) {
        self.protocols = protocols.into_iter().collect();
    }

    /// Takes a request in, if there is room. `exempt` frees it from the limit of its network.
    pub fn admit(&mut self, protocol: &[u8], asker: Asker, exempt: bool, now: Instant) -> Admission {
        if !self.protocols.contains(protocol) {
            return Admission::Unknown;
        }
        let of_node = self.per_node.get(&asker.peer.id).copied().unwrap_or(0);
        let subnet = (!exempt).then(|| Subnet::narrow(asker.peer.addr.ip()));
        let of_subnet = subnet.and_then(|subnet| self.per_subnet.get(&subnet)).copied().unwrap_or(0);
        if self.waiting.len() >= MAX_OUTSTANDING || of_node >= MAX_PER_NODE || of_subnet >= MAX_PER_SUBNET {
            return Admission::Full;
        }
        let token = TalkToken(self.next);
        self.next += 1;
        self.waiting.insert(token, Waiting { deadline: now + ANSWER_TIME, asker, subnet });
        self.per_node.insert(asker.peer.id, of_node + 1);
        if let Some(subnet) = subnet {
            self.per_subnet.insert(subnet, of_subnet + 1);
        }
        Admission::Waits(token)
    }

    /// Removes and returns the request that is answered now; `None` if its time is up.
    pub fn answer(&mut self, token: TalkToken) -> Option<Asker> {
        let Waiting { asker, subnet, .. } = self.waiting.remove(&token)?;
        count_off(&mut self.per_node, &asker.peer.id);
        if let Some(subnet) = subnet {
            count_off(&mut self.per_subnet, &subnet);
        }
        Some(asker)
    }

    /// Removes and returns the next request whose time is up.
    pub fn expired(&mut self, now: Instant) -> Option<(TalkToken, Asker)> {
        let (token, _) = self.waiting.first_key_value().filter(|(_, waiting)| waiting.deadline <= now)?;
        let token = *token;
        Some((token, self.answer(token)?))
    }

    /// When the next request's time is up.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(_, waiting)| waiting.deadline)
    }
}

fn count_off<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => *count -= 1,
        _ => drop(counts.remove(key)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn asker(id: u16) -> Asker {
        asker_at(id, [127, 0, 0, 1])
    }

    fn asker_at(id: u16, ip: [u8; 4]) -> Asker {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        let peer = Peer::new(NodeId(bytes), SocketAddr::from((ip, 5)));
        Asker { peer, id: RequestId::default() }
    }

    #[test]
    fn many_ids_of_one_network_have_the_share_of_a_network() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut talk = TalkServer::default();
        talk.set_protocols([b"p".to_vec()]);
        let mut waits =
            |id, ip| matches!(talk.admit(b"p", asker_at(id, ip), false, now), Admission::Waits(_));
        let taken = (0..300).filter(|id| waits(*id, [1, 2, 3, *id as u8])).count();
        assert_eq!(taken, MAX_PER_SUBNET);
        assert!(waits(400, [1, 2, 4, 1]), "another network");
        assert!(talk.answer(TalkToken(0)).is_some());
        assert!(
            matches!(talk.admit(b"p", asker_at(9, [1, 2, 3, 7]), false, now), Admission::Waits(_)),
            "one is answered"
        );
        while talk.expired(now + ANSWER_TIME).is_some() {}
        assert!(talk.per_subnet.is_empty());
    }

    #[test]
    fn bounded_per_node_and_in_all_and_empty_after() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut talk = TalkServer::default();
        assert_eq!(talk.admit(b"p", asker(1), true, now), Admission::Unknown);
        talk.set_protocols([b"p".to_vec()]);
        for _ in 0..MAX_PER_NODE {
            assert!(matches!(talk.admit(b"p", asker(1), true, now), Admission::Waits(_)));
        }
        assert_eq!(talk.admit(b"p", asker(1), true, now), Admission::Full);
        for node in 2..2000 {
            talk.admit(b"p", asker(node), true, now);
        }
        assert_eq!(talk.waiting.len(), MAX_OUTSTANDING);
        assert_eq!(talk.admit(b"p", asker(3000), true, now), Admission::Full);
        assert_eq!(talk.answer(TalkToken(0)), Some(asker(1)));
        assert_eq!(talk.answer(TalkToken(0)), None, "answered once");
        assert!(matches!(talk.admit(b"p", asker(1), true, now), Admission::Waits(_)));
        assert_eq!(talk.next_timeout(), Some(now + ANSWER_TIME));
        assert_eq!(talk.expired(now), None);
        let later = now + ANSWER_TIME;
        assert_eq!(std::iter::from_fn(|| talk.expired(later)).count(), MAX_OUTSTANDING);
        assert!(talk.waiting.is_empty() && talk.per_node.is_empty());
    }
}
