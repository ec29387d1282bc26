//! TALKREQs of other nodes that wait for our applications.
//!
//! Each waits under a token until its application answers, or until its time ends. The asker waits 700 ms, so an answer
//! after 500 ms may still arrive. When the time ends, or when too many wait already, the asker gets an empty TALKRESP,
//! which the specification prescribes for protocols that are not served.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{header::MAX_MESSAGE, message::RequestId, peer::Peer};
use crate::node::NodeId;

/// The longest time that an application may take for its answer.
pub const ANSWER_TIME: Duration = Duration::from_millis(500);
/// The most requests that wait for applications (geth: 1024).
pub const MAX_OUTSTANDING: usize = 1024;
/// The most requests of one node that wait. A node that sends one request at a time has one.
pub const MAX_PER_NODE: usize = 16;

/// The most bytes that an application may answer to a TALKREQ, so that the TALKRESP fits a packet. The rest
/// is the type byte, the list's header, the request id with its header, and the header of the response.
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

/// The recipient of the answer to a TALKREQ that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The peer that asked.
    pub peer: Peer,
    /// The id that the answer repeats.
    pub id: RequestId,
}

/// The decision on a TALKREQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It waits for its application.
    Waits(TalkToken),
    /// No application serves the protocol.
    Unknown,
    /// Too many wait.
    Full,
}

/// The protocols that are served, and the requests that wait.
#[derive(Debug, Default)]
pub struct TalkServer {
    protocols: HashSet<Vec<u8>>,
    /// By token: the order of tokens is that of deadlines.
    waiting: BTreeMap<TalkToken, (Instant, Asker)>,
    per_node: HashMap<NodeId, usize>,
    next: u64,
}

impl TalkServer {
    /// Sets the protocols that applications serve.
    pub fn set_protocols(&mut self, protocols: impl IntoIterator<Item = Vec<u8>>) {
        self.protocols = protocols.into_iter().collect();
    }

    /// Lets a request wait for its application, if there is room.
    pub fn admit(&mut self, protocol: &[u8], asker: Asker, now: Instant) -> Admission {
        if !self.protocols.contains(protocol) {
            return Admission::Unknown;
        }
        let of_node = self.per_node.get(&asker.peer.id).copied().unwrap_or(0);
        if self.waiting.len() >= MAX_OUTSTANDING || of_node >= MAX_PER_NODE {
            return Admission::Full;
        }
        let token = TalkToken(self.next);
        self.next += 1;
        self.waiting.insert(token, (now + ANSWER_TIME, asker));
        self.per_node.insert(asker.peer.id, of_node + 1);
        Admission::Waits(token)
    }

    /// Removes and returns the request that is answered now; `None` if its time is up.
    pub fn answer(&mut self, token: TalkToken) -> Option<Asker> {
        let (_, asker) = self.waiting.remove(&token)?;
        match self.per_node.get_mut(&asker.peer.id) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.per_node.remove(&asker.peer.id)),
        }
        Some(asker)
    }

    /// Removes and returns the next request whose time is up.
    pub fn expired(&mut self, now: Instant) -> Option<(TalkToken, Asker)> {
        let (token, _) = self.waiting.first_key_value().filter(|(_, (deadline, _))| *deadline <= now)?;
        let token = *token;
        Some((token, self.answer(token)?))
    }

    /// When the next request's time is up.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(_, (deadline, _))| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(id: u16) -> Asker {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        let peer = Peer::new(NodeId(bytes), "1.2.3.4:5".parse().unwrap());
        Asker { peer, id: RequestId::default() }
    }

    #[test]
    fn bounded_per_node_and_in_all_and_empty_after() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut talk = TalkServer::default();
        assert_eq!(talk.admit(b"p", asker(1), now), Admission::Unknown);
        talk.set_protocols([b"p".to_vec()]);
        for _ in 0..MAX_PER_NODE {
            assert!(matches!(talk.admit(b"p", asker(1), now), Admission::Waits(_)));
        }
        assert_eq!(talk.admit(b"p", asker(1), now), Admission::Full);
        for node in 2..2000 {
            talk.admit(b"p", asker(node), now);
        }
        assert_eq!(talk.waiting.len(), MAX_OUTSTANDING);
        assert_eq!(talk.admit(b"p", asker(3000), now), Admission::Full);
        assert_eq!(talk.answer(TalkToken(0)), Some(asker(1)));
        assert_eq!(talk.answer(TalkToken(0)), None, "answered once");
        assert!(matches!(talk.admit(b"p", asker(1), now), Admission::Waits(_)));
        assert_eq!(talk.next_timeout(), Some(now + ANSWER_TIME));
        assert_eq!(talk.expired(now), None);
        let later = now + ANSWER_TIME;
        assert_eq!(std::iter::from_fn(|| talk.expired(later)).count(), MAX_OUTSTANDING);
        assert!(talk.waiting.is_empty() && talk.per_node.is_empty());
    }
}
