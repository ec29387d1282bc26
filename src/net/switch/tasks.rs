//! Starts the tasks of the switch, and sends orders to the tasks of connections.
//!
//! Left out: the report of a task ([`work`](super::work)), and when a task is started (the engine decides).

use std::{collections::HashMap, io, net::IpAddr, sync::Arc};

use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc},
};

use super::work::{Faulted, Job, Work};
use crate::{
    kademlia::Contact,
    net::{
        connection::{Connection, Event, Shared},
        dialer::{self, ConnectError},
        discovery::Discovery,
    },
    node::{ForkSchedule, Head, NodeId, PublicKey, local::EntryOwner},
    p2p::{
        LocalNode,
        session::{ConnectionId, Control},
    },
    policy::dial::{Dial, TaskId},
    switch::Run,
};

/// The most changes of our record that wait for discovery. With more, the switch waits; discovery never waits for the
/// switch.
const RECORD_CHANGES: usize = 64;

/// The most controls that wait for a connection: it takes them at once, and there are never more than two.
const CONTROLS: usize = 4;

/// How a dial or lookup ended.
pub(super) enum Outcome {
    Dialed(Dial, Result<TcpStream, ConnectError>),
    Resolved(TaskId, io::Result<Vec<IpAddr>>),
    Located(NodeId, Option<Contact>),
}

/// A change of our record by a registration. One task makes all changes in order, so that an entry is released after it
/// was set.
pub(super) enum RecordChange {
    Announce(EntryOwner, Option<(Arc<ForkSchedule>, Head)>),
    Release(EntryOwner),
}

async fn change_record(record: Discovery, mut changes: mpsc::Receiver<RecordChange>) {
    while let Some(change) = changes.recv().await {
        match change {
            RecordChange::Announce(owner, chain) => {
                if let Err(error) = record.announce(owner, chain).await {
                    tracing::warn!(
                        %error,
                        "our record does not announce the chain of a registration, so fewer nodes of that chain will \
                         dial us"
                    );
                }
            }
            RecordChange::Release(owner) => drop(record.release_entries(owner).await),
        }
    }
}

/// The tasks of the switch. They end with it.
pub(super) struct Tasks {
    work: Work,
    controls: HashMap<ConnectionId, mpsc::Sender<Control>>,
    local: Arc<LocalNode>,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    report: mpsc::Sender<Outcome>,
    discovery: Option<Discovery>,
    /// The receive buffer of a connection that we dial, in bytes.
    receive_buffer: usize,
}

impl Tasks {
    /// Returns a set without tasks. Connections report to `events`, dials and lookups to `report`.
    pub(super) fn new(
        local: LocalNode,
        shared: Arc<Shared>,
        events: mpsc::Sender<Event>,
        report: mpsc::Sender<Outcome>,
        discovery: Option<Discovery>,
        receive_buffer: usize,
    ) -> Self {
        let (work, controls) = (Work::default(), HashMap::new());
        Self { work, controls, local: Arc::new(local), shared, events, report, discovery, receive_buffer }
    }

    /// Starts the task that changes our record, one change after the other.
    pub(super) fn keep_record(&mut self, record: Discovery) -> mpsc::Sender<RecordChange> {
        let (changes, queue) = mpsc::channel(RECORD_CHANGES);
        self.work.spawn(Job::Nothing, change_record(record, queue));
        changes
    }

    /// Starts the task of a connection.
    pub(super) fn run(&mut self, run: Run, stream: TcpStream) {
        let Run { id, role, rng, outbound, traffic, space } = run;
        let (control, controls) = mpsc::channel(CONTROLS);
        self.controls.insert(id, control);
        let room = Arc::<Notify>::default();
        space.fill(Arc::clone(&room) as _);
        let connection = Connection {
            id,
            stream,
            role,
            local: Arc::clone(&self.local),
            rng,
            outbound,
            traffic,
            space: room,
            control: controls,
            events: self.events.clone(),
            shared: Arc::clone(&self.shared),
        };
        self.work.spawn(Job::Connection(id), connection.run());
    }

    /// Sends an order to a connection.
    pub(super) fn control(&self, id: ConnectionId, control: Control) {
        // Sending fails only if the connection has ended. Its last event then waits in the queue.
        let _ = self.controls.get(&id).map(|controls| controls.try_send(control));
    }

    /// Notes that a connection has reported its end.
    pub(super) fn connection_over(&mut self, id: ConnectionId) {
        self.work.connection_over(id);
        self.controls.remove(&id);
    }

    /// Starts a dial.
    pub(super) fn dial(&mut self, dial: Dial) {
        let (report, buffer) = (self.report.clone(), self.receive_buffer);
        self.work.spawn(Job::Dial(dial.clone()), async move {
            let mut dial = dial;
            let outcome = dialer::connect(dial.addrs().collect(), dial.timeout, buffer).await;
            let outcome = outcome.map(|(stream, addr)| {
                dial.addr = addr;
                stream
            });
            let _ = report.send(Outcome::Dialed(dial, outcome)).await;
        });
    }

    /// Starts to look up a host name.
    pub(super) fn lookup(&mut self, task: TaskId, name: String) {
        let report = self.report.clone();
        self.work.spawn(Job::LookupHost(task), async move {
            let _ = report.send(Outcome::Resolved(task, dialer::lookup(&name).await)).await;
        });
    }

    /// Starts to ask discovery for the address of a node.
    pub(super) fn resolve(&mut self, id: NodeId, key: Option<PublicKey>) {
        let (report, discovery) = (self.report.clone(), self.discovery.clone());
        self.work.spawn(Job::Resolve(id), async move {
            let found = match discovery {
                Some(discovery) => discovery.locate(id, key).await,
                None => None,
            };
            let _ = report.send(Outcome::Located(id, found)).await;
        });
    }

    /// Aborts a connection without a Disconnect. It does not report its end.
    pub(super) fn abort_connection(&mut self, id: ConnectionId) {
        self.work.abort_connection(id);
        self.controls.remove(&id);
    }

    /// Aborts a dial, or the lookup before it, without a report.
    pub(super) fn abort_dial(&mut self, task: TaskId) {
        self.work.abort_dial(task);
    }

    /// Notes that a dial or a lookup has reported.
    pub(super) fn dial_over(&mut self, task: TaskId) {
        self.work.dial_over(task);
    }

    /// Waits for a task to end ([`Work::ended`]).
    pub(super) async fn ended(&mut self) -> Option<Faulted> {
        self.work.ended().await
    }
}
