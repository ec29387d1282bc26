//! Two connections with one node, and which of them stays.
//!
//! Two nodes that dial each other at the same moment complete two connections. The protocol has no rule for it.
//! go-ethereum keeps the one that passes its last checkpoint first and refuses the other with 0x05. Two go-ethereum
//! nodes may thus refuse each other's choice and lose both. A fixed rule ("the smaller id's dial stays") loses both
//! against go-ethereum whenever its choice is the other one, and a node cannot tell which implementation it has met.
//!
//! So we let the other side choose if it has a rule, and apply ours only when it shows that it has not:
//!
//! 1. The first connection that completes is the peer at once. In the ordinary case there is no wait.
//! 2. A second one **of the same direction** is refused (0x05): crossing dials never look like that.
//! 3. A second one of the other direction is **parked**: it stays open, its messages are held, and both connections are
//!    probed with a Ping. A node that refuses one of them sends a Disconnect or closes it, and answers on the other. A
//!    Pong, or any message after Hello, means "I have accepted this one", since nothing is sent before.
//! 4. If either closes, the other one stays: the other side has chosen.
//! 5. If **both** were answered, the other side tolerates both, so the choice is ours, and it is the same on both
//!    sides without a word: the connection that the smaller id dialed stays.
//! 6. After [`PATIENCE`] without that, the connection that was answered stays; if both or neither were, the rule of 5.
//!
//! Why neither is lost: against a node with a first-come rule, we close nothing before it has answered on both
//! connections, which it never does. Against one of ours, both sides close only the larger id's dial, whatever the
//! order in which messages arrive, so both keep the smaller id's. Only a network that holds a Ping back for longer
//! than `PATIENCE` can break that, and the scheduler mends it by dialing again.

use std::time::{Duration, Instant};

use crate::{node::NodeId, p2p::session::ConnectionId};

/// How long both connections may stand. Half of the keepalive's silence limit: a peer that is alive has answered a
/// Ping long before.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// The two connections of one node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conflict {
    pub(super) parked: ConnectionId,
    pub(super) until: Instant,
    /// Whether the other side has shown since then that it accepted the connection.
    pub(super) standing_answered: bool,
    pub(super) parked_answered: bool,
}

/// Which connection stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Winner {
    Standing,
    Parked,
}

impl Conflict {
    pub(super) fn new(now: Instant, parked: ConnectionId) -> Self {
        Self { parked, until: now + PATIENCE, standing_answered: false, parked_answered: false }
    }

    /// The decision, once there is one.
    pub(super) fn decide(
        &self,
        now: Instant,
        local: &NodeId,
        remote: &NodeId,
        standing_is_inbound: bool,
    ) -> Option<Winner> {
        // The standing connection was dialed by the smaller id if it is theirs and they are, or ours and we are.
        let by_id = if standing_is_inbound == (remote < local) { Winner::Standing } else { Winner::Parked };
        match (self.standing_answered, self.parked_answered) {
            (true, true) => Some(by_id),
            _ if now < self.until => None,
            (true, false) => Some(Winner::Standing),
            (false, true) => Some(Winner::Parked),
            (false, false) => Some(by_id),
        }
    }
}
