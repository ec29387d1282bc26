//! The switch without a process around it: what it does when a disk is slow, a task of its own fails, or it is told to
//! stop.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
};

use super::{
    peers::BanRequest,
    registrations::{LeaseConfig, RegistrationId, Target},
    session::SessionChannel,
    state::Effect,
    work::{Faulted, Job},
    *,
};
use crate::{
    Now,
    lease::{Capability, ProtocolSpec, RegistrationSpec},
    net::{
        bandwidth::Rates,
        clock,
        discovery::{self, Setup},
        listener::Accepted,
    },
    node::{Enode, LocalRecord, NodeKey, NodeRef, local::Ports},
    p2p::{Channel, ChannelIndex, Lane, LocalNode, Refused, RemoteHello},
    policy::{
        BanTarget, Settings,
        dial::{Candidate, ConnectOutcome, EntryState, Source},
        lists::Lists,
    },
};

fn key(n: u8) -> NodeKey {
    let mut scalar = [1; 32];
    scalar[31] = n;
    NodeKey::from_bytes(&scalar).unwrap()
}

fn node(n: u8) -> NodeRef {
    NodeRef::Enode(Enode::at(key(n).public(), SocketAddr::from(([8, 8, n, 1], 30303))))
}

/// A switch that is not running yet, with what it must not lose.
struct Bench {
    switch: Switch,
    handle: Handle,
    lists: watch::Receiver<Option<Lists>>,
    _discovery: Box<dyn std::any::Any>,
    _accepted: mpsc::Sender<Accepted>,
    _candidates: mpsc::Sender<Candidate>,
}

fn bench() -> Bench {
    let (now, rng) = (clock::now(), StdRng::seed_from_u64(7));
    let boards = Boards::new(1);
    let (demand, wanted) = watch::channel(0);
    let (candidates_sender, candidates) = mpsc::channel(8);
    let setup = Setup {
        port: None,
        v4: false,
        v5: false,
        key: key(0),
        local: LocalRecord::new(now, key(0), Ports { tcp: 0, udp: 0 }, None).unwrap(),
        bootnodes_v4: Vec::new(),
        bootnodes_v5: Vec::new(),
        restrict: Vec::new(),
        rate: None,
        db: None,
        demand: wanted,
        candidates: candidates_sender.clone(),
        observer: Box::new(boards.tables()),
        mapped: watch::channel(Default::default()).1,
        rng: rng.clone(),
    };
    let (task, found) = discovery::prepare(now, setup);
    let config = Config {
        local: LocalNode::new(key(0), "test"),
        instance_id: "run".into(),
        leases: LeaseConfig::default(),
        settings: Settings::default(),
        boards,
        inbox_budget: 1 << 20,
        max_shared_stall: Duration::ZERO,
        end_shared_sessions: false,
        network: None,
        rehello: false,
        bandwidth: Rates::default(),
        rng,
    };
    let (accepted, queue) = mpsc::channel(8);
    let (lists_sender, lists) = watch::channel(None);
    let receive_buffer = crate::net::peer_socket::RECEIVE_BUFFER;
    let sources =
        Sources { discovery: None, record: found, demand, candidates, database: None, receive_buffer };
    let (switch, handle) = Switch::new(config, queue, lists_sender, sources);
    let (_accepted, _candidates) = (accepted, candidates_sender);
    Bench { switch, handle, lists, _discovery: Box::new(task), _accepted, _candidates }
}

impl Bench {
    /// An application registers.
    fn register(&mut self, now: Now) {
        let protocol = ProtocolSpec {
            capability: Capability::new("echo", 1, 2),
            max_message_bytes: 0,
            keep_first: 0,
            greeting: Vec::new(),
        };
        let spec = RegistrationSpec {
            client_id: "app".into(),
            protocols: vec![protocol],
            linger: None,
            overflow: Default::default(),
            channel_queue_bytes: 0,
            wanted: Default::default(),
            desired_peers: 0,
        };
        let caller = Principal { name: "me".into(), proven: true, operator: true };
        self.switch.state.register(now, &caller, &Target::Spec(spec), "", false).unwrap();
        self.switch.state.settle(now);
    }

    /// The dials that are wanted.
    fn dials(&mut self) -> Vec<crate::policy::dial::Dial> {
        let effects = std::mem::take(&mut self.switch.state.effects);
        let dials = effects.into_iter().filter_map(|effect| match effect {
            Effect::Dial(dial) => Some(dial),
            _ => None,
        });
        dials.collect()
    }
}

/// Both ends of a TCP connection.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ours, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (ours.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn lists_that_nobody_takes_hold_nothing_up() {
    let Bench { switch, handle, lists, _discovery, _accepted, _candidates } = bench();
    let (stop, stopped) = oneshot::channel();
    let running = tokio::spawn(switch.run(stopped));
    for n in 0..50 {
        let target = BanTarget::ip([192, 0, 2, n].into());
        let duration = Duration::from_secs(600);
        let ban = BanRequest { target, duration, reason: String::new(), force: false };
        handle.ban(ban).await.unwrap().unwrap();
    }
    assert_eq!(handle.peers().await.unwrap().len(), 0);
    let newest = lists.borrow().clone().unwrap();
    assert_eq!(newest.bans.len(), 50, "the newest state is there to be written");
    drop(stop);
    running.await.unwrap();
}

#[tokio::test]
async fn a_connection_whose_task_panics_leaves_no_peer_behind() {
    let mut bench = bench();
    let now = clock::now();
    bench.register(now);
    let (_far, stream) = connection().await;
    let remote = stream.peer_addr().unwrap();
    let state = &mut bench.switch.state;
    state.accepted(now, Accepted { stream, remote });
    let id = *state.links.keys().next().unwrap();
    // What the task would have reported on its way to a session.
    let (reply, admitted) = oneshot::channel();
    let who = key(1).public();
    state.event(now, connection_event(id, who, reply));
    let offered = admitted.await.unwrap().unwrap();
    assert_eq!(offered.len(), 1);
    let (reply, opened) = oneshot::channel();
    let hello = RemoteHello { version: 5, client: "far".into(), capabilities: Vec::new(), listen_port: 0 };
    let channel =
        Channel { index: ChannelIndex(0), name: "echo".into(), version: 1, offset: 16, message_count: 2 };
    state.event(
        now,
        crate::net::connection::Event::Negotiated {
            connection: id,
            hello: Arc::new(hello),
            channels: [channel].into(),
            reply,
        },
    );
    assert!(
        matches!(opened.await.unwrap(), Ok(crate::net::connection::Open::Session(sinks)) if sinks.len() == 1)
    );
    let session = Arc::clone(state.sessions.values().next().unwrap());
    let SessionChannel { index, .. } = session.channels[0];

    state.faulted(now, Faulted { job: Job::Connection(id), said: "a fault".into() });
    state.settle(now);
    assert!(state.links.is_empty() && state.sessions.is_empty());
    assert_eq!(state.policy.peers().count(), 0, "its slot is free");
    assert!(state.boards.peers.read(|board| board.peers.is_empty()), "watchers are told");
    // And nobody queues messages for it any more.
    let message = crate::rlpx::Compressor::default().compress(b"lost").unwrap();
    assert!(matches!(session.outbound.send(Lane::Call, index, 0, message), Err(Refused::Closed)));
}

fn connection_event(
    connection: crate::net::connection::ConnectionId,
    remote: crate::node::PublicKey,
    reply: oneshot::Sender<crate::net::connection::Admission>,
) -> crate::net::connection::Event {
    crate::net::connection::Event::Authenticated { connection, remote, reply }
}

#[tokio::test]
async fn a_dial_whose_task_panics_has_failed() {
    let mut bench = bench();
    let now = clock::now();
    bench.register(now);
    bench.switch.state.add_static(now, &node(1)).unwrap();
    bench.switch.state.settle(now);
    let dial = bench.dials().pop().unwrap();
    let state = &mut bench.switch.state;
    state.faulted(now, Faulted { job: Job::Dial(dial), said: "a fault".into() });
    let [entry] = &state.static_peers(now)[..] else { panic!("one entry") };
    assert!(!matches!(entry.state, EntryState::Dialing { .. }), "{:?}", entry.state);
    assert!(entry.last_error.is_some());
}

#[tokio::test]
async fn while_it_stops_nobody_is_dialed_and_every_dial_is_answered() {
    let mut bench = bench();
    let now = clock::now();
    bench.register(now);
    bench.switch.state.add_static(now, &node(1)).unwrap();
    bench.switch.state.settle(now);
    let under_way = bench.dials().pop().unwrap();

    bench.switch.state.drain();
    // A dial that was under way opens its connection now: it is closed, and the dial has failed.
    let (_far, stream) = connection().await;
    bench.switch.state.dialed(now, &under_way, Ok(stream));
    assert!(bench.switch.state.links.is_empty());
    // New wishes of all kinds.
    bench.switch.state.add_static(now, &node(2)).unwrap();
    let (reply, mut answer) = oneshot::channel();
    bench.switch.state.connect(now, &node(3), Duration::from_secs(5), reply);
    let (public_key, addr) = (key(4).public(), SocketAddr::from(([8, 8, 4, 1], 30303)));
    let served = Duration::ZERO;
    let candidate = Candidate { public_key, addr, record: None, source: Source::V4, served };
    bench.switch.state.candidate(now, candidate);
    bench.switch.state.settle(now);
    assert_eq!(bench.dials(), [], "no more dials");
    for entry in bench.switch.state.static_peers(now) {
        assert!(!matches!(entry.state, EntryState::Dialing { .. }), "{:?}", entry.state);
    }
    let answer = answer.try_recv().unwrap();
    assert!(matches!(answer, Err(ConnectOutcome::Failed { .. })), "{answer:?}");
}

#[tokio::test]
async fn kept_entries_that_have_no_place_any_more_stop_no_start() {
    let mut bench = bench();
    let words = |n: u8| key(n).public().to_string();
    let lists = Lists {
        static_peers: vec![words(0), words(1)],
        trusted_peers: vec![words(0), words(2)],
        ..Lists::default()
    };
    bench.switch.restore(&[], &[], &lists.parse().unwrap()).unwrap();
    let now = clock::now();
    let ids = |entries: Vec<crate::policy::dial::ListEntry>| entries.iter().map(|e| e.id).collect::<Vec<_>>();
    assert_eq!(ids(bench.switch.state.static_peers(now)), [key(1).id()]);
    assert_eq!(ids(bench.switch.state.trusted_peers(now)), [key(2).id()]);
    assert!(bench.lists.borrow().is_none(), "what was just read is not written");
    let _ = bench.handle;
}

/// A registration with several channels of a session is one application.
#[test]
fn applications_are_counted_and_not_their_channels() {
    let [one, two, three] = [1, 2, 3].map(|n| RegistrationId::parse(&format!("{n:016x}")).unwrap());
    let owners = [one, two, two, one, two];
    assert_eq!(holdings::others_than(one, owners.into_iter()), 1, "eth and snap of one other client");
    assert_eq!(holdings::others_than(three, owners.into_iter()), 2);
    assert_eq!(holdings::others_than(one, [one, one].into_iter()), 0);
}
