//! Whole networks in virtual time, in one process: engines of the library, connected by a wire that delays, loses and
//! translates. Seeded: a run can be repeated exactly, and a failure names the seed.

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
