//! Attacks: the bound on their cost, and the nodes that they must not affect.

use super::*;

/// A packet with a right hash and a signature of a random key, or of none.
fn forged(n: u64, kind: Type) -> BytesMut {
    let mut out = BytesMut::new();
    let target = FindNode { target: [1; 64], expiration: Expiration(i64::MAX) };
    seal(&Forger(n), kind, &mut out, |stream| target.append(stream));
    out
}

/// Signs with bytes from which no key can be recovered.
struct Forger(u64);

impl Crypto for Forger {
    fn sign(&self, _: &[u8; 32]) -> [u8; 65] {
        let mut signature = [0xff; 65];
        signature[..8].copy_from_slice(&self.0.to_be_bytes());
        signature
    }

    fn recover(&self, _: &[u8; 32], _: &[u8; 65]) -> Option<PublicKey> {
        None
    }
}

#[test]
fn right_hashes_with_bad_signatures_cost_a_bounded_number_of_recoveries() {
    let mut script = Script::new();
    let before = script.engine.counters().recovered;
    // One subnet.
    for n in 0..2_000_u64 {
        let from = SocketAddr::new(IpAddr::from([8, 8, 8, u8::try_from(n % 256).unwrap()]), 1025);
        let verdict = script.deliver(from, &forged(n, Type::FindNode));
        assert!(matches!(verdict, Verdict::BadSignature | Verdict::Limited), "{verdict:?}");
    }
    assert_eq!(script.engine.counters().recovered - before, 64, "the subnet's burst");
    // Many subnets.
    let before = script.engine.counters().recovered;
    for n in 0..20_000_u32 {
        let from = SocketAddr::new(IpAddr::from(((n << 8) | 0x0b00_0001).to_be_bytes()), 1025);
        script.engine.handle_datagram(script.now, from, &forged(u64::from(n), Type::FindNode));
    }
    let cost = script.engine.counters().recovered - before;
    assert!(cost <= 8_000, "{cost}: the burst of all strangers");
    assert_eq!(script.sent(), []);
    assert_eq!(script.engine.conversations.len(), 0);
}

#[test]
fn answers_to_nothing_cost_no_recovery_and_no_hash() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    let before = script.engine.counters().recovered;
    for n in 0..100 {
        assert_eq!(script.pong(&peer, [n; 32]), Verdict::Unsolicited);
        assert_eq!(script.neighbors(&peer, vec![]), Verdict::Unsolicited);
        assert_eq!(script.enr_response(&peer, [n; 32], &[0xc0]), Verdict::Unsolicited);
    }
    assert_eq!(script.engine.counters().recovered, before);
    // And none of it was taken from the subnet's ration.
    script.bond(&peer);
}

#[test]
fn guessing_at_an_open_request_is_bounded() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    script.make_live(&peer);
    script.sent();
    script.engine.lookup(script.now, QueryId(1), [5; 64]).unwrap();
    assert_eq!(script.sent_to(&peer).len(), 1);
    let before = script.engine.counters().recovered;
    let mut bytes = BytesMut::new();
    for n in 0..1_000 {
        let lies = Neighbors { nodes: vec![], expiration: script.soon() };
        seal(&Forger(n), Type::Neighbors, &mut bytes, |stream| lies.append(stream));
        script.deliver(peer.addr, &bytes);
    }
    let cost = script.engine.counters().recovered - before;
    // Eight for the request, then the address's own ration.
    assert!(cost <= 8 + 128, "{cost}");
}

#[test]
fn a_flood_in_the_name_of_a_live_node_does_not_end_its_session() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    script.make_live(&peer);
    script.sent();
    let mut checks = 0;
    for round in 0..200_u64 {
        // From its very address, and from its neighbours'.
        for n in 0..50 {
            script.deliver(peer.addr, &forged(round * 100 + n, Type::FindNode));
            let neighbour = SocketAddr::new(IpAddr::from([8, 8, 1, 9]), 30303);
            script.deliver(neighbour, &forged(round * 100 + n, Type::FindNode));
        }
        script.wait(100);
        for sent in script.sent_to(&peer) {
            if let Sent::Ping { hash, .. } = sent {
                // It names our PING, which the flood cannot: it is looked at whatever else comes.
                assert_eq!(script.pong_with(&peer, hash, None), Verdict::Accepted);
                checks += 1;
            }
        }
    }
    assert!(checks > 2);
    let entry = script.engine.table().get(&peer.id()).unwrap();
    assert!(entry.live && entry.checks > checks, "{} checks", entry.checks);
    // A flood from its neighbours alone leaves its requests alone too.
    script.wait(10_000);
    script.sent();
    for n in 0..1_000 {
        script.deliver(addr("8.8.1.9:30303"), &forged(n, Type::FindNode));
    }
    assert_eq!(script.find_node(&peer, [1; 64]), Verdict::Accepted);
}

#[test]
fn unproven_addresses_get_at_most_two_and_a_half_times_what_came() {
    let empty = WireEndpoint { ip: None, udp: 0, tcp: 0 };
    let usual: WireEndpoint = endpoint(addr("8.8.1.1:30303")).into();
    for (at, from, to, pinged_back) in [
        ("8.8.1.1:30303", usual, usual, true),
        ("8.8.1.1:30303", usual, empty, false),
        ("8.8.1.1:30303", empty, empty, false),
        ("[2a00::1]:30303", empty, empty, false),
        (
            "[2a00::1]:30303",
            endpoint(addr("[2a00::1]:30303")).into(),
            endpoint(addr("[2a00::2]:30303")).into(),
            true,
        ),
    ] {
        let mut script = Script::new();
        // The longest sequence number that there is.
        script.engine.set_local_record(record(&key(0), u64::MAX, addr("[2a00::ffff]:65535")));
        let peer = Peer::new(1, at);
        let ping = Ping { from, to, expiration: script.soon(), enr_seq: None };
        let (bytes, _) = peer.seal(Type::Ping, |stream| ping.append(stream));
        script.deliver(peer.addr, &bytes);
        let mut out = BytesMut::new();
        let (mut total, mut packets) = (0, 0);
        while script.engine.poll_transmit(script.now, &mut out).is_some() {
            total += out.len();
            packets += 1;
        }
        assert_eq!(packets, if pinged_back { 2 } else { 1 }, "{} bytes from {at}", bytes.len());
        assert!(total * 2 <= bytes.len() * 5, "{total} bytes to {} from {at}", bytes.len());
        assert_eq!(script.engine.counters().not_pinged_back, u64::from(!pinged_back));
    }
}

#[test]
fn a_ping_flood_is_answered_within_its_ration_and_pinged_back_once() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    for _ in 0..500 {
        script.ping(&peer);
    }
    let sent = script.sent_to(&peer);
    let pings = sent.iter().filter(|sent| matches!(sent, Sent::Ping { .. })).count();
    assert_eq!((sent.len(), pings), (64 + 1, 1));
}

#[test]
fn strangers_cannot_take_all_conversations() {
    // On loopback no ration protects us.
    let mut script = Script::new();
    let known = Peer::new(1, "8.8.1.1:30303");
    script.make_live(&known);
    script.sent();
    for n in 0..4_000 {
        let stranger = Peer { key: key(100 + n), addr: addr("127.0.0.1:40000") };
        script.ping(&stranger);
        script.sent();
    }
    assert_eq!(script.engine.conversations.len(), 3_072);
    assert_eq!(script.engine.counters().too_busy, 4_000 - 3_072);
    script.engine.lookup(script.now, QueryId(1), [5; 64]).unwrap();
    assert_eq!(script.sent_to(&known), [Sent::FindNode([5; 64])]);
    script.wait(600);
    assert_eq!(script.engine.conversations.len(), 0, "and it passes");
}

#[test]
fn a_replayed_packet_changes_nothing() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    let ping = Ping {
        from: endpoint(peer.addr).into(),
        to: endpoint(peer.addr).into(),
        expiration: script.soon(),
        enr_seq: None,
    };
    let (bytes, _) = peer.seal(Type::Ping, |stream| ping.append(stream));
    script.bond(&peer);
    // Replayed from elsewhere, it is a stranger's ping there: no bond, no place in the table.
    let thief = addr("8.8.2.2:30303");
    assert_eq!(script.deliver(thief, &bytes), Verdict::Accepted);
    script.sent();
    script.wait(2_000);
    let entry = script.engine.table().get(&peer.id()).unwrap();
    assert_eq!(entry.contact.udp_addr(), Some(peer.addr));
    script.wait(20_000);
    assert_eq!(script.deliver(peer.addr, &bytes), Verdict::Expired);
}

#[test]
fn a_wrong_clock_is_noticed() {
    let mut script = Script::new();
    for n in 1..=20 {
        let peer = Peer::new(n, &format!("8.{n}.1.1:30303"));
        let ping = Ping {
            from: endpoint(peer.addr).into(),
            to: endpoint(peer.addr).into(),
            expiration: Expiration(script.soon().0 - 60),
            enr_seq: None,
        };
        let (bytes, _) = peer.seal(Type::Ping, |stream| ping.append(stream));
        assert_eq!(script.deliver(peer.addr, &bytes), Verdict::Expired);
        script.wait(1_000);
    }
    let skews: Vec<i64> = script
        .actions()
        .into_iter()
        .filter_map(|action| match action {
            Action::Own(ClockSkew { ahead }) => Some(ahead),
            _ => None,
        })
        .collect();
    assert_eq!(skews, [60]);
}
