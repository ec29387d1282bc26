//! A network of discv4 nodes: does everybody who can be reached get found, how fast, and at what cost?

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use devp2pd::Now;
use devp2pd::discv4::{Action, Config, Crypto, Engine, Local, QueryId};
use devp2pd::kademlia::Contact;
use devp2pd::node::{Endpoint, NodeKey, PublicKey, RecordBuilder};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::wire::{Conditions, Event, Wire};

/// Signs with the number of the key, for everybody to look up: arithmetic is not what is tested.
#[derive(Clone, Debug)]
struct Notary {
    number: u32,
    keys: Arc<Vec<PublicKey>>,
}

impl Crypto for Notary {
    fn public_key(&self) -> PublicKey {
        self.keys[usize::try_from(self.number).unwrap()]
    }

    fn sign(&self, digest: &[u8; 32]) -> [u8; 65] {
        let mut signature = [0; 65];
        signature[..32].copy_from_slice(digest);
        signature[32..36].copy_from_slice(&self.number.to_be_bytes());
        signature
    }

    fn recover(&self, digest: &[u8; 32], signature: &[u8; 65]) -> Option<PublicKey> {
        let number = u32::from_be_bytes(signature[32..36].try_into().unwrap());
        (signature[..32] == digest[..]).then(|| self.keys.get(usize::try_from(number).unwrap()).copied())?
    }

    /// Two words that depend on every byte. Nobody here forges.
    fn hash(&self, bytes: &[u8]) -> [u8; 32] {
        let (mut a, mut b) = (0xcbf2_9ce4_8422_2325_u64, bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            a = (a ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            b = b.wrapping_add(a).rotate_left(17);
        }
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&a.to_be_bytes());
        hash[8..16].copy_from_slice(&b.to_be_bytes());
        hash
    }
}

struct Node {
    engine: Engine<Notary>,
    addr: SocketAddr,
    behind_router: bool,
    timer: Option<Instant>,
    packets: u64,
}

struct Network {
    now: Now,
    nodes: Vec<Node>,
    wire: Wire,
    /// What the lookups said, and when.
    answers: Vec<(Instant, Action)>,
    /// A digest of the hashes of everything sent, to tell runs apart.
    trace: u64,
    sent: u64,
}

const BOOTNODES: usize = 3;

impl Network {
    /// `size` nodes that start one after the other within ten seconds, all knowing the same three.
    fn new(size: usize, behind_router: f64, conditions: Conditions, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) };
        let keys: Vec<NodeKey> = (0..size).map(|_| NodeKey::random(&mut rng)).collect();
        let public = Arc::new(keys.iter().map(NodeKey::public).collect::<Vec<_>>());
        // Every node in a subnet of its own.
        let addr = |n: usize| {
            let [.., b, c] = u32::try_from(n).unwrap().to_be_bytes();
            SocketAddr::new(IpAddr::from([11, b, c, 1]), 30303)
        };
        let endpoint = |n: usize| Endpoint { ip: addr(n).ip(), udp: 30303, tcp: 30303 };
        let bootnodes: Vec<Contact> = (0..BOOTNODES).map(|n| Contact::new(public[n], endpoint(n))).collect();
        let mut wire = Wire::new(conditions, StdRng::from_rng(&mut rng));
        let mut nodes = Vec::new();
        for (n, key) in keys.iter().enumerate() {
            let crypto = Notary { number: u32::try_from(n).unwrap(), keys: Arc::clone(&public) };
            let mut builder = RecordBuilder::new(1);
            builder.ip(addr(n).ip()).port("udp", 30303).port("tcp", 30303);
            let local = Local { endpoint: endpoint(n), record: builder.sign(key).unwrap() };
            let config = Config { bootnodes: bootnodes.clone(), ..Config::default() };
            let start =
                now.after(Duration::from_secs(10) * u32::try_from(n).unwrap() / u32::try_from(size).unwrap());
            let behind_router = n >= BOOTNODES && rng.random_bool(behind_router);
            wire.connect(n, addr(n), behind_router);
            wire.schedule(start.mono, n, Event::Timer);
            nodes.push(Node {
                engine: Engine::new(config, crypto, local, StdRng::from_rng(&mut rng), start),
                addr: addr(n),
                behind_router,
                timer: Some(start.mono),
                packets: 0,
            });
        }
        Self { now, nodes, wire, answers: Vec::new(), trace: 0, sent: 0 }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.step(end.mono) {}
        self.now = end;
    }

    fn step(&mut self, end: Instant) -> bool {
        let Some((at, n, event)) = self.wire.next(end) else { return false };
        self.now = self.now.after(at.saturating_duration_since(self.now.mono));
        let node = &mut self.nodes[n];
        let timed_out = event == Event::Timer;
        match event {
            Event::Timer if node.timer != Some(at) => return true,
            Event::Timer => {
                node.timer = None;
                node.engine.handle_timeout(self.now);
            }
            Event::Datagram { from, bytes } => {
                node.packets += 1;
                node.engine.handle_datagram(self.now, from, &bytes);
            }
        }
        self.drain(n, timed_out);
        true
    }

    /// Takes what the node has to say, and sets its timer.
    fn drain(&mut self, n: usize, timed_out: bool) {
        let node = &mut self.nodes[n];
        let mut out = BytesMut::new();
        while let Some(to) = node.engine.poll_transmit(self.now, &mut out) {
            node.packets += 1;
            self.sent += 1;
            let hash = u64::from_be_bytes(out[..8].try_into().unwrap());
            self.trace = (self.trace ^ hash).wrapping_mul(0x0000_0100_0000_01b3);
            self.wire.send(self.now.mono, node.addr, to, &out);
        }
        while let Some(action) = node.engine.poll_action() {
            if matches!(action, Action::LookupNode { .. } | Action::LookupDone { .. }) {
                self.answers.push((self.now.mono, action));
            }
        }
        let due = node.engine.poll_timeout().map(|at| at.max(self.now.mono));
        // An engine that is not done when it says so would spin.
        assert!(!timed_out || due.is_none_or(|at| at > self.now.mono), "node {n} spins");
        if let Some(at) = due.filter(|at| node.timer.is_none_or(|timer| *at < timer)) {
            node.timer = Some(at);
            self.wire.schedule(at, n, Event::Timer);
        }
    }

    /// Looks for each of `wanted` from somewhere else, all within a few seconds: who was found, and how long the
    /// lookups took.
    fn look_for(&mut self, wanted: &[usize], rng: &mut StdRng) -> (Vec<bool>, Vec<Duration>) {
        let mut begun = Vec::new();
        for (number, target) in (0..).zip(wanted) {
            let others = [rng.random_range(0..self.nodes.len()), (*target + 1) % self.nodes.len()];
            let asker = others.into_iter().find(|asker| asker != target).unwrap_or(0);
            let key = self.nodes[*target].engine.public_key();
            begun.push((key.id(), self.now.mono));
            self.nodes[asker].engine.lookup(self.now, QueryId(number), key.to_uncompressed());
            self.drain(asker, false);
            self.run(Duration::from_millis(20));
        }
        for _ in 0..60 {
            let ended = |(_, action): &&(Instant, Action)| matches!(action, Action::LookupDone { .. });
            if self.answers.iter().filter(ended).count() == wanted.len() {
                break;
            }
            self.run(Duration::from_secs(1));
        }
        let mut found = vec![false; wanted.len()];
        let mut times = Vec::new();
        for (at, action) in self.answers.drain(..) {
            match action {
                Action::LookupNode { query, contact } => {
                    let number = usize::try_from(query.0).unwrap();
                    found[number] |= contact.id == begun[number].0;
                }
                Action::LookupDone { query, .. } => {
                    times.push(at - begun[usize::try_from(query.0).unwrap()].1)
                }
                _ => {}
            }
        }
        assert_eq!(times.len(), wanted.len(), "all lookups end");
        (found, times)
    }
}

/// One in five datagrams is lost, and the rest takes its time.
fn internet() -> Conditions {
    Conditions { latency: Duration::from_millis(10)..Duration::from_millis(120), loss: 0.2 }
}

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

/// 1,000 nodes; an unoptimized build, which is ten times as slow, makes do with fewer.
const SIZE: usize = if cfg!(debug_assertions) { 200 } else { 1_000 };

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
    // A lookup may miss when one in five packets is lost. Three from different places must not.
    for round in 1..=3 {
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
        if wanted.is_empty() {
            break;
        }
    }
    assert!(wanted.is_empty(), "never found with seed {seed}: {wanted:?}");
    assert!(network.nodes.iter().all(|node| node.engine.is_consistent()));
}
