//! A network of discv4 nodes in virtual time, on a simulated wire with delays, losses and address translation. The
//! tests of this folder use it, and `examples/network.rs`, which draws it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use devp2pd::{
    Now,
    discv4::{Config, Engine, action::Action},
    kademlia::{Contact, QueryId},
    node::{Endpoint, NodeKey, PublicKey, RecordBuilder},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    notary::Notary,
    wire::{Conditions, Event, Wire},
};

/// One node.
pub(crate) struct Node {
    pub(crate) engine: Engine<Notary>,
    key: PublicKey,
    addr: SocketAddr,
    pub(crate) behind_router: bool,
    timer: Option<Instant>,
    packets: u64,
}

/// All nodes, and the wire between them.
pub(crate) struct Network {
    pub(crate) now: Now,
    pub(crate) nodes: Vec<Node>,
    wire: Wire,
    /// The results of the lookups, each with its time.
    answers: Vec<(Instant, Action)>,
    /// A digest of the hashes of all packets, by which runs are compared.
    pub(crate) trace: u64,
    pub(crate) sent: u64,
}

const BOOTNODES: usize = 3;

impl Network {
    /// Makes `size` nodes that start one after the other within ten seconds, all with the same three bootnodes.
    pub(crate) fn new(size: usize, behind_router: f64, conditions: Conditions, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) };
        let keys: Vec<NodeKey> = (0..size).map(|_| NodeKey::random(&mut rng)).collect();
        let public = Arc::new(keys.iter().map(NodeKey::public).collect::<Vec<_>>());
        // Every node has a subnet of its own.
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
            let record = builder.sign(key).unwrap();
            let config = Config { bootnodes: bootnodes.clone(), ..Config::default() };
            let start =
                now.after(Duration::from_secs(10) * u32::try_from(n).unwrap() / u32::try_from(size).unwrap());
            let behind_router = n >= BOOTNODES && rng.random_bool(behind_router);
            wire.connect(n, addr(n), behind_router);
            wire.schedule(start.mono, n, Event::Timer);
            nodes.push(Node {
                engine: Engine::new(start, config, crypto, record, StdRng::from_rng(&mut rng)),
                key: key.public(),
                addr: addr(n),
                behind_router,
                timer: Some(start.mono),
                packets: 0,
            });
        }
        Self { now, nodes, wire, answers: Vec::new(), trace: 0, sent: 0 }
    }

    pub(crate) fn run(&mut self, time: Duration) {
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

    /// Takes the node's packets and actions, and sets its timer.
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
        // An engine whose timer is due again at once would keep its driver in a busy loop.
        assert!(!timed_out || due.is_none_or(|at| at > self.now.mono), "node {n} spins");
        if let Some(at) = due.filter(|at| node.timer.is_none_or(|timer| *at < timer)) {
            node.timer = Some(at);
            self.wire.schedule(at, n, Event::Timer);
        }
    }

    /// Looks up each of `wanted` from another node, and starts a lookup every 20 ms. Returns whether each was found,
    /// and how long each lookup took.
    pub(crate) fn look_for(&mut self, wanted: &[usize], rng: &mut StdRng) -> (Vec<bool>, Vec<Duration>) {
        let mut begun = Vec::new();
        for (number, target) in (0..).zip(wanted) {
            let others = [rng.random_range(0..self.nodes.len()), (*target + 1) % self.nodes.len()];
            let asker = others.into_iter().find(|asker| asker != target).unwrap_or(0);
            let key = self.nodes[*target].key;
            begun.push((key.id(), self.now.mono));
            let outcome = self.nodes[asker].engine.lookup(self.now, QueryId(number), key.to_uncompressed());
            assert_eq!(outcome, Ok(()), "node {asker} is too busy");
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

/// One in five datagrams is lost, and the others take 10 to 120 ms.
pub(crate) fn internet() -> Conditions {
    Conditions { latency: Duration::from_millis(10)..Duration::from_millis(120), loss: 0.2 }
}
