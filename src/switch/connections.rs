//! Connections as the switch knows them, from accept or dial to their end.
//!
//! ```text
//! begin ─▶ handshake ─▶ greeted ─▶ session
//!                          └─────▶ parked ─▶ session (or gone)
//! ```
//!
//! What our Hello offered is fixed when it is written, with the owners at that time: a name that changes hands later
//! never leads an old session's messages to a new owner.
//!
//! Left out: sockets and tasks (the driver's), which connections are wanted (`policy`), and the inboxes that a session's
//! channels lead to (`registrations`).

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
    delivery::{ChannelKey, ClosedBy},
    lease::Capability,
    node::{Enode, PublicKey, Record, RegistrationId},
    p2p::{
        self, Channel, ChannelIndex, ChannelLimits, DisconnectReason, LocalCapability, Outbound,
        OutboundBudget, RemoteHello, Side, Traffic,
        session::{ConnectionId, End, Role},
    },
    policy::{
        Cause, Refusal,
        dial::{Dial, Kind},
    },
};

/// A connection that is about to run: what its driver needs beside the socket.
pub struct Run {
    /// Its number.
    pub id: ConnectionId,
    /// Which side opened it.
    pub role: Role,
    /// For keys, nonces and padding of this connection.
    pub rng: StdRng,
    /// Messages to the peer.
    pub outbound: Arc<Outbound>,
    /// Counters.
    pub traffic: Arc<Traffic>,
    /// Woken when an inbox that the connection waits for has room. The driver fills it.
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
    /// The capability as our Hello says it.
    pub(super) fn local(&self) -> LocalCapability {
        let Capability { name, version, message_count } = self.capability.clone();
        LocalCapability { name, version, message_count }
    }
}

/// Both Hellos of a connection.
#[derive(Debug)]
pub(super) struct Negotiated {
    public_key: PublicKey,
    hello: Arc<RemoteHello>,
    channels: Vec<SessionChannel>,
}

impl Negotiated {
    /// Who the peer is.
    pub(super) fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// The shared capabilities, with their owners.
    pub(super) fn channels(&self) -> &[SessionChannel] {
        &self.channels
    }
}

/// A channel of a session that leads to an inbox.
#[derive(Clone, Debug)]
pub(super) struct OpenChannel {
    pub(super) owner: RegistrationId,
    pub(super) key: ChannelKey,
    pub(super) channel: SessionChannel,
}

/// How far a connection has come.
#[derive(Debug)]
enum Stage {
    /// It is not known who it is.
    Handshake,
    /// We know who it is, and offered these.
    Greeted(PublicKey, Vec<OfferedCapability>),
    /// Both Hellos are there; the node is a peer over another connection.
    Parked(Negotiated),
    /// A session.
    Open { session: Arc<Session>, channels: Vec<OpenChannel>, sharers: Arc<Sharers> },
}

#[derive(Debug)]
struct Connection {
    remote: SocketAddr,
    local: SocketAddr,
    inbound: bool,
    dialed_as: Option<Kind>,
    enode: Option<Enode>,
    /// What the node was offered with, until it is a peer.
    record: Option<Record>,
    outbound: Arc<Outbound>,
    traffic: Arc<Traffic>,
    space: Arc<WakeSlot>,
    stage: Stage,
    /// Why we are ending it, if we are.
    closing: Option<(ClosedBy, Arc<str>)>,
    /// The decision against it, and the node that it hit as far as that is known.
    refused: Option<(Option<PublicKey>, Refusal)>,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) cause: Cause,
    pub(super) by: ClosedBy,
    /// In words; never empty.
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

/// Channels of one registration that were taken from sessions.
#[derive(Debug, Default)]
pub(super) struct Released {
    pub(super) channels: Vec<(Arc<Session>, OpenChannel)>,
    /// Connections whose sessions lead nowhere any more.
    pub(super) useless: Vec<ConnectionId>,
}

/// All connections. See the [module](self).
#[derive(Debug)]
pub(super) struct Connections {
    all: BTreeMap<ConnectionId, Connection>,
    made: u64,
    budget: Arc<OutboundBudget>,
    rng: StdRng,
}

impl Connections {
    /// No connections. `rng` makes the generator of each.
    pub(super) fn new(rng: StdRng) -> Self {
        Self { all: BTreeMap::new(), made: 0, budget: Arc::default(), rng }
    }

    /// A number for a connection that is about to begin.
    pub(super) fn next_id(&mut self) -> ConnectionId {
        self.made += 1;
        ConnectionId(self.made)
    }

    /// A socket is connected. `dial`: by us.
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

    /// The remote is known, and our Hello offers this.
    pub(super) fn greeted(&mut self, id: ConnectionId, remote: PublicKey, offered: Vec<OfferedCapability>) {
        if let Some(connection) = self.all.get_mut(&id) {
            connection.stage = Stage::Greeted(remote, offered);
        }
    }

    /// Both Hellos are there: what is shared, and who owned it when our Hello was written. `None` for a connection that
    /// was never greeted.
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

    /// The connection waits behind the session of its node.
    pub(super) fn park(&mut self, id: ConnectionId, negotiated: Negotiated) {
        if let Some(connection) = self.all.get_mut(&id) {
            connection.stage = Stage::Parked(negotiated);
        }
    }

    /// Takes what was negotiated on a connection that waited.
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

    /// The session that the connection becomes, and what is woken when its inboxes have room. `listed`: whether the node
    /// is static, and whether it is trusted.
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

    /// The session's channels lead to inboxes from now on.
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

    /// Takes the channels of a session that ends. `None` for a connection without a session, or whose session has ended
    /// already.
    pub(super) fn end_session(&mut self, id: ConnectionId) -> Option<(Arc<Session>, Vec<OpenChannel>)> {
        match &mut self.all.get_mut(&id)?.stage {
            Stage::Open { session, channels, .. } => Some((Arc::clone(session), std::mem::take(channels))),
            _ => None,
        }
    }

    /// Takes one registration's channels from all sessions. `only`: from this connection alone.
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
                // An application that is left alone on a connection has its whole limit again.
                sharers.set(owners.len());
            }
            if before > 0 && channels.is_empty() {
                out.useless.push(*id);
            }
        }
        out
    }

    /// Why we are ending a connection, if we are: by whose decision, and in words.
    pub(super) fn closing(&self, id: ConnectionId) -> Option<(ClosedBy, Arc<str>)> {
        self.all.get(&id)?.closing.clone()
    }

    /// The registration whose inbox a channel leads to.
    pub(super) fn owner_of(&self, id: ConnectionId, channel: ChannelIndex) -> Option<RegistrationId> {
        let Stage::Open { channels, .. } = &self.all.get(&id)?.stage else { return None };
        channels.iter().find(|open| open.channel.index == channel).map(|open| open.owner)
    }

    /// How many registrations beside `owner` have a channel on a session. One may have several. `None` without a session.
    pub(super) fn others_than(&self, owner: RegistrationId, id: ConnectionId) -> Option<usize> {
        let Stage::Open { channels, .. } = &self.all.get(&id)?.stage else { return None };
        let others = channels.iter().map(|open| open.owner).filter(|other| *other != owner);
        Some(others.collect::<BTreeSet<_>>().len())
    }

    /// Ends a connection from here: what was accepted for it is flushed, then the reason is sent. Returns true if it has
    /// no keys, so that nothing could be written: it is forgotten, and its driver has to cut it.
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

    /// A checkpoint decided against a connection.
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

    /// The policy decided against a connection after its checkpoint. Returns the address of an inbound one without keys,
    /// which is cut and never reports its end.
    pub(super) fn refuse_later(&mut self, id: ConnectionId, refusal: Refusal) -> Option<SocketAddr> {
        let connection = self.all.get_mut(&id)?;
        connection.refused.get_or_insert((None, refusal));
        (connection.inbound && matches!(connection.stage, Stage::Handshake)).then_some(connection.remote)
    }

    /// How a connection ended, by what its driver reports and by what we had decided.
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
        // Dials that failed are told by the policy, which knows of those too that never had a connection.
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

    /// Forgets a connection that has ended. Its queue refuses from here on, whatever its driver did.
    pub(super) fn forget(&mut self, id: ConnectionId) {
        if let Some(connection) = self.all.remove(&id) {
            connection.outbound.close();
        }
    }

    /// All connections.
    pub(super) fn ids(&self) -> impl Iterator<Item = ConnectionId> {
        self.all.keys().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// What waits for all peers.
    pub(super) fn queued(&self) -> u64 {
        self.budget.used()
    }
}
