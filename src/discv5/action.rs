//! The actions of the engine ([`Action`]), the settings of its owner ([`Config`]), and its counters.

use bytes::Bytes;
use ipnet::IpNet;

use super::{challenge::STRANGERS_PER_SECOND, peer::Peer, talk::TalkToken};
use crate::kademlia::{self, CallError, Contact, QueryId};

/// The settings that do not change while the engine runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The most sessions; half of them are for sessions that strangers begin. Default 2048, about 1 MiB.
    pub sessions: usize,
    /// The only networks that we exchange packets with, and that the table takes nodes of (`--netrestrict`); empty
    /// means all.
    pub restrict: Vec<IpNet>,
    /// The nodes to ask first, at every refresh. Default: none.
    pub bootnodes: Vec<Contact>,
    /// The most challenges per second that we send to strangers. Default: [`STRANGERS_PER_SECOND`].
    pub strangers_per_second: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sessions: 2048,
            restrict: Vec::new(),
            bootnodes: Vec::new(),
            strangers_per_second: STRANGERS_PER_SECOND,
        }
    }
}

/// The results of TALKREQs, ours and those of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TalkAction {
    /// Our TALKREQ was answered, or failed.
    Result {
        /// The query.
        query: QueryId,
        /// The response. An empty one means that no application there serves the protocol.
        response: Result<Bytes, CallError>,
    },
    /// A node asks an application of ours; the answer goes to [`Engine::answer_talk`](super::Engine::answer_talk)
    /// within 500 ms.
    Requested {
        /// The token that the answer must name.
        token: TalkToken,
        /// The peer that asks.
        from: Peer,
        /// The name of the protocol.
        protocol: Bytes,
        /// The question.
        request: Bytes,
    },
}

/// An event, or a request to the owner.
pub type Action = kademlia::Action<TalkAction>;

/// Counters; they only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams handed in.
    pub packets_received: u64,
    /// Datagrams handed out.
    pub packets_sent: u64,
    /// Datagrams lost because those before them were not fetched.
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
    /// Handshakes of others that failed.
    pub handshakes_failed: u64,
    /// Handshakes that answer no challenge of ours, among them all replayed ones.
    pub handshakes_unexpected: u64,
    /// Messages of types that we do not support.
    pub messages_unknown: u64,
    /// Messages that are malformed.
    pub messages_malformed: u64,
    /// PINGs, FINDNODEs and TALKREQs of others.
    pub requests_received: u64,
    /// Of these, requests that were not answered because their sender's ration was used up.
    pub requests_limited: u64,
    /// Responses that answer no request of ours.
    pub responses_unsolicited: u64,
    /// Requests of ours, without their repetition in a handshake.
    pub requests_sent: u64,
    /// Requests of ours that got no answer in time.
    pub requests_timed_out: u64,
    /// Our requests for which the queues had no room.
    pub requests_refused: u64,
    /// Lookups that were not begun because too many ran.
    pub lookups_refused: u64,
    /// Records in NODES that were not taken: invalid, not asked for, against the relay rule or the restriction.
    pub records_refused: u64,
    /// TALKREQs for protocols that no application serves.
    pub talk_unknown: u64,
    /// TALKREQs answered empty because too many waited.
    pub talk_refused: u64,
    /// TALKREQs answered empty because the application took too long.
    pub talk_expired: u64,
}

impl Counters {
    /// All counters with their names in metrics. A new one cannot be left out: this does not compile without it.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 28] {
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
            requests_limited,
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
            ("requests_limited", requests_limited),
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
