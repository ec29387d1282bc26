//! The Kademlia table and lookup that discv4 and discv5 share.
//!
//! Both protocols keep the same table of nodes, check it the same way and search it the same way; they differ in how a
//! node is asked. So this room sends nothing. The engines report what they received, and it decides which nodes to
//! keep, to check next and to ask next. Reading order: [`distance`], [`contact`], [`table`] (with its parts [`entry`],
//! [`bucket`], [`subnets`], [`revalidation`]), [`lookup`], [`refresh`], [`walk`], and [`searches`], which runs these
//! three; `silence`, the addresses that do not answer; [`overlay`], which keeps all of them in step for an engine.
//! [`protocol`], [`query`] and [`action`] are the shared vocabulary of both engines towards their owner.
//!
//! Strangers choose their ids and addresses, and they push as fast as the line carries. Therefore no operation here
//! is linear in the number of strangers: a table never holds more than 17 × (16 + 10) of them, ids and subnets are
//! found in hash maps, and a lookup holds at most 48 candidates. Hash maps are never iterated where the order could
//! show: a seed reproduces a run exactly.
//!
//! Left out: packets and timeouts of requests (the engines), storage of nodes (`net`).

pub mod action;
pub mod bucket;
pub mod contact;
pub mod distance;
pub mod entry;
pub mod lookup;
pub mod overlay;
pub mod protocol;
pub mod query;
pub mod refresh;
pub mod revalidation;
pub mod searches;
mod silence;
pub mod subnets;
pub mod table;
pub mod walk;

pub use action::Action;
pub use contact::{Contact, Source};
pub use entry::{Entry, Placement};
pub use lookup::Lookup;
pub use overlay::Overlay;
pub use protocol::Protocol;
pub use query::{CallError, Ponged, Query, QueryId, Target};
pub use refresh::Refresh;
pub use searches::Searches;
pub use table::{Event, Removal, Table};
pub use walk::RandomWalk;
