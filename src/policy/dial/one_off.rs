//! One dial on request: no list entry, an answer within a time.
//!
//! A request joins whatever is under way to that node. It does not wait for back-off or history, because a person
//! asked; it does obey bans, net restriction and the pool's bound.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::super::{cause::Cause, refusal::Refusal, rules::Rules};
use super::scheduler::{Action, Kind, Scheduler, Task, check_addr};
use crate::{
    Now,
    node::{Enode, Host, NodeId, NodeRef},
};

/// The most requests at once.
const MAX_ONE_OFFS: usize = 64;

/// A request's name, chosen by the caller; unique among those under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectOutcome {
    /// The node is a peer, newly or already.
    Connected,
    /// The dial failed.
    Failed {
        /// Why.
        cause: Cause,
        /// In more words.
        detail: String,
    },
    /// Discovery's answer may not be dialed.
    Refused(Refusal),
    /// The time ran out. The dial was given up, unless somebody else wanted it too.
    TimedOut,
}

#[derive(Debug)]
pub(super) struct OneOff {
    pub(super) id: NodeId,
    pub(super) deadline: Instant,
    /// Waits for discovery.
    resolving: bool,
}

impl Scheduler {
    /// Dials `node` once. Ends in [`Action::ConnectDone`], unless it is refused right here.
    pub fn connect(
        &mut self,
        now: Now,
        rules: &Rules,
        query: QueryId,
        node: &NodeRef,
        timeout: Duration,
    ) -> Result<(), Refusal> {
        let id = node.id();
        rules.check_node(now, &id)?;
        if self.peers.contains_key(&id) {
            self.actions.push_back(Action::ConnectDone { query, id, outcome: ConnectOutcome::Connected });
            return Ok(());
        }
        self.may_dial(rules)?;
        let listed = self.entries.get(&id);
        if rules.settings.allowlist_only && listed.is_none() {
            return Err(Refusal::NotOnAllowlist);
        }
        let target = node.enode().or_else(|| listed.and_then(|entry| entry.target().cloned()));
        if self.one_offs.len() >= MAX_ONE_OFFS {
            return Err(Refusal::QueueFull);
        }
        let resolving = !self.task_of.contains_key(&id) && target.is_none();
        if resolving && !rules.settings.discovery {
            return Err(Refusal::AddressUnknown);
        }
        if let Some(target) = target
            && !self.task_of.contains_key(&id)
        {
            self.start_one_off(now, rules, &target, timeout)?;
        }
        self.one_offs.insert(query, OneOff { id, deadline: now.mono + timeout, resolving });
        if resolving {
            self.actions.push_back(Action::ResolveNode { id, public_key: node.public_key() });
        }
        Ok(())
    }

    fn start_one_off(
        &mut self,
        now: Now,
        rules: &Rules,
        target: &Enode,
        timeout: Duration,
    ) -> Result<(), Refusal> {
        // Asked again here, because discovery may have taken its time.
        rules.check_node(now, &target.id())?;
        self.may_dial(rules)?;
        if self.tasks.len() >= rules.settings.max_pending_dials {
            return Err(Refusal::QueueFull);
        }
        if let Host::Ip(ip) = target.host {
            check_addr(now, rules, SocketAddr::new(ip, target.tcp), None)?;
        }
        let (id, public_key, port) = (target.id(), target.public_key, target.tcp);
        let timeout = timeout.min(rules.settings.dial_timeout);
        let kind = Kind::OneOff;
        let task = Task {
            id,
            public_key,
            kind,
            since: now,
            port,
            addr: None,
            record: None,
            timeout,
            turn_of: None,
            fork: None,
        };
        let name = self.start(now, rules, task, &target.host);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.task = Some(name);
            self.changed.insert(id);
        }
        self.set_due(&id, None);
        Ok(())
    }

    /// Discovery answered; the requests that waited for it go on.
    pub(super) fn one_off_resolved(&mut self, now: Now, rules: &Rules, id: &NodeId, found: Option<&Enode>) {
        let waiting = |one_off: &&mut OneOff| one_off.id == *id && one_off.resolving;
        let mut left = None;
        for one_off in self.one_offs.values_mut().filter(waiting) {
            one_off.resolving = false;
            left = left.max(Some(one_off.deadline.saturating_duration_since(now.mono)));
        }
        let Some(left) = left else { return };
        let outcome = match found {
            None => Some(ConnectOutcome::Failed { cause: Cause::NotFound, detail: String::new() }),
            Some(_) if self.task_of.contains_key(id) || self.peers.contains_key(id) => None,
            Some(found) => self.start_one_off(now, rules, found, left).err().map(ConnectOutcome::Refused),
        };
        if let Some(outcome) = outcome {
            self.finish_one_offs(id, &outcome);
        }
    }

    /// Answers all requests for a node.
    pub(super) fn finish_one_offs(&mut self, id: &NodeId, outcome: &ConnectOutcome) {
        let done: Vec<_> =
            self.one_offs.iter().filter(|(_, one_off)| one_off.id == *id).map(|(query, _)| *query).collect();
        for query in done {
            self.one_offs.remove(&query);
            self.actions.push_back(Action::ConnectDone { query, id: *id, outcome: outcome.clone() });
        }
    }

    /// Answers the requests whose time ran out, and gives up dials that nobody else wants.
    pub(super) fn expire_one_offs(&mut self, now: Now) {
        let late: Vec<_> = self
            .one_offs
            .iter()
            .filter(|(_, one_off)| one_off.deadline <= now.mono)
            .map(|(query, one_off)| (*query, one_off.id))
            .collect();
        for (query, id) in late {
            self.one_offs.remove(&query);
            self.actions.push_back(Action::ConnectDone { query, id, outcome: ConnectOutcome::TimedOut });
            let wanted = self.entries.contains_key(&id) || self.one_offs.values().any(|other| other.id == id);
            if let Some(name) = self.task_of.get(&id).copied()
                && !wanted
                && self.tasks.get(&name).is_some_and(|task| task.kind == Kind::OneOff)
            {
                self.end(name);
                self.actions.push_back(Action::Abort(name));
            }
        }
    }
}
