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

mod operator;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::IpAddr,
    time::Instant,
};

use rand::{RngCore, SeedableRng, rngs::StdRng};

use super::{
    admission::{Admission, Closed, ConnId, Event, PeerView, Verdict},
    cause::Cause,
    churn::{Choice, Churn},
    dial::{self, Candidate, Kind, Scheduler, TaskId},
    dial_filter::{DialFilter, RegistrationId},
    fork_following::Followed,
    one_source::{OneSource, Sources},
    recent::Counts,
    refusal::Refusal,
    rules::Rules,
    settings::{Settings, Slots},
    warnings::{REVIEW, Warning},
};
use crate::{
    Now,
    node::{AddressClass, Enode, NodeId},
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

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Removed => f.write_str("removed from the static list"),
            Self::Banned => f.write_str("banned"),
            Self::Rotated => f.write_str("made room by rotation"),
        }
    }
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
    /// Something is wrong that was not before: tell the operator.
    Warn(Warning),
    /// The warning of this name does not hold any more.
    WarningOver(&'static str),
    /// What is kept over restarts changed: write [`Policy::lists`].
    ListsChanged,
    /// Most refused connections come from one private address: warn the operator.
    OneSource(OneSource),
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
    reached_from_outside: bool,
    /// The warnings that were told and still hold, by name.
    warned: BTreeSet<&'static str>,
    next_review: Instant,
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
            asked_for: BTreeSet::new(),
            actions: VecDeque::new(),
            lists_changed: false,
            reached_from_outside: false,
            warned: BTreeSet::new(),
            next_review: now.mono + REVIEW,
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
        self.note_source(now, Some(ip), result.err());
        self.drain_admission(now);
        result
    }

    /// The other side says that it is `id`. Refused: disconnect with the reason, before Hello.
    ///
    /// Who dialed us has proved nothing yet: an auth message may name the key of any node, and a recorded one may be
    /// sent again. The first frame, which is Hello, is the proof. So nothing but this connection may depend on the
    /// claim; above all, a dial of ours to that node goes on.
    pub fn conn_identified(&mut self, now: Now, conn: ConnId, id: NodeId) -> Result<(), Refusal> {
        let listed = is_listed(&self.dial, &id);
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
        conn: ConnId,
        served: &[RegistrationId],
    ) -> Result<Verdict, Refusal> {
        let identity = self.admission.identity(conn);
        if identity.is_some_and(|(_, inbound)| inbound)
            && let Some(ip) = self.admission.address(conn)
        {
            self.reached_by(ip);
        }
        let listed = identity.is_some_and(|(id, _)| is_listed(&self.dial, &id));
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
    pub fn conn_heard(&mut self, now: Now, conn: ConnId) {
        self.admission.heard(now, &self.rules, conn);
        self.drain_admission(now);
    }

    /// A connection closed: `cause` and `detail` say why, if it was not us.
    pub fn conn_closed(&mut self, now: Now, conn: ConnId, cause: Cause, detail: &str) {
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

    /// Tells which warnings have come and gone.
    fn review(&mut self, now: Now) {
        if self.next_review > now.mono {
            return;
        }
        self.next_review = now.mono + REVIEW;
        let standing = self.warnings(now);
        let before = std::mem::take(&mut self.warned);
        for warning in standing {
            if !before.contains(warning.name()) {
                self.actions.push_back(Action::Warn(warning));
            }
            self.warned.insert(warning.name());
        }
        let over = before.difference(&self.warned).map(|name| Action::WarningOver(name));
        self.actions.extend(over);
    }

    /// What the operator should know at this moment.
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
        // Warnings are about peers that are wanted and do not come.
        let reviews = self.dial.starved_since().is_some() || !self.warned.is_empty();
        let timeouts = [
            self.dial.poll_timeout(&self.rules),
            self.admission.poll_timeout(),
            self.churn.poll_timeout(),
            reviews.then_some(self.next_review),
        ];
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

    /// Whether a node on the Internet has ever dialed us and proved who it is: the proof that our port is open. Behind an address translation that hides who dials, this stays false.
    #[must_use]
    pub fn reached_from_outside(&self) -> bool {
        self.reached_from_outside
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
    fn close(&mut self, now: Now, conn: ConnId, reason: CloseReason) {
        self.actions.push_back(Action::Close(conn, reason));
        let cause = match reason {
            CloseReason::Refused(refusal) => cause_of(refusal),
            CloseReason::Removed | CloseReason::Banned => Cause::Operator,
            CloseReason::Rotated => Cause::LocalPolicy,
        };
        self.conn_closed(now, conn, cause, &reason.to_string());
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
        while let Some(event) = self.admission.poll_event() {
            match event {
                Event::Promoted { conn, id, .. } => {
                    let inbound = self.task_of.remove(&conn).is_none();
                    let served = self.admission.served(conn).to_vec();
                    self.dial.peer_connected(now, &self.rules, id, inbound, &served);
                }
                Event::Close(conn, refusal) => self.refuse(now, conn, refusal),
                Event::PushedOut(_) => self.note_refusal(now, Some(Refusal::PushedOut)),
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
    dial.listed().contains(id)
}

fn translate(event: Event) -> Action {
    match event {
        Event::Close(conn, refusal) => Action::Close(conn, CloseReason::Refused(refusal)),
        Event::PushedOut(conn) => Action::Close(conn, CloseReason::Refused(Refusal::PushedOut)),
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
