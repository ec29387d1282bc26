//! What the switch and its driver are made with, and the sources of nodes around them.

use std::{sync::Arc, time::Duration};

use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};

use super::watches::Watches;
use crate::{
    delivery::Budget,
    lease,
    net::{bandwidth::Rates, discovery::Discovery, node_db::NodeDb},
    node::ForkSchedule,
    p2p::{BaseTotals, LocalNode},
    policy::{Settings, dial::Candidate},
    switch,
};

/// What the switch is made with.
#[derive(Debug)]
pub struct Config {
    /// Who we are on RLPx connections.
    pub local: LocalNode,
    /// This run of the sidecar: random, told to applications so that they notice a restart.
    pub instance_id: Arc<str>,
    /// Limits of leases.
    pub leases: lease::Config,
    /// Limits of peers.
    pub settings: Settings,
    /// What watchers are told of.
    pub watches: Watches,
    /// What all inboxes together may hold, in bytes.
    pub inbox_budget: u64,
    /// For how long a channel may hold the socket of a session that another application shares (0: never).
    pub max_shared_stall: Duration,
    /// Whether an application may end a session that another one shares.
    pub end_shared_sessions: bool,
    /// The forks of the network that we were started for, if it is a public one.
    pub network: Option<Arc<ForkSchedule>>,
    /// Whether connected peers learn of a protocol that is registered late, by being reconnected.
    pub rehello: bool,
    /// Caps on what goes over connections.
    pub bandwidth: Rates,
    /// Where the randomness of everything comes from.
    pub rng: StdRng,
}

impl Config {
    /// Who we are, and the part that the engine is made with.
    pub(super) fn split(self, inbound: Arc<Budget>, base: Arc<BaseTotals>) -> (LocalNode, switch::Config) {
        let engine = switch::Config {
            local_id: self.local.key.id(),
            instance_id: self.instance_id,
            leases: self.leases,
            settings: self.settings,
            views: self.watches.views(),
            inbound,
            base,
            max_shared_stall: self.max_shared_stall,
            end_shared_sessions: self.end_shared_sessions,
            network: self.network,
            rehello: self.rehello,
            rng: self.rng,
        };
        (self.local, engine)
    }
}

/// How the switch hears of nodes, and asks for them.
#[derive(Debug)]
pub struct Sources {
    /// Asked where a node is; `None` when discovery is off.
    pub discovery: Option<Discovery>,
    /// The keeper of our record, whether nodes are looked for or not.
    pub record: Discovery,
    /// How many candidates the dialer has room for: what throttles discovery.
    pub demand: watch::Sender<usize>,
    /// Where candidates come from.
    pub candidates: mpsc::Receiver<Candidate>,
    /// Where peers are remembered for the next run, if they are.
    pub database: Option<NodeDb>,
    /// The receive buffer of a connection that we dial, in bytes.
    pub receive_buffer: usize,
}
