//! A network of discv4 nodes: whether lookups find every node that can be reached, how fast, and with how many packets.

use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};

use crate::network::{Network, internet};

#[test]
fn a_seed_reproduces_a_run_exactly() {
    let run = |seed| {
        let mut network = Network::new(60, 0.3, internet(), seed);
        network.run(Duration::from_secs(30));
        (network.trace, network.sent)
    };
    let (first, again, other) = (run(1), run(1), run(2));
    assert_eq!(first, again);
    assert_ne!(first, other);
}

/// 1,000 nodes. An unoptimized build is ten times as slow, and uses fewer.
const SIZE: usize = if cfg!(debug_assertions) { 200 } else { 1_000 };

/// How often a node is looked up at most.
const ROUNDS: usize = 5;

#[test]
fn every_reachable_node_is_found() {
    let seed = 4;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut network = Network::new(SIZE, 0.3, internet(), seed);
    network.run(Duration::from_secs(90));
    let before = network.sent;
    network.run(Duration::from_secs(15));
    let idle = (network.sent - before) / 15;
    println!("{SIZE} nodes, seed {seed}: {before} packets to get going, then {idle} a second in all");
    let mut wanted: Vec<usize> = (0..SIZE).filter(|n| !network.nodes[*n].behind_router).collect();
    // A lookup may fail when one in five packets is lost, and a node may have lost packets with all of its neighbours.
    // So it is looked up again, from other nodes and after some time, in which tables are checked and filled.
    for round in 1..=ROUNDS {
        let (start, before) = (network.now.mono, network.sent);
        let (found, mut times) = network.look_for(&wanted, &mut rng);
        times.sort_unstable();
        let cost = (network.sent - before).saturating_sub(idle * (network.now.mono - start).as_secs());
        let lookups = wanted.len();
        wanted = wanted.into_iter().zip(found).filter(|(_, found)| !found).map(|(n, _)| n).collect();
        println!(
            "round {round}: {lookups} lookups, {} found; {:.1} s in the median, {:.1} s at the most, {} packets each",
            lookups - wanted.len(),
            times[lookups / 2].as_secs_f64(),
            times[lookups - 1].as_secs_f64(),
            cost / u64::try_from(lookups).unwrap(),
        );
        if round == 1 {
            assert!(
                wanted.len() * 10 <= lookups,
                "seed {seed}: the first lookup misses {} of {lookups}",
                wanted.len()
            );
        }
        if wanted.is_empty() {
            break;
        }
        network.run(Duration::from_secs(60));
    }
    assert!(wanted.is_empty(), "never found with seed {seed}: {wanted:?}");
    assert!(network.nodes.iter().all(|node| node.engine.is_consistent()));
}
