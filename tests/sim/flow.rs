//! Back-pressure in virtual time: the real intake, keepalive and queues, between peers that behave like the known
//! implementations and applications that read fast, slowly, with pauses, or not at all.
//!
//! | file | what it is |
//! | --- | --- |
//! | `pipe` | one direction of a TCP connection |
//! | `peer` | the peers, and what each implementation tolerates |
//! | `sidecar` | our side of a connection |
//! | `application` | an inbox and its reader |
//! | `referee` | the clock of held time, implemented a second time |
//! | `world` | all of them in one virtual time, and the conditions that must hold |
//!
//! The other files are tests. RLPx is left out: no byte is encrypted here.

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
