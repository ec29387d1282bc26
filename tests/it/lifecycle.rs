//! Start and stop: the lock of the directory, the keys that are refused, and the end as applications and peers see it.

use std::os::unix::fs::PermissionsExt as _;

use devp2pd::{
    config,
    net::clock,
    p2p::DisconnectReason as Reason,
    rpc::proto::{
        Attach, DisconnectReason, GetNodeInfoRequest, GetNodeInfoResponse, RegisterProtocolsRequest,
        attach::Target,
    },
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::{
    Application, Event, FIRST, Liar, PATIENCE, Sidecar, eventually, linked, probe, refused, soon, spec,
    try_start,
};

async fn info(sidecar: &Sidecar) -> GetNodeInfoResponse {
    sidecar.node().get_node_info(GetNodeInfoRequest {}).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_data_directory_has_one_holder_and_the_second_hears_who() {
    let sidecar = Sidecar::start().await;
    let error = try_start(sidecar.data_dir(), &[]).await.unwrap_err().to_string();
    let pid = format!("process {}", std::process::id());
    for part in [sidecar.data_dir().to_str().unwrap(), &pid, &sidecar.started().grpc_addr.to_string()] {
        assert!(error.contains(part), "{part} is not in {error:?}");
    }
    // The first did not notice, and everything that it leaves behind is free.
    let first = info(&sidecar).await;
    let dir = sidecar.stop().await;
    let sidecar = Sidecar::start_in(dir, &[]).await;
    let second = info(&sidecar).await;
    assert_eq!((&second.node_id, second.node_id.len()), (&first.node_id, 64));
    assert_ne!(second.instance_id, first.instance_id);
}

#[tokio::test]
async fn what_was_chosen_is_told() {
    let sidecar = Sidecar::start_with(&["--identity", "test"]).await;
    let info = info(&sidecar).await;
    assert_eq!(info.listen_addresses, [sidecar.peer_addr().to_string()]);
    assert_ne!(sidecar.peer_addr().port(), 0);
    assert_eq!(info.enode, format!("enode://{}@{}", info.public_key, sidecar.peer_addr()));
    assert_eq!((info.enr, info.node_id), (sidecar.started().record.to_string(), sidecar.id().to_string()));
    assert!(info.client_name.starts_with("devp2pd/test/v"), "{}", info.client_name);
    let mut peer = Liar::connect(&sidecar, 1).await;
    peer.shake_hands().await;
    assert_eq!(peer.hear_hello().await.client, info.client_name);
}

#[tokio::test]
async fn keys_that_are_none_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    let good = "0101010101010101010101010101010101010101010101010101010101010101";
    let write = |text: &str, mode| {
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let start = async || try_start(&dir.path().join("data"), &["--nodekey", path.to_str().unwrap()]).await;
    for text in
        ["", "key", &"0".repeat(64), order, &order.replace("41", "42"), &good[1..], &format!("{good}00")]
    {
        write(text, 0o600);
        let error = start().await.unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()) && error.contains("key"), "{error}");
        assert!(
            text.is_empty() || text == "key" || !error.contains(text),
            "the error shows the key: {error}"
        );
    }
    write(good, 0o644);
    let error = start().await.unwrap_err().to_string();
    assert!(error.contains("0644"), "{error}");
    std::fs::remove_file(&path).unwrap();
    let error = start().await.unwrap_err().to_string();
    assert!(error.contains("no such file"), "{error}");
    write(good, 0o600);
    let app = start().await.unwrap();
    let id = devp2pd::node::NodeKey::from_hex(good).unwrap().id();
    assert_eq!(app.started().record.public_key().id(), id);
    app.stop().await;
}

/// A setting that would let every host in is refused before anything is started.
#[test]
fn an_api_for_everybody_must_be_asked_for() {
    let load = |flags: &[&str]| {
        let args = ["devp2pd", "--network", "none", "--nat", "none", "--data-dir", "/nonexistent"]
            .iter()
            .chain(flags)
            .map(Into::into);
        config::load(args, [])
    };
    let error = load(&["--grpc-addr", "0.0.0.0:50051"]).unwrap_err().to_string();
    assert!(error.contains("insecure-listen"), "{error}");
    load(&["--grpc-addr", "0.0.0.0:50051", "--insecure-listen"]).unwrap();
}

/// Told, then given time, then ended: in this order, and within the grace period although the application stays.
#[tokio::test]
async fn a_stop_tells_everybody_and_waits_for_nobody_beyond_its_grace() {
    let pair = linked().await;
    let (mut a_app, mut b_app) = (pair.a_app, pair.b_app);
    let (client, register) = (pair.a.messages(), pair.a.protocols());
    let token = a_app.token();
    let (app, _dir, channel) = pair.a.into_parts();
    let http = app.started().http_addr.unwrap();
    assert_eq!(probe(http, "/livez").await, Some((200, "alive".to_owned())));
    assert_eq!(probe(http, "/readyz").await, Some((200, "ready".to_owned())));
    // A stream of another service that its client never ends, on the same connection.
    let mut health = HealthClient::new(channel);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let status = soon("health", watch.message()).await.unwrap().unwrap().status();
    assert_eq!(status, ServingStatus::Serving);

    let began = clock::now().mono;
    let stopping = tokio::spawn(app.stop());
    let Event::Drain(notice) = a_app.event().await else { panic!("no notice") };
    assert!(notice.deadline.is_some());
    let status = soon("health", watch.message()).await.unwrap().unwrap().status();
    assert_eq!(status, ServingStatus::NotServing);
    assert_eq!(probe(http, "/livez").await, Some((200, "alive".to_owned())));
    assert_eq!(probe(http, "/readyz").await, Some((503, "draining".to_owned())));
    let draining = (Code::Unavailable, "SERVER_DRAINING");
    let request =
        RegisterProtocolsRequest { spec: Some(spec("late", &[("late", 1, 1)])), ..Default::default() };
    let status = register.clone().register_protocols(request).await.unwrap_err();
    assert_eq!((refused(&status).kind(), refused(&status).retry), (draining, true));
    let resume = Attach { target: Some(Target::ResumeToken(token)), ..Default::default() };
    let status = Application::attach(client, resume).await.err().expect("refused");
    assert_eq!(refused(&status).kind(), draining);
    // It is notified, and may still send.
    a_app.send(pair.a_channel, 4, *b"last words").await;
    assert_eq!(b_app.message().await, (4, b"last words".to_vec()));

    let closed = b_app.closed().await;
    assert_eq!((closed.reason(), &*closed.by), (DisconnectReason::Quitting, "remote"));
    let closed = a_app.closed().await;
    assert_eq!(
        (closed.reason(), &*closed.by, closed.unsent_messages),
        (DisconnectReason::Quitting, "sidecar", 0)
    );
    assert_eq!(refused(&a_app.end().await).kind(), draining);
    soon("the stop", stopping).await.unwrap();
    assert!(began.elapsed() < PATIENCE);
    eventually("the port is closed", async || probe(http, "/livez").await.is_none().then_some(())).await;
}

/// A message that was accepted for a peer before the stop is written before the reason.
#[tokio::test]
async fn accepted_messages_are_written_before_the_end() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let mut peer = Liar::established(&sidecar, 1).await;
    let channel = app.opened().await.channel_id;
    for number in 0..200 {
        app.send(channel, 0, vec![number; 2000]).await;
    }
    app.barrier(1).await;
    drop(app);
    let stopping = tokio::spawn(sidecar.stop());
    for number in 0..200 {
        assert_eq!(peer.receive().await, Some((FIRST, vec![number; 2000])));
    }
    assert_eq!(peer.reason().await, Some(Reason::Quitting));
    soon("the stop", stopping).await.unwrap();
}

/// Without applications and peers there is nothing to wait for.
#[tokio::test]
async fn an_idle_sidecar_stops_at_once() {
    let sidecar = Sidecar::start().await;
    let began = clock::now().mono;
    sidecar.stop().await;
    assert!(began.elapsed().as_secs() < 2, "{:?}", began.elapsed());
}
