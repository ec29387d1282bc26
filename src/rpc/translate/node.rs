//! Summaries of peers and of discovery, and the forks that the sidecar follows, for NodeService.

use data_encoding::HEXLOWER;

use super::value::timestamp;
use crate::{
    net::discovery::Counters, policy::fork_following::Followed, rpc::proto, switch::peers::PeersSummary,
};

/// Translates a followed fork: one that our fork schedule does not have, and that other nodes announce.
pub(in crate::rpc) fn followed(fork: &Followed) -> proto::FollowedFork {
    proto::FollowedFork {
        hash: HEXLOWER.encode(&fork.hash),
        previous_hash: HEXLOWER.encode(&fork.before),
        time: fork.time,
        followed_since: Some(timestamp(fork.since)),
    }
}

/// Translates the slots and their use, and the counts of dials and inbound connections by outcome.
pub(in crate::rpc) fn summary(summary: &PeersSummary) -> proto::PeerSummary {
    let int = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let counts = &summary.recent;
    proto::PeerSummary {
        connected: int(summary.connected),
        dialed_slots: int(summary.slots.dialed),
        dialed_used: int(summary.dialed),
        inbound_slots: int(summary.slots.inbound),
        inbound_used: int(summary.inbound),
        candidates_seen: counts.seen,
        not_dialed: counts.not_dialed.iter().map(|(why, count)| (why.name().to_owned(), *count)).collect(),
        dialed: counts.dialed,
        failed: counts.failed.iter().map(|(cause, count)| (cause.name().to_owned(), *count)).collect(),
        succeeded: counts.connected,
        not_let_in: counts.not_let_in.iter().map(|(why, count)| (why.name().to_owned(), *count)).collect(),
        let_in: counts.let_in,
        reached_from_outside: summary.reached_from_outside,
    }
}

/// Translates the counters of discovery.
pub(in crate::rpc) fn discovery_summary(counters: Counters) -> proto::DiscoverySummary {
    let Counters { v4, v5, noise, unroutable, over_rate, sockets, .. } = counters;
    proto::DiscoverySummary {
        discv4_received: v4,
        discv5_received: v5,
        noise,
        oversize: sockets.oversize,
        sent: sockets.sent,
        unsent: sockets.unsent,
        unroutable,
        over_rate,
    }
}
