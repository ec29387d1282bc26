//! The process: arguments, configuration, log, [`App`], run until a signal, exit code.

use std::{io::Write as _, process::ExitCode};

use devp2pd::{
    app::{App, Started},
    config::{self, Config, Request},
    process::{FileLimit, StopSignals, raise_file_limit},
    telemetry,
};

fn main() -> ExitCode {
    let outcome = match config::load(std::env::args_os(), std::env::vars_os()) {
        Ok(Request::Print(text)) => write!(std::io::stdout(), "{text}").map_err(|error| error.to_string()),
        Ok(Request::Run(config)) => run(*config),
        Err(error) => Err(error.to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("devp2pd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> Result<(), String> {
    let log = telemetry::start(&config.log).map_err(|error| error.to_string())?;
    if let FileLimit::TooLow { wanted, allowed } = raise_file_limit(config.peers.max_peers) {
        tracing::warn!(
            "{wanted} open files are wanted and the system allows {allowed}; some peers may be refused"
        );
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.worker_threads {
        runtime.worker_threads(threads.get());
    }
    let runtime =
        runtime.enable_all().build().map_err(|error| format!("cannot start the runtime: {error}"))?;
    let outcome = runtime.block_on(async {
        let signals = StopSignals::listen().map_err(|error| format!("cannot listen for signals: {error}"))?;
        let mut app = App::start_logging(config, Some(log)).await.map_err(|error| error.to_string())?;
        announce(app.started());
        let stop_asked = app.stop_asked();
        tokio::select! {
            signal = signals.stop_then_exit() => {
                tracing::info!("{}: stopping; a second signal exits at once", signal.unwrap_or("end of the signal task"));
                app.stop().await;
                Ok(())
            }
            () = stop_asked => {
                app.stop().await;
                Ok(())
            }
            part = app.broken() => Err(format!("{part} has ended by a fault of devp2pd; please report it with the log")),
        }
    });
    // A look-up in the system's resolver cannot be interrupted and must not hold the exit.
    runtime.shutdown_background();
    outcome
}

/// The block that a person copies from. Standard output that is closed is nobody's loss.
fn announce(started: &Started) {
    let list = |addrs: &[std::net::SocketAddr]| {
        let texts: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        if texts.is_empty() { "nowhere".to_owned() } else { texts.join(", ") }
    };
    let mut out = std::io::stdout().lock();
    let enode =
        started.enode.as_ref().map_or_else(|| "none: peers cannot dial us".to_owned(), ToString::to_string);
    let http = started.http_addr.map_or_else(|| "nowhere".to_owned(), |addr| format!("http://{addr}/readyz"));
    let _ = writeln!(out, "devp2pd {}", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(out, "  enode     {enode}");
    let _ = writeln!(out, "  enr       {}", started.record);
    let _ = writeln!(out, "  peers     {}", list(&started.listen_addrs));
    let socket = started.grpc_socket.as_ref().map(|path| format!(", unix:{}", path.display()));
    let _ = writeln!(out, "  gRPC      {}{}", started.grpc_addr, socket.unwrap_or_default());
    let _ = writeln!(out, "  probes    {http}");
    let _ = writeln!(out, "  network   {}", started.network);
    let _ = writeln!(out, "  data      {}", started.data_dir.display());
    for warning in &started.warnings {
        let _ = writeln!(out, "  warning   {warning}");
    }
    let _ = out.flush();
}
