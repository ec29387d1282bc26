//! Registrations that outlive their streams: what waits, which caller may come back, and what the end of a name means
//! for peers.

use devp2pd::rpc::proto::{
    Attach, DeleteRegistrationRequest, ErrorReason, GetPeerRequest, GetRegistrationRequest, OutboundMessage,
    ProtocolSpec, RegisterProtocolsRequest, Registration, RegistrationSpec, RegistrationState,
    RenewRegistrationRequest, SetGreeting, StaticPeerState, WindowUpdate, attach::Target,
    delete_registration_request, get_registration_request::Registration as By,
    message_service_client::MessageServiceClient, renew_registration_request,
};
use prost_types::Duration;
use tonic::{Code, Status};

use crate::harness::{
    Application, ClientEventKind, Event, FIRST, Liar, MAX_RESPONSE, Sidecar, attach, connect, eventually,
    greeting, linked, message, protocol, refused, soon, spec,
};

async fn registration(sidecar: &Sidecar, by: By) -> Result<Registration, Status> {
    let request = GetRegistrationRequest { registration: Some(by) };
    Ok(sidecar.protocols().get_registration(request).await?.into_inner().registration.unwrap())
}

async fn in_state(sidecar: &Sidecar, client: &str, state: RegistrationState) -> Registration {
    eventually(&format!("{client} is {state:?}"), async || {
        let found = registration(sidecar, By::ClientId(client.to_owned())).await.unwrap();
        (found.state() == state).then_some(found)
    })
    .await
}

fn resume(token: String) -> Attach {
    Attach { target: Some(Target::ResumeToken(token)), auto_credit: true, ..Default::default() }
}

async fn attach_error(sidecar: &Sidecar, attach: Attach) -> Status {
    match Application::attach(sidecar.messages(), attach).await {
        Ok(_) => panic!("attached"),
        Err(status) => status,
    }
}

/// Waits until the sidecar has read this many messages of a peer.
async fn received(sidecar: &Sidecar, peer: &Sidecar, count: u64) {
    eventually("messages are received", async || {
        let request = GetPeerRequest { node: peer.id().to_string() };
        let answer = sidecar.peers().get_peer(request).await.unwrap().into_inner();
        (answer.traffic.unwrap().messages_received >= count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_broken_stream_lingers_and_resumes_at_the_exact_message() {
    let mut pair = linked().await;
    for number in 0..3 {
        pair.b_app.send(pair.b_channel, 0, [number]).await;
        assert_eq!(pair.a_app.message().await.1, [number]);
    }
    pair.a_app.send(pair.a_channel, 1, *b"before").await;
    pair.a_app.barrier(1).await;
    let (before, token) = (pair.a_app.attached.registration.clone().unwrap(), pair.a_app.token());
    assert_eq!((before.state(), before.generation), (RegistrationState::Attached, 1));
    drop(pair.a_app);
    let away = in_state(&pair.a, "echo-app", RegistrationState::Lingering).await;
    assert!(away.expire_time.is_some());
    for number in 3..6 {
        pair.b_app.send(pair.b_channel, 0, [number]).await;
    }
    received(&pair.a, &pair.b, 6).await;

    let mut back = Application::attach(pair.a.messages(), resume(token.clone())).await.unwrap();
    assert!(back.attached.resumed && back.attached.resume_token != token);
    assert_eq!(back.attached.registration.as_ref().unwrap().generation, 2);
    let opened = back.opened().await;
    assert!(opened.existing);
    assert_eq!((opened.position, opened.uncredited_messages), (3, None));
    for number in 3..6 {
        assert_eq!(back.message().await, (0, vec![number]));
    }
    assert_eq!(pair.b_app.message().await, (1, b"before".to_vec()));
    back.send(opened.channel_id, 1, *b"after").await;
    assert_eq!(pair.b_app.message().await, (1, b"after".to_vec()));

    // The token from before the break is worth nothing now, wherever it is shown.
    let stale = (Code::Aborted, "RESUME_TOKEN_STALE");
    let status = attach_error(&pair.a, resume(token.clone())).await;
    assert_eq!(refused(&status).kind(), stale);
    let by = renew_registration_request::Registration::ResumeToken(token);
    let request = RenewRegistrationRequest { registration: Some(by) };
    let status = pair.a.protocols().renew_registration(request).await.unwrap_err();
    assert_eq!(refused(&status).kind(), stale);
}

/// With credit by hand the sidecar knows which messages were handed over and never acknowledged.
#[tokio::test]
async fn what_was_not_credited_is_counted_at_the_resume() {
    let (a, b) = (Sidecar::start().await, Sidecar::start().await);
    let by_hand = Attach { auto_credit: false, ..attach(spec("careful", &[("echo", 1, 8)])) };
    let mut a_app = Application::attach(a.messages(), by_hand).await.unwrap();
    let mut b_app = b.echo().await;
    a.add_static(&b.enode()).await;
    let (channel, b_channel) = (a_app.opened().await.channel_id, b_app.opened().await.channel_id);
    for size in [100, 200, 300] {
        b_app.send(b_channel, 0, vec![1; size]).await;
        a_app.message().await;
    }
    // Credit for the first: its bytes and 64, for the channel and for the stream.
    let credit = |channel_id| ClientEventKind::WindowUpdate(WindowUpdate { channel_id, bytes: 164 });
    a_app.tell_all(vec![credit(channel), credit(0)]).await;
    a_app.barrier(1).await;
    let token = a_app.token();
    drop(a_app);
    in_state(&a, "careful", RegistrationState::Lingering).await;
    let mut back = Application::attach(a.messages(), resume(token)).await.unwrap();
    let opened = back.opened().await;
    assert_eq!((opened.position, opened.uncredited_messages), (3, Some(2)));
}

#[tokio::test]
async fn an_attempt_whose_answer_was_lost_is_answered_again() {
    let sidecar = Sidecar::start().await;
    let first = sidecar.echo().await;
    let token = first.token();
    drop(first);
    in_state(&sidecar, "echo-app", RegistrationState::Lingering).await;
    let attempt = Attach { request_id: "attempt-1".to_owned(), ..resume(token.clone()) };
    let mut lost = Application::attach(sidecar.messages(), attempt.clone()).await.unwrap();
    let again = Application::attach(sidecar.messages(), attempt.clone()).await.unwrap();
    assert!(again.attached.resumed);
    assert_eq!(refused(&lost.end().await).kind(), (Code::Aborted, "RESUME_TOKEN_STALE"));
    let other = Attach { request_id: "attempt-2".to_owned(), ..attempt };
    let status = attach_error(&sidecar, other).await;
    assert_eq!(refused(&status).kind(), (Code::Aborted, "RESUME_TOKEN_STALE"));
}

#[tokio::test]
async fn without_linger_everything_ends_with_the_stream() {
    let (a, b) = (Sidecar::start().await, Sidecar::start().await);
    let brief = RegistrationSpec { linger: Some(Duration::default()), ..spec("brief", &[("echo", 1, 8)]) };
    let (mut a_app, mut b_app) = (a.application(brief).await, b.echo().await);
    a.add_static(&b.enode()).await;
    a_app.opened().await;
    b_app.opened().await;
    drop(a_app);
    let closed = b_app.closed().await;
    assert_eq!((closed.reason().as_str_name(), &*closed.by), ("DISCONNECT_REASON_USELESS_PEER", "remote"));
    a.static_peer_in(StaticPeerState::WaitingForProtocol).await;
    let status = registration(&a, By::ClientId("brief".to_owned())).await.unwrap_err();
    assert_eq!(refused(&status).kind(), (Code::NotFound, "REGISTRATION_NOT_FOUND"));
}

#[tokio::test]
async fn a_name_has_one_owner_and_a_refusal_takes_nothing() {
    let sidecar = Sidecar::start().await;
    let mut owner = sidecar.application(spec("owner", &[("echo", 1, 8)])).await;
    let second = spec("second", &[("fresh", 1, 4), ("echo", 2, 8)]);
    let request = RegisterProtocolsRequest { spec: Some(second.clone()), ..Default::default() };
    let by_call = sidecar.protocols().register_protocols(request).await.unwrap_err();
    let by_stream = attach_error(&sidecar, attach(second.clone())).await;
    for status in [by_call, by_stream] {
        let refused = refused(&status);
        assert_eq!(refused.kind(), (Code::AlreadyExists, "PROTOCOL_ALREADY_REGISTERED"));
        for (key, value) in [("protocol", "echo"), ("owner", "owner"), ("state", "ATTACHED")] {
            assert_eq!(refused.metadata.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert!(!refused.metadata.contains_key("expire_time"));
    }
    let status = registration(&sidecar, By::Protocol("fresh".to_owned())).await.unwrap_err();
    assert_eq!(refused(&status).code, Code::NotFound);

    // Deleted, the name is free at once, and the stream hears why it ended.
    let by = delete_registration_request::Registration::ClientId("owner".to_owned());
    let request = DeleteRegistrationRequest { registration: Some(by) };
    sidecar.protocols().delete_registration(request).await.unwrap();
    assert_eq!(refused(&owner.end().await).kind(), (Code::NotFound, "REGISTRATION_NOT_FOUND"));
    sidecar.application(second).await;
    let found = registration(&sidecar, By::Protocol("echo".to_owned())).await.unwrap();
    assert_eq!(found.spec.unwrap().client_id, "second");
}

#[tokio::test]
async fn an_attached_registration_is_taken_by_its_token_and_not_by_its_name() {
    let sidecar = Sidecar::start().await;
    let mut holder = sidecar.echo().await;
    let named = Attach { target: Some(Target::ClientId("echo-app".to_owned())), ..Default::default() };
    let status = attach_error(&sidecar, named.clone()).await;
    assert_eq!(refused(&status).kind(), (Code::FailedPrecondition, "REGISTRATION_ATTACHED"));
    // Every process of the machine can come over open TCP.
    let status = attach_error(&sidecar, Attach { takeover: true, ..named.clone() }).await;
    assert_eq!(refused(&status).kind(), (Code::PermissionDenied, "NOT_AUTHORIZED"));
    let request = RegisterProtocolsRequest {
        spec: Some(spec("echo-app", &[("echo", 1, 8)])),
        takeover: true,
        ..Default::default()
    };
    let status = sidecar.protocols().register_protocols(request).await.unwrap_err();
    assert_eq!(refused(&status).kind(), (Code::PermissionDenied, "NOT_AUTHORIZED"));
    holder.barrier(1).await;

    let mut next = Application::attach(sidecar.messages(), resume(holder.token())).await.unwrap();
    assert_eq!(refused(&holder.end().await).kind(), (Code::Aborted, "RESUME_TOKEN_STALE"));
    next.barrier(2).await;
    drop(next);
    // Without a stream the name is enough: a shell has no more.
    in_state(&sidecar, "echo-app", RegistrationState::Lingering).await;
    let mut shell = Application::attach(sidecar.messages(), named).await.unwrap();
    assert!(shell.attached.resumed);
    shell.barrier(3).await;
}

#[tokio::test]
async fn registrations_stop_before_our_hello_is_too_large_for_peers() {
    let sidecar = Sidecar::start().await;
    let mut registered = 0;
    let refusal = loop {
        // 16 capabilities of the longest kind: 8 characters and a version of 32 bits.
        let protocols: Vec<ProtocolSpec> =
            (0..16).map(|at| protocol(&format!("long{registered:02}{at:02}"), u32::MAX - at, 1)).collect();
        let spec = RegistrationSpec { protocols, ..spec(&format!("app-{registered}"), &[]) };
        let request = RegisterProtocolsRequest { spec: Some(spec), ..Default::default() };
        match sidecar.protocols().register_protocols(request).await {
            Ok(_) => registered += 1,
            Err(status) => break refused(&status),
        }
        assert!(registered < 20, "no limit was met");
    };
    assert_eq!(refusal.kind(), (Code::InvalidArgument, "HELLO_TOO_LARGE"));
    assert_eq!(refusal.metadata.get("limit").map(String::as_str), Some("2048"));
    let mut peer = Liar::connect(&sidecar, 1).await;
    peer.shake_hands().await;
    assert_eq!(peer.hear_hello().await.capabilities.len(), registered * 16);
    assert!(registered > 5, "only {registered}");
}

/// A peer that shares nothing with anybody else goes when its registration goes; the others stay.
#[tokio::test]
async fn the_end_of_a_registration_releases_only_its_own_peers() {
    let sidecar = Sidecar::start().await;
    let mut echo = sidecar.echo().await;
    let mut other = sidecar.application(spec("other", &[("other", 1, 4)])).await;
    let mut peers = Vec::new();
    for (seed, capabilities) in
        [(1, &[("echo", 1)][..]), (2, &[("other", 1)]), (3, &[("echo", 1), ("other", 1)])]
    {
        let mut peer = Liar::connect(&sidecar, seed).await;
        peer.shake_hands().await;
        peer.say_hello(capabilities).await;
        peer.hear_hello().await;
        peers.push(peer);
    }
    for _ in 0..2 {
        echo.opened().await;
        other.opened().await;
    }
    let by = delete_registration_request::Registration::ResumeToken(echo.token());
    sidecar
        .protocols()
        .delete_registration(DeleteRegistrationRequest { registration: Some(by) })
        .await
        .unwrap();
    let reason = peers[0].reason().await.expect("a reason");
    assert_eq!(reason.code(), 0x03);
    // "echo" comes before "other": its codes are mute now, and the offset of "other" stays the same.
    peers[2].send(FIRST, b"to no application").await;
    peers[2].send(FIRST + 8, b"shared").await;
    assert_eq!(other.message().await, (0, b"shared".to_vec()));
    peers[1].send(FIRST, b"alone").await;
    assert_eq!(other.message().await, (0, b"alone".to_vec()));
}

fn greeted(name: &str, greetings: &[(u32, &[u8])]) -> ProtocolSpec {
    let greeting = greetings.iter().map(|(code, payload)| greeting(*code, payload)).collect();
    ProtocolSpec { greeting, ..protocol(name, 1, 8) }
}

/// On every connection, whichever side dialed and whether anybody is attached.
#[tokio::test]
async fn the_greeting_is_the_first_that_a_peer_hears() {
    let sidecar = Sidecar::start().await;
    let protocols = vec![greeted("echo", &[(0, b"status"), (2, b"and more")])];
    let spec = RegistrationSpec { protocols, ..spec("greeter", &[]) };
    let request = RegisterProtocolsRequest { spec: Some(spec.clone()), ..Default::default() };
    sidecar.protocols().register_protocols(request).await.unwrap();
    for seed in 0..16 {
        let mut peer = Liar::established(&sidecar, seed).await;
        assert_eq!(peer.receive().await, Some((FIRST, b"status".to_vec())), "peer {seed}");
        assert_eq!(peer.receive().await, Some((FIRST + 2, b"and more".to_vec())), "peer {seed}");
        sidecar.disconnected_after(peer).await;
    }
    let mut app = sidecar.application(spec).await;
    let mut peer = Liar::established(&sidecar, 100).await;
    let opened = loop {
        match app.event().await {
            Event::ChannelOpened(opened) if opened.peer.as_ref().unwrap().node_id == peer.id() => {
                break opened;
            }
            Event::ChannelOpened(_) | Event::ChannelClosed(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(opened.greeting_sent);
    app.send(opened.channel_id, 1, *b"ours").await;
    for expected in [(FIRST, &b"status"[..]), (FIRST + 2, b"and more"), (FIRST + 1, b"ours")] {
        assert_eq!(peer.receive().await, Some((expected.0, expected.1.to_vec())));
    }
    // A replaced greeting is the first message of the next peer; without a greeting there is none.
    let set = |messages| {
        ClientEventKind::SetGreeting(SetGreeting { name: "echo".to_owned(), version: 1, messages })
    };
    app.tell(set(vec![greeting(7, b"new")])).await;
    app.barrier(1).await;
    let mut peer = Liar::established(&sidecar, 101).await;
    assert_eq!(peer.receive().await, Some((FIRST + 7, b"new".to_vec())));
    assert!(app.opened().await.greeting_sent);
    app.tell(set(vec![])).await;
    app.barrier(2).await;
    let _peer = Liar::established(&sidecar, 102).await;
    assert!(!app.opened().await.greeting_sent);
}

#[tokio::test]
async fn the_first_messages_of_a_channel_are_kept_for_who_comes_back() {
    let sidecar = Sidecar::start().await;
    let protocols = vec![ProtocolSpec { keep_first: 2, ..protocol("echo", 1, 8) }];
    let mut app = sidecar.application(RegistrationSpec { protocols, ..spec("keeper", &[]) }).await;
    let mut peer = Liar::established(&sidecar, 1).await;
    assert_eq!(app.opened().await.first_messages, []);
    for number in 0..3 {
        peer.send(FIRST + u64::from(number), &[number]).await;
        assert_eq!(app.message().await, (u32::from(number), vec![number]));
    }
    let token = app.token();
    drop(app);
    let mut back = Application::attach(sidecar.messages(), resume(token)).await.unwrap();
    let opened = back.opened().await;
    assert_eq!((opened.existing, opened.position), (true, 3));
    let kept: Vec<_> = opened.first_messages.iter().map(|kept| (kept.code, kept.payload.to_vec())).collect();
    assert_eq!(kept, [(0, vec![0]), (1, vec![1])]);
    peer.send(FIRST, b"next").await;
    assert_eq!(back.message().await, (0, b"next".to_vec()));
}

/// A session that came and went while no stream was attached is reported whole: opened, its messages, closed.
#[tokio::test]
async fn a_session_that_passed_meanwhile_is_replayed() {
    let sidecar = Sidecar::start().await;
    let app = sidecar.echo().await;
    let token = app.token();
    drop(app);
    in_state(&sidecar, "echo-app", RegistrationState::Lingering).await;
    let mut peer = Liar::established(&sidecar, 1).await;
    peer.send(FIRST + 1, b"hello and").await;
    peer.send(FIRST + 2, b"goodbye").await;
    peer.send(1, &devp2pd::p2p::DisconnectReason::Quitting.encode()).await;
    soon("the sidecar closes", peer.drained()).await;
    sidecar.disconnected_after(peer).await;

    let mut back = Application::attach(sidecar.messages(), resume(token)).await.unwrap();
    let opened = back.opened().await;
    assert!(!opened.existing, "never announced before");
    assert_eq!(back.message().await, (1, b"hello and".to_vec()));
    assert_eq!(back.message().await, (2, b"goodbye".to_vec()));
    let closed = back.closed().await;
    assert_eq!((closed.channel_id, &*closed.by), (opened.channel_id, "remote"));
    assert_eq!(closed.reason().as_str_name(), "DISCONNECT_REASON_QUITTING");
}

/// A stream is taken over while it sends. Later sends on the old stream do not count, so that the new one, which
/// repeats them, sends each once. Credit goes to the new one, however late the end of the old one is noticed.
#[tokio::test]
async fn a_takeover_in_the_middle_of_sending_loses_and_repeats_nothing() {
    const ROUNDS: u32 = 40;
    const BATCH: u32 = 100;
    let mut pair = linked().await;
    let messages = async || {
        MessageServiceClient::new(connect(pair.a.started().grpc_addr).await)
            .max_decoding_message_size(MAX_RESPONSE)
    };
    let receiving = tokio::spawn(async move {
        for number in 0..ROUNDS * BATCH {
            let (_, payload) = pair.b_app.message().await;
            assert_eq!(payload.get(..4).unwrap(), number.to_be_bytes(), "in order, once");
        }
    });
    let (mut app, mut channel, mut old) = (pair.a_app, pair.a_channel, Vec::new());
    let mut window: i64 = 1 << 20;
    let mut sends = 0_u64;
    let mut unsure: Vec<(u64, u32)> = Vec::new();
    for round in 0..ROUNDS {
        let again: Vec<u32> = unsure.drain(..).map(|(_, number)| number).collect();
        let fresh = round * BATCH..(round + 1) * BATCH;
        for number in again.into_iter().chain(fresh) {
            // 1,000 bytes each: credit is needed, and comes back in large steps.
            while window <= 0 {
                match app.next().await.unwrap().unwrap() {
                    Event::WindowUpdate(update) => window += i64::try_from(update.bytes).unwrap(),
                    other => panic!("{other:?}"),
                }
            }
            sends += 1;
            let mut sent = message(channel, 0, [&number.to_be_bytes()[..], &[7; 996]].concat());
            sent.send_id = sends;
            app.tell(ClientEventKind::Message(sent)).await;
            window -= 1_064;
            unsure.push((sends, number));
        }
        if round + 1 == ROUNDS {
            break;
        }
        let next = Application::attach(messages().await, resume(app.token())).await.unwrap();
        old.push(std::mem::replace(&mut app, next));
        let opened = app.opened().await;
        (channel, window) = (opened.channel_id, i64::try_from(opened.send_window_bytes).unwrap());
        unsure.retain(|(id, _)| *id > app.attached.last_send_id);
    }
    soon("all of them", receiving).await.unwrap();
    for mut app in old {
        assert_eq!(refused(&app.end().await).kind().1, "RESUME_TOKEN_STALE");
    }
    app.barrier(1).await;
}

/// A process that was started anew counts its sends anew: the count of an earlier one does not apply.
#[tokio::test]
async fn the_last_send_id_is_of_the_process_that_asks() {
    let mut pair = linked().await;
    let send = async |app: &mut Application, channel, send_id| {
        app.tell(ClientEventKind::Message(OutboundMessage { send_id, ..message(channel, 0, *b"x") })).await;
        app.barrier(send_id).await;
    };
    send(&mut pair.a_app, pair.a_channel, 90).await;
    let again = |target| Attach { target: Some(target), auto_credit: true, ..Default::default() };
    let attach = async |target| Application::attach(pair.a.messages(), again(target)).await.unwrap();
    // A stream that sends nothing hides nothing.
    let by_token = attach(Target::ResumeToken(pair.a_app.token())).await;
    assert_eq!(by_token.attached.last_send_id, 90);
    let by_token = attach(Target::ResumeToken(by_token.token())).await;
    assert_eq!(by_token.attached.last_send_id, 90);
    drop((pair.a_app, by_token));
    in_state(&pair.a, "echo-app", RegistrationState::Lingering).await;
    let fresh = attach(Target::ClientId("echo-app".to_owned())).await;
    assert_eq!(fresh.attached.last_send_id, 90, "of the process before");
    let mut fresh = attach(Target::ResumeToken(fresh.token())).await;
    assert_eq!(fresh.attached.last_send_id, 0);
    let channel = fresh.opened().await.channel_id;
    send(&mut fresh, channel, 3).await;
    assert_eq!(attach(Target::ResumeToken(fresh.token())).await.attached.last_send_id, 3);
}

/// A message that no frame has room for was refused, and the next stream counts it so: to send it again would be in
/// vain.
#[tokio::test]
async fn a_send_that_no_peer_could_get_counts_as_refused() {
    let mut pair = linked().await;
    let large = vec![0; 16 << 20];
    pair.a_app
        .tell(ClientEventKind::Message(OutboundMessage { send_id: 7, ..message(pair.a_channel, 0, large) }))
        .await;
    let Event::SendFailure(failure) = pair.a_app.event().await else { panic!("16 MiB were not refused") };
    assert_eq!((failure.send_id, failure.reason()), (7, ErrorReason::MessageTooLarge));
    let resumed = Application::attach(pair.a.messages(), resume(pair.a_app.token())).await.unwrap();
    assert_eq!(resumed.attached.last_send_id, 7);
}

/// The end of a channel that was sent to a stream which broke is not repeated: the next stream gets the number of
/// remaining channels.
#[tokio::test]
async fn a_resumed_stream_says_how_many_channels_are_left() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    assert_eq!(app.attached.existing_channels, 0);
    let (one, two) = (Liar::established(&sidecar, 1).await, Liar::established(&sidecar, 2).await);
    let (_, stays) = (app.opened().await, app.opened().await);
    sidecar.disconnected_after(one).await;
    app.closed().await;
    let token = app.token();
    drop(app);
    in_state(&sidecar, "echo-app", RegistrationState::Lingering).await;
    // A channel that opened meanwhile is new, and one that ends meanwhile is still reported, with its end.
    let _three = Liar::established(&sidecar, 3).await;
    let mut app = Application::attach(sidecar.messages(), resume(token)).await.unwrap();
    assert_eq!(app.attached.existing_channels, 1);
    let (first, second) = (app.opened().await, app.opened().await);
    assert_eq!((first.existing, second.existing), (true, false));
    assert_eq!(first.session_id, stays.session_id);
    let token = app.token();
    drop(app);
    in_state(&sidecar, "echo-app", RegistrationState::Lingering).await;
    sidecar.disconnected_after(two).await;
    let mut app = Application::attach(sidecar.messages(), resume(token)).await.unwrap();
    assert_eq!(app.attached.existing_channels, 2);
    let opened = [app.event().await, app.event().await, app.event().await];
    let existing = |event: &&Event| matches!(event, Event::ChannelOpened(opened) if opened.existing);
    assert_eq!(opened.iter().filter(existing).count(), 2, "{opened:?}");
    assert!(opened.iter().any(|event| matches!(event, Event::ChannelClosed(_))), "{opened:?}");
}
