//! Bad input of every kind, and the Disconnect reason that the peer gets for it.

use super::*;
use crate::rlpx::{self, FrameError, SnappyError};

/// Any garbage before there are keys closes the connection at once, without a Disconnect.
#[test]
fn garbage_instead_of_auth() {
    let mut off_curve = vec![0x01, 0x90, 0x04];
    off_curve.resize(2 + 0x190, 0x55);
    let mut not_canonical = vec![0x01, 0x90, 0x04];
    not_canonical.resize(2 + 0x190, 0xff);
    let mut all_zero = vec![0x01, 0x90];
    all_zero.resize(2 + 0x190, 0);
    let mut auth_64k = vec![0xff, 0xff];
    auth_64k.resize(2 + 0xffff, 4);
    let short = vec![0x00, 0x70];
    let http = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec();
    let http_refused_by_size = b"\x00GET".to_vec();
    for garbage in [off_curve, not_canonical, all_zero, auth_64k, short, http, http_refused_by_size] {
        let now = start();
        let accepting = Connection::accept(local(1), now, StdRng::seed_from_u64(1));
        let dialing = Connection::dial(local(1), key(2).public(), now, StdRng::seed_from_u64(1));
        for mut engine in [accepting, dialing] {
            transmit(&mut engine, now, &mut BytesMut::new());
            let mut received = BytesMut::from(&garbage[..]);
            engine.handle_bytes(now, &mut received);
            let fault = Some(Fault::Handshake(rlpx::Refused));
            assert_eq!(engine.poll_action(), Some(Action::Closed { by: Side::Local, reason: None, fault }));
            assert_eq!(engine.poll_action(), None);
            let mut out = BytesMut::new();
            assert!(!transmit(&mut engine, now, &mut out) && out.is_empty());
            assert!(received.is_empty(), "the received bytes are dropped");
        }
    }
}

#[test]
fn a_wrong_header_tag() {
    let mut lab = Lab::open(&[("eth", 69, 18)]);
    lab.received.extend_from_slice(&[0x55; 32]);
    lab.engine.handle_bytes(lab.now, &mut lab.received);
    lab.expect_fault(Fault::Frame(FrameError::HeaderTag));
}

#[test]
fn a_wrong_body_tag() {
    let mut lab = Lab::open(&[("eth", 69, 18)]);
    let mut frame = BytesMut::new();
    lab.peer.writer.write(0x10, b"payload", &mut frame).unwrap();
    *frame.last_mut().unwrap() ^= 1;
    lab.received.unsplit(frame);
    lab.engine.handle_bytes(lab.now, &mut lab.received);
    lab.expect_fault(Fault::Frame(FrameError::BodyTag));
}

/// Codes outside every range, with any payload; the payload is not even decompressed.
#[test]
fn codes_outside_the_range() {
    for code in [0x22, 0x7f, 0x80, 0x100, u64::MAX] {
        let mut lab = Lab::open(&[("eth", 69, 18)]);
        lab.say_raw(code, &[0xff; 10]);
        lab.expect_fault(Fault::CodeOutOfRange { code });
    }
}

#[test]
fn snappy_bombs() {
    let mut lab = Lab::open(&[("eth", 69, 18)]);
    lab.say_raw(0x10, &[0xff, 0xff, 0xff, 0x07, 0x00, 0x41]);
    lab.expect_fault(Fault::Snappy(SnappyError::TooLarge { claimed: (1 << 24) - 1, compressed: 6 }));

    // 16 MiB of zeros are a legal message; one byte more is not.
    let mut lab = Lab::open(&[("eth", 69, 18)]);
    let mut bomb = snap::raw::Encoder::new().compress_vec(&vec![0; MAX_PAYLOAD + 1]).unwrap();
    let compressed = bomb.len();
    lab.say_raw(0x10, &bomb);
    lab.expect_fault(Fault::Snappy(SnappyError::TooLarge { claimed: 1 << 24, compressed }));

    // The length is true, but the data ends early.
    let mut lab = Lab::open(&[("eth", 69, 18)]);
    bomb = snap::raw::Encoder::new().compress_vec(&[0; 1000]).unwrap();
    bomb.pop();
    lab.say_raw(0x10, &bomb);
    lab.expect_fault(Fault::Snappy(SnappyError::Corrupt));

    let mut lab = Lab::open(&[("eth", 69, 18)]);
    lab.say_raw(0x10, &[]);
    lab.expect_fault(Fault::Snappy(SnappyError::Corrupt));
}

#[test]
fn base_messages_over_2_kib() {
    for code in [code::HELLO, code::DISCONNECT, code::PING, code::PONG, 0x0f] {
        let mut lab = Lab::open(&[("eth", 69, 18)]);
        lab.say_raw(code, &[0; MAX_BASE_MESSAGE]);
        let tolerated = lab.actions();
        assert!(code == code::DISCONNECT || tolerated.is_empty(), "2 KiB are allowed: {tolerated:?}");
        let mut lab = Lab::open(&[("eth", 69, 18)]);
        lab.say_raw(code, &[0; MAX_BASE_MESSAGE + 1]);
        lab.expect_fault(Fault::BaseMessageTooLarge { code, size: MAX_BASE_MESSAGE + 1 });
    }
}

/// A Ping as large as a frame can be.
#[test]
fn a_huge_ping() {
    let mut lab = Lab::open(&[("eth", 69, 18)]);
    // A message of 1 MiB instead of 16 MiB: the check is on the size, and unoptimized AES is slow.
    let size = 1 << 20;
    lab.say_raw(code::PING, &vec![0; size]);
    lab.expect_fault(Fault::BaseMessageTooLarge { code: code::PING, size });
}

/// The peer gets one reason and nothing more, although it goes on sending.
#[test]
fn nothing_is_read_after_a_fault() {
    let mut lab = Lab::open(&[("eth", 69, 18)]);
    lab.say_raw(0x50, &[]);
    lab.say(code::PING, &[0xc0]);
    lab.say(0x10, b"more");
    assert!(lab.received.is_empty());
    lab.expect_fault(Fault::CodeOutOfRange { code: 0x50 });
    lab.say(code::DISCONNECT, &[0xc1, 0x00]);
    assert_eq!(lab.actions(), []);
}

#[test]
fn what_was_read_before_a_fault_is_delivered() {
    let mut lab = Lab::open(&[("eth", 69, 18)]);
    lab.peer.writer.write(0x10, compressed(b"good").as_bytes(), &mut lab.received).unwrap();
    lab.say_raw(0x50, &[]);
    lab.transmit();
    let actions = lab.actions();
    assert!(matches!(&actions[..], [Action::Closed { .. }]), "{actions:?}");
    let mut queue = Queue::default();
    lab.engine.deliver_last(lab.now, &mut queue);
    assert_eq!(queue.taken.len(), 1);
}

/// Every fault has a reason of the specification, and a text that says what was wrong.
#[test]
fn faults_have_reasons_and_words() {
    let faults = [
        Fault::Handshake(rlpx::Refused),
        Fault::HandshakeTimeout,
        Fault::Frame(FrameError::Empty),
        Fault::HelloExpected { code: 2 },
        Fault::BadHello(crate::rlp::Error::Truncated),
        Fault::InvalidIdentity,
        Fault::UnexpectedIdentity,
        Fault::NoSharedCapability,
        Fault::BaseMessageTooLarge { code: 2, size: 4000 },
        Fault::CodeOutOfRange { code: 0x50 },
        Fault::Snappy(SnappyError::Corrupt),
        Fault::Silence,
        Fault::FrameTimeout,
    ];
    let codes = faults.map(|fault| fault.reason().code());
    assert_eq!(codes, [2, 0x0b, 2, 2, 2, 7, 9, 3, 2, 2, 2, 0x0b, 0x0b]);
    assert!(faults.iter().all(|fault| fault.to_string().len() > 15));
}
