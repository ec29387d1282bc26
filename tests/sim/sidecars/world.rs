//! Sidecars, applications and liars in one virtual time, and the scheduler: the seed chooses one of the tasks that can
//! go on. Time passes when no task can.

use std::time::{Duration, Instant};

use devp2pd::{
    Enode, NodeRef,
    delivery::{Action, OverflowPolicy},
    lease::{Capability, Greeting, ProtocolSpec, RegistrationSpec},
    node::NodeKey,
    p2p::session::ConnectionId,
    policy::{Settings, dial::TaskId},
};
use rand::{Rng as _, seq::SliceRandom as _};

use super::{
    application::Application,
    liar::Liar,
    net::Net,
    sidecar::{Character, Phase, Sidecar},
};

/// The protocols that applications register. Protocols of one name are next to each other in the list.
const PROTOCOLS: [(&str, u32); 4] = [("alpha", 1), ("alpha", 2), ("beta", 1), ("gamma", 1)];

/// A task that can go on.
#[derive(Clone, Copy)]
enum Task {
    Sidecar(usize),
    Switch(usize),
    Dial(usize, TaskId),
    Lookup(usize, TaskId),
    Connection(usize, ConnectionId),
    Application(usize),
    Liar(usize),
}

/// See the [module](self).
pub(super) struct World {
    pub(super) net: Net,
    pub(super) sidecars: Vec<Sidecar>,
    pub(super) applications: Vec<Application>,
    pub(super) liars: Vec<Liar>,
    /// The keys of the liars that listen, in the order of their addresses.
    pub(super) liar_keys: Vec<NodeKey>,
    ready: Vec<Task>,
}

/// The address of a sidecar or of a liar. The numbers of liars follow those of the sidecars.
fn addr(n: usize) -> std::net::SocketAddr {
    ([8, 8, u8::try_from(n).unwrap(), 1], 30303).into()
}

/// The DNS name by which a static peer may be listed.
fn host(n: usize) -> String {
    format!("node{n}.example")
}

impl World {
    pub(super) fn new(seed: u64, shown: bool) -> Self {
        let mut net = Net::new(seed, shown);
        let count = [2, 2, 2, 3, 3, 4, 6][net.rng.random_range(0..7)];
        let keys: Vec<NodeKey> = (0..count).map(|_| NodeKey::random(&mut net.rng)).collect();
        let liar_keys: Vec<NodeKey> =
            (0..net.rng.random_range(0..3)).map(|_| NodeKey::random(&mut net.rng)).collect();
        for (n, key) in keys.iter().chain(&liar_keys).enumerate() {
            net.directory.insert(key.id(), Enode::at(key.public(), addr(n)));
        }
        let mut sidecars = Vec::new();
        for (n, key) in keys.iter().enumerate() {
            let statics = statics(&mut net, n, &keys, &liar_keys);
            let character = character(&mut net, statics);
            let at = net.now.mono + Duration::from_millis(net.rng.random_range(0..3000));
            sidecars.push(Sidecar::new(n, key.clone(), addr(n), character, at));
        }
        let mut applications = Vec::new();
        for home in 0..count {
            let mut free = PROTOCOLS.to_vec();
            for n in 0..net.rng.random_range(1..=2) {
                let spec = spec(&mut net, home, n, &mut free);
                let at = net.now.mono + Duration::from_millis(net.rng.random_range(0..6000));
                if let Some(spec) = spec {
                    applications.push(Application::new(home, applications.len(), spec, at));
                }
            }
        }
        Self { net, sidecars, applications, liars: Vec::new(), liar_keys, ready: Vec::new() }
    }

    /// Lets `time` pass.
    pub(super) fn run(&mut self, time: Duration) {
        let until = self.net.now.mono + time;
        let mut still = 0_u32;
        loop {
            if self.step() {
                still += 1;
                assert!(still < 100_000, "time stands still");
                continue;
            }
            still = 0;
            let now = self.net.now.mono;
            let next = self.next().filter(|at| *at < until).unwrap_or(until);
            assert!(next > now || until == now, "a task waits for a time that has passed");
            self.net.now = self.net.now.after(next - now);
            if next == until {
                while self.step() {}
                return;
            }
        }
    }

    /// Runs one task that can go on. Returns false if there is none.
    fn step(&mut self) -> bool {
        self.look();
        let Some(count) = std::num::NonZeroUsize::new(self.ready.len()) else { return false };
        self.net.steps += 1;
        let task = self.ready[self.net.rng.random_range(0..count.get())];
        match task {
            Task::Sidecar(n) => {
                self.sidecars[n].go_on(&mut self.net);
                if matches!(self.sidecars[n].phase, Phase::Down(_)) {
                    self.sidecar_gone(n);
                }
            }
            Task::Switch(n) => {
                self.sidecars[n].step(&mut self.net);
                super::check::always(self, n);
            }
            Task::Dial(n, task) => self.dial(n, task),
            Task::Lookup(n, task) => {
                let calm = self.net.is_calm;
                let fails = !calm && self.net.rng.random_bool(0.2);
                let resolve =
                    |name: &str| (0..250).find(|n| host(*n) == name).map(|n| addr(n).ip()).filter(|_| !fails);
                self.sidecars[n].lookup_over(&mut self.net, task, resolve);
            }
            Task::Connection(n, id) => self.sidecars[n].step_connection(&mut self.net, id),
            Task::Application(n) => {
                let run = self.sidecars[self.applications[n].home].run;
                self.applications[n].step(&mut self.net, run);
            }
            Task::Liar(n) => {
                self.liars[n].step(&mut self.net);
                self.liars.retain(|liar| !liar.gone);
            }
        }
        self.carry();
        true
    }

    /// Collects the tasks that can go on.
    fn look(&mut self) {
        let Self { net, sidecars, applications, liars, ready, .. } = self;
        let now = net.now.mono;
        ready.clear();
        for (n, sidecar) in sidecars.iter().enumerate() {
            ready.extend(sidecar.is_due(now).then_some(Task::Sidecar(n)));
            ready.extend(sidecar.is_ready(net).then_some(Task::Switch(n)));
            ready.extend(sidecar.due_dial(now).map(|task| Task::Dial(n, task)));
            ready.extend(sidecar.due_lookup(now).map(|task| Task::Lookup(n, task)));
            let connections = sidecar.process.iter().flat_map(|process| process.connections.iter());
            let of = connections.filter(|(_, connection)| connection.is_ready(net.now, &net.links));
            ready.extend(of.map(|(id, _)| Task::Connection(n, *id)));
        }
        let of = applications.iter().enumerate().filter(|(_, application)| {
            application.is_ready(now) && sidecars[application.home].process.is_some()
        });
        ready.extend(of.map(|(n, _)| Task::Application(n)));
        ready.extend((0..liars.len()).filter(|n| liars[*n].is_ready(net)).map(Task::Liar));
    }

    /// The next time at which a task can go on.
    fn next(&self) -> Option<Instant> {
        let net = &self.net;
        let of_sidecars = self.sidecars.iter().flat_map(|sidecar| {
            let connections = sidecar.process.iter().flat_map(|process| process.connections.values());
            let connections = connections.filter_map(|connection| connection.next(&net.links));
            connections.chain(sidecar.next()).chain(sidecar.next_of_switch())
        });
        let with_home = |application: &&Application| self.sidecars[application.home].process.is_some();
        let of_applications = self.applications.iter().filter(with_home).filter_map(Application::next);
        let of_liars = self.liars.iter().map(|liar| liar.next(net));
        of_sidecars.chain(of_applications).chain(of_liars).min()
    }

    /// Carries calls and answers between sidecars and applications.
    pub(super) fn carry(&mut self) {
        let Self { net, sidecars, applications, .. } = self;
        for sidecar in sidecars.iter_mut() {
            for (caller, answer) in std::mem::take(&mut sidecar.answers) {
                applications[caller.application].answered(net, caller.process, answer);
            }
            if let Some(deadline) = sidecar.announce.take() {
                let here = applications.iter().filter(|application| application.home == sidecar.index);
                here.for_each(|application| application.announce_drain(deadline));
            }
        }
        for application in applications.iter_mut() {
            for command in application.take_commands() {
                let at = net.soon();
                if let Some(process) = &mut sidecars[application.home].process {
                    process.commands.send(at, command);
                }
            }
        }
    }

    fn dial(&mut self, from: usize, task: TaskId) {
        let Some(to) = self.sidecars[from].dialed_addr(task) else { return };
        let refused = !self.net.is_calm && self.net.rng.random_bool(0.05);
        let target = (0..self.sidecars.len() + self.liar_keys.len()).find(|n| addr(*n) == to);
        let socket = match target {
            Some(n) if n < self.sidecars.len() && self.sidecars[n].accepts() && !refused => {
                let remote =
                    (self.sidecars[from].addr.ip(), self.net.rng.random_range(40_000..60_000)).into();
                let (dialed, accepted) = self.connect();
                self.sidecars[n].knock(&mut self.net, accepted, remote);
                Some(dialed)
            }
            Some(n) if n >= self.sidecars.len() && !self.net.is_calm && !refused => {
                let (dialed, accepted) = self.connect();
                let key = self.liar_keys[n - self.sidecars.len()].clone();
                let liar = Liar::new(&mut self.net, key, accepted, None);
                self.liars.push(liar);
                Some(dialed)
            }
            _ => None,
        };
        self.sidecars[from].dial_over(&mut self.net, task, socket);
    }

    fn connect(&mut self) -> (super::link::Socket, super::link::Socket) {
        let latency = self.net.latency();
        let capacity = [2 << 10, 64 << 10, 1 << 20][self.net.rng.random_range(0..3)];
        self.net.links.connect(self.net.now.mono, latency, capacity)
    }

    /// A liar dials a sidecar: with a new key, or with that of a liar that listens.
    pub(super) fn lie(&mut self, to: usize) {
        if !self.sidecars[to].accepts() {
            return;
        }
        let (dialed, accepted) = self.connect();
        let n = self.net.rng.random_range(0..12);
        let known = self.liar_keys.get(n).cloned();
        let key = known.unwrap_or_else(|| NodeKey::random(&mut self.net.rng));
        let remote = self.sidecars[to].key.public();
        let liar = Liar::new(&mut self.net, key, dialed, Some(remote));
        self.liars.push(liar);
        let from = (addr(self.sidecars.len() + n).ip(), 50_000).into();
        self.sidecars[to].knock(&mut self.net, accepted, from);
    }

    /// The process of a sidecar crashes. Its peers get no Disconnect.
    pub(super) fn crash(&mut self, n: usize) {
        let down_for = Duration::from_millis(self.net.rng.random_range(10..30_000));
        self.sidecars[n].crash(&mut self.net, down_for);
        self.sidecar_gone(n);
    }

    fn sidecar_gone(&mut self, n: usize) {
        let here = self.applications.iter_mut().filter(|application| application.home == n);
        here.for_each(|application| application.sidecar_gone(&mut self.net));
    }
}

/// The static peers of one sidecar.
fn statics(net: &mut Net, n: usize, keys: &[NodeKey], liars: &[NodeKey]) -> Vec<NodeRef> {
    let mut statics = Vec::new();
    for (other, key) in keys.iter().chain(liars).enumerate() {
        if other == n || !net.rng.random_bool(0.6) {
            continue;
        }
        let enode = Enode::at(key.public(), addr(other));
        statics.push(match net.rng.random_range(0..8) {
            0 => NodeRef::Enode(Enode { host: devp2pd::node::Host::Name(host(other)), ..enode }),
            1 => NodeRef::Key(key.public()),
            _ => NodeRef::Enode(enode),
        });
    }
    statics
}

fn character(net: &mut Net, statics: Vec<NodeRef>) -> Character {
    let rng = &mut net.rng;
    let settings = Settings {
        max_peers: [3, 6, 50][rng.random_range(0..3)],
        max_pending_dials: [1, 2, 50][rng.random_range(0..3)],
        max_pending_inbound: [1, 2, 50][rng.random_range(0..3)],
        inbound_throttle: Duration::from_secs([0, 0, 30][rng.random_range(0..3)]),
        history: Duration::from_secs([1, 35][rng.random_range(0..2)]),
        ..Settings::default()
    };
    Character {
        settings,
        rehello: rng.random_bool(0.5),
        inbox_budget: [1 << 20, 64 << 20, 64 << 20][rng.random_range(0..3)],
        max_shared_stall: Duration::from_secs(rng.random_range(0..3)),
        statics,
    }
}

/// The registration of an application: one or two names of the protocols that are free. `None` if none is free.
fn spec(
    net: &mut Net,
    home: usize,
    n: usize,
    free: &mut Vec<(&'static str, u32)>,
) -> Option<RegistrationSpec> {
    let rng = &mut net.rng;
    let mut names: Vec<&str> = free.iter().map(|(name, _)| *name).collect();
    names.dedup();
    names.shuffle(rng);
    names.truncate(rng.random_range(1..=2));
    let mine: Vec<(&str, u32)> = free.extract_if(.., |(name, _)| names.contains(name)).collect();
    let protocol = |rng: &mut rand::rngs::StdRng, name: &str, version| {
        let greeting = Greeting { code: 2, payload: super::ledger::GREETING.to_be_bytes().to_vec().into() };
        ProtocolSpec {
            capability: Capability::new(name, version, 4),
            max_message_bytes: 0,
            keep_first: [0, 0, 1][rng.random_range(0..3)],
            greeting: vec![greeting; rng.random_range(0..3)],
        }
    };
    let protocols: Vec<_> = mine.iter().map(|(name, version)| protocol(rng, name, *version)).collect();
    let action = [Action::DropAndReport, Action::DropAndReport, Action::DisconnectPeer, Action::Wait];
    (!protocols.is_empty()).then(|| RegistrationSpec {
        client_id: format!("app-{home}-{n}").into(),
        protocols,
        linger: [None, Some(Duration::ZERO), Some(Duration::from_secs(5))][rng.random_range(0..3)],
        overflow: OverflowPolicy {
            stall_limit: Duration::from_secs(rng.random_range(0..6)),
            action: action[rng.random_range(0..4)],
        },
        channel_queue_bytes: [0, 4 << 10, 64 << 10][rng.random_range(0..3)],
        wanted: Default::default(),
        desired_peers: 0,
    })
}
