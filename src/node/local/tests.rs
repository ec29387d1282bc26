//! The record after each new fact, and the changes of its sequence number.

use std::time::{Duration, Instant};

use rand::{SeedableRng, rngs::StdRng};

use super::*;

const PORTS: Ports = Ports { tcp: 30303, udp: 30304 };

#[expect(clippy::disallowed_methods, reason = "virtual time needs a beginning")]
fn start() -> Now {
    Now { mono: Instant::now(), unix: Duration::from_millis(1_700_000_000_123) }
}

fn local(ports: Ports) -> LocalRecord {
    LocalRecord::new(start(), NodeKey::random(&mut StdRng::seed_from_u64(1)), ports, None).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The endpoint entries of a record, as text.
fn shown(record: &Record) -> String {
    let mut words = Vec::new();
    words.extend(record.ip4().map(|ip| ip.to_string()));
    words.extend(record.ip6().map(|ip| ip.to_string()));
    for key in ["tcp", "udp", "tcp6", "udp6"] {
        words.extend(record.port(key).map(|port| format!("{key}={port}")));
    }
    words.join(" ")
}

/// Ten networks of the address's family report that we are at `told`. Returns the record after the tenth.
fn vote(local: &mut LocalRecord, told: &str) -> Option<Record> {
    let told: SocketAddr = told.parse().unwrap();
    let mut last = None;
    for network in 0..10 {
        let teller = if told.is_ipv4() { format!("8.8.{network}.1") } else { format!("2a00:{network:x}::1") };
        assert!(last.is_none(), "before the tenth nothing changes");
        last = local.statement(start(), ip(&teller), told);
    }
    last
}

#[test]
fn the_first_record_names_loopback_and_the_listening_ports() {
    let local = local(PORTS);
    assert_eq!(shown(local.record()), "127.0.0.1 tcp=30303 udp=30304");
    assert_eq!(local.record().seq(), 1_700_000_000_123);
    let silent = super::tests::local(Ports { tcp: 0, udp: 30304 });
    assert_eq!(shown(silent.record()), "127.0.0.1 udp=30304");
}

#[test]
fn the_sequence_never_goes_back() {
    let key = || NodeKey::random(&mut StdRng::seed_from_u64(1));
    let seq = |persisted| LocalRecord::new(start(), key(), PORTS, persisted).unwrap().record().seq();
    assert_eq!(seq(Some(5)), 1_700_000_000_123, "an old file");
    assert_eq!(seq(Some(1_700_000_000_123)), 1_700_000_000_124);
    assert_eq!(seq(Some(1_800_000_000_000)), 1_800_000_000_001, "the clock was set back");
    assert_eq!(seq(Some(u64::MAX)), u64::MAX);
}

#[test]
fn votes_move_the_record_once() {
    let mut local = local(PORTS);
    let record = vote(&mut local, "1.2.3.4:40000").unwrap();
    assert_eq!(shown(&record), "1.2.3.4 tcp=30303 udp=40000");
    assert_eq!(record.seq(), 1_700_000_000_124);
    assert_eq!(local.statement(start(), ip("8.8.77.1"), "1.2.3.4:40000".parse().unwrap()), None);
    assert_eq!(local.record(), &record);
}

#[test]
fn the_more_trusted_source_wins() {
    let mut local = local(PORTS);
    assert!(vote(&mut local, "1.2.3.4:40000").is_some());
    // A gateway behind another one is worth less than the votes, but its ports count.
    let private = Mapped { ip: Some(Ipv4Addr::new(100, 64, 0, 7)), tcp: Some(50303), udp: Some(50304) };
    assert_eq!(shown(&local.set_mapped(private).unwrap()), "1.2.3.4 tcp=50303 udp=50304");
    let global = Mapped { ip: Some(Ipv4Addr::new(5, 6, 7, 8)), tcp: Some(50303), udp: None };
    assert_eq!(shown(&local.set_mapped(global).unwrap()), "5.6.7.8 tcp=50303 udp=30304");
    assert_eq!(local.set_mapped(global), None, "said twice is said once");
    assert_eq!(shown(&local.set_static_ip(ip("9.9.9.9")).unwrap()), "9.9.9.9 tcp=50303 udp=30304");
    assert_eq!(shown(&local.set_mapped(Mapped::default()).unwrap()), "9.9.9.9 tcp=30303 udp=30304");
    assert_eq!(local.record().seq(), 1_700_000_000_123 + 5);
}

#[test]
fn a_private_gateway_is_better_than_nothing() {
    let mut local = local(PORTS);
    let private = Mapped { ip: Some(Ipv4Addr::new(192, 168, 1, 1)), ..Mapped::default() };
    assert_eq!(shown(&local.set_mapped(private).unwrap()), "192.168.1.1 tcp=30303 udp=30304");
    assert_eq!(shown(&local.set_mapped(Mapped::default()).unwrap()), "127.0.0.1 tcp=30303 udp=30304");
}

#[test]
fn two_families() {
    let mut local = local(PORTS);
    // IPv6 alone: its ports are written, and loopback is not.
    let record = local.set_static_ip(ip("2a00::1")).unwrap();
    assert_eq!(shown(&record), "2a00::1 tcp6=30303 udp6=30304");
    // Both families with the same ports: the ports are written once. The typed getters fall back as EIP-778 says.
    let record = local.set_static_ip(ip("1.2.3.4")).unwrap();
    assert_eq!(shown(&record), "1.2.3.4 2a00::1 tcp=30303 udp=30304");
    assert_eq!(record.endpoint6().unwrap().udp, 30304);
    // The gateway changes the IPv4 ports only.
    let record = local.set_mapped(Mapped { tcp: Some(1), udp: Some(2), ip: None }).unwrap();
    assert_eq!(shown(&record), "1.2.3.4 2a00::1 tcp=1 udp=2 tcp6=30303 udp6=30304");
}

#[test]
fn votes_of_one_family_do_not_touch_the_other() {
    let mut local = local(PORTS);
    assert!(vote(&mut local, "1.2.3.4:30304").is_some());
    let record = vote(&mut local, "[2a00:9::9]:41000").unwrap();
    assert_eq!(shown(&record), "1.2.3.4 2a00:9::9 tcp=30303 udp=30304 udp6=41000");
}

#[test]
fn entries_have_owners() {
    let (one, two) =
        (EntryOwner::Registration(RegistrationId(1)), EntryOwner::Registration(RegistrationId(2)));
    let mut local = local(PORTS);
    let owned = |owner| Err(EntryError::Owned { key: "eth".into(), owner });
    assert!(local.set_entry(one, "eth", &[0xc0]).unwrap().is_some());
    assert_eq!(local.set_entry(one, "eth", &[0xc0]), Ok(None), "the same value changes nothing");
    assert_eq!(local.set_entry(two, "eth", &[0x01]), owned(one));
    assert_eq!(local.delete_entry(two, "eth"), owned(one));
    assert!(local.set_entry(EntryOwner::Operator, "eth", &[0x02]).unwrap().is_some());
    assert_eq!(local.set_entry(one, "eth", &[0xc0]), owned(EntryOwner::Operator));
    assert_eq!(local.release(one), None, "nothing is left of registration 1");
    assert_eq!(local.record().get(b"eth"), Some(&[0x02][..]));
    assert!(local.delete_entry(EntryOwner::Operator, "eth").unwrap().is_some());
    assert_eq!(local.delete_entry(two, "eth"), Ok(None), "deleting what is not there");
    assert!(local.set_entry(two, "snap", &[0xc0]).unwrap().is_some());
    assert_eq!(local.release(two).unwrap().get(b"snap"), None);
    assert!(local.entries.is_empty());
}

#[test]
fn bad_entries_are_refused() {
    let mut local = local(PORTS);
    let before = local.record().clone();
    let mut set = |key: &str, value: &[u8]| local.set_entry(EntryOwner::Operator, key, value).unwrap_err();
    for key in [
        "id",
        "secp256k1",
        "ip",
        "ip6",
        "tcp",
        "tcp6",
        "udp",
        "udp6",
        "udp7",
        "quic",
        "quic6",
        "qh",
        "topic-discovery",
    ] {
        assert_eq!(set(key, &[0x80]), EntryError::Reserved(key.into()));
    }
    assert_eq!(set("", &[0x80]), EntryError::EmptyKey);
    assert_eq!(set("x", &[]), EntryError::Value(rlp::Error::Truncated));
    assert_eq!(set("x", &[0x01, 0x02]), EntryError::Value(rlp::Error::Trailing));
    assert_eq!(set("x", &[0xc2, 0x82, 0x01]), EntryError::Value(rlp::Error::Truncated));
    assert!(matches!(set("x", &::rlp::encode(&vec![7_u8; 200])), EntryError::TooLarge(301..)));
    assert_eq!(local.record(), &before);
}

/// However large the entries are, a new address of either family still gives a record.
#[test]
fn entries_leave_room_for_the_endpoint() {
    let mut local = local(PORTS);
    let fits = (0..200)
        .rev()
        .find(|len| local.set_entry(EntryOwner::Operator, "x", &::rlp::encode(&vec![7_u8; *len])).is_ok());
    assert!(fits.unwrap() > 60, "{fits:?} bytes are left for entries");
    assert!(local.set_static_ip(ip("2a00::1")).is_some());
    assert!(local.set_static_ip(ip("1.2.3.4")).is_some());
    let record = local.set_mapped(Mapped { tcp: Some(65535), udp: Some(65534), ip: None }).unwrap();
    assert_eq!(record.encoded().len(), MAX_RECORD_BYTES - 2, "two bytes less for a sequence number of today");
}

#[test]
fn an_announced_chain_stands_in_the_record_and_moves_at_its_fork() {
    let mut local = local(PORTS);
    let now = start();
    let fork = now.unix.as_secs() + 100;
    let schedule = Arc::new(ForkSchedule::new([1; 32], 0, &[10, 20], &[1_600_000_000, fork]));
    let id = |record: &Record| ForkId::of_record(record);
    let (one, two) =
        (EntryOwner::Registration(RegistrationId(1)), EntryOwner::Registration(RegistrationId(2)));
    assert_eq!(local.poll_timeout(now), None);
    let record = local.announce(now, one, Arc::clone(&schedule), Head::default()).unwrap().unwrap();
    // At the present time both heights and the first time have passed, and the second time is awaited.
    assert_eq!(id(&record), Some(schedule.id(Head { height: 20, time: fork - 1 })));
    assert_eq!(id(&record).unwrap().next, fork);
    assert_eq!(
        local.poll_timeout(now),
        Some(now.mono + Duration::from_secs(100) - Duration::from_millis(123))
    );
    assert_eq!(local.handle_timeout(now.after(Duration::from_secs(99))), None);
    let later = now.after(Duration::from_secs(100));
    let moved = local.handle_timeout(later).unwrap();
    assert_eq!(id(&moved), Some(ForkId { hash: schedule.end().0, next: 0 }));
    assert_eq!((moved.seq(), local.poll_timeout(later)), (record.seq() + 1, None));
    // A second chain waits for the first; an entry that the operator sets takes precedence over both.
    let other = Arc::new(ForkSchedule::new([2; 32], 0, &[], &[]));
    assert_eq!(local.announce(later, two, Arc::clone(&other), Head::default()), Ok(None));
    assert!(
        matches!(local.set_entry(two, "eth", &[0x80]), Err(EntryError::Owned { owner, .. }) if owner == one)
    );
    assert_eq!(id(&local.set_entry(EntryOwner::Operator, "eth", &[0x80]).unwrap().unwrap()), None);
    assert!(id(&local.delete_entry(EntryOwner::Operator, "eth").unwrap().unwrap()).is_some());
    // When the first registration is released, its chain is withdrawn.
    assert_eq!(id(&local.release(one).unwrap()), Some(other.id(Head::default())));
    assert_eq!(id(&local.withdraw(two).unwrap()), None);
    assert_eq!(local.withdraw(two), None);
}

/// An application that is behind in height says so. Without a fork by time, heights do not count as passed.
#[test]
fn an_announced_chain_is_as_high_as_its_owner_says() {
    let schedule = Arc::new(ForkSchedule::new([1; 32], 0, &[10, 20], &[1_600_000_000]));
    let by_height = Arc::new(ForkSchedule::new([1; 32], 0, &[10, 20], &[]));
    let low = Head { height: 15, time: 0 };
    let table = [
        (&schedule, Head::default(), schedule.end().0),
        (&schedule, low, schedule.id(low).hash),
        (&by_height, Head::default(), by_height.id(Head::default()).hash),
        (&by_height, low, by_height.id(low).hash),
    ];
    for (chain, head, hash) in table {
        let mut local = local(PORTS);
        let record = local.announce(start(), EntryOwner::Operator, Arc::clone(chain), head).unwrap().unwrap();
        assert_eq!(ForkId::of_record(&record).unwrap().hash, hash, "{head:?}");
    }
}

#[test]
fn an_announced_chain_must_leave_room_and_keeps_its_own() {
    let mut local = local(PORTS);
    let schedule = Arc::new(ForkSchedule::new([1; 32], 0, &[10], &[]));
    let (one, two) =
        (EntryOwner::Registration(RegistrationId(1)), EntryOwner::Registration(RegistrationId(2)));
    let fill = |local: &mut LocalRecord, bytes: usize| {
        local.set_entry(two, "fill", &::rlp::encode(&vec![0xaa_u8; bytes])).map(drop)
    };
    let most = (1..300).take_while(|bytes| fill(&mut self::local(PORTS), *bytes).is_ok()).last().unwrap();
    fill(&mut local, most).unwrap();
    assert!(matches!(
        local.announce(start(), one, schedule.clone(), Head::default()),
        Err(EntryError::TooLarge(_))
    ));
    assert_eq!(ForkId::of_record(local.record()), None);
    fill(&mut local, most - 20).unwrap();
    assert!(local.announce(start(), one, schedule, Head::default()).unwrap().is_some());
    // The longest fork id counts, not the current one: a passed fork never makes the record too large.
    assert!(matches!(fill(&mut local, most - 15), Err(EntryError::TooLarge(_))));
}
