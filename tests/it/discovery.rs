//! Discovery of whole sidecars: both address families, and what goes through the sockets.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::BytesMut;
use devp2pd::{
    discv4::packet::{Expiration, Ping, Type, WireEndpoint, seal},
    node::NodeKey,
    rpc::proto::{AddBootnodeRequest, DiscoverySummary, GetNodeInfoRequest, ListNodesRequest},
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::net::UdpSocket;

use crate::harness::{Sidecar, eventually, try_start};

async fn summary(sidecar: &Sidecar) -> DiscoverySummary {
    let info = sidecar.node().get_node_info(GetNodeInfoRequest {}).await.unwrap().into_inner();
    info.discovery.unwrap()
}

/// A valid PING of a node that nobody knows.
fn ping(to: SocketAddr, from: SocketAddr) -> BytesMut {
    let key = NodeKey::random(&mut StdRng::seed_from_u64(4));
    let wire = |addr: SocketAddr| WireEndpoint { ip: Some(addr.ip()), udp: addr.port(), tcp: 0 };
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let ping = Ping { from: wire(from), to: wire(to), expiration: Expiration::from_now(now), enr_seq: None };
    let mut packet = BytesMut::new();
    seal(&key, Type::Ping, &mut packet, |stream| ping.append(stream));
    packet
}

/// Whether this machine speaks IPv6 to itself; some containers do not.
fn has_ipv6() -> bool {
    std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

#[tokio::test]
async fn without_other_wishes_both_families_are_bound_to_one_port() {
    let sidecar = Sidecar::start_with(&["--nodiscover=false", "--listen-addr", "any"]).await;
    let addrs = &sidecar.started().listen_addrs;
    let port = addrs[0].port();
    assert!(addrs.iter().all(|addr| addr.port() == port), "{addrs:?}");
    assert_eq!(addrs.len(), if has_ipv6() { 2 } else { 1 });
    let local = |addr: &SocketAddr| match addr {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    };
    for (number, addr) in addrs.iter().map(local).enumerate() {
        tokio::net::TcpStream::connect(addr).await.unwrap();
        // The UDP twin is there: it counts what it hears.
        let socket = UdpSocket::bind((addr.ip(), 0)).await.unwrap();
        socket.send_to(b"noise", addr).await.unwrap();
        let heard = number as u64 + 1;
        eventually("noise is counted", async || (summary(&sidecar).await.noise == heard).then_some(())).await;
    }
}

#[tokio::test]
async fn each_listening_address_keeps_its_own_port() {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let wanted = [free(), free()];
    let [first, second] = wanted.map(|addr| addr.to_string());
    let dir = tempfile::tempdir().unwrap();
    let app = try_start(dir.path(), &["--listen-addr", &first, "--listen-addr", &second]).await.unwrap();
    assert_eq!(app.started().listen_addrs, wanted);
    for addr in wanted {
        tokio::net::TcpStream::connect(addr).await.unwrap();
    }
    app.stop().await;
}

#[tokio::test]
async fn discovery_may_have_a_port_of_its_own() {
    let flags = ["--nodiscover=false", "--discovery-addr", "127.0.0.1:0", "--nodial"];
    let (sidecar, other) = (Sidecar::start_with(&flags).await, Sidecar::start_with(&flags).await);
    let endpoint = sidecar.started().record.endpoint().unwrap();
    assert_ne!(endpoint.udp, endpoint.tcp);
    assert!(sidecar.enode().ends_with(&format!("?discport={}", endpoint.udp)), "{}", sidecar.enode());
    let enr = sidecar.started().record.to_string();
    other.node().add_bootnode(AddBootnodeRequest { node: enr }).await.unwrap();
    eventually("the node is found at that port", async || {
        let nodes = other.discovery().list_nodes(ListNodesRequest::default()).await.unwrap();
        nodes.into_inner().nodes.iter().any(|node| node.live_checks > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn discovery_sends_no_more_than_it_may_and_still_finds_its_neighbour() {
    let flags = ["--nodiscover=false", "--nodial"];
    let slow = Sidecar::start_with(&[&flags[..], &["--discovery-rate", "20"]].concat()).await;
    let other = Sidecar::start_with(&flags).await;
    let enr = other.started().record.to_string();
    slow.node().add_bootnode(AddBootnodeRequest { node: enr }).await.unwrap();
    eventually("the neighbour is in both tables", async || {
        let nodes = slow.discovery().list_nodes(ListNodesRequest::default()).await.unwrap();
        (nodes.into_inner().nodes.iter().filter(|node| node.live_checks > 0).count() == 2).then_some(())
    })
    .await;
    // Far more questions than may be answered in a moment: what is beyond the rate is dropped, and counted.
    let before = summary(&slow).await;
    let flood = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let packet = ping(slow.peer_addr(), flood.local_addr().unwrap());
    for _ in 0..400 {
        flood.send_to(&packet, slow.peer_addr()).await.unwrap();
        tokio::task::yield_now().await;
    }
    let after = eventually("something is beyond the rate", async || {
        let now = summary(&slow).await;
        (now.over_rate > before.over_rate).then_some(now)
    })
    .await;
    assert!(after.discv4_received > before.discv4_received);
}
