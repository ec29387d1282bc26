//! The steps of a start, in order.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use data_encoding::HEXLOWER;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::sync::{Notify, mpsc, watch};

use super::{
    api::{self, Services},
    components::{Component, Components},
    error::{StartFailure, Step},
    finding::{self, Finding, RecordState},
    peers, reload,
    service::Service,
    sockets::Sockets,
};
use crate::{
    Now,
    budget::{self, Budgets, MIN_MEMORY},
    config::{
        Config, Network,
        networks::{self, Knowledge, Preset},
    },
    dnsdisc,
    http::{self, Probes},
    net::switch::{Handle, Watches},
    net::{clock, data_dir::DataDir, discovery::Discovery, key_file, state_file::StateFile, udp::UdpPort},
    node::{Enode, NodeKey, Record, local::LocalRecord},
    policy::lists::{Lists, Parsed},
    process,
    rpc::{
        node::{Controls, NetworkFacts, NodeFacts, enode_of},
        server::unix_socket::Place,
    },
    telemetry::Logging,
};

/// Accepted connections on their way to the switch; more wait in the kernel.
const ACCEPTED: usize = 64;

/// The identity and the addresses of a sidecar, as they were when it had started.
#[derive(Clone, Debug)]
pub struct Started {
    /// The URL that other nodes dial. `None`: no peers are accepted.
    pub enode: Option<Enode>,
    /// The node's record (EIP-778). It has the node id: `record.id()`.
    pub record: Record,
    /// Where peers are accepted.
    pub listen_addrs: Vec<SocketAddr>,
    /// Where discovery listens. Empty: nowhere.
    pub udp_addrs: Vec<SocketAddr>,
    /// Where gRPC is served.
    pub grpc_addr: SocketAddr,
    /// The Unix socket on which it is served too.
    pub grpc_socket: Option<PathBuf>,
    /// Where the probes are served.
    pub http_addr: Option<SocketAddr>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// The network that we were started for, and the forks of it that this version knows: one line.
    pub network: String,
    /// Settings that are allowed and probably a mistake.
    pub warnings: Vec<String>,
}

/// The state that the steps share.
pub(super) struct Steps<'a> {
    config: &'a Config,
    log: Option<Logging>,
    now: Now,
    rng: StdRng,
    budgets: Budgets,
    /// The warnings of the configuration and about the machine.
    warnings: Vec<String>,
    /// The components that were started so far.
    components: &'a mut Components,
}

/// The results of a start beside the components.
pub(super) struct Outcome {
    pub(super) started: Started,
    pub(super) handle: Handle,
    pub(super) stop_asked: Arc<Notify>,
    pub(super) current: reload::Current,
    pub(super) socket: Option<Place>,
}

/// The state of earlier runs, and the files that keep it.
struct Earlier {
    lists: Parsed,
    lists_file: StateFile<Lists>,
    /// The last sequence number of our record.
    seq: Option<u64>,
    record_file: StateFile<RecordState>,
}

impl Earlier {
    fn load(data_dir: &DataDir) -> Result<Self, StartFailure> {
        let lists_file = StateFile::<Lists>::new(data_dir.path().join("peers.json"));
        let lists = lists_file.load()?.unwrap_or_default();
        let lists = lists
            .parse()
            .map_err(|error| StartFailure::Lists { path: lists_file.path().to_owned(), error })?;
        let record_file = StateFile::<RecordState>::new(data_dir.path().join("record.json"));
        let seq = record_file.load()?.map(|state| state.seq);
        Ok(Self { lists, lists_file, seq, record_file })
    }
}

impl<'a> Steps<'a> {
    pub(super) fn new(
        config: &'a Config,
        log: Option<Logging>,
        components: &'a mut Components,
    ) -> Result<Self, StartFailure> {
        let rng = StdRng::try_from_os_rng().map_err(|error| StartFailure::Entropy(error.to_string()))?;
        let allowed = process::memory_limit();
        let budgets = Budgets::new(config.memory.unwrap_or_else(|| budget::default_memory(allowed)));
        let mut warnings = config.warnings.clone();
        warnings.extend(allowed.and_then(|allowed| memory_warning(config.memory, allowed)));
        Ok(Self { config, log, now: clock::now(), rng, budgets, warnings, components })
    }

    /// Locks the data directory.
    pub(super) fn data_dir(&mut self) -> Result<DataDir, StartFailure> {
        Ok(match &self.config.data_dir {
            Some(path) => DataDir::open(path)?,
            None => DataDir::temporary(&mut self.rng)?,
        })
    }

    /// Takes all further steps, asking `reached` after each whether to go on.
    pub(super) async fn take(
        mut self,
        data_dir: &mut DataDir,
        reached: impl Fn(Step) -> Result<(), StartFailure>,
    ) -> Result<Outcome, StartFailure> {
        let config = self.config;
        reached(Step::DataDir)?;
        let key = self.key(data_dir)?;
        reached(Step::Key)?;
        let earlier = Earlier::load(data_dir)?;
        reached(Step::State)?;
        let mut sockets = Sockets::bind(config)?;
        let udp_addrs = sockets.udp.as_ref().map(UdpPort::local_addrs).unwrap_or_default();
        let local = self.record(&key, &sockets, earlier.seq)?;
        reached(Step::Listen)?;

        let watches = Watches::new(self.rng.next_u64());
        let search = finding::Setup {
            config,
            data_dir: data_dir.path(),
            key: &key,
            local,
            record_file: earlier.record_file,
            sockets: &mut sockets,
            tables: watches.tables(),
            rng: self.fork(),
        };
        let Finding { discovery, trees, sources } = finding::start(search, self.components)?;
        let record = discovery.record().borrow().clone();
        reached(Step::Discovery)?;

        let facts = self.facts(&key, sockets.listen_addrs.clone());
        let current = reload::Current::new(config, key.public().id(), self.log.clone());
        let (accepted, accept_queue) = mpsc::channel(ACCEPTED);
        let setup = peers::Setup {
            config,
            key,
            record: &record,
            instance_id: Arc::clone(&facts.instance_id),
            client_name: &facts.client_name,
            watches,
            budgets: self.budgets.clone(),
            sources,
            accepted: accept_queue,
            configured: current.lists(),
            earlier: &earlier.lists,
            lists_file: earlier.lists_file,
            rng: self.fork(),
        };
        let handle = peers::start(setup, self.components)?;
        reached(Step::Switch)?;

        let stop_asked = Arc::new(Notify::new());
        let controls = self.controls(Arc::clone(&stop_asked));
        let budgets = &self.budgets;
        let services = Services { facts, controls, discovery: &discovery, handle: &handle, budgets };
        let served = api::serve(&config.grpc, services, self.components).await?;
        reached(Step::Grpc)?;
        let probes = Probes::default();
        let http_addr = self.serve_probes(&probes, &handle, &discovery, trees).await?;
        reached(Step::Http)?;

        announce(data_dir, served.addr);
        let started = Started {
            enode: enode_of(&record),
            record,
            listen_addrs: sockets.listen_addrs,
            udp_addrs,
            grpc_addr: served.addr,
            grpc_socket: served.socket.as_ref().map(|place| place.path().to_owned()),
            http_addr,
            data_dir: data_dir.path().to_owned(),
            network: networks::describe(config.network, self.now.unix),
            warnings: self.warnings.clone(),
        };
        let (listeners, health, grace) = (sockets.tcp, served.health, config.shutdown_grace);
        let service = Service { listeners, accepted, health, probes, handle: handle.clone(), grace };
        self.components.add(Component::from(service.start().await).with_all_the_time());
        Ok(Outcome { started, handle, stop_asked, current, socket: served.socket })
    }

    /// Reads the node's key, or makes one where the configuration names none.
    fn key(&mut self, data_dir: &DataDir) -> Result<NodeKey, StartFailure> {
        Ok(match &self.config.nodekey {
            Some(path) => key_file::load(path)?,
            None => key_file::load_or_make(data_dir, &mut self.rng)?,
        })
    }

    /// Our record, with the ports of the sockets and no entries. Signing fails only for size, and such a record has a
    /// third of the allowed size.
    fn record(
        &self,
        key: &NodeKey,
        sockets: &Sockets,
        seq: Option<u64>,
    ) -> Result<LocalRecord, StartFailure> {
        LocalRecord::new(self.now, key.clone(), sockets.ports(), seq)
            .map_err(|error| StartFailure::Record(error.to_string()))
    }

    /// Randomness for one component.
    fn fork(&mut self) -> StdRng {
        StdRng::seed_from_u64(self.rng.next_u64())
    }

    /// The facts of this run for GetNodeInfo. Warnings are logged, too.
    fn facts(&mut self, key: &NodeKey, listen_addrs: Vec<SocketAddr>) -> NodeFacts {
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
        // Random, so that applications notice a restart.
        let mut instance = [0; 8];
        self.rng.fill_bytes(&mut instance);
        NodeFacts {
            public_key: key.public(),
            listen_addrs,
            instance_id: HEXLOWER.encode(&instance).into(),
            client_name: peers::client_name(self.config.identity.as_deref()),
            start_time: self.now.unix,
            warnings: self.warnings.clone(),
            budgets: self.budgets.clone(),
            network: preset_facts(self.config.network),
        }
    }

    /// The controls of the process for calls.
    fn controls(&self, stop: Arc<Notify>) -> Controls {
        let log = self.log.clone();
        let log_filter = Box::new(move |filter: &str| match &log {
            Some(log) => log.filter().set(filter).map_err(|error| error.to_string()),
            None => Err("the log of this process is not ours".to_owned()),
        });
        Controls { stop, grace: self.config.shutdown_grace, log_filter }
    }

    /// Serves the probes, if they are wanted.
    async fn serve_probes(
        &mut self,
        probes: &Probes,
        handle: &Handle,
        discovery: &Discovery,
        trees: watch::Receiver<dnsdisc::Counters>,
    ) -> Result<Option<SocketAddr>, StartFailure> {
        let Some(addr) = self.config.http_addr else { return Ok(None) };
        let facts = http::Facts {
            discv5_off: self.config.discovery.wanted && !self.config.discovery.v5,
            dropped_lines: self.log.as_ref().map(Logging::dropped_lines).unwrap_or_default(),
            trees,
            budgets: self.budgets.clone(),
        };
        let metrics = http::Metrics::new(handle.clone(), discovery.clone(), facts);
        api::serve_probes(addr, probes.clone(), metrics, self.components).await.map(Some)
    }
}

/// Writes into the data directory where this sidecar serves, so that a second process that finds it locked can name the
/// address. A sidecar starts without the note, too.
fn announce(data_dir: &mut DataDir, grpc_addr: SocketAddr) {
    if let Err(error) = data_dir.announce(Some(&grpc_addr.to_string())) {
        tracing::warn!(%error, "cannot note in the data directory where this sidecar serves");
    }
}

/// Returns a warning if the process may use more memory than its control group allows. Then the kernel may kill it.
fn memory_warning(setting: Option<u64>, allowed: u64) -> Option<String> {
    const MIB: u64 = 1 << 20;
    let memory = setting.unwrap_or(MIN_MEMORY);
    (memory > allowed).then(|| {
        let (memory, allowed) = (memory / MIB, allowed / MIB);
        format!(
            "this process may use {memory} MiB (--memory) and its control group allows {allowed} MiB: the kernel may \
             kill it; allow at least 128 MiB, and set --memory to three quarters of that, or to auto"
        )
    })
}

fn preset_facts(network: Network) -> Option<NetworkFacts> {
    let preset = Preset::of(network)?;
    let Knowledge { release, released, forks } = preset.knowledge();
    Some(NetworkFacts { name: preset.name.to_owned(), release, released, forks })
}
