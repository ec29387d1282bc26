//! Values of the switch as messages of the contract, and back where that is one rule.
//!
//! What strangers wrote (client names, capability names) is cut and escaped here, once, before it reaches anybody's
//! terminal.

use std::time::Duration;

use prost_types::Timestamp;

use super::proto;
use crate::{
    node::Enode,
    p2p,
    switch::{
        Capability, PeerView,
        session::{Session, SessionChannel},
    },
};

/// Characters of a stranger's text that are passed on.
const MAX_TEXT: usize = 256;

/// A stranger's text as people may read it: control characters and the like escaped, cut to [`MAX_TEXT`].
pub(super) fn text(stranger: &str) -> String {
    let mut out = String::new();
    for character in stranger.chars().take(MAX_TEXT) {
        if character.is_control() || matches!(character, '\u{200e}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    out
}

/// Wall time since the epoch.
pub(super) fn timestamp(unix: Duration) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(unix.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(unix.subsec_nanos()).unwrap_or_default(),
    }
}

/// A disconnect reason: the wire's code plus one, so that 0 stays "unspecified".
pub(super) fn disconnect_reason(code: u8) -> proto::DisconnectReason {
    proto::DisconnectReason::try_from(i32::from(code) + 1).unwrap_or(proto::DisconnectReason::Unspecified)
}

/// The wire's code of a requested reason; `Requested` where none was named.
pub(super) fn wire_reason(reason: proto::DisconnectReason) -> p2p::DisconnectReason {
    let code = u8::try_from(reason as i32 - 1).unwrap_or(0);
    p2p::DisconnectReason::from_code(code)
}

pub(super) fn capability(capability: &Capability) -> proto::Capability {
    proto::Capability { name: capability.name.to_string(), version: capability.version }
}

fn channel(channel: &SessionChannel) -> proto::Capability {
    proto::Capability { name: channel.name.to_string(), version: channel.version }
}

/// An enode URL for a person: what a stranger could put into it is only a host name, which URLs escape.
pub(super) fn enode(enode: &Enode) -> String {
    enode.to_string()
}

/// A peer with what the lists say of it.
pub(super) fn peer(view: &PeerView) -> proto::Peer {
    let mut roles = Vec::new();
    if view.is_static {
        roles.push(proto::PeerRole::Static.into());
    }
    if view.is_trusted {
        roles.push(proto::PeerRole::Trusted.into());
    }
    proto::Peer { roles, ..session(&view.session) }
}

/// A peer as its session knows it, without roles.
pub(super) fn session(session: &Session) -> proto::Peer {
    proto::Peer {
        node_id: session.node_id.to_string(),
        public_key: session.public_key.to_string(),
        enode: enode(&session.enode),
        enr: session.record.as_ref().map(ToString::to_string).unwrap_or_default(),
        remote_address: session.remote.to_string(),
        local_address: session.local.to_string(),
        inbound: session.inbound,
        client_name: text(&session.hello.client),
        capabilities: session
            .hello
            .capabilities
            .iter()
            .map(|capability| proto::Capability { name: text(&capability.name), version: capability.version })
            .collect(),
        shared_capabilities: session.channels.iter().map(channel).collect(),
        roles: Vec::new(),
        connect_time: Some(timestamp(session.since)),
        session_id: session.id.0,
    }
}

/// What went over a session's connection.
pub(super) fn traffic(session: &Session) -> proto::PeerTraffic {
    let traffic = session.traffic.snapshot();
    let (messages, cost) = session.outbound.waiting();
    let duration = |duration| prost_types::Duration::try_from(duration).ok();
    proto::PeerTraffic {
        bytes_received: traffic.bytes_in,
        bytes_sent: traffic.bytes_out,
        messages_received: traffic.messages_in,
        messages_sent: traffic.messages_out,
        messages_waiting: messages as u64,
        bytes_waiting: cost,
        round_trip: traffic.round_trip.and_then(duration),
        stalled: duration(traffic.stalled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_do_not_write_on_the_terminal() {
        assert_eq!(text("Geth/v1.17.5"), "Geth/v1.17.5");
        assert_eq!(text("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\u{a}");
        assert_eq!(text("\u{202e}gnp.exe"), "\\u{202e}gnp.exe");
        assert_eq!(text(&"x".repeat(10_000)).len(), MAX_TEXT);
    }
}
