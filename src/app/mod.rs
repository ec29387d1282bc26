//! The only file that knows every component: builds them in order, starts them, and stops them.
//!
//! Start: data directory and its lock → key → lists and sequence number of earlier runs → listeners bound → discovery →
//! switch → gRPC → probes → ready. What was started is held by values whose drop undoes it, so that a failure at any step
//! leaves no port, lock or task behind. Starting is a function that consumes its configuration: the same [`App`]
//! cannot be started twice. What finds nodes is started in `finding`.
//!
//! Stop: not ready → applications are told and get a moment → no more dials or accepts → what was accepted for peers is
//! written, then Disconnect → streams end → gRPC ends → files are written. All within the grace period, whatever
//! clients do: what is not done by then is cut.

mod finding;
mod reload;
mod sockets;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Notify, mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout_at},
};
use tonic::service::RoutesBuilder;

use finding::{Finding, FindingTasks};
use sockets::Sockets;

use crate::{
    Now,
    config::{
        Config, Grpc, Network, Rehello, Tls,
        networks::{self, Knowledge, Preset},
    },
    delivery::INBOUND_BUDGET,
    http::{self, Probes, Stage},
    net::switch::{self, Boards, Handle, Switch},
    net::{
        clock,
        data_dir::{DataDir, DataDirError},
        key_file::{self, KeyFileError},
        listener::{self, BindError},
        state_file::{StateError, StateFile},
    },
    node::{AddressClass, Enode, NodeId, NodeRef, Record, local::LocalRecord},
    p2p::LocalNode,
    policy::{
        ChurnSettings, Settings,
        lists::{Lists, ListsError},
    },
    rpc::{
        self,
        access::{
            credentials::{self, CredentialError},
            gate::Gate,
        },
        descriptors::Health,
        node::{Controls, NetworkFacts, NodeFacts, enode_of},
        server::{
            incoming::Listener,
            tls::TlsFiles,
            unix_socket::{self, Place, SocketError},
        },
    },
    switch::peers::ListError,
    telemetry::Logging,
};

/// Accepted connections on their way to the switch; more wait in the kernel.
const ACCEPTED: usize = 64;

/// How long applications that are attached get between the notice and the end of their streams.
const NOTICE: Duration = Duration::from_secs(2);

/// How long peers get to take what was accepted for them and the reason.
const FAREWELL: Duration = Duration::from_secs(3);

/// Why the sidecar did not start: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The node key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// A file of an earlier run cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The lists of an earlier run are damaged.
    #[error("the peer lists in {}: {error}", path.display())]
    Lists {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: ListsError,
    },
    /// A peer of the configuration cannot be listed.
    #[error("static-peers or trusted-peers: {0}")]
    Peers(#[from] ListError),
    /// A port is taken, or an address is not ours.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The same for gRPC and the probes.
    #[error("cannot serve {what} on {addr}: {}", listener::bind_problem(*addr, flag, source))]
    Serve {
        /// What was to be served.
        what: &'static str,
        /// The flag that chooses the address.
        flag: &'static str,
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The Unix socket that was asked for cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Who may call cannot be told, or TLS cannot be served.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// Our record cannot be signed.
    #[error("cannot sign our node record: {0}")]
    Record(String),
    /// The gRPC services cannot be put together.
    #[error("cannot build the gRPC services: {0}")]
    Services(String),
    /// The system has no randomness.
    #[error("the system gives no randomness: {0}")]
    Entropy(String),
    /// A test asked for it.
    #[cfg(test)]
    #[error("fault injected at {0:?}")]
    Injected(Step),
}

/// The steps of a start, in order; tests let each of them fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The data directory is locked.
    DataDir,
    /// The key is loaded or made.
    Key,
    /// Lists and sequence number are read.
    State,
    /// Peers' port is bound.
    Listen,
    /// Discovery runs.
    Discovery,
    /// The switch runs.
    Switch,
    /// gRPC serves.
    Grpc,
    /// The probes serve.
    Http,
}

/// What was chosen at the start, for whoever prints it.
#[derive(Clone, Debug)]
pub struct Started {
    /// The URL others dial.
    pub enode: Option<Enode>,
    /// Our record.
    pub record: Record,
    /// Where peers are accepted.
    pub listen_addrs: Vec<SocketAddr>,
    /// Where gRPC is served.
    pub grpc_addr: SocketAddr,
    /// The Unix socket on which it is served too.
    pub grpc_socket: Option<PathBuf>,
    /// Where the probes are served.
    pub http_addr: Option<SocketAddr>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// The network that we were started for, and what this version knows of its forks: one line.
    pub network: String,
    /// What is allowed and yet most likely not meant.
    pub warnings: Vec<String>,
}

/// What is kept of our record.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordState {
    /// The last sequence number that was published.
    seq: u64,
}

/// A running sidecar. Dropping it cuts everything at once; [`App::stop`] ends it in order.
pub struct App {
    started: Started,
    handle: Handle,
    health: Health,
    probes: Probes,
    grace: Duration,
    accepting: JoinSet<()>,
    serving: JoinSet<()>,
    grpc: Owned<Result<(), tonic::transport::Error>>,
    stop_grpc: oneshot::Sender<()>,
    switch: Owned<()>,
    stop_switch: oneshot::Sender<()>,
    keeper: Owned<()>,
    _recorder: Owned<()>,
    finding: FindingTasks,
    stop_asked: Arc<Notify>,
    current: reload::Current,
    _watching: Owned<()>,
    _socket: Option<Place>,
    // Last: the lock outlives everything that writes below it.
    _data_dir: DataDir,
}

/// A task that ends with its owner.
struct Owned<T>(JoinHandle<T>);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
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
    pub async fn start_logging(config: Config, log: Option<Logging>) -> Result<Self, StartError> {
        Self::start_until(config, log, |_| Ok(())).await
    }

    /// [`App::start`], asking `reached` after each step whether to go on.
    async fn start_until(
        config: Config,
        log: Option<Logging>,
        reached: impl Fn(Step) -> Result<(), StartError>,
    ) -> Result<Self, StartError> {
        let now = clock::now();
        let mut rng = StdRng::try_from_os_rng().map_err(|error| StartError::Entropy(error.to_string()))?;
        let mut fork = || StdRng::seed_from_u64(rng.next_u64());

        let mut data_dir = DataDir::open(&config.data_dir)?;
        reached(Step::DataDir)?;

        let mut key_rng =
            StdRng::try_from_os_rng().map_err(|error| StartError::Entropy(error.to_string()))?;
        let key = match &config.nodekey {
            Some(path) => key_file::load(path)?,
            None => key_file::load_or_make(&data_dir, &mut key_rng)?,
        };
        let public_key = key.public();
        reached(Step::Key)?;

        let lists_file = StateFile::<Lists>::new(data_dir.path().join("peers.json"));
        let lists = lists_file.load()?.unwrap_or_default();
        let lists =
            lists.parse().map_err(|error| StartError::Lists { path: lists_file.path().to_owned(), error })?;
        let record_file = StateFile::<RecordState>::new(data_dir.path().join("record.json"));
        let seq = record_file.load()?.map(|state| state.seq);
        reached(Step::State)?;

        let mut sockets = Sockets::bind(&config)?;
        let listen_addrs = sockets.listen_addrs.clone();
        // Signing fails only for size, and a record without entries has a third of what is allowed.
        let local = LocalRecord::new(now, key.clone(), sockets.ports(), seq)
            .map_err(|error| StartError::Record(error.to_string()))?;
        reached(Step::Listen)?;

        let boards = Boards::new(key_rng.next_u64());
        let Finding { discovery, demand, candidates, database, trees, tasks: finding } = finding::start(
            &config,
            data_dir.path(),
            &key,
            local,
            &mut sockets,
            boards.tables(),
            &mut key_rng,
        )?;
        let record = discovery.record().borrow().clone();
        record_file.store(&RecordState { seq: record.seq() })?;
        reached(Step::Discovery)?;

        let instance_id = instance_id(&mut key_rng);
        let client_name = client_name(config.identity.as_deref());
        let (accepted, accept_queue) = mpsc::channel(ACCEPTED);
        let (lists_sender, lists_changed) = watch::channel(None);
        let switch_config = switch::Config {
            local: LocalNode::new(key, &client_name),
            instance_id: Arc::clone(&instance_id),
            leases: crate::lease::Config {
                any_message_count: config.grpc.any_message_count,
                has_network: Preset::of(config.network).is_some(),
                message_counts: config.grpc.message_counts.clone(),
                require_resume_token: config.grpc.require_resume_token,
                client_name_len: client_name.len(),
                ..crate::lease::Config::default()
            },
            settings: settings(&config, &record),
            boards,
            inbox_budget: INBOUND_BUDGET,
            max_shared_stall: config.grpc.max_shared_stall,
            end_shared_sessions: config.grpc.end_shared_sessions,
            rehello: config.peers.rehello == Rehello::Rolling,
            bandwidth: config.peers.bandwidth,
            network: Preset::of(config.network).map(|preset| Arc::new(preset.fork_schedule())),
            rng: fork(),
        };
        let discovers = config.discovery.v4 || config.discovery.v5;
        let sources = switch::Sources {
            discovery: discovers.then(|| discovery.clone()),
            record: discovery.clone(),
            demand,
            candidates,
            database,
        };
        let (mut switch, handle) = Switch::new(switch_config, accept_queue, lists_sender, sources);
        let current = reload::Current::new(&config, public_key.id(), log.clone());
        let (static_peers, trusted_peers) = current.lists();
        switch.restore(static_peers, trusted_peers, &lists)?;
        let (stop_switch, stopped) = oneshot::channel();
        let switch = Owned(tokio::spawn(switch.run(stopped)));
        let keeper = Owned(tokio::spawn(keep(lists_changed, lists_file)));
        let recorder = Owned(tokio::spawn(keep_seq(discovery.record(), record_file)));
        let mut accepting = JoinSet::new();
        for listener in sockets.tcp {
            accepting.spawn(listener::accept(listener, accepted.clone()));
        }
        reached(Step::Switch)?;

        let (credentials, watching) =
            credentials::load(config.grpc.access.clone(), config.grpc.tls.clone().map(tls_files))?;
        let watching = Owned(tokio::spawn(watching.run()));
        let serve_error = |what, flag, addr| move |source| StartError::Serve { what, flag, addr, source };
        let failed = serve_error("gRPC", "--grpc-addr", config.grpc.addr);
        let grpc_listener = TcpListener::bind(config.grpc.addr).await.map_err(failed)?;
        let grpc_addr = grpc_listener.local_addr().map_err(failed)?;
        let (unix, socket) = match unix_listener(&config.grpc)? {
            Some((listener, place)) => (Some(Listener::Unix(listener)), Some(place)),
            None => (None, None),
        };
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let facts = NodeFacts {
            public_key,
            listen_addrs: listen_addrs.clone(),
            instance_id,
            client_name,
            start_time: now.unix,
            warnings: config.warnings.clone(),
            network: preset_facts(config.network),
        };
        let dropped_lines = log.as_ref().map(Logging::dropped_lines).unwrap_or_default();
        let mut routes = RoutesBuilder::default();
        let stop_asked = Arc::new(Notify::new());
        let controls = Controls {
            stop: Arc::clone(&stop_asked),
            grace: config.shutdown_grace,
            log_filter: Box::new(move |filter| match &log {
                Some(log) => log.filter().set(filter).map_err(|error| error.to_string()),
                None => Err("the log of this process is not ours".to_owned()),
            }),
        };
        rpc::add_services(&mut routes, facts, controls, &discovery, &handle);
        rpc::descriptors::add_reflection(&mut routes)
            .map_err(|error| StartError::Services(error.to_string()))?;
        let health = Health::add_to(&mut routes).await;
        let (stop_grpc, stopped) = oneshot::channel();
        let tcp = Listener::Tcp(grpc_listener, credentials.tls);
        let listeners = std::iter::once(tcp).chain(unix).collect();
        let gate = Gate::new(credentials.access);
        let grpc = rpc::server::serve(routes.routes(), gate, listeners, stopped);
        let grpc = Owned(tokio::spawn(grpc));
        reached(Step::Grpc)?;

        let probes = Probes::default();
        let mut serving = JoinSet::new();
        let mut http_addr = None;
        if let Some(addr) = config.http_addr {
            let failed = serve_error("the probes", "--http-addr", addr);
            let listener = TcpListener::bind(addr).await.map_err(failed)?;
            http_addr = Some(listener.local_addr().map_err(failed)?);
            let facts = http::Facts {
                discv5_off: config.discovery.wanted && !config.discovery.v5,
                dropped_lines,
                trees: trees.clone(),
            };
            let metrics = http::Metrics::new(handle.clone(), discovery.clone(), facts);
            let probes = probes.clone();
            serving.spawn(async move { match http::serve(listener, probes, Some(metrics)).await {} });
        }
        reached(Step::Http)?;

        // A holder that others cannot be told of is not worth failing for.
        if let Err(error) = data_dir.announce(Some(&grpc_addr.to_string())) {
            tracing::warn!(%error, "cannot note in the data directory where this sidecar serves");
        }
        health.set_ready().await;
        probes.set(Stage::Ready);
        let started = Started {
            enode: enode_of(&record),
            record,
            listen_addrs,
            grpc_addr,
            grpc_socket: socket.as_ref().map(|place| place.path().to_owned()),
            http_addr,
            data_dir: data_dir.path().to_owned(),
            network: networks::describe(config.network, now.unix),
            warnings: config.warnings,
        };
        Ok(Self {
            started,
            handle,
            health,
            probes,
            grace: config.shutdown_grace,
            accepting,
            serving,
            grpc,
            stop_grpc,
            switch,
            stop_switch,
            keeper,
            _recorder: recorder,
            finding,
            stop_asked,
            current,
            _watching: watching,
            _socket: socket,
            _data_dir: data_dir,
        })
    }

    /// What was chosen.
    #[must_use]
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Waits for a part to end that must not: a fault of ours. A half-dead process would keep its port and answer
    /// nobody; a supervisor can start a whole one.
    pub async fn broken(&mut self) -> &'static str {
        tokio::select! {
            _ = &mut self.switch.0 => "the switch",
            _ = &mut self.grpc.0 => "the gRPC server",
            () = self.finding.broken() => "discovery",
        }
    }

    /// Waits for a call that tells the process to stop.
    pub fn stop_asked(&self) -> impl Future<Output = ()> + use<> {
        let asked = Arc::clone(&self.stop_asked);
        async move { asked.notified().await }
    }

    /// Ends everything in order, within the grace period: what has not ended by then is cut. Returns what is left of it.
    pub async fn stop(self) -> Duration {
        let now = clock::now();
        let deadline = now.mono + self.grace;
        if timeout_at(deadline.into(), self.end_in_order(now, deadline)).await.is_err() {
            tracing::warn!("the grace period is over; what has not ended is cut");
        }
        deadline.saturating_duration_since(clock::now().mono)
    }

    /// Each wait has a bound of its own, so that one part that hangs leaves time for the others; [`App::stop`] bounds all.
    async fn end_in_order(mut self, now: Now, deadline: Instant) {
        let soon = |from: Instant| deadline.min(from + FAREWELL);
        self.probes.set(Stage::Draining);
        self.health.set_draining().await;
        self.accepting.abort_all();
        let notice = NOTICE.min(self.grace / 4);
        let noticed = deadline.min(now.mono + notice);
        let _ = timeout_at(noticed.into(), self.handle.drain(now.unix.saturating_add(notice))).await;
        self.wait_until(noticed, async |handle| handle.attached().await == 0).await;

        let farewell = soon(clock::now().mono);
        let _ = timeout_at(farewell.into(), self.handle.quit()).await;
        self.wait_until(farewell, async |handle| handle.connections().await == 0).await;

        let _ = timeout_at(soon(clock::now().mono).into(), self.handle.end_streams()).await;
        // The receiver is gone only if the server has ended by itself.
        let _ = self.stop_grpc.send(());
        // A client that never closes its connection would hold the server for as long as it likes.
        let last = soon(clock::now().mono);
        if timeout_at(last.into(), &mut self.grpc.0).await.is_err() {
            tracing::info!("gRPC clients did not close their connections; cutting them");
        }
        let _ = self.stop_switch.send(());
        let _ = timeout_at(soon(clock::now().mono).into(), &mut self.switch.0).await;
        // The switch held the only sender: the keeper ends when the last lists are written.
        let _ = timeout_at(soon(clock::now().mono).into(), &mut self.keeper.0).await;
        // Mappings at the gateway and the database take moments; neither may outlive the grace period.
        let _ = timeout_at(deadline.into(), self.finding.stop()).await;
        self.serving.abort_all();
    }

    async fn wait_until(&self, deadline: Instant, done: impl AsyncFn(&Handle) -> bool) {
        let waiting = async {
            while !done(&self.handle).await {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = timeout_at(deadline.into(), waiting).await;
    }
}

/// Writes the lists whenever they change, the newest only: they are whole, so one that was replaced before it was
/// written is not missed. A failed write is tried again with the next change, and said.
async fn keep(mut changed: watch::Receiver<Option<Lists>>, file: StateFile<Lists>) {
    let file = Arc::new(file);
    // What was not seen yet is told before the end of the sender is.
    while changed.changed().await.is_ok() {
        let Some(lists) = changed.borrow_and_update().clone() else { continue };
        let target = Arc::clone(&file);
        match tokio::task::spawn_blocking(move || target.store(&lists)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "the peer lists are not kept: a restart would lose the last change")
            }
            Err(_) => return,
        }
    }
}

/// Keeps the sequence number of our record, which must never go back.
async fn keep_seq(mut record: watch::Receiver<Record>, file: StateFile<RecordState>) {
    let file = Arc::new(file);
    while record.changed().await.is_ok() {
        let seq = record.borrow_and_update().seq();
        let target = Arc::clone(&file);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || target.store(&RecordState { seq })).await
        {
            tracing::error!(%error, "the sequence number of our record is not kept");
        }
    }
}

/// The Unix socket of gRPC. One that was asked for must be; the default may be missing, which is said.
fn unix_listener(grpc: &Grpc) -> Result<Option<(UnixListener, Place)>, StartError> {
    match grpc.socket.as_deref().map(unix_socket::bind) {
        None => Ok(None),
        Some(Ok(bound)) => Ok(Some(bound)),
        Some(Err(error)) if grpc.socket_asked => Err(error.into()),
        Some(Err(error)) => {
            tracing::warn!(%error, "gRPC is served on TCP alone");
            Ok(None)
        }
    }
}

/// The lists of the configuration without this node: operators give one list of peers to all nodes, and the entry that
/// names the node itself is of no use and does no harm.
fn without_ourselves(lists: [&[NodeRef]; 2], us: NodeId) -> [Vec<NodeRef>; 2] {
    let others = lists.map(|list| list.iter().filter(|node| node.id() != us).cloned().collect::<Vec<_>>());
    if others.iter().zip(lists).any(|(others, list)| others.len() < list.len()) {
        tracing::info!(node_id = %us, "static-peers or trusted-peers name this node itself; the entry is skipped");
    }
    others
}

fn tls_files(files: Tls) -> TlsFiles {
    let Tls { cert, key, client_ca } = files;
    TlsFiles { cert, key, client_ca }
}

fn settings(config: &Config, record: &Record) -> Settings {
    let peers = &config.peers;
    Settings {
        max_peers: peers.max_peers,
        dial_ratio: peers.dial_ratio,
        max_pending_dials: peers.max_pending_dials,
        max_pending_inbound: peers.max_pending_inbound,
        dial_timeout: peers.dial_timeout,
        dialing: peers.dial,
        discovery: config.discovery.v4 || config.discovery.v5,
        allowlist_only: peers.allowlist_only,
        announced: AddressClass::announced(record),
        net_restrict: peers.netrestrict.clone(),
        inbound_throttle: peers.inbound_throttle,
        peers_per_subnet: peers.max_peers_per_subnet,
        pending_per_subnet: peers.max_pending_per_subnet,
        allow_lan: peers.allow_lan,
        follow_forks: peers.follow_forks,
        churn: peers.churn.map(|every| ChurnSettings { every, ..ChurnSettings::default() }),
        ..Settings::default()
    }
}

fn preset_facts(network: Network) -> Option<NetworkFacts> {
    let preset = Preset::of(network)?;
    let Knowledge { release, released, forks } = preset.knowledge();
    Some(NetworkFacts { name: preset.name.to_owned(), release, released, forks })
}

/// Our name in Hello: `devp2pd/[identity/]v<version>/<os>-<arch>`.
fn client_name(identity: Option<&str>) -> String {
    let identity = identity.map(|identity| format!("{identity}/")).unwrap_or_default();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    format!("devp2pd/{identity}v{}/{os}-{arch}", env!("CARGO_PKG_VERSION"))
}

/// Random, so that applications notice a restart.
fn instance_id(rng: &mut StdRng) -> Arc<str> {
    let mut bytes = [0; 8];
    rng.fill_bytes(&mut bytes);
    HEXLOWER.encode(&bytes).into()
}

#[cfg(test)]
mod tests;
