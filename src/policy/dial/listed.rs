//! Static and trusted peers: adding, removing, showing, and dialing them when they are due.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::Rng;

use super::super::{cause::Cause, refusal::Refusal, rules::Rules};
use super::{
    entry::{AddError, Entry, EntryState, ListEntry, ListSource, RemoveError, Removed, wall},
    scheduler::{Action, Kind, Scheduler, Task, check_addr},
};
use crate::{
    Now,
    node::{Enode, Host, NodeId, NodeRef},
};

/// The most nodes on both lists. An operator's lists: a thousand is generous, and every entry may cost a dial at once.
pub const MAX_LISTED: usize = 1024;

/// When an entry that the rules refuse is looked at again, beside every change of the rules: bans end by themselves.
const RECHECK: Duration = Duration::from_secs(30);

/// The first and the longest pause between two questions to discovery about one node. As in geth.
const RESOLVE_FIRST: Duration = Duration::from_secs(60);
const RESOLVE_CAP: Duration = Duration::from_secs(3600);

impl Scheduler {
    /// Makes a node static, or changes its address. Adding what is there already is fine; an entry of the
    /// configuration stays one.
    pub fn add_static(
        &mut self,
        now: Now,
        rules: &Rules,
        node: &NodeRef,
        source: ListSource,
    ) -> Result<(), AddError> {
        let has_address =
            node.enode().is_some() || self.entries.get(&node.id()).is_some_and(|e| e.target().is_some());
        if !has_address && !rules.settings.discovery {
            return Err(AddError::AddressUnknown);
        }
        self.add(now, rules, node, |entry| {
            entry.as_static = Some(entry.as_static.map_or(source, |before| before.min(source)));
        })
    }

    /// Makes a node trusted. It is dialed if an address is given, or becomes known from a candidate.
    pub fn add_trusted(
        &mut self,
        now: Now,
        rules: &Rules,
        node: &NodeRef,
        source: ListSource,
    ) -> Result<(), AddError> {
        self.add(now, rules, node, |entry| {
            entry.as_trusted = Some(entry.as_trusted.map_or(source, |before| before.min(source)));
        })
    }

    fn add(
        &mut self,
        now: Now,
        rules: &Rules,
        node: &NodeRef,
        mark: impl FnOnce(&mut Entry),
    ) -> Result<(), AddError> {
        let id = node.id();
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
        mark(entry);
        let news = entry.learn(node) || was_static != entry.as_static.is_some();
        entry.task = self.task_of.get(&id).copied();
        entry.standing = self.peers.get(&id).map(|peer| peer.standing);
        if news {
            entry.failures = 0;
            entry.next_resolve = None;
        }
        if entry.due.is_none() || news {
            self.set_due(&id, Some(now.mono));
        }
        self.changed.insert(id);
        self.backoffs.forgive(&id);
        self.candidates.retain(|waiting| waiting.id != id);
        self.recount();
        self.run(now, rules);
        Ok(())
    }

    /// The configuration no longer names a static node: calls may remove it from now on.
    pub fn release_static(&mut self, id: &NodeId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.as_static = entry.as_static.map(|_| ListSource::Call);
        }
    }

    /// The same for a trusted node.
    pub fn release_trusted(&mut self, id: &NodeId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.as_trusted = entry.as_trusted.map(|_| ListSource::Call);
        }
    }

    /// Takes a node off the static list. What happens to the connection is for the caller to say.
    pub fn remove_static(&mut self, now: Now, rules: &Rules, id: &NodeId) -> Result<Removed, RemoveError> {
        self.remove(now, rules, id, |entry| &mut entry.as_static)
    }

    /// Takes a node off the trusted list.
    pub fn remove_trusted(&mut self, now: Now, rules: &Rules, id: &NodeId) -> Result<Removed, RemoveError> {
        self.remove(now, rules, id, |entry| &mut entry.as_trusted)
    }

    fn remove(
        &mut self,
        now: Now,
        rules: &Rules,
        id: &NodeId,
        list: impl FnOnce(&mut Entry) -> &mut Option<ListSource>,
    ) -> Result<Removed, RemoveError> {
        let entry = self.entries.get_mut(id).ok_or(RemoveError::NotListed)?;
        let connected = entry.standing.is_some();
        let source = list(entry);
        match source {
            None => return Err(RemoveError::NotListed),
            Some(ListSource::Config) => return Err(RemoveError::FromConfig),
            Some(ListSource::Call) => *source = None,
        }
        let still_listed = entry.as_static.is_some() || entry.as_trusted.is_some();
        let (dialed_for_list, wants_dial) = (entry.task, entry.wants_dial());
        if !still_listed || !wants_dial {
            self.set_due(id, None);
            if let Some(task) = dialed_for_list
                && self.tasks.get(&task).is_some_and(|task| matches!(task.kind, Kind::Static | Kind::Trusted))
                && !self.one_offs.values().any(|one_off| one_off.id == *id)
            {
                self.end(task);
                self.actions.push_back(Action::Abort(task));
            }
        }
        if !still_listed {
            self.entries.remove(id);
        }
        self.changed.insert(*id);
        self.recount();
        self.run(now, rules);
        Ok(Removed { connected, still_listed })
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

    /// A node's entry, as it is now.
    #[must_use]
    pub fn entry(&self, now: Now, rules: &Rules, id: &NodeId) -> Option<ListEntry> {
        self.entries.get(id).map(|entry| self.show(now, rules, entry))
    }

    /// All entries by node id.
    pub fn entries(&self, now: Now, rules: &Rules) -> impl Iterator<Item = ListEntry> {
        self.entries.values().map(move |entry| self.show(now, rules, entry))
    }

    /// The addresses that are known of listed peers, for checks of the lists against a network.
    pub fn listed_addrs(&self) -> impl Iterator<Item = (NodeId, Option<SocketAddr>)> {
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

    fn show(&self, now: Now, rules: &Rules, entry: &Entry) -> ListEntry {
        let state = self.state(now, rules, entry);
        let next_dial = match state {
            EntryState::BackingOff { until } => Some(until),
            EntryState::Resolving => entry.due.map(|due| wall(now, due)),
            _ => None,
        };
        ListEntry {
            id: entry.id,
            public_key: entry.public_key,
            enode: entry.given.clone().or_else(|| entry.found.clone()),
            as_static: entry.as_static,
            as_trusted: entry.as_trusted,
            state,
            last_error: entry.last_error.clone(),
            next_dial,
        }
    }

    fn state(&self, now: Now, rules: &Rules, entry: &Entry) -> EntryState {
        if let Some(standing) = &entry.standing {
            return EntryState::Connected { since: standing.since.unix, inbound: standing.inbound };
        }
        if let Some(task) = entry.task.and_then(|task| self.tasks.get(&task)) {
            return EntryState::Dialing { since: task.since.unix };
        }
        let refusal = |refusal| EntryState::Refused(refusal);
        if let Err(reason) = rules.check_node(now, &entry.id) {
            return refusal(reason);
        }
        if let Some(Err(reason)) = entry.addr().map(|addr| check_addr(now, rules, addr, None)) {
            return refusal(reason);
        }
        if !entry.wants_dial() || (entry.target().is_none() && !rules.settings.discovery) {
            return refusal(Refusal::AddressUnknown);
        }
        if !rules.settings.dialing {
            return refusal(Refusal::DialingOff);
        }
        if self.registrations.is_empty() {
            return EntryState::WaitingForProtocol;
        }
        match (entry.refused, entry.due) {
            (Some(reason), _) => refusal(reason),
            _ if entry.resolving && entry.target().is_none() => EntryState::Resolving,
            (None, Some(due)) if due > now.mono => EntryState::BackingOff { until: wall(now, due) },
            _ => EntryState::WaitingForSlot,
        }
    }

    /// Dials everything that is due, oldest first, while the pool has room.
    pub(super) fn start_due_entries(&mut self, now: Now, rules: &Rules) {
        while self.tasks.len() < rules.settings.max_pending_dials {
            let Some((_, id)) = self.due.first().copied().filter(|(due, _)| *due <= now.mono) else { return };
            self.set_due(&id, None);
            let refusal = self.attempt(now, rules, &id).err();
            if let Some(entry) = self.entries.get_mut(&id)
                && entry.refused != refusal
            {
                entry.refused = refusal;
                self.changed.insert(id);
            }
            if let Some(refusal) = refusal {
                self.refused(now, refusal);
                self.set_due(&id, Some(now.mono + RECHECK));
            }
        }
    }

    /// Dials one entry, or asks discovery for its address.
    fn attempt(&mut self, now: Now, rules: &Rules, id: &NodeId) -> Result<(), Refusal> {
        let Some(entry) = self.entries.get_mut(id) else { return Ok(()) };
        if entry.standing.is_some() || entry.task.is_some() || !entry.wants_dial() {
            return Ok(());
        }
        rules.check_node(now, id)?;
        // What discovery found is dropped as soon as it may not be dialed; what was given remains.
        if let (Some(addr), Some(_)) = (entry.addr(), &entry.found)
            && check_addr(now, rules, addr, entry.widest).is_err()
        {
            entry.found = None;
        }
        let Some(Enode { public_key, host, tcp, .. }) = entry.target().cloned() else {
            if !rules.settings.discovery {
                return Err(Refusal::AddressUnknown);
            }
            return self.ask_discovery(now, id);
        };
        if let Host::Ip(ip) = host {
            check_addr(now, rules, SocketAddr::new(ip, tcp), None)?;
            entry.saw(ip);
        }
        let kind = if entry.as_static.is_some() { Kind::Static } else { Kind::Trusted };
        let timeout = rules.settings.dial_timeout;
        let task = Task {
            id: *id,
            public_key,
            kind,
            since: now,
            port: tcp,
            addr: None,
            record: None,
            timeout,
            turn_of: None,
            fork: None,
        };
        let name = self.start(now, rules, task, &host);
        if let Some(entry) = self.entries.get_mut(id) {
            entry.task = Some(name);
        }
        self.changed.insert(*id);
        Ok(())
    }

    /// Asks discovery for a static entry's address, unless it was asked lately.
    pub(super) fn ask_discovery(&mut self, now: Now, id: &NodeId) -> Result<(), Refusal> {
        let Some(entry) = self.entries.get_mut(id) else { return Ok(()) };
        let next = match entry.next_resolve.filter(|next| *next > now.mono) {
            Some(next) => next,
            None => {
                let doubled = RESOLVE_FIRST.saturating_mul(1 << entry.resolve_failures.min(6));
                let next = now.mono + doubled.min(RESOLVE_CAP).mul_f64(self.rng.random_range(1.0..1.25));
                entry.next_resolve = Some(next);
                entry.resolving = true;
                self.actions.push_back(Action::ResolveNode { id: *id, public_key: entry.public_key });
                next
            }
        };
        // Without an address there is nothing to do before the next question; an answer comes earlier.
        if entry.target().is_none() {
            self.set_due(id, Some(next));
        }
        self.changed.insert(*id);
        Ok(())
    }

    /// Discovery's answer about a node: where it is now, or nothing.
    pub fn node_resolved(&mut self, now: Now, rules: &Rules, id: &NodeId, found: Option<Enode>) {
        let found = found.filter(|enode| enode.id() == *id);
        self.one_off_resolved(now, rules, id, found.as_ref());
        if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.resolving) {
            entry.resolving = false;
            let idle = entry.task.is_none() && entry.standing.is_none();
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
                    if idle {
                        self.set_due(id, Some(now.mono));
                    }
                }
                Some(_) if allowed => {}
                answer => {
                    entry.resolve_failures = entry.resolve_failures.saturating_add(1);
                    let cause = if answer.is_some() { Cause::AddressRefused } else { Cause::NotFound };
                    // With an address to try, the dial's own error says more.
                    if entry.target().is_none() {
                        entry.set_error(now, cause, "");
                    }
                }
            }
            self.changed.insert(*id);
        }
        self.run(now, rules);
    }

    /// Looks at refused entries again.
    pub(super) fn recheck_entries(&mut self, now: Now) {
        let refused: Vec<_> =
            self.entries.values().filter(|entry| entry.refused.is_some()).map(|entry| entry.id).collect();
        refused.iter().for_each(|id| self.set_due(id, Some(now.mono)));
    }

    /// Waits that only uselessness caused are over, for there is a new protocol.
    pub(super) fn forgive_useless_entries(&mut self, now: Now) {
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

    /// Sets when an entry is due. One that is connected or being dialed is not.
    pub(super) fn set_due(&mut self, id: &NodeId, due: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        if let Some(before) = entry.due.take() {
            self.due.remove(&(before, *id));
        }
        if let Some(due) = due
            && entry.standing.is_none()
            && entry.task.is_none()
            && entry.wants_dial()
        {
            entry.due = Some(due);
            self.due.insert((due, *id));
        }
    }

    /// Counts anew who takes dynamic slots, after the lists changed. Linear in peers, for the operator's calls.
    fn recount(&mut self) {
        self.held.clear();
        self.dialed = 0;
        for (id, peer) in &self.peers {
            if !peer.standing.inbound && !self.entries.contains_key(id) {
                self.dialed += 1;
                if let Some(source) = peer.source {
                    *self.held.entry(source).or_default() += 1;
                }
            }
        }
        for task in self.tasks.values() {
            if let Kind::Dynamic(source) = task.kind {
                *self.held.entry(source).or_default() += 1;
            }
        }
    }
}
