//! Scripts of events for one switch, in virtual time: no task, no socket, no driver. After each step the parts must
//! agree with each other ([`World::check`]).

mod peers;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{SeedableRng as _, rngs::StdRng};

use super::{
    attachment::{Attachment, Batch, PeerChannel, Read},
    calls::{Answer, CallId},
    registration::{Acting, AttachRequest, Attached, Ended, Lookup, RegistrationRef, SwitchError},
    testing::key,
    views::{PeerState, Views},
    *,
};
use crate::{
    Now, Wake,
    budget::Budgets,
    delivery::Event,
    lease::{Capability, MAX_LINGER, ProtocolSpec, RegistrationSpec},
    node::{Enode, NodeId, NodeRef, RegistrationId},
    p2p::{
        self, Channel, ChannelIndex, DisconnectReason, HeldTime, Inbound, LocalCapability, RemoteHello, Side,
        Source as _,
        session::{ChannelInboxes, ConnectionId, Control, End, Open, Opening},
    },
    policy::{
        Cause, Settings,
        dial::{Candidate, ConnectOutcome, Dial, EntryState, Source},
        lists::Lists,
    },
};

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A switch, its time, and the effects that no test has taken yet.
struct World {
    now: Now,
    engine: Engine,
    views: Views,
    effects: Vec<Effect>,
}

fn addr(n: u8) -> SocketAddr {
    ([8, 8, n, 1], 30303).into()
}

fn node(n: u8) -> NodeRef {
    NodeRef::Enode(Enode::at(key(n).public(), addr(n)))
}

fn id(n: u8) -> NodeId {
    key(n).id()
}

fn spec(client: &str, protocols: &[&str]) -> RegistrationSpec {
    let protocols = protocols.iter().map(|name| ProtocolSpec {
        capability: Capability::new(name, 1, 2),
        max_message_bytes: 0,
        keep_first: 0,
        greeting: Vec::new(),
    });
    RegistrationSpec {
        client_id: client.into(),
        protocols: protocols.collect(),
        linger: None,
        overflow: Default::default(),
        channel_queue_bytes: 0,
        wanted: Default::default(),
        desired_peers: 0,
    }
}

fn principal() -> Principal {
    Principal { name: "me".into(), proven: true, operator: false }
}

fn end(by: Side, reason: Option<DisconnectReason>) -> End {
    End { by, reason, detail: String::new(), timed_out: false, proven: true }
}

impl World {
    fn new(settings: Settings, rehello: bool) -> Self {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let mono = Instant::now();
        let now = Now { mono, unix: Duration::from_secs(1_800_000_000) };
        let views = Views::new(1);
        // Without the throttle, which other tests check.
        let settings = Settings { inbound_throttle: Duration::ZERO, ..settings };
        let config = Config {
            local_id: id(0),
            instance_id: "run".into(),
            leases: Default::default(),
            settings,
            views: views.clone(),
            budgets: Budgets::new(0),
            base: Arc::default(),
            max_shared_stall: Duration::ZERO,
            end_shared_sessions: false,
            network: None,
            rehello,
            rng: StdRng::seed_from_u64(7),
        };
        Self { now, engine: Engine::new(now, config), views, effects: Vec::new() }
    }

    /// A switch with default settings and one application, which speaks `echo`.
    fn with_echo() -> (Self, RegistrationId) {
        let mut world = Self::new(Settings::default(), false);
        let echo = world.register("app", &["echo"]);
        (world, echo)
    }

    /// Collects the effects, and checks that the parts agree.
    fn settle(&mut self) {
        while let Some(effect) = self.engine.poll_effect(self.now) {
            self.effects.push(effect);
        }
        self.check();
    }

    /// The conditions that hold whenever there are no more effects: no session without a connection and, unless it is
    /// being ended, a place in the policy; no node with two sessions; watchers see the same peers and registrations as
    /// callers.
    fn check(&mut self) {
        let peers = self.engine.peers().all();
        let nodes: BTreeSet<NodeId> = peers.iter().map(|peer| peer.session.node_id).collect();
        assert_eq!(nodes.len(), peers.len(), "two sessions with one node");
        let in_policy: BTreeSet<(NodeId, ConnectionId)> = self.engine.peers().counted().into_iter().collect();
        let stays = |peer: &&PeerView| {
            in_policy.contains(&(peer.session.node_id, peer.session.id))
                || (&*peer.session.outbound).leaving().is_none()
        };
        let open = peers.iter().filter(stays).map(|peer| (peer.session.node_id, peer.session.id)).collect();
        assert_eq!(in_policy, open, "the policy's peers are the sessions");
        assert!(peers.len() <= self.engine.connections());
        let shown = self.views.peers().read(|views| {
            nodes
                .iter()
                .filter(|node| {
                    matches!(views.peers.get(node).map(|shown| &**shown), Some(PeerState::Connected(_)))
                })
                .count()
        });
        assert_eq!(shown, nodes.len(), "watchers see all peers");
        let shown = self.views.peers().read(|views| views.peers.len());
        assert_eq!(shown, nodes.len(), "and no others");
        let registrations = self.engine.registrations().registrations(self.now);
        self.views.registrations().read(|views| {
            assert_eq!(views.len(), registrations.len());
            for registration in &registrations {
                let shown = views.get(&registration.id).map(|shown| (shown.state, shown.open_channels));
                assert_eq!(shown, Some((registration.state, registration.open_channels)));
            }
        });
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now.mono + time;
        while let Some(due) = self.engine.poll_timeout().filter(|due| *due <= until) {
            let step = due.saturating_duration_since(self.now.mono);
            self.now = Now { mono: self.now.mono + step, unix: self.now.unix + step };
            self.engine.handle_timeout(self.now);
            self.settle();
            assert!(self.engine.poll_timeout().is_none_or(|next| next > self.now.mono), "time stands still");
        }
        let rest = until.saturating_duration_since(self.now.mono);
        self.now = Now { mono: until, unix: self.now.unix + rest };
    }

    fn register(&mut self, client: &str, protocols: &[&str]) -> RegistrationId {
        let target = RegistrationRef::Spec(spec(client, protocols));
        let registered = self.engine.register(self.now, &principal(), &target, "", false).unwrap();
        self.settle();
        registered.registration.id
    }

    fn attach(&mut self, client: &str, takeover: bool) -> Result<(Attached, Arc<Count>), SwitchError> {
        let request = AttachRequest {
            target: RegistrationRef::Client(client.into()),
            params: Default::default(),
            request_id: String::new(),
            takeover,
        };
        let wake = Arc::<Count>::default();
        let attached = self.engine.attach(self.now, &principal(), &request, Arc::clone(&wake) as _);
        self.settle();
        attached.map(|attached| (attached, wake))
    }

    fn delete(&mut self, client: &str) {
        let acting = Acting::Client(client.into());
        self.engine.registrations().delete(self.now, &principal(), &acting).unwrap();
        self.settle();
    }

    fn accept(&mut self, n: u8) -> ConnectionId {
        let run = self.engine.accepted(self.now, addr(n), addr(0)).unwrap();
        self.settle();
        run.id
    }

    /// Both checkpoints of a connection with node `n`, whose Hello names these capabilities.
    fn shake(&mut self, connection: ConnectionId, n: u8, speaks: &[&str]) -> Opening {
        let offered = self.engine.authenticated(self.now, connection, key(n).public())?;
        self.settle();
        self.hello(connection, &offered, speaks)
    }

    /// The second checkpoint: the node's Hello says that it speaks these.
    fn hello(&mut self, connection: ConnectionId, offered: &[LocalCapability], speaks: &[&str]) -> Opening {
        let shared = offered.iter().filter(|ours| speaks.contains(&&*ours.name));
        let channels: Vec<Channel> = shared
            .enumerate()
            .map(|(index, ours)| Channel {
                index: ChannelIndex(index as u16),
                name: ours.name.clone(),
                version: ours.version,
                offset: 16 + 2 * index as u64,
                message_count: 2,
            })
            .collect();
        let capability = |name: &&str| p2p::Capability { name: (*name).to_owned(), version: 1 };
        let capabilities = speaks.iter().map(capability).collect();
        let hello = RemoteHello { version: 5, client: "far".into(), capabilities, listen_port: 0 };
        let opening = self.engine.negotiated(self.now, connection, Arc::new(hello), &channels);
        self.settle();
        opening
    }

    /// Node `n` dials us and becomes a peer.
    fn peer(&mut self, n: u8, speaks: &[&str]) -> (ConnectionId, ChannelInboxes) {
        let connection = self.accept(n);
        match self.shake(connection, n, speaks) {
            Ok(Open::Session(inboxes)) => (connection, inboxes),
            Ok(Open::Parked) => panic!("parked"),
            Err(reason) => panic!("refused: {reason}"),
        }
    }

    /// We dial node `n`, and the connection opens.
    fn dial(&mut self, n: u8) -> ConnectionId {
        let dial = self.wanted_dial(n);
        let run = self.engine.dialed(self.now, &dial, addr(0)).unwrap();
        self.settle();
        run.id
    }

    /// The dial of a static peer that is added now.
    fn wanted_dial(&mut self, n: u8) -> Dial {
        self.engine.peers().add_static(self.now, &node(n)).unwrap();
        self.settle();
        self.take(|effect| match effect {
            Effect::Dial(dial) if dial.id == id(n) => Some(dial.clone()),
            _ => None,
        })
        .pop()
        .unwrap()
    }

    fn close(&mut self, connection: ConnectionId, by: Side, reason: Option<DisconnectReason>) {
        self.engine.closed(self.now, connection, &end(by, reason));
        self.settle();
    }

    /// Returns the effects that `look` selects, and drops all.
    fn take<T>(&mut self, look: impl Fn(&Effect) -> Option<T>) -> Vec<T> {
        std::mem::take(&mut self.effects).iter().filter_map(look).collect()
    }

    fn channels(&mut self, registration: RegistrationId) -> usize {
        self.engine.registrations().registration(self.now, &Lookup::Id(registration)).unwrap().open_channels
    }
}

/// Reads the events that are ready. Returns how reading ended, and each event as a short text.
fn read(attachment: &Attachment) -> (Read, Vec<String>) {
    let mut batch = Batch::default();
    let read = attachment.read(1 << 20, 100, &mut batch);
    let short = |event: &Event<PeerChannel>| match event {
        Event::Opened(opened) => format!("opened {}", opened.channel),
        Event::Message { channel, .. } => format!("message {channel}"),
        Event::Gap { .. } => "gap".to_owned(),
        Event::Closed { channel, close, .. } => format!("closed {channel}: {}", close.detail),
    };
    let (_, events) = batch.drain();
    (read, events.map(|(event, _)| short(&event)).collect())
}

fn message(channel: u16) -> Inbound {
    Inbound { channel: ChannelIndex(channel), code: 0, payload: b"hello".as_slice().into(), wire_bytes: 5 }
}

fn held() -> HeldTime {
    HeldTime { channel: Duration::ZERO, total: Duration::ZERO }
}

/// Returns the reason for which our side ends the connection, if it does. The connection's task finds it in its queue.
fn told_to_leave(world: &mut World, n: u8) -> Option<DisconnectReason> {
    let peer = world.engine.peers().get(id(n)).unwrap();
    (&*peer.session.outbound).leaving()
}

#[test]
fn a_registration_that_ends_lets_go_of_its_channels_and_of_peers_that_no_other_uses() {
    let (mut world, echo) = World::with_echo();
    let ping = world.register("other", &["ping"]);
    let (alone, _) = world.peer(1, &["echo"]);
    let (shared, _) = world.peer(2, &["echo", "ping"]);
    assert_eq!((world.channels(echo), world.channels(ping)), (2, 1));
    world.effects.clear();

    world.delete("app");
    assert_eq!(told_to_leave(&mut world, 1), Some(DisconnectReason::UselessPeer));
    assert_eq!(told_to_leave(&mut world, 2), None, "another application uses it");
    assert_eq!(world.channels(ping), 1);
    let released = world.take(|effect| matches!(effect, Effect::ReleaseEntries(_)).then_some(()));
    assert_eq!(released.len(), 1, "its entries leave our record");
    let session = world.engine.peers().get(id(2)).unwrap().session;
    let message = crate::rlpx::Compressor::default().compress(b"late").unwrap();
    let sent = session.outbound.send(p2p::Lane::Call, session.channel("echo").unwrap().index, 0, message);
    assert_eq!(sent, Err(p2p::Refused::Closed), "nothing goes out on a channel without owner");

    world.close(alone, Side::Local, Some(DisconnectReason::UselessPeer));
    world.delete("other");
    world.close(shared, Side::Local, Some(DisconnectReason::UselessPeer));
    assert_eq!(world.engine.connections(), 0);
}

#[test]
fn a_name_that_changes_hands_never_leads_an_old_session_to_its_new_owner() {
    let (mut world, _) = World::with_echo();
    world.register("other", &["ping"]);
    let (_, inboxes) = world.peer(1, &["echo", "ping"]);
    world.delete("app");
    let heir = world.register("heir", &["echo"]);
    inboxes[0].offer(world.now.mono, message(0), held());
    assert_eq!(world.channels(heir), 0);
    let (attached, _) = world.attach("heir", false).unwrap();
    assert_eq!(read(&attached.attachment), (Read::Nothing, Vec::new()));
}

#[test]
fn a_capability_that_is_taken_out_closes_its_channels_alone() {
    let mut world = World::new(Settings::default(), false);
    let both = world.register("app", &["echo", "ping"]);
    world.peer(1, &["echo", "ping"]);
    assert_eq!(world.channels(both), 2);
    let acting = Acting::Client("app".into());
    let updated =
        world.engine.update_registration(world.now, &principal(), &acting, spec("app", &["ping"])).unwrap();
    assert_eq!(updated.open_channels, 1, "the answer shows what holds now");
    world.settle();
    assert_eq!(told_to_leave(&mut world, 1), None);
}

#[test]
fn a_lease_that_runs_out_ends_once() {
    let (mut world, _) = World::with_echo();
    let (connection, _) = world.peer(1, &["echo"]);
    world.effects.clear();
    world.pass(MAX_LINGER + Duration::from_secs(3_600));
    let ended = world.take(|effect| match effect {
        Effect::Log(LogLine::RegistrationEnded { expired, .. }) => Some(*expired),
        _ => None,
    });
    assert_eq!(ended, [true]);
    assert_eq!(world.engine.registrations().registrations(world.now).len(), 0);
    world.close(connection, Side::Local, Some(DisconnectReason::UselessPeer));
}

#[test]
fn of_two_crossing_connections_one_is_parked_and_takes_the_place_of_the_other() {
    let (mut world, echo) = World::with_echo();
    let standing = world.dial(1);
    assert!(matches!(world.shake(standing, 1, &["echo"]), Ok(Open::Session(_))));
    let parked = world.accept(1);
    assert!(matches!(world.shake(parked, 1, &["echo"]), Ok(Open::Parked)));
    let probed = world.take(|effect| match effect {
        Effect::Control(id, Control::Probe) => Some(*id),
        _ => None,
    });
    assert_eq!(probed, [standing, parked]);
    assert_eq!((world.channels(echo), world.engine.connections()), (1, 2));

    // The other side closes one connection: it has chosen the other one.
    world.close(standing, Side::Remote, Some(DisconnectReason::AlreadyConnected));
    let promoted = world.take(|effect| match effect {
        Effect::Control(id, Control::Promote(inboxes)) => Some((*id, inboxes.len())),
        _ => None,
    });
    assert_eq!(promoted, [(parked, 1)]);
    assert_eq!(world.engine.peers().get(id(1)).unwrap().session.id, parked);
    assert_eq!((world.channels(echo), world.engine.connections()), (1, 1));
    world.close(parked, Side::Remote, None);
    assert_eq!((world.channels(echo), world.engine.connections()), (0, 0));
}

#[test]
fn a_parked_connection_that_ends_leaves_the_session_alone() {
    let (mut world, echo) = World::with_echo();
    let standing = world.dial(1);
    assert!(matches!(world.shake(standing, 1, &["echo"]), Ok(Open::Session(_))));
    let parked = world.accept(1);
    assert!(matches!(world.shake(parked, 1, &["echo"]), Ok(Open::Parked)));
    world.close(parked, Side::Remote, Some(DisconnectReason::AlreadyConnected));
    assert_eq!(world.engine.peers().get(id(1)).unwrap().session.id, standing);
    assert_eq!((world.channels(echo), world.engine.connections()), (1, 1));
}

#[test]
fn both_answered_so_the_rule_decides_and_the_loser_is_closed() {
    let (mut world, _) = World::with_echo();
    let standing = world.dial(1);
    assert!(matches!(world.shake(standing, 1, &["echo"]), Ok(Open::Session(_))));
    let parked = world.accept(1);
    assert!(matches!(world.shake(parked, 1, &["echo"]), Ok(Open::Parked)));
    world.engine.heard(world.now, standing);
    world.engine.heard(world.now, parked);
    world.settle();
    let kept = world.engine.peers().get(id(1)).unwrap().session.id;
    assert_eq!(kept, if id(0) < id(1) { standing } else { parked }, "what the smaller id dialed stays");
    let loser = if kept == standing { parked } else { standing };
    world.close(loser, Side::Local, Some(DisconnectReason::AlreadyConnected));
    assert_eq!(world.engine.connections(), 1);
}

#[test]
fn while_it_stops_nothing_is_dialed_accepted_or_registered_and_every_caller_is_answered() {
    let (mut world, _) = World::with_echo();
    let (under_way, call) = (world.wanted_dial(1), CallId(1));
    world.effects.clear();
    world.engine.drain();
    assert!(world.engine.accepted(world.now, addr(9), addr(0)).is_none());
    // A dial that was under way opens its connection now. The connection is closed, and the dial has failed.
    assert!(world.engine.dialed(world.now, &under_way, addr(0)).is_none());
    // New requests of all kinds.
    world.engine.peers().add_static(world.now, &node(2)).unwrap();
    world.engine.connect(world.now, call, &node(3), Duration::from_secs(5));
    let (public_key, addr) = (key(4).public(), addr(4));
    let candidate = Candidate { public_key, addr, record: None, source: Source::V4, served: Duration::ZERO };
    world.engine.candidate(world.now, candidate);
    let target = RegistrationRef::Spec(spec("late", &["late"]));
    let refused = world.engine.register(world.now, &principal(), &target, "", false);
    assert_eq!(refused.map(|_| ()), Err(SwitchError::Stopped));
    world.settle();
    for entry in world.engine.peers().static_peers(world.now) {
        assert!(!matches!(entry.state, EntryState::Dialing { .. }), "{:?}", entry.state);
    }
    let answers = world.take(|effect| match effect {
        Effect::Dial(dial) => panic!("{dial:?}"),
        Effect::LookupHost(..) | Effect::Resolve(..) => panic!("no more dials"),
        Effect::Reply(call, Answer::Connect(Err(outcome))) => Some((*call, outcome.clone())),
        _ => None,
    });
    assert!(matches!(&answers[..], [(CallId(1), ConnectOutcome::Failed { .. })]), "{answers:?}");
}

#[test]
fn quitting_ends_every_connection_at_its_stage() {
    let (mut world, _) = World::with_echo();
    let (session, _) = world.peer(1, &["echo"]);
    let greeted = world.accept(2);
    world.engine.authenticated(world.now, greeted, key(2).public()).unwrap();
    let silent = world.accept(3);
    world.effects.clear();
    world.engine.drain();
    world.engine.quit();
    world.settle();
    let cut = world.take(|effect| match effect {
        Effect::AbortConnection(id) => Some(*id),
        _ => None,
    });
    assert_eq!(cut, [silent], "without keys nothing can be said");
    assert_eq!(told_to_leave(&mut world, 1), Some(DisconnectReason::Quitting));
    world.close(session, Side::Local, Some(DisconnectReason::Quitting));
    world.close(greeted, Side::Local, Some(DisconnectReason::Quitting));
    assert_eq!(world.engine.connections(), 0);
}

#[test]
fn a_stream_that_takes_over_ends_the_one_before_and_its_late_end_means_nothing() {
    let (mut world, echo) = World::with_echo();
    let (first, first_wake) = world.attach("app", false).unwrap();
    assert!(world.attach("app", false).is_err(), "it is attached");
    let (_, inboxes) = world.peer(1, &["echo"]);
    assert_eq!(read(&first.attachment).1, ["opened 1"]);
    assert_eq!(read(&first.attachment).0, Read::Nothing);
    inboxes[0].offer(world.now.mono, message(0), held());
    assert!(first_wake.0.swap(0, Ordering::Relaxed) > 0);

    let (second, second_wake) = world.attach("app", true).unwrap();
    assert!(first_wake.0.load(Ordering::Relaxed) > 0, "it is told that it has ended");
    assert_eq!(read(&first.attachment).0, Read::Ended);
    assert_eq!(first.attachment.why_ended(), Ended::TakenOver);
    assert_eq!(read(&second.attachment).1, ["opened 1", "message 1"], "nothing is lost");
    assert_eq!(read(&second.attachment).0, Read::Nothing);
    let late = first.attachment.end();
    world.engine.registrations().detach(world.now, echo, first.attachment.stream(), late);
    world.settle();
    assert_eq!(world.engine.registrations().attached(), 1);
    inboxes[0].offer(world.now.mono, message(0), held());
    assert!(second_wake.0.load(Ordering::Relaxed) > 0);
    assert_eq!(read(&second.attachment).1, ["message 1"]);

    // A registration that takes over without a stream ends the stream too.
    let target = RegistrationRef::Spec(spec("app", &["echo"]));
    world.engine.register(world.now, &principal(), &target, "", true).unwrap();
    world.settle();
    assert_eq!(read(&second.attachment).0, Read::Ended);
    assert_eq!(world.engine.registrations().attached(), 0);
    world.delete("app");
    assert_eq!(second.attachment.why_ended(), Ended::Deleted);
}

#[test]
fn a_protocol_that_is_registered_late_reaches_a_peer_by_one_reconnection() {
    let settings = Settings { discovery: true, ..Settings::default() };
    let mut world = World::new(settings, true);
    world.register("app", &["echo"]);
    let _attached = world.attach("app", false).unwrap();
    let connection = world.dial(1);
    assert!(matches!(world.shake(connection, 1, &["echo", "late"]), Ok(Open::Session(_))));
    world.pass(Duration::from_secs(700));
    assert_eq!(told_to_leave(&mut world, 1), None);
    world.effects.clear();

    world.register("other", &["late"]);
    let _other = world.attach("other", false).unwrap();
    world.pass(Duration::from_secs(20));
    assert_eq!(told_to_leave(&mut world, 1), Some(DisconnectReason::Requested));
    world.close(connection, Side::Local, Some(DisconnectReason::Requested));
    let dials = world.take(|effect| match effect {
        Effect::Dial(dial) => Some(dial.clone()),
        _ => None,
    });
    let [dial] = &dials[..] else { panic!("{dials:?}") };
    let again = world.engine.dialed(world.now, dial, addr(0)).unwrap().id;
    assert!(
        matches!(world.shake(again, 1, &["echo", "late"]), Ok(Open::Session(inboxes)) if inboxes.len() == 2)
    );
    world.pass(Duration::from_secs(2_000));
    assert_eq!(told_to_leave(&mut world, 1), None, "it lacks nothing any more");
}

#[test]
fn events_that_are_lost_repeated_or_out_of_order_change_nothing() {
    let (mut world, echo) = World::with_echo();
    let (connection, _) = world.peer(1, &["echo"]);
    let unknown = ConnectionId(99);
    let hello =
        Arc::new(RemoteHello { version: 5, client: "far".into(), capabilities: Vec::new(), listen_port: 0 });
    // Events of a connection that does not exist.
    world.engine.heard(world.now, unknown);
    world.engine.channel_closed(world.now, unknown, ChannelIndex(0));
    world.close(unknown, Side::Remote, None);
    assert!(world.engine.negotiated(world.now, unknown, Arc::clone(&hello), &[]).is_err());
    // A second checkpoint without the first, and again after the session opened.
    let fresh = world.accept(2);
    assert!(world.engine.negotiated(world.now, fresh, Arc::clone(&hello), &[]).is_err());
    assert!(world.engine.negotiated(world.now, connection, hello, &[]).is_err());
    world.settle();
    assert_eq!(world.channels(echo), 1);
    // A channel that does not exist, and a channel that closes twice.
    world.engine.channel_closed(world.now, connection, ChannelIndex(7));
    world.settle();
    assert_eq!(world.channels(echo), 1);
    world.engine.channel_closed(world.now, connection, ChannelIndex(0));
    world.engine.channel_closed(world.now, connection, ChannelIndex(0));
    world.settle();
    assert_eq!(world.channels(echo), 0);
    // The end of a connection that is reported twice.
    world.close(connection, Side::Remote, None);
    world.close(connection, Side::Remote, None);
    world.close(fresh, Side::Remote, None);
    assert_eq!(world.engine.connections(), 0);
}

#[test]
fn an_answer_to_a_dial_that_was_given_up_opens_no_session() {
    let (mut world, _) = World::with_echo();
    let dial = world.wanted_dial(1);
    world.engine.peers().remove_static(world.now, id(1), false).unwrap();
    world.settle();
    assert_eq!(world.take(|effect| matches!(effect, Effect::AbortDial(_)).then_some(())).len(), 1);
    // The abort and the report of the dial cross.
    world.engine.dial_failed(world.now, dial.task, Cause::Unreachable, "late");
    world.settle();
    assert_eq!((world.engine.connections(), world.engine.peers().static_peers(world.now).len()), (0, 0));
}

#[test]
fn a_caller_that_waits_for_a_dial_is_answered_once() {
    let (mut world, _) = World::with_echo();
    let answers = |world: &mut World| {
        world.take(|effect| match effect {
            Effect::Reply(call, answer) => Some((*call, answer.clone())),
            _ => None,
        })
    };
    let dial = world.wanted_dial(1);
    world.engine.wait_for_dial(world.now, CallId(1), id(1), None);
    world.engine.wait_for_dial(world.now, CallId(2), id(1), None);
    world.engine.wait_for_dial(world.now, CallId(3), id(2), None);
    world.settle();
    let at_once = answers(&mut world);
    assert!(matches!(&at_once[..], [(CallId(3), Answer::Entry(None))]), "{at_once:?}");
    world.engine.give_up(CallId(2));
    world.engine.dial_failed(world.now, dial.task, Cause::Unreachable, "no route");
    world.settle();
    let answered = answers(&mut world);
    assert!(
        matches!(&answered[..], [(CallId(1), Answer::Entry(Some(entry)))] if entry.last_error.is_some()),
        "{answered:?}"
    );
    world.engine.wait_for_dial(world.now, CallId(4), id(1), None);
    world.settle();
    assert_eq!(answers(&mut world).len(), 1, "the error is there already");

    // A one-off dial is answered with the peer after the session has opened.
    world.engine.connect(world.now, CallId(5), &node(3), Duration::from_secs(5));
    world.settle();
    let dials = world.take(|effect| match effect {
        Effect::Dial(dial) => Some(dial.clone()),
        _ => None,
    });
    let connection = world.engine.dialed(world.now, &dials[0], addr(0)).unwrap().id;
    assert!(matches!(world.shake(connection, 3, &["echo"]), Ok(Open::Session(_))));
    let answered = answers(&mut world);
    assert!(
        matches!(&answered[..], [(CallId(5), Answer::Connect(Ok(peer)))] if peer.session.node_id == id(3)),
        "{answered:?}"
    );
}

#[test]
fn an_entry_that_is_taken_off_answers_the_caller_that_waits_for_it() {
    let (mut world, _) = World::with_echo();
    world.wanted_dial(1);
    world.engine.wait_for_dial(world.now, CallId(1), id(1), None);
    world.engine.peers().remove_static(world.now, id(1), false).unwrap();
    world.settle();
    let answers = world.take(|effect| match effect {
        Effect::Reply(call, Answer::Entry(entry)) => Some((*call, entry.is_some())),
        _ => None,
    });
    assert_eq!(answers, [(CallId(1), false)]);
}

#[test]
fn kept_entries_that_have_no_place_any_more_stop_no_start() {
    let mut world = World::new(Settings { discovery: false, ..Settings::default() }, false);
    let words = |n: u8| key(n).public().to_string();
    let lists = Lists {
        static_peers: vec![words(0), words(1)],
        trusted_peers: vec![words(0), words(2)],
        ..Lists::default()
    };
    world.engine.restore(world.now, &[], &[], &lists.parse().unwrap()).unwrap();
    world.settle();
    let ids = |entries: Vec<crate::policy::dial::ListEntry>| entries.iter().map(|e| e.id).collect::<Vec<_>>();
    assert_eq!(ids(world.engine.peers().static_peers(world.now)), [id(1)]);
    assert_eq!(ids(world.engine.peers().trusted_peers(world.now)), [id(2)]);
    assert!(!world.engine.peers().settings().discovery, "the setting is as it was");
    let (written, left_out) = world.effects.iter().fold((0, 0), |(written, left_out), effect| match effect {
        Effect::Persist(_) => (written + 1, left_out),
        Effect::Log(LogLine::LeftOut { .. }) => (written, left_out + 1),
        _ => (written, left_out),
    });
    assert_eq!((written, left_out), (0, 2), "what was just read is not written");
    let configured = world.engine.restore(world.now, &[node(0)], &[], &Lists::default().parse().unwrap());
    assert!(configured.is_err(), "an entry of the configuration is a reason not to start");
}
