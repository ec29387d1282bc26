//! One sidecar: the driver of its switch (the steps of `net::switch`), its disk, and how it starts, stops and crashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use devp2pd::{
    Enode, NodeId, NodeRef,
    budget::{Budget, Budgets, Resource},
    node::NodeKey,
    p2p::{
        LocalNode, Side,
        session::{ConnectionId, End},
    },
    policy::{
        Cause, Settings,
        dial::{Candidate, Dial, TaskId},
        lists::Lists,
    },
    switch::{CallId, Config, Effect, Engine, LogLine, Run, views::Views},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{
    command::{Answer, Caller, Command},
    connection::{Connection, Report, Verdict},
    ledger::SessionKey,
    link::{Owner, Socket},
    mailbox::{Flag, Mailbox},
    net::Net,
};

/// The time that applications have to finish when a sidecar stops.
const NOTICE: Duration = Duration::from_secs(2);
/// The time that peers have to take the messages that were accepted for them.
const FAREWELL: Duration = Duration::from_secs(3);
/// The result of a task of the switch.
enum Outcome {
    Dialed(Dial, Option<Socket>),
    Resolved(TaskId, Option<IpAddr>),
    Located(NodeId, Option<Enode>),
}

/// The phase of a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Up,
    Draining(Instant),
    Quitting(Instant),
    /// It starts again at that time.
    Down(Instant),
}

/// The properties in which the sidecars of one world differ.
#[derive(Clone)]
pub(super) struct Character {
    pub(super) settings: Settings,
    pub(super) rehello: bool,
    pub(super) inbox_budget: u64,
    pub(super) max_shared_stall: Duration,
    /// The static peers of the configuration.
    pub(super) statics: Vec<NodeRef>,
}

/// The file with the lists, on a disk whose writes take time.
#[derive(Default)]
struct Disk {
    kept: Lists,
    newest: Option<Lists>,
    writing: Option<(Instant, Lists)>,
}

/// The state of a sidecar that runs.
pub(super) struct Process {
    pub(super) engine: Engine,
    pub(super) views: Views,
    pub(super) inbound: Arc<Budget>,
    pub(super) connections: BTreeMap<ConnectionId, Connection>,
    pub(super) commands: Mailbox<Command>,
    events: Mailbox<(ConnectionId, Report)>,
    outcomes: Mailbox<Outcome>,
    accepted: Mailbox<(Socket, SocketAddr)>,
    pub(super) candidates: Mailbox<Candidate>,
    dials: BTreeMap<TaskId, (Instant, Dial)>,
    lookups: BTreeMap<TaskId, (Instant, String)>,
    attention: Arc<Flag>,
    /// Calls that wait for their answers, and the time until which each waits.
    pub(super) calls: BTreeMap<CallId, Option<Instant>>,
    pub(super) calls_made: u64,
    /// The sockets of all connections, also of those that have ended.
    sockets: BTreeMap<ConnectionId, Socket>,
    /// The clients of registrations that have begun and not ended.
    pub(super) registered: BTreeSet<Arc<str>>,
    /// Connections that the switch aborted after they had reported their ends.
    cut_late: Vec<ConnectionId>,
}

/// See the [module](self).
pub(super) struct Sidecar {
    pub(super) index: usize,
    pub(super) key: NodeKey,
    local: Arc<LocalNode>,
    pub(super) addr: SocketAddr,
    pub(super) run: u64,
    pub(super) phase: Phase,
    pub(super) character: Character,
    pub(super) process: Option<Process>,
    disk: Disk,
    /// Answers of calls, on their way to applications.
    pub(super) answers: Vec<(Caller, Answer)>,
    /// The wall time at which the drain ends, until it has been announced to every application.
    pub(super) announce: Option<Duration>,
    is_last_run: bool,
}

/// The events for which a switch's task waits.
#[derive(Clone, Copy, Debug)]
enum Ready {
    Command,
    Event,
    Outcome,
    Accepted,
    Candidate,
    Attention,
    Timer,
    CallTimeout,
}

impl Sidecar {
    pub(super) fn new(
        index: usize,
        key: NodeKey,
        addr: SocketAddr,
        character: Character,
        at: Instant,
    ) -> Self {
        let local = Arc::new(LocalNode::new(key.clone(), "devp2pd/sim"));
        Self {
            index,
            key,
            local,
            addr,
            run: 0,
            phase: Phase::Down(at),
            character,
            process: None,
            disk: Disk::default(),
            answers: Vec::new(),
            announce: None,
            is_last_run: false,
        }
    }

    pub(super) fn id(&self) -> NodeId {
        self.key.id()
    }

    pub(super) fn accepts(&self) -> bool {
        self.phase == Phase::Up && self.process.is_some()
    }

    fn start(&mut self, net: &mut Net) {
        self.run += 1;
        let views = Views::new(self.run);
        let inbound = Budget::new(Resource::Delivery, self.character.inbox_budget);
        let config = Config {
            local_id: self.id(),
            instance_id: format!("run {}", self.run).into(),
            leases: Default::default(),
            settings: self.character.settings.clone(),
            views: views.clone(),
            budgets: Budgets { delivery: Arc::clone(&inbound), ..Budgets::new(0) },
            base: Arc::default(),
            max_shared_stall: self.character.max_shared_stall,
            end_shared_sessions: false,
            network: None,
            rehello: self.character.rehello,
            rng: StdRng::seed_from_u64(net.rng.random()),
        };
        let mut engine = Engine::new(net.now, config);
        let lists = self.disk.kept.parse().expect("lists that were written can be read");
        engine.restore(net.now, &self.character.statics, &[], &lists).expect("lists that are right");
        let attention = Arc::<Flag>::default();
        engine.wake_by(Arc::clone(&attention) as _);
        (self.disk.newest, self.disk.writing) = (None, None);
        self.process = Some(Process {
            engine,
            views,
            inbound,
            connections: BTreeMap::new(),
            commands: Mailbox::default(),
            events: Mailbox::default(),
            outcomes: Mailbox::default(),
            accepted: Mailbox::default(),
            candidates: Mailbox::default(),
            dials: BTreeMap::new(),
            lookups: BTreeMap::new(),
            attention,
            calls: BTreeMap::new(),
            calls_made: 0,
            sockets: BTreeMap::new(),
            registered: BTreeSet::new(),
            cut_late: Vec::new(),
        });
        self.phase = Phase::Up;
        net.note(("start", self.index, self.run));
        self.drain_effects(net);
    }

    /// Orders the sidecar to stop. It starts again some time after it has stopped.
    pub(super) fn stop(&mut self, net: &mut Net) {
        if !self.accepts() {
            return;
        }
        net.note(("stop", self.index));
        self.phase = Phase::Draining(net.now.mono + NOTICE);
        self.announce = Some(net.now.unix + NOTICE);
        let at = net.soon();
        if let Some(process) = &mut self.process {
            process.commands.send(at, Command::Drain);
        }
    }

    /// The process ends at once. It starts again after `down_for`.
    pub(super) fn crash(&mut self, net: &mut Net, down_for: Duration) {
        net.note(("crash", self.index));
        let Some(mut process) = self.process.take() else { return };
        let open: Vec<SessionKey> =
            net.ledger.open_sessions(self.index, self.run).map(|(key, _)| *key).collect();
        open.into_iter().for_each(|key| net.ledger.ended(key));
        let mut sockets: Vec<Socket> =
            process.connections.values().map(|connection| connection.socket).collect();
        sockets.extend(process.accepted.drain().map(|(socket, _)| socket));
        sockets.extend(process.outcomes.drain().filter_map(|outcome| match outcome {
            Outcome::Dialed(_, socket) => socket,
            _ => None,
        }));
        for socket in sockets {
            let reset = net.rng.random_bool(0.3);
            net.links.close(net.now.mono, socket, reset);
        }
        (self.disk.newest, self.disk.writing) = (None, None);
        self.phase = Phase::Down(net.now.mono + down_for);
    }

    /// Whether the sidecar itself (its start and stop, its disk) has something to do now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let disk = self.disk.writing.as_ref().is_some_and(|(at, _)| *at <= now)
            || (self.disk.writing.is_none() && self.disk.newest.is_some());
        let phase = match (self.phase, &self.process) {
            (Phase::Up, _) => false,
            (Phase::Draining(until) | Phase::Quitting(until), _) => until <= now,
            (Phase::Down(until), _) => until <= now && !self.is_last_run,
        };
        disk || phase || self.is_over()
    }

    /// Whether the stop has nothing to wait for: the sidecar is quitting, and no connection is left.
    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Quitting(_))
            && self.process.as_ref().is_some_and(|process| process.engine.connections() == 0)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        let disk = self.disk.writing.as_ref().map(|(at, _)| *at);
        let phase = match self.phase {
            Phase::Up => None,
            Phase::Draining(until) | Phase::Quitting(until) => Some(until),
            Phase::Down(until) => (!self.is_last_run).then_some(until),
        };
        [disk, phase].into_iter().flatten().min()
    }

    /// Starts or stops the sidecar and writes its lists, as far as they are due.
    pub(super) fn go_on(&mut self, net: &mut Net) {
        if self.disk.writing.as_ref().is_some_and(|(at, _)| *at <= net.now.mono)
            && let Some((_, lists)) = self.disk.writing.take()
        {
            self.disk.kept = lists;
        }
        if self.disk.writing.is_none()
            && let Some(lists) = self.disk.newest.take()
        {
            let time = Duration::from_millis(net.rng.random_range(0..3000));
            self.disk.writing = Some((net.now.mono + time, lists));
        }
        match self.phase {
            Phase::Up => {}
            Phase::Draining(until) if until <= net.now.mono => {
                self.phase = Phase::Quitting(net.now.mono + FAREWELL);
                if let Some(process) = &mut self.process {
                    process.commands.send(net.now.mono, Command::Quit);
                }
            }
            Phase::Draining(_) => {}
            Phase::Quitting(until) if until <= net.now.mono || self.is_over() => {
                // The lists are written before the process ends.
                if let Some(lists) =
                    self.disk.newest.take().or(self.disk.writing.take().map(|(_, lists)| lists))
                {
                    self.disk.kept = lists;
                }
                let down_for = Duration::from_millis(net.rng.random_range(10..20_000));
                self.crash(net, down_for);
            }
            Phase::Quitting(_) => {}
            Phase::Down(until) if until <= net.now.mono && !self.is_last_run => self.start(net),
            Phase::Down(_) => {}
        }
    }

    /// The operating system has accepted a connection from another node.
    pub(super) fn knock(&mut self, net: &mut Net, socket: Socket, remote: SocketAddr) {
        let at = net.soon();
        if let Some(process) = &mut self.process {
            process.accepted.send(at, (socket, remote));
        }
    }

    /// A dial whose result is due.
    pub(super) fn due_dial(&self, now: Instant) -> Option<TaskId> {
        let process = self.process.as_ref()?;
        process.dials.iter().find(|(_, (at, _))| *at <= now).map(|(task, _)| *task)
    }

    /// The address of a dial.
    pub(super) fn dialed_addr(&self, task: TaskId) -> Option<SocketAddr> {
        Some(self.process.as_ref()?.dials.get(&task)?.1.addr)
    }

    /// A dial has ended: with a socket, or without one.
    pub(super) fn dial_over(&mut self, net: &mut Net, task: TaskId, socket: Option<Socket>) {
        let at = net.soon();
        let Some(process) = &mut self.process else { return };
        if let Some((_, dial)) = process.dials.remove(&task) {
            process.outcomes.send(at, Outcome::Dialed(dial, socket));
        }
    }

    /// A lookup of a name whose result is due.
    pub(super) fn due_lookup(&self, now: Instant) -> Option<TaskId> {
        let process = self.process.as_ref()?;
        process.lookups.iter().find(|(_, (at, _))| *at <= now).map(|(task, _)| *task)
    }

    pub(super) fn lookup_over(
        &mut self,
        net: &mut Net,
        task: TaskId,
        resolve: impl FnOnce(&str) -> Option<IpAddr>,
    ) {
        let at = net.soon();
        let Some(process) = &mut self.process else { return };
        if let Some((_, name)) = process.lookups.remove(&task) {
            let found = resolve(&name);
            process.outcomes.send(at, Outcome::Resolved(task, found));
        }
    }

    // The task of the switch.

    /// The events that are ready. The loop of `net::switch` may handle any of them next, so the seed chooses one.
    fn ready(&self, net: &Net) -> Vec<Ready> {
        let now = net.now.mono;
        let Some(process) = &self.process else { return Vec::new() };
        let mut ready = Vec::new();
        let mut add = |when: bool, what| ready.extend(when.then_some(what));
        add(process.commands.is_due(now), Ready::Command);
        add(process.events.is_due(now), Ready::Event);
        add(process.outcomes.is_due(now), Ready::Outcome);
        add(process.accepted.is_due(now), Ready::Accepted);
        add(process.candidates.is_due(now), Ready::Candidate);
        add(process.attention.is_set(), Ready::Attention);
        add(process.engine.poll_timeout().is_some_and(|at| at <= now), Ready::Timer);
        add(process.calls.values().flatten().any(|until| *until <= now), Ready::CallTimeout);
        ready
    }

    pub(super) fn is_ready(&self, net: &Net) -> bool {
        !self.ready(net).is_empty()
    }

    /// The next time at which the switch, a dial or a lookup can go on.
    pub(super) fn next_of_switch(&self) -> Option<Instant> {
        let process = self.process.as_ref()?;
        let tasks =
            process.dials.values().map(|(at, _)| *at).chain(process.lookups.values().map(|(at, _)| *at));
        let calls = process.calls.values().flatten().copied();
        let times = [
            process.commands.next(),
            process.events.next(),
            process.outcomes.next(),
            process.accepted.next(),
            process.candidates.next(),
            process.engine.poll_timeout(),
        ];
        times.into_iter().flatten().chain(tasks).chain(calls).min()
    }

    /// The switch handles one of the events that are ready, and carries out the effects.
    pub(super) fn step(&mut self, net: &mut Net) {
        let ready = self.ready(net);
        if ready.is_empty() {
            return;
        }
        let chosen = ready[net.rng.random_range(0..ready.len())];
        net.note(("switch", self.index, chosen as u8));
        let now = net.now;
        let Some(process) = &mut self.process else { return };
        match chosen {
            Ready::Command => {
                if let Some(command) = process.commands.receive(now.mono) {
                    net.note(("command", command.name()));
                    let answer = command.run(net, process);
                    self.answers.extend(answer);
                }
            }
            Ready::Event => {
                if let Some((id, report)) = process.events.receive(now.mono) {
                    net.note(("event", id.0, report.name()));
                    self.happened(net, id, report);
                }
            }
            Ready::Outcome => {
                if let Some(outcome) = process.outcomes.receive(now.mono) {
                    self.came(net, outcome);
                }
            }
            Ready::Accepted => {
                if let Some((socket, remote)) = process.accepted.receive(now.mono) {
                    let drained = process.drained(self.phase != Phase::Up);
                    match process.engine.accepted(now, remote, self.addr) {
                        Some(run) => {
                            assert!(!drained, "no accepts while a sidecar drains");
                            self.run(net, run, socket);
                        }
                        None => net.links.close(now.mono, socket, false),
                    }
                }
            }
            Ready::Candidate => {
                if let Some(candidate) = process.candidates.receive(now.mono) {
                    process.engine.candidate(now, candidate);
                }
            }
            Ready::Attention => drop(process.attention.take()),
            Ready::Timer => process.engine.handle_timeout(now),
            Ready::CallTimeout => {
                let late = |until: &Option<Instant>| until.is_some_and(|until| until <= now.mono);
                let call = process.calls.iter().find(|(_, until)| late(until)).map(|(call, _)| *call);
                if let Some(call) = call {
                    process.calls.remove(&call);
                    process.engine.give_up(call);
                }
            }
        }
        self.drain_effects(net);
    }

    fn run(&mut self, net: &mut Net, run: Run, socket: Socket) {
        let owner = Owner::Sidecar { index: self.index, run: self.run, connection: run.id.0 };
        net.links.own(socket, owner);
        let Some(process) = &mut self.process else { return };
        let inbound = Arc::clone(&process.inbound);
        let mut connection = Connection::new(net.now, run, socket, Arc::clone(&self.local), inbound);
        let (id, reports) = (connection.id, connection.turn(net.now, &mut net.links));
        process.connections.insert(id, connection);
        process.sockets.insert(id, socket);
        self.report(net, id, reports);
    }

    fn report(&mut self, net: &mut Net, id: ConnectionId, reports: Vec<Report>) {
        let Some(process) = &mut self.process else { return };
        for report in reports {
            if matches!(report, Report::Closed(_)) {
                process.connections.remove(&id);
            }
            let at = net.soon();
            process.events.send(at, (id, report));
        }
    }

    /// One turn of a connection's task.
    pub(super) fn step_connection(&mut self, net: &mut Net, id: ConnectionId) {
        let Some(connection) = self.process.as_mut().and_then(|process| process.connections.get_mut(&id))
        else {
            return;
        };
        net.note(("connection", self.index, id.0));
        let reports = connection.step(net.now, &mut net.rng, &mut net.links);
        self.report(net, id, reports);
    }

    /// The task of a connection panics. The switch's driver reports the end of the connection in its place.
    pub(super) fn fault(&mut self, net: &mut Net, id: ConnectionId) {
        let Some(process) = &mut self.process else { return };
        let Some(connection) = process.connections.remove(&id) else { return };
        net.note(("fault", self.index, id.0));
        net.links.close(net.now.mono, connection.socket, true);
        let detail = "a fault of this sidecar".to_owned();
        let end = End { by: Side::Local, reason: None, detail, timed_out: false, proven: false };
        let at = net.soon();
        process.events.send(at, (id, Report::Closed(end)));
    }

    fn happened(&mut self, net: &mut Net, id: ConnectionId, report: Report) {
        let now = net.now;
        let Some(process) = &mut self.process else { return };
        let engine = &mut process.engine;
        let verdict = match report {
            Report::Authenticated(remote) => Verdict::Admission(engine.authenticated(now, id, remote)),
            Report::Negotiated(hello, channels) => {
                Verdict::Opening(engine.negotiated(now, id, hello, &channels))
            }
            Report::Heard => return engine.heard(now, id),
            Report::ChannelClosed(channel) => return engine.channel_closed(now, id, channel),
            Report::Closed(end) => {
                process.cut_late.retain(|late| *late != id);
                return engine.closed(now, id, &end);
            }
        };
        let at = net.soon();
        if let Some(connection) = process.connections.get_mut(&id) {
            connection.verdicts.send(at, verdict);
        }
    }

    fn came(&mut self, net: &mut Net, outcome: Outcome) {
        let now = net.now;
        let Some(process) = &mut self.process else { return };
        match outcome {
            Outcome::Dialed(dial, Some(socket)) => match process.engine.dialed(now, &dial, self.addr) {
                Some(run) => self.run(net, run, socket),
                None => net.links.close(now.mono, socket, false),
            },
            Outcome::Dialed(dial, None) => {
                process.engine.dial_failed(now, dial.task, Cause::Unreachable, "connection refused");
            }
            Outcome::Resolved(task, Some(ip)) => process.engine.host_resolved(now, task, Ok(&[ip])),
            Outcome::Resolved(task, None) => process.engine.host_resolved(now, task, Err("no such name")),
            Outcome::Located(id, found) => process.engine.located(now, id, found),
        }
    }

    fn drain_effects(&mut self, net: &mut Net) {
        let draining = !matches!(self.phase, Phase::Up);
        while let Some(process) = &mut self.process
            && let Some(effect) = process.engine.poll_effect(net.now)
        {
            self.carry_out(net, effect, draining);
        }
    }

    fn carry_out(&mut self, net: &mut Net, effect: Effect, draining: bool) {
        let now = net.now.mono;
        let Some(process) = &mut self.process else { return };
        match effect {
            Effect::Control(id, control) => {
                net.note(("control", self.index, id.0));
                let at = net.soon();
                if let Some(connection) = process.connections.get_mut(&id) {
                    connection.controls.send(at, control);
                }
            }
            Effect::AbortConnection(id) => {
                net.note(("abort", self.index, id.0));
                match process.connections.remove(&id) {
                    Some(connection) => net.links.close(now, connection.socket, false),
                    None => process.cut_late.push(id),
                }
            }
            Effect::Dial(dial) => {
                net.note(("dial", self.index, dial.task.0));
                assert!(!process.drained(draining), "no dials while a sidecar drains");
                let at = now + net.dial_time();
                process.dials.insert(dial.task, (at, dial));
            }
            Effect::LookupHost(task, name) => {
                let at = now + net.dial_time();
                process.lookups.insert(task, (at, name));
            }
            Effect::AbortDial(task) => {
                process.dials.remove(&task);
                process.lookups.remove(&task);
            }
            Effect::Resolve(id, _) => {
                let at = now + net.dial_time();
                let found = net.locate(&id);
                process.outcomes.send(at, Outcome::Located(id, found));
            }
            Effect::Persist(lists) => self.disk.newest = Some(lists),
            Effect::Reply(call, _) => {
                net.note(("reply", self.index, call.0));
                assert!(process.calls.remove(&call).is_some(), "a call is answered once");
            }
            Effect::Log(LogLine::Connected(session)) => {
                let id = session.id;
                let key = SessionKey { sidecar: self.index, run: self.run, connection: id.0 };
                net.note(("connected", self.index, id.0));
                let socket = process.sockets[&id];
                let across = net.links.across(socket);
                net.ledger.opened(key, &session, socket, across);
            }
            Effect::Log(LogLine::Disconnected { session, reason, .. }) => {
                net.note(("disconnected", self.index, session.id.0, reason.code()));
                let key = SessionKey { sidecar: self.index, run: self.run, connection: session.id.0 };
                net.ledger.ended(key);
            }
            Effect::Log(LogLine::Registered { client, .. }) => {
                assert!(process.registered.insert(client), "a client has one registration");
            }
            Effect::Log(LogLine::RegistrationEnded { client, .. }) => {
                assert!(process.registered.remove(&client), "a registration ends once");
            }
            Effect::Log(_)
            | Effect::Announce(..)
            | Effect::ReleaseEntries(_)
            | Effect::Demand(_)
            | Effect::Remember(_)
            | Effect::PeerLeft(_) => {}
        }
    }

    /// From now on the sidecar does not start again once it has stopped.
    pub(super) fn stays_down(&mut self) {
        self.is_last_run = true;
    }

    /// The lists that were written to the disk.
    pub(super) fn kept(&self) -> &Lists {
        &self.disk.kept
    }
}

impl Process {
    /// Whether the order to drain has been carried out.
    fn drained(&self, draining: bool) -> bool {
        draining && !self.commands.iter().any(|command| matches!(command, Command::Drain))
    }

    /// The number of connections whose end is on its way to the switch, without those that it has aborted.
    pub(super) fn ends_under_way(&self) -> usize {
        let ends = self.events.iter().filter(|(_, report)| matches!(report, Report::Closed(_)));
        ends.filter(|(id, _)| !self.cut_late.contains(id)).count()
    }
}
