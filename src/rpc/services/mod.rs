//! The services of the contract: one file for each of `proto/devp2p/v1/*_service.proto`.
//!
//! A service reads a request with [`translate`](super::translate), makes one call to the switch or to discovery, and
//! translates the result. It decides nothing about peers.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`node`] | NodeService: this sidecar, its record, its stop |
//! | `peer` | PeerService: connected peers, lists, bans, settings |
//! | `protocol` | ProtocolService: registrations |
//! | `message` | MessageService: streams and single messages |
//! | `discovery` | DiscoveryService: nodes that discovery knows |
//! | `caller` | the caller of a request, in the switch's terms |
//! | `watch` | the loop of all watches |
//! | `paging` | the pages of all lists |
//! | [`descriptors`] | reflection and health, which are defined by gRPC |

mod caller;
pub mod descriptors;
mod discovery;
mod message;
pub mod node;
mod paging;
mod peer;
mod protocol;
mod watch;

use tonic::service::RoutesBuilder;

use crate::{
    net::discovery::Discovery,
    net::switch::Handle,
    rpc::{
        access::methods::{MAX_MESSAGE_REQUEST, MAX_REGISTRATION, MAX_REQUEST},
        proto::{
            discovery_service_server::DiscoveryServiceServer, message_service_server::MessageServiceServer,
            node_service_server::NodeServiceServer, peer_service_server::PeerServiceServer,
            protocol_service_server::ProtocolServiceServer,
        },
    },
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
    // The gate refuses larger requests first, with a reason (`server::decoding`). The library has the same limits.
    let protocols = ProtocolServiceServer::new(protocol::Protocols::new(handle.clone()));
    let found = DiscoveryServiceServer::new(discovery::Nodes::new(
        discovery_handle.clone(),
        handle.watches().clone(),
    ));
    routes
        .add_service(found.max_decoding_message_size(MAX_REQUEST))
        .add_service(NodeServiceServer::new(node).max_decoding_message_size(MAX_REQUEST))
        .add_service(
            PeerServiceServer::new(peer::Peers::new(handle.clone())).max_decoding_message_size(MAX_REQUEST),
        )
        .add_service(protocols.max_decoding_message_size(MAX_REGISTRATION))
        .add_service(messages.max_decoding_message_size(MAX_MESSAGE_REQUEST));
}
