//! What the engine tells its owner: [`Action`]. What its owner gives it: [`Config`], [`Local`], [`QueryId`].

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use super::limits::Rates;
use crate::{
    kademlia::{Contact, Event},
    node::{Endpoint, NodeId, Record},
};

/// Names a query in the actions that answer it. The owner chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueryId(pub u64);

/// What does not change while the engine runs.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The only networks that we speak with, and that the table takes nodes of (`--netrestrict`); empty means all.
    pub restrict: Vec<IpNet>,
    /// Whom to ask first, at every refresh.
    pub bootnodes: Vec<Contact>,
    /// How many packets strangers and proven nodes may make us check.
    pub rates: Rates,
}

/// Ourselves, as we tell others.
#[derive(Clone, Debug)]
pub struct Local {
    /// Where we believe to be reached; loopback while nothing better is known.
    pub endpoint: Endpoint,
    /// Our record. Its sequence number goes out with every PING and PONG.
    pub record: Record,
}

/// What a node's PONG to a queried PING said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ponged {
    /// The time from our PING to the PONG.
    pub round_trip: Duration,
    /// Where it sees us.
    pub sees_us_at: Option<SocketAddr>,
    /// The sequence number of its record, if it has one.
    pub enr_seq: Option<u64>,
}

/// What happened, or is wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A candidate that was asked for with `set_demand`. It has answered us; its record is there if it has one.
    Discovered(Contact),
    /// A lookup was told of this node.
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
        /// The closest nodes that answered, closest first.
        closest: Vec<Contact>,
    },
    /// A node was resolved or not.
    Resolved {
        /// The query.
        query: QueryId,
        /// The node at its newest known address, with its record if it gave one.
        contact: Option<Contact>,
    },
    /// A ping was answered or not.
    PingResult {
        /// The query.
        query: QueryId,
        /// `None` after the timeout.
        pong: Option<Ponged>,
    },
    /// A record was got or not.
    RecordResult {
        /// The query.
        query: QueryId,
        /// `None` after the timeout, or if the record was not acceptable.
        record: Option<Record>,
    },
    /// A table node says where it sees us. One vote per subnet makes the local record (geth: 10 within 5 minutes).
    EndpointStatement {
        /// Who says so.
        by: NodeId,
        /// From where.
        from: IpAddr,
        /// Where it sees us.
        sees_us_at: SocketAddr,
        /// Whether it answered a ping of ours; otherwise it pinged us.
        solicited: bool,
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
    /// Our clock seems to be wrong.
    ClockSkew {
        /// By how many seconds it is ahead; negative means behind.
        ahead: i64,
    },
}
