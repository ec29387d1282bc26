//! The services of the contract: one file for each of `proto/devp2p/v1/*_service.proto`.
//!
//! A service reads a request with [`translate`](super::translate), asks one owner (the switch or discovery), and
//! translates the answer. It decides nothing about peers.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`node`] | NodeService: this sidecar, its record, how it stops |
//! | `peer` | PeerService: connected peers, lists, bans, settings |
//! | `protocol` | ProtocolService: registrations |
//! | `message` | MessageService: streams and single messages |
//! | `discovery` | DiscoveryService: nodes that discovery knows |
//! | `watch` | the loop behind all streams that watch |
//! | `paging` | the pages of all lists |
//! | [`descriptors`] | reflection and health, which are not ours |

pub mod descriptors;
mod discovery;
mod message;
pub mod node;
mod paging;
mod peer;
mod protocol;
mod watch;

use tonic::{Request, service::RoutesBuilder};

use crate::{
    net::discovery::Discovery,
    rpc::{
        access::{
            Caller, Role,
            methods::{MAX_MESSAGE_REQUEST, MAX_REGISTRATION, MAX_REQUEST},
        },
        proto::{
            discovery_service_server::DiscoveryServiceServer, message_service_server::MessageServiceServer,
            node_service_server::NodeServiceServer, peer_service_server::PeerServiceServer,
            protocol_service_server::ProtocolServiceServer,
        },
    },
    switch::{Handle, Principal},
};

/// Adds all services of the contract to `routes`.
pub fn add_services(
    routes: &mut RoutesBuilder,
    facts: node::NodeFacts,
    controls: node::Controls,
    discovery_handle: &Discovery,
    handle: &Handle,
) {
    let node = node::Node::new(facts, controls, discovery_handle.clone(), handle.clone());
    let messages = MessageServiceServer::new(message::Messages::new(handle.clone()));
    // The gate refuses larger ones first, with a reason (`server::decoding`); the library keeps the same limits.
    let protocols = ProtocolServiceServer::new(protocol::Protocols::new(handle.clone()));
    let found =
        DiscoveryServiceServer::new(discovery::Nodes::new(discovery_handle.clone(), handle.boards().clone()));
    routes
        .add_service(found.max_decoding_message_size(MAX_REQUEST))
        .add_service(NodeServiceServer::new(node).max_decoding_message_size(MAX_REQUEST))
        .add_service(
            PeerServiceServer::new(peer::Peers::new(handle.clone())).max_decoding_message_size(MAX_REQUEST),
        )
        .add_service(protocols.max_decoding_message_size(MAX_REGISTRATION))
        .add_service(messages.max_decoding_message_size(MAX_MESSAGE_REQUEST));
}

/// Returns the caller that the gate identified.
fn caller<T>(request: &Request<T>) -> Caller {
    let known = request.extensions().get::<Caller>().cloned();
    // Every call comes through the gate. A call that did not would have the least rights.
    known.unwrap_or_else(|| Caller { name: "nobody".into(), role: Role::Read, proven: false })
}

/// Returns the caller in the switch's terms.
fn principal<T>(request: &Request<T>) -> Principal {
    caller(request).into()
}

impl From<Caller> for Principal {
    fn from(caller: Caller) -> Self {
        let Caller { name, role, proven } = caller;
        Self { name, proven, operator: proven && role == Role::Admin }
    }
}
