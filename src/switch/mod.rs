//! The switch: the one owner of peers and registrations, as an engine.
//!
//! It stands between peers and the applications that registered for their messages. Names are leased in
//! [`lease`](crate::lease), messages wait in [`delivery`](crate::delivery), `policy` decides about peers, and watchers
//! get copies through [`watch`](crate::watch). Events and calls go into [`Engine`], and [`Effect`]s come out. Messages
//! do not pass through the engine: the connection and the application's stream share the queues of a session.
//!
//! Each part owns its state, in the file that has its name:
//!
//! | module | what it is |
//! | --- | --- |
//! | [`engine`] | the steps that concern more than one part, and their order |
//! | [`config`], [`effect`] | the settings of the engine, and the orders to its driver |
//! | `connections` | a connection from accept or dial to its end: its stage, and why we close it |
//! | `sessions`, [`session`] | at most one session for each node, and the facts of one |
//! | [`registrations`], [`registration`] | the lease and the inbox of each, kept in step; one registration as callers see it |
//! | `shared`, [`attachment`], `channel`, `channel_inbox` | the state that streams and connections share; where a stream reads and sends; where a connection delivers |
//! | [`error`] | why a call is refused |
//! | `rehello` | reconnecting peers, so that they learn of a protocol |
//! | [`calls`] | callers that wait |
//! | [`peers`] | calls about peers |
//! | [`views`], [`metrics`] | the state that can be watched, and the numbers |
//! | [`losses`], `cause` | when the log reports losses, and why connections end |
//! | `log_ration` | how many log lines strangers may cause |
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
mod log_ration;
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
