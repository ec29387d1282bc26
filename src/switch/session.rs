//! One session: a connection to a peer after both Hellos, as every part but its own task sees it.
//!
//! The facts are fixed when the session opens, and shared by reference count. The state that changes is in [`Outbound`]
//! and [`Traffic`], which need no owner. So to list peers or to send a message, the switch only hands out the
//! reference.

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
    /// The index of the channel in the session.
    pub index: ChannelIndex,
    /// The capability's name.
    pub name: Arc<str>,
    /// The version that both sides use.
    pub version: u32,
    /// The code on the wire of its first message (code 0).
    pub offset: u64,
    /// The number of its message codes.
    pub message_count: u64,
    /// The largest payload that its owner allows in either direction, in bytes.
    pub max_message: usize,
    /// The registration that owned the name when our Hello was written. No other registration ever gets this channel.
    pub owner: RegistrationId,
}

impl SessionChannel {
    /// Whether the channel has this capability, by name and version.
    pub(super) fn is(&self, capability: &Capability) -> bool {
        self.name == capability.name && self.version == capability.version
    }
}

/// A connected peer.
#[derive(Debug)]
pub struct Session {
    /// The connection's number, which also numbers the session.
    pub id: ConnectionId,
    /// The peer's key.
    pub public_key: PublicKey,
    /// The peer's node id, by which all but the wire names it.
    pub node_id: NodeId,
    /// The URL it was dialed by; for inbound peers the address it came from, which is not where it listens.
    pub enode: Enode,
    /// Its record, if discovery or the operator gave one.
    pub record: Option<Record>,
    /// The remote end of the socket.
    pub remote: SocketAddr,
    /// Our end of the socket.
    pub local: SocketAddr,
    /// Whether the peer dialed us.
    pub inbound: bool,
    /// Why we dialed it; `None` if it dialed us.
    pub dialed_as: Option<Kind>,
    /// Whether it was on the static list when the session opened.
    pub was_static: bool,
    /// Whether it was on the trusted list when the session opened.
    pub was_trusted: bool,
    /// The peer's Hello.
    pub hello: Arc<RemoteHello>,
    /// The shared capabilities, in the order of their offsets.
    pub channels: Vec<SessionChannel>,
    /// Wall time at which the session opened.
    pub since: Duration,
    /// The messages that wait to be written to the peer.
    pub outbound: Arc<Outbound>,
    /// The counters of the connection.
    pub traffic: Arc<Traffic>,
}

impl Session {
    /// Returns the traffic of one of its channels so far.
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

    /// Returns the channel of the capability with this name.
    #[must_use]
    pub fn channel(&self, name: &str) -> Option<&SessionChannel> {
        self.channels.iter().find(|channel| &*channel.name == name)
    }
}
