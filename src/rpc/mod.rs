//! The gRPC services: translate, authorise, stream.
//!
//! Nothing about peers is decided here, and no state lives here but open calls: requests become commands to the switch,
//! and what it answers becomes messages of the contract in `proto/`. Who may ask for what is decided here, before every
//! call: `server` admits connections, `access` admits calls.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`server`] | the HTTP/2 server: listeners, TLS, and how much clients may hold |
//! | [`access`] | who calls, and whether the role allows the call |
//! | [`services`] | one file for each service of the contract, and what several of them share |
//! | [`translate`] | values of the other rooms as messages of the contract, and back; errors as a status |
//!
//! `translate` uses none of the other three.
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
