//! A go-ethereum peer: `tests/interop/geth-peer`, built with Go.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;

use crate::processes::Process;

fn binary() -> &'static PathBuf {
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

/// A running go-ethereum node.
pub(crate) struct Geth {
    process: Process,
    pub(crate) enode: String,
}

/// What became of a flood.
pub(crate) struct Poured {
    pub(crate) sent: u64,
    pub(crate) longest_write: Duration,
    /// Why it ended before its time.
    pub(crate) error: Option<String>,
}

impl Geth {
    pub(crate) fn start(protocols: &str) -> Self {
        let process =
            Process::start(Command::new(binary()).args(["-verbosity", "1", "-protocols", protocols]));
        let ready =
            process.wait(Duration::from_secs(60), |line| event(line, "ready")).expect("geth-peer starts");
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

    /// Waits for the end of [`Self::pour`].
    pub(crate) fn poured(&self, within: Duration) -> Option<Poured> {
        let ended =
            self.process.wait(within, |line| event(line, "poured").or_else(|| event(line, "send-failed")))?;
        Some(Poured {
            sent: ended["sent"].as_u64().or(ended["number"].as_u64()).unwrap(),
            longest_write: Duration::from_millis(ended["longest_write_ms"].as_u64().unwrap()),
            error: ended["error"].as_str().map(str::to_owned),
        })
    }

    /// The longest write so far.
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
