//! The gRPC services: translate, authorise, stream.
//!
//! Nothing is decided here, and no state lives here but open streams: requests become commands to the switch, and
//! what it answers becomes messages of the contract in `proto/`.
//!
//! Left out: what a registration or a peer is (`switch`), and where the server listens (`app`).

mod broadcast;
mod convert;
pub mod descriptors;
mod dial_filter;
pub mod discovery;
mod events;
mod exchange;
pub mod incoming;
pub mod message;
pub mod node;
pub mod peer;
pub mod protocol;
mod reader;
mod receive;
mod registration;
pub mod server;
mod settings;
pub mod status;
mod talk;
pub mod unix_socket;
mod watch;

/// The contract as Rust: generated from `proto/devp2p/v1/` by `build.rs`.
pub mod proto {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
    tonic::include_proto!("devp2p.v1");
}

/// The error model of gRPC: generated from `proto/google/rpc/`.
pub mod google_rpc {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
    tonic::include_proto!("google.rpc");
}

/// The largest request in MessageService: one message of the largest size, and what frames it.
const MAX_MESSAGE_REQUEST: usize = 17 * 1024 * 1024 + 64 * 1024;

/// The largest request elsewhere.
const MAX_REQUEST: usize = 64 * 1024;

/// Adds all services of the contract to `routes`.
pub fn add_services(
    routes: &mut tonic::service::RoutesBuilder,
    facts: node::NodeFacts,
    controls: node::Controls,
    discovery_handle: &crate::net::discovery::Discovery,
    handle: &crate::switch::Handle,
) {
    use proto::{
        discovery_service_server::DiscoveryServiceServer, message_service_server::MessageServiceServer,
        node_service_server::NodeServiceServer, peer_service_server::PeerServiceServer,
        protocol_service_server::ProtocolServiceServer,
    };
    let node = node::Node::new(facts, controls, discovery_handle.clone(), handle.clone());
    let messages = MessageServiceServer::new(message::Messages::new(handle.clone()));
    // A registration carries greetings of up to 64 KiB for each protocol.
    let protocols = ProtocolServiceServer::new(protocol::Protocols::new(handle.clone()));
    let found =
        DiscoveryServiceServer::new(discovery::Nodes::new(discovery_handle.clone(), handle.boards().clone()));
    routes
        .add_service(found.max_decoding_message_size(MAX_REQUEST))
        .add_service(NodeServiceServer::new(node).max_decoding_message_size(MAX_REQUEST))
        .add_service(
            PeerServiceServer::new(peer::Peers::new(handle.clone())).max_decoding_message_size(MAX_REQUEST),
        )
        .add_service(protocols.max_decoding_message_size(16 * MAX_REQUEST))
        .add_service(messages.max_decoding_message_size(MAX_MESSAGE_REQUEST));
}

/// Who calls, as the connection tells.
fn principal<T>(request: &tonic::Request<T>) -> crate::switch::Principal {
    // Without connect info the request did not come over our listeners; then it is nobody's.
    let caller = request.extensions().get::<incoming::Principal>();
    crate::switch::Principal {
        name: caller.map_or_else(|| "nobody".into(), |caller| caller.name().into()),
        proven: matches!(caller, Some(incoming::Principal::Uid(_))),
    }
}

/// A node of a request, in any of the four forms.
fn node_ref(field: &str, text: &str) -> Result<crate::node::NodeRef, status::Refusal> {
    if text.is_empty() {
        let problem = "is missing; a node id (64 hex digits), a public key (128), enode:// or enr:";
        return Err(status::Refusal::field(field, problem));
    }
    text.parse().map_err(|error| status::Refusal::field(field, error))
}
