//! Scripts in virtual time: the clock of holding, and what stops reading.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn start() -> Instant {
    Instant::now()
}

fn message(channel: u16, len: usize) -> Inbound {
    Inbound { channel: ChannelIndex(channel), code: 0, payload: Bytes::from(vec![0; len]), wire_bytes: len }
}

/// Queues with room for so many messages each. A queue without room holds the connection for a second at a time.
#[derive(Default)]
struct Queues {
    room: [usize; 2],
    uncharged: bool,
    taken: Vec<u16>,
    last: Vec<u16>,
    seen: HeldTime,
}

impl Delivery for Queues {
    fn offer(&mut self, now: Instant, message: Inbound, held: HeldTime) -> Offer {
        let channel = message.channel.0;
        self.seen = held;
        let room = &mut self.room[usize::from(channel)];
        if *room == 0 {
            let (payload, charged) = (message.payload, !self.uncharged);
            return Offer::Hold { payload, until: now + SECOND, charged };
        }
        *room -= 1;
        self.taken.push(channel);
        Offer::Taken
    }

    fn offer_last(&mut self, _: Instant, message: Inbound) {
        self.last.push(message.channel.0);
    }
}

/// Offers the same message until `at`, a second at a time.
fn hold_until(intake: &mut Intake, queues: &mut Queues, mut now: Instant, at: Instant) {
    while now < at {
        now = (now + SECOND).min(at);
        intake.handle_timeout(now);
        assert_eq!(intake.deliver(now, queues), None);
    }
}

#[test]
fn a_message_that_does_not_fit_stops_reading_until_it_is_taken() {
    let start = start();
    let (mut intake, mut queues) = (Intake::new(start), Queues { room: [1, 5], ..Queues::default() });
    for channel in [0, 0, 1] {
        intake.push(message(channel, 100));
    }
    intake.deliver(start, &mut queues);
    assert_eq!(queues.taken, [0], "the other channel's message waits behind it");
    assert!(!intake.is_reading());
    let hold = Hold { channel: ChannelIndex(0), since: start, messages: 2, bytes: 200 };
    assert_eq!(intake.hold(), Some(hold));
    assert_eq!(intake.poll_timeout(), Some(start + SECOND));
    assert_eq!(intake.settle(start), None);
    hold_until(&mut intake, &mut queues, start, start + 3 * SECOND);
    queues.room[0] = 1;
    intake.deliver(start + 3 * SECOND, &mut queues);
    assert_eq!(queues.taken, [0, 0, 1]);
    assert!(intake.is_reading() && intake.is_empty() && intake.hold().is_none());
    assert_eq!(
        intake.settle(start + 3 * SECOND),
        Some(3 * SECOND),
        "deadlines of the peer move by the time held"
    );
    assert_eq!(intake.settle(start + 3 * SECOND), None);
}

#[test]
fn time_is_charged_to_the_channel_that_blocks_and_in_sum() {
    let start = start();
    let (mut intake, mut queues) = (Intake::new(start), Queues { room: [0, 0], ..Queues::default() });
    intake.push(message(0, 1));
    intake.push(message(1, 1));
    intake.deliver(start, &mut queues);
    hold_until(&mut intake, &mut queues, start, start + 4 * SECOND);
    assert_eq!(queues.seen, HeldTime { channel: 4 * SECOND, total: 4 * SECOND });
    queues.room[0] = 1;
    let mut now = start + 4 * SECOND;
    intake.deliver(now, &mut queues);
    assert_eq!(queues.seen, HeldTime { channel: Duration::ZERO, total: 4 * SECOND }, "channel 1's own clock");
    hold_until(&mut intake, &mut queues, now, now + 2 * SECOND);
    now += 2 * SECOND;
    assert_eq!(queues.seen, HeldTime { channel: 2 * SECOND, total: 6 * SECOND });
    // A hold that the policy does not charge for.
    queues.uncharged = true;
    intake.deliver(now, &mut queues);
    hold_until(&mut intake, &mut queues, now, now + 5 * SECOND);
    assert_eq!(queues.seen, HeldTime { channel: 2 * SECOND, total: 6 * SECOND });
}

/// One hold of three seconds, then the action of the case, then another message that waits: the table has the clock's
/// value after that.
#[test]
fn each_proof_sets_the_clock_back_and_nothing_else_does() {
    let held = HeldTime { channel: 3 * SECOND, total: 3 * SECOND };
    type Case = fn(&mut Intake, Instant) -> Instant;
    let table: [(&str, HeldTime, Case); 9] = [
        ("nothing", held, |_, now| now),
        ("2 MiB in one frame", HeldTime::default(), |intake, now| {
            intake.frame_read(2 << 20);
            now
        }),
        ("just below", held, |intake, now| {
            intake.frame_read((2 << 20) - 1);
            now
        }),
        ("a Pong for a Ping written since", HeldTime::default(), |intake, now| {
            intake.ping_written(now, 1);
            intake.pong_read();
            now
        }),
        ("a Pong that nothing asked for", held, |intake, now| {
            intake.pong_read();
            now
        }),
        ("the Pong of an older Ping", held, |intake, now| {
            intake.ping_written(now, 2);
            intake.pong_read();
            now
        }),
        ("both Pongs", HeldTime::default(), |intake, now| {
            intake.ping_written(now, 2);
            intake.pong_read();
            intake.pong_read();
            now
        }),
        ("a second without holding", HeldTime::default(), |_, now| now + SECOND),
        ("nearly a second", held, |_, now| now + Duration::from_millis(999)),
    ];
    for (name, expected, case) in table {
        let start = start();
        let (mut intake, mut queues) = (Intake::new(start), Queues::default());
        intake.push(message(0, 1));
        intake.deliver(start, &mut queues);
        hold_until(&mut intake, &mut queues, start, start + 3 * SECOND);
        queues.room[0] = 1;
        intake.deliver(start + 3 * SECOND, &mut queues);
        let now = case(&mut intake, start + 3 * SECOND);
        intake.push(message(0, 1));
        intake.deliver(now, &mut queues);
        assert_eq!(queues.seen, expected, "{name}");
    }
}

#[test]
fn what_stops_reading_for_another_reason_is_not_charged() {
    type Change = fn(&mut Intake, Instant);
    let table: [(&str, Change, Change); 3] = [
        ("a cap", |intake, now| intake.pause(now, now + 5 * SECOND), |_, _| {}),
        (
            "the receive budget",
            |intake, now| intake.set_starved(now, true),
            |intake, now| {
                intake.set_starved(now, false);
            },
        ),
        ("parking", |intake, _| intake.park(), |intake, _| intake.promote()),
    ];
    for (name, begin, end) in table {
        let start = start();
        let (mut intake, mut queues) = (Intake::new(start), Queues::default());
        begin(&mut intake, start);
        intake.push(message(0, 1));
        intake.deliver(start, &mut queues);
        let mut now = start + 5 * SECOND;
        hold_until(&mut intake, &mut queues, start, now);
        end(&mut intake, now);
        intake.deliver(now, &mut queues);
        assert_eq!(queues.seen, HeldTime::default(), "{name}");
        hold_until(&mut intake, &mut queues, now, now + 2 * SECOND);
        now += 2 * SECOND;
        assert_eq!(queues.seen.total, 2 * SECOND, "{name}");
        queues.room[0] = 1;
        intake.deliver(now, &mut queues);
        assert!(intake.wants_bytes(), "{name}");
    }
}

#[test]
fn a_pong_is_asked_for_after_a_second_and_once_a_second() {
    let start = start();
    let (mut intake, mut queues) = (Intake::new(start), Queues::default());
    intake.push(message(0, 1));
    intake.deliver(start, &mut queues);
    assert!(!intake.wants_ping(start, 0));
    let mut now = start + SECOND;
    hold_until(&mut intake, &mut queues, start, now);
    assert!(intake.wants_ping(now, 0));
    assert!(!intake.wants_ping(now, 1), "another one is under way");
    intake.ping_written(now, 1);
    assert!(!intake.wants_ping(now, 0));
    hold_until(&mut intake, &mut queues, now, now + SECOND);
    now += SECOND;
    assert!(intake.wants_ping(now, 0));
    queues.room[0] = 1;
    intake.deliver(now, &mut queues);
    assert!(!intake.wants_ping(now, 0), "nothing is held");
}

#[test]
fn a_parked_connection_keeps_its_first_message() {
    let start = start();
    let (mut intake, mut queues) = (Intake::new(start), Queues { room: [9, 9], ..Queues::default() });
    intake.park();
    assert!(intake.is_reading(), "nothing came yet");
    intake.push(message(0, 1));
    assert!(!intake.is_reading());
    intake.deliver(start, &mut queues);
    assert!(queues.taken.is_empty());
    intake.promote();
    intake.deliver(start, &mut queues);
    assert_eq!(queues.taken, [0]);
    assert!(intake.is_reading());
}

#[test]
fn what_waits_is_bounded_and_goes_to_its_queues_at_the_end() {
    for (len, most) in [(100_000, 11), (1, MAX_BACKLOG_MESSAGES)] {
        let mut intake = Intake::new(start());
        let mut count = 0;
        while intake.is_reading() {
            intake.push(message(0, len));
            count += 1;
        }
        assert_eq!((count, intake.bytes()), (most, most * len));
        let mut queues = Queues::default();
        intake.deliver_last(start(), &mut queues);
        assert_eq!(queues.last.len(), most);
        assert!(intake.is_empty() && intake.bytes() == 0);
    }
}
