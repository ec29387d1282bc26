//! The node table: the known nodes, by distance from us.
//!
//! ```text
//!            insert                     check passed
//!   stranger ──────> entry, unproven ───────────────> entry, live ──┐ check failed: checks / 3
//!      │                   ^   │                          ^         │ (at 0: removed)
//!      │ bucket full       │   └── check failed: removed  └─────────┘
//!      └───────────────> waiting ──> promoted at random when an entry of its bucket is removed
//! ```
//!
//! A node in use is never displaced by a new one: a node that has been there for long is likely to stay, and an
//! attacker cannot push honest nodes out. Only live nodes are relayed to others. The table sends nothing: its owner
//! asks [`Table::poll_check`] for the node to check and reports the result.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    bucket::{BUCKET_SIZE, BUCKETS, Bucket, index_of},
    contact::{Contact, Source},
    distance::{closer, log_distance, xor},
    entry::{Entry, Placement},
    revalidation::{Pace, Revalidation},
    subnets::{MAX_PER_TABLE, SubnetCounts, is_exempt},
};
use crate::{
    Now,
    node::{AddressClass, NodeId, endpoint::Subnet},
};

/// Unanswered requests in a row after which a node is removed although it answers checks (geth: 5).
pub const MAX_REQUEST_FAILURES: u8 = 5;
/// Such a node is kept all the same while its bucket has fewer than this many nodes (geth: 4).
const SPARE_BELOW: usize = BUCKET_SIZE / 4;

/// The result of offering a node to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// It is in use now.
    Added,
    /// Its bucket is full; it waits for a place.
    Waiting,
    /// It was there; its record or endpoint is updated.
    Updated,
    /// It was there and nothing about it is news.
    Known,
    /// It was not taken.
    Refused(Refusal),
}

/// Why a node was not taken, or its new endpoint not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is us.
    Myself,
    /// It has no UDP port, or an address that is no node's.
    Address,
    /// Its subnet has its share of the bucket.
    SubnetInBucket,
    /// Its subnet has its share of the table.
    SubnetInTable,
    /// Nodes that contact us are not taken before the first refresh is over, so that a node that notices our start
    /// cannot be first in every bucket.
    BeforeRefresh,
}

/// Why a node left the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It failed its liveness checks.
    Dead,
    /// It answered checks, but left requests unanswered.
    Unhelpful,
}

/// The changes of the nodes in use, in order. Waiting nodes come and go without events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node came into use.
    Added(Contact),
    /// A node passed its first check at its present endpoint.
    Live(Contact),
    /// A node in use got another record or endpoint.
    Updated(Contact),
    /// A node in use was removed.
    Removed(Contact, Removal),
}

/// The result of a passed check for the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// How many checks the node has passed; node databases keep those with more than 5 (geth).
    pub checks: u32,
    /// Whether the node announced a newer record than ours.
    pub wants_record: bool,
}

/// The table.
#[derive(Debug)]
pub struct Table {
    own: NodeId,
    buckets: Vec<Bucket>,
    /// Every node of the table, in use (`true`) or waiting.
    index: HashMap<NodeId, bool>,
    subnets: SubnetCounts,
    revalidation: Revalidation,
    events: VecDeque<Event>,
    we_are_private: bool,
    takes_inbound: bool,
    rng: StdRng,
}

impl Table {
    /// The empty table of the node `own`. Inbound nodes are refused until [`Self::take_inbound`].
    #[must_use]
    pub fn new(own: NodeId, rng: &mut StdRng) -> Self {
        Self {
            own,
            buckets: (0..BUCKETS).map(|_| Bucket::new()).collect(),
            index: HashMap::new(),
            subnets: SubnetCounts::default(),
            revalidation: Revalidation::new(),
            events: VecDeque::new(),
            we_are_private: false,
            takes_inbound: false,
            rng: StdRng::from_rng(rng),
        }
    }

    /// Our own id.
    #[must_use]
    pub fn own_id(&self) -> NodeId {
        self.own
    }

    /// Tells whether our announced address is private, which exempts private ranges from the limits per subnet.
    pub fn set_private(&mut self, we_are_private: bool) {
        self.we_are_private = we_are_private;
    }

    /// The first refresh is over: nodes that contact us are taken from now on.
    pub fn take_inbound(&mut self) {
        self.takes_inbound = true;
    }

    /// Whether nodes that contact us are taken.
    #[must_use]
    pub fn takes_inbound(&self) -> bool {
        self.takes_inbound
    }

    /// The nodes in use and waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// The nodes in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.entries().len()).sum()
    }

    /// Whether the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// All buckets, nearest first: the snapshot for the API.
    #[must_use]
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Whether a node in use is at this address. Linear in the table, which has at most 272 nodes in use.
    #[must_use]
    pub fn has_addr(&self, addr: SocketAddr) -> bool {
        let mut nodes = self.buckets.iter().flat_map(Bucket::entries);
        nodes.any(|entry| entry.contact.udp_addr() == Some(addr))
    }

    /// A node in use or waiting.
    #[must_use]
    pub fn get(&self, id: &NodeId) -> Option<&Entry> {
        let bucket = self.bucket(id);
        let list = if *self.index.get(id)? { bucket?.entries() } else { bucket?.replacements() };
        list.iter().find(|entry| entry.contact.id == *id)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Offers a node. A known one is updated by a newer record, or by an endpoint from which it proved to answer. An
    /// answer of another node about it changes nothing.
    pub fn insert(&mut self, now: Now, contact: Contact, source: Source) -> Insert {
        if contact.id == self.own {
            return Insert::Refused(Refusal::Myself);
        }
        let ip = contact.endpoint.ip;
        if contact.endpoint.udp == 0 || AddressClass::of(ip) == AddressClass::Special {
            return Insert::Refused(Refusal::Address);
        }
        if self.index.contains_key(&contact.id) {
            return self.update(now, contact, source);
        }
        if source == Source::Inbound && !self.takes_inbound {
            return Insert::Refused(Refusal::BeforeRefresh);
        }
        let index = index_of(log_distance(&self.own, &contact.id));
        let Some(bucket) = self.buckets.get_mut(index) else { return Insert::Refused(Refusal::Myself) };
        if let Some(refusal) = refusal(bucket, &self.subnets, ip, self.we_are_private) {
            return Insert::Refused(refusal);
        }
        let id = contact.id;
        self.subnets.add(ip);
        if bucket.is_full() {
            self.index.insert(id, false);
            let waiting = Entry::new(contact, source, Placement::Waiting, now.unix);
            if let Some(outwaited) = bucket.push_replacement(waiting) {
                self.index.remove(&outwaited.contact.id);
                self.subnets.remove(outwaited.contact.endpoint.ip);
            }
            return Insert::Waiting;
        }
        self.index.insert(id, true);
        self.events.push_back(Event::Added(contact.clone()));
        bucket.push_entry(Entry::new(contact, source, Placement::HadRoom, now.unix));
        self.revalidation.put(id, Pace::Fast, now.mono, &mut self.rng);
        Insert::Added
    }

    fn update(&mut self, now: Now, contact: Contact, source: Source) -> Insert {
        let id = contact.id;
        let in_use = self.index.get(&id).copied().unwrap_or(false);
        let Some(bucket) = self.buckets.get_mut(index_of(log_distance(&self.own, &id))) else {
            return Insert::Known;
        };
        let Some(entry) = bucket.get_mut(&id) else { return Insert::Known };
        if source.is_proven() {
            entry.last_seen = Some(now.unix);
        }
        let newer = contact.seq() > entry.contact.seq();
        let (old, new) = (entry.contact.endpoint, contact.endpoint);
        let moves = new != old && (newer || source.is_proven());
        if !newer && !moves {
            return Insert::Known;
        }
        if moves && Subnet::wide(new.ip) != Subnet::wide(old.ip) {
            if let Some(refusal) = refusal(bucket, &self.subnets, new.ip, self.we_are_private) {
                return Insert::Refused(refusal);
            }
            bucket.move_ip(old.ip, new.ip);
            self.subnets.remove(old.ip);
            self.subnets.add(new.ip);
        }
        let Some(entry) = bucket.get_mut(&id) else { return Insert::Known };
        if newer {
            entry.contact.record = contact.record;
        }
        if moves {
            entry.contact.endpoint = new;
        }
        // The TCP port has no part in whether the node answers discovery.
        if moves && (new.ip, new.udp) != (old.ip, old.udp) {
            entry.live = false;
            entry.checking = false;
            if in_use {
                self.revalidation.put(id, Pace::Fast, now.mono, &mut self.rng);
            }
        }
        if in_use {
            self.events.push_back(Event::Updated(entry.contact.clone()));
        }
        Insert::Updated
    }

    /// When the next check is due ([`Self::poll_check`]); `None` while no node is in use.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.revalidation.next_tick()
    }

    /// The node to check now. Call until `None`; report each by [`Self::check_passed`],
    /// [`Self::check_failed`] or [`Self::check_skipped`].
    pub fn poll_check(&mut self, now: Now) -> Option<Contact> {
        while let Some(id) = self.revalidation.tick(now.mono, &mut self.rng) {
            // A node whose check is still under way keeps it; this tick passes.
            if let Some(entry) = self.in_use_mut(&id).filter(|entry| !entry.checking) {
                entry.checking = true;
                return Some(entry.contact.clone());
            }
        }
        None
    }

    /// The node answered a check. `seq` is the sequence number of its record, if the answer had one.
    pub fn check_passed(&mut self, now: Now, id: &NodeId, seq: Option<u64>) -> Option<Passed> {
        let entry = self.in_use_mut(id)?;
        entry.checking = false;
        entry.checks = entry.checks.saturating_add(1);
        entry.last_seen = Some(now.unix);
        let passed =
            Passed { checks: entry.checks, wants_record: seq.is_some_and(|seq| seq > entry.contact.seq()) };
        if !std::mem::replace(&mut entry.live, true) {
            let contact = entry.contact.clone();
            self.events.push_back(Event::Live(contact));
        }
        self.revalidation.put(*id, Pace::Slow, now.mono, &mut self.rng);
        Some(passed)
    }

    /// The check was not made; the node is none the worse for it.
    pub fn check_skipped(&mut self, id: &NodeId) {
        if let Some(entry) = self.in_use_mut(id) {
            entry.checking = false;
        }
    }

    /// The node did not answer a check.
    pub fn check_failed(&mut self, now: Now, id: &NodeId) {
        let Some(entry) = self.in_use_mut(id) else { return };
        entry.checking = false;
        entry.checks /= 3;
        if entry.checks == 0 {
            self.remove_for(now, id, Removal::Dead);
        } else {
            self.revalidation.put(*id, Pace::Fast, now.mono, &mut self.rng);
        }
    }

    /// A request other than a check was answered or not. A node that leaves five in a row unanswered is removed,
    /// unless its bucket is nearly empty.
    pub fn request_ended(&mut self, now: Now, id: &NodeId, answered: bool) {
        let Some(entry) = self.in_use_mut(id) else { return };
        entry.failures = if answered { 0 } else { entry.failures.saturating_add(1) };
        let unhelpful = entry.failures >= MAX_REQUEST_FAILURES;
        if unhelpful && self.bucket(id).is_some_and(|bucket| bucket.entries().len() >= SPARE_BELOW) {
            self.remove_for(now, id, Removal::Unhelpful);
        }
    }

    fn remove_for(&mut self, now: Now, id: &NodeId, why: Removal) {
        let Some(in_use) = self.index.remove(id) else { return };
        self.revalidation.remove(id);
        let Some(bucket) = self.buckets.get_mut(index_of(log_distance(&self.own, id))) else { return };
        if !in_use {
            if let Some(entry) = bucket.remove_replacement(id) {
                self.subnets.remove(entry.contact.endpoint.ip);
            }
            return;
        }
        let Some(entry) = bucket.remove_entry(id) else { return };
        self.subnets.remove(entry.contact.endpoint.ip);
        self.events.push_back(Event::Removed(entry.contact, why));
        let waiting = bucket.replacements().len();
        if waiting == 0 {
            return;
        }
        // At random, so that no attacker can place a node by waiting for the right moment.
        let mut promoted = bucket.take_replacement(self.rng.random_range(0..waiting));
        promoted.placement = Placement::Promoted { replaced: *id };
        let contact = promoted.contact.clone();
        bucket.push_entry(promoted);
        self.index.insert(contact.id, true);
        self.revalidation.put(contact.id, Pace::Fast, now.mono, &mut self.rng);
        self.events.push_back(Event::Added(contact));
    }

    /// Up to `count` nodes in use that `accept` takes, closest to `target` first.
    ///
    /// Buckets are visited in the order of their distance to the target and only one is sorted at a time, so a
    /// search that finds its nodes early never touches the rest.
    pub fn closest<'a>(
        &'a self,
        target: &NodeId,
        count: usize,
        mut accept: impl FnMut(&Entry) -> bool,
    ) -> Vec<&'a Contact> {
        let mut out: Vec<&Contact> = Vec::with_capacity(count.min(BUCKETS * BUCKET_SIZE));
        for index in nearest_buckets(&self.own, target) {
            let Some(bucket) = self.buckets.get(index) else { continue };
            let start = out.len();
            out.extend(bucket.entries().iter().filter(|entry| accept(entry)).map(|entry| &entry.contact));
            if let Some(new) = out.get_mut(start..) {
                new.sort_unstable_by(|a, b| closer(target, &a.id, &b.id));
            }
            if out.len() >= count {
                break;
            }
        }
        out.truncate(count);
        out
    }

    /// The nodes in use at this logarithmic distance from us (discv5 FINDNODE; 240 and below share a bucket).
    pub fn at_distance(&self, distance: u16) -> impl Iterator<Item = &Entry> {
        let own = self.own;
        let bucket = self.buckets.get(index_of(distance));
        let entries = bucket.map(Bucket::entries).unwrap_or_default();
        entries.iter().filter(move |entry| log_distance(&own, &entry.contact.id) == distance)
    }

    /// The number of the bucket for a node: 0 is the nearest.
    #[must_use]
    pub fn bucket_of(&self, id: &NodeId) -> usize {
        index_of(log_distance(&self.own, id))
    }

    fn bucket(&self, id: &NodeId) -> Option<&Bucket> {
        self.buckets.get(index_of(log_distance(&self.own, id)))
    }

    fn in_use_mut(&mut self, id: &NodeId) -> Option<&mut Entry> {
        if !*self.index.get(id)? {
            return None;
        }
        self.buckets.get_mut(index_of(log_distance(&self.own, id)))?.get_mut(id)
    }
}

/// Whether the limits per subnet refuse one more address.
fn refusal(bucket: &Bucket, table: &SubnetCounts, ip: IpAddr, we_are_private: bool) -> Option<Refusal> {
    if is_exempt(ip, we_are_private) {
        None
    } else if table.count(ip) >= MAX_PER_TABLE {
        Some(Refusal::SubnetInTable)
    } else if !bucket.has_subnet_room(ip) {
        Some(Refusal::SubnetInBucket)
    } else {
        None
    }
}

/// The indices of all buckets, in the order in which their nodes come closer to `target` than the next one's.
///
/// Where our id and the target differ at a bit, the nodes that differ from us there agree with the target: those
/// buckets come first, highest bit first. Then the near bucket, then the buckets where we agree with the target,
/// lowest bit first.
fn nearest_buckets(own: &NodeId, target: &NodeId) -> impl Iterator<Item = usize> {
    let [a, b, ..] = xor(own, target);
    let differing = u16::from_be_bytes([a, b]);
    // Bucket 16 holds the nodes that differ from us at the highest bit (15 of these 16), bucket 1 at bit 0.
    let differs = move |bucket: &usize| differing >> (bucket - 1) & 1 == 1;
    let inward = (1..BUCKETS).rev().filter(differs);
    let outward = (1..BUCKETS).filter(move |bucket| !differs(bucket));
    inward.chain([0]).chain(outward)
}

#[cfg(test)]
mod tests;
