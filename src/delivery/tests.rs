//! Scripts: the events that one application gets, step by step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::stream::MAX_CREDIT;
use super::*;
use crate::budget::{Budget, Resource};

pub(super) type TestInbox = Inbox<&'static str>;

pub(super) fn inbox() -> TestInbox {
    Inbox::new(Config::default(), Budget::whole(Resource::Delivery))
}

pub(super) fn about(session_id: u64, name: &'static str) -> About<&'static str> {
    About { session_id, peer: name, keep_first: 0, greeting_sent: false }
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
pub(super) fn start() -> Instant {
    Instant::now()
}

fn ended(by: ClosedBy) -> Close {
    Close { reason: 1, by, detail: "".into(), unsent_messages: 0 }
}

/// Events in one line each, and pushes without a clock.
pub(super) trait PushExt {
    fn queue(&mut self, key: ChannelKey, len: usize) -> Push;
    /// Attaches a stream with an id of its own.
    fn join(&mut self, params: AttachParams) -> StreamId;
    fn see(&mut self, stream: StreamId) -> Vec<String>;
}

impl PushExt for TestInbox {
    fn queue(&mut self, key: ChannelKey, len: usize) -> Push {
        let arrival = Arrival { code: len as u32, payload: Bytes::from(vec![0; len]), wire_bytes: len };
        self.push(start(), key, Sharing::Shared(Duration::ZERO), Held::default(), arrival)
    }

    fn join(&mut self, params: AttachParams) -> StreamId {
        static JOINED: AtomicU64 = AtomicU64::new(0);
        let stream = StreamId(JOINED.fetch_add(1, Ordering::Relaxed));
        self.attach(stream, params);
        stream
    }

    fn see(&mut self, stream: StreamId) -> Vec<String> {
        let mut out = Vec::new();
        while self.pull(stream, 256 << 10, 512, &mut out) == Pull::Full {}
        out.iter().map(line).collect()
    }
}

pub(super) fn line(event: &Event<&'static str>) -> String {
    match event {
        Event::Opened(opened) => {
            let existing = if opened.existing { " existing" } else { "" };
            let first = match opened.first_messages.as_slice() {
                [] => String::new(),
                first => format!(" first {:?}", first.iter().map(|kept| kept.code).collect::<Vec<_>>()),
            };
            let uncredited = match opened.uncredited_messages {
                Some(0) => String::new(),
                Some(count) => format!(" uncredited {count}"),
                None => " uncredited ?".into(),
            };
            format!(
                "{} opened {}/{}{existing} at {}{uncredited}{first}",
                opened.channel, opened.about.session_id, opened.about.peer, opened.position
            )
        }
        Event::Message { channel, code, part: None, .. } => format!("{channel} message {code}"),
        Event::Message { channel, payload, part: Some(part), .. } => {
            format!("{channel} part {}+{} of {}", part.offset, payload.len(), part.total)
        }
        Event::Gap { channel: 0, sessions, messages, bytes } => {
            format!("folded {sessions} {messages} {bytes}")
        }
        Event::Gap { channel, messages, bytes, .. } => format!("{channel} gap {messages} {bytes}"),
        Event::Closed { channel, close } => format!("{channel} closed {}", close.reason),
    }
}

fn manual(stream_window: u64, channel_window: u64) -> AttachParams {
    AttachParams { stream_window, channel_window, ..AttachParams::default() }
}

const AUTO: AttachParams =
    AttachParams { stream_window: 0, channel_window: 0, max_frame_bytes: 0, auto_credit: true };

#[test]
fn a_channel_from_its_opening_to_its_end() {
    let mut inbox = inbox();
    let stream = inbox.join(AUTO);
    let key = inbox.open(about(7, "eth")).unwrap();
    inbox.queue(key, 1);
    inbox.queue(key, 2);
    inbox.close(key, ended(ClosedBy::Remote));
    assert!(matches!(inbox.queue(key, 3), Push::Closed));
    assert_eq!(inbox.see(stream), ["1 opened 7/eth at 0", "1 message 1", "1 message 2", "1 closed 1"]);
    assert_eq!(inbox.waiting(), 0);
    assert_eq!(inbox.counters().discarded, 1);
    let key = inbox.open(about(8, "eth")).unwrap();
    assert_eq!(inbox.see(stream), ["2 opened 8/eth at 0"], "numbers are not used again");
    inbox.queue(key, 4);
    assert_eq!(inbox.credit(stream, 1, 1), Ok(()), "credit for a closed channel changes nothing");
    assert_eq!(inbox.see(stream), ["2 message 4"]);
}

#[test]
fn an_application_that_comes_back_goes_on_where_it_was() {
    let mut inbox = inbox();
    let stream = inbox.join(AUTO);
    let mut kept = about(1, "eth");
    kept.keep_first = 2;
    let stays = inbox.open(kept).unwrap();
    let leaves = inbox.open(about(2, "eth")).unwrap();
    let talks = inbox.open(about(3, "eth")).unwrap();
    for code in [10, 11, 12] {
        inbox.queue(stays, code);
    }
    inbox.queue(talks, 20);
    assert_eq!(inbox.see(stream).len(), 7);
    inbox.detach(stream);

    inbox.queue(stays, 13);
    inbox.queue(talks, 21);
    inbox.close(talks, ended(ClosedBy::Remote));
    inbox.close(leaves, ended(ClosedBy::Remote));
    let seen_by_nobody = inbox.open(about(4, "eth")).unwrap();
    inbox.close(seen_by_nobody, ended(ClosedBy::Remote));
    let short = inbox.open(about(5, "eth")).unwrap();
    inbox.queue(short, 50);
    inbox.close(short, ended(ClosedBy::Remote));

    let next = inbox.join(AUTO);
    assert_eq!(inbox.pull(stream, 1000, 10, &mut Vec::new()), Pull::Ended);
    assert_eq!(
        inbox.see(next),
        [
            "1 opened 1/eth existing at 3 uncredited ? first [10, 11]",
            "2 opened 2/eth existing at 0 uncredited ?",
            "2 closed 1",
            "3 opened 3/eth existing at 1 uncredited ?",
            "4 opened 5/eth at 0",
            "1 message 13",
            "3 message 21",
            "3 closed 1",
            "4 message 50",
            "4 closed 1",
        ]
    );
    inbox.detach(stream);
    assert_eq!(inbox.see(next), [""; 0], "the end of an old stream is not the end of this one");
}

#[test]
fn kept_first_messages_come_once_or_as_a_repetition() {
    let mut inbox = inbox();
    let mut kept = about(1, "eth");
    kept.keep_first = 9; // at most four are kept
    let key = inbox.open(kept).unwrap();
    let stream = inbox.join(AUTO);
    for code in 1..=6 {
        inbox.queue(key, code);
    }
    let mut out = Vec::new();
    inbox.pull(stream, 1 << 20, 3, &mut out); // opened, then messages 1 and 2
    let stream = inbox.join(AUTO);
    assert_eq!(inbox.see(stream)[0], "1 opened 1/eth existing at 2 uncredited ? first [1, 2]");
    let stream = inbox.join(AUTO);
    assert_eq!(inbox.see(stream), ["1 opened 1/eth existing at 6 uncredited ? first [1, 2, 3, 4]"]);

    // A first message that was lost to a full queue is repeated as well: the gap reports it, and the repetition is its
    // only copy.
    let mut lossy =
        TestInbox::new(Config { away_bytes: 0, ..Config::default() }, Budget::whole(Resource::Delivery));
    let mut kept = about(2, "eth");
    kept.keep_first = 1;
    let key = lossy.open(kept).unwrap();
    assert!(matches!(lossy.queue(key, 9), Push::Dropped));
    let stream = lossy.join(AUTO);
    assert_eq!(lossy.see(stream), ["1 opened 2/eth at 0 first [9]", "1 gap 1 9"]);
}

#[test]
fn credit_opens_and_closes_windows() {
    let mut inbox = inbox();
    let stream = inbox.join(manual(1000, 200));
    let a = inbox.open(about(1, "eth")).unwrap();
    let b = inbox.open(about(2, "eth")).unwrap();
    for _ in 0..4 {
        inbox.queue(a, 36); // costs 100
        inbox.queue(b, 436); // costs 500
    }
    assert_eq!(
        inbox.see(stream)[2..],
        ["1 message 36", "1 message 36", "2 message 436"],
        "each until its window is used up; one message may take it below zero"
    );
    inbox.credit(stream, 2, 300).unwrap();
    assert!(inbox.see(stream).is_empty(), "zero is not open");
    inbox.credit(stream, 2, 1).unwrap();
    assert_eq!(inbox.see(stream), ["2 message 436"]);
    inbox.credit(stream, 1, 10_000).unwrap();
    assert!(inbox.see(stream).is_empty(), "the stream's window: 1000 - 2 * 100 - 2 * 500");
    inbox.credit(stream, 0, 201).unwrap();
    assert_eq!(inbox.see(stream), ["1 message 36"]);
    inbox.credit(stream, 0, 10_000).unwrap();
    assert_eq!(inbox.see(stream), ["1 message 36"]);
    assert!(inbox.credit(stream, 9, 1).is_err(), "no such channel");
    let next = inbox.join(manual(0, 0));
    inbox.credit(stream, 2, 10_000).unwrap(); // not its stream any more
    assert_eq!(
        inbox.see(next),
        [
            "1 opened 1/eth existing at 4 uncredited 2",
            "2 opened 2/eth existing at 2 uncredited 2",
            "2 message 436",
            "2 message 436"
        ],
        "credit that came back says what was processed; credit in advance does not"
    );
}

#[test]
fn what_costs_nothing_waits_for_no_credit() {
    let config = Config { channel_bytes: 100, ..Config::default() };
    let mut inbox = TestInbox::new(config, Budget::whole(Resource::Delivery));
    let stream = inbox.join(manual(1, 1));
    let a = inbox.open(about(1, "eth")).unwrap();
    let b = inbox.open(about(2, "eth")).unwrap();
    inbox.queue(a, 100);
    assert_eq!(inbox.see(stream), ["1 opened 1/eth at 0", "2 opened 2/eth at 0", "1 message 100"]);
    inbox.queue(a, 50);
    inbox.close(b, ended(ClosedBy::Sidecar));
    let c = inbox.open(about(3, "eth")).unwrap();
    assert_eq!(inbox.see(stream), ["2 closed 1", "3 opened 3/eth at 0"]);
    inbox.lose(c, Lost { messages: 4, bytes: 9 });
    assert_eq!(inbox.see(stream), ["3 gap 4 9"]);
}

#[test]
fn a_full_queue_drops_and_says_where() {
    let config = Config { channel_bytes: 200, ..Config::default() };
    let mut inbox = TestInbox::new(config, Budget::whole(Resource::Delivery));
    let stream = inbox.join(manual(0, 1));
    let key = inbox.open(about(1, "eth")).unwrap();
    for (len, queued) in [(36, true), (36, true), (5, false), (6, false)] {
        assert_eq!(matches!(inbox.queue(key, len), Push::Queued), queued, "{len}");
    }
    assert_eq!(inbox.see(stream), ["1 opened 1/eth at 0", "1 message 36"]);
    inbox.credit(stream, 1, 1 << 20).unwrap();
    assert_eq!(inbox.see(stream), ["1 message 36", "1 gap 2 11"]);
    inbox.queue(key, 7);
    assert_eq!(inbox.see(stream), ["1 message 7"]);
    assert_eq!(inbox.counters().dropped, Lost { messages: 2, bytes: 11 });
}

fn arrival(len: usize) -> Arrival {
    Arrival { code: 1, payload: Bytes::from(vec![0; len]), wire_bytes: len }
}

#[test]
fn a_held_connection_is_woken_when_there_is_room_or_the_rule_changes() {
    let config = Config { channel_bytes: 200, ..Config::default() };
    let mut inbox = TestInbox::new(config, Budget::whole(Resource::Delivery));
    let stream = inbox.join(AUTO);
    let key = inbox.open(about(1, "eth")).unwrap();
    let now = start();
    let push = |inbox: &mut TestInbox| inbox.push(now, key, Sharing::Alone, Held::default(), arrival(36));
    push(&mut inbox);
    push(&mut inbox);
    let Push::Hold { until, charged, payload } = push(&mut inbox) else { panic!("two fill it") };
    assert_eq!((until, charged, payload.len()), (now + Duration::from_secs(1), true, 36));
    assert_eq!(inbox.holding(), Some((1, now)));
    assert_eq!(inbox.take_waking().space, []);
    inbox.see(stream);
    assert_eq!(inbox.take_waking().space, [key]);
    assert!(matches!(push(&mut inbox), Push::Queued));
    push(&mut inbox);
    // Another policy and the end of the stream: the message is offered again at once.
    type Change = fn(&mut TestInbox, StreamId);
    let changes: [(&str, Change); 2] = [
        ("configure", |inbox, _| inbox.configure(Config { channel_bytes: 200, ..Config::default() })),
        ("detach", |inbox, stream| inbox.detach(stream)),
    ];
    for (name, change) in changes {
        let _ = inbox.take_waking();
        assert!(matches!(push(&mut inbox), Push::Hold { .. }), "{name}");
        change(&mut inbox, stream);
        assert_eq!(inbox.take_waking().space, [key], "{name}");
        assert_eq!(inbox.holding(), None, "{name}");
    }
    assert!(matches!(push(&mut inbox), Push::Dropped), "nothing is held for an absent application");
}

#[test]
fn a_hold_ends_with_half_a_mebibyte_of_room_whatever_the_queue() {
    for (channel_bytes, room) in [(64 << 20, 512 << 10), (64 << 10, 32 << 10)] {
        let config = Config { channel_bytes, ..Config::default() };
        let mut inbox = TestInbox::new(config, Budget::whole(Resource::Delivery));
        let stream = inbox.join(AUTO);
        let key = inbox.open(about(1, "eth")).unwrap();
        let push =
            |inbox: &mut TestInbox| inbox.push(start(), key, Sharing::Alone, Held::default(), arrival(936));
        while matches!(push(&mut inbox), Push::Queued) {}
        let mut taken = 0;
        while inbox.take_waking().space.is_empty() {
            let mut out = Vec::new();
            inbox.pull(stream, 1, 1, &mut out);
            taken += out.iter().filter(|event| matches!(event, Event::Message { .. })).count() * 1000;
        }
        assert!((room..room + 2000).contains(&taken), "{taken} of {channel_bytes}");
    }
}

#[test]
fn a_late_application_is_told_of_a_gap_and_its_policy_acts() {
    let held = Held { channel: Duration::from_secs(8), total: Duration::from_secs(8) };
    let shared = Sharing::Shared(Duration::ZERO);
    // action, sharing → the result for a message that does not fit, and for the next
    type Is = fn(&Push) -> bool;
    let table: [(Action, Sharing, Is, Is); 4] = [
        (
            Action::DropAndReport,
            Sharing::Alone,
            |push| matches!(push, Push::Dropped),
            |push| matches!(push, Push::Dropped),
        ),
        (
            Action::DisconnectPeer,
            Sharing::Alone,
            |push| matches!(push, Push::Disconnect),
            |push| matches!(push, Push::Disconnect),
        ),
        (
            Action::DisconnectPeer,
            shared,
            |push| matches!(push, Push::ClosedChannel),
            |push| matches!(push, Push::Closed),
        ),
        (
            Action::Wait,
            Sharing::Alone,
            |push| matches!(push, Push::Hold { .. }),
            |push| matches!(push, Push::Hold { .. }),
        ),
    ];
    for (action, sharing, first, second) in table {
        let overflow = OverflowPolicy { action, ..OverflowPolicy::default() };
        let config = Config { channel_bytes: 200, overflow, ..Config::default() };
        let mut inbox = TestInbox::new(config, Budget::whole(Resource::Delivery));
        inbox.join(AUTO);
        let key = inbox.open(about(1, "eth")).unwrap();
        let push = |inbox: &mut TestInbox| inbox.push(start(), key, sharing, held, arrival(36));
        assert!(matches!((push(&mut inbox), push(&mut inbox)), (Push::Queued, Push::Queued)));
        let got = push(&mut inbox);
        assert!(first(&got), "{action:?} {sharing:?}: {got:?}");
        let got = push(&mut inbox);
        assert!(second(&got), "{action:?} {sharing:?}: {got:?}");
    }
}

#[test]
fn what_was_read_before_the_end_goes_beyond_the_bound() {
    let config = Config { channel_bytes: 200, away_bytes: 10_000, ..Config::default() };
    let mut inbox = TestInbox::new(config, Budget::whole(Resource::Delivery));
    let stream = inbox.join(AUTO);
    let key = inbox.open(about(1, "eth")).unwrap();
    inbox.queue(key, 400);
    assert!(matches!(inbox.push_last(key, arrival(36)), Push::Queued));
    inbox.close(key, ended(ClosedBy::Remote));
    assert!(matches!(inbox.push_last(key, arrival(36)), Push::Closed));
    let seen = inbox.see(stream);
    assert_eq!(seen, ["1 opened 1/eth at 0", "1 message 400", "1 message 1", "1 closed 1"]);
    // The process is short of memory, or the application is absent and enough waits for it.
    let mut short = TestInbox::new(config, Budget::new(Resource::Delivery, 1000));
    short.join(AUTO);
    let key = short.open(about(1, "eth")).unwrap();
    short.queue(key, 100);
    assert!(matches!(short.push_last(key, arrival(36)), Push::Dropped));
    let mut away = TestInbox::new(Config { away_bytes: 200, ..config }, Budget::whole(Resource::Delivery));
    let key = away.open(about(1, "eth")).unwrap();
    away.queue(key, 150);
    assert!(matches!(away.push_last(key, arrival(36)), Push::Dropped));
}

#[test]
fn messages_too_large_for_the_client_come_in_parts() {
    const MIB: usize = 1 << 20;
    let mut inbox = inbox();
    let stream = inbox.join(manual(u64::MAX, u64::MAX));
    let big = inbox.open(about(1, "eth")).unwrap();
    inbox.queue(big, 16 * MIB - 1);
    let small = inbox.open(about(2, "eth")).unwrap();
    for _ in 0..3 {
        inbox.queue(small, 100);
    }
    let seen = inbox.see(stream);
    let parts: Vec<&String> = seen.iter().filter(|line| line.contains("part")).collect();
    assert_eq!(parts.len(), 16);
    assert_eq!(parts[15], "1 part 15728640+1048575 of 16777215");
    let last_small = seen.iter().rposition(|line| line == "2 message 100").unwrap();
    assert!(last_small < 8, "others' events come between the parts: {seen:?}");
    // A stream that breaks in the middle of a message: the next stream gets the whole message again.
    inbox.queue(big, 5 * MIB);
    let mut out = Vec::new();
    inbox.pull(stream, 256 << 10, 10, &mut out);
    assert_eq!(out.len(), 1);
    let raised = AttachParams { max_frame_bytes: 17 * MIB, ..manual(0, 0) };
    let stream = inbox.join(raised);
    assert_eq!(
        inbox.see(stream),
        [
            "1 opened 1/eth existing at 1 uncredited 1",
            "2 opened 2/eth existing at 3 uncredited 3",
            "1 message 5242880"
        ]
    );
}

#[test]
fn turns_are_fair_by_bytes() {
    let mut inbox = inbox();
    let stream = inbox.join(AUTO);
    let keys: Vec<ChannelKey> = (1..=3).map(|session| inbox.open(about(session, "eth")).unwrap()).collect();
    let (mut bytes, mut messages) = ([0_usize; 4], [0_usize; 4]);
    let mut pushed = [0_usize; 4];
    // Three peers that always have something to send: one message of 1 MiB at a time, so that the queue is empty after
    // each; 16 large ones; 600 small ones.
    for _ in 0..3_000 {
        for (channel, (key, (len, depth))) in
            keys.iter().zip([(1 << 20, 1), (10_000, 16), (100, 600)]).enumerate()
        {
            while pushed[channel + 1] < messages[channel + 1] + depth {
                assert!(matches!(inbox.queue(*key, len), Push::Queued));
                pushed[channel + 1] += 1;
            }
        }
        let mut out = Vec::new();
        inbox.pull(stream, 256 << 10, 512, &mut out);
        for event in out {
            if let Event::Message { channel, payload, .. } = event {
                bytes[channel as usize] += payload.len() + 64;
                messages[channel as usize] += 1;
            }
        }
    }
    let [_, huge, large, small] = bytes;
    let within = |a: usize, b: usize| a.abs_diff(b) <= 2 << 20;
    assert!(huge > 50 << 20 && within(huge, large) && within(large, small), "{huge} {large} {small}");
}

#[test]
fn an_absent_application_costs_no_more_than_its_bound() {
    let config = Config { away_bytes: 64 << 10, ..Config::default() };
    let mut inbox = TestInbox::new(config, Budget::whole(Resource::Delivery));
    // Strangers that connect, send a message and disconnect, again and again.
    for session in 0..1_000 {
        let key = inbox.open(about(session, "eth")).unwrap();
        inbox.queue(key, 1000);
        let other = inbox.open(about(session, "snap")).unwrap();
        inbox.queue(other, 1);
        inbox.close(key, ended(ClosedBy::Remote));
        inbox.close(other, ended(ClosedBy::Remote));
        assert!(inbox.waiting() <= (64 << 10) + 3 * 1024);
    }
    let live = inbox.open(about(5000, "eth")).unwrap();
    let mut live_queued = 0;
    while matches!(inbox.queue(live, 1000), Push::Queued) {
        live_queued += 1;
    }
    let stream = inbox.join(AUTO);
    let seen = inbox.see(stream);
    let replayed = seen.iter().filter(|line| line.contains("closed")).count();
    assert_eq!(replayed, 0, "live messages go before those of sessions that ended");
    assert_eq!(seen[0], "folded 1000 2000 1001000");
    assert_eq!(live_queued, (64 << 10) / 1064 + 1);
    assert_eq!(*seen.last().unwrap(), "1 gap 1 1000");
    let all = Lost { messages: 2001, bytes: 1_002_000 };
    assert_eq!(inbox.counters().lost(), all, "a metric counts every message that a gap reported");
}

#[test]
fn when_the_stream_breaks_the_fullest_queues_give_way() {
    let config = Config { away_bytes: 100_000, ..Config::default() };
    let mut inbox = TestInbox::new(config, Budget::whole(Resource::Delivery));
    let stream = inbox.join(manual(0, 1));
    let keys: Vec<ChannelKey> = (1..=3).map(|session| inbox.open(about(session, "eth")).unwrap()).collect();
    for (key, count) in keys.iter().zip([1000, 300, 10]) {
        for _ in 0..count {
            inbox.queue(*key, 136); // costs 200
        }
    }
    inbox.detach(stream);
    assert!(inbox.waiting() <= 100_000, "{}", inbox.waiting());
    assert!(inbox.waiting() > 99_000, "{}", inbox.waiting());
    let stream = inbox.join(AUTO);
    let seen = inbox.see(stream);
    let count = |channel: u32| seen.iter().filter(|line| **line == format!("{channel} message 136")).count();
    assert_eq!(count(3), 10, "the small one keeps all");
    assert!(count(1).abs_diff(count(2)) <= 1, "{} {}", count(1), count(2));
    assert!(seen.contains(&format!("1 gap {} {}", 1000 - count(1), 136 * (1000 - count(1)))));
}

#[test]
fn a_reader_that_grants_no_credit_cannot_pile_up_ended_sessions() {
    let config = Config { away_bytes: 100_000, channel_bytes: 10_000, ..Config::default() };
    let mut inbox = TestInbox::new(config, Budget::whole(Resource::Delivery));
    let stream = inbox.join(manual(1, 1));
    let mut gaps = 0;
    for session in 0..1000 {
        let key = inbox.open(about(session, "eth")).unwrap();
        while matches!(inbox.queue(key, 1000), Push::Queued) {}
        inbox.close(key, ended(ClosedBy::Remote));
        gaps += inbox.see(stream).iter().filter(|line| line.contains("gap")).count();
        assert!(inbox.waiting() < 120_000);
    }
    assert!(gaps > 900);
}

#[test]
fn the_end_of_a_registration_frees_everything() {
    let budget = Budget::whole(Resource::Delivery);
    let mut inbox = TestInbox::new(Config::default(), Arc::clone(&budget));
    let stream = inbox.join(AUTO);
    let key = inbox.open(about(1, "eth")).unwrap();
    inbox.queue(key, 1 << 20);
    assert!(budget.used() >= 1 << 20);
    inbox.clear();
    assert_eq!(inbox.waiting(), 0);
    assert_eq!(inbox.pull(stream, 1, 1, &mut Vec::new()), Pull::Ended);
    assert!(matches!(inbox.queue(key, 1), Push::Closed));
    drop(inbox);
    assert_eq!(budget.used(), 0);
}

#[test]
fn credit_that_cannot_be_right_is_told() {
    let mut inbox = inbox();
    let stream = inbox.join(manual(0, 0));
    let key = inbox.open(about(1, "eth")).unwrap();
    assert_eq!(
        inbox.credit(stream, 1, 64),
        Err(CreditError::NeverOpened { channel: 1 }),
        "not announced yet"
    );
    inbox.see(stream);
    let too_much = MAX_CREDIT + 1;
    // channel, bytes → the result of the credit
    let table = [
        (1, 64, Ok(())),
        (0, 64, Ok(())),
        (0, MAX_CREDIT, Ok(())),
        (0, too_much, Err(CreditError::TooMuch { bytes: too_much })),
        (1, u64::MAX, Err(CreditError::TooMuch { bytes: u64::MAX })),
        (2, 64, Err(CreditError::NeverOpened { channel: 2 })),
    ];
    for (channel, bytes, expected) in table {
        assert_eq!(inbox.credit(stream, channel, bytes), expected, "{bytes} for {channel}");
    }
    inbox.close(key, ended(ClosedBy::Remote));
    inbox.see(stream);
    assert_eq!(inbox.credit(stream, 1, 64), Ok(()), "it crossed the end of the channel");
    // A client that resumes may still return credit for the numbers of the stream before.
    let next = inbox.join(manual(0, 0));
    inbox.open(about(2, "eth")).unwrap();
    inbox.see(next);
    assert_eq!(inbox.credit(next, 7, 64), Ok(()));
    assert_eq!(inbox.credit(next, 1, 64), Ok(()));
    assert_eq!(
        inbox.credit(next, 7, 64),
        Err(CreditError::NeverOpened { channel: 7 }),
        "the client knows the numbers now"
    );
}
