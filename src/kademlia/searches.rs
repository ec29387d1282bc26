//! Searches: which node is asked next, and why. Refreshes of the table, the random walk, and what callers look for.
//!
//! One machine for both protocols. It chooses the node and the question ([`Searches::poll_question`]). The engine asks
//! in its protocol's way and reports the result, by the id of the question's search:
//!
//! ```text
//!  handle_timeout ─┐                  ┌─> poll_question ─> the engine asks ─> told, answered, record_came
//!  lookup, resolve ┼─> lookups, walk ─┤                          └─ cannot ask ─> unasked
//!  told, answered …┘                  └─> poll_action: nodes met, lookups ended, candidates, seeds wanted
//! ```
//!
//! After each call, drain `poll_question` and then `poll_action`. Answers with an id that is over, or of a node that
//! was not asked, change no lookup. The protocols differ in three habits, each kept as it was measured:
//!
//! | | discv4 | discv5 |
//! | --- | --- | --- |
//! | the walk meets a node | asks for its record: it came without one | it is a candidate: it came with its record |
//! | a refresh | begins its lookups together | looks for our own id first, then for random ones |
//! | a refresh left few nodes | comes again soon | comes again soon if it left none |
//!
//! Left out: packets, proofs, sessions and timeouts of requests (the engines); one lookup's own state ([`Lookup`]).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use rand::{RngCore, SeedableRng, rngs::StdRng};

use super::{
    Action, CallError, Contact, Lookup, Protocol, QueryId, RandomWalk, Refresh, Source, Table, Target,
    bucket::BUCKET_SIZE, query::MAX_LOOKUPS, refresh::RANDOM_LOOKUPS,
};
use crate::{
    Now,
    node::{NodeId, Reach},
};

/// How long a refresh waits for nodes from the database before its lookups begin: a disk answers within this.
const SEED_WAIT: Duration = Duration::from_millis(200);
/// The most bootnodes; networks have a dozen.
const MAX_BOOTNODES: usize = 256;
/// The most nodes that are being asked for their record at a time. The engines' own queues are as long.
const MAX_RECORDS: usize = 4096;

/// Names a search in its questions and their answers. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SearchId(u64);

/// A question to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// A request for the nodes that it has near the search's target ([`Searches::target`]). Report [`Searches::told`]
    /// and [`Searches::answered`].
    Nodes,
    /// Its own record. Answered by [`Searches::record_came`].
    Record,
}

/// Something to ask a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The search that asks.
    pub search: SearchId,
    /// The node to ask.
    pub to: Contact,
    /// The question.
    pub wants: Wants,
}

/// The purpose of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Refresh,
    Walk,
    Query(QueryId),
    Resolve(QueryId),
}

#[derive(Debug)]
struct Search {
    purpose: Purpose,
    target: Target,
    lookup: Lookup,
}

/// The purpose of a request for a node's record.
#[derive(Debug)]
enum RecordFor {
    /// The random walk: it is a candidate.
    Walk(Contact),
    /// A query to resolve it. `searched`: a lookup has been made already.
    Resolve { query: QueryId, target: Target, known: Contact, searched: bool },
}

/// All searches of one engine. `Own` is what its actions have beside those of both protocols.
#[derive(Debug)]
pub struct Searches<Own> {
    protocol: Protocol,
    own: Target,
    bootnodes: Vec<Contact>,
    /// In the order in which they began, so that runs repeat.
    lookups: BTreeMap<SearchId, Search>,
    /// Lookups that may want to ask the next node, or may have ended.
    ready: BTreeSet<SearchId>,
    /// Nodes that are asked for their record, or wait to be taken by [`Self::poll_question`].
    records: BTreeMap<SearchId, RecordFor>,
    to_ask: VecDeque<(SearchId, Contact)>,
    next: u64,
    refresh: Refresh,
    /// When the lookups of the refresh under way begin, after seeds had time to come.
    lookups_at: Option<Instant>,
    /// Lookups of the refresh that have not ended.
    refreshing: usize,
    walk: RandomWalk,
    actions: VecDeque<Action<Own>>,
    refused: u64,
    rng: StdRng,
}

impl<Own> Searches<Own> {
    /// No searches yet. The first refresh is due at once and starts from the bootnodes.
    #[must_use]
    pub fn new(
        protocol: Protocol,
        own: Target,
        bootnodes: Vec<Contact>,
        now: Instant,
        rng: &mut StdRng,
    ) -> Self {
        Self {
            protocol,
            own,
            bootnodes,
            lookups: BTreeMap::new(),
            ready: BTreeSet::new(),
            records: BTreeMap::new(),
            to_ask: VecDeque::new(),
            next: 0,
            refresh: Refresh::new(now),
            lookups_at: None,
            refreshing: 0,
            walk: RandomWalk::new(now),
            actions: VecDeque::new(),
            refused: 0,
            rng: StdRng::from_rng(rng),
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self, table: &Table) -> Option<Instant> {
        let refresh = match self.lookups_at {
            None if self.refreshing > 0 => None,
            None => Some(self.refresh.poll_timeout()),
            at => at,
        };
        // A walk through an empty table would end where it began.
        let walk = self.walk.poll_timeout().filter(|_| !table.is_empty());
        refresh.into_iter().chain(walk).min()
    }

    /// Begins the refreshes and walks that are due.
    pub fn handle_timeout(&mut self, now: Now, table: &mut Table, reach: &Reach) {
        let refreshing = self.refreshing > 0 || self.lookups_at.is_some();
        if !refreshing && self.refresh.is_due(now.mono, &mut self.rng) {
            self.actions.push_back(Action::SeedsWanted);
            for bootnode in self.bootnodes.iter().filter(|node| reach.may_ask(node.endpoint.ip)) {
                table.insert(now, bootnode.clone(), Source::Bootnode);
            }
            self.lookups_at = Some(now.mono + SEED_WAIT);
        }
        if self.lookups_at.is_some_and(|at| at <= now.mono) {
            self.lookups_at = None;
            self.refreshing = 1 + RANDOM_LOOKUPS;
            self.begin(now, table, self.own, Purpose::Refresh);
            if self.protocol == Protocol::V4 {
                self.refresh_at_random(now, table);
            }
        }
        if !table.is_empty() && self.walk.start(now.mono) {
            let target = self.random_target();
            self.begin(now, table, target, Purpose::Walk);
        }
    }

    /// Adds a node that every refresh starts from, and refreshes. It is not added if it is known or there are too many.
    pub fn add_bootnode(&mut self, now: Now, contact: Contact) {
        let known = self.bootnodes.iter().any(|known| known.id == contact.id);
        if !known && self.bootnodes.len() < MAX_BOOTNODES {
            self.bootnodes.push(contact);
            self.refresh.now(now.mono);
        }
    }

    /// How many candidates are wanted from now on; none are looked for while it is zero.
    pub fn set_demand(&mut self, wanted: usize) {
        self.walk.set_demand(wanted);
    }

    /// The last node has left the table: it is refreshed soon.
    pub fn table_emptied(&mut self, now: Now) {
        self.refresh.table_is_empty(now.mono, &mut self.rng);
    }

    /// Looks for the nodes closest to `target`. Ends in [`Action::LookupDone`].
    pub fn lookup(&mut self, table: &Table, query: QueryId, target: Target) -> Result<(), CallError> {
        self.search(table, target, Purpose::Query(query))
    }

    /// Finds the newest record and address of a node: asks the node itself if the table has it or `hint` gives a
    /// possible address, and makes a lookup if it does not answer. Ends in [`Action::Resolved`].
    pub fn resolve(
        &mut self,
        table: &Table,
        query: QueryId,
        target: Target,
        hint: Option<Contact>,
    ) -> Result<(), CallError> {
        let known = table.get(&target.id()).map(|entry| entry.contact.clone());
        if let Some(known) = known.or(hint).filter(|contact| contact.udp_addr().is_some()) {
            if self.records.len() >= MAX_RECORDS {
                return Err(CallError::QueueFull);
            }
            let contact = known.clone();
            self.ask_record(contact, RecordFor::Resolve { query, target, known, searched: false });
            return Ok(());
        }
        match self.search(table, target, Purpose::Resolve(query)) {
            // Neither an address nor a key: there is no way to find it.
            Err(CallError::KeyNeeded) => {
                self.actions.push_back(Action::Resolved { query, contact: None });
                Ok(())
            }
            begun => begun,
        }
    }

    /// The next node to ask. Call until `None`, and report the result of each question.
    pub fn poll_question(&mut self, now: Now, table: &mut Table) -> Option<Question> {
        loop {
            if let Some((search, to)) = self.to_ask.pop_front() {
                return Some(Question { search, to, wants: Wants::Record });
            }
            if let Some(candidate) = self.walk.next_candidate() {
                self.ask_candidate(table, candidate);
                continue;
            }
            let number = self.ready.pop_first()?;
            let Some(search) = self.lookups.get_mut(&number) else { continue };
            let is_found =
                matches!(search.purpose, Purpose::Resolve(_)) && search.lookup.found_target().is_some();
            if is_found || search.lookup.is_done() {
                if let Some(search) = self.lookups.remove(&number) {
                    self.search_ended(now, table, &search);
                }
            } else if let Some(to) = search.lookup.next_to_ask() {
                self.ready.insert(number);
                return Some(Question { search: number, to, wants: Wants::Nodes });
            }
        }
    }

    /// The target of the lookup `search`; `None` if the lookup has ended.
    #[must_use]
    pub fn target(&self, search: SearchId) -> Option<Target> {
        self.lookups.get(&search).map(|search| search.target)
    }

    /// The node could not be asked: its address may not be written to, or too much waits.
    pub fn unasked(&mut self, table: &Table, question: &Question) {
        let Question { search, to, wants } = question;
        match wants {
            Wants::Record => self.record_came(table, *search, None, false),
            Wants::Nodes => {
                if let Some(lookup) = self.lookups.get_mut(search) {
                    lookup.lookup.failed(&to.id);
                    self.ready.insert(*search);
                }
            }
        }
    }

    /// The node `by`, which the lookup asked, answered with these nodes. The table takes them, if it has room.
    pub fn told(&mut self, now: Now, table: &mut Table, search: SearchId, by: NodeId, told: Vec<Contact>) {
        for contact in &told {
            table.insert(now, contact.clone(), Source::Relayed { by });
        }
        let asked = self.lookups.get_mut(&search).filter(|search| search.lookup.is_asked(&by));
        let Some(Search { purpose, lookup, .. }) = asked else { return };
        let (purpose, news) = (*purpose, lookup.offer(told));
        self.ready.insert(search);
        self.met(purpose, news);
    }

    /// The node `by`, which the lookup asked, has completed its answer, or has not answered in time.
    pub fn answered(&mut self, now: Now, table: &mut Table, search: SearchId, by: &NodeId, answered: bool) {
        table.request_ended(now, by, answered);
        let Some(Search { lookup, .. }) = self.lookups.get_mut(&search) else { return };
        if answered {
            lookup.answered(by);
        } else {
            lookup.failed(by);
        }
        self.ready.insert(search);
    }

    /// The request for a node's record ended, with or without the record. `answered`: the node is at its address
    /// although no acceptable record came.
    pub fn record_came(&mut self, table: &Table, search: SearchId, contact: Option<Contact>, answered: bool) {
        match (self.records.remove(&search), contact) {
            (None, _) => {}
            (Some(RecordFor::Walk(known)), contact) => {
                self.walk.candidate_ended();
                if answered {
                    self.discovered(contact.unwrap_or(known));
                }
            }
            (Some(RecordFor::Resolve { query, .. }), Some(contact)) => {
                self.actions.push_back(Action::Resolved { query, contact: Some(contact) });
            }
            (Some(RecordFor::Resolve { query, target, known, searched }), None) => {
                // Without room to look for a newer address, the known one is what there is.
                if searched || self.search(table, target, Purpose::Resolve(query)).is_err() {
                    self.resolved(table, query, target, Some(known));
                }
            }
        }
    }

    /// The next thing that happened.
    pub fn poll_action(&mut self) -> Option<Action<Own>> {
        self.actions.pop_front()
    }

    /// How many lookups run.
    #[must_use]
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lookups.len()
    }

    /// Whether no lookup runs.
    #[must_use]
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.lookups.is_empty()
    }

    /// How many lookups were refused since this was last asked.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    /// Whether every bound and every count holds; for tests and fuzzing.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_consistent(&self) -> bool {
        let of = |purpose| self.lookups.values().filter(|search| search.purpose == purpose).count();
        let candidates = self.records.values().filter(|why| matches!(why, RecordFor::Walk(_))).count();
        self.lookups.len() <= MAX_LOOKUPS
            && self.records.len() <= MAX_RECORDS + RandomWalk::MAX_ASKED
            && self.to_ask.len() <= self.records.len()
            && self.bootnodes.len() <= MAX_BOOTNODES
            && of(Purpose::Walk) == usize::from(self.walk.is_under_way())
            && of(Purpose::Refresh) <= self.refreshing
            && candidates == self.walk.candidates_asked()
    }

    /// Starts a lookup, unless too many run.
    fn search(&mut self, table: &Table, target: Target, purpose: Purpose) -> Result<(), CallError> {
        if self.protocol == Protocol::V4 && target.key().is_none() {
            return Err(CallError::KeyNeeded);
        }
        if self.lookups.len() >= MAX_LOOKUPS {
            self.refused += 1;
            return Err(CallError::TooManyLookups);
        }
        // A node that is to be resolved was silent at its address in the table. Other nodes may have its current
        // address.
        let asked = matches!(purpose, Purpose::Resolve(_)).then(|| target.id());
        let known = table.closest(&target.id(), BUCKET_SIZE, |entry| Some(entry.contact.id) != asked);
        let known: Vec<Contact> = known.into_iter().cloned().collect();
        let number = self.number();
        let lookup = Lookup::new(target.id(), self.own.id(), known.iter().cloned());
        self.lookups.insert(number, Search { purpose, target, lookup });
        self.ready.insert(number);
        self.met(purpose, known);
        Ok(())
    }

    /// Starts a lookup of our own. One that finds no room ends at once.
    fn begin(&mut self, now: Now, table: &mut Table, target: Target, purpose: Purpose) {
        if self.search(table, target, purpose).is_err() {
            self.own_search_ended(now, table, purpose);
        }
    }

    fn refresh_at_random(&mut self, now: Now, table: &mut Table) {
        for _ in 0..RANDOM_LOOKUPS {
            let target = self.random_target();
            self.begin(now, table, target, Purpose::Refresh);
        }
    }

    /// A lookup learned of these nodes.
    fn met(&mut self, purpose: Purpose, contacts: Vec<Contact>) {
        for contact in contacts {
            match (purpose, self.protocol) {
                (Purpose::Query(query), _) => {
                    self.actions.push_back(Action::LookupNode { query, contact });
                }
                (Purpose::Walk, Protocol::V4) => self.walk.met(contact),
                (Purpose::Walk, Protocol::V5) => self.discovered(contact),
                (Purpose::Refresh | Purpose::Resolve(_), _) => {}
            }
        }
    }

    /// Asks a candidate for its record, unless the table has it and the node is live there.
    fn ask_candidate(&mut self, table: &Table, candidate: Contact) {
        let entry = table.get(&candidate.id).filter(|entry| entry.live && entry.contact.record.is_some());
        match entry {
            Some(entry) => {
                self.walk.candidate_ended();
                self.discovered(entry.contact.clone());
            }
            None => self.ask_record(candidate.clone(), RecordFor::Walk(candidate)),
        }
    }

    fn ask_record(&mut self, to: Contact, why: RecordFor) {
        let number = self.number();
        self.records.insert(number, why);
        self.to_ask.push_back((number, to));
    }

    fn discovered(&mut self, contact: Contact) {
        self.walk.found();
        self.actions.push_back(Action::Discovered(contact));
    }

    fn search_ended(&mut self, now: Now, table: &mut Table, search: &Search) {
        let Search { purpose, target, lookup } = search;
        match *purpose {
            Purpose::Query(query) => {
                let closest = lookup.closest().cloned().collect();
                self.actions.push_back(Action::LookupDone { query, closest });
            }
            Purpose::Resolve(query) => match lookup.found_target().cloned() {
                // Told by address alone: its record is asked for.
                Some(known) if known.record.is_none() && self.records.len() < MAX_RECORDS => {
                    let why =
                        RecordFor::Resolve { query, target: *target, known: known.clone(), searched: true };
                    self.ask_record(known, why);
                }
                found => self.resolved(table, query, *target, found),
            },
            purpose @ (Purpose::Walk | Purpose::Refresh) => self.own_search_ended(now, table, purpose),
        }
    }

    /// The end of a query to resolve a node: the newest of the results and the table's entry.
    fn resolved(&mut self, table: &Table, query: QueryId, target: Target, found: Option<Contact>) {
        let known = table.get(&target.id()).map(|entry| entry.contact.clone());
        let contact = [known, found].into_iter().flatten().max_by_key(Contact::seq);
        self.actions.push_back(Action::Resolved { query, contact });
    }

    /// A lookup of our own has ended.
    fn own_search_ended(&mut self, now: Now, table: &mut Table, purpose: Purpose) {
        match purpose {
            Purpose::Walk => self.walk.ended(),
            Purpose::Refresh => {
                self.refreshing = self.refreshing.saturating_sub(1);
                if self.refreshing == RANDOM_LOOKUPS && self.protocol == Protocol::V5 {
                    self.refresh_at_random(now, table);
                } else if self.refreshing == 0 {
                    table.take_inbound();
                    match self.protocol {
                        Protocol::V4 => self.refresh.ended(now.mono, table.in_use(), &mut self.rng),
                        Protocol::V5 if table.is_empty() => self.table_emptied(now),
                        Protocol::V5 => {}
                    }
                }
            }
            Purpose::Query(_) | Purpose::Resolve(_) => {}
        }
    }

    fn number(&mut self) -> SearchId {
        self.next += 1;
        SearchId(self.next)
    }

    fn random_target(&mut self) -> Target {
        let mut key = [0; 64];
        self.rng.fill_bytes(&mut key);
        key.into()
    }
}

#[cfg(test)]
mod tests;
