//! Counters of discovery's parts on the metrics page.

use devp2pd::{
    discv4::{self, Verdict},
    discv5, dnsdisc,
    net::node_db,
};
use tokio::net::UdpSocket;

use crate::harness::{Sidecar, eventually, probe};

async fn page(sidecar: &Sidecar) -> String {
    probe(sidecar.started().http_addr.unwrap(), "/metrics").await.unwrap().1
}

#[tokio::test]
async fn whatever_discovery_counts_stands_in_the_metrics() {
    let sidecar = Sidecar::start_with(&["--nodiscover=false"]).await;
    let text = page(&sidecar).await;
    let shown = |name: &str, label: &str, value: &str| {
        let line = format!("devp2pd_{name}_total{{{label}=\"{value}\"}} ");
        assert!(text.contains(&line), "no {line}in\n{text}");
    };
    Verdict::ALL.iter().for_each(|verdict| shown("discv4_packets", "verdict", verdict.name()));
    for (name, names) in [
        ("discv4_events", discv4::Counters::default().named().map(|(name, _)| name).to_vec()),
        ("discv5_events", discv5::Counters::default().named().map(|(name, _)| name).to_vec()),
        ("node_db_events", node_db::Counters::default().named().map(|(name, _)| name).to_vec()),
        ("dns_tree_events", dnsdisc::Counters::default().named().map(|(name, _)| name).to_vec()),
    ] {
        names.iter().for_each(|event| shown(name, "event", event));
    }
    // One of them counts: a packet that is too short for discv4.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"short", sidecar.peer_addr()).await.unwrap();
    eventually("the packet is counted", async || {
        page(&sidecar).await.contains("devp2pd_discv4_packets_total{verdict=\"too_short\"} 1").then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_does_not_run_shows_no_counters() {
    let sidecar = Sidecar::start().await;
    let text = page(&sidecar).await;
    assert!(!text.contains("devp2pd_discv4_packets") && !text.contains("devp2pd_discv5_events"), "{text}");
}
