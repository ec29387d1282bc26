//! The open connection: messages, pings, back-pressure, silence and leaving.

use super::*;
use crate::p2p::intake::MAX_BACKLOG_MESSAGES;

const ETH: &[(&str, u32, u64)] = &[("eth", 69, 18)];

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn messages_keep_their_order_and_their_channel() {
    let mut lab = Lab::open(&[("eth", 69, 18), ("snap", 1, 8)]);
    for at in 0..20_u8 {
        lab.say(if at % 2 == 0 { 0x10 } else { 0x22 } + u64::from(at % 3), &[at; 300]);
    }
    for (at, message) in (0..20_u8).zip(lab.messages()) {
        let Inbound { channel, code, payload, .. } = message;
        assert_eq!((channel.0, code), (u16::from(at % 2), u64::from(at % 3)));
        assert_eq!(payload, [at; 300][..]);
    }
    for at in 0..20_u8 {
        lab.engine.send(ChannelIndex(u16::from(at % 2)), u64::from(at % 3), &compressed(&[at])).unwrap();
    }
    for at in 0..20_u8 {
        let expected = if at % 2 == 0 { 0x10 } else { 0x22 } + u64::from(at % 3);
        assert_eq!(lab.hear(), Some((expected, vec![at])));
    }
    let written = lab.actions();
    assert!(matches!(written[..], [Action::Written { messages: 20, wire_bytes: 1280 }]), "{written:?}");
}

#[test]
fn what_cannot_be_sent_is_refused_with_its_reason() {
    let mut lab = Lab::greeted(ETH);
    assert_eq!(lab.engine.send(ChannelIndex(0), 0, &compressed(b"x")), Err(SendError::NotOpen));
    let mut lab = Lab::open(ETH);
    let message = compressed(b"x");
    assert_eq!(
        lab.engine.send(ChannelIndex(1), 0, &message),
        Err(SendError::UnknownChannel(ChannelIndex(1)))
    );
    let refused = lab.engine.send(ChannelIndex(0), 18, &message);
    assert_eq!(refused, Err(SendError::CodeOutOfRange { code: 18, message_count: 18 }));
    lab.engine.disconnect(lab.now, DisconnectReason::Quitting);
    assert_eq!(lab.engine.send(ChannelIndex(0), 0, &message), Err(SendError::NotOpen));
}

/// A peer that stops reading: the queue fills to its bound, further messages are refused, nothing waits.
#[test]
fn a_peer_that_does_not_read() {
    let mut node = LocalNode::new(key(1), "devp2pd/test");
    node.outbound_limit = 10_000;
    let mut lab = Lab::with(Arc::new(node));
    lab.greet(ETH);
    lab.say_hello(ETH);
    lab.engine.open(lab.now);
    let message = compressed(&[7; 100]);
    let accepted = (0..10_000).take_while(|_| lab.engine.send(ChannelIndex(0), 0, &message).is_ok()).count();
    assert!(lab.engine.queued() <= 10_000 && accepted > 50, "{accepted}");
    let refused = lab.engine.send(ChannelIndex(0), 0, &message);
    assert!(matches!(refused, Err(SendError::Full { limit: 10_000, .. })));
    // Nobody drains; we leave; after a second that is over, and the loss is told.
    lab.actions();
    lab.engine.disconnect(lab.now, DisconnectReason::Requested);
    assert_eq!(lab.run_to_deadline(), CLOSE_TIMEOUT);
    let last = Action::Closed { by: Side::Local, reason: None, fault: None, unsent: accepted };
    assert_eq!(lab.actions(), [last]);
}

/// One call fills the caller's buffer to its bound and not much further, whatever waits.
#[test]
fn transmit_is_bounded() {
    let mut lab = Lab::open(ETH);
    let mut noise = vec![0; 1000];
    rand::RngCore::fill_bytes(&mut StdRng::seed_from_u64(5), &mut noise);
    let message = compressed(&noise);
    for _ in 0..1000 {
        lab.engine.send(ChannelIndex(0), 0, &message).unwrap();
    }
    let (mut calls, mut total, mut out) = (0, 0, BytesMut::new());
    while lab.engine.poll_transmit(lab.now, &mut out) {
        assert!(out.len() < 64 * 1024 + 1100);
        calls += 1;
        total += out.len();
        out.clear();
    }
    assert!((15..18).contains(&calls), "{calls}");
    let written = lab.actions();
    assert_eq!(written, [Action::Written { messages: 1000, wire_bytes: total }]);
}

#[test]
fn pings_go_out_and_pongs_are_timed() {
    let mut lab = Lab::open(ETH);
    assert_eq!(lab.run_to_deadline(), seconds(15));
    assert_eq!(lab.hear(), Some((code::PING, vec![0xc0])));
    lab.wait(Duration::from_millis(40));
    lab.say(code::PONG, &[0xc0]);
    assert_eq!(lab.actions(), [Action::RoundTrip(Duration::from_millis(40))]);
    lab.say(code::PONG, &[0xc0]);
    assert_eq!(lab.actions(), [], "nobody asked for this one");
    assert_eq!(lab.engine.counters().base_ignored, 1);
    lab.say(code::PING, &[0xc0]);
    assert_eq!(lab.hear(), Some((code::PONG, vec![0xc0])));
}

/// Ten thousand pings before we write once: a bounded number of pongs, everything counted, the connection stays.
#[test]
fn a_ping_flood() {
    let mut lab = Lab::open(ETH);
    for _ in 0..10_000 {
        lab.say(code::PING, &[0xc0]);
    }
    let pongs = std::iter::from_fn(|| lab.hear()).filter(|(code, _)| *code == code::PONG).count();
    assert_eq!(pongs, 16);
    assert_eq!(lab.engine.counters().pings_unanswered, 10_000 - 16);
    assert_eq!(lab.actions(), []);
    lab.say(code::PING, &[]);
    assert_eq!(lab.hear(), Some((code::PONG, vec![0xc0])), "an empty payload is a ping too");
}

#[test]
fn a_second_hello_and_unknown_base_codes_are_tolerated() {
    let mut lab = Lab::open(ETH);
    lab.say_hello(&[("other", 1, 1)]);
    for code in 0x04..0x10 {
        lab.say(code, &[0xc0]);
    }
    assert_eq!(lab.actions(), []);
    assert_eq!(lab.hear(), None);
    assert_eq!(lab.engine.counters().base_ignored, 13);
}

#[test]
fn silence_ends_the_connection() {
    let mut lab = Lab::open(ETH);
    assert_eq!(lab.run_to_deadline(), seconds(15));
    assert_eq!(lab.hear(), Some((code::PING, vec![0xc0])));
    lab.wait(seconds(14));
    lab.engine.handle_timeout(lab.now);
    assert_eq!(lab.actions(), []);
    assert_eq!(lab.run_to_deadline(), seconds(1));
    // The second ping was due at the same moment; a peer that is left is not pinged.
    lab.expect_fault(Fault::Silence);
}

/// Any frame is a sign of life, not only a pong.
#[test]
fn a_peer_that_talks_is_not_left() {
    let mut lab = Lab::open(ETH);
    for _ in 0..20 {
        lab.wait(seconds(29));
        lab.engine.handle_timeout(lab.now);
        lab.say(0x10, b"still here");
        assert_eq!(lab.messages().len(), 1);
        lab.engine.poll_transmit(lab.now, &mut BytesMut::new());
        lab.engine.handle_written(lab.now, false);
    }
}

/// A frame that has begun has 30 seconds, however its bytes are spread.
#[test]
fn a_trickling_frame() {
    let mut lab = Lab::open(ETH);
    let mut frame = BytesMut::new();
    lab.peer.writer.write(0x10, &[0; 100], &mut frame).unwrap();
    lab.wait(seconds(10));
    for at in 0..30 {
        lab.received.extend_from_slice(&frame.split_to(2));
        lab.engine.handle_bytes(lab.now, &mut lab.received);
        lab.engine.handle_timeout(lab.now);
        assert_eq!(lab.actions(), [], "after {at} seconds");
        lab.wait(seconds(1));
    }
    assert_eq!(lab.engine.missing(lab.received.len()), frame.len());
    lab.engine.handle_timeout(lab.now);
    lab.engine.poll_transmit(lab.now, &mut lab.heard);
    let last = closed(Side::Local, DisconnectReason::ReadTimeout, Some(Fault::FrameTimeout));
    assert_eq!(lab.actions(), [last]);
}

/// A connection that is held for an application is not read, is pinged, and goes on where it stopped.
#[test]
fn back_pressure_stops_reading_not_pinging() {
    let mut lab = Lab::open(ETH);
    lab.say(0x10, b"does not fit");
    let mut full = Queue::default();
    lab.engine.deliver(lab.now, &mut full);
    assert!(!lab.engine.wants_bytes() && lab.engine.hold().is_some());
    lab.say(0x10, b"waits");
    let waiting = lab.received.len();
    let mut pings = Vec::new();
    for second in 1..=100 {
        lab.wait(seconds(1));
        lab.engine.handle_timeout(lab.now);
        lab.engine.deliver(lab.now, &mut full);
        assert_eq!(lab.actions(), []);
        while let Some(heard) = lab.hear() {
            assert_eq!(heard, (code::PING, vec![0xc0]));
            pings.push(second);
        }
    }
    let expected: Vec<_> = (0..8).map(|round| 1 + 13 * round).collect();
    assert_eq!(pings, expected, "once to ask for a Pong, which does not come, then to keep the peer");
    assert_eq!(lab.received.len(), waiting);
    assert_eq!(lab.messages().len(), 1);
    assert!(lab.engine.is_behind());
    lab.engine.handle_bytes(lab.now, &mut lab.received);
    assert_eq!(lab.messages().len(), 1);
    // The peer's silence while it was held is not counted, what was there before is.
    assert_eq!(lab.run_to_deadline(), seconds(7), "the next ping");
    lab.hear();
    assert_eq!(lab.run_to_deadline(), seconds(15));
    lab.hear();
    assert_eq!(lab.run_to_deadline(), seconds(8));
    lab.expect_fault(Fault::Silence);
}

/// What was read and not taken is bounded in bytes and in number.
#[test]
fn an_idle_driver_stops_the_reading() {
    for (len, most) in [(100_000, 11), (1, MAX_BACKLOG_MESSAGES)] {
        let mut lab = Lab::open(ETH);
        let message = compressed(&vec![1; len]);
        for _ in 0..2000 {
            lab.peer.writer.write(0x10, message.as_bytes(), &mut lab.received).unwrap();
        }
        lab.engine.handle_bytes(lab.now, &mut lab.received);
        assert!(!lab.engine.wants_bytes() && !lab.engine.is_behind());
        let before = lab.received.len();
        lab.engine.handle_bytes(lab.now, &mut lab.received);
        assert_eq!(lab.received.len(), before);
        // Silence does not count meanwhile.
        lab.wait(seconds(100));
        lab.engine.handle_timeout(lab.now);
        assert_eq!(lab.actions(), []);
        let mut messages = lab.messages().len();
        assert_eq!(messages, most);
        while lab.engine.is_behind() {
            lab.engine.handle_bytes(lab.now, &mut lab.received);
            messages += lab.messages().len();
        }
        assert_eq!(messages, 2000);
        assert!(lab.engine.wants_bytes());
    }
}

/// A socket that takes nothing while something waits, and one that is gone for writing only.
#[test]
fn a_peer_that_reads_nothing() {
    let mut lab = Lab::open(ETH);
    lab.engine.send(ChannelIndex(0), 0, &compressed(b"waits")).unwrap();
    lab.engine.poll_transmit(lab.now, &mut lab.heard);
    lab.wait(seconds(15));
    lab.engine.handle_written(lab.now, true);
    for _ in 0..19 {
        lab.wait(seconds(1));
        lab.say(0x10, b"writes, though");
        lab.messages();
        lab.engine.handle_timeout(lab.now);
        lab.engine.poll_transmit(lab.now, &mut lab.heard);
    }
    assert!(lab.engine.is_open());
    lab.wait(seconds(1));
    lab.engine.handle_timeout(lab.now);
    lab.engine.poll_transmit(lab.now, &mut lab.heard);
    let last = closed(Side::Local, DisconnectReason::ReadTimeout, Some(Fault::WriteTimeout));
    assert_eq!(lab.actions().last(), Some(&last));

    let mut lab = Lab::open(ETH);
    lab.engine.handle_write_error(lab.now);
    lab.say(0x10, b"was under way");
    assert!(lab.engine.wants_bytes(), "it is read to its end");
    assert_eq!(lab.messages().len(), 1);
    lab.engine.send(ChannelIndex(0), 0, &compressed(b"too late")).unwrap();
    assert!(!lab.engine.poll_transmit(lab.now, &mut lab.heard));
    lab.engine.disconnect(lab.now, DisconnectReason::Requested);
    assert_eq!(lab.actions(), [Action::Closed { by: Side::Local, reason: None, fault: None, unsent: 1 }]);
}

/// A message that waits for room when the connection ends is delivered all the same.
#[test]
fn what_was_read_before_the_end_is_delivered() {
    let mut lab = Lab::open(ETH);
    lab.say(0x10, b"does not fit");
    let mut queue = Queue::default();
    lab.engine.deliver(lab.now, &mut queue);
    lab.engine.disconnect(lab.now, DisconnectReason::Quitting);
    lab.engine.deliver(lab.now, &mut queue);
    assert!(queue.taken.is_empty());
    lab.engine.deliver_last(lab.now, &mut queue);
    assert_eq!(queue.taken.len(), 1);
}

#[test]
fn disconnect_is_answered_by_nothing() {
    for payload in
        [&[0xc1, 0x03][..], &[0x03], compressed(&[0x03]).as_bytes(), compressed(&[0xc1, 3]).as_bytes()]
    {
        let mut lab = Lab::open(ETH);
        lab.engine.send(ChannelIndex(0), 0, &compressed(b"too late")).unwrap();
        lab.say_raw(code::DISCONNECT, payload);
        assert_eq!(lab.hear(), None);
        let reason = Some(DisconnectReason::UselessPeer);
        assert_eq!(lab.actions(), [Action::Closed { by: Side::Remote, reason, fault: None, unsent: 1 }]);
        assert_eq!(lab.engine.poll_timeout(), None);
    }
}

#[test]
fn leaving_flushes_what_was_accepted() {
    let mut lab = Lab::open(ETH);
    lab.engine.send(ChannelIndex(0), 3, &compressed(b"last words")).unwrap();
    lab.engine.disconnect(lab.now, DisconnectReason::Quitting);
    lab.engine.disconnect(lab.now, DisconnectReason::TooManyPeers);
    assert_eq!(lab.actions(), [], "not closed before that is written");
    assert_eq!(lab.hear(), Some((0x13, b"last words".to_vec())));
    assert_eq!(lab.hear(), Some((code::DISCONNECT, vec![0xc1, 0x08])), "the first reason counts");
    let actions = lab.actions();
    assert!(matches!(actions[0], Action::Written { messages: 1, .. }));
    assert_eq!(actions[1..], [closed(Side::Local, DisconnectReason::Quitting, None)]);
}

#[test]
fn the_socket_ends() {
    let eof = |by, fault, unsent| Action::Closed { by, reason: None, fault, unsent };
    let mut lab = Lab::open(ETH);
    lab.engine.send(ChannelIndex(0), 0, &compressed(b"unsent")).unwrap();
    lab.engine.handle_eof();
    lab.engine.handle_eof();
    assert_eq!(lab.actions(), [eof(Side::Remote, None, 1)]);
    // It ended before our Hello left: nothing is written to a socket that is gone.
    let mut lab = Lab::authenticated();
    lab.engine.greet(lab.now, &capabilities(ETH));
    lab.engine.handle_eof();
    assert!(!lab.engine.poll_transmit(lab.now, &mut lab.heard));
    // It ended while we were about to say why we leave.
    let mut lab = Lab::open(ETH);
    lab.say_raw(0x50, &[]);
    lab.engine.handle_eof();
    assert_eq!(lab.actions(), [eof(Side::Local, Some(Fault::CodeOutOfRange { code: 0x50 }), 0)]);
}
