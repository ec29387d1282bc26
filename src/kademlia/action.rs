//! The actions of an engine for its owner. Most of them are the same for both protocols; the rest is the type
//! parameter.

use std::net::{IpAddr, SocketAddr};

use super::{
    Contact, Event,
    query::{CallError, Ponged, QueryId},
};
use crate::node::NodeId;

/// What happened, or is wanted. The engine goes on whether or not its owner acts on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<Own> {
    /// A candidate that was wanted (`set_demand`). A discv4 node has answered us, and its record is there if it has
    /// one. The record of a discv5 node came from others, and the node itself was not asked.
    Discovered(Contact),
    /// A lookup learned of this node for the first time.
    LookupNode {
        /// The query.
        query: QueryId,
        /// The node.
        contact: Contact,
    },
    /// A lookup ended.
    LookupDone {
        /// The query.
        query: QueryId,
        /// The closest nodes that answered, at most 16, closest first.
        closest: Vec<Contact>,
    },
    /// A node was resolved or not.
    Resolved {
        /// The query.
        query: QueryId,
        /// The node with the newest address and record that were found.
        contact: Option<Contact>,
    },
    /// A ping was answered or not.
    PingResult {
        /// The query.
        query: QueryId,
        /// The node's answer.
        pong: Result<Ponged, CallError>,
    },
    /// A table node that we asked reported the address at which it sees us. One vote per subnet makes the local record
    /// (geth: 10 within 5 minutes).
    EndpointStatement {
        /// The node that reports it.
        by: NodeId,
        /// From where.
        from: IpAddr,
        /// Where it sees us.
        sees_us_at: SocketAddr,
    },
    /// A node passed a liveness check. The node database keeps those with more than 5 checks, as geth.
    Persist {
        /// The node.
        contact: Contact,
        /// How many checks it has passed.
        checks: u32,
    },
    /// Something happened in the table.
    Table(Event),
    /// A refresh begins: nodes from the database are welcome now (`add_seed`).
    SeedsWanted,
    /// Something that only this protocol has.
    Own(Own),
}
