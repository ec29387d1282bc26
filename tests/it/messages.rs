//! Messages between two applications over two sidecars: every size, parts, refusals, results, order, and the receivers
//! when protocols and applications share a session.

use devp2pd::{
    node::{Enode, NodeRef},
    rpc::proto::{
        Barrier, DisconnectChannel, DisconnectReason, ErrorReason, InboundMessage, OutboundMessage,
        OverflowPolicy, PeerMessage, ReceiveMessagesRequest, RegistrationSpec, SendFailure,
        SendMessageRequest, SendResult,
        message_service_client::{self, MessageServiceClient},
        receive_messages_request::Target,
        receive_messages_response::Event as Received,
    },
};
use tonic::{Code, transport::Endpoint};

use crate::harness::{
    Application, ClientEventKind, Event, Liar, Sidecar, attach, eventually, linked, message, protocol,
    refused, soon, spec,
};

const MIB: usize = 1 << 20;

/// The largest payload of devp2p.
const MAX: usize = 16 * MIB - 1;

/// The largest payload that does not compress: its frame has 24 bits of length.
const MAX_NOISE: usize = 16_776_442;

/// Bytes that compress, with their place in each stretch of 1 KiB, so that a shift or a swap shows.
fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![7; len];
    for (number, stretch) in (0_u32..).zip(bytes.chunks_exact_mut(1024)) {
        stretch[..4].copy_from_slice(&number.to_be_bytes());
    }
    bytes
}

/// Bytes that do not compress, always the same: splitmix64, which an unoptimized build makes in no time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 11_u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ mixed >> 27).to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(len);
    bytes
}

/// Compares without printing megabytes.
fn assert_same(got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len());
    let at = || got.iter().zip(expected).position(|(got, expected)| got != expected);
    assert!(got == expected, "differs at {:?}", at());
}

#[tokio::test]
async fn every_size_goes_both_ways_unchanged() {
    let mut pair = linked().await;
    let sizes = [0, 1, 255, 256, 257, 65_535, 65_536, MIB - 1, MIB, 4 * MIB + 1, MAX];
    for (number, size) in sizes.into_iter().enumerate() {
        let (code, payload) = (u32::try_from(number % 8).unwrap(), pattern(size));
        pair.a_app.send(pair.a_channel, code, payload.clone()).await;
        let (got, bytes) = pair.b_app.message().await;
        assert_eq!(got, code);
        assert_same(&bytes, &payload);
        pair.b_app.send(pair.b_channel, 7 - code, bytes).await;
        let (got, bytes) = pair.a_app.message().await;
        assert_eq!(got, 7 - code);
        assert_same(&bytes, &payload);
    }
}

#[tokio::test]
async fn the_largest_that_does_not_compress_passes_and_one_byte_more_names_both_limits() {
    let mut payload = noise(MAX_NOISE + 1);
    let mut pair = linked().await;
    pair.a_app.send(pair.a_channel, 0, payload.clone()).await;
    pair.a_app.send(pair.a_channel, 0, vec![0; MAX + 1]).await;
    for size in [MAX_NOISE + 1, MAX + 1] {
        let Event::SendFailure(SendFailure { reason, detail, .. }) = pair.a_app.event().await else {
            panic!("{size} bytes were not refused")
        };
        assert_eq!(reason, ErrorReason::MessageTooLarge as i32);
        for number in [size, MAX, MAX_NOISE] {
            assert!(detail.contains(&number.to_string()), "{number} is not in {detail:?}");
        }
    }
    payload.truncate(MAX_NOISE);
    pair.a_app.send(pair.a_channel, 0, payload.clone()).await;
    assert_same(&pair.b_app.message().await.1, &payload);
}

/// A client library with its own default limit, 4 MiB: a message that is larger with its frame comes in parts, in
/// order.
#[tokio::test]
async fn a_client_with_a_small_limit_gets_large_messages_in_parts() {
    /// The bytes that a message may have beside its payload.
    const FRAME: usize = 64;
    let (a, b) = (Sidecar::start().await, Sidecar::start().await);
    let mut a_app = a.echo().await;
    let defaults = message_service_client::MessageServiceClient::new(b.channel());
    let params =
        devp2pd::rpc::proto::Attach { max_frame_bytes: 0, ..attach(spec("small", &[("echo", 1, 8)])) };
    let mut b_app = Application::attach(defaults, params).await.unwrap();
    a.add_static(&b.enode()).await;
    let channel = a_app.opened().await.channel_id;
    b_app.opened().await;

    for (size, whole) in [(4 * MIB - FRAME, true), (4 * MIB - FRAME + 1, false), (MAX, false)] {
        let payload = pattern(size);
        a_app.send(channel, 3, payload.clone()).await;
        let mut got = Vec::new();
        let mut parts = 0;
        while got.len() < size {
            let InboundMessage { code, payload, fragment, .. } = b_app.part().await;
            assert_eq!((code, fragment.is_none()), (3, whole), "{size}");
            if let Some(fragment) = fragment {
                assert_eq!((fragment.total_bytes as usize, fragment.offset as usize), (size, got.len()));
            }
            got.extend_from_slice(&payload);
            parts += 1;
        }
        assert_same(&got, &payload);
        assert!(whole == (parts == 1), "{size} bytes in {parts} parts");
    }
    // The other sidecar's client takes 17 MiB, and gets the same message whole.
    let payload = pattern(4 * MIB);
    b_app.send(1, 3, payload.clone()).await;
    assert_same(&a_app.message().await.1, &payload);
}

#[tokio::test]
async fn the_limit_of_a_protocol_holds_both_ways() {
    let (a, b) = (Sidecar::start().await, Sidecar::start().await);
    let mut limited = spec("limited", &[]);
    limited.protocols =
        vec![devp2pd::rpc::proto::ProtocolSpec { max_message_bytes: 1000, ..protocol("echo", 1, 8) }];
    let (mut a_app, mut b_app) = (a.application(limited).await, b.echo().await);
    a.add_static(&b.enode()).await;
    let (a_channel, b_channel) = (a_app.opened().await.channel_id, b_app.opened().await.channel_id);

    a_app.send(a_channel, 0, vec![1; 1001]).await;
    let Event::SendFailure(failure) = a_app.event().await else { panic!("1001 bytes were not refused") };
    assert_eq!(failure.reason, ErrorReason::MessageTooLarge as i32);
    assert!(failure.detail.contains("1001") && failure.detail.contains("1000"), "{}", failure.detail);
    a_app.send(a_channel, 0, vec![1; 1000]).await;
    assert_eq!(b_app.message().await.1.len(), 1000);

    b_app.send(b_channel, 0, vec![2; 1000]).await;
    assert_eq!(a_app.message().await.1.len(), 1000);
    b_app.send(b_channel, 0, vec![2; 1001]).await;
    assert_eq!(a_app.closed().await.reason(), DisconnectReason::SubprotocolError);
    let closed = b_app.closed().await;
    assert_eq!((closed.reason(), &*closed.by), (DisconnectReason::SubprotocolError, "remote"));
}

/// A refusal comes before the answer to the barrier behind it; results of writes come in order.
#[tokio::test]
async fn refusals_results_and_barriers_come_in_order() {
    let mut pair = linked().await;
    let channel = pair.a_channel;
    let send = |send_id, code, want_result| {
        ClientEventKind::Message(OutboundMessage {
            send_id,
            want_result,
            ..message(channel, code, [send_id as u8])
        })
    };
    let elsewhere = ClientEventKind::Message(OutboundMessage { send_id: 5, ..message(99, 0, []) });
    pair.a_app
        .tell_all(vec![
            send(1, 0, true),
            send(2, 8, true),
            send(3, 7, true),
            send(4, u32::MAX, false),
            elsewhere,
            ClientEventKind::Barrier(Barrier { nonce: 77 }),
            send(6, 1, true),
        ])
        .await;
    let (mut failures, mut results, mut barrier) = (Vec::new(), Vec::new(), None);
    while results.len() < 3 || barrier.is_none() {
        match pair.a_app.event().await {
            Event::SendFailure(SendFailure { send_id, reason, .. }) => {
                assert_eq!(barrier, None, "a refusal after the barrier behind it");
                failures.push((send_id, ErrorReason::try_from(reason).unwrap()));
            }
            Event::SendResult(SendResult { send_id, channel_id, written, reason }) => {
                assert_eq!((channel_id, written, reason), (channel, true, 0));
                results.push(send_id);
            }
            Event::BarrierReply(reply) => barrier = Some(reply.nonce),
            other => panic!("{other:?}"),
        }
    }
    let range = ErrorReason::MessageCodeOutOfRange;
    assert_eq!(failures, [(2, range), (4, range), (5, ErrorReason::PeerNotConnected)]);
    assert_eq!((results, barrier), (vec![1, 3, 6], Some(77)));
    for (code, id) in [(0, 1), (7, 3), (1, 6)] {
        assert_eq!(pair.b_app.message().await, (code, vec![id]));
    }
}

#[tokio::test]
async fn a_closed_channel_takes_nothing_and_says_who_closed_it() {
    let mut pair = linked().await;
    let event = DisconnectChannel { channel_id: pair.a_channel, ..Default::default() };
    pair.a_app.tell(ClientEventKind::DisconnectChannel(event)).await;
    let closed = pair.a_app.closed().await;
    assert_eq!((closed.reason(), &*closed.by), (DisconnectReason::Requested, "echo-app"));
    let closed = pair.b_app.closed().await;
    assert_eq!((closed.reason(), &*closed.by), (DisconnectReason::Requested, "remote"));

    let late = OutboundMessage { send_id: 9, want_result: true, ..message(pair.a_channel, 0, [1]) };
    pair.a_app.tell(ClientEventKind::Message(late)).await;
    let Event::SendFailure(failure) = pair.a_app.event().await else {
        panic!("a closed channel took a message")
    };
    assert_eq!((failure.send_id, failure.reason), (9, ErrorReason::PeerNotConnected as i32));
    // Nobody is there any more for the shell either.
    pair.a.disconnected(pair.b.id()).await;
}

/// The calls of a shell: one call receives, another sends, for each form of naming the node.
#[tokio::test]
async fn a_shell_receives_and_sends_by_calls() {
    let (a, b) = (Sidecar::start().await, Sidecar::start().await);
    let register = ReceiveMessagesRequest {
        target: Some(Target::Spec(spec("shell", &[("echo", 1, 8)]))),
        ..Default::default()
    };
    let mut stream = a.messages().receive_messages(register).await.unwrap().into_inner();
    let mut next = async || soon("an event", stream.message()).await.unwrap().unwrap().event.unwrap();
    let Received::Attached(attached) = next().await else { panic!("not attached first") };
    assert!(!attached.resumed && !attached.resume_token.is_empty());

    let mut b_app = b.echo().await;
    a.add_static(&b.enode()).await;
    let Received::ChannelOpened(opened) = next().await else { panic!("no channel") };
    assert_eq!(opened.peer.unwrap().node_id, b.id().to_string());
    let channel = b_app.opened().await.channel_id;
    b_app.send(channel, 5, *b"ping").await;
    let Received::Message(PeerMessage { node_id, capability, code, payload, .. }) = next().await else {
        panic!("no message")
    };
    let capability = capability.unwrap();
    assert_eq!((node_id, &*capability.name, capability.version), (b.id().to_string(), "echo", 1));
    assert_eq!((code, &*payload), (5, &b"ping"[..]));

    let key = b.public_key();
    let forms = [
        b.id().to_string(),
        format!("0x{}", b.id()),
        key.to_string(),
        b.enode(),
        b.started().record.to_string(),
    ];
    for (number, node) in (0..).zip(forms) {
        assert!(node.parse::<NodeRef>().is_ok());
        let request = SendMessageRequest {
            node,
            protocol: if number % 2 == 0 { "echo" } else { "echo/1" }.to_owned(),
            code: number,
            payload: vec![9; number as usize].into(),
            wait_written: number % 2 == 0,
            ..Default::default()
        };
        a.messages().send_message(request).await.unwrap();
        assert_eq!(b_app.message().await, (number, vec![9; number as usize]));
    }
    // The peer leaves: the stream reports it, and goes on.
    b.stop().await;
    let event = soon("an event", stream.message()).await.unwrap().unwrap().event.unwrap();
    let Received::ChannelClosed(closed) = event else { panic!("{event:?}") };
    assert_eq!((closed.reason(), &*closed.by), (DisconnectReason::Quitting, "remote"));
}

#[tokio::test]
async fn the_highest_version_that_both_have_is_used() {
    let (a, b) = (Sidecar::start().await, Sidecar::start().await);
    let mut a_app = a.application(spec("a", &[("echo", 1, 4), ("echo", 2, 8), ("echo", 4, 2)])).await;
    let mut b_app = b.application(spec("b", &[("echo", 3, 9), ("echo", 2, 8), ("echo", 1, 4)])).await;
    a.add_static(&b.enode()).await;
    let (opened, other) = (a_app.opened().await, b_app.opened().await);
    assert_eq!((opened.capability.unwrap().version, other.capability.unwrap().version), (2, 2));
    a_app.send(opened.channel_id, 7, *b"7 of 8").await;
    assert_eq!(b_app.message().await, (7, b"7 of 8".to_vec()));
    let peer = a.connected(b.id()).await;
    assert_eq!((peer.capabilities.len(), peer.shared_capabilities.len()), (3, 1));

    let call = |protocol: &str| SendMessageRequest {
        node: b.id().to_string(),
        protocol: protocol.to_owned(),
        ..Default::default()
    };
    let status = a.messages().send_message(call("echo/1")).await.unwrap_err();
    assert_eq!(refused(&status).kind(), (Code::FailedPrecondition, "PROTOCOL_NOT_SHARED"));
    let status = a.messages().send_message(call("echo/3")).await.unwrap_err();
    assert_eq!(refused(&status).kind(), (Code::FailedPrecondition, "PROTOCOL_NOT_SHARED"));
    let status = a.messages().send_message(call("nobody/1")).await.unwrap_err();
    assert_eq!(refused(&status).kind(), (Code::NotFound, "PROTOCOL_NOT_REGISTERED"));
    a.messages().send_message(call("echo/2")).await.unwrap();
    assert_eq!(b_app.message().await, (0, vec![]));
}

/// Three protocols of two applications a side, whose codes lie one behind the other on the wire, registered in
/// different orders and split differently.
#[tokio::test]
async fn two_applications_share_a_session_and_each_gets_its_own() {
    let (a, b) = (Sidecar::start().await, Sidecar::start().await);
    let mut first = a.application(spec("first", &[("gamma", 1, 2), ("alpha", 1, 3)])).await;
    let mut second = a.application(spec("second", &[("beta", 1, 5)])).await;
    let mut third = b.application(spec("third", &[("beta", 1, 5), ("alpha", 1, 3)])).await;
    let mut fourth = b.application(spec("fourth", &[("gamma", 1, 2)])).await;
    b.add_static(&a.enode()).await;

    let opened = [first.opened().await, first.opened().await];
    let channel = |name: &str| {
        let found = opened.iter().find(|opened| opened.capability.as_ref().unwrap().name == name);
        found.unwrap().channel_id
    };
    let beta = second.opened().await;
    assert!(opened.iter().all(|opened| opened.session_id == beta.session_id), "one session for all");
    let there = [third.opened().await, third.opened().await];
    let fourth_channel = fourth.opened().await.channel_id;

    first.send(channel("alpha"), 2, *b"last of alpha").await;
    first.send(channel("gamma"), 0, *b"first of gamma").await;
    second.send(beta.channel_id, 4, *b"last of beta").await;
    let mut got = [third.part().await, third.part().await];
    got.sort_by_key(|message| message.code);
    for (message, (name, code, payload)) in
        got.iter().zip([("alpha", 2, &b"last of alpha"[..]), ("beta", 4, b"last of beta")])
    {
        let of = there.iter().find(|opened| opened.channel_id == message.channel_id).unwrap();
        assert_eq!(of.capability.as_ref().unwrap().name, name);
        assert_eq!((message.code, &*message.payload), (code, payload));
    }
    assert_eq!(fourth.message().await, (0, b"first of gamma".to_vec()));
    fourth.send(fourth_channel, 1, *b"last of gamma").await;
    assert_eq!(first.message().await, (1, b"last of gamma".to_vec()));

    // One application leaves: the session stays for the other.
    let event = DisconnectChannel { channel_id: beta.channel_id, ..Default::default() };
    second.tell(ClientEventKind::DisconnectChannel(event)).await;
    assert_eq!(&*second.closed().await.by, "sidecar");
    fourth.send(fourth_channel, 1, *b"still there").await;
    assert_eq!(first.message().await, (1, b"still there".to_vec()));
}

/// One event names several channels; the same bytes reach all of them.
#[tokio::test]
async fn one_message_for_several_peers() {
    let hub = Sidecar::start().await;
    let mut hub_app = hub.echo().await;
    let mut others = Vec::new();
    let mut channels = Vec::new();
    for _ in 0..3 {
        let other = Sidecar::start().await;
        let app = other.echo().await;
        other.add_static(&hub.enode()).await;
        channels.push(hub_app.opened().await.channel_id);
        others.push((other, app));
    }
    let payload = noise(100_000);
    let broadcast = OutboundMessage { channel_ids: channels, ..message(0, 6, payload.clone()) };
    hub_app.tell(ClientEventKind::Message(broadcast)).await;
    for (_, app) in &mut others {
        app.opened().await;
        let (code, bytes) = app.message().await;
        assert_eq!(code, 6);
        assert_same(&bytes, &payload);
    }
    // Whoever dialed us is named by where it came from, with the key that is needed to dial back.
    let peer = hub.connected(others[0].0.id()).await;
    assert!(peer.inbound && peer.enode.parse::<Enode>().is_ok());
    eventually("three peers", async || {
        let peers = hub.peers().list_peers(devp2pd::rpc::proto::ListPeersRequest::default()).await.unwrap();
        (peers.into_inner().peers.len() == 3).then_some(())
    })
    .await;
}

/// A client in Rust that stops reading, with messages of 1, 20 and 100 bytes: it loses some, and gets their number.
/// Another application on the same peer loses nothing, and the connection to that peer is never held for the slow one.
/// (Clients in other languages: `interop::paused_applications`.)
#[tokio::test]
async fn an_application_that_stops_reading_loses_alone() {
    // Half as many again as fit into its queue and the windows on the way.
    for (size, count) in [(1, 36_000), (20, 20_000), (100, 10_000_u64)] {
        let (a, b) = (Sidecar::start().await, Sidecar::start().await);
        // The smallest windows of HTTP/2, so that little fits on the way.
        let channel = Endpoint::from_shared(format!("http://{}", a.started().grpc_addr))
            .unwrap()
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(65_535);
        let client = MessageServiceClient::new(channel.connect().await.unwrap());
        let mut paused =
            Application::attach(client, attach(spec("paused", &[("alpha", 1, 3)]))).await.unwrap();
        // Its queue has room for everything: it loses nothing however slow this machine is today.
        let roomy = OverflowPolicy { channel_queue_bytes: 16 << 20, ..OverflowPolicy::default() };
        let roomy = RegistrationSpec { overflow_policy: Some(roomy), ..spec("other", &[("beta", 1, 5)]) };
        let mut other = a.application(roomy).await;
        let mut sender = b.application(spec("sender", &[("alpha", 1, 3), ("beta", 1, 5)])).await;
        b.add_static(&a.enode()).await;
        let (paused_channel, _) = (paused.opened().await, other.opened().await);
        let channels = [sender.opened().await, sender.opened().await];
        let sending = tokio::spawn(async move {
            let mut windows = channels.map(|opened| (opened.channel_id, i64::MAX, 0));
            windows.iter_mut().for_each(|window| window.1 = 1 << 20);
            while windows.iter().any(|(.., sent)| *sent < count) {
                let mut batch = Vec::new();
                for (channel, window, sent) in &mut windows {
                    while *window > 0 && *sent < count && batch.len() < 512 {
                        batch.push(ClientEventKind::Message(message(*channel, 0, vec![7; size])));
                        *window -= i64::try_from(size).unwrap() + 64;
                        *sent += 1;
                    }
                }
                if !batch.is_empty() {
                    sender.tell_all(batch).await;
                    continue;
                }
                match sender.next().await.unwrap().unwrap() {
                    Event::WindowUpdate(update) => {
                        let window = windows.iter_mut().find(|window| window.0 == update.channel_id).unwrap();
                        window.1 += i64::try_from(update.bytes).unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
            sender
        });
        for _ in 0..count {
            assert_eq!(other.message().await.1.len(), size);
        }
        let sender = soon("all is sent", sending).await.unwrap();
        let (mut got, mut lost) = (0, 0);
        while got + lost < count {
            match paused.event().await {
                Event::Message(message) => got += u64::from(message.channel_id == paused_channel.channel_id),
                Event::Gap(gap) => lost += gap.messages,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got + lost, count, "{size} bytes: every loss is reported, once");
        assert!(lost > 0, "{size} bytes: {got} fit into its queue");
        // Its stream is the same, and goes on.
        paused.barrier(1).await;
        drop(sender);
    }
}

/// A peer that stops reading and then leaves: each message of the application is refused, written or unsent, once. The
/// results stand before the end of the channel, which counts the messages that were not written.
#[tokio::test]
async fn each_message_is_written_refused_or_unsent() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let peer = Liar::established(&sidecar, 1).await;
    let channel = app.opened().await.channel_id;
    let payload = noise(100_000);
    let mut sent = 0;
    let (mut refused, mut written, mut unsent) = (Vec::new(), Vec::new(), Vec::new());
    let mut note = |event, after_the_end: bool| match event {
        Event::SendFailure(SendFailure { send_id, .. }) => refused.push(send_id),
        Event::SendResult(SendResult { send_id, written: true, .. }) if !after_the_end => {
            written.push(send_id)
        }
        Event::SendResult(SendResult { send_id, .. }) if !after_the_end => unsent.push(send_id),
        other => panic!("{other:?}"),
    };
    // The kernel takes some MiB; then the window fills, and messages are refused.
    let mut barrier = 0;
    loop {
        for _ in 0..20 {
            sent += 1;
            let wanted =
                OutboundMessage { send_id: sent, want_result: true, ..message(channel, 0, payload.clone()) };
            app.tell(ClientEventKind::Message(wanted)).await;
        }
        barrier += 1;
        app.tell(ClientEventKind::Barrier(Barrier { nonce: barrier })).await;
        let mut full = false;
        loop {
            match app.event().await {
                Event::BarrierReply(reply) => break assert_eq!(reply.nonce, barrier),
                event => {
                    full |= matches!(event, Event::SendFailure(_));
                    note(event, false);
                }
            }
        }
        if full {
            break;
        }
    }
    drop(peer);
    let closed = loop {
        match app.event().await {
            Event::ChannelClosed(closed) => break closed,
            event => note(event, false),
        }
    };
    // Messages that were sent before the application knew of the end are refused after it, and nothing else comes.
    sent += 1;
    let late = OutboundMessage { send_id: sent, want_result: true, ..message(channel, 0, payload) };
    app.tell(ClientEventKind::Message(late)).await;
    app.tell(ClientEventKind::Barrier(Barrier { nonce: 0 })).await;
    loop {
        match app.event().await {
            Event::BarrierReply(_) => break,
            event => note(event, true),
        }
    }
    assert_eq!(closed.unsent_messages, unsent.len() as u64);
    assert!(!unsent.is_empty() && !written.is_empty() && refused.len() > 1);
    let mut all: Vec<u64> = [refused, written, unsent].concat();
    all.sort_unstable();
    assert_eq!(all, (1..=sent).collect::<Vec<_>>(), "each once");
}
