//! The scheduler's state and the order of business: one-offs start when they are asked for, then static and trusted
//! peers that are due, then candidates into what is free.
//!
//! Every call that changes something ends in `run`, which starts what can be started. There is no timer per dial:
//! the driver ends each dial by the deadline it was given and reports.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rand::rngs::StdRng;

use super::super::{
    cause::Cause,
    dial_filter::{DialFilter, RegistrationId, Registrations, Set},
    fork_following::{Followed, News},
    recent::Recent,
    refusal::Refusal,
    rules::Rules,
    settings::Slots,
};
use super::{
    backoff::Backoffs,
    candidates::{Candidates, Source},
    entry::{Entry, Standing},
    history::History,
    one_off::{ConnectOutcome, OneOff, QueryId},
    vouching::{Spoke, Vouchers},
};
use crate::{
    Now,
    node::{AddressClass, Host, NodeId, PublicKey, Record},
};

/// A dial's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// Why a node is dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It is static.
    Static,
    /// It is trusted.
    Trusted,
    /// A slot was free.
    Dynamic(Source),
    /// Somebody asked for it.
    OneOff,
}

/// A TCP connection to open and a handshake to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// To be named in the answer.
    pub task: TaskId,
    /// Who should be there.
    pub id: NodeId,
    /// The key the handshake is made with.
    pub public_key: PublicKey,
    /// Where.
    pub addr: SocketAddr,
    /// Further addresses of the same name, in the order in which they are to be tried.
    pub also: Vec<SocketAddr>,
    /// The record that the node was offered with, if there was one.
    pub record: Option<Record>,
    /// Why.
    pub kind: Kind,
    /// How long the TCP connection may take.
    pub timeout: Duration,
}

impl Dial {
    /// All addresses, in the order in which they are to be tried.
    pub fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.addr).chain(self.also.iter().copied())
    }
}

/// What the scheduler wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Resolve a host name and answer [`Scheduler::host_resolved`], within some seconds.
    LookupHost {
        /// To be named in the answer.
        task: TaskId,
        /// The name.
        name: String,
    },
    /// Dial, and answer either [`Scheduler::peer_connected`] or [`Scheduler::dial_failed`].
    Dial(Dial),
    /// Give this dial up. It is forgotten already; no answer is owed.
    Abort(TaskId),
    /// Ask discovery where the node is, and answer [`Scheduler::node_resolved`].
    ResolveNode {
        /// Who.
        id: NodeId,
        /// Its key, if known.
        public_key: Option<PublicKey>,
    },
    /// A static or trusted entry, or its state, changed; see [`Scheduler::entry`].
    EntryChanged(NodeId),
    /// A one-off dial ended.
    ConnectDone {
        /// Which one.
        query: QueryId,
        /// Whom it was to.
        id: NodeId,
        /// How.
        outcome: ConnectOutcome,
    },
    /// A dial ended without a peer.
    Failed {
        /// Whom it was to.
        id: NodeId,
        /// Where, unless it ended while a name was looked up.
        addr: Option<SocketAddr>,
        /// Why it was made.
        kind: Kind,
        /// Why it failed.
        cause: Cause,
        /// In more words.
        detail: String,
    },
    /// What changed about forks that schedules lack.
    Fork(News),
    /// So many more candidates are wanted from all sources together. 0: stop looking.
    Demand(usize),
}

/// A dial in progress.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: NodeId,
    pub(super) public_key: PublicKey,
    pub(super) kind: Kind,
    pub(super) since: Now,
    /// The RLPx port, for a name that is being looked up.
    pub(super) port: u16,
    /// Known once it is dialed.
    pub(super) addr: Option<SocketAddr>,
    /// What the node was offered with, until it is dialed.
    pub(super) record: Option<Record>,
    pub(super) timeout: Duration,
    /// The registration whose turn it was.
    pub(super) turn_of: Option<RegistrationId>,
    /// The checksum that the node announces, if it is wanted only for a fork that a schedule lacks.
    pub(super) fork: Option<[u8; 4]>,
}

/// A peer, as far as dialing goes.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) standing: Standing,
    /// Who offered it, if it was dialed as a candidate.
    pub(super) source: Option<Source>,
    /// All who named it since.
    pub(super) vouchers: Vouchers,
    /// The checksum that it announces and its address, if it was dialed only for a fork that a schedule lacks.
    pub(super) fork: Option<([u8; 4], IpAddr)>,
    pub(super) served: Vec<RegistrationId>,
}

/// The dial scheduler. See the [module](super) for what it is told and what it answers.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) rng: StdRng,
    pub(super) entries: BTreeMap<NodeId, Entry>,
    /// Entries in the order in which they are due.
    pub(super) due: BTreeSet<(Instant, NodeId)>,
    pub(super) tasks: BTreeMap<TaskId, Task>,
    pub(super) task_of: BTreeMap<NodeId, TaskId>,
    pub(super) next_task: u64,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    pub(super) candidates: Candidates,
    pub(super) backoffs: Backoffs,
    pub(super) history: History,
    pub(super) registrations: Registrations,
    pub(super) one_offs: BTreeMap<QueryId, OneOff>,
    pub(super) changed: BTreeSet<NodeId>,
    pub(super) actions: VecDeque<Action>,
    pub(super) demand: usize,
    /// Dials, connected or in progress, that take dynamic slots.
    pub(super) dialed: usize,
    pub(super) dialing_dynamic: usize,
    /// The same by source.
    pub(super) held: BTreeMap<Source, usize>,
    pub(super) spoke: Spoke,
    /// Until when slower sources are waited for; `None` before there is anything to dial for.
    pub(super) patience: Option<Instant>,
    pub(super) patience_over: bool,
    /// After a fault of ours, such as running out of file descriptors, nothing is dialed for a moment.
    pub(super) paused_until: Option<Instant>,
    pub(super) local_faults: u32,
    /// Since when candidates are wanted and none has come.
    pub(super) starved_since: Option<Instant>,
    /// What became of candidates and dials.
    pub recent: Recent,
}

impl Scheduler {
    /// A scheduler with empty lists. `rng` is for jitter only.
    #[must_use]
    pub fn new(now: Now, rng: StdRng) -> Self {
        Self {
            rng,
            entries: BTreeMap::new(),
            due: BTreeSet::new(),
            tasks: BTreeMap::new(),
            task_of: BTreeMap::new(),
            next_task: 0,
            peers: BTreeMap::new(),
            candidates: Candidates::default(),
            backoffs: Backoffs::new(),
            history: History::new(),
            registrations: Registrations::default(),
            one_offs: BTreeMap::new(),
            changed: BTreeSet::new(),
            actions: VecDeque::new(),
            demand: 0,
            dialed: 0,
            dialing_dynamic: 0,
            held: BTreeMap::new(),
            spoke: Spoke::default(),
            patience: None,
            patience_over: false,
            paused_until: None,
            local_faults: 0,
            starved_since: None,
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
                self.forgive_useless_entries(now);
            }
            // Who waits was wanted by the old filter, and the records are gone: discovery offers them again.
            Set::OtherFilter => self.candidates.retain(|waiting| !waiting.wanted_by.contains(&id)),
            Set::Same => {}
        }
        if first {
            self.touch_all();
        }
        self.run(now, rules);
    }

    /// A registration has more protocols than before: who was useless may be of use now.
    pub fn protocols_added(&mut self, now: Now, rules: &Rules) {
        self.backoffs.forgive_useless();
        self.forgive_useless_entries(now);
        self.run(now, rules);
    }

    /// Ends a registration.
    pub fn unregister(&mut self, now: Now, rules: &Rules, id: RegistrationId) {
        self.registrations.remove(id);
        for peer in self.peers.values_mut() {
            peer.served.retain(|served| *served != id);
        }
        if self.registrations.is_empty() {
            self.touch_all();
        }
        self.run(now, rules);
    }

    /// The forks that are followed although schedules lack them.
    #[must_use]
    pub fn followed_forks(&self) -> Vec<Followed> {
        self.registrations.followed()
    }

    /// Since when candidates are wanted and none has come.
    #[must_use]
    pub fn starved_since(&self) -> Option<Instant> {
        self.starved_since
    }

    /// Whether anything is registered.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn has_registrations(&self) -> bool {
        !self.registrations.is_empty()
    }

    /// The rules changed: everything that waits is looked at anew. Linear in the lists, so for the operator's calls.
    pub fn rules_changed(&mut self, now: Now, rules: &Rules) {
        self.candidates.retain(|waiting| {
            rules.check_node(now, &waiting.id).is_ok() && rules.check_ip(now, waiting.addr.ip()).is_ok()
        });
        self.abort_refused(now, rules);
        self.recheck_entries(now);
        self.touch_all();
        self.run(now, rules);
    }

    /// Gives up dials that the rules no longer allow.
    fn abort_refused(&mut self, now: Now, rules: &Rules) {
        let check = |task: &Task| {
            let ip = task.addr.map_or(Ok(()), |addr| rules.check_ip(now, addr.ip()));
            rules.check_node(now, &task.id).and(ip).err()
        };
        let out: Vec<_> = self.tasks.iter().filter_map(|(name, task)| Some((*name, check(task)?))).collect();
        for (name, refusal) in out {
            self.actions.push_back(Action::Abort(name));
            self.give_up(now, name, refusal);
        }
    }

    /// Ends a dial that may not go on. A listed peer is looked at again when something changes.
    pub(super) fn give_up(&mut self, now: Now, name: TaskId, refusal: Refusal) {
        let Some(task) = self.end(name) else { return };
        self.refused(now, refusal);
        self.finish_one_offs(&task.id, &ConnectOutcome::Refused(refusal));
        self.set_due(&task.id, Some(now.mono));
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Now, rules: &Rules) {
        self.expire_one_offs(now);
        self.run(now, rules);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing else happens before.
    #[must_use]
    pub fn poll_timeout(&self, rules: &Rules) -> Option<Instant> {
        let one_off = self.one_offs.values().map(|one_off| one_off.deadline).min();
        let dial = if !self.can_dial(rules) || self.tasks.len() >= rules.settings.max_pending_dials {
            None
        } else if self.paused_until.is_some() {
            self.paused_until
        } else {
            let due = self.due.first().map(|(due, _)| *due);
            let patience = self.patience.filter(|_| !self.patience_over && self.candidates.len() > 0);
            [due, patience].into_iter().flatten().min()
        };
        [one_off, dial].into_iter().flatten().min()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front().or_else(|| self.changed.pop_first().map(Action::EntryChanged))
    }

    /// Whether anything may be dialed at all, or why not.
    pub(super) fn may_dial(&self, rules: &Rules) -> Result<(), Refusal> {
        if !rules.settings.dialing {
            return Err(Refusal::DialingOff);
        }
        if self.registrations.is_empty() { Err(Refusal::NoProtocol) } else { Ok(()) }
    }

    pub(super) fn can_dial(&self, rules: &Rules) -> bool {
        self.may_dial(rules).is_ok()
    }

    /// The slots for peers on no list.
    #[must_use]
    pub fn slots(&self, rules: &Rules) -> Slots {
        rules.settings.slots()
    }

    /// Starts what can be started.
    pub(super) fn run(&mut self, now: Now, rules: &Rules) {
        if self.paused_until.is_some_and(|until| until <= now.mono) {
            self.paused_until = None;
        }
        if self.can_dial(rules) {
            let patience = *self.patience.get_or_insert(now.mono + rules.settings.mix_patience);
            self.patience_over |= patience <= now.mono;
        }
        if self.can_dial(rules) && self.paused_until.is_none() {
            self.start_due_entries(now, rules);
            self.start_candidates(now, rules);
        }
        self.tell_demand(now.mono, rules);
    }

    /// Begins a dial: by looking up the name, if there is one. The address has been checked by the caller.
    pub(super) fn start(&mut self, now: Now, rules: &Rules, mut task: Task, host: &Host) -> TaskId {
        let name = TaskId(self.next_task);
        self.next_task += 1;
        self.recent.count(now.mono, |counts| counts.dialed += 1);
        if let Kind::Dynamic(source) = task.kind {
            self.dialing_dynamic += 1;
            *self.held.entry(source).or_default() += 1;
        }
        if let Some(id) = task.turn_of {
            self.registrations.dialing(id);
        }
        match host {
            Host::Ip(ip) => self.dial(now, rules, name, &mut task, *ip, &[]),
            Host::Name(host) => {
                self.actions.push_back(Action::LookupHost { task: name, name: host.clone() });
            }
        }
        self.task_of.insert(task.id, name);
        self.tasks.insert(name, task);
        name
    }

    /// Emits the dial of a task whose address is known.
    pub(super) fn dial(
        &mut self,
        now: Now,
        rules: &Rules,
        name: TaskId,
        task: &mut Task,
        ip: IpAddr,
        also: &[IpAddr],
    ) {
        let addr = SocketAddr::new(ip, task.port);
        task.addr = Some(addr);
        let also: Vec<_> = also.iter().map(|ip| SocketAddr::new(*ip, task.port)).collect();
        for addr in std::iter::once(&addr).chain(&also) {
            self.history.dialed(now.mono, rules.settings.history, task.id, *addr, !rules.exempt(addr.ip()));
        }
        let (id, public_key, kind, timeout) = (task.id, task.public_key, task.kind, task.timeout);
        let record = task.record.take();
        let dial = Dial { task: name, id, public_key, addr, also, record, kind, timeout };
        self.actions.push_back(Action::Dial(dial));
    }

    /// Takes a dial out of the books.
    pub(super) fn end(&mut self, name: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&name)?;
        self.task_of.remove(&task.id);
        if let Kind::Dynamic(source) = task.kind {
            self.dialing_dynamic = self.dialing_dynamic.saturating_sub(1);
            self.release(source);
        }
        if let Some(id) = task.turn_of {
            self.registrations.dialed(id);
        }
        if let Some(entry) = self.entries.get_mut(&task.id) {
            entry.task = None;
            self.changed.insert(task.id);
        }
        Some(task)
    }

    pub(super) fn release(&mut self, source: Source) {
        if let Some(held) = self.held.get_mut(&source) {
            *held = held.saturating_sub(1);
        }
    }

    pub(super) fn refused(&mut self, now: Now, refusal: Refusal) {
        self.recent.count(now.mono, |counts| *counts.not_dialed.entry(refusal).or_default() += 1);
    }

    /// Marks all entries as changed, for what changes the state of all.
    pub(super) fn touch_all(&mut self) {
        self.changed.extend(self.entries.keys());
    }
}

/// Whether an address may be dialed, whoever named it. `widest` is the reach that earlier addresses of the node had:
/// a name or record that was global and turns private would make us knock at doors on our own network.
pub(super) fn check_addr(
    now: Now,
    rules: &Rules,
    addr: SocketAddr,
    widest: Option<AddressClass>,
) -> Result<(), Refusal> {
    if addr.port() == 0 {
        return Err(Refusal::NoTcpPort);
    }
    let class = AddressClass::of(addr.ip());
    if class == AddressClass::Special {
        return Err(Refusal::SpecialAddress);
    }
    if class.is_lan() && widest == Some(AddressClass::Global) && !rules.settings.allow_lan {
        return Err(Refusal::LanAddress);
    }
    rules.check_ip(now, addr.ip())
}
