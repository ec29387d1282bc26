//! The dial scheduler. It starts dials in this order: one-off dials on request, then static and trusted peers that are
//! due, then candidates for the free slots.
//!
//! Every call that changes something ends in `run`, which starts the dials that are possible. There is no timer per
//! dial: the driver ends each dial by its deadline and reports. Lists, dials, peers, requests and sources each have a
//! type of their own; this one connects them.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rand::rngs::StdRng;

use super::super::{
    action::Action,
    cause::Cause,
    dial_filter::{DialFilter, Registrations, Set, Wanting},
    fork_following::Followed,
    recent::Recent,
    refusal::Refusal,
    rules::Rules,
};
use super::{
    address::{check_addr, check_lan, choose},
    backoff::{Backoffs, FORGIVEN_AFTER, Pause},
    candidates::{Candidate, Candidates, Waiting},
    entry::{AddError, ListEntry, ListSource, RemoveError, Removed, Standing},
    history::History,
    listed::{Attempt, List, Listed},
    one_off::{ConnectId, ConnectOutcome, OneOffs},
    peers::{Peer, Peers},
    share::{Demand, Share, Use},
    task::{Dials, Kind, Task, TaskId},
};
use crate::{
    Now,
    node::{Enode, Host, NodeId, NodeRef, RegistrationId},
};

/// The dial scheduler. See the [module](super) for its events and actions.
#[derive(Debug)]
pub struct Scheduler {
    rng: StdRng,
    listed: Listed,
    dials: Dials,
    peers: Peers,
    one_offs: OneOffs,
    candidates: Candidates,
    backoffs: Backoffs,
    history: History,
    registrations: Registrations,
    actions: VecDeque<Action>,
    share: Share,
    demand: Demand,
    pause: Pause,
    recent: Recent,
}

impl Scheduler {
    /// A scheduler with empty lists. `rng` is for jitter only.
    #[must_use]
    pub fn new(now: Now, rng: StdRng) -> Self {
        Self {
            rng,
            listed: Listed::default(),
            dials: Dials::default(),
            peers: Peers::default(),
            one_offs: OneOffs::default(),
            candidates: Candidates::default(),
            backoffs: Backoffs::new(),
            history: History::new(),
            registrations: Registrations::default(),
            actions: VecDeque::new(),
            share: Share::default(),
            demand: Demand::default(),
            pause: Pause::default(),
            recent: Recent::new(now.mono),
        }
    }

    /// Adds a registration, or changes its filter. A new one is dialed for at once: waits that only uselessness
    /// caused are over.
    pub fn register(
        &mut self,
        now: Now,
        rules: &Rules,
        id: RegistrationId,
        filter: DialFilter,
        desired_peers: Option<usize>,
    ) {
        let first = self.registrations.is_empty();
        match self.registrations.set(id, filter, desired_peers) {
            Set::New => {
                self.backoffs.forgive_useless();
                self.listed.forgive_useless(now);
            }
            // The waiting nodes matched the old filter, and their records were not kept. Discovery offers them again.
            Set::OtherFilter => self.candidates.retain(|waiting| !waiting.wanted_by.contains(&id)),
            Set::Same => {}
        }
        if first {
            self.listed.touch_all();
        }
        self.run(now, rules);
    }

    /// A registration has more protocols than before: peers that were useless may be of use now.
    pub fn protocols_added(&mut self, now: Now, rules: &Rules) {
        self.backoffs.forgive_useless();
        self.listed.forgive_useless(now);
        self.run(now, rules);
    }

    /// Ends a registration.
    pub fn unregister(&mut self, now: Now, rules: &Rules, id: RegistrationId) {
        self.registrations.remove(id);
        self.peers.unregister(id);
        if self.registrations.is_empty() {
            self.listed.touch_all();
        }
        self.run(now, rules);
    }

    /// The forks that are followed although schedules lack them.
    #[must_use]
    pub fn followed_forks(&self) -> Vec<Followed> {
        self.registrations.followed()
    }

    /// Whether anything is registered.
    #[must_use]
    pub fn has_registrations(&self) -> bool {
        !self.registrations.is_empty()
    }

    /// Since when candidates are wanted and none has come.
    #[must_use]
    pub fn starved_since(&self) -> Option<Instant> {
        self.demand.starved_since()
    }

    /// The results of candidates and dials.
    #[must_use]
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// The same, to be counted on or summed up.
    pub fn recent_mut(&mut self) -> &mut Recent {
        &mut self.recent
    }

    /// The rules changed: everything that waits is looked at anew. Linear in the lists, so for the operator's calls.
    pub fn rules_changed(&mut self, now: Now, rules: &Rules) {
        self.candidates.retain(|waiting| {
            rules.check_node(now, &waiting.id).is_ok() && rules.check_ip(now, waiting.addr.ip()).is_ok()
        });
        self.abort_refused(now, rules);
        self.listed.rules_changed(now);
        self.run(now, rules);
    }

    /// Gives up dials that the rules no longer allow.
    fn abort_refused(&mut self, now: Now, rules: &Rules) {
        let check = |task: &Task| {
            let ip = task.addr.map_or(Ok(()), |addr| rules.check_ip(now, addr.ip()));
            rules.check_node(now, &task.id).and(ip).err()
        };
        let out: Vec<_> = self.dials.iter().filter_map(|(name, task)| Some((name, check(task)?))).collect();
        for (name, refusal) in out {
            self.actions.push_back(Action::AbortDial(name));
            self.give_up(now, name, refusal);
        }
    }

    /// Puts a node on a list, or changes its address. Adding a node twice has no effect; an entry of the configuration
    /// stays one. A trusted node is dialed if an address is given, or becomes known from a candidate.
    pub fn add(
        &mut self,
        now: Now,
        rules: &Rules,
        node: &NodeRef,
        list: List,
        source: ListSource,
    ) -> Result<(), AddError> {
        let id = node.id();
        let dialing = self.dials.of(&id).map(|(_, task)| task.since);
        self.listed.add(now, rules, node, (list, source), (dialing, self.peers.standing(&id)))?;
        self.backoffs.forgive(&id);
        self.candidates.retain(|waiting| waiting.id != id);
        self.peers.recount(|id| self.listed.contains(id));
        self.run(now, rules);
        Ok(())
    }

    /// The configuration no longer names a node for a list: calls may remove it from now on.
    pub fn release(&mut self, id: &NodeId, list: List) {
        self.listed.release(id, list);
    }

    /// Takes a node off a list. The caller decides about its connection.
    pub fn remove(
        &mut self,
        now: Now,
        rules: &Rules,
        id: &NodeId,
        list: List,
    ) -> Result<Removed, RemoveError> {
        let (removed, unwanted) = self.listed.remove(id, list)?;
        if let Some((name, task)) = self.dials.of(id)
            && unwanted
            && matches!(task.kind, Kind::Static | Kind::Trusted)
            && !self.one_offs.want(id)
        {
            self.end(name);
            self.actions.push_back(Action::AbortDial(name));
        }
        self.peers.recount(|id| self.listed.contains(id));
        self.run(now, rules);
        Ok(removed)
    }

    /// The static and trusted lists.
    #[must_use]
    pub fn listed(&self) -> &Listed {
        &self.listed
    }

    /// A node's entry, as it is now.
    #[must_use]
    pub fn entry(&self, now: Now, rules: &Rules, id: &NodeId) -> Option<ListEntry> {
        self.listed.show(now, rules, self.has_registrations(), Some(id)).next()
    }

    /// All entries by node id.
    pub fn entries(&self, now: Now, rules: &Rules) -> impl Iterator<Item = ListEntry> {
        self.listed.show(now, rules, self.has_registrations(), None)
    }

    /// Dials `node` once. Ends in [`Action::ConnectDone`], unless it is refused right here.
    pub fn connect(
        &mut self,
        now: Now,
        rules: &Rules,
        connect: ConnectId,
        node: &NodeRef,
        timeout: Duration,
    ) -> Result<(), Refusal> {
        let id = node.id();
        rules.check_node(now, &id)?;
        if self.peers.contains(&id) {
            self.actions.push_back(Action::ConnectDone { connect, id, outcome: ConnectOutcome::Connected });
            return Ok(());
        }
        self.may_dial(rules)?;
        if rules.settings.allowlist_only && !self.listed.contains(&id) {
            return Err(Refusal::NotOnAllowlist);
        }
        let target = node.enode().or_else(|| self.listed.target(&id).cloned());
        if self.one_offs.is_full() {
            return Err(Refusal::QueueFull);
        }
        let dialing = self.dials.contains(&id);
        let resolving = !dialing && target.is_none();
        if resolving && !rules.settings.discovery {
            return Err(Refusal::AddressUnknown);
        }
        if let Some(target) = target
            && !dialing
        {
            self.start_one_off(now, rules, &target, timeout)?;
        }
        self.one_offs.add(connect, id, now.mono + timeout, resolving);
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
        if self.dials.len() >= rules.settings.max_pending_dials {
            return Err(Refusal::QueueFull);
        }
        if let Host::Ip(ip) = target.host {
            check_addr(now, rules, SocketAddr::new(ip, target.tcp), None)?;
        }
        let timeout = timeout.min(rules.settings.dial_timeout);
        let task = Task::new(now, target.id(), target.public_key, target.tcp, Kind::OneOff, timeout);
        self.start(now, rules, task, &target.host);
        Ok(())
    }

    /// Ends all requests for a node with this outcome.
    fn finish_one_offs(&mut self, id: &NodeId, outcome: &ConnectOutcome) {
        for connect in self.one_offs.take(id) {
            self.actions.push_back(Action::ConnectDone { connect, id: *id, outcome: outcome.clone() });
        }
    }

    /// Ends the requests whose time ran out, and aborts the dials that nothing else needs.
    fn expire_one_offs(&mut self, now: Now) {
        while let Some((connect, id)) = self.one_offs.take_late(now) {
            self.actions.push_back(Action::ConnectDone { connect, id, outcome: ConnectOutcome::TimedOut });
            if let Some((name, task)) = self.dials.of(&id)
                && task.kind == Kind::OneOff
                && !self.listed.contains(&id)
                && !self.one_offs.want(&id)
            {
                self.end(name);
                self.actions.push_back(Action::AbortDial(name));
            }
        }
    }

    /// A source offers a node. It is dialed when a slot is free, or refused right here; both are counted.
    /// `subnet_full` is admission's word that another peer from its network would not be let in.
    pub fn candidate(
        &mut self,
        now: Now,
        rules: &Rules,
        candidate: Candidate,
        subnet_full: bool,
    ) -> Result<(), Refusal> {
        self.recent.count(now.mono, |counts| counts.seen += 1);
        self.demand.candidate_came(now.mono);
        let full = if subnet_full { Err(Refusal::SubnetFull) } else { Ok(()) };
        let result = self.consider(now, rules, candidate, full);
        if let Err(refusal) = result {
            self.refused(now, refusal);
        }
        self.run(now, rules);
        result
    }

    fn consider(
        &mut self,
        now: Now,
        rules: &Rules,
        candidate: Candidate,
        full: Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let Candidate { public_key, addr, record, source, served } = candidate;
        let id = public_key.id();
        self.share.offered(now.mono, source);
        self.peers.named_by(&id, source);
        rules.check_node(now, &id)?;
        if self.listed.contains(&id) {
            self.listed.offered(now, rules, public_key, addr, source);
            return Err(Refusal::Listed);
        }
        if rules.settings.allowlist_only {
            return Err(Refusal::NotOnAllowlist);
        }
        if self.candidates.contains(&id) {
            return Err(Refusal::Waiting);
        }
        self.may_dial(rules)?;
        check_lan(rules, addr.ip(), source)?;
        self.check_now(now, rules, &id, addr).and(full)?;
        self.candidates.check_room(source)?;
        // The last check: a network that is asked about a fork uses its turn up, so the dial must follow.
        let follow = rules.settings.follow_forks;
        let Wanting { by: wanted_by, fork, unknown } =
            self.registrations.wanting(now, record.as_ref(), addr.ip(), follow);
        if wanted_by.is_empty() {
            if let Some(hash) = unknown {
                self.recent.count(now.mono, |counts| counts.unknown_fork(hash, 1));
            }
            return Err(Refusal::Filtered);
        }
        self.candidates.push(Waiting { id, public_key, addr, source, served, record, wanted_by, fork });
        Ok(())
    }

    /// The checks that apply both when a candidate comes and when it is dialed.
    fn check_now(&mut self, now: Now, rules: &Rules, id: &NodeId, addr: SocketAddr) -> Result<(), Refusal> {
        if self.peers.contains(id) {
            return Err(Refusal::Connected);
        }
        if self.dials.contains(id) {
            return Err(Refusal::Dialing);
        }
        rules.check_node(now, id)?;
        check_addr(now, rules, addr, None)?;
        if self.backoffs.holds(now.mono, id) {
            return Err(Refusal::BackingOff);
        }
        let limit = rules.settings.dials_per_subnet;
        let limit = (!rules.exempt(addr.ip())).then_some(limit);
        self.history.check(now.mono, id, &addr, limit)
    }

    /// Whether a dial in progress is one that a caller asked for.
    #[must_use]
    pub fn is_one_off(&self, name: TaskId) -> bool {
        self.dials.get(name).is_some_and(|task| task.kind == Kind::OneOff)
    }

    /// The result of a name lookup: its addresses in the order of preference, or the error.
    pub fn host_resolved(&mut self, now: Now, rules: &Rules, name: TaskId, addrs: Result<&[IpAddr], &str>) {
        let Some(task) = self.dials.get(name).filter(|task| task.addr.is_none()) else { return };
        let (id, port) = (task.id, task.port);
        // It came to us while we looked its name up.
        if self.peers.contains(&id) {
            return self.dial_failed(now, rules, name, Cause::AlreadyConnected, "");
        }
        if let Err(refusal) = self.may_dial(rules) {
            return self.give_up(now, name, refusal);
        }
        match choose(now, rules, port, self.listed.widest(&id), addrs) {
            Ok((ip, also)) => {
                self.listed.saw(&id, ip);
                self.dial(now, rules, name, ip, &also);
            }
            Err((cause, detail)) => self.dial_failed(now, rules, name, cause, &detail),
        }
    }

    /// Discovery's answer about a node: its current address, or nothing.
    pub fn node_resolved(&mut self, now: Now, rules: &Rules, id: &NodeId, found: Option<Enode>) {
        let found = found.filter(|enode| enode.id() == *id);
        if let Some(left) = self.one_offs.resolved(now, id) {
            let outcome = match &found {
                None => Some(ConnectOutcome::Failed { cause: Cause::NotFound, detail: String::new() }),
                Some(_) if self.dials.contains(id) || self.peers.contains(id) => None,
                Some(found) => self.start_one_off(now, rules, found, left).err().map(ConnectOutcome::Refused),
            };
            if let Some(outcome) = outcome {
                self.finish_one_offs(id, &outcome);
            }
        }
        self.listed.resolved(now, rules, id, found);
        self.run(now, rules);
    }

    /// A dial ended without a peer.
    pub fn dial_failed(&mut self, now: Now, rules: &Rules, name: TaskId, cause: Cause, detail: &str) {
        let Some(task) = self.end(name) else { return };
        if cause.proved_identity() {
            self.fork_proved(now, &task);
        }
        self.recent.count(now.mono, |counts| *counts.failed.entry(cause).or_default() += 1);
        let (id, addr, kind) = (task.id, task.addr, task.kind);
        self.actions.push_back(Action::DialFailed { id, addr, kind, cause, detail: detail.to_owned() });
        if cause == Cause::LocalFault {
            self.pause.begin(now.mono);
        } else {
            self.pause.works();
        }
        self.finish_one_offs(&task.id, &ConnectOutcome::Failed { cause, detail: detail.to_owned() });
        self.ended(now, rules, &task.id, task.since, cause, detail);
        self.run(now, rules);
    }

    /// A node became a peer, after both admission checkpoints. `served` are the registrations that use it.
    pub fn peer_connected(
        &mut self,
        now: Now,
        rules: &Rules,
        id: NodeId,
        inbound: bool,
        served: &[RegistrationId],
    ) {
        self.forget_peer(&id);
        let own = self.dials.of(&id).map(|(name, _)| name).filter(|_| !inbound);
        let task = own.and_then(|name| self.end(name));
        let source = task.as_ref().and_then(Task::source);
        let fork = task.as_ref().and_then(|task| self.fork_proved(now, task));
        self.recent
            .count(now.mono, |counts| if inbound { counts.let_in += 1 } else { counts.connected += 1 });
        if !inbound {
            self.pause.works();
        }
        let standing = Standing { since: now, inbound };
        self.listed.connected(now, &id, standing);
        self.registrations.connected(served);
        let peer = Peer { standing, source, fork, served: served.to_vec() };
        self.peers.add(id, peer, self.listed.contains(&id));
        self.candidates.retain(|waiting| waiting.id != id);
        self.finish_one_offs(&id, &ConnectOutcome::Connected);
        self.run(now, rules);
    }

    /// A peer is no longer one.
    pub fn peer_disconnected(&mut self, now: Now, rules: &Rules, id: &NodeId, cause: Cause, detail: &str) {
        let Some(peer) = self.forget_peer(id) else { return };
        let since = peer.standing.since;
        if let Some((hash, ip)) = peer.speaks_against_fork(now, cause) {
            let news = self.registrations.rejected(hash, ip, self.peers.has_settled(now, hash));
            self.actions.extend(news.into_iter().map(Action::Fork));
        }
        if now.mono.saturating_duration_since(since.mono) >= FORGIVEN_AFTER {
            self.backoffs.forgive(id);
            self.listed.forgive(id);
        }
        self.ended(now, rules, id, since, cause, detail);
        self.run(now, rules);
    }

    /// A node that was dialed only for a fork that schedules lack proved its identity. Returns fork and address.
    fn fork_proved(&mut self, now: Now, task: &Task) -> Option<([u8; 4], IpAddr)> {
        let (hash, ip) = (task.fork?, task.addr?.ip());
        let news = self.registrations.proved(now, hash, ip);
        self.actions.extend(news.into_iter().map(Action::Fork));
        Some((hash, ip))
    }

    /// Decides when a node is dialed again after its dial or connection, which began at `began`, ended.
    fn ended(&mut self, now: Now, rules: &Rules, id: &NodeId, began: Now, cause: Cause, detail: &str) {
        if self.listed.contains(id) {
            let question = self.listed.failed(now, rules, id, began, (cause, detail), &mut self.rng);
            self.actions.extend(question);
        } else {
            self.backoffs.failed(now.mono, *id, cause, rules.settings.history, &mut self.rng);
        }
    }

    fn forget_peer(&mut self, id: &NodeId) -> Option<Peer> {
        let peer = self.peers.remove(id)?;
        self.registrations.disconnected(&peer.served);
        self.listed.disconnected(id);
        Some(peer)
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Now, rules: &Rules) {
        self.expire_one_offs(now);
        self.run(now, rules);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing else happens before.
    #[must_use]
    pub fn poll_timeout(&self, rules: &Rules) -> Option<Instant> {
        let dial = if self.may_dial(rules).is_err() || self.dials.len() >= rules.settings.max_pending_dials {
            None
        } else if self.pause.end().is_some() {
            self.pause.end()
        } else {
            let patience = self.share.patience_ends().filter(|_| self.candidates.len() > 0);
            [self.listed.next_due(), patience].into_iter().flatten().min()
        };
        [self.one_offs.deadline(), dial].into_iter().flatten().min()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front().or_else(|| self.listed.take_changed().map(Action::EntryChanged))
    }

    /// Whether anything may be dialed at all, or why not.
    fn may_dial(&self, rules: &Rules) -> Result<(), Refusal> {
        if !rules.settings.dialing {
            return Err(Refusal::DialingOff);
        }
        if self.registrations.is_empty() { Err(Refusal::NoProtocol) } else { Ok(()) }
    }

    /// Starts all dials that are possible.
    fn run(&mut self, now: Now, rules: &Rules) {
        self.pause.run(now.mono);
        if self.may_dial(rules).is_ok() {
            self.share.run(now.mono, rules.settings.mix_patience);
            if self.pause.end().is_none() {
                self.start_due_entries(now, rules);
                self.start_candidates(now, rules);
            }
        }
        self.tell_demand(now.mono, rules);
    }

    /// Dials all listed nodes that are due, oldest first, while the pool has room.
    fn start_due_entries(&mut self, now: Now, rules: &Rules) {
        while self.dials.len() < rules.settings.max_pending_dials {
            let Some(id) = self.listed.take_due(now) else { return };
            match self.listed.attempt(now, rules, &id, &mut self.rng) {
                Ok(Some(Attempt::Dial { public_key, host, port, kind })) => {
                    let task = Task::new(now, id, public_key, port, kind, rules.settings.dial_timeout);
                    self.start(now, rules, task, &host);
                }
                Ok(Some(Attempt::Resolve(question))) => self.actions.push_back(question),
                Ok(None) => {}
                Err(refusal) => self.refused(now, refusal),
            }
        }
    }

    /// Dials candidates while there are slots for them.
    fn start_candidates(&mut self, now: Now, rules: &Rules) {
        while self.free(rules) > 0 {
            let unsatisfied = self.registrations.unsatisfied();
            let used = Use::of(rules, &self.dials, &self.peers);
            let next = self.share.next(now.mono, &used, &mut self.candidates, &unsatisfied);
            let Some((turn_of, waiting)) = next else { return };
            if let Err(refusal) = self.check_now(now, rules, &waiting.id, waiting.addr) {
                self.refused(now, refusal);
                continue;
            }
            let Waiting { id, public_key, addr, source, record, fork, .. } = waiting;
            let kind = Kind::Dynamic(source);
            let task = Task::new(now, id, public_key, addr.port(), kind, rules.settings.dial_timeout);
            let task = Task { record, turn_of: Some(turn_of), fork, ..task };
            self.start(now, rules, task, &Host::Ip(addr.ip()));
        }
    }

    /// How many dials may begin: as geth, twice as many as there are free slots, because most fail; and some of the
    /// pool stays for the lists.
    fn free(&self, rules: &Rules) -> usize {
        let pool = rules.settings.max_pending_dials;
        let kept = self.listed.len().min(pool / 5);
        let missing = rules.settings.slots().dialed.saturating_sub(self.peers.slots_taken());
        let wanted = missing.saturating_mul(2).saturating_sub(self.dials.dynamic());
        wanted.min(pool.saturating_sub(kept).saturating_sub(self.dials.len()))
    }

    /// Says how many candidates are wanted, if that changed.
    fn tell_demand(&mut self, now: Instant, rules: &Rules) {
        let mut wanted = 0;
        if self.may_dial(rules).is_ok() {
            let unsatisfied = self.registrations.unsatisfied();
            let used = Use::of(rules, &self.dials, &self.peers);
            let waiting = self.share.of_use(now, &used, &self.candidates, &unsatisfied);
            wanted = self.free(rules).min(self.registrations.wants()).saturating_sub(waiting);
        }
        self.share.asked(now, wanted);
        if self.demand.set(now, wanted) {
            // Only the last word counts.
            self.actions.retain(|action| !matches!(action, Action::Demand(_)));
            self.actions.push_back(Action::Demand(wanted));
        }
    }

    /// Begins a dial: by looking up the name, if there is one. The address has been checked by the caller.
    fn start(&mut self, now: Now, rules: &Rules, task: Task, host: &Host) {
        self.recent.count(now.mono, |counts| counts.dialed += 1);
        if let Some(id) = task.turn_of {
            self.registrations.dialing(id);
        }
        self.listed.dial_began(now, &task.id);
        let name = self.dials.add(task);
        match host {
            Host::Ip(ip) => self.dial(now, rules, name, *ip, &[]),
            Host::Name(host) => {
                self.actions.push_back(Action::LookupHost { task: name, name: host.clone() });
            }
        }
    }

    /// Emits the dial of a task whose address is known.
    fn dial(&mut self, now: Now, rules: &Rules, name: TaskId, ip: IpAddr, also: &[IpAddr]) {
        let Some(dial) = self.dials.describe(name, ip, also) else { return };
        for addr in dial.addrs() {
            self.history.dialed(now.mono, rules.settings.history, dial.id, addr, !rules.exempt(addr.ip()));
        }
        self.actions.push_back(Action::Dial(dial));
    }

    /// Forgets a dial that ended, however it did.
    fn end(&mut self, name: TaskId) -> Option<Task> {
        let task = self.dials.remove(name)?;
        if let Some(id) = task.turn_of {
            self.registrations.dialed(id);
        }
        self.listed.dial_ended(&task.id);
        Some(task)
    }

    /// Ends a dial that may not go on. A listed peer is looked at again when something changes.
    fn give_up(&mut self, now: Now, name: TaskId, refusal: Refusal) {
        let Some(task) = self.end(name) else { return };
        self.refused(now, refusal);
        self.finish_one_offs(&task.id, &ConnectOutcome::Refused(refusal));
        self.listed.look_again(now, &task.id);
    }

    #[cfg(test)]
    pub(super) fn dials(&self) -> &Dials {
        &self.dials
    }

    #[cfg(test)]
    pub(super) fn slots_taken(&self) -> usize {
        self.peers.slots_taken()
    }

    fn refused(&mut self, now: Now, refusal: Refusal) {
        self.recent.count(now.mono, |counts| *counts.not_dialed.entry(refusal).or_default() += 1);
    }
}
