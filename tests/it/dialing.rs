//! Who is dialed: networks and dial filters, and how a late protocol reaches peers that are connected.

use std::collections::HashMap;

use devp2pd::{
    config::{Network, networks::Preset},
    node::{ForkId, ForkSchedule, Head},
    rpc::proto::{
        self, AddBootnodeRequest, DialFilter, ForkFilter, GetNodeInfoRequest, PeerSource, ProtocolSpec,
        RecordEntryFilter, RegistrationSpec, SetRecordEntryRequest, UpdateRegistrationRequest,
        dial_filter::Filter, update_registration_request::Registration as By,
    },
};

use crate::harness::{Sidecar, eventually, protocol, spec};

/// A node with the protocol eth that waits to be dialed, with this entry in its record.
async fn waiting(entry: Option<(&str, Vec<u8>)>) -> Sidecar {
    let sidecar = Sidecar::start_with(&["--nodiscover=false", "--nodial"]).await;
    if let Some((key, value)) = entry {
        let (key, value) = (key.to_owned(), value.into());
        let set = SetRecordEntryRequest { key, value, registration: None };
        sidecar.node().set_record_entry(set).await.unwrap();
    }
    sidecar
}

fn eth(client: &str) -> RegistrationSpec {
    spec(client, &[("eth", 69, 18)])
}

/// Adds `other` to the table of `sidecar`.
async fn introduce(sidecar: &Sidecar, other: &Sidecar) {
    let info = other.node().get_node_info(GetNodeInfoRequest {}).await.unwrap().into_inner();
    sidecar.node().add_bootnode(AddBootnodeRequest { node: info.enr }).await.unwrap();
}

async fn not_dialed(sidecar: &Sidecar) -> HashMap<String, u64> {
    let info = sidecar.node().get_node_info(GetNodeInfoRequest {}).await.unwrap().into_inner();
    info.peers.unwrap().not_dialed
}

fn filter(filter: Filter) -> Option<DialFilter> {
    Some(DialFilter { filter: Some(filter) })
}

/// The fork id that a node of the network announces.
fn fork_id(schedule: &ForkSchedule) -> Vec<u8> {
    schedule.id(Head { height: 30_000_000, time: 1_790_000_000 }).encode_entry()
}

/// Each discovery protocol by itself, over the code path that joins the public network.
#[tokio::test]
async fn of_a_network_only_its_own_nodes_are_dialed() {
    let ours = Preset::of(Network::Mainnet).unwrap().fork_schedule();
    let theirs = Preset::of(Network::Sepolia).unwrap().fork_schedule();
    let same = waiting(Some(("eth", fork_id(&ours)))).await;
    let other = waiting(Some(("eth", fork_id(&theirs)))).await;
    let none = waiting(None).await;
    let mut apps = Vec::new();
    for sidecar in [&same, &other, &none] {
        apps.push(sidecar.application(eth("peer")).await);
    }
    for (off, source) in [("--discv5", PeerSource::Discv4), ("--discv4", PeerSource::Discv5)] {
        let flags = [
            "--nodiscover=false",
            "--network",
            "mainnet",
            "--bootnodes",
            "none",
            "--bootnodes-v5",
            "none",
            "--dns-tree",
            "none",
            off,
            "false",
        ];
        let sidecar = Sidecar::start_with(&flags).await;
        let _app = sidecar.application(eth("node")).await;
        for known in [&same, &other, &none] {
            introduce(&sidecar, known).await;
        }
        let peer = sidecar.connected(same.id()).await;
        assert_eq!(peer.source(), source);
        eventually("the others were seen and not dialed", async || {
            (not_dialed(&sidecar).await.get("filtered").is_some_and(|count| *count >= 2)).then_some(())
        })
        .await;
        for wrong in [&other, &none] {
            assert!(sidecar.peer(wrong.id()).await.is_none());
            assert!(wrong.peer(sidecar.id()).await.is_none());
        }
    }
}

#[tokio::test]
async fn an_application_says_which_nodes_are_worth_a_dial_and_may_change_its_mind() {
    let yes = waiting(Some(("mine", vec![7]))).await;
    let no = waiting(Some(("mine", vec![8]))).await;
    let apps = (yes.application(eth("peer")).await, no.application(eth("peer")).await);
    let sidecar = Sidecar::start_with(&["--nodiscover=false"]).await;
    let wanting = |value: u8| RegistrationSpec {
        dial_filter: filter(Filter::RecordEntry(RecordEntryFilter {
            key: "mine".to_owned(),
            accepted_values: vec![vec![value].into()],
        })),
        desired_peers: 5,
        ..eth("node")
    };
    let app = sidecar.application(wanting(7)).await;
    for known in [&yes, &no] {
        introduce(&sidecar, known).await;
    }
    sidecar.connected(yes.id()).await;
    eventually("the other is filtered", async || not_dialed(&sidecar).await.get("filtered").map(|_| ()))
        .await;
    assert!(sidecar.peer(no.id()).await.is_none());
    let update = UpdateRegistrationRequest {
        registration: Some(By::ResumeToken(app.token())),
        spec: Some(wanting(8)),
    };
    let updated = sidecar.protocols().update_registration(update).await.unwrap().into_inner();
    assert_eq!(updated.registration.unwrap().spec.unwrap().dial_filter, wanting(8).dial_filter);
    sidecar.connected(no.id()).await;
    assert!(sidecar.peer(yes.id()).await.is_some(), "a peer stays");
    drop(apps);
}

/// A chain without a preset: the application brings it.
#[tokio::test]
async fn a_fork_filter_of_an_application_knows_its_chain() {
    let ours = ForkSchedule::new([1; 32], 5, &[10], &[1_000]);
    let id = ForkId { hash: ours.id(Head::default()).hash, next: 10 };
    let (same, other) = (
        waiting(Some(("eth", id.encode_entry()))).await,
        waiting(Some(("eth", ForkId { hash: [9; 4], ..id }.encode_entry()))).await,
    );
    let _apps = (same.application(eth("peer")).await, other.application(eth("peer")).await);
    let sidecar = Sidecar::start_with(&["--nodiscover=false"]).await;
    let chain = ForkFilter {
        genesis_hash: vec![1; 32].into(),
        genesis_time: 5,
        fork_heights: vec![10],
        fork_times: vec![1_000],
        ..Default::default()
    };
    let _app = sidecar
        .application(RegistrationSpec { dial_filter: filter(Filter::Fork(chain)), ..eth("node") })
        .await;
    for known in [&same, &other] {
        introduce(&sidecar, known).await;
    }
    sidecar.connected(same.id()).await;
    eventually("the other is filtered", async || not_dialed(&sidecar).await.get("filtered").map(|_| ()))
        .await;
    assert!(sidecar.peer(other.id()).await.is_none());
}

/// Its sessions were there before the protocol was; one of them is reconnected and has it.
#[tokio::test]
async fn a_late_protocol_reaches_peers_that_speak_it() {
    let (early, late) = (Sidecar::start().await, Sidecar::start().await);
    let both: Vec<ProtocolSpec> = vec![protocol("echo", 1, 8), protocol("talk", 1, 8)];
    let _peer_app = late.application(RegistrationSpec { protocols: both, ..spec("both", &[]) }).await;
    let mut echo = early.application(spec("echo-app", &[("echo", 1, 8)])).await;
    early.add_static(&late.enode()).await;
    let first = echo.opened().await;
    let mut talk = early.application(spec("talk-app", &[("talk", 1, 8)])).await;
    let closed = echo.closed().await;
    assert_eq!((closed.channel_id, &*closed.by, &*closed.detail), (first.channel_id, "sidecar", "rehello"));
    let opened = talk.opened().await;
    assert_eq!(opened.capability.unwrap().name, "talk");
    assert_eq!(echo.opened().await.capability.unwrap().name, "echo");
    // A protocol that the peer does not have causes no reconnection: the session stays the same.
    let session = early.connected(late.id()).await.session_id;
    let _other = early.application(spec("other-app", &[("other", 1, 8)])).await;
    echo.barrier(1).await;
    assert_eq!(early.connected(late.id()).await.session_id, session);
}

/// It registers, breaks, and registers again. The first time reaches the peer; the rest do not reconnect anybody.
#[tokio::test]
async fn an_application_in_a_crash_loop_does_not_churn_the_others() {
    let (early, late) = (Sidecar::start().await, Sidecar::start().await);
    let both: Vec<ProtocolSpec> = vec![protocol("echo", 1, 8), protocol("talk", 1, 8)];
    let _peer_app = late.application(RegistrationSpec { protocols: both, ..spec("both", &[]) }).await;
    let mut echo = early.application(spec("echo-app", &[("echo", 1, 8)])).await;
    early.add_static(&late.enode()).await;
    echo.opened().await;
    let brief = || RegistrationSpec {
        linger: Some(prost_types::Duration::default()),
        ..spec("talk-app", &[("talk", 1, 8)])
    };
    let mut talk = early.application(brief()).await;
    echo.closed().await;
    echo.opened().await;
    talk.opened().await;
    let session = early.connected(late.id()).await.session_id;
    for nonce in 0..5 {
        drop(talk);
        eventually("the lease is over", async || {
            let request = proto::ListRegistrationsRequest::default();
            let all = early.protocols().list_registrations(request).await.unwrap().into_inner();
            (all.registrations.len() == 1).then_some(())
        })
        .await;
        talk = early.application(brief()).await;
        // Longer than it takes until a pass would begin.
        tokio::time::sleep(std::time::Duration::from_millis(1_300)).await;
        echo.barrier(nonce).await;
    }
    assert_eq!(early.connected(late.id()).await.session_id, session);
}
