//! Requests of ours: one at a time for each node, the rest in a short queue.
//!
//! One at a time, because a challenge invalidates whatever else is under way, and because a node that does not answer
//! should cost one timeout and not many packets. A full queue refuses: whoever asks too much is told so at once.
//!
//! ```text
//! enqueue ─> waiting ─> active ── answered, timed out ─> finished, next one active
//!                         │  ^
//!               WHOAREYOU │  │ sent again, with the handshake (once)
//!                         └──┘
//! ```

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    header::Nonce,
    message::{MessageType, RequestId},
    peer::Peer,
};
use crate::{
    kademlia::{CallError, Contact},
    node::{NodeId, Record},
};

/// How long an answer may take; each packet of an answer starts it anew (geth: 700 ms).
pub const TIMEOUT: Duration = Duration::from_millis(700);
/// The most requests that wait for one node.
pub const MAX_WAITING: usize = 16;
/// The most requests in all. Lookups make a few dozen; the rest is for applications that talk.
pub const MAX_CALLS: usize = 4096;

/// One request.
#[derive(Debug)]
pub struct Call<P> {
    /// Whom it asks.
    pub to: Contact,
    /// Where its packets go and answers come from.
    pub peer: Peer,
    /// What it was made for.
    pub purpose: P,
    /// The request id, random.
    pub id: RequestId,
    /// The plaintext.
    pub message: Bytes,
    /// The type of its answer.
    pub expects: MessageType,
    /// The distances asked for; only of FINDNODE.
    pub distances: Vec<u16>,
}

/// The request that a node is being asked.
#[derive(Debug)]
pub struct Active<P> {
    /// The request.
    pub call: Call<P>,
    /// Of its newest packet: what a WHOAREYOU must carry.
    pub nonce: Nonce,
    /// Whether a WHOAREYOU was answered; a second one is refused.
    pub handshaken: bool,
    /// The id of the PING that took its place in the handshake, because it was too large for that.
    pub warming: Option<RequestId>,
    /// When its newest packet left.
    pub sent: Instant,
    /// How many NODES packets came, and how many there will be.
    pub packets: (u64, u64),
    /// The records that came.
    pub records: Vec<Record>,
    deadline: Instant,
}

#[derive(Debug)]
struct Queue<P> {
    active: Active<P>,
    waiting: VecDeque<Call<P>>,
}

/// All requests.
#[derive(Debug)]
pub struct Calls<P> {
    nodes: HashMap<NodeId, Queue<P>>,
    nonces: HashMap<Nonce, NodeId>,
    deadlines: BTreeSet<(Instant, NodeId)>,
    count: usize,
}

impl<P> Default for Calls<P> {
    fn default() -> Self {
        Self { nodes: HashMap::new(), nonces: HashMap::new(), deadlines: BTreeSet::new(), count: 0 }
    }
}

impl<P> Calls<P> {
    /// How many requests are active or wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Takes a request in. True if it is the active one of its node now and must be sent.
    pub fn enqueue(&mut self, call: Call<P>, now: Instant) -> Result<bool, CallError> {
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

    /// The active request to `id`.
    pub fn active(&mut self, id: &NodeId) -> Option<&mut Active<P>> {
        Some(&mut self.nodes.get_mut(id)?.active)
    }

    /// The active request whose newest packet carried `nonce`.
    pub fn by_nonce(&mut self, nonce: &Nonce) -> Option<&mut Active<P>> {
        let id = *self.nonces.get(nonce)?;
        self.active(&id)
    }

    /// A packet of the active request to `id` left, or one of its answer came: the timeout starts anew. With the
    /// `nonce` of a packet that left.
    pub fn touch(&mut self, id: &NodeId, nonce: Option<Nonce>, now: Instant) {
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

    /// Ends the active request to `id`. If another one waits, it is the active one now and must be sent: true.
    pub fn finish(&mut self, id: &NodeId, now: Instant) -> Option<(Active<P>, bool)> {
        let mut queue = self.nodes.remove(id)?;
        self.count -= 1;
        self.deadlines.remove(&(queue.active.deadline, *id));
        self.nonces.remove(&queue.active.nonce);
        let Some(next) = queue.waiting.pop_front() else { return Some((queue.active, false)) };
        let ended = std::mem::replace(&mut queue.active, Active::new(next, now));
        self.nodes.insert(*id, queue);
        Some((ended, true))
    }

    /// A node whose active request got no answer in time.
    #[must_use]
    pub fn expired(&self, now: Instant) -> Option<NodeId> {
        self.deadlines.first().filter(|(deadline, _)| *deadline <= now).map(|(_, id)| *id)
    }

    /// When the next request times out.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

impl<P> Active<P> {
    /// Not sent yet; [`Calls::touch`] gives it nonce and deadline when it is.
    fn new(call: Call<P>, now: Instant) -> Self {
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
