//! What the process asks of the system: to be told when to stop, and to hold as many files as it needs.
//!
//! Left out: the runtime and the exit code (`main`), and what stopping means (`app`).

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// Files beside the peers: sockets of ours, gRPC (256) and HTTP connections, database, logs, and room to accept those
/// whom we then refuse.
const OTHER_FILES: u64 = 1_024;

/// The signals that ask us to stop: SIGTERM from supervisors, SIGINT from Ctrl-C.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Takes the signals over from the system, which would end the process. In a runtime only.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of them, and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Returns the first signal, and ends the process at the second, after calling `before_exit`: an operator who asks
    /// twice does not want to wait until peers are told.
    #[must_use]
    pub fn stop_then_exit(
        mut self,
        before_exit: impl FnOnce() + Send + 'static,
    ) -> oneshot::Receiver<&'static str> {
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move {
            // If nobody waits any more, the process is ending by itself.
            let _ = tell.send(self.next().await);
            let name = self.next().await;
            tracing::warn!("{name} again: exiting at once");
            before_exit();
            std::process::exit(1);
        });
        told
    }
}

/// What came of [`raise_file_limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLimit {
    /// As many files as wanted can be open.
    Enough,
    /// Fewer: the system allows no more.
    TooLow {
        /// How many were wanted.
        wanted: u64,
        /// How many there can be.
        allowed: u64,
    },
}

/// Raises the limit of open files to what `peers` connections take: systems start processes with 1,024, which is
/// enough for nobody who asks for 2,000 peers.
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
    // A peer takes one socket, and for a moment a second one: the connection it replaces, or the dial under way.
    u64::try_from(peers).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(OTHER_FILES)
}

/// The limit to set, if any, and what that comes to. `None` in a limit means none.
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
    async fn both_signals_ask_to_stop() {
        let mut signals = StopSignals::listen().unwrap();
        for (sent, name) in
            [(rustix::process::Signal::TERM, "SIGTERM"), (rustix::process::Signal::INT, "SIGINT")]
        {
            rustix::process::kill_process(rustix::process::getpid(), sent).unwrap();
            assert_eq!(signals.next().await, name);
        }
    }
}
