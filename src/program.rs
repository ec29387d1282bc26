//! The program: arguments, configuration, log, [`App`], run until a signal, exit code.
//!
//! It is a part of the library, and the binary calls it (`main.rs`). So a sidecar's start with a log and its reload,
//! which only the program needs, are not public.

use std::{fmt::Write as _, io::Write as _, pin::pin, process::ExitCode, time::Duration};

use crate::{
    app::{App, Started},
    config::{self, Config, Request},
    process::{FileLimit, Hangup, Signals, raise_file_limit},
    telemetry::{self, Logging, lines::Lines},
};

/// The target of these log lines, by which a filter names them.
const TARGET: &str = "devp2pd";

/// How long the last lines of the log may take at the end: a reader that reads takes them in microseconds.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Runs the program with the arguments and the environment of this process, until a signal or a call ends it.
#[must_use]
pub fn run_program() -> ExitCode {
    let outcome = match config::load(std::env::args_os(), std::env::vars_os()) {
        Ok(Request::Print(text)) => write!(std::io::stdout(), "{text}").map_err(|error| error.to_string()),
        Ok(Request::Run(config)) => match telemetry::start(&config.log) {
            Ok(log) => {
                log.log_panics();
                return run_logging(*config, &log);
            }
            Err(error) => Err(error.to_string()),
        },
        Err(error) => Err(error.to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is no runtime yet, and signals still end the process: a plain write may wait here.
            eprintln!("devp2pd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs, and waits for the last lines of the log as long as the grace period and [`LAST_LINES`] allow.
fn run_logging(config: Config, log: &Logging) -> ExitCode {
    let (code, left) = match run(config, log) {
        Ok(left) => (ExitCode::SUCCESS, left),
        Err(error) => {
            log.say(&format!("devp2pd: {error}"));
            (ExitCode::FAILURE, LAST_LINES)
        }
    };
    log.flush(left.min(LAST_LINES));
    code
}

/// Runs until a signal or a call ends it. Returns what is left of the grace period.
fn run(config: Config, log: &Logging) -> Result<Duration, String> {
    let listed = config.peers.static_peers.len() + config.peers.trusted_peers.len();
    let peers = config.peers.max_peers.saturating_add(listed);
    if let FileLimit::TooLow { wanted, allowed } = raise_file_limit(peers) {
        tracing::warn!(
            target: TARGET,
            "peers and calls need up to {wanted} open files and the system allows {allowed}: some peers may be refused; \
             raise the limit (ulimit -n, LimitNOFILE=) or lower --maxpeers"
        );
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.worker_threads {
        runtime.worker_threads(threads.get());
    }
    let runtime =
        runtime.enable_all().build().map_err(|error| format!("cannot start the runtime: {error}"))?;
    let outcome = runtime.block_on(async {
        let signals = Signals::listen(Hangup::of_this_process())
            .map_err(|error| format!("cannot listen for signals: {error}"))?;
        let mut app =
            App::start_logging(config, Some(log.clone())).await.map_err(|error| error.to_string())?;
        // Standard output may be a pipe that is not read, as the log may.
        let out = Lines::to(std::io::stdout(), "stdout", |_| ())
            .map_err(|error| format!("cannot write to standard output: {error}"))?;
        out.push(banner(app.started()).as_bytes());
        let mut stop_asked = pin!(app.stop_asked());
        let last_log = log.clone();
        let mut orders = signals.stop_then_exit(move || last_log.flush(LAST_LINES / 10));
        loop {
            tokio::select! {
                signal = &mut orders.stop => {
                    tracing::info!(
                        target: TARGET,
                        "{}: stopping; a second signal exits at once",
                        signal.unwrap_or("end of the signal task")
                    );
                    return Ok(app.stop().await);
                }
                Some(()) = orders.reload.recv() => {
                    app.reload(|| config::load(std::env::args_os(), std::env::vars_os())).await;
                }
                () = &mut stop_asked => return Ok(app.stop().await),
                part = app.broken() => {
                    return Err(format!("{part} has ended by a fault of devp2pd; please report it with the log"));
                }
            }
        }
    });
    // A look-up in the system's resolver cannot be interrupted and must not hold the exit.
    runtime.shutdown_background();
    outcome
}

/// The lines that a person copies from.
fn banner(started: &Started) -> String {
    let list = |addrs: &[std::net::SocketAddr]| {
        let texts: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        if texts.is_empty() {
            "none (--nolisten): peers cannot dial this node".to_owned()
        } else {
            texts.join(", ")
        }
    };
    let enode =
        started.enode.as_ref().map_or_else(|| "none: peers cannot dial us".to_owned(), ToString::to_string);
    let http = started
        .http_addr
        .map_or_else(|| "none (--http-addr none)".to_owned(), |addr| format!("http://{addr}/readyz"));
    let socket = started.grpc_socket.as_ref().map(|path| format!(", unix:{}", path.display()));
    let mut out = format!("devp2pd {}\n", env!("CARGO_PKG_VERSION"));
    let mut line = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "  {name:<9} {value}");
    };
    line("enode", &enode);
    line("enr", &started.record.to_string());
    line("peers", &list(&started.listen_addrs));
    line("gRPC", &format!("{}{}", started.grpc_addr, socket.unwrap_or_default()));
    line("probes", &http);
    line("network", &started.network.to_string());
    line("data", &started.data_dir.display().to_string());
    for warning in &started.warnings {
        line("warning", warning);
    }
    out
}
