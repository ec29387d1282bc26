//! The driver of the switch alone: its behaviour when a disk is slow, or when one of its tasks panics.

use std::{net::SocketAddr, time::Duration};

use rand::{SeedableRng as _, rngs::StdRng};

use super::*;
use crate::{
    Now,
    budget::Budgets,
    lease::{self, Capability, ProtocolSpec, RegistrationSpec},
    net::{
        bandwidth::Rates,
        discovery::{self, Setup},
    },
    node::{
        NodeKey,
        local::{LocalRecord, Ports},
    },
    p2p::{Channel, ChannelIndex, Lane, LocalNode, Refused, RemoteHello, session::Open},
    policy::{
        BanTarget, Settings,
        dial::{Dial, EntryState},
    },
    switch::{Principal, peers::BanRequest, registration::RegistrationRef},
};

fn key(n: u8) -> NodeKey {
    let mut scalar = [1; 32];
    scalar[31] = n;
    NodeKey::from_bytes(&scalar).unwrap()
}

fn node(n: u8) -> NodeRef {
    NodeRef::Enode(Enode::at(key(n).public(), SocketAddr::from(([8, 8, n, 1], 30303))))
}

/// A switch that is not running yet, and the other ends of its queues, which must stay open.
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
    let watches = Watches::new(1);
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
        observer: Box::new(watches.tables()),
        mapped: watch::channel(Default::default()).1,
        rng: rng.clone(),
    };
    let (task, found) = discovery::prepare(now, setup);
    let config = Config {
        local: LocalNode::new(key(0), "test"),
        instance_id: "run".into(),
        leases: lease::Config::default(),
        settings: Settings::default(),
        watches,
        budgets: Budgets::new(0),
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
    /// Registers an application.
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
        self.switch.desk.engine.register(now, &caller, &RegistrationRef::Spec(spec), "", false).unwrap();
    }

    /// Returns the dials that the engine wants.
    fn dials(&mut self, now: Now) -> Vec<Dial> {
        let dials =
            std::iter::from_fn(|| self.switch.desk.engine.poll_effect(now)).filter_map(
                |effect| match effect {
                    Effect::Dial(dial) => Some(dial),
                    _ => None,
                },
            );
        dials.collect()
    }
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
        handle.run(|switch, now| switch.peers().ban(now, ban)).await.unwrap().unwrap();
    }
    assert_eq!(handle.run(|switch, _| switch.peers().all()).await.unwrap().len(), 0);
    let newest = lists.borrow().clone().unwrap();
    assert_eq!(newest.bans.len(), 50, "the newest state can be written");
    drop(stop);
    running.await.unwrap();
}

#[tokio::test]
async fn a_connection_whose_task_panics_leaves_no_peer_behind() {
    let mut bench = bench();
    let now = clock::now();
    bench.register(now);
    let remote: SocketAddr = ([192, 0, 2, 1], 30303).into();
    let engine = &mut bench.switch.desk.engine;
    let id = engine.accepted(now, remote, remote).unwrap().id;
    // The reports that the task would have made until the session opened.
    assert_eq!(engine.authenticated(now, id, key(1).public()).unwrap().len(), 1);
    let hello = RemoteHello { version: 5, client: "far".into(), capabilities: Vec::new(), listen_port: 0 };
    let channel =
        Channel { index: ChannelIndex(0), name: "echo".into(), version: 1, offset: 16, message_count: 2 };
    let opening = engine.negotiated(now, id, Arc::new(hello), &[channel]);
    assert!(matches!(opening, Ok(Open::Session(inboxes)) if inboxes.len() == 1));
    let session = Arc::clone(&engine.peers().all()[0].session);

    bench.switch.faulted(Faulted { job: Job::Connection(id), said: "a fault".into() });
    let engine = &mut bench.switch.desk.engine;
    while engine.poll_effect(now).is_some() {}
    assert_eq!((engine.connections(), engine.peers().all().len()), (0, 0));
    assert_eq!(engine.peers().summary(now).inbound, 0, "its slot is free");
    assert!(bench.handle.watches().peers.read(|views| views.peers.is_empty()), "the watched views change");
    // No message can be queued for the session any more.
    let message = crate::rlpx::Compressor::default().compress(b"lost").unwrap();
    let sent = session.outbound.send(Lane::Call, session.channels[0].index, 0, message);
    assert!(matches!(sent, Err(Refused::Closed)));
}

#[tokio::test]
async fn a_dial_whose_task_panics_has_failed() {
    let mut bench = bench();
    let now = clock::now();
    bench.register(now);
    bench.switch.desk.engine.peers().add_static(now, &node(1)).unwrap();
    let dial = bench.dials(now).pop().unwrap();
    bench.switch.faulted(Faulted { job: Job::Dial(dial), said: "a fault".into() });
    let [entry] = &bench.switch.desk.engine.peers().static_peers(now)[..] else { panic!("one entry") };
    assert!(!matches!(entry.state, EntryState::Dialing { .. }), "{:?}", entry.state);
    assert!(entry.last_error.is_some());
}

#[tokio::test]
async fn lists_that_were_just_read_are_not_written() {
    let mut bench = bench();
    let words = |n: u8| key(n).public().to_string();
    let lists = Lists { static_peers: vec![words(0), words(1)], ..Lists::default() };
    bench.switch.restore(&[], &[], &lists.parse().unwrap()).unwrap();
    let (stop, stopped) = oneshot::channel();
    let running = tokio::spawn(bench.switch.run(stopped));
    assert_eq!(bench.handle.run(|switch, now| switch.peers().static_peers(now)).await.unwrap().len(), 1);
    assert!(bench.lists.borrow().is_none());
    drop(stop);
    running.await.unwrap();
}
