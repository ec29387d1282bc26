//! The gRPC port's own bounds: connections of one caller, time to ask for something, streams that only listen.

use std::time::Duration;

use devp2pd::{
    net::clock,
    rpc::{
        proto::GetNodeInfoRequest,
        server::incoming::{FIRST_REQUEST, MAX_PER_ORIGIN},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{FIRST, Liar, Sidecar, eventually, soon};

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
