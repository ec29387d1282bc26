//! What the engine reports, and what it counts.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;

use crate::{
    discv5::{call::CallError, peer::Peer, talk::TalkToken},
    kademlia::{self, Contact},
    node::Record,
};

/// Names a command whose result comes later. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

/// What a node that answered a PING said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingAnswer {
    /// The sequence number of its record.
    pub enr_seq: u64,
    /// Our endpoint, as it sees it.
    pub endpoint: SocketAddr,
    /// From the newest packet of the request to its answer.
    pub round_trip: Duration,
}

/// What happened, or is wanted. Nothing of it has to be acted on for the engine to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A node came into the table, was proven, changed, or left.
    Table(kademlia::Event),
    /// The random walk found a node; at least [`super::Engine::set_demand`] of them are wanted.
    Candidate(Record),
    /// A node of the table that we asked says where our packets come from: a vote on our own endpoint.
    EndpointStatement {
        /// Who says it, and where that node is.
        by: Peer,
        /// Our endpoint, as it sees it.
        endpoint: SocketAddr,
    },
    /// A node has proven often enough to be there that it is worth remembering beyond a restart.
    Persist {
        /// Its record.
        record: Record,
        /// How many liveness checks it has passed.
        checks: u32,
    },
    /// The table is being refreshed: nodes of the node database are welcome ([`super::Engine::add_seed`]).
    SeedsWanted,
    /// Somebody asks an application of ours; the answer goes to [`super::Engine::answer_talk`] within 500 ms.
    TalkRequested {
        /// What the answer must name.
        token: TalkToken,
        /// Who asks.
        from: Peer,
        /// Which protocol.
        protocol: Bytes,
        /// What it is asked.
        request: Bytes,
    },
    /// The result of [`super::Engine::ping`].
    PingEnded {
        /// Which command.
        query: QueryId,
        /// What the node said.
        result: Result<PingAnswer, CallError>,
    },
    /// The result of [`super::Engine::talk`]. An empty response means that nobody there serves the protocol.
    TalkEnded {
        /// Which command.
        query: QueryId,
        /// The response.
        result: Result<Bytes, CallError>,
    },
    /// A lookup ([`super::Engine::lookup`]) heard of a node for the first time.
    LookupFound {
        /// Which command.
        query: QueryId,
        /// The node, which need not be alive.
        record: Record,
    },
    /// The result of [`super::Engine::lookup`].
    LookupEnded {
        /// Which command.
        query: QueryId,
        /// Up to 16 nodes that answered, closest first.
        closest: Vec<Contact>,
    },
    /// The result of [`super::Engine::resolve`].
    ResolveEnded {
        /// Which command.
        query: QueryId,
        /// The newest record that was found.
        record: Option<Record>,
    },
}

/// Plain counters, only growing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams handed in.
    pub packets_received: u64,
    /// Datagrams handed out.
    pub packets_sent: u64,
    /// Datagrams lost because nobody fetched those before them.
    pub packets_dropped: u64,
    /// Datagrams that do not unmask to discv5.
    pub noise: u64,
    /// Datagrams that unmask to discv5 and are malformed, or come from port 0 or in our own name.
    pub malformed: u64,
    /// Messages that could not be opened, or have no session.
    pub unreadable: u64,
    /// New WHOAREYOUs sent.
    pub challenges_sent: u64,
    /// WHOAREYOUs sent again.
    pub challenges_repeated: u64,
    /// Unreadable messages left unanswered because the ration of challenges was used up.
    pub challenges_refused: u64,
    /// WHOAREYOUs that answer no request of ours, or one that was challenged already.
    pub challenges_unsolicited: u64,
    /// Handshakes that we began and answered a WHOAREYOU in.
    pub handshakes_sent: u64,
    /// Handshakes of others that were good.
    pub handshakes_accepted: u64,
    /// Handshakes of others that were not.
    pub handshakes_failed: u64,
    /// Handshakes that answer no challenge of ours, among them all replayed ones.
    pub handshakes_unexpected: u64,
    /// Messages of types that we do not speak.
    pub messages_unknown: u64,
    /// Messages that are malformed.
    pub messages_malformed: u64,
    /// PINGs, FINDNODEs and TALKREQs of others.
    pub requests_received: u64,
    /// Responses that answer no request of ours.
    pub responses_unsolicited: u64,
    /// Requests of ours, without their repetition in a handshake.
    pub requests_sent: u64,
    /// Requests of ours that got no answer in time.
    pub requests_timed_out: u64,
    /// Requests of ours that the queues had no room for.
    pub requests_refused: u64,
    /// Records in NODES that were not taken: invalid, not asked for, against the relay rule or the restriction.
    pub records_refused: u64,
    /// TALKREQs for protocols that nobody serves.
    pub talk_unknown: u64,
    /// TALKREQs answered empty because too many waited.
    pub talk_refused: u64,
    /// TALKREQs answered empty because the application took too long.
    pub talk_expired: u64,
}
