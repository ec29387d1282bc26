//! Builds all components in order, starts them, and stops them.
//!
//! Start: data directory and its lock → key → lists and sequence number of earlier runs → listeners bound → discovery →
//! switch → gRPC → probes → ready. A failure at any step stops the components that were started, in reverse, so that it
//! leaves no port, lock or task behind. Starting is a function that consumes its configuration: the same [`App`] cannot
//! be started twice.
//!
//! Stop: the components in reverse (`components`). The first to stop is `service`: not ready → applications are
//! notified and get a moment → no more dials or accepts → messages that were accepted for peers are written, then
//! Disconnect → streams end. Then gRPC ends, files are written, and the probes answer until the end. All of this
//! happens within the grace period, whatever clients do: components that have not stopped by then are cut.
//!
//! | file | what it does |
//! | --- | --- |
//! | `components` | what runs, in order, and how it stops |
//! | `start`, `error` | the steps of a start, and why each may fail |
//! | `sockets` | binds the ports of peers and discovery |
//! | `finding` | starts what finds nodes |
//! | `peers` | starts the switch |
//! | `api` | starts gRPC and the probes |
//! | `service` | accepts peers and is ready; at the end, notifies applications and peers |
//! | `reload` | takes over a configuration that was read again |
//!
//! Left out: signals, the log and the limit on open files, which belong to the process (`program`).

mod api;
mod components;
mod error;
mod finding;
mod peers;
mod reload;
mod service;
mod sockets;
mod start;

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use components::Components;
pub use error::StartError;
use error::{StartFailure, Step};
pub use start::Started;
use start::{Outcome, Steps};

use crate::{
    config::{Config, ConfigError, Request},
    net::switch::Handle,
    net::{clock, data_dir::DataDir},
    rpc::server::unix_socket::Place,
    telemetry::Logging,
};

/// A running sidecar: its components and the facts about them. Dropping it cuts all of them at once; [`App::stop`]
/// stops them in order.
///
/// It needs a tokio runtime with I/O and timers. It handles no signals, writes no log and changes no limits of the
/// process, so a program may run any number of sidecars, each with its own data directory.
pub struct App {
    started: Started,
    handle: Handle,
    grace: Duration,
    stop_asked: Arc<Notify>,
    current: reload::Current,
    components: Components,
    _socket: Option<Place>,
    // Last: the lock outlives everything that writes below it.
    _data_dir: DataDir,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "App({:?})", self.started)
    }
}

impl App {
    /// Starts everything, or nothing.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_logging(config, None).await
    }

    /// The same, for a process whose log is ours: calls may change its filter, and dropped lines are shown.
    pub(crate) async fn start_logging(config: Config, log: Option<Logging>) -> Result<Self, StartError> {
        Ok(Self::start_until(config, log, |_| Ok(())).await?)
    }

    /// [`App::start`], asking `reached` after each step whether to go on.
    async fn start_until(
        config: Config,
        log: Option<Logging>,
        reached: impl Fn(Step) -> Result<(), StartFailure>,
    ) -> Result<Self, StartFailure> {
        let mut components = Components::default();
        let mut steps = Steps::new(&config, log, &mut components)?;
        let mut data_dir = steps.data_dir()?;
        match steps.take(&mut data_dir, reached).await {
            Ok(Outcome { started, handle, stop_asked, current, socket }) => Ok(Self {
                started,
                handle,
                grace: config.shutdown_grace,
                stop_asked,
                current,
                components,
                _socket: socket,
                _data_dir: data_dir,
            }),
            Err(error) => {
                components.stop(clock::now().mono + config.shutdown_grace).await;
                Err(error)
            }
        }
    }

    /// The identity and the addresses.
    #[must_use]
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Reads the configuration with `load`, takes over the settings that can change while running, and logs the changes
    /// and the settings that need a restart.
    pub(crate) async fn reload(
        &mut self,
        load: impl FnOnce() -> Result<Request, ConfigError> + Send + 'static,
    ) {
        self.current.reload(&self.handle, load).await;
    }

    /// Waits for a component to end that must not: a fault of ours. A half-dead process would keep its port and answer
    /// no call; a supervisor can start a whole one.
    pub async fn broken(&mut self) -> &'static str {
        self.components.broken().await
    }

    /// Waits for a call that stops the process.
    pub fn stop_asked(&self) -> impl Future<Output = ()> + use<> {
        let asked = Arc::clone(&self.stop_asked);
        async move { asked.notified().await }
    }

    /// Stops all components in order, within the grace period: components that have not stopped by then are cut.
    /// Returns the rest of the grace period.
    pub async fn stop(self) -> Duration {
        let deadline = clock::now().mono + self.grace;
        self.components.stop(deadline).await;
        let left = deadline.saturating_duration_since(clock::now().mono);
        if left.is_zero() {
            tracing::warn!("the grace period is over; what had not stopped is cut");
        }
        left
    }
}

#[cfg(test)]
mod tests;
