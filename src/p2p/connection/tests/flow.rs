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
        lab.send(u16::from(at % 2), u64::from(at % 3), &[at]).unwrap();
    }
    for at in 0..20_u8 {
        let expected = if at % 2 == 0 { 0x10 } else { 0x22 } + u64::from(at % 3);
        assert_eq!(lab.hear(), Some((expected, vec![at])));
    }
    assert_eq!(lab.actions(), []);
    assert_eq!(lab.sums(), (10, 0));
}

/// A peer that stops reading: the engine takes as many messages as fit the send buffer. The queue keeps the rest and
/// refuses what does not fit its window. No sender waits.
#[test]
fn a_peer_that_does_not_read() {
    let mut lab = Lab::open(ETH);
    let mut noise = vec![0; 1000];
    rand::RngCore::fill_bytes(&mut StdRng::seed_from_u64(5), &mut noise);
    let accepted = (0..10_000).take_while(|_| lab.send(0, 0, &noise).is_ok()).count() as u64;
    assert_eq!(lab.send(0, 0, &noise), Err(Refused::Full));
    for _ in 0..100 {
        lab.transmit();
    }
    assert!(lab.heard.len() < 64 * 1024 + 1100, "{}", lab.heard.len());
    assert!(lab.queue.waiting().0 > 900, "the rest waits where it is bounded");
    assert_eq!(lab.send(0, 0, &noise), Err(Refused::Full), "what is in the send buffer is not written");
    // The socket takes a part; room returns for whole messages.
    let whole = lab.written(10_000) as u64;
    assert!((8..10).contains(&whole), "{whole}");
    lab.send(0, 0, &noise).unwrap();
    // We disconnect at once: nothing more is pulled, and each message that was not written is counted once.
    lab.engine.disconnect(lab.now, DisconnectReason::Requested);
    lab.queue.close();
    assert!(lab.transmit(), "the reason");
    assert_eq!(lab.actions(), [closed(Side::Local, DisconnectReason::Requested, None)]);
    assert_eq!(lab.sums(), (whole, accepted + 1 - whole));
}

/// The driver never writes the reason: after a second the connection is over without it.
#[test]
fn leaving_a_driver_that_does_not_write() {
    let mut lab = Lab::open(ETH);
    lab.engine.disconnect(lab.now, DisconnectReason::Requested);
    assert_eq!(lab.run_to_deadline(), CLOSE_TIMEOUT);
    assert_eq!(lab.actions(), [Action::Closed { by: Side::Local, reason: None, fault: None }]);
}

/// One call fills the caller's buffer to its bound and little more, however many messages wait.
#[test]
fn transmit_is_bounded() {
    let mut lab = Lab::open(ETH);
    let mut noise = vec![0; 900];
    rand::RngCore::fill_bytes(&mut StdRng::seed_from_u64(5), &mut noise);
    for _ in 0..1000 {
        lab.send(0, 0, &noise).unwrap();
    }
    let (mut calls, mut messages) = (0, 0);
    while lab.transmit() {
        let bytes = lab.heard.len();
        assert!(bytes < 64 * 1024 + 1000);
        calls += 1;
        messages += lab.written(bytes);
        lab.heard.clear();
    }
    assert!((14..17).contains(&calls), "{calls}");
    assert_eq!(messages, 1000);
    assert_eq!(lab.sums(), (1000, 0));
    assert_eq!(lab.actions(), []);
}

/// A source that is over its cap until the given time.
struct Late<'a>(&'a Outbound, Instant);

impl crate::p2p::Source for Late<'_> {
    fn next(&mut self, now: Instant) -> crate::p2p::Next {
        if now < self.1 { crate::p2p::Next::NotBefore(self.1) } else { self.0.next(now) }
    }

    fn appended(&mut self, now: Instant, bytes: usize) {
        self.0.appended(now, bytes);
    }

    fn leaving(&self) -> Option<DisconnectReason> {
        self.0.leaving()
    }
}

/// A cap delays messages, not Pings, and the engine asks to be called when the time is over.
#[test]
fn a_capped_peer_is_slow_but_alive() {
    let mut lab = Lab::open(ETH);
    let queue = Arc::clone(&lab.queue);
    let mut source = Late(&queue, lab.now.mono + seconds(5));
    lab.send(0, 0, b"later").unwrap();
    lab.say(code::PING, &[0xc0]);
    assert!(lab.engine.poll_transmit(lab.now, &mut source, &mut lab.heard), "a Pong");
    assert_eq!(lab.queue.waiting().0, 1);
    lab.written(lab.heard.len());
    assert_eq!(lab.run_to_deadline(), seconds(5));
    assert!(lab.engine.poll_transmit(lab.now, &mut source, &mut lab.heard));
    assert_eq!(lab.queue.waiting().0, 0);
    assert_eq!(lab.run_to_deadline(), seconds(10), "the next Ping");
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
    assert_eq!(lab.actions(), [], "no Ping asked for it");
    assert_eq!(lab.engine.counters().base_ignored, 1);
    lab.say(code::PING, &[0xc0]);
    assert_eq!(lab.hear(), Some((code::PONG, vec![0xc0])));
}

/// Ten thousand Pings before we write once: the Pongs are bounded, all Pings are counted, and the connection stays.
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
    // The second Ping was due at the same moment; a peer that times out is not pinged.
    lab.expect_fault(Fault::Silence);
}

/// Any frame proves that the peer is alive, not only a Pong.
#[test]
fn a_peer_that_talks_is_not_left() {
    let mut lab = Lab::open(ETH);
    for _ in 0..20 {
        lab.wait(seconds(29));
        lab.engine.handle_timeout(lab.now);
        lab.say(0x10, b"still here");
        assert_eq!(lab.messages().len(), 1);
        lab.transmit();
        lab.written(lab.heard.len());
        lab.heard.clear();
    }
}

/// A frame that has begun has 30 seconds in all, however its bytes are spread.
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
    lab.engine.handle_timeout(lab.now);
    lab.transmit();
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
    // The peer's silence while it was held does not count; its silence before that does.
    assert_eq!(lab.run_to_deadline(), seconds(7), "the next ping");
    lab.hear();
    assert_eq!(lab.run_to_deadline(), seconds(15));
    lab.hear();
    assert_eq!(lab.run_to_deadline(), seconds(8));
    lab.expect_fault(Fault::Silence);
}

/// Messages that were read and not delivered are bounded in bytes and in number.
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
        // Silence does not count while reading is stopped.
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

/// A socket that takes nothing while bytes wait, and one that has failed for writing only.
#[test]
fn a_peer_that_reads_nothing() {
    let mut lab = Lab::open(ETH);
    lab.send(0, 0, b"waits").unwrap();
    lab.transmit();
    lab.wait(seconds(15));
    assert_eq!(lab.written(1), 0, "not a whole message");
    for _ in 0..19 {
        lab.wait(seconds(1));
        lab.say(0x10, b"writes, though");
        lab.messages();
        lab.engine.handle_timeout(lab.now);
        lab.transmit();
    }
    assert!(lab.engine.is_open());
    lab.wait(seconds(1));
    lab.engine.handle_timeout(lab.now);
    lab.transmit();
    let last = closed(Side::Local, DisconnectReason::ReadTimeout, Some(Fault::WriteTimeout));
    assert_eq!(lab.actions().last(), Some(&last));

    let mut lab = Lab::open(ETH);
    lab.engine.handle_write_error(lab.now);
    lab.say(0x10, b"was under way");
    assert!(lab.engine.wants_bytes(), "it is read to its end");
    assert_eq!(lab.messages().len(), 1);
    lab.send(0, 0, b"too late").unwrap();
    assert!(!lab.transmit());
    lab.queue.disconnect(DisconnectReason::Requested);
    assert!(!lab.transmit(), "no message can be written before it");
    assert_eq!(lab.actions(), [Action::Closed { by: Side::Local, reason: None, fault: None }]);
    assert_eq!(lab.sums(), (0, 1));
}

/// A message that waits for room when the connection ends is still delivered.
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
        lab.send(0, 0, b"too late").unwrap();
        lab.say_raw(code::DISCONNECT, payload);
        assert_eq!(lab.hear(), None);
        let reason = Some(DisconnectReason::UselessPeer);
        assert_eq!(lab.actions(), [Action::Closed { by: Side::Remote, reason, fault: None }]);
        assert_eq!(lab.sums(), (0, 1));
        assert_eq!(lab.engine.poll_timeout(), None);
    }
}

#[test]
fn leaving_flushes_what_was_accepted() {
    let mut lab = Lab::open(ETH);
    lab.send(0, 3, b"last words").unwrap();
    lab.queue.disconnect(DisconnectReason::Quitting);
    lab.queue.disconnect(DisconnectReason::TooManyPeers);
    assert_eq!(lab.actions(), [], "not closed before that is written");
    assert_eq!(lab.send(0, 3, b"too late"), Err(Refused::Closed));
    assert_eq!(lab.hear(), Some((0x13, b"last words".to_vec())));
    assert_eq!(lab.hear(), Some((code::DISCONNECT, vec![0xc1, 0x08])), "the first reason counts");
    assert_eq!(lab.actions(), [closed(Side::Local, DisconnectReason::Quitting, None)]);
    assert_eq!(lab.sums(), (1, 0));
}

/// A connection that cannot write messages yet ends at once, with a Disconnect if there are keys.
#[test]
fn leaving_before_messages_flow() {
    let mut lab = Lab::greeted(ETH);
    lab.queue.disconnect(DisconnectReason::TooManyPeers);
    assert_eq!(lab.hear(), Some((code::DISCONNECT, vec![0xc1, 0x04])));
    assert_eq!(lab.actions(), [closed(Side::Local, DisconnectReason::TooManyPeers, None)]);
    let (queue, mut out) = (Outbound::alone(), BytesMut::new());
    queue.disconnect(DisconnectReason::TooManyPeers);
    let mut engine = Connection::accept(local(1), lab.now, StdRng::seed_from_u64(1));
    assert!(!engine.poll_transmit(lab.now, &mut &*queue, &mut out));
    let last = Action::Closed { by: Side::Local, reason: None, fault: None };
    assert_eq!(engine.poll_action(), Some(last), "no keys, so no Disconnect");
}
