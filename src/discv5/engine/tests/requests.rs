//! Our requests: challenges in between, queues, timeouts, and answers in several packets.

use super::*;
use crate::{
    discv5::{
        call::{MAX_WAITING, TIMEOUT},
        message::{Pong, encode_nodes},
    },
    kademlia::distance::log_distance,
};

const US: &str = "9.9.9.9:30303";
const THEM: &str = "8.8.8.8:30303";

fn results(rig: &mut Rig) -> Vec<Action> {
    let wanted = |action: &Action| {
        matches!(action, Action::PingResult { .. } | Action::LookupDone { .. } | Action::Resolved { .. })
    };
    rig.take_actions().into_iter().filter(wanted).collect()
}

#[test]
fn a_request_is_challenged_once_and_answered() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::reachable(1, THEM);
    let (result, sent) = rig.command(|engine, now| engine.ping(now, QueryId(1), &tester.contact()));
    result.unwrap();
    let [(_, first)] = &sent[..] else { panic!("one packet") };
    // A WHOAREYOU from elsewhere, or with another nonce, is none.
    let Got::Unreadable { nonce, .. } = tester.read(first) else { panic!("readable") };
    let mut whoareyou = BytesMut::new();
    packet::challenge(&mut whoareyou, &mut tester.rng, &key(0).id(), &nonce, 0);
    assert!(rig.deliver(addr("8.8.8.8:1"), &whoareyou).is_empty());
    packet::challenge(&mut whoareyou, &mut tester.rng, &key(0).id(), &[1; 12], 0);
    assert!(rig.deliver(tester.addr, &whoareyou).is_empty());
    assert_eq!(rig.counters().challenges_unsolicited, 2);

    let request = tester.challenge_engine(&mut rig, first);
    let Ok(Message::Ping(ping)) = Message::decode(&request) else { panic!("no PING") };
    // A second one for the same request is refused, by the old nonce and by the new.
    packet::challenge(&mut whoareyou, &mut tester.rng, &key(0).id(), &nonce, 0);
    assert!(rig.deliver(tester.addr, &whoareyou).is_empty());
    let handshake_nonce = rig.engine.calls.nonce(&tester.id()).unwrap();
    packet::challenge(&mut whoareyou, &mut tester.rng, &key(0).id(), &handshake_nonce, 0);
    assert!(rig.deliver(tester.addr, &whoareyou).is_empty());
    assert_eq!(rig.counters().challenges_unsolicited, 4);

    rig.now = rig.now.after(Duration::from_millis(30));
    let pong = Pong { id: ping.id, enr_seq: 1, recipient: addr("9.9.9.9:777") };
    let packet = tester.write(&encoded(|out| pong.encode(out)));
    assert!(rig.deliver(tester.addr, &packet).is_empty());
    let pong = crate::kademlia::Ponged {
        round_trip: Duration::from_millis(30),
        sees_us_at: Some(pong.recipient),
        enr_seq: Some(1),
    };
    assert_eq!(results(&mut rig), [Action::PingResult { query: QueryId(1), pong: Ok(pong) }]);
    assert_eq!(rig.engine.wire.sessions().len(), (1, 0), "ours");
}

/// A node that is known by its URL alone: its key is enough for the handshake.
#[test]
fn a_record_is_not_needed_to_ask() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::reachable(1, THEM);
    let node = Contact { record: None, ..tester.contact() };
    let (_, sent) = rig.command(|engine, now| engine.ping(now, QueryId(1), &node));
    let request = tester.challenge_engine(&mut rig, &sent[0].1);
    assert!(matches!(Message::decode(&request), Ok(Message::Ping(_))));
}

#[test]
fn one_at_a_time_sixteen_wait_and_the_rest_is_refused() {
    let mut rig = Rig::new(US);
    let node = contact(&key(1), THEM);
    let mut sent = Vec::new();
    for query in 0..=MAX_WAITING as u64 {
        let (result, packets) = rig.command(|engine, now| engine.ping(now, QueryId(query), &node));
        result.unwrap();
        sent.extend(packets);
    }
    assert_eq!(sent.len(), 1);
    let (refused, _) = rig.command(|engine, now| engine.ping(now, QueryId(99), &node));
    assert_eq!((refused, rig.counters().requests_refused), (Err(CallError::QueueFull), 1));
    // Another node is not held up by it.
    let other = contact(&key(2), "8.8.4.4:30303");
    let other = rig.command(|engine, now| engine.ping(now, QueryId(50), &other));
    assert_eq!(other.1.len(), 1);
    // No node answers: each has its own time.
    assert_eq!(rig.advance(TIMEOUT).len(), 1);
    assert_eq!(results(&mut rig).len(), 2);
    rig.advance(TIMEOUT * MAX_WAITING as u32);
    assert_eq!(results(&mut rig).len(), MAX_WAITING);
    assert_eq!(rig.engine.calls.len(), 0);
    assert_eq!(rig.counters().requests_timed_out, MAX_WAITING as u64 + 2);
}

#[test]
fn who_may_not_be_asked() {
    let mut rig = Rig::new(US);
    rig.restrict(all_but("8.8.4.4"));
    let us = rig.contact();
    let table = [
        (us, CallError::Myself),
        (contact(&key(1), "8.8.4.4:30303"), CallError::Address),
        (contact(&key(1), "192.168.1.1:30303"), CallError::Address), // from a public address into a private range
        (contact(&key(1), "8.8.8.8:0"), CallError::NoEndpoint),
    ];
    for (node, error) in table {
        let (result, sent) = rig.command(|engine, now| engine.ping(now, QueryId(1), &node));
        assert_eq!((result, sent.len()), (Err(error), 0));
    }
    let pings = |rig: &mut Rig, at| {
        let node = contact(&key(1), at);
        rig.command(|engine, now| engine.ping(now, QueryId(1), &node)).1.len()
    };
    assert_eq!(pings(&mut rig, "127.0.0.1:5"), 1);
    // A node in a private range asks its neighbours.
    assert_eq!(pings(&mut Rig::new("192.168.1.9:30303"), "192.168.1.1:5"), 1);
}

/// Starts a lookup whose only step asks `tester`, and returns the request id and the distances asked for.
fn lookup(rig: &mut Rig, tester: &mut Tester, query: u64) -> (RequestId, Vec<u64>) {
    let target = NodeId([0x5a; 32]);
    let (result, sent) = rig.command(|engine, now| engine.lookup(now, QueryId(query), target));
    result.unwrap();
    let [(_, bytes)] = &sent[..] else { panic!("{} packets", sent.len()) };
    let Got::Message(request) = tester.read(bytes) else { panic!("not in the session") };
    let Ok(Message::FindNode(find)) = Message::decode(&request) else { panic!("no FINDNODE") };
    (find.id, find.distances().collect())
}

/// A node at one of `distances` from `from`.
fn node_at(from: &NodeId, distances: &[u64], at: &str, seed: u64) -> Record {
    let fits = |key: &NodeKey| distances.contains(&u64::from(log_distance(from, &key.id())));
    let key = (seed * 1000..).map(key).find(fits).unwrap();
    record(&key, 1, Some(addr(at)))
}

fn found(rig: &mut Rig) -> (Vec<Record>, usize) {
    let mut records = Vec::new();
    let mut done = 0;
    for action in rig.take_actions() {
        match action {
            Action::LookupNode { contact, .. } => records.extend(contact.record),
            Action::LookupDone { .. } => done += 1,
            _ => {}
        }
    }
    (records, done)
}

#[test]
fn nodes_come_in_several_packets_and_lies_about_their_number_are_bounded() {
    // The announced number of packets, and how many are taken.
    for (total, taken) in [(0, 1), (1, 1), (3, 3), (5, 5), (6, 5), (200, 5), (u64::MAX, 5)] {
        let mut rig = Rig::new(US);
        let mut tester = Tester::reachable(1, THEM);
        tester.meet(&mut rig);
        let (id, distances) = lookup(&mut rig, &mut tester, 1);
        for index in 0..7 {
            rig.now = rig.now.after(TIMEOUT - Duration::from_millis(1));
            // Each at a subnet of its own, or the table would not have it.
            let told = node_at(&tester.id(), &distances, &format!("7.7.{index}.7:30303"), index);
            let nodes = encoded(|out| encode_nodes(out, id, total, &[told]));
            let packet = tester.write(&nodes);
            rig.deliver(tester.addr, &packet);
        }
        let asked = rig.engine.calls.len();
        assert_eq!(
            found(&mut rig).0.len(),
            taken + 1,
            "total {total}: the nodes in the answer and the one asked"
        );
        assert_eq!(rig.counters().responses_unsolicited, 7 - taken as u64, "total {total}");
        assert!(asked > 0, "the lookup goes on with them");
    }
}

#[test]
fn an_incomplete_answer_counts_as_far_as_it_came() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::reachable(1, THEM);
    tester.meet(&mut rig);
    let (id, distances) = lookup(&mut rig, &mut tester, 1);
    let told = node_at(&tester.id(), &distances, "7.7.7.7:30303", 1);
    let packet = tester.write(&encoded(|out| encode_nodes(out, id, 3, std::slice::from_ref(&told))));
    rig.deliver(tester.addr, &packet);
    rig.advance(TIMEOUT);
    assert!(found(&mut rig).0.contains(&told));
}

#[test]
fn records_are_checked_before_they_are_believed() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::reachable(1, THEM);
    tester.meet(&mut rig);
    rig.restrict(all_but("6.6.6.6"));
    let (id, distances) = lookup(&mut rig, &mut tester, 1);
    let mut seed = 0;
    let mut at = |at: &str| {
        seed += 1;
        node_at(&tester.id(), &distances, at, seed)
    };
    let good = at("7.7.7.7:30303");
    let other_distances: Vec<u64> = (200..=256).filter(|distance| !distances.contains(distance)).collect();
    let bad = [
        at("192.168.1.1:30303"), // private, from a public teller
        at("127.0.0.1:30303"),
        at("224.0.0.1:30303"),
        at("7.7.7.8:1024"),  // low port
        at("6.6.6.6:30303"), // forbidden
        node_at(&tester.id(), &other_distances, "7.7.7.9:30303", 99),
        good.clone(), // twice
    ];
    let nowhere = {
        let fits = |key: &NodeKey| distances.contains(&u64::from(log_distance(&tester.id(), &key.id())));
        record(&(5000..).map(key).find(fits).unwrap(), 1, None)
    };
    for records in [&[good.clone(), nowhere][..], &bad] {
        let packet = tester.write(&encoded(|out| encode_nodes(out, id, 2, records)));
        rig.deliver(tester.addr, &packet);
    }
    let (records, _) = found(&mut rig);
    assert_eq!(records, [tester.record.clone(), good.clone()]);
    assert_eq!(rig.counters().records_refused, 8);
}

#[test]
fn a_forged_record_is_not_believed() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::reachable(1, THEM);
    tester.meet(&mut rig);
    let (id, distances) = lookup(&mut rig, &mut tester, 1);
    let forged = node_at(&tester.id(), &distances, "7.7.1.7:30303", 9);
    let mut raw = encoded(|out| encode_nodes(out, id, 1, std::slice::from_ref(&forged)));
    let position = raw.len() - forged.encoded().len() + 20;
    raw[position] ^= 1;
    let packet = tester.write(&raw);
    rig.deliver(tester.addr, &packet);
    assert_eq!(found(&mut rig).0, [tester.record.clone()]);
    assert_eq!(rig.counters().records_refused, 1);
}

#[test]
fn a_higher_sequence_number_makes_us_fetch_the_record() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::reachable(1, THEM);
    tester.meet(&mut rig);
    let newer = record(&tester.key, 9, Some(tester.addr));
    let mut asked_zero = false;
    for _ in 0..600 {
        for (_, bytes) in rig.advance(Duration::from_millis(100)) {
            let Got::Message(request) = tester.read(&bytes) else { panic!("not in the session") };
            let answer = match Message::decode(&request) {
                Ok(Message::Ping(ping)) => {
                    let pong = Pong { id: ping.id, enr_seq: 9, recipient: addr("9.9.9.9:1234") };
                    encoded(|out| pong.encode(out))
                }
                Ok(Message::FindNode(find)) => {
                    asked_zero |= find.distances().eq([0]);
                    encoded(|out| encode_nodes(out, find.id, 1, std::slice::from_ref(&newer)))
                }
                other => panic!("unexpected {other:?}"),
            };
            let packet = tester.write(&answer);
            rig.engine.handle_datagram(rig.now, tester.addr, &packet);
        }
    }
    assert!(asked_zero);
    assert_eq!(rig.engine.table().get(&tester.id()).unwrap().contact.record, Some(newer));
    let actions = rig.take_actions();
    let statement = Action::EndpointStatement {
        by: tester.id(),
        from: tester.addr.ip(),
        sees_us_at: addr("9.9.9.9:1234"),
    };
    assert!(actions.contains(&statement));
    assert!(actions.iter().any(|action| matches!(action, Action::Persist { checks, .. } if *checks > 1)));
}

/// Two nodes begin at the same moment, each with a packet that the other cannot read.
#[test]
fn both_sides_begin_at_once() {
    let (now, keys) = (start(), [key(0), key(1)]);
    let ends = [addr(US), addr(THEM)];
    let mut engines = [0, 1].map(|index: usize| {
        let record = record(&keys[index], 1, Some(ends[index]));
        Engine::new(now, Config::default(), keys[index].clone(), record, StdRng::seed_from_u64(index as u64))
    });
    for index in [0, 1] {
        let other = contact(&keys[1 - index], &ends[1 - index].to_string());
        engines[index].ping(now, QueryId(index as u64), &other).unwrap();
    }
    // Rounds: all that was sent in one arrives in the next, so that everything crosses.
    for _ in 0..6 {
        let mut flying = Vec::new();
        for (index, engine) in engines.iter_mut().enumerate() {
            let mut out = BytesMut::new();
            while engine.poll_transmit(now, &mut out).is_some() {
                flying.push((1 - index, ends[index], out.split()));
            }
        }
        for (to, from, bytes) in flying {
            engines[to].handle_datagram(now, from, &bytes);
        }
    }
    for (index, engine) in engines.iter_mut().enumerate() {
        let mut results = std::iter::from_fn(|| engine.poll_action());
        let ok = |action: Action| matches!(action, Action::PingResult { query, pong: Ok(_) } if query.0 == index as u64);
        assert!(results.any(ok), "end {index}");
    }
}
