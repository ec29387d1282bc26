//! The nodes on the static and trusted lists: the operator's reference to each, its address, and the time of its next
//! dial.
//!
//! The scheduler reports the results of dials, peers and questions to discovery to this type, and asks it for what is
//! due. Left out: slots, the pool of dials and one-off dials ([`scheduler`](super::scheduler)).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rand::{Rng, rngs::StdRng};

use super::super::{action::Action, cause::Cause, refusal::Refusal, rules::Rules};
use super::{
    address::{check_addr, check_lan},
    backoff::wait,
    candidates::Source,
    entry::{AddError, EntryState, LastError, ListEntry, ListSource, RemoveError, Removed, Standing},
    task::Kind,
};
use crate::{
    Now,
    node::{AddressClass, Enode, Host, NodeId, NodeRef, PublicKey},
};

/// The most nodes on both lists. An operator's lists: a thousand is generous, and every entry may cost a dial at once.
pub const MAX_LISTED: usize = 1024;

/// When an entry that the rules refuse is looked at again, beside every change of the rules: bans end by themselves.
const RECHECK: Duration = Duration::from_secs(30);

/// The first and the longest pause between two questions to discovery about one node. As in geth.
const RESOLVE_FIRST: Duration = Duration::from_secs(60);
const RESOLVE_CAP: Duration = Duration::from_secs(3600);

/// The most bytes of an error's detail that are kept: a line.
const MAX_DETAIL_BYTES: usize = 200;

/// One of the two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Nodes that are dialed for as long as they are listed.
    Static,
    /// Nodes that are let in beyond the limits, and dialed if their address is known.
    Trusted,
}

/// The need of an entry that is due.
#[derive(Debug)]
pub(super) enum Attempt {
    /// A dial.
    Dial { public_key: PublicKey, host: Host, port: u16, kind: Kind },
    /// Its address: a question to discovery.
    Resolve(Action),
}

#[derive(Debug)]
struct Entry {
    id: NodeId,
    public_key: Option<PublicKey>,
    /// From the operator.
    given: Option<Enode>,
    /// From discovery, while it is preferred to the operator's.
    found: Option<Enode>,
    as_static: Option<ListSource>,
    as_trusted: Option<ListSource>,
    standing: Option<Standing>,
    /// Since when it is being dialed.
    dialing: Option<Now>,
    /// When to dial, if it is a matter of time alone. Mirrored in the order of due entries.
    due: Option<Instant>,
    failures: u32,
    /// When the node last accepted a connection of ours.
    reached: Option<Instant>,
    last_error: Option<LastError>,
    resolving: bool,
    resolve_failures: u32,
    /// Discovery is not asked again before.
    next_resolve: Option<Instant>,
    /// The widest reach its addresses ever had: a global name that turns private is not followed.
    widest: Option<AddressClass>,
    /// Why the last attempt was not made, until the next.
    refused: Option<Refusal>,
}

impl Entry {
    fn new(id: NodeId) -> Self {
        Self {
            id,
            public_key: None,
            given: None,
            found: None,
            as_static: None,
            as_trusted: None,
            standing: None,
            dialing: None,
            due: None,
            failures: 0,
            reached: None,
            last_error: None,
            resolving: false,
            resolve_failures: 0,
            next_resolve: None,
            widest: None,
            refused: None,
        }
    }

    fn source(&mut self, list: List) -> &mut Option<ListSource> {
        match list {
            List::Static => &mut self.as_static,
            List::Trusted => &mut self.as_trusted,
        }
    }

    /// Takes over the contents of a reference. Returns whether that gave a new address.
    fn learn(&mut self, node: &NodeRef) -> bool {
        self.public_key = self.public_key.or(node.public_key());
        match node.enode() {
            Some(enode) if self.given.as_ref() != Some(&enode) => {
                self.given = Some(enode);
                self.found = None;
                self.widest = None;
                true
            }
            _ => false,
        }
    }

    /// The address to dial now.
    fn target(&self) -> Option<&Enode> {
        self.found.as_ref().or(self.given.as_ref())
    }

    /// The address to dial now, if it is one and no name.
    fn addr(&self) -> Option<SocketAddr> {
        match self.target()? {
            Enode { host: Host::Ip(ip), tcp, .. } => Some(SocketAddr::new(*ip, *tcp)),
            _ => None,
        }
    }

    /// Whether it has to be dialed at all: static ones always, trusted ones when an address is known.
    fn wants_dial(&self) -> bool {
        self.as_static.is_some() || self.target().is_some()
    }

    /// Whether it is connected or being dialed.
    fn is_busy(&self) -> bool {
        self.standing.is_some() || self.dialing.is_some()
    }

    /// Notes the reach of an address that is dialed.
    fn saw(&mut self, ip: IpAddr) {
        self.widest = self.widest.max(Some(AddressClass::of(ip)));
    }

    /// Notes what went wrong.
    fn set_error(&mut self, now: Now, cause: Cause, detail: &str) {
        let detail = super::super::bans::cut_at(detail, MAX_DETAIL_BYTES).to_owned();
        self.last_error = Some(LastError { time: now.unix, cause, detail });
    }

    fn show(&self, now: Now, rules: &Rules, registered: bool) -> ListEntry {
        let state = self.state(now, rules, registered);
        let next_dial = match state {
            EntryState::BackingOff { until } => Some(until),
            EntryState::Resolving => self.due.map(|due| wall(now, due)),
            _ => None,
        };
        ListEntry {
            id: self.id,
            public_key: self.public_key,
            enode: self.given.clone().or_else(|| self.found.clone()),
            as_static: self.as_static,
            as_trusted: self.as_trusted,
            state,
            last_error: self.last_error.clone(),
            next_dial,
        }
    }

    /// The state to show: the first of these that applies. `registered`: there is a protocol to dial for.
    fn state(&self, now: Now, rules: &Rules, registered: bool) -> EntryState {
        if let Some(standing) = &self.standing {
            return EntryState::Connected { since: standing.since.unix, inbound: standing.inbound };
        }
        if let Some(since) = self.dialing {
            return EntryState::Dialing { since: since.unix };
        }
        let refusal = |refusal| EntryState::Refused(refusal);
        if let Err(reason) = rules.check_node(now, &self.id) {
            return refusal(reason);
        }
        if let Some(Err(reason)) = self.addr().map(|addr| check_addr(now, rules, addr, None)) {
            return refusal(reason);
        }
        if !self.wants_dial() || (self.target().is_none() && !rules.settings.discovery) {
            return refusal(Refusal::AddressUnknown);
        }
        if !rules.settings.dialing {
            return refusal(Refusal::DialingOff);
        }
        if !registered {
            return EntryState::WaitingForProtocol;
        }
        match (self.refused, self.due) {
            (Some(reason), _) => refusal(reason),
            _ if self.resolving && self.target().is_none() => EntryState::Resolving,
            (None, Some(due)) if due > now.mono => EntryState::BackingOff { until: wall(now, due) },
            _ => EntryState::WaitingForSlot,
        }
    }
}

/// Both lists.
#[derive(Debug, Default)]
pub struct Listed {
    entries: BTreeMap<NodeId, Entry>,
    /// Entries in the order in which they are due.
    due: BTreeSet<(Instant, NodeId)>,
    /// Entries that changed for watchers.
    changed: BTreeSet<NodeId>,
}

impl Listed {
    /// Whether a node is on a list.
    #[must_use]
    pub fn contains(&self, id: &NodeId) -> bool {
        self.entries.contains_key(id)
    }

    /// Whether a node is static.
    #[must_use]
    pub fn is_static(&self, id: &NodeId) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.as_static.is_some())
    }

    /// Whether a node is trusted.
    #[must_use]
    pub fn is_trusted(&self, id: &NodeId) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.as_trusted.is_some())
    }

    /// The addresses that are known of listed peers, for checks of the lists against a network.
    pub fn addrs(&self) -> impl Iterator<Item = (NodeId, Option<SocketAddr>)> {
        self.entries.values().map(|entry| (entry.id, entry.addr()))
    }

    /// The listed nodes whose static and trusted sources `which` picks, each in the words by which it was added.
    #[must_use]
    pub fn words(&self, which: impl Fn(Option<ListSource>, Option<ListSource>) -> bool) -> Vec<String> {
        let picked = self.entries.values().filter(|entry| which(entry.as_static, entry.as_trusted));
        picked
            .map(|entry| match (&entry.given, entry.public_key) {
                (Some(enode), _) => enode.to_string(),
                (None, Some(key)) => key.to_string(),
                (None, None) => entry.id.to_string(),
            })
            .collect()
    }

    /// Every entry by node id, as it is now, or the one of a node.
    pub(super) fn show(
        &self,
        now: Now,
        rules: &Rules,
        registered: bool,
        id: Option<&NodeId>,
    ) -> impl Iterator<Item = ListEntry> {
        let of_node = |id: &NodeId| self.entries.range(*id..=*id);
        let picked = id.map_or_else(|| self.entries.range(..), of_node);
        picked.map(move |(_, entry)| entry.show(now, rules, registered))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Where a node would be dialed.
    pub(super) fn target(&self, id: &NodeId) -> Option<&Enode> {
        self.entries.get(id).and_then(Entry::target)
    }

    /// The widest reach that the node's addresses ever had.
    pub(super) fn widest(&self, id: &NodeId) -> Option<AddressClass> {
        self.entries.get(id).and_then(|entry| entry.widest)
    }

    /// An address of the node is dialed.
    pub(super) fn saw(&mut self, id: &NodeId, ip: IpAddr) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.saw(ip);
        }
    }

    /// Puts a node on a list, or changes its address. `dialing` and `standing` are the node's current dial and
    /// connection. Adding a node twice has no effect; an entry of the configuration stays one.
    pub(super) fn add(
        &mut self,
        now: Now,
        rules: &Rules,
        node: &NodeRef,
        (list, source): (List, ListSource),
        (dialing, standing): (Option<Now>, Option<Standing>),
    ) -> Result<(), AddError> {
        let id = node.id();
        let has_address = node.enode().is_some() || self.target(&id).is_some();
        if list == List::Static && !has_address && !rules.settings.discovery {
            return Err(AddError::AddressUnknown);
        }
        if id == rules.local_id {
            return Err(AddError::OwnIdentity);
        }
        let address = node.enode().and_then(|enode| enode.endpoint());
        let by_ip = || rules.bans.of_ip(now.unix, address?.ip);
        if let Some(ban) = rules.bans.of_node(now.unix, &id).or_else(by_ip) {
            return Err(AddError::Banned(Box::new(ban.clone())));
        }
        if !self.entries.contains_key(&id) && self.entries.len() >= MAX_LISTED {
            return Err(AddError::Full { max: MAX_LISTED });
        }
        let entry = self.entries.entry(id).or_insert_with(|| Entry::new(id));
        let was_static = entry.as_static.is_some();
        let before = entry.source(list);
        *before = Some(before.map_or(source, |before| before.min(source)));
        let news = entry.learn(node) || was_static != entry.as_static.is_some();
        (entry.dialing, entry.standing) = (dialing, standing);
        if news {
            entry.failures = 0;
            entry.next_resolve = None;
        }
        if entry.due.is_none() || news {
            self.set_due(&id, Some(now.mono));
        }
        self.changed.insert(id);
        Ok(())
    }

    /// Takes a node off a list. Whether its dial for the list has no reason any more.
    pub(super) fn remove(&mut self, id: &NodeId, list: List) -> Result<(Removed, bool), RemoveError> {
        let entry = self.entries.get_mut(id).ok_or(RemoveError::NotListed)?;
        let connected = entry.standing.is_some();
        let source = entry.source(list);
        match source {
            None => return Err(RemoveError::NotListed),
            Some(ListSource::Config) => return Err(RemoveError::FromConfig),
            Some(ListSource::Call) => *source = None,
        }
        let still_listed = entry.as_static.is_some() || entry.as_trusted.is_some();
        let unwanted = !still_listed || !entry.wants_dial();
        if unwanted {
            self.set_due(id, None);
        }
        if !still_listed {
            self.entries.remove(id);
        }
        self.changed.insert(*id);
        Ok((Removed { connected, still_listed }, unwanted))
    }

    /// The configuration no longer names a node: calls may remove it from now on.
    pub(super) fn release(&mut self, id: &NodeId, list: List) {
        if let Some(source) = self.entries.get_mut(id).map(|entry| entry.source(list)) {
            *source = source.map(|_| ListSource::Call);
        }
    }

    /// A source names the address of a listed node: taken over if none was known and this one may be dialed.
    pub(super) fn offered(
        &mut self,
        now: Now,
        rules: &Rules,
        public_key: PublicKey,
        addr: SocketAddr,
        source: Source,
    ) {
        let id = public_key.id();
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.target().is_none()) else { return };
        if check_addr(now, rules, addr, None).is_ok() && check_lan(rules, addr.ip(), source).is_ok() {
            entry.learn(&NodeRef::Enode(Enode::at(public_key, addr)));
            self.set_due(&id, Some(now.mono));
            self.changed.insert(id);
        }
    }

    /// Removes the entry that is due first from the order of due entries, and returns its node.
    pub(super) fn take_due(&mut self, now: Now) -> Option<NodeId> {
        let (_, id) = self.due.first().copied().filter(|(due, _)| *due <= now.mono)?;
        self.set_due(&id, None);
        Some(id)
    }

    /// When an entry is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Says what an entry that is due needs, if anything. A refused one is looked at again later.
    pub(super) fn attempt(
        &mut self,
        now: Now,
        rules: &Rules,
        id: &NodeId,
        rng: &mut StdRng,
    ) -> Result<Option<Attempt>, Refusal> {
        let result = self.prepare(now, rules, id, rng);
        let refusal = result.as_ref().err().copied();
        if let Some(entry) = self.entries.get_mut(id)
            && entry.refused != refusal
        {
            entry.refused = refusal;
            self.changed.insert(*id);
        }
        if refusal.is_some() {
            self.set_due(id, Some(now.mono + RECHECK));
        }
        result
    }

    fn prepare(
        &mut self,
        now: Now,
        rules: &Rules,
        id: &NodeId,
        rng: &mut StdRng,
    ) -> Result<Option<Attempt>, Refusal> {
        let Some(entry) = self.entries.get_mut(id) else { return Ok(None) };
        if entry.is_busy() || !entry.wants_dial() {
            return Ok(None);
        }
        rules.check_node(now, id)?;
        // The address from discovery is dropped as soon as it may not be dialed; the operator's remains.
        if let (Some(addr), Some(_)) = (entry.addr(), &entry.found)
            && check_addr(now, rules, addr, entry.widest).is_err()
        {
            entry.found = None;
        }
        let Some(Enode { public_key, host, tcp: port, .. }) = entry.target().cloned() else {
            if !rules.settings.discovery {
                return Err(Refusal::AddressUnknown);
            }
            return Ok(self.ask_discovery(now, id, rng).map(Attempt::Resolve));
        };
        if let Host::Ip(ip) = host {
            check_addr(now, rules, SocketAddr::new(ip, port), None)?;
            entry.saw(ip);
        }
        let kind = if entry.as_static.is_some() { Kind::Static } else { Kind::Trusted };
        Ok(Some(Attempt::Dial { public_key, host, port, kind }))
    }

    /// Asks discovery for an entry's address, unless it was asked lately.
    fn ask_discovery(&mut self, now: Now, id: &NodeId, rng: &mut StdRng) -> Option<Action> {
        let entry = self.entries.get_mut(id)?;
        let mut question = None;
        let next = match entry.next_resolve.filter(|next| *next > now.mono) {
            Some(next) => next,
            None => {
                let doubled = RESOLVE_FIRST.saturating_mul(1 << entry.resolve_failures.min(6));
                let next = now.mono + doubled.min(RESOLVE_CAP).mul_f64(rng.random_range(1.0..1.25));
                entry.next_resolve = Some(next);
                entry.resolving = true;
                question = Some(Action::ResolveNode { id: *id, public_key: entry.public_key });
                next
            }
        };
        // Without an address nothing is due before the next question. An answer changes that.
        if entry.target().is_none() {
            self.set_due(id, Some(next));
        }
        self.changed.insert(*id);
        question
    }

    /// Discovery's answer about a node: its current address, or nothing.
    pub(super) fn resolved(&mut self, now: Now, rules: &Rules, id: &NodeId, found: Option<Enode>) {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.resolving) else { return };
        entry.resolving = false;
        let allowed = found.as_ref().is_none_or(|enode| {
            enode
                .endpoint()
                .and_then(|endpoint| endpoint.tcp_addr())
                .is_some_and(|addr| check_addr(now, rules, addr, entry.widest).is_ok())
        });
        match found {
            Some(found) if allowed && entry.target() != Some(&found) => {
                entry.public_key = Some(found.public_key);
                entry.found = Some(found);
                if !entry.is_busy() {
                    self.set_due(id, Some(now.mono));
                }
            }
            Some(_) if allowed => {}
            answer => {
                entry.resolve_failures = entry.resolve_failures.saturating_add(1);
                let cause = if answer.is_some() { Cause::AddressRefused } else { Cause::NotFound };
                // With an address to try, the dial's own error is more exact.
                if entry.target().is_none() {
                    entry.set_error(now, cause, "");
                }
            }
        }
        self.changed.insert(*id);
    }

    /// A dial to the node begins, for whatever reason: it is not due before that one ends.
    pub(super) fn dial_began(&mut self, now: Now, id: &NodeId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.dialing = Some(now);
            self.changed.insert(*id);
            self.set_due(id, None);
        }
    }

    /// The dial to the node ended. [`connected`](Self::connected), [`failed`](Self::failed) or
    /// [`look_again`](Self::look_again) sets the time of the next one.
    pub(super) fn dial_ended(&mut self, id: &NodeId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.dialing = None;
            self.changed.insert(*id);
        }
    }

    /// An entry may be dialed at once, if it is neither connected nor being dialed.
    pub(super) fn look_again(&mut self, now: Now, id: &NodeId) {
        self.set_due(id, Some(now.mono));
    }

    /// The node became a peer.
    pub(super) fn connected(&mut self, now: Now, id: &NodeId, standing: Standing) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.standing = Some(standing);
        entry.refused = None;
        entry.resolve_failures = 0;
        // The address works: failures to reach it no longer count. Failures that end connections still do.
        if entry.last_error.as_ref().is_some_and(|error| !error.cause.reached_someone()) {
            entry.failures = 0;
        }
        if !standing.inbound {
            entry.reached = Some(now.mono);
        }
        self.set_due(id, None);
        self.changed.insert(*id);
    }

    /// The node is no longer a peer.
    pub(super) fn disconnected(&mut self, id: &NodeId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.standing = None;
        }
    }

    /// A connection stood so long that the failures before it do not count.
    pub(super) fn forgive(&mut self, id: &NodeId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.failures = 0;
        }
    }

    /// Sets the next dial of a listed node after its dial or connection, which began at `began`, has ended. Returns a
    /// question to discovery, if the end suggests that the address is wrong.
    pub(super) fn failed(
        &mut self,
        now: Now,
        rules: &Rules,
        id: &NodeId,
        began: Now,
        (cause, detail): (Cause, &str),
        rng: &mut StdRng,
    ) -> Option<Action> {
        let window = rules.settings.history;
        let entry = self.entries.get_mut(id).filter(|entry| entry.standing.is_none())?;
        entry.set_error(now, cause, detail);
        if cause != Cause::LocalFault {
            entry.failures = entry.failures.saturating_add(1);
        }
        if cause.reached_someone() {
            entry.reached = entry.reached.max(Some(began.mono));
        }
        let wait = wait(cause, entry.failures, true, window, rng);
        // A node that accepted us lately may still throttle our address.
        let polite = entry.reached.filter(|_| cause.reached_someone()).map(|reached| reached + window);
        let due = polite.map_or(now.mono + wait, |polite| polite.max(now.mono + wait));
        let ask = cause.doubts_address() && entry.as_static.is_some() && rules.settings.discovery;
        // The address from discovery did not help: go back to the operator's, if there is one.
        if ask && entry.given.is_some() {
            entry.found = None;
        }
        self.set_due(id, Some(due));
        self.changed.insert(*id);
        if ask { self.ask_discovery(now, id, rng) } else { None }
    }

    /// The rules changed: looks at refused entries again. Linear in the lists, which is fine for the operator's calls.
    pub(super) fn rules_changed(&mut self, now: Now) {
        let refused: Vec<_> =
            self.entries.values().filter(|entry| entry.refused.is_some()).map(|entry| entry.id).collect();
        refused.iter().for_each(|id| self.set_due(id, Some(now.mono)));
        self.touch_all();
    }

    /// Waits that only uselessness caused are over, for there is a new protocol.
    pub(super) fn forgive_useless(&mut self, now: Now) {
        let useless = |entry: &&mut Entry| {
            entry.due.is_some() && entry.last_error.as_ref().is_some_and(|e| e.cause == Cause::UselessPeer)
        };
        let mut ids = Vec::new();
        for entry in self.entries.values_mut().filter(useless) {
            entry.failures = 0;
            ids.push(entry.id);
        }
        ids.iter().for_each(|id| self.set_due(id, Some(now.mono)));
    }

    /// Marks all entries as changed, for what changes the state of all.
    pub(super) fn touch_all(&mut self) {
        self.changed.extend(self.entries.keys());
    }

    /// The next entry that changed for watchers.
    pub(super) fn take_changed(&mut self) -> Option<NodeId> {
        self.changed.pop_first()
    }

    /// Sets when an entry is due. One that is connected or being dialed is not.
    fn set_due(&mut self, id: &NodeId, due: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        if let Some(before) = entry.due.take() {
            self.due.remove(&(before, *id));
        }
        if let Some(due) = due
            && !entry.is_busy()
            && entry.wants_dial()
        {
            entry.due = Some(due);
            self.due.insert((due, *id));
        }
    }
}

/// `at` as wall time.
fn wall(now: Now, at: Instant) -> Duration {
    match at.checked_duration_since(now.mono) {
        Some(ahead) => now.unix.saturating_add(ahead),
        None => now.unix.saturating_sub(now.mono.saturating_duration_since(at)),
    }
}
