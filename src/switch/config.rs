//! The settings of the switch, and the parts that it shares with others.

use std::{sync::Arc, time::Duration};

use rand::rngs::StdRng;

use super::views::Views;
use crate::{
    budget::Budgets,
    lease,
    node::{ForkSchedule, NodeId},
    p2p::BaseTotals,
    policy::Settings,
};

/// The settings of the engine, and the parts that it shares with others.
#[derive(Debug)]
pub struct Config {
    /// Our node id.
    pub local_id: NodeId,
    /// A random name of this run of the sidecar. Applications get it, so that they notice a restart.
    pub instance_id: Arc<str>,
    /// Limits of leases.
    pub leases: lease::Config,
    /// Limits of peers.
    pub settings: Settings,
    /// The state that can be watched.
    pub views: Views,
    /// The memory of messages that wait for applications and for peers.
    pub budgets: Budgets,
    /// Counters of connections that have ended. Their drivers add to it.
    pub base: Arc<BaseTotals>,
    /// The longest time for which a channel may hold the socket of a session that another application shares (0:
    /// never).
    pub max_shared_stall: Duration,
    /// Whether an application may end a session that another one shares.
    pub end_shared_sessions: bool,
    /// The forks of the network that we were started for, if it is a public one.
    pub network: Option<Arc<ForkSchedule>>,
    /// Whether connected peers are reconnected, so that they learn of a protocol that is registered later.
    pub rehello: bool,
    /// The source of all randomness.
    pub rng: StdRng,
}
