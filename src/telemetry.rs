//! Log events: how they are written, and which.
//!
//! Text for a person at a terminal, one JSON object per line for everything else, always to standard error, because
//! standard output belongs to what a command answers. Which events are written can be changed while the process runs
//! ([`LogFilter`]).
//!
//! Levels are policy: `error` ends something, `warn` would wake somebody, `info` is for the operator, `debug` follows
//! one peer or one call, `trace` follows one message.
//!
//! Left out: metrics, and what is logged (the rooms; strangers' text is escaped there).

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::config::{Log, LogFormat};

/// Why events cannot be written, or not as asked.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("{filter:?} is no filter: {problem}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The process writes its events already.
    #[error("log events have a subscriber already")]
    Started,
    /// Nobody writes events any more: the process ends.
    #[error("log events have no subscriber any more")]
    Ended,
}

/// Changes which events are written, while the process runs.
#[derive(Clone, Debug)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// Writes the events that `filter` asks for from now on, and answers what was asked for before.
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

/// Starts to write events. Once per process.
pub fn start(log: &Log) -> Result<LogFilter, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse(&log.filter)?);
    let terminal = io::stderr().is_terminal();
    let json = match log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = if json {
        // One flat object: collectors index fields, not nesting.
        registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr)).try_init()
    } else {
        registry.with(fmt::layer().with_ansi(terminal).with_writer(io::stderr)).try_init()
    };
    started.map_err(|_| TelemetryError::Started)?;
    Ok(LogFilter(handle))
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
        // The one test that starts a subscriber: it is the process's, and there can be only one.
        let log = |filter: &str| Log { filter: filter.to_owned(), format: LogFormat::Json };
        assert!(matches!(start(&log("devp2pd=loud")), Err(TelemetryError::Filter { .. })));
        let filter = start(&log("off")).unwrap();
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
