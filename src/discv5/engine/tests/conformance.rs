//! The seven cases of go-ethereum's `devp2p discv5 test` (cmd/devp2p/internal/v5test), as scripts.

use super::*;
use crate::{
    discv5::message::{Pong, TalkRequest, encode_findnode},
    kademlia::distance::log_distance,
};

const US: &str = "127.0.0.1:30303";
const LISTEN1: &str = "127.0.0.1:40001";
const LISTEN2: &str = "127.0.0.2:40002";

#[test]
fn ping() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, LISTEN1);
    let (id, ping) = tester.ping();
    let packet = tester.write(&ping);
    let sent = rig.deliver(tester.addr, &packet);
    let Got::Challenge { nonce, seq, data } = tester.read_one(&sent) else { panic!("no WHOAREYOU") };
    assert_eq!((nonce, seq), (tester.last_nonce, 0), "our nonce, and no record known");
    let packet = tester.handshake(&data, seq, &ping);
    let sent = rig.deliver(tester.addr, &packet);
    let Got::Message(pong) = tester.read_one(&sent) else { panic!("no PONG") };
    let Ok(Message::Pong(pong)) = Message::decode(&pong) else { panic!("no PONG") };
    assert_eq!(pong, Pong { id, enr_seq: 7, recipient: tester.addr });
    // In the session no challenge is needed.
    let (id, ping) = tester.ping();
    let packet = tester.write(&ping);
    let sent = rig.deliver(tester.addr, &packet);
    let Got::Message(pong) = tester.read_one(&sent) else { panic!("no PONG") };
    assert!(matches!(Message::decode(&pong), Ok(Message::Pong(pong)) if pong.id == id));
}

#[test]
fn ping_large_request_id() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, LISTEN1);
    // A PING whose request id has nine bytes.
    let ping = [&[0x01, 0xcb, 0x89][..], &[0; 9], &[0x01]].concat();
    assert_eq!(tester.ask(&mut rig, &ping), Vec::<Vec<u8>>::new());
    assert_eq!(rig.counters().messages_malformed, 1);
}

#[test]
fn ping_multi_ip() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, LISTEN1);
    tester.meet(&mut rig);
    // The session is not valid at another address …
    tester.addr = addr(LISTEN2);
    let (_, ping) = tester.ping();
    let packet = tester.write(&ping);
    let sent = rig.deliver(tester.addr, &packet);
    let Got::Challenge { seq, data, .. } = tester.read_one(&sent) else { panic!("no WHOAREYOU") };
    let packet = tester.handshake(&data, seq, &ping);
    let sent = rig.deliver(tester.addr, &packet);
    let Got::Message(pong) = tester.read_one(&sent) else { panic!("no PONG") };
    let Ok(Message::Pong(pong)) = Message::decode(&pong) else { panic!("no PONG") };
    assert_eq!(pong.recipient, addr(LISTEN2));
    // … and the new one not at the first.
    tester.addr = addr(LISTEN1);
    let packet = tester.write(&ping);
    let sent = rig.deliver(tester.addr, &packet);
    assert!(matches!(tester.read_one(&sent), Got::Challenge { .. }));
}

#[test]
fn handshake_resend() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, LISTEN1);
    let packet = tester.write(&[]);
    let first = rig.deliver(tester.addr, &packet);
    rig.now = rig.now.after(Duration::from_millis(900));
    let packet = tester.write(&[]);
    let second = rig.deliver(tester.addr, &packet);
    assert_eq!(first, second, "byte for byte");
    assert!(matches!(tester.read_one(&first), Got::Challenge { .. }));
    // Its second over, there is a new one.
    rig.now = rig.now.after(Duration::from_millis(100));
    let packet = tester.write(&[]);
    assert_ne!(rig.deliver(tester.addr, &packet), first);
    assert_eq!((rig.counters().challenges_sent, rig.counters().challenges_repeated), (2, 1));
}

#[test]
fn talk_request() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, LISTEN1);
    for id in [RequestId::new(&[0, 0, 0, 1]).unwrap(), RequestId::default()] {
        let request = encoded(|out| TalkRequest { id, protocol: b"test-protocol", request: b"" }.encode(out));
        let answers = tester.ask(&mut rig, &request);
        let Ok(Message::TalkResponse(talk)) = Message::decode(&answers[0]) else { panic!("no TALKRESP") };
        assert_eq!((talk.id, talk.response), (id, &b""[..]));
    }
    assert_eq!(rig.counters().talk_unknown, 2);
}

/// Asks for `distances` and returns the nodes of the answer, and its number of packets.
fn find(tester: &mut Tester, rig: &mut Rig, distances: &[u16]) -> (Vec<Record>, u64) {
    let id = tester.request_id();
    let answers = tester.ask(rig, &encoded(|out| encode_findnode(out, id, distances)));
    let mut records = Vec::new();
    for answer in &answers {
        let Ok(Message::Nodes(nodes)) = Message::decode(answer) else { panic!("no NODES") };
        assert_eq!((nodes.id, nodes.total), (id, answers.len() as u64));
        records.extend(nodes.records().map(|raw| Record::decode(raw).unwrap()));
    }
    (records, answers.len() as u64)
}

#[test]
fn findnode_zero_distance() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, LISTEN1);
    let own = rig.engine.wire.record().clone();
    assert_eq!(find(&mut tester, &mut rig, &[0]), (vec![own.clone()], 1));
    assert_eq!(find(&mut tester, &mut rig, &[0, 0, 300]), (vec![own], 1), "once, and 300 is no distance");
    assert_eq!(find(&mut tester, &mut rig, &[256, 255]), (vec![], 1), "no node, in one packet");
}

#[test]
fn findnode_results() {
    let mut rig = Rig::new(US);
    let mut bystanders: Vec<Tester> =
        (10..15).map(|seed| Tester::reachable(seed, &format!("127.0.0.1:{}", 41_000 + seed))).collect();
    bystanders.iter_mut().for_each(|bystander| bystander.meet(&mut rig));
    let mut distances: Vec<u16> =
        bystanders.iter().map(|bystander| log_distance(&rig.contact().id, &bystander.id())).collect();
    distances.dedup();

    let mut tester = Tester::new(1, LISTEN1);
    assert_eq!(find(&mut tester, &mut rig, &distances).0, [], "a node that was not checked is in no answer");

    // Each answers its PINGs for a minute.
    let mut pinged = std::collections::HashSet::new();
    for _ in 0..600 {
        for (to, bytes) in rig.advance(Duration::from_millis(100)) {
            let Some(bystander) = bystanders.iter_mut().find(|bystander| bystander.addr == to) else {
                panic!("a packet to {to}, which has no address in its record");
            };
            let Got::Message(request) = bystander.read(&bytes) else { panic!("the session is known") };
            let pong = match Message::decode(&request) {
                Ok(Message::Ping(ping)) => {
                    pinged.insert(bystander.id());
                    let pong = Pong { id: ping.id, enr_seq: 1, recipient: addr(US) };
                    encoded(|out| pong.encode(out))
                }
                Ok(Message::FindNode(find)) => {
                    encoded(|out| crate::discv5::message::encode_nodes(out, find.id, 1, &[]))
                }
                other => panic!("unexpected {other:?}"),
            };
            let packet = bystander.write(&pong);
            rig.engine.handle_datagram(rig.now, to, &packet);
        }
    }
    assert_eq!(pinged.len(), 5, "all within 60 s");
    let (mut found, _) = find(&mut tester, &mut rig, &distances);
    let mut expected: Vec<Record> = bystanders.iter().map(|bystander| bystander.record.clone()).collect();
    found.sort_by_key(Record::id);
    expected.sort_by_key(Record::id);
    assert_eq!(found, expected);
}
