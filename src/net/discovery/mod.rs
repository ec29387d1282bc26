//! The driver of discovery: one task owns the UDP sockets, both engines and our record.
//!
//! A datagram is classified before anything expensive: unmasked with our id it shows discv5's magic or not. The rest is
//! discv4's, whose engine checks size, type and rations before it hashes, or noise. Both engines answer through the
//! same sockets, share the votes on our endpoint, and publish the same record.
//!
//! The engines search for candidates only while the dialer has free slots ([`Setup::demand`]). The task reads the node
//! database when an engine wants seeds.
//!
//! Other parts of the sidecar hold a [`Discovery`]: it sends each call to the task, which returns the result, as with
//! the switch.

mod pace;
mod queries;
mod task;

#[cfg(test)]
mod tests;

use std::{fmt, net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use bytes::Bytes;
use ipnet::IpNet;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    node_db::{self, NodeDb},
    udp::{UdpCounters, UdpPort},
};
use crate::{
    Now, discv4,
    discv5::{self, TalkError, TalkToken},
    kademlia::{CallError, Contact, Entry, Ponged, Protocol, Removal, Target},
    node::{
        ForkSchedule, Head, NodeId, NodeKey, PublicKey, Record,
        local::{EntryError, EntryOwner, LocalRecord, Mapped},
    },
    policy::dial::{Candidate, Source},
};
use queries::{Command, State};

pub use task::run;

/// The most calls in the queue of the task; further callers wait for room in it.
const COMMANDS: usize = 256;

/// Nodes of one lookup that may wait for the caller; a search finds some hundred.
const LOOKUP_NODES: usize = 1024;

/// How often [`Discovery::locate`] tries while the most lookups run already, and the pause between two tries. A lookup
/// takes a second or two, so one of them ends within this time.
const LOCATE_TRIES: usize = 30;
const LOCATE_PAUSE: Duration = Duration::from_secs(1);

/// Questions that may wait for an application that serves a TALKREQ protocol. Beyond that, the asker gets an empty
/// answer.
const QUESTIONS: usize = 256;

/// The arguments of discovery.
pub struct Setup {
    /// The sockets; `None` if neither protocol runs.
    pub port: Option<UdpPort>,
    /// Whether discv4 runs.
    pub v4: bool,
    /// Whether discv5 runs.
    pub v5: bool,
    /// Our key.
    pub key: NodeKey,
    /// Our record.
    pub local: LocalRecord,
    /// The nodes at which discv4 starts.
    pub bootnodes_v4: Vec<Contact>,
    /// The nodes at which discv5 starts.
    pub bootnodes_v5: Vec<Contact>,
    /// The only networks to which we send and from which we receive; empty means all.
    pub restrict: Vec<IpNet>,
    /// The most packets sent per second; `None` means no limit.
    pub rate: Option<NonZeroU32>,
    /// The node database, if there is one.
    pub db: Option<NodeDb>,
    /// How many candidates the dialer has room for.
    pub demand: watch::Receiver<usize>,
    /// The channel to the dialer.
    pub candidates: mpsc::Sender<Candidate>,
    /// The receivers of changes in the tables.
    pub observer: Box<dyn TableObserver>,
    /// A gateway's report of our address.
    pub mapped: watch::Receiver<Mapped>,
    /// The source of randomness of the engines.
    pub rng: StdRng,
}

/// A node of a table, with the engine's facts about it.
#[derive(Clone, Debug)]
pub struct TableNode {
    /// The protocol of the table.
    pub table: Protocol,
    /// The index of the bucket: 0 is the nearest.
    pub bucket: usize,
    /// The table's entry.
    pub entry: Entry,
}

/// Receives the changes of the nodes in use. Discovery's task calls it, so its functions must not wait.
pub trait TableObserver: Send {
    /// A node came into use, or the facts about it changed.
    fn there(&self, node: TableNode);

    /// A node is no longer in use, from this wall time on (since the Unix epoch).
    fn gone(&self, table: Protocol, id: NodeId, why: Removal, time: Duration);
}

/// The reason why discovery refuses a call, or why a call fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// The process is ending.
    #[error("the sidecar is stopping")]
    Stopped,
    /// The protocol that would be needed does not run.
    #[error("{0} does not run; start the sidecar without --nodiscover and --{0}=false")]
    Off(Protocol),
    /// Neither protocol runs.
    #[error("discovery does not run; start the sidecar without --nodiscover")]
    NoDiscovery,
    /// The node was not found.
    #[error("the node is not found: no table has it and a search did not meet it; give its enode:// or enr:")]
    NotFound,
    /// A request could not be made, or was not answered.
    #[error(transparent)]
    Call(#[from] CallError),
    /// An answer to a TALKREQ could not be sent.
    #[error(transparent)]
    Talk(#[from] TalkError),
    /// A record entry was refused.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// Another application serves the protocol.
    #[error("the TALKREQ protocol {0:?} is served by another application; end its ServeTalk stream first")]
    TalkOwned(String),
}

/// A TALKREQ of another node, for the application that serves its protocol.
#[derive(Debug)]
pub struct TalkQuestion {
    /// The token that the answer must name.
    pub token: TalkToken,
    /// The node that asks; its discv5 session proves the id.
    pub node: NodeId,
    /// The UDP address of the node.
    pub addr: SocketAddr,
    /// The question.
    pub request: Bytes,
    /// The TALKREQs before this one that found the queue full; they got empty responses.
    pub lost_before: u64,
}

/// Counters of the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams for discv4.
    pub v4: u64,
    /// Datagrams for discv5.
    pub v5: u64,
    /// Datagrams of neither protocol.
    pub noise: u64,
    /// Packets not sent because their address cannot be reached from our announced address.
    pub unroutable: u64,
    /// Packets not sent because the rate was used up.
    pub over_rate: u64,
    /// Candidates that found no room.
    pub candidates_dropped: u64,
    /// The counters of the sockets.
    pub sockets: UdpCounters,
}

/// The counters of the parts of discovery; empty for a part that does not run.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// discv4.
    pub v4: Option<discv4::Counters>,
    /// discv5.
    pub v5: Option<discv5::Counters>,
    /// The node database.
    pub database: Option<node_db::Counters>,
}

/// A handle to discovery. Cheap to clone.
#[derive(Clone)]
pub struct Discovery {
    commands: mpsc::Sender<Command>,
    record: watch::Receiver<Record>,
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Discovery({:?})", *self.record.borrow())
    }
}

/// Returns the task, which is to be run, and the handle to it.
#[must_use]
pub fn prepare(now: Now, setup: Setup) -> (task::Task, Discovery) {
    let (commands, queue) = mpsc::channel(COMMANDS);
    let (record, record_reader) = watch::channel(setup.local.record().clone());
    let handle = Discovery { commands, record: record_reader };
    (task::Task::new(now, setup, queue, record), handle)
}

impl Discovery {
    async fn call<R: Send + 'static>(
        &self,
        run: impl FnOnce(&mut State, Now) -> R + Send + 'static,
    ) -> Result<R, DiscoveryError> {
        let (reply, answer) = oneshot::channel();
        let command: Command = Box::new(move |state, now| {
            // The caller may have given up.
            let _ = reply.send(run(state, now));
        });
        self.commands.send(command).await.map_err(|_| DiscoveryError::Stopped)?;
        answer.await.map_err(|_| DiscoveryError::Stopped)
    }

    /// Our current record, and its changes.
    #[must_use]
    pub fn record(&self) -> watch::Receiver<Record> {
        self.record.clone()
    }

    /// All nodes of both tables.
    pub async fn nodes(&self) -> Result<Vec<TableNode>, DiscoveryError> {
        self.call(|state, _| state.nodes()).await
    }

    /// The counters.
    pub async fn counters(&self) -> Result<Counters, DiscoveryError> {
        self.call(|state, _| state.counters).await
    }

    /// The counters of its parts.
    pub async fn details(&self) -> Result<Details, DiscoveryError> {
        self.call(|state, _| state.details()).await
    }

    /// Resolves the node to its newest address, over both protocols.
    pub async fn resolve(&self, id: NodeId, key: Option<PublicKey>) -> Result<Contact, DiscoveryError> {
        let target = key.map_or_else(|| id.into(), Target::from);
        let answer = self.call(move |state, now| state.resolve(now, target)).await??;
        answer.await.map_err(|_| DiscoveryError::Stopped)?.ok_or(DiscoveryError::NotFound)
    }

    /// Resolves the node for a dial. While too many lookups run, it waits and tries again; `None` if that fails too.
    pub async fn locate(&self, id: NodeId, key: Option<PublicKey>) -> Option<Contact> {
        for _ in 0..LOCATE_TRIES {
            match self.resolve(id, key).await {
                Err(DiscoveryError::Call(error)) if error.is_busy() => tokio::time::sleep(LOCATE_PAUSE).await,
                outcome => return outcome.ok(),
            }
        }
        None
    }

    /// Pings a node over `over`, or over a protocol that runs.
    pub async fn ping(&self, node: Contact, over: Option<Protocol>) -> Result<Ponged, DiscoveryError> {
        let answer = self.call(move |state, now| state.ping(now, node, over)).await??;
        Ok(answer.await.map_err(|_| DiscoveryError::Stopped)??)
    }

    /// Starts one lookup of the nodes closest to `target`, and returns the channel of the nodes as they are found.
    pub async fn lookup(
        &self,
        target: Target,
        over: Option<Protocol>,
    ) -> Result<mpsc::Receiver<Contact>, DiscoveryError> {
        self.call(move |state, now| state.lookup(now, target, over)).await?
    }

    /// Sets an entry of our record to an RLP value.
    pub async fn set_entry(
        &self,
        owner: EntryOwner,
        key: String,
        value: Vec<u8>,
    ) -> Result<Record, DiscoveryError> {
        self.call(move |state, _| state.set_entry(owner, &key, &value)).await?
    }

    /// Deletes an entry of our record.
    pub async fn delete_entry(&self, owner: EntryOwner, key: String) -> Result<Record, DiscoveryError> {
        self.call(move |state, _| state.delete_entry(owner, &key)).await?
    }

    /// Keeps an `eth` entry in our record that follows the chain of a schedule, or stops doing so.
    pub async fn announce(
        &self,
        owner: EntryOwner,
        chain: Option<(Arc<ForkSchedule>, Head)>,
    ) -> Result<(), DiscoveryError> {
        self.call(move |state, now| state.announce(now, owner, chain)).await?
    }

    /// Deletes all entries of an owner whose lease ended.
    pub async fn release_entries(&self, owner: EntryOwner) -> Result<(), DiscoveryError> {
        self.call(move |state, _| state.release_entries(owner)).await
    }

    /// Adds a node that is asked at every refresh, to one protocol or to both.
    pub async fn add_bootnode(&self, node: Contact, over: Option<Protocol>) -> Result<(), DiscoveryError> {
        self.call(move |state, now| state.add_bootnode(now, &node, over)).await?
    }

    /// Sends a TALKREQ to an application at another node, and returns its response.
    pub async fn talk(
        &self,
        node: Contact,
        protocol: Bytes,
        request: Bytes,
    ) -> Result<Bytes, DiscoveryError> {
        let answer = self.call(move |state, now| state.talk(now, &node, &protocol, &request)).await??;
        Ok(answer.await.map_err(|_| DiscoveryError::Stopped)??)
    }

    /// Serves a TALKREQ protocol until the receiver is dropped.
    pub async fn serve_talk(&self, protocol: Bytes) -> Result<mpsc::Receiver<TalkQuestion>, DiscoveryError> {
        self.call(move |state, _| state.serve_talk(protocol)).await?
    }

    /// Answers a TALKREQ of another node.
    pub async fn answer_talk(&self, token: TalkToken, response: Bytes) -> Result<(), DiscoveryError> {
        self.call(move |state, now| state.answer_talk(now, token, &response)).await?
    }
}

/// The node of an enode URL or a record, with the address of its endpoint; `None` for a node id or a public key.
#[must_use]
pub fn contact_of(node: &crate::node::NodeRef) -> Option<Contact> {
    match node {
        crate::node::NodeRef::Enode(enode) => Contact::from_enode(enode),
        crate::node::NodeRef::Record(record) => Contact::from_record(record.clone()),
        crate::node::NodeRef::Id(_) | crate::node::NodeRef::Key(_) => None,
    }
}

/// A discovered node as the dialer sees it.
fn candidate(contact: &Contact, found_by: Protocol) -> Candidate {
    let source = match found_by {
        Protocol::V4 => Source::V4,
        Protocol::V5 => Source::V5,
    };
    let tcp = contact.record.as_ref().and_then(Record::tcp_addr);
    let heard = SocketAddr::new(contact.endpoint.ip, contact.endpoint.tcp);
    Candidate {
        public_key: contact.public_key,
        addr: tcp.unwrap_or(heard),
        record: contact.record.clone(),
        source,
        served: Duration::ZERO,
    }
}
