//! The calls of an application, without a stream or beside it: change its registration, greet, broadcast.

use devp2pd::rpc::proto::{
    BroadcastMessageRequest, BroadcastMessageResponse, RegisterProtocolsRequest, RegistrationSpec,
    SetGreetingRequest, UpdateRegistrationRequest, broadcast_message_request::Sender,
    set_greeting_request::Registration as Greeter, update_registration_request::Registration as By,
};
use tonic::{Code, Status};

use crate::harness::{Event, FIRST, Liar, Sidecar, greeting, protocol, refused, spec};

async fn update(sidecar: &Sidecar, by: By, spec: RegistrationSpec) -> Result<RegistrationSpec, Status> {
    let request = UpdateRegistrationRequest { registration: Some(by), spec: Some(spec) };
    let answer = sidecar.protocols().update_registration(request).await?.into_inner();
    Ok(answer.registration.unwrap().spec.unwrap())
}

#[tokio::test]
async fn a_registration_changes_under_its_stream() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.application(spec("app", &[("echo", 1, 8), ("gone", 1, 8)])).await;
    let mut peer = Liar::established(&sidecar, 1).await;
    let channel = app.opened().await.channel_id;
    let token = app.token();
    let by = || By::ResumeToken(token.clone());
    let changed = update(&sidecar, by(), spec("app", &[("echo", 1, 8), ("new", 1, 8)])).await.unwrap();
    let names: Vec<_> = changed.protocols.iter().map(|protocol| protocol.name.as_str()).collect();
    assert_eq!(names, ["echo", "new"]);
    // The channel goes on, the token stays valid, and the protocol that was given up is free for others.
    peer.send(FIRST, b"still").await;
    assert_eq!(app.message().await, (0, b"still".to_vec()));
    app.send(channel, 1, *b"here").await;
    assert_eq!(peer.receive().await, Some((FIRST + 1, b"here".to_vec())));
    let _other = sidecar.application(spec("other", &[("gone", 1, 8)])).await;
    let taken = update(&sidecar, by(), spec("app", &[("echo", 1, 8), ("gone", 1, 8)])).await.unwrap_err();
    assert_eq!(refused(&taken).kind(), (Code::AlreadyExists, "PROTOCOL_ALREADY_REGISTERED"));
    let renamed = update(&sidecar, by(), spec("else", &[("echo", 1, 8)])).await.unwrap_err();
    assert_eq!(refused(&renamed).fields, ["spec.client_id"]);
    let nobody = update(&sidecar, By::ClientId("nobody".into()), spec("nobody", &[("x", 1, 1)])).await;
    assert_eq!(refused(&nobody.unwrap_err()).kind(), (Code::NotFound, "REGISTRATION_NOT_FOUND"));
    // A channel whose protocol goes closes, and with it the peer that shared nothing else.
    update(&sidecar, by(), spec("app", &[("new", 1, 8)])).await.unwrap();
    assert_eq!(app.closed().await.channel_id, channel);
    sidecar.disconnected(peer.key.id()).await;
}

#[tokio::test]
async fn a_greeting_is_set_by_a_call() {
    let sidecar = Sidecar::start().await;
    let request =
        RegisterProtocolsRequest { spec: Some(spec("app", &[("echo", 1, 8)])), ..Default::default() };
    sidecar.protocols().register_protocols(request).await.unwrap();
    let set = |version, code| SetGreetingRequest {
        registration: Some(Greeter::ClientId("app".to_owned())),
        name: "echo".to_owned(),
        version,
        messages: vec![greeting(code, b"hello")],
    };
    sidecar.protocols().set_greeting(set(1, 3)).await.unwrap();
    let mut peer = Liar::established(&sidecar, 1).await;
    assert_eq!(peer.receive().await, Some((FIRST + 3, b"hello".to_vec())));
    let version = sidecar.protocols().set_greeting(set(2, 3)).await.unwrap_err();
    assert_eq!(refused(&version).fields, ["name"]);
    let code = sidecar.protocols().set_greeting(set(1, 8)).await.unwrap_err();
    assert_eq!(refused(&code).fields, ["greeting[0].code"]);
}

async fn broadcast(
    sidecar: &Sidecar,
    code: u32,
    payload: Vec<u8>,
    max_peers: u32,
    except: &[String],
) -> Result<BroadcastMessageResponse, Status> {
    let request = BroadcastMessageRequest {
        protocol: "echo".to_owned(),
        code,
        payload: payload.into(),
        max_peers,
        except: except.to_vec(),
        sender: None,
    };
    Ok(sidecar.messages().broadcast_message(request).await?.into_inner())
}

#[tokio::test]
async fn a_broadcast_reaches_all_but_those_excepted_and_names_who_refused() {
    let sidecar = Sidecar::start().await;
    let nobody = broadcast(&sidecar, 0, vec![1], 0, &[]).await.unwrap_err();
    assert_eq!(refused(&nobody).kind(), (Code::NotFound, "PROTOCOL_NOT_REGISTERED"));
    let mut app = sidecar.echo().await;
    assert_eq!(broadcast(&sidecar, 0, vec![1], 0, &[]).await.unwrap(), Default::default(), "no peers");
    let mut peers = Vec::new();
    for seed in 1..=4 {
        peers.push(Liar::established(&sidecar, seed).await);
        assert!(matches!(app.event().await, Event::ChannelOpened(_)));
    }
    let except = [peers[0].id()];
    let answer = broadcast(&sidecar, 2, b"news".to_vec(), 0, &except).await.unwrap();
    let mut told = answer.node_ids.clone();
    told.sort();
    let mut expected: Vec<_> = peers[1..].iter().map(Liar::id).collect();
    expected.sort();
    assert_eq!((told, answer.refused), (expected, vec![]));
    for peer in &mut peers[1..] {
        assert_eq!(peer.receive().await, Some((FIRST + 2, b"news".to_vec())));
    }
    let some = broadcast(&sidecar, 2, b"some".to_vec(), 2, &[]).await.unwrap();
    assert_eq!((some.node_ids.len(), some.refused.len()), (2, 0));
    // A code that the protocol does not have is refused by every peer, and each is named.
    let none = broadcast(&sidecar, 8, vec![], 0, &[]).await.unwrap();
    assert_eq!((none.node_ids.len(), none.refused.len()), (0, 4));
    assert_eq!(none.refused[0].reason().as_str_name(), "ERROR_REASON_MESSAGE_CODE_OUT_OF_RANGE");
    let wrong = broadcast(&sidecar, 0, vec![], 0, &["x".to_owned()]).await.unwrap_err();
    assert_eq!(refused(&wrong).fields, ["except[0]"]);
    let request = BroadcastMessageRequest {
        protocol: "echo".to_owned(),
        sender: Some(Sender::ClientId("someone".to_owned())),
        ..Default::default()
    };
    let other = sidecar.messages().broadcast_message(request).await.unwrap_err();
    assert_eq!(refused(&other).kind(), (Code::NotFound, "REGISTRATION_NOT_FOUND"));
    // With a version, only peers that use it.
    let _two = sidecar
        .application(RegistrationSpec { protocols: vec![protocol("two", 2, 8)], ..spec("two", &[]) })
        .await;
    let request = BroadcastMessageRequest { protocol: "two/1".to_owned(), ..Default::default() };
    assert_eq!(sidecar.messages().broadcast_message(request).await.unwrap().into_inner().node_ids.len(), 0);
}
