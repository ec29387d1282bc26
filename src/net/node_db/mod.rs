//! The node database: nodes that were alive, so that a restart does not begin with nothing but bootnodes, and peers that
//! we dialed, so that it begins with those that served us longest.
//!
//! Deleting it loses nothing but time, and everything here follows from that. Updates are queued and written in one
//! durable transaction every few seconds by a thread of its own; when the queue is full they are dropped and counted.
//! A file that cannot be read is moved aside with a line in the log, and a new one begun. A disk that is full or
//! fails means running on without persistence, said once; an hour later it is tried again.
//!
//! Bounds: 50,000 nodes and 64 MiB. When one is reached, nodes that are not in yet are refused (as in the table, a
//! live node is not displaced) until the hourly sweep has removed those that did not answer for a day. The sweep
//! begins only after some node has answered in this run: a machine that was off for three days keeps its seeds. Of peers
//! the last [`MAX_PEERS`] are kept; the one that has been gone for the longest time makes room.
//!
//! Left out: our own record's sequence and the lists of peers, which must not be lost ([`super::state_file`]).

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

/// Updates that wait for the writer. A busy table makes a few each second; a write takes milliseconds.
const QUEUE: usize = 4096;

/// How old a seed may be (go-ethereum's number).
pub const SEED_AGE: Duration = Duration::from_secs(5 * 24 * 3600);

/// Peers that are kept: several times what a node has at a time, so that those of a bad hour do not push out the rest.
pub const MAX_PEERS: u64 = 256;

/// How old a peer may be to be dialed first. Longer than [`SEED_AGE`]: a node that served us for hours is worth a dial
/// after a month of absence, and there are few.
pub const PEER_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the database may grow to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nodes.
    pub nodes: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { nodes: 50_000, bytes: 64 * 1024 * 1024 }
    }
}

/// Something to remember about a node. Only nodes that passed several liveness checks are worth it.
#[derive(Clone, Debug)]
pub enum Update {
    /// Its record; kept if there is none or an older one.
    Record(Record),
    /// It answered our PING.
    Pong {
        /// The node.
        id: NodeId,
        /// From where.
        ip: IpAddr,
        /// Unix seconds.
        at: u64,
    },
    /// We dialed it and it is or was our peer; `served` is the time that is to be added.
    Peer(Box<StoredPeer>),
    /// It was our peer for a moment only: if it never was for longer, it is not to be dialed first.
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

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Updates dropped because the queue was full.
    pub dropped: u64,
    /// Updates lost because the disk failed.
    pub lost: u64,
    /// New nodes refused at a limit.
    pub refused: u64,
    /// Updates about nodes of which no record is known.
    pub without_record: u64,
    /// Nodes removed by the sweep.
    pub expired: u64,
}

impl Counters {
    /// All counters with their names in metrics. A new one cannot be left out: this does not compile without it.
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

/// A handle on the database; clones share it. When the last one is dropped, what is queued is written.
#[derive(Clone, Debug)]
pub struct NodeDb {
    commands: SyncSender<Command>,
    dropped: Arc<AtomicU64>,
    counters: Arc<Mutex<Counters>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl NodeDb {
    /// Starts the thread that owns the database at `path`. Never fails for what the file is like; the error is the
    /// system's, when it has no thread to give.
    pub fn start(path: impl Into<PathBuf>, limits: Limits, rng: StdRng) -> std::io::Result<Self> {
        let (commands, queue) = std::sync::mpsc::sync_channel(QUEUE);
        let counters = Arc::new(Mutex::new(Counters::default()));
        let worker = worker::Worker::new(path.into(), limits, rng, counters.clone());
        let thread = std::thread::Builder::new().name("node-db".into()).spawn(move || worker.run(queue))?;
        Ok(Self { commands, dropped: Arc::default(), counters, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Queues an update. Never waits: when the queue is full, it is dropped and counted.
    pub fn update(&self, update: Update) {
        if self.commands.try_send(Command::Update(update)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What is stored of a node, everything queued before included.
    #[cfg(test)]
    pub async fn get(&self, id: NodeId) -> Option<StoredNode> {
        self.ask(|reply| Command::Get { id, reply }).await.flatten()
    }

    /// Up to `count` random nodes that answered within [`SEED_AGE`].
    pub async fn seeds(&self, count: usize) -> Vec<StoredNode> {
        self.ask(|reply| Command::Seeds { count, reply }).await.unwrap_or_default()
    }

    /// Up to `count` peers of the last [`PEER_AGE`], those that served longest first.
    pub async fn peers(&self, count: usize) -> Vec<StoredPeer> {
        self.ask(|reply| Command::Peers { count, reply }).await.unwrap_or_default()
    }

    /// How many nodes are stored.
    #[cfg(test)]
    pub async fn count(&self) -> u64 {
        self.ask(|reply| Command::Count { reply }).await.unwrap_or(0)
    }

    /// Writes what is queued and closes the file; later calls do nothing.
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
                // The thread drains the queue in milliseconds; closing must not be dropped like an update.
                Err(TrySendError::Full(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(TrySendError::Disconnected(_)) => return,
                Ok(()) => {
                    let _ = closed.await;
                    return;
                }
            }
        }
    }

    /// What has happened since the start.
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
