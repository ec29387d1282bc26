//! Static and trusted peers.

use super::{
    super::{AddError, RemoveError},
    *,
};
use crate::policy::bans::BanTarget;

#[test]
fn a_static_peer_waits_for_a_protocol_and_is_dialed_when_one_comes() {
    let mut bench = Bench::unregistered(Settings::default());
    bench.run(&[(Do::Static(1), &[]), (Do::Pass(100), &[])]);
    assert_eq!(bench.state(1), EntryState::WaitingForProtocol);
    bench.run(&[(Do::Register(0), &[1])]);
    assert!(matches!(bench.state(1), EntryState::Dialing { .. }));
    bench.run(&[(Do::Up(1), &[])]);
    assert!(matches!(bench.state(1), EntryState::Connected { inbound: false, .. }));
    // Without a protocol it is not dialed again.
    bench.run(&[(Do::Unregister(0), &[]), (Do::Gone(1, Cause::LinkLost), &[]), (Do::Pass(500), &[])]);
    assert_eq!((bench.state(1), bench.error(1)), (EntryState::WaitingForProtocol, Some(Cause::LinkLost)));
    bench.run(&[(Do::Register(1), &[1])]);
}

#[test]
fn one_that_never_answers_is_retried_for_ever_with_growing_pauses() {
    let mut bench = Bench::new(Settings { discovery: false, ..Settings::default() });
    bench.run(&[(Do::Static(1), &[1])]);
    let mut waits = Vec::new();
    for _ in 0..50 {
        bench.step(&Do::Fail(1, Cause::Unreachable));
        let wait = bench.wait(1);
        waits.push(wait);
        bench.run(&[(Do::Pass(wait - 1), &[]), (Do::Pass(2), &[1])]);
    }
    assert!((5..7).contains(&waits[0]) && (10..13).contains(&waits[1]), "{waits:?}");
    assert!(waits[10..].iter().all(|wait| (120..=150).contains(wait)), "{waits:?}");
}

#[test]
fn whose_fault_it_was_decides_the_pause() {
    // cause, least and most seconds until the next dial
    let table = [
        (Cause::Unreachable, 5, 7),
        (Cause::LocalFault, 5, 7),
        (Cause::NameUnknown, 10, 13),
        (Cause::TooManyPeers, 35, 44),
        (Cause::UselessPeer, 35, 44),
        (Cause::WrongIdentity, 60, 75),
    ];
    for (cause, least, most) in table {
        let mut bench = Bench::new(Settings::default());
        bench.run(&[(Do::Static(1), &[1]), (Do::Fail(1, cause), &[])]);
        assert!((least..=most).contains(&bench.wait(1)), "{cause:?}: {}", bench.wait(1));
        assert_eq!(bench.error(1), Some(cause));
    }
}

#[test]
fn one_that_flaps_is_not_hammered_and_one_that_lasted_is_found_again_at_once() {
    let mut bench = Bench::new(Settings::default());
    bench.run(&[(Do::Static(1), &[1])]);
    for _ in 0..10 {
        bench.run(&[(Do::Up(1), &[]), (Do::Pass(1), &[]), (Do::Gone(1, Cause::LinkLost), &[])]);
        // Never within the other side's inbound throttle of the connection before.
        assert!(bench.wait(1) >= 34, "{}", bench.wait(1));
        let wait = bench.wait(1);
        bench.run(&[(Do::Pass(wait + 1), &[1])]);
    }
    bench.run(&[(Do::Up(1), &[]), (Do::Pass(601), &[]), (Do::Gone(1, Cause::LinkLost), &[])]);
    assert!(bench.wait(1) < 7, "{}", bench.wait(1));
}

#[test]
fn a_new_registration_clears_what_uselessness_caused_and_nothing_else() {
    let mut bench = Bench::new(Settings::default());
    bench.run(&[
        (Do::Static(1), &[1]),
        (Do::Static(2), &[2]),
        (Do::Fail(1, Cause::UselessPeer), &[]),
        (Do::Fail(2, Cause::Unreachable), &[]),
        (Do::Register(1), &[1]),
        // A changed registration is no new one.
        (Do::Fail(1, Cause::UselessPeer), &[]),
        (Do::Register(1), &[]),
    ]);
}

#[test]
fn static_peers_come_on_top_of_the_slots() {
    let mut bench = Bench::new(Settings { max_peers: 6, dial_ratio: 2, ..Settings::default() });
    bench.run(&[
        (Do::Offer(11, Source::V4, Ok(())), &[11]),
        (Do::Offer(12, Source::V5, Ok(())), &[12]),
        (Do::Offer(13, Source::Dns, Ok(())), &[13]),
        (Do::Up(11), &[]),
        (Do::Up(12), &[]),
        (Do::Up(13), &[]),
        (Do::Static(1), &[1]),
        (Do::Static(2), &[2]),
        (Do::Up(1), &[]),
        (Do::Up(2), &[]),
        // Static peers take none of the three slots for dialed peers, connected or not.
        (Do::Gone(13, Cause::Requested), &[]),
        (Do::Offer(14, Source::V5, Ok(())), &[14]),
        (Do::Up(14), &[]),
        (Do::Offer(15, Source::V5, Ok(())), &[]),
    ]);
    // As many absent static peers as there are slots: the others find room all the same.
    let mut bench = Bench::new(Settings { max_peers: 6, dial_ratio: 2, ..Settings::default() });
    for n in 1..=6 {
        bench.run(&[(Do::Static(n), &[n]), (Do::Fail(n, Cause::Unreachable), &[])]);
    }
    bench.run(&[(Do::Offer(11, Source::V4, Ok(())), &[11]), (Do::Up(11), &[])]);
}

#[test]
fn a_full_pool_of_dead_candidates_leaves_room_for_static_peers() {
    let mut bench =
        Bench::new(Settings { max_peers: 300, mix_patience: Duration::ZERO, ..Settings::default() });
    bench.run(&[(Do::Static(1), &[1]), (Do::Fail(1, Cause::Unreachable), &[])]);
    for n in 100..200 {
        let _ = bench.dial.candidate(bench.now, &bench.rules, candidate(n, Source::V4), false);
    }
    bench.drain();
    assert!(bench.dial.dials().len() > 40, "{}", bench.dial.dials().len());
    bench.run(&[(Do::Pass(10), &[1])]);
}

#[test]
fn names_are_looked_up_at_each_dial_and_must_not_turn_private() {
    let mut bench = Bench::new(Settings::default());
    let (now, lookup) = (bench.now, |action: &Action| matches!(action, Action::LookupHost { .. }));
    bench
        .dial
        .add(now, &bench.rules, &named(1, "node.example.org"), List::Static, ListSource::Config)
        .unwrap();
    bench.drain();
    assert_eq!((bench.took(lookup), bench.dials.len()), (1, 0));
    let answer = |bench: &mut Bench, addrs: Result<&[std::net::IpAddr], &str>| {
        let task = bench.task(1);
        bench.dial.host_resolved(bench.now, &bench.rules, task, addrs);
        bench.drain();
        bench.dials.last().map(|dial| dial.addr.to_string())
    };
    let ips = ["8.1.1.1".parse().unwrap(), "2a00::1".parse().unwrap()];
    assert_eq!(answer(&mut bench, Ok(&ips)).as_deref(), Some("8.1.1.1:30303"));
    // One dial tries them all, and the next one asks for them again.
    assert_eq!(bench.dials.last().unwrap().also, ["[2a00::1]:30303".parse().unwrap()]);
    bench.run(&[(Do::Fail(1, Cause::Unreachable), &[]), (Do::Pass(10), &[])]);
    assert_eq!(bench.took(lookup), 1);
    assert_eq!(answer(&mut bench, Ok(&ips)).as_deref(), Some("8.1.1.1:30303"));
    // The families take turns, beginning with the first address that may be dialed.
    bench.run(&[(Do::Fail(1, Cause::Unreachable), &[]), (Do::Pass(300), &[])]);
    let many = ["0.0.0.1", "2a00::1", "2a00::2", "10.0.0.9", "8.1.1.1", "8.1.1.2", "2a00::3", "2a00::4"];
    let many = many.map(|ip| ip.parse().unwrap());
    answer(&mut bench, Ok(&many));
    let tried: Vec<String> = bench.dials.last().unwrap().addrs().map(|addr| addr.ip().to_string()).collect();
    assert_eq!(tried, ["2a00::1", "8.1.1.1", "2a00::2", "8.1.1.2", "2a00::3", "2a00::4"]);
    // A name that was global and turns private is not followed.
    bench.run(&[(Do::Fail(1, Cause::Unreachable), &[]), (Do::Pass(300), &[])]);
    let dials = bench.dials.len();
    answer(&mut bench, Ok(&["10.0.0.1".parse().unwrap()]));
    assert_eq!((bench.dials.len(), bench.error(1)), (dials, Some(Cause::AddressRefused)));
    bench.run(&[(Do::Pass(700), &[])]);
    answer(&mut bench, Err("no such host"));
    assert_eq!(bench.error(1), Some(Cause::NameUnknown));
    // One that was private from the start is the operator's own, as in a container network.
    bench.dial.add(now, &bench.rules, &named(2, "geth"), List::Static, ListSource::Call).unwrap();
    let task = bench.task(2);
    bench.dial.host_resolved(now, &bench.rules, task, Ok(&["172.17.0.2".parse().unwrap()]));
    bench.drain();
    assert_eq!(bench.dials.last().unwrap().addr.to_string(), "172.17.0.2:30303");
}

#[test]
fn what_happens_during_a_lookup_counts() {
    let ips: [std::net::IpAddr; 1] = ["8.1.1.1".parse().unwrap()];
    let lookup = |bench: &mut Bench, n: u64| {
        bench
            .dial
            .add(bench.now, &bench.rules, &named(n, "a.example.org"), List::Static, ListSource::Call)
            .unwrap();
        bench.task(n)
    };
    let answer = |bench: &mut Bench, task| {
        bench.dial.host_resolved(bench.now, &bench.rules, task, Ok(&ips));
        bench.drain();
    };
    let mut bench = Bench::new(Settings::default());
    // The node has come to us.
    let task = lookup(&mut bench, 1);
    bench.step(&Do::In(1));
    answer(&mut bench, task);
    assert!(matches!(bench.state(1), EntryState::Connected { inbound: true, .. }));
    // Nothing is registered any more; it is dialed when something is.
    let task = lookup(&mut bench, 2);
    bench.step(&Do::Unregister(0));
    answer(&mut bench, task);
    assert_eq!((bench.state(2), bench.dials.len()), (EntryState::WaitingForProtocol, 0));
    bench.step(&Do::Register(0));
    let task = bench.task(2);
    answer(&mut bench, task);
    assert_eq!(bench.dials.len(), 1);
}

#[test]
fn discovery_is_asked_where_a_node_is_and_where_it_went() {
    let resolve = |action: &Action| matches!(action, Action::ResolveNode { .. });
    let mut bench = Bench::new(Settings::default());
    bench.run(&[(Do::StaticById(1), &[])]);
    assert_eq!((bench.took(resolve), bench.state(1)), (1, EntryState::Resolving));
    bench.run(&[(Do::Found(1, None), &[])]);
    assert_eq!(bench.error(1), Some(Cause::NotFound));
    assert!(bench.wait(1) >= 60);
    bench.run(&[(Do::Pass(76), &[])]);
    assert_eq!(bench.took(resolve), 1);
    bench.run(&[(Do::Found(1, Some(1)), &[1])]);
    // The address stops working: the next answer has another one, which is dialed at once.
    bench.run(&[
        (Do::Up(1), &[]),
        (Do::Pass(700), &[]),
        (Do::Gone(1, Cause::LinkLost), &[]),
        (Do::Pass(7), &[1]),
    ]);
    assert_eq!(bench.took(resolve), 0);
    bench.run(&[(Do::Fail(1, Cause::Unreachable), &[])]);
    assert_eq!(bench.took(resolve), 1);
    assert!(bench.wait(1) < 14, "meanwhile the old address is tried again");
    bench.run(&[(Do::Found(1, Some(99)), &[1])]);
    assert_eq!(bench.dials.last().unwrap().addr, addr(99));
    // Discovery is not asked at every failure.
    bench.run(&[(Do::Fail(1, Cause::WrongIdentity), &[])]);
    assert_eq!(bench.took(resolve), 0);
    // Without discovery, a bare id is refused when it is added.
    bench.rules.settings.discovery = false;
    let result = bench.dial.add(bench.now, &bench.rules, &NodeRef::Id(id(2)), List::Static, ListSource::Call);
    assert_eq!(result, Err(AddError::AddressUnknown));
}

#[test]
fn a_dial_that_lost_against_the_nodes_own_is_no_failure() {
    let mut bench = Bench::new(Settings::default());
    bench.run(&[(Do::Static(1), &[1])]);
    bench.run(&[(Do::In(1), &[])]);
    assert!(matches!(bench.state(1), EntryState::Connected { inbound: true, .. }));
    bench.run(&[(Do::Fail(1, Cause::AlreadyConnected), &[]), (Do::Pass(100), &[])]);
    assert_eq!(bench.error(1), None);
}

#[test]
fn adding_is_idempotent_and_a_new_address_takes_effect() {
    let mut bench = Bench::new(Settings::default());
    bench.run(&[(Do::Static(1), &[1]), (Do::Static(1), &[]), (Do::Fail(1, Cause::Unreachable), &[])]);
    bench.run(&[(Do::Static(1), &[])]);
    let moved = NodeRef::Enode(Enode::at(key(1), addr(50)));
    bench.dial.add(bench.now, &bench.rules, &moved, List::Static, ListSource::Call).unwrap();
    bench.drain();
    assert_eq!(bench.dials.last().unwrap().addr, addr(50));
    assert_eq!(bench.dial.entries(bench.now, &bench.rules).count(), 1);
    // An entry of the configuration stays one, and no call removes it.
    bench.dial.add(bench.now, &bench.rules, &moved, List::Static, ListSource::Config).unwrap();
    bench.dial.add(bench.now, &bench.rules, &moved, List::Static, ListSource::Call).unwrap();
    assert_eq!(
        bench.dial.remove(bench.now, &bench.rules, &id(1), List::Static),
        Err(RemoveError::FromConfig)
    );
    assert_eq!(
        bench.dial.remove(bench.now, &bench.rules, &id(1), List::Trusted),
        Err(RemoveError::NotListed)
    );
    let own = NodeRef::Id(bench.rules.local_id);
    let result = bench.dial.add(bench.now, &bench.rules, &own, List::Static, ListSource::Call);
    assert_eq!(result, Err(AddError::OwnIdentity));
}

#[test]
fn one_that_is_removed_is_forgotten_unless_it_is_trusted() {
    let abort = |action: &Action| matches!(action, Action::AbortDial(_));
    let mut bench = Bench::new(Settings::default());
    bench.run(&[(Do::Static(1), &[1]), (Do::Remove(1), &[]), (Do::Pass(500), &[])]);
    assert_eq!((bench.took(abort), bench.dial.dials().len()), (1, 0));
    bench.run(&[(Do::Static(2), &[2]), (Do::Trusted(2), &[]), (Do::Up(2), &[])]);
    let removed = bench.dial.remove(bench.now, &bench.rules, &id(2), List::Static).unwrap();
    assert!(removed.connected && removed.still_listed);
    assert!(bench.dial.listed().is_trusted(&id(2)) && !bench.dial.listed().is_static(&id(2)));
    bench.run(&[(Do::Gone(2, Cause::LinkLost), &[]), (Do::Pass(50), &[2])]);
}

#[test]
fn a_banned_peer_is_refused_by_name_and_dialed_when_the_ban_ends() {
    let mut bench = Bench::new(Settings::default());
    bench.run(&[(Do::Static(1), &[1]), (Do::Fail(1, Cause::Unreachable), &[])]);
    let net = BanTarget::Net("8.0.1.0/24".parse().unwrap());
    bench.rules.bans.ban(bench.now.unix, net, Duration::from_secs(100), "abuse", ListSource::Call).unwrap();
    bench.dial.rules_changed(bench.now, &bench.rules);
    assert_eq!(bench.state(1), EntryState::Refused(Refusal::BannedAddress));
    let error =
        bench.dial.add(bench.now, &bench.rules, &enode(1), List::Static, ListSource::Call).unwrap_err();
    assert!(error.to_string().contains("8.0.1.0/24") && error.to_string().contains("abuse"), "{error}");
    bench.run(&[(Do::Pass(90), &[]), (Do::Pass(45), &[1])]);
    // A ban in the middle of a dial ends it.
    let node = BanTarget::Node(id(1));
    bench.rules.bans.ban(bench.now.unix, node, Duration::from_secs(100), "", ListSource::Call).unwrap();
    bench.dial.rules_changed(bench.now, &bench.rules);
    bench.drain();
    assert_eq!(bench.took(|action| matches!(action, Action::AbortDial(_))), 1);
    assert_eq!(bench.state(1), EntryState::Refused(Refusal::BannedNode));
}

#[test]
fn a_fault_of_ours_pauses_all_dials_for_a_moment() {
    let mut bench = Bench::new(Settings::default());
    bench.run(&[
        (Do::Static(1), &[1]),
        (Do::Fail(1, Cause::LocalFault), &[]),
        (Do::Static(2), &[]),
        (Do::Offer(3, Source::V4, Ok(())), &[]),
        (Do::Pass(2), &[2, 3]),
    ]);
}
