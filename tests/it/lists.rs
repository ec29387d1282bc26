//! Lists that operators keep: static and trusted peers through their lives, bans, dials on demand, and restarts.

use std::net::SocketAddr;

use devp2pd::{
    node::Enode,
    p2p::DisconnectReason as Reason,
    rpc::proto::{
        self, AddStaticPeerRequest, AddTrustedPeerRequest, Ban, BanPeerRequest, ConnectPeerRequest,
        DisconnectPeerRequest, DisconnectReason, EntrySource, ListBansRequest, ListTrustedPeersRequest, Peer,
        PeerErrorReason, PeerRole, RemoveStaticPeerRequest, RemoveTrustedPeerRequest,
        StaticPeerState as State, TrustedPeer, UnbanPeerRequest, ban_peer_request::Target,
    },
};
use prost_types::Duration;
use tonic::{Code, Status};

use crate::harness::{ClientEventKind, FIRST, Liar, Sidecar, Trap, eventually, message, refused, soon};

/// An address of this machine without a listener.
async fn nowhere() -> SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn enode(seed: u64, addr: SocketAddr) -> String {
    Enode::at(Liar::key_of(seed).public(), addr).to_string()
}

/// A peer that was dialed, honest to the end of its Hello.
async fn greet(trap: &Trap, sidecar: &Sidecar) -> Liar {
    let mut peer = trap.caught(sidecar).await;
    peer.answer().await;
    peer.say_hello(&[("echo", 1)]).await;
    peer.hear_hello().await;
    peer
}

async fn remove(sidecar: &Sidecar, node: &str, keep_connected: bool) -> Result<(), Status> {
    let request = RemoveStaticPeerRequest { node: node.to_owned(), keep_connected };
    sidecar.peers().remove_static_peer(request).await.map(|_| ())
}

async fn connect(sidecar: &Sidecar, node: String, seconds: i64) -> Result<Peer, Status> {
    let request = ConnectPeerRequest { node, timeout: Some(Duration { seconds, nanos: 0 }) };
    Ok(sidecar.peers().connect_peer(request).await?.into_inner().peer.unwrap())
}

#[tokio::test]
async fn a_static_peer_says_at_every_moment_what_it_is_waiting_for() {
    let sidecar = Sidecar::start().await;
    let node = enode(1, nowhere().await);
    let entry = sidecar.add_static(&node).await;
    assert_eq!((entry.state(), entry.source()), (State::WaitingForProtocol, EntrySource::Call));
    assert_eq!((&entry.enode, entry.last_error), (&node, None));

    let _app = sidecar.echo().await;
    let entry = sidecar.static_peer_in(State::BackingOff).await;
    assert_eq!(entry.last_error.unwrap().reason(), PeerErrorReason::Unreachable);
    // Adding it again changes nothing.
    let again = sidecar.add_static(&node).await;
    assert_eq!(again.state(), State::BackingOff);
    // Wall time comes from a clock that moves a little against the one that counts.
    let (before, after) = (entry.next_dial_time.unwrap(), again.next_dial_time.unwrap());
    assert!((before.seconds - after.seconds).abs() <= 1, "{before:?} became {after:?}");

    // Another address for it takes effect at once.
    let trap = Trap::set(1).await;
    sidecar.add_static(&trap.enode()).await;
    let mut peer = trap.caught(&sidecar).await;
    assert_eq!(sidecar.static_peers().await.len(), 1);
    let entry = sidecar.static_peer_in(State::Dialing).await;
    assert!(entry.since.is_some() && entry.enode == trap.enode());
    peer.answer().await;
    peer.say_hello(&[("echo", 1)]).await;
    let entry = sidecar.static_peer_in(State::Connected).await;
    let failed = entry.last_error.expect("what went wrong before is still there");
    assert_eq!(failed.reason(), PeerErrorReason::Unreachable);
    let connected = sidecar.connected(peer.key.id()).await;
    assert_eq!((role(&connected), connected.inbound), (PeerRole::Static, false));

    // The peer has no room: it is asked again later.
    peer.hear_hello().await;
    peer.send(1, &Reason::TooManyPeers.encode()).await;
    let entry = sidecar.static_peer_in(State::BackingOff).await;
    assert_eq!(entry.last_error.unwrap().reason(), PeerErrorReason::TooManyPeers);
    remove(&sidecar, &entry.node_id, false).await.unwrap();
    assert_eq!(sidecar.static_peers().await, []);
}

/// The only role.
fn role(peer: &Peer) -> PeerRole {
    match *peer.roles.as_slice() {
        [] => PeerRole::Unspecified,
        [role] => role.try_into().unwrap(),
        _ => panic!("{:?}", peer.roles),
    }
}

#[tokio::test]
async fn a_removed_static_peer_goes_unless_it_may_stay() {
    let sidecar = Sidecar::start().await;
    let _app = sidecar.echo().await;
    for (seed, keep, trusted, stays) in
        [(1, false, false, false), (2, true, false, true), (3, false, true, true)]
    {
        let trap = Trap::set(seed).await;
        sidecar.add_static(&trap.enode()).await;
        let mut peer = greet(&trap, &sidecar).await;
        let id = peer.id();
        sidecar.connected(peer.key.id()).await;
        if trusted {
            sidecar.peers().add_trusted_peer(AddTrustedPeerRequest { node: id.clone() }).await.unwrap();
        }
        remove(&sidecar, &id, keep).await.unwrap();
        assert_eq!(sidecar.static_peers().await, []);
        if stays {
            peer.send(FIRST, b"still here").await;
            assert!(sidecar.peer(peer.key.id()).await.is_some());
        } else {
            assert_eq!(peer.reason().await, Some(Reason::Requested));
            sidecar.disconnected(peer.key.id()).await;
        }
    }
}

/// Entries that calls added are there after a restart; entries of the configuration stay, whatever calls ask for.
#[tokio::test]
async fn lists_survive_a_restart_and_the_configuration_stands_above_calls() {
    let (trap, configured) = (Trap::set(1).await, Trap::set(2).await);
    let sidecar = Sidecar::start_with(&["--static-peers", &configured.enode()]).await;
    let id = sidecar.id();
    sidecar.add_static(&trap.enode()).await;
    let trusted = Liar::key_of(3).id().to_string();
    sidecar.peers().add_trusted_peer(AddTrustedPeerRequest { node: trusted.clone() }).await.unwrap();
    ban(&sidecar, Target::Ip("203.0.113.7".to_owned()), false).await.unwrap();
    // Adding an entry of the configuration by a call does not make it removable.
    sidecar.add_static(&configured.enode()).await;
    let status = remove(&sidecar, &configured.enode(), false).await.unwrap_err();
    assert_eq!(refused(&status).kind(), (Code::FailedPrecondition, "ENTRY_FROM_CONFIG"));
    let dir = sidecar.stop().await;

    let sidecar = Sidecar::start_in(dir, &["--static-peers", &configured.enode()]).await;
    assert_eq!(sidecar.id(), id, "the key is kept");
    let entries = sidecar.static_peers().await;
    let mut sources: Vec<_> = entries.iter().map(|entry| (entry.enode.clone(), entry.source())).collect();
    sources.sort_by_key(|(_, source)| *source as i32);
    let expected = [(configured.enode(), EntrySource::Config), (trap.enode(), EntrySource::Call)];
    assert_eq!(sources, expected);
    assert_eq!(trusted_peers(&sidecar).await[0].node_id, trusted);
    assert_eq!(bans(&sidecar).await[0].target, "203.0.113.7");
    let _app = sidecar.echo().await;
    let _peers = (greet(&trap, &sidecar).await, greet(&configured, &sidecar).await);
    remove(&sidecar, &trap.enode(), false).await.unwrap();
    let dir = sidecar.stop().await;

    let sidecar = Sidecar::start_in(dir, &[]).await;
    assert_eq!(
        sidecar.static_peers().await,
        [],
        "the removed one, and the one that only the configuration named"
    );
}

async fn trusted_peers(sidecar: &Sidecar) -> Vec<TrustedPeer> {
    sidecar
        .peers()
        .list_trusted_peers(ListTrustedPeersRequest::default())
        .await
        .unwrap()
        .into_inner()
        .trusted_peers
}

/// One slot, and it is for dialing: inbound peers are refused, unless they are trusted.
#[tokio::test]
async fn a_trusted_peer_is_let_in_above_the_limits() {
    let sidecar = Sidecar::start_with(&["--maxpeers", "1"]).await;
    let _app = sidecar.echo().await;
    let mut peer = Liar::connect(&sidecar, 1).await;
    peer.shake_hands().await;
    assert_eq!(peer.reason().await, Some(Reason::TooManyPeers));

    let node = peer.id();
    let request = AddTrustedPeerRequest { node: node.clone() };
    let entry = sidecar.peers().add_trusted_peer(request).await.unwrap().into_inner().trusted_peer.unwrap();
    assert_eq!((&*entry.enode, entry.source()), ("", EntrySource::Call));
    let mut peer = Liar::established(&sidecar, 1).await;
    assert_eq!(role(&sidecar.connected(peer.key.id()).await), PeerRole::Trusted);
    assert_eq!(trusted_peers(&sidecar).await[0].state(), State::Connected);
    sidecar.peers().remove_trusted_peer(RemoveTrustedPeerRequest { node }).await.unwrap();
    peer.send(FIRST, b"stays").await;
    assert_eq!(role(&sidecar.connected(peer.key.id()).await), PeerRole::Unspecified);
    assert_eq!(trusted_peers(&sidecar).await, []);
}

async fn ban(sidecar: &Sidecar, target: Target, force: bool) -> Result<Ban, Status> {
    let duration = Some(Duration { seconds: 3600, nanos: 0 });
    let request = BanPeerRequest { target: Some(target), duration, reason: "spam".to_owned(), force };
    Ok(sidecar.peers().ban_peer(request).await?.into_inner().ban.unwrap())
}

async fn bans(sidecar: &Sidecar) -> Vec<Ban> {
    sidecar.peers().list_bans(ListBansRequest::default()).await.unwrap().into_inner().bans
}

#[tokio::test]
async fn a_banned_node_goes_and_does_not_come_back() {
    let sidecar = Sidecar::start().await;
    let _app = sidecar.echo().await;
    let mut peer = Liar::established(&sidecar, 1).await;
    let (key, id) = (peer.key.clone(), peer.id());
    sidecar.connected(key.id()).await;
    let made = ban(&sidecar, Target::Node(id.clone()), false).await.unwrap();
    assert_eq!((&*made.target, &*made.reason), (&*id, "spam"));
    assert_eq!(peer.reason().await, Some(Reason::Requested));
    sidecar.disconnected(key.id()).await;
    assert_eq!(bans(&sidecar).await, [made]);

    let node = enode(1, nowhere().await);
    let status = sidecar
        .peers()
        .add_static_peer(AddStaticPeerRequest { node: node.clone(), wait: None })
        .await
        .unwrap_err();
    let refusal = refused(&status);
    assert_eq!(refusal.kind(), (Code::FailedPrecondition, "NODE_BANNED"));
    assert_eq!(refusal.metadata.get("target"), Some(&id));
    assert!(refusal.metadata.contains_key("expire_time"));
    let status = connect(&sidecar, node, 5).await.unwrap_err();
    assert_eq!(refused(&status).kind(), (Code::FailedPrecondition, "NODE_BANNED"));
    // It may come with another address; not with another restart of ours.
    let dir = sidecar.stop().await;
    let sidecar = Sidecar::start_in(dir, &[]).await;
    let _app = sidecar.echo().await;
    let mut peer = Liar::connect(&sidecar, 1).await;
    peer.shake_hands().await;
    assert_eq!(peer.reason().await, Some(Reason::Requested));
    let mut other = Liar::established(&sidecar, 2).await;
    other.send(FIRST, b"not banned").await;
    sidecar.connected(other.key.id()).await;

    let target = proto::unban_peer_request::Target::Node(id);
    sidecar.peers().unban_peer(UnbanPeerRequest { target: Some(target) }).await.unwrap();
    assert_eq!(bans(&sidecar).await, []);
    let peer = Liar::established(&sidecar, 1).await;
    sidecar.connected(peer.key.id()).await;
}

#[tokio::test]
async fn a_banned_network_is_closed_without_a_byte_and_listed_peers_need_force() {
    let sidecar = Sidecar::start().await;
    let _app = sidecar.echo().await;
    let trap = Trap::set(1).await;
    sidecar.add_static(&trap.enode()).await;
    let mut peer = greet(&trap, &sidecar).await;
    sidecar.connected(peer.key.id()).await;
    for target in [
        Target::Node(peer.id()),
        Target::Ip("127.0.0.1".to_owned()),
        Target::Subnet("127.0.0.0/8".to_owned()),
    ] {
        let refusal = refused(&ban(&sidecar, target, false).await.unwrap_err());
        assert_eq!(
            (refusal.kind(), &*refusal.fields),
            ((Code::InvalidArgument, "INVALID_FIELD"), &["force".to_owned()][..])
        );
    }
    ban(&sidecar, Target::Subnet("127.0.0.0/8".to_owned()), true).await.unwrap();
    assert_eq!(peer.reason().await, Some(Reason::Requested));
    let entry = sidecar.static_peer_in(State::Refused).await;
    assert!(entry.detail.contains("banned"), "{}", entry.detail);
    let mut stranger = Liar::connect(&sidecar, 2).await;
    stranger.closed_in_silence().await;
    // The ban ends: the static peer is dialed again without anybody asking.
    let target = proto::unban_peer_request::Target::Subnet("127.0.0.0/8".to_owned());
    sidecar.peers().unban_peer(UnbanPeerRequest { target: Some(target) }).await.unwrap();
    let entry = eventually("the entry waits or dials", async || {
        sidecar.static_peers().await.pop().filter(|entry| entry.state() != State::Refused)
    })
    .await;
    assert!(matches!(entry.state(), State::BackingOff | State::Dialing), "{:?}", entry.state());
}

#[tokio::test]
async fn a_dial_on_demand_answers_the_peer_or_the_reason() {
    let (sidecar, other) = (Sidecar::start().await, Sidecar::start().await);
    let (_app, _other_app) = (sidecar.echo().await, other.echo().await);
    let peer = connect(&sidecar, other.enode(), 20).await.unwrap();
    assert_eq!((&*peer.node_id, role(&peer)), (&*other.id().to_string(), PeerRole::Unspecified));
    let again = connect(&sidecar, other.id().to_string(), 20).await.unwrap();
    assert_eq!(again.session_id, peer.session_id);
    assert_eq!(sidecar.static_peers().await, [], "no list entry");

    let (silent, useless, full) = (Trap::set(2).await, Trap::set(3).await, Trap::set(4).await);
    let failed = |status: Status, cause: &str| {
        let refusal = refused(&status);
        assert_eq!(refusal.kind(), (Code::FailedPrecondition, "DIAL_FAILED"), "{status}");
        assert_eq!(refusal.metadata.get("cause").map(String::as_str), Some(cause), "{status}");
    };
    failed(connect(&sidecar, enode(1, nowhere().await), 20).await.unwrap_err(), "unreachable");
    // Whoever listens there has another key: it cannot read our auth, and hangs up.
    let wrong = Enode { public_key: Liar::key_of(9).public(), ..other.enode().parse().unwrap() };
    failed(connect(&sidecar, wrong.to_string(), 20).await.unwrap_err(), "hung_up");

    let (status, _caught) = tokio::join!(connect(&sidecar, silent.enode(), 1), silent.caught(&sidecar));
    assert_eq!(refused(&status.unwrap_err()).kind(), (Code::DeadlineExceeded, "TIMED_OUT"));
    let (status, mut caught) = tokio::join!(connect(&sidecar, useless.enode(), 20), async {
        let mut caught = useless.caught(&sidecar).await;
        caught.answer().await;
        caught.say_hello(&[("nothing", 1)]).await;
        caught
    });
    failed(status.unwrap_err(), "useless_peer");
    assert_eq!(caught.hear_hello().await.capabilities.len(), 1);
    assert_eq!(caught.reason().await, Some(Reason::UselessPeer));
    let (status, ()) = tokio::join!(connect(&sidecar, full.enode(), 20), async {
        let mut caught = full.caught(&sidecar).await;
        caught.answer().await;
        caught.write_frame(1, &Reason::TooManyPeers.encode()).await;
        caught.drained().await;
    });
    failed(status.unwrap_err(), "too_many_peers");
}

/// Messages that were accepted for the peer go first, then the operator's reason, then the end.
#[tokio::test]
async fn a_disconnect_flushes_messages_and_the_reason() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let trap = Trap::set(1).await;
    sidecar.add_static(&trap.enode()).await;
    let mut peer = greet(&trap, &sidecar).await;
    let channel = app.opened().await.channel_id;
    for number in 0..100 {
        app.tell(ClientEventKind::Message(message(channel, 0, vec![number; 1000]))).await;
    }
    app.barrier(1).await;
    let reason = DisconnectReason::TooManyPeers.into();
    let request = DisconnectPeerRequest { node: peer.id(), reason };
    let answer = sidecar.peers().disconnect_peer(request).await.unwrap().into_inner();
    assert!(answer.next_dial_time.is_some(), "a static peer is redialed");
    for number in 0..100 {
        assert_eq!(soon("a message", peer.receive()).await, Some((FIRST, vec![number; 1000])));
    }
    assert_eq!(peer.reason().await, Some(Reason::TooManyPeers));
    let closed = app.closed().await;
    assert_eq!(
        (closed.reason(), &*closed.by, closed.unsent_messages),
        (DisconnectReason::TooManyPeers, "operator", 0)
    );
    sidecar.static_peer_in(State::BackingOff).await;
}
