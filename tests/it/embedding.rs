//! A program that runs sidecars itself: configuration in code, several in one process, their addresses and their end.
//! And the names that such a program has: everything else in the library is private.

use std::{
    collections::BTreeSet,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::Path,
    time::Duration,
};

use devp2pd::rpc::proto::{
    GetNodeInfoRequest, message_service_client::MessageServiceClient, node_service_client::NodeServiceClient,
};
use devp2pd::{
    App, Capability, Config, Discovery, Enode, Grpc, Log, LogFormat, NatMethod, Network, NodeId, NodeRef,
    Peers, PublicKey, Rates, Record, Rehello, StartError, Started, Tls,
};

use crate::harness::{Application, attach, connect, probe, soon, spec};

async fn echo(sidecar: &App) -> Application {
    let messages = MessageServiceClient::new(connect(sidecar.started().grpc_addr).await);
    Application::attach(messages, attach(spec("echo-app", &[("echo", 1, 8)]))).await.unwrap()
}

#[tokio::test]
async fn two_sidecars_in_one_process_find_each_other_and_stop_by_themselves() {
    let first = App::start(Config::default()).await.unwrap();
    let enode = first.started().enode.clone().unwrap();
    let mut config = Config::default();
    config.peers.static_peers = vec![NodeRef::Enode(enode)];
    let second = App::start(config).await.unwrap();

    // The facts of each equal those of its API, and no two of them share anything.
    for sidecar in [&first, &second] {
        let started = sidecar.started();
        let mut node = NodeServiceClient::new(connect(started.grpc_addr).await);
        let info = node.get_node_info(GetNodeInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.node_id, started.record.id().to_string());
        assert_eq!(Some(info.enode), started.enode.as_ref().map(ToString::to_string));
        let ports = |addrs: &[std::net::SocketAddr]| addrs.iter().map(|addr| addr.port()).collect::<Vec<_>>();
        assert_eq!(ports(&started.udp_addrs), ports(&started.listen_addrs));
        assert_eq!(probe(started.http_addr.unwrap(), "/readyz").await, Some((200, "ready".to_owned())));
    }
    let dirs = [&first, &second].map(|sidecar| sidecar.started().data_dir.clone());
    assert_ne!(dirs[0], dirs[1]);
    assert_ne!(first.started().record.id(), second.started().record.id());

    let (mut first_app, mut second_app) = (echo(&first).await, echo(&second).await);
    let opened = [second_app.opened().await, first_app.opened().await];
    let ids = [&first, &second].map(|sidecar| sidecar.started().record.id().to_string());
    assert_eq!(opened.map(|channel| channel.peer.unwrap().node_id), ids);

    drop(first_app);
    soon("the first one stops", first.stop()).await;
    assert!(!dirs[0].exists() && dirs[1].exists(), "the data directory goes with its sidecar");
    let http = second.started().http_addr.unwrap();
    assert_eq!(probe(http, "/readyz").await, Some((200, "ready".to_owned())), "the second one goes on");
    drop(second_app);
    soon("the second one stops", second.stop()).await;
    assert!(!dirs[1].exists());
}

/// Every field of the configuration can be written with public names alone, and the facts of a sidecar can be stored.
#[tokio::test]
async fn every_setting_has_a_public_type() {
    struct Kept {
        id: NodeId,
        enode: Option<Enode>,
        record: Record,
    }
    fn keep(started: &Started) -> Kept {
        Kept { id: started.record.id(), enode: started.enode.clone(), record: started.record.clone() }
    }
    async fn start(config: Config) -> Result<App, StartError> {
        App::start(config).await
    }
    let dir = tempfile::tempdir().unwrap();
    let other = App::start(Config::default()).await.unwrap();
    let told = keep(other.started());
    let key: PublicKey = told.record.public_key();
    let loopback = "127.0.0.1:0".parse().unwrap();
    let config = Config {
        network: Network::None,
        data_dir: Some(dir.path().to_owned()),
        nodekey: None,
        identity: Some("embedded".to_owned()),
        worker_threads: NonZeroUsize::new(1),
        memory: None,
        shutdown_grace: Duration::from_secs(10),
        peers: Peers {
            listen_addrs: vec![loopback],
            any_family: false,
            port: 0,
            nat: NatMethod::ExtIp(vec!["192.0.2.1".parse().unwrap()]),
            max_peers: 10,
            dial: true,
            dial_ratio: 2,
            dial_timeout: Duration::from_secs(5),
            max_pending_dials: 5,
            max_pending_inbound: 5,
            netrestrict: vec!["127.0.0.0/8".parse().unwrap()],
            static_peers: vec![NodeRef::Enode(told.enode.clone().unwrap())],
            trusted_peers: vec![NodeRef::Id(told.id), NodeRef::Key(key), NodeRef::Record(told.record)],
            allowlist_only: true,
            inbound_throttle: Duration::ZERO,
            max_peers_per_subnet: 0,
            max_pending_per_subnet: 0,
            churn: Some(Duration::from_secs(60)),
            allow_lan: true,
            follow_forks: false,
            bandwidth: Rates {
                peer_in: NonZeroU64::new(1 << 20),
                peer_out: None,
                total_in: None,
                total_out: None,
            },
            receive_buffer: 128 << 10,
            rehello: Rehello::None,
        },
        discovery: Discovery {
            wanted: true,
            v4: false,
            v5: true,
            dns_trees: Some(Vec::new()),
            bootnodes_v4: Some(Vec::new()),
            bootnodes_v5: Some(Vec::new()),
            addr: Some(loopback),
            rate: NonZeroU32::new(100),
            dns_server: Some("127.0.0.1:53".parse().unwrap()),
        },
        grpc: Grpc {
            addr: loopback,
            socket: Some(dir.path().join("grpc.sock")),
            socket_asked: true,
            access: None,
            tls: None::<Tls>,
            max_shared_stall: Duration::from_millis(100),
            end_shared_sessions: true,
            require_resume_token: true,
            any_message_count: true,
            message_counts: vec![Capability::new("demo", 1, 4)],
        },
        http_addr: None,
        log: Log { filter: "warn".to_owned(), format: LogFormat::Json },
        warnings: vec!["from the program".to_owned()],
        values: Default::default(),
    };
    let sidecar = start(config).await.unwrap();
    let started = sidecar.started();
    assert_eq!(started.data_dir, dir.path());
    assert_eq!(started.grpc_socket, Some(dir.path().join("grpc.sock")));
    assert_eq!((started.http_addr, &*started.warnings), (None, &["from the program".to_owned()][..]));
    assert!(started.enode.as_ref().unwrap().to_string().contains("@192.0.2.1:"), "{started:?}");
    soon("the sidecar stops", sidecar.stop()).await;
    soon("the other one stops", other.stop()).await;
}

/// The names at the root of the library without the feature `internals`. A name that is added here is promised to
/// programs that embed a sidecar.
const SURFACE: &[&str] = &[
    "App",
    "Capability",
    "Config",
    "Discovery",
    "Enode",
    "EnodeError",
    "Grpc",
    "Host",
    "KeyError",
    "Log",
    "LogFormat",
    "NatMethod",
    "NatMethodError",
    "Network",
    "NodeId",
    "NodeIdError",
    "NodeRef",
    "NodeRefError",
    "Peers",
    "PublicKey",
    "Rates",
    "Record",
    "RecordError",
    "Rehello",
    "StartError",
    "Started",
    "Tls",
    "run_program", // hidden: what the binary calls
];

#[test]
fn the_library_shows_these_names_and_no_others() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = std::fs::read_to_string(root.join("src/lib.rs")).unwrap();
    let shown: Vec<String> = public_names(&library);
    assert_eq!(shown, SURFACE);

    // The examples in the documentation, and this file, use nothing else; here, clients of gRPC come from inside.
    let examples: String = library
        .lines()
        .filter_map(|line| line.strip_prefix("//! "))
        .map(|line| format!("{line}\n"))
        .collect();
    let here = std::fs::read_to_string(root.join("tests/it/embedding.rs")).unwrap();
    for (text, at_least) in [(examples, 8), (here, 15)] {
        let uses = text.split("use devp2pd::").skip(1).filter(|rest| rest.starts_with('{'));
        let used: Vec<String> = uses.flat_map(|rest| leaves(rest.split(';').next().unwrap())).collect();
        assert!(used.len() >= at_least, "{used:?}");
        let private: Vec<&String> = used.iter().filter(|name| !SURFACE.contains(&name.as_str())).collect();
        assert!(private.is_empty(), "{private:?}");
    }
}

#[test]
fn a_name_that_is_shown_by_accident_is_found() {
    let library = "//! pub use x::Y;\n#![allow(x)]\n#[cfg(feature = \"internals\")]\npub mod a;\n\
        #[cfg(not(feature = \"internals\"))]\nmod a; // pub\nuse a::B;\n#[doc(hidden)]\npub use a::{C, b::{D, e::F}};\n";
    assert_eq!(public_names(library), ["C", "D", "F"]);
    assert_eq!(public_names(&format!("{library}pub mod f;\n")), ["C", "D", "F", "pub mod f"]);
    assert_eq!(public_names("pub fn f() {}\npub use a::B;\n"), ["pub fn f() {} pub use a::B"]);
    assert_eq!(public_names("pub use a::*;\n"), ["*"]);
}

/// What `library` (the text of `lib.rs`) shows without the feature `internals`, in order. An item that passes no names
/// on stands there as a whole.
fn public_names(library: &str) -> Vec<String> {
    let is_code = |line: &&str| !line.starts_with("//") && !line.starts_with("#![");
    let code: Vec<&str> = library
        .lines()
        .map(str::trim)
        .filter(is_code)
        .map(|line| line.split("//").next().unwrap().trim())
        .collect();
    let code = code.join(" ");
    let mut names = BTreeSet::new();
    for item in code.split(';').map(str::trim) {
        let bare = item.split("#[").map(|part| part.split_once(']').map_or(part, |(_, rest)| rest));
        let bare = bare.collect::<String>().trim().to_owned();
        if item.contains("#[cfg(feature = \"internals\")]") || !bare.contains("pub ") {
            continue;
        }
        match bare.strip_prefix("pub use ") {
            Some(tree) => names.extend(leaves(tree)),
            None => drop(names.insert(bare)),
        }
    }
    names.into_iter().collect()
}

/// The names at the ends of a `use` tree.
fn leaves(tree: &str) -> Vec<String> {
    let parts = tree.split([',', '{', '}']).map(str::trim).filter(|part| !part.is_empty());
    let ends = parts.filter(|part| !part.ends_with("::"));
    ends.map(|part| part.rsplit("::").next().unwrap().to_owned()).collect()
}
