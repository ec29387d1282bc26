//! The engine: one discv4 node without a socket and without a clock.
//!
//! It has the shape of all engines (see the crate's docs), and the same public shape as discv5's. The owner feeds
//! datagrams and timeouts, calls commands, and after each of these takes all actions and packets.
//! [`Engine::handle_datagram`] also says what became of the datagram.
//!
//! Which node is asked next, and why, is decided by [`Searches`]. What stands here is how discv4 asks it: a node proves
//! its address first, then it is asked one thing at a time. [`receive`] reads what comes and answers it, [`request`]
//! leads our half of the conversations.

mod receive;
mod request;

use std::{collections::VecDeque, net::SocketAddr, time::Instant};

use bytes::BytesMut;
use rand::rngs::StdRng;

use super::{
    action::{Action, ClockSkew, Config},
    admissions::Admissions,
    bonds::Bonds,
    conversation::{Ask, Conversations},
    crypto::Crypto,
    limits::Limits,
    outbox::Outbox,
    skew::Skew,
    verdict::Counters,
};
use crate::{
    Now,
    kademlia::{
        CallError, Contact, Event, Protocol, Query, QueryId, Searches, Source, Table, Target, searches::Wants,
    },
    node::{Reach, Record},
};

/// How often one call of `handle_timeout` looks again for what has become due meanwhile.
const MAX_ROUNDS: usize = 16;

/// One discv4 node.
#[derive(Debug)]
pub struct Engine<C> {
    crypto: C,
    /// Our record. Its sequence number goes out with every PING and PONG.
    record: Record,
    reach: Reach,
    table: Table,
    bonds: Bonds,
    limits: Limits,
    skew: Skew,
    conversations: Conversations,
    admissions: Admissions,
    searches: Searches<ClockSkew>,
    outbox: Outbox,
    actions: VecDeque<Action>,
    counters: Counters,
}

impl<C: Crypto> Engine<C> {
    /// The engine of the node whose record is `record` and whose key `crypto` has. Refreshes its table at once.
    #[must_use]
    pub fn new(now: Now, config: Config, crypto: C, record: Record, mut rng: StdRng) -> Self {
        let Config { restrict, bootnodes, rates } = config;
        let own = Target::from(crypto.public_key());
        let mut engine = Self {
            table: Table::new(own.id(), &mut rng),
            bonds: Bonds::default(),
            limits: Limits::new(rates),
            skew: Skew::default(),
            conversations: Conversations::default(),
            admissions: Admissions::default(),
            searches: Searches::new(Protocol::V4, own, bootnodes, now.mono, &mut rng),
            outbox: Outbox::default(),
            actions: VecDeque::new(),
            counters: Counters::default(),
            crypto,
            reach: Reach::new(restrict, &record),
            record: record.clone(),
        };
        engine.set_local_record(record);
        engine
    }

    /// Replaces our record. It must be signed by the same key.
    pub fn set_local_record(&mut self, record: Record) {
        debug_assert_eq!(record.id(), self.table.own_id(), "a node keeps its id");
        self.reach.set_local_record(&record);
        self.table.set_private(self.reach.is_private());
        self.record = record;
    }

    /// Adds a node that every refresh starts from, and refreshes.
    pub fn add_bootnode(&mut self, now: Now, node: Contact) {
        self.searches.add_bootnode(now, node);
    }

    /// Offers a node of the node database to the table.
    pub fn add_seed(&mut self, now: Now, node: Contact) {
        if self.reach.allows(node.endpoint.ip) {
            self.table.insert(now, node, Source::Database);
        }
        self.drive(now);
    }

    /// How many [`Action::Discovered`] are wanted from now on. None are looked for while it is zero.
    pub fn set_demand(&mut self, now: Now, wanted: usize) {
        self.searches.set_demand(wanted);
        self.drive(now);
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
        self.try_ask(now, node, Ask::Ping(query))
    }

    /// Looks for the nodes closest to a key, any 64 bytes; ends in [`Action::LookupDone`].
    pub fn lookup(&mut self, now: Now, query: QueryId, target: impl Into<Target>) -> Result<(), CallError> {
        let begun = self.searches.lookup(&self.table, query, target.into());
        self.drive(now);
        begun
    }

    /// Finds a node's newest record and address; ends in [`Action::Resolved`]. `hint` says where the node may be; without
    /// a key a node that is neither hinted nor in the table cannot be found.
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

    /// Whether the engine's indices agree with each other; for tests and fuzzing.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_consistent(&self) -> bool {
        self.conversations.is_consistent() && self.admissions.is_consistent() && self.searches.is_consistent()
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
        while self.table.takes_inbound()
            && let Some(contact) = self.admissions.pop_due(now.mono)
        {
            self.table.insert(now, contact, Source::Inbound);
        }
        while let Some(contact) = self.table.poll_check(now) {
            if self.try_ask(now, &contact, Ask::Check).is_err() {
                self.table.check_skipped(&contact.id);
            }
        }
        self.searches.handle_timeout(now, &mut self.table, &self.reach);
        self.drive(now);
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let times = [
            self.conversations.next_deadline(),
            self.next_admission(),
            self.table.poll_timeout(),
            self.searches.poll_timeout(&self.table),
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
        self.admissions.next().filter(|_| self.table.takes_inbound())
    }

    /// Asks what the searches want to know, and passes on what came of them and what happened in the table.
    fn drive(&mut self, now: Now) {
        while let Some(question) = self.searches.poll_question(now, &mut self.table) {
            let ask = match question.wants {
                Wants::Nodes => Ask::FindNode(question.search),
                Wants::Record => Ask::Record(Some(question.search)),
            };
            if self.try_ask(now, &question.to, ask).is_err() {
                self.searches.unasked(&self.table, &question);
            }
        }
        self.counters.too_busy += self.searches.take_refused();
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
