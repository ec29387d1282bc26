//! A discovery network of 10,000 nodes in one process, in virtual time: its start, and the cost of a lookup.
//!
//! ```text
//! cargo run --release --example network -- [NODES [SEED [FILE.svg]]]
//! ```
//!
//! Every node is the engine that the sidecar runs; between them packets are delayed and one in five is lost, and three
//! nodes in ten are behind routers. Signatures are looked up instead of computed. The same seed gives the same figures.
//! 10,000 nodes take some minutes and 4 GiB; 1,000 take seconds. The figures are printed, and drawn into the file.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "not part of the product")]

#[path = "../tests/sim/network.rs"]
mod network;
#[path = "../tests/sim/notary.rs"]
mod notary;
#[path = "../tests/sim/wire.rs"]
mod wire;

use std::{fmt::Write as _, time::Duration};

use network::{Network, internet};
use rand::{SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// How long the network runs before the first lookup. A table proves a node every two seconds or so, and answers have
/// only proven nodes.
const GETTING_GOING: u64 = 240;

/// Nodes that are looked for.
const LOOKUPS: usize = 1_000;

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |name: &str, default: u64| match args.next() {
        None => default,
        Some(text) => text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is no number")),
    };
    let (size, seed) = (number("NODES", 10_000), number("SEED", 1));
    let size = usize::try_from(size).unwrap().clamp(10, 65_000);
    let file = args.next().unwrap_or_else(|| "network.svg".to_owned());
    let mut rng = StdRng::seed_from_u64(seed);

    println!("{size} nodes, seed {seed}");
    let mut network = Network::new(size, 0.3, internet(), seed);
    let (mut rates, mut known) = (Vec::new(), Vec::new());
    for second in 1..=GETTING_GOING {
        let before = network.sent;
        network.run(Duration::from_secs(1));
        rates.push((network.sent - before) as f64);
        let live = |n: &network::Node| {
            n.engine.table().buckets().iter().flat_map(|b| b.entries()).filter(|entry| entry.live).count()
        };
        let total: usize = network.nodes.iter().map(live).sum();
        known.push(total as f64 / size as f64);
        if second % 20 == 0 {
            println!(
                "after {second:>3} s: {:>8.0} packets/s, {:>5.1} proven nodes in each table",
                rates.last().unwrap(),
                known.last().unwrap()
            );
        }
    }
    let idle = rates[rates.len() - 15..].iter().sum::<f64>() / 15.0;

    let reachable: Vec<usize> = (0..size).filter(|n| !network.nodes[*n].behind_router).collect();
    let wanted: Vec<usize> = reachable.choose_multiple(&mut rng, LOOKUPS).copied().collect();
    let (start, before) = (network.now.mono, network.sent);
    let (found, mut times) = network.look_for(&wanted, &mut rng);
    let spent = network.now.mono - start;
    times.sort_unstable();
    let hits = found.iter().filter(|found| **found).count();
    let rate = (network.sent - before) as f64 / spent.as_secs_f64();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64();
    println!("{} lookups of reachable nodes, each from a node elsewhere, at the first try:", wanted.len());
    println!("  found     {hits} ({:.1} %)", 100.0 * hits as f64 / wanted.len() as f64);
    println!(
        "  time      {:.1} s in the median, {:.1} s for 95 %, {:.1} s at the most",
        at(0.5),
        at(0.95),
        at(1.0)
    );
    println!("  packets   {rate:.0} a second in the whole network meanwhile, {idle:.0} before");

    let seconds: Vec<f64> = (1..=GETTING_GOING).map(|second| second as f64).collect();
    let shares: Vec<f64> = (1..=times.len()).map(|n| 100.0 * n as f64 / times.len() as f64).collect();
    let times: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    let charts = [
        ("packets per second, seconds since the start", &seconds, &rates),
        ("proven nodes in a table, seconds since the start", &seconds, &known),
        ("% of lookups that have ended, seconds", &times, &shares),
    ];
    std::fs::write(&file, draw(&format!("{size} discv4 nodes, seed {seed}"), &charts)).unwrap();
    println!("drawn in {file}");
}

/// Line charts below each other.
fn draw(title: &str, charts: &[(&str, &Vec<f64>, &Vec<f64>)]) -> String {
    const WIDTH: f64 = 640.0;
    const HEIGHT: f64 = 160.0;
    const LEFT: f64 = 70.0;
    const GAP: f64 = 60.0;
    let total = GAP + charts.len() as f64 * (HEIGHT + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{total}\" font-family=\"sans-serif\" \
         font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/><text x=\"{LEFT}\" y=\"24\" \
         font-size=\"16\">{title}</text>\n",
        LEFT + WIDTH + 30.0
    );
    for (row, (label, xs, ys)) in charts.iter().enumerate() {
        let top = GAP + row as f64 * (HEIGHT + GAP);
        let largest = |values: &[f64]| values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let (right, high) = (largest(xs), largest(ys));
        let mut line = String::new();
        for (x, y) in xs.iter().zip(ys.iter()) {
            let (x, y) = (LEFT + WIDTH * x / right, top + HEIGHT * (1.0 - y / high));
            let _ = write!(line, "{x:.1},{y:.1} ");
        }
        let bottom = top + HEIGHT;
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{:.0}\">{label}</text>\
             <path d=\"M{LEFT} {top}V{bottom}H{}\" fill=\"none\" stroke=\"gray\"/>\
             <text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{high:.0}</text>\
             <text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\
             <text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">{right:.0}</text>\
             <polyline points=\"{line}\" fill=\"none\" stroke=\"steelblue\" stroke-width=\"1.5\"/>",
            top - 6.0,
            LEFT + WIDTH,
            LEFT - 6.0,
            top + 10.0,
            LEFT - 6.0,
            LEFT + WIDTH,
            bottom + 16.0
        );
    }
    svg + "</svg>\n"
}
