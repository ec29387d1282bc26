//! PeerService: who is connected, and the lists and bans that operators keep.

use std::{net::IpAddr, time::Duration};

use tonic::{Request, Response, Status};

use super::{
    convert, dialable_node, node_ref, paging, principal,
    proto::{self, ErrorReason, peer_service_server::PeerService},
    registration, settings,
    status::Refusal,
    watch,
};
use crate::{
    net::switch::Handle,
    node::{NodeId, network},
    policy::{
        Ban, BanError, BanTarget,
        dial::{ConnectOutcome, EntryState, LastError, ListEntry, ListSource},
    },
    switch::{PeerView, peers::BanRequest},
};

/// How long a one-off dial takes when the caller does not say: TCP's own timeout in geth, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest that AddStaticPeer may wait for its first dial.
const MAX_WAIT: Duration = Duration::from_secs(5 * 60);

/// The longest a one-off dial may take.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest ban: a hundred years, so that times stay printable.
const MAX_BAN: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The service.
#[derive(Debug)]
pub struct Peers {
    handle: Handle,
}

impl Peers {
    /// The service over a switch.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }

    async fn connect(&self, request: proto::ConnectPeerRequest) -> Result<proto::Peer, Refusal> {
        let node = dialable_node("node", &request.node)?;
        let id = node.id();
        let timeout = registration::duration("timeout", request.timeout, MAX_CONNECT_TIMEOUT)?
            .unwrap_or(CONNECT_TIMEOUT);
        let outcome = self.handle.connect(node, timeout).await?;
        outcome.map(|view| convert::peer(&view)).map_err(|outcome| connect_refusal(id, outcome))
    }
}

fn connect_refusal(id: NodeId, outcome: ConnectOutcome) -> Refusal {
    use crate::policy::Refusal as Why;
    let refusal = match outcome {
        ConnectOutcome::Failed { cause, detail } => {
            let message = if detail.is_empty() { cause.to_string() } else { format!("{cause}: {detail}") };
            Refusal::new(ErrorReason::DialFailed, message).with("cause", cause.name())
        }
        ConnectOutcome::Refused(why) => {
            let reason = match why {
                Why::BannedNode | Why::BannedAddress => ErrorReason::NodeBanned,
                Why::AddressUnknown => ErrorReason::NodeAddressUnknown,
                Why::NoProtocol => ErrorReason::ProtocolNotRegistered,
                Why::QueueFull => ErrorReason::LimitReached,
                _ => ErrorReason::DialFailed,
            };
            Refusal::new(reason, format!("not dialed: {why}")).with("cause", why.name())
        }
        ConnectOutcome::TimedOut => {
            Refusal::new(ErrorReason::TimedOut, "the dial took longer than its timeout")
        }
        ConnectOutcome::Connected => {
            Refusal::new(ErrorReason::PeerNotConnected, "the peer connected and left again at once")
        }
    };
    refusal.with("node_id", id)
}

fn peer_error(error: &LastError) -> proto::PeerError {
    proto::PeerError {
        time: Some(convert::timestamp(error.time)),
        reason: convert::cause(error.cause).into(),
        detail: convert::text(&error.detail),
    }
}

/// State, since when, and what there is to say.
fn state(entry: &ListEntry) -> (proto::StaticPeerState, Option<Duration>, String) {
    use proto::StaticPeerState as S;
    match entry.state {
        EntryState::Connected { since, inbound } => {
            let how = if inbound { "the peer dialed us" } else { "we dialed the peer" };
            (S::Connected, Some(since), how.to_owned())
        }
        EntryState::Dialing { since } => (S::Dialing, Some(since), String::new()),
        EntryState::Resolving => (S::Resolving, None, "discovery is asked for the address".to_owned()),
        EntryState::BackingOff { .. } => {
            (S::BackingOff, None, "see last_error and next_dial_time".to_owned())
        }
        EntryState::WaitingForProtocol => {
            (S::WaitingForProtocol, None, "dialed as soon as a protocol is registered".to_owned())
        }
        EntryState::WaitingForSlot => {
            (S::WaitingForSlot, None, "dialed as soon as fewer dials are in progress".to_owned())
        }
        EntryState::Refused(refusal) => (S::Refused, None, refusal.to_string()),
    }
}

fn entry_source(source: Option<ListSource>) -> proto::EntrySource {
    match source {
        Some(ListSource::Config) => proto::EntrySource::Config,
        Some(ListSource::Call) => proto::EntrySource::Call,
        None => proto::EntrySource::Unspecified,
    }
}

fn static_peer(entry: &ListEntry) -> proto::StaticPeer {
    let (state, since, detail) = state(entry);
    proto::StaticPeer {
        enode: entry.enode.as_ref().map(ToString::to_string).unwrap_or_default(),
        node_id: entry.id.to_string(),
        state: state.into(),
        since: since.map(convert::timestamp),
        detail,
        last_error: entry.last_error.as_ref().map(peer_error),
        next_dial_time: entry.next_dial.map(convert::timestamp),
        source: entry_source(entry.as_static).into(),
    }
}

fn trusted_peer(entry: &ListEntry) -> proto::TrustedPeer {
    let proto::StaticPeer { enode, node_id, state, since, detail, last_error, next_dial_time, .. } =
        static_peer(entry);
    let source = entry_source(entry.as_trusted).into();
    proto::TrustedPeer { enode, node_id, state, since, detail, last_error, next_dial_time, source }
}

fn ban_view(ban: &Ban) -> proto::Ban {
    proto::Ban {
        target: ban.target.to_string(),
        expire_time: Some(convert::timestamp(ban.until)),
        reason: convert::text(&ban.reason),
    }
}

fn target_node(text: &str) -> Result<BanTarget, Refusal> {
    Ok(BanTarget::Node(node_ref("node", text)?.id()))
}

fn target_ip(text: &str) -> Result<BanTarget, Refusal> {
    let ip: IpAddr =
        text.parse().map_err(|_| Refusal::field("ip", "is not an IP address, as 203.0.113.7"))?;
    Ok(BanTarget::ip(ip))
}

fn target_subnet(text: &str) -> Result<BanTarget, Refusal> {
    let net = network::parse(text).map_err(|error| Refusal::field("subnet", error))?;
    Ok(BanTarget::net(net))
}

fn no_target() -> Refusal {
    Refusal::field("target", "is missing; name a node, an ip or a subnet")
}

fn ban_refusal(error: &BanError) -> Refusal {
    let message = error.to_string();
    match error {
        BanError::Protected(id) => Refusal::field("force", message).with("node_id", id),
        BanError::NotBanned => Refusal::new(ErrorReason::EntryNotFound, message),
        BanError::Full => Refusal::new(ErrorReason::LimitReached, message),
        BanError::OwnIdentity | BanError::Target => Refusal::field("target", message),
        BanError::ZeroDuration => Refusal::field("duration", message),
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
        let boards = self.handle.boards();
        let wish = watch::Wish::new(boards, &caller, &resume_token, mark_interval)?;
        Ok(Response::new(watch::peers(boards, wish)))
    }

    async fn list_peers(
        &self,
        request: Request<proto::ListPeersRequest>,
    ) -> Result<Response<proto::ListPeersResponse>, Status> {
        let proto::ListPeersRequest { page_size, page_token } = request.into_inner();
        let wish = paging::Wish::new(page_size, &page_token)?;
        let peers = self.handle.peers().await.map_err(Refusal::from)?;
        let id = |view: &PeerView| view.session.node_id.to_string();
        let (peers, next_page_token) = wish.page(peers, id, convert::listed_peer);
        Ok(Response::new(proto::ListPeersResponse { peers, next_page_token }))
    }

    async fn get_peer(
        &self,
        request: Request<proto::GetPeerRequest>,
    ) -> Result<Response<proto::GetPeerResponse>, Status> {
        let node = node_ref("node", &request.get_ref().node)?.id();
        let view = self.handle.peer(node).await.map_err(Refusal::from)?;
        Ok(Response::new(proto::GetPeerResponse {
            peer: Some(convert::peer(&view)),
            traffic: Some(convert::traffic(&view.session)),
        }))
    }

    async fn disconnect_peer(
        &self,
        request: Request<proto::DisconnectPeerRequest>,
    ) -> Result<Response<proto::DisconnectPeerResponse>, Status> {
        let request = request.into_inner();
        let node = node_ref("node", &request.node)?.id();
        let reason = convert::wire_reason(request.reason());
        let redial = self.handle.disconnect_peer(node, reason).await.map_err(Refusal::from)?;
        let next_dial_time = redial.map(convert::timestamp);
        Ok(Response::new(proto::DisconnectPeerResponse { next_dial_time }))
    }

    async fn add_static_peer(
        &self,
        request: Request<proto::AddStaticPeerRequest>,
    ) -> Result<Response<proto::AddStaticPeerResponse>, Status> {
        let request = request.into_inner();
        let node = dialable_node("node", &request.node)?;
        let wait = registration::duration("wait", request.wait, MAX_WAIT)?.unwrap_or_default();
        let entry = self.handle.add_static_and_wait(node, wait).await.map_err(Refusal::from)?;
        Ok(Response::new(proto::AddStaticPeerResponse { static_peer: Some(static_peer(&entry)) }))
    }

    async fn remove_static_peer(
        &self,
        request: Request<proto::RemoveStaticPeerRequest>,
    ) -> Result<Response<proto::RemoveStaticPeerResponse>, Status> {
        let request = request.into_inner();
        let node = node_ref("node", &request.node)?.id();
        self.handle.remove_static(node, request.keep_connected).await.map_err(Refusal::from)?;
        Ok(Response::new(proto::RemoveStaticPeerResponse {}))
    }

    async fn list_static_peers(
        &self,
        request: Request<proto::ListStaticPeersRequest>,
    ) -> Result<Response<proto::ListStaticPeersResponse>, Status> {
        let proto::ListStaticPeersRequest { page_size, page_token } = request.into_inner();
        let wish = paging::Wish::new(page_size, &page_token)?;
        let entries = self.handle.static_peers().await.map_err(Refusal::from)?;
        let (static_peers, next_page_token) = wish.page(entries, |entry| entry.id.to_string(), static_peer);
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
        node.check_address().map_err(|error| Refusal::field("node", error))?;
        let entry = self.handle.add_trusted(node).await.map_err(Refusal::from)?;
        Ok(Response::new(proto::AddTrustedPeerResponse { trusted_peer: Some(trusted_peer(&entry)) }))
    }

    async fn remove_trusted_peer(
        &self,
        request: Request<proto::RemoveTrustedPeerRequest>,
    ) -> Result<Response<proto::RemoveTrustedPeerResponse>, Status> {
        let node = node_ref("node", &request.get_ref().node)?.id();
        self.handle.remove_trusted(node).await.map_err(Refusal::from)?;
        Ok(Response::new(proto::RemoveTrustedPeerResponse {}))
    }

    async fn list_trusted_peers(
        &self,
        request: Request<proto::ListTrustedPeersRequest>,
    ) -> Result<Response<proto::ListTrustedPeersResponse>, Status> {
        let proto::ListTrustedPeersRequest { page_size, page_token } = request.into_inner();
        let wish = paging::Wish::new(page_size, &page_token)?;
        let entries = self.handle.trusted_peers().await.map_err(Refusal::from)?;
        let (trusted_peers, next_page_token) = wish.page(entries, |entry| entry.id.to_string(), trusted_peer);
        Ok(Response::new(proto::ListTrustedPeersResponse { trusted_peers, next_page_token }))
    }

    async fn get_peer_settings(
        &self,
        _request: Request<proto::GetPeerSettingsRequest>,
    ) -> Result<Response<proto::GetPeerSettingsResponse>, Status> {
        let now = self.handle.settings().await.map_err(Refusal::from)?;
        Ok(Response::new(proto::GetPeerSettingsResponse { settings: Some(settings::view(&now)) }))
    }

    async fn update_peer_settings(
        &self,
        request: Request<proto::UpdatePeerSettingsRequest>,
    ) -> Result<Response<proto::UpdatePeerSettingsResponse>, Status> {
        let wish = request.into_inner().settings;
        let wish = wish.ok_or_else(|| Refusal::field("settings", "is missing; set what is to change"))?;
        let change = settings::change(wish)?;
        let now = self.handle.change_settings(change).await.map_err(Refusal::from)?;
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
        let duration = registration::duration("duration", request.duration, MAX_BAN)?.unwrap_or_default();
        if duration.is_zero() {
            return Err(Refusal::field("duration", "must be above zero; UnbanPeer lifts a ban").into());
        }
        let ban = BanRequest { target, duration, reason: request.reason, force: request.force };
        let ban = self.handle.ban(ban).await.map_err(Refusal::from)?.map_err(|error| ban_refusal(&error))?;
        Ok(Response::new(proto::BanPeerResponse { ban: Some(ban_view(&ban)) }))
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
        self.handle.unban(target).await.map_err(Refusal::from)?.map_err(|error| ban_refusal(&error))?;
        Ok(Response::new(proto::UnbanPeerResponse {}))
    }

    async fn list_bans(
        &self,
        request: Request<proto::ListBansRequest>,
    ) -> Result<Response<proto::ListBansResponse>, Status> {
        let proto::ListBansRequest { page_size, page_token } = request.into_inner();
        let wish = paging::Wish::new(page_size, &page_token)?;
        let bans = self.handle.bans().await.map_err(Refusal::from)?;
        let (bans, next_page_token) = wish.page(bans, |ban| ban.target.to_string(), ban_view);
        Ok(Response::new(proto::ListBansResponse { bans, next_page_token }))
    }
}
