//! DiscoveryService: the nodes of the network, connected or not.

use std::{
    collections::{BTreeMap, HashSet},
    pin::Pin,
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert, node_ref, paging, principal,
    proto::{self, DiscoverySource, ErrorReason, discovery_service_server::DiscoveryService},
    status::Refusal,
    talk::TalkServer,
    watch,
};
use crate::{
    kademlia::{self, CallError, Contact, Placement, call::MAX_LOOKUPS},
    net::switch::Boards,
    net::{
        clock,
        discovery::{Discovery, DiscoveryError, TableNode, contact_of},
    },
    node::{Enode, NodeId, NodeRef, id::keccak256, local::EntryError},
    policy::dial::Source,
};

/// Frames of a stream that may wait for HTTP/2.
const FRAMES: usize = 16;

/// When to try again after too much was under way: a request is over in 700 ms, a lookup in a second or two.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// Nodes of one frame of a search.
const FRAME_NODES: usize = 16;

/// The service.
#[derive(Debug)]
pub struct Nodes {
    discovery: Discovery,
    boards: Boards,
}

impl Nodes {
    /// The service over discovery, and the boards that can be watched.
    #[must_use]
    pub fn new(discovery: Discovery, boards: Boards) -> Self {
        Self { discovery, boards }
    }

    /// Where to ask a node: what the caller said, else what discovery knows.
    async fn contact(&self, text: &str) -> Result<Contact, Refusal> {
        let node = node_ref("node", text)?;
        match contact_of(&node) {
            Some(contact) => Ok(contact),
            None => self.discovery.resolve(node.id(), node.public_key()).await.map_err(refuse),
        }
    }
}

/// A failure of discovery, in the contract's words.
pub(super) fn refuse(error: DiscoveryError) -> Refusal {
    let message = error.to_string();
    match error {
        DiscoveryError::Stopped => Refusal::new(ErrorReason::ServerDraining, message),
        DiscoveryError::Off(_) | DiscoveryError::NotFound => {
            Refusal::new(ErrorReason::NodeAddressUnknown, message)
        }
        DiscoveryError::KeyNeeded => Refusal::field("target", message),
        DiscoveryError::Call(CallError::Timeout) => Refusal::new(ErrorReason::TimedOut, message),
        DiscoveryError::Call(CallError::TooManyLookups) => {
            busy(message).with("limit", MAX_LOOKUPS).with("what", "lookups")
        }
        DiscoveryError::Call(CallError::QueueFull) => busy(message).with("what", "requests"),
        DiscoveryError::Call(CallError::NoEndpoint | CallError::Address | CallError::Myself) => {
            Refusal::field("node", message)
        }
        DiscoveryError::Call(CallError::TooLarge(..)) | DiscoveryError::Talk(_) => {
            Refusal::field("payload", message)
        }
        DiscoveryError::TalkOwned(protocol) => {
            Refusal::new(ErrorReason::ProtocolAlreadyRegistered, message).with("protocol", protocol)
        }
        DiscoveryError::Entry(EntryError::Owned { .. }) => Refusal::new(ErrorReason::RecordKeyOwned, message),
        DiscoveryError::Entry(EntryError::TooLarge(bytes)) => {
            Refusal::new(ErrorReason::RecordTooLarge, message).with("bytes", bytes)
        }
        DiscoveryError::Entry(EntryError::Value(_)) => Refusal::field("value", message),
        DiscoveryError::Entry(EntryError::Reserved(_) | EntryError::EmptyKey) => {
            Refusal::field("key", message)
        }
    }
}

/// Nobody is to blame: too much is under way.
fn busy(message: String) -> Refusal {
    Refusal::new(ErrorReason::LimitReached, message).retry_after(BUSY_RETRY)
}

/// A TALKREQ that does not fit a packet: the field that must be shorter, and by how much.
fn too_long(request: &proto::TalkRequestRequest, bytes: usize, room: usize) -> Refusal {
    let excess = bytes.saturating_sub(room);
    let field = if excess < request.payload.len() { "payload" } else { "protocol" };
    Refusal::field(
        field,
        format!(
            "together with its envelope the request has {bytes} bytes, and a packet has room for {room}; make it \
             {excess} bytes shorter"
        ),
    )
}

fn source(table: Source) -> DiscoverySource {
    match table {
        Source::V4 => DiscoverySource::Discv4,
        Source::V5 => DiscoverySource::Discv5,
        Source::Dns => DiscoverySource::Dns,
        Source::Database => DiscoverySource::Database,
    }
}

/// The protocol that a request names; `None` for any.
fn protocol(field: &str, wanted: DiscoverySource) -> Result<Option<Source>, Refusal> {
    match wanted {
        DiscoverySource::Unspecified => Ok(None),
        DiscoverySource::Discv4 => Ok(Some(Source::V4)),
        DiscoverySource::Discv5 => Ok(Some(Source::V5)),
        _ => Err(Refusal::field(field, "must be DISCOVERY_SOURCE_DISCV4 or DISCOVERY_SOURCE_DISCV5")),
    }
}

fn node(contact: &Contact, sources: &[DiscoverySource]) -> proto::Node {
    let from_record = contact.record.clone().and_then(|record| NodeRef::Record(record).enode());
    let heard = || {
        let addr = std::net::SocketAddr::new(contact.endpoint.ip, contact.endpoint.tcp);
        (addr.port() != 0).then(|| Enode { udp: contact.endpoint.udp, ..Enode::at(contact.public_key, addr) })
    };
    proto::Node {
        node_id: contact.id.to_string(),
        public_key: contact.public_key.to_string(),
        enode: from_record.or_else(heard).map(|enode| enode.to_string()).unwrap_or_default(),
        enr: contact.record.as_ref().map(ToString::to_string).unwrap_or_default(),
        sources: sources.iter().map(|source| (*source).into()).collect(),
    }
}

fn table_node(found: &TableNode) -> proto::TableNode {
    let entry = &found.entry;
    let came = match entry.source {
        kademlia::Source::Bootnode => "a bootnode".to_owned(),
        kademlia::Source::Database => "from the node database".to_owned(),
        kademlia::Source::Inbound => "contacted us and proved its endpoint".to_owned(),
        kademlia::Source::Relayed { by } => format!("told by {by}"),
    };
    let stands = match entry.placement {
        Placement::HadRoom => "its bucket had room".to_owned(),
        Placement::Waiting => "its bucket was full, so it waits for a place".to_owned(),
        Placement::Promoted { replaced } => format!("took the place of {replaced}, which was removed"),
    };
    let life =
        if entry.live { "answered its last check" } else { "has not answered a check at this endpoint" };
    let how = match entry.source {
        kademlia::Source::Bootnode => DiscoverySource::Bootnode,
        kademlia::Source::Database => DiscoverySource::Database,
        kademlia::Source::Inbound | kademlia::Source::Relayed { .. } => source(found.table),
    };
    proto::TableNode {
        node: Some(node(&entry.contact, &[how])),
        table: source(found.table).into(),
        bucket: u32::try_from(found.bucket).unwrap_or(u32::MAX),
        replacement: entry.placement == Placement::Waiting,
        live_checks: if entry.live { entry.checks } else { 0 },
        added_time: Some(convert::timestamp(entry.added)),
        last_seen_time: entry.last_seen.map(convert::timestamp),
        detail: format!("{came}; {stands}; {life}"),
    }
}

/// The changes of the tables.
fn watch_nodes(
    boards: &Boards,
    wish: watch::Wish,
    wanted: Option<Source>,
) -> watch::WatchStream<proto::WatchNodesResponse> {
    let mut cursor = boards.nodes.read(|board| wish.cursor(board));
    watch::stream(boards.nodes.clone(), wish, move |board| {
        let (changes, mark) = watch::changes(board, &mut cursor, watch::FRAME_CHANGES, |kind, change| {
            if wanted.is_some_and(|wanted| wanted != change.key.0) {
                return None;
            }
            let removed = change.value.removed.filter(|_| kind == proto::ChangeType::Removed);
            Some(proto::NodeChange {
                r#type: kind.into(),
                node: Some(table_node(&change.value.node)),
                removal: removed.map_or(proto::NodeRemoval::Unspecified, |(why, _)| removal(why)).into(),
                removal_time: removed.map(|(_, time)| convert::timestamp(time)),
            })
        });
        let says_something = watch::is_news(&mark) || !changes.is_empty();
        let frame = proto::WatchNodesResponse { changes, mark: Some(watch::mark(&mark)) };
        watch::Pulled { frame, says_something, more: mark.more }
    })
}

fn removal(why: kademlia::Removal) -> proto::NodeRemoval {
    match why {
        kademlia::Removal::Dead => proto::NodeRemoval::Dead,
        kademlia::Removal::Unhelpful => proto::NodeRemoval::Unhelpful,
        kademlia::Removal::Requested => proto::NodeRemoval::Requested,
    }
}

/// The id to search for, and what discv4 is asked, whose targets are keys: a node's key, or for a bare id, whose key
/// nobody knows, nothing.
fn target(text: &str) -> Result<(NodeId, Option<[u8; 64]>), Refusal> {
    if text.is_empty() {
        // Any key is as good as a random one: the clock's digits, hashed.
        let now = clock::now().unix.as_nanos().to_be_bytes();
        let (left, right) = (keccak256(&[&now, b"left"]), keccak256(&[&now, b"right"]));
        let mut key = [0; 64];
        key.iter_mut().zip(left.into_iter().chain(right)).for_each(|(to, from)| *to = from);
        return Ok((NodeId(keccak256(&[&key])), Some(key)));
    }
    let node = node_ref("target", text)?;
    Ok((node.id(), node.public_key().map(|key| key.to_uncompressed())))
}

/// Collects what a search meets into frames, until it ends.
async fn stream_lookup(
    target: NodeId,
    mut met: mpsc::Receiver<Contact>,
    frames: mpsc::Sender<Result<proto::LookupNodesResponse, Status>>,
) {
    let begun = clock::now().mono;
    let mut seen = HashSet::new();
    let mut nearest: BTreeMap<[u8; 32], NodeId> = BTreeMap::new();
    let mut batch = Vec::with_capacity(FRAME_NODES);
    while met.recv_many(&mut batch, FRAME_NODES).await > 0 {
        let mut nodes = Vec::new();
        for contact in batch.drain(..) {
            if seen.insert(contact.id) {
                let mut distance = contact.id.0;
                distance.iter_mut().zip(target.0).for_each(|(byte, other)| *byte ^= other);
                nearest.insert(distance, contact.id);
                if nearest.len() > kademlia::bucket::BUCKET_SIZE {
                    nearest.pop_last();
                }
                nodes.push(node(&contact, &[]));
            }
        }
        let frame = proto::LookupNodesResponse { nodes, summary: None };
        if frames.send(Ok(frame)).await.is_err() {
            return;
        }
    }
    let elapsed = clock::now().mono.saturating_duration_since(begun);
    let summary = proto::LookupSummary {
        nearest_node_ids: nearest.values().map(ToString::to_string).collect(),
        elapsed: prost_types::Duration::try_from(elapsed).ok(),
    };
    let last = proto::LookupNodesResponse { nodes: Vec::new(), summary: Some(summary) };
    // The caller may have gone.
    let _ = frames.send(Ok(last)).await;
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl DiscoveryService for Nodes {
    type WatchNodesStream = watch::WatchStream<proto::WatchNodesResponse>;
    type LookupNodesStream = Boxed<proto::LookupNodesResponse>;
    type ServeTalkStream = Boxed<proto::ServeTalkResponse>;

    async fn list_nodes(
        &self,
        request: Request<proto::ListNodesRequest>,
    ) -> Result<Response<proto::ListNodesResponse>, Status> {
        let wanted = protocol("table", request.get_ref().table())?;
        let proto::ListNodesRequest { page_size, page_token, .. } = request.into_inner();
        let wish = paging::Wish::new(page_size, &page_token)?;
        let mut nodes = self.discovery.nodes().await.map_err(refuse)?;
        nodes.retain(|node| wanted.is_none_or(|wanted| wanted == node.table));
        let key = |node: &TableNode| {
            format!("{:02}/{:03}/{}", node.table as u8, node.bucket, node.entry.contact.id)
        };
        let (nodes, next_page_token) = wish.page(nodes, key, table_node);
        Ok(Response::new(proto::ListNodesResponse { nodes, next_page_token }))
    }

    async fn watch_nodes(
        &self,
        request: Request<proto::WatchNodesRequest>,
    ) -> Result<Response<Self::WatchNodesStream>, Status> {
        let caller = principal(&request);
        let wanted = protocol("table", request.get_ref().table())?;
        let proto::WatchNodesRequest { resume_token, mark_interval, .. } = request.into_inner();
        let wish = watch::Wish::new(&self.boards, &caller, &resume_token, mark_interval)?;
        Ok(Response::new(watch_nodes(&self.boards, wish, wanted)))
    }

    async fn lookup_nodes(
        &self,
        request: Request<proto::LookupNodesRequest>,
    ) -> Result<Response<Self::LookupNodesStream>, Status> {
        let request = request.into_inner();
        let over = protocol("protocol", request.protocol())?;
        let (id, key) = target(&request.target)?;
        let met = self.discovery.lookup(id, key, over).await.map_err(refuse)?;
        let (frames, stream) = mpsc::channel(FRAMES);
        tokio::spawn(stream_lookup(id, met, frames));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn resolve_node(
        &self,
        request: Request<proto::ResolveNodeRequest>,
    ) -> Result<Response<proto::ResolveNodeResponse>, Status> {
        let asked = node_ref("node", &request.get_ref().node)?;
        let contact = self.discovery.resolve(asked.id(), asked.public_key()).await.map_err(refuse)?;
        Ok(Response::new(proto::ResolveNodeResponse { node: Some(node(&contact, &[])) }))
    }

    async fn ping_node(
        &self,
        request: Request<proto::PingNodeRequest>,
    ) -> Result<Response<proto::PingNodeResponse>, Status> {
        let request = request.into_inner();
        let over = protocol("protocol", request.protocol())?;
        let contact = self.contact(&request.node).await?;
        let pong = self.discovery.ping(contact, over).await.map_err(refuse)?;
        Ok(Response::new(proto::PingNodeResponse {
            round_trip_time: prost_types::Duration::try_from(pong.round_trip).ok(),
            our_address: pong.sees_us_at.map(|addr| addr.to_string()).unwrap_or_default(),
            enr_seq: pong.enr_seq.unwrap_or(0),
        }))
    }

    async fn talk_request(
        &self,
        request: Request<proto::TalkRequestRequest>,
    ) -> Result<Response<proto::TalkRequestResponse>, Status> {
        let request = request.into_inner();
        let contact = self.contact(&request.node).await?;
        let protocol = request.protocol.clone().into_bytes().into();
        let answer = self.discovery.talk(contact, protocol, request.payload.clone()).await;
        let payload = answer.map_err(|error| match error {
            DiscoveryError::Call(CallError::TooLarge(bytes, room)) => too_long(&request, bytes, room),
            error => refuse(error),
        })?;
        Ok(Response::new(proto::TalkRequestResponse { payload }))
    }

    async fn serve_talk(
        &self,
        request: Request<Streaming<proto::ServeTalkRequest>>,
    ) -> Result<Response<Self::ServeTalkStream>, Status> {
        let mut requests = request.into_inner();
        let (out, stream) = mpsc::channel(FRAMES);
        let discovery = self.discovery.clone();
        // Headers go out before the first event is read: some clients wait for them before they send it.
        tokio::spawn(async move {
            use proto::serve_talk_request::Event as In;
            let served = match requests.message().await {
                Ok(Some(proto::ServeTalkRequest { event: Some(In::Serve(start)) }))
                    if !start.protocol.is_empty() =>
                {
                    discovery.serve_talk(start.protocol.into_bytes().into()).await.map_err(refuse)
                }
                Ok(_) => Err(Refusal::new(
                    ErrorReason::StreamProtocolViolation,
                    "the first event of the stream must be \"serve\" with the name of a protocol",
                )),
                Err(status) => {
                    let _ = out.send(Err(super::status::with_reason(status))).await;
                    return;
                }
            };
            match served {
                Ok(questions) => {
                    TalkServer::new(discovery).run(requests, questions, out).await;
                }
                Err(refusal) => drop(out.send(Err(refusal.into())).await),
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
