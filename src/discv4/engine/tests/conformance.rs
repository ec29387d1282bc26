//! The cases of go-ethereum's `devp2p discv4 test`, which every public client is judged by, in virtual time. Its
//! reads take the very next packet, so silence is asserted everywhere.

use super::*;

const WRONG: WireEndpoint =
    WireEndpoint { ip: Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 0))), udp: 0, tcp: 0 };

/// The suite's node on loopback, 127.0.0.1, and its second address.
fn peers() -> (Peer, Peer) {
    let first = Peer::new(1, "127.0.0.1:40001");
    let second = Peer { key: first.key.clone(), addr: addr("127.0.0.2:40002") };
    (first, second)
}

/// The time of the suite that an unsigned comparison takes for one in the far future.
fn negated(now: Now) -> Expiration {
    Expiration(now.unix.as_secs().wrapping_neg().cast_signed())
}

/// Demands one PONG to the ping `hash` and one PING, and nothing more for longer than the suite listens.
fn expect_pong_and_ping(script: &mut Script, peer: &Peer, hash: [u8; 32]) {
    let sent = script.sent_to(peer);
    let [Sent::Pong(pong), Sent::Ping { .. }] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!(pong.ping_hash, hash);
    assert_eq!((pong.to.ip, pong.to.udp), (Some(peer.addr.ip()), peer.addr.port()));
    assert_eq!(pong.enr_seq, Some(7));
    script.wait(400);
    assert_eq!(script.sent(), []);
}

#[test]
fn ping_with_odd_endpoints_and_junk() {
    // Ping/Basic, WrongTo, WrongFrom, ExtraData, ExtraDataWrongFrom
    for (wrong_to, wrong_from, junk) in [
        (false, false, false),
        (true, false, false),
        (false, true, false),
        (false, false, true),
        (false, true, true),
    ] {
        let (peer, _) = peers();
        let mut script = Script::new();
        let right: WireEndpoint = endpoint(peer.addr).into();
        let ping = Ping {
            from: if wrong_from { WRONG } else { right },
            to: if wrong_to { WRONG } else { endpoint(addr(OUR_ADDR)).into() },
            expiration: script.soon(),
            enr_seq: None,
        };
        let (bytes, hash) = peer.seal(Type::Ping, |stream| {
            if !junk {
                return ping.append(stream);
            }
            // Two more elements; the first sits where the sequence number goes.
            let mut plain = ::rlp::RlpStream::new();
            ping.append(&mut plain);
            let plain = plain.out();
            let mut items = crate::rlp::Reader::list(&plain).unwrap();
            stream.begin_unbounded_list();
            while let Ok(item) = items.raw() {
                stream.append_raw(item, 1);
            }
            stream.append(&42_u8).append(&[9_u8; 5].as_slice());
            stream.finalize_unbounded_list();
        });
        assert_eq!(script.deliver(peer.addr, &bytes), Verdict::Accepted);
        expect_pong_and_ping(&mut script, &peer, hash);
    }
}

#[test]
fn ping_past_expiration() {
    for past in [negated, |now: Now| Expiration(now.unix.as_secs().cast_signed() - 1)] {
        let (peer, _) = peers();
        let mut script = Script::new();
        let ping = Ping { from: WRONG, to: WRONG, expiration: past(script.now), enr_seq: None };
        let (bytes, _) = peer.seal(Type::Ping, |stream| ping.append(stream));
        assert_eq!(script.deliver(peer.addr, &bytes), Verdict::Expired);
        script.wait(400);
        assert_eq!(script.sent(), []);
    }
}

#[test]
fn wrong_packet_type() {
    let (peer, _) = peers();
    let mut script = Script::new();
    let ping = Ping { from: WRONG, to: WRONG, expiration: script.soon(), enr_seq: None };
    let (mut bytes, _) = peer.seal(Type::Ping, |stream| ping.append(stream));
    bytes[97] = 66;
    assert_eq!(script.deliver(peer.addr, &bytes), Verdict::UnknownType);
    assert_eq!(script.sent(), []);
}

#[test]
fn bond_then_ping_with_wrong_from() {
    let (peer, _) = peers();
    let mut script = Script::new();
    script.bond(&peer);
    let ping = Ping { from: WRONG, to: WRONG, expiration: script.soon(), enr_seq: None };
    let (bytes, hash) = peer.seal(Type::Ping, |stream| ping.append(stream));
    assert_eq!(script.deliver(peer.addr, &bytes), Verdict::Accepted);
    let sent = script.sent_to(&peer);
    assert!(matches!(sent.as_slice(), [Sent::Pong(pong)] if pong.ping_hash == hash), "{sent:?}");
    script.wait(400);
    assert_eq!(script.sent(), []);
}

#[test]
fn enr_request_after_bond() {
    let (peer, _) = peers();
    let mut script = Script::new();
    script.bond(&peer);
    script.wait(400);
    let (verdict, hash) = script.enr_request(&peer);
    assert_eq!(verdict, Verdict::Accepted);
    let expected = Sent::EnrResponse { request_hash: hash, record: script.engine.record.clone() };
    assert_eq!(script.sent_to(&peer), [expected]);
}

#[test]
fn requests_without_endpoint_proof() {
    let (peer, _) = peers();
    let mut script = Script::new();
    assert_eq!(script.find_node(&peer, [1; 64]), Verdict::Unproven);
    assert_eq!(script.enr_request(&peer).0, Verdict::Unproven);
    script.wait(400);
    assert_eq!(script.sent(), [], "no answer, and no ping either");
}

#[test]
fn basic_find_node() {
    let (peer, _) = peers();
    let mut script = Script::new();
    script.bond(&peer);
    assert_eq!(script.find_node(&peer, [1; 64]), Verdict::Accepted);
    assert_eq!(script.sent_to(&peer), [Sent::Neighbors(vec![])], "empty, but an answer");
    script.wait(400);
    assert_eq!(script.sent(), []);
}

#[test]
fn unsolicited_neighbors() {
    let (peer, _) = peers();
    let mut script = Script::new();
    script.bond(&peer);
    let planted = Peer::new(2, "127.0.0.1:1025");
    assert_eq!(script.neighbors(&peer, vec![planted.neighbor()]), Verdict::Unsolicited);
    script.find_node(&peer, planted.key.public().to_uncompressed());
    assert_eq!(script.sent_to(&peer), [Sent::Neighbors(vec![])]);
    assert!(script.engine.table().get(&planted.id()).is_none());
}

#[test]
fn find_node_past_expiration() {
    let (peer, _) = peers();
    let mut script = Script::new();
    script.bond(&peer);
    let findnode = FindNode { target: [1; 64], expiration: negated(script.now) };
    let (bytes, _) = peer.seal(Type::FindNode, |stream| findnode.append(stream));
    assert_eq!(script.deliver(peer.addr, &bytes), Verdict::Expired);
    script.wait(400);
    assert_eq!(script.sent(), []);
}

#[test]
fn invalid_pong_hash_is_no_proof() {
    let (peer, _) = peers();
    let mut script = Script::new();
    script.ping(&peer);
    assert_eq!(script.sent_to(&peer).len(), 2);
    assert_eq!(script.pong(&peer, [0; 32]), Verdict::Unsolicited);
    assert_eq!(script.find_node(&peer, [1; 64]), Verdict::Unproven);
    script.wait(400);
    assert_eq!(script.sent(), []);
}

#[test]
fn bond_does_not_hold_for_another_address() {
    let (peer, elsewhere) = peers();
    let mut script = Script::new();
    script.bond(&peer);
    assert_eq!(script.find_node(&elsewhere, [1; 64]), Verdict::Unproven);
    assert_eq!(script.enr_request(&elsewhere).0, Verdict::Unproven);
    script.wait(400);
    assert_eq!(script.sent(), [], "no packet of any kind");
}

#[test]
fn a_pong_from_another_address_or_key_is_no_proof() {
    let (peer, elsewhere) = peers();
    let mut script = Script::new();
    script.ping(&peer);
    let sent = script.sent_to(&peer);
    let Some(Sent::Ping { hash, .. }) = sent.last() else { panic!("{sent:?}") };
    assert_eq!(script.pong(&elsewhere, *hash), Verdict::Unsolicited);
    let other = Peer { key: key(2), addr: peer.addr };
    assert_eq!(script.pong(&other, *hash), Verdict::Unsolicited);
    assert_eq!(script.find_node(&peer, [1; 64]), Verdict::Unproven);
    // The right one comes late, but comes.
    assert_eq!(script.pong(&peer, *hash), Verdict::Accepted);
    assert_eq!(script.pong(&peer, *hash), Verdict::Unsolicited, "once");
    assert_eq!(script.find_node(&peer, [1; 64]), Verdict::Accepted);
}

#[test]
fn too_late_a_pong_is_no_proof() {
    let (peer, _) = peers();
    let mut script = Script::new();
    script.ping(&peer);
    let sent = script.sent_to(&peer);
    let Some(Sent::Ping { hash, .. }) = sent.last() else { panic!("{sent:?}") };
    script.wait(500);
    assert_eq!(script.pong(&peer, *hash), Verdict::Unsolicited);
    assert_eq!(script.engine.conversations.len(), 0);
}

#[test]
fn a_fresh_bond_is_left_alone_for_a_second() {
    let (peer, _) = peers();
    let mut script = Script::new();
    script.engine.set_demand(script.now, 10);
    script.bond(&peer);
    script.wait(990);
    assert_eq!(script.sent(), []);
    assert!(script.engine.table().is_empty());
    script.wait(20);
    assert!(script.engine.table().get(&peer.id()).is_some());
    script.wait(3_000);
    assert!(!script.sent().is_empty(), "then it is checked like any other");
}
