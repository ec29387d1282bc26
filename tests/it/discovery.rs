//! Discovery of whole sidecars: both address families, and the packets through the sockets.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::BytesMut;
use devp2pd::{
    discv4::packet::{Expiration, Ping, Type, WireEndpoint, seal},
    node::{NodeKey, Record},
    rpc::proto::{
        AddBootnodeRequest, DeleteRecordEntryRequest, DeleteRegistrationRequest, DiscoverySummary,
        GetNodeInfoRequest, ListNodesRequest, SetRecordEntryRequest,
        delete_record_entry_request::Registration as Whose, delete_registration_request,
        set_record_entry_request::Registration as By,
    },
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::net::UdpSocket;
use tonic::Code;

use crate::harness::{Sidecar, eventually, refused, spec, try_start};

async fn summary(sidecar: &Sidecar) -> DiscoverySummary {
    let info = sidecar.node().get_node_info(GetNodeInfoRequest {}).await.unwrap().into_inner();
    info.discovery.unwrap()
}

/// A valid PING of an unknown node.
fn ping(to: SocketAddr, from: SocketAddr) -> BytesMut {
    let key = NodeKey::random(&mut StdRng::seed_from_u64(4));
    let wire = |addr: SocketAddr| WireEndpoint { ip: Some(addr.ip()), udp: addr.port(), tcp: 0 };
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let ping = Ping { from: wire(from), to: wire(to), expiration: Expiration::from_now(now), enr_seq: None };
    let mut packet = BytesMut::new();
    seal(&key, Type::Ping, &mut packet, |stream| ping.append(stream));
    packet
}

/// Whether this machine has IPv6 on loopback; some containers do not.
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
        // The UDP twin is bound: it counts received packets.
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
    // Far more questions than may be answered in a moment: answers beyond the rate are dropped, and counted.
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

#[tokio::test]
async fn a_record_entry_belongs_to_who_set_it_and_goes_with_its_lease() {
    let sidecar = Sidecar::start().await;
    let owner = sidecar.application(spec("owner", &[("echo", 1, 8)])).await;
    let _other = sidecar.application(spec("other", &[("talk", 1, 8)])).await;
    let set = async |key: &str, value: &[u8], client: Option<&str>| {
        let registration = client.map(|id| By::ClientId(id.to_owned()));
        let (key, value) = (key.to_owned(), value.to_vec().into());
        sidecar.node().set_record_entry(SetRecordEntryRequest { key, value, registration }).await
    };
    let has = async |key: &str| {
        let info = sidecar.node().get_node_info(GetNodeInfoRequest {}).await.unwrap().into_inner();
        let record: Record = info.enr.parse().unwrap();
        record.get(key.as_bytes()).map(<[u8]>::to_vec)
    };
    // An RLP string of one byte is that byte.
    set("eth", &[7], Some("owner")).await.unwrap();
    assert_eq!(has("eth").await, Some(vec![7]));
    for client in ["other", "owner"] {
        let outcome = set("eth", &[8], Some(client)).await;
        match client {
            "owner" => drop(outcome.unwrap()),
            _ => {
                let refused = refused(&outcome.unwrap_err());
                assert_eq!(
                    (refused.code, refused.reason.as_str()),
                    (Code::AlreadyExists, "RECORD_KEY_OWNED")
                );
                assert_eq!(
                    (refused.metadata["key"].as_str(), refused.metadata["owner"].as_str()),
                    ("eth", "owner")
                );
            }
        }
    }
    assert_eq!(has("eth").await, Some(vec![8]));
    set("mine", &[1], None).await.unwrap();
    assert!(set("mine", &[2], Some("owner")).await.is_err(), "the operator's");
    assert_eq!(refused(&set("x", &[1], Some("nobody")).await.unwrap_err()).reason, "REGISTRATION_NOT_FOUND");
    let too_large = [&[0xb9, 1, 0][..], &[1; 256]].concat();
    assert_eq!(refused(&set("big", &too_large, Some("owner")).await.unwrap_err()).reason, "RECORD_TOO_LARGE");
    let delete = DeleteRecordEntryRequest {
        key: "eth".to_owned(),
        registration: Some(Whose::ClientId("other".to_owned())),
    };
    assert_eq!(
        refused(&sidecar.node().delete_record_entry(delete).await.unwrap_err()).reason,
        "RECORD_KEY_OWNED"
    );
    let by = delete_registration_request::Registration::ClientId("owner".to_owned());
    let end = DeleteRegistrationRequest { registration: Some(by) };
    sidecar.protocols().delete_registration(end).await.unwrap();
    eventually("the entry is gone", async || has("eth").await.is_none().then_some(())).await;
    assert_eq!(has("mine").await, Some(vec![1]), "the operator's stays");
    drop(owner);
}
