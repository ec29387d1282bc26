//! The components that run, in the order of their start, and how all of them stop: in reverse, under one deadline.
//!
//! A component may wait for one that was started before it, never for one that comes later. So the last one stops
//! first, while everything that it uses still runs. Each has a share of the time, so that one that hangs leaves time
//! for the others. At the deadline, all that is left is cut.

use std::{
    future::poll_fn,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::time::timeout_at;

use crate::net::{clock, running::Running};

/// How long one component may take to stop. The longest ordinary stop is that of gRPC clients that close their
/// connections.
const SHARE: Duration = Duration::from_secs(3);

/// A component, and what stopping it takes.
pub(super) struct Component {
    running: Running,
    /// Without it the sidecar is of no use: when it ends by itself, the process ends.
    essential: bool,
    /// How long it may take to stop. `None`: all the time that is left.
    share: Option<Duration>,
}

impl From<Running> for Component {
    fn from(running: Running) -> Self {
        Self { running, essential: false, share: Some(SHARE) }
    }
}

impl Component {
    /// The sidecar cannot do without it.
    pub(super) fn essential(self) -> Self {
        Self { essential: true, ..self }
    }

    /// It has bounds of its own, or must not be cut while there is time: stopping it may take all that is left.
    pub(super) fn with_all_the_time(self) -> Self {
        Self { share: None, ..self }
    }
}

/// The components that run. Dropping them cuts them, the last one first.
#[derive(Default)]
pub(super) struct Components {
    /// In the order of their start.
    list: Vec<Component>,
}

impl Components {
    /// Takes a component that was started after all others.
    pub(super) fn add(&mut self, component: impl Into<Component>) {
        self.list.push(component.into());
    }

    /// Takes a component that stops after all others, whenever it was started.
    pub(super) fn add_below(&mut self, component: impl Into<Component>) {
        self.list.insert(0, component.into());
    }

    /// Waits until a component ends that must not, and returns its name.
    pub(super) async fn broken(&mut self) -> &'static str {
        poll_fn(|context| {
            for component in self.list.iter_mut().filter(|component| component.essential) {
                if component.running.poll_ended(context).is_ready() {
                    return Poll::Ready(component.running.name());
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Stops all components, the last one first. Returns at `deadline` at the latest.
    pub(super) async fn stop(mut self, deadline: Instant) {
        let in_reverse = async {
            while let Some(Component { running, share, .. }) = self.list.pop() {
                let until = share.map_or(deadline, |share| deadline.min(clock::now().mono + share));
                let component = running.name();
                if running.stop(until).await {
                    tracing::debug!(component, "stopped");
                } else {
                    tracing::info!(component, "did not stop in time and is cut");
                }
            }
        };
        // Each wait ends at the deadline; this one also bounds the code between them.
        let _ = timeout_at(deadline.into(), in_reverse).await;
    }
}

impl Drop for Components {
    fn drop(&mut self) {
        while self.list.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{Arc, Mutex},
    };

    use super::*;

    /// Longer than a test may take, and short enough that one that waits for it fails.
    const LONG: Duration = Duration::from_secs(3_600);
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Notes its name when it is dropped, wherever that happens.
    struct Noted(&'static str, Arc<Mutex<Vec<&'static str>>>);

    impl Drop for Noted {
        fn drop(&mut self) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    /// A component that ends as soon as it is asked to, and one that never does.
    fn component(name: &'static str, ends: bool, log: &Arc<Mutex<Vec<&'static str>>>) -> Component {
        let noted = Noted(name, Arc::clone(log));
        Running::start(name, async move |stop| {
            let _noted = noted;
            let _ = stop.await;
            if !ends {
                pending::<()>().await;
            }
        })
        .into()
    }

    #[tokio::test]
    async fn the_last_one_stops_first_and_one_that_is_below_stops_last() {
        let log = Arc::default();
        let mut components = Components::default();
        for name in ["first", "second", "third"] {
            components.add(component(name, true, &log));
        }
        components.add_below(component("below", true, &log));
        components.stop(clock::now().mono + LONG).await;
        assert_eq!(*log.lock().unwrap(), ["third", "second", "first", "below"]);
    }

    /// Two components ignore the order to stop: the one that may take all the time takes it, and everything ends at the
    /// deadline nevertheless.
    #[tokio::test]
    async fn components_that_do_not_stop_cannot_hold_the_others_beyond_the_deadline() {
        let log = Arc::default();
        let mut components = Components::default();
        components.add(component("first", true, &log));
        components.add(component("deaf", false, &log).with_all_the_time());
        components.add(component("deaf too", false, &log));
        components.add(component("last", true, &log));
        let stopping = components.stop(clock::now().mono + Duration::from_millis(200));
        assert!(tokio::time::timeout(PATIENCE, stopping).await.is_ok(), "it waits for a component");
        // A task that is cut is dropped in a turn of the runtime.
        let all_dropped = async {
            while log.lock().unwrap().len() < 4 {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, all_dropped).await.is_ok(), "{log:?}");
        assert_eq!(log.lock().unwrap()[0], "last");
    }

    /// A component that takes no more than its share leaves time for those below it.
    #[tokio::test]
    async fn one_that_hangs_leaves_time_for_the_others() {
        let log = Arc::default();
        let mut components = Components::default();
        components.add(component("first", true, &log));
        let deaf = Component { share: Some(Duration::from_millis(50)), ..component("deaf", false, &log) };
        components.add(deaf);
        components.stop(clock::now().mono + LONG).await;
        assert!(log.lock().unwrap().contains(&"first"), "it was asked to stop, and has finished");
    }

    #[tokio::test]
    async fn only_the_end_of_an_essential_component_is_a_fault() {
        let mut components = Components::default();
        components.add(Running::start("optional", async |_stop| ()));
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let essential = Running::start("essential", async move |_stop| drop(ended.await));
        components.add(Component::from(essential).essential());
        // Both have had a turn, and the optional one has ended.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let waiting = tokio::time::timeout(Duration::ZERO, components.broken()).await;
        assert!(waiting.is_err(), "{waiting:?} is not needed");
        drop(end);
        for _ in 0..2 {
            assert_eq!(components.broken().await, "essential");
        }
        components.stop(clock::now().mono + LONG).await;
    }
}
