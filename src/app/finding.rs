//! The part of the start that finds nodes: node database, gateway, DNS trees, and the engines with their record.
//!
//! Everything here is optional by configuration, and all of it may fail to find anybody without holding up the start.

use std::path::Path;

use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::sync::{mpsc, watch};

use super::{
    components::{Component, Components},
    error::StartFailure,
    sockets::Sockets,
};
use crate::{
    config::{Config, networks::Preset},
    dnsdisc::{self, Link},
    kademlia::Protocol,
    net::switch::{Sources, watches::TableWatch},
    net::{
        bootnode_names::{self, Named},
        clock,
        discovery::{self, Discovery, contact_of},
        dns_discovery,
        nat::{self, NatMethod},
        node_db::{self, NodeDb},
        resolver::{ResolveError, Resolver},
        running::Running,
        state_file::StateFile,
    },
    node::{
        NodeKey, NodeRef, Record,
        local::{LocalRecord, Mapped, Ports},
    },
};

/// Candidates on their way to the dialer: the answers of four sources to one demand.
const CANDIDATES: usize = 64;

/// The part of our record that is kept in a file.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordState {
    /// The last sequence number that was published.
    pub(super) seq: u64,
}

/// The arguments of the search for nodes.
pub(super) struct Setup<'a> {
    pub(super) config: &'a Config,
    pub(super) data_dir: &'a Path,
    pub(super) key: &'a NodeKey,
    pub(super) local: LocalRecord,
    pub(super) record_file: StateFile<RecordState>,
    /// Those of discovery are taken.
    pub(super) sockets: &'a mut Sockets,
    /// The receivers of changes in the tables.
    pub(super) tables: TableWatch,
    pub(super) rng: StdRng,
}

/// The ways into what finds nodes.
pub(super) struct Finding {
    pub(super) discovery: Discovery,
    /// The result of reading DNS trees.
    pub(super) trees: watch::Receiver<dnsdisc::Counters>,
    /// The handles for the switch.
    pub(super) sources: Sources,
}

/// Starts everything that finds nodes.
pub(super) fn start(setup: Setup<'_>, components: &mut Components) -> Result<Finding, StartFailure> {
    let Setup { config, data_dir, key, mut local, record_file, sockets, tables, mut rng } = setup;
    let mut fork = || StdRng::seed_from_u64(rng.next_u64());
    let preset = Preset::of(config.network);
    let ports = sockets.ports();
    let udp = sockets.udp.take();
    let discovers = udp.is_some();
    let database = discovers.then(|| open_database(data_dir, fork(), components)).flatten();
    let resolver = match config.discovery.dns_server {
        Some(server) => Resolver::with_server(server),
        None => Resolver::system(),
    };
    if let NatMethod::ExtIp(ips) = &config.peers.nat {
        for ip in ips {
            // The new record is published by the driver, which starts with it.
            let _ = local.set_static_ip(*ip);
        }
    }
    // A port on loopback cannot be reached from a gateway.
    let inside = sockets.listen_addrs.iter().all(|addr| addr.ip().is_loopback());
    let method = Some(&config.peers.nat).filter(|_| !inside);
    let mapped = follow_gateway(method, ports, resolver.as_ref().ok(), fork(), components);
    let (demand, wanted) = watch::channel(0);
    let (candidates_sender, candidates) = mpsc::channel(CANDIDATES);
    let feed = |links, resolver| dns_discovery::Feed {
        links,
        resolver,
        demand: wanted.clone(),
        candidates: candidates_sender.clone(),
        rng: fork(),
    };
    let trees = read_trees(links(config, preset), resolver, feed, components);
    if let Some(database) = database.clone() {
        components.add(node_db::offer(database, wanted.clone(), candidates_sender.clone()));
    }
    let nodes_v4 = bootnodes(&config.discovery.bootnodes_v4, preset.map_or(&[], |preset| preset.bootnodes));
    let nodes_v5 =
        bootnodes(&config.discovery.bootnodes_v5, preset.map_or(&[], |preset| preset.bootnodes_v5));
    let named: Vec<Named> = named(&nodes_v4, Protocol::V4).chain(named(&nodes_v5, Protocol::V5)).collect();
    let (task, discovery) = discovery::prepare(
        clock::now(),
        discovery::Setup {
            port: udp,
            v4: config.discovery.v4,
            v5: config.discovery.v5,
            key: key.clone(),
            local,
            bootnodes_v4: nodes_v4.iter().filter_map(contact_of).collect(),
            bootnodes_v5: nodes_v5.iter().filter_map(contact_of).collect(),
            restrict: config.peers.netrestrict.clone(),
            rate: config.discovery.rate,
            db: database.clone(),
            demand: wanted,
            candidates: candidates_sender,
            observer: Box::new(tables),
            mapped,
            rng: fork(),
        },
    );
    keep_seq(discovery.record(), record_file, components)?;
    let driver = Running::start("discovery", |stop| discovery::run(task, stop));
    components.add(Component::from(driver).essential());
    if discovers && !named.is_empty() {
        components.add(bootnode_names::start(named, discovery.clone()));
    }
    let sources = Sources {
        discovery: discovers.then(|| discovery.clone()),
        record: discovery.clone(),
        demand,
        candidates,
        database,
        receive_buffer: config.peers.receive_buffer,
    };
    Ok(Finding { discovery, trees, sources })
}

/// The node database is a convenience: without it we begin at the bootnodes.
fn open_database(data_dir: &Path, rng: StdRng, components: &mut Components) -> Option<NodeDb> {
    match NodeDb::start(data_dir.join("nodes.redb"), node_db::Limits::default(), rng) {
        Ok(database) => {
            let closing = database.clone();
            let running = Running::start("the node database", async move |stop| {
                let _ = stop.await;
                closing.close().await;
            });
            // The database is written while there is time.
            components.add(Component::from(running).with_all_the_time());
            Some(database)
        }
        Err(error) => {
            tracing::warn!(%error, "running without a node database");
            None
        }
    }
}

/// Follows the address that a gateway has for us and keeps ports open there. `None` where there is no gateway to ask.
fn follow_gateway(
    method: Option<&NatMethod>,
    ports: Ports,
    resolver: Option<&Resolver>,
    rng: StdRng,
    components: &mut Components,
) -> watch::Receiver<Mapped> {
    let (sender, mapped) = watch::channel(Mapped::default());
    let method = method.filter(|method| !matches!(method, NatMethod::None | NatMethod::ExtIp(_)));
    if let (Some(method), Some(resolver)) = (method, resolver) {
        let config = nat::Config::new(method.clone(), ports);
        let gateway = nat::start(config, resolver.clone(), rng, sender);
        // Mappings that stay open lead strangers to a closed port: they are closed while there is time.
        components.add(Component::from(gateway).with_all_the_time());
    }
    mapped
}

/// Reads the trees, if there are any. Returns what reading them comes to.
fn read_trees(
    links: Vec<Link>,
    resolver: Result<Resolver, ResolveError>,
    feed: impl FnOnce(Vec<Link>, Resolver) -> dns_discovery::Feed,
    components: &mut Components,
) -> watch::Receiver<dnsdisc::Counters> {
    match resolver {
        _ if links.is_empty() => {}
        Ok(resolver) => {
            let (counters, running) = dns_discovery::start(feed(links, resolver));
            components.add(running);
            return counters;
        }
        Err(error) => tracing::warn!(%error, "DNS trees are not read"),
    }
    watch::channel(dnsdisc::Counters::default()).1
}

/// Keeps the sequence number of our record, which must never go back: the one that holds now before it is published,
/// and each later one.
fn keep_seq(
    record: watch::Receiver<Record>,
    file: StateFile<RecordState>,
    components: &mut Components,
) -> Result<(), StartFailure> {
    file.store(&RecordState { seq: record.borrow().seq() })?;
    let state = |record: &Record| Some(RecordState { seq: record.seq() });
    let lost = "the sequence number of our record is not kept";
    components.add(file.keep("the record's file", record, state, lost));
    Ok(())
}

/// The bootnodes of the configuration, or those of the network. Presets are checked by a test of theirs.
fn bootnodes(given: &Option<Vec<NodeRef>>, preset: &[&str]) -> Vec<NodeRef> {
    let of_network = || preset.iter().filter_map(|text| text.parse().ok()).collect();
    given.clone().unwrap_or_else(of_network)
}

/// The bootnodes of a list whose address is a host name, for one protocol.
fn named(nodes: &[NodeRef], protocol: Protocol) -> impl Iterator<Item = Named> {
    nodes.iter().filter_map(move |node| match node {
        NodeRef::Enode(enode) if enode.endpoint().is_none() => Some(Named { enode: enode.clone(), protocol }),
        _ => None,
    })
}

fn links(config: &Config, preset: Option<&Preset>) -> Vec<Link> {
    match &config.discovery.dns_trees {
        Some(urls) => urls.iter().filter_map(|url| url.parse().ok()).collect(),
        None => preset.and_then(|preset| preset.dns_tree.parse().ok()).into_iter().collect(),
    }
}
