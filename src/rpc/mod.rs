//! The gRPC services: they authorise calls, translate requests and answers, and send streams.
//!
//! The services decide nothing about peers and keep no state except open calls. They turn requests into commands to the
//! switch, and its replies into messages of the contract in `proto/`. Access is decided here, before every call:
//! `server` admits connections, `access` admits calls.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`server`] | the HTTP/2 server: listeners, TLS, and limits for clients |
//! | [`access`] | the identity of a caller, and whether its role allows the call |
//! | [`services`] | one file for each service of the contract, and the parts that several services share |
//! | [`translate`] | values of the other rooms as messages of the contract, and back; errors as a status |
//!
//! `translate` uses none of the other three modules.
//!
//! Left out: what a registration or a peer is (`switch`), and where the server listens (`app`).

pub mod access;
pub mod server;
pub mod services;
pub mod translate;

pub use services::{add_services, descriptors, node};

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
