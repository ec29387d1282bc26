//! The program as a process of its own: its standard streams, its signals, its exit code.

use std::{
    io::{BufRead as _, BufReader, PipeReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use devp2pd::rpc::proto::{
    GetNodeInfoRequest, ListStaticPeersRequest, ListTrustedPeersRequest, SetLogFilterRequest,
    node_service_client::NodeServiceClient, peer_service_client::PeerServiceClient,
};
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    process::{Pid, Signal, kill_process},
};

use crate::harness::{connect, connect_unix, eventually, probe, soon};

/// A setting as a variable of the environment, which flags override.
fn variable<'a>((name, value): (&str, &'a str)) -> (String, &'a str) {
    (format!("DEVP2PD_{name}"), value)
}

/// The program, with ports that the system chooses and nothing of our environment.
fn command(data_dir: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devp2pd"));
    command
        .args(flags)
        .env_clear()
        .envs([("NETWORK", "none"), ("NAT", "none"), ("NODISCOVER", "true"), ("PORT", "0")].map(variable))
        .envs([("LISTEN_ADDR", "127.0.0.1"), ("GRPC_ADDR", "127.0.0.1:0")].map(variable))
        .envs([("HTTP_ADDR", "127.0.0.1:0"), ("DATA_DIR", data_dir.to_str().unwrap())].map(variable))
        .stdin(Stdio::null());
    command
}

/// A process that ends with its owner.
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        eventually("the process ends", async || self.0.try_wait().unwrap()).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already in a test that passes.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pipe in which there is no room for one more byte, as a reader that has stalled leaves it.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    for size in [4_096, 1] {
        while writer.write(&vec![b'\n'; size]).is_ok() {}
    }
    // The mode belongs to the pipe: the process must get one that blocks.
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer.into())
}

/// The address on the line `name` of the process's banner.
fn told(lines: &mut impl Iterator<Item = String>, name: &str) -> String {
    let line = lines.find_map(|line| Some(line.trim().strip_prefix(name)?.trim().to_owned()));
    line.unwrap_or_else(|| panic!("no line {name} in the banner"))
}

fn value(page: &str, line: &str) -> Option<u64> {
    page.lines().find_map(|have| have.strip_prefix(line)?.trim().parse().ok())
}

#[tokio::test]
async fn a_log_that_is_not_read_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, stderr) = full_pipe();
    let mut child =
        command(dir.path(), &["--log-format=json"]).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
    let mut banner = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut process = Process(child);
    let grpc = told(&mut banner, "gRPC");
    let http = told(&mut banner, "probes");
    let http: SocketAddr = http.strip_prefix("http://").unwrap().split('/').next().unwrap().parse().unwrap();
    let grpc = grpc.split(',').next().unwrap().parse().unwrap();
    assert_eq!(soon("a probe", probe(http, "/readyz")).await, Some((200, "ready".to_owned())));

    // With every event logged, calls write more than the queue of lines takes: lines are dropped and counted.
    let socket = connect_unix(&dir.path().join("grpc.sock")).await;
    let filter = SetLogFilterRequest { filter: "trace".to_owned() };
    NodeServiceClient::new(socket).set_log_filter(filter).await.unwrap();
    let mut node = NodeServiceClient::new(connect(grpc).await);
    eventually("lines are dropped", async || {
        soon("a call", node.get_node_info(GetNodeInfoRequest {})).await.unwrap();
        let (status, page) = soon("the metrics", probe(http, "/metrics")).await?;
        assert_eq!(status, 200);
        value(&page, "devp2pd_log_lines_dropped_total").filter(|dropped| *dropped > 0)
    })
    .await;

    // A reader that comes back gets the number of lost lines, and finds whole lines.
    let (told, mut tells) = tokio::sync::mpsc::channel(1);
    let reading = std::thread::spawn(move || {
        let mut lines = Vec::new();
        for line in BufReader::new(reader).lines().map(Result::unwrap).filter(|line| !line.is_empty()) {
            if line.contains("log lines were dropped") {
                // The first notice is enough.
                let _ = told.try_send(line.clone());
            }
            lines.push(line);
        }
        lines
    });
    let notice = soon("the notice", tells.recv()).await.unwrap();
    let notice: serde_json::Value = serde_json::from_str(&notice).unwrap();
    assert!(notice["dropped"].as_u64().unwrap() > 0, "{notice}");
    assert_eq!(notice["level"], "WARN");
    process.signal(Signal::TERM);
    assert!(process.ended().await.success());
    let lines = reading.join().unwrap();
    let broken = lines.iter().find(|line| serde_json::from_str::<serde_json::Value>(line).is_err());
    assert_eq!(broken, None);
}

/// Both streams, and the two ways to end: a process that cannot write anything still obeys.
#[tokio::test]
async fn a_process_whose_streams_are_not_read_obeys_signals() {
    for signals in [&[Signal::TERM][..], &[Signal::INT]] {
        let dir = tempfile::tempdir().unwrap();
        let ((_out, stdout), (_err, stderr)) = (full_pipe(), full_pipe());
        let child = command(dir.path(), &["--log=trace"]).stdout(stdout).stderr(stderr).spawn().unwrap();
        let mut process = Process(child);
        // The banner is in the pipe that is not read; the data directory says where calls are served.
        let grpc = eventually("the process serves", async || {
            let text = std::fs::read_to_string(dir.path().join("lock")).ok()?;
            text.split_once("gRPC on ")?.1.trim().parse().ok()
        })
        .await;
        let mut node = NodeServiceClient::new(connect(grpc).await);
        soon("a call", node.get_node_info(GetNodeInfoRequest {})).await.unwrap();
        for signal in signals {
            process.signal(*signal);
        }
        assert!(process.ended().await.success());
    }
}

/// A start that fails has an error to write to a pipe that takes nothing.
#[tokio::test]
async fn a_start_that_fails_ends_although_nobody_reads_why() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let grpc = format!("--grpc-addr={}", taken.local_addr().unwrap());
    let (_err, stderr) = full_pipe();
    let mut command = command(dir.path(), &["--http-addr=none", &grpc]);
    let command = command.stdout(Stdio::null());
    let mut process = Process(command.stderr(stderr).spawn().unwrap());
    assert_eq!(process.ended().await.code(), Some(1));
    // With a reader it says why.
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&grpc[12..]), "{text}");
}

#[tokio::test]
async fn the_banner_names_what_is_not_served_and_the_flag_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = command(dir.path(), &["--http-addr=none", "--nolisten"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let _process = Process(child);
    let banner = tokio::task::spawn_blocking(move || {
        let line =
            |line: std::io::Result<String>| line.ok().filter(|line| !line.trim_start().starts_with("data"));
        lines.map_while(line).collect::<Vec<_>>().join("\n")
    });
    let banner = soon("the banner", banner).await.unwrap();
    assert!(banner.contains("none (--http-addr none)") && banner.contains("none (--nolisten)"), "{banner}");
}

/// SIGHUP for a daemon: it goes on, with the settings that the file has now.
#[tokio::test]
async fn a_hangup_without_a_terminal_reads_the_configuration_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("devp2pd.toml");
    let key = |n: u8| devp2pd::node::NodeKey::from_bytes(&[n; 32]).unwrap().public();
    let enode = |n: u8| format!("enode://{}@127.0.0.1:{n}", key(n));
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write(&format!("static-peers = ['{}', '{}']\ntrusted-peers = ['{}']\n", enode(1), enode(2), enode(3)));
    let flags = ["--log-format=json", "--config", file.to_str().unwrap()];
    let mut child = command(&dir.path().join("data"), &flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut banner = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let log = BufReader::new(child.stderr.take().unwrap());
    let mut process = Process(child);
    let grpc = told(&mut banner, "gRPC").split(',').next().unwrap().parse().unwrap();
    let (lines, mut logged) = tokio::sync::mpsc::channel(10_000);
    std::thread::spawn(move || {
        for line in log.lines().map(Result::unwrap) {
            lines.blocking_send(line).unwrap();
        }
    });
    let mut heard = async |what: &str| {
        soon(what, async {
            loop {
                let line = logged.recv().await.unwrap();
                if line.contains(what) {
                    return line;
                }
            }
        })
        .await
    };
    let mut peers = PeerServiceClient::new(connect(grpc).await);
    let mut lists = async || {
        let statics = peers.list_static_peers(ListStaticPeersRequest::default()).await.unwrap().into_inner();
        let trusted =
            peers.list_trusted_peers(ListTrustedPeersRequest::default()).await.unwrap().into_inner();
        let mut statics: Vec<_> = statics.static_peers.into_iter().map(|peer| peer.enode).collect();
        statics.sort();
        (statics, trusted.trusted_peers.len())
    };
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    assert_eq!(lists().await, (sorted(vec![enode(1), enode(2)]), 1));

    write("prot = 1");
    process.signal(Signal::HUP);
    assert!(heard("is wrong; nothing has changed").await.contains("prot"));
    assert_eq!(lists().await, (sorted(vec![enode(1), enode(2)]), 1));

    write(&format!("static-peers = ['{}', '{}']\nlog = 'debug'\nmaxpeers = 9\n", enode(2), enode(4)));
    process.signal(Signal::HUP);
    heard("the log filter has changed").await;
    let later = heard("hold after a restart").await;
    assert!(later.contains("\"maxpeers\""), "{later}");
    assert_eq!(lists().await, (sorted(vec![enode(2), enode(4)]), 0));

    process.signal(Signal::HUP);
    heard("read again; nothing has changed").await;
    process.signal(Signal::TERM);
    assert!(process.ended().await.success());
}
