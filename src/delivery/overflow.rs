//! The overflow rule: what happens to a message when its channel's queue is full.
//!
//! An application that keeps reading loses nothing. Its peers are held instead: the connection stops reading, and TCP
//! slows the peer down, as a protocol inside the peer's own process would. A hold also delays the peer's Pings and the
//! other channels of the connection. So it needs **proofs of progress**: bytes that were read, a Pong, or a second
//! without holding (`p2p::intake` keeps that clock). Without a proof, a channel is held for its registration's
//! `stall_limit`. Then its application is *late*: the policy acts on every message that does not fit. That ends when
//! the application has taken 1 MiB (8 MiB on a shared connection). A dead application therefore costs its peers one
//! hold. An application that takes a message now and then cannot hold its peers again with each.
//!
//! `docs/decisions/0006-overflow.md` has the reasons for this rule, and the measurements against other nodes.
//!
//! Left out: the clock of a connection and what counts as a proof (`p2p::intake`), and the queues ([`super::Inbox`]).

use std::time::{Duration, Instant};

/// The stall limit of a registration that names none. It is below the 10 s and 15 s for which ethereumjs and reth wait
/// for a Pong. It is above the 5.2 s that a message of 5 MB takes to reach an application that reads 1 MB/s.
pub const DEFAULT_STALL_LIMIT: Duration = Duration::from_secs(8);

/// The largest stall limit, and the most that the channels of one connection are held in sum between two proofs.
/// go-ethereum gives up a write after 20 s; two such periods fit into that.
pub const MAX_STALL_LIMIT: Duration = Duration::from_secs(9);

/// A message that waits is offered again after this time at the latest. So a change acts within it: a stream that
/// attached or left, another policy, memory that became short.
const TURN: Duration = Duration::from_secs(1);

/// How much a late application must take before its peers are held for it again, in bytes of payload: the default
/// queue.
const CAUGHT_UP: u64 = 1 << 20;

/// The same where another application shares the connection: that one is held up at most once per 8 MiB.
const CAUGHT_UP_SHARED: u64 = 8 << 20;

/// How much a late application that has a connection alone may lose each second, in bytes on the wire. TCP still slows
/// the peer down at this rate. A full set of kernel buffers (4 MB) still passes within the 3 s for which Nethermind
/// waits for a Pong. A peer that sends a finite download loses a part of it and not all.
const DROP_RATE: u64 = 2 << 20;

/// Dropping may run ahead of [`DROP_RATE`] by this much time.
const DROP_BURST: Duration = Duration::from_secs(1);

/// The policy's action when the application is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// New messages of the channel are dropped and a gap stands in their place.
    DropAndReport,
    /// The peer is disconnected (reason 0x10). Where another application shares the connection, the channel is closed
    /// instead.
    DisconnectPeer,
    /// The peer is held without a limit, and may leave by itself. Where another application shares the connection, this
    /// acts as [`Action::DropAndReport`].
    Wait,
}

/// A registration's overflow policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverflowPolicy {
    /// How long a peer may be held without a proof of progress, at most [`MAX_STALL_LIMIT`]; zero: never.
    pub stall_limit: Duration,
    /// The action when that time is over.
    pub action: Action,
}

impl Default for OverflowPolicy {
    fn default() -> Self {
        Self { stall_limit: DEFAULT_STALL_LIMIT, action: Action::DropAndReport }
    }
}

/// Whether another application has a channel on the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// None has.
    Alone,
    /// One has. The operator allows holds of up to this length anyway (`max_shared_stall`).
    Shared(Duration),
}

/// How long the connection has been held since the last proof of progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Charged to the channel of the message.
    pub channel: Duration,
    /// Charged to all channels together.
    pub total: Duration,
}

/// The fate of a message that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Hold the connection and offer the message again when there is room, or at `until`. `charged`: the time counts
    /// against the limits.
    Hold { until: Instant, charged: bool },
    /// Drop the message and report it.
    Drop,
    /// Close the channel.
    CloseChannel,
    /// Disconnect the peer.
    Disconnect,
}

/// One message that does not fit, with all inputs of the rule except the channel's own state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Excess {
    pub(super) policy: OverflowPolicy,
    /// Whether a stream of the application is attached.
    pub(super) attached: bool,
    pub(super) sharing: Sharing,
    pub(super) held: Held,
    /// Bytes of payload that the application's streams have taken from this channel so far.
    pub(super) taken: u64,
    /// How many bytes the message took on the wire.
    pub(super) wire_bytes: usize,
}

/// The rule's state for one channel.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    /// Set while the application is late: how much it had taken when it became late.
    late: Option<u64>,
    /// The time until which [`DROP_RATE`] has been used up by what was dropped.
    paid: Option<Instant>,
}

impl Overflow {
    /// The stream has changed: the next one does not start as late.
    pub(super) fn forget(&mut self) {
        self.late = None;
    }

    /// Decides on a message that does not fit. After a [`Decision::Hold`], call it again with the same message.
    pub(super) fn decide(&mut self, now: Instant, excess: Excess) -> Decision {
        let Excess { policy, attached, sharing, held, taken, .. } = excess;
        if !attached {
            // No application would end the hold.
            return Decision::Drop;
        }
        // A connection that no other application shares may be held without a limit.
        if policy.action == Action::Wait && sharing == Sharing::Alone {
            return Decision::Hold { until: now + TURN, charged: true };
        }
        let (limit, caught_up) = match sharing {
            Sharing::Alone => (policy.stall_limit, CAUGHT_UP),
            Sharing::Shared(allowed) => (policy.stall_limit.min(allowed), CAUGHT_UP_SHARED),
        };
        // A late application stays late until it has taken enough, however many proofs its peer gives.
        if self.late.is_some_and(|since| taken.saturating_sub(since) < caught_up) {
            return self.act(now, excess);
        }
        self.late = None;
        // The channel's limit and the limit of the whole connection both bound the hold.
        let left = limit.saturating_sub(held.channel).min(MAX_STALL_LIMIT.saturating_sub(held.total));
        if !left.is_zero() {
            return Decision::Hold { until: now + left.min(TURN), charged: true };
        }
        self.late = Some(taken);
        self.act(now, excess)
    }

    fn act(&mut self, now: Instant, excess: Excess) -> Decision {
        match (excess.policy.action, excess.sharing) {
            (Action::DisconnectPeer, Sharing::Alone) => Decision::Disconnect,
            (Action::DisconnectPeer, Sharing::Shared(_)) => Decision::CloseChannel,
            // Not at a limited rate: the other application's messages come behind these and must not be slowed down.
            (Action::DropAndReport | Action::Wait, Sharing::Shared(_)) => Decision::Drop,
            (Action::DropAndReport | Action::Wait, Sharing::Alone) => {
                let paid = self.paid.map_or(now, |paid| paid.max(now));
                let ahead = paid.saturating_duration_since(now);
                if ahead > DROP_BURST {
                    let until = now + (ahead - DROP_BURST).min(TURN);
                    return Decision::Hold { until, charged: false };
                }
                self.paid = Some(paid + Duration::from_nanos(nanos_at_drop_rate(excess.wire_bytes)));
                Decision::Drop
            }
        }
    }
}

/// How long this many bytes take at [`DROP_RATE`].
fn nanos_at_drop_rate(bytes: usize) -> u64 {
    (bytes as u64).saturating_mul(1_000_000_000) / DROP_RATE
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const ALONE: Sharing = Sharing::Alone;
    const SHARED: Sharing = Sharing::Shared(Duration::from_millis(500));

    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn start() -> Instant {
        Instant::now()
    }

    fn excess(action: Action, attached: bool, sharing: Sharing, channel: f64, total: f64) -> Excess {
        let held = Held { channel: Duration::from_secs_f64(channel), total: Duration::from_secs_f64(total) };
        let policy = OverflowPolicy { action, ..OverflowPolicy::default() };
        Excess { policy, attached, sharing, held, taken: 0, wire_bytes: 1000 }
    }

    #[test]
    fn every_branch_of_the_rule() {
        use Action::{DisconnectPeer, DropAndReport, Wait};
        let now = start();
        let hold =
            |seconds: f64| Decision::Hold { until: now + Duration::from_secs_f64(seconds), charged: true };
        // attached, sharing, action, seconds held for the channel, seconds held in all → decision
        let table = [
            (true, ALONE, DropAndReport, 0.0, 0.0, hold(1.0)),
            (true, ALONE, DropAndReport, 7.5, 7.5, hold(0.5)),
            (true, ALONE, DropAndReport, 8.0, 8.0, Decision::Drop),
            // Another channel of the connection has used up most of the sum.
            (true, ALONE, DropAndReport, 1.0, 8.75, hold(0.25)),
            (true, ALONE, DropAndReport, 1.0, 9.0, Decision::Drop),
            (true, ALONE, DisconnectPeer, 7.0, 7.0, hold(1.0)),
            (true, ALONE, DisconnectPeer, 8.0, 8.0, Decision::Disconnect),
            (true, ALONE, Wait, 1000.0, 1000.0, hold(1.0)),
            (true, SHARED, DropAndReport, 0.0, 0.0, hold(0.5)),
            (true, SHARED, DropAndReport, 0.5, 0.5, Decision::Drop),
            (true, SHARED, DisconnectPeer, 0.25, 0.5, hold(0.25)),
            (true, SHARED, DisconnectPeer, 0.5, 0.5, Decision::CloseChannel),
            (true, SHARED, Wait, 0.5, 0.5, Decision::Drop),
            (true, Sharing::Shared(Duration::ZERO), Wait, 0.0, 0.0, Decision::Drop),
            // The registration's own limit is below the one that the operator allows.
            (true, Sharing::Shared(60 * SECOND), DropAndReport, 8.0, 8.0, Decision::Drop),
            (false, ALONE, DropAndReport, 0.0, 0.0, Decision::Drop),
            (false, ALONE, DisconnectPeer, 8.0, 8.0, Decision::Drop),
            (false, ALONE, Wait, 0.0, 0.0, Decision::Drop),
        ];
        for (attached, sharing, action, channel, total, expected) in table {
            let got = Overflow::default().decide(now, excess(action, attached, sharing, channel, total));
            assert_eq!(got, expected, "{action:?} attached {attached} {sharing:?} held {channel} of {total}");
        }
    }

    #[test]
    fn a_late_application_is_late_until_it_has_taken_a_queue_full() {
        let now = start();
        for (sharing, caught_up) in [(ALONE, CAUGHT_UP), (SHARED, CAUGHT_UP_SHARED)] {
            let mut overflow = Overflow::default();
            let at = |taken, held| Excess {
                taken,
                wire_bytes: 0,
                ..excess(Action::DropAndReport, true, sharing, held, held)
            };
            assert_eq!(overflow.decide(now, at(100, 8.0)), Decision::Drop);
            assert_eq!(
                overflow.decide(now, at(100 + caught_up - 1, 0.0)),
                Decision::Drop,
                "nearly caught up"
            );
            assert!(matches!(overflow.decide(now, at(100 + caught_up, 0.0)), Decision::Hold { .. }));
            assert_eq!(overflow.decide(now, at(100 + caught_up, 8.0)), Decision::Drop);
            overflow.forget();
            assert!(matches!(overflow.decide(now, at(100 + caught_up, 0.0)), Decision::Hold { .. }));
        }
    }

    #[test]
    fn a_late_application_loses_at_a_bounded_rate_and_is_not_charged_for_it() {
        let start = start();
        let mut now = start;
        let mut overflow = Overflow::default();
        let (mut dropped, wire_bytes) = (0, 100_000);
        while now < start + 60 * SECOND {
            let late = Excess { wire_bytes, ..excess(Action::DropAndReport, true, ALONE, 8.0, 8.0) };
            match overflow.decide(now, late) {
                Decision::Drop => dropped += wire_bytes as u64,
                Decision::Hold { until, charged } => {
                    assert!(!charged && until > now && until <= now + TURN);
                    now = until;
                }
                other => panic!("{other:?}"),
            }
        }
        let expected = DROP_RATE * 61; // the bytes of one second at once, then the rate
        assert!((expected - 200_000..=expected + 200_000).contains(&dropped), "{dropped}");
        // A second application on the connection: its messages come behind these, so dropping has no rate.
        let shared = Excess { wire_bytes, ..excess(Action::DropAndReport, true, SHARED, 8.0, 8.0) };
        assert!((0..1000).all(|_| overflow.decide(now, shared) == Decision::Drop));
    }
}
