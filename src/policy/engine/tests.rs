//! Everyday cases and attacks, through the interface that the switch uses.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng};

use super::{
    super::{
        BanError, BanTarget, ChurnSettings, DialFilter, Refusal, Settings,
        dial::{Candidate, ConnectId, Dial, EntryState, ListSource, Source},
        test_now,
    },
    *,
};
use crate::node::{Enode, NodeKey, NodeRef, PublicKey, RegistrationId};

const SERVED: &[RegistrationId] = &[RegistrationId(0)];

fn key(n: u64) -> PublicKey {
    let mut scalar = [0; 32];
    scalar[24..].copy_from_slice(&(n + 1).to_be_bytes());
    NodeKey::from_bytes(&scalar).unwrap().public()
}

fn id(n: u64) -> NodeId {
    key(n).id()
}

/// Every node has a network of its own.
fn ip(n: u64) -> IpAddr {
    [8, (n >> 8) as u8, n as u8, 1].into()
}

fn enode(n: u64) -> NodeRef {
    NodeRef::Enode(Enode::at(key(n), SocketAddr::new(ip(n), 30303)))
}

struct Bench {
    now: Now,
    policy: Policy,
    next_conn: u64,
    dials: Vec<Dial>,
    closed: Vec<(ConnectionId, CloseReason)>,
    other: Vec<Action>,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let now = test_now();
        let mut policy = Policy::new(now, id(999), settings, StdRng::seed_from_u64(5));
        policy.register(now, RegistrationId(0), DialFilter::Any, None);
        Self { now, policy, next_conn: 0, dials: Vec::new(), closed: Vec::new(), other: Vec::new() }
    }

    fn conn(&mut self) -> ConnectionId {
        self.next_conn += 1;
        ConnectionId(self.next_conn)
    }

    /// A node dials us, to the end of the handshake.
    fn knock_from(&mut self, n: u64, ip: IpAddr) -> Result<(ConnectionId, Verdict), Refusal> {
        let conn = self.conn();
        self.policy.conn_accepted(self.now, conn, ip)?;
        self.policy.conn_identified(self.now, conn, id(n))?;
        let verdict = self.policy.conn_ready(self.now, conn, SERVED);
        self.drain();
        Ok((conn, verdict?))
    }

    fn knock(&mut self, n: u64) -> Result<(ConnectionId, Verdict), Refusal> {
        self.knock_from(n, ip(n))
    }

    /// The last dial of a node succeeds.
    fn answer(&mut self, n: u64) -> Result<(ConnectionId, Verdict), Refusal> {
        self.drain();
        let dial = self.dials.iter().rfind(|dial| dial.id == id(n)).expect("dialed").clone();
        let conn = self.conn();
        self.policy.conn_opened(conn, dial.task, dial.addr.ip());
        self.policy.conn_identified(self.now, conn, id(n))?;
        let verdict = self.policy.conn_ready(self.now, conn, SERVED);
        self.drain();
        Ok((conn, verdict?))
    }

    fn drain(&mut self) {
        while let Some(action) = self.policy.poll_action() {
            match action {
                Action::Dial(dial) => self.dials.push(dial),
                Action::Close(conn, reason) => self.closed.push((conn, reason)),
                other => self.other.push(other),
            }
        }
    }

    fn pass(&mut self, secs: u64) {
        self.now = self.now.after(Duration::from_secs(secs));
        self.policy.handle_timeout(self.now);
        self.drain();
    }

    fn peers(&self) -> usize {
        self.policy.peers().count()
    }

    fn ban(&mut self, target: &str, force: bool) -> Result<(), BanError> {
        let (target, day) = (target.parse().unwrap(), Duration::from_secs(86_400));
        let result = self.policy.ban(self.now, target, day, "abuse", ListSource::Call, force);
        self.drain();
        result.map(|_| ())
    }
}

/// The lack of candidates for ten minutes is reported once, and its end too; the timer fires without another event.
#[test]
fn a_warning_is_told_when_it_begins_and_when_it_ends() {
    let mut bench = Bench::new(Settings::default());
    let told = |bench: &mut Bench| -> Vec<String> {
        let about = |action: Action| match action {
            Action::Warn(warning) => Some(warning.name().to_owned()),
            Action::WarningOver(name) => Some(format!("no {name}")),
            _ => None,
        };
        std::mem::take(&mut bench.other).into_iter().filter_map(about).collect()
    };
    let began = bench.now.mono;
    let run = |bench: &mut Bench, until: u64| {
        let end = began + Duration::from_secs(until);
        while let Some(at) = bench.policy.poll_timeout().filter(|at| *at <= end) {
            bench.now = bench.now.after(at.saturating_duration_since(bench.now.mono));
            bench.policy.handle_timeout(bench.now);
            bench.drain();
        }
    };
    run(&mut bench, 599);
    assert_eq!(told(&mut bench), [""; 0]);
    run(&mut bench, 1800);
    assert_eq!(told(&mut bench), ["no_candidates"]);
    let candidate = Candidate {
        public_key: key(1),
        addr: SocketAddr::new(ip(1), 30303),
        record: None,
        source: Source::V5,
        served: Duration::ZERO,
    };
    bench.policy.candidate(bench.now, candidate).unwrap();
    run(&mut bench, 1900);
    assert_eq!(told(&mut bench), ["no no_candidates"]);
    assert!(bench.policy.warnings(bench.now).is_empty());
}

#[test]
fn a_thousand_connections_from_one_address_are_one_every_thirty_seconds() {
    let mut bench = Bench::new(Settings { peers_per_subnet: 1000, ..Settings::default() });
    let mut let_in = 0;
    for n in 0..1000 {
        let_in += usize::from(bench.knock_from(n, ip(0)).is_ok());
        bench.now = bench.now.after(Duration::from_millis(100));
    }
    // A hundred seconds: at 0, 30, 60 and 90.
    assert_eq!((let_in, bench.peers()), (4, 4));
    let refused = bench.policy.recent(bench.now).not_let_in;
    assert_eq!(refused.get(&Refusal::Throttled), Some(&996));
}

#[test]
fn a_thousand_addresses_of_one_network_get_its_share() {
    let mut bench = Bench::new(Settings::default());
    let from = |n: u64| IpAddr::from([0x2600, 0, 0, (n % 20) as u16, 0, 0, 0, n as u16]);
    // Slow sockets first: eight in handshake at once from one /48, whatever the throttle lets in.
    for n in 0..1000 {
        let conn = bench.conn();
        let _ = bench.policy.conn_accepted(bench.now, conn, from(n));
    }
    assert_eq!(bench.policy.admission.pending(), 8);
    // Honest handshakes, over an hour: at most five peers of each /64, ten of the /48.
    let mut bench = Bench::new(Settings::default());
    for n in 0..1000 {
        let _ = bench.knock_from(n, from(n));
        bench.pass(4);
    }
    assert_eq!(bench.peers(), 10);
    let mut bench = Bench::new(Settings { inbound_throttle: Duration::ZERO, ..Settings::default() });
    for n in 0..1000 {
        let _ = bench.knock_from(n, [8, 8, 8, (n % 255) as u8].into());
    }
    assert_eq!(bench.peers(), 5);
}

/// Behind a bridge or a Service all peers have one private address, and our own is public (`--nat extip`).
#[test]
fn a_bridge_that_hides_its_callers_is_named_and_its_limits_can_be_switched_off() {
    let bridge: IpAddr = "172.17.0.1".parse().unwrap();
    let defaults = Settings { announced: AddressClass::Global, ..Settings::default() };
    let mut bench = Bench::new(defaults.clone());
    let let_in = (0..20).filter(|n| bench.knock_from(*n, bridge).is_ok()).count();
    bench.drain();
    assert_eq!(let_in, 1, "the throttle");
    let named = super::super::one_source::OneSource(bridge);
    let told: Vec<&Action> =
        bench.other.iter().filter(|action| matches!(action, Action::OneSource(_))).collect();
    assert_eq!(told, [&Action::OneSource(named)]);
    assert_eq!(bench.policy.one_source(bench.now), Some(named));
    // The remedy in the warning: every limit per source off, for concurrent handshakes too.
    let mut bench = Bench::new(Settings {
        inbound_throttle: Duration::ZERO,
        peers_per_subnet: 0,
        pending_per_subnet: 0,
        ..defaults
    });
    let conns: Vec<ConnectionId> = (0..12).map(|_| bench.conn()).collect();
    for (n, conn) in (0..).zip(&conns) {
        bench.policy.conn_accepted(bench.now, *conn, bridge).unwrap();
        bench.policy.conn_identified(bench.now, *conn, id(n)).unwrap();
    }
    for conn in conns {
        assert_eq!(bench.policy.conn_ready(bench.now, conn, SERVED), Ok(Verdict::Admitted));
    }
    assert_eq!((bench.peers(), bench.policy.one_source(bench.now)), (12, None));
}

#[test]
fn fifty_slow_sockets_and_a_full_house_do_not_keep_a_trusted_peer_out() {
    let mut bench = Bench::new(Settings::default());
    for n in 0..100 {
        let _ = bench.knock(n);
    }
    assert_eq!((bench.peers(), bench.knock(200).err()), (34, Some(Refusal::TooManyInbound)));
    for n in 300..350 {
        let conn = bench.conn();
        bench.policy.conn_accepted(bench.now, conn, ip(n)).unwrap();
    }
    bench.policy.add_trusted(bench.now, &NodeRef::Id(id(1000)), ListSource::Call).unwrap();
    assert!(bench.knock(1000).is_ok());
    assert_eq!((bench.peers(), bench.closed.len()), (35, 1));
    assert_eq!(bench.closed[0].1, CloseReason::Refused(Refusal::PushedOut));
    // A static peer has its slot, in both directions.
    bench.policy.add_static(bench.now, &enode(1001), ListSource::Call).unwrap();
    assert!(bench.answer(1001).is_ok());
    bench.policy.add_static(bench.now, &enode(1002), ListSource::Call).unwrap();
    assert!(bench.knock(1002).is_ok());
    // Neither is above the rest of the rules.
    let useless = bench.conn();
    bench.policy.add_trusted(bench.now, &NodeRef::Id(id(1003)), ListSource::Call).unwrap();
    bench.policy.conn_accepted(bench.now, useless, ip(1003)).unwrap();
    bench.policy.conn_identified(bench.now, useless, id(1003)).unwrap();
    assert_eq!(bench.policy.conn_ready(bench.now, useless, &[]), Err(Refusal::Useless));
}

#[test]
fn limits_are_checked_again_after_the_handshake() {
    let mut bench = Bench::new(Settings { max_peers: 2, dial_ratio: 2, ..Settings::default() });
    let conns = [bench.conn(), bench.conn()];
    for (n, conn) in (0..).zip(conns) {
        bench.policy.conn_accepted(bench.now, conn, ip(n)).unwrap();
        bench.policy.conn_identified(bench.now, conn, id(n)).unwrap();
    }
    assert_eq!(bench.policy.conn_ready(bench.now, conns[1], SERVED), Ok(Verdict::Admitted));
    assert_eq!(bench.policy.conn_ready(bench.now, conns[0], SERVED), Err(Refusal::TooManyInbound));
    // A refused connection is forgotten; its end changes nothing.
    bench.policy.conn_closed(bench.now, conns[0], Cause::LocalPolicy, "");
    assert_eq!(bench.peers(), 1);
    bench.policy.conn_closed(bench.now, conns[1], Cause::Requested, "");
    assert_eq!(bench.peers(), 0);
    assert!(bench.knock(7).is_ok());
}

/// An auth message may name anybody's key, and a recorded one may be sent again: neither keeps us from dialing the
/// node.
#[test]
fn a_claim_to_be_a_node_keeps_nobody_from_dialing_it() {
    let mut bench = Bench::new(Settings::default());
    bench.policy.add_trusted(bench.now, &enode(3), ListSource::Call).unwrap();
    bench.drain();
    assert!(
        bench.dials.pop().is_some_and(|dial| dial.id == id(3)),
        "a trusted peer with an address is dialed"
    );
    for n in 0..8 {
        for claimed in [1, 2] {
            let conn = bench.conn();
            bench.policy.conn_accepted(bench.now, conn, ip(100 + 2 * n + claimed)).unwrap();
            bench.policy.conn_identified(bench.now, conn, id(claimed)).unwrap();
        }
    }
    bench.policy.add_static(bench.now, &enode(1), ListSource::Call).unwrap();
    let (public_key, addr) = (key(2), SocketAddr::new(ip(2), 30303));
    let candidate = Candidate { public_key, addr, record: None, source: Source::V4, served: Duration::ZERO };
    bench.policy.candidate(bench.now, candidate).unwrap();
    bench.drain();
    let dialed: Vec<NodeId> = bench.dials.iter().map(|dial| dial.id).collect();
    assert_eq!(dialed, [id(1), id(2)]);
    assert!(!bench.policy.reached_from_outside(), "no node has proved anything");
    assert!(bench.answer(1).is_ok() && bench.answer(2).is_ok());
    assert_eq!(bench.peers(), 2);
}

#[test]
fn it_is_known_whether_our_port_is_open_to_the_internet() {
    let mut bench = Bench::new(Settings::default());
    bench.knock_from(1, [10, 0, 0, 1].into()).unwrap();
    assert!(!bench.policy.reached_from_outside());
    bench.knock(2).unwrap();
    assert!(bench.policy.reached_from_outside());
    assert_eq!(bench.policy.totals().let_in, 2);
}

#[test]
fn ourselves_and_one_connection_twice_are_refused() {
    let mut bench = Bench::new(Settings::default());
    assert_eq!(bench.knock(999).err(), Some(Refusal::OwnIdentity));
    assert!(bench.knock(1).is_ok());
    assert_eq!(bench.knock_from(1, ip(2)).err(), Some(Refusal::Duplicate));
    assert_eq!(bench.peers(), 1);
}

#[test]
fn bans_end_connections_and_dials_and_listed_peers_need_force() {
    let mut bench = Bench::new(Settings::default());
    bench.policy.add_static(bench.now, &enode(1), ListSource::Call).unwrap();
    let conn = bench.answer(1).unwrap().0;
    bench.knock(2).unwrap();
    bench.knock(3).unwrap();
    assert_eq!(bench.ban(&id(1).to_string(), false), Err(BanError::Protected(id(1))));
    assert_eq!(bench.ban("8.0.0.0/16", false), Err(BanError::Protected(id(1))));
    assert_eq!(bench.ban(&id(999).to_string(), true), Err(BanError::OwnIdentity));
    assert!(bench.closed.is_empty());
    bench.ban("8.0.2.0/24", false).unwrap();
    assert_eq!(bench.peers(), 2);
    bench.ban("8.0.0.0/16", true).unwrap();
    assert_eq!((bench.peers(), bench.closed.len()), (0, 3));
    assert!(bench.closed.contains(&(conn, CloseReason::Banned)));
    let state = |bench: &Bench| bench.policy.entry(bench.now, &id(1)).unwrap().state;
    assert_eq!(state(&bench), EntryState::Refused(Refusal::BannedAddress));
    // Overlapping bans end one by one.
    let lift = |bench: &mut Bench, target: &str| {
        bench.policy.unban(bench.now, &target.parse().unwrap()).map(|ban| ban.target.to_string())
    };
    assert_eq!(lift(&mut bench, "8.0.0.0/16").as_deref(), Ok("8.0.0.0/16"));
    assert_eq!(lift(&mut bench, "8.0.0.0/16"), Err(BanError::NotBanned));
    bench.pass(60);
    assert_eq!(bench.knock(2).err(), Some(Refusal::BannedAddress));
    assert!(bench.knock(3).is_ok());
    // The static peer is dialed again, after a pause that its connection before it asks for.
    let dials = bench.dials.len();
    bench.pass(60);
    assert_eq!(bench.dials.len(), dials + usize::from(dials == 1));
}

#[test]
fn a_removed_static_peer_goes_unless_it_is_trusted_or_wanted() {
    // trusted, keep_connected, still a peer
    for (trusted, keep, stays) in [(false, false, false), (true, false, true), (false, true, true)] {
        let mut bench = Bench::new(Settings::default());
        bench.policy.add_static(bench.now, &enode(1), ListSource::Call).unwrap();
        if trusted {
            bench.policy.add_trusted(bench.now, &enode(1), ListSource::Call).unwrap();
        }
        bench.answer(1).unwrap();
        bench.policy.remove_static(bench.now, &id(1), keep).unwrap();
        bench.drain();
        assert_eq!(bench.peers() == 1, stays, "trusted {trusted}, keep {keep}");
        assert_eq!(bench.policy.slot_use().2, usize::from(keep), "one that is kept takes a slot");
    }
}

#[test]
fn only_listed_peers_in_allow_list_mode() {
    let mut bench = Bench::new(Settings::default());
    bench.policy.add_trusted(bench.now, &NodeRef::Id(id(1)), ListSource::Config).unwrap();
    bench.knock(1).unwrap();
    bench.knock(2).unwrap();
    let settings = Settings { allowlist_only: true, ..Settings::default() };
    bench.policy.set_settings(bench.now, settings);
    bench.drain();
    assert_eq!((bench.peers(), bench.closed.len()), (1, 1));
    assert_eq!(bench.knock(3).err(), Some(Refusal::NotOnAllowlist));
    let (public_key, addr, source) = (key(4), SocketAddr::new(ip(4), 1), Source::V4);
    let candidate = Candidate { public_key, addr, record: None, source, served: Duration::ZERO };
    assert_eq!(bench.policy.candidate(bench.now, candidate), Err(Refusal::NotOnAllowlist));
    bench.policy.add_static(bench.now, &enode(5), ListSource::Call).unwrap();
    assert!(bench.answer(5).is_ok());
}

#[test]
fn a_peer_that_is_removed_goes_with_both_its_connections() {
    let mut bench = Bench::new(Settings::default());
    bench.policy.add_static(bench.now, &enode(1), ListSource::Call).unwrap();
    assert_eq!(bench.knock(1).unwrap().1, Verdict::Admitted);
    assert_eq!(bench.answer(1).unwrap().1, Verdict::Parked);
    bench.policy.remove_static(bench.now, &id(1), false).unwrap();
    bench.drain();
    assert_eq!((bench.peers(), bench.closed.len()), (0, 2));
}

#[test]
fn a_request_may_exceed_the_dialed_share_but_not_the_total() {
    let mut bench = Bench::new(Settings { max_peers: 3, dial_ratio: 3, ..Settings::default() });
    let minute = Duration::from_secs(60);
    for n in 0..4 {
        bench.policy.connect(bench.now, ConnectId(n), &enode(n), minute).unwrap();
        let expected = if n < 3 { None } else { Some(Refusal::TooManyPeers) };
        assert_eq!(bench.answer(n).err(), expected);
    }
    assert_eq!(bench.peers(), 3);
}

#[test]
fn rotation_makes_room_only_where_it_is_full() {
    let churn = Some(ChurnSettings::default());
    let mut bench = Bench::new(Settings { max_peers: 6, dial_ratio: 3, churn, ..Settings::default() });
    bench.policy.add_static(bench.now, &enode(9), ListSource::Call).unwrap();
    bench.answer(9).unwrap();
    for n in 0..3 {
        bench.knock(n).unwrap();
    }
    (0..60).for_each(|_| bench.pass(60));
    assert_eq!(bench.closed.len(), 0, "one inbound slot is free");
    bench.knock(3).unwrap();
    (0..60).for_each(|_| bench.pass(60));
    assert_eq!(bench.closed.len(), 1, "one at a time");
    assert_eq!(bench.closed[0].1, CloseReason::Rotated);
    assert!(bench.policy.peers().any(|peer| peer.id == id(9)));
}

#[test]
fn what_calls_added_survives_a_restart() {
    let mut bench = Bench::new(Settings::default());
    bench.policy.add_static(bench.now, &enode(1), ListSource::Config).unwrap();
    let named = format!("enode://{}@node.example.org:30303", key(2));
    bench.policy.add_static(bench.now, &named.parse().unwrap(), ListSource::Call).unwrap();
    bench.policy.add_static(bench.now, &NodeRef::Id(id(3)), ListSource::Call).unwrap();
    bench.policy.add_trusted(bench.now, &enode(1), ListSource::Call).unwrap();
    bench.ban("8.8.0.0/16", false).unwrap();
    assert_eq!(bench.other.iter().filter(|action| **action == Action::ListsChanged).count(), 1);
    let lists = bench.policy.lists(bench.now);
    assert_eq!((lists.static_peers.len(), lists.trusted_peers.len(), lists.bans.len()), (2, 1, 1));
    assert!(lists.static_peers.contains(&named), "a name stays a name");
    let mut again = Bench::new(Settings::default());
    again.policy.add_static(again.now, &enode(1), ListSource::Config).unwrap();
    assert_eq!(again.policy.restore(bench.now, &[], &[], &lists.parse().unwrap()), Ok(Vec::new()));
    assert_eq!(again.policy.lists(bench.now), lists);
    assert!(again.policy.ban_of(bench.now, None, Some("8.8.8.8".parse().unwrap())).is_some());
    let target: BanTarget = "8.8.0.0/16".parse().unwrap();
    assert_eq!(again.policy.bans(bench.now).next().unwrap().target, target);
}

#[test]
fn a_disconnected_static_peer_says_when_it_is_dialed_again() {
    let mut bench = Bench::new(Settings::default());
    bench.policy.add_static(bench.now, &enode(1), ListSource::Call).unwrap();
    let conn = bench.answer(1).unwrap().0;
    bench.policy.conn_closed(bench.now, conn, Cause::Operator, "asked to");
    let entry = bench.policy.entry(bench.now, &id(1)).unwrap();
    let wait = (entry.next_dial.unwrap() - bench.now.unix).as_secs();
    assert!((35..44).contains(&wait), "{wait}");
    assert_eq!(entry.last_error.unwrap().cause, Cause::Operator);
    bench.pass(wait + 1);
    assert_eq!(bench.dials.len(), 2);
}
