//! Readers that go on reading lose nothing, however slowly they read and whatever their peers send.

use std::time::Duration;

use devp2pd::delivery::{AttachParams, Config};

use super::{
    application::FULL_SPEED,
    peer::{Peer, Pongs, Says, Stack, Supply, message},
    pipe::Line,
    world::{LARGEST, World, seconds},
};

pub(super) const AUTO: AttachParams =
    AttachParams { stream_window: 0, channel_window: 0, max_frame_bytes: 0, auto_credit: true };
pub(super) const BY_HAND: AttachParams = AttachParams { auto_credit: false, ..AUTO };

/// Runs one peer and one application with the default policy on one channel, for `time` seconds. No message may be
/// lost.
fn lossless(what: &str, stack: Stack, supply: Supply, line: Line, rate: u64, time: u64) -> World {
    let mut world = World::new();
    let application = world.application(Config::default(), AUTO, rate);
    let peer = Peer::new(world.now, stack, supply);
    world.connect(peer, line, &[application]);
    world.run(seconds(time));
    world.expect_lossless(what);
    world
}

#[test]
fn a_reader_at_full_speed_loses_nothing_whatever_the_sizes() {
    for len in [100, 16 << 10, 1 << 20, 5_000_000, LARGEST] {
        for params in [AUTO, BY_HAND] {
            for max_frame_bytes in [64 << 10, 4 << 20, 32 << 20] {
                let what = format!(
                    "{len} bytes, {max_frame_bytes} at most, credit by itself {}",
                    params.auto_credit
                );
                let count = ((64 << 20) / len).clamp(20, 10_000);
                let mut world = World::new();
                // 100 MB/s, with a pause of 100 ms in every second.
                let reader = world.application(
                    Config::default(),
                    AttachParams { max_frame_bytes, ..params },
                    100_000_000,
                );
                world.applications[reader].pauses = Some((seconds(1), Duration::from_millis(100)));
                let peer = Peer::new(world.now, Stack::Geth, Supply::messages(count, len));
                world.connect(peer, Line::default(), &[reader]);
                world
                    .run_while(seconds(60), |world| world.applications[reader].sum().messages < count as u64);
                assert_eq!(world.applications[reader].sum().messages, count as u64, "{what}");
                world.expect_lossless(&what);
            }
        }
    }
}

#[test]
fn a_slow_reader_loses_nothing() {
    for (len, rate, time) in [
        (16 << 10, 1_000_000, 120),
        (16 << 10, 300_000, 120),
        (5_000_000, 2_500_000, 120),
        (5_000_000, 1_000_000, 180),
        (LARGEST, 3_000_000, 180),
        (LARGEST, 2_500_000, 180),
    ] {
        for params in [AUTO, BY_HAND] {
            let what =
                format!("{len} bytes at {rate} bytes a second, credit by itself {}", params.auto_credit);
            let mut world = World::new();
            let application = world.application(Config::default(), params, rate);
            let peer = Peer::new(world.now, Stack::Geth, Supply::flood(len));
            world.connect(peer, Line::default(), &[application]);
            world.run(seconds(time));
            let taken = world.applications[application].sum().bytes;
            let expected = rate * time;
            assert!(taken + 2 * LARGEST as u64 > expected * 9 / 10, "{what}: {taken} of {expected}");
            world.expect_lossless(&what);
        }
    }
}

/// A reader that reads at 20 MB/s for 0.8 s, and does nothing for the next 7.2 s.
#[test]
fn a_reader_that_reads_a_tenth_of_the_time_loses_nothing() {
    let mut world = World::new();
    let application = world.application(Config::default(), AUTO, 20_000_000);
    world.applications[application].pauses = Some((seconds(8), Duration::from_millis(7200)));
    let peer = Peer::new(world.now, Stack::Geth, Supply::flood(16 << 10));
    world.connect(peer, Line::default(), &[application]);
    world.run(seconds(80));
    world.expect_lossless("a tenth");
}

/// No implementation leaves when it floods a reader of 2 MB/s. At a quarter of that rate only Nethermind leaves, as it
/// must: its Ping waits for more than 3 s in the kernel's buffers alone.
#[test]
fn no_peer_leaves_a_reader_that_is_slow() {
    for stack in Stack::ALL {
        lossless(&format!("{stack:?}"), stack, Supply::flood(16 << 10), Line::default(), 2_000_000, 100);
    }
    for stack in Stack::ALL {
        let mut world = World::new();
        let application = world.application(Config::default(), AUTO, 500_000);
        let peer = Peer::new(world.now, stack, Supply::flood(16 << 10));
        // A smaller send buffer: the peer's own pace decides, not the size of its kernel's buffers.
        let line = Line { send_buffer: 2_600_000, ..Line::default() };
        world.connect(peer, line, &[application]);
        world.run(seconds(100));
        match stack {
            Stack::Nethermind => assert!(world.peers[0].gone.is_some(), "docs/grpc.md says that it leaves"),
            _ => world.expect_lossless(&format!("{stack:?} at 500 kB/s")),
        }
    }
}

/// The traffic of every sync: the Pong arrives behind 2 GB of answers to requests that were sent before the Ping.
#[test]
fn requests_that_were_sent_at_once_are_all_answered() {
    let requests = 20_000;
    let mut world = World::new();
    let application = world.application(Config::default(), AUTO, 20_000_000);
    let answers = Supply::Answers { say: message(100_000), open: 0 };
    let peer = Peer::new(world.now, Stack::Geth, answers);
    let connection = world.connect(peer, Line::default(), &[application]);
    world.sidecars[connection].ask(requests);
    let so = |world: &World| world.applications[application].sum().messages < requests;
    world.run_while(seconds(200), so);
    assert_eq!(world.applications[application].sum().messages, requests);
    assert!(
        world.sidecars[connection].keepalive.unanswered() > 0
            || world.now - super::world::start() > seconds(90)
    );
    world.expect_lossless("requests");
}

/// Pongs are only the second proof of progress: without them, and with late, unsolicited or very many ones, nothing is
/// lost while bytes arrive.
#[test]
fn pongs_do_not_decide_while_bytes_come_through() {
    for (what, pongs, unasked) in PONGS {
        let (mut world, application) = with_pongs(pongs, unasked, 20_000_000);
        world.run(seconds(60));
        assert_eq!(world.applications[application].sum().lost, 0, "{what}");
        world.expect_lossless(what);
    }
}

/// With a reader that has stopped, the connection is held once, for the stall limit: no Pong is read in a hold, so none
/// makes it longer.
#[test]
fn pongs_do_not_make_a_hold_longer() {
    for (what, pongs, unasked) in PONGS {
        let (mut world, application) = with_pongs(pongs, unasked, 20_000_000);
        world.run(seconds(10));
        let before = world.sidecars[0].referee.charged;
        world.applications[application].set_rate(0);
        world.run(seconds(60));
        let charged = world.sidecars[0].referee.charged - before;
        // A few milliseconds of the limit may have passed before the reader stopped. After the first second of the hold
        // the rest of the queue fills. An unsolicited Pong may be read with that, and count once as the answer to the
        // current Ping.
        let first = if unasked > 0 { seconds(1) } else { Duration::ZERO };
        let once = seconds(8) - Duration::from_millis(100)..=seconds(8) + first;
        assert!(once.contains(&charged), "{what}: held for {charged:?}");
        assert!(world.lost() > 0, "{what}");
        world.all_stand();
        world.finish();
    }
}

const PONGS: [(&str, Pongs, usize); 4] = [
    ("no Pongs", Pongs::Never, 0),
    ("Pongs after 6 s", Pongs::Late(Duration::from_secs(6)), 0),
    ("Pongs that nothing asked for", Pongs::Prompt, 1),
    ("a hundred thousand Pongs", Pongs::Prompt, 100),
];

/// A peer that floods 20 KB messages, with `unasked` unsolicited Pongs between two of them.
fn with_pongs(pongs: Pongs, unasked: usize, rate: u64) -> (World, usize) {
    let mut world = World::new();
    let application = world.application(Config::default(), AUTO, rate);
    let mut turn = 0;
    let mut left = 100_000_usize;
    let next = move || {
        turn = if turn == unasked { 0 } else { turn + 1 };
        if turn > 0 && left > 0 {
            left -= 1;
            return Some(Says::Pong);
        }
        Some(message(20_000))
    };
    let peer = Peer::new(world.now, Stack::Geth, Supply::Flood(Box::new(next))).with_pongs(pongs);
    world.connect(peer, Line::default(), &[application]);
    (world, application)
}

/// Frames that take 17 s to arrive, a round trip of 600 ms, and a reader that is at most 9 ms late for each: the time
/// that the network takes is not charged.
#[test]
fn a_slow_line_is_not_charged() {
    let line = Line { rate: Some(1_000_000), latency: Duration::from_millis(300), ..Line::default() };
    let mut world = World::new();
    let application = world.application(Config::default(), AUTO, FULL_SPEED);
    world.applications[application].pauses = Some((Duration::from_millis(10), Duration::from_millis(9)));
    let mut large = false;
    let next = move || {
        large = !large;
        Some(message(if large { LARGEST } else { 100 }))
    };
    let peer = Peer::new(world.now, Stack::Geth, Supply::Flood(Box::new(next)));
    world.connect(peer, line, &[application]);
    world.run(seconds(600));
    let referee = &world.sidecars[0].referee;
    assert!(referee.holds > 0, "there were holds");
    assert!(referee.charged <= Duration::from_millis(9) * u32::try_from(referee.holds).unwrap());
    world.all_stand();
    assert_eq!(world.lost(), 0);
}

#[test]
fn the_size_of_the_queue_does_not_matter() {
    for channel_bytes in [64 << 10, 1 << 20, 64 << 20] {
        let what = format!("a queue of {channel_bytes} bytes");
        let mut world = World::new();
        let config = Config { channel_bytes, ..Config::default() };
        let application = world.application(config, AUTO, 1_000_000);
        let peer = Peer::new(world.now, Stack::Geth, Supply::flood(16 << 10));
        world.connect(peer, Line::default(), &[application]);
        world.run(seconds(180));
        let longest = world.sidecars[0].referee.longest_hold;
        assert!(longest < Duration::from_millis(900), "{what}: held for {longest:?} at a stretch");
        world.all_stand();
        assert_eq!(world.lost(), 0, "{what}");
        world.finish();
        assert_eq!(world.lost(), 0, "{what}, at the end");
    }
}
