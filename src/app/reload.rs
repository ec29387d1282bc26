//! The settings that a running sidecar takes over from a configuration that was read again (SIGHUP).
//!
//! The log filter and the lists of static and trusted peers change while it runs. Access file and TLS files need no
//! signal: they are read within a second of a change (`rpc::access::credentials`). All other settings take effect at
//! the next start, and the log names those that changed. A configuration with an error changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    config::{Config, ConfigError, Request},
    net::switch::Handle,
    node::{NodeId, NodeRef},
    switch::peers::Listed,
    telemetry::Logging,
};

/// The settings that a reload takes over, by key.
const RELOADED: [&str; 3] = ["log", "static-peers", "trusted-peers"];

/// The configuration that holds, as far as a reload compares it.
#[derive(Debug)]
pub(super) struct Current {
    /// This node, which no list names.
    us: NodeId,
    values: BTreeMap<String, Vec<String>>,
    static_peers: Vec<NodeRef>,
    trusted_peers: Vec<NodeRef>,
    log: Option<Logging>,
}

impl Current {
    pub(super) fn new(config: &Config, us: NodeId, log: Option<Logging>) -> Self {
        let [static_peers, trusted_peers] =
            without_ourselves([&config.peers.static_peers, &config.peers.trusted_peers], us);
        Self { us, values: config.values.clone(), static_peers, trusted_peers, log }
    }

    /// The nodes of the static and of the trusted list, without ourselves.
    pub(super) fn lists(&self) -> (&[NodeRef], &[NodeRef]) {
        (&self.static_peers, &self.trusted_peers)
    }

    /// Reads the configuration with `load`, takes over the settings that can change while running, and logs the changes
    /// and the settings that need a restart.
    pub(super) async fn reload(
        &mut self,
        handle: &Handle,
        load: impl FnOnce() -> Result<Request, ConfigError> + Send + 'static,
    ) {
        // Reading a file may take long; tasks that move messages must not wait for it.
        let config = match tokio::task::spawn_blocking(load).await {
            Ok(Ok(Request::Run(config))) => config,
            Ok(Ok(Request::Print(_))) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::error!(%error, "the configuration was read again and is wrong; nothing has changed");
                return;
            }
        };
        let new = Self::new(&config, self.us, self.log.clone());
        let changed = changed(&self.values, &new.values);
        if changed.is_empty() {
            tracing::info!("the configuration was read again; nothing has changed");
            return;
        }
        if changed.contains("log")
            && let Some(log) = &new.log
        {
            match log.filter().set(&config.log.filter) {
                Ok(before) => {
                    tracing::info!(filter = config.log.filter, before, "the log filter has changed")
                }
                Err(error) => tracing::error!(%error, "the log filter has not changed"),
            }
        }
        relist(handle, Listed::Static, &self.static_peers, &new.static_peers).await;
        relist(handle, Listed::Trusted, &self.trusted_peers, &new.trusted_peers).await;
        let later: Vec<&str> = changed.into_iter().filter(|key| !RELOADED.contains(key)).collect();
        if !later.is_empty() {
            tracing::warn!(
                settings = later.join(", "),
                "these settings have changed in the configuration and hold after a restart"
            );
        }
        *self = new;
    }
}

/// Makes the list of the configuration equal to the new one. Entries that calls added stay.
async fn relist(handle: &Handle, list: Listed, before: &[NodeRef], now: &[NodeRef]) {
    let kept: BTreeSet<NodeId> = now.iter().map(NodeRef::id).collect();
    let removed: BTreeSet<NodeId> = before.iter().map(NodeRef::id).filter(|id| !kept.contains(id)).collect();
    let added: Vec<NodeRef> = now.iter().filter(|node| !before.contains(node)).cloned().collect();
    if removed.is_empty() && added.is_empty() {
        return;
    }
    let (added_count, removed_count) = (added.len(), removed.len());
    match handle.run(move |switch, now| switch.peers().relist(now, list, added, &removed)).await {
        Ok(refused) => {
            for (node, error) in &refused {
                tracing::warn!(%node, %error, "this node of the configuration cannot be listed");
            }
            tracing::info!(
                list = list.key(),
                added = added_count - refused.len(),
                removed = removed_count,
                "the list has changed"
            );
        }
        // The process is ending, and the lists with it.
        Err(error) => tracing::debug!(%error, "the lists were not changed"),
    }
}

/// The lists of the configuration without this node: operators give one list of peers to all nodes, and the entry that
/// names the node itself is of no use and does no harm.
fn without_ourselves(lists: [&[NodeRef]; 2], us: NodeId) -> [Vec<NodeRef>; 2] {
    let others = lists.map(|list| list.iter().filter(|node| node.id() != us).cloned().collect::<Vec<_>>());
    if others.iter().zip(lists).any(|(others, list)| others.len() < list.len()) {
        tracing::info!(node_id = %us, "static-peers or trusted-peers name this node itself; the entry is skipped");
    }
    others
}

/// The keys of the settings that differ.
fn changed<'a>(
    before: &'a BTreeMap<String, Vec<String>>,
    now: &'a BTreeMap<String, Vec<String>>,
) -> BTreeSet<&'a str> {
    let keys = before.keys().chain(now.keys());
    keys.filter(|key| before.get(*key) != now.get(*key)).map(String::as_str).collect()
}
