//! The Kademlia table and lookup that discv4 and discv5 share.
//!
//! Both protocols keep the same table of nodes, check it the same way and search it the same way; they differ in how
//! a node is asked. So this room never speaks to anybody: the engines tell it what they saw, and it answers whom to
//! keep, whom to check next and whom to ask next. Reading order: [`distance`], [`contact`], [`table`] (with its parts
//! [`entry`], [`bucket`], [`subnets`], [`revalidation`]), [`lookup`], [`refresh`], [`walk`].
//! [`call`] says why a request of an engine was not made.
//!
//! Strangers choose their ids and addresses, and they push as fast as the line carries. Therefore no operation here
//! is linear in the number of strangers: a table never holds more than 17 × (16 + 10) of them, ids and subnets are
//! found in hash maps, and a lookup holds at most 48 candidates. Hash maps are never iterated where the order could
//! show: a seed reproduces a run exactly.
//!
//! Left out: packets and timeouts of requests (the engines), storage of nodes (`net`).

pub mod bucket;
pub mod call;
pub mod contact;
pub mod distance;
pub mod entry;
pub mod lookup;
pub mod refresh;
pub mod revalidation;
pub mod subnets;
pub mod table;
pub mod walk;

pub use bucket::Bucket;
pub use call::CallError;
pub use contact::{Contact, Source};
pub use entry::{Entry, Placement};
pub use lookup::Lookup;
pub use refresh::Refresh;
pub use table::{Event, Insert, Refusal, Removal, Table};
pub use walk::RandomWalk;
