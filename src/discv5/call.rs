//! Our requests: one at a time for each node, the rest in a short queue.
//!
//! One at a time, because a challenge invalidates all other requests under way, and because a node that does not answer
//! should cost one timeout and not many packets. A full queue refuses at once.
//!
//! ```text
//! enqueue ─> waiting ─> active ── answered, timed out ─> finished, next one active
//!                         │  ^
//!               WHOAREYOU │  │ sent again, with the handshake (once)
//!                         └──┘
//! ```

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use super::{
    answer::{MAX_PACKETS, MAX_RECORDS},
    header::Nonce,
    message::{Message, MessageType, Nodes, Ping, RequestId, TalkRequest, encode_findnode},
    peer::Peer,
};
use crate::{
    kademlia::{CallError, Contact, Ponged, QueryId, distance::log_distance, searches::SearchId},
    node::{NodeId, Record},
};

/// How long an answer may take; each packet of an answer starts it anew (geth: 700 ms).
pub const TIMEOUT: Duration = Duration::from_millis(700);
/// The most requests that wait for one node.
pub const MAX_WAITING: usize = 16;
/// The most requests in all. Lookups make a few dozen; the rest is for applications that talk.
pub const MAX_CALLS: usize = 4096;

/// The purpose of a request.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A liveness check of the table.
    Check,
    /// The node's newest record: for a search, or for the table because the node announced a newer one.
    Record(Option<SearchId>),
    /// The nodes that it has near this lookup's target.
    Nodes(SearchId),
    /// A caller's PING.
    Ping(QueryId),
    /// A caller's TALKREQ.
    Talk(QueryId),
}

/// A request, before it has an id.
#[derive(Debug)]
pub(super) enum Request<'a> {
    Ping,
    FindNode(Vec<u16>),
    Talk { protocol: &'a [u8], request: &'a [u8] },
}

impl Request<'_> {
    /// Writes the request. `enr_seq` is the sequence number of our record. Returns the type of its answer.
    pub(super) fn encode(&self, id: RequestId, enr_seq: u64, out: &mut BytesMut) -> MessageType {
        match self {
            Self::Ping => {
                Ping { id, enr_seq }.encode(out);
                MessageType::Pong
            }
            Self::FindNode(distances) => {
                encode_findnode(out, id, distances);
                MessageType::Nodes
            }
            Self::Talk { protocol, request } => {
                TalkRequest { id, protocol, request }.encode(out);
                MessageType::TalkResponse
            }
        }
    }

    /// The distances that records in the answer may have.
    pub(super) fn distances(&self) -> &[u16] {
        match self {
            Self::FindNode(distances) => distances,
            Self::Ping | Self::Talk { .. } => &[],
        }
    }
}

/// The contents of an answer. The records of NODES are with the request, which collects them.
#[derive(Debug)]
pub(super) enum Reply {
    Pong(Ponged),
    Nodes,
    Talk(Bytes),
}

/// The relation of a response to our requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// It answers no request.
    Unsolicited,
    /// The answer to the PING that made the session: the request itself is sent now.
    Warmed,
    /// An answer to the active request, with the time since its newest packet.
    Answer(Duration),
}

/// One request.
#[derive(Debug)]
pub(super) struct Call {
    /// The node that is asked.
    pub(super) to: Contact,
    /// The peer to which its packets go and from which answers come.
    pub(super) peer: Peer,
    /// Its purpose.
    pub(super) purpose: Purpose,
    /// The request id, random.
    pub(super) id: RequestId,
    /// The plaintext.
    pub(super) message: Bytes,
    /// The type of its answer.
    pub(super) expects: MessageType,
    /// The distances asked for; only of FINDNODE.
    pub(super) distances: Vec<u16>,
}

/// The request that a node is being asked.
#[derive(Debug)]
struct Active {
    call: Call,
    /// The nonce of its newest packet, which a WHOAREYOU must carry.
    nonce: Nonce,
    /// Whether a WHOAREYOU was answered; a second one is refused.
    handshaken: bool,
    /// The id of the PING that took its place in the handshake, because it was too large for that.
    warming: Option<RequestId>,
    /// When its newest packet left.
    sent: Instant,
    /// How many NODES packets came, and how many there will be.
    packets: (u64, u64),
    /// The records that came.
    records: Vec<Record>,
    deadline: Instant,
}

/// A request that ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) to: Contact,
    pub(super) purpose: Purpose,
    /// The records that came.
    pub(super) records: Vec<Record>,
    /// Whether another request to the node waits. It is the active one now and must be sent.
    pub(super) next: bool,
}

#[derive(Debug)]
struct Queue {
    active: Active,
    waiting: VecDeque<Call>,
}

/// All requests.
#[derive(Debug, Default)]
pub(super) struct Calls {
    nodes: HashMap<NodeId, Queue>,
    nonces: HashMap<Nonce, NodeId>,
    deadlines: BTreeSet<(Instant, NodeId)>,
    count: usize,
}

impl Calls {
    /// How many requests are active or wait.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Takes a request in. True if it is the active one of its node now and must be sent.
    pub(super) fn enqueue(&mut self, call: Call, now: Instant) -> Result<bool, CallError> {
        if self.count >= MAX_CALLS {
            return Err(CallError::QueueFull);
        }
        let id = call.to.id;
        match self.nodes.get_mut(&id) {
            Some(queue) if queue.waiting.len() >= MAX_WAITING => return Err(CallError::QueueFull),
            Some(queue) => queue.waiting.push_back(call),
            None => {
                self.nodes.insert(id, Queue { active: Active::new(call, now), waiting: VecDeque::new() });
                self.count += 1;
                return Ok(true);
            }
        }
        self.count += 1;
        Ok(false)
    }

    /// Where the active request to `id` goes, and its plaintext.
    pub(super) fn active(&self, id: &NodeId) -> Option<(Peer, &Bytes)> {
        let call = &self.nodes.get(id)?.active.call;
        Some((call.peer, &call.message))
    }

    /// A WHOAREYOU with this nonce came from this address. If it is for an active request that was not challenged yet,
    /// returns that one's node, peer and plaintext: they are sent again, in a handshake.
    pub(super) fn challenged(&mut self, nonce: &Nonce, from: SocketAddr) -> Option<(Contact, Peer, Bytes)> {
        let id = self.nonces.get(nonce)?;
        let active = &mut self.nodes.get_mut(id)?.active;
        if active.call.peer.addr != from || active.handshaken {
            return None;
        }
        active.handshaken = true;
        Some((active.call.to.clone(), active.call.peer, active.call.message.clone()))
    }

    /// A PING with this id takes the place of the active request in the handshake.
    pub(super) fn warm(&mut self, id: &NodeId, ping: RequestId) {
        if let Some(queue) = self.nodes.get_mut(id) {
            queue.active.warming = Some(ping);
        }
    }

    /// A response came in the session with `peer`.
    pub(super) fn response_came(&mut self, now: Instant, peer: &Peer, message: &Message<'_>) -> Response {
        let active = self.nodes.get_mut(&peer.id).map(|queue| &mut queue.active);
        let Some(active) = active.filter(|active| active.call.peer == *peer) else {
            return Response::Unsolicited;
        };
        match active.warming {
            Some(ping) if ping == message.id() && message.kind() == MessageType::Pong => {
                active.warming = None;
                Response::Warmed
            }
            None if message.id() == active.call.id && message.kind() == active.call.expects => {
                Response::Answer(now.saturating_duration_since(active.sent))
            }
            _ => Response::Unsolicited,
        }
    }

    /// Takes the records of one NODES packet from `peer`. `may_accept` returns whether an address is accepted. Returns
    /// whether all packets have come, and how many records were refused.
    pub(super) fn collect(
        &mut self,
        now: Instant,
        peer: &Peer,
        nodes: &Nodes<'_>,
        decode: impl Fn(&[u8]) -> Option<Record>,
        may_accept: impl Fn(SocketAddr) -> bool,
    ) -> (bool, u64) {
        let Some(queue) = self.nodes.get_mut(&peer.id) else { return (false, 0) };
        let Active { call, packets: (received, total), records, .. } = &mut queue.active;
        if *received == 0 {
            // The total of the first packet is used, within bounds: none means one, hundreds mean five.
            *total = nodes.total.clamp(1, MAX_PACKETS as u64);
        }
        *received += 1;
        let complete = received >= total;
        let mut refused = 0;
        for raw in nodes.records() {
            let record = if records.len() < MAX_RECORDS { decode(raw) } else { None };
            let fits = |record: &Record| {
                call.distances.contains(&log_distance(&peer.id, &record.id()))
                    && !records.iter().any(|known| known.id() == record.id())
                    && record.endpoint().and_then(|endpoint| endpoint.udp_addr()).is_some_and(&may_accept)
            };
            match record.filter(fits) {
                Some(record) => records.push(record),
                None => refused += 1,
            }
        }
        if !complete {
            self.touch(&peer.id, None, now);
        }
        (complete, refused)
    }

    /// A packet of the active request to `id` left, or one of its answer came: the timeout starts anew. With the
    /// `nonce` of a packet that left.
    pub(super) fn touch(&mut self, id: &NodeId, nonce: Option<Nonce>, now: Instant) {
        let Some(queue) = self.nodes.get_mut(id) else { return };
        let active = &mut queue.active;
        self.deadlines.remove(&(active.deadline, *id));
        active.deadline = now + TIMEOUT;
        self.deadlines.insert((active.deadline, *id));
        if let Some(nonce) = nonce {
            self.nonces.remove(&active.nonce);
            active.nonce = nonce;
            active.sent = now;
            self.nonces.insert(nonce, *id);
        }
    }

    /// Ends the active request to `id`. The one that waits next becomes the active one.
    pub(super) fn finish(&mut self, id: &NodeId, now: Instant) -> Option<Ended> {
        let mut queue = self.nodes.remove(id)?;
        self.count -= 1;
        self.deadlines.remove(&(queue.active.deadline, *id));
        self.nonces.remove(&queue.active.nonce);
        let (ended, next) = match queue.waiting.pop_front() {
            None => (queue.active, false),
            Some(next) => {
                let ended = std::mem::replace(&mut queue.active, Active::new(next, now));
                self.nodes.insert(*id, queue);
                (ended, true)
            }
        };
        let Active { call: Call { to, purpose, .. }, records, .. } = ended;
        Some(Ended { to, purpose, records, next })
    }

    /// The nonce that a WHOAREYOU for the active request to `id` must carry.
    #[cfg(test)]
    pub(super) fn nonce(&self, id: &NodeId) -> Option<Nonce> {
        self.nodes.get(id).map(|queue| queue.active.nonce)
    }

    /// A node whose active request got no answer in time.
    #[must_use]
    pub(super) fn expired(&self, now: Instant) -> Option<NodeId> {
        self.deadlines.first().filter(|(deadline, _)| *deadline <= now).map(|(_, id)| *id)
    }

    /// When the next request times out.
    #[must_use]
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

impl Active {
    /// Not sent yet; [`Calls::touch`] gives it nonce and deadline when it is.
    fn new(call: Call, now: Instant) -> Self {
        Self {
            call,
            nonce: [0; 12],
            handshaken: false,
            warming: None,
            sent: now,
            packets: (0, 0),
            records: Vec::new(),
            deadline: now,
        }
    }
}
