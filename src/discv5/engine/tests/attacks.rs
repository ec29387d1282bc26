//! Floods: memory stays bounded, live sessions go on, and no address is used for amplification.

use super::*;
use crate::discv5::message::encode_findnode;

const US: &str = "9.9.9.9:30303";

#[test]
fn a_flood_from_many_addresses_is_bounded_and_a_live_session_goes_on() {
    let mut rig = Rig::new(US);
    let mut live = Tester::reachable(1, "8.8.8.8:30303");
    live.meet(&mut rig);
    let mut stranger = Tester::new(2, "1.1.1.1:1");
    let (mut received, mut answered) = (0_usize, 0_usize);
    for index in 0..20_000_u32 {
        let ip = std::net::IpAddr::from((index.wrapping_mul(2_654_435_761) | 0x0100_0000).to_be_bytes());
        stranger.addr = SocketAddr::new(ip, 1000);
        let packet = stranger.write(&[]);
        received += packet.len();
        let sent = rig.deliver(stranger.addr, &packet);
        assert!(sent.len() <= 1);
        answered += sent.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        rig.now = rig.now.after(Duration::from_micros(10));
    }
    assert!(answered * 2 < received, "{answered} bytes for {received}");
    assert!(rig.engine.wire.challenges() <= 2 * 2048);
    assert!(rig.counters().challenges_refused > 15_000);
    live.meet(&mut rig);
    assert_eq!(rig.counters().handshakes_accepted, 1, "in the same session");
}

#[test]
fn a_flood_in_a_live_nodes_name_neither_ends_its_session_nor_locks_it_out() {
    let mut rig = Rig::new(US);
    let mut live = Tester::reachable(1, "8.8.8.8:30303");
    live.meet(&mut rig);
    let mut spoofer = Tester::new(1, "8.8.8.8:30303");
    for index in 0..5000_u64 {
        // Its own id, and any other, from its address and its neighbours'.
        spoofer.key = if index % 2 == 0 { key(1) } else { key(1000 + index % 100) };
        spoofer.addr = if index % 3 == 0 { addr("8.8.8.9:1") } else { live.addr };
        let packet = spoofer.write(&[]);
        let sent: usize = rig.deliver(spoofer.addr, &packet).iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(sent <= packet.len());
        rig.now = rig.now.after(Duration::from_micros(100));
    }
    live.meet(&mut rig);
    assert_eq!(rig.counters().handshakes_accepted, 1, "in the same session");
    // It restarts in the middle of the flood, 30 forged packets a second. It accepts only a challenge that names its own
    // packet, and answers after a round trip of 100 ms.
    spoofer.key = key(1);
    let mut met = 0;
    for attempt in 0..20 {
        live.session = None;
        for forged in 0..(3 + attempt % 5) {
            let packet = spoofer.write(&[]);
            rig.deliver(live.addr, &packet);
            rig.now = rig.now.after(Duration::from_millis(33 + forged));
        }
        let (_, ping) = live.ping();
        let packet = live.write(&ping);
        let sent = rig.deliver(live.addr, &packet);
        let Got::Challenge { nonce, seq, data } = live.read_one(&sent) else { panic!("no WHOAREYOU") };
        if nonce != live.last_nonce {
            continue;
        }
        for _ in 0..3 {
            rig.now = rig.now.after(Duration::from_millis(33));
            let packet = spoofer.write(&[]);
            rig.deliver(live.addr, &packet);
        }
        let packet = live.handshake(&data, seq, &ping);
        met += u32::from(rig.deliver(live.addr, &packet).len() == 1);
    }
    assert_eq!(u64::from(met) + 1, rig.counters().handshakes_accepted);
    assert!(met >= 18, "{met} of 20 attempts");
}

/// A session lasts for a day, and nonces are not remembered. So its packets can be replayed, also when the address has
/// another owner.
#[test]
fn requests_in_a_session_have_a_ration() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::reachable(1, "8.8.8.8:30303");
    tester.meet(&mut rig);
    let id = tester.request_id();
    let find = encoded(|out| encode_findnode(out, id, &[0]));
    let packet = tester.write(&find);
    let answered = |rig: &mut Rig, seconds: u32| {
        let mut answered = 0;
        for _ in 0..seconds * 1_000 {
            rig.now = rig.now.after(Duration::from_millis(1));
            answered += rig.deliver(tester.addr, &packet).len();
        }
        answered
    };
    // The PING of the handshake has taken one of the burst of 128, and each FINDNODE takes four.
    assert_eq!(answered(&mut rig, 1), 31 + 8);
    assert_eq!(answered(&mut rig, 10), 80, "8 a second");
    assert_eq!(rig.counters().requests_limited, 11_000 - 39 - 80);
    // Another address of the network has a ration of its own.
    let mut other = Tester::reachable(2, "8.8.8.9:30303");
    other.meet(&mut rig);
}

#[test]
fn handshakes_of_many_identities_on_one_host_are_rationed() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, "8.8.8.8:30303");
    let mut accepted = 0;
    for seed in 0..200 {
        tester.key = key(seed + 10);
        tester.record = record(&tester.key, 1, None);
        tester.session = None;
        let packet = tester.write(&[]);
        let sent = rig.deliver(tester.addr, &packet);
        let [(_, bytes)] = &sent[..] else { continue };
        let Got::Challenge { data, .. } = tester.read(bytes) else { panic!("no WHOAREYOU") };
        let packet = tester.handshake(&data, 0, &[1]);
        rig.deliver(tester.addr, &packet);
        accepted += 1;
    }
    assert_eq!(accepted, 16, "per second and subnet");
    assert_eq!(rig.counters().handshakes_accepted, 16);
    // Loopback is not rationed by subnet: test networks run there.
    tester.addr = addr("127.0.0.1:5");
    for seed in 500..600 {
        tester.key = key(seed);
        tester.record = record(&tester.key, 1, None);
        tester.session = None;
        tester.meet(&mut rig);
    }
}

#[test]
fn what_goes_to_an_unproven_address_is_less_than_what_came_from_it() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, "8.8.8.8:30303");
    let find = encoded(|out| encode_findnode(out, RequestId::from_u64(1), &[0, 256, 255]));
    // Without a session; in another endpoint's session; the shortest packet that is answered; one byte less.
    let mut packets = vec![tester.write(&find)];
    tester.meet(&mut rig);
    tester.addr = addr("8.8.8.8:999");
    packets.push(tester.write(&find));
    packets.push(tester.write(&find)[..87].to_vec());
    packets.push(tester.write(&find)[..86].to_vec());
    for (index, packet) in packets.iter().enumerate() {
        let sent: usize =
            rig.deliver(addr(&format!("7.7.{index}.7:7")), packet).iter().map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(sent, if packet.len() < 87 { 0 } else { 63 }, "{} bytes came", packet.len());
    }
}

#[test]
fn replayed_requests_are_answered_only_where_they_came_from() {
    let mut rig = Rig::new(US);
    let mut tester = Tester::new(1, "8.8.8.8:30303");
    tester.meet(&mut rig);
    let (_, ping) = tester.ping();
    let packet = tester.write(&ping);
    assert_eq!(rig.deliver(tester.addr, &packet).len(), 1);
    // From another address it belongs to no session, and gets a challenge that the replayer cannot answer.
    let sent = rig.deliver(addr("7.7.7.7:7"), &packet);
    assert!(matches!(tester.read(&sent[0].1), Got::Challenge { .. }));
    assert_eq!(rig.engine.wire.sessions().len(), (0, 1));
}
