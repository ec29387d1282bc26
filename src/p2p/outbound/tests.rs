//! The queue of a session: windows, the budget over all sessions, ends, and messages that cannot be written.

use super::*;
use crate::{
    budget::Resource,
    rlpx::{Compressor, snappy::MAX_PAYLOAD},
};

fn message(len: usize) -> Compressed {
    Compressor::default().compress(&vec![0; len]).unwrap()
}

/// This many channels of 16 codes each, one after the other.
fn channels(count: u64) -> impl Iterator<Item = ChannelLimits> {
    (0..count).map(|at| ChannelLimits { offset: 0x10 + at * 16, message_count: 16, max_message: MAX_PAYLOAD })
}

#[expect(clippy::disallowed_methods, reason = "the queue does not look at the time")]
fn pull(mut outbound: &Outbound) -> Next {
    outbound.next(Instant::now())
}

/// The code on the wire of the next message.
fn pull_code(outbound: &Outbound) -> Option<u64> {
    match pull(outbound) {
        Next::Message(Outgoing { code, .. }) => Some(code),
        _ => None,
    }
}

#[test]
fn a_lane_takes_what_crosses_its_window_and_refuses_what_comes_after() {
    let outbound = Outbound::alone();
    assert_eq!(
        outbound.send(Lane::Stream, ChannelIndex(0), 0, message(1)),
        Err(Refused::Closed),
        "no channel yet"
    );
    outbound.set_channels(channels(2), true);
    outbound.send(Lane::Stream, ChannelIndex(0), 0, message(4 * 1024 * 1024)).unwrap();
    assert_eq!(outbound.send(Lane::Stream, ChannelIndex(0), 0, message(1)), Err(Refused::Full));
    // The other lane and the other channel have their own room.
    outbound.send(Lane::Call, ChannelIndex(0), 0, message(1)).unwrap();
    outbound.send(Lane::Stream, ChannelIndex(1), 0, message(1)).unwrap();
    assert_eq!(pull_code(&outbound), Some(0x10));
    assert_eq!(
        outbound.send(Lane::Stream, ChannelIndex(0), 0, message(1)),
        Err(Refused::Full),
        "taken is not written"
    );
    outbound.written(1);
    outbound.send(Lane::Stream, ChannelIndex(0), 0, message(1)).unwrap();
    assert_eq!(outbound.progress(ChannelIndex(0)).stream.written, 1);
    assert_eq!(outbound.progress(ChannelIndex(0)).stream.accepted, 2);
}

#[test]
fn all_sessions_share_one_budget_and_give_it_back() {
    let budget = Budget::whole(Resource::Outbound);
    let sessions: Vec<_> = (0..40).map(|_| Outbound::new(Arc::clone(&budget))).collect();
    let large = message(16 * 1024 * 1024 - 1);
    let taken = sessions.iter().filter(|session| {
        session.set_channels(channels(1), true);
        session.send(Lane::Stream, ChannelIndex(0), 0, large.clone()).is_ok()
    });
    assert_eq!(taken.count(), 12, "thirteen would be above 200 MiB");
    // Less than a quarter is left: a session that holds more than its share of that quarter is refused, the others are
    // not.
    assert_eq!(sessions[0].send(Lane::Call, ChannelIndex(0), 0, message(1)), Err(Refused::Full));
    sessions[39].send(Lane::Call, ChannelIndex(0), 0, message(1)).unwrap();
    pull_code(&sessions[0]).unwrap();
    sessions[0].written(1);
    sessions[20].send(Lane::Stream, ChannelIndex(0), 0, large).unwrap();
    sessions.iter().for_each(|session| {
        session.close();
        session.close();
    });
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_queue_that_is_dropped_takes_no_share_any_more() {
    let budget = Budget::whole(Resource::Outbound);
    (0..1000).for_each(|_| drop(Outbound::new(Arc::clone(&budget))));
    let closed = Outbound::new(Arc::clone(&budget));
    closed.close();
    drop(closed);
    // Connections that were cut in their handshake left no holder: the last quarter is one session's alone.
    let outbound = Outbound::new(Arc::clone(&budget));
    outbound.set_channels(channels(16), true);
    let large = message(16 * 1024 * 1024 - 1);
    let taken = (0..16)
        .filter(|channel| outbound.send(Lane::Stream, ChannelIndex(*channel), 0, large.clone()).is_ok());
    assert_eq!(taken.count(), 10, "three quarters, and the message that crosses them");
    let other = Outbound::new(budget);
    other.set_channels(channels(1), true);
    other.send(Lane::Stream, ChannelIndex(0), 0, large).unwrap();
}

#[test]
fn a_channel_that_ends_alone_gives_its_room_back_and_moves_no_more() {
    let budget = Budget::whole(Resource::Outbound);
    let outbound = Outbound::new(Arc::clone(&budget));
    outbound.set_channels(channels(2), true);
    let send = |channel| outbound.send(Lane::Stream, ChannelIndex(channel), 0, message(100));
    for channel in [0, 0, 0, 1] {
        send(channel).unwrap();
    }
    assert!(pull_code(&outbound).is_some() && pull_code(&outbound).is_some());
    outbound.written(1);
    assert_eq!(outbound.end_channel(ChannelIndex(0)), 2, "one of three was written");
    assert_eq!(send(0), Err(Refused::Closed));
    assert_eq!(pull_code(&outbound), Some(0x20), "what waited for the other channel stays");
    outbound.written(1);
    assert_eq!(outbound.progress(ChannelIndex(0)).unwritten(), 2, "the count that was returned stays");
    outbound.close();
    assert_eq!(budget.used(), 0);
}

#[test]
fn disconnect_waits_for_what_was_accepted() {
    let outbound = Outbound::alone();
    outbound.set_channels(channels(1), true);
    outbound.send(Lane::Stream, ChannelIndex(0), 0, message(1)).unwrap();
    outbound.disconnect(DisconnectReason::Requested);
    outbound.disconnect(DisconnectReason::Quitting);
    let leaving = (&*outbound).leaving();
    assert_eq!(leaving, Some(DisconnectReason::Requested), "for a connection that can write no message");
    assert_eq!(outbound.send(Lane::Stream, ChannelIndex(0), 0, message(1)), Err(Refused::Closed));
    assert!(matches!(pull(&outbound), Next::Message(_)));
    assert!(matches!(pull(&outbound), Next::Leave(DisconnectReason::Requested)));
}

#[test]
fn what_cannot_be_written_is_refused_with_its_reason_and_counts_for_nothing() {
    let budget = Budget::whole(Resource::Outbound);
    let outbound = Outbound::new(Arc::clone(&budget));
    let limits = |max_message| ChannelLimits { offset: 0x10, message_count: 18, max_message };
    outbound.set_channels([limits(1000), limits(MAX_PAYLOAD)], true);
    let send =
        |channel, code, len| outbound.send(Lane::Call, ChannelIndex(channel), code, message(len)).map(|_| ());
    assert_eq!(send(0, 18, 1), Err(Refused::CodeOutOfRange { message_count: 18 }));
    assert_eq!(send(0, u64::MAX, 1), Err(Refused::CodeOutOfRange { message_count: 18 }));
    assert_eq!(send(0, 17, 1001), Err(Refused::TooLarge { bytes: 1001, limit: 1000 }));
    assert_eq!(send(2, 0, 1), Err(Refused::Closed), "there is no such channel");
    assert_eq!(budget.used(), 0);
    assert_eq!(send(0, 17, 1000), Ok(()));
    assert_eq!(pull_code(&outbound), Some(0x10 + 17));
    // Zeros compress well; a peer without compression gets a frame as large as the payload.
    assert_eq!(send(1, 0, MAX_PAYLOAD), Ok(()));
    let old = Outbound::new(budget);
    old.set_channels([limits(MAX_PAYLOAD)], false);
    let refused = old.send(Lane::Call, ChannelIndex(0), 0, message(MAX_PAYLOAD)).map(|_| ());
    assert_eq!(refused, Err(Refused::TooLarge { bytes: MAX_PAYLOAD, limit: MAX_PAYLOAD }));
    let fits = MAX_PAYLOAD - 1;
    assert_eq!(old.send(Lane::Call, ChannelIndex(0), 0, message(fits)), Ok(1));
}

/// Every message that was accepted is written, or counted as unwritten once its session has ended.
#[test]
fn nothing_is_written_that_was_not_pulled_and_nothing_twice() {
    let outbound = Outbound::alone();
    outbound.set_channels(channels(1), true);
    for _ in 0..3 {
        outbound.send(Lane::Stream, ChannelIndex(0), 0, message(1)).unwrap();
    }
    outbound.written(7);
    assert_eq!(outbound.progress(ChannelIndex(0)).stream.written, 0, "the engine has pulled none");
    pull_code(&outbound).unwrap();
    outbound.written(7);
    outbound.written(7);
    pull_code(&outbound).unwrap();
    outbound.close();
    outbound.written(1);
    let progress = outbound.progress(ChannelIndex(0));
    assert_eq!((progress.stream.written, progress.unwritten()), (1, 2));
    assert!(matches!(pull(&outbound), Next::Nothing));
}
