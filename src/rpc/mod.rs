//! The gRPC services: translate, authorise, stream.
//!
//! Nothing is decided here, and no state lives here but open streams: requests become commands to the switch, and
//! what it answers becomes messages of the contract in `proto/`.
//!
//! Left out: what a registration or a peer is (`switch`), and where the server listens (`app`).

mod convert;
pub mod descriptors;
mod exchange;
pub mod incoming;
pub mod message;
pub mod node;
pub mod peer;
pub mod protocol;
mod registration;
pub mod server;
pub mod status;

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
