//! The handshake, up to the open connection: checkpoints, identities, capabilities, deadlines.

use super::*;

/// Two engines exchange single bytes until messages flow both ways.
#[test]
fn two_engines_meet() {
    let now = start();
    let mut dialer = Connection::dial(local(1), key(2).public(), now, StdRng::seed_from_u64(3));
    let mut listener = Connection::accept(local(2), now, StdRng::seed_from_u64(4));
    let (mut to_listener, mut to_dialer) = (BytesMut::new(), BytesMut::new());
    let ours = capabilities(&[("eth", 68, 17), ("eth", 69, 18), ("snap", 1, 8)]);
    let theirs = capabilities(&[("eth", 69, 18), ("snap", 1, 8), ("wit", 0, 4)]);
    let mut delivered = Vec::new();
    let queues = (Outbound::alone(), Outbound::alone());
    for _ in 0..10 {
        for (engine, list, out, queue) in [
            (&mut dialer, &ours, &mut to_listener, &queues.0),
            (&mut listener, &theirs, &mut to_dialer, &queues.1),
        ] {
            while let Some(action) = engine.poll_action() {
                match action {
                    Action::Authenticated { remote } => {
                        assert_eq!(Some(remote), engine.remote);
                        engine.greet(now, list);
                    }
                    Action::Negotiated { hello, channels } => {
                        assert_eq!(hello.client, "devp2pd/test");
                        let found: Vec<_> =
                            channels.iter().map(|c| (&*c.name, c.version, c.offset)).collect();
                        assert_eq!(found, [("eth", 69, 0x10), ("snap", 1, 0x22)]);
                        engine.open(now);
                        open_queue(queue, &channels, hello.has_snappy());
                        let message = compressed(b"from a channel");
                        queue.send(Lane::Stream, ChannelIndex(1), 7, message).unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
            engine.poll_transmit(now, &mut &**queue, out);
            let mut queue = Queue { room: true, ..Queue::default() };
            engine.deliver(now, &mut queue);
            for Inbound { channel, code, payload, wire_bytes } in queue.taken {
                assert_eq!(wire_bytes, 32 + 32 + 16, "code and 16 compressed bytes are padded to 32");
                delivered.push((channel, code, payload));
            }
        }
        // One byte at a time: every state is entered in the middle of a packet.
        for (engine, wire) in [(&mut listener, &mut to_listener), (&mut dialer, &mut to_dialer)] {
            let mut received = BytesMut::new();
            while !wire.is_empty() {
                received.extend_from_slice(&wire.split_to(1));
                engine.handle_bytes(now, &mut received);
            }
            // Bytes that a checkpoint left unread go back to the wire.
            wire.unsplit(received);
        }
    }
    let expected = (ChannelIndex(1), 7, bytes::Bytes::from_static(b"from a channel"));
    assert_eq!(delivered, [expected.clone(), expected]);
}

#[test]
fn nothing_is_read_before_a_checkpoint_is_answered() {
    let mut lab = Lab::authenticated();
    lab.say_hello(&[("eth", 69, 18)]);
    assert!(!lab.received.is_empty(), "Hello waits for our answer");
    assert_eq!(lab.actions(), []);
    lab.greet(&[("eth", 69, 18)]);
    assert!(lab.engine.wants_bytes());
    lab.snappy = true;
    lab.say(0x10, b"status");
    assert!(matches!(lab.actions()[..], [Action::Negotiated { .. }]));
    assert!(!lab.received.is_empty(), "a message waits for our answer");
    assert!(!lab.engine.wants_bytes());
    lab.engine.open(lab.now);
    lab.engine.handle_bytes(lab.now, &mut lab.received);
    assert!(lab.received.is_empty());
    assert!(matches!(lab.messages()[..], [Inbound { code: 0, .. }]));
}

/// The first checkpoint refuses: the reason is written before any Hello, uncompressed.
#[test]
fn refused_at_the_first_checkpoint() {
    let mut lab = Lab::authenticated();
    lab.engine.disconnect(lab.now, DisconnectReason::TooManyPeers);
    assert_eq!(lab.hear(), Some((code::DISCONNECT, vec![0xc1, 0x04])));
    assert_eq!(lab.actions(), [closed(Side::Local, DisconnectReason::TooManyPeers, None)]);
    assert_eq!(lab.hear(), None);
}

/// The second checkpoint refuses: the reason is compressed, because both sides have the other's Hello.
#[test]
fn refused_at_the_second_checkpoint() {
    let mut lab = Lab::greeted(&[("eth", 69, 18)]);
    lab.say_hello(&[("eth", 69, 18)]);
    lab.snappy = true;
    lab.engine.disconnect(lab.now, DisconnectReason::AlreadyConnected);
    assert_eq!(lab.hear(), Some((code::DISCONNECT, vec![0xc1, 0x05])));
}

#[test]
fn no_shared_capability() {
    for (ours, theirs) in
        [(&[("eth", 69, 18)][..], &[("eth", 68, 17)][..]), (&[], &[("eth", 68, 17)]), (&[], &[])]
    {
        // `Lab::greeted` has read our Hello, empty or not.
        let mut lab = Lab::greeted(ours);
        lab.say_hello(theirs);
        lab.snappy = true;
        lab.expect_fault(Fault::NoSharedCapability);
        assert_eq!(lab.engine.remote_hello().unwrap().client, "peer/v1");
    }
}

#[test]
fn hello_of_another_identity() {
    for (id, fault) in [
        (key(3).public().to_uncompressed().to_vec(), Fault::UnexpectedIdentity),
        (vec![0; 64], Fault::InvalidIdentity),
        (vec![1; 63], Fault::InvalidIdentity),
    ] {
        let mut lab = Lab::greeted(&[("eth", 69, 18)]);
        let mut stream = ::rlp::RlpStream::new_list(5);
        stream.append(&5_u8).append(&"liar").begin_list(0).append(&0_u8).append(&id);
        lab.say_raw(code::HELLO, &stream.out());
        lab.snappy = true;
        lab.expect_fault(fault);
    }
}

#[test]
fn a_peer_before_version_5_is_not_sent_snappy() {
    let mut lab = Lab::greeted(&[("eth", 69, 18)]);
    let mut stream = ::rlp::RlpStream::new_list(5);
    stream.append(&4_u8).append(&"old").begin_list(1).begin_list(2).append(&"eth").append(&69_u8);
    stream.append(&0_u8).append(&key(2).public().to_uncompressed().as_slice());
    lab.say_raw(code::HELLO, &stream.out());
    lab.open_now();
    lab.say(0x11, b"plain");
    let message = lab.messages().pop();
    assert!(matches!(message, Some(Inbound { code: 1, payload, .. }) if payload == b"plain"[..]));
    lab.send(0, 2, &[9; 1000]).unwrap();
    assert_eq!(lab.hear(), Some((0x12, vec![9; 1000])));
    lab.say(code::PING, &[0xc0]);
    assert_eq!(lab.hear(), Some((code::PONG, vec![0xc0])));
    lab.engine.disconnect(lab.now, DisconnectReason::Quitting);
    assert_eq!(lab.hear(), Some((code::DISCONNECT, vec![0xc1, 0x08])));
}

#[test]
fn disconnect_instead_of_hello() {
    for payload in [&[0xc1, 0x04][..], &[0x04]] {
        let mut lab = Lab::greeted(&[("eth", 69, 18)]);
        lab.say_raw(code::DISCONNECT, payload);
        assert_eq!(lab.hear(), None, "answered by nothing");
        assert_eq!(lab.actions(), [closed(Side::Remote, DisconnectReason::TooManyPeers, None)]);
    }
}

/// Silence at every stage ends the handshake after five seconds in all, not five for each stage.
#[test]
fn one_deadline_for_the_whole_handshake() {
    let silent = Action::Closed { by: Side::Local, reason: None, fault: Some(Fault::HandshakeTimeout) };
    let now = start();
    let accepting = Connection::accept(local(1), now, StdRng::seed_from_u64(1));
    let dialing = Connection::dial(local(1), key(2).public(), now, StdRng::seed_from_u64(1));
    for mut engine in [accepting, dialing] {
        transmit(&mut engine, now, &mut BytesMut::new());
        assert_eq!(engine.poll_timeout(), Some(now.mono + HANDSHAKE_TIMEOUT));
        engine.handle_timeout(now.after(Duration::from_millis(4999)));
        assert_eq!(engine.poll_action(), None);
        engine.handle_timeout(now.after(HANDSHAKE_TIMEOUT));
        assert_eq!(engine.poll_action(), Some(silent.clone()), "no keys, so no Disconnect");
        let mut out = BytesMut::new();
        assert!(!transmit(&mut engine, now, &mut out));
    }

    let mut unanswered = Lab::authenticated();
    let start = unanswered.now;
    unanswered.wait(Duration::from_secs(3));
    assert_eq!(unanswered.engine.poll_timeout(), Some(start.mono + HANDSHAKE_TIMEOUT));
    unanswered.greet(&[("eth", 69, 18)]);
    assert_eq!(unanswered.run_to_deadline(), Duration::from_secs(2));
    unanswered.expect_fault(Fault::HandshakeTimeout);

    // A Hello whose bytes come slowly does not extend the deadline.
    let mut lab = Lab::greeted(&[("eth", 69, 18)]);
    let mut hello = BytesMut::new();
    let payload = hello::encode("slow", &capabilities(&[("eth", 69, 18)]), &key(2).public());
    lab.peer.writer.write(code::HELLO, &payload, &mut hello).unwrap();
    for _ in 0..4 {
        lab.wait(Duration::from_secs(1));
        lab.received.extend_from_slice(&hello.split_to(10));
        lab.engine.handle_bytes(lab.now, &mut lab.received);
        lab.engine.handle_timeout(lab.now);
        assert_eq!(lab.actions(), []);
    }
    assert_eq!(lab.run_to_deadline(), Duration::from_secs(1));
    lab.expect_fault(Fault::HandshakeTimeout);
}

#[test]
fn a_hello_that_cannot_be_read_and_others_in_its_place() {
    let mut lab = Lab::greeted(&[("eth", 69, 18)]);
    lab.say_raw(code::HELLO, &[1, 2, 3]);
    lab.expect_fault(Fault::BadHello(crate::rlp::Error::ExpectedList));
    for code in [code::PING, code::PONG, 0x04, 0x10, u64::MAX] {
        let mut lab = Lab::greeted(&[("eth", 69, 18)]);
        lab.say_raw(code, &[0xc0]);
        lab.expect_fault(Fault::HelloExpected { code });
    }
}

/// A first frame over 2 KiB is refused by its header: its body is not awaited.
#[test]
fn a_large_first_frame_is_refused_by_its_header() {
    let mut lab = Lab::greeted(&[("eth", 69, 18)]);
    let mut frame = BytesMut::new();
    lab.peer.writer.write(code::HELLO, &vec![0; 1 << 20], &mut frame).unwrap();
    lab.received.extend_from_slice(&frame[..32]);
    lab.engine.handle_bytes(lab.now, &mut lab.received);
    let limit = MAX_BASE_MESSAGE + 1;
    lab.expect_fault(Fault::Frame(crate::rlpx::FrameError::TooLarge { size: (1 << 20) + 1, limit }));
}
