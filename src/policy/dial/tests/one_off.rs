//! Dials on request.

use super::{super::ConnectOutcome, *};
use crate::policy::bans::BanTarget;

fn connect(bench: &mut Bench, connect: u64, node: &NodeRef, secs: u64) -> Result<(), Refusal> {
    let timeout = Duration::from_secs(secs);
    let result = bench.dial.connect(bench.now, &bench.rules, ConnectId(connect), node, timeout);
    bench.drain();
    result
}

/// The results so far, by request.
fn answers(bench: &mut Bench) -> Vec<(u64, ConnectOutcome)> {
    let answers = bench.other.iter().filter_map(|action| match action {
        Action::ConnectDone { connect, outcome, .. } => Some((connect.0, outcome.clone())),
        _ => None,
    });
    let answers = answers.collect();
    bench.other.clear();
    answers
}

#[test]
fn a_request_is_answered_with_the_peer_or_the_reason() {
    let mut bench = Bench::new(Settings::default());
    connect(&mut bench, 1, &enode(1), 30).unwrap();
    connect(&mut bench, 2, &enode(1), 30).unwrap();
    connect(&mut bench, 3, &enode(2), 30).unwrap();
    assert_eq!(bench.dials.len(), 2, "requests for one node share a dial");
    bench.run(&[(Do::Up(1), &[]), (Do::Fail(2, Cause::TooManyPeers), &[])]);
    let full = ConnectOutcome::Failed { cause: Cause::TooManyPeers, detail: "as scripted".into() };
    let connected = ConnectOutcome::Connected;
    assert_eq!(answers(&mut bench), [(1, connected.clone()), (2, connected.clone()), (3, full)]);
    // Connected already; and asked again, back-off or not.
    connect(&mut bench, 4, &enode(1), 30).unwrap();
    connect(&mut bench, 5, &enode(2), 30).unwrap();
    assert_eq!(answers(&mut bench), [(4, connected)]);
    assert_eq!(bench.dials.len(), 3);
}

#[test]
fn a_request_that_takes_too_long_gives_its_dial_up() {
    let mut bench = Bench::new(Settings::default());
    connect(&mut bench, 1, &enode(1), 5).unwrap();
    connect(&mut bench, 2, &enode(1), 9).unwrap();
    assert_eq!(bench.dials[0].timeout, Duration::from_secs(5));
    bench.step(&Do::Pass(5));
    assert_eq!(bench.took(|action| matches!(action, Action::AbortDial(_))), 0, "a request still waits");
    assert_eq!(answers(&mut bench), [(1, ConnectOutcome::TimedOut)]);
    bench.step(&Do::Pass(4));
    assert_eq!(bench.took(|action| matches!(action, Action::AbortDial(_))), 1);
    assert_eq!(answers(&mut bench), [(2, ConnectOutcome::TimedOut)]);
    assert_eq!(bench.dial.dials().len(), 0);
}

#[test]
fn discovery_is_asked_for_an_address() {
    let mut bench = Bench::new(Settings::default());
    connect(&mut bench, 1, &NodeRef::Key(key(1)), 30).unwrap();
    connect(&mut bench, 2, &NodeRef::Id(id(2)), 30).unwrap();
    bench.run(&[(Do::Found(1, Some(1)), &[1]), (Do::Found(2, None), &[])]);
    let lost = ConnectOutcome::Failed { cause: Cause::NotFound, detail: String::new() };
    assert_eq!(answers(&mut bench), [(2, lost)]);
    // Banned while discovery looked for it.
    connect(&mut bench, 4, &NodeRef::Id(id(4)), 30).unwrap();
    let (target, day) = (BanTarget::Node(id(4)), Duration::from_secs(86_400));
    bench.rules.bans.ban(bench.now.unix, target, day, "", ListSource::Call).unwrap();
    bench.run(&[(Do::Found(4, Some(4)), &[])]);
    assert_eq!(answers(&mut bench), [(4, ConnectOutcome::Refused(Refusal::BannedNode))]);
    bench.rules.settings.discovery = false;
    assert_eq!(connect(&mut bench, 3, &NodeRef::Id(id(3)), 30), Err(Refusal::AddressUnknown));
}

#[test]
fn a_request_obeys_the_rules() {
    let mut bench = Bench::unregistered(Settings::default());
    assert_eq!(connect(&mut bench, 1, &enode(1), 30), Err(Refusal::NoProtocol));
    bench.step(&Do::Register(0));
    bench.rules.settings.net_restrict = vec!["9.0.0.0/8".parse().unwrap()];
    assert_eq!(connect(&mut bench, 1, &enode(1), 30), Err(Refusal::NetRestricted));
    let own = NodeRef::Id(bench.rules.local_id);
    assert_eq!(connect(&mut bench, 1, &own, 30), Err(Refusal::OwnIdentity));
    bench.rules.settings = Settings { allowlist_only: true, ..Settings::default() };
    assert_eq!(connect(&mut bench, 1, &enode(1), 30), Err(Refusal::NotOnAllowlist));
    bench.rules.settings = Settings { dialing: false, ..Settings::default() };
    assert_eq!(connect(&mut bench, 1, &enode(1), 30), Err(Refusal::DialingOff));
    assert!(bench.dials.is_empty() && answers(&mut bench).is_empty());
}
