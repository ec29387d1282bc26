//! The processes of a row: started with ports that the system chooses, and killed when the row is over.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, mpsc},
    time::Duration,
};

use devp2pd::rpc::proto::{
    AddStaticPeerRequest, GetNodeInfoRequest, GetPeerRequest, Peer,
    message_service_client::MessageServiceClient, node_service_client::NodeServiceClient,
    peer_service_client::PeerServiceClient,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// How long a process may take to print its addresses.
const READY: Duration = Duration::from_secs(60);

/// The largest gRPC message that an application takes: the largest message of devp2p and its frame.
pub(crate) const MAX_RESPONSE: usize = 17 << 20;

/// A child process, killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    lines: Mutex<mpsc::Receiver<String>>,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (said, lines) = mpsc::sync_channel(65_536);
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let also = said.clone();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).for_each(|line| drop(said.try_send(line)));
        });
        std::thread::spawn(move || {
            BufReader::new(err).lines().map_while(Result::ok).for_each(|line| drop(also.try_send(line)));
        });
        Self { child, lines: Mutex::new(lines) }
    }

    /// Writes a line to its standard input.
    pub(crate) fn tell(&mut self, line: &str) {
        use std::io::Write as _;
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The first line, from here on, that `wanted` makes something of.
    pub(crate) fn wait<T>(&self, within: Duration, wanted: impl Fn(&str) -> Option<T>) -> Option<T> {
        let until = std::time::Instant::now() + within;
        let lines = self.lines.lock().unwrap();
        loop {
            let left = until.checked_duration_since(std::time::Instant::now())?;
            let line = lines.recv_timeout(left).ok()?;
            if std::env::var_os("LOAD_VERBOSE").is_some() {
                eprintln!("    | {line}");
            }
            if let Some(found) = wanted(&line) {
                return Some(found);
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The release binary.
fn binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("DEVP2PD") {
        Some(path) => path.into(),
        None => {
            let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
                .args(["build", "--locked", "--release", "--bin", "devp2pd"])
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .expect("cargo runs");
            assert!(status.success(), "the release binary did not build");
            // This example lies in target/release/examples.
            std::env::current_exe().unwrap().parent().unwrap().with_file_name("devp2pd")
        }
    })
}

/// A sidecar.
pub(crate) struct Sidecar {
    _process: Process,
    _data: TempDir,
    channel: Channel,
    pub(crate) enode: String,
}

impl Sidecar {
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let process = Process::start(
            Command::new(binary())
                .args(["--network", "none", "--nat", "none", "--nodiscover", "--listen-addr", "127.0.0.1"])
                .args(["--port", "0", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"])
                .arg("--data-dir")
                .arg(data.path())
                .args(flags),
        );
        let address = process.wait(READY, |line| {
            let line = line.to_lowercase();
            let at = line.find("grpc").and_then(|grpc| Some(grpc + line[grpc..].find("127.0.0.1:")?))?;
            let end =
                line[at + 10..].find(|c: char| !c.is_ascii_digit()).map_or(line.len(), |end| at + 10 + end);
            Some(line[at..end].to_owned())
        });
        let address = address.expect("the sidecar names its gRPC address");
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = channel
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .connect()
            .await
            .unwrap();
        let node =
            NodeServiceClient::new(channel.clone()).get_node_info(GetNodeInfoRequest {}).await.unwrap();
        Self { _process: process, _data: data, channel, enode: node.into_inner().enode }
    }

    pub(crate) fn messages(&self) -> MessageServiceClient<Channel> {
        MessageServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_RESPONSE)
            .max_encoding_message_size(MAX_RESPONSE)
    }

    /// Keeps a connection to that node.
    pub(crate) async fn dial(&self, enode: &str) {
        let request = AddStaticPeerRequest { node: enode.to_owned(), ..AddStaticPeerRequest::default() };
        PeerServiceClient::new(self.channel.clone()).add_static_peer(request).await.unwrap();
    }

    /// The peer, while it is connected.
    pub(crate) async fn peer(&self, enode: &str) -> Option<Peer> {
        let request = GetPeerRequest { node: enode.to_owned() };
        PeerServiceClient::new(self.channel.clone()).get_peer(request).await.ok()?.into_inner().peer
    }
}
