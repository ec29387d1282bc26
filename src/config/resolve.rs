//! From settings to a configuration: the checks that look at more than one value.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    path::Path,
    time::Duration,
};

use tracing_subscriber::EnvFilter;

use super::{
    error::ConfigError,
    layers::Layers,
    sections::{Config, Discovery, Grpc, Log, Peers, Tls},
    settings::Settings,
    values::{Item, ListenAddr, SocketPath},
};
use crate::{
    delivery::overflow::MAX_STALL_LIMIT,
    dnsdisc::Link,
    lease::{Capability, MAX_MESSAGE_COUNT, check_name, known_message_count},
    net::bandwidth::Rates,
    node::NodeRef,
};

/// Characters of the operator's part of our name: with the rest of it the Hello stays small, and peers show it whole.
const MAX_IDENTITY: usize = 32;

/// The configuration that `settings` mean; `layers` have the place of each of them.
pub(super) fn resolve(settings: &Settings, layers: &Layers) -> Result<Config, ConfigError> {
    let Some(data_dir) = settings.data_dir.clone().filter(|dir| !dir.as_os_str().is_empty()) else {
        return Err(
            layers.wrong(
                "data-dir",
                "is not set and has no default, because neither XDG_DATA_HOME nor HOME is set; give a directory with \
                 --data-dir",
            )
        );
    };
    if settings.nodekey.as_deref().is_some_and(is_a_key) {
        // The value is a secret: it is not repeated.
        let problem = "takes the path of a file, but the value looks like a key; write a key to a file (chmod 600) and give its \
             path. Take a new key: other users may have read this one";
        return Err(layers.wrong("nodekey", problem));
    }
    if let Some(identity) = &settings.identity {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if identity.is_empty() || identity.len() > MAX_IDENTITY || !identity.bytes().all(plain) {
            let problem =
                format!("{identity:?} must be 1 to {MAX_IDENTITY} letters, digits, `-`, `_` or `.`");
            return Err(layers.wrong("identity", problem));
        }
    }
    if let Err(error) = EnvFilter::try_new(&settings.log) {
        return Err(layers.wrong("log", format!(
                "{:?} is not a log filter: {error}; write a level (error, warn, info, debug, trace), or levels by module, \
                 as info,devp2pd::net=debug",
                settings.log
            )));
    }

    let mut warnings = Vec::new();
    if settings.nodial && settings.nolisten {
        warnings.push("neither dialing nor listening: this node can have no peers".to_owned());
    }
    if !settings.nodiscover && !settings.discv5 {
        warnings.push(
            "discv5 is off (--discv5): nodes that run discv5 alone, as on the newest test networks, are not found and \
             do not find this node"
                .to_owned(),
        );
    }
    let lists = [&settings.static_peers, &settings.trusted_peers];
    if lists.iter().all(|list| Item::values(list).next().is_none()) {
        let none = "until a call lists some";
        if settings.allowlist_only {
            warnings.push(format!("allowlist-only without static or trusted peers: no peers {none}"));
        } else if settings.maxpeers == 0 {
            warnings.push(format!("maxpeers 0 without static or trusted peers: no peers {none}"));
        }
    }
    let grpc = grpc(settings, layers, &data_dir, &mut warnings);
    let (peers, discovery) = (peers(settings, layers), discovery(settings, layers));
    let (grpc, peers, discovery) = match (grpc, peers, discovery) {
        (Ok(grpc), Ok(peers), Ok(discovery)) => (grpc, peers, discovery),
        (grpc, peers, discovery) => {
            let errors = [grpc.err(), peers.err(), discovery.err()].into_iter().flatten();
            // At least one of them is wrong, so the list is not empty.
            return Err(ConfigError::all(errors.collect()).err().unwrap_or(ConfigError::Several(Vec::new())));
        }
    };
    Ok(Config {
        network: settings.network,
        data_dir: Some(data_dir),
        nodekey: settings.nodekey.clone(),
        identity: settings.identity.clone(),
        worker_threads: NonZeroUsize::new(settings.worker_threads),
        memory: settings.memory.0,
        shutdown_grace: settings.shutdown_grace.0,
        peers,
        discovery,
        grpc,
        http_addr: settings.http_addr.0.map(|addr| addr.0),
        log: Log { filter: settings.log.clone(), format: settings.log_format },
        warnings,
        values: layers.values(),
    })
}

/// The gRPC settings. Off loopback, unknown callers can reach the port, so an access file must distinguish callers,
/// unless the operator insists. TLS alone does not: it encrypts the calls of every caller.
fn grpc(
    settings: &Settings,
    layers: &Layers,
    data_dir: &Path,
    warnings: &mut Vec<String>,
) -> Result<Grpc, ConfigError> {
    let addr = settings.grpc_addr.0;
    let tls = match (&settings.grpc_tls_cert, &settings.grpc_tls_key) {
        (Some(cert), Some(key)) => {
            let client_ca = settings.grpc_tls_client_ca.clone();
            Some(Tls { cert: cert.clone(), key: key.clone(), client_ca })
        }
        (Some(_), None) => {
            return Err(layers.wrong("grpc-tls-cert", "needs its private key: give --grpc-tls-key too"));
        }
        (None, Some(_)) => {
            return Err(layers.wrong("grpc-tls-key", "needs its certificate: give --grpc-tls-cert too"));
        }
        (None, None) => None,
    };
    if settings.grpc_tls_client_ca.is_some() {
        if tls.is_none() {
            let problem = "needs TLS: give --grpc-tls-cert and --grpc-tls-key too";
            return Err(layers.wrong("grpc-tls-client-ca", problem));
        }
        if settings.grpc_access.is_none() {
            let problem = "needs --grpc-access: a certificate proves who a client is, and the access file says what it may \
                           do, by lines such as `NAME protocol cert:NAME-IN-CERTIFICATE`";
            return Err(layers.wrong("grpc-tls-client-ca", problem));
        }
    }
    if !addr.ip().is_loopback() {
        match (&settings.grpc_access, &tls) {
            (Some(_), Some(_)) => {}
            (Some(_), None) => warnings.push(format!(
                "gRPC on {addr} has no TLS: tokens and messages can be read on the network (--grpc-tls-cert)"
            )),
            (None, _) if settings.insecure_listen => {
                warnings.push(format!("gRPC on {addr} accepts calls from every host that can reach it"));
            }
            (None, _) => {
                let problem = format!(
                    "{addr} is not a loopback address: everyone who reaches it could do nearly everything. Use \
                     127.0.0.1, give --grpc-access, or say --insecure-listen if the network is yours alone"
                );
                return Err(layers.wrong("grpc-addr", problem));
            }
        }
    }
    if settings.max_shared_stall.0 > MAX_STALL_LIMIT {
        let problem = format!("may be at most {} s: pings must survive it", MAX_STALL_LIMIT.as_secs());
        return Err(layers.wrong("max-shared-stall", problem));
    }
    let socket = match &settings.grpc_socket {
        SocketPath::None => None,
        SocketPath::Auto => Some(data_dir.join("grpc.sock")),
        SocketPath::At(path) => Some(path.clone()),
    };
    Ok(Grpc {
        addr,
        socket,
        socket_asked: matches!(settings.grpc_socket, SocketPath::At(_)),
        access: settings.grpc_access.clone(),
        tls,
        max_shared_stall: settings.max_shared_stall.0,
        end_shared_sessions: settings.end_shared_sessions,
        require_resume_token: settings.require_resume_token,
        any_message_count: settings.any_message_count,
        message_counts: message_counts(&settings.message_counts, layers)?,
    })
}

fn peers(settings: &Settings, layers: &Layers) -> Result<Peers, ConfigError> {
    let at = |addr: &ListenAddr| match *addr {
        ListenAddr::Any => vec![
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, settings.port)),
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, settings.port)),
        ],
        ListenAddr::At(ip, port) => vec![SocketAddr::new(ip, port.unwrap_or(settings.port))],
    };
    let listening: Vec<ListenAddr> = Item::values(&settings.listen_addr).copied().collect();
    if listening.is_empty() && !settings.nolisten {
        let problem = "names no address; write `any`, an IP address, or --nolisten to accept no peers";
        return Err(layers.wrong("listen-addr", problem));
    }
    let any_family = listening.contains(&ListenAddr::Any);
    if any_family && listening.len() > 1 {
        return Err(
            layers.wrong("listen-addr", "`any` means all addresses; remove either `any` or the others")
        );
    }
    let listen = listening.iter().flat_map(at).filter(|_| !settings.nolisten);
    let mut listen_addrs: Vec<SocketAddr> = Vec::new();
    for addr in listen {
        // Port 0 is another port each time; anything else that is named twice is one socket all the same.
        if addr.port() == 0 || !listen_addrs.contains(&addr) {
            listen_addrs.push(addr);
        }
    }
    if settings.churn.0.is_some_and(|span| span.0 < Duration::from_secs(1)) {
        return Err(layers.wrong("churn", "must be at least 1s, or none"));
    }
    if settings.dial_timeout.0.is_zero() {
        return Err(layers.wrong("dial-timeout", "must be longer than 0s"));
    }
    let static_peers = peer_list(&settings.static_peers, "static-peers", layers)?;
    // Only discovery can find the address of a node that is given by its id alone.
    let nobody_to_ask = settings.nodiscover || !(settings.discv4 || settings.discv5);
    if let Some(node) = static_peers.iter().find(|node| nobody_to_ask && node.enode().is_none()) {
        let problem =
            format!("{node} names no address to dial, and discovery is off; use enode://KEY@IP:PORT");
        return Err(layers.wrong("static-peers", problem));
    }
    Ok(Peers {
        listen_addrs,
        any_family,
        port: settings.port,
        nat: settings.nat.clone(),
        max_peers: settings.maxpeers,
        dial: !settings.nodial,
        dial_ratio: settings.dial_ratio.get(),
        dial_timeout: settings.dial_timeout.0,
        max_pending_dials: settings.max_pending_dials.get(),
        max_pending_inbound: settings.max_pending_inbound.get(),
        netrestrict: Item::values(&settings.netrestrict).map(|net| net.0).collect(),
        static_peers,
        trusted_peers: peer_list(&settings.trusted_peers, "trusted-peers", layers)?,
        allowlist_only: settings.allowlist_only,
        inbound_throttle: settings.inbound_throttle.0,
        max_peers_per_subnet: settings.max_peers_per_subnet,
        max_pending_per_subnet: settings.max_pending_per_subnet,
        churn: settings.churn.0.map(|span| span.0),
        allow_lan: settings.allow_lan,
        follow_forks: settings.follow_forks,
        bandwidth: Rates {
            peer_in: settings.peer_receive_rate.0.map(|rate| rate.0),
            peer_out: settings.peer_send_rate.0.map(|rate| rate.0),
            total_in: settings.receive_rate.0.map(|rate| rate.0),
            total_out: settings.send_rate.0.map(|rate| rate.0),
        },
        receive_buffer: settings.peer_receive_buffer.0,
        rehello: settings.rehello,
    })
}

fn discovery(settings: &Settings, layers: &Layers) -> Result<Discovery, ConfigError> {
    let on = !settings.nodiscover;
    // An unset list means the network's own; `none`, or no discovery at all, means an empty one.
    let given = |values: &[Item<String>]| {
        let values: Vec<String> = Item::values(values).cloned().collect();
        let none = !on || values == ["none"];
        if none { Some(Vec::new()) } else { (!values.is_empty()).then_some(values) }
    };
    let dns_trees = given(&settings.dns_tree);
    for url in dns_trees.iter().flatten() {
        if let Err(error) = url.parse::<Link>() {
            let problem = format!("{url:?}: {error}; a tree looks like enrtree://KEY@nodes.example.org");
            return Err(layers.wrong("dns-tree", problem));
        }
    }
    let v4 = given(&settings.bootnodes).map(|values| bootnodes(&values, "bootnodes", layers)).transpose()?;
    let v5 = given(&settings.bootnodes_v5)
        .map(|values| bootnodes(&values, "bootnodes-v5", layers))
        .transpose()?
        // As in go-ethereum: one list is enough for both protocols.
        .or_else(|| v4.clone());
    Ok(Discovery {
        wanted: on,
        v4: on && settings.discv4,
        v5: on && settings.discv5,
        dns_trees,
        bootnodes_v4: v4,
        bootnodes_v5: v5,
        addr: settings.discovery_addr.0.map(|addr| addr.0),
        rate: settings.discovery_rate.0,
        dns_server: settings.dns_server.0.map(|addr| addr.0),
    })
}

/// The nodes of a list of peers. An address that cannot be dialed is an error of the list.
fn peer_list(values: &[Item<String>], key: &str, layers: &Layers) -> Result<Vec<NodeRef>, ConfigError> {
    let values: Vec<String> = Item::values(values).cloned().collect();
    let list: Vec<NodeRef> = nodes(&values, key, layers)?;
    for (index, node) in list.iter().enumerate() {
        let check = if key == "static-peers" { node.check_dialable() } else { node.check_address() };
        if let Err(error) = check {
            return Err(layers.wrong(key, format!("entry {} ({node}): {error}", index + 1)));
        }
    }
    Ok(list)
}

fn nodes<T: std::str::FromStr<Err: std::fmt::Display>>(
    values: &[String],
    key: &str,
    layers: &Layers,
) -> Result<Vec<T>, ConfigError> {
    let node = |(index, value): (usize, &String)| {
        value.parse().map_err(|error: T::Err| layers.wrong(key, format!("entry {}: {error}", index + 1)))
    };
    values.iter().enumerate().map(node).collect()
}

/// The operator's table of message counts.
fn message_counts(values: &[String], layers: &Layers) -> Result<Vec<Capability>, ConfigError> {
    let mut all: Vec<Capability> = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let wrong =
            |problem: String| Err(layers.wrong("message-counts", format!("entry {}: {problem}", index + 1)));
        let parts = value.split_once('=').and_then(|(name, count)| Some((name.split_once('/')?, count)));
        let parsed = parts.and_then(|((name, version), count)| {
            let (version, count) = (version.parse().ok()?, count.parse().ok()?);
            (check_name(name) && (1..=MAX_MESSAGE_COUNT).contains(&count))
                .then(|| Capability::new(name, version, count))
        });
        let Some(capability) = parsed else {
            return wrong(format!("{value:?} is not NAME/VERSION=COUNT, such as wit/2=6"));
        };
        let known = known_message_count(&capability.name, capability.version);
        if let Some(right) = known.filter(|right| *right != capability.message_count) {
            return wrong(format!(
                "{capability} has {right} messages, not {}; --any-message-count allows other counts",
                capability.message_count
            ));
        }
        if all.iter().any(|other| other.name == capability.name && other.version == capability.version) {
            return wrong(format!("{capability} stands twice in the list"));
        }
        all.push(capability);
    }
    Ok(all)
}

/// Nodes to start discovery at: URLs and records, which name an address. Ids and bare keys name none.
fn bootnodes(values: &[String], key: &str, layers: &Layers) -> Result<Vec<NodeRef>, ConfigError> {
    let all: Vec<NodeRef> = nodes(values, key, layers)?;
    for (index, node) in all.iter().enumerate() {
        let wrong = |problem: &str| Err(layers.wrong(key, format!("entry {}: {problem}", index + 1)));
        match node {
            NodeRef::Enode(_) => {}
            NodeRef::Record(record) if record.udp_addr().is_some() => {}
            NodeRef::Record(_) => {
                return wrong(
                    "the record names no address with a UDP port, so discovery cannot ask this node; use a newer \
                     record of it, or enode://KEY@IP:PORT",
                );
            }
            NodeRef::Id(_) | NodeRef::Key(_) => {
                return wrong(
                    "an id or a key alone does not say where to ask; use enode://KEY@IP:PORT or the node's record \
                     (enr:…)",
                );
            }
        }
    }
    Ok(all)
}

/// Whether the path is a node key: 64 hex digits, with or without `0x`.
fn is_a_key(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let digits = text.trim().trim_start_matches("0x");
    digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}
