//! Whole networks in virtual time: they find each other, the walk meets demand, and a seed repeats a run.

use std::collections::{BTreeMap, HashMap};

use rand::Rng;

use super::*;

/// Engines that reach each other after 20 ms, if their packets are not lost.
struct Network {
    now: Now,
    engines: BTreeMap<SocketAddr, Engine<NodeKey>>,
    flying: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    actions: HashMap<SocketAddr, Vec<Action>>,
    packets: u64,
    loss: f64,
    rng: StdRng,
}

impl Network {
    /// `size` nodes in subnets of their own that all have the first one as bootnode.
    fn new(size: u64, seed: u64, loss: f64) -> Self {
        let now = start();
        let ends: Vec<_> = (0..size).map(|n| addr(&format!("5.{}.{}.5:30303", n / 200, n % 200))).collect();
        let boot = contact(&key(seed), &ends[0].to_string());
        let engines = (0..size).zip(&ends).map(|(n, end)| {
            let key = key(seed + n);
            // Every other node has the first one as a URL: key and address, no record.
            let boot = if n % 2 == 0 { boot.clone() } else { Contact { record: None, ..boot.clone() } };
            let bootnodes = if n == 0 { vec![] } else { vec![boot] };
            let config = Config { bootnodes, ..Config::default() };
            let record = record(&key, 1, Some(*end));
            (*end, Engine::new(now, config, key, record, StdRng::seed_from_u64(seed + n)))
        });
        let rng = StdRng::seed_from_u64(seed);
        let mut network = Self {
            now,
            engines: engines.collect(),
            flying: BTreeMap::new(),
            actions: HashMap::new(),
            packets: 0,
            loss,
            rng,
        };
        for end in ends {
            network.drain(end);
        }
        network
    }

    fn drain(&mut self, at: SocketAddr) {
        let Some(engine) = self.engines.get_mut(&at) else { return };
        let mut out = BytesMut::new();
        while let Some(to) = engine.poll_transmit(self.now, &mut out) {
            self.packets += 1;
            let bytes = out.split().to_vec();
            if !self.rng.random_bool(self.loss) {
                let arrival = self.now.mono + Duration::from_millis(20);
                self.flying.insert((arrival, self.packets), (at, to, bytes));
            }
        }
        while let Some(action) = engine.poll_action() {
            self.actions.entry(at).or_default().push(action);
        }
    }

    fn run(&mut self, by: Duration) {
        let end = self.now.mono + by;
        loop {
            let timer =
                self.engines.iter().filter_map(|(at, engine)| Some((engine.poll_timeout()?, *at))).min();
            let packet = self.flying.keys().next().map(|(at, _)| *at);
            let timer_at = timer.map(|(at, _)| at);
            let Some(next) = [timer_at, packet].into_iter().flatten().min().filter(|next| *next <= end)
            else {
                break;
            };
            self.now = self.now.after(next.saturating_duration_since(self.now.mono));
            if packet == Some(next) {
                let ((_, _), (from, to, bytes)) = self.flying.pop_first().unwrap();
                if let Some(engine) = self.engines.get_mut(&to) {
                    engine.handle_datagram(self.now, from, &bytes);
                }
                self.drain(to);
            } else if let Some((_, at)) = timer {
                self.engines.get_mut(&at).unwrap().handle_timeout(self.now);
                self.drain(at);
            }
        }
        self.now = self.now.after(end - self.now.mono);
    }
}

#[test]
fn a_network_finds_itself_in_spite_of_losses() {
    let mut network = Network::new(40, 1, 0.1);
    // Without demand no node searches before the next refresh.
    let now = network.now;
    network.engines.values_mut().for_each(|engine| engine.set_demand(now, 60));
    network.run(Duration::from_secs(60));
    for (at, engine) in &network.engines {
        let live =
            engine.table().buckets().iter().flat_map(|bucket| bucket.entries()).filter(|entry| entry.live);
        assert!(live.count() >= 10, "{at} has too few nodes: {engine:?}");
        assert_eq!(engine.counters().handshakes_failed, 0, "{at}");
    }
    // Anybody finds anybody.
    let ends: Vec<_> = network.engines.keys().copied().collect();
    for pair in ends.windows(2).step_by(5) {
        let target = network.engines[&pair[1]].wire.record().clone();
        let engine = network.engines.get_mut(&pair[0]).unwrap();
        engine.resolve(network.now, QueryId(1), target.id(), None).unwrap();
        network.drain(pair[0]);
        network.run(Duration::from_secs(5));
        let resolved = |action: &Action| matches!(action, Action::Resolved { contact: Some(contact), .. } if contact.record.as_ref() == Some(&target));
        assert!(network.actions[&pair[0]].iter().any(resolved), "{pair:?}");
    }
}

#[test]
fn a_seed_repeats_a_run() {
    let run = || {
        let mut network = Network::new(12, 7, 0.2);
        network.run(Duration::from_secs(30));
        let counters: Vec<Counters> = network.engines.values().map(|engine| *engine.counters()).collect();
        (network.packets, counters)
    };
    assert_eq!(run(), run());
}

#[test]
fn the_walk_meets_demand_and_no_more() {
    let mut network = Network::new(20, 3, 0.0);
    network.run(Duration::from_secs(20));
    let at = addr("5.0.7.5:30303");
    let discovered = |network: &Network| {
        let actions = network.actions[&at].iter();
        actions.filter(|action| matches!(action, Action::Discovered(_))).count()
    };
    assert_eq!(discovered(&network), 0, "nothing was wanted");
    network.engines.get_mut(&at).unwrap().set_demand(network.now, 25);
    network.run(Duration::from_secs(10));
    let first = discovered(&network);
    assert!((25..60).contains(&first), "{first}");
    network.run(Duration::from_secs(60));
    assert_eq!(discovered(&network), first, "nothing more was wanted");
}

#[test]
fn a_dead_bootnode_is_tried_again_and_nobody_is_contacted_otherwise() {
    let boot = contact(&key(1), "8.8.8.8:30303");
    let mut rig = Rig::with("9.9.9.9:30303", Config { bootnodes: vec![boot.clone()], ..Config::default() });
    let sent = rig.advance(Duration::from_secs(120));
    assert!(sent.iter().all(|(to, _)| Some(*to) == boot.udp_addr()));
    assert!((4..60).contains(&sent.len()), "{} packets in two minutes", sent.len());
    let seeds = |action: &Action| *action == Action::SeedsWanted;
    assert!(rig.take_actions().into_iter().filter(seeds).count() >= 4, "every 30 s at least");
    // Once the table has a node, it is not refreshed for a quarter of an hour.
    let seed = record(&key(5), 1, Some(addr("8.8.4.4:30303")));
    rig.command(|engine, now| engine.add_seed(now, Contact::from_record(seed.clone()).unwrap()));
    assert!(rig.engine.table().get(&seed.id()).is_some());
}
