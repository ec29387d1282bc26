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
//! Which node is asked next, and why, is decided by [`Searches`]. What stands here is how discv5 asks it: in a session,
//! one request at a time. `receive` reads what comes and answers it, `request` leads what we ask.

mod action;
mod receive;
mod request;

use std::{collections::VecDeque, fmt, net::SocketAddr, time::Instant};

use bytes::BytesMut;
use ipnet::IpNet;
use rand::rngs::StdRng;

pub use action::{Action, Counters, TalkAction};
use request::{Purpose, Request};

use super::{
    call::Calls,
    challenge::STRANGERS_PER_SECOND,
    crypto::Crypto,
    header::{MAX_MESSAGE, Unmasker},
    peer::Peer,
    talk::{TalkServer, TalkToken},
    wire::Wire,
};
use crate::{
    Now,
    kademlia::{
        CallError, Contact, Event, Protocol, Query, QueryId, Searches, Source, Table, Target,
        subnets::is_exempt,
    },
    node::{Reach, Record},
};

/// How often one call of `handle_timeout` looks again for what has become due meanwhile.
const MAX_ROUNDS: usize = 16;

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
    wire: Wire<C>,
    rng: StdRng,
    reach: Reach,
    table: Table,
    calls: Calls<Purpose>,
    talk: TalkServer,
    searches: Searches<TalkAction>,
    actions: VecDeque<Action>,
    counters: Counters,
    /// Where the message being made is encoded.
    message: BytesMut,
    /// Where the message being read was opened to.
    plaintext: Vec<u8>,
}

impl<C: Crypto> fmt::Debug for Engine<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wire, table, calls, .. } = self;
        let (record, sessions) = (wire.record(), wire.sessions());
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
        let Config { sessions, restrict, bootnodes, strangers_per_second } = config;
        let own = Target::from(record.public_key());
        let mut engine = Self {
            wire: Wire::new(crypto, record.clone(), sessions, strangers_per_second, &mut rng),
            reach: Reach::new(restrict, &record),
            table: Table::new(record.id(), &mut rng),
            calls: Calls::default(),
            talk: TalkServer::default(),
            searches: Searches::new(Protocol::V5, own, bootnodes, now.mono, &mut rng),
            actions: VecDeque::new(),
            counters: Counters::default(),
            message: BytesMut::new(),
            plaintext: Vec::new(),
            rng,
        };
        engine.set_local_record(record);
        engine
    }

    /// A datagram came. Those that are not for us are counted and forgotten.
    pub fn handle_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) {
        self.receive(now, from, bytes);
        self.drive(now);
    }

    /// The time that [`Self::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: Now) {
        // What is done may make something else due at once: a bootnode that was added during a refresh makes the next
        // one due at its end. A time left in the past would wake the driver again for nothing. The bound is far above
        // what one round can set off, and is there so that a mistake of ours costs a wake-up and not the thread.
        for _ in 0..MAX_ROUNDS {
            self.do_due(now);
            if self.poll_timeout().is_none_or(|at| at > now.mono) {
                return;
            }
        }
    }

    fn do_due(&mut self, now: Now) {
        while let Some(id) = self.calls.expired(now.mono) {
            self.counters.requests_timed_out += 1;
            self.end_call(now, &id, Err(CallError::Timeout));
        }
        while let Some((_, asker)) = self.talk.expired(now.mono) {
            self.counters.talk_expired += 1;
            self.respond_talk(now, &asker, &[]);
        }
        self.check_table(now);
        self.searches.handle_timeout(now, &mut self.table, &self.reach);
        self.drive(now);
    }

    /// When [`Self::handle_timeout`] is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timers = [
            self.calls.next_timeout(),
            self.talk.next_timeout(),
            self.table.poll_timeout(),
            self.searches.poll_timeout(&self.table),
        ];
        timers.into_iter().flatten().min()
    }

    /// The next thing that happened.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Appends the next packet to send to `out` and says where it goes.
    pub fn poll_transmit(&mut self, _now: Now, out: &mut BytesMut) -> Option<SocketAddr> {
        self.wire.poll_transmit(&mut self.counters, out)
    }

    /// What tells discv5 packets for us from all others; the demultiplexer keeps a copy.
    #[must_use]
    pub fn unmasker(&self) -> &Unmasker {
        self.wire.unmasker()
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

    /// Whether searches and requests keep their bounds; for tests and fuzzing.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_consistent(&self) -> bool {
        self.searches.is_consistent() && self.calls.len() <= super::call::MAX_CALLS
    }

    /// Replaces our record. It must be signed by the same key.
    pub fn set_local_record(&mut self, record: Record) {
        debug_assert_eq!(record.id(), self.table.own_id(), "a node keeps its id");
        self.reach.set_local_record(&record);
        self.table.set_private(self.reach.is_private());
        self.wire.set_record(record);
    }

    /// Adds a node that every refresh starts from, and refreshes. Its record may be missing: the key is enough.
    pub fn add_bootnode(&mut self, now: Now, node: Contact) {
        self.searches.add_bootnode(now, node);
    }

    /// Offers a node of the node database to the table.
    pub fn add_seed(&mut self, now: Now, node: Contact) {
        self.offer(now, node, Source::Database);
        self.drive(now);
    }

    /// How many [`Action::Discovered`] are wanted from now on. None are looked for while it is zero.
    pub fn set_demand(&mut self, now: Now, wanted: usize) {
        self.searches.set_demand(wanted);
        self.drive(now);
    }

    /// Which TALKREQ protocols are served.
    pub fn set_talk_protocols(&mut self, protocols: impl IntoIterator<Item = Vec<u8>>) {
        self.talk.set_protocols(protocols);
    }

    /// Answers a caller's query by an action that names `id`, or refuses it at once.
    pub fn query(&mut self, now: Now, id: QueryId, query: &Query) -> Result<(), CallError> {
        match query {
            Query::Ping(node) => self.ping(now, id, node),
            Query::Lookup(target) => self.lookup(now, id, *target),
            Query::Resolve(target) => self.resolve(now, id, *target, None),
        }
    }

    /// Pings a node; ends in [`Action::PingResult`].
    pub fn ping(&mut self, now: Now, query: QueryId, node: &Contact) -> Result<(), CallError> {
        self.begin_call(now, node, &Request::Ping, Purpose::Ping(query))
    }

    /// Looks for the nodes closest to `target`; ends in [`Action::LookupDone`].
    pub fn lookup(&mut self, now: Now, query: QueryId, target: impl Into<Target>) -> Result<(), CallError> {
        let begun = self.searches.lookup(&self.table, query, target.into());
        self.drive(now);
        begun
    }

    /// Finds a node's newest record: asks the node itself if the table has it or `hint` says where it may be, and looks
    /// it up if it does not answer. Ends in [`Action::Resolved`].
    pub fn resolve(
        &mut self,
        now: Now,
        query: QueryId,
        target: impl Into<Target>,
        hint: Option<Contact>,
    ) -> Result<(), CallError> {
        let begun = self.searches.resolve(&self.table, query, target.into(), hint);
        self.drive(now);
        begun
    }

    /// Asks an application at `node`; ends in [`TalkAction::Result`].
    pub fn talk(
        &mut self,
        now: Now,
        query: QueryId,
        node: &Contact,
        protocol: &[u8],
        request: &[u8],
    ) -> Result<(), CallError> {
        self.begin_call(now, node, &Request::Talk { protocol, request }, Purpose::Talk(query))
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

    /// Asks what the searches want to know, and passes on what came of them and what happened in the table.
    fn drive(&mut self, now: Now) {
        while let Some(question) = self.searches.poll_question(now, &mut self.table) {
            if self.ask(now, &question).is_err() {
                self.searches.unasked(&self.table, &question);
            }
        }
        self.counters.lookups_refused += self.searches.take_refused();
        self.actions.extend(std::iter::from_fn(|| self.searches.poll_action()));
        while let Some(event) = self.table.poll_event() {
            if matches!(event, Event::Removed(..)) && self.table.is_empty() {
                self.searches.table_emptied(now);
            }
            self.actions.push_back(Action::Table(event));
        }
    }
}

#[cfg(test)]
mod tests;
