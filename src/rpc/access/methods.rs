//! The requirements of each call: the role of its caller, and the largest request.
//!
//! All calls are in one table, so that a reader sees them together. A test compares the table with the descriptors of
//! the contract, and fails for a declared call that is not in the table. At run time such a call needs the highest
//! role.

use super::Role;
use crate::rpc::services::descriptors;

/// The largest request in MessageService, in bytes: one message of the largest size, and 64 KiB for the other fields.
pub const MAX_MESSAGE_REQUEST: usize = 17 * 1024 * 1024 + 64 * 1024;

/// The largest request in the other services, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;

/// The largest request in ProtocolService, in bytes: a registration has a greeting of up to 64 KiB for each protocol.
pub const MAX_REGISTRATION: usize = 16 * MAX_REQUEST;

/// The requirements of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The lowest role that may make the call. `None`: every client may make it, without a credential.
    pub role: Option<Role>,
    /// The largest message of the request, in bytes.
    pub max_request: usize,
}

/// Methods by service. A call for a registration (its messages, its record entries) needs the role of applications
/// here; the service checks that the caller owns the registration.
const METHODS: [(&str, &[(&str, Role)]); 5] = [
    (
        "DiscoveryService",
        &[
            ("ListNodes", Role::Read),
            ("WatchNodes", Role::Read),
            // These send packets to other nodes.
            ("LookupNodes", Role::Protocol),
            ("ResolveNode", Role::Protocol),
            ("PingNode", Role::Protocol),
            ("TalkRequest", Role::Protocol),
            ("ServeTalk", Role::Protocol),
        ],
    ),
    (
        "MessageService",
        &[
            ("Exchange", Role::Protocol),
            ("ReceiveMessages", Role::Protocol),
            ("SendMessage", Role::Protocol),
            ("BroadcastMessage", Role::Protocol),
        ],
    ),
    (
        "NodeService",
        &[
            ("GetNodeInfo", Role::Read),
            // Entries of the operator need the role admin; the service checks that (`services::node`).
            ("SetRecordEntry", Role::Protocol),
            ("DeleteRecordEntry", Role::Protocol),
            ("AddBootnode", Role::Admin),
            ("Drain", Role::Admin),
            ("SetLogFilter", Role::Admin),
        ],
    ),
    (
        "PeerService",
        &[
            ("ListPeers", Role::Read),
            ("GetPeer", Role::Read),
            ("WatchPeers", Role::Read),
            ("DisconnectPeer", Role::Admin),
            ("AddStaticPeer", Role::Admin),
            ("RemoveStaticPeer", Role::Admin),
            ("ListStaticPeers", Role::Read),
            ("ConnectPeer", Role::Admin),
            ("AddTrustedPeer", Role::Admin),
            ("RemoveTrustedPeer", Role::Admin),
            ("ListTrustedPeers", Role::Read),
            ("BanPeer", Role::Admin),
            ("UnbanPeer", Role::Admin),
            ("ListBans", Role::Read),
            ("GetPeerSettings", Role::Read),
            ("UpdatePeerSettings", Role::Admin),
        ],
    ),
    (
        "ProtocolService",
        &[
            ("RegisterProtocols", Role::Protocol),
            ("UpdateRegistration", Role::Protocol),
            ("SetGreeting", Role::Protocol),
            ("RenewRegistration", Role::Protocol),
            ("DeleteRegistration", Role::Protocol),
            ("GetRegistration", Role::Read),
            ("ListRegistrations", Role::Read),
            ("WatchRegistrations", Role::Read),
        ],
    ),
];

/// Returns the requirements of the call with this path (`/package.Service/Method`).
///
/// Health and reflection need no role: probes and tools have no credentials, and neither service says anything about
/// peers. A path outside our package needs no role either, as no call exists there.
#[must_use]
pub fn needs(path: &str) -> Needs {
    let Some((service, method)) =
        path.strip_prefix('/').and_then(|path| path.strip_prefix(descriptors::PACKAGE)?.split_once('/'))
    else {
        return Needs { role: None, max_request: MAX_REQUEST };
    };
    let max_request = match service {
        "MessageService" => MAX_MESSAGE_REQUEST,
        "ProtocolService" => MAX_REGISTRATION,
        _ => MAX_REQUEST,
    };
    let methods = METHODS.iter().find(|(name, _)| *name == service).map(|(_, methods)| *methods);
    let listed = methods.and_then(|methods| methods.iter().find(|(name, _)| *name == method));
    Needs { role: Some(listed.map_or(Role::Admin, |(_, role)| *role)), max_request }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_call_of_the_contract_has_its_role() {
        let declared: BTreeSet<String> = descriptors::methods().collect();
        let listed: BTreeSet<String> = METHODS
            .iter()
            .flat_map(|(service, methods)| {
                methods.iter().map(move |(method, _)| format!("/devp2p.v1.{service}/{method}"))
            })
            .collect();
        assert!(declared.len() > 40, "{declared:?}");
        assert_eq!(declared, listed);
    }

    #[test]
    fn what_is_ours_and_unknown_needs_the_highest_role() {
        let of = |path| needs(path);
        assert_eq!(of("/devp2p.v1.PeerService/NewCall").role, Some(Role::Admin));
        assert_eq!(of("/devp2p.v1.NewService/Call").role, Some(Role::Admin));
        assert_eq!(
            of("/devp2p.v1.PeerService/ListPeers"),
            Needs { role: Some(Role::Read), max_request: 65_536 }
        );
        assert_eq!(of("/devp2p.v1.MessageService/SendMessage").max_request, MAX_MESSAGE_REQUEST);
        for open in ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/X", "", "/", "/x"]
        {
            assert_eq!(of(open).role, None, "{open}");
        }
    }
}
