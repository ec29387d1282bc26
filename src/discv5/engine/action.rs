//! What the engine reports, and what it counts.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    discv5::{call::CallError, peer::Peer, talk::TalkToken},
    kademlia::{self, Contact},
    node::NodeId,
};

/// Names a query in the actions that answer it. The owner chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueryId(pub u64);

/// What a node's PONG to a queried PING said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ponged {
    /// From the newest packet of the request to its answer.
    pub round_trip: Duration,
    /// Where it sees us.
    pub sees_us_at: SocketAddr,
    /// The sequence number of its record.
    pub enr_seq: u64,
}

/// What happened, or is wanted. Nothing of it has to be acted on for the engine to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A candidate that was asked for with [`super::Engine::set_demand`]. Its record was told by others; whether it
    /// is alive was not asked.
    Discovered(Contact),
    /// A lookup was told of this node for the first time.
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
        /// The node with the newest record that was found.
        contact: Option<Contact>,
    },
    /// A ping was answered or not.
    PingResult {
        /// The query.
        query: QueryId,
        /// What the node said.
        pong: Result<Ponged, CallError>,
    },
    /// A TALKREQ was answered or not.
    TalkResult {
        /// The query.
        query: QueryId,
        /// The response. An empty one means that nobody there serves the protocol.
        response: Result<Bytes, CallError>,
    },
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
    /// A table node that we asked says where it sees us: a vote on our own endpoint.
    EndpointStatement {
        /// Who says so.
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
    Table(kademlia::Event),
    /// A refresh begins: nodes from the database are welcome now ([`super::Engine::add_seed`]).
    SeedsWanted,
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
    /// Packets from addresses outside the configured networks.
    pub restricted: u64,
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
    /// Lookups that were not begun because too many ran.
    pub lookups_refused: u64,
    /// Records in NODES that were not taken: invalid, not asked for, against the relay rule or the restriction.
    pub records_refused: u64,
    /// TALKREQs for protocols that nobody serves.
    pub talk_unknown: u64,
    /// TALKREQs answered empty because too many waited.
    pub talk_refused: u64,
    /// TALKREQs answered empty because the application took too long.
    pub talk_expired: u64,
}

impl Counters {
    /// All counters with their names in metrics. A new one cannot be left out: this does not compile without it.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 27] {
        let Self {
            packets_received,
            packets_sent,
            packets_dropped,
            noise,
            malformed,
            restricted,
            unreadable,
            challenges_sent,
            challenges_repeated,
            challenges_refused,
            challenges_unsolicited,
            handshakes_sent,
            handshakes_accepted,
            handshakes_failed,
            handshakes_unexpected,
            messages_unknown,
            messages_malformed,
            requests_received,
            responses_unsolicited,
            requests_sent,
            requests_timed_out,
            requests_refused,
            lookups_refused,
            records_refused,
            talk_unknown,
            talk_refused,
            talk_expired,
        } = *self;
        [
            ("packets_received", packets_received),
            ("packets_sent", packets_sent),
            ("packets_dropped", packets_dropped),
            ("noise", noise),
            ("malformed", malformed),
            ("restricted", restricted),
            ("unreadable", unreadable),
            ("challenges_sent", challenges_sent),
            ("challenges_repeated", challenges_repeated),
            ("challenges_refused", challenges_refused),
            ("challenges_unsolicited", challenges_unsolicited),
            ("handshakes_sent", handshakes_sent),
            ("handshakes_accepted", handshakes_accepted),
            ("handshakes_failed", handshakes_failed),
            ("handshakes_unexpected", handshakes_unexpected),
            ("messages_unknown", messages_unknown),
            ("messages_malformed", messages_malformed),
            ("requests_received", requests_received),
            ("responses_unsolicited", responses_unsolicited),
            ("requests_sent", requests_sent),
            ("requests_timed_out", requests_timed_out),
            ("requests_refused", requests_refused),
            ("lookups_refused", lookups_refused),
            ("records_refused", records_refused),
            ("talk_unknown", talk_unknown),
            ("talk_refused", talk_refused),
            ("talk_expired", talk_expired),
        ]
    }
}
