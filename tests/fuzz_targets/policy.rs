//! Dials and admission under any sequence of operations: limits hold, nothing is counted twice, and the timers make
//! progress.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use devp2pd::Now;
use devp2pd::node::{AddressClass, Enode, Host, NodeId, NodeKey, NodeRef, PublicKey, RegistrationId};
use devp2pd::p2p::session::ConnectionId;
use devp2pd::policy::admission::Verdict;
use devp2pd::policy::dial::{
    Candidate, ConnectId, Dial, EntryState, Kind, List, ListSource, Scheduler, Source, TaskId,
};
use devp2pd::policy::{Action, BanTarget, Cause, ChurnSettings, DialFilter, Policy, Settings, rules::Rules};
use rand::{SeedableRng, rngs::StdRng};

/// The public keys of the nodes, made once. They are so few that a run uses the same node repeatedly. The last one is
/// ours.
static KEYS: LazyLock<Vec<PublicKey>> = LazyLock::new(|| {
    let key = |n: u8| NodeKey::from_bytes(&[n + 1; 32]).expect("one of the valid keys").public();
    (0..33).map(key).collect()
});
const US: usize = 32;

fn key(n: u8) -> PublicKey {
    KEYS[usize::from(n) % US]
}

/// Four networks with four addresses each: public, private, IPv6 and loopback.
fn ip(n: u8) -> IpAddr {
    let host = n % 4 + 1;
    match n / 4 % 4 {
        0 => [8, 8, 8, host].into(),
        1 => [10, 0, 0, host].into(),
        2 => [0x2600, 0, 0, u16::from(host), 0, 0, 0, 1].into(),
        _ => [127, 0, 0, host].into(),
    }
}

fn addr(n: u8) -> SocketAddr {
    (ip(n), u16::from(n / 16)).into()
}

/// A reference to a node: with an address, with a name, or with neither.
fn node(n: u8, at: u8) -> NodeRef {
    let enode = |host| NodeRef::Enode(Enode { public_key: key(n), host, tcp: 30303, udp: 0 });
    match at % 8 {
        0 => NodeRef::Id(key(n).id()),
        1 => NodeRef::Key(key(n)),
        2 => enode(Host::Name("node.example.org".into())),
        _ => enode(Host::Ip(ip(at))),
    }
}

fn source(n: u8) -> Source {
    Source::ALL[usize::from(n) % Source::ALL.len()]
}

fn cause(n: u8) -> Cause {
    Cause::ALL[usize::from(n) % Cause::ALL.len()]
}

/// Small limits, so that a run reaches them.
fn settings(n: u8) -> Settings {
    Settings {
        max_peers: usize::from(n % 8),
        dial_ratio: usize::from(n / 8 % 4),
        max_pending_dials: 1 + usize::from(n % 5),
        max_pending_inbound: 1 + usize::from(n % 6),
        dialing: n % 16 != 7,
        discovery: n.is_multiple_of(2),
        allowlist_only: n % 32 == 9,
        announced: if n & 64 == 0 { AddressClass::Private } else { AddressClass::Global },
        net_restrict: if n % 64 == 11 { vec!["8.0.0.0/8".parse().expect("a network")] } else { Vec::new() },
        ..Settings::default()
    }
}

fn start() -> Now {
    #[allow(
        clippy::disallowed_methods,
        reason = "an Instant has no other origin; the input says how it goes on"
    )]
    let mono = Instant::now();
    Now { mono, unix: Duration::from_secs(1_700_000_000) }
}

/// Runs the dial scheduler with a driver whose results the input chooses.
pub fn dial_scheduler(data: &[u8]) {
    let mut now = start();
    let mut rules = Rules::new(KEYS[US].id(), Settings::default());
    let mut dial = Scheduler::new(now, StdRng::seed_from_u64(1));
    let mut world = Driver::default();
    for op in data.chunks_exact(3) {
        let [op, a, b] = *op else { unreachable!() };
        let id = key(a).id();
        match op % 20 {
            0 => drop(dial.add(now, &rules, &node(a, b), List::Static, ListSource::Call)),
            1 => drop(dial.add(now, &rules, &node(a, b), List::Trusted, ListSource::Call)),
            2 => drop(dial.remove(now, &rules, &id, List::Static)),
            3 => drop(dial.remove(now, &rules, &id, List::Trusted)),
            4 | 5 => {
                let served = Duration::from_secs(b.into());
                let (public_key, addr, source) = (key(a), addr(b), source(op));
                let candidate = Candidate { public_key, addr, record: None, source, served };
                let _ = dial.candidate(now, &rules, candidate, false);
            }
            6 => {
                let (connect, timeout) = (ConnectId(world.connects), Duration::from_secs(b.into()));
                world.connects += 1;
                if dial.connect(now, &rules, connect, &node(a, b), timeout).is_ok() {
                    world.asked.insert(connect);
                }
            }
            7 | 8 => {
                if let Some(open) =
                    world.dials.values().nth(usize::from(a) % world.dials.len().max(1)).cloned()
                {
                    world.dials.remove(&open.id);
                    world.peers.insert(open.id);
                    dial.peer_connected(now, &rules, open.id, false, &[RegistrationId(0)]);
                }
            }
            9 | 10 => {
                if let Some(open) =
                    world.dials.values().nth(usize::from(a) % world.dials.len().max(1)).cloned()
                {
                    world.dials.remove(&open.id);
                    dial.dial_failed(now, &rules, open.task, cause(b), "fuzzed");
                }
            }
            11 => {
                if let Some(task) = world.lookups.pop_first() {
                    let ips: Vec<IpAddr> = (0..b % 4).map(|n| ip(a.wrapping_add(n * 5))).collect();
                    let answer = if b % 16 == 15 { Err("fuzzed") } else { Ok(ips.as_slice()) };
                    dial.host_resolved(now, &rules, task, answer);
                }
            }
            12 => {
                let found = node(a, b).enode();
                dial.node_resolved(now, &rules, &id, found);
            }
            13 => {
                if id != rules.local_id && rules.check_node(now, &id).is_ok() {
                    world.peers.insert(id);
                    dial.peer_connected(now, &rules, id, true, &[RegistrationId(b.into())]);
                }
            }
            14 => {
                if let Some(id) = world.peers.pop_first() {
                    dial.peer_disconnected(now, &rules, &id, cause(b), "fuzzed");
                }
            }
            // Unused. The numbers after it stay as they are, because the inputs of the corpus use them.
            15 => {}
            16 if b % 2 == 0 => {
                let desired = (b > 8).then_some(usize::from(b % 4));
                dial.register(now, &rules, RegistrationId(u64::from(a % 3)), DialFilter::Any, desired);
            }
            16 => dial.unregister(now, &rules, RegistrationId(u64::from(a % 3))),
            17 => {
                rules.settings = settings(a);
                dial.rules_changed(now, &rules);
            }
            18 => {
                let target = if b % 2 == 0 { BanTarget::Node(id) } else { BanTarget::ip(ip(a)) };
                let _ = rules.bans.ban(now.unix, target, Duration::from_secs(b.into()), "", ListSource::Call);
                dial.rules_changed(now, &rules);
            }
            _ => {
                now = later(now, a);
                dial.handle_timeout(now, &rules);
                assert!(
                    dial.poll_timeout(&rules).is_none_or(|at| at > now.mono),
                    "the timer does not move on"
                );
            }
        }
        while let Some(action) = dial.poll_action() {
            world.act(now, &rules, &dial, action);
        }
        world.check(now, &rules, &dial);
    }
}

/// The state of the scheduler's driver.
#[derive(Default)]
struct Driver {
    lookups: BTreeSet<TaskId>,
    dials: BTreeMap<NodeId, Dial>,
    peers: BTreeSet<NodeId>,
    /// The time of the last dynamic dial to each address.
    tried: BTreeMap<SocketAddr, Instant>,
    connects: u64,
    asked: BTreeSet<ConnectId>,
}

impl Driver {
    fn act(&mut self, now: Now, rules: &Rules, dial: &Scheduler, action: Action) {
        match action {
            Action::Dial(task) => {
                assert_ne!(task.id, rules.local_id);
                assert_eq!(rules.check_node(now, &task.id), Ok(()));
                assert_eq!(rules.check_ip(now, task.addr.ip()), Ok(()));
                assert!(rules.settings.dialing && dial.has_registrations());
                assert!(!self.peers.contains(&task.id), "dialed a peer");
                if let Kind::Dynamic(_) = task.kind {
                    let before = self.tried.insert(task.addr, now.mono);
                    assert!(before.is_none_or(|before| now.mono - before >= rules.settings.history));
                }
                assert!(self.dials.insert(task.id, task).is_none(), "one node, two dials");
            }
            Action::LookupHost { task, .. } => assert!(self.lookups.insert(task)),
            Action::AbortDial(task) => {
                self.lookups.remove(&task);
                self.dials.retain(|_, dial| dial.task != task);
            }
            Action::ConnectDone { connect, .. } => {
                assert!(self.asked.remove(&connect) || connect.0 + 1 == self.connects, "answered twice");
            }
            Action::Fork(_) => {}
            Action::Demand(n) => assert!(n <= rules.settings.max_pending_dials),
            Action::ResolveNode { .. } | Action::EntryChanged(_) | Action::DialFailed { .. } => {}
            other => panic!("the scheduler does not decide this: {other:?}"),
        }
    }

    fn check(&self, now: Now, rules: &Rules, dial: &Scheduler) {
        // A lowered bound applies to later dials only. So the default is checked: no setting here is above it.
        assert!(self.dials.len() + self.lookups.len() <= Settings::default().max_pending_dials);
        for entry in dial.entries(now, rules) {
            let connected = matches!(entry.state, EntryState::Connected { .. });
            assert_eq!(connected, self.peers.contains(&entry.id));
            assert!(entry.as_static.is_some() || entry.as_trusted.is_some());
        }
    }
}

/// A later time: up to two hours, so that every timer is reached, and mostly much less.
fn later(now: Now, step: u8) -> Now {
    now.after(Duration::from_millis(u64::from(step).pow(3) / 2))
}

/// Runs admission through `Policy`, with a switch whose steps the input chooses.
pub fn admission(data: &[u8]) {
    let mut now = start();
    let mut policy = Policy::new(now, KEYS[US].id(), settings(6), StdRng::seed_from_u64(2));
    policy.register(now, RegistrationId(0), DialFilter::Any, None);
    // Every open connection, and its stage.
    let mut open: BTreeMap<ConnectionId, Stage> = BTreeMap::new();
    let mut dials: Vec<Dial> = Vec::new();
    let mut next = 0;
    for op in data.chunks_exact(3) {
        let [op, a, b] = *op else { unreachable!() };
        let id = key(a).id();
        let nth = open.keys().nth(usize::from(a) % open.len().max(1)).copied();
        match op % 14 {
            0..=2 => {
                next += 1;
                if policy.conn_accepted(now, ConnectionId(next), ip(a)).is_ok() {
                    open.insert(ConnectionId(next), Stage::Open { dialed: None });
                }
            }
            3 => {
                if let Some(dial) = dials.pop() {
                    next += 1;
                    policy.conn_opened(ConnectionId(next), dial.task, dial.addr.ip());
                    open.insert(ConnectionId(next), Stage::Open { dialed: Some(dial.id) });
                }
            }
            4 | 5 => {
                if let Some((conn, Stage::Open { dialed })) =
                    nth.and_then(|conn| Some((conn, open.get(&conn)?)))
                {
                    let result = policy.conn_identified(now, conn, dialed.unwrap_or_else(|| key(b).id()));
                    let stage = result.map(|()| Stage::Identified).unwrap_or(Stage::Gone);
                    open.insert(conn, stage);
                }
            }
            6 | 7 => {
                if let Some((conn, Stage::Identified)) = nth.and_then(|conn| Some((conn, open.get(&conn)?))) {
                    let served: &[RegistrationId] = if b % 8 == 0 { &[] } else { &[RegistrationId(0)] };
                    let stage = match policy.conn_ready(now, conn, served) {
                        Ok(Verdict::Admitted) => Stage::Peer,
                        Ok(Verdict::Parked) => Stage::Parked,
                        Err(_) => Stage::Gone,
                    };
                    open.insert(conn, stage);
                }
            }
            8 => {
                if let Some(conn) = nth {
                    policy.conn_heard(now, conn);
                }
            }
            9 => {
                if let Some(conn) = nth {
                    policy.conn_closed(now, conn, cause(b), "fuzzed");
                    open.remove(&conn);
                }
            }
            10 if b % 2 == 0 => drop(policy.add_static(now, &node(a, b), ListSource::Call)),
            10 if b % 4 == 1 => drop(policy.add_trusted(now, &node(a, b), ListSource::Call)),
            10 => drop((policy.remove_static(now, &id, b % 8 == 7), policy.remove_trusted(now, &id))),
            11 => {
                let target = if b % 2 == 0 { BanTarget::Node(id) } else { BanTarget::ip(ip(a)) };
                let secs = Duration::from_secs(b.into());
                let _ = policy.ban(now, target, secs, "", ListSource::Call, b % 4 > 1);
            }
            12 if b % 2 == 0 => policy.set_settings(now, settings(a)),
            12 => {
                let churn = (b % 4 == 1).then(ChurnSettings::default);
                let settings = Settings { churn, ..policy.settings().clone() };
                policy.set_settings(now, settings);
            }
            _ => {
                now = later(now, a);
                policy.handle_timeout(now);
                assert!(policy.poll_timeout().is_none_or(|at| at > now.mono), "the timer does not move on");
            }
        }
        while let Some(action) = policy.poll_action() {
            match action {
                Action::Close(conn, _) => {
                    assert!(open.insert(conn, Stage::Gone).is_some(), "closed what is not open");
                }
                Action::Promoted { conn, .. } => {
                    assert_eq!(
                        open.insert(conn, Stage::Peer),
                        Some(Stage::Parked),
                        "promoted what was not parked"
                    );
                }
                Action::Dial(dial) => dials.push(dial),
                Action::AbortDial(task) => dials.retain(|dial| dial.task != task),
                _ => {}
            }
        }
        check(now, &policy, &open);
    }
}

/// The stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// TCP is open; `dialed` is the node that was dialed.
    Open { dialed: Option<NodeId> },
    /// Its node id is known.
    Identified,
    /// A second connection of a peer.
    Parked,
    /// The connection of a peer.
    Peer,
    /// To be closed by the switch.
    Gone,
}

fn check(now: Now, policy: &Policy, open: &BTreeMap<ConnectionId, Stage>) {
    let (_, inbound, dialed) = policy.slot_use();
    let peers: Vec<_> = policy.peers().collect();
    let taking =
        |is_inbound| peers.iter().filter(|peer| peer.takes_slot && peer.inbound == is_inbound).count();
    assert_eq!((inbound, dialed), (taking(true), taking(false)));
    for peer in &peers {
        assert_eq!(open.get(&peer.conn), Some(&Stage::Peer), "{peer:?}");
        assert_eq!(policy.ban_of(now, Some(&peer.id), Some(peer.ip)), None, "a banned peer");
        let listed = policy.is_static(&peer.id) || policy.is_trusted(&peer.id);
        assert_eq!(peer.takes_slot, !listed);
        let settings = policy.settings();
        assert!(listed || !settings.allowlist_only);
    }
    let standing = open.values().filter(|stage| **stage == Stage::Peer).count();
    assert_eq!(peers.len(), standing, "a peer that nobody knows of");
}
