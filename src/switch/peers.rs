//! What operators ask about peers, and the lists they keep.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{
    registrations::SwitchError,
    session::Session,
    state::{Effect, State},
};
use crate::delivery::ClosedBy;
use crate::{
    Now,
    net::bandwidth::Rates,
    node::{NodeId, NodeRef},
    p2p::DisconnectReason,
    policy::{
        Ban, BanError, BanTarget, Settings, Slots, Warning,
        dial::{AddError, ConnectOutcome, ListEntry, ListSource, QueryId, RemoveError},
        fork_following::Followed,
        lists::Parsed,
        one_source::OneSource,
        recent::Counts,
    },
};

/// A session beside what the lists say of its node.
#[derive(Clone, Debug)]
pub struct PeerView {
    /// The session.
    pub session: Arc<Session>,
    /// Whether the node is on the static list.
    pub is_static: bool,
    /// Whether the node is on the trusted list.
    pub is_trusted: bool,
}

/// Why a list was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Not added.
    #[error(transparent)]
    Add(#[from] AddError),
    /// Not removed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

/// A ban as it is asked for.
#[derive(Clone, Debug)]
pub struct BanRequest {
    /// What it hits.
    pub target: BanTarget,
    /// How long.
    pub duration: Duration,
    /// Why, for people.
    pub reason: String,
    /// Whether it may hit static and trusted peers.
    pub force: bool,
}

/// How it goes with peers, summed up.
#[derive(Clone, Debug)]
pub struct PeersSummary {
    /// Connected peers in all.
    pub connected: usize,
    /// Slots for peers on no list.
    pub slots: Slots,
    /// Inbound peers that take a slot.
    pub inbound: usize,
    /// Dialed peers that take a slot.
    pub dialed: usize,
    /// What became of candidates, dials and connections in the last minutes.
    pub recent: Counts,
    /// Whether anybody on the Internet has ever dialed us.
    pub reached_from_outside: bool,
    /// What the operator should know.
    pub warnings: Vec<Warning>,
    /// The forks that are followed although schedules lack them.
    pub followed_forks: Vec<Followed>,
    /// The private address from which most refused connections came lately, if there is one.
    pub one_source: Option<OneSource>,
}

/// What may be set about peers while the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// Who is dialed, let in and kept.
    pub policy: Settings,
    /// How much may go over connections.
    pub bandwidth: Rates,
}

/// A list of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The static one.
    Static,
    /// The trusted one.
    Trusted,
}

impl Listed {
    /// Its setting in the configuration.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Static => "static-peers",
            Self::Trusted => "trusted-peers",
        }
    }
}

/// What a one-off dial came to: the peer, or why not.
pub type ConnectReply = Result<PeerView, ConnectOutcome>;

impl State {
    pub(super) fn peer_view(&self, session: &Arc<Session>) -> PeerView {
        let id = &session.node_id;
        PeerView {
            session: Arc::clone(session),
            is_static: self.policy.is_static(id),
            is_trusted: self.policy.is_trusted(id),
        }
    }

    pub(super) fn peers(&self) -> Vec<PeerView> {
        self.sessions.values().map(|session| self.peer_view(session)).collect()
    }

    pub(super) fn peer(&self, node: NodeId) -> Result<PeerView, SwitchError> {
        let session = self.sessions.get(&node).ok_or(SwitchError::PeerNotConnected { node })?;
        Ok(self.peer_view(session))
    }

    /// Ends the session with a node. Answers when a static peer will be dialed again, in wall time: after the dial
    /// history lets it, unless the peer dials first.
    pub(super) fn disconnect_peer(
        &mut self,
        now: Now,
        node: NodeId,
        reason: DisconnectReason,
    ) -> Result<Option<Duration>, SwitchError> {
        let session = self.sessions.get(&node).ok_or(SwitchError::PeerNotConnected { node })?;
        self.disconnect(session.id, reason, ClosedBy::Operator, "disconnected by the operator");
        Ok(self.policy.is_static(&node).then(|| now.unix.saturating_add(self.policy.settings().history)))
    }

    pub(super) fn summary(&mut self, now: Now) -> PeersSummary {
        let (slots, inbound, dialed) = self.policy.slot_use();
        PeersSummary {
            connected: self.sessions.len(),
            slots,
            inbound,
            dialed,
            recent: self.policy.recent(now),
            reached_from_outside: self.policy.reached_from_outside(),
            warnings: self.policy.warnings(now),
            followed_forks: self.policy.followed_forks(),
            one_source: self.policy.one_source(now),
        }
    }

    pub(super) fn peer_settings(&self) -> PeerSettings {
        PeerSettings { policy: self.policy.settings().clone(), bandwidth: self.shared.bandwidth.rates() }
    }

    pub(super) fn change_settings(
        &mut self,
        now: Now,
        change: impl FnOnce(&mut PeerSettings),
    ) -> PeerSettings {
        let before = self.peer_settings();
        let mut settings = before.clone();
        change(&mut settings);
        if settings.policy != before.policy {
            self.policy.set_settings(now, settings.policy);
        }
        if settings.bandwidth != before.bandwidth {
            self.shared.bandwidth.set(now.mono, settings.bandwidth);
        }
        self.peer_settings()
    }

    pub(super) fn ban(&mut self, now: Now, ban: BanRequest) -> Result<Ban, BanError> {
        let BanRequest { target, duration, reason, force } = ban;
        self.policy.ban(now, target, duration, &reason, ListSource::Call, force)
    }

    pub(super) fn unban(&mut self, now: Now, target: &BanTarget) -> Result<Ban, BanError> {
        self.policy.unban(now, target)
    }

    pub(super) fn bans(&self, now: Now) -> Vec<Ban> {
        self.policy.bans(now).cloned().collect()
    }

    pub(super) fn add_static(&mut self, now: Now, node: &NodeRef) -> Result<ListEntry, SwitchError> {
        let entry = self.policy.add_static(now, node, ListSource::Call).map_err(ListError::Add)?;
        entry.ok_or(SwitchError::Stopped)
    }

    pub(super) fn remove_static(&mut self, now: Now, node: NodeId, keep: bool) -> Result<(), SwitchError> {
        Ok(self.policy.remove_static(now, &node, keep).map_err(ListError::Remove)?)
    }

    pub(super) fn static_peers(&self, now: Now) -> Vec<ListEntry> {
        self.policy.entries(now).filter(|entry| entry.as_static.is_some()).collect()
    }

    pub(super) fn add_trusted(&mut self, now: Now, node: &NodeRef) -> Result<ListEntry, SwitchError> {
        let entry = self.policy.add_trusted(now, node, ListSource::Call).map_err(ListError::Add)?;
        entry.ok_or(SwitchError::Stopped)
    }

    pub(super) fn remove_trusted(&mut self, now: Now, node: NodeId) -> Result<(), SwitchError> {
        Ok(self.policy.remove_trusted(now, &node).map_err(ListError::Remove)?)
    }

    pub(super) fn trusted_peers(&self, now: Now) -> Vec<ListEntry> {
        self.policy.entries(now).filter(|entry| entry.as_trusted.is_some()).collect()
    }

    /// Dials a node once; the answer comes when the dial has ended.
    pub(super) fn connect(
        &mut self,
        now: Now,
        node: &NodeRef,
        timeout: Duration,
        reply: oneshot::Sender<ConnectReply>,
    ) {
        self.queries_made += 1;
        let query = QueryId(self.queries_made);
        match self.policy.connect(now, query, node, timeout) {
            Ok(()) => {
                self.connects.insert(query, reply);
            }
            // The caller may have given up.
            Err(refusal) => drop(reply.send(Err(ConnectOutcome::Refused(refusal)))),
        }
    }

    pub(super) fn connect_done(&mut self, query: QueryId, id: NodeId, outcome: ConnectOutcome) {
        let Some(reply) = self.connects.remove(&query) else { return };
        let answer = match (outcome, self.sessions.get(&id)) {
            (ConnectOutcome::Connected, Some(session)) => Ok(self.peer_view(session)),
            (outcome, _) => Err(outcome),
        };
        let _ = reply.send(answer);
    }

    /// The lists of the configuration, then those of earlier runs.
    pub(super) fn restore(
        &mut self,
        now: Now,
        statics: &[NodeRef],
        trusted: &[NodeRef],
        lists: &Parsed,
    ) -> Result<(), ListError> {
        for node in statics {
            self.policy.add_static(now, node, ListSource::Config)?;
        }
        for node in trusted {
            self.policy.add_trusted(now, node, ListSource::Config)?;
        }
        // A peer that was listed by its id while discovery ran stays listed without it: it is shown as refused, and
        // a start must not fail for it.
        let settings = self.policy.settings().clone();
        self.policy.set_settings(now, Settings { discovery: true, ..settings.clone() });
        for (node, error) in self.policy.restore(now, lists) {
            tracing::warn!(node, %error, "a static or trusted peer of an earlier run is left out");
        }
        self.policy.set_settings(now, settings);
        // What was just read need not be written.
        self.settle(now);
        self.effects.retain(|effect| !matches!(effect, Effect::Persist(_)));
        Ok(())
    }

    /// Takes over a list of the configuration that was read again. Returns the nodes that cannot be listed, and why.
    pub(super) fn relist(
        &mut self,
        now: Now,
        list: Listed,
        added: Vec<NodeRef>,
        removed: &BTreeSet<NodeId>,
    ) -> Vec<(NodeRef, AddError)> {
        for id in removed {
            // A node that a call has taken off already needs nothing.
            let _ = match list {
                Listed::Static => self.policy.unconfigure_static(now, id),
                Listed::Trusted => self.policy.unconfigure_trusted(now, id),
            };
        }
        let mut refused = Vec::new();
        for node in added {
            let listed = match list {
                Listed::Static => self.policy.add_static(now, &node, ListSource::Config),
                Listed::Trusted => self.policy.add_trusted(now, &node, ListSource::Config),
            };
            if let Err(error) = listed {
                refused.push((node, error));
            }
        }
        refused
    }

    /// No more dials or accepts; peers are told that we quit once what was accepted for them is written.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        // Discovery need not look for anybody any more.
        self.effects.push_back(Effect::Demand(0));
        self.wake_streams();
    }

    /// Ends all connections with "quitting".
    pub(super) fn quit(&mut self) {
        let ids: Vec<_> = self.links.keys().copied().collect();
        for id in ids {
            self.disconnect(id, DisconnectReason::Quitting, ClosedBy::Sidecar, "the sidecar is stopping");
        }
    }
}
