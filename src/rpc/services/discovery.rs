//! DiscoveryService: the nodes of the network, connected or not.

mod talk;

use std::{
    collections::{BTreeMap, HashSet},
    pin::Pin,
};

use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{caller::principal, paging, watch};
use crate::{
    kademlia::{self, CallError, Contact, Protocol, Target},
    net::switch::Watches,
    net::{
        clock,
        discovery::{Discovery, DiscoveryError, TableNode, contact_of},
    },
    node::{NodeId, id::keccak256},
    rpc::{
        proto::{self, discovery_service_server::DiscoveryService},
        translate::{
            discovery::{node, protocol, removal, table_node},
            errors::talk_too_long,
            status::ErrorStatus,
            value::{node_ref, timestamp},
        },
    },
};

/// The most frames of a stream that wait for HTTP/2.
const FRAMES: usize = 16;

/// The most nodes in one frame of a query.
const FRAME_NODES: usize = 16;

/// The service.
#[derive(Debug)]
pub(super) struct Nodes {
    discovery: Discovery,
    watches: Watches,
}

impl Nodes {
    /// Returns the service for discovery. `watches` has the tables for WatchNodes.
    pub(super) fn new(discovery: Discovery, watches: Watches) -> Self {
        Self { discovery, watches }
    }

    /// Returns the contact of a node: from the address that the caller gave, or else the one that discovery finds.
    async fn contact(&self, text: &str) -> Result<Contact, ErrorStatus> {
        let node = node_ref("node", text)?;
        match contact_of(&node) {
            Some(contact) => Ok(contact),
            None => self.discovery.resolve(node.id(), node.public_key()).await.map_err(ErrorStatus::from),
        }
    }
}

/// Returns the stream of WatchNodes: the changes of both tables, or of the table of `wanted`.
fn watch_nodes(
    watches: &Watches,
    asked: watch::WatchRequest,
    wanted: Option<Protocol>,
) -> watch::WatchStream<proto::WatchNodesResponse> {
    let mut cursor = watches.nodes.read(|view| asked.cursor(view));
    watch::stream(watches.nodes.clone(), asked, move |view| {
        let (changes, mark) = watch::changes(view, &mut cursor, watch::FRAME_CHANGES, |kind, change| {
            if wanted.is_some_and(|wanted| wanted != change.key.0) {
                return None;
            }
            let removed = change.value.removed.filter(|_| kind == proto::ChangeType::Removed);
            Some(proto::NodeChange {
                r#type: kind.into(),
                node: Some(table_node(&change.value.node)),
                removal: removed.map_or(proto::NodeRemoval::Unspecified, |(why, _)| removal(why)).into(),
                removal_time: removed.map(|(_, time)| timestamp(time)),
            })
        });
        let says_something = watch::is_news(&mark) || !changes.is_empty();
        let frame = proto::WatchNodesResponse { changes, mark: Some(watch::mark(&mark)) };
        watch::Pulled { frame, says_something, more: mark.more }
    })
}

/// Reads the target of a query: a public key, or a node id, which discv4 cannot search for. An empty text means any
/// target.
fn target(text: &str) -> Result<Target, ErrorStatus> {
    if text.is_empty() {
        // Any target is fine. A hash of the time serves as a random one.
        let now = clock::now().unix.as_nanos().to_be_bytes();
        let (left, right) = (keccak256(&[&now, b"left"]), keccak256(&[&now, b"right"]));
        let mut key = [0; 64];
        key.iter_mut().zip(left.into_iter().chain(right)).for_each(|(to, from)| *to = from);
        return Ok(key.into());
    }
    let node = node_ref("target", text)?;
    Ok(node.public_key().map_or_else(|| node.id().into(), Target::from))
}

/// Sends the nodes that a query finds in frames, each node once. When the query ends, sends its summary as the last
/// frame.
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
    // Sending fails if the caller has ended the call, which is no error.
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
        let page = paging::PageRequest::new(page_size, &page_token)?;
        let mut nodes = self.discovery.nodes().await.map_err(ErrorStatus::from)?;
        nodes.retain(|node| wanted.is_none_or(|wanted| wanted == node.table));
        let key = |node: &TableNode| {
            format!("{:02}/{:03}/{}", node.table as u8, node.bucket, node.entry.contact.id)
        };
        let (nodes, next_page_token) = page.of(nodes, key, table_node);
        Ok(Response::new(proto::ListNodesResponse { nodes, next_page_token }))
    }

    async fn watch_nodes(
        &self,
        request: Request<proto::WatchNodesRequest>,
    ) -> Result<Response<Self::WatchNodesStream>, Status> {
        let caller = principal(&request);
        let wanted = protocol("table", request.get_ref().table())?;
        let proto::WatchNodesRequest { resume_token, mark_interval, .. } = request.into_inner();
        let asked = watch::WatchRequest::new(&self.watches, &caller, &resume_token, mark_interval)?;
        Ok(Response::new(watch_nodes(&self.watches, asked, wanted)))
    }

    async fn lookup_nodes(
        &self,
        request: Request<proto::LookupNodesRequest>,
    ) -> Result<Response<Self::LookupNodesStream>, Status> {
        let request = request.into_inner();
        let over = protocol("protocol", request.protocol())?;
        let target = target(&request.target)?;
        let met = self.discovery.lookup(target, over).await.map_err(ErrorStatus::from)?;
        let (frames, stream) = mpsc::channel(FRAMES);
        tokio::spawn(stream_lookup(target.id(), met, frames));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn resolve_node(
        &self,
        request: Request<proto::ResolveNodeRequest>,
    ) -> Result<Response<proto::ResolveNodeResponse>, Status> {
        let asked = node_ref("node", &request.get_ref().node)?;
        let contact =
            self.discovery.resolve(asked.id(), asked.public_key()).await.map_err(ErrorStatus::from)?;
        Ok(Response::new(proto::ResolveNodeResponse { node: Some(node(&contact, &[])) }))
    }

    async fn ping_node(
        &self,
        request: Request<proto::PingNodeRequest>,
    ) -> Result<Response<proto::PingNodeResponse>, Status> {
        let request = request.into_inner();
        let over = protocol("protocol", request.protocol())?;
        let contact = self.contact(&request.node).await?;
        let pong = self.discovery.ping(contact, over).await.map_err(ErrorStatus::from)?;
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
            DiscoveryError::Call(CallError::TooLarge(bytes, room)) => {
                talk_too_long(request.payload.len(), bytes, room)
            }
            error => error.into(),
        })?;
        Ok(Response::new(proto::TalkRequestResponse { payload }))
    }

    async fn serve_talk(
        &self,
        request: Request<Streaming<proto::ServeTalkRequest>>,
    ) -> Result<Response<Self::ServeTalkStream>, Status> {
        let (out, stream) = mpsc::channel(FRAMES);
        // The events are read in a task, so that headers are sent at once: some clients send no event before they have
        // them.
        tokio::spawn(talk::serve(self.discovery.clone(), request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
