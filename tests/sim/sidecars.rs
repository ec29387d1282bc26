//! Whole sidecars in virtual time: several switches with their connections, leases and queues, applications that come
//! and go, peers that break the protocol, and a network that fails. RLPx is the real one.
//!
//! | file | what it is |
//! | --- | --- |
//! | `world` | all of them in one virtual time, and the scheduler of their tasks |
//! | `run` | one run: the disturbances, the quiet time, the stop of all sidecars |
//! | `check` | the conditions that must hold |
//! | `sidecar` | the driver of one switch, and how a sidecar starts, stops and crashes |
//! | `command` | the calls of applications and operators |
//! | `connection` | the driver of one connection |
//! | `application` | processes that attach, read and send |
//! | `liar` | peers that do not keep to the protocol |
//! | `link` | TCP connections |
//! | `mailbox` | the queues between tasks |
//! | `ledger` | the record of all messages and sessions |
//! | `net` | the state that all of them share |
//! | `faults` | checks that the planted faults still apply to the code |
//!
//! Each seed gives one run, which repeats exactly. A failure names its seed, and
//! `DEVP2PD_SEED=<seed> cargo test --test sim sidecars::one_seed -- --nocapture` runs that seed again and prints its
//! events. `DEVP2PD_SEEDS` sets the number of seeds.
//!
//! The folder `faults` has patches. Each plants one fault in the switch, the leases or the delivery. `.ci/full seeds`
//! applies them one after the other, and expects the simulation to find each.
//!
//! Left out: gRPC, discovery (its answers are made up), and the speed of peers and applications, which `flow` tests.

mod application;
mod check;
mod command;
mod connection;
mod faults;
mod ledger;
mod liar;
mod link;
mod mailbox;
mod net;
mod run;
mod sidecar;
mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use run::{Outcome, run};

/// The number of seeds. They take about 20 s in `cargo test`, and 3 minutes in `.ci/run`, which builds with
/// optimizations.
const SEEDS: u64 = if cfg!(debug_assertions) { 120 } else { 2_000 };

/// The number of failures after which no more seeds are run. `DEVP2PD_FAILURES` sets another number.
const FAILURES: u64 = 8;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Runs the seeds below `count` on all processors. Returns the sum of their outcomes, and the failures by seed.
fn run_all(count: u64) -> (Outcome, BTreeMap<u64, String>) {
    let most = from_environment("DEVP2PD_FAILURES").unwrap_or(FAILURES);
    let next = AtomicU64::new(0);
    let found = Mutex::new((Outcome::default(), BTreeMap::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count || found.lock().unwrap().1.len() as u64 >= most {
                return;
            }
            let outcome = run(seed, false);
            let (sum, failures) = &mut *found.lock().unwrap();
            match outcome {
                Ok(outcome) => sum.add(&outcome),
                Err(failure) => drop(failures.insert(seed, failure)),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    found.into_inner().unwrap()
}

#[test]
fn every_seed_keeps_what_the_sidecar_promises() {
    let count = from_environment("DEVP2PD_SEEDS").unwrap_or(SEEDS);
    let (sum, failures) = run_all(count);
    println!(
        "{count} seeds: {:.1} simulated hours, {} steps, {} sessions, {} messages delivered, {} reported as lost",
        sum.time.as_secs_f64() / 3600.0,
        sum.steps,
        sum.sessions,
        sum.delivered,
        sum.lost
    );
    let told: Vec<String> =
        failures.iter().map(|(seed, failure)| format!("seed {seed}: {failure}")).collect();
    assert!(
        told.is_empty(),
        "{}\nDEVP2PD_SEED=<seed> cargo test --test sim sidecars::one_seed -- --nocapture shows a run",
        told.join("\n")
    );
    assert!(sum.sessions > 0 && sum.delivered > 0 && sum.lost > 0, "these runs show nothing");
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in 0..4 {
        assert_eq!(run(seed, false), run(seed, false), "seed {seed}");
    }
}

/// Runs the seed that `DEVP2PD_SEED` names, and prints its events.
#[test]
fn one_seed() {
    let seed = from_environment("DEVP2PD_SEED");
    let outcome = run(seed.unwrap_or_default(), seed.is_some());
    println!("{outcome:?}");
    assert!(outcome.is_ok(), "{outcome:?}");
}
