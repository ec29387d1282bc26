//! Integration tests: whole sidecars in this process, real sockets on loopback, real gRPC clients, and scripted peers
//! that lie.
//!
//! One binary, because each one links the whole crate. A module is a topic; `harness` holds shared helpers. Every
//! sidecar has a data directory of its own and ports that the system chose, so tests run side by side. No test sleeps
//! for a fixed time and hopes: it waits for an event, and fails after [`harness::PATIENCE`] if it does not come.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test may fail loudly"
)]

mod access;
mod answers;
mod bootnodes;
mod calls;
mod counters;
mod dialing;
mod discovery;
mod dribblers;
mod embedding;
mod endings;
mod forks;
mod harness;
mod http2;
mod leases;
mod liars;
mod lifecycle;
mod limits;
mod lists;
mod messages;
mod operating;
mod pages;
mod process;
mod refusals;
mod restarts;
mod settings;
mod talking;
mod watches;
