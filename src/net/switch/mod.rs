//! The driver of the switch: one loop that owns the [`Engine`], passes events to it, and carries out its effects.
//!
//! Every event comes through one of the bounded queues below. The loop handles one at a time, within microseconds. Work
//! that takes longer (connections, dials, lookups) is a task of its own that reports back. The task that watches the
//! lists stores them, so nothing here waits for a disk.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`handle`] | the way in: carries the calls of other rooms to the engine |
//! | [`attachment`] | the wait of an application's stream for events and replies |
//! | [`watches`], [`watched`] | the state that tasks can watch, and how they are woken |
//! | `config` | the configuration of the switch and its driver |
//! | `tasks`, `work` | the tasks that the switch starts, and the report that each must make |
//! | `log`, `failure` | lines for the log, and why dials fail |
//!
//! Left out: every decision (`switch`).

pub mod attachment;
mod config;
mod failure;
pub mod handle;
mod log;
mod tasks;
#[cfg(test)]
mod tests;
pub mod watched;
pub mod watches;
mod work;

use std::sync::Arc;

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::sleep_until,
};

pub use attachment::{Attached, Attachment};
pub use config::{Config, Sources};
pub use handle::{Draining, Handle, PeerSettings};
pub use watches::Watches;

use crate::{
    kademlia::Contact,
    net::{
        bandwidth::Bandwidth,
        buffers::{BufferPool, ReceiveBudget},
        clock,
        connection::{Event, Shared},
        discovery::Discovery,
        listener::Accepted,
        node_db::{NodeDb, StoredPeer, Update},
        turns::Turns,
    },
    node::{AddressClass, Enode, NodeRef},
    p2p::{BaseTotals, Side, session::End},
    policy::{
        Cause,
        dial::Candidate,
        lists::{Lists, Parsed},
    },
    switch::{self, Effect, Engine, peers::ListError},
};
use handle::{Command, Desk};
use tasks::{Outcome, RecordChange, Tasks};
use work::{Faulted, Job};

/// The most calls that wait for the switch. With more, the callers wait until the queue has room.
const COMMANDS: usize = 1024;

/// The most events of connections that wait for the switch. With more, connections wait, and do not read their sockets.
const EVENTS: usize = 1024;

/// The error of a job whose task panicked.
const FAULT: &str = "a fault of this sidecar, see its log";

/// The switch before it runs.
pub struct Switch {
    desk: Desk,
    tasks: Tasks,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Receiver<Event>,
    outcomes: mpsc::Receiver<Outcome>,
    accepted: mpsc::Receiver<Accepted>,
    candidates: mpsc::Receiver<Candidate>,
    record: Discovery,
    demand: watch::Sender<usize>,
    database: Option<NodeDb>,
    lists: watch::Sender<Option<Lists>>,
    /// Woken when the engine's timeout has become earlier without an event from the loop.
    attention: Arc<Notify>,
}

impl Switch {
    /// Returns a switch and the way into it. `accepted` brings inbound connections. `lists` takes the static, trusted
    /// and ban lists whenever they change, so that they can be stored. Only the newest lists count, so the switch never
    /// waits for a disk.
    #[must_use]
    pub fn new(
        config: Config,
        accepted: mpsc::Receiver<Accepted>,
        lists: watch::Sender<Option<Lists>>,
        sources: Sources,
    ) -> (Self, Handle) {
        let now = clock::now();
        let (commands, command_queue) = mpsc::channel(COMMANDS);
        let (events, event_queue) = mpsc::channel(EVENTS);
        let (report, outcomes) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            pool: BufferPool::default(),
            budget: ReceiveBudget::new(Arc::clone(&config.budgets.receive)),
            turns: Turns::among(tokio::runtime::Handle::current().metrics().num_workers()),
            bandwidth: Bandwidth::new(now.mono, config.bandwidth),
            inbound: Arc::clone(&config.budgets.delivery),
            base: Arc::<BaseTotals>::default(),
        });
        let handle = Handle::new(commands, config.watches.clone(), Arc::clone(&shared));
        let Sources { discovery, record, demand, candidates, database, receive_buffer } = sources;
        let (local, config) = config.split(Arc::clone(&shared.base));
        let tasks = Tasks::new(local, shared, events, report, discovery, receive_buffer);
        let engine = Engine::new(now, config);
        let attention = Arc::<Notify>::default();
        engine.wake_by(Arc::clone(&attention) as _);
        let switch = Self {
            desk: Desk::new(engine),
            tasks,
            commands: command_queue,
            events: event_queue,
            outcomes,
            accepted,
            candidates,
            record,
            demand,
            database,
            lists,
            attention,
        };
        (switch, handle)
    }

    /// Restores the lists of the configuration and of earlier runs. Call it before [`Self::run`]. Fails only for an
    /// entry of the configuration.
    pub fn restore(
        &mut self,
        statics: &[NodeRef],
        trusted: &[NodeRef],
        lists: &Parsed,
    ) -> Result<(), ListError> {
        self.desk.engine.restore(clock::now(), statics, trusted, lists)
    }

    /// Runs until `stop` fires. All connections end with the switch.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut timer = std::pin::pin!(sleep_until(clock::now().mono.into()));
        let mut accepting = true;
        let mut record = self.record.record();
        let changes = self.tasks.keep_record(self.record.clone());
        loop {
            let now = clock::now();
            while let Some(effect) = self.desk.engine.poll_effect(now) {
                self.carry_out(effect, &changes).await;
            }
            let deadline = self.desk.engine.poll_timeout();
            if let Some(deadline) = deadline {
                timer.as_mut().reset(deadline.into());
            }
            // Wait for the first of these: the order to stop; a call; an event of a connection; the report of a dial or
            // a lookup; a candidate; an accepted connection, until the listener ends; a new record of ours; a task that
            // panicked; a timeout that became earlier; the engine's deadline. The loop then asks for effects again.
            tokio::select! {
                _ = &mut stop => break,
                Some(command) = self.commands.recv() => command(&mut self.desk, clock::now()),
                Some(event) = self.events.recv() => self.happened(event),
                Some(outcome) = self.outcomes.recv() => self.came(outcome),
                Some(candidate) = self.candidates.recv() => {
                    self.desk.engine.candidate(clock::now(), candidate);
                }
                accepted = self.accepted.recv(), if accepting => match accepted {
                    Some(accepted) => self.accepted(accepted),
                    None => accepting = false,
                },
                Ok(()) = record.changed() => {
                    let class = AddressClass::announced(&record.borrow_and_update());
                    self.desk.engine.peers().announced(clock::now(), class);
                }
                Some(fault) = self.tasks.ended() => self.faulted(fault),
                () = self.attention.notified() => {}
                () = timer.as_mut(), if deadline.is_some() => {
                    self.desk.engine.handle_timeout(clock::now());
                }
            }
        }
    }

    fn accepted(&mut self, Accepted { stream, remote }: Accepted) {
        let local = stream.local_addr().unwrap_or(remote);
        if let Some(run) = self.desk.engine.accepted(clock::now(), remote, local) {
            self.tasks.run(run, stream);
        }
    }

    /// Handles an event of a connection.
    fn happened(&mut self, event: Event) {
        let (now, engine) = (clock::now(), &mut self.desk.engine);
        match event {
            Event::Authenticated { connection, remote, reply } => {
                // Sending fails if the connection has ended meanwhile. Its last event then follows.
                let _ = reply.send(engine.authenticated(now, connection, remote));
            }
            Event::Negotiated { connection, hello, channels, reply } => {
                let _ = reply.send(engine.negotiated(now, connection, hello, &channels));
            }
            Event::Heard { connection } => engine.heard(now, connection),
            Event::ChannelClosed { connection, channel } => engine.channel_closed(now, connection, channel),
            Event::Closed { connection, end } => {
                self.tasks.connection_over(connection);
                engine.closed(now, connection, &end);
            }
        }
    }

    /// Handles the report of a dial or a lookup.
    fn came(&mut self, outcome: Outcome) {
        let (now, engine) = (clock::now(), &mut self.desk.engine);
        match outcome {
            Outcome::Dialed(dial, Ok(stream)) => {
                self.tasks.dial_over(dial.task);
                let local = stream.local_addr().unwrap_or(dial.addr);
                if let Some(run) = engine.dialed(now, &dial, local) {
                    self.tasks.run(run, stream);
                }
            }
            Outcome::Dialed(dial, Err(error)) => {
                self.tasks.dial_over(dial.task);
                tracing::debug!(node = %dial.id, addr = %dial.addr, %error, "a dial failed");
                engine.dial_failed(now, dial.task, failure::of_connect(&error), &error.to_string());
            }
            Outcome::Resolved(task, addrs) => {
                self.tasks.dial_over(task);
                let addrs = addrs.map_err(|error| error.to_string());
                engine.host_resolved(now, task, addrs.as_deref().map_err(String::as_str));
            }
            Outcome::Located(id, found) => {
                let enode = found.and_then(|Contact { public_key, endpoint, record, .. }| match record {
                    Some(record) => NodeRef::Record(record).enode(),
                    None => Some(Enode::at(public_key, (endpoint.ip, endpoint.tcp).into())),
                });
                engine.located(now, id, enode);
            }
        }
    }

    /// Handles a task that panicked: makes the report that the task would have made.
    fn faulted(&mut self, Faulted { job, said }: Faulted) {
        tracing::error!(?job, said, "a task of the switch panicked: a fault of devp2pd, please report it");
        let (now, engine) = (clock::now(), &mut self.desk.engine);
        match job {
            Job::Connection(id) => {
                self.tasks.connection_over(id);
                let detail = FAULT.to_owned();
                let end = End { by: Side::Local, reason: None, detail, timed_out: false, proven: false };
                engine.closed(now, id, &end);
            }
            Job::Dial(dial) => engine.dial_failed(now, dial.task, Cause::Unreachable, FAULT),
            Job::LookupHost(task) => engine.host_resolved(now, task, Err(FAULT)),
            Job::Resolve(id) => engine.located(now, id, None),
            Job::Nothing => {}
        }
    }

    async fn carry_out(&mut self, effect: Effect, record: &mpsc::Sender<RecordChange>) {
        match effect {
            Effect::Control(id, control) => self.tasks.control(id, control),
            Effect::AbortConnection(id) => self.tasks.abort_connection(id),
            Effect::Dial(dial) => self.tasks.dial(dial),
            Effect::LookupHost(task, name) => self.tasks.lookup(task, name),
            Effect::AbortDial(task) => self.tasks.abort_dial(task),
            Effect::Resolve(id, key) => self.tasks.resolve(id, key),
            // These fail only if the process is ending. Then the record is not needed any more.
            Effect::Announce(owner, chain) => drop(record.send(RecordChange::Announce(owner, chain)).await),
            Effect::ReleaseEntries(owner) => drop(record.send(RecordChange::Release(owner)).await),
            Effect::Demand(count) => drop(self.demand.send_replace(count)),
            Effect::Remember(peer) => {
                let switch::effect::Acquaintance { public_key, addr, record, served, last } = *peer;
                let peer = StoredPeer { public_key, addr, record, served, last };
                self.update(Update::Peer(Box::new(peer)));
            }
            Effect::PeerLeft(id) => self.update(Update::PeerLeft(id)),
            Effect::Persist(lists) => drop(self.lists.send_replace(Some(lists))),
            Effect::Reply(call, answer) => self.desk.reply(call, answer),
            Effect::Log(line) => log::write(line),
        }
    }

    fn update(&self, update: Update) {
        if let Some(database) = &self.database {
            database.update(update);
        }
    }
}
