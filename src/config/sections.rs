//! The contents of a configuration: the values that everything else reads, section by section.
//!
//! The defaults here are those of a program that runs a sidecar itself: a node on loopback, alone. It takes no fixed
//! port, joins no public network, asks no gateway and leaves nothing behind, so any number of sidecars can run side by
//! side. Everything else has the default of the command line; a test compares the two.
//!
//! Left out: the defaults of the command line, which stand beside each setting (`settings`).

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;

use super::values::{LogFormat, Network, Rehello};
use crate::{
    lease::Capability,
    net::{bandwidth::Rates, nat::NatMethod, peer_socket::RECEIVE_BUFFER},
    node::NodeRef,
};

/// The whole configuration, section by section.
///
/// A program that runs a sidecar itself begins with [`Config::default`] and changes some fields. The default is a node
/// by itself on loopback, with ports that the system chooses and a data directory that is removed with it. The defaults
/// of the command line are other ones: they join Ethereum mainnet ([`super::load`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which network's presets apply.
    pub network: Network,
    /// Where everything is kept that must survive a restart. Need not exist yet. `None`: in a new temporary directory,
    /// which is removed when the sidecar has stopped; so nothing survives.
    pub data_dir: Option<PathBuf>,
    /// The file with the node's key, which must exist. `None`: `nodekey` in the data directory, made at first start.
    pub nodekey: Option<PathBuf>,
    /// The operator's part of the name in our Hello.
    pub identity: Option<String>,
    /// Threads that run tasks. `None`: one per core.
    pub worker_threads: Option<NonZeroUsize>,
    /// The memory in bytes that the process may use, at least 96 MiB. `None`: three quarters of what the control group
    /// allows, else 1 GiB.
    pub memory: Option<u64>,
    /// How long stopping may take before the process exits whatever is left.
    pub shutdown_grace: Duration,
    /// Connections to peers.
    pub peers: Peers,
    /// Finding nodes.
    pub discovery: Discovery,
    /// The gRPC API.
    pub grpc: Grpc,
    /// Where the probes are served. `None`: nowhere. Port 0 lets the system choose.
    pub http_addr: Option<SocketAddr>,
    /// Log events.
    pub log: Log,
    /// Settings that are allowed and probably a mistake, one sentence each: for the log and GetNodeInfo.
    pub warnings: Vec<String>,
    /// Each setting as it was written, by key, lists in their parts: a reload compares them.
    pub values: BTreeMap<String, Vec<String>>,
}

/// Connections to peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    /// Where peers are accepted. Port 0 lets the system choose. Empty: nowhere.
    pub listen_addrs: Vec<SocketAddr>,
    /// Whether `listen_addrs` means all addresses (`any`): an address family that the machine lacks is then skipped.
    pub any_family: bool,
    /// The port for TCP and UDP where a listening address names none; it stands in enode and record.
    pub port: u16,
    /// How endpoint and gateway are found out.
    pub nat: NatMethod,
    /// Connected peers at most, without static and trusted ones.
    pub max_peers: usize,
    /// Whether we dial at all.
    pub dial: bool,
    /// One in so many of `max_peers` may be a peer that we dialed.
    pub dial_ratio: usize,
    /// How long one dial may take, until TCP is connected.
    pub dial_timeout: Duration,
    /// Dials at a time.
    pub max_pending_dials: usize,
    /// Accepted connections that have not authenticated, at a time.
    pub max_pending_inbound: usize,
    /// Networks that we talk to. Empty: all.
    pub netrestrict: Vec<IpNet>,
    /// Nodes that are always dialed; each has an address.
    pub static_peers: Vec<NodeRef>,
    /// Nodes that are let in above the limits.
    pub trusted_peers: Vec<NodeRef>,
    /// Whether only static and trusted peers are dialed and let in.
    pub allowlist_only: bool,
    /// The time in which one address may connect once. Zero: any number.
    pub inbound_throttle: Duration,
    /// Peers from one network, static and trusted ones not counted. 0: any number.
    pub max_peers_per_subnet: usize,
    /// Connections from one network that have not authenticated. 0: any number.
    pub max_pending_per_subnet: usize,
    /// How often a peer makes room for another when all slots are taken. `None`: never.
    pub churn: Option<Duration>,
    /// Whether private addresses of DNS trees and host names are dialed whatever our own is.
    pub allow_lan: bool,
    /// Whether fork filters follow forks that their schedules lack.
    pub follow_forks: bool,
    /// Caps on the bytes over connections.
    pub bandwidth: Rates,
    /// The receive buffer of a connection in the kernel, in bytes as the socket option counts them.
    pub receive_buffer: usize,
    /// How a protocol that is registered late reaches peers that are connected.
    pub rehello: Rehello,
}

/// Finding nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Whether discovery is wanted at all (`--nodiscover` clears it).
    pub wanted: bool,
    /// Whether discv4 runs.
    pub v4: bool,
    /// Whether discv5 runs.
    pub v5: bool,
    /// Trees to read from DNS (`enrtree://…`). `None`: the network's.
    pub dns_trees: Option<Vec<String>>,
    /// Where discv4 starts: nodes with an address or a host name. `None`: the network's.
    pub bootnodes_v4: Option<Vec<NodeRef>>,
    /// Where discv5 starts: the same. `None`: the network's.
    pub bootnodes_v5: Option<Vec<NodeRef>>,
    /// Where UDP is bound. `None`: on the peers' addresses and port.
    pub addr: Option<SocketAddr>,
    /// Packets that discovery may send per second. `None`: as many as it likes.
    pub rate: Option<NonZeroU32>,
    /// Who is asked for DNS trees. `None`: the system's resolver.
    pub dns_server: Option<SocketAddr>,
}

/// The gRPC API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grpc {
    /// TCP address. Port 0 lets the system choose. On loopback, unless the operator allowed another.
    pub addr: SocketAddr,
    /// Unix socket. `None`: none.
    pub socket: Option<PathBuf>,
    /// Whether the socket was asked for: then there must be one.
    pub socket_asked: bool,
    /// The file with the callers that may call over TCP. `None`: every caller that reaches it.
    pub access: Option<PathBuf>,
    /// TLS of the TCP address. `None`: none.
    pub tls: Option<Tls>,
    /// For how long a channel may hold the socket of a session that another application shares.
    pub max_shared_stall: Duration,
    /// Whether an application may end a session that another one shares.
    pub end_shared_sessions: bool,
    /// Whether a registration can be acted for by its token alone.
    pub require_resume_token: bool,
    /// Whether a known protocol may be registered with another number of message codes than it has.
    pub any_message_count: bool,
    /// Capabilities and their message counts, in addition to the common ones.
    pub message_counts: Vec<Capability>,
}

/// The files of TLS, PEM all of them. They are read when serving starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Our certificate, and those between it and its CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CA whose certificates clients must have. `None`: they need none.
    pub client_ca: Option<PathBuf>,
}

/// Log events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Which events: directives of tracing-subscriber's `EnvFilter`, checked.
    pub filter: String,
    /// How they are written.
    pub format: LogFormat,
}

/// A port on loopback that the system chooses.
fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

impl Default for Config {
    /// A node by itself on loopback: no public network, ports that the system chooses, a temporary data directory.
    fn default() -> Self {
        Self {
            network: Network::None,
            data_dir: None,
            nodekey: None,
            identity: None,
            worker_threads: None,
            memory: None,
            shutdown_grace: Duration::from_secs(25),
            peers: Peers::default(),
            discovery: Discovery::default(),
            grpc: Grpc::default(),
            http_addr: Some(loopback()),
            log: Log::default(),
            warnings: Vec::new(),
            values: BTreeMap::new(),
        }
    }
}

impl Default for Peers {
    /// Peers on loopback, no gateway.
    fn default() -> Self {
        Self {
            listen_addrs: vec![loopback()],
            any_family: false,
            port: 0,
            nat: NatMethod::None,
            max_peers: 50,
            dial: true,
            dial_ratio: 3,
            dial_timeout: Duration::from_secs(15),
            max_pending_dials: 50,
            max_pending_inbound: 50,
            netrestrict: Vec::new(),
            static_peers: Vec::new(),
            trusted_peers: Vec::new(),
            allowlist_only: false,
            inbound_throttle: Duration::from_secs(30),
            max_peers_per_subnet: 5,
            max_pending_per_subnet: 4,
            churn: None,
            allow_lan: false,
            follow_forks: true,
            bandwidth: Rates::default(),
            receive_buffer: RECEIVE_BUFFER,
            rehello: Rehello::Rolling,
        }
    }
}

impl Default for Discovery {
    /// Both protocols, on the addresses of the peers. The bootnodes and trees of [`Config::network`].
    fn default() -> Self {
        Self {
            wanted: true,
            v4: true,
            v5: true,
            dns_trees: None,
            bootnodes_v4: None,
            bootnodes_v5: None,
            addr: None,
            rate: None,
            dns_server: None,
        }
    }
}

impl Default for Grpc {
    /// On loopback, over TCP alone.
    fn default() -> Self {
        Self {
            addr: loopback(),
            socket: None,
            socket_asked: false,
            access: None,
            tls: None,
            max_shared_stall: Duration::from_millis(500),
            end_shared_sessions: false,
            require_resume_token: false,
            any_message_count: false,
            message_counts: Vec::new(),
        }
    }
}

impl Default for Log {
    /// Level `info`, in the format that fits standard error.
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Auto }
    }
}
