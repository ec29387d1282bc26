//! Tables and operation sequences.

use proptest::prelude::*;

use super::super::budget::OUTBOUND_BUDGET;
use super::*;

const LIMITS: Limits =
    Limits { message_count: 10, max_message_bytes: 5_000, stream_window: 1_000, call_window: 1_000 };

fn outbox() -> Outbox<u32> {
    let mut outbox = Outbox::new(LIMITS, Budget::new(OUTBOUND_BUDGET));
    assert_eq!(outbox.announce(1), 1_000);
    outbox
}

const fn stream(want_result: Option<u64>) -> Sender {
    Sender::Stream { stream: 1, want_result }
}

const CALL: Sender = Sender::Call { want_result: None };

#[test]
fn what_is_refused_and_why() {
    let mut outbox = outbox();
    assert_eq!(outbox.send(stream(None), 10, 1, 0), Err(ErrorReason::MessageCodeOutOfRange));
    assert_eq!(outbox.send(stream(None), 9, 5_001, 0), Err(ErrorReason::MessageTooLarge));
    assert_eq!(
        outbox.send(stream(None), 9, 5_000, 0),
        Ok(()),
        "an open window takes one message of any size"
    );
    assert_eq!(outbox.send(stream(None), 9, 0, 0), Err(ErrorReason::SendWindowExceeded));
    assert_eq!(outbox.send(CALL, 9, 5_000, 0), Ok(()), "calls have a window of their own");
    assert_eq!(outbox.send(CALL, 9, 0, 0), Err(ErrorReason::SendWindowExceeded));
    assert_eq!(outbox.send(Sender::Greeting, 9, 100, 0), Ok(()), "a greeting takes none");
    assert_eq!(outbox.close(&mut Vec::new()), 2);
    assert_eq!(outbox.send(CALL, 9, 0, 0), Err(ErrorReason::PeerNotConnected));
}

#[test]
fn memory_of_the_whole_process_is_bounded_too() {
    let mut outbox = Outbox::new(
        Limits { stream_window: 1 << 30, max_message_bytes: 1 << 24, ..LIMITS },
        Budget::new(1 << 20),
    );
    assert_eq!(outbox.send(stream(None), 0, 1 << 20, 0), Ok(()));
    assert_eq!(outbox.send(stream(None), 0, 1, 0), Err(ErrorReason::LimitReached));
}

#[test]
fn outcomes_are_told_to_who_asked() {
    let mut outbox = outbox();
    outbox.send(stream(Some(7)), 0, 1, 70).unwrap();
    outbox.send(stream(None), 0, 1, 71).unwrap();
    outbox.send(Sender::Call { want_result: Some(8) }, 0, 1, 72).unwrap();
    outbox.send(stream(Some(9)), 0, 1, 73).unwrap();
    let mut outcomes = Vec::new();
    outbox.written(4, &mut outcomes);
    assert!(outcomes.is_empty(), "nothing was taken yet");
    assert_eq!(std::iter::from_fn(|| outbox.take()).collect::<Vec<_>>(), [70, 71, 72, 73]);
    assert!(!outbox.is_waiting());
    outbox.written(3, &mut outcomes);
    let told: Vec<_> = outcomes.drain(..).map(|outcome| (outcome.send_id, outcome.result)).collect();
    assert_eq!(told, [(7, Ok(())), (8, Ok(()))]);
    assert_eq!(outbox.close(&mut outcomes), 1, "taken and not written is unsent");
    assert_eq!(outcomes.first().map(|outcome| outcome.result), Some(Err(ErrorReason::PeerNotConnected)));
}

#[test]
fn a_new_stream_starts_with_what_is_left() {
    let mut outbox = outbox();
    outbox.send(stream(Some(1)), 0, 436, 0).unwrap(); // costs 500
    assert_eq!(outbox.announce(2), 500);
    outbox.send(Sender::Stream { stream: 2, want_result: Some(2) }, 0, 1_936, 0).unwrap(); // costs 2,000
    assert_eq!(outbox.announce(3), 0, "1,500 below zero");
    while outbox.take().is_some() {}
    let mut outcomes = Vec::new();
    outbox.written(1, &mut outcomes);
    assert_eq!(outbox.take_credit(), 0, "still 1,000 below");
    outbox.written(1, &mut outcomes);
    assert_eq!(outbox.take_credit(), 1_000, "and no more than the window");
    assert!(outcomes.is_empty(), "the streams that asked are gone");
}

proptest! {
    /// A client that sends only while its own count of the window is above zero is never refused, is never left
    /// without credit for ever, and never has more than its window and one message on the way.
    #[test]
    fn a_client_that_counts_is_never_refused(
        operations in proptest::collection::vec((0_u8..4, 0_usize..3_000), 1..200)
    ) {
        let mut outbox = Outbox::new(LIMITS, Budget::new(OUTBOUND_BUDGET));
        let mut number = 1;
        let mut window = i64::try_from(outbox.announce(number)).unwrap();
        let (mut sent, mut written, mut taken) = (0_u64, 0_u64, 0_usize);
        for (operation, len) in operations {
            match operation {
                0 if window > 0 => {
                    let sender = Sender::Stream { stream: number, want_result: None };
                    prop_assert_eq!(outbox.send(sender, 1, len, 0), Ok(()));
                    window -= i64::try_from(cost(len)).unwrap();
                    sent += 1;
                }
                1 => while outbox.take().is_some() { taken += 1 },
                2 => {
                    let count = (len % 4).min(taken);
                    outbox.written(count, &mut Vec::new());
                    written += count as u64;
                    taken -= count;
                }
                3 if len % 10 == 0 => {
                    number += 1;
                    window = i64::try_from(outbox.announce(number)).unwrap();
                }
                _ => {}
            }
            window += i64::try_from(outbox.take_credit()).unwrap();
            prop_assert!(outbox.held <= 1_000 + cost(3_000));
        }
        while outbox.take().is_some() { taken += 1 }
        outbox.written(taken, &mut Vec::new());
        window += i64::try_from(outbox.take_credit()).unwrap();
        prop_assert_eq!(window, 1_000, "all credit came back");
        prop_assert_eq!(written + taken as u64, sent);
        prop_assert_eq!(outbox.close(&mut Vec::new()), 0);
    }
}
