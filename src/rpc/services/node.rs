//! NodeService: facts and counters of this sidecar, its record, and calls that concern the whole process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use super::caller::caller;
use crate::{
    budget::{Budget, Budgets},
    net::clock,
    net::discovery::{Discovery, DiscoveryError, contact_of},
    net::switch::Handle,
    node::{
        Enode, PublicKey, Record,
        local::{EntryError, EntryOwner},
    },
    rpc::{
        access::{Caller, Role},
        proto::{self, node_service_server::NodeService},
        translate::{
            errors,
            node::{discovery_summary, followed, summary},
            status::ErrorStatus,
            value::{node_ref, timestamp},
        },
    },
    switch::{Engine, registrations::Acting},
};

/// The names of features that came after the first version. A client checks this list before it uses one of them.
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

/// The facts about the network that the sidecar was started for. They are part of this version, so they can be out of
/// date.
#[derive(Clone, Debug)]
pub struct NetworkFacts {
    /// The network's name.
    pub name: String,
    /// The release of go-ethereum that the facts were taken from.
    pub release: &'static str,
    /// When that release was published, as time since the Unix epoch.
    pub released: Duration,
    /// The forks, in order of time: name and Unix seconds.
    pub forks: Vec<(&'static str, u64)>,
}

/// Translates the facts of the network. `unix` is the current wall time.
fn network(facts: &NetworkFacts, unix: Duration) -> proto::NetworkPreset {
    let days = unix.saturating_sub(facts.released).as_secs() / 86_400;
    let fork = |(name, time): &(&str, u64)| proto::NetworkFork { name: (*name).to_owned(), time: *time };
    proto::NetworkPreset {
        name: facts.name.clone(),
        release: facts.release.to_owned(),
        release_time: Some(timestamp(facts.released)),
        age_days: u32::try_from(days).unwrap_or(u32::MAX),
        forks: facts.forks.iter().map(fork).collect(),
    }
}

/// The facts that do not change during a run of the sidecar.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// Our public key.
    pub public_key: PublicKey,
    /// The addresses on which peers are accepted.
    pub listen_addrs: Vec<SocketAddr>,
    /// A random name of this run. It changes with each start.
    pub instance_id: Arc<str>,
    /// Our name in Hello.
    pub client_name: String,
    /// The wall time of the start.
    pub start_time: Duration,
    /// One sentence for each setting that is valid but probably a mistake.
    pub warnings: Vec<String>,
    /// The bounds on memory.
    pub budgets: Budgets,
    /// The network that we were started for, if it is a public one.
    pub network: Option<NetworkFacts>,
}

/// Changes the log filter. Returns the previous filter, or what is wrong with the new one.
pub type SetLogFilter = Box<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// The controls of the process that calls use.
pub struct Controls {
    /// Notified when a caller asks the process to stop.
    pub stop: Arc<Notify>,
    /// The longest time that the stop may take.
    pub grace: Duration,
    /// Changes which events are logged.
    pub log_filter: SetLogFilter,
}

impl std::fmt::Debug for Controls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Controls")
    }
}

/// The service.
#[derive(Debug)]
pub(super) struct Node {
    facts: NodeFacts,
    controls: Controls,
    discovery: Discovery,
    handle: Handle,
}

impl Node {
    /// Returns the service for discovery, which has our record, and for a switch.
    pub(super) fn new(facts: NodeFacts, controls: Controls, discovery: Discovery, handle: Handle) -> Self {
        Self { facts, controls, discovery, handle }
    }

    /// Returns the owner whose record entries a call changes: the registration that it acts for, or else the operator.
    async fn owner(&self, caller: &Caller, acting: Option<&Acting>) -> Result<EntryOwner, ErrorStatus> {
        match acting {
            None if caller.role < Role::Admin => Err(ErrorStatus::forbidden(format!(
                "without a registration this call changes entries of the operator, which needs the role admin; {} \
                 has the role {}. To change entries of a registration, set resume_token or client_id",
                caller.name, caller.role
            ))),
            None => Ok(EntryOwner::Operator),
            Some(acting) => {
                let (principal, acting) = (caller.clone().into(), acting.clone());
                let call = move |switch: &mut Engine, now| {
                    switch.registrations().entry_owner(now, &principal, &acting)
                };
                Ok(self.handle.call(call).await?)
            }
        }
    }

    /// Translates why an entry was not changed. The refusal names the owner by its client id, which the switch knows.
    async fn entry_refusal(&self, error: DiscoveryError) -> ErrorStatus {
        let DiscoveryError::Entry(EntryError::Owned { key, owner }) = &error else {
            return error.into();
        };
        let owner = match owner {
            EntryOwner::Operator => "the operator".to_owned(),
            owner => {
                let owner = *owner;
                let client =
                    self.handle.run(move |switch, _| switch.registrations().entry_client(owner)).await;
                client.ok().flatten().map(|client| client.to_string()).unwrap_or_default()
            }
        };
        errors::record_key_owned(key, &owner)
    }
}

/// Refuses a caller that has not proven its name: a call that concerns the whole process needs that.
fn proven(caller: &Caller) -> Result<(), ErrorStatus> {
    if caller.proven {
        return Ok(());
    }
    Err(ErrorStatus::forbidden(
        "this call concerns the whole process, and over TCP without credentials any client could make it; call over \
         the Unix socket (--grpc-socket) or with a token (--grpc-access)",
    ))
}

/// Returns the enode URL of our record, if the record has an endpoint.
#[must_use]
pub fn enode_of(record: &Record) -> Option<Enode> {
    let endpoint = record.endpoint()?;
    let addr = SocketAddr::new(endpoint.ip, endpoint.tcp);
    // Without discovery the record has no UDP port. The URL then has the TCP port, which is the default of an enode
    // URL. That does no harm, as no discovery listens there.
    let udp = if endpoint.udp == 0 { endpoint.tcp } else { endpoint.udp };
    Some(Enode { udp, ..Enode::at(record.public_key(), addr) })
}

fn memory(budget: &Arc<Budget>) -> proto::MemoryBudget {
    proto::MemoryBudget {
        name: budget.resource().name().to_owned(),
        limit_bytes: budget.limit(),
        used_bytes: budget.used(),
    }
}

#[tonic::async_trait]
impl NodeService for Node {
    async fn get_node_info(
        &self,
        _request: Request<proto::GetNodeInfoRequest>,
    ) -> Result<Response<proto::GetNodeInfoResponse>, Status> {
        let peers = self.handle.run(|switch, now| switch.peers().summary(now)).await?;
        let counters = self.discovery.counters().await.map_err(ErrorStatus::from)?;
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
            start_time: Some(timestamp(facts.start_time)),
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
            network: facts.network.as_ref().map(|facts| network(facts, clock::now().unix)),
            followed_forks: peers.followed_forks.iter().map(followed).collect(),
            memory: facts.budgets.all().map(memory).collect(),
        }))
    }

    async fn set_record_entry(
        &self,
        request: Request<proto::SetRecordEntryRequest>,
    ) -> Result<Response<proto::SetRecordEntryResponse>, Status> {
        let caller = caller(&request);
        let proto::SetRecordEntryRequest { key, value, registration } = request.into_inner();
        let acting = registration.map(Acting::from);
        let owner = self.owner(&caller, acting.as_ref()).await?;
        let set = self.discovery.set_entry(owner, key, value.to_vec()).await;
        let record = match set {
            Ok(record) => record,
            Err(error) => return Err(self.entry_refusal(error).await.into()),
        };
        // The lease may have ended after the first check. Its entries were released then, before this entry was set, so
        // this entry would stay without an owner. So the owner is checked again, and the entry is released if it ended.
        if let Err(ended) = self.owner(&caller, acting.as_ref()).await {
            self.discovery.release_entries(owner).await.map_err(ErrorStatus::from)?;
            return Err(ended.into());
        }
        Ok(Response::new(proto::SetRecordEntryResponse { enr: record.to_string() }))
    }

    async fn delete_record_entry(
        &self,
        request: Request<proto::DeleteRecordEntryRequest>,
    ) -> Result<Response<proto::DeleteRecordEntryResponse>, Status> {
        let caller = caller(&request);
        let proto::DeleteRecordEntryRequest { key, registration } = request.into_inner();
        let acting = registration.map(Acting::from);
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
        tracing::info!("the sidecar stops, because a caller asked for it (Drain)");
        self.controls.stop.notify_one();
        let end = clock::now().unix.saturating_add(self.controls.grace);
        Ok(Response::new(proto::DrainResponse { end_time: Some(timestamp(end)) }))
    }

    async fn set_log_filter(
        &self,
        request: Request<proto::SetLogFilterRequest>,
    ) -> Result<Response<proto::SetLogFilterResponse>, Status> {
        proven(&caller(&request))?;
        let filter = request.into_inner().filter;
        if filter.is_empty() {
            return Err(ErrorStatus::field(
                "filter",
                "is missing; write for example info or info,devp2pd::net=debug",
            )
            .into());
        }
        let changed = (self.controls.log_filter)(&filter);
        let previous = changed.map_err(|problem| ErrorStatus::field("filter", problem))?;
        tracing::info!(%filter, %previous, "a call changed the log filter");
        Ok(Response::new(proto::SetLogFilterResponse { previous }))
    }

    async fn add_bootnode(
        &self,
        request: Request<proto::AddBootnodeRequest>,
    ) -> Result<Response<proto::AddBootnodeResponse>, Status> {
        let node = node_ref("node", &request.get_ref().node)?;
        let contact = contact_of(&node).ok_or_else(|| {
            ErrorStatus::field(
                "node",
                "must be an enode:// with an IP address, or an enr: with an IP address",
            )
        })?;
        self.discovery.add_bootnode(contact, None).await.map_err(ErrorStatus::from)?;
        Ok(Response::new(proto::AddBootnodeResponse {}))
    }
}
