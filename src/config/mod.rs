//! The configuration: one loader for flags, environment and file, and the [`Config`] that everything else reads.
//!
//! Every setting has one name. `--grpc-addr`, `DEVP2PD_GRPC_ADDR` and the key `grpc-addr` of the TOML file are the
//! same setting, read by the same parser; the file has no sections, so that nobody has to know two spellings. Where
//! several say something, flags go before environment, environment before file, file before default; a list replaces
//! a list. Names that nobody knows are errors with the nearest known name.
//!
//! Parsed, not validated: a [`Config`] that exists is consistent, and its types (addresses, nodes, durations) need no
//! second look. Errors name where the value stands: the flag, the variable, or the line of the file.
//!
//! Reading order: [`Config`] here, `settings` (what can be set, with its documentation), `layers` (who wins),
//! `links` (variables that are not settings), `file`, `resolve` (settings to [`Config`]), `print`.
//!
//! Left out: files that settings name (`net::key_file`), and changing settings while running.

mod file;
mod layers;
mod links;
pub mod networks;
mod print;
mod resolve;
mod settings;
mod values;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    lease::Capability,
    net::{bandwidth::Rates, nat::NatMethod},
    node::NodeRef,
};
pub use layers::Origin;
pub use values::{LogFormat, Network, Rehello};

/// The whole configuration, section by section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which network's presets apply.
    pub network: Network,
    /// Where everything is kept that must survive a restart. Need not exist yet.
    pub data_dir: PathBuf,
    /// The file with the node's key, which must exist. `None`: `nodekey` in the data directory, made at first start.
    pub nodekey: Option<PathBuf>,
    /// The operator's part of the name in our Hello.
    pub identity: Option<String>,
    /// Threads that run tasks. `None`: one per core.
    pub worker_threads: Option<NonZeroUsize>,
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
    /// What is allowed and yet most likely not meant, one sentence each: for the log and GetNodeInfo.
    pub warnings: Vec<String>,
    /// Each setting as it was written, by key, lists in their parts: what a reload compares.
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
    /// Caps on what goes over connections.
    pub bandwidth: Rates,
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
    /// The file that says who may call over TCP. `None`: everybody who reaches it.
    pub access: Option<PathBuf>,
    /// TLS of the TCP address. `None`: none.
    pub tls: Option<Tls>,
    /// For how long a channel may hold the socket of a session that another application shares.
    pub max_shared_stall: Duration,
    /// Whether an application may end a session that another one shares.
    pub end_shared_sessions: bool,
    /// Whether a registration can be acted for by its token alone.
    pub require_resume_token: bool,
    /// Whether a protocol that we know may be registered with another number of message codes than it has.
    pub any_message_count: bool,
    /// Capabilities and their message counts, beside those that everybody knows.
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

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Run with this configuration.
    Run(Box<Config>),
    /// Write this to standard output and exit with success: help, version, the configuration.
    Print(String),
}

/// A configuration that is wrong, in words for the operator: one line for each setting that is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The command line does not parse. The text has its own layout and ends with a hint.
    #[error("{0}")]
    Usage(String),
    /// A setting is wrong.
    #[error("{place}: {problem}")]
    Setting {
        /// Where it stands.
        place: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The file cannot be read or is no TOML.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where there is one.
        problem: String,
    },
    /// More than one of them, a line each.
    #[error("{} settings are wrong:{}", .0.len(), .0.iter().map(|error| format!("\n  {error}")).collect::<String>())]
    Several(Vec<ConfigError>),
}

impl ConfigError {
    /// One error for all of `errors`; `Ok` if there are none.
    fn all(errors: Vec<Self>) -> Result<(), Self> {
        let mut all = Vec::new();
        for error in errors {
            match error {
                Self::Several(several) => all.extend(several),
                error => all.push(error),
            }
        }
        match (all.len(), all.pop()) {
            (_, None) => Ok(()),
            (1, Some(error)) => Err(error),
            (_, Some(last)) => {
                all.push(last);
                Err(Self::Several(all))
            }
        }
    }
}

/// Loads the configuration from `args` (the first is the program's name) and `env`, and from the file that they name.
pub fn load(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Request, ConfigError> {
    let env: BTreeMap<OsString, OsString> = env.into_iter().collect();
    let flags = match layers::from_args(args)? {
        layers::Flags::Print(text) => return Ok(Request::Print(text)),
        layers::Flags::Set(flags) => flags,
    };
    let mut layers = layers::Layers::new();
    let mut errors = Vec::new();
    let environment = layers::from_env(&env, &mut errors);
    let path = flags.config().or_else(|| environment.config()).map(PathBuf::from);
    if let Some(path) = &path {
        layers.add(file::read(Path::new(path), &mut errors)?);
    }
    ConfigError::all(errors)?;
    layers.add(environment);
    layers.add(flags);
    layers.set_default_data_dir(&env);

    let settings = layers.parse()?;
    let config = resolve::resolve(&settings, &layers)?;
    if settings.print_config {
        return Ok(Request::Print(print::print(&layers)));
    }
    if settings.check_config {
        return Ok(Request::Print("the configuration is valid\n".to_owned()));
    }
    Ok(Request::Run(Box::new(config)))
}

#[cfg(test)]
mod tests;
