//! The gRPC services: translate, authorise, stream.
//!
//! Nothing about peers is decided here, and no state lives here but open calls: requests become commands to the switch,
//! and what it answers becomes messages of the contract in `proto/`. Who may ask for what is decided here, before every
//! call: `server` admits connections, `access` admits calls.
//!
//! Left out: what a registration or a peer is (`switch`), and where the server listens (`app`).

pub mod access;
mod broadcast;
mod convert;
pub mod descriptors;
mod dial_filter;
pub mod discovery;
mod events;
mod exchange;
pub mod message;
pub mod node;
mod paging;
pub mod peer;
pub mod protocol;
mod reader;
mod receive;
mod registration;
pub mod server;
mod settings;
pub mod status;
mod talk;
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

/// Adds all services of the contract to `routes`.
pub fn add_services(
    routes: &mut tonic::service::RoutesBuilder,
    facts: node::NodeFacts,
    controls: node::Controls,
    discovery_handle: &crate::net::discovery::Discovery,
    handle: &crate::net::switch::Handle,
) {
    use access::methods::{MAX_MESSAGE_REQUEST, MAX_REGISTRATION, MAX_REQUEST};
    use proto::{
        discovery_service_server::DiscoveryServiceServer, message_service_server::MessageServiceServer,
        node_service_server::NodeServiceServer, peer_service_server::PeerServiceServer,
        protocol_service_server::ProtocolServiceServer,
    };
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

/// Who calls, as the gate found.
fn caller<T>(request: &tonic::Request<T>) -> access::Caller {
    let known = request.extensions().get::<access::Caller>().cloned();
    // Every call comes through the gate. One that did not is nobody's.
    known.unwrap_or_else(|| access::Caller { name: "nobody".into(), role: access::Role::Read, proven: false })
}

/// The caller as the switch knows it.
fn principal<T>(request: &tonic::Request<T>) -> crate::switch::Principal {
    caller(request).into()
}

impl From<access::Caller> for crate::switch::Principal {
    fn from(caller: access::Caller) -> Self {
        let access::Caller { name, role, proven } = caller;
        Self { name, proven, operator: proven && role == access::Role::Admin }
    }
}

/// A node of a request that may have to be dialed, in any of the four forms.
fn dialable_node(field: &str, text: &str) -> Result<crate::node::NodeRef, status::Refusal> {
    let node = node_ref(field, text)?;
    node.check_dialable().map_err(|error| status::Refusal::field(field, error))?;
    Ok(node)
}

/// A node of a request, in any of the four forms.
fn node_ref(field: &str, text: &str) -> Result<crate::node::NodeRef, status::Refusal> {
    if text.is_empty() {
        let problem = "is missing; a node id (64 hex digits), a public key (128), enode:// or enr:";
        return Err(status::Refusal::field(field, problem));
    }
    text.parse().map_err(|error| status::Refusal::field(field, error))
}
