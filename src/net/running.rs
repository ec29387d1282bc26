//! The task of a component, which runs until it is told to stop. The start of a component returns it, together with the
//! way into the component.
//!
//! A component starts as `start(…) -> (handle, Running)`. [`Running::stop`] tells the task to finish, waits for it
//! until a deadline, and then aborts it: no component can delay the process for longer. Dropping a `Running` aborts its
//! task at once, so that a start that fails leaves no task behind.
//!
//! Left out: the order in which components stop (`app`), and tasks that a component keeps to itself.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use tokio::{sync::oneshot, task::JoinHandle, time::timeout_at};

/// A task of a component, and the way to end it.
pub struct Running {
    name: &'static str,
    /// Tells the task to finish. `None`: the task has nothing to finish and is aborted.
    finish: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    /// Whether the task handle was ready. After that it must not be polled again.
    ended: bool,
}

impl Running {
    /// Starts a task. Its argument is a receiver that fires when the task must finish its work. An operator reads
    /// `name` in the log when the task ends, so it is for example "the switch".
    pub fn start<F>(name: &'static str, run: impl FnOnce(oneshot::Receiver<()>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (finish, stop) = oneshot::channel();
        Self { name, finish: Some(finish), task: tokio::spawn(run(stop)), ended: false }
    }

    /// Starts a task that has nothing to finish: aborting it loses nothing.
    pub fn start_without_end(name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { name, finish: None, task: tokio::spawn(task), ended: false }
    }

    /// Returns the name of the component.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns ready if the task has ended, by itself or by a panic. Wakes the caller when that happens.
    pub fn poll_ended(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.ended {
            // The result does not matter: a panic is logged where it happens.
            self.ended = Pin::new(&mut self.task).poll(context).is_ready();
        }
        if self.ended { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Tells the task to finish, and waits for it until `deadline`. Returns true if it has finished. Otherwise the task
    /// is aborted, and the result is false.
    pub async fn stop(mut self, deadline: Instant) -> bool {
        match self.finish.take() {
            // Sending fails only if the task has ended.
            Some(finish) => drop(finish.send(())),
            None => self.task.abort(),
        }
        timeout_at(deadline.into(), poll_fn(|context| self.poll_ended(context))).await.is_ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use super::*;
    use crate::net::clock;

    /// A deadline that no test reaches: if a wait ends, something else has ended it.
    fn far() -> Instant {
        clock::now().mono + Duration::from_secs(3_600)
    }

    #[tokio::test]
    async fn a_task_finishes_its_work_when_it_is_told() {
        let (done, mut finished) = oneshot::channel();
        let running = Running::start("a part", async move |stop| {
            let _ = stop.await;
            let _ = done.send("finished");
        });
        assert!(finished.try_recv().is_err(), "it was not told yet");
        assert!(running.stop(far()).await);
        assert_eq!(finished.await, Ok("finished"));
    }

    #[tokio::test]
    async fn a_task_that_does_not_finish_is_cut_at_the_deadline() {
        let (held, cut) = oneshot::channel::<()>();
        let running = Running::start("a part", async move |_stop| {
            let _held = held;
            pending().await
        });
        assert!(!running.stop(clock::now().mono).await);
        assert!(cut.await.is_err(), "what the task held is dropped");
    }

    #[tokio::test]
    async fn a_task_without_an_end_is_cut_at_once_and_so_is_one_that_is_dropped() {
        let (held, cut) = oneshot::channel::<()>();
        let running = Running::start_without_end("a part", async move {
            let _held = held;
            pending().await
        });
        assert!(running.stop(far()).await);
        assert!(cut.await.is_err());

        let (held, cut) = oneshot::channel::<()>();
        drop(Running::start("a part", async move |stop| {
            let (_held, _) = (held, stop.await);
        }));
        assert!(cut.await.is_err());
    }

    #[tokio::test]
    async fn an_end_is_seen_any_number_of_times() {
        let mut running = Running::start("a part", async |_stop| ());
        for _ in 0..2 {
            poll_fn(|context| running.poll_ended(context)).await;
        }
        assert!(running.stop(far()).await);
    }
}
