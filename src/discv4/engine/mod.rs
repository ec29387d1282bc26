//! The engine: one discv4 node without a socket and without a clock.
//!
//! It has the shape of all engines (see the crate's docs). The owner feeds datagrams and timeouts, calls commands,
//! and after each of these takes all actions and packets. [`Engine::handle_datagram`] also says what became of the
//! datagram. Its parts: [`inbound`] reads what comes, [`asking`] leads the conversations, [`searching`] runs lookups,
//! refreshes and the random walk.

mod asking;
mod inbound;
mod searching;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use rand::rngs::StdRng;

use super::{
    action::{Action, Config, Local, QueryId},
    bonds::Bonds,
    conversation::{Ask, Conversations, RecordFor},
    crypto::Crypto,
    limits::Limits,
    outbox::Outbox,
    skew::Skew,
    verdict::Counters,
};
use crate::{
    Now,
    kademlia::{CallError, Contact, Event, RandomWalk, Refresh, Source, Table},
    node::{NodeId, PublicKey, Reach},
};
use searching::Search;

/// How long a node that proved itself waits for its place in the table, and so for anything unasked from us.
/// Conformance suites read the very next packet after the bond, within 300 ms.
const QUIET: Duration = Duration::from_secs(1);
/// The most nodes that wait for their place in the table.
const MAX_ADMISSIONS: usize = 1024;

/// How often one call of `handle_timeout` looks again for what has become due meanwhile.
const MAX_ROUNDS: usize = 16;
/// The most bootnodes.
const MAX_BOOTNODES: usize = 256;

/// One discv4 node.
#[derive(Debug)]
pub struct Engine<C> {
    crypto: C,
    id: NodeId,
    config: Config,
    local: Local,
    reach: Reach,
    table: Table,
    bonds: Bonds,
    limits: Limits,
    skew: Skew,
    conversations: Conversations,
    /// Nodes that proved themselves, by when they come to the table.
    admissions: VecDeque<(Instant, Contact)>,
    admitted: HashSet<NodeId>,
    searches: HashMap<u64, Search>,
    next_search: u64,
    refresh: Refresh,
    /// When the lookups of the refresh begin, after seeds had time to come.
    refresh_lookups_at: Option<Instant>,
    refresh_lookups: usize,
    walk: RandomWalk,
    candidates: VecDeque<Contact>,
    candidates_asked: usize,
    outbox: Outbox,
    actions: VecDeque<Action>,
    counters: Counters,
    rng: StdRng,
}

impl<C: Crypto> Engine<C> {
    /// A node that begins its first refresh at the next timeout, which is due at once.
    #[must_use]
    pub fn new(config: Config, crypto: C, local: Local, mut rng: StdRng, now: Now) -> Self {
        let id = crypto.public_key().id();
        let mut engine = Self {
            id,
            table: Table::new(id, &mut rng),
            bonds: Bonds::default(),
            limits: Limits::new(config.rates),
            skew: Skew::default(),
            conversations: Conversations::default(),
            admissions: VecDeque::new(),
            admitted: HashSet::new(),
            searches: HashMap::new(),
            next_search: 0,
            refresh: Refresh::new(now.mono),
            refresh_lookups_at: None,
            refresh_lookups: 0,
            walk: RandomWalk::new(now.mono),
            candidates: VecDeque::new(),
            candidates_asked: 0,
            outbox: Outbox::default(),
            actions: VecDeque::new(),
            counters: Counters::default(),
            crypto,
            reach: Reach::new(config.restrict.clone(), &local.record),
            config,
            local: local.clone(),
            rng,
        };
        engine.set_local(local);
        engine
    }

    /// Our record or endpoint changed.
    pub fn set_local(&mut self, local: Local) {
        self.reach.set_local_record(&local.record);
        self.table.set_private(self.reach.is_private());
        self.local = local;
    }

    /// Adds a node that is asked at every refresh, and refreshes now.
    pub fn add_bootnode(&mut self, now: Now, contact: Contact) {
        let known = self.config.bootnodes.iter().any(|known| known.id == contact.id);
        if !known && self.config.bootnodes.len() < MAX_BOOTNODES {
            self.config.bootnodes.push(contact);
            self.refresh.now(now.mono);
        }
    }

    /// Adds a node of the database to the table.
    pub fn add_seed(&mut self, now: Now, contact: Contact) {
        if self.may_contact(&contact) {
            self.table.insert(now, contact, Source::Database);
            self.drain_table(now);
        }
    }

    /// Takes a node out of the table: it was banned, or restricted.
    pub fn remove(&mut self, now: Now, id: &NodeId) {
        self.table.remove(now, id);
        self.drain_table(now);
    }

    /// How many candidates are wanted; zero means no lookups. They come as [`Action::Discovered`].
    pub fn set_demand(&mut self, now: Now, wanted: usize) {
        self.walk.set_demand(wanted);
        self.ask_candidates(now);
    }

    /// Pings a node. Answered by [`Action::PingResult`].
    pub fn ping(&mut self, now: Now, query: QueryId, contact: &Contact) -> Result<(), CallError> {
        self.try_ask(now, contact, Ask::Ping(query))
    }

    /// Asks a node for its record. Answered by [`Action::RecordResult`].
    pub fn request_enr(&mut self, now: Now, query: QueryId, contact: &Contact) {
        if !self.ask(now, contact, Ask::Record(RecordFor::Query(query))) {
            self.actions.push_back(Action::RecordResult { query, record: None });
        }
    }

    /// Looks for the nodes closest to a key; any 64 bytes will do. Answered by [`Action::LookupNode`] for each node
    /// and [`Action::LookupDone`].
    pub fn lookup(&mut self, now: Now, query: QueryId, target: [u8; 64]) -> Result<(), CallError> {
        self.search(now, target, searching::Purpose::Lookup(query))
    }

    /// Finds a node's newest record and address. Answered by [`Action::Resolved`]. `hint` says where the node may
    /// be; without `key` a node that is neither hinted nor in the table cannot be found.
    pub fn resolve(
        &mut self,
        now: Now,
        query: QueryId,
        id: NodeId,
        key: Option<PublicKey>,
        hint: Option<Contact>,
    ) -> Result<(), CallError> {
        self.resolve_node(now, query, id, key, hint)
    }

    /// Our key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.crypto.public_key()
    }

    /// The table, for its snapshot.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many nodes we are waiting for.
    #[must_use]
    pub fn conversations(&self) -> usize {
        self.conversations.len()
    }

    /// Whether the engine's indices agree with each other; for tests and fuzzing.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.conversations.is_consistent()
            && self.admissions.len() == self.admitted.len()
            && self.admissions.len() <= MAX_ADMISSIONS
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        // What is done may make something else due at once: the end of the first refresh lets in those that waited for
        // it. A time left in the past would wake the driver again for nothing. The bound is far above what one round can
        // set off, and is there so that a mistake of ours costs a wake-up and not the thread.
        for _ in 0..MAX_ROUNDS {
            self.do_due(now);
            if self.poll_timeout().is_none_or(|at| at > now.mono) {
                return;
            }
        }
    }

    fn do_due(&mut self, now: Now) {
        while let Some((peer, due)) = self.conversations.pop_due(now.mono) {
            self.due(now, peer, due);
        }
        while self.next_admission().is_some_and(|at| at <= now.mono) {
            if let Some((_, contact)) = self.admissions.pop_front() {
                self.admitted.remove(&contact.id);
                self.table.insert(now, contact, Source::Inbound);
            }
        }
        while let Some(contact) = self.table.poll_check(now) {
            if !self.ask(now, &contact, Ask::Check) {
                self.table.check_skipped(&contact.id);
            }
        }
        self.search_if_due(now);
        self.drain_table(now);
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let times = [
            self.conversations.next_deadline(),
            self.next_admission(),
            self.table.poll_timeout(),
            self.search_timeout(),
        ];
        times.into_iter().flatten().min()
    }

    /// The next action.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Writes the next packet into `out` and returns where it goes.
    pub fn poll_transmit(&mut self, _now: Now, out: &mut BytesMut) -> Option<SocketAddr> {
        self.outbox.pop(out)
    }

    /// When the next node comes to the table. Before the first refresh is over they all wait: whoever hears us start
    /// up shall not be first in every bucket, but neither shall it have to come again (go-ethereum#30243).
    fn next_admission(&self) -> Option<Instant> {
        self.admissions.front().map(|(at, _)| *at).filter(|_| self.table.takes_inbound())
    }

    /// Passes on what happened in the table.
    fn drain_table(&mut self, now: Now) {
        while let Some(event) = self.table.poll_event() {
            if matches!(event, Event::Removed(..)) && self.table.is_empty() {
                self.refresh.table_is_empty(now.mono, &mut self.rng);
            }
            self.actions.push_back(Action::Table(event));
        }
    }

    fn may_contact(&self, contact: &Contact) -> bool {
        contact.udp_addr().is_some() && contact.id != self.id && self.reach.may_ask(contact.endpoint.ip)
    }
}

#[cfg(test)]
mod tests;
