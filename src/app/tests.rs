//! A start that fails, at whatever step, leaves nothing: no port, no lock, no task.

use std::{
    cell::RefCell,
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU8, Ordering},
    },
};

use tempfile::TempDir;
use tokio::{sync::oneshot, time::sleep};

use super::*;
use crate::{
    config::{self, Request},
    net::switch::PeerSettings,
    node::NodeRef,
};

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

/// Addresses for peers, gRPC and probes whose ports were free a moment ago. They have a loopback address of their own,
/// by process and by call: other tests take ports of 127.0.0.1, at any time.
fn free_addrs() -> [SocketAddr; 3] {
    static CALLS: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 64 + CALLS.fetch_add(1, Ordering::Relaxed), high, low);
    let sockets = [(); 3].map(|()| std::net::TcpListener::bind((ip, 0)).unwrap());
    sockets.map(|socket| socket.local_addr().unwrap())
}

fn config(dir: &Path, [peers, grpc, http]: [SocketAddr; 3]) -> Config {
    let args = [
        "devp2pd",
        "--network=none",
        "--nat=none",
        &format!("--listen-addr={peers}"),
        &format!("--grpc-addr={grpc}"),
        &format!("--http-addr={http}"),
        &format!("--data-dir={}", dir.display()),
    ];
    match config::load(args.map(Into::into), []).unwrap() {
        Request::Run(config) => *config,
        Request::Print(text) => panic!("{text}"),
    }
}

/// Waits until all ports can be bound and no task lives; aborted tasks need a turn of the runtime for that.
async fn nothing_is_left(addrs: [SocketAddr; 3], what: &str) {
    let free = |addr: &SocketAddr| {
        let udp = UdpSocket::bind(addr).is_ok();
        let tcp = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        // Connections of a moment ago may linger in the kernel; only a listener is in the way.
        tcp.set_reuse_address(true).unwrap();
        udp && tcp.bind(&(*addr).into()).and_then(|()| tcp.listen(1)).is_ok()
    };
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let waiting = async {
        while tasks() > 0 || !addrs.iter().all(free) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let timeout = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    let taken: Vec<&SocketAddr> = addrs.iter().filter(|addr| !free(addr)).collect();
    assert!(timeout.is_ok(), "{what}: {} tasks live, {taken:?} are taken", tasks());
}

#[tokio::test]
async fn a_fault_at_any_step_leaves_nothing() {
    let (dir, addrs) = (TempDir::new().unwrap(), free_addrs());
    for (count, fault) in (1..).zip(STEPS) {
        let seen = RefCell::new(Vec::new());
        let outcome = App::start_until(config(dir.path(), addrs), None, |step| {
            seen.borrow_mut().push(step);
            if step == fault { Err(StartFailure::Injected(step)) } else { Ok(()) }
        })
        .await;
        assert!(matches!(outcome, Err(StartFailure::Injected(step)) if step == fault));
        assert_eq!(seen.into_inner(), STEPS[..count], "the steps come in order");
        // The lock is the process's own affair and needs no turn of the runtime.
        drop(DataDir::open(dir.path()).unwrap_or_else(|error| panic!("{fault:?}: {error}")));
        nothing_is_left(addrs, &format!("{fault:?}")).await;
    }
    // And nothing that was left makes the next start fail.
    let app = App::start(config(dir.path(), addrs)).await.unwrap();
    assert_eq!(app.started().grpc_addr, addrs[1]);
    app.stop().await;
    nothing_is_left(addrs, "stopped").await;
}

/// The faults that happen: another program has one of the ports.
#[tokio::test]
async fn a_port_that_is_taken_is_named_and_the_others_are_given_back() {
    let (dir, addrs) = (TempDir::new().unwrap(), free_addrs());
    for taken in addrs {
        let holder = std::net::TcpListener::bind(taken).unwrap();
        let error = App::start(config(dir.path(), addrs)).await.unwrap_err().to_string();
        let flag =
            ["--port", "--grpc-addr", "--http-addr"][addrs.iter().position(|addr| *addr == taken).unwrap()];
        for part in [&format!("{taken}: another process"), flag, "ss -lntup"] {
            assert!(error.contains(part), "{part:?} not in {error:?}");
        }
        drop(holder);
        nothing_is_left(addrs, &error).await;
    }
}

/// Lines of the log, as this thread writes them.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The components that have stopped, in order.
    fn stopped(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let component = |line: &str| {
            let (before, rest) = line.split_once("component=\"")?;
            before.contains(" stopped ").then(|| rest.trim_end_matches('"').to_owned())
        };
        text.lines().filter_map(component).collect()
    }
}

/// The last port is taken, so all components but the probes have started. They stop in reverse, while the components
/// that each of them uses still run, and the operator reads one line.
#[tokio::test]
async fn a_failure_in_the_middle_stops_in_reverse_what_had_started() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone());
    // While there is one subscriber, tracing lets the thread that first reaches a log line decide for all threads
    // whether the line is wanted, and other tests' threads have no subscriber. With a second one it asks all of them.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _logging = tracing::subscriber::set_default(subscriber.finish());

    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let error =
        App::start(Config { http_addr: Some(taken), ..Config::default() }).await.unwrap_err().to_string();
    assert!(error.contains(&format!("cannot serve the probes on {taken}")), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    let reverse = [
        "the gRPC server",
        "the credentials",
        "the switch",
        "the lists' file",
        "discovery",
        "the record's file",
        "the peers of earlier runs",
        "the node database",
    ];
    assert_eq!(lines.stopped(), reverse);
}

/// A sidecar that is dropped instead of stopped is cut, and nothing of it goes on.
#[tokio::test]
async fn a_dropped_sidecar_leaves_nothing() {
    let (dir, addrs) = (TempDir::new().unwrap(), free_addrs());
    drop(App::start(config(dir.path(), addrs)).await.unwrap());
    nothing_is_left(addrs, "dropped").await;
    drop(DataDir::open(dir.path()).unwrap());
}

/// Operators give one list of peers to all their nodes.
#[tokio::test]
async fn a_list_that_names_this_node_starts_without_it() {
    let (dir, addrs) = (TempDir::new().unwrap(), [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 3]);
    let app = App::start(config(dir.path(), addrs)).await.unwrap();
    let us = app.started().record.public_key();
    app.stop().await;
    let other = crate::node::NodeKey::from_bytes(&[7; 32]).unwrap().public();
    let list = [us, other].map(|key| format!("enode://{key}@127.0.0.1:9").parse::<NodeRef>().unwrap());
    let mut config = config(dir.path(), addrs);
    config.peers.static_peers = list.to_vec();
    config.peers.trusted_peers = list.to_vec();
    let app = App::start(config).await.unwrap();
    let listed = app.handle.run(|switch, now| switch.peers().static_peers(now)).await.unwrap();
    assert_eq!(listed.iter().map(|entry| entry.id).collect::<Vec<_>>(), [other.id()]);
    assert_eq!(app.handle.run(|switch, now| switch.peers().trusted_peers(now)).await.unwrap().len(), 1);
    app.stop().await;
}

/// The switch hangs, and with it every call to it. The process ends within its grace nevertheless: a stop that waited
/// for the switch would wait until the test lets it go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_switch_that_hangs_does_not_hold_the_stop() {
    let (dir, addrs) = (TempDir::new().unwrap(), free_addrs());
    let config = Config { shutdown_grace: Duration::from_millis(300), ..config(dir.path(), addrs) };
    let app = App::start(config).await.unwrap();
    let gate = Arc::new(std::sync::Barrier::new(2));
    let (hangs, hung) = oneshot::channel();
    let (handle, inner) = (app.handle.clone(), Arc::clone(&gate));
    let call = tokio::spawn(async move {
        let hang = move |_: &mut PeerSettings| {
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
