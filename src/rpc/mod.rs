//! The gRPC services: translate, authorise, stream.
//!
//! Nothing is decided here, and no state lives here but open streams: requests become commands to the switch, and
//! what it answers becomes messages of the contract in `proto/`.
//!
//! Left out: what a registration or a peer is (`switch`), and where the server listens (`app`).

pub mod descriptors;
pub mod incoming;
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
