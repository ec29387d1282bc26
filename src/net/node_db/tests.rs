//! The database across restarts, at its limits, with damaged files, and on a disk that becomes full.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng};
use redb::{Database, StorageBackend, backends::InMemoryBackend};

use super::{
    Counters, Limits, MAX_PEERS, NodeDb, StoredNode, StoredPeer, Update, row::Liveness, store::Store,
    worker::Worker,
};
use crate::{
    dnsdisc::zone::records,
    net::clock,
    node::{NodeId, Record},
};

fn open(path: &Path, limits: Limits) -> NodeDb {
    NodeDb::start(path, limits, StdRng::seed_from_u64(1)).unwrap()
}

/// Stores nodes that last answered `age` seconds ago.
fn store(db: &NodeDb, records: &[Record], age: u64) {
    for record in records {
        db.update(Update::Record(record.clone()));
        db.update(pong(record, age));
    }
}

fn pong(record: &Record, age: u64) -> Update {
    let (id, ip) = (record.id(), record.ip4().unwrap().into());
    Update::Pong { id, ip, at: clock::now().unix.as_secs() - age }
}

fn ids(nodes: &[StoredNode]) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = nodes.iter().map(|node| node.record.id()).collect();
    ids.sort_unstable();
    ids
}

fn sorted(records: &[Record]) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = records.iter().map(Record::id).collect();
    ids.sort_unstable();
    ids
}

const HOUR: u64 = 3600;

#[tokio::test]
async fn nodes_outlive_a_restart_and_the_fresh_ones_are_seeds() {
    let dir = tempfile::tempdir().unwrap();
    let (path, records) = (dir.path().join("nodes.redb"), records(0..30));
    let db = open(&path, Limits::default());
    assert_eq!(db.seeds(30).await, []);
    store(&db, &records[..10], 4 * 24 * HOUR);
    store(&db, &records[10..20], 6 * 24 * HOUR);
    records[20..].iter().for_each(|record| db.update(Update::Record(record.clone())));
    db.close().await;
    db.update(Update::PeerLeft(records[0].id()));
    assert_eq!(db.counters().dropped, 1, "an update after the close is dropped");
    let db = open(&path, Limits::default());
    assert_eq!(ids(&db.seeds(30).await), sorted(&records[..10]));
    assert_eq!(db.seeds(3).await.len(), 3);
    assert_eq!(db.count().await, 30);
    let node = db.get(records[15].id()).await.unwrap();
    assert_eq!((node.record, node.seen.len()), (records[15].clone(), 1));
}

#[tokio::test]
async fn updates_apply_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("nodes.redb"), Limits::default());
    let record = records(0..1).remove(0);
    let (id, ip) = (record.id(), "9.9.9.9".parse().unwrap());
    db.update(Update::Pong { id, ip, at: 5 });
    assert_eq!((db.get(id).await, db.counters().without_record), (None, 1));
    db.update(Update::Record(record.clone()));
    db.update(Update::Pong { id, ip, at: 9 });
    db.update(Update::Pong { id, ip, at: 8 });
    assert_eq!(db.get(id).await.unwrap().seen, [Liveness { ip, last_pong: 9 }]);
    assert_eq!(db.count().await, 1);
}

#[tokio::test]
async fn at_the_limit_new_nodes_are_refused_and_old_ones_kept_up() {
    let dir = tempfile::tempdir().unwrap();
    let records = records(0..20);
    let db = open(&dir.path().join("nodes.redb"), Limits { nodes: 10, bytes: u64::MAX });
    store(&db, &records[..10], HOUR);
    assert_eq!(db.count().await, 10);
    store(&db, &records[10..], 0);
    db.update(pong(&records[0], 0));
    assert_eq!((db.count().await, db.counters().refused), (10, 10));
    assert!(db.get(records[0].id()).await.unwrap().seen[0].last_pong + 60 > clock::now().unix.as_secs());
    db.close().await;
    // The limit in bytes: a file that is too large takes no more nodes.
    let db = open(&dir.path().join("nodes.redb"), Limits { nodes: 100, bytes: 1 });
    store(&db, &records[10..], 0);
    assert_eq!((db.count().await, db.counters().refused), (10, 10));
}

#[test]
fn the_sweep_removes_what_has_not_answered_for_a_day() {
    let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    let counters = Arc::new(Mutex::new(Counters::default()));
    let mut worker = Worker::with(Store::prepare(database).unwrap(), Limits::default(), counters.clone());
    let (records, unix) = (records(0..4), clock::now().unix.as_secs());
    records.iter().for_each(|record| worker.take_now(Update::Record(record.clone())));
    worker.flush();
    worker.sweep(unix);
    assert_eq!(counters.lock().unwrap().expired, 0, "no node is removed before one has answered in this run");
    worker.take_now(pong(&records[0], 23 * HOUR));
    worker.take_now(pong(&records[1], 25 * HOUR));
    worker.sweep(unix);
    assert_eq!(counters.lock().unwrap().expired, 3);
    worker.sweep(unix + 2 * HOUR);
    assert_eq!(counters.lock().unwrap().expired, 4);
}

#[tokio::test]
async fn a_damaged_file_is_moved_aside_and_a_new_one_begun() {
    let dir = tempfile::tempdir().unwrap();
    let (path, records) = (dir.path().join("nodes.redb"), records(0..200));
    let db = open(&path, Limits::default());
    store(&db, &records, 0);
    db.close().await;
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 3..whole.len() / 2].iter_mut().for_each(|byte| *byte ^= 0x55);
    let mut header = whole.clone();
    header[..512].fill(0xff);
    for (name, bytes) in [
        ("cut in half", &whole[..whole.len() / 2]),
        ("cut after the first page", &whole[..4096]),
        ("not a database", b"enr:-not a database"),
        ("zeros", &vec![0; whole.len()]),
        ("a bad header", &header),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let db = open(&path, Limits::default());
        assert_eq!(db.seeds(30).await, [], "{name}");
        assert!(dir.path().join("nodes.redb.damaged").exists(), "{name}");
        store(&db, &records[..5], 0);
        assert_eq!(db.seeds(30).await.len(), 5, "{name}");
        db.close().await;
        std::fs::remove_file(dir.path().join("nodes.redb.damaged")).unwrap();
    }
    // Damage inside the file is noticed when that part is read, or it hides a node. It never ends the process.
    std::fs::write(&path, &flipped).unwrap();
    let db = open(&path, Limits::default());
    for record in &records {
        let _ = db.get(record.id()).await;
    }
    store(&db, &records[..5], 0);
    assert!(db.get(records[0].id()).await.is_some());
}

#[tokio::test]
async fn another_schema_is_not_guessed_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nodes.redb");
    let database = Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    let table = redb::TableDefinition::<&str, u64>::new("meta");
    write.open_table(table).unwrap().insert("schema", 99).unwrap();
    write.commit().unwrap();
    drop(database);
    let db = open(&path, Limits::default());
    assert_eq!(db.count().await, 0);
    assert!(dir.path().join("nodes.redb.damaged").exists());
}

#[tokio::test]
async fn a_directory_that_is_not_there_means_no_database_but_no_failure() {
    let db = open(Path::new("/nonexistent/nodes.redb"), Limits::default());
    store(&db, &records(0..3), 0);
    assert_eq!((db.count().await, db.counters().lost), (0, 6));
    db.close().await;
}

/// A disk that takes no more bytes once `full` is set.
#[derive(Debug)]
struct Disk {
    memory: InMemoryBackend,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.memory.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.room()?;
        self.memory.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.memory.write(offset, data)
    }
}

#[test]
fn a_full_disk_means_running_on_without_persistence() {
    let full = Arc::new(AtomicBool::new(false));
    let disk = Disk { memory: InMemoryBackend::new(), full: full.clone() };
    let database = Database::builder().create_with_backend(disk).unwrap();
    let counters = Arc::new(Mutex::new(Counters::default()));
    let mut worker = Worker::with(Store::prepare(database).unwrap(), Limits::default(), counters.clone());
    let records = records(0..20);
    worker.take_now(Update::Record(records[0].clone()));
    worker.flush();
    assert!(worker.is_open());
    full.store(true, Ordering::SeqCst);
    for record in &records {
        worker.take_now(Update::Record(record.clone()));
        worker.flush();
    }
    assert!(!worker.is_open(), "the file is closed, and is not tried again at every batch");
    assert_eq!(counters.lock().unwrap().lost, 20);
}

fn peer(record: &Record, served: u64, age: u64) -> Update {
    Update::Peer(Box::new(StoredPeer {
        public_key: record.public_key(),
        addr: (record.ip4().unwrap(), 30303).into(),
        record: Some(record.clone()),
        served: Duration::from_secs(served),
        last: clock::now().unix.as_secs() - age,
    }))
}

#[tokio::test]
async fn peers_outlive_a_restart_and_those_that_served_longest_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let (path, records) = (dir.path().join("nodes.redb"), records(0..5));
    let db = open(&path, Limits::default());
    db.update(peer(&records[0], 100, 0));
    db.update(peer(&records[1], 500, HOUR));
    db.update(peer(&records[2], 300, 0));
    // The times of two sessions are added.
    db.update(peer(&records[0], 900, 0));
    // This peer was connected more than a month ago.
    db.update(peer(&records[3], 5_000, 31 * 24 * HOUR));
    // A node that was a peer for a moment only is removed. One that served before, and disconnected at once this time,
    // stays.
    db.update(peer(&records[4], 0, 0));
    db.update(Update::PeerLeft(records[4].id()));
    db.update(Update::PeerLeft(records[2].id()));
    db.close().await;
    let db = open(&path, Limits::default());
    let ids = |peers: Vec<StoredPeer>| peers.iter().map(StoredPeer::id).collect::<Vec<_>>();
    let expected: Vec<NodeId> = [0, 1, 2].map(|index: usize| records[index].id()).into();
    assert_eq!(ids(db.peers(10).await), expected);
    assert_eq!(ids(db.peers(2).await), expected[..2]);
    assert_eq!(db.peers(1).await[0].served, Duration::from_secs(1_000));
    // Peers do not count as nodes of the database.
    assert_eq!((db.count().await, db.counters()), (0, Counters::default()));
}

#[tokio::test]
async fn the_peer_that_has_been_gone_longest_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let (path, count) = (dir.path().join("nodes.redb"), MAX_PEERS as usize);
    let records = records(0..count as u32 + 5);
    let db = open(&path, Limits::default());
    for (index, record) in records.iter().enumerate() {
        db.update(peer(record, 100, 1_000 + index as u64));
    }
    let kept: Vec<NodeId> = db.peers(usize::MAX).await.iter().map(StoredPeer::id).collect();
    assert_eq!(kept, records[..count].iter().map(Record::id).collect::<Vec<_>>());
}
