//! Everything the switch knows, and the order of business: something happens, the policy and the leases are told, and
//! what they answer becomes [`Effect`]s for the task to carry out.
//!
//! No call here waits or touches a socket. The parts live beside this file: connections in `links`, registrations in
//! `holdings`, what operators ask about peers in `peers`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::sync::{mpsc, oneshot};

use super::{
    boards::{Boards, What, WhyNot},
    figures::Past,
    handle::Handle,
    links::Link,
    peers::ConnectReply,
    registrations::{Kept, LeaseConfig, RegistrationId, view},
    rehello::Rehello,
    session::Session,
    waiting::Waiting,
    work::{Faulted, Job},
};
use crate::delivery::Budget;
use crate::{
    Now,
    kademlia::Contact,
    lease::{self, Registry},
    net::{
        bandwidth::Rates,
        connection::{self, ConnectionId, End},
        dialer::ConnectError,
        listener::Accepted,
        node_db,
    },
    node::{AddressClass, Enode, ForkSchedule, Head, NodeId, NodeRef, PublicKey, local::EntryOwner},
    p2p::{LocalNode, OutboundBudget, Side},
    policy::{
        Action, Cause, Policy, Settings,
        dial::{self, Candidate, Dial, QueryId, TaskId},
        fork_following::News,
        lists::Lists,
    },
};

/// What the switch is made with.
#[derive(Debug)]
pub struct Config {
    /// Who we are on RLPx connections.
    pub local: LocalNode,
    /// This run of the sidecar: random, told to applications so that they notice a restart.
    pub instance_id: Arc<str>,
    /// Limits of leases.
    pub leases: LeaseConfig,
    /// Limits of peers.
    pub settings: Settings,
    /// What watchers are told of.
    pub boards: Boards,
    /// What all inboxes together may hold, in bytes.
    pub inbox_budget: u64,
    /// For how long a channel may hold the socket of a session that another application shares (0: never).
    pub max_shared_stall: Duration,
    /// Whether an application may end a session that another one shares.
    pub end_shared_sessions: bool,
    /// The forks of the network that we were started for, if it is a public one.
    pub network: Option<Arc<ForkSchedule>>,
    /// Whether connected peers learn of a protocol that is registered late, by being reconnected.
    pub rehello: bool,
    /// Caps on what goes over connections.
    pub bandwidth: Rates,
    /// Where the randomness of everything comes from.
    pub rng: StdRng,
}

/// Why a dial fails while we stop.
const STOPPING: &str = "this sidecar is stopping";

/// What the task does for the state.
pub(super) enum Effect {
    /// Run a connection.
    Run(Box<connection::Connection>),
    /// Look up a host name and report.
    LookupHost(TaskId, String),
    /// Open a TCP connection and report.
    Dial(Dial),
    /// Give a dial up; no report is owed.
    AbortDial(TaskId),
    /// End a connection that has no keys yet, without a word.
    AbortConnection(ConnectionId),
    /// Ask discovery where a node is, and report.
    Resolve(NodeId, Option<PublicKey>),
    /// Our record announces the chain of a registration from now on, or does not any more.
    Announce(EntryOwner, Option<(Arc<ForkSchedule>, Head)>),
    /// A registration's entries leave our record.
    ReleaseEntries(EntryOwner),
    /// So many candidates are wanted.
    Demand(usize),
    /// Keep this for the next run.
    Remember(node_db::Update),
    /// Keep the lists.
    Persist(Lists),
}

/// See the [module](self).
pub(super) struct State {
    pub(super) local: Arc<LocalNode>,
    pub(super) instance_id: Arc<str>,
    pub(super) policy: Policy,
    pub(super) leases: Registry,
    pub(super) kept: BTreeMap<RegistrationId, Kept>,
    /// Numbers registrations for the policy.
    pub(super) registrations_made: u64,
    pub(super) budget: Arc<Budget>,
    pub(super) outbound_budget: Arc<OutboundBudget>,
    pub(super) links: HashMap<ConnectionId, Link>,
    pub(super) sessions: BTreeMap<NodeId, Arc<Session>>,
    pub(super) connections_made: u64,
    /// What watchers are told of.
    pub(super) boards: Boards,
    /// Registrations whose board is behind.
    pub(super) touched: BTreeSet<RegistrationId>,
    /// Who waits for the first dial of a listed peer.
    pub(super) waiting: Waiting,
    /// One-off dials whose callers wait.
    pub(super) connects: HashMap<QueryId, oneshot::Sender<ConnectReply>>,
    pub(super) queries_made: u64,
    pub(super) max_shared_stall: Duration,
    pub(super) end_shared_sessions: bool,
    pub(super) network: Option<Arc<ForkSchedule>>,
    pub(super) rehello: Rehello,
    /// What went over sessions that have ended.
    pub(super) past: Past,
    pub(super) draining: bool,
    pub(super) rng: StdRng,
    pub(super) events: mpsc::Sender<connection::Event>,
    pub(super) shared: Arc<connection::Shared>,
    pub(super) handle: Handle,
    pub(super) effects: VecDeque<Effect>,
}

impl State {
    pub(super) fn new(
        now: Now,
        config: Config,
        events: mpsc::Sender<connection::Event>,
        shared: Arc<connection::Shared>,
        handle: Handle,
    ) -> Self {
        let Config {
            local,
            instance_id,
            leases,
            settings,
            boards,
            inbox_budget: _,
            max_shared_stall,
            end_shared_sessions,
            network,
            rehello,
            bandwidth: _,
            mut rng,
        } = config;
        let mut fork = || StdRng::seed_from_u64(rng.next_u64());
        let (policy_rng, lease_rng) = (fork(), fork());
        Self {
            policy: Policy::new(now, local.key.id(), settings, policy_rng),
            leases: Registry::new(leases, lease_rng),
            local: Arc::new(local),
            instance_id,
            kept: BTreeMap::new(),
            registrations_made: 0,
            budget: Arc::clone(&shared.inbound),
            outbound_budget: Arc::default(),
            links: HashMap::new(),
            sessions: BTreeMap::new(),
            connections_made: 0,
            boards,
            touched: BTreeSet::new(),
            waiting: Waiting::default(),
            connects: HashMap::new(),
            queries_made: 0,
            max_shared_stall,
            end_shared_sessions,
            network,
            rehello: Rehello::new(rehello),
            past: Past::default(),
            draining: false,
            rng,
            events,
            shared,
            handle,
            effects: VecDeque::new(),
        }
    }

    /// A TCP connection was accepted. A refused one is closed without a byte.
    pub(super) fn accepted(&mut self, now: Now, accepted: Accepted) {
        if self.draining {
            return;
        }
        let Accepted { stream, remote } = accepted;
        let id = self.next_connection();
        if let Err(refusal) = self.policy.conn_accepted(now, id.policy(), remote.ip()) {
            tracing::debug!(%remote, %refusal, "refused an inbound connection");
            self.not_let_in(now, remote, None, WhyNot::Refused(refusal), &refusal.to_string());
            return;
        }
        self.launch(id, stream, remote, None);
    }

    /// A dial opened a connection, or did not.
    pub(super) fn dialed(
        &mut self,
        now: Now,
        dial: &Dial,
        outcome: Result<tokio::net::TcpStream, ConnectError>,
    ) {
        match outcome {
            Ok(stream) if !self.draining => {
                let id = self.next_connection();
                self.policy.conn_opened(id.policy(), dial.task, dial.addr.ip());
                self.launch(id, stream, dial.addr, Some(dial));
            }
            // Every dial is owed its answer, or its caller waits for ever.
            Ok(_) => self.policy.dial_failed(now, dial.task, Cause::LocalFault, STOPPING),
            Err(error) => {
                let cause = super::cause::of_connect(&error);
                tracing::debug!(node = %dial.id, addr = %dial.addr, %error, "dial failed");
                self.policy.dial_failed(now, dial.task, cause, &error.to_string());
            }
        }
    }

    pub(super) fn host_resolved(
        &mut self,
        now: Now,
        task: TaskId,
        addrs: &std::io::Result<Vec<std::net::IpAddr>>,
    ) {
        let text;
        let addrs = match addrs {
            Ok(addrs) => Ok(addrs.as_slice()),
            Err(error) => {
                text = error.to_string();
                Err(text.as_str())
            }
        };
        self.policy.host_resolved(now, task, addrs);
    }

    /// Discovery answered where a node is, or that it does not know.
    pub(super) fn located(&mut self, now: Now, id: NodeId, found: Option<Contact>) {
        let enode = found.as_ref().and_then(|contact| match &contact.record {
            Some(record) => NodeRef::Record(record.clone()).enode(),
            None => Some(Enode::at(
                contact.public_key,
                SocketAddr::new(contact.endpoint.ip, contact.endpoint.tcp),
            )),
        });
        self.policy.node_resolved(now, &id, enode.filter(|enode| enode.tcp != 0));
    }

    /// A task panicked: what it owes is told in its place.
    pub(super) fn faulted(&mut self, now: Now, fault: Faulted) {
        let Faulted { job, said } = fault;
        tracing::error!(?job, said, "a task of the switch panicked: a fault of devp2pd, please report it");
        match job {
            Job::Connection(connection) => {
                if let Some(link) = self.links.get(&connection) {
                    // Its queue refuses from here on, gives its budget back, and callers that wait for it are told.
                    link.outbound.close();
                }
                let detail = "a fault of this sidecar, see its log".to_owned();
                let end = End { by: Side::Local, reason: None, detail, timed_out: false, proven: false };
                self.event(now, connection::Event::Closed { connection, end });
            }
            Job::Dial(dial) => {
                let tried = vec![(dial.addr, io::Error::other("a fault of this sidecar"))];
                self.dialed(now, &dial, Err(ConnectError { tried }));
            }
            Job::LookupHost(task) => {
                self.host_resolved(now, task, &Err(io::Error::other("a fault of this sidecar")));
            }
            Job::Resolve(id) => self.located(now, id, None),
            Job::Nothing => {}
        }
    }

    /// A source offers a node.
    pub(super) fn candidate(&mut self, now: Now, candidate: Candidate) {
        if self.draining {
            return;
        }
        // A refusal is counted by the policy, and its source is told by the demand alone.
        let _ = self.policy.candidate(now, candidate);
    }

    pub(super) fn handle_timeout(&mut self, now: Now) {
        self.policy.handle_timeout(now);
        self.leases.handle_timeout(now);
        self.rehello(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = [self.policy.poll_timeout(), self.leases.poll_timeout(), self.rehello.poll_timeout()];
        timeouts.into_iter().flatten().min()
    }

    /// Turns what policy and leases want into effects, until they want nothing more.
    pub(super) fn settle(&mut self, now: Now) {
        loop {
            if let Some(lease::Action::Ended { registration, expired }) = self.leases.poll_action() {
                self.registration_ended(now, &registration, expired);
                continue;
            }
            let Some(action) = self.policy.poll_action() else { break };
            match action {
                // No more dials: each gets its answer at once, and so does the caller that waits for it.
                Action::Dial(dial::Action::LookupHost { task, .. }) if self.draining => {
                    self.policy.dial_failed(now, task, Cause::LocalFault, STOPPING);
                }
                Action::Dial(dial::Action::Dial(dial)) if self.draining => {
                    self.policy.dial_failed(now, dial.task, Cause::LocalFault, STOPPING);
                }
                Action::Dial(dial::Action::ResolveNode { id, .. }) if self.draining => {
                    self.policy.node_resolved(now, &id, None);
                }
                Action::Dial(dial::Action::Demand(_)) if self.draining => {}
                Action::Dial(dial::Action::LookupHost { task, name }) => {
                    self.effects.push_back(Effect::LookupHost(task, name));
                }
                Action::Dial(dial::Action::Dial(dial)) => self.effects.push_back(Effect::Dial(dial)),
                Action::Dial(dial::Action::Abort(task)) => self.effects.push_back(Effect::AbortDial(task)),
                Action::Dial(dial::Action::ResolveNode { id, public_key }) => {
                    self.effects.push_back(Effect::Resolve(id, public_key));
                }
                Action::Dial(dial::Action::EntryChanged(id)) => self.entry_changed(now, id),
                Action::Dial(dial::Action::Failed { id, addr, kind, cause, detail }) => {
                    let what = What::Dial { id, addr, kind, cause };
                    self.boards.peers.update(|board| board.attempt(now.unix, what, &detail));
                }
                Action::Dial(dial::Action::ConnectDone { query, id, outcome }) => {
                    self.connect_done(query, id, outcome);
                }
                Action::Dial(dial::Action::Fork(news)) => log_fork(news),
                Action::Warn(warning) => tracing::warn!(name = warning.name(), "{warning}"),
                Action::WarningOver(name) => tracing::info!(name, "this warning does not hold any more"),
                Action::Dial(dial::Action::Demand(count)) => self.effects.push_back(Effect::Demand(count)),
                Action::Close(conn, reason) => self.close(now, ConnectionId(conn.0), reason),
                Action::Probe(conn) => self.probe(ConnectionId(conn.0)),
                Action::Promoted { conn, before, id } => {
                    self.promote(now, ConnectionId(conn.0), ConnectionId(before.0), id);
                }
                Action::OneSource(source) => tracing::warn!("{source}"),
                Action::ListsChanged => {
                    let lists = self.policy.lists(now);
                    self.effects.push_back(Effect::Persist(lists));
                }
            }
        }
        self.show_registrations(now);
    }

    /// An accepted connection came to nothing.
    pub(super) fn not_let_in(
        &self,
        now: Now,
        remote: SocketAddr,
        id: Option<NodeId>,
        why: WhyNot,
        detail: &str,
    ) {
        let what = What::Inbound { remote, id, why };
        self.boards.peers.update(|board| board.attempt(now.unix, what, detail));
    }

    /// Brings the board of registrations up to date.
    fn show_registrations(&mut self, now: Now) {
        for id in std::mem::take(&mut self.touched) {
            let view = self.leases.get(id).map(|registration| view(now, registration, self.kept.get(&id)));
            self.boards.registrations.update(|board| match view {
                Some(view) => board.set(id, view),
                None => {
                    if let Some(last) = board.get(&id).map(|last| (**last).clone()) {
                        let bytes = last.bytes();
                        board.remove(&id, last, bytes);
                    }
                }
            });
        }
    }

    /// Lets every stream look up, so that it sees how far a drain has come.
    pub(super) fn wake_streams(&self) {
        self.kept.values().for_each(|kept| kept.holding.waker.wake());
    }

    /// Our own address is of this class from now on.
    pub(super) fn announced(&mut self, now: Now, class: AddressClass) {
        let settings = self.policy.settings();
        if settings.announced != class {
            self.policy.set_settings(now, Settings { announced: class, ..settings.clone() });
        }
    }

    fn next_connection(&mut self) -> ConnectionId {
        self.connections_made += 1;
        ConnectionId(self.connections_made)
    }

    pub(super) fn fork_rng(&mut self) -> StdRng {
        StdRng::seed_from_u64(self.rng.next_u64())
    }
}

fn log_fork(news: News) {
    let hex = |hash: [u8; 4]| HEXLOWER.encode(&hash);
    match news {
        News::Followed(fork) => tracing::warn!(
            hash = hex(fork.hash),
            before = hex(fork.before),
            time = fork.time,
            "the chain has passed a fork that our schedule lacks; nodes of several networks announce it, and it is \
             followed until the next start (--follow-forks false switches this off)"
        ),
        News::Dropped(fork) => tracing::warn!(
            hash = hex(fork.hash),
            time = fork.time,
            "a fork that was followed is not our chain's: applications rejected its peers; it is dropped"
        ),
    }
}
