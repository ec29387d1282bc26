//! The tasks that the switch starts: connections, dials, lookups. Each has a [`Job`], which names the report that it
//! must make to the switch. So the report can be made even if the task panics.
//!
//! A task reports when it ends, but a task that panics cannot. Without this module, its connection would stay a peer,
//! or its dial would stay in progress, until the process ends.
//!
//! Left out: the report in place of a task that panicked (the switch).

use std::{collections::HashMap, future::Future};

use tokio::task::{self, AbortHandle, JoinSet};

use crate::{
    node::NodeId,
    p2p::session::ConnectionId,
    policy::dial::{Dial, TaskId},
};

/// The job of a task, and its report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Runs a connection, and reports its last event.
    Connection(ConnectionId),
    /// Opens a TCP connection, and reports the outcome.
    Dial(Dial),
    /// Looks up a host name, and reports the addresses.
    LookupHost(TaskId),
    /// Asks discovery for a node, and reports the answer.
    Resolve(NodeId),
    /// Reports nothing.
    Nothing,
}

/// A job whose task panicked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Faulted {
    pub(super) job: Job,
    /// The text of the panic.
    pub(super) said: String,
}

/// All tasks of the switch. They end with it.
#[derive(Debug, Default)]
pub(super) struct Work {
    tasks: JoinSet<()>,
    jobs: HashMap<task::Id, Job>,
    connections: HashMap<ConnectionId, AbortHandle>,
    dials: HashMap<TaskId, AbortHandle>,
}

impl Work {
    /// Starts a task.
    pub(super) fn spawn(&mut self, job: Job, run: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(run);
        self.jobs.insert(task.id(), job.clone());
        match job {
            Job::Connection(id) => drop(self.connections.insert(id, task)),
            Job::Dial(Dial { task: id, .. }) | Job::LookupHost(id) => drop(self.dials.insert(id, task)),
            Job::Resolve(_) | Job::Nothing => {}
        }
    }

    /// Ends the task of a connection without a report.
    pub(super) fn abort_connection(&mut self, id: ConnectionId) {
        if let Some(task) = self.connections.remove(&id) {
            task.abort();
        }
    }

    /// Ends the task of a dial, or of the lookup before it, without a report.
    pub(super) fn abort_dial(&mut self, id: TaskId) {
        if let Some(task) = self.dials.remove(&id) {
            task.abort();
        }
    }

    /// Notes that a connection has reported its end.
    pub(super) fn connection_over(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
    }

    /// Notes that a dial or a lookup has reported.
    pub(super) fn dial_over(&mut self, id: TaskId) {
        self.dials.remove(&id);
    }

    /// Waits for a task to end. Returns its job if it panicked, and `None` if it has reported or was aborted. Waits for
    /// ever while there is no task.
    pub(super) async fn ended(&mut self) -> Option<Faulted> {
        let ended = match self.tasks.join_next_with_id().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        };
        let error = match ended {
            Ok((id, ())) => {
                self.jobs.remove(&id);
                return None;
            }
            Err(error) => error,
        };
        let job = self.jobs.remove(&error.id())?;
        let panic = error.try_into_panic().ok()?;
        match &job {
            Job::Connection(id) => self.connection_over(*id),
            Job::Dial(Dial { task, .. }) | Job::LookupHost(task) => self.dial_over(*task),
            Job::Resolve(_) | Job::Nothing => {}
        }
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Some(Faulted { job, said: text.unwrap_or_else(|| "no text".to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_told_and_others_are_not() {
        let mut work = Work::default();
        work.spawn(Job::Connection(ConnectionId(1)), async {});
        work.spawn(Job::Connection(ConnectionId(2)), async { panic!("a fault of {}", "ours") });
        work.spawn(Job::LookupHost(TaskId(3)), async { panic!("plain") });
        work.spawn(Job::Connection(ConnectionId(4)), std::future::pending());
        work.spawn(Job::Nothing, async {});
        work.abort_connection(ConnectionId(4));
        let mut faults = Vec::new();
        for _ in 0..5 {
            faults.extend(work.ended().await);
        }
        faults.sort_by_key(|fault| fault.said.clone());
        let fault = |job, said: &str| Faulted { job, said: said.to_owned() };
        let expected = [
            fault(Job::Connection(ConnectionId(2)), "a fault of ours"),
            fault(Job::LookupHost(TaskId(3)), "plain"),
        ];
        assert_eq!(faults, expected);
        work.connection_over(ConnectionId(1));
        assert!(work.jobs.is_empty() && work.connections.is_empty() && work.dials.is_empty());
    }
}
