//! The thread that owns the database file: batches, the hourly sweep, and the handling of damaged files and failed
//! disks.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use rand::rngs::StdRng;

use super::{
    Command, Counters, Limits, PEER_AGE, SEED_AGE, StoredNode, StoredPeer, Update,
    store::{Store, is_damage},
};
use crate::net::clock;

/// The time that an update waits for others before the batch is written. A crash can lose the updates of this time.
const BATCH_TIME: Duration = Duration::from_secs(3);

/// The most updates in one transaction.
const BATCH: usize = 4096;

/// The time between two sweeps of old nodes, and the time after which a failed disk is tried again.
const SWEEP: Duration = Duration::from_secs(3600);

pub(super) struct Worker {
    path: PathBuf,
    limits: Limits,
    rng: StdRng,
    counters: Arc<Mutex<Counters>>,
    /// The open file. `None`: the disk has failed.
    store: Option<Store>,
    batch: Vec<Update>,
    flush_at: Option<Instant>,
    sweep_at: Instant,
    /// Whether a node has answered in this run.
    alive: bool,
}

impl Worker {
    pub(super) fn new(path: PathBuf, limits: Limits, rng: StdRng, counters: Arc<Mutex<Counters>>) -> Self {
        let sweep_at = clock::now().mono + SWEEP;
        Self {
            path,
            limits,
            rng,
            counters,
            store: None,
            batch: Vec::new(),
            flush_at: None,
            sweep_at,
            alive: false,
        }
    }

    pub(super) fn run(mut self, queue: Receiver<Command>) {
        self.open();
        loop {
            let now = clock::now().mono;
            let due = self.flush_at.map_or(self.sweep_at, |at| at.min(self.sweep_at));
            match queue.recv_timeout(due.saturating_duration_since(now)) {
                Ok(Command::Update(update)) => self.take(now, update),
                // Sending fails if the caller has given up, which is no error.
                #[cfg(test)]
                Ok(Command::Get { id, reply }) => _ = reply.send(self.get(id)),
                Ok(Command::Seeds { count, reply }) => _ = reply.send(self.seeds(count)),
                Ok(Command::Peers { count, reply }) => _ = reply.send(self.peers(count)),
                #[cfg(test)]
                Ok(Command::Count { reply }) => _ = reply.send(self.count()),
                Ok(Command::Close { reply }) => {
                    self.flush();
                    self.store = None;
                    // The queue is dropped before the reply, so that later updates fail to be sent and count as
                    // dropped.
                    drop(queue);
                    _ = reply.send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.flush(),
            }
            let now = clock::now();
            if self.flush_at.is_some_and(|at| at <= now.mono) {
                self.flush();
            }
            if self.sweep_at <= now.mono {
                self.sweep_at = now.mono + SWEEP;
                self.sweep(now.unix.as_secs());
            }
        }
    }

    fn take(&mut self, now: Instant, update: Update) {
        self.alive |= matches!(update, Update::Pong { .. });
        self.batch.push(update);
        self.flush_at.get_or_insert(now + BATCH_TIME);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        self.flush_at = None;
        let updates = std::mem::take(&mut self.batch);
        if updates.is_empty() {
            return;
        }
        let (count, limits, full) = (updates.len() as u64, self.limits, self.is_full());
        let mut counters = *self.lock();
        let written = self.with_store(|store| store.write(updates, limits, full, &mut counters));
        if written.is_none() {
            counters.lost += count;
        }
        *self.lock() = counters;
    }

    #[cfg(test)]
    fn get(&mut self, id: crate::node::NodeId) -> Option<StoredNode> {
        self.flush();
        self.with_store(|store| store.get(id)).flatten()
    }

    fn seeds(&mut self, count: usize) -> Vec<StoredNode> {
        self.flush();
        let since = clock::now().unix.saturating_sub(SEED_AGE).as_secs();
        let mut rng = self.rng.clone();
        let seeds = self.with_store(|store| store.seeds(count, since, &mut rng)).unwrap_or_default();
        self.rng = rng;
        seeds
    }

    fn peers(&mut self, count: usize) -> Vec<StoredPeer> {
        self.flush();
        let since = clock::now().unix.saturating_sub(PEER_AGE).as_secs();
        self.with_store(|store| store.peers(count, since)).unwrap_or_default()
    }

    #[cfg(test)]
    fn count(&mut self) -> u64 {
        self.flush();
        self.with_store(|store| store.len()).unwrap_or(0)
    }

    pub(super) fn sweep(&mut self, unix: u64) {
        if self.store.is_none() {
            self.open();
        }
        if !self.alive {
            return;
        }
        self.flush();
        if let Some(expired) = self.with_store(|store| store.sweep(unix)) {
            self.lock().expired += expired;
            tracing::debug!(expired, "swept the node database");
        }
        if self.is_full() {
            self.with_store(Store::compact);
        }
    }

    /// Whether the file is above its limit. Removing rows alone does not make the file smaller.
    fn is_full(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|file| file.len() > self.limits.bytes)
    }

    /// Opens the file. If it is damaged, moves it aside and makes a new one.
    fn open(&mut self) {
        match guarded(|| Store::open(&self.path)) {
            Ok(store) => self.store = Some(store),
            Err(error) if is_damage(&error) => self.begin_anew(&error),
            Err(error) => self.give_up(&error),
        }
    }

    fn begin_anew(&mut self, error: &redb::Error) {
        self.store = None;
        match move_aside(&self.path) {
            Ok(aside) => tracing::warn!(
                file = %self.path.display(), aside = %aside.display(), %error,
                "the node database is damaged; it was moved aside, and the sidecar begins with a new one"
            ),
            Err(error) => return self.give_up(&error.into()),
        }
        match guarded(|| Store::open(&self.path)) {
            Ok(store) => self.store = Some(store),
            Err(error) => self.give_up(&error),
        }
    }

    /// Runs on without a file. The log says so once each time the file is lost, and not for each batch.
    fn give_up(&mut self, error: &redb::Error) {
        self.store = None;
        tracing::warn!(
            file = %self.path.display(), %error,
            "the node database cannot be used; the sidecar runs without it and tries again in an hour. Check the disk \
             and the owner of the file"
        );
    }

    /// Runs `act` on the file, and handles its error. Returns `None` if there is no file or `act` failed.
    fn with_store<T>(&mut self, act: impl FnOnce(&mut Store) -> Result<T, redb::Error>) -> Option<T> {
        let store = self.store.as_mut()?;
        match guarded(|| act(store)) {
            Ok(value) => Some(value),
            Err(error) if is_damage(&error) => {
                self.begin_anew(&error);
                None
            }
            Err(error) => {
                self.give_up(&error);
                None
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn with(store: Store, limits: Limits, counters: Arc<Mutex<Counters>>) -> Self {
        let mut worker =
            Self::new(PathBuf::from("no such file"), limits, rand::SeedableRng::seed_from_u64(1), counters);
        worker.store = Some(store);
        worker
    }

    #[cfg(test)]
    pub(super) fn take_now(&mut self, update: Update) {
        self.take(clock::now().mono, update);
    }

    #[cfg(test)]
    pub(super) fn is_open(&self) -> bool {
        self.store.is_some()
    }
}

/// Runs `act`, and turns a panic into an error: some kinds of damage make the database library panic.
fn guarded<T>(act: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    catch_unwind(AssertUnwindSafe(act))
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("reading it made the database library panic".into())))
}

/// Renames the file, so that the operator can examine it. An older damaged file is replaced, so at most one is kept.
fn move_aside(path: &Path) -> std::io::Result<PathBuf> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    std::fs::rename(path, &aside)?;
    Ok(aside)
}
