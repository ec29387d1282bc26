//! The gRPC port's own bounds: connections of one caller, time to ask for something, streams that only listen.

use std::time::Duration;

use devp2pd::{
    net::clock,
    rpc::{
        proto::{GetNodeInfoRequest, SendMessageRequest},
        server::{incoming::FIRST_REQUEST, seats::MAX_PER_ORIGIN},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{FIRST, Liar, Sidecar, eventually, refused, soon};

/// Waits until the other side closes, whatever it says before.
async fn closed(stream: &mut TcpStream) {
    let mut bytes = [0; 1024];
    while soon("an end", stream.read(&mut bytes)).await.is_ok_and(|count| count > 0) {}
}

/// HTTP/2 preface and an empty SETTINGS frame: a client that never gets to a request.
const POLITE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn one_caller_has_64_connections_and_five_seconds_to_ask() {
    let sidecar = Sidecar::start().await;
    let addr = sidecar.started().grpc_addr;
    // The client of this test has one already.
    sidecar.node().get_node_info(GetNodeInfoRequest {}).await.unwrap();
    let start = clock::now().mono;
    let mut held = Vec::new();
    for number in 1..MAX_PER_ORIGIN {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(POLITE).await.unwrap();
        }
        held.push(stream);
    }
    let mut beyond = TcpStream::connect(addr).await.unwrap();
    closed(&mut beyond).await;
    assert!(start.elapsed() < FIRST_REQUEST, "the machine is too slow for this test: {:?}", start.elapsed());
    // Whoever is in goes on, and the rest are cut when their time is over.
    sidecar.node().get_node_info(GetNodeInfoRequest {}).await.unwrap();
    for stream in &mut held {
        closed(stream).await;
    }
    assert!(start.elapsed() >= FIRST_REQUEST - Duration::from_millis(100), "after {:?}", start.elapsed());
    eventually("a new caller is let in", async || {
        let channel = crate::harness::connect(addr).await;
        let mut node = devp2pd::rpc::proto::node_service_client::NodeServiceClient::new(channel);
        node.get_node_info(GetNodeInfoRequest {}).await.ok()
    })
    .await;
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

/// The budget of requests that are not whole holds up who does not finish, and nobody who does: two hundred messages of
/// 1 MiB at once, over one connection.
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
