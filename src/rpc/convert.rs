//! Values of the switch as messages of the contract, and back where that is one rule.
//!
//! What strangers wrote (client names, capability names) is cut and escaped here, once, before it reaches anybody's
//! terminal.

use std::time::Duration;

use prost_types::Timestamp;

use super::proto;
use crate::delivery::ClosedBy;
use crate::{
    node::Enode,
    p2p,
    policy::{
        Cause,
        dial::{Kind, Source},
    },
    switch::{
        PeerView,
        session::{Session, SessionChannel},
        views::{Attempt, GonePeer, PeerEnd, What, WhyNot, reason_name},
    },
    watch::Missed,
};

/// Characters of a stranger's text that are passed on.
const MAX_TEXT: usize = 256;

/// The same in lists, where many strangers stand: a client's name, and the name of a capability.
const MAX_LISTED_CLIENT: usize = 128;
const MAX_LISTED_CAPABILITY: usize = 32;

/// A stranger's text as people may read it: control characters and the like escaped, cut to [`MAX_TEXT`].
pub(super) fn text(stranger: &str) -> String {
    text_up_to(MAX_TEXT, stranger)
}

fn text_up_to(characters: usize, stranger: &str) -> String {
    let mut out = String::new();
    for character in stranger.chars().take(characters) {
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

pub(super) fn capability(channel: &SessionChannel) -> proto::Capability {
    proto::Capability { name: channel.name.to_string(), version: channel.version }
}

/// An enode URL for a person: what a stranger could put into it is only a host name, which URLs escape.
pub(super) fn enode(enode: &Enode) -> String {
    enode.to_string()
}

/// A peer with what the lists say of it.
pub(super) fn peer(view: &PeerView) -> proto::Peer {
    proto::Peer { roles: roles(view.is_static, view.is_trusted), ..session(&view.session) }
}

/// The same for a list, where what strangers wrote is cut shorter: a list of peers with the longest Hellos stays short.
pub(super) fn listed_peer(view: &PeerView) -> proto::Peer {
    let hello = &view.session.hello;
    let capabilities = hello.capabilities.iter().map(|capability| proto::Capability {
        name: text_up_to(MAX_LISTED_CAPABILITY, &capability.name),
        version: capability.version,
    });
    let client_name = text_up_to(MAX_LISTED_CLIENT, &hello.client);
    proto::Peer { client_name, capabilities: capabilities.collect(), ..peer(view) }
}

fn roles(is_static: bool, is_trusted: bool) -> Vec<i32> {
    let mut roles = Vec::new();
    if is_static {
        roles.push(proto::PeerRole::Static.into());
    }
    if is_trusted {
        roles.push(proto::PeerRole::Trusted.into());
    }
    roles
}

/// A peer that went, as far as it is remembered.
pub(super) fn gone_peer(gone: &GonePeer) -> proto::Peer {
    proto::Peer {
        node_id: gone.node_id.to_string(),
        public_key: gone.enode.public_key.to_string(),
        enode: enode(&gone.enode),
        enr: String::new(),
        remote_address: gone.remote.to_string(),
        local_address: gone.local.to_string(),
        source: gone.dialed_as.map_or(proto::PeerSource::Inbound, peer_source).into(),
        inbound: gone.inbound,
        client_name: text(&gone.client),
        capabilities: Vec::new(),
        shared_capabilities: Vec::new(),
        roles: roles(gone.is_static, gone.is_trusted),
        connect_time: Some(timestamp(gone.since)),
        session_id: gone.session.0,
    }
}

/// A peer as its session knows it, with the roles that it had when the session opened.
pub(super) fn session(session: &Session) -> proto::Peer {
    proto::Peer {
        node_id: session.node_id.to_string(),
        public_key: session.public_key.to_string(),
        enode: enode(&session.enode),
        enr: session.record.as_ref().map(ToString::to_string).unwrap_or_default(),
        remote_address: session.remote.to_string(),
        local_address: session.local.to_string(),
        source: session.dialed_as.map_or(proto::PeerSource::Inbound, peer_source).into(),
        inbound: session.inbound,
        client_name: text(&session.hello.client),
        capabilities: session
            .hello
            .capabilities
            .iter()
            .map(|capability| proto::Capability { name: text(&capability.name), version: capability.version })
            .collect(),
        shared_capabilities: session.channels.iter().map(capability).collect(),
        roles: roles(session.was_static, session.was_trusted),
        connect_time: Some(timestamp(session.since)),
        session_id: session.id.0,
    }
}

/// Why we dialed a peer.
fn peer_source(kind: Kind) -> proto::PeerSource {
    match kind {
        Kind::Static => proto::PeerSource::Static,
        Kind::Trusted => proto::PeerSource::Trusted,
        Kind::OneOff => proto::PeerSource::Call,
        Kind::Dynamic(Source::V4) => proto::PeerSource::Discv4,
        Kind::Dynamic(Source::V5) => proto::PeerSource::Discv5,
        Kind::Dynamic(Source::Dns) => proto::PeerSource::Dns,
        Kind::Dynamic(Source::Database) => proto::PeerSource::Database,
    }
}

/// Why a dial failed or a connection ended.
pub(super) fn cause(cause: Cause) -> proto::PeerErrorReason {
    use proto::PeerErrorReason as R;
    match cause {
        Cause::Unreachable => R::Unreachable,
        Cause::NameUnknown => R::NameUnknown,
        Cause::AddressRefused => R::AddressRefused,
        Cause::NotFound => R::NotFound,
        Cause::HungUp => R::HungUp,
        Cause::Silent => R::Silent,
        Cause::Garbled => R::Garbled,
        Cause::WrongIdentity => R::WrongIdentity,
        Cause::TooManyPeers => R::TooManyPeers,
        Cause::AlreadyConnected => R::AlreadyConnected,
        Cause::UselessPeer => R::UselessPeer,
        Cause::Breach => R::Breach,
        Cause::Requested => R::Requested,
        Cause::Quitting => R::Quitting,
        Cause::LinkLost => R::LinkLost,
        Cause::LocalPolicy => R::LocalPolicy,
        Cause::Operator => R::Operator,
        Cause::LocalFault => R::LocalFault,
    }
}

/// Who closed something, by the names of the contract.
pub(super) fn closed_by(by: &ClosedBy) -> String {
    match by {
        ClosedBy::Remote => "remote".to_owned(),
        ClosedBy::Sidecar => "sidecar".to_owned(),
        ClosedBy::Operator => "operator".to_owned(),
        ClosedBy::Client(client) => client.to_string(),
    }
}

/// How a session ended.
pub(super) fn peer_end(end: &PeerEnd) -> proto::PeerEnd {
    proto::PeerEnd {
        time: Some(timestamp(end.time)),
        reason: disconnect_reason(end.reason.code()).into(),
        closed_by: closed_by(&end.by),
        detail: text(&end.detail),
    }
}

/// An attempt that came to nothing.
pub(super) fn attempt(attempt: &Attempt) -> proto::FailedAttempt {
    use proto::failed_attempt::Attempt as A;
    let what = match &attempt.what {
        What::Dial { id, addr, kind, cause: why } => A::Dial(proto::FailedDial {
            node_id: id.to_string(),
            address: addr.map(|addr| addr.to_string()).unwrap_or_default(),
            source: peer_source(*kind).into(),
            reason: cause(*why).into(),
        }),
        What::Inbound { remote, id, why } => A::Inbound(proto::RefusedConnection {
            remote_address: remote.to_string(),
            node_id: id.map(|id| id.to_string()).unwrap_or_default(),
            failure: match why {
                WhyNot::Failed(why) => cause(*why).into(),
                WhyNot::Refused(_) => proto::PeerErrorReason::Unspecified.into(),
            },
            refusal: match why {
                WhyNot::Refused(refusal) => refusal.name().to_owned(),
                WhyNot::Failed(_) => String::new(),
            },
        }),
    };
    proto::FailedAttempt {
        time: Some(timestamp(attempt.time)),
        attempt: Some(what),
        detail: text(&attempt.detail),
    }
}

/// Attempts that a watch was not told of.
pub(super) fn missed(missed: Missed) -> proto::MissedAttempts {
    let (inbound, reason) = reason_name(missed.reason);
    proto::MissedAttempts { reason: reason.to_owned(), inbound, count: missed.count }
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
        hold: traffic.hold.map(|hold| proto::ConnectionHold {
            capability: session.channels.get(usize::from(hold.channel.0)).map(capability),
            start_time: Some(timestamp(hold.since)),
            messages: hold.messages,
            bytes: hold.bytes,
        }),
        capabilities: session
            .channels
            .iter()
            .map(|used| {
                let traffic = session.channel_traffic(used);
                proto::CapabilityTraffic {
                    capability: Some(capability(used)),
                    messages_received: traffic.messages_in,
                    bytes_received: traffic.bytes_in,
                    messages_sent: traffic.messages_out,
                    bytes_sent: traffic.bytes_out,
                }
            })
            .collect(),
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
