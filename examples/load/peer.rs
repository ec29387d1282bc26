//! Peers of other stacks: go-ethereum (`tests/interop/geth-peer`, built with Go) and @ethereumjs/devp2p (`ethereumjs/`
//! beside this file, installed with npm). Both take commands and report as lines of JSON.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;

use crate::processes::Process;

fn geth() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/geth-peer");
        let program = std::env::current_exe().unwrap().with_file_name("load-geth-peer");
        let status =
            Command::new("go").arg("build").arg("-o").arg(&program).arg(".").current_dir(source).status();
        assert!(status.expect("Go is on the PATH").success(), "tests/interop/geth-peer did not build");
        program
    })
}

/// The folder of the ethereumjs peer and its packages, at the versions of its lock file, beside this program.
fn ethereumjs() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/load/ethereumjs");
        let folder = std::env::current_exe().unwrap().with_file_name("load-ethereumjs");
        std::fs::create_dir_all(&folder).unwrap();
        // The file that npm writes when it is done. A second run needs no network.
        let installed = folder.join("node_modules/.package-lock.json");
        let lock = std::fs::read(source.join("package-lock.json")).unwrap();
        let current = installed.exists()
            && std::fs::read(folder.join("package-lock.json")).is_ok_and(|old| old == lock);
        for file in ["package.json", "package-lock.json", "peer.mjs"] {
            std::fs::copy(source.join(file), folder.join(file)).unwrap();
        }
        if !current {
            let status = Command::new("npm")
                .args(["ci", "--silent", "--no-audit", "--no-fund"])
                .current_dir(&folder)
                .status();
            assert!(status.expect("npm is on the PATH").success(), "npm ci failed in {}", folder.display());
        }
        folder
    })
}

/// Another stack.
#[derive(Clone, Copy)]
pub(crate) enum Stack {
    Geth,
    EthereumJs,
}

impl Stack {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Geth => "go-ethereum",
            Self::EthereumJs => "ethereumjs",
        }
    }
}

fn go_ethereum(arguments: &[&str]) -> Command {
    let mut command = Command::new(geth());
    command.args(["-verbosity", "1", "-protocols", "load"]).args(arguments);
    command
}

/// A running node of another stack.
pub(crate) struct Peer {
    process: Process,
    pub(crate) enode: String,
}

/// The result of a flood.
pub(crate) struct Poured {
    pub(crate) sent: u64,
    pub(crate) longest_write: Duration,
    /// Why it ended before its time.
    pub(crate) error: Option<String>,
}

impl Peer {
    /// A node with the protocol `load`.
    pub(crate) fn start(stack: Stack) -> Self {
        Self::run(match stack {
            Stack::Geth => go_ethereum(&[]),
            Stack::EthereumJs => {
                let mut node = Command::new("node");
                node.arg("peer.mjs").current_dir(ethereumjs());
                node
            }
        })
    }

    /// So many go-ethereum nodes in one process, each of which connects to that node.
    pub(crate) fn start_many(count: usize, enode: &str) -> Self {
        Self::run(go_ethereum(&["-servers", &count.to_string(), "-static", enode]))
    }

    fn run(mut command: Command) -> Self {
        let process = Process::start(&mut command);
        let ready =
            process.wait(Duration::from_secs(60), |line| event(line, "ready")).expect("the peer starts");
        Self { enode: ready["enode"].as_str().unwrap().to_owned(), process }
    }

    /// Waits until a peer is there.
    pub(crate) fn wait_peer(&self) {
        self.process
            .wait(Duration::from_secs(60), |line| event(line, "peer-add"))
            .expect("the sidecar connects");
    }

    /// Starts to write messages of this size as fast as they go.
    pub(crate) fn pour(&mut self, size: usize, seconds: u64) {
        self.process.tell(&format!(r#"{{"cmd":"pour","size":{size},"seconds":{seconds}}}"#));
    }

    /// Waits for the end of a [`Self::pour`], and hands the node back: dropping it would end its connections.
    pub(crate) async fn poured(self, within: Duration) -> (Option<Poured>, Self) {
        tokio::task::spawn_blocking(move || (self.wait_poured(within), self)).await.unwrap()
    }

    fn wait_poured(&self, within: Duration) -> Option<Poured> {
        let ended =
            self.process.wait(within, |line| event(line, "poured").or_else(|| event(line, "send-failed")))?;
        Some(Poured {
            sent: ended["sent"].as_u64().or(ended["number"].as_u64()).unwrap(),
            longest_write: Duration::from_millis(ended["longest_write_ms"].as_u64().unwrap()),
            error: ended["error"].as_str().map(str::to_owned),
        })
    }

    /// The longest write of go-ethereum so far.
    pub(crate) fn longest_write(&mut self) -> Duration {
        self.process.tell(r#"{"cmd":"report"}"#);
        let report = self.process.wait(Duration::from_secs(30), |line| {
            event(line, "ok").filter(|report| report["cmd"] == "report")
        });
        let report = report.expect("geth-peer reports");
        let millis =
            report["peers"].as_array().unwrap().iter().filter_map(|peer| peer["longest_write_ms"].as_u64());
        Duration::from_millis(millis.max().unwrap_or(0))
    }
}

fn event(line: &str, name: &str) -> Option<Value> {
    serde_json::from_str::<Value>(line).ok().filter(|value| value["event"] == name)
}
