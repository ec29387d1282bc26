//! The lists that operators keep: static and trusted peers, and bans.

use std::{net::IpAddr, time::Duration};

use super::{
    peer,
    status::ErrorStatus,
    value::{node_ref, text, timestamp},
};
use crate::{
    node::network,
    policy::{
        Ban, BanTarget,
        dial::{EntryState, LastError, ListEntry, ListSource},
    },
    rpc::proto,
};

fn peer_error(error: &LastError) -> proto::PeerError {
    proto::PeerError {
        time: Some(timestamp(error.time)),
        reason: peer::cause(error.cause).into(),
        detail: text(&error.detail),
    }
}

/// Translates the state of an entry: the state, its start (wall time) where that is known, and a sentence or nothing.
fn state(entry: &ListEntry) -> (proto::StaticPeerState, Option<Duration>, String) {
    use proto::StaticPeerState as S;
    match entry.state {
        EntryState::Connected { since, inbound } => {
            let how = if inbound { "the peer dialed us" } else { "we dialed the peer" };
            (S::Connected, Some(since), how.to_owned())
        }
        EntryState::Dialing { since } => (S::Dialing, Some(since), String::new()),
        EntryState::Resolving => (S::Resolving, None, "discovery looks for the address".to_owned()),
        EntryState::BackingOff { .. } => {
            (S::BackingOff, None, "see last_error and next_dial_time".to_owned())
        }
        EntryState::WaitingForProtocol => {
            (S::WaitingForProtocol, None, "dialed as soon as a protocol is registered".to_owned())
        }
        EntryState::WaitingForSlot => {
            (S::WaitingForSlot, None, "dialed as soon as fewer dials are in progress".to_owned())
        }
        EntryState::Refused(refusal) => (S::Refused, None, refusal.to_string()),
    }
}

fn entry_source(source: Option<ListSource>) -> proto::EntrySource {
    match source {
        Some(ListSource::Config) => proto::EntrySource::Config,
        Some(ListSource::Call) => proto::EntrySource::Call,
        None => proto::EntrySource::Unspecified,
    }
}

/// Translates an entry of the static list.
pub(in crate::rpc) fn static_peer(entry: &ListEntry) -> proto::StaticPeer {
    let (state, since, detail) = state(entry);
    proto::StaticPeer {
        enode: entry.enode.as_ref().map(ToString::to_string).unwrap_or_default(),
        node_id: entry.id.to_string(),
        state: state.into(),
        since: since.map(timestamp),
        detail,
        last_error: entry.last_error.as_ref().map(peer_error),
        next_dial_time: entry.next_dial.map(timestamp),
        source: entry_source(entry.as_static).into(),
    }
}

/// Translates an entry of the trusted list.
pub(in crate::rpc) fn trusted_peer(entry: &ListEntry) -> proto::TrustedPeer {
    let proto::StaticPeer { enode, node_id, state, since, detail, last_error, next_dial_time, .. } =
        static_peer(entry);
    let source = entry_source(entry.as_trusted).into();
    proto::TrustedPeer { enode, node_id, state, since, detail, last_error, next_dial_time, source }
}

/// Translates a ban.
pub(in crate::rpc) fn ban(ban: &Ban) -> proto::Ban {
    proto::Ban {
        target: ban.target.to_string(),
        expire_time: Some(timestamp(ban.until)),
        reason: text(&ban.reason),
    }
}

/// Reads the target of a ban that is a node.
pub(in crate::rpc) fn target_node(text: &str) -> Result<BanTarget, ErrorStatus> {
    Ok(BanTarget::Node(node_ref("node", text)?.id()))
}

/// Reads the target of a ban that is an address.
pub(in crate::rpc) fn target_ip(text: &str) -> Result<BanTarget, ErrorStatus> {
    let ip: IpAddr = text
        .parse()
        .map_err(|_| ErrorStatus::field("ip", "is not an IP address; write for example 203.0.113.7"))?;
    Ok(BanTarget::ip(ip))
}

/// Reads the target of a ban that is a network.
pub(in crate::rpc) fn target_subnet(text: &str) -> Result<BanTarget, ErrorStatus> {
    let net = network::parse(text).map_err(|error| ErrorStatus::field("subnet", error))?;
    Ok(BanTarget::net(net))
}

/// Returns the refusal of a ban without a target.
pub(in crate::rpc) fn no_target() -> ErrorStatus {
    ErrorStatus::field("target", "is missing; name a node, an ip or a subnet")
}
