//! Random runs, and the conditions that must hold in each. Every message that was sent is handed over or reported in a
//! gap. A message that fits is never dropped. Holds are as long as the clock allows and no longer. A reader that makes
//! progress loses nothing, and a geth does not leave. A failure names its seed.

use std::time::Duration;

use devp2pd::delivery::{Action, Config, OverflowPolicy};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    peer::{Peer, Says, Stack, Supply},
    pipe::Line,
    readers::{AUTO, BY_HAND},
    world::{LARGEST, World, seconds},
};

/// The number of runs. An unoptimized build does fewer.
const RUNS: u64 = if cfg!(debug_assertions) { 60 } else { 400 };

/// A run ends when this many messages were read, so that floods of tiny messages take no longer than others.
const MOST: u64 = 30_000;

fn read(world: &World) -> u64 {
    world.sidecars[0].routes.iter().map(|route| route.messages).sum()
}

/// A random number between the two. Every order of magnitude is equally likely.
fn scale(rng: &mut StdRng, from: f64, to: f64) -> f64 {
    rng.random_range(from.ln()..to.ln()).exp()
}

/// Prints the seed and the parameters of a run that fails.
struct Named(u64, String);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}: {}", self.0, self.1);
        }
    }
}

/// Messages of random sizes up to a typical one, on random channels, with one compression ratio. Returns the typical
/// size as well, in bytes.
fn supply(rng: &mut StdRng, channels: u16) -> (Supply, usize) {
    let typical = scale(rng, 1_000.0, LARGEST as f64);
    let spread = scale(rng, 1.01, 1_000.0);
    // Most messages hardly compress. Zeros compress to a twentieth.
    let ratio = if rng.random_bool(0.8) { 1.0 } else { scale(rng, 1.0, 20.0) };
    let mut rng = StdRng::from_rng(rng);
    let flood = Supply::Flood(Box::new(move || {
        let len = (typical / scale(&mut rng, 1.0, spread)).max(1.0) as usize;
        let wire = (len as f64 / ratio) as usize + 48;
        Some(Says::Message { channel: rng.random_range(0..channels), len, wire })
    }));
    (flood, typical as usize)
}

fn config(rng: &mut StdRng) -> Config {
    let action = match rng.random_range(0..10) {
        0 => Action::Wait,
        1 => Action::DisconnectPeer,
        _ => Action::DropAndReport,
    };
    let stall_limit = if rng.random_bool(0.7) { seconds(8) } else { seconds(rng.random_range(0..=9)) };
    Config {
        channel_bytes: scale(rng, 65_536.0, 67_108_864.0) as u64,
        away_bytes: scale(rng, 65_536.0, 16_777_216.0) as u64,
        overflow: OverflowPolicy { stall_limit, action },
    }
}

/// The parameters of a run that the checks at its end need.
#[derive(Debug)]
struct Run {
    config: Config,
    /// Whether streams come and go, or the policy changes.
    restless: bool,
    /// Whether a second application has a channel.
    shared: bool,
}

fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let rng = &mut rng;
    let mut world = World::new();
    let run = Run { config: config(rng), restless: rng.random_bool(0.3), shared: rng.random_bool(0.2) };
    let channels = rng.random_range(1..=3_u16);
    let params = if rng.random_bool(0.5) { AUTO } else { BY_HAND };
    let (supply, typical) = supply(rng, channels);
    // Fewer bytes a second for small messages, so that their runs take no longer than others.
    let rate = scale(rng, 10_000.0, 10_000_000.0_f64.min(typical as f64 * 3_000.0).max(20_000.0));
    let one = world.application(run.config, params, rate as u64);
    let mut owners = vec![one; usize::from(channels)];
    if run.shared {
        let other = world.application(config(rng), AUTO, rate as u64);
        owners[usize::from(channels) - 1] = other;
    }
    for application in &mut world.applications {
        if rng.random_bool(0.5) {
            let every = Duration::from_secs_f64(scale(rng, 0.01, 60.0));
            application.pauses = Some((every, every.mul_f64(rng.random_range(0.01..0.9))));
        }
    }
    let buffers = Line {
        send_buffer: scale(rng, 500_000.0, 4_194_304.0) as u64,
        receive_buffer: rng.random_range(200_000..900_000),
        ..Line::default()
    };
    // Without a stream, or beside a second application, only the line slows down a peer whose messages are dropped.
    let near = !run.restless && !run.shared && rng.random_bool(0.7);
    let line = if near {
        buffers
    } else {
        let rate = Some((rate * scale(rng, 0.5, 4.0)) as u64 + 20_000);
        Line { rate, latency: Duration::from_secs_f64(scale(rng, 0.001, 0.5)), ..buffers }
    };
    let about = format!(
        "{channels} channels of {} with {run:?}, messages of {typical} bytes, {rate:.0} bytes a second, pauses {:?}, {line:?}",
        if params.auto_credit { "a reader" } else { "a reader with credit" },
        world.applications[one].pauses
    );
    let named = Named(seed, about);
    let peer = Peer::new(world.now, Stack::Geth, supply);
    world.connect(peer, line, &owners);
    for _ in 0..rng.random_range(5..30) {
        let time = Duration::from_secs_f64(rng.random_range(0.1..8.0));
        world.run_while(time, |world| read(world) < MOST);
        if read(&world) >= MOST {
            break;
        }
        if run.restless && rng.random_bool(0.5) {
            let application = &mut world.applications[one];
            match (rng.random_range(0..3), application.stream) {
                (0, _) => application.configure(|old| *old = config(rng)),
                (_, Some(_)) => application.detach(),
                (_, None) => application.attach(),
            }
        }
    }
    check(&mut world, &run, one, near);
    drop(named);
}

/// Checks a run at its end. `near`: only the application slows the peer down.
fn check(world: &mut World, run: &Run, one: usize, near: bool) {
    let Run { config, restless, shared } = *run;
    let drops = config.overflow.action == Action::DropAndReport;
    let steady = world.sidecars[0].referee.kept_pace(config.overflow.stall_limit);
    if !restless && !shared && drops && steady && !config.overflow.stall_limit.is_zero() {
        assert_eq!(world.applications[one].lost().messages, 0, "a reader that makes progress loses nothing");
    }
    if near && drops {
        assert_eq!(world.sidecars[0].ended, None);
        assert_eq!(world.peers[0].gone, None, "geth stands");
        let longest = world.pipes[world.peers[0].out].longest_write(world.now);
        assert!(longest < seconds(20), "geth wrote for {longest:?}");
    }
    world.finish();
}

#[test]
fn random_runs_keep_what_the_rule_promises() {
    for seed in 0..RUNS {
        eprintln!("{seed}");
        run(seed);
    }
}
