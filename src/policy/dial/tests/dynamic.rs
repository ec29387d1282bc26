//! Candidates.

use super::*;
use crate::node::record::RecordBuilder;
use crate::policy::bans::BanTarget;

const OK: Result<(), Refusal> = Ok(());

#[test]
fn candidates_are_dialed_into_free_slots_twice_over() {
    let mut bench = Bench::new(Settings { max_peers: 4, dial_ratio: 2, ..Settings::default() });
    bench.run(&[
        (Do::Offer(1, Source::V4, OK), &[1]),
        (Do::Offer(2, Source::V5, OK), &[2]),
        (Do::Offer(3, Source::Dns, OK), &[3]),
        (Do::Offer(4, Source::Database, OK), &[4]),
        (Do::Offer(5, Source::V4, OK), &[]),
        (Do::Fail(1, Cause::Unreachable), &[5]),
        (Do::Up(2), &[]),
        (Do::Fail(3, Cause::TooManyPeers), &[]),
        (Do::Fail(4, Cause::TooManyPeers), &[]),
        (Do::Offer(6, Source::V4, OK), &[]),
        (Do::Fail(5, Cause::Unreachable), &[6]),
        (Do::Up(6), &[]),
        (Do::Offer(7, Source::V5, OK), &[]),
        (Do::Gone(2, Cause::LinkLost), &[7]),
    ]);
}

#[test]
fn refusals_have_reasons_and_are_counted() {
    let mut bench = Bench::new(Settings {
        net_restrict: vec!["8.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
        announced: crate::node::AddressClass::Global,
        ..Settings::default()
    });
    bench.rules.local_id = id(9);
    let ban = BanTarget::Node(id(10));
    bench.rules.bans.ban(bench.now.unix, ban, Duration::from_secs(1000), "", ListSource::Call).unwrap();
    bench.run(&[(Do::Static(5), &[5]), (Do::In(6), &[]), (Do::Offer(7, Source::V4, OK), &[7])]);
    let at = |n, addr: &str| Candidate { addr: addr.parse().unwrap(), ..candidate(n, Source::V4) };
    let table = [
        (candidate(9, Source::V4), Refusal::OwnIdentity),
        (candidate(10, Source::V4), Refusal::BannedNode),
        (candidate(5, Source::V4), Refusal::Listed),
        (candidate(6, Source::V4), Refusal::Connected),
        (candidate(7, Source::V4), Refusal::Dialing),
        (at(20, "8.1.1.1:0"), Refusal::NoTcpPort),
        (at(21, "9.1.1.1:30303"), Refusal::NetRestricted),
        (at(22, "10.1.1.1:30303"), Refusal::LanAddress),
        (at(23, "255.255.255.255:30303"), Refusal::SpecialAddress),
        (at(24, "8.0.7.1:30303"), Refusal::AddressTried),
    ];
    for (candidate, expected) in table {
        let result = bench.dial.candidate(bench.now, &bench.rules, candidate.clone(), false);
        assert_eq!(result, Err(expected), "{candidate:?}");
    }
    let result = bench.dial.candidate(bench.now, &bench.rules, candidate(25, Source::V4), true);
    assert_eq!(result, Err(Refusal::SubnetFull));
    bench.step(&Do::Unregister(0));
    bench.run(&[(Do::Offer(26, Source::V4, Err(Refusal::NoProtocol)), &[])]);
    bench.rules.settings.dialing = false;
    bench.run(&[(Do::Offer(26, Source::V4, Err(Refusal::DialingOff)), &[])]);
    bench.rules.settings.allowlist_only = true;
    bench.run(&[(Do::Offer(26, Source::V4, Err(Refusal::NotOnAllowlist)), &[])]);
    let recent = bench.dial.recent_mut().sum(bench.now.mono);
    assert_eq!((recent.seen, recent.dialed, recent.let_in), (15, 2, 1));
    assert_eq!(recent.not_dialed.values().sum::<u64>(), 14);
    assert_eq!(recent.not_dialed.get(&Refusal::LanAddress), Some(&1));
}

#[test]
fn a_node_is_left_alone_for_the_history_window_and_its_back_off() {
    let mut bench = Bench::new(Settings::default());
    bench.run(&[
        (Do::Offer(1, Source::V4, OK), &[1]),
        (Do::Fail(1, Cause::LocalFault), &[]),
        (Do::Pass(34), &[]),
        (Do::Offer(1, Source::V4, Err(Refusal::NodeTried)), &[]),
        (Do::Pass(1), &[]),
        (Do::Offer(1, Source::V4, OK), &[1]),
        (Do::Fail(1, Cause::UselessPeer), &[]),
        (Do::Pass(1700), &[]),
        (Do::Offer(1, Source::V4, Err(Refusal::BackingOff)), &[]),
        // A new protocol makes useless peers worth another try.
        (Do::Register(1), &[]),
        (Do::Offer(1, Source::V4, OK), &[1]),
    ]);
}

#[test]
fn ten_thousand_records_that_name_one_address_are_one_dial_per_window() {
    let mut bench = Bench::new(Settings { max_peers: 1000, ..Settings::default() });
    let victim: SocketAddr = "8.8.8.8:22".parse().unwrap();
    let offer = |bench: &mut Bench, n: u64, addr: SocketAddr| {
        let candidate = Candidate { addr, ..candidate(n, Source::V5) };
        let _ = bench.dial.candidate(bench.now, &bench.rules, candidate, false);
        bench.drain();
        let first = |bench: &Bench| bench.dial.dials().iter().next().map(|(name, _)| name);
        while let Some(task) = first(bench) {
            bench.dial.dial_failed(bench.now, &bench.rules, task, Cause::HungUp, "");
            bench.drain();
        }
    };
    // 100 seconds, a hundred records in each.
    for n in 0..10_000 {
        if n % 100 == 0 {
            bench.step(&Do::Pass(1));
        }
        offer(&mut bench, n, victim);
    }
    assert_eq!(bench.dials.len(), 3);
    // Other ports of the victim, or its neighbours: five per window.
    bench.step(&Do::Pass(100));
    bench.dials.clear();
    for n in 10_000..11_000 {
        let ip = [8, 8, 8, (n % 256) as u8];
        offer(&mut bench, n, (ip, n as u16).into());
    }
    assert_eq!(bench.dials.len(), 5);
    assert_eq!(bench.dial.recent().total.not_dialed.get(&Refusal::SubnetTried), Some(&995));
}

#[test]
fn no_source_holds_over_half_while_another_offers() {
    let settings = Settings { max_peers: 16, dial_ratio: 2, ..Settings::default() };
    let mut bench = Bench::new(settings);
    // The fast source offers many before the slow one has anything.
    for n in 0..30 {
        bench.step(&Do::Offer(n, Source::Dns, OK));
    }
    assert_eq!(bench.dials.len(), 4);
    (0..4).for_each(|n| bench.step(&Do::Up(n)));
    (100..104).for_each(|n| bench.step(&Do::Offer(n, Source::V4, OK)));
    // At first slots are reserved for sources that have offered nothing yet.
    bench.run(&[(Do::Up(100), &[]), (Do::Up(101), &[]), (Do::Pass(10), &[102, 103])]);
    (102..104).for_each(|n| bench.step(&Do::Up(n)));
    assert_eq!(bench.dials.len(), 8);
    // All slots are taken, half each. One of the slow source's goes, and it has nothing to offer: the other may.
    bench.run(&[(Do::Gone(100, Cause::Requested), &[4, 5])]);
}

#[test]
fn slots_are_kept_for_every_source_that_has_something_to_offer() {
    let settings = Settings { max_peers: 16, dial_ratio: 2, ..Settings::default() };
    let mut bench = Bench::new(settings);
    // A third source offers one node, which does not answer.
    bench.step(&Do::Offer(900, Source::Dns, OK));
    bench.step(&Do::Fail(900, Cause::TooManyPeers));
    bench.step(&Do::Pass(10));
    for n in 0..30 {
        bench.step(&Do::Offer(n, Source::V4, OK));
        bench.step(&Do::Offer(100 + n, Source::Database, OK));
    }
    // Of eight slots two stay for it, however many the others offer and however long nothing comes of it.
    let mut connected = 0;
    for _ in 0..8 {
        let dialed: BTreeSet<NodeId> = bench.dial.dials().iter().map(|(_, task)| task.id).collect();
        for n in dialed {
            let number = (0..1000).find(|number| id(*number) == n).unwrap();
            bench.step(&Do::Up(number));
            connected += 1;
        }
        bench.step(&Do::Pass(10));
    }
    assert_eq!(connected, 6);
    // And it is asked for more, although dozens of the others wait.
    let demand = bench.other.iter().rev().find_map(|action| match action {
        Action::Demand(n) => Some(*n),
        _ => None,
    });
    assert!(demand.is_some_and(|demand| demand > 0), "{demand:?}");
    // A peer that it names too is one that it vouches for; then one of its own.
    bench.step(&Do::Offer(0, Source::Dns, Err(Refusal::Connected)));
    bench.step(&Do::Offer(901, Source::Dns, OK));
    bench.step(&Do::Up(901));
    bench.step(&Do::Pass(1));
    assert_eq!(bench.dial.slots_taken() + bench.dial.dials().len().min(1), 8, "the last slot is for anybody");
    // A source that offers nothing for ten minutes loses its reserve.
    let mut bench = Bench::new(Settings { max_peers: 16, dial_ratio: 2, ..Settings::default() });
    bench.step(&Do::Offer(900, Source::Dns, OK));
    bench.step(&Do::Fail(900, Cause::TooManyPeers));
    bench.step(&Do::Pass(601));
    for n in 0..30 {
        bench.step(&Do::Offer(n, Source::V4, OK));
    }
    for n in 0..8 {
        bench.step(&Do::Up(n));
    }
    assert_eq!(bench.dial.slots_taken(), 8);
}

#[test]
fn a_source_that_nobody_asked_is_not_forgotten() {
    let mut bench = Bench::new(Settings { max_peers: 16, dial_ratio: 2, ..Settings::default() });
    for n in 0..2 {
        bench.step(&Do::Offer(900 + n, Source::Dns, OK));
        bench.step(&Do::Up(900 + n));
    }
    bench.step(&Do::Pass(10));
    for n in 0..30 {
        bench.step(&Do::Offer(n, Source::V4, OK));
    }
    (0..6).for_each(|n| bench.step(&Do::Up(n)));
    (6..30).filter(|n| bench.dial.dials().contains(&id(*n))).collect::<Vec<_>>().iter().for_each(|n| {
        bench.step(&Do::Fail(*n, Cause::TooManyPeers));
    });
    assert_eq!(bench.dial.slots_taken(), 8, "all slots are taken, and nothing is asked for");
    // Hours later one of its peers leaves: the place is still kept for another one of the same source.
    bench.step(&Do::Pass(36_000));
    bench.run(&[
        (Do::Gone(900, Cause::LinkLost), &[]),
        (Do::Pass(60), &[]),
        (Do::Offer(950, Source::Dns, OK), &[950]),
    ]);
}

#[test]
fn a_source_that_is_alone_gets_all_slots_after_a_moment() {
    let mut bench = Bench::new(Settings { max_peers: 8, dial_ratio: 2, ..Settings::default() });
    for n in 0..10 {
        bench.step(&Do::Offer(n, Source::V5, OK));
    }
    assert_eq!(bench.dials.len(), 2);
    bench.step(&Do::Pass(10));
    assert_eq!(bench.dials.len(), 8);
}

#[test]
fn long_serving_peers_are_dialed_first() {
    let mut bench = Bench::unregistered(Settings::default());
    bench.rules.settings.max_pending_dials = 0;
    bench.step(&Do::Register(0));
    for (n, hours) in [(1, 5), (2, 50), (3, 0), (4, 50)] {
        let served = Duration::from_secs(hours * 3600);
        let candidate = Candidate { served, ..candidate(n, Source::Database) };
        bench.dial.candidate(bench.now, &bench.rules, candidate, false).unwrap();
    }
    bench.rules.settings.max_pending_dials = 50;
    bench.run(&[(Do::Pass(0), &[2, 4, 1, 3])]);
}

#[test]
fn demand_follows_the_free_slots() {
    let mut bench = Bench::unregistered(Settings { max_peers: 4, dial_ratio: 2, ..Settings::default() });
    let last = |bench: &mut Bench| {
        let demand = bench.other.iter().rev().find_map(|action| match action {
            Action::Demand(n) => Some(*n),
            _ => None,
        });
        bench.other.clear();
        demand
    };
    bench.step(&Do::Pass(1));
    assert_eq!(last(&mut bench), None, "nothing is registered");
    bench.step(&Do::Register(0));
    assert_eq!(last(&mut bench), Some(4));
    bench.run(&[(Do::Offer(1, Source::V4, OK), &[1]), (Do::Up(1), &[])]);
    assert_eq!(last(&mut bench), Some(2));
    bench.run(&[(Do::Offer(2, Source::V5, OK), &[2]), (Do::Up(2), &[])]);
    assert_eq!(last(&mut bench), Some(0), "all slots are taken");
    bench.run(&[(Do::Gone(2, Cause::LinkLost), &[])]);
    assert_eq!(last(&mut bench), Some(2));
    bench.step(&Do::Unregister(0));
    assert_eq!(last(&mut bench), Some(0));
}

#[test]
fn private_addresses_are_for_those_who_share_them() {
    use crate::node::AddressClass::{Global, Loopback, Private};
    // our own class, source, address, whether it is dialed
    let table = [
        (Loopback, Source::V4, "127.0.0.1:1", true),
        (Loopback, Source::V4, "192.168.0.1:1", true),
        (Loopback, Source::Dns, "192.168.0.1:1", false),
        (Private, Source::V5, "192.168.0.1:1", true),
        (Private, Source::V5, "127.0.0.1:1", false),
        (Global, Source::V5, "192.168.0.1:1", false),
        (Global, Source::V5, "8.8.8.8:1", true),
    ];
    for (announced, source, addr, expected) in table {
        let mut bench = Bench::new(Settings { announced, ..Settings::default() });
        let mut offered = candidate(1, source);
        offered.addr = addr.parse().unwrap();
        let result = bench.dial.candidate(bench.now, &bench.rules, offered.clone(), false);
        assert_eq!(result.is_ok(), expected, "{announced:?} {source:?} {addr}");
        bench.rules.settings.allow_lan = true;
        bench.step(&Do::Pass(100));
        if !expected {
            assert_eq!(bench.dial.candidate(bench.now, &bench.rules, offered, false), Ok(()));
        }
    }
}

#[test]
fn a_trusted_peer_is_dialed_as_soon_as_somebody_knows_where_it_is() {
    let mut bench = Bench::new(Settings::default());
    let (now, by_id) = (bench.now, NodeRef::Id(id(1)));
    bench.dial.add(now, &bench.rules, &by_id, List::Trusted, ListSource::Call).unwrap();
    bench.run(&[(Do::Pass(100), &[])]);
    assert_eq!(bench.state(1), EntryState::Refused(Refusal::AddressUnknown));
    bench.run(&[(Do::Offer(1, Source::V4, Err(Refusal::Listed)), &[1])]);
}

#[test]
fn a_record_travels_with_its_dial_and_with_no_other() {
    let mut bench = Bench::new(Settings::default());
    let record = RecordBuilder::new(7).sign(&secret(1)).unwrap();
    let with_record = Candidate { record: Some(record.clone()), ..candidate(1, Source::V5) };
    for candidate in [with_record, candidate(2, Source::V5)] {
        bench.dial.candidate(bench.now, &bench.rules, candidate, false).unwrap();
    }
    bench.drain();
    let records: Vec<_> = bench.dials.iter().map(|dial| (dial.id, dial.record.clone())).collect();
    assert_eq!(records, [(id(1), Some(record)), (id(2), None)]);
}
