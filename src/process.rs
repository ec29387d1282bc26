//! What the process asks of the system: its signals, and as many open files as it needs.
//!
//! Left out: the runtime and the exit code (`program`), and what stopping means (`app`).

use std::io::{self, IsTerminal as _};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};

/// Files beside the peers: sockets of ours, gRPC (256) and HTTP connections, database, logs, and room to accept those
/// whom we then refuse.
const OTHER_FILES: u64 = 1_024;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To stop; the name of the signal.
    Stop(&'static str),
    /// To read the configuration again.
    Reload,
}

/// The meaning of SIGHUP, which the system sends when a terminal closes and operators send to daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// The process has a terminal, and it is gone: stop.
    Stop,
    /// The process has none, so an operator asks to read the configuration again.
    Reload,
}

impl Hangup {
    /// The meaning for this process, by its standard streams.
    #[must_use]
    pub fn of_this_process() -> Self {
        let terminal = io::stdin().is_terminal() || io::stdout().is_terminal() || io::stderr().is_terminal();
        if terminal { Self::Stop } else { Self::Reload }
    }
}

/// The signals that we obey: SIGTERM from supervisors, SIGINT from Ctrl-C, and SIGHUP.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    on_hangup: Hangup,
}

/// What is asked of a process, in order of arrival.
#[derive(Debug)]
pub struct Orders {
    /// The name of the first signal to stop.
    pub stop: oneshot::Receiver<&'static str>,
    /// The configuration is to be read again. Signals that come while that is being done count as one.
    pub reload: mpsc::Receiver<()>,
}

impl Signals {
    /// Takes the signals over from the system, which would end the process. In a runtime only.
    pub fn listen(on_hangup: Hangup) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            on_hangup,
        })
    }

    /// Waits for the next of them, and returns what it asks for.
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

    /// Passes signals on, and ends the process at the second one to stop, after calling `before_exit`: an operator who
    /// asks twice does not want to wait until peers are told.
    #[must_use]
    pub fn stop_then_exit(mut self, before_exit: impl FnOnce() + Send + 'static) -> Orders {
        let (tell, stop) = oneshot::channel();
        let (ask, reload) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut tell = Some(tell);
            loop {
                match (self.next().await, tell.take()) {
                    (Asked::Stop(name), Some(tell)) => {
                        // Without a receiver the process is ending already.
                        let _ = tell.send(name);
                    }
                    (Asked::Stop(name), None) => {
                        tracing::warn!("{name} again: exiting at once");
                        before_exit();
                        std::process::exit(1);
                    }
                    (Asked::Reload, waiting) => {
                        tell = waiting;
                        // A full queue has a request that is not served yet.
                        let _ = ask.try_send(());
                    }
                }
            }
        });
        Orders { stop, reload }
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

/// Raises the limit of open files to what `peers` connections take: systems start processes with a limit of 1,024, which
/// does not suffice for 2,000 peers.
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
