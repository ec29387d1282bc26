//! The engine: one node's part in the discv5 network, without a socket and without a clock.
//!
//! ```text
//! handle_datagram ─┐                        ┌─> poll_transmit   packets to send
//! handle_timeout  ─┼─> sessions, requests, ─┼─> poll_action     what happened
//! commands        ─┘   table, lookups       └─> poll_timeout    when to call handle_timeout
//! ```
//!
//! After each call on the left, drain `poll_transmit` and `poll_action` and set the timer anew. Errors of strangers
//! are counted ([`Counters`]), never returned; a `Result` is an answer to our own caller.
//!
//! Its parts: [`receive`](self) what comes in, `request` what we ask, `respond` what we are asked, `search` lookups,
//! walk and refresh.

mod action;
mod outbox;
mod receive;
mod request;
mod respond;
mod search;

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    time::Instant,
};

use bytes::BytesMut;
use ipnet::IpNet;
use rand::rngs::StdRng;

pub use action::{Action, Counters, Ponged, QueryId};
use outbox::Outbox;
use request::{Purpose, Request};
use search::Searches;

use super::{
    call::{CallError, Calls},
    challenge::{Challenges, STRANGERS_PER_SECOND},
    crypto::Crypto,
    header::{MAX_MESSAGE, Unmasker},
    peer::Peer,
    session::Sessions,
    talk::{TalkServer, TalkToken},
};
use crate::{
    Now,
    kademlia::{Contact, Source, Table, subnets::is_exempt},
    node::{NodeId, Reach, Record},
};

/// The most bootnodes; networks have a dozen.
const MAX_BOOTNODES: usize = 256;

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct Config {
    /// The most sessions; half of them are for those that strangers begin. Default 2048, about 1 MiB.
    pub sessions: usize,
    /// The only networks that we speak with, and that the table takes nodes of (`--netrestrict`); empty means all.
    pub restrict: Vec<IpNet>,
    /// Whom to ask first, at every refresh. Default: nobody.
    pub bootnodes: Vec<Contact>,
    /// How many challenges strangers may make us send per second. Default: [`STRANGERS_PER_SECOND`].
    pub strangers_per_second: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sessions: 2048,
            restrict: Vec::new(),
            bootnodes: Vec::new(),
            strangers_per_second: STRANGERS_PER_SECOND,
        }
    }
}

/// The most bytes that an application may answer to a TALKREQ, so that the TALKRESP fits a packet. Beside them stand the
/// type byte, the list's header, the request id with its header, and the header of the response.
pub const MAX_TALK_RESPONSE: usize = MAX_MESSAGE - (1 + 3 + 9 + 3);

/// Why an answer to a TALKREQ was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TalkError {
    /// The asker got an empty answer meanwhile, or cannot be reached any more.
    #[error("the time to answer this TALKREQ is up")]
    Expired,
    /// The answer does not fit into a packet. It may be tried again with a shorter one.
    #[error("the response has {0} bytes; a packet has room for {1}")]
    TooLarge(usize, usize),
}

/// One node of the discv5 network.
pub struct Engine<C> {
    config: Config,
    crypto: C,
    rng: StdRng,
    record: Record,
    reach: Reach,
    unmasker: Unmasker,
    table: Table,
    sessions: Sessions,
    challenges: Challenges,
    calls: Calls<Purpose>,
    talk: TalkServer,
    searches: Searches,
    actions: VecDeque<Action>,
    outbox: Outbox,
    counters: Counters,
    /// Where the packet being made is assembled.
    scratch: BytesMut,
    /// Where the message being made is encoded.
    message: BytesMut,
    /// Where the message being read was opened to.
    plaintext: Vec<u8>,
}

impl<C> fmt::Debug for Engine<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record, table, sessions, calls, .. } = self;
        write!(
            f,
            "Engine({record:?}, {} nodes, {:?} sessions, {} requests)",
            table.len(),
            sessions.len(),
            calls.len()
        )
    }
}

impl<C: Crypto> Engine<C> {
    /// The engine of the node whose record is `record` and whose key `crypto` has. Refreshes its table at once.
    #[must_use]
    pub fn new(now: Now, config: Config, crypto: C, record: Record, mut rng: StdRng) -> Self {
        let mut engine = Self {
            crypto,
            reach: Reach::new(config.restrict.clone(), &record),
            unmasker: Unmasker::new(&record.id()),
            table: Table::new(record.id(), &mut rng),
            sessions: Sessions::new(config.sessions),
            challenges: Challenges::new(config.strangers_per_second),
            calls: Calls::default(),
            talk: TalkServer::default(),
            searches: Searches::new(now.mono),
            actions: VecDeque::new(),
            outbox: Outbox::default(),
            counters: Counters::default(),
            scratch: BytesMut::new(),
            message: BytesMut::new(),
            plaintext: Vec::new(),
            config,
            rng,
            record: record.clone(),
        };
        engine.set_local_record(record);
        engine
    }

    /// A datagram came. Those that are not for us are counted and forgotten.
    pub fn handle_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) {
        self.receive(now, from, bytes);
        self.report_table();
    }

    /// The time that [`Self::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(id) = self.calls.expired(now.mono) {
            self.counters.requests_timed_out += 1;
            self.end_call(now, &id, Err(CallError::Timeout));
        }
        while let Some((_, asker)) = self.talk.expired(now.mono) {
            self.counters.talk_expired += 1;
            self.respond_talk(now, &asker, &[]);
        }
        self.check_table(now);
        self.search_on_time(now);
        self.report_table();
    }

    /// When [`Self::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timers = [
            self.calls.next_timeout(),
            self.talk.next_timeout(),
            self.table.poll_timeout(),
            self.searches.poll_timeout(),
        ];
        timers.into_iter().flatten().min()
    }

    /// The next thing that happened.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Appends the next packet to send to `out` and says where it goes.
    pub fn poll_transmit(&mut self, out: &mut BytesMut) -> Option<SocketAddr> {
        let to = self.outbox.pop(out)?;
        self.counters.packets_sent += 1;
        Some(to)
    }

    /// What tells discv5 packets for us from all others; the demultiplexer keeps a copy.
    #[must_use]
    pub fn unmasker(&self) -> &Unmasker {
        &self.unmasker
    }

    /// The table, for snapshots.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The sessions: how many, and how many were given up.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// How many requests of ours are under way or wait.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.calls.len()
    }

    /// Our record as others are told it.
    #[must_use]
    pub fn local_record(&self) -> &Record {
        &self.record
    }

    /// Replaces our record. It must be signed by the same key.
    pub fn set_local_record(&mut self, record: Record) {
        debug_assert_eq!(record.id(), self.record.id(), "a node keeps its id");
        self.reach.set_local_record(&record);
        self.table.set_private(self.reach.is_private());
        self.record = record;
    }

    /// Adds a node that every refresh starts from, and refreshes. Its record may be missing: the key is enough.
    pub fn add_bootnode(&mut self, now: Now, node: Contact) {
        let known = self.config.bootnodes.iter().any(|known| known.id == node.id);
        if !known && self.config.bootnodes.len() < MAX_BOOTNODES {
            self.config.bootnodes.push(node);
            self.searches.refresh_now(now.mono);
        }
    }

    /// Offers a node of the node database to the table.
    pub fn add_seed(&mut self, now: Now, record: Record) {
        if let Some(contact) = Contact::from_record(record) {
            self.offer(now, contact, Source::Database);
        }
        self.report_table();
    }

    /// Takes a node out of the table and forgets its session, because it is banned. It may come back by itself.
    pub fn remove(&mut self, now: Now, id: &NodeId) {
        if let Some(addr) = self.table.get(id).and_then(|entry| entry.contact.udp_addr()) {
            self.sessions.remove(&Peer::new(*id, addr));
        }
        self.table.remove(now, id);
        self.report_table();
    }

    /// How many [`Action::Discovered`] are wanted from now on. None are looked for while it is zero.
    pub fn set_demand(&mut self, wanted: usize) {
        self.searches.set_demand(wanted);
    }

    /// Which TALKREQ protocols are served.
    pub fn set_talk_protocols(&mut self, protocols: impl IntoIterator<Item = Vec<u8>>) {
        self.talk.set_protocols(protocols);
    }

    /// Pings a node; ends in [`Action::PingResult`].
    pub fn ping(&mut self, now: Now, query: QueryId, node: Contact) -> Result<(), CallError> {
        self.begin_call(now, &node, &Request::Ping, Purpose::Ping(query))
    }

    /// Asks an application at `node`; ends in [`Action::TalkResult`].
    pub fn talk(
        &mut self,
        now: Now,
        query: QueryId,
        node: Contact,
        protocol: &[u8],
        request: &[u8],
    ) -> Result<(), CallError> {
        self.begin_call(now, &node, &Request::Talk { protocol, request }, Purpose::Talk(query))
    }

    /// Answers a TALKREQ.
    pub fn answer_talk(&mut self, now: Now, token: TalkToken, response: &[u8]) -> Result<(), TalkError> {
        if response.len() > MAX_TALK_RESPONSE {
            return Err(TalkError::TooLarge(response.len(), MAX_TALK_RESPONSE));
        }
        let asker = self.talk.answer(token).ok_or(TalkError::Expired)?;
        if self.respond_talk(now, &asker, response) { Ok(()) } else { Err(TalkError::Expired) }
    }

    /// Offers a node to the table, if the restriction allows it.
    fn offer(&mut self, now: Now, contact: Contact, source: Source) {
        if self.reach.allows(contact.endpoint.ip) {
            self.table.insert(now, contact, source);
        }
    }

    fn is_exempt(&self, peer: &Peer) -> bool {
        is_exempt(peer.addr.ip(), self.reach.is_private())
    }

    fn report_table(&mut self) {
        while let Some(event) = self.table.poll_event() {
            self.actions.push_back(Action::Table(event));
        }
    }

    /// Queues the packet that stands in `scratch`.
    fn send_scratch(&mut self, to: SocketAddr) {
        if !self.outbox.push(to, &self.scratch) {
            self.counters.packets_dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests;
