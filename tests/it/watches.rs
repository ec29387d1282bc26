//! Watches: a copy of peers, nodes and registrations in a client, kept true through changes, breaks and neglect.

use std::collections::BTreeMap;

use devp2pd::{
    net::switch::watches::MAX_WATCHERS_OF_ONE,
    p2p::DisconnectReason as Reason,
    rpc::proto::{
        AddBootnodeRequest, AddStaticPeerRequest, AddTrustedPeerRequest, BanPeerRequest, ChangeType,
        DeleteRegistrationRequest, DisconnectPeerRequest, DisconnectReason, FailedAttempt, ListPeersRequest,
        NodeRemoval, Peer, PeerErrorReason, PeerRole, PeerSource, RegistrationState,
        StaticPeerState as State, WatchMark, WatchNodesRequest, WatchPeersRequest, WatchPeersResponse,
        WatchRegistrationsRequest, ban_peer_request, delete_registration_request, failed_attempt::Attempt,
        peer_service_client::PeerServiceClient,
    },
};
use prost_types::Duration;
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint},
};

use crate::harness::{Liar, Sidecar, Trap, connect, eventually, refused, soon, spec};

const NEVER: Option<Duration> = Some(Duration { seconds: 3600, nanos: 0 });

/// A client's copy of the connected peers, as a watch reports them.
struct Copy {
    frames: Streaming<WatchPeersResponse>,
    peers: BTreeMap<String, Peer>,
    attempts: Vec<FailedAttempt>,
    /// Changes as they came: what, whom, and the end's reason.
    log: Vec<(ChangeType, String, Option<DisconnectReason>)>,
    mark: WatchMark,
    /// Changes that were folded, over all marks.
    coalesced: u64,
}

impl Copy {
    async fn begin(sidecar: &Sidecar, token: &str) -> Self {
        Self::over(sidecar.peers(), token).await
    }

    async fn over(mut client: PeerServiceClient<Channel>, token: &str) -> Self {
        let request = WatchPeersRequest { resume_token: token.to_owned(), mark_interval: NEVER };
        let frames = client.watch_peers(request).await.unwrap().into_inner();
        let (peers, attempts, log) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { frames, peers, attempts, log, mark: WatchMark::default(), coalesced: 0 }
    }

    /// The next frame.
    async fn step(&mut self) {
        let frame = soon("a frame", self.frames.message()).await.unwrap().expect("the watch goes on");
        self.mark = frame.mark.unwrap();
        self.coalesced += self.mark.coalesced;
        if self.mark.reset {
            assert!(frame.changes.is_empty(), "nothing stands before a reset");
            self.peers.clear();
        }
        for change in frame.changes {
            let (kind, peer) = (change.r#type(), change.peer.unwrap());
            let id = peer.node_id.clone();
            let known = match kind {
                ChangeType::Removed => self.peers.remove(&id).is_some(),
                _ => self.peers.insert(id.clone(), peer).is_some(),
            };
            let expected = matches!(kind, ChangeType::Removed | ChangeType::Updated);
            assert_eq!(known, expected, "{kind:?} of {id}");
            // A watcher that was behind may get the end of a peer when it is back already; then the way in which it
            // left is lost.
            assert!(change.end.is_none() || kind == ChangeType::Removed);
            self.log.push((kind, id, change.end.map(|end| end.reason())));
        }
        self.attempts.extend(frame.failed_attempts);
        assert_eq!(frame.missed_attempts, []);
    }

    async fn synced(&mut self) {
        while !self.mark.synced {
            self.step().await;
        }
    }

    /// Reads until so many changes came.
    async fn changes(&mut self, count: usize) {
        while self.log.len() < count {
            self.step().await;
        }
    }
}

async fn listed(sidecar: &Sidecar) -> Vec<Peer> {
    sidecar.peers().list_peers(ListPeersRequest::default()).await.unwrap().into_inner().peers
}

#[tokio::test]
async fn a_watch_begins_with_a_snapshot_and_tells_how_and_why_peers_come_and_go() {
    let sidecar = Sidecar::start().await;
    let _app = sidecar.echo().await;
    let first = Liar::established(&sidecar, 1).await;
    sidecar.connected(first.key.id()).await;
    let mut watch = Copy::begin(&sidecar, "").await;
    watch.synced().await;
    assert_eq!(watch.log, [(ChangeType::Snapshot, first.id(), None)]);
    assert_eq!(watch.peers[&first.id()].source(), PeerSource::Inbound);
    assert_eq!(watch.peers[&first.id()].transport, "rlpx");

    let trap = Trap::set(2).await;
    sidecar.add_static(&trap.enode()).await;
    let mut second = trap.caught(&sidecar).await;
    second.answer().await;
    second.say_hello(&[("echo", 1)]).await;
    watch.changes(2).await;
    assert_eq!(watch.peers[&second.id()].source(), PeerSource::Static);
    assert_eq!(watch.peers[&second.id()].roles, [i32::from(PeerRole::Static)]);

    // A role is a change; an entry that changes in other ways is none.
    sidecar.peers().add_trusted_peer(AddTrustedPeerRequest { node: first.id() }).await.unwrap();
    watch.changes(3).await;
    assert_eq!(watch.peers[&first.id()].roles, [i32::from(PeerRole::Trusted)]);

    let gone = DisconnectPeerRequest { node: first.id(), reason: DisconnectReason::UselessPeer.into() };
    sidecar.peers().disconnect_peer(gone).await.unwrap();
    watch.changes(4).await;
    assert_eq!(watch.log[3], (ChangeType::Removed, first.id(), Some(DisconnectReason::UselessPeer)));
    second.hear_hello().await;
    second.send(1, &Reason::TooManyPeers.encode()).await;
    watch.changes(5).await;
    assert_eq!(watch.log[4], (ChangeType::Removed, second.id(), Some(DisconnectReason::TooManyPeers)));
    assert!(watch.peers.is_empty());
}

#[tokio::test]
async fn a_broken_watch_goes_on_where_it_was_and_any_other_token_begins_anew() {
    let sidecar = Sidecar::start().await;
    let _app = sidecar.echo().await;
    let stays = Liar::established(&sidecar, 1).await;
    let goes = Liar::established(&sidecar, 2).await;
    let mut watch = Copy::begin(&sidecar, "").await;
    watch.synced().await;
    eventually("both are there", async || (listed(&sidecar).await.len() == 2).then_some(())).await;
    while watch.peers.len() < 2 {
        watch.step().await;
    }
    let token = watch.mark.resume_token.clone();
    drop(watch);
    let gone = goes.id();
    sidecar.disconnected_after(goes).await;
    let comes = Liar::established(&sidecar, 3).await;
    sidecar.connected(comes.key.id()).await;

    let mut again = Copy::begin(&sidecar, &token).await;
    again.peers.insert(gone.clone(), Peer::default());
    again.changes(2).await;
    assert!(!again.mark.reset && !again.mark.synced);
    assert_eq!((again.log[0].0, &again.log[0].1), (ChangeType::Removed, &gone));
    assert_eq!((again.log[1].0, &again.log[1].1), (ChangeType::Added, &comes.id()));

    for token in [format!("{:032x}", 7), "from somewhere else".to_owned()] {
        let mut anew = Copy::begin(&sidecar, &token).await;
        anew.step().await;
        assert!(anew.mark.reset, "{token}");
        anew.synced().await;
        let have: Vec<_> = anew.peers.keys().cloned().collect();
        let mut want = vec![stays.id(), comes.id()];
        want.sort();
        assert_eq!(have, want);
    }
}

#[tokio::test]
async fn failed_dials_and_refused_connections_are_told_with_their_reasons() {
    let sidecar = Sidecar::start_with(&["--maxpeers", "1"]).await;
    let _app = sidecar.echo().await;
    let mut watch = Copy::begin(&sidecar, "").await;
    watch.synced().await;

    let nowhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dead = devp2pd::node::Enode::at(Liar::key_of(9).public(), nowhere);
    sidecar.add_static(&dead.to_string()).await;
    let banned = Liar::key_of(8).id().to_string();
    let target = Some(ban_peer_request::Target::Node(banned.clone()));
    let duration = Some(Duration { seconds: 600, nanos: 0 });
    let ban = BanPeerRequest { target, duration, reason: String::new(), force: false };
    sidecar.peers().ban_peer(ban).await.unwrap();
    let mut refused = Liar::connect(&sidecar, 8).await;
    refused.shake_hands().await;
    refused.reason().await;
    let mut garbled = Liar::connect(&sidecar, 7).await;
    garbled.write(&[0xff; 600]).await;
    garbled.drained().await;

    let mut left = vec![
        ("dial", dead.id().to_string(), "UNREACHABLE".to_owned()),
        ("inbound", banned, "banned_node".to_owned()),
        ("inbound", String::new(), "GARBLED".to_owned()),
    ];
    while !left.is_empty() {
        while watch.attempts.is_empty() {
            watch.step().await;
        }
        let attempt = watch.attempts.remove(0);
        assert!(attempt.time.is_some());
        let name =
            |reason: PeerErrorReason| reason.as_str_name().replace("PEER_ERROR_REASON_", "").to_owned();
        let told = match attempt.attempt.unwrap() {
            Attempt::Dial(dial) => {
                assert_eq!((dial.source(), dial.address.clone()), (PeerSource::Static, nowhere.to_string()));
                ("dial", dial.node_id.clone(), name(dial.reason()))
            }
            Attempt::Inbound(inbound) => {
                assert!(inbound.remote_address.starts_with("127.0.0.1:"));
                let why = match inbound.failure() {
                    PeerErrorReason::Unspecified => inbound.refusal.clone(),
                    failure => name(failure),
                };
                ("inbound", inbound.node_id, why)
            }
        };
        // The dead node is dialed again and again.
        if let Some(at) = left.iter().position(|expected| *expected == told) {
            left.remove(at);
        } else {
            assert_eq!(told.0, "dial", "{told:?}");
        }
    }
    assert_eq!(watch.log, [], "no node became a peer");
}

#[tokio::test]
async fn a_watcher_that_slept_through_churn_wakes_up_to_what_is_true() {
    let sidecar = Sidecar::start_with(&["--maxpeers", "50"]).await;
    let _app = sidecar.echo().await;
    // A client that takes 4 KiB and then sleeps: unread changes must not be queued anywhere.
    let endpoint = Endpoint::from_shared(format!("http://{}", sidecar.started().grpc_addr)).unwrap();
    let narrow = endpoint.initial_stream_window_size(4 * 1024).connect().await.unwrap();
    let mut watch = Copy::over(PeerServiceClient::new(narrow), "").await;
    watch.synced().await;
    // 20 rounds of 20 peers that come and go.
    let mut staying = Vec::new();
    for round in 0..20 {
        let mut peers = Vec::new();
        for seed in 0..20 {
            peers.push(Liar::established(&sidecar, 1 + seed).await);
        }
        for peer in peers {
            if round == 19 && staying.len() < 10 {
                staying.push(peer);
            } else {
                sidecar.disconnected_after(peer).await;
            }
        }
    }
    let truth = listed(&sidecar).await;
    assert_eq!(truth.len(), staying.len());
    while watch.peers.values().ne(truth.iter()) {
        watch.step().await;
    }
    let (told, changes) = (watch.log.len() as u64, 2 * 20 * 20 - staying.len() as u64);
    assert!(told < changes / 2, "{told} of {changes} changes waited for a client that slept");
    assert!(told + watch.coalesced >= changes, "{told} told and {} folded of {changes}", watch.coalesced);
}

#[tokio::test]
async fn registrations_are_watched_from_their_first_state_to_their_last() {
    let sidecar = Sidecar::start().await;
    let request = WatchRegistrationsRequest { resume_token: String::new(), mark_interval: NEVER };
    let mut frames = sidecar.protocols().watch_registrations(request).await.unwrap().into_inner();
    let mut next = async || loop {
        let mut frame = soon("a frame", frames.message()).await.unwrap().unwrap();
        assert!(frame.changes.len() <= 1);
        if let Some(change) = frame.changes.pop() {
            let kind = change.r#type();
            break (kind, change.registration.unwrap());
        }
    };
    let app = sidecar.application(spec("watched", &[("echo", 1, 8)])).await;
    let (kind, registration) = next().await;
    assert_eq!((kind, registration.state()), (ChangeType::Added, RegistrationState::Attached));
    assert_eq!(registration.spec.unwrap().client_id, "watched");
    let peer = Liar::established(&sidecar, 1).await;
    let (kind, registration) = next().await;
    assert_eq!((kind, registration.open_channels), (ChangeType::Updated, 1));
    drop(app);
    let (kind, registration) = next().await;
    assert_eq!((kind, registration.state()), (ChangeType::Updated, RegistrationState::Lingering));
    assert!(registration.expire_time.is_some());
    let by = delete_registration_request::Registration::ClientId("watched".to_owned());
    let delete = DeleteRegistrationRequest { registration: Some(by) };
    sidecar.protocols().delete_registration(delete).await.unwrap();
    let (kind, _) = next().await;
    assert_eq!(kind, ChangeType::Removed);
    drop(peer);
}

#[tokio::test]
async fn nodes_are_watched_as_they_come_prove_themselves_and_die() {
    // Each with discovery alone: no node dials.
    let flags = ["--nodiscover=false", "--nodial"];
    let (watcher, other) = (Sidecar::start_with(&flags).await, Sidecar::start_with(&flags).await);
    let request = WatchNodesRequest { mark_interval: NEVER, ..WatchNodesRequest::default() };
    let mut frames = watcher.discovery().watch_nodes(request).await.unwrap().into_inner();
    let enr = other.started().record.to_string();
    watcher.node().add_bootnode(AddBootnodeRequest { node: enr }).await.unwrap();
    let id = other.id().to_string();
    let mut live = std::collections::BTreeSet::new();
    let mut other = Some(other);
    let mut dead = std::collections::BTreeSet::new();
    while dead.len() < 2 {
        let frame = soon("a frame", frames.message()).await.unwrap().unwrap();
        for change in frame.changes {
            let (kind, removal) = (change.r#type(), change.removal());
            let node = change.node.unwrap();
            assert_eq!(node.node.as_ref().unwrap().node_id, id);
            match kind {
                ChangeType::Added | ChangeType::Updated if node.live_checks > 0 => {
                    live.insert(node.table);
                }
                ChangeType::Removed => {
                    assert_eq!(removal, NodeRemoval::Dead);
                    assert!(change.removal_time.is_some());
                    dead.insert(node.table);
                }
                _ => {}
            }
        }
        if live.len() == 2
            && let Some(other) = other.take()
        {
            other.stop().await;
        }
    }
}

#[tokio::test]
async fn adding_a_static_peer_can_wait_for_its_first_dial() {
    let sidecar = Sidecar::start().await;
    let add = async |node: String, seconds: i64| {
        let wait = Some(Duration { seconds, nanos: 0 });
        let answer = sidecar.peers().add_static_peer(AddStaticPeerRequest { node, wait }).await;
        answer.map(|answer| answer.into_inner().static_peer.unwrap())
    };
    let nowhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dead = devp2pd::node::Enode::at(Liar::key_of(9).public(), nowhere).to_string();
    // Nothing is registered: the wait runs out, and the error names the missing condition.
    assert_eq!(add(dead.clone(), 1).await.unwrap().state(), State::WaitingForProtocol);
    let _app = sidecar.echo().await;
    sidecar.static_peer_in(State::BackingOff).await;
    // A new outcome is waited for, not the one that is known.
    let trap = Trap::set(1).await;
    let (added, ()) = tokio::join!(add(trap.enode(), 60), async {
        let mut peer = trap.caught(&sidecar).await;
        peer.answer().await;
        peer.say_hello(&[("echo", 1)]).await;
        peer.hear_hello().await;
    });
    assert_ne!(added.unwrap().state(), State::Dialing, "the peer connected, and perhaps left again");
    let other = devp2pd::node::Enode::at(Liar::key_of(8).public(), nowhere).to_string();
    let failed = add(other, 60).await.unwrap();
    assert_eq!(failed.state(), State::BackingOff);
    assert_eq!(failed.last_error.unwrap().reason(), PeerErrorReason::Unreachable);
    let negative = add(dead, -1).await.unwrap_err();
    assert_eq!(refused(&negative).fields, ["wait"]);
}

#[tokio::test]
async fn the_number_of_watches_is_bounded_and_a_closed_one_makes_room() {
    let sidecar = Sidecar::start().await;
    let mut open = Vec::new();
    // One connection has room for more streams than that.
    let channel = connect(sidecar.started().grpc_addr).await;
    let mut peers = PeerServiceClient::new(channel);
    for _ in 0..MAX_WATCHERS_OF_ONE {
        open.push(peers.watch_peers(WatchPeersRequest::default()).await.unwrap());
    }
    let status = peers.watch_peers(WatchPeersRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), refused(&status).reason.as_str()), (Code::ResourceExhausted, "LIMIT_REACHED"));
    let wrong =
        WatchPeersRequest { mark_interval: Some(Duration::default()), ..WatchPeersRequest::default() };
    assert_eq!(refused(&peers.watch_peers(wrong).await.unwrap_err()).fields, ["mark_interval"]);
    open.pop();
    eventually("a place is free again", async || peers.watch_peers(WatchPeersRequest::default()).await.ok())
        .await;
}

#[tokio::test]
async fn a_watch_ends_with_the_sidecar_and_says_so() {
    let sidecar = Sidecar::start().await;
    let mut watch = Copy::begin(&sidecar, "").await;
    watch.synced().await;
    let (app, _dir, _channel) = sidecar.into_parts();
    let (status, _) =
        tokio::join!(async { soon("an end", watch.frames.message()).await.unwrap_err() }, app.stop());
    assert_eq!((status.code(), refused(&status).reason.as_str()), (Code::Unavailable, "SERVER_DRAINING"));
}
