//! Chains and their forks as applications and operators see them: announcing one, and the forks that a version knows.

use devp2pd::{
    config::{Network, networks::Preset},
    node::{ForkId, Record},
    rpc::proto::{
        AddBootnodeRequest, DeleteRegistrationRequest, DialFilter, ForkFilter, GetNodeInfoRequest,
        GetNodeInfoResponse, RegisterProtocolsRequest, RegistrationSpec, UpdateRegistrationRequest,
        delete_registration_request, dial_filter::Filter, update_registration_request::Registration as By,
    },
};

use crate::harness::{Sidecar, eventually, probe, spec};

async fn info(sidecar: &Sidecar) -> GetNodeInfoResponse {
    sidecar.node().get_node_info(GetNodeInfoRequest {}).await.unwrap().into_inner()
}

/// An application of Sepolia.
fn sepolia(client: &str, announce: bool) -> RegistrationSpec {
    let preset = Preset::of(Network::Sepolia).unwrap();
    let chain = ForkFilter {
        genesis_hash: preset.genesis_hash.to_vec().into(),
        genesis_time: preset.genesis_time,
        fork_heights: preset.fork_heights.to_vec(),
        fork_times: preset.fork_times.to_vec(),
        announce,
        ..Default::default()
    };
    let filter = DialFilter { filter: Some(Filter::Fork(chain)) };
    RegistrationSpec { dial_filter: Some(filter), ..spec(client, &[("eth", 69, 18)]) }
}

/// Waits until the record announces this fork hash, or none.
async fn announces(sidecar: &Sidecar, hash: Option<[u8; 4]>) {
    eventually(&format!("the record announces {hash:02x?}"), async || {
        let record: Record = info(sidecar).await.enr.parse().unwrap();
        (ForkId::of_record(&record).map(|id| id.hash) == hash).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_fork_filter_announces_its_chain_for_as_long_as_it_is_registered() {
    let today = Preset::of(Network::Sepolia).unwrap().fork_schedule().end().0;
    let sidecar = Sidecar::start_with(&["--nodiscover=false", "--nodial"]).await;
    let app = sidecar.application(sepolia("announcing", true)).await;
    announces(&sidecar, Some(today)).await;
    let listed = sepolia("announcing", true);
    let update = |announce| UpdateRegistrationRequest {
        registration: Some(By::ResumeToken(app.token())),
        spec: Some(sepolia("announcing", announce)),
    };
    let shown = sidecar.protocols().update_registration(update(true)).await.unwrap().into_inner();
    assert_eq!(shown.registration.unwrap().spec.unwrap().dial_filter, listed.dial_filter);
    // Others of that chain dial it because of the entry.
    let other = Sidecar::start_with(&["--nodiscover=false", "--discv4", "false"]).await;
    let _app = other.application(sepolia("dialing", false)).await;
    other.node().add_bootnode(AddBootnodeRequest { node: info(&sidecar).await.enr }).await.unwrap();
    other.connected(sidecar.id()).await;

    sidecar.protocols().update_registration(update(false)).await.unwrap();
    announces(&sidecar, None).await;
    sidecar.protocols().update_registration(update(true)).await.unwrap();
    announces(&sidecar, Some(today)).await;
    let by = delete_registration_request::Registration::ResumeToken(app.token());
    let delete = DeleteRegistrationRequest { registration: Some(by) };
    sidecar.protocols().delete_registration(delete).await.unwrap();
    announces(&sidecar, None).await;
}

/// An application that leaves the chain to the sidecar: filter and entry are those of --network.
#[tokio::test]
async fn the_chain_of_the_network_need_not_be_described() {
    let today = Preset::of(Network::Sepolia).unwrap().fork_schedule().end().0;
    let of_the_network = |fork: ForkFilter| RegistrationSpec {
        dial_filter: Some(DialFilter { filter: Some(Filter::Fork(fork)) }),
        ..spec("client", &[("eth", 69, 18)])
    };
    let announcing = || of_the_network(ForkFilter { announce: true, ..Default::default() });
    let flags = ["--network", "sepolia", "--bootnodes", "none", "--dns-tree", "none"];
    let sidecar = Sidecar::start_with(&flags).await;
    let register = async |sidecar: &Sidecar, spec: RegistrationSpec| {
        let request = RegisterProtocolsRequest { spec: Some(spec), ..Default::default() };
        sidecar.protocols().register_protocols(request).await
    };
    let registered = register(&sidecar, announcing()).await.unwrap().into_inner().registration.unwrap();
    assert_eq!(registered.spec.unwrap().dial_filter, announcing().dial_filter);
    announces(&sidecar, Some(today)).await;
    // Forks without their chain, and a chain where no network is known.
    let half = of_the_network(ForkFilter { fork_times: vec![1], ..Default::default() });
    let error = register(&sidecar, half).await.unwrap_err();
    assert!(error.message().contains("genesis_hash"), "{error}");
    let error = register(&Sidecar::start().await, announcing()).await.unwrap_err();
    assert!(error.message().contains("--network none"), "{error}");
}

#[tokio::test]
async fn a_node_says_which_forks_it_knows_and_how_old_that_is() {
    let flags = ["--network", "sepolia", "--bootnodes", "none", "--dns-tree", "none"];
    let sidecar = Sidecar::start_with(&flags).await;
    let network = info(&sidecar).await.network.unwrap();
    let last = network.forks.last().unwrap();
    assert_eq!((&*network.name, &*last.name, last.time), ("sepolia", "Amsterdam", 1_791_294_816));
    assert!(network.release.starts_with("go-ethereum v") && network.release_time.is_some());
    let line = &sidecar.started().network;
    for part in ["sepolia", "BPO2, Amsterdam", &network.release, "days old"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(info(&sidecar).await.followed_forks.is_empty());
    assert_eq!(info(&Sidecar::start().await).await.network, None);
}

/// In `GetNodeInfo` and in the metrics, where the other warnings stand too.
#[tokio::test]
async fn discv5_off_is_a_warning() {
    let warned = async |flags: &[&str]| {
        let sidecar = Sidecar::start_with(flags).await;
        let said = info(&sidecar).await.warnings.iter().any(|warning| warning.starts_with("discv5 is off"));
        let (_, page) = probe(sidecar.started().http_addr.unwrap(), "/metrics").await.unwrap();
        let shown = |name, value| page.contains(&format!("devp2pd_warnings{{name=\"{name}\"}} {value}"));
        assert!(shown("unknown_fork", 0) && shown("no_candidates", 0), "{page}");
        assert!(shown("discv5_off", u8::from(said)) && page.contains("devp2pd_followed_forks 0"), "{page}");
        said
    };
    assert!(warned(&["--nodiscover=false", "--discv5", "false"]).await);
    assert!(!warned(&["--nodiscover=false"]).await);
    assert!(!warned(&["--discv5", "false"]).await, "nothing of discovery is wanted");
}
