//! What the switch is made with.

use std::{sync::Arc, time::Duration};

use rand::rngs::StdRng;

use super::views::Views;
use crate::{
    delivery::Budget,
    lease,
    node::{ForkSchedule, NodeId},
    p2p::BaseTotals,
    policy::Settings,
};

/// What the engine is made with.
#[derive(Debug)]
pub struct Config {
    /// Who we are.
    pub local_id: NodeId,
    /// This run of the sidecar: random, told to applications so that they notice a restart.
    pub instance_id: Arc<str>,
    /// Limits of leases.
    pub leases: lease::Config,
    /// Limits of peers.
    pub settings: Settings,
    /// What watchers see.
    pub views: Views,
    /// What waits for all applications, messages that connections hold included.
    pub inbound: Arc<Budget>,
    /// What was counted on connections that have ended. Their drivers add to it.
    pub base: Arc<BaseTotals>,
    /// For how long a channel may hold the socket of a session that another application shares (0: never).
    pub max_shared_stall: Duration,
    /// Whether an application may end a session that another one shares.
    pub end_shared_sessions: bool,
    /// The forks of the network that we were started for, if it is a public one.
    pub network: Option<Arc<ForkSchedule>>,
    /// Whether connected peers learn of a protocol that is registered late, by being reconnected.
    pub rehello: bool,
    /// Where the randomness of everything comes from.
    pub rng: StdRng,
}
