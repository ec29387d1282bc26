//! A sidecar in this process, and clients of its services.

use std::{net::SocketAddr, path::Path};

use devp2pd::{
    app::{App, StartError, Started},
    config::{self, Config, Request},
    node::{NodeId, PublicKey},
    rpc::proto::{
        self, AddStaticPeerRequest, GetPeerRequest, ListStaticPeersRequest, Peer, StaticPeer,
        StaticPeerState, discovery_service_client::DiscoveryServiceClient,
        message_service_client::MessageServiceClient, node_service_client::NodeServiceClient,
        peer_service_client::PeerServiceClient, protocol_service_client::ProtocolServiceClient,
    },
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::{Application, Liar, attach, eventually, soon, spec};

/// The largest message that a client accepts, unless a test sets another limit: the largest message and its frame.
pub(crate) const MAX_RESPONSE: usize = 17 << 20;

/// A running sidecar with its data directory and one gRPC connection to it.
pub(crate) struct Sidecar {
    app: App,
    dir: TempDir,
    channel: Channel,
}

impl Sidecar {
    /// A sidecar with the default settings of these tests.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A sidecar with further flags.
    pub(crate) async fn start_with(flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), flags).await
    }

    /// A sidecar over what an earlier one left.
    pub(crate) async fn start_in(dir: TempDir, flags: &[&str]) -> Self {
        let app = try_start(dir.path(), flags).await.unwrap();
        let channel = connect(app.started().grpc_addr).await;
        Self { app, dir, channel }
    }

    /// Stops it in order, and returns its data directory.
    pub(crate) async fn stop(self) -> TempDir {
        let Self { app, dir, channel } = self;
        drop(channel);
        app.stop().await;
        dir
    }

    /// Takes it apart, for tests that stop it themselves.
    pub(crate) fn into_parts(self) -> (App, TempDir, Channel) {
        let Self { app, dir, channel } = self;
        (app, dir, channel)
    }

    pub(crate) fn started(&self) -> &Started {
        self.app.started()
    }

    pub(crate) fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until a call has asked the process to stop.
    pub(crate) async fn stop_asked(&self) {
        soon("the process is asked to stop", self.app.stop_asked()).await;
    }

    /// Where peers are accepted.
    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.started().listen_addrs[0]
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        self.started().record.public_key()
    }

    pub(crate) fn id(&self) -> NodeId {
        self.public_key().id()
    }

    pub(crate) fn enode(&self) -> String {
        self.started().enode.as_ref().unwrap().to_string()
    }

    /// The gRPC connection, for clients with settings of their own.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn messages(&self) -> MessageServiceClient<Channel> {
        MessageServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_RESPONSE)
            .max_encoding_message_size(MAX_RESPONSE)
    }

    pub(crate) fn peers(&self) -> PeerServiceClient<Channel> {
        PeerServiceClient::new(self.channel.clone())
    }

    pub(crate) fn protocols(&self) -> ProtocolServiceClient<Channel> {
        ProtocolServiceClient::new(self.channel.clone())
    }

    pub(crate) fn discovery(&self) -> DiscoveryServiceClient<Channel> {
        DiscoveryServiceClient::new(self.channel.clone())
    }

    pub(crate) fn node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    /// Puts a node on the static list.
    pub(crate) async fn add_static(&self, node: &str) -> StaticPeer {
        let request = AddStaticPeerRequest { node: node.to_owned(), wait: None };
        self.peers().add_static_peer(request).await.unwrap().into_inner().static_peer.unwrap()
    }

    /// The static list.
    pub(crate) async fn static_peers(&self) -> Vec<StaticPeer> {
        self.peers()
            .list_static_peers(ListStaticPeersRequest::default())
            .await
            .unwrap()
            .into_inner()
            .static_peers
    }

    /// Waits until the only static peer is in this state, and returns its entry.
    pub(crate) async fn static_peer_in(&self, state: StaticPeerState) -> StaticPeer {
        eventually(&format!("static peer {state:?}"), async || {
            let entry = self.static_peers().await.pop().unwrap();
            (entry.state() == state).then_some(entry)
        })
        .await
    }

    /// The peer with this id, if it is connected.
    pub(crate) async fn peer(&self, id: NodeId) -> Option<Peer> {
        let answer = self.peers().get_peer(GetPeerRequest { node: id.to_string() }).await;
        answer.ok().map(|answer| answer.into_inner().peer.unwrap())
    }

    /// Waits until a node is connected, and returns the peer.
    pub(crate) async fn connected(&self, id: NodeId) -> Peer {
        eventually("the peer is connected", async || self.peer(id).await).await
    }

    /// Waits until a node is not connected.
    pub(crate) async fn disconnected(&self, id: NodeId) {
        eventually("the peer has left", async || self.peer(id).await.is_none().then_some(())).await;
    }

    /// Hangs up on the sidecar and waits until it has noticed.
    pub(crate) async fn disconnected_after(&self, peer: Liar) {
        let id = peer.key.id();
        drop(peer);
        self.disconnected(id).await;
    }

    /// An application of this sidecar.
    pub(crate) async fn application(&self, spec: proto::RegistrationSpec) -> Application {
        Application::attach(self.messages(), attach(spec)).await.unwrap()
    }

    /// An application with echo/1 alone.
    pub(crate) async fn echo(&self) -> Application {
        self.application(spec("echo-app", &[("echo", 1, 8)])).await
    }
}

/// A gRPC connection.
pub(crate) async fn connect(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap()
}

/// A gRPC connection over a Unix socket.
pub(crate) async fn connect_unix(path: &Path) -> Channel {
    Endpoint::from_shared(format!("unix:{}", path.display())).unwrap().connect().await.unwrap()
}

/// The configuration of these tests with further flags, through the loader that the program uses.
pub(crate) fn config(data_dir: &Path, flags: &[&str]) -> Config {
    let fixed = ["devp2pd", "--nat", "none", "--port", "0"];
    let network: &[&str] = if flags.contains(&"--network") { &[] } else { &["--network", "none"] };
    let loopback: &[&str] = match flags.contains(&"--listen-addr") {
        true => &[],
        false => &["--listen-addr", "127.0.0.1"],
    };
    // Most tests bring their peers; those about discovery switch it on.
    let quiet = flags.iter().all(|flag| !flag.starts_with("--nodiscover")).then_some("--nodiscover");
    let ports = ["--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--data-dir"];
    let args = fixed
        .iter()
        .chain(network)
        .chain(loopback)
        .chain(quiet.iter())
        .chain(&ports)
        .map(Into::into)
        .chain([data_dir.into()]);
    let args = args.chain(flags.iter().map(Into::into));
    match config::load(args, []).unwrap() {
        Request::Run(config) => *config,
        Request::Print(text) => panic!("{text}"),
    }
}

/// A start that may fail.
pub(crate) async fn try_start(data_dir: &Path, flags: &[&str]) -> Result<App, StartError> {
    App::start(config(data_dir, flags)).await
}

/// Two sidecars, each with an application for `echo/1`, connected because the first has the second on its static list.
pub(crate) async fn linked() -> Pair {
    let (a, b) = (Sidecar::start().await, Sidecar::start().await);
    let (mut a_app, mut b_app) = (a.echo().await, b.echo().await);
    a.add_static(&b.enode()).await;
    let (a_channel, b_channel) = (a_app.opened().await.channel_id, b_app.opened().await.channel_id);
    Pair { a, b, a_app, b_app, a_channel, b_channel }
}

/// The result of [`linked`].
pub(crate) struct Pair {
    pub(crate) a: Sidecar,
    pub(crate) b: Sidecar,
    pub(crate) a_app: Application,
    pub(crate) b_app: Application,
    /// The first application's number of its channel to the second.
    pub(crate) a_channel: u32,
    /// And the other way round.
    pub(crate) b_channel: u32,
}
