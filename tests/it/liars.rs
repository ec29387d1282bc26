//! Peers that lie, at every step of a connection. Each gets the reason of `p2p::fault`, or nothing where there are no
//! keys yet. After each lie the sidecar serves an honest peer as before.

use std::time::Duration;

use bytes::BytesMut;
use devp2pd::{
    net::clock,
    node::NodeKey,
    p2p::DisconnectReason as Reason,
    rpc::proto::{ConnectPeerRequest, ErrorReason, GetPeerRequest, SendFailure, SendMessageRequest},
};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tonic::Code;

use crate::harness::{
    Application, Event, FIRST, HELLO, Liar, PING, PONG, Sidecar, Trap, eventually, refused, soon, wire,
};

/// An honest peer connects, sends, is answered and leaves. Events of others are skipped.
async fn serves(sidecar: &Sidecar, app: &mut Application, seed: u64) {
    let mut peer = Liar::established(sidecar, seed).await;
    let id = peer.id();
    peer.send(FIRST + 1, b"are you there?").await;
    let mut channel = None;
    loop {
        match app.event().await {
            Event::ChannelOpened(opened) if opened.peer.as_ref().unwrap().node_id == id => {
                channel = Some(opened.channel_id);
            }
            Event::Message(message) if Some(message.channel_id) == channel => break,
            Event::Message(message) => panic!("a liar's message came through: {message:?}"),
            _ => {}
        }
    }
    app.send(channel.unwrap(), 2, *b"yes").await;
    assert_eq!(peer.receive().await, Some((FIRST + 2, b"yes".to_vec())));
    sidecar.disconnected_after(peer).await;
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(3).fill_bytes(&mut bytes);
    bytes
}

/// A packet of this size field with these bytes behind it.
fn packet(size: u16, bytes: &[u8]) -> Vec<u8> {
    [&size.to_be_bytes()[..], bytes].concat()
}

#[tokio::test]
async fn what_is_no_handshake_is_closed_without_a_byte() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    // An ECIES message whose ephemeral point is not on the curve, or not written as points are.
    let sealed = |point: [u8; 64]| packet(400, &[&[4][..], &point, &noise(335)].concat());
    let mut whole = Liar::connect(&sidecar, 1).await;
    let honest = whole.auth().packet;
    let flip = |at: usize| {
        let mut bytes = honest.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let last = honest.len() - 1;
    let not_a_key = whole.auth_claiming(&[1; 64]).packet;
    let no_list = wire::seal(&sidecar.public_key(), &noise(200), &mut StdRng::seed_from_u64(4));
    let table: [(&str, Vec<u8>); 15] = [
        ("noise", noise(1000)),
        ("a web browser", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("noise of a plausible size", packet(400, &noise(400))),
        ("64 KiB", packet(u16::MAX, &noise(65_535))),
        ("one more than is taken", packet(2049, &noise(2049))),
        ("nothing", packet(0, &[])),
        ("less than any ECIES message", packet(112, &noise(112))),
        ("a point off the curve", sealed([1; 64])),
        ("a point beyond the field", sealed([0xff; 64])),
        ("the point at infinity", sealed([0; 64])),
        ("a wrong tag", flip(last)),
        ("a changed ephemeral key", flip(10)),
        ("a changed size", flip(1)),
        ("a static key off the curve", not_a_key.to_vec()),
        ("no list", no_list.to_vec()),
    ];
    for (what, bytes) in table {
        let mut liar = Liar::connect(&sidecar, 1).await;
        // There are more bytes than announced, so that a packet that looks incomplete is not.
        liar.write(&bytes).await;
        liar.write(&[0; 64]).await;
        println!("{what}");
        liar.closed_in_silence().await;
    }
    serves(&sidecar, &mut app, 2).await;
}

/// A lie after the keys exist.
#[derive(Clone, Copy, Debug)]
enum Lie {
    // Before Hello.
    PingFirst,
    EmptyFirst,
    HugeFirst,
    BrokenHello,
    OtherIdentity,
    NoIdentity,
    NothingShared,
    // After Hello.
    HeaderTag,
    BodyTag,
    Empty,
    NoCode,
    Bomb,
    NotSnappy,
    CodeBeyond,
    CodeHuge,
    LargePing,
}

impl Lie {
    async fn tell(self, liar: &mut Liar) {
        let echo = &[("echo", 1)][..];
        if self as u32 >= Self::HeaderTag as u32 {
            liar.say_hello(echo).await;
            liar.hear_hello().await;
        }
        let forged = match self {
            Self::PingFirst => return liar.write_frame(PING, &[0xc0]).await,
            Self::BrokenHello => return liar.write_frame(HELLO, &[0xf8, 0xff, 5]).await,
            Self::OtherIdentity => {
                let other = NodeKey::random(&mut StdRng::seed_from_u64(77)).public();
                return liar.say_hello_as(echo, &other).await;
            }
            Self::NoIdentity => {
                let mut hello = ::rlp::RlpStream::new_list(5);
                hello.append(&5_u8).append(&"liar").begin_list(0).append(&0_u8).append(&&[0_u8; 64][..]);
                return liar.write_frame(HELLO, &hello.out()).await;
            }
            Self::NothingShared => return liar.say_hello(&[("echo", 2), ("other", 1)]).await,
            Self::Bomb => return liar.write_frame(FIRST, &[0xff, 0xff, 0xff, 0x07, 0, 0]).await,
            Self::NotSnappy => return liar.write_frame(FIRST, &[0x05, 0xff]).await,
            Self::CodeBeyond => return liar.send(FIRST + 8, b"").await,
            Self::CodeHuge => return liar.send(u64::MAX, b"").await,
            Self::LargePing => return liar.write_frame(PING, &[0; 4096]).await,
            Self::EmptyFirst | Self::Empty => liar.forger().header(0),
            Self::HugeFirst => liar.forger().header((1 << 24) - 1),
            Self::HeaderTag => {
                let mut frame = liar.forger().frame(FIRST, &[0, 0]);
                frame[20] ^= 1;
                frame
            }
            Self::BodyTag => {
                let mut frame = liar.forger().frame(FIRST, &[0, 0]);
                *frame.last_mut().unwrap() ^= 1;
                frame
            }
            Self::NoCode => {
                // The body begins with a list where the code should be.
                let mut frame = liar.forger().header(16);
                frame.unsplit(liar.forger().piece(&[0xc0; 16]));
                frame.extend_from_slice(&liar.forger().tag());
                frame
            }
        };
        liar.write(&forged).await;
    }
}

#[tokio::test]
async fn lies_behind_the_handshake_are_told_their_reason() {
    use Lie::*;
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let table = [
        (PingFirst, Reason::BreachOfProtocol),
        (EmptyFirst, Reason::BreachOfProtocol),
        (HugeFirst, Reason::BreachOfProtocol),
        (BrokenHello, Reason::BreachOfProtocol),
        (OtherIdentity, Reason::UnexpectedIdentity),
        (NoIdentity, Reason::InvalidIdentity),
        (NothingShared, Reason::UselessPeer),
        (HeaderTag, Reason::BreachOfProtocol),
        (BodyTag, Reason::BreachOfProtocol),
        (Empty, Reason::BreachOfProtocol),
        (NoCode, Reason::BreachOfProtocol),
        (Bomb, Reason::BreachOfProtocol),
        (NotSnappy, Reason::BreachOfProtocol),
        (CodeBeyond, Reason::BreachOfProtocol),
        (CodeHuge, Reason::BreachOfProtocol),
        (LargePing, Reason::BreachOfProtocol),
    ];
    for (seed, (lie, reason)) in (10..).zip(table) {
        let mut liar = Liar::connect(&sidecar, seed).await;
        liar.shake_hands().await;
        lie.tell(&mut liar).await;
        if matches!(lie, NothingShared) {
            // Whoever comes gets our Hello before it is sent away.
            assert_eq!(liar.hear_hello().await.capabilities.len(), 1);
        }
        assert_eq!(liar.reason().await, Some(reason), "{lie:?}");
        sidecar.disconnected_after(liar).await;
    }
    serves(&sidecar, &mut app, 1).await;
}

/// Read whole before its code is known; answered with a reason, not with memory.
#[tokio::test]
async fn a_ping_of_16_mib_is_a_breach() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let mut liar = Liar::established(&sidecar, 1).await;
    // Encrypting so much takes an unoptimized build longer than a handshake may.
    app.opened().await;
    let frame = liar.forger().frame(PING, &vec![0; (1 << 24) - 2]);
    liar.write(&frame).await;
    assert_eq!(liar.reason().await, Some(Reason::BreachOfProtocol));
    serves(&sidecar, &mut app, 2).await;
}

/// A message behind a flood of pings arrives, and so does its answer: nothing waits behind pongs. How many pongs come
/// depends on how many pings one read carries; `p2p::pings` tests that sixteen are owed at most.
#[tokio::test]
async fn ten_thousand_pings_cost_a_few_pongs() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let mut liar = Liar::established(&sidecar, 1).await;
    let mut flood = BytesMut::new();
    for _ in 0..10_000 {
        flood.extend_from_slice(&liar.forger().frame(PING, &[0x01, 0x00, 0xc0]));
    }
    liar.write(&flood).await;
    liar.send(FIRST, b"and a message").await;
    let channel = app.opened().await.channel_id;
    assert_eq!(app.message().await, (0, b"and a message".to_vec()));
    app.send(channel, 3, *b"answer").await;
    let mut pongs = 0;
    loop {
        match liar.receive().await.expect("still connected") {
            (PONG, _) => pongs += 1,
            (code, payload) => break assert_eq!((code, payload), (FIRST + 3, b"answer".to_vec())),
        }
    }
    assert!(pongs > 0, "the pings were not answered");
    serves(&sidecar, &mut app, 2).await;
}

/// Where a node is silent: each stage has the same single deadline, five seconds after the first byte could come.
#[tokio::test]
async fn silence_at_every_stage_ends_with_one_deadline() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let start = clock::now().mono;
    let mut says_nothing = Liar::connect(&sidecar, 1).await;
    let mut half_an_auth = Liar::connect(&sidecar, 2).await;
    let auth = half_an_auth.auth().packet;
    half_an_auth.write(&auth[..auth.len() / 2]).await;
    let mut no_hello = Liar::connect(&sidecar, 3).await;
    no_hello.shake_hands().await;
    let mut half_a_hello = Liar::connect(&sidecar, 4).await;
    half_a_hello.shake_hands().await;
    let frame = half_a_hello.forger().frame(HELLO, &[0; 100]);
    half_a_hello.write(&frame[..frame.len() / 2]).await;
    let (no_ack, ack_only) = (Trap::set(5).await, Trap::set(6).await);
    let dial = async |trap: &Trap| {
        let request = ConnectPeerRequest { node: trap.enode(), timeout: None };
        refused(&sidecar.peers().connect_peer(request).await.unwrap_err())
    };

    let mut dribbler = Liar::connect(&sidecar, 7).await;
    let auth = dribbler.auth().packet;
    // A byte now and then does not move the deadline.
    let dribbling = async {
        for byte in auth.chunks(1) {
            dribbler.write(byte).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            if dribbler.is_closed() {
                return;
            }
        }
        panic!("dribbled a whole auth of {} bytes", auth.len());
    };
    let accepted = async {
        says_nothing.closed_in_silence().await;
        half_an_auth.closed_in_silence().await;
        assert_eq!(no_hello.reason().await, Some(Reason::ReadTimeout));
        assert_eq!(half_a_hello.reason().await, Some(Reason::ReadTimeout));
    };
    let dialed = async {
        let (first, second, _silent, mut peer) =
            tokio::join!(dial(&no_ack), dial(&ack_only), no_ack.caught(&sidecar), async {
                let mut peer = ack_only.caught(&sidecar).await;
                peer.answer().await;
                peer
            });
        for refusal in [first, second] {
            assert_eq!(refusal.kind(), (Code::FailedPrecondition, "DIAL_FAILED"));
            assert_eq!(refusal.metadata.get("cause").map(String::as_str), Some("silent"));
        }
        assert_eq!(peer.reason().await, Some(Reason::ReadTimeout));
    };
    tokio::join!(accepted, dialed, dribbling);
    assert!(start.elapsed() >= Duration::from_millis(4900), "after {:?}", start.elapsed());
    serves(&sidecar, &mut app, 8).await;
}

/// A dialed node can lie, too: the caller's error names the lie.
#[tokio::test]
async fn lies_of_a_node_that_was_dialed() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let dial = async |trap: &Trap| {
        let request = ConnectPeerRequest { node: trap.enode(), timeout: None };
        let refusal = refused(&sidecar.peers().connect_peer(request).await.unwrap_err());
        assert_eq!(refusal.kind(), (Code::FailedPrecondition, "DIAL_FAILED"), "{}", refusal.message);
        refusal.metadata["cause"].clone()
    };
    let (noisy, other) = (Trap::set(1).await, Trap::set(2).await);
    let (cause, ()) = tokio::join!(dial(&noisy), async {
        let mut peer = noisy.caught(&sidecar).await;
        peer.write(&packet(400, &noise(400))).await;
        peer.drained().await;
    });
    assert_eq!(cause, "garbled");
    let (cause, reason) = tokio::join!(dial(&other), async {
        let mut peer = other.caught(&sidecar).await;
        peer.answer().await;
        peer.say_hello_as(&[("echo", 1)], &Liar::key_of(3).public()).await;
        peer.hear_hello().await;
        peer.reason().await
    });
    assert_eq!((&*cause, reason), ("wrong_identity", Some(Reason::UnexpectedIdentity)));
    serves(&sidecar, &mut app, 4).await;
}

/// Its window fills and is refused, by stream and by call; the peer beside it is served all the while.
#[tokio::test]
async fn a_peer_that_stops_reading_holds_its_own_window_and_nothing_else() {
    const MESSAGE: usize = 128 * 1024;
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let stuck = Liar::established(&sidecar, 1).await;
    let stuck_channel = app.opened().await.channel_id;
    let mut honest = Liar::established(&sidecar, 2).await;
    let honest_channel = app.opened().await.channel_id;
    let payload = noise(MESSAGE);
    let (mut refusals, mut sent) = (0, 0_u32);
    // The kernel takes some MiB for the stuck peer. From then on every message is refused.
    while refusals < 10 {
        app.send(stuck_channel, 0, payload.clone()).await;
        app.send(honest_channel, 1, *b"tick").await;
        assert_eq!(honest.receive().await, Some((FIRST + 1, b"tick".to_vec())));
        honest.send(FIRST, b"tock").await;
        loop {
            match app.event().await {
                Event::SendFailure(SendFailure { reason, channel_id, .. }) => {
                    assert_eq!((reason, channel_id), (ErrorReason::SendWindowExceeded as i32, stuck_channel));
                    refusals += 1;
                }
                Event::Message(message) => break assert_eq!(message.channel_id, honest_channel),
                other => panic!("{other:?}"),
            }
        }
        sent += 1;
        assert!(sent < 1000, "never refused");
    }
    let request = GetPeerRequest { node: stuck.id() };
    let traffic = sidecar.peers().get_peer(request).await.unwrap().into_inner().traffic.unwrap();
    let bound = devp2pd::p2p::SEND_WINDOW + MESSAGE as u64 + 64;
    assert!((1..=bound).contains(&traffic.bytes_waiting), "{} bytes wait", traffic.bytes_waiting);

    // A call has a window of its own, and its refusal says when to try again.
    let call = SendMessageRequest {
        node: stuck.id(),
        protocol: "echo".to_owned(),
        payload: payload.into(),
        ..Default::default()
    };
    let status = eventually("the window of calls is full", async || {
        sidecar.messages().send_message(call.clone()).await.err()
    })
    .await;
    let refusal = refused(&status);
    assert_eq!((refusal.kind(), refusal.retry), ((Code::ResourceExhausted, "SEND_WINDOW_EXCEEDED"), true));

    // When it is disconnected, it leaves within the time for the reason, and the messages that it never took are
    // reported.
    let request = devp2pd::rpc::proto::DisconnectPeerRequest { node: stuck.id(), reason: 0 };
    sidecar.peers().disconnect_peer(request).await.unwrap();
    let closed = soon("closed", app.closed()).await;
    assert_eq!(closed.channel_id, stuck_channel);
    assert!(closed.unsent_messages > 0);
    app.send(honest_channel, 1, *b"tick").await;
    assert_eq!(honest.receive().await, Some((FIRST + 1, b"tick".to_vec())));
}

/// Each auth is honest enough to cost its arithmetic, and no handshake goes on. A connected peer is served meanwhile,
/// and a new one is let in when the flood is over.
#[tokio::test]
async fn a_flood_of_auths_holds_up_nobody_who_is_there() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let mut peer = Liar::established(&sidecar, 1).await;
    let channel = app.opened().await.channel_id;
    let flood = async {
        for seed in 0..200 {
            let mut liar = Liar::connect(&sidecar, 1_000 + seed).await;
            let auth = liar.auth().packet;
            liar.write(&auth).await;
        }
    };
    let talk = async {
        for number in 0..100 {
            peer.send(FIRST, &[number]).await;
            assert_eq!(app.message().await, (0, vec![number]));
            app.send(channel, 1, vec![number]).await;
            assert_eq!(peer.receive().await, Some((FIRST + 1, vec![number])));
        }
    };
    tokio::join!(flood, talk);
    serves(&sidecar, &mut app, 2).await;
}
