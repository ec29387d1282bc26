//! The policy engine: one engine in front of the dial scheduler, admission, bans and rotation.
//!
//! It adds the decisions that concern more than one of them. A ban ends dials and connections. The end of a connection
//! is a failed dial or a lost peer. A change of a list changes which peers take slots. Each connection has one life,
//! reported in this order:
//!
//! ```text
//! Action::Dial ─ dial_failed(task)
//!              └ conn_opened(conn, task) ┐
//! accepted ────── conn_accepted(conn) ───┴ conn_identified ─ conn_ready ─ [conn_heard …] ─ conn_closed
//! ```
//!
//! A caller that gets `Err(refusal)` or [`Action::Close`] disconnects; `conn_closed` after that is welcome and
//! does nothing.

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use rand::{RngCore, SeedableRng, rngs::StdRng};

use super::{
    action::{Action, CloseReason},
    admission::{Admission, Closed, PeerView, Verdict},
    bans::{Ban, BanError, BanTarget},
    cause::Cause,
    churn::{Choice, Churn},
    dial::{AddError, Candidate, ConnectId, List, ListEntry, ListSource, RemoveError, Scheduler, TaskId},
    dial_filter::DialFilter,
    fork_following::Followed,
    lists::{Lists, Parsed},
    one_source::{OneSource, Sources},
    recent::Counts,
    refusal::Refusal,
    rules::Rules,
    settings::{Settings, Slots},
    warnings::{Told, Warning},
};
use crate::{
    Now,
    node::{AddressClass, Enode, NodeId, NodeRef, RegistrationId, endpoint::canonical},
    p2p::session::ConnectionId,
};

/// Everything this room decides. See the [module](self) for the order of calls.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    dial: Scheduler,
    admission: Admission,
    churn: Churn,
    rng: StdRng,
    /// The dial that each outbound connection in handshake belongs to.
    task_of: BTreeMap<ConnectionId, TaskId>,
    actions: VecDeque<Action>,
    lists_changed: bool,
    reached_from_outside: bool,
    told: Told,
    refused_sources: Sources,
}

impl Policy {
    /// An engine with empty lists.
    #[must_use]
    pub fn new(now: Now, local_id: NodeId, settings: Settings, mut rng: StdRng) -> Self {
        let dial_rng = StdRng::seed_from_u64(rng.next_u64());
        let mut churn = Churn::default();
        churn.set(now.mono, settings.churn, &mut rng);
        Self {
            rules: Rules::new(local_id, settings),
            dial: Scheduler::new(now, dial_rng),
            admission: Admission::default(),
            churn,
            rng,
            task_of: BTreeMap::new(),
            actions: VecDeque::new(),
            lists_changed: false,
            reached_from_outside: false,
            told: Told::new(now.mono),
            refused_sources: Sources::new(now.mono),
        }
    }

    /// A registration came or changed.
    pub fn register(&mut self, now: Now, id: RegistrationId, filter: DialFilter, desired: Option<usize>) {
        self.dial.register(now, &self.rules, id, filter, desired);
    }

    /// A registration has more protocols than before.
    pub fn protocols_added(&mut self, now: Now) {
        self.dial.protocols_added(now, &self.rules);
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

    /// The result of [`Action::LookupHost`].
    pub fn host_resolved(&mut self, now: Now, task: TaskId, addrs: Result<&[IpAddr], &str>) {
        self.dial.host_resolved(now, &self.rules, task, addrs);
    }

    /// The result of [`Action::ResolveNode`].
    pub fn node_resolved(&mut self, now: Now, id: &NodeId, found: Option<Enode>) {
        self.dial.node_resolved(now, &self.rules, id, found);
    }

    /// A dial did not get as far as a connection.
    pub fn dial_failed(&mut self, now: Now, task: TaskId, cause: Cause, detail: &str) {
        self.dial.dial_failed(now, &self.rules, task, cause, detail);
    }

    /// A dial opened a TCP connection to `ip`.
    pub fn conn_opened(&mut self, conn: ConnectionId, task: TaskId, ip: IpAddr) {
        self.task_of.insert(conn, task);
        self.admission.dialed(conn, ip, self.dial.is_one_off(task));
    }

    /// A TCP connection was accepted. Refused: close it without a byte.
    pub fn conn_accepted(&mut self, now: Now, conn: ConnectionId, ip: IpAddr) -> Result<(), Refusal> {
        let result = self.admission.accept(now, &self.rules, conn, ip);
        self.note_refusal(now, result.err());
        self.note_source(now, Some(ip), result.err());
        self.drain_admission(now);
        result
    }

    /// The other side claims to be `id`. On a refusal, disconnect with the reason, before Hello.
    ///
    /// Who dialed us has proved nothing yet: an auth message may name the key of any node, and a recorded one may be
    /// sent again. The first frame, which is Hello, is the proof. So nothing but this connection may depend on the
    /// claim; above all, a dial of ours to that node goes on.
    pub fn conn_identified(&mut self, now: Now, conn: ConnectionId, id: NodeId) -> Result<(), Refusal> {
        let listed = self.dial.listed().contains(&id);
        let inbound = !self.task_of.contains_key(&conn);
        let ip = self.admission.address(conn).filter(|_| inbound);
        let result = self.admission.identified(now, &self.rules, self.slots(), conn, id, listed);
        if let Err(refusal) = result {
            self.refuse(now, conn, refusal);
        }
        self.note_source(now, ip, result.err());
        result
    }

    /// Both Hellos are there; `served` are the registrations that share a capability with the peer.
    pub fn conn_ready(
        &mut self,
        now: Now,
        conn: ConnectionId,
        served: &[RegistrationId],
    ) -> Result<Verdict, Refusal> {
        let identity = self.admission.identity(conn);
        if identity.is_some_and(|(_, inbound)| inbound)
            && let Some(ip) = self.admission.address(conn)
        {
            self.reached_by(ip);
        }
        let listed = identity.is_some_and(|(id, _)| self.dial.listed().contains(&id));
        let ip = self.admission.address(conn).filter(|_| identity.is_some_and(|(_, inbound)| inbound));
        let result = self.admission.ready(now, &self.rules, self.slots(), conn, listed, served);
        match (result, identity) {
            (Ok(Verdict::Admitted), Some((id, inbound))) => {
                self.task_of.remove(&conn);
                self.dial.peer_connected(now, &self.rules, id, inbound, served);
            }
            (Err(refusal), _) => self.refuse(now, conn, refusal),
            _ => {}
        }
        self.note_source(now, ip, result.err());
        self.drain_admission(now);
        result
    }

    /// A message came on a connection that was probed.
    pub fn conn_heard(&mut self, now: Now, conn: ConnectionId) {
        self.admission.heard(now, &self.rules, conn);
        self.drain_admission(now);
    }

    /// A connection closed. `cause` and `detail` give the reason, unless we closed it.
    pub fn conn_closed(&mut self, now: Now, conn: ConnectionId, cause: Cause, detail: &str) {
        if let Closed::Peer { id, .. } = self.admission.closed(&self.rules, conn) {
            self.dial.peer_disconnected(now, &self.rules, &id, cause, detail);
        }
        if let Some(task) = self.task_of.remove(&conn) {
            self.dial.dial_failed(now, &self.rules, task, cause, detail);
        }
        self.drain_admission(now);
    }

    /// A node that dialed us from this address has proved its key, whatever became of its connection.
    pub fn reached_by(&mut self, ip: IpAddr) {
        self.reached_from_outside |= AddressClass::of(ip) == AddressClass::Global;
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.admission.handle_timeout(now, &self.rules);
        self.drain_admission(now);
        if self.churn.is_due(now.mono) {
            let choices = self.churn_choices();
            if let Some(id) = self.churn.rotate(now.mono, &choices, &mut self.rng) {
                self.close_peer(now, &id, CloseReason::Rotated);
            }
        }
        self.dial.handle_timeout(now, &self.rules);
        self.review(now);
    }

    /// Reports the warnings that begin or cease to hold.
    fn review(&mut self, now: Now) {
        if self.told.is_due(now.mono) {
            let standing = self.warnings(now);
            let (new, over) = self.told.review(now.mono, standing);
            self.actions.extend(new.into_iter().map(Action::Warn));
            self.actions.extend(over.into_iter().map(Action::WarningOver));
        }
    }

    /// The current warnings for the operator.
    pub fn warnings(&mut self, now: Now) -> Vec<Warning> {
        let starved = self.dial.starved_since().map(|since| now.mono.saturating_duration_since(since));
        Warning::of(&self.dial.recent_mut().sum(now.mono), starved)
    }

    /// The forks that are followed although schedules lack them.
    #[must_use]
    pub fn followed_forks(&self) -> Vec<Followed> {
        self.dial.followed_forks()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = [
            self.dial.poll_timeout(&self.rules),
            self.admission.poll_timeout(),
            self.churn.poll_timeout(),
            self.told.due(self.dial.starved_since().is_some()),
        ];
        timeouts.into_iter().flatten().min()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front().or_else(|| self.dial.poll_action());
        action.or_else(|| std::mem::take(&mut self.lists_changed).then_some(Action::ListsChanged))
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

    /// The results of candidates, dials and connections in the last minutes.
    #[must_use]
    pub fn recent(&mut self, now: Now) -> Counts {
        self.dial.recent_mut().sum(now.mono)
    }

    /// The same since the start.
    #[must_use]
    pub fn totals(&self) -> &Counts {
        &self.dial.recent().total
    }

    /// The private address from which most refused connections came lately, if there is one.
    pub fn one_source(&mut self, now: Now) -> Option<OneSource> {
        self.refused_sources.found(now.mono)
    }

    /// Whether a node on the Internet has ever dialed us and proved its identity. Then our port is open. This stays
    /// false behind an address translation that hides the addresses of such nodes.
    #[must_use]
    pub fn reached_from_outside(&self) -> bool {
        self.reached_from_outside
    }

    /// The current settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.rules.settings
    }

    /// Changes settings. Peers beyond a lowered limit stay until they go by themselves; connections that the
    /// allow-list or the net restriction now excludes are closed.
    pub fn set_settings(&mut self, now: Now, settings: Settings) {
        if self.rules.settings.churn != settings.churn {
            self.churn.set(now.mono, settings.churn, &mut self.rng);
        }
        self.rules.settings = settings;
        self.admission.recount(&self.rules, |id| self.dial.listed().contains(id));
        self.dial.rules_changed(now, &self.rules);
        let allowlist = self.rules.settings.allowlist_only;
        let excluded = |id: Option<NodeId>, ip: IpAddr| match self.rules.check_ip(now, ip) {
            Err(refusal) => Some(refusal),
            Ok(()) => {
                id.filter(|id| allowlist && !self.dial.listed().contains(id)).map(|_| Refusal::NotOnAllowlist)
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

    /// Makes a node static, and returns its entry. Adding it again has no effect; a new address does.
    pub fn add_static(
        &mut self,
        now: Now,
        node: &NodeRef,
        source: ListSource,
    ) -> Result<Option<ListEntry>, AddError> {
        self.dial.add(now, &self.rules, node, List::Static, source)?;
        self.lists_changed();
        Ok(self.entry(now, &node.id()))
    }

    /// Makes a node trusted, and returns its entry.
    pub fn add_trusted(
        &mut self,
        now: Now,
        node: &NodeRef,
        source: ListSource,
    ) -> Result<Option<ListEntry>, AddError> {
        self.dial.add(now, &self.rules, node, List::Trusted, source)?;
        self.lists_changed();
        Ok(self.entry(now, &node.id()))
    }

    /// Takes a node off the static list. It is disconnected, unless that is not wanted or it is trusted.
    pub fn remove_static(&mut self, now: Now, id: &NodeId, keep_connected: bool) -> Result<(), RemoveError> {
        let removed = self.dial.remove(now, &self.rules, id, List::Static)?;
        self.lists_changed();
        if !keep_connected && !removed.still_listed {
            self.close_peer(now, id, CloseReason::Removed);
        }
        self.hold_to_allowlist(now, id);
        Ok(())
    }

    /// Takes a node off the static list that the configuration named before and names no longer. It is disconnected
    /// unless it is trusted.
    pub fn unconfigure_static(&mut self, now: Now, id: &NodeId) -> Result<(), RemoveError> {
        self.dial.release(id, List::Static);
        self.remove_static(now, id, false)
    }

    /// The same for the trusted list. The peer stays connected.
    pub fn unconfigure_trusted(&mut self, now: Now, id: &NodeId) -> Result<(), RemoveError> {
        self.dial.release(id, List::Trusted);
        self.remove_trusted(now, id)
    }

    /// Takes a node off the trusted list. It stays connected and takes a slot from now on, unless
    /// only listed peers are wanted.
    pub fn remove_trusted(&mut self, now: Now, id: &NodeId) -> Result<(), RemoveError> {
        self.dial.remove(now, &self.rules, id, List::Trusted)?;
        self.lists_changed();
        self.hold_to_allowlist(now, id);
        Ok(())
    }

    /// In allow-list mode a node that is on no list does not stay, even if the call that removed it asks for that.
    fn hold_to_allowlist(&mut self, now: Now, id: &NodeId) {
        if self.rules.settings.allowlist_only && !self.dial.listed().contains(id) {
            self.close_peer(now, id, CloseReason::Refused(Refusal::NotOnAllowlist));
        }
    }

    /// Whether a node is static.
    #[must_use]
    pub fn is_static(&self, id: &NodeId) -> bool {
        self.dial.listed().is_static(id)
    }

    /// Whether a node is trusted.
    #[must_use]
    pub fn is_trusted(&self, id: &NodeId) -> bool {
        self.dial.listed().is_trusted(id)
    }

    /// A node's list entry.
    #[must_use]
    pub fn entry(&self, now: Now, id: &NodeId) -> Option<ListEntry> {
        self.dial.entry(now, &self.rules, id)
    }

    /// All list entries; `as_static` and `as_trusted` distinguish static and trusted ones.
    pub fn entries(&self, now: Now) -> impl Iterator<Item = ListEntry> {
        self.dial.entries(now, &self.rules)
    }

    /// Dials a node once; ends in [`Action::ConnectDone`], unless refused right here.
    pub fn connect(
        &mut self,
        now: Now,
        connect: ConnectId,
        node: &NodeRef,
        timeout: Duration,
    ) -> Result<(), Refusal> {
        self.dial.connect(now, &self.rules, connect, node, timeout)
    }

    /// Bans a node, an address or a network for `duration`, and closes the connections that it covers. Static and
    /// trusted peers need `force`; they stay on their lists, and are dialed again when the ban ends.
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
    #[cfg(any(test, feature = "internals"))]
    pub fn ban_of(&self, now: Now, id: Option<&NodeId>, ip: Option<IpAddr>) -> Option<&Ban> {
        let bans = &self.rules.bans;
        id.and_then(|id| bans.of_node(now.unix, id)).or_else(|| bans.of_ip(now.unix, ip?))
    }

    /// The lists that survive restarts.
    #[must_use]
    pub fn lists(&self, now: Now) -> Lists {
        Lists::of(self.dial.listed(), self.bans(now))
    }

    /// Takes in the lists of the configuration, then the lists that were kept from earlier runs, before anything else.
    /// A peer that was banned with force stays listed.
    ///
    /// Returns the kept entries that are not valid any more, each with the reason: the node that is ourselves because
    /// its key was moved here, and entries for which the lists of the configuration left no room. They do not prevent a
    /// start.
    ///
    /// # Errors
    ///
    /// An entry of the configuration that cannot be listed.
    pub fn restore(
        &mut self,
        now: Now,
        statics: &[NodeRef],
        trusted: &[NodeRef],
        lists: &Parsed,
    ) -> Result<Vec<(String, AddError)>, AddError> {
        for node in statics {
            self.add_static(now, node, ListSource::Config)?;
        }
        for node in trusted {
            self.add_trusted(now, node, ListSource::Config)?;
        }
        // A peer that was listed by its id while discovery ran stays listed without it: it is shown as refused, and a
        // start must not fail for it.
        let discovery = std::mem::replace(&mut self.rules.settings.discovery, true);
        let left_out = self.restore_lists(now, lists);
        self.rules.settings.discovery = discovery;
        self.dial.rules_changed(now, &self.rules);
        Ok(left_out)
    }

    fn restore_lists(&mut self, now: Now, lists: &Parsed) -> Vec<(String, AddError)> {
        let mut left_out = Vec::new();
        for node in &lists.static_peers {
            if let Err(error) = self.dial.add(now, &self.rules, node, List::Static, ListSource::Call) {
                left_out.push((node.id().to_string(), error));
            }
        }
        for node in &lists.trusted_peers {
            if let Err(error) = self.dial.add(now, &self.rules, node, List::Trusted, ListSource::Call) {
                left_out.push((node.id().to_string(), error));
            }
        }
        for (target, until, reason) in &lists.bans {
            let ban =
                Ban { target: *target, until: *until, reason: reason.clone(), source: ListSource::Call };
            // Full is impossible: the lists were checked to be within the bound, and the configuration has no bans.
            let _ = self.rules.bans.restore(now.unix, ban);
        }
        left_out
    }

    fn lists_changed(&mut self) {
        self.lists_changed = true;
        self.admission.recount(&self.rules, |id| self.dial.listed().contains(id));
    }

    /// The static or trusted peer that a ban would hit.
    fn protected(&self, target: &BanTarget) -> Option<NodeId> {
        match target {
            BanTarget::Node(id) => self.dial.listed().contains(id).then_some(*id),
            BanTarget::Net(net) => {
                let by_address = self
                    .dial
                    .listed()
                    .addrs()
                    .find(|(_, addr)| addr.is_some_and(|addr| net.contains(&canonical(addr.ip()))));
                let by_connection = || {
                    self.admission.peers().find(|peer| {
                        net.contains(&canonical(peer.ip)) && self.dial.listed().contains(&peer.id)
                    })
                };
                by_address.map(|(id, _)| id).or_else(|| by_connection().map(|peer| peer.id))
            }
        }
    }

    fn slots(&self) -> Slots {
        self.rules.settings.slots()
    }

    /// Closes a peer's connection, and the one that was parked behind it.
    fn close_peer(&mut self, now: Now, id: &NodeId, reason: CloseReason) {
        while let Some(conn) = self.admission.connection_of(id) {
            self.close(now, conn, reason);
        }
    }

    /// Closes a connection from here.
    fn close(&mut self, now: Now, conn: ConnectionId, reason: CloseReason) {
        self.actions.push_back(Action::Close(conn, reason));
        self.conn_closed(now, conn, reason.cause(), &reason.to_string());
    }

    /// A checkpoint refused a connection, which admission has forgotten.
    fn refuse(&mut self, now: Now, conn: ConnectionId, refusal: Refusal) {
        match self.task_of.remove(&conn) {
            Some(task) => {
                self.dial.dial_failed(now, &self.rules, task, refusal.cause(), &refusal.to_string());
            }
            None => self.note_refusal(now, Some(refusal)),
        }
    }

    fn note_refusal(&mut self, now: Now, refusal: Option<Refusal>) {
        if let Some(refusal) = refusal {
            self.dial
                .recent_mut()
                .count(now.mono, |counts| *counts.not_let_in.entry(refusal).or_default() += 1);
        }
    }

    fn note_source(&mut self, now: Now, ip: Option<IpAddr>, refusal: Option<Refusal>) {
        if let (Some(ip), Some(refusal)) = (ip, refusal)
            && let Some(source) = self.refused_sources.refused(now.mono, ip, refusal)
        {
            self.actions.push_back(Action::OneSource(source));
        }
    }

    /// Tells the scheduler what admission decided by itself.
    fn drain_admission(&mut self, now: Now) {
        while let Some(action) = self.admission.poll_action() {
            match &action {
                Action::Promoted { conn, id, .. } => {
                    let inbound = self.task_of.remove(conn).is_none();
                    let served = self.admission.served(*conn).to_vec();
                    self.dial.peer_connected(now, &self.rules, *id, inbound, &served);
                }
                Action::Close(conn, CloseReason::Refused(refusal)) => self.refuse(now, *conn, *refusal),
                _ => {}
            }
            self.actions.push_back(action);
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
