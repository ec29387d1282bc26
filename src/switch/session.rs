//! One session: a connection to a peer after both Hellos, as everybody but its own task sees it.
//!
//! The facts are fixed when the session opens and shared by reference count; what moves is in [`Outbound`] and
//! [`Traffic`], which need no owner. So listing peers, answering a shell and sending a message cost the switch
//! nothing but handing out the reference.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::{
    lease::Capability,
    node::{Enode, NodeId, PublicKey, Record, RegistrationId},
    p2p::{
        ChannelIndex, ChannelTraffic, MESSAGE_COST, Outbound, RemoteHello, Traffic, session::ConnectionId,
    },
    policy::dial::Kind,
};

/// One shared capability of a session.
#[derive(Clone, Debug)]
pub struct SessionChannel {
    /// Its place in the session.
    pub index: ChannelIndex,
    /// The capability's name.
    pub name: Arc<str>,
    /// The version both sides use.
    pub version: u32,
    /// The code on the wire of its message 0.
    pub offset: u64,
    /// How many message codes it has.
    pub message_count: u64,
    /// The largest payload its owner allows either way, in bytes.
    pub max_message: usize,
    /// The registration that owned the name when our Hello was written. Nobody else ever gets this channel.
    pub owner: RegistrationId,
}

impl SessionChannel {
    /// Whether it is of this capability, by name and version.
    pub(super) fn is(&self, capability: &Capability) -> bool {
        self.name == capability.name && self.version == capability.version
    }
}

/// A connected peer.
#[derive(Debug)]
pub struct Session {
    /// The connection's number, which also numbers the session.
    pub id: ConnectionId,
    /// Who the peer is.
    pub public_key: PublicKey,
    /// The same, as everything but the wire names it.
    pub node_id: NodeId,
    /// The URL it was dialed by; for inbound peers the address it came from, which is not where it listens.
    pub enode: Enode,
    /// Its record, where discovery or the operator gave one.
    pub record: Option<Record>,
    /// The remote end of the socket.
    pub remote: SocketAddr,
    /// Our end of the socket.
    pub local: SocketAddr,
    /// Whether the peer dialed us.
    pub inbound: bool,
    /// Why we dialed it, if we did.
    pub dialed_as: Option<Kind>,
    /// Whether it was on the static list when the session opened.
    pub was_static: bool,
    /// Whether it was on the trusted list when the session opened.
    pub was_trusted: bool,
    /// What the peer said of itself.
    pub hello: Arc<RemoteHello>,
    /// The shared capabilities, in the order of their offsets.
    pub channels: Vec<SessionChannel>,
    /// Wall time at which the session opened.
    pub since: Duration,
    /// Messages on their way to the peer.
    pub outbound: Arc<Outbound>,
    /// What went over the connection.
    pub traffic: Arc<Traffic>,
}

impl Session {
    /// What went over one of its channels so far.
    #[must_use]
    pub fn channel_traffic(&self, channel: &SessionChannel) -> ChannelTraffic {
        let (messages_in, bytes_in) = self.traffic.received_on(channel.index);
        let progress = self.outbound.progress(channel.index);
        let lanes = [progress.stream, progress.call];
        let messages_out = lanes.iter().map(|lane| lane.written).sum::<u64>();
        let cost = lanes.iter().map(|lane| lane.written_cost).sum::<u64>();
        let bytes_out = cost.saturating_sub(messages_out * MESSAGE_COST);
        ChannelTraffic { messages_in, bytes_in, messages_out, bytes_out }
    }

    /// The channel of the capability with this name.
    #[must_use]
    pub fn channel(&self, name: &str) -> Option<&SessionChannel> {
        self.channels.iter().find(|channel| &*channel.name == name)
    }
}
