//! Bad input, row by row: which packets are dropped, which are answered, and that each is counted.

use super::*;
use crate::{
    discv5::{
        challenge::LIFETIME,
        message::{Pong, encode_nodes},
    },
    kademlia,
};

const US: &str = "9.9.9.9:30303";
const THEM: &str = "8.8.8.8:30303";

/// A challenged tester: the data of its challenge.
fn challenged(rig: &mut Rig, tester: &mut Tester) -> (ChallengeData, u64) {
    let packet = tester.write(&[]);
    let sent = rig.deliver(tester.addr, &packet);
    match tester.read_one(&sent) {
        Got::Challenge { data, seq, .. } => (data, seq),
        got => panic!("no WHOAREYOU but {got:?}"),
    }
}

#[test]
fn noise_and_malformed_packets_are_counted_and_unanswered() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, THEM);
    let mut noise = vec![0; 1280];
    tester.rng.fill_bytes(&mut noise);
    for length in [0, 62, 63, 100, 1280] {
        assert!(rig.deliver(tester.addr, &noise[..length]).is_empty());
    }
    assert_eq!(rig.counters().noise, 5);
    // In our own name, and from port 0.
    let packet = tester.write(&[]);
    assert!(rig.deliver(addr("8.8.8.8:0"), &packet).is_empty());
    tester.key = key(0);
    let packet = tester.write(&[]);
    assert!(rig.deliver(tester.addr, &packet).is_empty());
    assert_eq!(rig.counters().malformed, 2);
}

#[test]
fn one_handshake_per_challenge_whether_good_or_bad() {
    type Spoil = fn(&mut Tester, &ChallengeData) -> Vec<u8>;
    let spoiled: [(&str, Spoil); 7] = [
        ("no record, and none known", |tester, data| tester.handshake_with(data, &[], &[1])),
        ("another node's record", |tester, data| {
            let other = record(&key(77), 9, None);
            tester.handshake_with(data, other.encoded(), &[1])
        }),
        ("a record that is none", |tester, data| tester.handshake_with(data, &[0xc0; 100], &[1])),
        ("a forged signature of the record", |tester, data| {
            let mut forged = tester.record.encoded().to_vec();
            forged[10] ^= 1;
            tester.handshake_with(data, &forged, &[1])
        }),
        ("a proof for another challenge", |tester, data| {
            let mut other = *data;
            other[50] ^= 1;
            let record = tester.record.encoded().to_vec();
            tester.handshake_with(&other, &record, &[1])
        }),
        ("a record of 301 bytes", |tester, data| tester.handshake_with(data, &[0xf9; 301], &[1])),
        ("a message that cannot be opened", |tester, data| {
            let mut packet = tester.handshake(data, 0, &[1, 2, 3]);
            let last = packet.len() - 1;
            packet[last] ^= 1;
            packet
        }),
    ];
    for (index, (why, spoil)) in spoiled.into_iter().enumerate() {
        let mut rig = Rig::new(US);
        let mut tester = Tester::new(1 + index as u64, THEM);
        let (data, seq) = challenged(&mut rig, &mut tester);
        let packet = spoil(&mut tester, &data);
        assert!(rig.deliver(tester.addr, &packet).is_empty(), "{why}");
        let failed = rig.counters().handshakes_failed + rig.counters().malformed;
        assert_eq!((failed, rig.engine.wire.sessions().len()), (1, (0, 0)), "{why}");
        // The challenge is used up: a good answer comes too late. Only a packet that never was a handshake leaves it.
        let (_, ping) = tester.ping();
        let packet = tester.handshake(&data, seq, &ping);
        let answers = rig.deliver(tester.addr, &packet).len() as u64;
        assert_eq!(answers, rig.counters().malformed, "{why}");
        assert_eq!(rig.counters().handshakes_unexpected + answers, 1, "{why}");
    }
}

#[test]
fn handshakes_need_a_living_challenge_at_this_endpoint() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, THEM);
    let (_, ping) = tester.ping();
    let packet = tester.handshake(&[0; 63], 0, &ping);
    assert!(rig.deliver(tester.addr, &packet).is_empty(), "never challenged");
    let (data, seq) = challenged(&mut rig, tester.reset());
    let packet = tester.handshake(&data, seq, &ping);
    assert!(rig.deliver(addr("8.8.8.8:30304"), &packet).is_empty(), "another endpoint");
    rig.now = rig.now.after(LIFETIME);
    assert!(rig.deliver(tester.addr, &packet).is_empty(), "too late");
    assert_eq!(rig.counters().handshakes_unexpected, 3);

    // A good one works once, and its repetition not at all.
    let (data, seq) = challenged(&mut rig, tester.reset());
    let packet = tester.handshake(&data, seq, &ping);
    assert_eq!(rig.deliver(tester.addr, &packet).len(), 1);
    assert!(rig.deliver(tester.addr, &packet).is_empty(), "replayed");
    assert_eq!((rig.counters().handshakes_accepted, rig.counters().handshakes_unexpected), (1, 4));
}

impl Tester {
    fn reset(&mut self) -> &mut Self {
        self.session = None;
        self
    }
}

#[test]
fn a_known_record_may_be_left_out_and_an_old_one_changes_nothing() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::reachable(1, THEM);
    tester.record = record(&tester.key, 5, Some(tester.addr));
    tester.meet(&mut rig);
    let (data, seq) = challenged(&mut rig, tester.reset());
    assert_eq!(seq, 5, "the challenge has the sequence number of our record");
    let (_, ping) = tester.ping();
    let packet = tester.handshake_with(&data, &[], &ping);
    assert_eq!(rig.deliver(tester.addr, &packet).len(), 1);
    let (data, _) = challenged(&mut rig, tester.reset());
    let old = record(&tester.key, 4, None);
    let packet = tester.handshake_with(&data, old.encoded(), &ping);
    assert_eq!(rig.deliver(tester.addr, &packet).len(), 1);
    let (_, seq) = challenged(&mut rig, tester.reset());
    assert_eq!(seq, 5);
}

#[test]
fn unknown_and_malformed_messages_are_not_answered() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, THEM);
    tester.meet(&mut rig);
    for kind in [0x00, 0x07, 0x08, 0x09, 0x0a, 0xff] {
        assert!(tester.ask(&mut rig, &[kind, 0xc2, 0x01, 0x01]).is_empty(), "{kind:#04x}");
    }
    assert!(tester.ask(&mut rig, &[]).is_empty());
    assert!(tester.ask(&mut rig, &[0x01]).is_empty());
    let counters = rig.counters();
    assert_eq!((counters.messages_unknown, counters.messages_malformed), (6, 2));
    tester.meet(&mut rig);
}

#[test]
fn responses_that_nobody_asked_for_change_nothing() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::reachable(1, THEM);
    tester.meet(&mut rig);
    let told = record(&key(50), 1, Some(addr("7.7.7.7:30303")));
    let id = RequestId::from_u64(5);
    let pong = encoded(|out| Pong { id, enr_seq: 99, recipient: addr(US) }.encode(out));
    let nodes = encoded(|out| encode_nodes(out, id, 1, std::slice::from_ref(&told)));
    for message in [&pong, &nodes] {
        assert!(tester.ask(&mut rig, message).is_empty());
    }
    assert_eq!(rig.counters().responses_unsolicited, 2);
    assert!(rig.engine.table().get(&told.id()).is_none());

    // While a request is under way: wrong id, wrong type, wrong endpoint.
    let (result, sent) = rig.command(|engine, now| engine.ping(now, QueryId(1), &tester.contact()));
    result.unwrap();
    let Got::Message(ping) = tester.read_one(&sent) else { panic!("in the session") };
    let Ok(Message::Ping(ping)) = Message::decode(&ping) else { panic!("no PING") };
    assert!(tester.ask(&mut rig, &pong).is_empty());
    let wrong_type = encoded(|out| encode_nodes(out, ping.id, 1, &[]));
    assert!(tester.ask(&mut rig, &wrong_type).is_empty());
    assert_eq!(rig.counters().responses_unsolicited, 4);
    let right = encoded(|out| Pong { id: ping.id, enr_seq: 1, recipient: addr(US) }.encode(out));
    let at_home = std::mem::replace(&mut tester.addr, addr("8.8.8.8:30399"));
    tester.session = None;
    tester.meet(&mut rig);
    assert!(tester.ask(&mut rig, &right).is_empty());
    assert_eq!(rig.counters().responses_unsolicited, 5);
    assert!(!rig.take_actions().iter().any(|action| matches!(action, Action::PingResult { .. })));
    // From home it counts, once.
    tester.addr = at_home;
    tester.session = None;
    tester.meet(&mut rig);
    assert!(tester.ask(&mut rig, &right).is_empty());
    let results = rig
        .take_actions()
        .into_iter()
        .filter(|action| matches!(action, Action::PingResult { pong: Ok(_), .. }));
    assert_eq!(results.count(), 1);
    assert!(tester.ask(&mut rig, &right).is_empty());
    assert_eq!(rig.counters().responses_unsolicited, 6, "replayed");
}

#[test]
fn who_has_no_address_or_another_one_is_neither_kept_nor_contacted() {
    let mut rig = Rig::new(US);
    let mut nowhere = Tester::new(1, THEM);
    let mut elsewhere = Tester::reachable(2, "8.8.4.4:30303");
    elsewhere.addr = addr("8.8.4.4:30304");
    let mut forbidden = Tester::reachable(3, "7.7.7.7:30303");
    let mut here = Tester::reachable(4, "6.6.6.6:30303");
    rig.restrict(all_but("7.7.7.7"));
    for tester in [&mut nowhere, &mut elsewhere, &mut here] {
        tester.meet(&mut rig);
    }
    assert!(forbidden.ask(&mut rig, &[1]).is_empty());
    assert_eq!((rig.counters().restricted, rig.counters().challenges_sent), (1, 3));
    let table = rig.engine.table();
    assert_eq!(table.len(), 1);
    assert!(table.get(&here.id()).is_some());
    assert!(rig.advance(Duration::from_secs(10)).iter().all(|(to, _)| *to == here.addr));
    let gone = Action::Table(kademlia::Event::Removed(here.contact(), kademlia::Removal::Dead));
    assert!(rig.take_actions().contains(&gone), "it did not answer");
}
