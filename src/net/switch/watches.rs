//! The state that tasks can watch: connected peers and failed attempts, the tables of discovery, registrations.
//!
//! The switch fills its views, and the driver of discovery fills the tables through [`TableWatch`]. The number of
//! watches is limited, in all and by caller.
//!
//! Left out: the content of the switch's views (`switch::views`), and the changes that a watch gets (`watch`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::watched::Watched;
use crate::{
    kademlia::{Protocol, Removal},
    net::discovery::{TableNode, TableObserver},
    node::{NodeId, RegistrationId, record::MAX_RECORD_BYTES},
    switch::{
        registrations::RegistrationView,
        views::{PeerViews, Views},
    },
    watch::{MAX_CHANGES, Shared, Watch},
};

/// The most watches in all. Each may keep one position for each key of the state that it watches.
pub const MAX_WATCHERS: usize = 128;

/// The most watches of one caller: half of all, so that one caller cannot take all of them.
pub const MAX_WATCHERS_OF_ONE: usize = 64;

/// A node of a table, as a watch shows it.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// The node and its entry in the table, as of its last change.
    pub node: TableNode,
    /// Why and when (wall time) it was removed from the table. `None`: it is in the table.
    pub removed: Option<(Removal, Duration)>,
}

impl NodeState {
    /// Returns the memory that this value takes, in bytes.
    fn bytes(&self) -> usize {
        // A record has up to 300 bytes, and keys and pointers take about as many again.
        size_of::<Self>() + self.node.entry.contact.record.as_ref().map_or(0, |_| 2 * MAX_RECORD_BYTES)
    }
}

/// The key of a node: the table and the node id, because one node may be in both tables.
pub type NodeKey = (Protocol, NodeId);

/// All state that can be watched, and the number of watches by caller.
#[derive(Clone, Debug)]
pub struct Watches {
    /// Peers and failed attempts.
    pub peers: Watched<PeerViews>,
    /// The nodes in the tables of discovery.
    pub nodes: Watched<Watch<NodeKey, NodeState>>,
    /// Registrations, each as of its last change of state, spec or channels.
    pub registrations: Watched<Watch<RegistrationId, RegistrationView>>,
    views: Views,
    counts: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

impl Watches {
    /// Returns empty views and tables. `instance` distinguishes this run of the sidecar from others, so it must be
    /// random.
    #[must_use]
    pub fn new(instance: u64) -> Self {
        let views = Views::new(instance);
        Self {
            peers: Watched::new(views.peers().clone()),
            nodes: Watched::new(Shared::new(Watch::new(instance, MAX_CHANGES))),
            registrations: Watched::new(views.registrations().clone()),
            counts: Arc::default(),
            views,
        }
    }

    /// Returns the views that the switch fills.
    #[must_use]
    pub fn views(&self) -> Views {
        self.views.clone()
    }

    /// Takes a slot for a watch of this caller, or returns the limit that is reached.
    pub fn slot(&self, principal: &Arc<str>) -> Result<WatchSlot, TooManyWatchers> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = counts.values().sum();
        let own = counts.get(principal).copied().unwrap_or_default();
        for (count, limit, whose) in
            [(total, MAX_WATCHERS, "in all"), (own, MAX_WATCHERS_OF_ONE, "of one caller")]
        {
            if count >= limit {
                return Err(TooManyWatchers { limit, whose });
            }
        }
        counts.insert(Arc::clone(principal), own + 1);
        Ok(WatchSlot { counts: Arc::clone(&self.counts), principal: Arc::clone(principal) })
    }

    /// Ends all watches.
    pub fn close(&self) {
        self.peers.close();
        self.nodes.close();
        self.registrations.close();
    }

    /// Returns the tables that the driver of discovery fills.
    #[must_use]
    pub fn tables(&self) -> TableWatch {
        TableWatch(self.nodes.clone())
    }
}

/// No more watches may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} watches {whose} are open already; close one")]
pub struct TooManyWatchers {
    /// The limit.
    pub limit: usize,
    /// The watches that count: "in all" or "of one caller".
    pub whose: &'static str,
}

/// A slot for a watch. Dropping it frees the slot.
#[derive(Debug)]
pub struct WatchSlot {
    counts: Arc<Mutex<HashMap<Arc<str>, usize>>>,
    principal: Arc<str>,
}

impl Drop for WatchSlot {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = counts.get_mut(&self.principal) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                counts.remove(&self.principal);
            }
        }
    }
}

/// The watched tables, for the driver of discovery.
#[derive(Debug)]
pub struct TableWatch(Watched<Watch<NodeKey, NodeState>>);

impl TableObserver for TableWatch {
    fn there(&self, node: TableNode) {
        let key = (node.table, node.entry.contact.id);
        self.0.update(|nodes| nodes.set(key, NodeState { node, removed: None }));
    }

    fn gone(&self, table: Protocol, id: NodeId, why: Removal, time: Duration) {
        let key = (table, id);
        self.0.update(|nodes| {
            let last =
                nodes.get(&key).map(|last| NodeState { removed: Some((why, time)), ..(**last).clone() });
            if let Some(last) = last {
                let bytes = last.bytes();
                nodes.remove(&key, last, bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_are_counted_in_all_and_by_caller() {
        let watches = Watches::new(1);
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let mut slots: Vec<WatchSlot> =
            (0..MAX_WATCHERS_OF_ONE).map(|_| watches.slot(&one).unwrap()).collect();
        assert_eq!(watches.slot(&one).unwrap_err().limit, MAX_WATCHERS_OF_ONE);
        slots.extend((0..MAX_WATCHERS - MAX_WATCHERS_OF_ONE).map(|_| watches.slot(&other).unwrap()));
        assert_eq!(watches.slot(&"third".into()).unwrap_err().limit, MAX_WATCHERS);
        slots.clear();
        assert!(watches.slot(&one).is_ok());
        assert!(watches.counts.lock().unwrap().is_empty(), "no caller is left in the counts");
    }
}
