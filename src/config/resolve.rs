//! From what was typed to what it means: the checks that look at more than one value.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    path::Path,
    time::Duration,
};

use tracing_subscriber::EnvFilter;

use super::{
    Config, ConfigError, Discovery, Grpc, Log, Peers, Tls,
    layers::Layers,
    settings::Settings,
    values::{ListenAddr, SocketPath},
};
use crate::{
    delivery::overflow::MAX_STALL_LIMIT,
    net::bandwidth::Rates,
    node::NodeRef,
    switch::capability::{Capability, MAX_MESSAGE_COUNT, check_name, known_message_count},
};

/// Characters of the operator's part of our name: with the rest of it the Hello stays small, and peers show it whole.
const MAX_IDENTITY: usize = 32;

/// The configuration that `settings` mean; `layers` say where each of them stands.
pub(super) fn resolve(settings: &Settings, layers: &Layers) -> Result<Config, ConfigError> {
    let Some(data_dir) = settings.data_dir.clone().filter(|dir| !dir.as_os_str().is_empty()) else {
        return Err(
            layers.wrong("data-dir", "is needed: neither XDG_DATA_HOME nor HOME says where data belongs")
        );
    };
    if settings.nodekey.as_deref().is_some_and(is_a_key) {
        // The value is a secret: it is not repeated.
        let problem =
            "takes the path of a file, and this looks like the key itself; that key is no secret any more";
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
        return Err(layers.wrong("log", format!("{:?} is no filter: {error}", settings.log)));
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
    let grpc = grpc(settings, layers, &data_dir, &mut warnings)?;
    Ok(Config {
        network: settings.network,
        data_dir,
        nodekey: settings.nodekey.clone(),
        identity: settings.identity.clone(),
        worker_threads: NonZeroUsize::new(settings.worker_threads),
        shutdown_grace: settings.shutdown_grace.0,
        peers: peers(settings, layers)?,
        discovery: discovery(settings, layers)?,
        grpc,
        http_addr: settings.http_addr.0,
        log: Log { filter: settings.log.clone(), format: settings.log_format },
        warnings,
    })
}

/// Who reaches the gRPC port off loopback can be anybody, so there must be a way to tell them apart, unless the operator
/// insists. TLS alone is none: it hides what is said from others and lets everybody say it.
fn grpc(
    settings: &Settings,
    layers: &Layers,
    data_dir: &Path,
    warnings: &mut Vec<String>,
) -> Result<Grpc, ConfigError> {
    let addr = settings.grpc_addr;
    let tls = match (&settings.grpc_tls_cert, &settings.grpc_tls_key) {
        (Some(cert), Some(key)) => {
            let client_ca = settings.grpc_tls_client_ca.clone();
            Some(Tls { cert: cert.clone(), key: key.clone(), client_ca })
        }
        (Some(_), None) => return Err(layers.wrong("grpc-tls-cert", "needs --grpc-tls-key, its private key")),
        (None, Some(_)) => return Err(layers.wrong("grpc-tls-key", "needs --grpc-tls-cert, its certificate")),
        (None, None) => None,
    };
    if settings.grpc_tls_client_ca.is_some() {
        if tls.is_none() {
            let problem = "asks clients for certificates over TLS: give --grpc-tls-cert and --grpc-tls-key";
            return Err(layers.wrong("grpc-tls-client-ca", problem));
        }
        if settings.grpc_access.is_none() {
            let problem = "says whom to trust, and not with what: give --grpc-access, with lines like \
                           `NAME protocol cert:NAME-IN-CERTIFICATE`";
            return Err(layers.wrong("grpc-tls-client-ca", problem));
        }
    }
    if !addr.ip().is_loopback() {
        match (&settings.grpc_access, &tls) {
            (Some(_), Some(_)) => {}
            (Some(_), None) => warnings.push(format!(
                "gRPC on {addr} has no TLS: who listens on the way reads tokens and messages (--grpc-tls-cert)"
            )),
            (None, _) if settings.insecure_listen => {
                warnings.push(format!("gRPC on {addr} is open to everyone who reaches it"));
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
    let any_family = settings.listen_addr.contains(&ListenAddr::Any);
    if any_family && settings.listen_addr.len() > 1 {
        return Err(layers.wrong("listen-addr", "`any` stands alone: there is nothing to add to it"));
    }
    let listen = settings.listen_addr.iter().flat_map(at).filter(|_| !settings.nolisten);
    let mut listen_addrs: Vec<SocketAddr> = Vec::new();
    for addr in listen {
        // Port 0 is another port each time, everything else is one socket.
        if addr.port() != 0 && listen_addrs.contains(&addr) {
            return Err(layers.wrong("listen-addr", format!("{addr} is named twice")));
        }
        listen_addrs.push(addr);
    }
    if settings.churn.0.is_some_and(|span| span.0 < Duration::from_secs(1)) {
        return Err(layers.wrong("churn", "must be at least 1s, or none"));
    }
    if settings.dial_timeout.0.is_zero() {
        return Err(layers.wrong("dial-timeout", "must be longer than 0s"));
    }
    let static_peers: Vec<NodeRef> = nodes(&settings.static_peers, "static-peers", layers)?;
    // Discovery finds the address of a node that is only named; without it nobody does.
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
        netrestrict: settings.netrestrict.clone(),
        static_peers,
        trusted_peers: nodes(&settings.trusted_peers, "trusted-peers", layers)?,
        allowlist_only: settings.allowlist_only,
        inbound_throttle: settings.inbound_throttle.0,
        churn: settings.churn.0.map(|span| span.0),
        allow_lan: settings.allow_lan,
        follow_forks: settings.follow_forks,
        bandwidth: Rates {
            peer_in: settings.peer_receive_rate.0.map(|rate| rate.0),
            peer_out: settings.peer_send_rate.0.map(|rate| rate.0),
            total_in: settings.receive_rate.0.map(|rate| rate.0),
            total_out: settings.send_rate.0.map(|rate| rate.0),
        },
        rehello: settings.rehello,
    })
}

fn discovery(settings: &Settings, layers: &Layers) -> Result<Discovery, ConfigError> {
    let on = !settings.nodiscover;
    // Nothing said means the network's own; `none`, or no discovery at all, means nothing.
    let given = |values: &[String]| {
        let none = !on || values == ["none"];
        if none { Some(Vec::new()) } else { (!values.is_empty()).then(|| values.to_vec()) }
    };
    let dns_trees = given(&settings.dns_tree);
    if let Some(url) = dns_trees.iter().flatten().find(|url| !url.starts_with("enrtree://")) {
        return Err(layers.wrong("dns-tree", format!("{url:?} does not start with enrtree://")));
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
        addr: settings.discovery_addr.0,
        rate: settings.discovery_rate.0,
        dns_server: settings.dns_server.0,
    })
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
                "{capability} has {right} messages, not {}; --any-message-count lets applications say otherwise",
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
