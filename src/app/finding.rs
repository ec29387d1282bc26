//! The part of the start that finds nodes: node database, engines, DNS trees and the gateway.
//!
//! Everything here is optional by configuration, and all of it may fail to find anybody without holding up the start.

use std::{net::IpAddr, path::Path, time::Duration};

use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Owned, StartError, sockets::Sockets};
use crate::{
    config::{Config, networks::Preset},
    dnsdisc::{self, Link},
    kademlia::Contact,
    net::switch::boards::TableBoard,
    net::{
        clock, dialer,
        discovery::{self, Discovery, contact_of},
        dns_discovery::{self, DnsNode},
        nat::{self, NatMethod},
        node_db::{self, NodeDb, StoredPeer},
        resolver::Resolver,
    },
    node::{
        Enode, Host, NodeKey, NodeRef,
        local::{LocalRecord, Mapped},
    },
    policy::dial::{Candidate, Source},
};

/// Candidates on their way to the dialer: what four sources answer to one demand.
const CANDIDATES: usize = 64;

/// Peers of earlier runs that are offered. More than a full house has dialed slots, because some have gone.
const PEERS: usize = 64;

/// Nodes of DNS trees that are fetched ahead: one dialer's worth.
const DNS_NODES: usize = 8;

/// How soon the host name of a bootnode is asked for again, and how seldom at the end. A resolver is somebody else's.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What runs to find nodes, and the ways into it.
pub(super) struct Finding {
    pub(super) discovery: Discovery,
    pub(super) demand: watch::Sender<usize>,
    pub(super) candidates: mpsc::Receiver<Candidate>,
    pub(super) database: Option<NodeDb>,
    pub(super) trees: watch::Receiver<dnsdisc::Counters>,
    pub(super) tasks: FindingTasks,
}

/// The tasks; dropping them cuts everything.
pub(super) struct FindingTasks {
    driver: Owned<()>,
    stop_driver: oneshot::Sender<()>,
    gateway: Option<Owned<()>>,
    stop_gateway: watch::Sender<bool>,
    _dns: Option<Owned<()>>,
    _names: Option<Owned<()>>,
    _peers: Option<Owned<()>>,
    db: Option<NodeDb>,
}

impl FindingTasks {
    /// Waits for the driver to end, which it must not before it is told.
    pub(super) async fn broken(&mut self) {
        let _ = (&mut self.driver.0).await;
    }

    /// Closes mappings at the gateway, then the database, so that nothing learned is lost.
    pub(super) async fn stop(mut self) {
        // The receivers are gone only when the tasks have ended.
        let _ = self.stop_driver.send(());
        let _ = self.stop_gateway.send(true);
        let _ = (&mut self.driver.0).await;
        if let Some(gateway) = &mut self.gateway {
            let _ = (&mut gateway.0).await;
        }
        if let Some(db) = &self.db {
            db.close().await;
        }
    }
}

/// Starts everything that finds nodes.
pub(super) fn start(
    config: &Config,
    data_dir: &Path,
    key: &NodeKey,
    mut local: LocalRecord,
    sockets: &mut Sockets,
    tables: TableBoard,
    rng: &mut StdRng,
) -> Result<Finding, StartError> {
    let mut fork = || StdRng::seed_from_u64(rng.next_u64());
    let preset = Preset::of(config.network);
    let ports = sockets.ports();
    let udp = sockets.udp.take();
    let discovers = udp.is_some();
    let db = discovers.then(|| open_db(data_dir, fork())).flatten();
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
    let (mapped_sender, mapped) = watch::channel(Mapped::default());
    let (stop_gateway, stopped) = watch::channel(false);
    let inside = sockets.listen_addrs.iter().all(|addr| addr.ip().is_loopback());
    let gateway = match &resolver {
        // A port on loopback cannot be reached from a gateway.
        Ok(resolver) if !inside && !matches!(config.peers.nat, NatMethod::None | NatMethod::ExtIp(_)) => {
            let nat = nat::Config::new(config.peers.nat.clone(), ports);
            Some(Owned(tokio::spawn(nat::run(nat, resolver.clone(), fork(), mapped_sender, stopped))))
        }
        _ => None,
    };
    let (demand, wanted) = watch::channel(0);
    let (candidates_sender, candidates) = mpsc::channel(CANDIDATES);
    let (tree_counters, trees) = watch::channel(dnsdisc::Counters::default());
    let dns = match (links(config, preset), resolver) {
        (links, _) if links.is_empty() => None,
        (links, Ok(resolver)) => {
            let feed = feed_from_dns(
                links,
                resolver,
                wanted.clone(),
                candidates_sender.clone(),
                tree_counters,
                fork(),
            );
            Some(Owned(tokio::spawn(feed)))
        }
        (_, Err(error)) => {
            tracing::warn!(%error, "DNS trees are not read");
            None
        }
    };
    let peers = db
        .clone()
        .map(|db| Owned(tokio::spawn(feed_from_database(db, wanted.clone(), candidates_sender.clone()))));
    let given = config.discovery.bootnodes_v4.clone();
    let nodes_v4 = given.unwrap_or_else(|| parse(preset.map_or(&[], |preset| preset.bootnodes)));
    let given = config.discovery.bootnodes_v5.clone();
    let nodes_v5 = given.unwrap_or_else(|| parse(preset.map_or(&[], |preset| preset.bootnodes_v5)));
    let named = named(&nodes_v4, Source::V4).chain(named(&nodes_v5, Source::V5)).collect::<Vec<_>>();
    let setup = discovery::Setup {
        port: udp,
        v4: config.discovery.v4,
        v5: config.discovery.v5,
        key: key.clone(),
        local,
        bootnodes_v4: nodes_v4.iter().filter_map(contact_of).collect(),
        bootnodes_v5: nodes_v5.iter().filter_map(contact_of).collect(),
        restrict: config.peers.netrestrict.clone(),
        rate: config.discovery.rate,
        db: db.clone(),
        demand: wanted,
        candidates: candidates_sender,
        observer: Box::new(tables),
        mapped,
        rng: fork(),
    };
    let (task, discovery) = discovery::prepare(clock::now(), setup);
    let (stop_driver, stopped) = oneshot::channel();
    let driver = Owned(tokio::spawn(discovery::run(task, stopped)));
    let names =
        (discovers && !named.is_empty()).then(|| Owned(tokio::spawn(add_named(named, discovery.clone()))));
    let database = db.clone();
    let tasks = FindingTasks {
        driver,
        stop_driver,
        gateway,
        stop_gateway,
        _dns: dns,
        _names: names,
        _peers: peers,
        db,
    };
    Ok(Finding { discovery, demand, candidates, database, trees, tasks })
}

/// The node database is a convenience: without it we begin at the bootnodes.
fn open_db(data_dir: &Path, rng: StdRng) -> Option<NodeDb> {
    match NodeDb::start(data_dir.join("nodes.redb"), node_db::Limits::default(), rng) {
        Ok(db) => Some(db),
        Err(error) => {
            tracing::warn!(%error, "running without a node database");
            None
        }
    }
}

/// The bootnodes of a list whose address is a host name, for one protocol.
fn named(nodes: &[NodeRef], protocol: Source) -> impl Iterator<Item = (Enode, Source)> {
    nodes.iter().filter_map(move |node| match node {
        NodeRef::Enode(enode) if enode.endpoint().is_none() => Some((enode.clone(), protocol)),
        _ => None,
    })
}

/// Looks up the host names of bootnodes and adds what it finds. A name that has no address yet is asked for again: in
/// a cluster it may appear minutes after us.
async fn add_named(mut named: Vec<(Enode, Source)>, discovery: Discovery) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut left = Vec::new();
        for (enode, protocol) in named {
            let Host::Name(name) = &enode.host else { continue };
            let found = dialer::lookup(name).await;
            // One address a node; IPv4 of two, as with records.
            let chosen = |all: &[IpAddr]| all.iter().find(|ip| ip.is_ipv4()).or(all.first()).copied();
            match found.as_deref().map(chosen) {
                Ok(Some(ip)) => {
                    let found = Enode { host: Host::Ip(ip), ..enode };
                    if let Some(contact) = Contact::from_enode(&found)
                        && let Err(error) = discovery.add_bootnode(contact, Some(protocol)).await
                    {
                        tracing::warn!(%error, enode = %found, "a bootnode is not used");
                    }
                    continue;
                }
                Ok(None) => tracing::warn!(%enode, "the host name of a bootnode has no address"),
                Err(error) => tracing::warn!(%enode, %error, "the host name of a bootnode has no address"),
            }
            left.push((enode, protocol));
        }
        if left.is_empty() {
            return;
        }
        named = left;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Presets are checked by a test of theirs.
fn parse<T: std::str::FromStr>(texts: &[&str]) -> Vec<T> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn links(config: &Config, preset: Option<&Preset>) -> Vec<Link> {
    match &config.discovery.dns_trees {
        Some(urls) => urls.iter().filter_map(|url| url.parse().ok()).collect(),
        None => preset.and_then(|preset| preset.dns_tree.parse().ok()).into_iter().collect(),
    }
}

/// Offers the peers of earlier runs, once, as the dialer has room for them. They come before what is searched for, because
/// a search takes seconds; the dialer still leaves half of the slots to other sources.
async fn feed_from_database(
    db: NodeDb,
    mut demand: watch::Receiver<usize>,
    candidates: mpsc::Sender<Candidate>,
) {
    if demand.wait_for(|wanted| *wanted > 0).await.is_err() {
        return;
    }
    for StoredPeer { public_key, addr, record, served, .. } in db.peers(PEERS).await {
        if demand.wait_for(|wanted| *wanted > 0).await.is_err() {
            return;
        }
        let candidate = Candidate { public_key, addr, record, source: Source::Database, served };
        if candidates.send(candidate).await.is_err() {
            return;
        }
    }
}

/// Reads trees while the dialer has room for candidates.
async fn feed_from_dns(
    links: Vec<Link>,
    resolver: Resolver,
    mut demand: watch::Receiver<usize>,
    candidates: mpsc::Sender<Candidate>,
    counters: watch::Sender<dnsdisc::Counters>,
    rng: StdRng,
) {
    // Nothing is asked before the first free slot.
    if demand.wait_for(|wanted| *wanted > 0).await.is_err() {
        return;
    }
    let client = dnsdisc::Client::new(clock::now(), dnsdisc::Config { allow_private: false }, &links, rng);
    let (nodes, mut found) = mpsc::channel::<DnsNode>(DNS_NODES);
    let reading = dns_discovery::run(client, resolver, nodes, counters);
    let feeding = async {
        loop {
            if demand.wait_for(|wanted| *wanted > 0).await.is_err() {
                return;
            }
            let Some(DnsNode { record, .. }) = found.recv().await else { return };
            let Some(addr) = record.tcp_addr() else { continue };
            let candidate = Candidate {
                public_key: record.public_key(),
                addr,
                record: Some(record),
                source: Source::Dns,
                served: Duration::ZERO,
            };
            if candidates.send(candidate).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = feeding => {}
    }
}
