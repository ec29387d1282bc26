//! The configuration of the switch and its driver, and the sources of nodes that they use.

use std::{sync::Arc, time::Duration};

use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};

use super::watches::Watches;
use crate::{
    budget::Budgets,
    lease,
    net::{bandwidth::Rates, discovery::Discovery, node_db::NodeDb},
    node::ForkSchedule,
    p2p::{BaseTotals, LocalNode},
    policy::{Settings, dial::Candidate},
    switch,
};

/// The configuration of the switch.
#[derive(Debug)]
pub struct Config {
    /// Our key, and our name in Hello.
    pub local: LocalNode,
    /// A random name of this run of the sidecar. Applications get it, so that they notice a restart.
    pub instance_id: Arc<str>,
    /// The limits of leases.
    pub leases: lease::Config,
    /// The rules and limits for peers.
    pub settings: Settings,
    /// The state that tasks can watch.
    pub watches: Watches,
    /// The bounds on the memory that peers and applications can make us hold.
    pub budgets: Budgets,
    /// The longest time for which a channel may hold the socket of a session that another application shares (0:
    /// never).
    pub max_shared_stall: Duration,
    /// Whether an application may end a session that another one shares.
    pub end_shared_sessions: bool,
    /// The forks of the network that we were started for, if it is a public one.
    pub network: Option<Arc<ForkSchedule>>,
    /// Whether connected peers are reconnected, so that they learn of a protocol that is registered later.
    pub rehello: bool,
    /// The caps on the bytes per second of connections.
    pub bandwidth: Rates,
    /// The source of all randomness.
    pub rng: StdRng,
}

impl Config {
    /// Splits the configuration into our identity and the configuration of the engine.
    pub(super) fn split(self, base: Arc<BaseTotals>) -> (LocalNode, switch::Config) {
        let engine = switch::Config {
            local_id: self.local.key.id(),
            instance_id: self.instance_id,
            leases: self.leases,
            settings: self.settings,
            views: self.watches.views(),
            budgets: self.budgets,
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

/// The sources of nodes, and the demand for them.
#[derive(Debug)]
pub struct Sources {
    /// Finds the address of a node. `None`: discovery is off.
    pub discovery: Option<Discovery>,
    /// Keeps our record, also if discovery is off.
    pub record: Discovery,
    /// Takes the number of candidates that the dialer has room for. Discovery searches no more nodes than that.
    pub demand: watch::Sender<usize>,
    /// Brings candidates.
    pub candidates: mpsc::Receiver<Candidate>,
    /// Stores peers for the next run. `None`: there is no node database.
    pub database: Option<NodeDb>,
    /// The receive buffer of a connection that we dial, in bytes.
    pub receive_buffer: usize,
}
