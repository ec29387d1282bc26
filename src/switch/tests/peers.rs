//! Peers of registrations that change, and nodes that come back before their last connection has ended.

use super::*;

/// A peer that shares two protocols of one application counts once among the peers that the application asked for.
#[test]
fn an_application_with_two_protocols_counts_a_peer_once() {
    let mut world = World::new(Settings::default(), false);
    let spec = RegistrationSpec { desired_peers: 2, ..spec("app", &["echo", "ping"]) };
    world.engine.register(world.now, &principal(), &RegistrationRef::Spec(spec), "", false).unwrap();
    world.settle();
    let demand = |world: &mut World| {
        let asked = world.take(|effect| match effect {
            Effect::Demand(count) => Some(*count),
            _ => None,
        });
        asked.last().copied()
    };
    // Twice as many candidates as peers are wanted, because most dials fail.
    assert_eq!(demand(&mut world), Some(4));
    world.peer(1, &["echo", "ping"]);
    assert_eq!(demand(&mut world), Some(2));
    world.peer(2, &["echo", "ping"]);
    assert_eq!(demand(&mut world), Some(0));
}

#[test]
fn a_protocol_that_is_taken_away_during_a_handshake_gets_no_channel() {
    let mut world = World::new(Settings::default(), false);
    let app = world.register("app", &["echo", "ping"]);
    let connection = world.accept(1);
    let offered = world.engine.authenticated(world.now, connection, key(1).public()).unwrap();
    assert_eq!(world.register("app", &["echo"]), app);
    let Ok(Open::Session(inboxes)) = world.hello(connection, &offered, &["echo", "ping"]) else {
        panic!("they share echo")
    };
    assert_eq!(world.channels(app), 1, "ping is not registered any more");
    inboxes[1].offer(world.now.mono, message(1), held());
    assert_eq!(
        world.engine.metrics(world.now).applications["app"].discarded,
        1,
        "nothing is lost in silence"
    );

    let connection = world.accept(2);
    let offered = world.engine.authenticated(world.now, connection, key(2).public()).unwrap();
    assert_eq!(world.register("app", &["ping"]), app);
    let opening = world.hello(connection, &offered, &["echo"]);
    assert_eq!(opening.err(), Some(DisconnectReason::UselessPeer), "they share nothing any more");
}

/// The policy forgets a peer at once; its connection goes on until all that was accepted for it is written.
#[test]
fn a_node_that_returns_before_its_connection_has_ended_has_one_session() {
    let (mut world, _) = World::with_echo();
    let (attached, _) = world.attach("app", false).unwrap();
    world.engine.peers().add_static(world.now, &node(1)).unwrap();
    world.settle();
    let (first, _) = world.peer(1, &["echo"]);
    world.engine.peers().remove_static(world.now, id(1), false).unwrap();
    world.settle();
    let (second, _) = world.peer(1, &["echo"]);
    let closed = "closed 1: removed from the static list";
    assert_eq!(read(&attached.attachment).1, ["opened 1", closed, "opened 2"]);
    let ends = world.take(|effect| match effect {
        Effect::Log(LogLine::Disconnected { session, .. }) => Some(session.id),
        _ => None,
    });
    assert_eq!(ends, [first]);
    world.close(first, Side::Local, Some(DisconnectReason::Requested));
    assert_eq!(read(&attached.attachment).1, [""; 0], "its late end means nothing");
    let standing: Vec<_> = world.engine.peers().all().iter().map(|peer| peer.session.id).collect();
    assert_eq!(standing, [second]);
}

#[test]
fn an_application_lets_go_of_its_channel_and_of_the_session_only_if_it_is_alone() {
    let (mut world, echo) = World::with_echo();
    world.register("other", &["ping", "pong"]);
    world.peer(1, &["echo", "ping", "pong"]);
    world.peer(2, &["echo"]);
    let target = |world: &mut World, n| {
        let acting = Acting::Client("app".into());
        world.engine.sender(world.now, &principal(), &acting, id(n), "echo").unwrap()
    };
    let (shared, alone) = (target(&mut world, 1), target(&mut world, 2));
    let reason = DisconnectReason::Requested;
    let refused = world.engine.disconnect_channel(world.now, echo, &shared, reason, true);
    let shared_with = SwitchError::SharedSession { node: id(1), others: 1 };
    assert_eq!(refused, Err(shared_with), "applications are counted and not their channels");
    world.engine.disconnect_channel(world.now, echo, &shared, reason, false).unwrap();
    world.engine.disconnect_channel(world.now, echo, &alone, reason, false).unwrap();
    world.settle();
    assert_eq!(told_to_leave(&mut world, 1), None);
    assert_eq!(told_to_leave(&mut world, 2), Some(reason));
    world.engine.disconnect_channel(world.now, echo, &shared, reason, false).unwrap();
    world.settle();
    assert_eq!(told_to_leave(&mut world, 1), None, "a channel that has ended ends nothing");
}
