//! Peers, failed attempts to connect, and the traffic of connections.

use super::value::{disconnect_reason, text, text_up_to, timestamp};
use crate::delivery::ClosedBy;
use crate::{
    node::Enode,
    policy::{
        Cause,
        dial::{Kind, Source},
    },
    rpc::proto,
    switch::{
        PeerView,
        session::{Session, SessionChannel},
        views::{Attempt, FailedAttempt, GonePeer, NotAdmitted, PeerEnd, reason_name},
    },
    watch::Missed,
};

/// The most characters of a client's name and of a capability's name in lists: a list may hold thousands of peers.
const MAX_LISTED_CLIENT: usize = 128;
const MAX_LISTED_CAPABILITY: usize = 32;

pub(in crate::rpc) fn capability(channel: &SessionChannel) -> proto::Capability {
    proto::Capability { name: channel.name.to_string(), version: channel.version }
}

/// Writes an enode URL. The only text in it that another node can choose is a host name, which URLs escape.
pub(in crate::rpc) fn enode(enode: &Enode) -> String {
    enode.to_string()
}

/// Translates a peer, with its current roles.
pub(in crate::rpc) fn peer(view: &PeerView) -> proto::Peer {
    proto::Peer { roles: roles(view.is_static, view.is_trusted), ..session(&view.session) }
}

/// Translates a peer for a list. Texts from the peer are cut shorter there, so that a page holds many peers even if all
/// have long Hellos.
pub(in crate::rpc) fn listed_peer(view: &PeerView) -> proto::Peer {
    let hello = &view.session.hello;
    let capabilities = hello.capabilities.iter().map(|capability| (&*capability.name, capability.version));
    let (client_name, capabilities) = listed_texts(&hello.client, capabilities);
    proto::Peer { client_name, capabilities, ..peer(view) }
}

/// Cuts the texts of a Hello for a list: the name of the client, and the names of the capabilities.
fn listed_texts<'a>(
    client: &str,
    capabilities: impl Iterator<Item = (&'a str, u32)>,
) -> (String, Vec<proto::Capability>) {
    let cut = |(name, version)| proto::Capability { name: text_up_to(MAX_LISTED_CAPABILITY, name), version };
    (text_up_to(MAX_LISTED_CLIENT, client), capabilities.map(cut).collect())
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

/// Translates a peer whose session has ended, from what its view still holds: no record and no capabilities.
pub(in crate::rpc) fn gone_peer(gone: &GonePeer) -> proto::Peer {
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
        transport: crate::p2p::wire::TRANSPORT.to_owned(),
    }
}

/// Translates a session, with the roles that the peer had when the session opened.
pub(in crate::rpc) fn session(session: &Session) -> proto::Peer {
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
        transport: crate::p2p::wire::TRANSPORT.to_owned(),
    }
}

/// Translates why we dialed a peer.
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

/// Translates why a dial failed or a connection ended.
pub(in crate::rpc) fn cause(cause: Cause) -> proto::PeerErrorReason {
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

/// Translates which side closed a session or a channel: `remote`, `sidecar`, `operator`, or an application's client id.
pub(in crate::rpc) fn closed_by(by: &ClosedBy) -> String {
    match by {
        ClosedBy::Remote => "remote".to_owned(),
        ClosedBy::Sidecar => "sidecar".to_owned(),
        ClosedBy::Operator => "operator".to_owned(),
        ClosedBy::Client(client) => client.to_string(),
    }
}

/// Translates how a session ended.
pub(in crate::rpc) fn peer_end(end: &PeerEnd) -> proto::PeerEnd {
    proto::PeerEnd {
        time: Some(timestamp(end.time)),
        reason: disconnect_reason(end.reason.code()).into(),
        closed_by: closed_by(&end.by),
        detail: text(&end.detail),
    }
}

/// Translates a dial or an inbound connection that did not become a session.
pub(in crate::rpc) fn attempt(attempt: &FailedAttempt) -> proto::FailedAttempt {
    use proto::failed_attempt::Attempt as A;
    let kind = match &attempt.attempt {
        Attempt::Dial { id, addr, kind, cause: why } => A::Dial(proto::FailedDial {
            node_id: id.to_string(),
            address: addr.map(|addr| addr.to_string()).unwrap_or_default(),
            source: peer_source(*kind).into(),
            reason: cause(*why).into(),
        }),
        Attempt::Inbound { remote, id, why } => A::Inbound(proto::RefusedConnection {
            remote_address: remote.to_string(),
            node_id: id.map(|id| id.to_string()).unwrap_or_default(),
            failure: match why {
                NotAdmitted::Failed(why) => cause(*why).into(),
                NotAdmitted::Refused(_) => proto::PeerErrorReason::Unspecified.into(),
            },
            refusal: match why {
                NotAdmitted::Refused(refusal) => refusal.name().to_owned(),
                NotAdmitted::Failed(_) => String::new(),
            },
        }),
    };
    proto::FailedAttempt {
        time: Some(timestamp(attempt.time)),
        attempt: Some(kind),
        detail: text(&attempt.detail),
    }
}

/// Translates the number of failed attempts of one kind that a watch did not receive.
pub(in crate::rpc) fn missed(missed: Missed) -> proto::MissedAttempts {
    let (inbound, reason) = reason_name(missed.reason);
    proto::MissedAttempts { reason: reason.to_owned(), inbound, count: missed.count }
}

/// Translates the counters of a session's connection.
pub(in crate::rpc) fn traffic(session: &Session) -> proto::PeerTraffic {
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
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_cause_has_a_reason_of_its_own_under_the_same_name() {
        let mut told = BTreeSet::new();
        for one in Cause::ALL {
            let reason = cause(one);
            let name = format!("PEER_ERROR_REASON_{}", one.name().to_uppercase());
            assert_eq!(reason.as_str_name(), name, "{one:?}");
            assert!(told.insert(i32::from(reason)), "{one:?}");
        }
    }

    #[test]
    fn texts_of_strangers_are_cut_in_lists() {
        let (client, name) = ("c".repeat(256), "n".repeat(64));
        let (client_name, capabilities) =
            listed_texts(&client, [(name.as_str(), 1), ("eth", 69)].into_iter());
        assert!(client_name.len() <= MAX_LISTED_CLIENT + 3, "{client_name}");
        assert!(capabilities[0].name.len() <= MAX_LISTED_CAPABILITY + 3, "{}", capabilities[0].name);
        assert_eq!((capabilities[1].name.as_str(), capabilities[1].version), ("eth", 69));
    }

    #[test]
    fn each_way_to_a_peer_has_a_source_of_its_own() {
        let sources = [Source::V4, Source::V5, Source::Dns, Source::Database].map(Kind::Dynamic);
        let kinds = [Kind::Static, Kind::Trusted, Kind::OneOff].into_iter().chain(sources);
        let told: BTreeSet<i32> = kinds.map(|kind| peer_source(kind).into()).collect();
        assert_eq!(told.len(), 7);
        for nobody_dialed in [proto::PeerSource::Unspecified, proto::PeerSource::Inbound] {
            assert!(!told.contains(&nobody_dialed.into()));
        }
    }
}
