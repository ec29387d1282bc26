//! Access to gRPC: tokens, roles, TLS, certificates of clients, and the errors of callers that are refused.

use std::future::poll_fn;

use devp2pd::{
    app::App,
    config::{self, ConfigError},
    net::clock,
    rpc::{
        access::{
            Role,
            methods::{self, MAX_REQUEST},
        },
        descriptors,
        proto::{
            DeleteRegistrationRequest, DrainRequest, GetNodeInfoRequest, RegisterProtocolsRequest,
            SetRecordEntryRequest, delete_registration_request::Registration as Ended,
            node_service_client::NodeServiceClient, protocol_service_client::ProtocolServiceClient,
            set_record_entry_request::Registration,
        },
        server::incoming::FIRST_REQUEST,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::{Service, http},
    transport::Channel,
};
use tonic_prost::ProstCodec;

use crate::harness::{
    Authority, Sidecar, connect, connect_tls, connect_unix, eventually, put, refused, soon, spec, try_start,
};

const READ: &str = "read-0123456789abcdef";
const PROTOCOL: &str = "protocol-0123456789abcdef";
const ADMIN: &str = "admin-0123456789abcdef";

/// An access file with a token of each role.
fn tokens() -> String {
    format!("dash read token:{READ}\nnode protocol token:{PROTOCOL}\nops admin token:{ADMIN}\n")
}

/// A request with a bearer token.
fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// The status of a call with an empty request, before its first answer.
async fn knock(channel: &Channel, path: &str, token: &str) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = path.parse().unwrap();
    let call = grpc.server_streaming(with(token, ()), path, ProstCodec::<(), ()>::default());
    soon("an answer", call).await.map(|_| ())
}

/// How the gate answered: whether it let the call through to its service.
async fn gate(channel: &Channel, path: &str, token: &str) -> Option<Code> {
    let status = knock(channel, path, token).await.err()?;
    let denied = refused(&status).kind().1 == "NOT_AUTHORIZED"
        && (status.code() != Code::PermissionDenied || status.message().contains("this call needs the role"));
    denied.then_some(status.code())
}

#[tokio::test]
async fn every_call_is_refused_without_its_role() {
    let dir = tempfile::tempdir().unwrap();
    let access = put(dir.path(), "access", &tokens());
    let sidecar = Sidecar::start_with(&["--grpc-access", access.to_str().unwrap()]).await;
    let channel = sidecar.channel();
    let mut seen = [0; 3];
    for path in descriptors::methods() {
        let needs = methods::needs(&path).role.unwrap();
        let method = path.rsplit('/').next().unwrap();
        // A caller with the role read can change nothing, by the table of methods.
        let looks = ["Get", "List", "Watch"].iter().any(|verb| method.starts_with(verb));
        assert_eq!(needs == Role::Read, looks, "{path}");
        for token in ["", "wrong-0123456789abcdef", "read-0123456789abcde", &READ.to_uppercase()] {
            assert_eq!(gate(&channel, &path, token).await, Some(Code::Unauthenticated), "{path} {token:?}");
        }
        for (role, token) in [(Role::Read, READ), (Role::Protocol, PROTOCOL), (Role::Admin, ADMIN)] {
            // The last one would do it.
            if role == Role::Admin && method == "Drain" {
                continue;
            }
            let expected = (role < needs).then_some(Code::PermissionDenied);
            assert_eq!(gate(&channel, &path, token).await, expected, "{path} as {role}");
        }
        seen[needs as usize] += 1;
    }
    assert!(seen.iter().all(|count| *count >= 10), "{seen:?}");
    // Credentials come first: no call waits for a request of which not a byte has come.
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = "/devp2p.v1.MessageService/SendMessage".parse().unwrap();
    let endless = with(READ, tokio_stream::pending::<()>());
    let call = grpc.streaming(endless, path, ProstCodec::<(), ()>::default());
    let status = soon("a refusal", call).await.unwrap_err();
    assert_eq!(refused(&status).kind(), (Code::PermissionDenied, "NOT_AUTHORIZED"));
    // A method that does not exist needs the highest role; a public method needs none.
    let unknown = "/devp2p.v1.PeerService/Nothing";
    assert_eq!(gate(&channel, unknown, PROTOCOL).await, Some(Code::PermissionDenied));
    let status = knock(&channel, unknown, ADMIN).await.unwrap_err();
    assert_eq!(refused(&status).kind(), (Code::Unimplemented, "NOT_SUPPORTED"));
    knock(&channel, "/grpc.health.v1.Health/Check", "").await.unwrap();
    knock(&channel, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "").await.unwrap();
    // Over the Unix socket our user needs no token, and a wrong one is wrong.
    let unix = connect_unix(sidecar.started().grpc_socket.as_deref().unwrap()).await;
    assert_eq!(gate(&unix, "/devp2p.v1.PeerService/ListBans", "").await, None);
    let wrong = gate(&unix, "/devp2p.v1.PeerService/ListBans", "wrong-0123456789abcdef").await;
    assert_eq!(wrong, Some(Code::Unauthenticated));
}

#[tokio::test]
async fn a_token_is_a_name_that_owns_what_it_registers() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("{}two protocol token:second-0123456789abcdef\n", tokens());
    let access = put(dir.path(), "access", &file);
    let sidecar = Sidecar::start_with(&["--grpc-access", access.to_str().unwrap()]).await;
    let mut protocols = ProtocolServiceClient::new(sidecar.channel());
    let request = |takeover| RegisterProtocolsRequest {
        spec: Some(spec("app", &[("echo", 1, 8)])),
        takeover,
        ..Default::default()
    };
    protocols.register_protocols(with(PROTOCOL, request(false))).await.unwrap();
    let other =
        protocols.register_protocols(with("second-0123456789abcdef", request(true))).await.unwrap_err();
    assert_eq!(refused(&other).kind(), (Code::AlreadyExists, "PROTOCOL_ALREADY_REGISTERED"));
    // Its owner proves its identity, so it may take over, over TCP too.
    let again = protocols.register_protocols(with(PROTOCOL, request(true))).await.unwrap().into_inner();
    assert!(again.resumed);

    // An operator ends the registrations of others; another application does not.
    let end = || DeleteRegistrationRequest { registration: Some(Ended::ClientId("app".to_owned())) };
    protocols.delete_registration(with("second-0123456789abcdef", end())).await.unwrap_err();
    protocols.delete_registration(with(ADMIN, end())).await.unwrap();
    protocols.register_protocols(with(PROTOCOL, request(false))).await.unwrap();

    // Entries of the record: its own for an application, the operator's for an operator.
    let mut node = NodeServiceClient::new(sidecar.channel());
    let entry =
        |registration| SetRecordEntryRequest { key: "x".to_owned(), value: vec![0x01].into(), registration };
    let theirs = Some(Registration::ClientId("app".to_owned()));
    let status = node.set_record_entry(with(PROTOCOL, entry(None))).await.unwrap_err();
    assert_eq!(refused(&status).kind(), (Code::PermissionDenied, "NOT_AUTHORIZED"));
    node.set_record_entry(with(PROTOCOL, entry(theirs))).await.unwrap();
    node.drain(with(PROTOCOL, DrainRequest {})).await.unwrap_err();
    node.drain(with(ADMIN, DrainRequest {})).await.unwrap();
    sidecar.stop_asked().await;
}

#[tokio::test]
async fn tokens_and_certificates_are_replaced_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let authorities = [Authority::new(), Authority::new()];
    let identity = authorities[0].issue("localhost");
    let access = put(dir.path(), "access", &tokens());
    let cert = put(dir.path(), "cert.pem", &identity.cert);
    let key = put(dir.path(), "key.pem", &identity.key);
    let paths = [&access, &cert, &key].map(|path| path.to_str().unwrap());
    let data = tempfile::tempdir().unwrap();
    let flags = ["--grpc-access", paths[0], "--grpc-tls-cert", paths[1], "--grpc-tls-key", paths[2]];
    let app = try_start(data.path(), &flags).await.unwrap();
    let addr = app.started().grpc_addr;
    let channel = connect_tls(addr, &authorities[0], None).await.unwrap();
    let asks = async |token: &str| {
        NodeServiceClient::new(channel.clone()).get_node_info(with(token, GetNodeInfoRequest {})).await
    };
    asks(READ).await.unwrap();
    // A client that does not trust the certificate, or does not use TLS.
    connect_tls(addr, &authorities[1], None).await.unwrap_err();
    let plain = NodeServiceClient::new(connect(addr).await).get_node_info(GetNodeInfoRequest {}).await;
    assert_eq!(plain.unwrap_err().details(), b"", "no server answered");

    put(dir.path(), "access", "dash read token:another-0123456789abcdef");
    eventually("the new token is let in", async || asks("another-0123456789abcdef").await.ok()).await;
    let status = asks(READ).await.unwrap_err();
    assert_eq!(refused(&status).kind(), (Code::Unauthenticated, "NOT_AUTHORIZED"));
    // The connection that is there goes on with a new certificate; a new one meets it.
    let next = authorities[1].issue("localhost");
    put(dir.path(), "key.pem", &next.key);
    put(dir.path(), "cert.pem", &next.cert);
    eventually("the new certificate is served", async || connect_tls(addr, &authorities[1], None).await.ok())
        .await;
    asks("another-0123456789abcdef").await.unwrap();
    app.stop().await;
}

#[tokio::test]
async fn a_client_certificate_is_a_name_of_the_access_file() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let identity = ours.issue("localhost");
    let file = format!(
        "node protocol cert:spiffe://example/node\ndash read cert:dash.example\nops admin token:{ADMIN}\n"
    );
    let flags = [
        ("--grpc-access", put(dir.path(), "access", &file)),
        ("--grpc-tls-cert", put(dir.path(), "cert.pem", &identity.cert)),
        ("--grpc-tls-key", put(dir.path(), "key.pem", &identity.key)),
        ("--grpc-tls-client-ca", put(dir.path(), "ca.pem", &ours.pem())),
    ];
    let flags: Vec<&str> = flags.iter().flat_map(|(flag, path)| [*flag, path.to_str().unwrap()]).collect();
    let data = tempfile::tempdir().unwrap();
    let app: App = try_start(data.path(), &flags).await.unwrap();
    let addr = app.started().grpc_addr;
    let (list, register) =
        ("/devp2p.v1.PeerService/ListPeers", "/devp2p.v1.ProtocolService/RegisterProtocols");
    let ban = "/devp2p.v1.PeerService/BanPeer";
    for (name, answers) in [
        ("spiffe://example/node", [None, None, Some(Code::PermissionDenied)]),
        ("dash.example", [None, Some(Code::PermissionDenied), Some(Code::PermissionDenied)]),
        ("other.example", [Some(Code::Unauthenticated); 3]),
    ] {
        let channel = connect_tls(addr, &ours, Some(&ours.issue(name))).await.unwrap();
        for (path, answer) in [list, register, ban].into_iter().zip(answers) {
            assert_eq!(gate(&channel, path, "").await, answer, "{name} {path}");
        }
        // A token takes precedence over the certificate under it.
        assert_eq!(gate(&channel, ban, ADMIN).await, None, "{name}");
    }
    // In TLS 1.3 the client learns of its refusal with the first answer.
    for stranger in [None, Some(theirs.issue("spiffe://example/node"))] {
        if let Ok(channel) = connect_tls(addr, &ours, stranger.as_ref()).await {
            let status = knock(&channel, list, ADMIN).await.unwrap_err();
            assert_eq!((status.details(), status.code() != Code::Ok), (&b""[..], true), "no server answered");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn files_that_cannot_be_used_stop_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let bad = put(dir.path(), "access", "node writer token:0123456789abcdef");
    let missing = dir.path().join("missing").display().to_string();
    let bad = bad.to_str().unwrap();
    for (flags, expected) in [
        (vec!["--grpc-access", bad], "line 1: the role must be read, protocol or admin"),
        (vec!["--grpc-access", &missing], "no such file"),
        (vec!["--grpc-tls-cert", &missing, "--grpc-tls-key", &missing], "the certificate"),
    ] {
        let error = try_start(data.path(), &flags).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{flags:?}: {error}");
    }
    let load = |flags: &[&str]| {
        let args = ["devp2pd", "--data-dir", "/tmp/x"].iter().chain(flags).map(Into::into);
        config::load(args, []).map_err(|error: ConfigError| error.to_string())
    };
    for (flags, expected) in [
        (&["--grpc-addr", "192.0.2.1:1"][..], "--grpc-access"),
        (&["--grpc-addr", "192.0.2.1:1", "--grpc-tls-cert", "c", "--grpc-tls-key", "k"], "--grpc-access"),
        (&["--grpc-tls-cert", "c"], "give --grpc-tls-key too"),
        (&["--grpc-tls-key", "k"], "give --grpc-tls-cert too"),
        (&["--grpc-tls-client-ca", "c"], "needs TLS"),
        (
            &["--grpc-tls-client-ca", "c", "--grpc-tls-cert", "c", "--grpc-tls-key", "k"],
            "needs --grpc-access",
        ),
    ] {
        let error = load(flags).unwrap_err();
        assert!(error.contains(expected), "{flags:?}: {error}");
    }
    load(&["--grpc-addr", "192.0.2.1:1", "--grpc-access", "a"]).unwrap();
}

/// Errors that the gRPC library makes itself carry a reason too.
#[tokio::test]
async fn errors_of_the_library_have_a_reason() {
    let sidecar = Sidecar::start().await;
    let channel = sidecar.channel();
    let kind = |status: Status| {
        let refused = refused(&status);
        assert!(!refused.message.is_empty());
        (refused.code, refused.reason)
    };
    for path in ["/devp2p.v1.PeerService/Nothing", "/devp2p.v1.Nothing/X", "/other.Service/X"] {
        let status = knock(&channel, path, "").await.unwrap_err();
        assert_eq!(kind(status), (Code::Unimplemented, "NOT_SUPPORTED".to_owned()), "{path}");
    }
    // A number where each of these has a text or a message, in calls of each shape.
    for path in [
        "PeerService/GetPeer",
        "PeerService/WatchPeers",
        "MessageService/Exchange",
        "DiscoveryService/ServeTalk",
    ] {
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let number = prost_types::Duration { seconds: 5, nanos: 0 };
        let codec = ProstCodec::<prost_types::Duration, ()>::default();
        let request = Request::new(tokio_stream::once(number));
        let route = format!("/devp2p.v1.{path}").parse().unwrap();
        let status = match soon("an answer", grpc.streaming(request, route, codec)).await {
            Err(status) => status,
            Ok(answer) => match soon("an end", answer.into_inner().message()).await {
                Err(status) => status,
                Ok(answer) => panic!("{path} answers {answer:?}"),
            },
        };
        assert_eq!(kind(status), (Code::InvalidArgument, "REQUEST_MALFORMED".to_owned()), "{path}");
    }
    let large = devp2pd::rpc::proto::GetPeerRequest { node: "x".repeat(MAX_REQUEST) };
    let status = sidecar.peers().get_peer(large).await.unwrap_err();
    let told = refused(&status);
    assert_eq!(told.kind(), (Code::ResourceExhausted, "REQUEST_TOO_LARGE"));
    assert_eq!(told.metadata["limit"], MAX_REQUEST.to_string());
}

/// A TLS port gives silence as long as a plain one, and no longer; and others are served meanwhile.
#[tokio::test]
async fn silence_instead_of_a_handshake_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let identity = authority.issue("localhost");
    let (cert, key) =
        (put(dir.path(), "cert.pem", &identity.cert), put(dir.path(), "key.pem", &identity.key));
    let flags = ["--grpc-tls-cert", cert.to_str().unwrap(), "--grpc-tls-key", key.to_str().unwrap()];
    let data = tempfile::tempdir().unwrap();
    let app = try_start(data.path(), &flags).await.unwrap();
    let addr = app.started().grpc_addr;
    let start = clock::now().mono;
    let mut silent = Vec::new();
    for number in 0..20 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        // The beginning of a ClientHello that announces 500 bytes, and nothing.
        if number % 2 == 0 {
            stream.write_all(&[22, 3, 1, 1, 244, 1]).await.unwrap();
        }
        silent.push(stream);
    }
    let channel = connect_tls(addr, &authority, None).await.unwrap();
    assert_eq!(
        gate(&channel, "/devp2p.v1.PeerService/ListPeers", "").await,
        None,
        "no access file, no token"
    );
    for stream in &mut silent {
        let mut bytes = [0; 64];
        while soon("an end", stream.read(&mut bytes)).await.is_ok_and(|count| count > 0) {}
    }
    assert!(
        start.elapsed() >= FIRST_REQUEST - std::time::Duration::from_millis(100),
        "{:?}",
        start.elapsed()
    );
    app.stop().await;
}

/// Neither browsers nor HTTP/1 are answered: gRPC over HTTP/2 is all there is.
#[tokio::test]
async fn http_1_and_grpc_web_are_not_served() {
    let sidecar = Sidecar::start().await;
    let mut stream = TcpStream::connect(sidecar.started().grpc_addr).await.unwrap();
    let path = "/devp2p.v1.NodeService/GetNodeInfo";
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/grpc\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an end", stream.read_to_string(&mut answer)).await.unwrap();
    // The client learns which port this is, in words that no page of another site can read.
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(
        answer.contains("This is the gRPC port of devp2pd") && answer.contains("\r\nConnection: close\r\n")
    );
    assert!(!answer.to_ascii_lowercase().contains("access-control"), "{answer}");
    for kind in ["application/grpc-web", "application/grpc-web-text", "application/json", "text/plain"] {
        let request = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", kind)
            .body(tonic::body::Body::empty())
            .unwrap();
        let mut channel = sidecar.channel();
        poll_fn(|cx| Service::<http::Request<tonic::body::Body>>::poll_ready(&mut channel, cx))
            .await
            .unwrap();
        let response = soon("an answer", channel.call(request)).await.unwrap();
        assert_eq!(response.status(), 415, "{kind}");
    }
}
