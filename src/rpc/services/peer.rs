//! PeerService: connected peers, static and trusted peers, bans, and the settings for peers.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::{caller::principal, paging, watch};
use crate::{
    net::switch::Handle,
    rpc::{
        proto::{self, peer_service_server::PeerService},
        translate::{
            errors,
            lists::{self, no_target, static_peer, target_ip, target_node, target_subnet, trusted_peer},
            peer, settings,
            status::ErrorStatus,
            value::{dialable_node, duration, node_ref, timestamp, wire_reason},
        },
    },
    switch::{PeerView, peers::BanRequest},
};

/// The default timeout of a one-off dial, handshake included: geth's timeout for TCP.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest time that AddStaticPeer may wait for its first dial.
const MAX_WAIT: Duration = Duration::from_secs(5 * 60);

/// The longest timeout of a one-off dial.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest ban: a hundred years, so that its end is a time that can be printed.
const MAX_BAN: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The service.
#[derive(Debug)]
pub(super) struct Peers {
    handle: Handle,
}

impl Peers {
    /// Returns the service for a switch.
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle }
    }

    async fn connect(&self, request: proto::ConnectPeerRequest) -> Result<proto::Peer, ErrorStatus> {
        let node = dialable_node("node", &request.node)?;
        let id = node.id();
        let timeout = duration("timeout", request.timeout, MAX_CONNECT_TIMEOUT)?.unwrap_or(CONNECT_TIMEOUT);
        let outcome = self.handle.connect(node, timeout).await?;
        outcome.map(|view| peer::peer(&view)).map_err(|outcome| errors::not_connected(id, outcome))
    }
}

#[tonic::async_trait]
impl PeerService for Peers {
    type WatchPeersStream = watch::WatchStream<proto::WatchPeersResponse>;

    async fn watch_peers(
        &self,
        request: Request<proto::WatchPeersRequest>,
    ) -> Result<Response<Self::WatchPeersStream>, Status> {
        let caller = principal(&request);
        let proto::WatchPeersRequest { resume_token, mark_interval } = request.into_inner();
        let watches = self.handle.watches();
        let asked = watch::WatchRequest::new(watches, &caller, &resume_token, mark_interval)?;
        Ok(Response::new(watch::peers(watches, asked)))
    }

    async fn list_peers(
        &self,
        request: Request<proto::ListPeersRequest>,
    ) -> Result<Response<proto::ListPeersResponse>, Status> {
        let proto::ListPeersRequest { page_size, page_token } = request.into_inner();
        let page = paging::PageRequest::new(page_size, &page_token)?;
        let peers = self.handle.run(|switch, _| switch.peers().all()).await?;
        let id = |view: &PeerView| view.session.node_id.to_string();
        let (peers, next_page_token) = page.of(peers, id, peer::listed_peer);
        Ok(Response::new(proto::ListPeersResponse { peers, next_page_token }))
    }

    async fn get_peer(
        &self,
        request: Request<proto::GetPeerRequest>,
    ) -> Result<Response<proto::GetPeerResponse>, Status> {
        let node = node_ref("node", &request.get_ref().node)?.id();
        let view = self.handle.call(move |switch, _| switch.peers().get(node)).await?;
        Ok(Response::new(proto::GetPeerResponse {
            peer: Some(peer::peer(&view)),
            traffic: Some(peer::traffic(&view.session)),
        }))
    }

    async fn disconnect_peer(
        &self,
        request: Request<proto::DisconnectPeerRequest>,
    ) -> Result<Response<proto::DisconnectPeerResponse>, Status> {
        let request = request.into_inner();
        let node = node_ref("node", &request.node)?.id();
        let reason = wire_reason(request.reason());
        let redial = self.handle.call(move |switch, now| switch.disconnect_peer(now, node, reason)).await?;
        let next_dial_time = redial.map(timestamp);
        Ok(Response::new(proto::DisconnectPeerResponse { next_dial_time }))
    }

    async fn add_static_peer(
        &self,
        request: Request<proto::AddStaticPeerRequest>,
    ) -> Result<Response<proto::AddStaticPeerResponse>, Status> {
        let request = request.into_inner();
        let node = dialable_node("node", &request.node)?;
        let wait = duration("wait", request.wait, MAX_WAIT)?.unwrap_or_default();
        let entry = self.handle.add_static(node, wait).await?;
        Ok(Response::new(proto::AddStaticPeerResponse { static_peer: Some(static_peer(&entry)) }))
    }

    async fn remove_static_peer(
        &self,
        request: Request<proto::RemoveStaticPeerRequest>,
    ) -> Result<Response<proto::RemoveStaticPeerResponse>, Status> {
        let request = request.into_inner();
        let node = node_ref("node", &request.node)?.id();
        let keep = request.keep_connected;
        self.handle.call(move |switch, now| switch.peers().remove_static(now, node, keep)).await?;
        Ok(Response::new(proto::RemoveStaticPeerResponse {}))
    }

    async fn list_static_peers(
        &self,
        request: Request<proto::ListStaticPeersRequest>,
    ) -> Result<Response<proto::ListStaticPeersResponse>, Status> {
        let proto::ListStaticPeersRequest { page_size, page_token } = request.into_inner();
        let page = paging::PageRequest::new(page_size, &page_token)?;
        let entries = self.handle.run(|switch, now| switch.peers().static_peers(now)).await?;
        let (static_peers, next_page_token) = page.of(entries, |entry| entry.id.to_string(), static_peer);
        Ok(Response::new(proto::ListStaticPeersResponse { static_peers, next_page_token }))
    }

    async fn connect_peer(
        &self,
        request: Request<proto::ConnectPeerRequest>,
    ) -> Result<Response<proto::ConnectPeerResponse>, Status> {
        let peer = self.connect(request.into_inner()).await?;
        Ok(Response::new(proto::ConnectPeerResponse { peer: Some(peer) }))
    }

    async fn add_trusted_peer(
        &self,
        request: Request<proto::AddTrustedPeerRequest>,
    ) -> Result<Response<proto::AddTrustedPeerResponse>, Status> {
        let node = node_ref("node", &request.get_ref().node)?;
        node.check_address().map_err(|error| ErrorStatus::field("node", error))?;
        let entry = self.handle.call(move |switch, now| switch.peers().add_trusted(now, &node)).await?;
        Ok(Response::new(proto::AddTrustedPeerResponse { trusted_peer: Some(trusted_peer(&entry)) }))
    }

    async fn remove_trusted_peer(
        &self,
        request: Request<proto::RemoveTrustedPeerRequest>,
    ) -> Result<Response<proto::RemoveTrustedPeerResponse>, Status> {
        let node = node_ref("node", &request.get_ref().node)?.id();
        self.handle.call(move |switch, now| switch.peers().remove_trusted(now, node)).await?;
        Ok(Response::new(proto::RemoveTrustedPeerResponse {}))
    }

    async fn list_trusted_peers(
        &self,
        request: Request<proto::ListTrustedPeersRequest>,
    ) -> Result<Response<proto::ListTrustedPeersResponse>, Status> {
        let proto::ListTrustedPeersRequest { page_size, page_token } = request.into_inner();
        let page = paging::PageRequest::new(page_size, &page_token)?;
        let entries = self.handle.run(|switch, now| switch.peers().trusted_peers(now)).await?;
        let (trusted_peers, next_page_token) = page.of(entries, |entry| entry.id.to_string(), trusted_peer);
        Ok(Response::new(proto::ListTrustedPeersResponse { trusted_peers, next_page_token }))
    }

    async fn get_peer_settings(
        &self,
        _request: Request<proto::GetPeerSettingsRequest>,
    ) -> Result<Response<proto::GetPeerSettingsResponse>, Status> {
        let now = self.handle.settings().await?;
        Ok(Response::new(proto::GetPeerSettingsResponse { settings: Some(settings::view(&now)) }))
    }

    async fn update_peer_settings(
        &self,
        request: Request<proto::UpdatePeerSettingsRequest>,
    ) -> Result<Response<proto::UpdatePeerSettingsResponse>, Status> {
        let wanted = request.into_inner().settings;
        let wanted =
            wanted.ok_or_else(|| ErrorStatus::field("settings", "is missing; set the values to change"))?;
        let change = settings::change(wanted)?;
        let now = self.handle.change_settings(change).await?;
        Ok(Response::new(proto::UpdatePeerSettingsResponse { settings: Some(settings::view(&now)) }))
    }

    async fn ban_peer(
        &self,
        request: Request<proto::BanPeerRequest>,
    ) -> Result<Response<proto::BanPeerResponse>, Status> {
        use proto::ban_peer_request::Target as T;
        let request = request.into_inner();
        let target = match &request.target {
            Some(T::Node(text)) => target_node(text)?,
            Some(T::Ip(text)) => target_ip(text)?,
            Some(T::Subnet(text)) => target_subnet(text)?,
            None => return Err(no_target().into()),
        };
        let duration = duration("duration", request.duration, MAX_BAN)?.unwrap_or_default();
        if duration.is_zero() {
            return Err(
                ErrorStatus::field("duration", "must be above 0s; to lift a ban, call UnbanPeer").into()
            );
        }
        let ban = BanRequest { target, duration, reason: request.reason, force: request.force };
        let ban = self
            .handle
            .call(move |switch, now| switch.peers().ban(now, ban).map_err(ErrorStatus::from))
            .await?;
        Ok(Response::new(proto::BanPeerResponse { ban: Some(lists::ban(&ban)) }))
    }

    async fn unban_peer(
        &self,
        request: Request<proto::UnbanPeerRequest>,
    ) -> Result<Response<proto::UnbanPeerResponse>, Status> {
        use proto::unban_peer_request::Target as T;
        let target = match &request.get_ref().target {
            Some(T::Node(text)) => target_node(text)?,
            Some(T::Ip(text)) => target_ip(text)?,
            Some(T::Subnet(text)) => target_subnet(text)?,
            None => return Err(no_target().into()),
        };
        self.handle
            .call(move |switch, now| switch.peers().unban(now, &target).map_err(ErrorStatus::from))
            .await?;
        Ok(Response::new(proto::UnbanPeerResponse {}))
    }

    async fn list_bans(
        &self,
        request: Request<proto::ListBansRequest>,
    ) -> Result<Response<proto::ListBansResponse>, Status> {
        let proto::ListBansRequest { page_size, page_token } = request.into_inner();
        let page = paging::PageRequest::new(page_size, &page_token)?;
        let bans = self.handle.run(|switch, now| switch.peers().bans(now)).await?;
        let (bans, next_page_token) = page.of(bans, |ban| ban.target.to_string(), lists::ban);
        Ok(Response::new(proto::ListBansResponse { bans, next_page_token }))
    }
}
