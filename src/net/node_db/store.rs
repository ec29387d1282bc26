//! The database file: writes, reads and sweeps. All functions here block.
//!
//! One table holds the nodes by id, one the peers, and one the schema version. An unknown schema counts as damage: the
//! file is moved aside like any other that cannot be read, because all nodes in it can be found again.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::Path,
    time::Duration,
};

use rand::{Rng, rngs::StdRng};
use redb::{Builder, Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use super::{
    Counters, Limits, MAX_PEERS, Update,
    peer::StoredPeer,
    row::{StoredNode, last_pong},
};
use crate::node::NodeId;

const NODES: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("nodes");
const PEERS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("peers");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// The version of the schema. It must be raised when the format of rows changes.
const SCHEMA: u64 = 1;

/// The bytes of pages that are kept in memory. The database is read at the start and for a few lookups a minute.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// The sweep removes nodes that have not answered for this time: one day (go-ethereum's number).
pub(super) const EXPIRY: Duration = Duration::from_secs(24 * 3600);

type Result<T> = std::result::Result<T, redb::Error>;

/// Whether an error means that the content of the file is damaged, and not that the disk failed.
pub(super) fn is_damage(error: &redb::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    match error {
        redb::Error::Io(error) => matches!(error.kind(), InvalidData | UnexpectedEof),
        redb::Error::PreviousIo
        | redb::Error::DatabaseClosed
        | redb::Error::DatabaseAlreadyOpen
        | redb::Error::LockPoisoned(_) => false,
        _ => true,
    }
}

#[derive(Debug)]
pub(super) struct Store {
    database: Database,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::prepare(Builder::new().set_cache_size(CACHE_BYTES).create(path)?)
    }

    /// Makes the tables if they do not exist, and checks that the schema is ours.
    pub(super) fn prepare(database: Database) -> Result<Self> {
        let transaction = database.begin_write()?;
        {
            transaction.open_table(NODES)?;
            // A file of an earlier version does not have this table. Its nodes are still valid.
            transaction.open_table(PEERS)?;
            let mut meta = transaction.open_table(META)?;
            let schema = meta.get("schema")?.map(|row| row.value());
            match schema {
                None => {
                    meta.insert("schema", SCHEMA)?;
                }
                Some(SCHEMA) => {}
                Some(other) => {
                    return Err(redb::Error::Corrupted(format!("schema {other} is not ours ({SCHEMA})")));
                }
            }
        }
        transaction.commit()?;
        Ok(Self { database })
    }

    /// Applies `updates` in order, in one durable transaction. If `full` is set, nodes that are not stored yet are
    /// refused.
    pub(super) fn write(
        &self,
        updates: Vec<Update>,
        limits: Limits,
        full: bool,
        counters: &mut Counters,
    ) -> Result<()> {
        let transaction = self.database.begin_write()?;
        {
            let (peers, nodes): (Vec<Update>, Vec<Update>) = updates
                .into_iter()
                .partition(|update| matches!(update, Update::Peer(_) | Update::PeerLeft(_)));
            if !peers.is_empty() {
                write_peers(&mut transaction.open_table(PEERS)?, peers)?;
            }
            let mut table = transaction.open_table(NODES)?;
            let mut rows: HashMap<NodeId, Option<StoredNode>> = HashMap::new();
            for update in nodes {
                let id = update.id();
                let row = match rows.entry(id) {
                    Entry::Occupied(row) => row.into_mut(),
                    // A row that cannot be read counts as no row.
                    Entry::Vacant(place) => {
                        place.insert(table.get(&id.0)?.and_then(|row| StoredNode::decode(row.value()).ok()))
                    }
                };
                apply(row, update, counters);
            }
            for (id, row) in rows {
                let Some(row) = row else {
                    table.remove(&id.0)?;
                    continue;
                };
                let room = !full && table.len()? < limits.nodes;
                if room || table.get(&id.0)?.is_some() {
                    table.insert(&id.0, row.encode().as_slice())?;
                } else {
                    counters.refused += 1;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn get(&self, id: NodeId) -> Result<Option<StoredNode>> {
        let table = self.database.begin_read()?.open_table(NODES)?;
        Ok(table.get(&id.0)?.and_then(|row| StoredNode::decode(row.value()).ok()))
    }

    /// Returns up to `count` random nodes that answered at `since` (Unix seconds) or later. Each is equally likely.
    ///
    /// Every row is read, but only the signatures of the chosen rows are checked. That takes tens of milliseconds when
    /// the database is full, on the thread of the database, a few times an hour.
    pub(super) fn seeds(&self, count: usize, since: u64, rng: &mut StdRng) -> Result<Vec<StoredNode>> {
        let table = self.database.begin_read()?.open_table(NODES)?;
        let (mut chosen, mut fresh): (Vec<Vec<u8>>, usize) = (Vec::new(), 0);
        for row in table.iter()? {
            let (_, row) = row?;
            if !last_pong(row.value()).is_ok_and(|at| at >= since) {
                continue;
            }
            // Reservoir sampling: the n-th fresh row replaces a chosen one with probability count / n.
            fresh += 1;
            if chosen.len() < count {
                chosen.push(row.value().to_vec());
            } else if let Some(place) = chosen.get_mut(rng.random_range(0..fresh)) {
                *place = row.value().to_vec();
            }
        }
        Ok(chosen.iter().filter_map(|row| StoredNode::decode(row).ok()).collect())
    }

    /// Returns up to `count` peers that were connected at `since` (Unix seconds) or later, those that served longest
    /// first.
    pub(super) fn peers(&self, count: usize, since: u64) -> Result<Vec<StoredPeer>> {
        let table = self.database.begin_read()?.open_table(PEERS)?;
        let mut peers = Vec::new();
        for row in table.iter()? {
            let (_, row) = row?;
            peers.extend(StoredPeer::decode(row.value()).ok().filter(|peer| peer.last >= since));
        }
        peers.sort_by_key(|peer| std::cmp::Reverse((peer.served, peer.last)));
        peers.truncate(count);
        Ok(peers)
    }

    /// Removes the nodes that have not answered for [`EXPIRY`]. Returns their number. `unix` is the current time in
    /// Unix seconds.
    pub(super) fn sweep(&self, unix: u64) -> Result<u64> {
        let transaction = self.database.begin_write()?;
        let removed = {
            let mut table = transaction.open_table(NODES)?;
            let before = table.len()?;
            let oldest = unix.saturating_sub(EXPIRY.as_secs());
            table.retain(|_, row| last_pong(row).is_ok_and(|at| at >= oldest))?;
            before.saturating_sub(table.len()?)
        };
        transaction.commit()?;
        Ok(removed)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> Result<u64> {
        Ok(self.database.begin_read()?.open_table(NODES)?.len()?)
    }

    /// Gives free pages back to the file system.
    pub(super) fn compact(&mut self) -> Result<()> {
        self.database.compact()?;
        Ok(())
    }
}

/// Applies `updates` of peers in order. If there are then too many peers, removes those that disconnected the longest
/// time ago.
fn write_peers(table: &mut redb::Table<'_, &[u8; 32], &[u8]>, updates: Vec<Update>) -> Result<()> {
    for update in updates {
        let id = update.id();
        // A row that cannot be read counts as no row.
        let stored = table.get(&id.0)?.and_then(|row| StoredPeer::decode(row.value()).ok());
        let kept = match (stored, update) {
            (Some(mut peer), Update::Peer(session)) => {
                peer.add(*session);
                Some(peer)
            }
            (None, Update::Peer(session)) => Some(*session),
            (peer, _) => peer.filter(|peer| !peer.served.is_zero()),
        };
        match kept {
            Some(peer) => drop(table.insert(&id.0, peer.encode().as_slice())?),
            None => drop(table.remove(&id.0)?),
        }
    }
    let excess = usize::try_from(table.len()?.saturating_sub(MAX_PEERS)).unwrap_or(usize::MAX);
    if excess > 0 {
        let mut all = Vec::new();
        for row in table.iter()? {
            let (id, row) = row?;
            all.push((StoredPeer::decode(row.value()).map_or(0, |peer| peer.last), *id.value()));
        }
        all.sort_unstable();
        for (_, id) in all.iter().take(excess) {
            table.remove(id)?;
        }
    }
    Ok(())
}

/// Applies `update` to a row. The liveness of a node without a record is not stored, as such a node cannot be used.
fn apply(row: &mut Option<StoredNode>, update: Update, counters: &mut Counters) {
    match (row.as_mut(), update) {
        // Updates of peers do not come here: `write_peers` applies them to a table of their own.
        (_, Update::Peer(_) | Update::PeerLeft(_)) => {}
        (None, Update::Record(record)) => *row = Some(StoredNode::new(record)),
        (None, _) => counters.without_record += 1,
        (Some(node), Update::Record(record)) => {
            if record.seq() > node.record.seq() {
                node.record = record;
            }
        }
        (Some(node), Update::Pong { ip, at, .. }) => node.answered(ip, at),
    }
}
