//! The switch: the one owner of peers and registrations, as an engine.
//!
//! It stands between peers and the applications that registered for their messages. Names are leased in
//! [`lease`](crate::lease), messages wait in [`delivery`](crate::delivery), `policy` decides about peers, and watchers see
//! copies by [`watch`](crate::watch). Events and calls go into [`Engine`], [`Effect`]s come out. Messages do not pass it:
//! a session's queues are shared by the connection and the application's stream.
//!
//! Each part owns its state, in the file that bears its name:
//!
//! | module | what it is |
//! | --- | --- |
//! | [`engine`] | what concerns more than one part, and the order of business |
//! | [`config`], [`effect`] | what the engine is made with, and what it wants done |
//! | `connections` | from accept or dial to the end: stages, parked ones, why one is closed |
//! | `sessions`, [`session`] | at most one session for each node, and the facts of one |
//! | [`registrations`], [`registration`] | lease, inbox and the policy's number of each, in step; one as callers see it |
//! | `shared`, [`attachment`], `channel`, `channel_inbox` | what streams and connections share; where a stream reads and sends, and where a connection delivers |
//! | [`error`] | why a call is refused |
//! | `rehello` | reconnecting peers, so that they learn of a protocol |
//! | [`calls`] | callers that wait |
//! | [`peers`] | calls about peers |
//! | [`views`], [`metrics`] | what watchers see, and the numbers |
//! | [`losses`], `cause` | when the log tells of losses, and why connections end |
//!
//! Left out: sockets, tasks and reply channels ([`net::switch`](crate::net::switch)).

pub mod attachment;
pub mod calls;
mod cause;
mod channel;
mod channel_inbox;
pub mod config;
mod connections;
pub mod effect;
pub mod engine;
pub mod error;
pub mod losses;
pub mod metrics;
pub mod peers;
pub mod registration;
pub mod registrations;
mod rehello;
pub mod session;
mod sessions;
mod shared;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod views;

pub use calls::{Answer, CallId};
pub use config::Config;
pub use connections::Run;
pub use effect::{Effect, LogLine};
pub use engine::Engine;
pub use peers::PeerView;
pub use registration::Principal;
