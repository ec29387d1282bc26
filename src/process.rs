//! The process and the operating system: signals, the limit of open files, and the limit of memory.
//!
//! Left out: the runtime and the exit code (`program`), and what stopping means (`app`).

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};

/// The files that the process opens for other purposes than peers: listening sockets, gRPC connections (at most 448),
/// HTTP connections (at most 64), the database, the log, and connections that are accepted and then refused.
const OTHER_FILES: u64 = 1_024;

/// The order that a signal gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Stop. The text is the name of the signal.
    Stop(&'static str),
    /// Read the configuration again.
    Reload,
}

/// The meaning of SIGHUP. The system sends it when a terminal closes, and operators send it to daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// The process has a terminal, which has closed: stop.
    Stop,
    /// The process has no terminal, so an operator sent the signal: read the configuration again.
    Reload,
}

impl Hangup {
    /// Returns the meaning for this process: it has a terminal if one of its standard streams is a terminal.
    #[must_use]
    pub fn of_this_process() -> Self {
        let terminal = io::stdin().is_terminal() || io::stdout().is_terminal() || io::stderr().is_terminal();
        if terminal { Self::Stop } else { Self::Reload }
    }
}

/// The signals that the process handles: SIGTERM from supervisors, SIGINT from Ctrl-C, and SIGHUP.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    on_hangup: Hangup,
}

/// The orders that signals give to the process.
#[derive(Debug)]
pub struct Orders {
    /// Receives the name of the first signal to stop.
    pub stop: oneshot::Receiver<&'static str>,
    /// Receives the order to read the configuration again. Signals that come while it is read count as one order.
    pub reload: mpsc::Receiver<()>,
}

impl Signals {
    /// Handles the signals from now on, in place of the system, which would end the process. Call it in a runtime.
    pub fn listen(on_hangup: Hangup) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            on_hangup,
        })
    }

    /// Waits for the next signal, and returns its order.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
            _ = self.hangup.recv() => match self.on_hangup {
                Hangup::Stop => Asked::Stop("SIGHUP"),
                Hangup::Reload => Asked::Reload,
            },
        }
    }

    /// Returns the orders of signals. The second signal to stop ends the process at once, after a call of
    /// `before_exit`: an operator who sends it twice does not want to wait until all peers are disconnected.
    #[must_use]
    pub fn stop_then_exit(mut self, before_exit: impl FnOnce() + Send + 'static) -> Orders {
        let (tell, stop) = oneshot::channel();
        let (ask, reload) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut tell = Some(tell);
            loop {
                match (self.next().await, tell.take()) {
                    (Asked::Stop(name), Some(tell)) => {
                        // Sending fails only if the process is already ending.
                        let _ = tell.send(name);
                    }
                    (Asked::Stop(name), None) => {
                        tracing::warn!(
                            "{name} came again; the process exits at once, without waiting for its peers"
                        );
                        before_exit();
                        std::process::exit(1);
                    }
                    (Asked::Reload, waiting) => {
                        tell = waiting;
                        // A full queue has an order that is not carried out yet, so another one is not needed.
                        let _ = ask.try_send(());
                    }
                }
            }
        });
        Orders { stop, reload }
    }
}

/// Returns the memory in bytes that the control groups of this process allow it; `None` if they set no limit. Container
/// engines and systemd limit memory in this way.
#[must_use]
pub fn memory_limit() -> Option<u64> {
    memory_limit_below(Path::new("/"))
}

/// The same with another root of the file system. The kernel documents the files in cgroup-v2.rst (`memory.max`) and
/// cgroup-v1/memory.rst (`memory.limit_in_bytes`).
fn memory_limit_below(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    groups.lines().filter_map(|line| memory_limit_of(root, line)).min()
}

/// The limit of one control group, given as a line of `/proc/self/cgroup`: its number, its controllers, its path. Each
/// group above it has a limit too, and the least one counts. In a container the path may be that of the host, and then
/// only the root of the hierarchy can be read.
fn memory_limit_of(root: &Path, line: &str) -> Option<u64> {
    // A first version without limit has this value, rounded down to pages; it is far above any memory.
    const NO_LIMIT: u64 = 1 << 62;
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, group) = (fields.next()?, fields.next()?);
    let (hierarchy, file) = match controllers {
        "" => (root.join("sys/fs/cgroup"), "memory.max"),
        some if some.split(',').any(|name| name == "memory") => {
            (root.join("sys/fs/cgroup/memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    let group = Path::new(group.trim_start_matches('/'));
    let groups = group.ancestors().map(|group| hierarchy.join(group));
    let limit = |group: PathBuf| std::fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    groups.filter_map(limit).min().filter(|limit| *limit < NO_LIMIT)
}

/// The outcome of [`raise_file_limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLimit {
    /// The process can open as many files as it needs.
    Enough,
    /// The process can open fewer files than it needs.
    TooLow {
        /// The number of files that it needs.
        wanted: u64,
        /// The number of files that the system allows.
        allowed: u64,
    },
}

/// Raises the limit of open files to the number that `peers` connections need. Systems start processes with a limit of
/// 1,024 files, which is too low for 2,000 peers.
pub fn raise_file_limit(peers: usize) -> FileLimit {
    let now = getrlimit(Resource::Nofile);
    let (target, outcome) = plan(peers, now.current, now.maximum);
    if let Some(current) = target
        && setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: now.maximum }).is_err()
    {
        let allowed = now.current.unwrap_or(u64::MAX);
        return FileLimit::TooLow { wanted: wanted(peers), allowed };
    }
    outcome
}

fn wanted(peers: usize) -> u64 {
    // A peer takes one socket, and for a moment a second one: the connection that it replaces, or a dial in progress.
    u64::try_from(peers).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(OTHER_FILES)
}

/// Returns the limit to set, if it must be set, and the outcome. `None` as `current` or `maximum` means no limit.
fn plan(peers: usize, current: Option<u64>, maximum: Option<u64>) -> (Option<u64>, FileLimit) {
    let wanted = wanted(peers);
    let Some(current) = current.filter(|current| *current < wanted) else {
        return (None, FileLimit::Enough);
    };
    match maximum {
        Some(maximum) if maximum < wanted => (
            (maximum > current).then_some(maximum),
            FileLimit::TooLow { wanted, allowed: maximum.max(current) },
        ),
        _ => (Some(wanted), FileLimit::Enough),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_the_control_groups_counts() {
        // /proc/self/cgroup, files → the limit
        type Case = (&'static str, &'static [(&'static str, &'static str)], Option<u64>);
        let table: [Case; 7] = [
            ("0::/a/b\n", &[("a/memory.max", "5000\n"), ("a/b/memory.max", "max\n")], Some(5000)),
            ("0::/a/b\n", &[("a/memory.max", "5000\n"), ("a/b/memory.max", "4000\n")], Some(4000)),
            ("0::/\n", &[("memory.max", "7\n")], Some(7)),
            ("0::/on/the/host\n", &[("memory.max", "7\n")], Some(7)),
            ("0::/a\n", &[("a/memory.max", "max\n")], None),
            ("5:cpu,memory:/x\n1:cpu:/\n", &[("memory/x/memory.limit_in_bytes", "9\n")], Some(9)),
            ("5:memory:/\n", &[("memory/memory.limit_in_bytes", "9223372036854771712\n")], None),
        ];
        for (groups, files, expected) in table {
            let root = tempfile::tempdir().unwrap();
            let write = |path: PathBuf, text: &str| {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            };
            write(root.path().join("proc/self/cgroup"), groups);
            for (path, text) in files {
                write(root.path().join("sys/fs/cgroup").join(path), text);
            }
            assert_eq!(memory_limit_below(root.path()), expected, "{groups:?} {files:?}");
        }
        assert_eq!(memory_limit_below(tempfile::tempdir().unwrap().path()), None);
    }

    #[test]
    fn the_limit_is_raised_as_far_as_needed_and_allowed() {
        let low = |wanted, allowed| FileLimit::TooLow { wanted, allowed };
        for (peers, current, maximum, expected) in [
            (50, Some(1_024), Some(4_096), (Some(1_124), FileLimit::Enough)),
            (50, Some(65_536), Some(65_536), (None, FileLimit::Enough)),
            (50, None, None, (None, FileLimit::Enough)),
            (2_000, Some(1_024), None, (Some(5_024), FileLimit::Enough)),
            (2_000, Some(1_024), Some(4_096), (Some(4_096), low(5_024, 4_096))),
            (2_000, Some(4_096), Some(4_096), (None, low(5_024, 4_096))),
            (usize::MAX, Some(1), Some(2), (Some(2), low(u64::MAX, 2))),
        ] {
            assert_eq!(plan(peers, current, maximum), expected, "{peers} {current:?} {maximum:?}");
        }
    }

    #[test]
    fn the_system_obeys() {
        let now = getrlimit(Resource::Nofile);
        if raise_file_limit(10) == FileLimit::Enough {
            let after = getrlimit(Resource::Nofile).current;
            assert!(after.is_none_or(|limit| limit >= wanted(10)), "{now:?} became {after:?}");
        }
        assert_eq!(getrlimit(Resource::Nofile).maximum, now.maximum, "the ceiling stays");
    }

    #[tokio::test]
    async fn each_signal_has_its_meaning() {
        use rustix::process::{Signal, getpid, kill_process};
        for (on_hangup, sent, asked) in [
            (Hangup::Reload, Signal::TERM, Asked::Stop("SIGTERM")),
            (Hangup::Reload, Signal::INT, Asked::Stop("SIGINT")),
            (Hangup::Reload, Signal::HUP, Asked::Reload),
            (Hangup::Stop, Signal::HUP, Asked::Stop("SIGHUP")),
        ] {
            let mut signals = Signals::listen(on_hangup).unwrap();
            kill_process(getpid(), sent).unwrap();
            assert_eq!(signals.next().await, asked);
        }
    }
}
