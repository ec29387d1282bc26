//! The tools of operators beside peers: metrics, the Unix socket, stopping by a call, the log filter.

use devp2pd::rpc::proto::{
    DrainRequest, GetNodeInfoRequest, RegisterProtocolsRequest, SetLogFilterRequest,
    node_service_client::NodeServiceClient, protocol_service_client::ProtocolServiceClient,
};
use tonic::Code;

use crate::harness::{FIRST, Liar, Sidecar, connect_unix, probe, refused, spec, try_start};

/// The value of a line of the metrics page; labels as they stand there.
async fn value(sidecar: &Sidecar, line: &str) -> Option<u64> {
    let (status, page) = probe(sidecar.started().http_addr.unwrap(), "/metrics").await.unwrap();
    assert_eq!(status, 200);
    assert!(page.ends_with("# EOF"), "{page}");
    page.lines().find_map(|have| have.strip_prefix(line)?.trim().parse().ok())
}

#[tokio::test]
async fn metrics_count_peers_and_messages_and_name_nobody() {
    let sidecar = Sidecar::start().await;
    assert_eq!(value(&sidecar, "devp2pd_peers{direction=\"inbound\"}").await, Some(0));
    let mut app = sidecar.echo().await;
    let mut peer = Liar::established(&sidecar, 1).await;
    app.opened().await;
    peer.send(FIRST, &[7; 100]).await;
    app.message().await;
    assert_eq!(value(&sidecar, "devp2pd_peers{direction=\"inbound\"}").await, Some(1));
    assert_eq!(value(&sidecar, "devp2pd_let_in_total").await, Some(1));
    assert_eq!(value(&sidecar, "devp2pd_registrations{state=\"attached\"}").await, Some(1));
    let received = "devp2pd_messages_total{protocol=\"echo\",version=\"1\",direction=\"in\"}";
    assert_eq!(value(&sidecar, received).await, Some(1));
    let bytes = value(&sidecar, "devp2pd_wire_bytes_total{direction=\"in\"}").await.unwrap();
    assert!(bytes > 0);
    // The first ping comes after 15 s; until then no round trip is made up.
    assert_eq!(value(&sidecar, "devp2pd_peer_round_trip_microseconds{quantile=\"0.5\"}").await, None);
    let (_, page) = probe(sidecar.started().http_addr.unwrap(), "/metrics").await.unwrap();
    assert!(!page.contains(&peer.id()) && !page.contains("127.0.0.1"), "{page}");
    // A counter does not go back when the session is over.
    sidecar.disconnected_after(peer).await;
    assert_eq!(value(&sidecar, received).await, Some(1));
    assert!(value(&sidecar, "devp2pd_wire_bytes_total{direction=\"in\"}").await.unwrap() >= bytes);
}

#[tokio::test]
async fn the_unix_socket_serves_the_same_and_its_callers_are_known() {
    let sidecar = Sidecar::start().await;
    let path = sidecar.started().grpc_socket.clone().unwrap();
    assert_eq!(path, sidecar.data_dir().join("grpc.sock"));
    let channel = connect_unix(&path).await;
    let info = NodeServiceClient::new(channel.clone()).get_node_info(GetNodeInfoRequest {}).await.unwrap();
    assert_eq!(info.into_inner().node_id, sidecar.id().to_string());
    // A caller with an identity may take over its own registrations; over TCP all callers are one anonymous caller.
    let _app = sidecar.echo().await;
    let request = || RegisterProtocolsRequest {
        spec: Some(spec("echo-app", &[("echo", 1, 8)])),
        takeover: true,
        ..Default::default()
    };
    let by_tcp = sidecar.protocols().register_protocols(request()).await.unwrap_err();
    assert_eq!(refused(&by_tcp).kind(), (Code::PermissionDenied, "NOT_AUTHORIZED"));
    let theirs = ProtocolServiceClient::new(channel).register_protocols(request()).await.unwrap_err();
    assert_eq!(refused(&theirs).kind(), (Code::AlreadyExists, "PROTOCOL_ALREADY_REGISTERED"), "another's");
    let dir = sidecar.stop().await;
    assert!(!path.exists());
    // Without it, or where it cannot be.
    let app = try_start(dir.path(), &["--grpc-socket", "none"]).await.unwrap();
    assert_eq!(app.started().grpc_socket, None);
    app.stop().await;
    std::fs::write(&path, "a file").unwrap();
    let app = try_start(dir.path(), &[]).await.unwrap();
    assert_eq!(app.started().grpc_socket, None, "the default may be missing");
    app.stop().await;
    let error = try_start(dir.path(), &["--grpc-socket", path.to_str().unwrap()]).await.unwrap_err();
    assert!(error.to_string().contains("no socket"), "{error}");
}

#[tokio::test]
async fn stopping_by_a_call_needs_the_unix_socket() {
    let sidecar = Sidecar::start().await;
    let by_tcp = sidecar.node().drain(DrainRequest {}).await.unwrap_err();
    assert_eq!(refused(&by_tcp).kind(), (Code::PermissionDenied, "NOT_AUTHORIZED"));
    let filter = || SetLogFilterRequest { filter: "debug".to_owned() };
    let by_tcp = sidecar.node().set_log_filter(filter()).await.unwrap_err();
    assert_eq!(refused(&by_tcp).kind(), (Code::PermissionDenied, "NOT_AUTHORIZED"));
    let channel = connect_unix(sidecar.started().grpc_socket.as_deref().unwrap()).await;
    let mut node = NodeServiceClient::new(channel);
    let empty = node.set_log_filter(SetLogFilterRequest::default()).await.unwrap_err();
    assert_eq!(refused(&empty).fields, ["filter"]);
    let answer = node.drain(DrainRequest {}).await.unwrap().into_inner();
    assert!(answer.end_time.is_some());
    sidecar.stop_asked().await;
    sidecar.stop().await;
}
