//! The part of the start that keeps peers: the switch, its settings, and the file of the lists.

use std::sync::Arc;

use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};

use super::{
    components::{Component, Components},
    error::StartFailure,
};
use crate::{
    budget::Budgets,
    config::{Config, Rehello, networks::Preset},
    lease,
    net::switch::{self, Handle, Sources, Switch, Watches},
    net::{listener::Accepted, running::Running, state_file::StateFile},
    node::{AddressClass, NodeKey, NodeRef, Record},
    p2p::LocalNode,
    policy::{
        ChurnSettings, Settings,
        lists::{Lists, Parsed},
    },
};

/// The arguments of the switch.
pub(super) struct Setup<'a> {
    pub(super) config: &'a Config,
    pub(super) key: NodeKey,
    /// Our record, as it is announced at the start.
    pub(super) record: &'a Record,
    pub(super) instance_id: Arc<str>,
    pub(super) client_name: &'a str,
    pub(super) watches: Watches,
    pub(super) budgets: Budgets,
    pub(super) sources: Sources,
    /// Connections that were accepted.
    pub(super) accepted: mpsc::Receiver<Accepted>,
    /// The lists of the configuration, without ourselves: static and trusted peers.
    pub(super) configured: (&'a [NodeRef], &'a [NodeRef]),
    /// The lists of earlier runs, and where they are kept.
    pub(super) earlier: &'a Parsed,
    pub(super) lists_file: StateFile<Lists>,
    pub(super) rng: StdRng,
}

/// Starts the switch and what keeps its lists.
pub(super) fn start(setup: Setup<'_>, components: &mut Components) -> Result<Handle, StartFailure> {
    let Setup { config, key, record, instance_id, client_name, watches, budgets, sources, accepted, .. } =
        setup;
    let (lists, lists_changed) = watch::channel(None);
    let switch_config = switch::Config {
        local: LocalNode::new(key, client_name),
        instance_id,
        leases: lease::Config {
            any_message_count: config.grpc.any_message_count,
            has_network: Preset::of(config.network).is_some(),
            message_counts: config.grpc.message_counts.clone(),
            require_resume_token: config.grpc.require_resume_token,
            client_name_len: client_name.len(),
            ..lease::Config::default()
        },
        settings: settings(config, record),
        watches,
        budgets,
        max_shared_stall: config.grpc.max_shared_stall,
        end_shared_sessions: config.grpc.end_shared_sessions,
        rehello: config.peers.rehello == Rehello::Rolling,
        bandwidth: config.peers.bandwidth,
        network: Preset::of(config.network).map(|preset| Arc::new(preset.fork_schedule())),
        rng: setup.rng,
    };
    let (mut switch, handle) = Switch::new(switch_config, accepted, lists, sources);
    let (static_peers, trusted_peers) = setup.configured;
    switch.restore(static_peers, trusted_peers, setup.earlier)?;
    let lost = "the peer lists are not kept: a restart would lose the last change";
    components.add(setup.lists_file.keep("the lists' file", lists_changed, Option::clone, lost));
    let running = Running::start("the switch", |stop| switch.run(stop));
    components.add(Component::from(running).essential());
    Ok(handle)
}

fn settings(config: &Config, record: &Record) -> Settings {
    let peers = &config.peers;
    Settings {
        max_peers: peers.max_peers,
        dial_ratio: peers.dial_ratio,
        max_pending_dials: peers.max_pending_dials,
        max_pending_inbound: peers.max_pending_inbound,
        dial_timeout: peers.dial_timeout,
        dialing: peers.dial,
        discovery: config.discovery.v4 || config.discovery.v5,
        allowlist_only: peers.allowlist_only,
        announced: AddressClass::announced(record),
        net_restrict: peers.netrestrict.clone(),
        inbound_throttle: peers.inbound_throttle,
        peers_per_subnet: peers.max_peers_per_subnet,
        pending_per_subnet: peers.max_pending_per_subnet,
        allow_lan: peers.allow_lan,
        follow_forks: peers.follow_forks,
        churn: peers.churn.map(|every| ChurnSettings { every, ..ChurnSettings::default() }),
        ..Settings::default()
    }
}

/// Our name in Hello: `devp2pd/[identity/]v<version>/<os>-<arch>`.
pub(super) fn client_name(identity: Option<&str>) -> String {
    let identity = identity.map(|identity| format!("{identity}/")).unwrap_or_default();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    format!("devp2pd/{identity}v{}/{os}-{arch}", env!("CARGO_PKG_VERSION"))
}
