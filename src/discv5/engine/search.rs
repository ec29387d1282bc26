//! Lookups, and what makes them: commands, the random walk, the refresh of the table.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rand::RngCore;

use super::{
    Action, Engine, QueryId,
    request::{Purpose, Request},
};
use crate::{
    Now,
    discv5::{call::CallError, crypto::Crypto, peer::Peer},
    kademlia::{
        Contact, Lookup, RandomWalk, Refresh, Source, bucket::BUCKET_SIZE, call::MAX_LOOKUPS,
        distance::lookup_distances, refresh::RANDOM_LOOKUPS,
    },
    node::{NodeId, Record},
};

/// How long a refresh waits for the seeds that it asked for: a database on disk answers within this.
const SEED_WAIT: Duration = Duration::from_millis(200);

/// What a lookup was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// A refresh of the table: our own id first, then random ones.
    Refresh,
    /// The random walk.
    Walk,
    /// [`Engine::lookup`].
    Lookup(QueryId),
    /// [`Engine::resolve`].
    Resolve(QueryId),
}

#[derive(Debug)]
struct Search {
    lookup: Lookup,
    aim: Aim,
}

/// The lookups under way and what makes them. In the order in which they began, so that runs repeat.
#[derive(Debug)]
pub(super) struct Searches {
    running: BTreeMap<u64, Search>,
    next: u64,
    refresh: Refresh,
    /// When the lookups of a refresh begin, after seeds had time to come.
    lookups_at: Option<Instant>,
    /// Lookups of the refresh under way; the first one, of our own id, is followed by the random ones.
    refreshing: usize,
    walk: RandomWalk,
}

impl Searches {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            running: BTreeMap::new(),
            next: 0,
            refresh: Refresh::new(now),
            lookups_at: None,
            refreshing: 0,
            walk: RandomWalk::new(now),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [Some(self.refresh.poll_timeout()), self.lookups_at, self.walk.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    pub(super) fn refresh_now(&mut self, now: Instant) {
        self.refresh.now(now);
    }

    pub(super) fn set_demand(&mut self, wanted: usize) {
        self.walk.set_demand(wanted);
    }
}

impl<C: Crypto> Engine<C> {
    /// Looks for the nodes closest to `target`; ends in [`Action::LookupDone`].
    pub fn lookup(&mut self, now: Now, query: QueryId, target: NodeId) -> Result<(), CallError> {
        self.search(now, target, Aim::Lookup(query))?;
        self.report_table();
        Ok(())
    }

    /// Looks for the newest record of `id`: asks the node itself if the table has it, and looks it up if it does not
    /// answer. Ends in [`Action::Resolved`].
    pub fn resolve(&mut self, now: Now, query: QueryId, id: NodeId) -> Result<(), CallError> {
        let known = self.table.get(&id).map(|entry| entry.contact.clone());
        let asked = known.is_some_and(|contact| {
            self.begin_call(now, &contact, &Request::FindNode(vec![0]), Purpose::Resolve(query)).is_ok()
        });
        if !asked {
            self.search(now, id, Aim::Resolve(query))?;
        }
        self.report_table();
        Ok(())
    }

    /// The node that is to be resolved was asked for its record.
    pub(super) fn resolve_asked(&mut self, now: Now, query: QueryId, id: NodeId, record: Option<Record>) {
        if let Some(contact) = record.and_then(Contact::from_record) {
            self.offer(now, contact.clone(), Source::Relayed { by: id });
            self.actions.push_back(Action::Resolved { query, contact: Some(contact) });
        } else if self.search(now, id, Aim::Resolve(query)).is_err() {
            self.end_resolve(query, id, None);
        }
    }

    /// What refresh and walk have to do now.
    pub(super) fn search_on_time(&mut self, now: Now) {
        if self.searches.refresh.is_due(now.mono, &mut self.rng) {
            self.actions.push_back(Action::SeedsWanted);
            for bootnode in self.config.bootnodes.clone() {
                self.offer(now, bootnode, Source::Bootnode);
            }
            self.searches.lookups_at = Some(now.mono + SEED_WAIT);
        }
        if self.searches.lookups_at.is_some_and(|at| at <= now.mono) {
            self.searches.lookups_at = None;
            // A refresh that is still under way goes on; its end is this one's end.
            if self.searches.refreshing == 0 {
                self.searches.refreshing = 1 + RANDOM_LOOKUPS;
                self.search_or_skip(now, self.record.id(), Aim::Refresh);
            }
        }
        if self.searches.walk.start(now.mono) {
            let target = self.random_id();
            self.search_or_skip(now, target, Aim::Walk);
        }
        if self.table.is_empty() {
            self.searches.refresh.table_is_empty(now.mono, &mut self.rng);
        }
    }

    fn random_id(&mut self) -> NodeId {
        let mut id = NodeId([0; 32]);
        self.rng.fill_bytes(&mut id.0);
        id
    }

    fn search_or_skip(&mut self, now: Now, target: NodeId, aim: Aim) {
        if self.search(now, target, aim).is_err() {
            self.aim_ended(now, aim);
        }
    }

    /// Begins a lookup.
    fn search(&mut self, now: Now, target: NodeId, aim: Aim) -> Result<(), CallError> {
        if self.searches.running.len() >= MAX_LOOKUPS {
            self.counters.lookups_refused += 1;
            return Err(CallError::TooManyLookups);
        }
        let known: Vec<Contact> =
            self.table.closest(&target, BUCKET_SIZE, |_| true).into_iter().cloned().collect();
        for contact in &known {
            self.report_found(aim, contact);
        }
        let number = self.searches.next;
        self.searches.next += 1;
        let lookup = Lookup::new(target, self.record.id(), known);
        self.searches.running.insert(number, Search { lookup, aim });
        self.drive(now, number);
        Ok(())
    }

    /// Asks whom the lookup wants asked, and ends it if it is done.
    fn drive(&mut self, now: Now, number: u64) {
        loop {
            let Some(search) = self.searches.running.get_mut(&number) else { return };
            let target = search.lookup.target();
            let found = matches!(search.aim, Aim::Resolve(_)) && search.lookup.found_target().is_some();
            if found || search.lookup.is_done() {
                break;
            }
            let Some(contact) = search.lookup.next_to_ask() else { return };
            let id = contact.id;
            let mut distances = lookup_distances(&target, &id);
            if distances.is_empty() {
                // The target itself: whether it answers is what counts.
                distances.push(0);
            }
            let request = Request::FindNode(distances);
            if self.begin_call(now, &contact, &request, Purpose::Search(number)).is_err()
                && let Some(search) = self.searches.running.get_mut(&number)
            {
                search.lookup.failed(&id);
            }
        }
        if let Some(search) = self.searches.running.remove(&number) {
            self.search_ended(now, search);
        }
    }

    /// A node that a lookup asked has answered or not.
    pub(super) fn searched(
        &mut self,
        now: Now,
        number: u64,
        peer: Peer,
        answered: bool,
        records: Vec<Record>,
    ) {
        self.table.request_ended(now, &peer.id, answered);
        let told: Vec<Contact> = records.into_iter().filter_map(Contact::from_record).collect();
        for contact in &told {
            self.offer(now, contact.clone(), Source::Relayed { by: peer.id });
        }
        // A lookup that found what it wanted has ended before its last answers come.
        let Some(search) = self.searches.running.get_mut(&number) else { return };
        let (aim, news) = (search.aim, search.lookup.offer(told));
        if answered {
            search.lookup.answered(&peer.id);
        } else {
            search.lookup.failed(&peer.id);
        }
        for contact in &news {
            self.report_found(aim, contact);
        }
        self.drive(now, number);
    }

    fn report_found(&mut self, aim: Aim, contact: &Contact) {
        let contact = contact.clone();
        match aim {
            Aim::Walk => {
                self.searches.walk.found();
                self.actions.push_back(Action::Discovered(contact));
            }
            Aim::Lookup(query) => self.actions.push_back(Action::LookupNode { query, contact }),
            Aim::Refresh | Aim::Resolve(_) => {}
        }
    }

    fn search_ended(&mut self, now: Now, search: Search) {
        let Search { lookup, aim } = search;
        match aim {
            Aim::Lookup(query) => {
                let closest = lookup.closest().cloned().collect();
                self.actions.push_back(Action::LookupDone { query, closest });
            }
            Aim::Resolve(query) => {
                self.end_resolve(query, lookup.target(), lookup.found_target().cloned());
            }
            Aim::Refresh | Aim::Walk => self.aim_ended(now, aim),
        }
    }

    /// What was found, or what the table has.
    fn end_resolve(&mut self, query: QueryId, id: NodeId, found: Option<Contact>) {
        let known = self.table.get(&id).map(|entry| entry.contact.clone());
        let contact = [known, found].into_iter().flatten().max_by_key(Contact::seq);
        self.actions.push_back(Action::Resolved { query, contact });
    }

    fn aim_ended(&mut self, now: Now, aim: Aim) {
        match aim {
            Aim::Walk => self.searches.walk.ended(),
            Aim::Refresh => {
                let left = self.searches.refreshing.saturating_sub(1);
                self.searches.refreshing = left;
                if left == RANDOM_LOOKUPS {
                    for _ in 0..RANDOM_LOOKUPS {
                        let target = self.random_id();
                        self.search_or_skip(now, target, Aim::Refresh);
                    }
                } else if left == 0 {
                    self.table.take_inbound();
                }
            }
            Aim::Lookup(_) | Aim::Resolve(_) => {}
        }
    }
}
