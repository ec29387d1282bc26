//! An eclipse attack: an attacker with ten thousand identities tries to become all neighbours of a node. The victim is
//! a fresh node, or one that was restarted, with the poisoned lists that such a node may find.
//!
//! The attacker answers every request at once, names only its own nodes, never leaves, and pings without pause. Honest
//! nodes refuse half of the dials, and their sessions end. The tests print the attacker's share of the victim's table
//! and of its dialed slots, and compare it with the limits:
//!
//! - the table takes 10 nodes of one IPv4 /24 or IPv6 /48 (`kademlia::subnets`);
//! - at most 5 of the dialed slots are in one IPv4 /24 or IPv6 /64, and 10 in one /48 (`policy::settings`);
//! - no source of candidates holds over half of the slots while another one offers (`policy::dial`).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use devp2pd::{
    Now,
    discv4::{
        Config, Engine,
        action::Action,
        packet::{
            Expiration, Header, Neighbors, Packet, Ping, Pong, Type, WireEndpoint, neighbors::Neighbor, seal,
        },
    },
    kademlia::Contact,
    node::{AddressClass, Endpoint, NodeId, NodeKey, PublicKey, Record, RecordBuilder, RegistrationId},
    p2p::session::ConnectionId,
    policy::{
        self, Cause, DialFilter, Policy, Settings,
        dial::{Candidate, Source},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    network::internet,
    notary::Notary,
    wire::{Event, Wire},
};

/// Honest nodes beside the victim, the first three of them bootnodes.
const HONEST: usize = 60;
const BOOTNODES: usize = 3;

/// Honest nodes that only lists name. A tree names thousands, and these tests do not need them to run.
const LISTED: usize = 500;

/// The index of the attacker's first identity. Before it are the victim, the honest nodes, and those that are only
/// listed.
const FIRST: usize = 1 + HONEST + LISTED;

/// The number of the attacker's identities.
const IDENTITIES: usize = 10_000;

/// PINGs of the attacker to the victim, per second. An unoptimized build uses fewer, and less time.
const KNOCKS: u32 = if cfg!(debug_assertions) { 50 } else { 200 };

/// The duration of an attack: long enough for every honest peer to leave at least once.
const DURATION: Duration = Duration::from_secs(if cfg!(debug_assertions) { 10 * 60 } else { 30 * 60 });

/// The mean duration of a session with an honest peer. Sessions with the attacker's nodes do not end.
const STAY: Duration = Duration::from_secs(5 * 60);

/// The node numbers on the wire of two clocks: one for the attacker's PINGs, and one that ticks every second.
const KNOCK: usize = usize::MAX;
const SECOND: usize = usize::MAX - 1;

const REGISTRATION: RegistrationId = RegistrationId(1);

/// The addresses of the attacker's identities.
#[derive(Clone, Copy, Debug)]
enum Homes {
    /// Two hosts with one address each.
    TwoHosts,
    /// 28 addresses in as many networks.
    Addresses28,
    /// Addresses all over one IPv6 /48.
    Site,
}

impl Homes {
    fn addr(self, identity: usize) -> SocketAddr {
        let n = u16::try_from(identity).unwrap();
        let port = 10_000 + n;
        match self {
            Self::TwoHosts => SocketAddr::from(([45, 1, (n % 2) as u8, 1], port)),
            Self::Addresses28 => SocketAddr::from(([45, 2, (n % 28) as u8, 1], port)),
            // One /64 for each identity: a site (a /48) has 65,536 of them.
            Self::Site => SocketAddr::from(([0x2a00, 0x1450, 7, n, 0, 0, 0, 1], port)),
        }
    }
}

/// The state and the lists with which the victim starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// It has its bootnodes and a DNS list.
    Fresh,
    /// It was restarted. Its database has honest nodes and some of the attacker's.
    Restarted,
    /// It was restarted. Its database has only the attacker's nodes.
    PoisonedDatabase,
    /// The DNS list has only the attacker's nodes.
    PoisonedDns,
}

fn record(key: &NodeKey, addr: SocketAddr) -> Record {
    let mut builder = RecordBuilder::new(1);
    builder.ip(addr.ip()).port("udp", addr.port()).port("tcp", addr.port());
    builder.sign(key).unwrap()
}

/// A peer of the victim.
struct PeerOf {
    honest: bool,
    leaves: Option<Instant>,
}

/// The keys of all nodes. They are made once, because making them takes most of the time.
struct Names {
    secrets: Vec<NodeKey>,
    keys: Arc<Vec<PublicKey>>,
    by_id: BTreeMap<NodeId, usize>,
}

impl Names {
    fn new(rng: &mut StdRng) -> Self {
        let secrets: Vec<NodeKey> = (0..FIRST + IDENTITIES).map(|_| NodeKey::random(&mut *rng)).collect();
        let keys = Arc::new(secrets.iter().map(NodeKey::public).collect::<Vec<_>>());
        let by_id = keys.iter().enumerate().map(|(n, key)| (key.id(), n)).collect();
        Self { secrets, keys, by_id }
    }
}

struct World<'a> {
    names: &'a Names,
    now: Now,
    rng: StdRng,
    wire: Wire,
    addrs: Vec<SocketAddr>,
    /// The engines of the victim, which is the first, and of the honest nodes.
    engines: Vec<Engine<Notary>>,
    timers: Vec<Option<Instant>>,
    policy: Policy,
    peers: BTreeMap<ConnectionId, PeerOf>,
    conns: u64,
    demand: usize,
    dns: VecDeque<usize>,
    database: VecDeque<usize>,
    seeds: Vec<usize>,
    next_knock: usize,
}

impl<'a> World<'a> {
    fn new(names: &'a Names, homes: Homes, start: Start, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) };
        let count = FIRST + IDENTITIES;
        let keys = &names.keys;
        let addrs: Vec<SocketAddr> = (0..count)
            .map(|n| match n.checked_sub(FIRST) {
                Some(identity) => homes.addr(identity),
                None => SocketAddr::from(([60, (n >> 8) as u8, n as u8, 1], 30303)),
            })
            .collect();
        let mut wire = Wire::new(internet(), StdRng::from_rng(&mut rng));
        for (n, addr) in addrs.iter().enumerate() {
            wire.connect(n, *addr, false);
        }
        let endpoint = |n: usize| Endpoint { ip: addrs[n].ip(), udp: addrs[n].port(), tcp: addrs[n].port() };
        let bootnodes: Vec<Contact> = (1..=BOOTNODES).map(|n| Contact::new(keys[n], endpoint(n))).collect();
        let engines: Vec<_> = (0..=HONEST)
            .map(|n| {
                let crypto = Notary { number: u32::try_from(n).unwrap(), keys: Arc::clone(keys) };
                let record = record(&names.secrets[n], addrs[n]);
                let config = Config { bootnodes: bootnodes.clone(), ..Config::default() };
                Engine::new(now, config, crypto, record, StdRng::from_rng(&mut rng))
            })
            .collect();
        let settings = Settings { announced: AddressClass::Global, ..Settings::default() };
        let mut policy = Policy::new(now, keys[0].id(), settings, StdRng::from_rng(&mut rng));
        policy.register(now, REGISTRATION, DialFilter::Any, None);

        // An honest DNS list has only honest nodes. A database that is not poisoned also has nodes of the attacker,
        // which the victim has met.
        let honest: Vec<usize> = (1..=HONEST).collect();
        let attackers: Vec<usize> = (FIRST..count).collect();
        let some = |of: &[usize], count, rng: &mut StdRng| -> Vec<usize> {
            of.choose_multiple(rng, count).copied().collect()
        };
        let listed: Vec<usize> = (1..FIRST).collect();
        let dns = if start == Start::PoisonedDns { &attackers } else { &listed };
        let dns = some(dns, 1_000, &mut rng).into();
        let database: Vec<usize> = match start {
            Start::Fresh | Start::PoisonedDns => Vec::new(),
            Start::Restarted => [some(&honest, 20, &mut rng), some(&attackers, 20, &mut rng)].concat(),
            Start::PoisonedDatabase => some(&attackers, 1_000, &mut rng),
        };
        let mut world = Self {
            names,
            now,
            rng,
            wire,
            addrs,
            timers: vec![Some(now.mono); engines.len()],
            engines,
            policy,
            peers: BTreeMap::new(),
            conns: 0,
            demand: 0,
            dns,
            seeds: database.clone(),
            database: database.into(),
            next_knock: FIRST,
        };
        for n in 0..=HONEST {
            world.wire.schedule(now.mono, n, Event::Timer);
        }
        world.wire.schedule(now.mono, KNOCK, Event::Timer);
        world.wire.schedule(now.mono, SECOND, Event::Timer);
        world
    }

    /// A node as a list names it.
    fn contact(&self, n: usize) -> Contact {
        Contact::from_record(record(&self.names.secrets[n], self.addrs[n])).unwrap()
    }

    fn is_honest(&self, id: &NodeId) -> bool {
        self.names.by_id[id] < FIRST
    }

    fn run(&mut self, time: Duration) {
        let end = self.now.after(time);
        while let Some((at, n, event)) = self.wire.next(end.mono) {
            self.now = self.now.after(at.saturating_duration_since(self.now.mono));
            match (n, event) {
                (KNOCK, _) => self.knock(),
                (SECOND, _) => self.second(),
                (n, Event::Timer) if n <= HONEST && self.timers[n] == Some(at) => {
                    self.timers[n] = None;
                    self.engines[n].handle_timeout(self.now);
                    self.drain(n);
                }
                (n, Event::Datagram { from, bytes }) if n <= HONEST => {
                    self.engines[n].handle_datagram(self.now, from, &bytes);
                    self.drain(n);
                }
                (n, Event::Datagram { from, bytes }) if n >= FIRST => self.attacker_hears(n, from, &bytes),
                _ => {}
            }
        }
        self.now = end;
    }

    /// Takes the packets and actions of the victim or of an honest node, and sets its timer.
    fn drain(&mut self, n: usize) {
        let mut out = BytesMut::new();
        while let Some(action) = self.engines[n].poll_action() {
            if n > 0 {
                continue;
            }
            match action {
                Action::Discovered(contact) => self.offer(&contact, Source::V4),
                Action::SeedsWanted => {
                    for seed in self.seeds.clone().into_iter().take(30) {
                        let contact = self.contact(seed);
                        self.engines[0].add_seed(self.now, contact);
                    }
                }
                _ => {}
            }
        }
        while let Some(to) = self.engines[n].poll_transmit(self.now, &mut out) {
            self.wire.send(self.now.mono, self.addrs[n], to, &out);
        }
        let due = self.engines[n].poll_timeout().map(|at| at.max(self.now.mono));
        if let Some(at) = due.filter(|at| self.timers[n].is_none_or(|timer| *at < timer)) {
            self.timers[n] = Some(at);
            self.wire.schedule(at, n, Event::Timer);
        }
    }

    fn say(&mut self, n: usize, to: SocketAddr, kind: Type, append: impl FnOnce(&mut rlp::RlpStream)) {
        let crypto = Notary { number: u32::try_from(n).unwrap(), keys: Arc::clone(&self.names.keys) };
        let mut packet = BytesMut::new();
        seal(&crypto, kind, &mut packet, append);
        self.wire.send(self.now.mono, self.addrs[n], to, &packet);
    }

    fn ping(&mut self, n: usize, to: SocketAddr) {
        let wire =
            |addr: SocketAddr| WireEndpoint { ip: Some(addr.ip()), udp: addr.port(), tcp: addr.port() };
        let expiration = Expiration::from_now(self.now.unix);
        let ping = Ping { from: wire(self.addrs[n]), to: wire(to), expiration, enr_seq: Some(1) };
        self.say(n, to, Type::Ping, |stream| ping.append(stream));
    }

    /// The attacker's next identity pings the victim.
    fn knock(&mut self) {
        let victim = self.addrs[0];
        self.ping(self.next_knock, victim);
        self.next_knock += 1;
        if self.next_knock == FIRST + IDENTITIES {
            self.next_knock = FIRST;
        }
        self.wire.schedule(self.now.mono + Duration::from_secs(1) / KNOCKS, KNOCK, Event::Timer);
    }

    /// Answers at once. A NEIGHBORS packet names only the attacker's nodes.
    fn attacker_hears(&mut self, n: usize, from: SocketAddr, bytes: &[u8]) {
        let Ok(header) = Header::read(bytes) else { return };
        let Ok(packet) = Packet::decode(header.kind, header.body) else { return };
        let expiration = Expiration::from_now(self.now.unix);
        match packet {
            Packet::Ping(_) => {
                let to = WireEndpoint { ip: Some(from.ip()), udp: from.port(), tcp: from.port() };
                let pong = Pong { to, ping_hash: header.hash, expiration, enr_seq: Some(1) };
                self.say(n, from, Type::Pong, |stream| pong.append(stream));
            }
            Packet::FindNode(_) => {
                let nodes = (0..12)
                    .map(|_| {
                        let other = self.rng.random_range(FIRST..FIRST + IDENTITIES);
                        let addr = self.addrs[other];
                        let key = self.names.keys[other].to_uncompressed();
                        Neighbor { ip: Some(addr.ip()), udp: addr.port(), tcp: addr.port(), key }
                    })
                    .collect();
                let neighbors = Neighbors { nodes, expiration };
                self.say(n, from, Type::Neighbors, |stream| neighbors.append(stream));
            }
            _ => {}
        }
    }

    /// A source offers a candidate to the victim's dialer.
    fn offer(&mut self, contact: &Contact, source: Source) {
        let candidate = Candidate {
            public_key: contact.public_key,
            addr: SocketAddr::new(contact.endpoint.ip, contact.endpoint.tcp),
            record: contact.record.clone(),
            source,
            served: Duration::ZERO,
        };
        // The policy counts refusals.
        let _ = self.policy.candidate(self.now, candidate);
        self.act();
    }

    /// Carries out the policy's actions. Dials of the attacker's nodes always succeed, and dials of honest nodes half
    /// of the time.
    fn act(&mut self) {
        while let Some(action) = self.policy.poll_action() {
            match action {
                policy::Action::Dial(dial) => {
                    let honest = self.is_honest(&dial.id);
                    if honest && self.rng.random_bool(0.5) {
                        self.policy.dial_failed(self.now, dial.task, Cause::TooManyPeers, "");
                        continue;
                    }
                    self.conns += 1;
                    let conn = ConnectionId(self.conns);
                    self.policy.conn_opened(conn, dial.task, dial.addr.ip());
                    let admitted = self.policy.conn_identified(self.now, conn, dial.id).is_ok()
                        && self.policy.conn_ready(self.now, conn, &[REGISTRATION]).is_ok();
                    if admitted {
                        let stay = STAY.mul_f64(-self.rng.random_range(f64::EPSILON..1.0_f64).ln());
                        let leaves = honest.then(|| self.now.mono + stay);
                        self.peers.insert(conn, PeerOf { honest, leaves });
                    }
                }
                policy::Action::Demand(demand) => {
                    self.demand = demand;
                    self.engines[0].set_demand(self.now, demand);
                    self.drain(0);
                }
                policy::Action::Close(conn, _) => drop(self.peers.remove(&conn)),
                _ => {}
            }
        }
    }

    /// Runs once a second: peers leave, lists are read, timers fire.
    fn second(&mut self) {
        let now = self.now;
        let gone: Vec<ConnectionId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.leaves.is_some_and(|leaves| leaves <= now.mono))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in gone {
            self.peers.remove(&conn);
            self.policy.conn_closed(now, conn, Cause::Quitting, "");
        }
        self.policy.handle_timeout(now);
        self.act();
        // Each second a tree gives at most 3 records and a database 16, and no more than the dialer has room for.
        for (source, at_once) in [(Source::Dns, 3), (Source::Database, 16)] {
            for _ in 0..at_once.min(self.demand) {
                let list = if source == Source::Dns { &mut self.dns } else { &mut self.database };
                let Some(n) = list.pop_front() else { break };
                list.push_back(n);
                let contact = self.contact(n);
                self.offer(&contact, source);
            }
        }
        self.wire.schedule(now.mono + Duration::from_secs(1), SECOND, Event::Timer);
    }

    /// Returns the number of nodes in use in the victim's table, and the number of the attacker's among them.
    fn table(&self) -> (usize, usize) {
        let ids: BTreeSet<NodeId> = self.engines[0]
            .table()
            .buckets()
            .iter()
            .flat_map(|bucket| bucket.entries())
            .map(|entry| entry.contact.id)
            .collect();
        (ids.len(), ids.iter().filter(|id| !self.is_honest(id)).count())
    }

    /// Returns the same for the peers that the victim dialed.
    fn dialed(&self) -> (usize, usize) {
        (self.peers.len(), self.peers.values().filter(|peer| !peer.honest).count())
    }
}

/// The limits of an attack. In addition, at least two dialed peers are honest at all times.
struct Promise {
    /// The attacker's nodes in the table, at most.
    in_table: usize,
    /// The attacker's dialed peers, at most.
    in_slots: usize,
}

const STARTS: [Start; 4] = [Start::Fresh, Start::Restarted, Start::PoisonedDatabase, Start::PoisonedDns];

/// Attacks from these addresses after each of these starts, and checks the limits.
fn attack(homes: Homes, starts: &[Start], promise: &Promise) {
    let seed = 6;
    let Promise { in_table, in_slots } = *promise;
    let names = Names::new(&mut StdRng::seed_from_u64(seed));
    for &start in starts {
        let mut world = World::new(&names, homes, start, seed);
        let end = world.now.mono + DURATION;
        let (mut least_honest, mut worst_share) = (usize::MAX, 0.0_f64);
        // In the first minute the victim finds its first peers.
        world.run(Duration::from_secs(60));
        while world.now.mono < end {
            world.run(Duration::from_secs(10));
            let (dialed, theirs) = world.dialed();
            assert!(theirs <= in_slots, "{homes:?} {start:?}: {theirs} dialed, seed {seed}");
            least_honest = least_honest.min(dialed - theirs);
            worst_share = worst_share.max(theirs as f64 / dialed.max(1) as f64);
        }
        let ((nodes, own), (dialed, theirs)) = (world.table(), world.dialed());
        println!(
            "{homes:?}, {start:?}, seed {seed}: the attacker has {own} of {nodes} in the table, {theirs} of {dialed} \
             dialed slots ({:.0} % at the worst); at least {least_honest} honest peers at all times",
            100.0 * worst_share
        );
        assert!(own <= in_table, "{homes:?} {start:?}: {own} in the table, seed {seed}");
        assert!(least_honest >= 2, "{homes:?} {start:?}: {least_honest} honest, seed {seed}");
        assert!(world.engines[0].is_consistent());
    }
}

#[test]
fn ten_thousand_names_on_two_hosts_do_not_eclipse_a_node() {
    attack(Homes::TwoHosts, &STARTS, &Promise { in_table: 2 * 10, in_slots: 2 * 5 });
}

/// These networks are enough to fill every bucket. The limit that remains is that one honest source keeps three of 16
/// slots. With the tree poisoned as well, every source is the attacker's, and no limit holds (`docs/security.md`).
#[test]
fn ten_thousand_names_on_28_addresses_do_not_eclipse_a_node() {
    let starts = [Start::Fresh, Start::Restarted, Start::PoisonedDatabase];
    attack(Homes::Addresses28, &starts, &Promise { in_table: 28 * 10, in_slots: 13 });
}

#[test]
fn ten_thousand_names_in_one_site_do_not_eclipse_a_node() {
    attack(Homes::Site, &STARTS, &Promise { in_table: 10, in_slots: 10 });
}
