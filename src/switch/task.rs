//! The switch's task: one loop that owns the [`State`] and carries out its effects.
//!
//! Everything that happens comes in through one of the bounded queues below and is dealt with one at a time, in
//! microseconds. Whatever takes longer (connections, dials, lookups) is a task of its own that reports back, and the
//! lists are kept by the task that watches them: nothing here waits for a disk.

use std::{io, net::IpAddr, sync::Arc};

use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    time::sleep_until,
};

use super::{
    handle::{Command, Handle},
    peers::ListError,
    state::{Config, Effect, State},
    work::{Job, Work},
};
use crate::{
    delivery::Budget,
    kademlia::Contact,
    net::{
        bandwidth::Bandwidth,
        buffers::{BufferPool, RECEIVE_BUDGET, ReceiveBudget},
        clock,
        connection::{Event, Shared},
        dialer::{self, ConnectError},
        discovery::Discovery,
        listener::Accepted,
        node_db::NodeDb,
        turns::Turns,
    },
    node::{AddressClass, ForkSchedule, Head, NodeId, NodeRef, local::EntryOwner},
    p2p::BaseTotals,
    policy::{
        dial::{Candidate, Dial, TaskId},
        lists::{Lists, Parsed},
    },
};

/// Calls that may wait for the switch; callers beyond wait themselves.
const COMMANDS: usize = 1024;

/// Events of connections that may wait; connections beyond wait, and with them their sockets.
const EVENTS: usize = 1024;

/// Changes of our record that may wait for discovery, which never waits for the switch; then the switch waits.
const RECORD_CHANGES: usize = 64;

/// What registrations make of our record. One task carries it out in order, so that an end comes after its beginning.
enum RecordChange {
    Announce(EntryOwner, Option<(Arc<ForkSchedule>, Head)>),
    Release(EntryOwner),
}

async fn change_record(record: Discovery, mut changes: mpsc::Receiver<RecordChange>) {
    while let Some(change) = changes.recv().await {
        match change {
            RecordChange::Announce(owner, chain) => {
                if let Err(error) = record.announce(owner, chain).await {
                    tracing::warn!(%error, "our record does not announce the chain of a registration");
                }
            }
            RecordChange::Release(owner) => drop(record.release_entries(owner).await),
        }
    }
}

/// What a dial or lookup came to.
enum Outcome {
    Dialed(Dial, Result<TcpStream, ConnectError>),
    Resolved(TaskId, io::Result<Vec<IpAddr>>),
    Located(NodeId, Option<Contact>),
}

/// How the switch hears of nodes, and asks for them.
#[derive(Debug)]
pub struct Sources {
    /// Whom to ask where a node is; nobody when discovery is off.
    pub discovery: Option<Discovery>,
    /// Who keeps our record, whether nodes are looked for or not.
    pub record: Discovery,
    /// How many candidates the dialer has room for: what throttles discovery.
    pub demand: watch::Sender<usize>,
    /// Where candidates come from.
    pub candidates: mpsc::Receiver<Candidate>,
    /// Where peers are remembered for the next run, if they are.
    pub database: Option<NodeDb>,
    /// The receive buffer of a connection that we dial, in bytes.
    pub receive_buffer: usize,
}

/// The switch, about to run.
pub struct Switch {
    pub(super) state: State,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Receiver<Event>,
    accepted: mpsc::Receiver<Accepted>,
    lists: watch::Sender<Option<Lists>>,
    sources: Sources,
}

impl Switch {
    /// A switch and the way into it. `accepted` brings inbound connections; `lists` takes the static, trusted and ban
    /// lists whenever they changed, so that they can be kept. Only the newest counts, so the switch never waits for a
    /// disk.
    #[must_use]
    pub fn new(
        config: Config,
        accepted: mpsc::Receiver<Accepted>,
        lists: watch::Sender<Option<Lists>>,
        sources: Sources,
    ) -> (Self, Handle) {
        let (commands, command_queue) = mpsc::channel(COMMANDS);
        let (events, event_queue) = mpsc::channel(EVENTS);
        let handle = Handle::new(commands, config.boards.clone());
        let shared = Arc::new(Shared {
            pool: BufferPool::default(),
            budget: ReceiveBudget::new(RECEIVE_BUDGET),
            turns: Turns::among(tokio::runtime::Handle::current().metrics().num_workers()),
            bandwidth: Bandwidth::new(clock::now().mono, config.bandwidth),
            inbound: Budget::new(config.inbox_budget),
            base: BaseTotals::default(),
        });
        let state = State::new(clock::now(), config, events, shared, handle.clone());
        let switch = Self { state, commands: command_queue, events: event_queue, accepted, lists, sources };
        (switch, handle)
    }

    /// Takes in the lists of the configuration and of earlier runs, before anything runs. Fails for an entry of the
    /// configuration only.
    pub fn restore(
        &mut self,
        statics: &[NodeRef],
        trusted: &[NodeRef],
        lists: &Parsed,
    ) -> Result<(), ListError> {
        self.state.restore(clock::now(), statics, trusted, lists)
    }

    /// Runs until `stop` fires. All connections end with it.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut work = Work::default();
        let (report, mut outcomes) = mpsc::channel::<Outcome>(EVENTS);
        let mut timer = std::pin::pin!(sleep_until(clock::now().mono.into()));
        let mut accepting = true;
        let mut record = self.sources.record.record();
        let (record_changes, changes) = mpsc::channel(RECORD_CHANGES);
        work.spawn(Job::Nothing, change_record(self.sources.record.clone(), changes));
        loop {
            let now = clock::now();
            self.state.settle(now);
            while let Some(effect) = self.state.effects.pop_front() {
                match effect {
                    Effect::Run(connection) => {
                        work.spawn(Job::Connection(connection.id), connection.run());
                    }
                    Effect::AbortConnection(id) => work.abort_connection(id),
                    Effect::Dial(dial) => {
                        let (report, buffer) = (report.clone(), self.sources.receive_buffer);
                        work.spawn(Job::Dial(dial.clone()), async move {
                            let mut dial = dial;
                            let outcome = dialer::connect(dial.addrs().collect(), dial.timeout, buffer).await;
                            let outcome = outcome.map(|(stream, addr)| {
                                dial.addr = addr;
                                stream
                            });
                            let _ = report.send(Outcome::Dialed(dial, outcome)).await;
                        });
                    }
                    Effect::LookupHost(task, name) => {
                        let report = report.clone();
                        work.spawn(Job::LookupHost(task), async move {
                            let outcome = dialer::lookup(&name).await;
                            let _ = report.send(Outcome::Resolved(task, outcome)).await;
                        });
                    }
                    Effect::AbortDial(task) => work.abort_dial(task),
                    Effect::Resolve(id, key) => {
                        let (report, discovery) = (report.clone(), self.sources.discovery.clone());
                        work.spawn(Job::Resolve(id), async move {
                            let found = match discovery {
                                Some(discovery) => discovery.locate(id, key).await,
                                None => None,
                            };
                            let _ = report.send(Outcome::Located(id, found)).await;
                        });
                    }
                    // They fail only when the process is ending, and the record with it.
                    Effect::Announce(owner, chain) => {
                        let _ = record_changes.send(RecordChange::Announce(owner, chain)).await;
                    }
                    Effect::ReleaseEntries(owner) => {
                        let _ = record_changes.send(RecordChange::Release(owner)).await;
                    }
                    Effect::Demand(count) => drop(self.sources.demand.send_replace(count)),
                    Effect::Remember(update) => {
                        if let Some(database) = &self.sources.database {
                            database.update(update);
                        }
                    }
                    Effect::Persist(lists) => drop(self.lists.send_replace(Some(lists))),
                }
            }
            if let Some(deadline) = self.state.poll_timeout() {
                timer.as_mut().reset(deadline.into());
            }
            tokio::select! {
                _ = &mut stop => break,
                Some(command) = self.commands.recv() => command(&mut self.state, clock::now()),
                Some(event) = self.events.recv() => {
                    if let Event::Closed { connection, .. } = &event {
                        work.connection_over(*connection);
                    }
                    self.state.event(clock::now(), event);
                }
                Some(outcome) = outcomes.recv() => match outcome {
                    Outcome::Dialed(dial, outcome) => {
                        work.dial_over(dial.task);
                        self.state.dialed(clock::now(), &dial, outcome);
                    }
                    Outcome::Resolved(task, addrs) => {
                        work.dial_over(task);
                        self.state.host_resolved(clock::now(), task, &addrs);
                    }
                    Outcome::Located(id, found) => self.state.located(clock::now(), id, found),
                },
                Some(candidate) = self.sources.candidates.recv() => {
                    self.state.candidate(clock::now(), candidate);
                }
                accepted = self.accepted.recv(), if accepting => match accepted {
                    Some(accepted) => self.state.accepted(clock::now(), accepted),
                    None => accepting = false,
                },
                Ok(()) = record.changed() => {
                    let class = AddressClass::announced(&record.borrow_and_update());
                    self.state.announced(clock::now(), class);
                }
                Some(fault) = work.ended() => self.state.faulted(clock::now(), fault),
                () = timer.as_mut(), if self.state.poll_timeout().is_some() => {
                    self.state.handle_timeout(clock::now());
                }
            }
        }
    }
}
