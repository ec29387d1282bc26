//! Two nodes that flood each other, causes other than a full queue that stop reading, and holds without a limit.

use std::time::Duration;

use devp2pd::delivery::{Action, Config, OverflowPolicy};

use super::{
    application::FULL_SPEED,
    peer::{Peer, Stack, Supply, message},
    pipe::{Frame, Line},
    readers::AUTO,
    world::{World, seconds},
};

const MIB: u64 = 1 << 20;

fn acting(action: Action) -> Config {
    let overflow = OverflowPolicy { action, ..OverflowPolicy::default() };
    Config { overflow, ..Config::default() }
}

/// Two of our nodes, whose applications send 64 MB each, and read nothing before `World::finish`.
fn flooding_each_other(action: Action) -> World {
    let mut world = World::new();
    let (one, other) =
        (world.application(acting(action), AUTO, 0), world.application(acting(action), AUTO, 0));
    let _ = world.join(one, other);
    for sidecar in &mut world.sidecars {
        let len = 100_000;
        sidecar.outbox.extend((0..640).map(|serial| Frame::Message {
            channel: 0,
            serial,
            len,
            wire: len + 48,
        }));
    }
    world
}

#[test]
fn two_nodes_that_flood_each_other_go_on_after_one_hold() {
    let mut world = flooding_each_other(Action::DropAndReport);
    world.run(seconds(10));
    assert!(world.lost() > 0, "both were held, and then one went on");
    let unwritten = |world: &World| world.sidecars.iter().any(|sidecar| !sidecar.outbox.is_empty());
    world.run_while(seconds(120), unwritten);
    assert!(!unwritten(&world), "all was written");
    world.finish();
    assert!(world.sidecars.iter().all(|sidecar| sidecar.ended.is_none()));
    assert!(world.sidecars.iter().all(|sidecar| sidecar.routes[0].messages == 640));
}

#[test]
fn with_wait_two_nodes_that_flood_each_other_part_after_twenty_seconds() {
    let mut world = flooding_each_other(Action::Wait);
    world.run(seconds(19));
    assert!(world.sidecars.iter().all(|sidecar| sidecar.ended.is_none()));
    world.run(seconds(11));
    let ended = |number: usize| world.sidecars[number].ended.as_ref().map(|(_, why)| why.as_str());
    assert!(ended(0) == Some("WriteTimeout") || ended(1) == Some("WriteTimeout"), "{:?}", ended(0));
    world.finish();
}

/// A reader at full speed with short pauses: behind a cap, with a receive budget that is used up, and on a connection
/// that is parked first.
#[test]
fn what_else_stops_reading_is_not_charged() {
    // The reader pauses for 9 ms of every 10 ms.
    let breath = Some((Duration::from_millis(10), Duration::from_millis(9)));
    for (what, cap) in [("a cap", Some(100_000)), ("the budget", None), ("parked", None)] {
        let mut world = World::new();
        let application = world.application(Config::default(), AUTO, FULL_SPEED);
        world.applications[application].pauses = breath;
        let line = Line { rate: Some(5_000_000), ..Line::default() };
        let mut peer = Peer::new(world.now, Stack::Geth, Supply::flood(16 << 10));
        if what == "parked" {
            peer.supply = Supply::Gossip { every: seconds(1), due: world.now, say: message(200_000) };
        }
        let connection = world.connect(peer, line, &[application]);
        world.sidecars[connection].cap = cap;
        match what {
            "the budget" => {
                for _ in 0..10 {
                    let now = world.now;
                    world.sidecars[connection].set_starved(now, true);
                    world.run(seconds(15));
                    let now = world.now;
                    world.sidecars[connection].set_starved(now, false);
                    world.run(seconds(1));
                }
            }
            "parked" => {
                let now = world.now;
                world.sidecars[connection].park(now);
                world.run(seconds(40));
                assert_eq!(world.sidecars[connection].routes[0].messages, 1);
                let now = world.now;
                world.sidecars[connection].promote(now);
                world.run(seconds(20));
            }
            _ => world.run(seconds(300)),
        }
        assert_eq!(world.lost(), 0, "{what}");
        assert!(world.applications[application].sum().messages > 40, "{what}");
        let referee = &world.sidecars[connection].referee;
        assert!(referee.charged <= seconds(5), "{what}: {:?}", referee.charged);
        assert_eq!(world.sidecars[connection].ended, None, "{what}");
        assert_eq!(world.peers[0].gone, None, "{what}");
        world.sidecars[connection].cap = None;
        world.finish();
        assert_eq!(world.lost(), 0, "{what}, at the end");
    }
}

/// Forty minutes of holding. geth needs a frame of ours within 30 s, and Besu within 15 s. Neither has more to write
/// than its kernel takes.
#[test]
fn a_quiet_peer_stands_a_hold_of_forty_minutes() {
    for stack in [Stack::Geth, Stack::Besu] {
        let mut world = World::new();
        let application = world.application(acting(Action::Wait), AUTO, 0);
        let peer = Peer::new(world.now, stack, Supply::messages(150, 16 << 10));
        world.connect(peer, Line::default(), &[application]);
        world.run(seconds(2400));
        world.all_stand();
        assert!(
            world.sidecars[0].referee.longest_hold.is_zero() && world.sidecars[0].intake.hold().is_some()
        );
        let pings = world.sidecars[0].pings_written.len();
        assert!(pings >= 2400 / 14, "one every 13 seconds: {pings}");
        world.applications[application].set_rate(FULL_SPEED);
        // The Pongs of forty minutes arrive. After them the peer is silent for less than 30 s.
        world.run(seconds(60));
        world.expect_lossless("a long hold");
    }
}

/// The peer reads nothing for 60 s of each 75 s, while it is held: our Pings wait in its kernel and arrive as one
/// burst.
#[test]
fn a_reth_that_does_not_read_never_finds_more_pings_than_its_bucket_holds() {
    let mut world = World::new();
    let application = world.application(acting(Action::Wait), AUTO, 0);
    let peer = Peer::new(world.now, Stack::Reth, Supply::messages(150, 16 << 10));
    world.connect(peer, Line::default(), &[application]);
    for _ in 0..20 {
        let deaf = world.now + seconds(60);
        world.peers[0].deaf_until = Some(deaf);
        world.run(seconds(75));
        if let Some((_, why)) = world.peers[0].gone {
            assert_ne!(why, "TooManyPings");
        }
        // Its own Pings wait behind the held messages, which the policy WAIT accepts.
        world.peers[0].forgive_pings();
    }
}

/// A frame that arrives slowly, between pauses of 75 ms, has 30 s of reading time and no more.
#[test]
fn a_dribbled_frame_ends_after_thirty_seconds_of_reading() {
    let mut world = World::new();
    let application = world.application(Config::default(), AUTO, FULL_SPEED);
    let mut first = true;
    let next = move || Some(if std::mem::take(&mut first) { message(100) } else { message(10_000_000) });
    let peer = Peer::new(world.now, Stack::Geth, Supply::Flood(Box::new(next)));
    let line = Line { rate: Some(10_000), ..Line::default() };
    let connection = world.connect(peer, line, &[application]);
    // A cap stops reading after each chunk, for half as long as the chunk took to arrive.
    world.sidecars[connection].cap = Some(20_000);
    world.run(seconds(200));
    let (at, why) = world.sidecars[connection].ended.clone().unwrap();
    assert_eq!(why, "FrameTimeout");
    let after = at - super::world::start();
    assert!(after >= seconds(30) && after <= seconds(70), "{after:?}");
    assert!(world.applications[application].sum().bytes <= MIB);
}

/// 20 connections, each with messages of 4 MiB that do not fit. The held bytes count in the budget, and are given back.
#[test]
fn held_messages_count_in_the_budget() {
    let mut world = World::new();
    let application = world.application(acting(Action::Wait), AUTO, 0);
    for _ in 0..20 {
        let peer = Peer::new(world.now, Stack::Besu, Supply::messages(2, 4 << 20));
        world.connect(peer, Line::default(), &[application]);
    }
    world.run(seconds(5));
    let held: usize = world.sidecars.iter().map(|sidecar| sidecar.intake.bytes()).sum();
    let waiting = world.applications[application].inbox.lock().waiting();
    assert!(held > 0);
    assert!(world.budget.used() >= held as u64 + waiting, "{} of {held} + {waiting}", world.budget.used());
    world.expect_lossless("held messages");
    let kept = 21 * 3 * (128 << 10);
    assert!(world.budget.used() <= kept, "{}", world.budget.used());
}
