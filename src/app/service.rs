//! The sidecar in service: peers are accepted and the probes report "ready", until the order to stop comes.
//!
//! This is the last component to start and the first to stop, because its end needs all the others. Applications are
//! notified and may finish, messages that were accepted for peers are written, peers get the reason, and the streams
//! end.

use std::time::Duration;

use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    http::{Probes, Stage},
    net::switch::Handle,
    net::{
        clock,
        listener::{self, Accepted},
        running::Running,
    },
    rpc::descriptors::Health,
    switch::Engine,
};

/// How long applications that are attached get between the notice and the end of their streams.
const NOTICE: Duration = Duration::from_secs(2);

/// The time for peers to take the messages that were accepted for them, and the reason.
const FAREWELL: Duration = Duration::from_secs(3);

/// How often the end of streams and connections is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// The parts of a sidecar in service.
pub(super) struct Service {
    /// Where peers connect.
    pub(super) listeners: Vec<TcpListener>,
    /// Where their connections go.
    pub(super) accepted: mpsc::Sender<Accepted>,
    /// The health that gRPC reports.
    pub(super) health: Health,
    /// The stage that the probes report.
    pub(super) probes: Probes,
    /// The switch.
    pub(super) handle: Handle,
    /// How long the whole stop may take.
    pub(super) grace: Duration,
}

impl Service {
    /// Accepts peers and reports that the sidecar is ready.
    pub(super) async fn start(self) -> Running {
        self.health.set_ready().await;
        self.probes.set(Stage::Ready);
        Running::start("the service", |stop| self.run(stop))
    }

    async fn run(self, stop: oneshot::Receiver<()>) {
        let Self { listeners, accepted, health, probes, handle, grace } = self;
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn(listener::accept(listener, accepted.clone()));
        }
        // The switch learns that nothing is accepted any more when the last sender is dropped.
        drop(accepted);
        let _ = stop.await;
        probes.set(Stage::Draining);
        health.set_draining().await;
        drop(accepting);
        end(&handle, NOTICE.min(grace / 4)).await;
    }
}

/// Applications get `notice` to finish. Then peers get [`FAREWELL`] to take the messages that were accepted for them
/// and the reason. Then the streams end. A switch that does not reply delays each step no longer than that.
async fn end(handle: &Handle, notice: Duration) {
    let deadline = clock::now().unix.saturating_add(notice);
    let told = async {
        let _ = handle.drain(deadline).await;
        until(handle, |switch| switch.registrations().attached() == 0).await;
    };
    let _ = timeout(notice, told).await;
    let farewell = async {
        let _ = handle.quit().await;
        until(handle, |switch| switch.connections() == 0).await;
    };
    let _ = timeout(FAREWELL, farewell).await;
    let _ = timeout(FAREWELL, handle.end_streams()).await;
}

/// Returns once `done` holds, or the switch has ended.
async fn until(handle: &Handle, done: fn(&mut Engine) -> bool) {
    while matches!(handle.run(move |switch, _| done(switch)).await, Ok(false)) {
        sleep(LOOK).await;
    }
}
