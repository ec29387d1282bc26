//! Connections as the switch knows them, from accept or dial to their end.
//!
//! ```text
//! begin ─▶ handshake ─▶ greeted ─▶ session
//!                          └─────▶ parked ─▶ session (or closed)
//! ```
//!
//! The capabilities of our Hello are fixed when it is written, with their owners at that time. So if a name gets
//! another owner later, an old session's messages never reach the new owner.
//!
//! Left out: sockets and tasks (the driver's), the decision which connections are wanted (`policy`), and the inboxes of
//! a session's channels (`registrations`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};

use super::{
    cause,
    channel_inbox::Sharers,
    session::{Session, SessionChannel},
};
use crate::{
    Now, WakeSlot,
    budget::Budget,
    delivery::{ChannelKey, ClosedBy},
    lease::Capability,
    node::{Enode, PublicKey, Record, RegistrationId},
    p2p::{
        self, Channel, ChannelIndex, ChannelLimits, DisconnectReason, LocalCapability, Outbound, RemoteHello,
        Side, Traffic,
        session::{ConnectionId, End, Role},
    },
    policy::{
        Cause, Refusal,
        dial::{Dial, Kind},
    },
};

/// A connection that is about to run: the values that its driver needs in addition to the socket.
pub struct Run {
    /// Its number.
    pub id: ConnectionId,
    /// Which side opened it.
    pub role: Role,
    /// The generator for keys, nonces and padding of this connection.
    pub rng: StdRng,
    /// The queue of messages to the peer.
    pub outbound: Arc<Outbound>,
    /// The counters of the connection.
    pub traffic: Arc<Traffic>,
    /// The wake-up for the connection when an inbox has room for which it waits. The driver fills it.
    pub space: Arc<WakeSlot>,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("id", &self.id).field("role", &self.role).finish_non_exhaustive()
    }
}

/// A capability of our Hello, and its owner at that time.
#[derive(Clone, Debug)]
pub(super) struct OfferedCapability {
    pub(super) capability: Capability,
    pub(super) owner: RegistrationId,
    pub(super) max_message: usize,
}

impl OfferedCapability {
    /// The capability as it is in our Hello.
    pub(super) fn local(&self) -> LocalCapability {
        let Capability { name, version, message_count } = self.capability.clone();
        LocalCapability { name, version, message_count }
    }
}

/// The results of both Hellos of a connection.
#[derive(Debug)]
pub(super) struct Negotiated {
    public_key: PublicKey,
    hello: Arc<RemoteHello>,
    channels: Vec<SessionChannel>,
}

impl Negotiated {
    /// The peer's key.
    pub(super) fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// The shared capabilities, with their owners.
    pub(super) fn channels(&self) -> &[SessionChannel] {
        &self.channels
    }
}

/// A channel of a session that has an inbox.
#[derive(Clone, Debug)]
pub(super) struct OpenChannel {
    pub(super) owner: RegistrationId,
    pub(super) key: ChannelKey,
    pub(super) channel: SessionChannel,
}

/// The stage of a connection.
#[derive(Debug)]
enum Stage {
    /// The remote has not proved its key.
    Handshake,
    /// The remote proved this key, and our Hello offered these capabilities.
    Greeted(PublicKey, Vec<OfferedCapability>),
    /// Both Hellos were exchanged, and the node is a peer over another connection.
    Parked(Negotiated),
    /// The connection is a session.
    Open { session: Arc<Session>, channels: Vec<OpenChannel>, sharers: Arc<Sharers> },
}

#[derive(Debug)]
struct Connection {
    remote: SocketAddr,
    local: SocketAddr,
    inbound: bool,
    dialed_as: Option<Kind>,
    enode: Option<Enode>,
    /// The record with which the node was offered for the dial. The session takes it.
    record: Option<Record>,
    outbound: Arc<Outbound>,
    traffic: Arc<Traffic>,
    space: Arc<WakeSlot>,
    stage: Stage,
    /// Set if we end the connection: the origin of the decision, and its description.
    closing: Option<(ClosedBy, Arc<str>)>,
    /// The refusal of the connection, and the key of the refused node if it is known.
    refused: Option<(Option<PublicKey>, Refusal)>,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) cause: Cause,
    pub(super) by: ClosedBy,
    /// A description of the end; never empty.
    pub(super) said: String,
    pub(super) reason: DisconnectReason,
    /// The address of an inbound connection whose remote proved its key.
    pub(super) reached_by: Option<SocketAddr>,
    /// Set for an inbound connection that never became a session.
    pub(super) not_admitted: Option<RefusedInbound>,
}

/// An inbound connection that did not become a session.
#[derive(Debug)]
pub(super) struct RefusedInbound {
    pub(super) remote: SocketAddr,
    pub(super) node: Option<PublicKey>,
    pub(super) refusal: Option<Refusal>,
}

/// Channels of one registration that were taken out of sessions.
#[derive(Debug, Default)]
pub(super) struct Released {
    pub(super) channels: Vec<(Arc<Session>, OpenChannel)>,
    /// Connections whose sessions have no channel any more.
    pub(super) useless: Vec<ConnectionId>,
}

/// All connections. See the [module](self).
#[derive(Debug)]
pub(super) struct Connections {
    all: BTreeMap<ConnectionId, Connection>,
    made: u64,
    /// The memory of the messages to all peers.
    budget: Arc<Budget>,
    rng: StdRng,
}

impl Connections {
    /// Returns a set without connections. `rng` seeds the generator of each connection.
    pub(super) fn new(rng: StdRng, budget: Arc<Budget>) -> Self {
        Self { all: BTreeMap::new(), made: 0, budget, rng }
    }

    /// Returns the number for a connection that is about to begin.
    pub(super) fn next_id(&mut self) -> ConnectionId {
        self.made += 1;
        ConnectionId(self.made)
    }

    /// Adds a connection whose socket is connected. `dial`: set if we opened it.
    pub(super) fn begin(
        &mut self,
        id: ConnectionId,
        remote: SocketAddr,
        local: SocketAddr,
        dial: Option<&Dial>,
    ) -> Run {
        let connection = Connection {
            remote,
            local,
            inbound: dial.is_none(),
            dialed_as: dial.map(|dial| dial.kind),
            enode: dial.map(|dial| Enode::at(dial.public_key, dial.addr)),
            record: dial.and_then(|dial| dial.record.clone()),
            outbound: Outbound::new(Arc::clone(&self.budget)),
            traffic: Arc::default(),
            space: Arc::default(),
            stage: Stage::Handshake,
            closing: None,
            refused: None,
        };
        let run = Run {
            id,
            role: dial.map_or(Role::Accept, |dial| Role::Dial(dial.public_key)),
            rng: StdRng::seed_from_u64(self.rng.next_u64()),
            outbound: Arc::clone(&connection.outbound),
            traffic: Arc::clone(&connection.traffic),
            space: Arc::clone(&connection.space),
        };
        self.all.insert(id, connection);
        run
    }

    /// Notes that the remote proved its key, and the capabilities that our Hello offers.
    pub(super) fn greeted(&mut self, id: ConnectionId, remote: PublicKey, offered: Vec<OfferedCapability>) {
        if let Some(connection) = self.all.get_mut(&id) {
            connection.stage = Stage::Greeted(remote, offered);
        }
    }

    /// Returns the shared capabilities, each with its owner at the time of our Hello. `None` for a connection whose
    /// remote has not proved its key, or that is past this stage.
    pub(super) fn negotiated(
        &self,
        id: ConnectionId,
        hello: Arc<RemoteHello>,
        channels: &[Channel],
    ) -> Option<Negotiated> {
        let Stage::Greeted(public_key, offered) = &self.all.get(&id)?.stage else { return None };
        let owned = |channel: &Channel| {
            let offered = offered.iter().find(|offered| {
                offered.capability.name == channel.name && offered.capability.version == channel.version
            })?;
            Some(SessionChannel {
                index: channel.index,
                name: channel.name.clone(),
                version: channel.version,
                offset: channel.offset,
                message_count: channel.message_count,
                max_message: offered.max_message,
                owner: offered.owner,
            })
        };
        let ours = |said: &p2p::Capability| {
            offered.iter().any(|OfferedCapability { capability, .. }| *capability.name == *said.name)
        };
        Some(Negotiated {
            public_key: *public_key,
            hello: hello.trimmed(ours),
            channels: channels.iter().filter_map(owned).collect(),
        })
    }

    /// Parks a connection: the node has a session on another connection.
    pub(super) fn park(&mut self, id: ConnectionId, negotiated: Negotiated) {
        if let Some(connection) = self.all.get_mut(&id) {
            connection.stage = Stage::Parked(negotiated);
        }
    }

    /// Takes the results of the Hellos from a parked connection.
    pub(super) fn unpark(&mut self, id: ConnectionId) -> Option<Negotiated> {
        let connection = self.all.get_mut(&id)?;
        if !matches!(connection.stage, Stage::Parked(_)) {
            return None;
        }
        match std::mem::replace(&mut connection.stage, Stage::Handshake) {
            Stage::Parked(negotiated) => Some(negotiated),
            _ => None,
        }
    }

    /// Returns the session that the connection becomes, and the slot that is woken when its inboxes have room.
    /// `listed`: whether the node is static, and whether it is trusted.
    pub(super) fn session(
        &mut self,
        now: Now,
        id: ConnectionId,
        negotiated: Negotiated,
        listed: (bool, bool),
    ) -> Option<(Arc<Session>, Arc<WakeSlot>)> {
        let connection = self.all.get_mut(&id)?;
        let Negotiated { public_key, hello, channels } = negotiated;
        let limits = channels.iter().map(|channel| ChannelLimits {
            offset: channel.offset,
            message_count: channel.message_count,
            max_message: channel.max_message,
        });
        connection.outbound.set_channels(limits, hello.has_snappy());
        connection.traffic.set_channels(channels.len());
        let remote = connection.remote;
        let session = Session {
            id,
            public_key,
            node_id: public_key.id(),
            enode: connection.enode.clone().unwrap_or_else(|| Enode::at(public_key, remote)),
            record: connection.record.take(),
            remote,
            local: connection.local,
            inbound: connection.inbound,
            dialed_as: connection.dialed_as,
            was_static: listed.0,
            was_trusted: listed.1,
            hello,
            channels,
            since: now.unix,
            outbound: Arc::clone(&connection.outbound),
            traffic: Arc::clone(&connection.traffic),
        };
        Some((Arc::new(session), Arc::clone(&connection.space)))
    }

    /// Notes that the connection is a session, and the inboxes of its channels.
    pub(super) fn opened(
        &mut self,
        session: &Arc<Session>,
        channels: Vec<OpenChannel>,
        sharers: Arc<Sharers>,
    ) {
        if let Some(connection) = self.all.get_mut(&session.id) {
            connection.stage = Stage::Open { session: Arc::clone(session), channels, sharers };
        }
    }

    /// Takes the channels of a session that ends. `None` for a connection without a session. If the session has ended
    /// already, it has no channels.
    pub(super) fn end_session(&mut self, id: ConnectionId) -> Option<(Arc<Session>, Vec<OpenChannel>)> {
        match &mut self.all.get_mut(&id)?.stage {
            Stage::Open { session, channels, .. } => Some((Arc::clone(session), std::mem::take(channels))),
            _ => None,
        }
    }

    /// Takes one registration's channels from all sessions. `only`: from this connection alone. `released` selects the
    /// channels.
    pub(super) fn release(
        &mut self,
        owner: RegistrationId,
        released: impl Fn(&SessionChannel) -> bool,
        only: Option<ConnectionId>,
    ) -> Released {
        let mut out = Released::default();
        for (id, connection) in &mut self.all {
            if only.is_some_and(|only| only != *id) {
                continue;
            }
            let Stage::Open { session, channels, sharers } = &mut connection.stage else { continue };
            let before = channels.len();
            let gone = channels.extract_if(.., |open| open.owner == owner && released(&open.channel));
            out.channels.extend(gone.map(|open| (Arc::clone(session), open)));
            if before > channels.len() {
                let owners: BTreeSet<_> = channels.iter().map(|open| open.owner).collect();
                // An application that is the only one left on a connection may hold it for its own stall limit again.
                sharers.set(owners.len());
            }
            if before > 0 && channels.is_empty() {
                out.useless.push(*id);
            }
        }
        out
    }

    /// Returns why a connection ends when another one of its node takes its place: by whose decision, and in words. A
    /// decision to end it that was made before stands.
    pub(super) fn replaced(&self, id: ConnectionId) -> (ClosedBy, Arc<str>) {
        let decided = self.all.get(&id).and_then(|connection| connection.closing.clone());
        decided.unwrap_or_else(|| (ClosedBy::Sidecar, "replaced by a second connection".into()))
    }

    /// Returns the registration that owns the inbox of a channel.
    pub(super) fn owner_of(&self, id: ConnectionId, channel: ChannelIndex) -> Option<RegistrationId> {
        let Stage::Open { channels, .. } = &self.all.get(&id)?.stage else { return None };
        channels.iter().find(|open| open.channel.index == channel).map(|open| open.owner)
    }

    /// Returns the number of registrations other than `owner` that have a channel on a session. One may have several.
    /// `None` without a session.
    pub(super) fn others_than(&self, owner: RegistrationId, id: ConnectionId) -> Option<usize> {
        let Stage::Open { channels, .. } = &self.all.get(&id)?.stage else { return None };
        let others = channels.iter().map(|open| open.owner).filter(|other| *other != owner);
        Some(others.collect::<BTreeSet<_>>().len())
    }

    /// Ends a connection: the messages that were accepted for it are written, then the reason. Returns true if the
    /// connection has no keys, so that nothing can be written. Then it is forgotten, and its driver has to abort it.
    pub(super) fn disconnect(
        &mut self,
        id: ConnectionId,
        reason: DisconnectReason,
        by: ClosedBy,
        detail: &str,
    ) -> bool {
        let Some(connection) = self.all.get_mut(&id) else { return false };
        connection.closing.get_or_insert((by, detail.into()));
        if matches!(connection.stage, Stage::Handshake) {
            self.all.remove(&id);
            return true;
        }
        connection.outbound.disconnect(reason);
        false
    }

    /// Notes that a checkpoint refused a connection. Returns the remote's address.
    pub(super) fn refuse(
        &mut self,
        id: ConnectionId,
        remote: PublicKey,
        refusal: Refusal,
    ) -> Option<SocketAddr> {
        let connection = self.all.get_mut(&id)?;
        connection.refused = Some((Some(remote), refusal));
        connection.closing.get_or_insert((ClosedBy::Sidecar, refusal.to_string().into()));
        Some(connection.remote)
    }

    /// Notes that the policy refused a connection after its checkpoint. Returns the remote's address if the connection
    /// is inbound and without keys: then it is aborted, and never reports its end.
    pub(super) fn refuse_later(&mut self, id: ConnectionId, refusal: Refusal) -> Option<SocketAddr> {
        let connection = self.all.get_mut(&id)?;
        connection.refused.get_or_insert((None, refusal));
        (connection.inbound && matches!(connection.stage, Stage::Handshake)).then_some(connection.remote)
    }

    /// Returns how a connection ended, from its driver's report and from our own decision.
    pub(super) fn ended(&self, id: ConnectionId, end: &End) -> Option<Ended> {
        let connection = self.all.get(&id)?;
        let established = matches!(connection.stage, Stage::Open { .. });
        let cause = cause::of_end(end, established);
        let (by, detail) = match (&connection.closing, end.by) {
            (Some((by, detail)), Side::Local) => (by.clone(), Arc::clone(detail)),
            (_, Side::Local) => (ClosedBy::Sidecar, Arc::from(end.detail.as_str())),
            (_, Side::Remote) => (ClosedBy::Remote, Arc::from(end.detail.as_str())),
        };
        let node = match &connection.stage {
            Stage::Greeted(public_key, _) => Some(*public_key),
            Stage::Parked(negotiated) => Some(negotiated.public_key),
            Stage::Handshake | Stage::Open { .. } => None,
        };
        // The policy reports failed dials, because it also knows those that never had a connection.
        let not_admitted = (connection.inbound && !established).then(|| RefusedInbound {
            remote: connection.remote,
            node: node.or(connection.refused.and_then(|(node, _)| node)),
            refusal: connection.refused.map(|(_, refusal)| refusal),
        });
        Some(Ended {
            cause,
            by,
            said: if detail.is_empty() { cause.to_string() } else { detail.to_string() },
            reason: end.reason.unwrap_or(DisconnectReason::NetworkError),
            reached_by: (end.proven && connection.inbound).then_some(connection.remote),
            not_admitted,
        })
    }

    /// Forgets a connection that has ended. Its queue refuses messages from now on, in every state of its driver.
    pub(super) fn forget(&mut self, id: ConnectionId) {
        if let Some(connection) = self.all.remove(&id) {
            connection.outbound.close();
        }
    }

    /// The numbers of all connections.
    pub(super) fn ids(&self) -> impl Iterator<Item = ConnectionId> {
        self.all.keys().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}
