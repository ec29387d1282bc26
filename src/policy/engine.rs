//! The room's door: one engine in front of the dial scheduler, admission, bans and rotation.
//!
//! What it adds to them is what concerns more than one: a ban ends dials and connections; a connection that closes is
//! a dial that failed or a peer that went; a list that changes changes who takes slots. Each connection has one
//! life, told in this order:
//!
//! ```text
//! Action::Dial ─ dial_failed(task)
//!              └ conn_opened(conn, task) ┐
//! accepted ────── conn_accepted(conn) ───┴ conn_identified ─ conn_ready ─ [conn_heard …] ─ conn_closed
//! ```
//!
//! Whoever is told `Err(refusal)`, or gets [`Action::Close`], disconnects; `conn_closed` after that is welcome and
//! does nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use rand::{RngCore, SeedableRng, rngs::StdRng};

use super::{
    admission::{Admission, Closed, ConnId, Event, PeerView, Verdict},
    bans::{Ban, BanError, BanTarget},
    cause::Cause,
    churn::{Choice, Churn, ChurnSettings},
    dial::{self, AddError, Candidate, Kind, ListEntry, ListSource, QueryId, RemoveError, Scheduler, TaskId},
    dial_filter::{DialFilter, RegistrationId},
    lists::{BanLine, Lists, Parsed},
    recent::Counts,
    refusal::Refusal,
    rules::Rules,
    settings::{Settings, Slots},
};
use crate::{
    Now,
    node::{Enode, NodeId, NodeRef},
};

/// Why a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// A checkpoint or limit says so.
    Refused(Refusal),
    /// The operator took the peer off the static list.
    Removed,
    /// The peer, or its address, was banned.
    Banned,
    /// The rotation chose it.
    Rotated,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Something of the dial scheduler.
    Dial(dial::Action),
    /// Disconnect, flush, close. The connection is forgotten here already.
    Close(ConnId, CloseReason),
    /// Send a Ping and report the next message with [`Policy::conn_heard`].
    Probe(ConnId),
    /// A parked connection is the node's from now on: open its session, and end that of `before` if it is open.
    Promoted {
        /// The connection that stays.
        conn: ConnId,
        /// The one in whose place it is.
        before: ConnId,
        /// Whose.
        id: NodeId,
    },
    /// What is kept over restarts changed: write [`Policy::lists`].
    ListsChanged,
}

/// Everything this room decides. See the [module](self) for the order of calls.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    dial: Scheduler,
    admission: Admission,
    churn: Churn,
    rng: StdRng,
    /// The dial that each outbound connection in handshake belongs to.
    task_of: BTreeMap<ConnId, TaskId>,
    /// Dials that somebody asked for; their connections may exceed the share of dialed peers.
    asked_for: BTreeSet<TaskId>,
    actions: VecDeque<Action>,
    lists_changed: bool,
}

impl Policy {
    /// An engine with empty lists.
    #[must_use]
    pub fn new(now: Now, local_id: NodeId, settings: Settings, mut rng: StdRng) -> Self {
        let dial_rng = StdRng::seed_from_u64(rng.next_u64());
        Self {
            rules: Rules::new(local_id, settings),
            dial: Scheduler::new(now, dial_rng),
            admission: Admission::default(),
            churn: Churn::default(),
            rng,
            task_of: BTreeMap::new(),
            asked_for: BTreeSet::new(),
            actions: VecDeque::new(),
            lists_changed: false,
        }
    }

    // ---- What the operator says -------------------------------------------------------------------------------

    /// The settings of the moment.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.rules.settings
    }

    /// Changes settings. Peers beyond a lowered limit stay until they go by themselves; connections that the
    /// allow-list or the net restriction now excludes are closed.
    pub fn set_settings(&mut self, now: Now, settings: Settings) {
        self.rules.settings = settings;
        self.admission.recount(&self.rules, |id| is_listed(&self.dial, id));
        self.dial.rules_changed(now, &self.rules);
        let allowlist = self.rules.settings.allowlist_only;
        let excluded = |id: Option<NodeId>, ip: IpAddr| match self.rules.check_ip(now, ip) {
            Err(refusal) => Some(refusal),
            Ok(()) => {
                id.filter(|id| allowlist && !is_listed(&self.dial, id)).map(|_| Refusal::NotOnAllowlist)
            }
        };
        let out: Vec<_> = self
            .admission
            .connections()
            .filter_map(|(conn, ip, _, id)| Some((conn, excluded(id, ip)?)))
            .collect();
        for (conn, refusal) in out {
            self.close(now, conn, CloseReason::Refused(refusal));
        }
    }

    /// Switches rotation on or off.
    pub fn set_churn(&mut self, now: Now, settings: Option<ChurnSettings>) {
        self.churn.set(now.mono, settings, &mut self.rng);
    }

    /// Makes a node static, and answers its entry. Adding it again is fine; a new address takes effect.
    pub fn add_static(
        &mut self,
        now: Now,
        node: &NodeRef,
        source: ListSource,
    ) -> Result<Option<ListEntry>, AddError> {
        self.dial.add_static(now, &self.rules, node, source)?;
        self.lists_changed();
        Ok(self.entry(now, &node.id()))
    }

    /// Makes a node trusted, and answers its entry.
    pub fn add_trusted(
        &mut self,
        now: Now,
        node: &NodeRef,
        source: ListSource,
    ) -> Result<Option<ListEntry>, AddError> {
        self.dial.add_trusted(now, &self.rules, node, source)?;
        self.lists_changed();
        Ok(self.entry(now, &node.id()))
    }

    /// Takes a node off the static list. It is disconnected, unless that is not wanted or it is trusted.
    pub fn remove_static(&mut self, now: Now, id: &NodeId, keep_connected: bool) -> Result<(), RemoveError> {
        let removed = self.dial.remove_static(now, &self.rules, id)?;
        self.lists_changed();
        let conn = self.admission.connection_of(id).filter(|_| !keep_connected && !removed.still_listed);
        if let Some(conn) = conn {
            self.close(now, conn, CloseReason::Removed);
        }
        Ok(())
    }

    /// Takes a node off the trusted list. It stays connected and takes a slot from now on.
    pub fn remove_trusted(&mut self, now: Now, id: &NodeId) -> Result<(), RemoveError> {
        self.dial.remove_trusted(now, &self.rules, id)?;
        self.lists_changed();
        Ok(())
    }

    /// Whether a node is static.
    #[must_use]
    pub fn is_static(&self, id: &NodeId) -> bool {
        self.dial.is_static(id)
    }

    /// Whether a node is trusted.
    #[must_use]
    pub fn is_trusted(&self, id: &NodeId) -> bool {
        self.dial.is_trusted(id)
    }

    /// A node's list entry.
    #[must_use]
    pub fn entry(&self, now: Now, id: &NodeId) -> Option<ListEntry> {
        self.dial.entry(now, &self.rules, id)
    }

    /// All list entries; static and trusted ones are told apart by `as_static` and `as_trusted`.
    pub fn entries(&self, now: Now) -> impl Iterator<Item = ListEntry> {
        self.dial.entries(now, &self.rules)
    }

    /// Dials a node once; ends in [`dial::Action::ConnectDone`], unless refused right here.
    pub fn connect(
        &mut self,
        now: Now,
        query: QueryId,
        node: &NodeRef,
        timeout: Duration,
    ) -> Result<(), Refusal> {
        self.dial.connect(now, &self.rules, query, node, timeout)
    }

    /// Bans a node, an address or a network for `duration`, and closes what it hits. Static and trusted peers need
    /// `force`; they stay on their lists, and are dialed again when the ban ends.
    pub fn ban(
        &mut self,
        now: Now,
        target: BanTarget,
        duration: Duration,
        reason: &str,
        source: ListSource,
        force: bool,
    ) -> Result<Ban, BanError> {
        if target == BanTarget::Node(self.rules.local_id) {
            return Err(BanError::OwnIdentity);
        }
        if let Some(id) = self.protected(&target).filter(|_| !force) {
            return Err(BanError::Protected(id));
        }
        let ban = self.rules.bans.ban(now.unix, target, duration, reason, source)?.clone();
        self.lists_changed = true;
        self.dial.rules_changed(now, &self.rules);
        let hit = |id: Option<NodeId>, ip| {
            id.is_some_and(|id| self.rules.bans.of_node(now.unix, &id).is_some())
                || self.rules.bans.of_ip(now.unix, ip).is_some()
        };
        let out: Vec<_> = self
            .admission
            .connections()
            .filter(|(_, ip, _, id)| hit(*id, *ip))
            .map(|(conn, ..)| conn)
            .collect();
        for conn in out {
            self.close(now, conn, CloseReason::Banned);
        }
        Ok(ban)
    }

    /// Lifts a ban.
    pub fn unban(&mut self, now: Now, target: &BanTarget) -> Result<Ban, BanError> {
        let ban = self.rules.bans.unban(target)?;
        self.lists_changed = true;
        self.dial.rules_changed(now, &self.rules);
        Ok(ban)
    }

    /// All bans that stand.
    pub fn bans(&self, now: Now) -> impl Iterator<Item = &Ban> {
        self.rules.bans.iter(now.unix)
    }

    /// The ban that a node or address is under, if any.
    #[must_use]
    pub fn ban_of(&self, now: Now, id: Option<&NodeId>, ip: Option<IpAddr>) -> Option<&Ban> {
        let bans = &self.rules.bans;
        id.and_then(|id| bans.of_node(now.unix, id)).or_else(|| bans.of_ip(now.unix, ip?))
    }

    /// What is to be kept over restarts.
    #[must_use]
    pub fn lists(&self, now: Now) -> Lists {
        let called = |source: Option<ListSource>| source == Some(ListSource::Call);
        let bans = self.bans(now).filter(|ban| ban.source == ListSource::Call);
        Lists {
            static_peers: self.dial.words(|as_static, _| called(as_static)),
            trusted_peers: self.dial.words(|_, as_trusted| called(as_trusted)),
            bans: bans
                .map(|ban| BanLine {
                    target: ban.target.to_string(),
                    until: ban.until.as_secs(),
                    reason: ban.reason.clone(),
                })
                .collect(),
            ..Lists::default()
        }
    }

    /// Takes back what was kept: after the configuration's entries, before anything else. A peer that was banned
    /// with force stays listed.
    pub fn restore(&mut self, now: Now, lists: &Parsed) -> Result<(), AddError> {
        for node in &lists.static_peers {
            self.dial.add_static(now, &self.rules, node, ListSource::Call)?;
        }
        for node in &lists.trusted_peers {
            self.dial.add_trusted(now, &self.rules, node, ListSource::Call)?;
        }
        for (target, until, reason) in &lists.bans {
            let ban =
                Ban { target: *target, until: *until, reason: reason.clone(), source: ListSource::Call };
            // Full is impossible: the lists were checked to be within the bound, and the configuration has no bans.
            let _ = self.rules.bans.restore(now.unix, ban);
        }
        self.dial.rules_changed(now, &self.rules);
        Ok(())
    }

    // ---- What applications and sources say --------------------------------------------------------------------

    /// A registration came or changed.
    pub fn register(&mut self, now: Now, id: RegistrationId, filter: DialFilter, desired: Option<usize>) {
        self.dial.register(now, &self.rules, id, filter, desired);
    }

    /// A registration ended.
    pub fn unregister(&mut self, now: Now, id: RegistrationId) {
        self.dial.unregister(now, &self.rules, id);
    }

    /// A source offers a node.
    pub fn candidate(&mut self, now: Now, candidate: Candidate) -> Result<(), Refusal> {
        let full = self.admission.subnet_full(&self.rules, candidate.addr.ip());
        self.dial.candidate(now, &self.rules, candidate, full)
    }

    // ---- What the drivers say ---------------------------------------------------------------------------------

    /// The answer to [`dial::Action::LookupHost`].
    pub fn host_resolved(&mut self, now: Now, task: TaskId, addrs: Result<&[IpAddr], &str>) {
        self.dial.host_resolved(now, &self.rules, task, addrs);
    }

    /// The answer to [`dial::Action::ResolveNode`].
    pub fn node_resolved(&mut self, now: Now, id: &NodeId, found: Option<Enode>) {
        self.dial.node_resolved(now, &self.rules, id, found);
    }

    /// A dial did not get as far as a connection.
    pub fn dial_failed(&mut self, now: Now, task: TaskId, cause: Cause, detail: &str) {
        self.asked_for.remove(&task);
        self.dial.dial_failed(now, &self.rules, task, cause, detail);
    }

    /// A dial opened a TCP connection to `ip`.
    pub fn conn_opened(&mut self, conn: ConnId, task: TaskId, ip: IpAddr) {
        let asked_for = self.asked_for.remove(&task);
        self.task_of.insert(conn, task);
        self.admission.dialed(conn, ip, asked_for);
    }

    /// A TCP connection was accepted. Refused: close it without a byte.
    pub fn conn_accepted(&mut self, now: Now, conn: ConnId, ip: IpAddr) -> Result<(), Refusal> {
        let result = self.admission.accept(now, &self.rules, conn, ip);
        self.note_refusal(now, result.err());
        self.drain_admission(now);
        result
    }

    /// The other side proved to be `id`. Refused: disconnect with the reason, before Hello.
    pub fn conn_identified(&mut self, now: Now, conn: ConnId, id: NodeId) -> Result<(), Refusal> {
        let inbound = !self.task_of.contains_key(&conn);
        let listed = is_listed(&self.dial, &id);
        let result = self.admission.identified(now, &self.rules, self.slots(), conn, id, listed);
        match result {
            Ok(()) if inbound => self.dial.inbound_pending(id),
            Ok(()) => {}
            Err(refusal) => self.refuse(now, conn, refusal),
        }
        result
    }

    /// Both Hellos are there; `served` are the registrations that share a capability with the peer.
    pub fn conn_ready(
        &mut self,
        now: Now,
        conn: ConnId,
        served: &[RegistrationId],
    ) -> Result<Verdict, Refusal> {
        let identity = self.admission.identity(conn);
        let listed = identity.is_some_and(|(id, _)| is_listed(&self.dial, &id));
        let result = self.admission.ready(now, &self.rules, self.slots(), conn, listed, served);
        match (result, identity) {
            (Ok(Verdict::Admitted), Some((id, inbound))) => {
                self.task_of.remove(&conn);
                self.dial.peer_connected(now, &self.rules, id, inbound, served);
            }
            (Err(refusal), _) => self.refuse(now, conn, refusal),
            _ => {}
        }
        if let Some((id, true)) = identity {
            self.dial.inbound_ended(now, &self.rules, &id);
        }
        self.drain_admission(now);
        result
    }

    /// A message came on a connection that was probed.
    pub fn conn_heard(&mut self, now: Now, conn: ConnId) {
        self.admission.heard(now, &self.rules, conn);
        self.drain_admission(now);
    }

    /// A connection closed: `cause` and `detail` say why, if it was not us.
    pub fn conn_closed(&mut self, now: Now, conn: ConnId, cause: Cause, detail: &str) {
        let inbound = !self.task_of.contains_key(&conn);
        let in_handshake = self.admission.served(conn).is_empty();
        match self.admission.closed(&self.rules, conn) {
            Closed::Forgotten => {}
            Closed::Handshake(id) => {
                if let Some(id) = id.filter(|_| inbound && in_handshake) {
                    self.dial.inbound_ended(now, &self.rules, &id);
                }
            }
            Closed::Peer { id, .. } => self.dial.peer_disconnected(now, &self.rules, &id, cause, detail),
        }
        if let Some(task) = self.task_of.remove(&conn) {
            self.dial.dial_failed(now, &self.rules, task, cause, detail);
        }
        self.drain_admission(now);
    }

    // ---- The engine's other half ------------------------------------------------------------------------------

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.admission.handle_timeout(now, &self.rules);
        self.drain_admission(now);
        if self.churn.is_due(now.mono) {
            let choices = self.churn_choices();
            if let Some(id) = self.churn.rotate(now.mono, &choices, &mut self.rng)
                && let Some(conn) = self.admission.connection_of(&id)
            {
                self.close(now, conn, CloseReason::Rotated);
            }
        }
        self.dial.handle_timeout(now, &self.rules);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timeouts =
            [self.dial.poll_timeout(&self.rules), self.admission.poll_timeout(), self.churn.poll_timeout()];
        timeouts.into_iter().flatten().min()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if let Some(action) = self.dial.poll_action() {
            if let dial::Action::Dial(dial) = &action
                && dial.kind == Kind::OneOff
            {
                self.asked_for.insert(dial.task);
            }
            if let dial::Action::Abort(task) = &action {
                self.asked_for.remove(task);
            }
            return Some(Action::Dial(action));
        }
        std::mem::take(&mut self.lists_changed).then_some(Action::ListsChanged)
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = PeerView> {
        self.admission.peers()
    }

    /// The slots for peers on no list, and how many inbound and dialed peers take some.
    #[must_use]
    pub fn slot_use(&self) -> (Slots, usize, usize) {
        let (inbound, dialed) = self.admission.used();
        (self.slots(), inbound, dialed)
    }

    /// What became of candidates, dials and connections in the last minutes.
    #[must_use]
    pub fn recent(&mut self, now: Now) -> Counts {
        self.dial.recent.sum(now.mono)
    }

    fn slots(&self) -> Slots {
        self.dial.slots(&self.rules)
    }

    fn lists_changed(&mut self) {
        self.lists_changed = true;
        self.admission.recount(&self.rules, |id| is_listed(&self.dial, id));
    }

    /// The static or trusted peer that a ban would hit.
    fn protected(&self, target: &BanTarget) -> Option<NodeId> {
        match target {
            BanTarget::Node(id) => is_listed(&self.dial, id).then_some(*id),
            BanTarget::Net(net) => {
                let by_address = self.dial.listed_addrs().find(|(_, addr)| {
                    addr.is_some_and(|addr| net.contains(&crate::node::endpoint::canonical(addr.ip())))
                });
                let by_connection = || {
                    self.admission.peers().find(|peer| {
                        net.contains(&crate::node::endpoint::canonical(peer.ip))
                            && is_listed(&self.dial, &peer.id)
                    })
                };
                by_address.map(|(id, _)| id).or_else(|| by_connection().map(|peer| peer.id))
            }
        }
    }

    /// Closes a connection from here.
    fn close(&mut self, now: Now, conn: ConnId, reason: CloseReason) {
        self.actions.push_back(Action::Close(conn, reason));
        let (cause, detail) = match reason {
            CloseReason::Refused(refusal) => (cause_of(refusal), refusal.to_string()),
            CloseReason::Removed => (Cause::Operator, "removed from the static list".to_owned()),
            CloseReason::Banned => (Cause::Operator, "banned".to_owned()),
            CloseReason::Rotated => (Cause::LocalPolicy, "made room by rotation".to_owned()),
        };
        self.conn_closed(now, conn, cause, &detail);
    }

    /// A checkpoint refused a connection, which admission has forgotten.
    fn refuse(&mut self, now: Now, conn: ConnId, refusal: Refusal) {
        match self.task_of.remove(&conn) {
            Some(task) => {
                self.dial.dial_failed(now, &self.rules, task, cause_of(refusal), &refusal.to_string());
            }
            None => self.note_refusal(now, Some(refusal)),
        }
    }

    fn note_refusal(&mut self, now: Now, refusal: Option<Refusal>) {
        if let Some(refusal) = refusal {
            self.dial.recent.count(now.mono, |counts| *counts.not_let_in.entry(refusal).or_default() += 1);
        }
    }

    /// Tells the scheduler what admission decided by itself.
    fn drain_admission(&mut self, now: Now) {
        while let Some(event) = self.admission.poll_event() {
            match event {
                Event::Promoted { conn, id, .. } => {
                    let inbound = self.task_of.remove(&conn).is_none();
                    let served = self.admission.served(conn).to_vec();
                    self.dial.peer_connected(now, &self.rules, id, inbound, &served);
                }
                Event::Close(conn, refusal) => self.refuse(now, conn, refusal),
                Event::PushedOut(_, id) => {
                    self.note_refusal(now, Some(Refusal::PushedOut));
                    if let Some(id) = id {
                        self.dial.inbound_ended(now, &self.rules, &id);
                    }
                }
                Event::Probe(_) => {}
            }
            self.actions.push_back(translate(event));
        }
    }

    /// Peers of the directions whose slots are all taken.
    fn churn_choices(&self) -> Vec<Choice> {
        let (slots, inbound, dialed) = self.slot_use();
        let full = |is_inbound| {
            if is_inbound { inbound >= slots.inbound } else { dialed >= slots.dialed }
        };
        self.peers()
            .filter(|peer| peer.takes_slot && full(peer.inbound))
            .map(|peer| Choice { id: peer.id, since: peer.since })
            .collect()
    }
}

fn is_listed(dial: &Scheduler, id: &NodeId) -> bool {
    dial.is_static(id) || dial.is_trusted(id)
}

fn translate(event: Event) -> Action {
    match event {
        Event::Close(conn, refusal) => Action::Close(conn, CloseReason::Refused(refusal)),
        Event::PushedOut(conn, _) => Action::Close(conn, CloseReason::Refused(Refusal::PushedOut)),
        Event::Probe(conn) => Action::Probe(conn),
        Event::Promoted { conn, before, id } => Action::Promoted { conn, before, id },
    }
}

/// What a refusal of ours means for dialing the node again.
fn cause_of(refusal: Refusal) -> Cause {
    match refusal {
        Refusal::Useless => Cause::UselessPeer,
        Refusal::Duplicate => Cause::AlreadyConnected,
        Refusal::OwnIdentity => Cause::WrongIdentity,
        _ => Cause::LocalPolicy,
    }
}
