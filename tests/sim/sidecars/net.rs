//! The state that all parts of a world share: the time, the randomness, the connections, the ledger and the trace.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher as _},
    time::{Duration, Instant},
};

use devp2pd::{Enode, NodeId, Now};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{ledger::Ledger, link::Links};

/// See the [module](self).
pub(super) struct Net {
    pub(super) now: Now,
    start: Instant,
    pub(super) rng: StdRng,
    pub(super) links: Links,
    pub(super) ledger: Ledger,
    /// The addresses of the nodes that discovery can find.
    pub(super) directory: BTreeMap<NodeId, Enode>,
    /// Whether the quiet time has begun: discovery finds nodes, names resolve, and tasks are quick.
    pub(super) is_calm: bool,
    trace: DefaultHasher,
    /// Whether the trace is printed.
    shown: bool,
    pub(super) steps: u64,
}

impl Net {
    pub(super) fn new(seed: u64, shown: bool) -> Self {
        let mono = origin();
        Self {
            now: Now { mono, unix: Duration::from_secs(1_800_000_000) },
            start: mono,
            rng: StdRng::seed_from_u64(seed),
            links: Links::default(),
            ledger: Ledger::default(),
            directory: BTreeMap::new(),
            is_calm: false,
            trace: DefaultHasher::new(),
            shown,
            steps: 0,
        }
    }

    /// Adds an event to the digest of the run, and prints it if the trace is shown.
    pub(super) fn note(&mut self, what: impl Hash + std::fmt::Debug) {
        let time = self.now.mono - self.start;
        if self.shown {
            eprintln!("{:>12.6} {what:?}", time.as_secs_f64());
        }
        (time, what).hash(&mut self.trace);
    }

    /// The digest of the run: a number that is the same for equal runs.
    pub(super) fn digest(&self) -> u64 {
        self.trace.finish()
    }

    /// The time that has passed since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.now.mono - self.start
    }

    /// The time at which a task receives an item that is sent now: mostly soon, seldom late. So the events of two tasks
    /// change their order.
    pub(super) fn soon(&mut self) -> Instant {
        let most = match self.rng.random_range(0..100) {
            0..50 => 0,
            50..85 => 3_000,
            85..98 => 100_000,
            _ if self.is_calm => 100_000,
            _ => 1_500_000,
        };
        self.now.mono + Duration::from_micros(self.rng.random_range(0..=most))
    }

    /// The duration of a dial, of a lookup of a name, or of a resolve.
    pub(super) fn dial_time(&mut self) -> Duration {
        let most = if self.rng.random_bool(0.9) { 200 } else { 4_000 };
        Duration::from_millis(self.rng.random_range(0..most))
    }

    /// The latency of a new connection.
    pub(super) fn latency(&mut self) -> Duration {
        Duration::from_micros(match self.rng.random_range(0..10) {
            0 => 0,
            1..7 => self.rng.random_range(100..5_000),
            _ => self.rng.random_range(5_000..400_000),
        })
    }

    /// The address that discovery returns for a node. Before the quiet time it finds none in 30 % of the cases.
    pub(super) fn locate(&mut self, id: &NodeId) -> Option<Enode> {
        if !self.is_calm && self.rng.random_bool(0.3) {
            return None;
        }
        self.directory.get(id).cloned()
    }
}

#[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
fn origin() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}
