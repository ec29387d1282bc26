//! Lookups and who wants them: refreshes, the random walk, and queries.

use std::time::{Duration, Instant};

use rand::RngCore;

use super::Engine;
use crate::{
    Now,
    discv4::{
        action::{Action, QueryId},
        conversation::{Ask, Peer, RecordFor},
        crypto::Crypto,
    },
    kademlia::{
        CallError, Contact, Lookup, Source, bucket::BUCKET_SIZE, call::MAX_LOOKUPS, refresh::RANDOM_LOOKUPS,
    },
    node::{Endpoint, NodeId, PublicKey, Record, id::keccak256},
};

/// How long a refresh waits for nodes from the database before its lookups begin.
const SEED_WAIT: Duration = Duration::from_millis(200);
/// The most candidates of the random walk that wait to be asked for their record.
const MAX_CANDIDATES: usize = 64;
/// The most candidates asked at a time, as geth.
const CANDIDATES_ASKED: usize = 16;

/// Why a lookup is made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    Refresh,
    Walk,
    Lookup(QueryId),
    Resolve(QueryId),
}

/// A lookup under way.
#[derive(Debug)]
pub(super) struct Search {
    purpose: Purpose,
    /// What FINDNODE asks for; the lookup's target is its Keccak-256.
    pub(super) key: [u8; 64],
    lookup: Lookup,
}

impl<C: Crypto> Engine<C> {
    /// Starts a lookup, unless too many run.
    pub(super) fn search(&mut self, now: Now, key: [u8; 64], purpose: Purpose) -> Result<(), CallError> {
        if self.searches.len() >= MAX_LOOKUPS {
            self.counters.too_busy += 1;
            return Err(CallError::TooManyLookups);
        }
        let target = NodeId(keccak256(&[&key]));
        let known: Vec<Contact> =
            self.table.closest(&target, BUCKET_SIZE, |_| true).into_iter().cloned().collect();
        let number = self.next_search;
        self.next_search += 1;
        let lookup = Lookup::new(target, self.id, known.iter().cloned());
        self.searches.insert(number, Search { purpose, key, lookup });
        self.news(now, purpose, known);
        self.continue_search(now, number);
        Ok(())
    }

    /// Starts a lookup of our own. One that finds no room ends at once.
    fn search_or_skip(&mut self, now: Now, key: [u8; 64], purpose: Purpose) {
        if self.search(now, key, purpose).is_err() {
            self.own_search_ended(now, purpose);
        }
    }

    /// Asks whom the lookup wants asked, and ends it when it is done.
    fn continue_search(&mut self, now: Now, number: u64) {
        while let Some(search) = self.searches.get_mut(&number) {
            let Some(contact) = search.lookup.next_to_ask() else { break };
            if !self.ask(now, &contact, Ask::FindNode(number))
                && let Some(search) = self.searches.get_mut(&number)
            {
                search.lookup.failed(&contact.id);
            }
        }
        let found_early = |search: &Search| {
            matches!(search.purpose, Purpose::Resolve(_)) && search.lookup.found_target().is_some()
        };
        if self.searches.get(&number).is_some_and(|search| search.lookup.is_done() || found_early(search))
            && let Some(search) = self.searches.remove(&number)
        {
            self.search_ended(now, &search);
        }
    }

    /// `by` told these nodes to the lookup.
    pub(super) fn told(&mut self, now: Now, number: u64, by: NodeId, contacts: Vec<Contact>) {
        for contact in &contacts {
            self.table.insert(now, contact.clone(), Source::Relayed { by });
        }
        let Some(search) = self.searches.get_mut(&number) else { return };
        let purpose = search.purpose;
        let news = search.lookup.offer(contacts);
        self.news(now, purpose, news);
        self.continue_search(now, number);
    }

    /// The lookup came to know these nodes.
    fn news(&mut self, now: Now, purpose: Purpose, contacts: Vec<Contact>) {
        match purpose {
            Purpose::Lookup(query) => {
                let told = contacts.into_iter().map(|contact| Action::LookupNode { query, contact });
                self.actions.extend(told);
            }
            Purpose::Walk => {
                let room = MAX_CANDIDATES.saturating_sub(self.candidates.len());
                self.candidates.extend(contacts.into_iter().take(room));
                self.ask_candidates(now);
            }
            Purpose::Refresh | Purpose::Resolve(_) => {}
        }
    }

    /// A FINDNODE of the lookup was answered or not.
    pub(super) fn find_node_done(&mut self, now: Now, number: u64, peer: Peer, answered: bool) {
        self.table.request_ended(now, &peer.0, answered);
        if let Some(search) = self.searches.get_mut(&number) {
            if answered {
                search.lookup.answered(&peer.0);
            } else {
                search.lookup.failed(&peer.0);
            }
            self.continue_search(now, number);
        }
    }

    fn search_ended(&mut self, now: Now, search: &Search) {
        match search.purpose {
            Purpose::Lookup(query) => {
                let closest = search.lookup.closest().cloned().collect();
                self.actions.push_back(Action::LookupDone { query, closest });
            }
            Purpose::Resolve(query) => match search.lookup.found_target() {
                Some(contact) => self.ask_to_resolve(now, query, contact.clone(), true),
                None => self.actions.push_back(Action::Resolved { query, contact: None }),
            },
            Purpose::Walk | Purpose::Refresh => self.own_search_ended(now, search.purpose),
        }
    }

    /// A lookup of our own has ended.
    fn own_search_ended(&mut self, now: Now, purpose: Purpose) {
        match purpose {
            Purpose::Walk => self.walk.ended(),
            Purpose::Refresh => {
                self.refresh_lookups = self.refresh_lookups.saturating_sub(1);
                if self.refresh_lookups == 0 {
                    self.table.take_inbound();
                    self.refresh.ended(now.mono, self.table.in_use(), &mut self.rng);
                }
            }
            Purpose::Lookup(_) | Purpose::Resolve(_) => {}
        }
    }

    /// See [`Engine::resolve`].
    pub(super) fn resolve_node(
        &mut self,
        now: Now,
        query: QueryId,
        id: NodeId,
        key: Option<PublicKey>,
        hint: Option<Contact>,
    ) -> Result<(), CallError> {
        let known = self.table.get(&id).map(|entry| entry.contact.clone());
        match (known.or(hint).filter(|contact| contact.udp_addr().is_some()), key) {
            (Some(contact), key) => self.ask_to_resolve(now, query, contact, key.is_none()),
            (None, Some(key)) => return self.search(now, key.to_uncompressed(), Purpose::Resolve(query)),
            (None, None) => self.actions.push_back(Action::Resolved { query, contact: None }),
        }
        Ok(())
    }

    fn ask_to_resolve(&mut self, now: Now, query: QueryId, contact: Contact, searched: bool) {
        let purpose = RecordFor::Resolve { query, searched };
        if !self.ask(now, &contact, Ask::Record(purpose)) {
            self.record_done(now, contact, purpose, None, false);
        }
    }

    /// A record was asked for: here it is, or not. `answered` says that the node is at its address.
    pub(super) fn record_done(
        &mut self,
        now: Now,
        contact: Contact,
        purpose: RecordFor,
        record: Option<Record>,
        answered: bool,
    ) {
        let contact = match &record {
            Some(record) => with_record(contact, record),
            None => contact,
        };
        if record.is_some() && self.table.get(&contact.id).is_some() {
            // It gave the record from where it is.
            self.table.insert(now, contact.clone(), Source::Inbound);
        }
        match purpose {
            RecordFor::Table => {}
            RecordFor::Query(query) => self.actions.push_back(Action::RecordResult { query, record }),
            RecordFor::Walk => {
                self.candidates_asked = self.candidates_asked.saturating_sub(1);
                if answered {
                    self.discovered(contact);
                }
                self.ask_candidates(now);
            }
            RecordFor::Resolve { query, searched: false } if record.is_none() => {
                let key = contact.public_key.to_uncompressed();
                if self.search(now, key, Purpose::Resolve(query)).is_err() {
                    // No room to search for a newer address: the known one is what there is.
                    self.actions.push_back(Action::Resolved { query, contact: Some(contact) });
                }
            }
            RecordFor::Resolve { query, .. } => {
                self.actions.push_back(Action::Resolved { query, contact: Some(contact) });
            }
        }
    }

    fn discovered(&mut self, contact: Contact) {
        self.walk.found();
        self.actions.push_back(Action::Discovered(contact));
    }

    /// Asks candidates for their records, as many as are wanted.
    pub(super) fn ask_candidates(&mut self, now: Now) {
        while self.candidates_asked < CANDIDATES_ASKED {
            if self.walk.demand() <= self.candidates_asked {
                break;
            }
            let Some(contact) = self.candidates.pop_front() else { return };
            let entry = self.table.get(&contact.id);
            if let Some(entry) = entry.filter(|entry| entry.live && entry.contact.record.is_some()) {
                let contact = entry.contact.clone();
                self.discovered(contact);
            } else if self.ask(now, &contact, Ask::Record(RecordFor::Walk)) {
                self.candidates_asked += 1;
            }
        }
        if self.walk.demand() == 0 {
            self.candidates.clear();
        }
    }

    /// When [`Self::search_if_due`] has something to do.
    pub(super) fn search_timeout(&self) -> Option<Instant> {
        let refreshing = self.refresh_lookups > 0 || self.refresh_lookups_at.is_some();
        let refresh = if refreshing { self.refresh_lookups_at } else { Some(self.refresh.poll_timeout()) };
        let walk = self.walk.poll_timeout().filter(|_| self.may_walk());
        refresh.into_iter().chain(walk).min()
    }

    fn may_walk(&self) -> bool {
        self.candidates.is_empty() && !self.table.is_empty()
    }

    /// Begins refreshes and walks that are due.
    pub(super) fn search_if_due(&mut self, now: Now) {
        let refreshing = self.refresh_lookups > 0 || self.refresh_lookups_at.is_some();
        if !refreshing && self.refresh.is_due(now.mono, &mut self.rng) {
            for contact in self.config.bootnodes.clone() {
                if self.may_contact(&contact) {
                    self.table.insert(now, contact, Source::Bootnode);
                }
            }
            self.actions.push_back(Action::SeedsWanted);
            self.refresh_lookups_at = Some(now.mono + SEED_WAIT);
        }
        if self.refresh_lookups_at.is_some_and(|at| at <= now.mono) {
            self.refresh_lookups_at = None;
            self.refresh_lookups = 1 + RANDOM_LOOKUPS;
            self.search_or_skip(now, self.crypto.public_key().to_uncompressed(), Purpose::Refresh);
            for _ in 0..RANDOM_LOOKUPS {
                let key = self.random_key();
                self.search_or_skip(now, key, Purpose::Refresh);
            }
        }
        if self.may_walk() && self.walk.start(now.mono) {
            let key = self.random_key();
            self.search_or_skip(now, key, Purpose::Walk);
        }
    }

    fn random_key(&mut self) -> [u8; 64] {
        let mut key = [0; 64];
        self.rng.fill_bytes(&mut key);
        key
    }
}

/// The node with its record. Where it answers stays where it answers; the record knows the TCP port.
fn with_record(contact: Contact, record: &Record) -> Contact {
    let same_family = if contact.endpoint.ip.is_ipv4() { record.endpoint4() } else { record.endpoint6() };
    let tcp = same_family.map_or(0, |endpoint| endpoint.tcp);
    let endpoint = Endpoint { tcp: if tcp == 0 { contact.endpoint.tcp } else { tcp }, ..contact.endpoint };
    Contact { endpoint, record: Some(record.clone()), ..contact }
}
