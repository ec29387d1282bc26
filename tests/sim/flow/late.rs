//! Applications that are late, connections with several channels and several applications, and changes during a hold.

use std::time::Duration;

use devp2pd::budget::Share;
use devp2pd::delivery::{Action, Config, OverflowPolicy};

use super::{
    application::FULL_SPEED,
    peer::{Peer, Says, Stack, Supply},
    pipe::Line,
    readers::{AUTO, BY_HAND},
    sidecar::MAX_SHARED_STALL,
    world::{World, seconds},
};

const MIB: u64 = 1 << 20;

fn acting(action: Action) -> Config {
    let overflow = OverflowPolicy { action, ..OverflowPolicy::default() };
    Config { overflow, ..Config::default() }
}

/// A peer that sends on `channels` channels in turn.
fn in_turns(channels: u16, len: usize) -> Supply {
    let mut channel = 0;
    Supply::Flood(Box::new(move || {
        channel = (channel + 1) % channels;
        Some(Says::Message { channel, len, wire: len + 48 })
    }))
}

fn flooded(stack: Stack, config: Config, rate: u64) -> (World, usize) {
    let mut world = World::new();
    let application = world.application(config, AUTO, rate);
    let peer = Peer::new(world.now, stack, Supply::flood(16 << 10));
    // Without a stream only the line slows the peer down.
    world.connect(peer, Line { rate: Some(30_000_000), ..Line::default() }, &[application]);
    (world, application)
}

#[test]
fn a_dead_reader_costs_its_peer_one_hold_until_it_has_taken_a_queue_full() {
    let (mut world, application) = flooded(Stack::Geth, Config::default(), 20_000_000);
    world.run(seconds(10));
    assert_eq!(world.lost(), 0);
    let charged = |world: &World| world.sidecars[0].referee.charged;
    let alive = charged(&world);
    world.applications[application].set_rate(0);
    world.run(seconds(60));
    let dead = charged(&world);
    assert!(dead - alive <= seconds(8) && dead - alive > seconds(7), "{:?}", dead - alive);
    // The reader takes less than a full queue: the connection is not held for it again.
    world.applications[application].set_rate(MIB / 100);
    world.run(seconds(40));
    world.applications[application].set_rate(0);
    world.run(seconds(20));
    assert_eq!(charged(&world), dead);
    // It takes more than that: the connection may be held for it again, and is.
    world.applications[application].set_rate(MIB / 10);
    world.run(seconds(20));
    world.applications[application].set_rate(0);
    world.run(seconds(20));
    let again = charged(&world) - dead;
    assert!(again > seconds(7) && again <= seconds(16), "{again:?}");
    world.all_stand();
    world.finish();
    assert!(world.lost() > 0);
}

/// The reader takes 16 kB/s of at most 2 MiB/s that arrive, for ten minutes. Even Nethermind, which is strict, does not
/// leave.
#[test]
fn a_trickling_reader_loses_at_a_bounded_rate_and_no_peer() {
    for stack in Stack::ALL {
        let (mut world, application) = flooded(stack, Config::default(), 16_000);
        world.run(seconds(600));
        world.all_stand();
        let lost = world.applications[application].lost().bytes / MIB;
        assert!(lost > 500, "{stack:?}: {lost} MiB");
        assert!(lost <= 602 * 2, "{stack:?}: {lost} MiB");
        world.finish();
    }
}

#[test]
fn a_dead_channel_takes_nothing_from_its_neighbour() {
    let mut world = World::new();
    let application = world.application(Config::default(), BY_HAND, 20_000_000);
    let peer = Peer::new(world.now, Stack::Geth, in_turns(2, 16 << 10));
    let connection = world.connect(peer, Line::default(), &[application, application]);
    let (live, dead) = (world.sidecars[connection].name(0), world.sidecars[connection].name(1));
    world.run(seconds(5));
    world.applications[application].ignored.insert(dead);
    let before = world.sidecars[connection].referee.charged;
    world.run(seconds(120));
    let tally = |world: &World, channel| world.applications[application].tallies[&channel];
    assert!(world.lost() > 0);
    assert!(tally(&world, live).bytes > 100 * 2 * MIB, "it goes on: {:?}", tally(&world, live));
    let charged = world.sidecars[connection].referee.charged - before;
    assert!(charged > seconds(7) && charged < seconds(9), "{charged:?}");
    world.all_stand();
    world.finish();
    assert_eq!(tally(&world, live).lost, 0);
    assert!(tally(&world, dead).lost > 0);
}

#[test]
fn two_dead_channels_are_held_for_nine_seconds_in_all() {
    let mut world = World::new();
    let application = world.application(Config::default(), BY_HAND, 20_000_000);
    let peer = Peer::new(world.now, Stack::Geth, in_turns(2, 16 << 10));
    let connection = world.connect(peer, Line::default(), &[application, application]);
    let names = [world.sidecars[connection].name(0), world.sidecars[connection].name(1)];
    world.applications[application].ignored.extend(names);
    world.run(seconds(120));
    let charged = world.sidecars[connection].referee.charged;
    assert!(charged > seconds(8) && charged <= seconds(9), "{charged:?}");
    world.all_stand();
    world.finish();
    assert!(names.iter().all(|name| world.applications[application].tallies[name].lost > 0));
}

/// Two applications on one connection.
fn shared(config: Config, rates: [u64; 2]) -> World {
    let mut world = World::new();
    let one = world.application(config, AUTO, rates[0]);
    let other = world.application(Config::default(), AUTO, rates[1]);
    let peer = Peer::new(world.now, Stack::Geth, in_turns(2, 16 << 10));
    // As fast as the two applications read together. Otherwise messages for the one that has stopped would arrive
    // without end.
    let line = Line { rate: Some(20_000_000), ..Line::default() };
    world.connect(peer, line, &[one, other]);
    world
}

#[test]
fn two_applications_at_full_speed_lose_nothing() {
    let mut world = shared(Config::default(), [FULL_SPEED; 2]);
    // Each does nothing for 200 ms of every second.
    for application in &mut world.applications {
        application.pauses = Some((seconds(1), Duration::from_millis(200)));
    }
    world.run(seconds(60));
    assert!(world.sidecars[0].referee.holds > 50, "there were holds");
    world.expect_lossless("both at full speed");
}

#[test]
fn a_dead_application_stalls_its_neighbour_once_and_takes_nothing_from_it() {
    for action in [Action::DropAndReport, Action::Wait] {
        let mut world = shared(acting(action), [FULL_SPEED; 2]);
        world.run(seconds(5));
        world.applications[0].set_rate(0);
        world.run(seconds(60));
        let neighbour = world.applications[1].sum();
        assert_eq!(neighbour.lost, 0, "{action:?}");
        assert!(neighbour.longest_wait <= MAX_SHARED_STALL + Duration::from_millis(10), "{neighbour:?}");
        assert_eq!(world.sidecars[0].referee.charged, MAX_SHARED_STALL, "{action:?}: once");
        assert!(world.lost() > 0);
        world.all_stand();
        world.finish();
        assert_eq!(world.applications[1].sum().lost, 0, "{action:?}");
    }
}

#[test]
fn on_a_shared_connection_disconnect_peer_mutes_its_own_channel() {
    let mut world = shared(acting(Action::DisconnectPeer), [FULL_SPEED; 2]);
    world.run(seconds(5));
    world.applications[0].set_rate(0);
    world.run(seconds(60));
    world.all_stand();
    assert!(world.sidecars[0].routes[0].closed && !world.sidecars[0].routes[1].closed);
    assert!(world.applications[1].sum().bytes > 400_000_000, "{:?}", world.applications[1].sum());
    world.finish();
    assert_eq!(world.applications[1].sum().lost, 0);
    assert!(world.applications[0].lost().messages > 0, "the message that was too much stands in a gap");
}

#[test]
fn alone_disconnect_peer_ends_the_connection_after_one_hold() {
    let (mut world, application) = flooded(Stack::Geth, acting(Action::DisconnectPeer), 20_000_000);
    world.run(seconds(5));
    world.applications[application].set_rate(0);
    world.run(seconds(60));
    let (at, why) = world.sidecars[0].ended.clone().unwrap();
    assert_eq!(why, "SubprotocolError");
    let after = at - super::world::start();
    assert!(after > seconds(12) && after < seconds(14), "{after:?}");
    world.finish();
}

#[test]
fn when_the_neighbours_registration_ends_the_connection_is_alone_again() {
    let mut world = shared(Config::default(), [1_000_000, FULL_SPEED]);
    world.run(seconds(30));
    assert!(world.applications[0].lost().messages > 0, "1 MB/s is too slow for 500 ms");
    world.applications[1].registered = false;
    world.applications[1].stream = None;
    let World { sidecars, applications, .. } = &mut world;
    sidecars[0].unregister(1, applications);
    // The application is late until it has taken more of its queue, so messages may still be dropped at first.
    world.run(seconds(10));
    let before = world.applications[0].lost().messages;
    world.run(seconds(120));
    world.all_stand();
    assert_eq!(world.applications[0].lost().messages, before);
    world.finish();
    assert_eq!(world.applications[0].lost().messages, before);
}

/// A connection that has been held for 1.5 s.
fn in_a_hold(config: Config) -> (World, usize) {
    let (mut world, application) = flooded(Stack::Geth, config, FULL_SPEED);
    world.applications[application].pauses = None;
    world.applications[application].set_rate(0);
    world.run(Duration::from_millis(1500));
    assert!(world.sidecars[0].intake.hold().is_some());
    (world, application)
}

#[test]
fn in_a_hold_a_stream_that_leaves_ends_it() {
    for action in [Action::DropAndReport, Action::Wait, Action::DisconnectPeer] {
        let (mut world, application) = in_a_hold(acting(action));
        world.applications[application].detach();
        world.run(seconds(1));
        assert!(world.sidecars[0].intake.hold().is_none(), "{action:?}: nobody would end it");
        // The queue of an absent application, 8 MiB, fills. Later messages are lost, and the peer stays.
        world.run_while(seconds(1), |world| world.sidecars[0].routes[0].messages < 10_000);
        world.peers[0].supply = Supply::Silent;
        world.run(seconds(1));
        world.applications[application].set_rate(FULL_SPEED);
        world.applications[application].attach();
        world.run(seconds(1));
        let sum = world.applications[application].sum();
        assert!(sum.lost > 0 && sum.bytes > MIB / 2, "{action:?}: {sum:?}");
        world.all_stand();
        world.check();
    }
}

#[test]
fn in_a_hold_a_change_of_the_policy_acts_within_a_second() {
    // No hold is allowed any more: messages are dropped.
    for from in [Action::DropAndReport, Action::Wait] {
        let (mut world, application) = in_a_hold(acting(from));
        world.applications[application].configure(|config| {
            config.overflow = OverflowPolicy { stall_limit: Duration::ZERO, action: Action::DropAndReport };
        });
        world.run(seconds(1));
        let dropped = world.applications[application].inbox.lock().counters().dropped;
        assert!(dropped.messages > 0, "{from:?}");
        world.all_stand();
        world.finish();
    }
    // The peer is disconnected.
    let (mut world, application) = in_a_hold(acting(Action::Wait));
    world.applications[application].configure(|config| {
        config.overflow = OverflowPolicy { stall_limit: Duration::ZERO, action: Action::DisconnectPeer };
    });
    world.run(seconds(1));
    assert!(world.sidecars[0].ended.is_some());
    world.finish();
    // The hold has no limit any more: nothing is lost for as long as geth waits.
    let (mut world, application) = in_a_hold(acting(Action::DropAndReport));
    world.applications[application].configure(|config| config.overflow.action = Action::Wait);
    world.run(seconds(16));
    world.applications[application].set_rate(20_000_000);
    world.run(seconds(5));
    world.expect_lossless("WAIT");
    // A larger queue: the message fits.
    let (mut world, application) = in_a_hold(acting(Action::Wait));
    let messages = world.sidecars[0].routes[0].messages;
    world.applications[application].configure(|config| config.channel_bytes = 8 * MIB);
    world.run(seconds(1));
    assert!(world.sidecars[0].routes[0].messages > messages + 400);
    world.finish();
}

#[test]
fn memory_that_is_short_holds_and_does_not_drop() {
    let (mut world, application) = flooded(Stack::Geth, Config::default(), 10_000_000);
    world.sidecars[0].memory_may_be_short = true;
    world.run(seconds(5));
    let mut others = Share::in_steps(std::sync::Arc::clone(&world.budget));
    for _ in 0..20 {
        // Other queues use up the whole budget, for two seconds of every five.
        others.hold(world.budget.limit());
        world.run(seconds(2));
        let taken = world.applications[application].sum().messages;
        assert!(world.sidecars[0].intake.hold().is_some());
        // The connection is not notified when memory is free again. It tries once a second.
        others.hold(0);
        world.run(seconds(1));
        assert!(world.applications[application].sum().messages > taken, "effective within a second");
        world.run(seconds(2));
    }
    world.expect_lossless("short memory");
}
