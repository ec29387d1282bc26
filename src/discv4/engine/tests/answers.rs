//! Our answers, and which answers of others are accepted.

use super::*;
use crate::discv4::packet::MAX_PACKET;

/// Some peer whose FINDNODE is open: the engine does a lookup and asks it.
fn asked(script: &mut Script, peer: &Peer) {
    script.make_live(peer);
    script.sent();
    script.engine.lookup(script.now, QueryId(1), [5; 64]).unwrap();
    assert_eq!(script.sent_to(peer), [Sent::FindNode([5; 64])]);
}

#[test]
fn only_live_nodes_are_told_and_unproven_ones_while_there_are_none() {
    let mut script = Script::new();
    let asker = Peer::new(1, "8.8.1.1:30303");
    let live = Peer::new(2, "8.8.2.1:30303");
    let unproven = Peer::new(3, "8.8.3.1:30303");
    script.bond(&asker);
    script.engine.add_seed(script.now, unproven.contact());
    script.find_node(&asker, [1; 64]);
    assert_eq!(script.sent_to(&asker), [Sent::Neighbors(vec![unproven.neighbor()])]);
    script.make_live(&live);
    script.sent();
    script.engine.add_seed(script.now, unproven.contact());
    script.find_node(&asker, [1; 64]);
    assert_eq!(script.sent_to(&asker), [Sent::Neighbors(vec![live.neighbor()])]);
    // The asker need not be in its own answer.
    script.find_node(&live, [1; 64]);
    assert_eq!(script.sent_to(&live), [Sent::Neighbors(vec![])]);
}

#[test]
fn sixteen_closest_go_as_twelve_and_four() {
    let mut script = Script::new();
    let asker = Peer::new(1, "8.8.1.1:30303");
    script.bond(&asker);
    let mut seeds: Vec<Peer> = (10..60).map(|n| Peer::new(n, &format!("8.{n}.1.1:30303"))).collect();
    for seed in &seeds {
        script.engine.add_seed(script.now, seed.contact());
    }
    seeds.retain(|seed| {
        script
            .engine
            .table()
            .buckets()
            .iter()
            .any(|bucket| bucket.entries().iter().any(|entry| entry.contact.id == seed.id()))
    });
    let target = [3; 64];
    let center = NodeId(crate::node::id::keccak256(&[&target]));
    seeds.sort_by(|a, b| crate::kademlia::distance::closer(&center, &a.id(), &b.id()));
    let expected: Vec<Neighbor> = seeds.iter().take(16).map(Peer::neighbor).collect();
    script.find_node(&asker, target);
    let sent = script.sent_to(&asker);
    let expected = [Sent::Neighbors(expected[..12].to_vec()), Sent::Neighbors(expected[12..].to_vec())];
    assert_eq!(sent, expected);
}

#[test]
fn answers_follow_the_relay_rule() {
    for (asker, told) in
        [("8.8.1.1:30303", &[0][..]), ("10.0.0.1:30303", &[0, 1]), ("127.0.0.1:30303", &[0, 1, 2])]
    {
        let mut script = Script::new();
        let asker = Peer::new(1, asker);
        script.bond(&asker);
        let nodes = ["8.8.2.1:30303", "10.0.0.2:30303", "127.0.0.3:30303"];
        let nodes: Vec<Peer> = (2..).zip(nodes).map(|(n, at)| Peer::new(n, at)).collect();
        for node in &nodes {
            script.engine.add_seed(script.now, node.contact());
        }
        script.find_node(&asker, [1; 64]);
        let sent = script.sent_to(&asker);
        let [Sent::Neighbors(got)] = sent.as_slice() else { panic!("{sent:?}") };
        for (index, node) in nodes.iter().enumerate() {
            assert_eq!(got.contains(&node.neighbor()), told.contains(&index), "{} {}", asker.addr, node.addr);
        }
    }
}

#[test]
fn told_nodes_are_believed_by_the_rules() {
    // teller, told, believed
    let table = [
        ("8.8.1.1:30303", "8.8.2.1:30303", true),
        ("8.8.1.1:30303", "8.8.2.1:1025", true),
        ("8.8.1.1:30303", "8.8.2.1:1024", false),
        ("8.8.1.1:30303", "8.8.2.1:53", false),
        ("8.8.1.1:30303", "10.0.0.1:30303", false),
        ("8.8.1.1:30303", "127.0.0.1:30303", false),
        ("8.8.1.1:30303", "224.0.0.1:30303", false),
        ("8.8.1.1:30303", "0.0.0.0:30303", false),
        ("8.8.1.1:30303", "9.9.9.9:30303", false), // restricted
    ];
    for (teller, told, believed) in table {
        let nets = ["8.0.0.0/8", "172.16.0.0/12", "10.0.0.0/8", "127.0.0.0/8", "224.0.0.0/8", "0.0.0.0/8"];
        let restrict = nets.iter().map(|net| net.parse().unwrap()).collect();
        let mut script = Script::with(Config { restrict, ..Config::default() });
        let (teller, told) = (Peer::new(1, teller), Peer::new(2, told));
        asked(&mut script, &teller);
        assert_eq!(script.neighbors(&teller, vec![told.neighbor()]), Verdict::Accepted);
        let named = script
            .actions()
            .iter()
            .any(|action| matches!(action, Action::LookupNode { contact, .. } if contact.id == told.id()));
        assert_eq!(named, believed, "{} tells {}", teller.addr, told.addr);
        assert_eq!(script.engine.counters().refused_neighbors, u64::from(!believed));
        assert_eq!(script.engine.table().get(&told.id()).is_some(), believed);
    }
}

#[test]
fn odd_neighbors_are_skipped_one_by_one() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    asked(&mut script, &peer);
    let good = Peer::new(2, "8.8.2.1:30303");
    let no_key = Neighbor { key: [1; 64], ..Peer::new(3, "8.8.3.1:30303").neighbor() };
    let no_ip = Neighbor { ip: None, ..Peer::new(4, "8.8.4.1:30303").neighbor() };
    let us = Neighbor { key: key(0).public().to_uncompressed(), ..good.neighbor() };
    let twice = good.neighbor();
    script.neighbors(&peer, vec![no_key, no_ip, us, good.neighbor(), twice]);
    let named = script.actions().into_iter().filter_map(|action| match action {
        Action::LookupNode { contact, .. } => Some(contact.id),
        _ => None,
    });
    assert_eq!(named.collect::<Vec<_>>(), [peer.id(), good.id()]);
}

#[test]
fn neighbors_count_only_while_a_find_node_is_open() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    let nodes: Vec<Peer> = (10..30).map(|n| Peer::new(n, &format!("8.{n}.1.1:30303"))).collect();
    let part = |range: std::ops::Range<usize>| nodes[range].iter().map(Peer::neighbor).collect::<Vec<_>>();
    asked(&mut script, &peer);
    let other = Peer { key: key(9), addr: peer.addr };
    assert_eq!(script.neighbors(&other, part(0..12)), Verdict::Unsolicited, "another key");
    let elsewhere = Peer { key: peer.key.clone(), addr: addr("8.8.1.2:30303") };
    assert_eq!(script.neighbors(&elsewhere, part(0..12)), Verdict::Unsolicited, "another address");
    assert_eq!(script.neighbors(&peer, part(0..12)), Verdict::Accepted);
    assert_eq!(script.neighbors(&peer, part(12..16)), Verdict::Accepted);
    assert_eq!(script.neighbors(&peer, part(16..20)), Verdict::Unsolicited, "sixteen are all");
    let heard = |action: &Action| matches!(action, Action::LookupNode { .. });
    assert_eq!(script.actions().iter().filter(|action| heard(action)).count(), 1 + 16);
    // Only the proven one could be asked directly; the told ones are pinged first, three at a time.
    let pinged = script.sent().iter().filter(|(_, sent)| matches!(sent, Sent::Ping { .. })).count();
    assert_eq!(pinged, 3);
}

#[test]
fn a_short_answer_ends_the_wait_early() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    asked(&mut script, &peer);
    script.wait(200);
    script.neighbors(&peer, vec![]);
    script.actions();
    script.wait(100);
    let done = Action::LookupDone {
        query: QueryId(1),
        closest: vec![script.engine.table().get(&peer.id()).unwrap().contact.clone()],
    };
    assert!(script.actions().contains(&done));
}

#[test]
fn records_are_fetched_when_they_are_newer_and_checked() {
    let peer = Peer::new(1, "8.8.1.1:30303");
    let at = |text: &str, seq: u64, of: &NodeKey| record(of, seq, addr(text)).encoded().to_vec();
    let mut big = record(&peer.key, 5, peer.addr).encoded().to_vec();
    big.resize(301, 0);
    let mut bare = RecordBuilder::new(5);
    // record, verdict
    let table = [
        (at("8.8.1.1:30303", 5, &peer.key), Verdict::Accepted),
        (at("8.8.9.9:30303", 5, &peer.key), Verdict::Accepted),
        (bare.set_bytes("x", b"y").sign(&peer.key).unwrap().encoded().to_vec(), Verdict::Accepted),
        (at("8.8.1.1:30303", 5, &key(2)), Verdict::BadRecord),
        (at("10.0.0.1:30303", 5, &peer.key), Verdict::BadRecord),
        (at("127.0.0.1:30303", 5, &peer.key), Verdict::BadRecord),
        (vec![0xc0], Verdict::BadRecord),
    ];
    for (index, (bytes, verdict)) in table.into_iter().enumerate() {
        let mut script = Script::new();
        script.make_live(&peer);
        script.sent();
        script.ask_record(3, &peer);
        let sent = script.sent_to(&peer);
        let [Sent::EnrRequest { hash }] = sent.as_slice() else { panic!("{sent:?}") };
        assert_eq!(script.enr_response(&peer, [7; 32], &bytes), Verdict::Unsolicited);
        assert_eq!(script.enr_response(&peer, *hash, &bytes), verdict, "case {index}");
        assert_eq!(script.enr_response(&peer, *hash, &bytes), Verdict::Unsolicited, "once");
        let result = script.actions().into_iter().find_map(|action| match action {
            Action::Resolved { query: QueryId(3), contact } => {
                Some(contact.and_then(|contact| contact.record))
            }
            _ => None,
        });
        assert_eq!(result.unwrap().is_some(), verdict == Verdict::Accepted, "case {index}");
        let entry = script.engine.table().get(&peer.id()).unwrap();
        assert_eq!(entry.contact.seq(), if verdict == Verdict::Accepted { 5 } else { 0 });
        assert_eq!(
            entry.contact.udp_addr(),
            Some(peer.addr),
            "it stays at the address from which it answers"
        );
    }
}

#[test]
fn a_check_that_tells_of_a_newer_record_fetches_it() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    script.make_live(&peer);
    script.sent();
    let hash = loop {
        script.wait(50);
        if let Some(Sent::Ping { hash, .. }) = script.sent_to(&peer).pop() {
            break hash;
        }
    };
    script.pong_with(&peer, hash, Some(4));
    let sent = script.sent_to(&peer);
    let [Sent::EnrRequest { hash }] = sent.as_slice() else { panic!("{sent:?}") };
    let newer = record(&peer.key, 4, peer.addr);
    script.enr_response(&peer, *hash, newer.encoded());
    assert_eq!(script.engine.table().get(&peer.id()).unwrap().contact.record, Some(newer));
    // An older one is not accepted.
    script.ask_record(1, &peer);
    let sent = script.sent_to(&peer);
    let [Sent::EnrRequest { hash }] = sent.as_slice() else { panic!("{sent:?}") };
    let older = record(&peer.key, 3, peer.addr);
    assert_eq!(script.enr_response(&peer, *hash, older.encoded()), Verdict::BadRecord);
}

#[test]
fn a_new_record_of_ours_is_told_at_once() {
    let mut script = Script::new();
    script.engine.set_local_record(record(&key(0), 8, addr(OUR_ADDR)));
    let peer = Peer::new(1, "8.8.1.1:30303");
    script.ping(&peer);
    let sent = script.sent_to(&peer);
    let [Sent::Pong(pong), Sent::Ping { ping, .. }] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!((pong.enr_seq, ping.enr_seq), (Some(8), Some(8)));
    assert_eq!(ping.from, endpoint(addr(OUR_ADDR)).into());
}

#[test]
fn table_nodes_have_a_say_in_where_we_are_and_strangers_do_not() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    let statements = |script: &mut Script| {
        let actions = script.actions();
        actions
            .into_iter()
            .filter_map(|action| match action {
                Action::EndpointStatement { by, from, sees_us_at } => Some((by, from, sees_us_at)),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    script.bond(&peer);
    assert_eq!(statements(&mut script), []);
    script.check(&peer);
    let us = addr(OUR_ADDR);
    assert_eq!(statements(&mut script), [(peer.id(), peer.addr.ip(), us)]);
    script.ping(&peer);
    assert_eq!(statements(&mut script), [], "a ping that we did not ask for may report any address");
}

#[test]
fn a_node_that_moves_is_followed_once_it_proves_it() {
    let mut script = Script::new();
    let mut peer = Peer::new(1, "8.8.1.1:30303");
    script.make_live(&peer);
    script.sent();
    peer.addr.set_port(40_000);
    script.ping(&peer);
    let sent = script.sent_to(&peer);
    let [Sent::Pong(_), Sent::Ping { hash, .. }] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!(script.engine.table().get(&peer.id()).unwrap().contact.endpoint.udp, 30303);
    script.pong(&peer, *hash);
    script.wait(1_000);
    let entry = script.engine.table().get(&peer.id()).unwrap();
    assert_eq!((entry.contact.endpoint.udp, entry.live), (40_000, false));
}

#[test]
fn restricted_addresses_get_nothing() {
    let restrict = vec!["8.8.0.0/16".parse().unwrap()];
    let mut script = Script::with(Config { restrict, ..Config::default() });
    assert_eq!(script.ping(&Peer::new(1, "8.9.1.1:30303")).0, Verdict::Restricted);
    assert_eq!(script.sent(), []);
    script.bond(&Peer::new(2, "8.8.1.1:30303"));
    let outside = Peer::new(3, "8.9.1.1:30303");
    script.engine.add_seed(script.now, outside.contact());
    script.engine.add_bootnode(script.now, outside.contact());
    let asked = script.engine.ping(script.now, QueryId(1), &outside.contact());
    assert_eq!(asked, Err(crate::kademlia::CallError::Address));
    script.wait(5_000);
    assert!(script.sent().iter().all(|(to, _)| *to != outside.addr));
}

#[test]
fn the_largest_record_fits() {
    let mut script = Script::new();
    let mut builder = script.engine.record.to_builder();
    let mut size = 0;
    while let Ok(record) = builder.set_bytes("z", &vec![9; size]).sign(&key(0)) {
        script.engine.set_local_record(record);
        size += 1;
    }
    assert_eq!(script.engine.record.encoded().len(), 300);
    let peer = Peer::new(1, "8.8.1.1:30303");
    script.bond(&peer);
    script.enr_request(&peer);
    let mut out = BytesMut::new();
    script.engine.poll_transmit(script.now, &mut out).unwrap();
    assert!(out.len() <= MAX_PACKET);
}
