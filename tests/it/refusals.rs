//! Refusals of the API: for each wrong request its code, exactly one reason, and the fields to blame.

use devp2pd::rpc::proto::{
    self, AddStaticPeerRequest, AddTrustedPeerRequest, Attach, BanPeerRequest, ConnectPeerRequest,
    DeleteRegistrationRequest, DisconnectPeerRequest, GetPeerRequest, GetRegistrationRequest,
    OutboundMessage, ProtocolSpec, ReceiveMessagesRequest, RegisterProtocolsRequest, RegistrationSpec,
    RemoveStaticPeerRequest, RemoveTrustedPeerRequest, RenewRegistrationRequest, SendMessageRequest,
    UnbanPeerRequest, attach::Target, ban_peer_request::Target as Ban,
    get_registration_request::Registration as By, renew_registration_request::Registration as Renew,
    send_message_request::Sender,
};
use prost_types::Duration;
use tonic::{Code, Response, Status};

use crate::harness::{
    Application, ClientEventKind, Refused, Sidecar, attach, greeting, linked, message, protocol, refused,
    spec,
};

/// One row: a call's outcome against the expected one.
#[track_caller]
fn check<T>(outcome: Result<Response<T>, Status>, code: Code, reason: &str, fields: &[&str]) -> Refused {
    let status = outcome.err().expect("refused");
    let refused = refused(&status);
    assert_eq!(
        (refused.kind(), &*refused.fields),
        ((code, reason), &fields.iter().map(ToString::to_string).collect::<Vec<_>>()[..]),
        "{status}"
    );
    assert!(refused.message.len() > 10, "has no text: {:?}", refused.message);
    refused
}

/// INVALID_ARGUMENT / INVALID_FIELD that blames one field.
#[track_caller]
fn wrong<T>(outcome: Result<Response<T>, Status>, field: &str) -> Refused {
    check(outcome, Code::InvalidArgument, "INVALID_FIELD", &[field])
}

const NOBODY: &str = "a448f24c6d18e575453db13171562b71999873db5b286df957af199ec94617f7";

#[tokio::test]
async fn nodes_that_are_none_and_nodes_that_are_unknown() {
    let sidecar = Sidecar::start().await;
    let mut peers = sidecar.peers();
    let key = sidecar.public_key().to_string();
    let bad = [
        String::new(),
        "geth".to_owned(),
        NOBODY[1..].to_owned(),
        format!("{NOBODY}00"),
        "0".repeat(128),
        "f".repeat(128),
        "enode://".to_owned(),
        format!("enode://{key}"),
        format!("enode://{key}@"),
        format!("enode://{}@127.0.0.1:30303", "0".repeat(128)),
        format!("enode://{key}@127.0.0.1:99999"),
        "enr:-not-a-record".to_owned(),
        format!("{}x", sidecar.started().record),
        "\u{1f980}".repeat(500),
    ];
    for node in bad {
        let node = || node.clone();
        wrong(peers.add_static_peer(AddStaticPeerRequest { node: node(), wait: None }).await, "node");
        wrong(peers.add_trusted_peer(AddTrustedPeerRequest { node: node() }).await, "node");
        wrong(peers.get_peer(GetPeerRequest { node: node() }).await, "node");
        wrong(peers.connect_peer(ConnectPeerRequest { node: node(), timeout: None }).await, "node");
        wrong(peers.disconnect_peer(DisconnectPeerRequest { node: node(), reason: 0 }).await, "node");
        wrong(
            peers.remove_static_peer(RemoveStaticPeerRequest { node: node(), ..Default::default() }).await,
            "node",
        );
        wrong(
            peers
                .unban_peer(UnbanPeerRequest {
                    target: Some(proto::unban_peer_request::Target::Node(node())),
                })
                .await,
            "node",
        );
        let request = SendMessageRequest { node: node(), protocol: "echo".to_owned(), ..Default::default() };
        wrong(sidecar.messages().send_message(request).await, "node");
    }
    // Addresses that cannot be dialed.
    for address in ["[::]:30303", "0.0.0.0:30303", "224.0.0.1:30303", "127.0.0.1:0?discport=30303"] {
        let node = || format!("enode://{key}@{address}");
        wrong(peers.add_static_peer(AddStaticPeerRequest { node: node(), wait: None }).await, "node");
        wrong(peers.connect_peer(ConnectPeerRequest { node: node(), timeout: None }).await, "node");
    }
    // Ourselves, wherever that would make no sense.
    wrong(peers.add_static_peer(AddStaticPeerRequest { node: sidecar.enode(), wait: None }).await, "node");
    wrong(peers.add_trusted_peer(AddTrustedPeerRequest { node: sidecar.enode() }).await, "node");

    let node = || NOBODY.to_owned();
    let absent = |outcome| check::<()>(outcome, Code::NotFound, "PEER_NOT_CONNECTED", &[]);
    let refused = absent(peers.get_peer(GetPeerRequest { node: node() }).await.map(|_| Response::new(())));
    assert_eq!(refused.metadata.get("node_id").map(String::as_str), Some(NOBODY));
    absent(
        peers
            .disconnect_peer(DisconnectPeerRequest { node: node(), reason: 0 })
            .await
            .map(|_| Response::new(())),
    );
    let unlisted = |outcome| check::<()>(outcome, Code::NotFound, "ENTRY_NOT_FOUND", &[]);
    let request = RemoveStaticPeerRequest { node: node(), ..Default::default() };
    unlisted(peers.remove_static_peer(request).await.map(|_| Response::new(())));
    unlisted(
        peers.remove_trusted_peer(RemoveTrustedPeerRequest { node: node() }).await.map(|_| Response::new(())),
    );
    // An id has no address, and there is no discovery to ask.
    let outcome = peers.add_static_peer(AddStaticPeerRequest { node: node(), wait: None }).await;
    check(outcome, Code::FailedPrecondition, "NODE_ADDRESS_UNKNOWN", &[]);
}

#[tokio::test]
async fn bans_and_dials_with_wrong_fields() {
    let sidecar = Sidecar::start().await;
    let mut peers = sidecar.peers();
    let hour = Some(Duration { seconds: 3600, nanos: 0 });
    let (ip, subnet) =
        (|text: &str| Some(Ban::Ip(text.to_owned())), |text: &str| Some(Ban::Subnet(text.to_owned())));
    let own = Some(Ban::Node(sidecar.id().to_string()));
    for (target, duration, field) in [
        (None, hour, "target"),
        (ip("localhost"), hour, "ip"),
        (ip(""), hour, "ip"),
        (ip("203.0.113.0/24"), hour, "ip"),
        (subnet("203.0.113.7/99"), hour, "subnet"),
        (own, hour, "target"),
        (ip("203.0.113.7"), None, "duration"),
        (ip("203.0.113.7"), Some(Duration::default()), "duration"),
        (ip("203.0.113.7"), Some(Duration { seconds: -1, nanos: 0 }), "duration"),
        (ip("203.0.113.7"), Some(Duration { seconds: i64::MAX, nanos: 0 }), "duration"),
    ] {
        wrong(peers.ban_peer(BanPeerRequest { target, duration, ..Default::default() }).await, field);
    }
    wrong(peers.unban_peer(UnbanPeerRequest { target: None }).await, "target");
    let target = Some(proto::unban_peer_request::Target::Ip("203.0.113.7".to_owned()));
    check(peers.unban_peer(UnbanPeerRequest { target }).await, Code::NotFound, "ENTRY_NOT_FOUND", &[]);

    let dial = |seconds, nanos| ConnectPeerRequest {
        node: NOBODY.to_owned(),
        timeout: Some(Duration { seconds, nanos }),
    };
    for request in [dial(61, 0), dial(60, 1), dial(-1, 0)] {
        wrong(peers.connect_peer(request).await, "timeout");
    }
    let key = sidecar.public_key();
    let elsewhere = format!("enode://{}@127.0.0.1:1", crate::harness::Liar::key_of(1).public());
    assert_ne!(key.to_string(), elsewhere);
    let request = ConnectPeerRequest { node: elsewhere, timeout: None };
    let refused = check(peers.connect_peer(request).await, Code::NotFound, "PROTOCOL_NOT_REGISTERED", &[]);
    assert!(refused.metadata.contains_key("node_id"));
}

#[tokio::test]
async fn registrations_that_cannot_be_right() {
    let sidecar = Sidecar::start().await;
    let register = async |spec: Option<RegistrationSpec>| {
        sidecar.protocols().register_protocols(RegisterProtocolsRequest { spec, ..Default::default() }).await
    };
    let one = |protocol: ProtocolSpec| RegistrationSpec { protocols: vec![protocol], ..spec("app", &[]) };
    let echo = || protocol("echo", 1, 8);
    let seconds = |seconds| Some(Duration { seconds, nanos: 0 });
    let stall = |stall_limit| Some(proto::OverflowPolicy { stall_limit, ..Default::default() });
    let table = [
        (None, "spec"),
        (Some(spec("", &[("echo", 1, 8)])), "spec.client_id"),
        (Some(spec("two words", &[("echo", 1, 8)])), "spec.client_id"),
        (Some(spec(&"x".repeat(65), &[("echo", 1, 8)])), "spec.client_id"),
        (Some(spec("app", &[])), "spec.protocols"),
        (Some(spec("app", &[("", 1, 8)])), "spec.protocols[0].name"),
        (Some(spec("app", &[("echo", 1, 8), ("ninechars", 1, 8)])), "spec.protocols[1].name"),
        (Some(spec("app", &[("a/b", 1, 8)])), "spec.protocols[0].name"),
        (Some(spec("app", &[("\u{e9}cho", 1, 8)])), "spec.protocols[0].name"),
        (Some(spec("app", &[("echo", 1, 8), ("echo", 1, 8)])), "spec.protocols[1].name"),
        (Some(spec("app", &[("echo", 1, 0)])), "spec.protocols[0].message_count"),
        (Some(spec("app", &[("echo", 1, u32::MAX)])), "spec.protocols[0].message_count"),
        // The fields that all must agree on.
        (Some(spec("app", &[("eth", 68, 18)])), "spec.protocols[0].message_count"),
        (
            Some(one(ProtocolSpec { max_message_bytes: 1 << 24, ..echo() })),
            "spec.protocols[0].max_message_bytes",
        ),
        (Some(one(ProtocolSpec { keep_first: 5, ..echo() })), "spec.protocols[0].keep_first"),
        (
            Some(one(ProtocolSpec { greeting: vec![greeting(8, b"")], ..echo() })),
            "spec.protocols[0].greeting[0].code",
        ),
        (
            Some(one(ProtocolSpec { greeting: vec![greeting(0, &[0; 65_537])], ..echo() })),
            "spec.protocols[0].greeting",
        ),
        (Some(RegistrationSpec { linger: seconds(601), ..one(echo()) }), "spec.linger"),
        (Some(RegistrationSpec { linger: seconds(-1), ..one(echo()) }), "spec.linger"),
        (
            Some(RegistrationSpec { overflow_policy: stall(seconds(11)), ..one(echo()) }),
            "spec.overflow_policy.stall_limit",
        ),
    ];
    for (spec, field) in table {
        wrong(register(spec.clone()).await, field);
        // The stream ends with the same error.
        let Some(spec) = spec else { continue };
        let status = Application::attach(sidecar.messages(), attach(spec)).await.err().expect("refused");
        assert_eq!(refused(&status).fields, [field]);
    }
    let many: Vec<ProtocolSpec> = (0..17).map(|version| protocol("echo", version, 8)).collect();
    let outcome = register(Some(RegistrationSpec { protocols: many, ..spec("app", &[]) })).await;
    check(outcome, Code::ResourceExhausted, "LIMIT_REACHED", &[]);
    let greetings = vec![greeting(0, b""); 9];
    let outcome = register(Some(one(ProtocolSpec { greeting: greetings, ..echo() }))).await;
    check(outcome, Code::ResourceExhausted, "LIMIT_REACHED", &[]);
    let request =
        RegisterProtocolsRequest { spec: Some(one(echo())), request_id: "x".repeat(65), takeover: false };
    wrong(sidecar.protocols().register_protocols(request).await, "request_id");
    let listed =
        sidecar.protocols().list_registrations(proto::ListRegistrationsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().registrations, [], "a refusal leaves nothing");
}

#[tokio::test]
async fn registrations_that_are_not_there() {
    let sidecar = Sidecar::start().await;
    let mut protocols = sidecar.protocols();
    wrong(
        protocols.renew_registration(RenewRegistrationRequest { registration: None }).await,
        "registration",
    );
    wrong(
        protocols.delete_registration(DeleteRegistrationRequest { registration: None }).await,
        "registration",
    );
    wrong(protocols.get_registration(GetRegistrationRequest { registration: None }).await, "registration");
    let by_id =
        |text: &str| GetRegistrationRequest { registration: Some(By::RegistrationId(text.to_owned())) };
    wrong(protocols.get_registration(by_id("xyz")).await, "registration_id");
    let unknown = |outcome| check::<()>(outcome, Code::NotFound, "REGISTRATION_NOT_FOUND", &[]);
    let gone = "0123456789abcdef";
    unknown(protocols.get_registration(by_id(gone)).await.map(|_| Response::new(())));
    for by in
        [By::ClientId("nobody".to_owned()), By::Protocol("eth".to_owned()), By::Protocol("eth/69".to_owned())]
    {
        let request = GetRegistrationRequest { registration: Some(by) };
        unknown(protocols.get_registration(request).await.map(|_| Response::new(())));
    }
    // A token of the right form that was never given, and one that is no token.
    let app = sidecar.echo().await;
    let mut forged = app.token();
    let last = if forged.pop() == Some('0') { '1' } else { '0' };
    forged.push(last);
    for token in ["nonsense".to_owned(), String::new(), "0".repeat(200)] {
        let renew = Some(Renew::ResumeToken(token.clone()));
        unknown(
            protocols
                .renew_registration(RenewRegistrationRequest { registration: renew })
                .await
                .map(|_| Response::new(())),
        );
        let target = Some(Target::ResumeToken(token));
        let status =
            Application::attach(sidecar.messages(), Attach { target, ..Default::default() }).await.err();
        assert_eq!(refused(&status.expect("refused")).kind(), (Code::NotFound, "REGISTRATION_NOT_FOUND"));
    }
    let renew = Some(Renew::ResumeToken(forged));
    let outcome = protocols.renew_registration(RenewRegistrationRequest { registration: renew }).await;
    check(outcome, Code::Aborted, "RESUME_TOKEN_STALE", &[]);
}

#[tokio::test]
async fn messages_that_cannot_be_sent() {
    let pair = linked().await;
    let mut client = pair.a.messages();
    let echo = SendMessageRequest {
        node: pair.b.id().to_string(),
        protocol: "echo".to_owned(),
        ..Default::default()
    };
    let request = SendMessageRequest { protocol: String::new(), ..echo.clone() };
    wrong(client.send_message(request).await, "protocol");
    for protocol in ["eth", "echo/", "echo/x", "/1"] {
        let request = SendMessageRequest { protocol: protocol.to_owned(), ..echo.clone() };
        check(client.send_message(request).await, Code::NotFound, "PROTOCOL_NOT_REGISTERED", &[]);
    }
    let request = SendMessageRequest { node: NOBODY.to_owned(), ..echo.clone() };
    check(client.send_message(request).await, Code::NotFound, "PEER_NOT_CONNECTED", &[]);
    for sender in [Sender::ResumeToken("nonsense".to_owned()), Sender::ClientId("nobody".to_owned())] {
        let request = SendMessageRequest { sender: Some(sender), ..echo.clone() };
        check(client.send_message(request).await, Code::NotFound, "REGISTRATION_NOT_FOUND", &[]);
    }
    for code in [8, u32::MAX] {
        let request = SendMessageRequest { code, ..echo.clone() };
        let refused =
            check(client.send_message(request).await, Code::OutOfRange, "MESSAGE_CODE_OUT_OF_RANGE", &[]);
        assert!(refused.message.contains("0 to 7"), "{}", refused.message);
    }
    let request = SendMessageRequest { payload: vec![0; 1 << 24].into(), ..echo.clone() };
    let refused = check(client.send_message(request).await, Code::InvalidArgument, "MESSAGE_TOO_LARGE", &[]);
    for (key, value) in [("bytes", "16777216"), ("limit", "16777215")] {
        assert_eq!(refused.metadata.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert!(refused.message.contains("16776442"), "both limits: {}", refused.message);
    // Nothing of all this reached the peer or harmed the session.
    client.send_message(SendMessageRequest { code: 7, ..echo }).await.unwrap();
    let mut b_app = pair.b_app;
    assert_eq!(b_app.message().await, (7, vec![]));
}

#[tokio::test]
async fn streams_that_do_not_begin_or_go_on_as_they_must() {
    let sidecar = Sidecar::start().await;
    let status = Application::attach(sidecar.messages(), Attach::default()).await.err().expect("refused");
    assert_eq!(refused(&status).fields, ["attach"]);
    let outcome = sidecar.messages().receive_messages(ReceiveMessagesRequest::default()).await;
    wrong(outcome, "target");
    let long = Attach { request_id: "x".repeat(65), ..attach(spec("app", &[("echo", 1, 8)])) };
    let status = Application::attach(sidecar.messages(), long).await.err().expect("refused");
    assert_eq!(refused(&status).fields, ["request_id"]);

    let violation = (Code::InvalidArgument, "STREAM_PROTOCOL_VIOLATION");
    for frames in [vec![], vec![ClientEventKind::Message(message(1, 0, []))]] {
        let events =
            |event| proto::ExchangeRequest { events: vec![proto::ClientEvent { event: Some(event) }] };
        let requests: Vec<_> = frames.into_iter().map(events).collect();
        let mut answers =
            sidecar.messages().exchange(tokio_stream::iter(requests)).await.unwrap().into_inner();
        assert_eq!(refused(&answers.message().await.unwrap_err()).kind(), violation);
    }
    let again = ClientEventKind::Attach(attach(spec("app", &[("echo", 1, 8)])));
    let unnumbered = ClientEventKind::Message(OutboundMessage { want_result: true, ..message(1, 0, []) });
    let nowhere = ClientEventKind::Message(OutboundMessage { channel_ids: vec![], ..message(1, 0, []) });
    let credit = |channel_id, bytes| ClientEventKind::WindowUpdate(proto::WindowUpdate { channel_id, bytes });
    for (event, field) in [
        (again, None),
        (unnumbered, Some("message.send_id")),
        (nowhere, Some("message.channel_ids")),
        (credit(7, 64), Some("window_update.channel_id")),
        (credit(0, u64::MAX), Some("window_update.bytes")),
    ] {
        let mut app = sidecar.echo().await;
        app.barrier(1).await;
        app.tell(event).await;
        let refused = refused(&app.end().await);
        match field {
            Some(field) => assert_eq!(refused.fields, [field]),
            None => assert_eq!(refused.kind(), violation),
        }
        // The registration is still there for the next stream: by its name, once the lease has begun.
        let by = delete(&sidecar).await;
        assert!(by.is_ok(), "{by:?}");
    }
}

async fn delete(sidecar: &Sidecar) -> Result<(), Status> {
    let by = proto::delete_registration_request::Registration::ClientId("echo-app".to_owned());
    let request = DeleteRegistrationRequest { registration: Some(by) };
    sidecar.protocols().delete_registration(request).await.map(|_| ())
}
