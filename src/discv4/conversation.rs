//! Conversations: the requests to one node at one address, and their state.
//!
//! All requests to a node go through its conversation: one PING serves all searches and calls that wait for a PONG, and
//! one FINDNODE or ENRRequest is open at a time (NEIGHBORS do not name their request, so two could not be told apart).
//!
//! ```text
//!  ask ──> does it know us? ──yes──────────────────────────────────┐
//!            │ no                                                  v
//!            └─> PING ──PONG──> settle: wait for its PING, so that ──> FINDNODE / ENRRequest ──> answer or timeout
//!                  │            our PONG proves us (500 ms at most)
//!                  └─ timeout: all that was asked fails
//! ```
//!
//! Conversations end with their last question. Strangers can open some (their PING makes us ask for a proof), but
//! never so many that our own find no room.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{
    kademlia::{Contact, QueryId, bucket::BUCKET_SIZE, searches::SearchId},
    node::NodeId,
};

/// The time in which a node must answer, as in geth.
const TIMEOUT: Duration = Duration::from_millis(500);
/// When a packet of ours that was not answered is sent once more. With one in five packets lost, this lets 87 % of
/// the exchanges succeed instead of 64 %, and no failure takes longer for it.
const REPEAT_AFTER: Duration = Duration::from_millis(250);
/// How long the second part of NEIGHBORS may lag behind the first. They are sent back to back.
const PART_WAIT: Duration = Duration::from_millis(100);
/// The most conversations.
const MAX: usize = 4096;
/// The most conversations that may exist when a stranger opens another.
const MAX_BY_STRANGERS: usize = 3072;
/// The most questions that wait in one conversation.
const MAX_ASKS: usize = 32;
/// How many answers to one request are checked. An answer has at most two packets; the rest is for packets that guess
/// or replay.
const ANSWERS: u16 = 8;

/// A node at an address; the port is not part of it (see [`super::bonds`]).
pub(super) type Peer = (NodeId, IpAddr);

/// Something to ask a node.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    /// It pinged us from here: let it prove that it receives there.
    Prove { addr: SocketAddr, tcp: u16 },
    /// Is the table node still there?
    Check,
    /// The owner asks whether it is alive.
    Ping(QueryId),
    /// A lookup asks for the nodes near its target.
    FindNode(SearchId),
    /// A request for its record: for a search, or for the table because the node announced a newer one.
    Record(Option<SearchId>),
}

impl Ask {
    fn is_answered_by_pong(&self) -> bool {
        matches!(self, Self::Prove { .. } | Self::Check | Self::Ping(_))
    }

    /// The hash by which the answer names this request; NEIGHBORS name none.
    fn named_by_hash(&self, hash: [u8; 32]) -> Option<[u8; 32]> {
        (!matches!(self, Self::FindNode(_))).then_some(hash)
    }
}

/// A deadline's key: its time and a number that makes it unique.
type Deadline = (Instant, u64);

/// The action that is due at a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The PONG.
    Pong,
    /// The node's own PING.
    Settle,
    /// The answer to the open request.
    Answer,
}

/// A packet that waits for its answer.
#[derive(Debug)]
struct Open {
    to: SocketAddr,
    packet: Vec<u8>,
    hash: [u8; 32],
    sent: Instant,
    deadline: Deadline,
    may_repeat: bool,
}

/// A FINDNODE or ENRRequest that waits for its answer.
#[derive(Debug)]
struct OpenRequest {
    ask: Ask,
    open: Open,
    /// How many nodes its answer has had so far; `None` before the first packet.
    told: Option<usize>,
}

/// One conversation.
#[derive(Debug)]
struct Conversation {
    contact: Contact,
    addr: SocketAddr,
    asks: VecDeque<Ask>,
    ping: Option<Open>,
    request: Option<OpenRequest>,
    settle: Option<Deadline>,
    /// The time for its ping is over; the waiting requests are sent.
    settled: bool,
    /// It answered a PING of this conversation.
    ponged: bool,
    /// It pinged us meanwhile, and so has our PONG.
    pinged_us: bool,
}

/// The packet to send to a node now.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// A PING, to this address, and whether it may be sent once more.
    pub(super) ping: Option<(SocketAddr, bool)>,
    /// A FINDNODE or ENRRequest, to this address.
    pub(super) request: Option<(SocketAddr, Ask)>,
}

/// The request that a PONG answers.
#[derive(Debug)]
pub(super) struct PongCame {
    /// The node.
    pub(super) contact: Contact,
    /// When the PING was sent.
    pub(super) sent: Instant,
    /// Whether the node pinged us meanwhile.
    pub(super) pinged_us: bool,
    /// The requests that waited for the PONG.
    pub(super) answered: VecDeque<Ask>,
}

/// How a FINDNODE or ENRRequest ended.
#[derive(Debug)]
pub(super) struct RequestEnded {
    /// The node.
    pub(super) contact: Contact,
    /// The request.
    pub(super) ask: Ask,
    /// Whether any part of an answer came.
    pub(super) answered: bool,
}

/// The meaning of one NEIGHBORS packet for a lookup.
#[derive(Debug)]
pub(super) struct Told {
    /// The lookup that asked.
    pub(super) search: SearchId,
    /// How many of the packet's nodes are read: no more than an answer has in all, in however many packets it comes.
    pub(super) room: usize,
    /// Whether the answer has all nodes that it can have.
    pub(super) is_complete: bool,
}

/// The key of an answer before its signature is checked: the address it comes from and, except for NEIGHBORS, the
/// request that it names. Requests of one second to one address can be equal, so several may wait for one key.
type Mark = (IpAddr, Option<[u8; 32]>);

/// Requests that wait for one mark.
#[derive(Debug, Default)]
struct Awaited {
    open: u16,
    /// How many more answers are checked.
    answers_left: u16,
}

/// All conversations.
#[derive(Debug, Default)]
pub(super) struct Conversations {
    all: HashMap<Peer, Conversation>,
    awaited: HashMap<Mark, Awaited>,
    deadlines: BTreeMap<Deadline, (Peer, Due)>,
    serial: u64,
}

impl Conversations {
    /// Whether a PING with this hash waits for the peer's PONG.
    pub(super) fn awaits_pong(&self, peer: &Peer, hash: &[u8; 32]) -> bool {
        let ping = self.all.get(peer).and_then(|conversation| conversation.ping.as_ref());
        ping.is_some_and(|ping| ping.hash == *hash)
    }

    /// Whether a request with this hash waits for the peer's answer.
    pub(super) fn awaits_answer(&self, peer: &Peer, hash: &[u8; 32]) -> bool {
        let request = self.all.get(peer).and_then(|conversation| conversation.request.as_ref());
        request.is_some_and(|request| request.open.hash == *hash)
    }

    /// Whether a PING waits for the peer's PONG.
    pub(super) fn is_pinging(&self, peer: &Peer) -> bool {
        self.all.get(peer).is_some_and(|conversation| conversation.ping.is_some())
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Adds a question. Fails when there is no room.
    pub(super) fn ask(&mut self, contact: &Contact, addr: SocketAddr, ask: Ask) -> Result<Peer, ()> {
        let peer = (contact.id, addr.ip());
        let max = if matches!(ask, Ask::Prove { .. }) { MAX_BY_STRANGERS } else { MAX };
        let full = self.all.len() >= max;
        let conversation = match self.all.entry(peer) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(_) if full => return Err(()),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(Conversation {
                contact: contact.clone(),
                addr,
                asks: VecDeque::new(),
                ping: None,
                request: None,
                settle: None,
                settled: false,
                ponged: false,
                pinged_us: false,
            }),
        };
        if conversation.asks.len() >= MAX_ASKS {
            return Err(());
        }
        conversation.asks.push_back(ask);
        Ok(peer)
    }

    /// The packet to send to the peer now. `knows_us`: it has our proof. If its own PING must come first, the wait
    /// begins.
    pub(super) fn next_steps(&mut self, now: Instant, peer: Peer, knows_us: bool) -> Steps {
        let mut steps = Steps::default();
        let Some(conversation) = self.all.get_mut(&peer) else { return steps };
        let known = conversation.settled || knows_us;
        let wants_pong = conversation.asks.iter().any(Ask::is_answered_by_pong);
        let question = conversation.asks.iter().position(|ask| !ask.is_answered_by_pong());
        let wants_bond = question.is_some() && !known && conversation.settle.is_none();
        let wants_ping = wants_pong || (wants_bond && !conversation.ponged);
        if known && conversation.request.is_none() {
            let ask = question.and_then(|index| conversation.asks.remove(index));
            steps.request = ask.map(|ask| (conversation.addr, ask));
        }
        if wants_ping && conversation.ping.is_none() {
            let from_there = conversation.asks.iter().find_map(|ask| match ask {
                Ask::Prove { addr, .. } => Some(*addr),
                _ => None,
            });
            // A stranger's ping is worth one of ours, not two.
            let repeat = !conversation.asks.iter().all(|ask| matches!(ask, Ask::Prove { .. }));
            steps.ping = Some((from_there.unwrap_or(conversation.addr), repeat));
        } else if wants_bond && conversation.ponged {
            self.settle(now, peer);
        }
        steps
    }

    /// Removes the conversation if nothing is left of it.
    pub(super) fn end_if_idle(&mut self, peer: &Peer) {
        let idle = |it: &Conversation| it.asks.is_empty() && it.ping.is_none() && it.request.is_none();
        if self.all.get(peer).is_some_and(idle)
            && let Some(Conversation { settle: Some(deadline), .. }) = self.all.remove(peer)
        {
            self.deadlines.remove(&deadline);
        }
    }

    /// Notes the PING that was sent. It is sent only once if it goes to an address that has not asked for two.
    pub(super) fn opened_ping(
        &mut self,
        now: Instant,
        peer: Peer,
        to: SocketAddr,
        packet: Vec<u8>,
        repeat: bool,
    ) {
        let open = self.open(now, peer, Due::Pong, to, packet, repeat);
        self.expect((peer.1, Some(open.hash)));
        if let Some(conversation) = self.all.get_mut(&peer) {
            conversation.ping = Some(open);
        }
    }

    /// The PONG came. `None` if it was not waited for.
    pub(super) fn pong_came(&mut self, peer: &Peer) -> Option<PongCame> {
        let ping = self.close_ping(peer)?;
        let conversation = self.all.get_mut(peer)?;
        let (answered, left) = conversation.asks.drain(..).partition(Ask::is_answered_by_pong);
        conversation.asks = left;
        conversation.ponged = true;
        let (contact, pinged_us) = (conversation.contact.clone(), conversation.pinged_us);
        Some(PongCame { contact, sent: ping.sent, pinged_us, answered })
    }

    /// No PONG came in time. Returns the node with all that fails: what waited for the PONG, or for the proof that
    /// would have followed unless it `knows_us`.
    pub(super) fn no_pong(&mut self, peer: &Peer, knows_us: bool) -> Option<(Contact, VecDeque<Ask>)> {
        self.close_ping(peer);
        let conversation = self.all.get_mut(peer)?;
        let fails = |ask: &Ask| ask.is_answered_by_pong() || !(knows_us || conversation.settled);
        let (failed, left) = conversation.asks.drain(..).partition(fails);
        conversation.asks = left;
        Some((conversation.contact.clone(), failed))
    }

    fn close_ping(&mut self, peer: &Peer) -> Option<Open> {
        let open = self.all.get_mut(peer)?.ping.take()?;
        self.expect_no_more((peer.1, Some(open.hash)));
        self.deadlines.remove(&open.deadline);
        Some(open)
    }

    /// Notes the request that was sent.
    pub(super) fn opened_request(
        &mut self,
        now: Instant,
        peer: Peer,
        ask: Ask,
        to: SocketAddr,
        packet: Vec<u8>,
    ) {
        let open = self.open(now, peer, Due::Answer, to, packet, true);
        self.expect((peer.1, ask.named_by_hash(open.hash)));
        if let Some(conversation) = self.all.get_mut(&peer) {
            conversation.request = Some(OpenRequest { ask, open, told: None });
        }
    }

    /// A NEIGHBORS packet with so many nodes came. `None` if no FINDNODE waits for it.
    pub(super) fn told(&mut self, peer: &Peer, nodes: usize) -> Option<Told> {
        let request = self.all.get_mut(peer)?.request.as_mut()?;
        let Ask::FindNode(search) = request.ask else { return None };
        let before = request.told.unwrap_or(0);
        let told = before.saturating_add(nodes);
        request.told = Some(told);
        let room = BUCKET_SIZE.saturating_sub(before);
        Some(Told { search, room, is_complete: told >= BUCKET_SIZE })
    }

    /// The open request ended: its answer came, or the time is over. A node that did not answer may have lost our
    /// proof, so the next request to it begins with a PING.
    pub(super) fn request_ended(&mut self, peer: &Peer, has_answered: bool) -> Option<RequestEnded> {
        let conversation = self.all.get_mut(peer)?;
        let OpenRequest { ask, open, told } = conversation.request.take()?;
        let answered = has_answered || told.is_some();
        conversation.settled &= answered;
        conversation.ponged &= answered;
        let contact = conversation.contact.clone();
        self.deadlines.remove(&open.deadline);
        self.expect_no_more((peer.1, ask.named_by_hash(open.hash)));
        Some(RequestEnded { contact, ask, answered })
    }

    fn open(
        &mut self,
        now: Instant,
        peer: Peer,
        due: Due,
        to: SocketAddr,
        packet: Vec<u8>,
        may_repeat: bool,
    ) -> Open {
        let wait = if may_repeat { REPEAT_AFTER } else { TIMEOUT };
        let deadline = self.schedule(now + wait, peer, due);
        let hash = packet.first_chunk().copied().unwrap_or_default();
        Open { to, packet, hash, sent: now, deadline, may_repeat }
    }

    /// The packet to send again instead of giving the request up, if its first deadline is due.
    pub(super) fn repeat(&mut self, peer: &Peer, due: Due) -> Option<(SocketAddr, &[u8])> {
        let conversation = self.all.get_mut(peer)?;
        let open = match due {
            Due::Pong => conversation.ping.as_mut(),
            Due::Answer => {
                let unanswered = |request: &&mut OpenRequest| request.told.is_none();
                conversation.request.as_mut().filter(unanswered).map(|request| &mut request.open)
            }
            Due::Settle => None,
        };
        let open = open.filter(|open| open.may_repeat)?;
        open.may_repeat = false;
        self.serial += 1;
        open.deadline = (open.sent + TIMEOUT, self.serial);
        self.deadlines.insert(open.deadline, (*peer, due));
        Some((open.to, open.packet.as_slice()))
    }

    /// Starts the wait for the node's own PING.
    fn settle(&mut self, now: Instant, peer: Peer) {
        let deadline = self.schedule(now + TIMEOUT, peer, Due::Settle);
        if let Some(conversation) = self.all.get_mut(&peer) {
            conversation.settle = Some(deadline);
        }
    }

    /// The wait for the node's own PING is over.
    pub(super) fn settle_ended(&mut self, peer: &Peer) {
        if let Some(conversation) = self.all.get_mut(peer) {
            conversation.settle = None;
            conversation.settled = true;
        }
    }

    /// The node pinged us. If that was waited for, the wait is over.
    pub(super) fn pinged_us(&mut self, peer: &Peer) {
        if let Some(conversation) = self.all.get_mut(peer) {
            conversation.pinged_us = true;
            if let Some(deadline) = conversation.settle.take() {
                conversation.settled = true;
                self.deadlines.remove(&deadline);
            }
        }
    }

    /// A part of the open answer came: the wait for the rest is short.
    pub(super) fn hasten_answer(&mut self, now: Instant, peer: Peer) {
        self.serial += 1;
        let request = self.all.get_mut(&peer).and_then(|conversation| conversation.request.as_mut());
        if let Some(OpenRequest { open, .. }) = request {
            self.deadlines.remove(&open.deadline);
            open.deadline = ((now + PART_WAIT).min(open.sent + TIMEOUT), self.serial);
            self.deadlines.insert(open.deadline, (peer, Due::Answer));
        }
    }

    /// Whether an answer from `ip` that names `hash` (NEIGHBORS: none) belongs to a request: `None` if not, otherwise
    /// whether it may still be checked.
    pub(super) fn expects(&mut self, ip: IpAddr, hash: Option<[u8; 32]>) -> Option<bool> {
        let awaited = self.awaited.get_mut(&(ip, hash))?;
        let any = awaited.answers_left > 0;
        awaited.answers_left = awaited.answers_left.saturating_sub(1);
        Some(any)
    }

    fn expect(&mut self, mark: Mark) {
        let awaited = self.awaited.entry(mark).or_default();
        awaited.open = awaited.open.saturating_add(1);
        awaited.answers_left = awaited.answers_left.saturating_add(ANSWERS);
    }

    fn expect_no_more(&mut self, mark: Mark) {
        if let Some(awaited) = self.awaited.get_mut(&mark) {
            awaited.open = awaited.open.saturating_sub(1);
            if awaited.open == 0 {
                self.awaited.remove(&mark);
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next thing that is due. Call until `None`.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(Peer, Due)> {
        let entry = self.deadlines.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    fn schedule(&mut self, at: Instant, peer: Peer, due: Due) -> Deadline {
        self.serial += 1;
        let deadline = (at, self.serial);
        self.deadlines.insert(deadline, (peer, due));
        deadline
    }

    /// Whether all indices agree with the conversations; for tests and fuzzing.
    #[cfg(any(test, feature = "internals"))]
    pub(super) fn is_consistent(&self) -> bool {
        let count = |on: fn(&Conversation) -> bool| self.all.values().filter(|it| on(it)).count();
        let pings = count(|it| it.ping.is_some());
        let requests = count(|it| it.request.is_some());
        let settling = count(|it| it.settle.is_some());
        self.all.len() <= MAX
            && self.deadlines.len() == pings + requests + settling
            && self.awaited.values().map(|awaited| usize::from(awaited.open)).sum::<usize>()
                == pings + requests
    }
}
