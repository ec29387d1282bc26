//! A start that fails, at whatever step, leaves nothing: no port, no lock, no task.

use std::{cell::RefCell, net::UdpSocket, path::Path};

use tempfile::TempDir;

use super::*;
use crate::config::{self, Request};

const STEPS: [Step; 8] = [
    Step::DataDir,
    Step::Key,
    Step::State,
    Step::Listen,
    Step::Discovery,
    Step::Switch,
    Step::Grpc,
    Step::Http,
];

/// Ports for peers, gRPC and probes that were free a moment ago.
fn free_ports() -> [u16; 3] {
    let sockets = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

fn config(dir: &Path, [peers, grpc, http]: [u16; 3]) -> Config {
    let args = [
        "devp2pd",
        "--network=none",
        "--nat=none",
        "--listen-addr=127.0.0.1",
        &format!("--port={peers}"),
        &format!("--grpc-addr=127.0.0.1:{grpc}"),
        &format!("--http-addr=127.0.0.1:{http}"),
        &format!("--data-dir={}", dir.display()),
    ];
    match config::load(args.map(Into::into), []).unwrap() {
        Request::Run(config) => *config,
        Request::Print(text) => panic!("{text}"),
    }
}

/// Waits until all ports can be bound and no task lives; aborted tasks need a turn of the runtime for that.
async fn nothing_is_left(ports: [u16; 3], what: &str) {
    let free = |port: &u16| {
        let udp = UdpSocket::bind(("127.0.0.1", *port)).is_ok();
        let tcp = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        // Connections of a moment ago may linger in the kernel; only a listener is in the way.
        tcp.set_reuse_address(true).unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], *port));
        udp && tcp.bind(&addr.into()).and_then(|()| tcp.listen(1)).is_ok()
    };
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let waiting = async {
        while tasks() > 0 || !ports.iter().all(free) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let timeout = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    let taken: Vec<&u16> = ports.iter().filter(|port| !free(port)).collect();
    assert!(timeout.is_ok(), "{what}: {} tasks live, ports {taken:?} are taken", tasks());
}

#[tokio::test]
async fn a_fault_at_any_step_leaves_nothing() {
    let (dir, ports) = (TempDir::new().unwrap(), free_ports());
    for (count, fault) in (1..).zip(STEPS) {
        let seen = RefCell::new(Vec::new());
        let outcome = App::start_until(config(dir.path(), ports), None, |step| {
            seen.borrow_mut().push(step);
            if step == fault { Err(StartError::Injected(step)) } else { Ok(()) }
        })
        .await;
        assert!(matches!(outcome, Err(StartError::Injected(step)) if step == fault));
        assert_eq!(seen.into_inner(), STEPS[..count], "the steps come in order");
        // The lock is the process's own affair and needs no turn of the runtime.
        drop(DataDir::open(dir.path()).unwrap_or_else(|error| panic!("{fault:?}: {error}")));
        nothing_is_left(ports, &format!("{fault:?}")).await;
    }
    // And nothing that was left makes the next start fail.
    let app = App::start(config(dir.path(), ports)).await.unwrap();
    assert_eq!(app.started().grpc_addr.port(), ports[1]);
    app.stop().await;
    nothing_is_left(ports, "stopped").await;
}

/// The faults that happen: one of the ports is somebody else's.
#[tokio::test]
async fn a_port_that_is_taken_is_named_and_the_others_are_given_back() {
    let (dir, ports) = (TempDir::new().unwrap(), free_ports());
    for taken in ports {
        let holder = std::net::TcpListener::bind(("127.0.0.1", taken)).unwrap();
        let error = App::start(config(dir.path(), ports)).await.unwrap_err().to_string();
        let flag = ["--port", "--grpc-addr", "--http-addr"][ports.iter().position(|p| *p == taken).unwrap()];
        for part in [&format!("127.0.0.1:{taken}: another process"), flag, "ss -lntup"] {
            assert!(error.contains(part), "{part:?} not in {error:?}");
        }
        drop(holder);
        nothing_is_left(ports, &error).await;
    }
}

/// A sidecar that is dropped instead of stopped is cut, and nothing of it goes on.
#[tokio::test]
async fn a_dropped_sidecar_leaves_nothing() {
    let (dir, ports) = (TempDir::new().unwrap(), free_ports());
    drop(App::start(config(dir.path(), ports)).await.unwrap());
    nothing_is_left(ports, "dropped").await;
    drop(DataDir::open(dir.path()).unwrap());
}

/// Operators give one list of peers to all their nodes.
#[tokio::test]
async fn a_list_that_names_this_node_starts_without_it() {
    let (dir, ports) = (TempDir::new().unwrap(), [0; 3]);
    let app = App::start(config(dir.path(), ports)).await.unwrap();
    let us = app.started().record.public_key();
    app.stop().await;
    let other = crate::node::NodeKey::from_bytes(&[7; 32]).unwrap().public();
    let list = [us, other].map(|key| format!("enode://{key}@127.0.0.1:9").parse::<NodeRef>().unwrap());
    let mut config = config(dir.path(), ports);
    config.peers.static_peers = list.to_vec();
    config.peers.trusted_peers = list.to_vec();
    let app = App::start(config).await.unwrap();
    let listed = app.handle.static_peers().await.unwrap();
    assert_eq!(listed.iter().map(|entry| entry.id).collect::<Vec<_>>(), [other.id()]);
    assert_eq!(app.handle.trusted_peers().await.unwrap().len(), 1);
    app.stop().await;
}

/// The switch hangs, and with it every call to it. The process ends within its grace nevertheless: a stop that waited for
/// the switch would wait until the test lets it go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_switch_that_hangs_does_not_hold_the_stop() {
    let (dir, ports) = (TempDir::new().unwrap(), free_ports());
    let mut app = App::start(config(dir.path(), ports)).await.unwrap();
    app.grace = Duration::from_millis(300);
    let gate = Arc::new(std::sync::Barrier::new(2));
    let (hangs, hung) = oneshot::channel();
    let (handle, inner) = (app.handle.clone(), Arc::clone(&gate));
    let call = tokio::spawn(async move {
        let hang = move |_: &mut crate::net::switch::PeerSettings| {
            let _ = hangs.send(());
            inner.wait();
        };
        handle.change_settings(hang).await
    });
    hung.await.unwrap();
    let stopping = tokio::time::timeout(Duration::from_secs(60), app.stop()).await;
    gate.wait();
    assert!(stopping.is_ok(), "it waits for the switch");
    let _ = call.await;
}
