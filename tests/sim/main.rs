//! Whole networks in virtual time, in one process: engines of the library, connected by a simulated wire with delays,
//! losses and address translation. Every run has a seed: it can be repeated exactly, and a failure names its seed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail loudly"
)]

mod adversary;
mod discv4;
mod flow;
mod network;
mod notary;
mod sidecars;
mod wire;
