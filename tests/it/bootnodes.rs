//! Bootnodes in every form, over each discovery protocol by itself.

use devp2pd::rpc::proto::{ListNodesRequest, TableNode};

use crate::harness::{Sidecar, eventually};

/// A sidecar that discovers over one protocol, starts at `bootnode`, and gets answers from it.
async fn starts_at(off: &str, list: &str, bootnode: &str, id: &str) {
    let flags = ["--nodiscover=false", off, "false", list, bootnode];
    let sidecar = Sidecar::start_with(&flags).await;
    eventually(&format!("{bootnode} over {list} without {off}"), async || {
        let nodes =
            sidecar.discovery().list_nodes(ListNodesRequest::default()).await.unwrap().into_inner().nodes;
        let answered = |there: &TableNode| {
            there.live_checks > 0 && there.node.as_ref().is_some_and(|node| node.node_id == id)
        };
        nodes.iter().any(answered).then_some(())
    })
    .await;
}

async fn bootnode() -> Sidecar {
    Sidecar::start_with(&["--nodiscover=false"]).await
}

#[tokio::test]
async fn each_protocol_starts_at_urls_and_at_records() {
    let boot = bootnode().await;
    let (url, record, id) = (boot.enode(), boot.started().record.to_string(), boot.id().to_string());
    for form in [&url, &record] {
        starts_at("--discv5", "--bootnodes", form, &id).await;
        // discv5 takes the first list where it has none of its own.
        starts_at("--discv4", "--bootnodes", form, &id).await;
        starts_at("--discv4", "--bootnodes-v5", form, &id).await;
    }
}

#[tokio::test]
async fn a_bootnode_with_a_host_name_is_looked_up_and_used() {
    let boot = bootnode().await;
    let named = boot.enode().replace("127.0.0.1", "localhost");
    assert!(named.contains("localhost"), "{named}");
    for (off, list) in [("--discv5", "--bootnodes"), ("--discv4", "--bootnodes-v5")] {
        starts_at(off, list, &named, &boot.id().to_string()).await;
    }
}
