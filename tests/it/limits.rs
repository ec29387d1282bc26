//! The gRPC port's own bounds: connections of one caller, time to ask for something, streams that only listen.

use std::net::SocketAddr;

use devp2pd::rpc::{
    proto::{GetNodeInfoRequest, SendMessageRequest, node_service_client::NodeServiceClient},
    server::connection_slots::MAX_LOOPBACK,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::transport::Channel;

use crate::harness::{FIRST, Liar, Sidecar, refused, soon};

/// Waits until the other side closes, whatever it sends before.
async fn closed(stream: &mut TcpStream) {
    let mut bytes = [0; 1024];
    while soon("an end", stream.read(&mut bytes)).await.is_ok_and(|count| count > 0) {}
}

/// HTTP/2 preface and an empty SETTINGS frame: a client that never gets to a request.
const POLITE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A call over a connection of its own, which stays open.
async fn call(addr: SocketAddr) -> Channel {
    let channel = crate::harness::connect(addr).await;
    let mut node = NodeServiceClient::new(channel.clone());
    soon("a call", node.get_node_info(GetNodeInfoRequest {})).await.unwrap();
    channel
}

#[tokio::test]
async fn a_connection_has_five_seconds_to_ask() {
    let sidecar = Sidecar::start().await;
    let addr = sidecar.started().grpc_addr;
    sidecar.node().get_node_info(GetNodeInfoRequest {}).await.unwrap();
    let mut silent = TcpStream::connect(addr).await.unwrap();
    let mut polite = TcpStream::connect(addr).await.unwrap();
    polite.write_all(POLITE).await.unwrap();
    closed(&mut silent).await;
    closed(&mut polite).await;
    sidecar.node().get_node_info(GetNodeInfoRequest {}).await.unwrap();
}

/// One local program that keeps its connections open shuts no other caller out, whether it has made calls or not.
#[tokio::test]
async fn connections_without_an_open_call_make_room_for_new_ones() {
    let sidecar = Sidecar::start().await;
    let addr = sidecar.started().grpc_addr;
    let mut app = sidecar.echo().await;
    let mut pool = Vec::new();
    for _ in 0..MAX_LOOPBACK + 5 {
        pool.push(call(addr).await);
    }
    let mut silent = Vec::new();
    for _ in 0..MAX_LOOPBACK + 5 {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    for _ in 0..10 {
        pool.push(call(addr).await);
    }
    // A connection with a call that is open is not touched.
    app.barrier(7).await;
}

#[tokio::test]
async fn a_stream_that_sends_no_more_still_receives() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let mut peer = Liar::established(&sidecar, 1).await;
    app.opened().await;
    app.close_requests();
    for number in 0..3 {
        peer.send(FIRST, &[number]).await;
        assert_eq!(app.message().await, (0, vec![number]));
    }
    let mut late = Liar::established(&sidecar, 2).await;
    app.opened().await;
    late.send(FIRST + 1, b"late").await;
    assert_eq!(app.message().await, (1, b"late".to_vec()));
}

/// The budget of incomplete requests holds up only callers that do not finish: two hundred messages of 1 MiB at once,
/// over one connection.
#[tokio::test]
async fn many_large_messages_at_once_all_arrive() {
    let sidecar = Sidecar::start().await;
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let mut client = sidecar.messages();
            let request = SendMessageRequest {
                node: "00".repeat(32),
                protocol: "echo".to_owned(),
                payload: vec![7; 1 << 20].into(),
                ..Default::default()
            };
            tokio::spawn(async move { client.send_message(request).await.unwrap_err() })
        })
        .collect();
    for call in calls {
        let status = soon("an answer", call).await.unwrap();
        assert_eq!(refused(&status).kind().1, "PROTOCOL_NOT_REGISTERED");
    }
}
