//! Back-pressure in virtual time: the real intake, keepalive and queues between peers that behave as their
//! implementations do and applications that read fast, slowly, in fits or not at all.
//!
//! | file | what it is |
//! | --- | --- |
//! | `pipe` | one direction of a TCP connection |
//! | `peer` | the peers: what each of them tolerates |
//! | `sidecar` | our side of a connection |
//! | `application` | an inbox and who reads it |
//! | `referee` | the clock of holding, written a second time |
//! | `world` | all of them in one time, and what must be true |
//!
//! The rest are tests. RLPx is left out: no byte is encrypted here.

mod application;
mod late;
mod limits;
mod peer;
mod pipe;
mod random;
mod readers;
mod referee;
mod sidecar;
mod world;
