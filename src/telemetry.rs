//! Log events: their format, and the filter for them.
//!
//! The format is text on a terminal, and one JSON object per line otherwise. Events always go to standard error,
//! because standard output is for the result of a command. The filter can be changed while the process runs
//! ([`LogFilter`]). Writing never waits for the reader of standard error ([`lines`]): lines that it does not read are
//! dropped and counted.
//!
//! A panic is logged as an event. The default hook would write it to standard error itself, and block there.
//!
//! The levels have fixed meanings. `error`: something has ended. `warn`: an operator should look at it. `info`: an
//! operator may want to know it. `debug` follows one peer or one call, and `trace` follows one message.
//!
//! Left out: metrics, and the events themselves (the rooms log them, and escape strangers' text).

pub mod lines;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal as _},
    panic,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::config::{Log, LogFormat};
use lines::Lines;

/// Why events cannot be written, or the filter cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("{filter:?} is not a log filter: {problem}")]
    Filter {
        /// The text of the filter.
        filter: String,
        /// The error in the text.
        problem: String,
    },
    /// Writing events has been started already.
    #[error("log events have a subscriber already")]
    Started,
    /// The thread that writes lines cannot be started.
    #[error("cannot write to standard error: {0}")]
    Output(io::Error),
    /// Events are not written any more, because the process ends.
    #[error("log events have no subscriber any more")]
    Ended,
}

/// The log of this process.
#[derive(Clone, Debug)]
pub struct Logging {
    filter: LogFilter,
    lines: Lines,
}

impl Logging {
    /// Returns the filter for events.
    #[must_use]
    pub fn filter(&self) -> &LogFilter {
        &self.filter
    }

    /// Returns the counter of lines that were dropped because standard error was not read. It goes on counting.
    #[must_use]
    pub fn dropped_lines(&self) -> Arc<AtomicU64> {
        self.lines.dropped()
    }

    /// From now on, logs panics in place of the default hook, which would write to standard error itself.
    pub fn log_panics(&self) {
        panic::set_hook(Box::new(log_panic));
    }

    /// Writes `text` as it is, and does not apply the filter.
    pub fn say(&self, text: &str) {
        self.lines.push(format!("{text}\n").as_bytes());
    }

    /// Waits until all lines are written, for at most `limit`.
    pub fn flush(&self, limit: Duration) {
        // The process ends after this, so lines that are not written are lost without being counted.
        self.lines.flush(limit);
    }
}

/// The filter for events. It can be changed while the process runs.
#[derive(Clone, Debug)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// From now on, writes the events that `filter` selects. Returns the previous filter.
    pub fn set(&self, filter: &str) -> Result<String, TelemetryError> {
        let new = parse(filter)?;
        let mut before = String::new();
        let changed = self.0.modify(|current| {
            before = current.to_string();
            *current = new;
        });
        changed.map(|()| before).map_err(|_| TelemetryError::Ended)
    }
}

/// Starts to write events. It can be called once per process.
pub fn start(log: &Log) -> Result<Logging, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse(&log.filter)?);
    let terminal = io::stderr().is_terminal();
    let json = match log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = Lines::to(io::stderr(), "log", |dropped| {
        tracing::warn!(
            dropped,
            "log lines were dropped since the start because standard error was not read fast enough"
        );
    });
    let lines = lines.map_err(TelemetryError::Output)?;
    let writer = {
        let lines = lines.clone();
        move || lines.clone()
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = if json {
        // One flat object for each event, because log collectors index fields and not nested objects.
        registry.with(fmt::layer().json().flatten_event(true).with_writer(writer)).try_init()
    } else {
        registry.with(fmt::layer().with_ansi(terminal).with_writer(writer)).try_init()
    };
    started.map_err(|_| TelemetryError::Started)?;
    Ok(Logging { filter: LogFilter(handle), lines })
}

/// Logs a panic, with a backtrace if `RUST_BACKTRACE` asks for one.
fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let message = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = message.unwrap_or("a value that is no text");
    let place = panic.location().map(ToString::to_string);
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(place, backtrace, "panic: {message}; this is a fault of devp2pd, please report it");
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter)
        .map_err(|error| TelemetryError::Filter { filter: filter.to_owned(), problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_changes_what_is_written_while_running() {
        // Only this test starts a subscriber, because a process can have only one.
        let log = |filter: &str| Log { filter: filter.to_owned(), format: LogFormat::Json };
        assert!(matches!(start(&log("devp2pd=loud")), Err(TelemetryError::Filter { .. })));
        let logging = start(&log("off")).unwrap();
        let filter = logging.filter();
        assert!(!tracing::enabled!(tracing::Level::ERROR));
        assert_eq!(filter.set("warn,devp2pd=debug").unwrap(), "off");
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert!(!tracing::enabled!(target: "hyper", tracing::Level::INFO));
        let error = filter.set("devp2pd=loud").unwrap_err().to_string();
        assert!(error.contains("devp2pd=loud"), "{error}");
        assert!(tracing::enabled!(tracing::Level::DEBUG), "a wrong filter changes nothing");
        filter.set("off").unwrap();
        assert!(matches!(start(&log("info")), Err(TelemetryError::Started)));
    }
}
