//! Connections as the switch knows them, from accept or dial to their end.
//!
//! ```text
//! launched ─▶ handshake ─▶ greeted ─▶ session
//!                             └─────▶ parked ─▶ session (or gone)
//! ```
//!
//! What our Hello offered is fixed when it is written, with the owners of that moment: a name that changes hands later
//! never leads an old session's messages to a new owner.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc},
};

use super::{
    attachment::PeerChannel,
    boards::{PeerEnd, PeerState, WhyNot},
    cause,
    losses::{Losses, Origin},
    registrations::{About, RegistrationId},
    session::{Session, SessionChannel},
    sink::{InboxSink, Mute, Sharers},
    state::{Effect, State},
};
use crate::delivery::{ChannelKey, Close, ClosedBy};
use crate::{
    Now,
    lease::Capability,
    net::{
        connection::{self, ConnectionId, Control, End, Event, MessageSink, Open, Role, Sinks},
        node_db::{StoredPeer, Update},
    },
    node::{Enode, Host, NodeId, PublicKey, Record},
    p2p::{
        self, Channel, ChannelIndex, ChannelLimits, DisconnectReason, Lane, LocalCapability, Outbound,
        RemoteHello, Side, Traffic,
    },
    policy::{
        self, Cause, CloseReason, Refusal,
        admission::Verdict,
        dial::{Dial, Kind},
    },
    rlpx::{Compressor, snappy::MAX_PAYLOAD},
};

/// How long a peer must have been one to be worth a dial at the next start. Those that find us useless, or are full, say
/// so within seconds.
const GOOD_AFTER: Duration = Duration::from_secs(60);

/// Controls that may wait for a connection: it takes them at once, and there are never more than two.
const CONTROLS: usize = 4;

impl ConnectionId {
    /// The policy's name for the connection.
    pub(super) fn policy(self) -> policy::admission::ConnId {
        policy::admission::ConnId(self.0)
    }
}

/// One connection.
pub(super) struct Link {
    pub(super) remote: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) inbound: bool,
    dialed_as: Option<Kind>,
    pub(super) enode: Option<Enode>,
    /// What the node was offered with, until it is a peer.
    record: Option<Record>,
    pub(super) outbound: Arc<Outbound>,
    pub(super) traffic: Arc<Traffic>,
    space: Arc<Notify>,
    control: mpsc::Sender<Control>,
    pub(super) stage: Stage,
    /// Why we are ending it, if we are.
    closing: Option<(ClosedBy, Arc<str>)>,
    /// The decision against it, and whom it hit as far as that is known.
    refused: Option<(Option<NodeId>, Refusal)>,
}

/// How far it has come.
pub(super) enum Stage {
    /// Nobody knows who it is.
    Handshake,
    /// We know who it is, and offered these.
    Greeted(PublicKey, Vec<Offered>),
    /// Both Hellos are there; the node is a peer over another connection.
    Parked(Ready),
    /// A session.
    Open {
        session: Arc<Session>,
        inboxes: Vec<(RegistrationId, ChannelKey, SessionChannel)>,
        /// How many applications `inboxes` names.
        sharers: Arc<Sharers>,
    },
}

/// A capability of our Hello, and whose it was.
#[derive(Clone)]
pub(super) struct Offered {
    capability: Capability,
    owner: RegistrationId,
    max_message: usize,
}

/// A connection whose handshake is complete.
pub(super) struct Ready {
    public_key: PublicKey,
    hello: Arc<RemoteHello>,
    channels: Vec<SessionChannel>,
}

impl State {
    /// Starts the task of a connection.
    pub(super) fn launch(
        &mut self,
        id: ConnectionId,
        stream: TcpStream,
        remote: SocketAddr,
        dial: Option<&Dial>,
    ) {
        let (control, controls) = mpsc::channel(CONTROLS);
        let link = Link {
            remote,
            local: stream.local_addr().unwrap_or(remote),
            inbound: dial.is_none(),
            dialed_as: dial.map(|dial| dial.kind),
            enode: dial.map(|dial| Enode::at(dial.public_key, dial.addr)),
            record: dial.and_then(|dial| dial.record.clone()),
            outbound: Outbound::new(Arc::clone(&self.outbound_budget)),
            traffic: Arc::default(),
            space: Arc::default(),
            control,
            stage: Stage::Handshake,
            closing: None,
            refused: None,
        };
        let connection = connection::Connection {
            id,
            stream,
            role: dial.map_or(Role::Accept, |dial| Role::Dial(dial.public_key)),
            local: Arc::clone(&self.local),
            rng: self.fork_rng(),
            outbound: Arc::clone(&link.outbound),
            traffic: Arc::clone(&link.traffic),
            space: Arc::clone(&link.space),
            control: controls,
            events: self.events.clone(),
            shared: Arc::clone(&self.shared),
        };
        self.links.insert(id, link);
        self.effects.push_back(Effect::Run(Box::new(connection)));
    }

    /// What a connection reports.
    pub(super) fn event(&mut self, now: Now, event: Event) {
        match event {
            Event::Authenticated { connection, remote, reply } => {
                // A dropped reply means that the connection has ended meanwhile; its last event follows.
                let _ = reply.send(self.authenticated(now, connection, remote));
            }
            Event::Negotiated { connection, hello, channels, reply } => {
                let _ = reply.send(self.negotiated(now, connection, hello, &channels));
            }
            Event::Heard { connection } => self.policy.conn_heard(now, connection.policy()),
            Event::ChannelClosed { connection, channel } => self.channel_too_slow(connection, channel),
            Event::Closed { connection, end } => self.closed(now, connection, end),
        }
    }

    /// The first checkpoint: who it is is known.
    fn authenticated(&mut self, now: Now, id: ConnectionId, remote: PublicKey) -> connection::Admission {
        let node = remote.id();
        self.policy
            .conn_identified(now, id.policy(), node)
            .map_err(|refusal| self.refuse(id, remote, refusal))?;
        let offered: Vec<Offered> = self
            .leases
            .iter()
            .flat_map(|registration| {
                registration.spec().protocols.iter().map(|protocol| Offered {
                    capability: protocol.capability.clone(),
                    owner: registration.id(),
                    max_message: match protocol.max_message_bytes {
                        0 => MAX_PAYLOAD,
                        bytes => bytes as usize,
                    },
                })
            })
            .collect();
        let hello = offered
            .iter()
            .map(|Offered { capability, .. }| LocalCapability {
                name: capability.name.clone(),
                version: capability.version,
                message_count: capability.message_count,
            })
            .collect();
        if let Some(link) = self.links.get_mut(&id) {
            link.stage = Stage::Greeted(remote, offered);
        }
        Ok(hello)
    }

    /// The second checkpoint: what is shared is known.
    fn negotiated(
        &mut self,
        now: Now,
        id: ConnectionId,
        hello: Arc<RemoteHello>,
        channels: &[Channel],
    ) -> connection::Opening {
        let Some(Link { stage: Stage::Greeted(public_key, offered), .. }) = self.links.get(&id) else {
            return Err(DisconnectReason::SubprotocolError);
        };
        let public_key = *public_key;
        let owner_of = |channel: &Channel| {
            offered.iter().find(|offered| {
                offered.capability.name == channel.name && offered.capability.version == channel.version
            })
        };
        let channels: Vec<SessionChannel> = channels
            .iter()
            .filter_map(|channel| {
                let offered = owner_of(channel)?;
                Some(SessionChannel {
                    index: channel.index,
                    name: channel.name.clone(),
                    version: channel.version,
                    offset: channel.offset,
                    message_count: channel.message_count,
                    max_message: offered.max_message,
                    owner: offered.owner,
                })
            })
            .collect();
        let served: Vec<policy::RegistrationId> = channels
            .iter()
            .filter_map(|channel| self.kept.get(&channel.owner).map(|kept| kept.policy_id))
            .collect();
        let ours = |said: &p2p::Capability| {
            offered.iter().any(|Offered { capability, .. }| *capability.name == *said.name)
        };
        let ready = Ready { public_key, hello: hello.trimmed(ours), channels };
        match self.policy.conn_ready(now, id.policy(), &served) {
            Err(refusal) => Err(self.refuse(id, public_key, refusal)),
            Ok(Verdict::Admitted) => Ok(Open::Session(self.open(now, id, ready))),
            Ok(Verdict::Parked) => {
                if let Some(link) = self.links.get_mut(&id) {
                    link.stage = Stage::Parked(ready);
                }
                Ok(Open::Parked)
            }
        }
    }

    /// A connection becomes its node's session: channels open in the inboxes of their owners, greetings go out.
    fn open(&mut self, now: Now, id: ConnectionId, ready: Ready) -> Sinks {
        let Some(link) = self.links.get_mut(&id) else { return Sinks::new() };
        let Ready { public_key, hello, channels } = ready;
        let node_id = public_key.id();
        let session = Arc::new(Session {
            id,
            public_key,
            node_id,
            enode: link.enode.clone().unwrap_or_else(|| Enode::at(public_key, link.remote)),
            record: link.record.take(),
            remote: link.remote,
            local: link.local,
            inbound: link.inbound,
            dialed_as: link.dialed_as,
            was_static: self.policy.is_static(&node_id),
            was_trusted: self.policy.is_trusted(&node_id),
            hello,
            channels: channels.clone(),
            since: now.unix,
            outbound: Arc::clone(&link.outbound),
            traffic: Arc::clone(&link.traffic),
        });
        let limits = channels.iter().map(|channel| ChannelLimits {
            offset: channel.offset,
            message_count: channel.message_count,
            max_message: channel.max_message,
        });
        link.outbound.set_channels(limits, session.hello.has_snappy());
        link.traffic.set_channels(channels.len());
        let alive = |channel: &SessionChannel| self.kept.contains_key(&channel.owner);
        let mut owners: Vec<RegistrationId> =
            channels.iter().filter(|channel| alive(channel)).map(|channel| channel.owner).collect();
        owners.sort_unstable();
        owners.dedup();
        let sharers = Sharers::new(owners.len(), self.max_shared_stall);
        let mut compressor = Compressor::default();
        let mut sinks: Sinks = Vec::with_capacity(channels.len());
        let mut inboxes = Vec::with_capacity(channels.len());
        for channel in channels {
            let max_message = channel.max_message;
            let Some(kept) = self.kept.get(&channel.owner) else {
                sinks.push(Box::new(Mute));
                continue;
            };
            let spec = self
                .leases
                .get(channel.owner)
                .and_then(|registration| registration.spec().protocol(&channel.name, Some(channel.version)));
            let mut greeting_sent = false;
            for greeting in spec.map(|spec| spec.greeting.as_slice()).unwrap_or_default() {
                // A greeting has at most 64 KiB, far below every limit of a message.
                if let Ok(message) = compressor.compress(&greeting.payload) {
                    let code = u64::from(greeting.code);
                    greeting_sent |= link.outbound.send(Lane::Call, channel.index, code, message).is_ok();
                }
            }
            let about = About {
                session_id: id.0,
                peer: PeerChannel { session: Arc::clone(&session), channel: channel.clone() },
                keep_first: spec.map_or(0, |spec| spec.keep_first),
                greeting_sent,
            };
            let holding = &kept.holding;
            let opened = holding.inbox.lock().open(about);
            let sink: Box<dyn MessageSink> = match opened {
                Some(key) => {
                    holding.on_space(key, Arc::clone(&link.space));
                    let protocol = Arc::clone(&channel.name);
                    inboxes.push((channel.owner, key, channel));
                    Box::new(InboxSink {
                        inbox: holding.inbox.clone(),
                        key,
                        max_message,
                        sharers: Arc::clone(&sharers),
                        losses: Losses {
                            log: Arc::clone(&holding.losses),
                            origin: Origin { session: Arc::clone(&session), protocol },
                        },
                    })
                }
                None => Box::new(Mute),
            };
            sinks.push(sink);
        }
        tracing::info!(
            node = %node_id,
            remote = %session.remote,
            inbound = session.inbound,
            client = %session.hello.client.escape_debug(),
            "peer connected"
        );
        link.stage = Stage::Open { session: Arc::clone(&session), inboxes, sharers };
        self.remember(now, &session, Duration::ZERO);
        self.touched.extend(owners);
        let view = self.peer_view(&session);
        self.sessions.insert(node_id, session);
        self.boards.peers.update(|board| board.peers.set(node_id, PeerState::Connected(view)));
        sinks
    }

    /// A parked connection takes the place of another one of its node.
    pub(super) fn promote(&mut self, now: Now, id: ConnectionId, before: ConnectionId, node: NodeId) {
        self.end_session(
            now,
            before,
            &ClosedBy::Sidecar,
            DisconnectReason::AlreadyConnected,
            "replaced by a second connection",
        );
        if let Some(link) = self.links.get_mut(&before) {
            link.outbound.disconnect(DisconnectReason::AlreadyConnected);
        }
        let Some(link) = self.links.get_mut(&id) else { return };
        let Stage::Parked(ready) = std::mem::replace(&mut link.stage, Stage::Handshake) else { return };
        let control = link.control.clone();
        let sinks = self.open(now, id, ready);
        if control.try_send(Control::Promote(sinks)).is_err() {
            // It has ended; its last event is on the way.
            tracing::debug!(%node, "the second connection ended before it was promoted");
        }
    }

    pub(super) fn probe(&mut self, id: ConnectionId) {
        if let Some(link) = self.links.get(&id) {
            let _ = link.control.try_send(Control::Probe);
        }
    }

    /// The policy wants a connection gone.
    pub(super) fn close(&mut self, now: Now, id: ConnectionId, reason: CloseReason) {
        if let (CloseReason::Refused(refusal), Some(link)) = (reason, self.links.get_mut(&id)) {
            link.refused.get_or_insert((None, refusal));
            let remote = link.remote;
            // Before there are keys it is cut, and no last event comes.
            if link.inbound && matches!(link.stage, Stage::Handshake) {
                self.not_let_in(now, remote, None, WhyNot::Refused(refusal), &refusal.to_string());
            }
        }
        let (wire, by, detail) = match reason {
            CloseReason::Refused(refusal) => (wire_reason(refusal), ClosedBy::Sidecar, refusal.to_string()),
            CloseReason::Removed => {
                (DisconnectReason::Requested, ClosedBy::Operator, "removed from the static list".to_owned())
            }
            CloseReason::Banned => (DisconnectReason::Requested, ClosedBy::Operator, "banned".to_owned()),
            CloseReason::Rotated => {
                (DisconnectReason::UselessPeer, ClosedBy::Sidecar, "made room by rotation".to_owned())
            }
        };
        self.disconnect(id, wire, by, &detail);
    }

    /// Ends a connection from here: what was accepted for it is flushed, then the reason.
    pub(super) fn disconnect(
        &mut self,
        id: ConnectionId,
        reason: DisconnectReason,
        by: ClosedBy,
        detail: &str,
    ) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.closing.get_or_insert((by, detail.into()));
        if matches!(link.stage, Stage::Handshake) {
            // No keys: nothing could be written.
            self.effects.push_back(Effect::AbortConnection(id));
            self.links.remove(&id);
        } else {
            link.outbound.disconnect(reason);
        }
    }

    fn refuse(&mut self, id: ConnectionId, remote: PublicKey, refusal: Refusal) -> DisconnectReason {
        if let Some(link) = self.links.get_mut(&id) {
            tracing::debug!(remote = %link.remote, %refusal, "refused a connection");
            link.refused = Some((Some(remote.id()), refusal));
            link.closing.get_or_insert((ClosedBy::Sidecar, refusal.to_string().into()));
        }
        wire_reason(refusal)
    }

    /// The queue of a channel wants to be rid of the peer, which another application uses as well.
    fn channel_too_slow(&mut self, id: ConnectionId, channel: ChannelIndex) {
        let Some(Stage::Open { inboxes, .. }) = self.links.get(&id).map(|link| &link.stage) else { return };
        let Some(owner) = inboxes.iter().find(|(.., of)| of.index == channel).map(|(owner, ..)| *owner)
        else {
            return;
        };
        self.release_channels(
            owner,
            |of| of.index == channel,
            Some(id),
            DisconnectReason::SubprotocolError,
            "the application takes messages too slowly",
        );
    }

    /// A connection's last event.
    fn closed(&mut self, now: Now, id: ConnectionId, end: End) {
        let Some(link) = self.links.get(&id) else { return };
        let established = matches!(link.stage, Stage::Open { .. });
        let cause = cause::of_end(&end, established);
        if end.proven && link.inbound {
            self.policy.reached_by(link.remote.ip());
        }
        let (by, detail) = match (&link.closing, end.by) {
            (Some((by, detail)), Side::Local) => (by.clone(), Arc::clone(detail)),
            (_, Side::Local) => (ClosedBy::Sidecar, Arc::from(end.detail.as_str())),
            (_, Side::Remote) => (ClosedBy::Remote, Arc::from(end.detail.as_str())),
        };
        let said = if detail.is_empty() { cause.to_string() } else { detail.to_string() };
        let reason = end.reason.unwrap_or(DisconnectReason::NetworkError);
        self.end_session(now, id, &by, reason, &said);
        if let Some(link) = self.links.remove(&id) {
            self.forget(now, link, cause, &said);
        }
        self.policy.conn_closed(now, id.policy(), cause, &said);
        self.return_after_rehello(now, id);
    }

    /// What is left to do for a connection that has ended.
    fn forget(&mut self, now: Now, link: Link, cause: Cause, said: &str) {
        let node = match &link.stage {
            Stage::Open { .. } => return,
            Stage::Handshake => None,
            Stage::Greeted(public_key, _) => Some(public_key.id()),
            Stage::Parked(ready) => Some(ready.public_key.id()),
        };
        // Dials that failed are told by the policy, which knows of those too that never had a connection.
        if link.inbound {
            let (node, why) = match link.refused {
                Some((who, refusal)) => (node.or(who), WhyNot::Refused(refusal)),
                None => (node, WhyNot::Failed(cause)),
            };
            self.not_let_in(now, link.remote, node, why, said);
        }
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
        let Some(link) = self.links.get_mut(&id) else { return };
        let Stage::Open { session, inboxes, .. } = &mut link.stage else { return };
        let session = Arc::clone(session);
        for (owner, key, channel) in std::mem::take(inboxes) {
            self.touched.insert(owner);
            let Some(kept) = self.kept.get(&owner) else { continue };
            let close = Close {
                reason: reason.code(),
                by: by.clone(),
                detail: detail.into(),
                // Final from here on: no later write counts.
                unsent_messages: session.outbound.end_channel(channel.index),
            };
            kept.holding.inbox.lock().close(key, close);
            kept.holding.losses.note(now.mono, &kept.holding.inbox, None);
            kept.holding.forget_space(key);
        }
        if self.sessions.get(&session.node_id).is_some_and(|standing| standing.id == id) {
            self.sessions.remove(&session.node_id);
            self.past.add(&session);
            let served = now.unix.saturating_sub(session.since);
            if served >= GOOD_AFTER || self.draining {
                self.remember(now, &session, served);
            } else if !session.inbound {
                self.effects.push_back(Effect::Remember(Update::PeerLeft(session.node_id)));
            }
            let ended = PeerEnd { time: now.unix, reason, by: by.clone(), detail: detail.into() };
            let view = self.peer_view(&session);
            self.boards.peers.update(|board| board.gone(&view, ended));
        }
        tracing::info!(node = %session.node_id, remote = %session.remote, %reason, detail = %detail.escape_debug(), "peer disconnected");
    }

    /// Notes a peer for the next run, which dials those that served longest first. What we did not dial is left out: where
    /// it listens is not known.
    fn remember(&mut self, now: Now, session: &Session, served: Duration) {
        let Host::Ip(ip) = session.enode.host else { return };
        if session.inbound {
            return;
        }
        let peer = StoredPeer {
            public_key: session.public_key,
            addr: SocketAddr::new(ip, session.enode.tcp),
            record: session.record.clone(),
            served,
            last: now.unix.as_secs(),
        };
        self.effects.push_back(Effect::Remember(Update::Peer(Box::new(peer))));
    }

    /// Closes one registration's channels on all sessions and lets go of peers that nobody else uses.
    /// `only`: on this connection alone.
    pub(super) fn release_channels(
        &mut self,
        owner: RegistrationId,
        released: impl Fn(&SessionChannel) -> bool,
        only: Option<ConnectionId>,
        reason: DisconnectReason,
        detail: &str,
    ) {
        let mut useless = Vec::new();
        for (id, link) in &mut self.links {
            if only.is_some_and(|only| only != *id) {
                continue;
            }
            let Stage::Open { inboxes, sharers, session } = &mut link.stage else { continue };
            let before = inboxes.len();
            for (_, key, channel) in
                inboxes.extract_if(.., |(of, _, channel)| *of == owner && released(channel))
            {
                if let Some(kept) = self.kept.get(&owner) {
                    let close = Close {
                        reason: reason.code(),
                        by: ClosedBy::Sidecar,
                        detail: detail.into(),
                        unsent_messages: session.outbound.end_channel(channel.index),
                    };
                    kept.holding.inbox.lock().close(key, close);
                    kept.holding.forget_space(key);
                }
            }
            if before > inboxes.len() {
                self.touched.insert(owner);
                let mut owners: Vec<_> = inboxes.iter().map(|(owner, ..)| *owner).collect();
                owners.sort_unstable();
                owners.dedup();
                // An application that is left alone on a connection has its whole limit again.
                sharers.set(owners.len());
            }
            if before > 0 && inboxes.is_empty() {
                useless.push(*id);
            }
        }
        for id in useless {
            self.disconnect(
                id,
                DisconnectReason::UselessPeer,
                ClosedBy::Sidecar,
                "no registration uses the peer any more",
            );
        }
    }
}

/// What the other side is told when we refuse it.
fn wire_reason(refusal: Refusal) -> DisconnectReason {
    match refusal {
        Refusal::OwnIdentity => DisconnectReason::ConnectedToSelf,
        Refusal::Duplicate | Refusal::Connected => DisconnectReason::AlreadyConnected,
        Refusal::Useless | Refusal::NoProtocol | Refusal::Filtered => DisconnectReason::UselessPeer,
        Refusal::TooManyPeers
        | Refusal::TooManyInbound
        | Refusal::TooManyDialed
        | Refusal::SubnetFull
        | Refusal::NotOnAllowlist
        | Refusal::PushedOut => DisconnectReason::TooManyPeers,
        _ => DisconnectReason::Requested,
    }
}
