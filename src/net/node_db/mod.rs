//! The node database: nodes that were alive, so that a restart has more than bootnodes, and peers that we dialed, so
//! that a restart begins with those that served us longest.
//!
//! If the database is deleted, only time is lost. So updates are queued, and a thread writes them in one durable
//! transaction every few seconds. When the queue is full, updates are dropped and counted. A file that cannot be read
//! is moved aside with a line in the log, and a new one is made. If the disk is full or fails, the sidecar runs on
//! without the database, and the log says so once. An hour later it is tried again.
//!
//! Limits: 50,000 nodes and 64 MiB. When one is reached, new nodes are refused, because a live node is not displaced,
//! as in the table. That ends when the hourly sweep has removed the nodes that have not answered for a day. The sweep
//! begins only after a node has answered in this run, so that a machine that was off for three days keeps its seeds.
//! The last [`MAX_PEERS`] peers are kept. The one that disconnected the longest time ago makes room.
//!
//! Left out: our own record's sequence number and the lists of peers, which must not be lost ([`super::state_file`]).

mod offer;
mod peer;
mod row;
mod store;
mod worker;

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    thread::JoinHandle,
    time::Duration,
};

use rand::rngs::StdRng;
use tokio::sync::oneshot;

pub use offer::offer;
pub use peer::StoredPeer;
pub use row::StoredNode;

use crate::node::{NodeId, Record};

/// The most updates that wait for the writer. A busy table makes a few each second; a write takes milliseconds.
const QUEUE: usize = 4096;

/// The most time since a seed last answered: five days (go-ethereum's number).
pub const SEED_AGE: Duration = Duration::from_secs(5 * 24 * 3600);

/// The most peers that are kept: several times the peers of a node, so that the short-lived peers of a bad hour do not
/// displace the rest.
pub const MAX_PEERS: u64 = 256;

/// The most time since a stored peer was connected: 30 days. Longer than [`SEED_AGE`], because a node that served us
/// for hours is worth a dial after a month, and there are few such nodes.
pub const PEER_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The limits of the database.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most nodes.
    pub nodes: u64,
    /// The most bytes of the file.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { nodes: 50_000, bytes: 64 * 1024 * 1024 }
    }
}

/// An update about one node. Only a node that passed several liveness checks should be stored.
#[derive(Clone, Debug)]
pub enum Update {
    /// The node's record. It is stored if there is none or an older one.
    Record(Record),
    /// The node answered our PING.
    Pong {
        /// The node.
        id: NodeId,
        /// The address from which the packet came.
        ip: IpAddr,
        /// The time, in Unix seconds.
        at: u64,
    },
    /// We dialed the node, and it is or was our peer. `served` is the time to be added.
    Peer(Box<StoredPeer>),
    /// The node was our peer for a moment only. If it never was for longer, it is removed, so that it is not dialed
    /// first.
    PeerLeft(NodeId),
}

impl Update {
    fn id(&self) -> NodeId {
        match self {
            Self::Record(record) => record.id(),
            Self::Peer(peer) => peer.id(),
            Self::PeerLeft(id) | Self::Pong { id, .. } => *id,
        }
    }
}

/// The counters of the database since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Updates that were dropped because the queue was full.
    pub dropped: u64,
    /// Updates that were lost because the disk failed.
    pub lost: u64,
    /// New nodes that were refused at a limit.
    pub refused: u64,
    /// Updates about nodes without a stored record.
    pub without_record: u64,
    /// Nodes that the sweep removed.
    pub expired: u64,
}

impl Counters {
    /// Returns all counters with their names in metrics. If a new counter is left out, this does not compile.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 5] {
        let Self { dropped, lost, refused, without_record, expired } = *self;
        [
            ("dropped", dropped),
            ("lost", lost),
            ("refused", refused),
            ("without_record", without_record),
            ("expired", expired),
        ]
    }
}

#[derive(Debug)]
enum Command {
    Update(Update),
    #[cfg(test)]
    Get {
        id: NodeId,
        reply: oneshot::Sender<Option<StoredNode>>,
    },
    Seeds {
        count: usize,
        reply: oneshot::Sender<Vec<StoredNode>>,
    },
    Peers {
        count: usize,
        reply: oneshot::Sender<Vec<StoredPeer>>,
    },
    #[cfg(test)]
    Count {
        reply: oneshot::Sender<u64>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// A handle to the database; clones share it. When the last one is dropped, the queued updates are written.
#[derive(Clone, Debug)]
pub struct NodeDb {
    commands: SyncSender<Command>,
    dropped: Arc<AtomicU64>,
    counters: Arc<Mutex<Counters>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl NodeDb {
    /// Starts the thread that owns the database at `path`. Fails only if the system cannot start a thread; a file that
    /// cannot be used is no error.
    pub fn start(path: impl Into<PathBuf>, limits: Limits, rng: StdRng) -> std::io::Result<Self> {
        let (commands, queue) = std::sync::mpsc::sync_channel(QUEUE);
        let counters = Arc::new(Mutex::new(Counters::default()));
        let worker = worker::Worker::new(path.into(), limits, rng, counters.clone());
        let thread = std::thread::Builder::new().name("node-db".into()).spawn(move || worker.run(queue))?;
        Ok(Self { commands, dropped: Arc::default(), counters, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Queues an update. Never waits: when the queue is full, the update is dropped and counted.
    pub fn update(&self, update: Update) {
        if self.commands.try_send(Command::Update(update)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the stored node, after all updates that were queued before.
    #[cfg(test)]
    pub async fn get(&self, id: NodeId) -> Option<StoredNode> {
        self.ask(|reply| Command::Get { id, reply }).await.flatten()
    }

    /// Returns up to `count` random nodes that answered within [`SEED_AGE`].
    pub async fn seeds(&self, count: usize) -> Vec<StoredNode> {
        self.ask(|reply| Command::Seeds { count, reply }).await.unwrap_or_default()
    }

    /// Returns up to `count` peers of the last [`PEER_AGE`], those that served longest first.
    pub async fn peers(&self, count: usize) -> Vec<StoredPeer> {
        self.ask(|reply| Command::Peers { count, reply }).await.unwrap_or_default()
    }

    /// Returns the number of stored nodes.
    #[cfg(test)]
    pub async fn count(&self) -> u64 {
        self.ask(|reply| Command::Count { reply }).await.unwrap_or(0)
    }

    /// Writes the queued updates and closes the file. Later calls do nothing.
    pub async fn close(&self) {
        while !self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .is_none_or(JoinHandle::is_finished)
        {
            let (reply, closed) = oneshot::channel();
            match self.commands.try_send(Command::Close { reply }) {
                // The order to close must not be dropped like an update. The thread empties the queue within
                // milliseconds.
                Err(TrySendError::Full(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(TrySendError::Disconnected(_)) => return,
                Ok(()) => {
                    let _ = closed.await;
                    return;
                }
            }
        }
    }

    /// Returns the counters since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let counters = *self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        Counters { dropped: self.dropped.load(Ordering::Relaxed), ..counters }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).ok()?;
        answer.await.ok()
    }
}

#[cfg(test)]
mod tests;
