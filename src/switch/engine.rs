//! The switch's engine: it takes an event or a call, changes the parts that it concerns, and gives out [`Effect`]s.
//!
//! The parts keep their own state and know nothing of each other: connections, sessions, registrations, the policy,
//! re-Hello, callers that wait, and views. Only this file makes the changes that concern more than one of them. The
//! methods come in three groups: the reports of a driver, the calls, and the orders to the driver.
//!
//! Left out: sockets, tasks, reply channels and the log; the driver has them (`net::switch`).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngCore, SeedableRng, rngs::StdRng, seq::SliceRandom as _};

use super::{
    calls::{CallId, Calls},
    cause,
    channel::PeerChannel,
    channel_inbox::Sharers,
    config::Config,
    connections::{Connections, Negotiated, OfferedCapability, OpenChannel, Released, Run},
    effect::{Effect, Effects, LogLine},
    error::{ListError, SwitchError},
    metrics::Metrics,
    peers::{self, PeerView, Peers},
    registration::{
        Acting, AttachRequest, Attached, Principal, Registered, RegistrationRef, RegistrationView, cut,
    },
    registrations::{Change, Registrations, Stands},
    rehello::{self, Rehello},
    session::{Session, SessionChannel},
    sessions::Sessions,
    views::{Attempt, NotAdmitted, PeerEnd, Views},
};
use crate::{
    Now, Wake,
    budget::Budgets,
    delivery::ClosedBy,
    lease::RegistrationSpec,
    node::{Enode, NodeId, NodeRef, PublicKey, RegistrationId, local::EntryOwner},
    p2p::{
        BaseTotals, Channel, ChannelIndex, DisconnectReason, RemoteHello,
        session::{Admission, ChannelInboxes, ConnectionId, Control, End, Open, Opening},
    },
    policy::{
        Action, Cause, CloseReason, Policy, Refusal,
        admission::Verdict,
        dial::{Candidate, Dial, LastError, TaskId},
        lists::Parsed,
    },
    rlpx::Compressor,
};

/// The detail of a dial that fails because the sidecar stops.
const STOPPING: &str = "this sidecar is stopping";

/// See the [module](self).
#[derive(Debug)]
pub struct Engine {
    connections: Connections,
    sessions: Sessions,
    registrations: Registrations,
    policy: Policy,
    rehello: Rehello,
    calls: Calls,
    views: Views,
    effects: Effects,
    draining: bool,
    rng: StdRng,
    instance_id: Arc<str>,
    budgets: Budgets,
    base: Arc<BaseTotals>,
    max_shared_stall: Duration,
    end_shared_sessions: bool,
}

impl Engine {
    /// Returns a switch without peers and registrations.
    #[must_use]
    pub fn new(now: Now, mut config: Config) -> Self {
        let mut fork = || StdRng::seed_from_u64(config.rng.next_u64());
        let (policy_rng, lease_rng, connection_rng) = (fork(), fork(), fork());
        let inbound = Arc::clone(&config.budgets.delivery);
        Self {
            connections: Connections::new(connection_rng, Arc::clone(&config.budgets.outbound)),
            sessions: Sessions::default(),
            registrations: Registrations::new(config.leases, lease_rng, inbound, config.network),
            policy: Policy::new(now, config.local_id, config.settings, policy_rng),
            rehello: Rehello::new(config.rehello),
            calls: Calls::default(),
            views: config.views,
            effects: Effects::default(),
            draining: false,
            rng: config.rng,
            instance_id: config.instance_id,
            budgets: config.budgets,
            base: config.base,
            max_shared_stall: config.max_shared_stall,
            end_shared_sessions: config.end_shared_sessions,
        }
    }

    /// Restores the lists of the configuration and of earlier runs, before the switch runs. Fails only for an entry of
    /// the configuration.
    pub fn restore(
        &mut self,
        now: Now,
        statics: &[NodeRef],
        trusted: &[NodeRef],
        lists: &Parsed,
    ) -> Result<(), ListError> {
        for (node, error) in self.policy.restore(now, statics, trusted, lists)? {
            self.effects.log(LogLine::LeftOut { node, error });
        }
        // The lists were just read, so they need not be stored.
        self.settle(now);
        self.effects.persist_nothing();
        Ok(())
    }

    /// Sets the wake-up for the driver. It is used when [`poll_timeout`](Self::poll_timeout) becomes earlier between
    /// two calls.
    pub fn wake_by(&self, wake: Arc<dyn Wake>) {
        self.registrations.attention().fill(wake);
    }

    // The reports of a driver.

    /// A TCP connection was accepted. `None`: it is refused, and the driver closes it without sending a byte.
    #[must_use]
    pub fn accepted(&mut self, now: Now, remote: SocketAddr, local: SocketAddr) -> Option<Run> {
        if self.draining {
            return None;
        }
        let id = self.connections.next_id();
        if let Err(refusal) = self.policy.conn_accepted(now, id, remote.ip()) {
            self.effects.log(LogLine::Refused { remote, refusal });
            self.views.not_admitted(now, remote, None, NotAdmitted::Refused(refusal), &refusal.to_string());
            return None;
        }
        Some(self.connections.begin(id, remote, local, None))
    }

    /// A dial opened a connection from `local` to its first address. `None`: it is not wanted any more, and the driver
    /// closes it.
    #[must_use]
    pub fn dialed(&mut self, now: Now, dial: &Dial, local: SocketAddr) -> Option<Run> {
        if self.draining {
            // Every dial must get an outcome. Without one, its caller would wait for ever.
            self.policy.dial_failed(now, dial.task, Cause::LocalFault, STOPPING);
            return None;
        }
        let id = self.connections.next_id();
        self.policy.conn_opened(id, dial.task, dial.addr.ip());
        Some(self.connections.begin(id, dial.addr, local, Some(dial)))
    }

    /// A dial opened no connection.
    pub fn dial_failed(&mut self, now: Now, task: TaskId, cause: Cause, detail: &str) {
        self.policy.dial_failed(now, task, cause, detail);
    }

    /// A host name was looked up, or the lookup failed.
    pub fn host_resolved(&mut self, now: Now, task: TaskId, addrs: Result<&[IpAddr], &str>) {
        self.policy.host_resolved(now, task, addrs);
    }

    /// Discovery has found the address of a node, or has not found it.
    pub fn located(&mut self, now: Now, id: NodeId, found: Option<Enode>) {
        self.policy.node_resolved(now, &id, found.filter(|enode| enode.tcp != 0));
    }

    /// A source offers a node. The policy counts a refusal. The source does not get it: it only gets the demand.
    pub fn candidate(&mut self, now: Now, candidate: Candidate) {
        if !self.draining {
            let _ = self.policy.candidate(now, candidate);
        }
    }

    /// First checkpoint of a connection: the remote proved its key. Returns the capabilities that our Hello offers, or
    /// why the connection is refused.
    pub fn authenticated(&mut self, now: Now, id: ConnectionId, remote: PublicKey) -> Admission {
        if let Err(refusal) = self.policy.conn_identified(now, id, remote.id()) {
            return Err(self.refuse(id, remote, refusal));
        }
        let offered = self.registrations.offered();
        let hello = offered.iter().map(OfferedCapability::local).collect();
        self.connections.greeted(id, remote, offered);
        Ok(hello)
    }

    /// Second checkpoint of a connection: Hellos are exchanged. Returns how the connection goes on, or why it is
    /// refused.
    pub fn negotiated(
        &mut self,
        now: Now,
        id: ConnectionId,
        hello: Arc<RemoteHello>,
        channels: &[Channel],
    ) -> Opening {
        let Some(negotiated) = self.connections.negotiated(id, hello, channels) else {
            return Err(DisconnectReason::SubprotocolError);
        };
        let served: Vec<_> = self.registrations.owners(negotiated.channels()).into_iter().collect();
        match self.policy.conn_ready(now, id, &served) {
            Err(refusal) => Err(self.refuse(id, negotiated.public_key(), refusal)),
            Ok(Verdict::Admitted) => Ok(Open::Session(self.open(now, id, negotiated))),
            Ok(Verdict::Parked) => {
                self.connections.park(id, negotiated);
                Ok(Open::Parked)
            }
        }
    }

    /// A frame was read on a connection that was probed.
    pub fn heard(&mut self, now: Now, id: ConnectionId) {
        self.policy.conn_heard(now, id);
    }

    /// The application of a channel is too slow, and its policy is to disconnect the peer. Another application uses the
    /// peer too, so only the channel closes, and the session goes on.
    pub fn channel_closed(&mut self, now: Now, id: ConnectionId, channel: ChannelIndex) {
        let Some(owner) = self.connections.owner_of(id, channel) else { return };
        let released = self.connections.release(owner, |of| of.index == channel, Some(id));
        let detail = "the application takes messages too slowly";
        self.release(now, released, DisconnectReason::SubprotocolError, detail);
    }

    /// A connection has ended. This is its last event.
    pub fn closed(&mut self, now: Now, id: ConnectionId, end: &End) {
        let Some(ended) = self.connections.ended(id, end) else { return };
        if let Some(remote) = ended.reached_by {
            self.policy.reached_by(remote.ip());
        }
        self.end_session(now, id, &ended.by, ended.reason, &ended.said);
        self.connections.forget(id);
        if let Some(attempt) = ended.not_admitted {
            let why = attempt.refusal.map_or(NotAdmitted::Failed(ended.cause), NotAdmitted::Refused);
            let node = attempt.node.map(|key| key.id());
            self.views.not_admitted(now, attempt.remote, node, why, &ended.said);
        }
        self.policy.conn_closed(now, id, ended.cause, &ended.said);
        if let Some(node) = self.rehello.returning(id) {
            let timeout = self.policy.settings().dial_timeout;
            // A refusal needs no action: the node has dialed us in the meantime, or it was banned.
            let _ = self.calls.connect(now, &mut self.policy, None, &node, timeout);
        }
    }

    /// A deadline has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        self.policy.handle_timeout(now);
        self.registrations.handle_timeout(now);
        self.reconnect_one(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timeouts =
            [self.policy.poll_timeout(), self.registrations.poll_timeout(), self.rehello.poll_timeout()];
        timeouts.into_iter().flatten().min()
    }

    // The orders to the driver.

    /// Returns the next effect. The driver calls this after each other call, until it returns `None`.
    pub fn poll_effect(&mut self, now: Now) -> Option<Effect> {
        self.settle(now);
        self.effects.pop()
    }

    // The calls.

    /// The calls that are about peers only.
    pub fn peers(&mut self) -> Peers<'_> {
        Peers::new(&mut self.policy, &self.sessions)
    }

    /// The calls that are about registrations only.
    pub fn registrations(&mut self) -> &mut Registrations {
        &mut self.registrations
    }

    /// The number of connections that have not ended.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Ends the session with a node. Returns the wall time at which we dial a static peer again, unless it dials us
    /// first: the end of the dial history's window. `None` for other peers.
    pub fn disconnect_peer(
        &mut self,
        now: Now,
        node: NodeId,
        reason: DisconnectReason,
    ) -> Result<Option<Duration>, SwitchError> {
        let session = self.sessions.get(&node).ok_or(SwitchError::PeerNotConnected { node })?;
        self.disconnect(session.id, reason, ClosedBy::Operator, "disconnected by the operator");
        Ok(self.policy.is_static(&node).then(|| now.unix.saturating_add(self.policy.settings().history)))
    }

    /// Dials a node once. The caller is answered when the dial has ended.
    pub fn connect(&mut self, now: Now, call: CallId, node: &NodeRef, timeout: Duration) {
        if let Some(answer) = self.calls.connect(now, &mut self.policy, Some(call), node, timeout) {
            self.effects.reply(call, answer);
        }
    }

    /// Answers the caller when the entry of a listed peer shows an outcome that is newer than the error `before`.
    pub fn wait_for_dial(&mut self, now: Now, call: CallId, id: NodeId, before: Option<LastError>) {
        if let Some(answer) = self.calls.wait_for_entry(call, id, self.policy.entry(now, &id), before) {
            self.effects.reply(call, answer);
        }
    }

    /// A caller that waited has given up.
    pub fn give_up(&mut self, call: CallId) {
        self.calls.give_up(call);
    }

    /// Makes or resumes a registration without a stream.
    pub fn register(
        &mut self,
        now: Now,
        principal: &Principal,
        target: &RegistrationRef,
        request_id: &str,
        takeover: bool,
    ) -> Result<Registered, SwitchError> {
        self.open_for_business()?;
        let claimed = self.registrations.register(now, principal, target, request_id, takeover)?;
        self.follow_registrations(now);
        Ok(Registered {
            registration: self.registrations.view(now, claimed.id)?,
            token: claimed.token,
            resumed: claimed.resumed,
            instance_id: Arc::clone(&self.instance_id),
        })
    }

    /// Attaches a stream. `wake` is called whenever the stream may read again.
    pub fn attach(
        &mut self,
        now: Now,
        principal: &Principal,
        request: &AttachRequest,
        wake: Arc<dyn Wake>,
    ) -> Result<Attached, SwitchError> {
        self.open_for_business()?;
        let claimed = self.registrations.claim_for_stream(now, principal, request)?;
        self.follow_registrations(now);
        self.registrations.open_stream(now, claimed, request, wake, &self.instance_id)
    }

    /// Changes the contents of a registration. Its stream stays attached.
    pub fn update_registration(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
        spec: RegistrationSpec,
    ) -> Result<RegistrationView, SwitchError> {
        self.open_for_business()?;
        let id = self.registrations.update(now, principal, acting, spec)?;
        self.follow_registrations(now);
        self.registrations.view(now, id)
    }

    /// Returns the channel on which a call sends: it belongs to the caller's registration, and its peer is connected
    /// and shares the protocol.
    pub fn sender(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
        node: NodeId,
        protocol: &str,
    ) -> Result<PeerChannel, SwitchError> {
        let sending = self.registrations.sending_for(now, principal, acting, protocol)?;
        let session = self.sessions.get(&node).ok_or(SwitchError::PeerNotConnected { node })?;
        let unshared = || SwitchError::ProtocolNotShared { node, protocol: cut(protocol) };
        sending.channel(session).ok_or_else(unshared)
    }

    /// Returns the channels on which a call sends to all peers that share the protocol. The order is random.
    pub fn senders(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
        protocol: &str,
    ) -> Result<Vec<PeerChannel>, SwitchError> {
        let sending = self.registrations.sending_for(now, principal, acting, protocol)?;
        let channels = self.sessions.iter().filter_map(|session| sending.channel(session));
        let mut channels: Vec<_> = channels.collect();
        channels.shuffle(&mut self.rng);
        Ok(channels)
    }

    /// Ends one channel of an application.
    pub fn disconnect_channel(
        &mut self,
        now: Now,
        id: RegistrationId,
        target: &PeerChannel,
        reason: DisconnectReason,
        end_session: bool,
    ) -> Result<(), SwitchError> {
        let connection = target.session.id;
        let Some(others) = self.connections.others_than(id, connection) else { return Ok(()) };
        // An application that is alone on the session ends it. With other applications on it, only the channel closes,
        // unless the caller asks for the end of the session, which the configuration must allow.
        if others > 0 && end_session && !self.end_shared_sessions {
            return Err(SwitchError::SharedSession { node: target.session.node_id, others });
        }
        if others == 0 || end_session {
            let by = ClosedBy::Client(self.registrations.client(id).unwrap_or_default());
            self.disconnect(connection, reason, by, "an application ended the session");
        } else {
            let index = target.channel.index;
            let released = self.connections.release(id, |channel| channel.index == index, Some(connection));
            self.release(now, released, DisconnectReason::Requested, "the application left");
        }
        Ok(())
    }

    /// Returns the current numbers.
    pub fn metrics(&mut self, now: Now) -> Metrics {
        let Self { policy, sessions, registrations, .. } = self;
        Metrics {
            base: self.base.sums(),
            inbound_queued: self.budgets.delivery.used(),
            outbound_queued: self.budgets.outbound.used(),
            ..Metrics::of(now, policy, sessions, registrations)
        }
    }

    /// Begins the drain: no more dials, accepts and registrations.
    pub fn drain(&mut self) {
        self.draining = true;
        self.rehello.stop();
        self.effects.push(Effect::Demand(0));
        self.registrations.wake_streams();
    }

    /// Ends all connections with "quitting", after the messages that were accepted for them are written.
    pub fn quit(&mut self) {
        let ids: Vec<_> = self.connections.ids().collect();
        for id in ids {
            self.disconnect(id, DisconnectReason::Quitting, ClosedBy::Sidecar, "the sidecar is stopping");
        }
    }

    // The consequences.

    /// Carries out the consequences of changes in all parts, until there are no more.
    fn settle(&mut self, now: Now) {
        // Registrations come first, because their changes cause actions of the policy. The log and the views come last,
        // so that they show the state after all actions.
        loop {
            self.follow_registrations(now);
            let Some(action) = self.policy.poll_action() else { break };
            self.follow_policy(now, action);
        }
        while let Some(line) = self.registrations.poll_loss(now) {
            self.effects.log(LogLine::Lost(line));
        }
        for (id, view) in self.registrations.take_touched(now) {
            self.views.registration(id, view);
        }
    }

    fn follow_policy(&mut self, now: Now, action: Action) {
        match action {
            // While draining there are no more dials. Each fails at once, which answers the caller that waits for it.
            Action::LookupHost { task, .. } | Action::Dial(Dial { task, .. }) if self.draining => {
                self.policy.dial_failed(now, task, Cause::LocalFault, STOPPING);
            }
            Action::ResolveNode { id, .. } if self.draining => self.policy.node_resolved(now, &id, None),
            Action::Demand(_) if self.draining => {}
            Action::LookupHost { task, name } => self.effects.push(Effect::LookupHost(task, name)),
            Action::Dial(dial) => self.effects.push(Effect::Dial(dial)),
            Action::AbortDial(task) => self.effects.push(Effect::AbortDial(task)),
            Action::ResolveNode { id, public_key } => self.effects.push(Effect::Resolve(id, public_key)),
            Action::EntryChanged(id) => self.entry_changed(now, id),
            Action::DialFailed { id, addr, kind, cause, detail } => {
                self.views.attempt(now, Attempt::Dial { id, addr, kind, cause }, &detail);
            }
            Action::ConnectDone { connect, id, outcome } => {
                let peer = self.sessions.get(&id).map(|session| self.view(session));
                if let Some((call, answer)) = self.calls.connect_over(connect, outcome, peer) {
                    self.effects.reply(call, answer);
                }
            }
            Action::Fork(news) => self.effects.log(LogLine::Fork(news)),
            Action::Demand(count) => self.effects.push(Effect::Demand(count)),
            Action::Warn(warning) => self.effects.log(LogLine::Warn(warning)),
            Action::WarningOver(name) => self.effects.log(LogLine::WarningOver(name)),
            Action::OneSource(source) => self.effects.log(LogLine::OneSource(source)),
            Action::Close(conn, reason) => self.close(now, conn, reason),
            Action::Probe(conn) => {
                self.effects.push(Effect::Control(conn, Control::Probe));
            }
            Action::Promoted { conn, before, .. } => {
                self.promote(now, conn, before);
            }
            Action::ListsChanged => {
                let lists = self.policy.lists(now);
                self.effects.push(Effect::Persist(lists));
            }
        }
    }

    /// Brings sessions, the policy and our record in step with registrations.
    fn follow_registrations(&mut self, now: Now) {
        while let Some(change) = self.registrations.poll_change() {
            match change {
                Change::Stands(stands) => self.registration_stands(now, *stands),
                Change::Ended { id, client, expired } => {
                    self.effects.log(LogLine::RegistrationEnded { client, expired });
                    self.policy.unregister(now, id);
                    self.effects.push(Effect::ReleaseEntries(EntryOwner::Registration(id)));
                    let released = self.connections.release(id, |_| true, None);
                    self.release(now, released, DisconnectReason::Requested, "the registration ended");
                    self.registrations.forget(id);
                }
            }
        }
    }

    fn registration_stands(&mut self, now: Now, stands: Stands) {
        let Stands { id, begun, removed, added, filter, desired, announce } = stands;
        if let Some((client, protocols)) = begun {
            self.effects.log(LogLine::Registered { client, protocols });
        }
        if !removed.is_empty() {
            let gone = |channel: &SessionChannel| removed.iter().any(|capability| channel.is(capability));
            let released = self.connections.release(id, gone, None);
            let detail = "the protocol is not registered any more";
            self.release(now, released, DisconnectReason::Requested, detail);
        }
        if let Some(announced) = announce {
            self.effects.push(Effect::Announce(EntryOwner::Registration(id), announced));
        }
        self.policy.register(now, id, filter, desired);
        if added {
            self.policy.protocols_added(now);
            self.rehello.registered(now.mono);
        }
    }

    /// Makes a connection its node's session: its channels open in the inboxes of their owners, and greetings are sent.
    fn open(&mut self, now: Now, id: ConnectionId, negotiated: Negotiated) -> ChannelInboxes {
        let node = negotiated.public_key().id();
        let listed = (self.policy.is_static(&node), self.policy.is_trusted(&node));
        let Some((session, space)) = self.connections.session(now, id, negotiated, listed) else {
            return ChannelInboxes::new();
        };
        // The policy forgets a peer when it decides to close its connection, and lets the node in again while that
        // connection still writes what was accepted for it. A node has one session, so the old one ends here.
        if let Some(before) = self.sessions.get(&node).map(|session| session.id) {
            let (by, detail) = self.connections.replaced(before);
            self.end_session(now, before, &by, DisconnectReason::AlreadyConnected, &detail);
        }
        let owners = self.registrations.owners(&session.channels);
        let sharers = Sharers::new(owners.len(), self.max_shared_stall);
        let mut compressor = Compressor::default();
        let (mut inboxes, mut channels) = (ChannelInboxes::new(), Vec::new());
        for channel in &session.channels {
            let (key, inbox) =
                self.registrations.open_channel(&session, channel, &sharers, &space, &mut compressor);
            channels.extend(key.map(|key| OpenChannel {
                owner: channel.owner,
                key,
                channel: channel.clone(),
            }));
            inboxes.push(inbox);
        }
        self.effects.log_of_session(now, LogLine::Connected(Arc::clone(&session)));
        self.connections.opened(&session, channels, sharers);
        self.effects.remember(now, &session, Duration::ZERO);
        self.views.connected(self.view(&session));
        self.sessions.add(session);
        inboxes
    }

    /// Makes a parked connection the session of its node, in place of the connection `before`.
    fn promote(&mut self, now: Now, id: ConnectionId, before: ConnectionId) {
        let (reason, by) = (DisconnectReason::AlreadyConnected, ClosedBy::Sidecar);
        let detail = "replaced by a second connection";
        self.end_session(now, before, &by, reason, detail);
        self.connections.disconnect(before, reason, by, detail);
        if let Some(negotiated) = self.connections.unpark(id) {
            let is_useless = self.registrations.owners(negotiated.channels()).is_empty();
            let inboxes = self.open(now, id, negotiated);
            self.effects.push(Effect::Control(id, Control::Promote(inboxes)));
            // All owners of its channels may have ended while it was parked. Then no registration uses the peer.
            let useless = is_useless.then_some(id).into_iter().collect();
            self.release(now, Released { useless, ..Released::default() }, reason, detail);
        }
    }

    /// Closes a connection because of a decision of the policy.
    fn close(&mut self, now: Now, id: ConnectionId, reason: CloseReason) {
        if let CloseReason::Refused(refusal) = reason
            && let Some(remote) = self.connections.refuse_later(id, refusal)
        {
            self.views.not_admitted(now, remote, None, NotAdmitted::Refused(refusal), &refusal.to_string());
        }
        let (wire, by) = match reason {
            CloseReason::Refused(refusal) => (cause::of_refusal(refusal), ClosedBy::Sidecar),
            CloseReason::Removed | CloseReason::Banned => (DisconnectReason::Requested, ClosedBy::Operator),
            CloseReason::Rotated => (DisconnectReason::UselessPeer, ClosedBy::Sidecar),
        };
        self.disconnect(id, wire, by, &reason.to_string());
    }

    /// Ends a connection: the messages that were accepted for it are written, then the reason.
    fn disconnect(&mut self, id: ConnectionId, reason: DisconnectReason, by: ClosedBy, detail: &str) {
        if self.connections.disconnect(id, reason, by, detail) {
            self.effects.push(Effect::AbortConnection(id));
        }
    }

    fn refuse(&mut self, id: ConnectionId, remote: PublicKey, refusal: Refusal) -> DisconnectReason {
        if let Some(remote) = self.connections.refuse(id, remote, refusal) {
            self.effects.log(LogLine::Refused { remote, refusal });
        }
        cause::of_refusal(refusal)
    }

    /// Closes a session's channels in all inboxes.
    fn end_session(
        &mut self,
        now: Now,
        id: ConnectionId,
        by: &ClosedBy,
        reason: DisconnectReason,
        detail: &str,
    ) {
        let Some((session, channels)) = self.connections.end_session(id) else { return };
        for open in channels {
            self.registrations.close_channel(now, &session, &open, by, reason, detail);
        }
        if !self.sessions.end(&session.node_id, id) {
            return;
        }
        self.effects.left(now, &session, self.draining);
        let end = PeerEnd { time: now.unix, reason, by: by.clone(), detail: detail.into() };
        self.views.gone(&self.view(&session), end);
        self.effects.log_of_session(now, LogLine::Disconnected { session, reason, detail: detail.into() });
    }

    /// Closes channels that were taken out of sessions, and disconnects peers that no registration uses any more.
    fn release(&mut self, now: Now, released: Released, reason: DisconnectReason, detail: &str) {
        for (session, open) in &released.channels {
            self.registrations.close_channel(now, session, open, &ClosedBy::Sidecar, reason, detail);
        }
        for id in released.useless {
            let detail = "no registration uses the peer any more";
            self.disconnect(id, DisconnectReason::UselessPeer, ClosedBy::Sidecar, detail);
        }
    }

    /// Reconnects the next peer of a re-Hello pass, if one is due.
    fn reconnect_one(&mut self, now: Now) {
        if !self.rehello.is_due(now.mono) {
            return;
        }
        let lacking = self.sessions.iter().filter(|session| self.registrations.lacks_one(session));
        if let Some((id, node)) = self.rehello.choose(now.mono, lacking, &self.policy) {
            self.effects.log(LogLine::Rehello(node));
            self.disconnect(id, DisconnectReason::Requested, ClosedBy::Sidecar, rehello::DETAIL);
        }
    }

    /// Follows a change of a listed peer or its state: answers the callers that wait for it, and updates its roles in
    /// the view.
    fn entry_changed(&mut self, now: Now, id: NodeId) {
        if let Some(session) = self.sessions.get(&id) {
            self.views.listed(self.view(session));
        }
        for (call, answer) in self.calls.entry_changed(now, &self.policy, id) {
            self.effects.reply(call, answer);
        }
    }

    fn view(&self, session: &Arc<Session>) -> PeerView {
        peers::view(&self.policy, session)
    }

    /// Refuses the call if the sidecar is stopping.
    fn open_for_business(&self) -> Result<(), SwitchError> {
        if self.draining { Err(SwitchError::Stopped) } else { Ok(()) }
    }
}
