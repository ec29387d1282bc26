//! NodeService: who this sidecar is, and how it goes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use super::{
    access::{Caller, Role},
    caller, convert,
    proto::{self, ErrorReason, node_service_server::NodeService},
    status::Refusal,
};
use crate::{
    net::clock,
    net::discovery::{Counters, Discovery, DiscoveryError, contact_of},
    net::switch::Handle,
    node::{
        Enode, PublicKey, Record,
        local::{EntryError, EntryOwner},
    },
    policy::fork_following::Followed,
    switch::{peers::PeersSummary, registrations::Acting},
};

/// What this version can do beyond the first one, by name: clients may ask for it before they rely on it.
const FEATURES: &[&str] = &[
    "leases",
    "credit",
    "greeting",
    "send-results",
    "trusted-peers",
    "bans",
    "connect-peer",
    "watches",
    "record-entries",
    "dial-filters",
    "update-registration",
    "set-greeting",
    "broadcast",
    "peer-settings",
    "rehello",
    "unix-socket",
    "access",
    "tls",
    "drain",
    "log-filter",
    "follow-forks",
    "announce-fork",
];

/// What this version knows of the network that it was started for.
#[derive(Clone, Debug)]
pub struct NetworkFacts {
    /// The network's name.
    pub name: String,
    /// The release that the facts were taken from.
    pub release: &'static str,
    /// When that was published, as Unix time.
    pub released: Duration,
    /// The forks by time: name and Unix seconds.
    pub forks: Vec<(&'static str, u64)>,
}

impl NetworkFacts {
    fn view(&self, unix: Duration) -> proto::NetworkPreset {
        let days = unix.saturating_sub(self.released).as_secs() / 86_400;
        let fork = |(name, time): &(&str, u64)| proto::NetworkFork { name: (*name).to_owned(), time: *time };
        proto::NetworkPreset {
            name: self.name.clone(),
            release: self.release.to_owned(),
            release_time: Some(convert::timestamp(self.released)),
            age_days: u32::try_from(days).unwrap_or(u32::MAX),
            forks: self.forks.iter().map(fork).collect(),
        }
    }
}

fn followed(fork: &Followed) -> proto::FollowedFork {
    proto::FollowedFork {
        hash: HEXLOWER.encode(&fork.hash),
        previous_hash: HEXLOWER.encode(&fork.before),
        time: fork.time,
        followed_since: Some(convert::timestamp(fork.since)),
    }
}

/// What is fixed for this run of the sidecar.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// Our key.
    pub public_key: PublicKey,
    /// Where peers are accepted.
    pub listen_addrs: Vec<SocketAddr>,
    /// This run.
    pub instance_id: Arc<str>,
    /// Our name in Hello.
    pub client_name: String,
    /// Wall time of the start.
    pub start_time: Duration,
    /// What is allowed and yet most likely not meant.
    pub warnings: Vec<String>,
    /// The network that we were started for, if it is a public one.
    pub network: Option<NetworkFacts>,
}

/// Changes the log filter, and answers the one before, or what is wrong with the new one.
pub type SetLogFilter = Box<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// What the process lets callers do to it.
pub struct Controls {
    /// Told when the process shall stop.
    pub stop: Arc<Notify>,
    /// How long stopping may take.
    pub grace: Duration,
    /// Changes which events are logged, and answers what was logged before, or what is wrong.
    pub log_filter: SetLogFilter,
}

impl std::fmt::Debug for Controls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Controls")
    }
}

/// The service.
#[derive(Debug)]
pub struct Node {
    facts: NodeFacts,
    controls: Controls,
    discovery: Discovery,
    handle: Handle,
}

impl Node {
    /// The service over discovery, which has our record, and a switch.
    #[must_use]
    pub fn new(facts: NodeFacts, controls: Controls, discovery: Discovery, handle: Handle) -> Self {
        Self { facts, controls, discovery, handle }
    }

    /// Whose entries a call sets: the operator's, unless it acts for a registration.
    async fn owner(&self, caller: &Caller, acting: Option<&Acting>) -> Result<EntryOwner, Refusal> {
        match acting {
            None if caller.role < Role::Admin => Err(Refusal::forbidden(format!(
                "without a registration this sets entries of the operator, which needs the role admin, and {} has \
                 the role {}; give resume_token or client_id",
                caller.name, caller.role
            ))),
            None => Ok(EntryOwner::Operator),
            Some(acting) => Ok(self.handle.entry_owner(caller.clone().into(), acting.clone()).await?),
        }
    }

    /// Why an entry was not changed; an owner by its client id.
    async fn entry_refusal(&self, error: DiscoveryError) -> Refusal {
        let DiscoveryError::Entry(EntryError::Owned { key, owner }) = &error else {
            return super::discovery::refuse(error);
        };
        let owner = match owner {
            EntryOwner::Operator => "the operator".to_owned(),
            owner => {
                self.handle.entry_client(*owner).await.map(|client| client.to_string()).unwrap_or_default()
            }
        };
        let message = format!("the record entry {key:?} belongs to {owner}; it must delete it first");
        Refusal::new(ErrorReason::RecordKeyOwned, message).with("key", key).with("owner", owner)
    }
}

/// What concerns the process as a whole is not for everybody who can open a TCP connection.
fn proven(caller: &Caller) -> Result<(), Refusal> {
    if caller.proven {
        return Ok(());
    }
    Err(Refusal::forbidden(
        "over open TCP anybody could ask for this; call it over the Unix socket (--grpc-socket) or with a token \
         (--grpc-access)",
    ))
}

/// The URL that our record says: where others reach us, as far as is known.
#[must_use]
pub fn enode_of(record: &Record) -> Option<Enode> {
    let endpoint = record.endpoint()?;
    let addr = SocketAddr::new(endpoint.ip, endpoint.tcp);
    // Without discovery there is no UDP port, and the URL's default says nothing wrong that anybody could use.
    let udp = if endpoint.udp == 0 { endpoint.tcp } else { endpoint.udp };
    Some(Enode { udp, ..Enode::at(record.public_key(), addr) })
}

fn summary(summary: &PeersSummary) -> proto::PeerSummary {
    let int = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let counts = &summary.recent;
    proto::PeerSummary {
        connected: int(summary.connected),
        dialed_slots: int(summary.slots.dialed),
        dialed_used: int(summary.dialed),
        inbound_slots: int(summary.slots.inbound),
        inbound_used: int(summary.inbound),
        candidates_seen: counts.seen,
        not_dialed: counts.not_dialed.iter().map(|(why, count)| (why.name().to_owned(), *count)).collect(),
        dialed: counts.dialed,
        failed: counts.failed.iter().map(|(cause, count)| (cause.name().to_owned(), *count)).collect(),
        succeeded: counts.connected,
        not_let_in: counts.not_let_in.iter().map(|(why, count)| (why.name().to_owned(), *count)).collect(),
        let_in: counts.let_in,
        reached_from_outside: summary.reached_from_outside,
    }
}

fn discovery_summary(counters: Counters) -> proto::DiscoverySummary {
    let Counters { v4, v5, noise, unroutable, over_rate, sockets, .. } = counters;
    proto::DiscoverySummary {
        discv4_received: v4,
        discv5_received: v5,
        noise,
        oversize: sockets.oversize,
        sent: sockets.sent,
        unsent: sockets.unsent,
        unroutable,
        over_rate,
    }
}

#[tonic::async_trait]
impl NodeService for Node {
    async fn get_node_info(
        &self,
        _request: Request<proto::GetNodeInfoRequest>,
    ) -> Result<Response<proto::GetNodeInfoResponse>, Status> {
        let peers = self.handle.summary().await.map_err(Refusal::from)?;
        let counters = self.discovery.counters().await.map_err(super::discovery::refuse)?;
        let facts = &self.facts;
        let record = self.discovery.record().borrow().clone();
        Ok(Response::new(proto::GetNodeInfoResponse {
            enode: enode_of(&record).map(|enode| enode.to_string()).unwrap_or_default(),
            enr: record.to_string(),
            node_id: facts.public_key.id().to_string(),
            public_key: facts.public_key.to_string(),
            listen_addresses: facts.listen_addrs.iter().map(ToString::to_string).collect(),
            instance_id: facts.instance_id.to_string(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            client_name: facts.client_name.clone(),
            start_time: Some(convert::timestamp(facts.start_time)),
            warnings: facts
                .warnings
                .iter()
                .cloned()
                .chain(peers.warnings.iter().map(ToString::to_string))
                .chain(peers.one_source.map(|it| it.to_string()))
                .collect(),
            features: FEATURES.iter().map(|feature| (*feature).to_owned()).collect(),
            peers: Some(summary(&peers)),
            discovery: Some(discovery_summary(counters)),
            network: facts.network.as_ref().map(|network| network.view(clock::now().unix)),
            followed_forks: peers.followed_forks.iter().map(followed).collect(),
        }))
    }

    async fn set_record_entry(
        &self,
        request: Request<proto::SetRecordEntryRequest>,
    ) -> Result<Response<proto::SetRecordEntryResponse>, Status> {
        use proto::set_record_entry_request::Registration as By;
        let caller = caller(&request);
        let proto::SetRecordEntryRequest { key, value, registration } = request.into_inner();
        let acting = registration.map(|by| match by {
            By::ResumeToken(text) => Acting::Token(text),
            By::ClientId(id) => Acting::Client(id.into()),
        });
        let owner = self.owner(&caller, acting.as_ref()).await?;
        let set = self.discovery.set_entry(owner, key, value.to_vec()).await;
        let record = match set {
            Ok(record) => record,
            Err(error) => return Err(self.entry_refusal(error).await.into()),
        };
        // A lease that ended meanwhile has released its entries before this one was set.
        if let Err(ended) = self.owner(&caller, acting.as_ref()).await {
            self.discovery.release_entries(owner).await.map_err(super::discovery::refuse)?;
            return Err(ended.into());
        }
        Ok(Response::new(proto::SetRecordEntryResponse { enr: record.to_string() }))
    }

    async fn delete_record_entry(
        &self,
        request: Request<proto::DeleteRecordEntryRequest>,
    ) -> Result<Response<proto::DeleteRecordEntryResponse>, Status> {
        use proto::delete_record_entry_request::Registration as By;
        let caller = caller(&request);
        let proto::DeleteRecordEntryRequest { key, registration } = request.into_inner();
        let acting = registration.map(|by| match by {
            By::ResumeToken(text) => Acting::Token(text),
            By::ClientId(id) => Acting::Client(id.into()),
        });
        let owner = self.owner(&caller, acting.as_ref()).await?;
        match self.discovery.delete_entry(owner, key).await {
            Ok(record) => Ok(Response::new(proto::DeleteRecordEntryResponse { enr: record.to_string() })),
            Err(error) => Err(self.entry_refusal(error).await.into()),
        }
    }

    async fn drain(
        &self,
        request: Request<proto::DrainRequest>,
    ) -> Result<Response<proto::DrainResponse>, Status> {
        proven(&caller(&request))?;
        tracing::info!("told to stop by a call");
        self.controls.stop.notify_one();
        let end = clock::now().unix.saturating_add(self.controls.grace);
        Ok(Response::new(proto::DrainResponse { end_time: Some(convert::timestamp(end)) }))
    }

    async fn set_log_filter(
        &self,
        request: Request<proto::SetLogFilterRequest>,
    ) -> Result<Response<proto::SetLogFilterResponse>, Status> {
        proven(&caller(&request))?;
        let filter = request.into_inner().filter;
        if filter.is_empty() {
            return Err(
                Refusal::field("filter", "is missing; info, debug, or info,devp2pd::net=debug").into()
            );
        }
        let changed = (self.controls.log_filter)(&filter);
        let previous = changed.map_err(|problem| Refusal::field("filter", problem))?;
        tracing::info!(%filter, %previous, "the log filter was changed by a call");
        Ok(Response::new(proto::SetLogFilterResponse { previous }))
    }

    async fn add_bootnode(
        &self,
        request: Request<proto::AddBootnodeRequest>,
    ) -> Result<Response<proto::AddBootnodeResponse>, Status> {
        let node = super::node_ref("node", &request.get_ref().node)?;
        let contact = contact_of(&node).ok_or_else(|| {
            Refusal::field("node", "must be an enode:// with an IP address, or an enr: with one")
        })?;
        self.discovery.add_bootnode(contact, None).await.map_err(super::discovery::refuse)?;
        Ok(Response::new(proto::AddBootnodeResponse {}))
    }
}
