//! One run: a time of disturbances that the seed chooses, a quiet time, and the end of all sidecars.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use devp2pd::{
    node::Host,
    policy::dial::{Candidate, Source},
};
use rand::Rng as _;

use super::{check, command::Command, sidecar::Phase, world::World};

/// The length of the quiet time: longer than the longest back-off of a static peer (`policy::dial::backoff`) and the
/// dial after it.
const QUIET: Duration = Duration::from_secs(1_000);

/// The result of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The same for equal runs.
    pub(super) digest: u64,
    pub(super) steps: u64,
    pub(super) time: Duration,
    pub(super) sessions: u64,
    pub(super) delivered: u64,
    pub(super) lost: u64,
}

impl Outcome {
    /// Adds the counts of another run.
    pub(super) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.time += other.time;
        self.sessions += other.sessions;
        self.delivered += other.delivered;
        self.lost += other.lost;
    }
}

/// Runs a seed. Returns the text of the check that failed, if one did.
pub(super) fn run(seed: u64, shown: bool) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| one(seed, shown))).map_err(|failure| {
        let text = failure.downcast_ref::<String>().cloned();
        text.or_else(|| failure.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}

fn one(seed: u64, shown: bool) -> Outcome {
    let mut world = World::new(seed, shown);
    world.run(Duration::from_secs(5));
    let disturbances = world.net.rng.random_range(10..120);
    let most = world.net.rng.random_range(100..8_000);
    for _ in 0..disturbances {
        disturb(&mut world);
        let pause = Duration::from_millis(world.net.rng.random_range(0..most));
        world.run(pause);
    }
    calm(&mut world);
    world.run(QUIET);
    // A dial that is repeated after ten minutes may be under way now. It ends within a minute.
    for _ in 0..12 {
        if check::is_still(&world) {
            break;
        }
        world.run(Duration::from_secs(5));
    }
    check::settled(&mut world);
    end(&mut world);
    let net = &world.net;
    Outcome {
        digest: net.digest(),
        steps: net.steps,
        time: net.elapsed(),
        sessions: net.ledger.sessions.len() as u64,
        delivered: net.ledger.delivered,
        lost: net.ledger.lost,
    }
}

/// Disturbs a sidecar, an application or the network.
fn disturb(world: &mut World) {
    let n = world.net.rng.random_range(0..world.sidecars.len());
    let what = world.net.rng.random_range(0..100);
    world.net.note(("disturb", n, what));
    match what {
        0..45 => of_applications(world, what),
        45..60 => of_network(world, n),
        60..63 => world.crash(n),
        63..66 => world.sidecars[n].stop(&mut world.net),
        66..76 => world.lie(n),
        76..78 => {
            let ids: Vec<_> = world.sidecars[n]
                .process
                .iter()
                .flat_map(|process| process.connections.keys().copied())
                .collect();
            if !ids.is_empty() {
                let id = ids[world.net.rng.random_range(0..ids.len())];
                world.sidecars[n].fault(&mut world.net, id);
            }
        }
        _ => of_operator(world, n),
    }
    world.carry();
}

fn of_applications(world: &mut World, what: u32) {
    let n = world.net.rng.random_range(0..world.applications.len().max(1));
    let World { net, applications, sidecars, .. } = world;
    let Some(application) = applications.get_mut(n) else { return };
    let (principal, client) = (application.principal(), application.client());
    let back =
        |net: &mut super::net::Net| net.now.mono + Duration::from_millis(net.rng.random_range(0..40_000));
    let command = match what {
        0..20 => {
            let (count, len) = [(1, 40), (10, 200), (40, 4 << 10), (8, 60 << 10)][net.rng.random_range(0..4)];
            application.send(net, count, len);
            return;
        }
        20..24 => {
            let at = back(net);
            return application.crash(Some(at));
        }
        24..26 => return application.crash(None),
        26..29 => {
            application.processes.iter_mut().for_each(|process| process.reads ^= true);
            return;
        }
        29..32 => {
            return if sidecars[application.home].process.is_some() {
                application.start(net, true)
            };
        }
        32..35 => match application.channel(net).filter(|_| application.send(net, 20, 4 << 10)) {
            Some((id, target)) => Command::DisconnectChannel {
                id,
                target: Box::new(target),
                end_session: net.rng.random_bool(0.5),
            },
            None => return,
        },
        35..38 => match application.caller_and_channel(net) {
            Some((caller, target)) => {
                let (node, protocol) = (target.session.node_id, target.channel.name.clone());
                match net.rng.random_bool(0.5) {
                    true => Command::Sender { caller, principal, client, node, protocol },
                    false => Command::Senders { caller, principal, client, protocol },
                }
            }
            None => return,
        },
        38..40 => Command::Delete { principal, client },
        40..42 => {
            application.change_spec(net);
            Command::Update { principal, spec: Box::new(application.spec.clone()) }
        }
        42 => Command::Register {
            principal,
            spec: Box::new(application.spec.clone()),
            takeover: net.rng.random_bool(0.5),
        },
        _ => Command::Renew { principal, client },
    };
    let at = net.soon();
    if let Some(process) = &mut sidecars[application.home].process {
        process.commands.send(at, command);
    }
}

fn of_network(world: &mut World, n: usize) {
    let net = &mut world.net;
    let links = net.links.whole();
    let what = net.rng.random_range(0..10);
    if let Some(link) = links.get(net.rng.random_range(0..links.len().max(1))) {
        match what {
            0..3 => net.links.cut(net.now.mono, *link),
            3 => net.links.silence(net.now.mono, *link),
            4..6 => {
                let latency = Duration::from_millis(net.rng.random_range(0..12_000));
                net.links.set_latency(*link, latency);
            }
            _ => {}
        }
    }
    if what >= 6 {
        offer(world, n);
    }
}

/// Discovery offers a node.
fn offer(world: &mut World, n: usize) {
    let net = &mut world.net;
    let known: Vec<_> = net.directory.values().cloned().collect();
    let enode = &known[net.rng.random_range(0..known.len())];
    let Host::Ip(ip) = enode.host else { return };
    let candidate = Candidate {
        public_key: enode.public_key,
        addr: (ip, enode.tcp).into(),
        record: None,
        source: Source::V4,
        served: Duration::ZERO,
    };
    let at = net.soon();
    if let Some(process) = &mut world.sidecars[n].process {
        process.candidates.send(at, candidate);
    }
}

fn of_operator(world: &mut World, n: usize) {
    let net = &mut world.net;
    let known: Vec<_> = net.directory.values().cloned().collect();
    let enode = known[net.rng.random_range(0..known.len())].clone();
    let id = enode.id();
    let node = devp2pd::NodeRef::Enode(enode);
    let command = match net.rng.random_range(0..22) {
        0..3 => Command::AddStatic(node),
        3 => Command::RemoveStatic(id),
        4 => Command::AddTrusted(node),
        5 => Command::RemoveTrusted(id),
        6..9 => Command::Disconnect(id),
        9 => Command::Ban(id, Duration::from_secs(net.rng.random_range(1..60))),
        10 => Command::Unban(id),
        11..17 => Command::Connect(node, Duration::from_secs(net.rng.random_range(1..20))),
        17..20 => Command::WaitForDial(id),
        _ => {
            let most = net.rng.random_range(1..8);
            Command::Settings(Box::new(move |settings| settings.max_peers = most))
        }
    };
    let at = net.soon();
    if let Some(process) = &mut world.sidecars[n].process {
        process.commands.send(at, command);
    }
}

/// Ends the disturbances, and brings back every sidecar and application that was away.
fn calm(world: &mut World) {
    world.net.note("calm");
    world.net.is_calm = true;
    for liar in &mut world.liars {
        liar.leave(&mut world.net);
    }
    world.liars.clear();
    let ids: Vec<_> = world.sidecars.iter().map(|sidecar| sidecar.id()).collect();
    for sidecar in &mut world.sidecars {
        sidecar.character.settings.max_peers = 50;
        if let Phase::Down(at) = &mut sidecar.phase {
            *at = world.net.now.mono;
        }
        let at = world.net.soon();
        if let Some(process) = &mut sidecar.process {
            for id in &ids {
                process.commands.send(at, Command::Unban(*id));
            }
            process.commands.send(at, Command::Settings(Box::new(|settings| settings.max_peers = 50)));
        }
    }
    for link in world.net.links.whole() {
        world.net.links.set_latency(link, Duration::from_millis(1));
    }
    let now = world.net.now.mono;
    for application in &mut world.applications {
        application.calm(now);
    }
}

/// Stops all sidecars, and checks that each of them stops in time.
fn end(world: &mut World) {
    for n in 0..world.sidecars.len() {
        world.sidecars[n].stays_down();
        world.sidecars[n].stop(&mut world.net);
        world.carry();
        let pause = Duration::from_millis(world.net.rng.random_range(0..3000));
        world.run(pause);
    }
    for application in &mut world.applications {
        application.crash(None);
    }
    world.carry();
    world.run(Duration::from_secs(30));
    world.sidecars.iter().for_each(check::stopped);
    assert_eq!(world.net.links.len(), 0, "no connection is left");
}
