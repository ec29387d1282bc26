//! When the log reports that an application lost messages, and how many.
//!
//! Each loss is reported in the application's stream as a gap, and in the metrics. An operator must see it too, without
//! a line for each message. So a registration has at most one line in [`QUIET`], which sums up the losses since the
//! line before it. Connections note losses as they happen, and the engine takes a line when it is due.
//!
//! Left out: writing the line. The driver does that.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{channel::Inbox, session::Session};
use crate::{Wake as _, WakeSlot, delivery::Lost, node::NodeId};

/// The shortest time between two lines about one registration.
const QUIET: Duration = Duration::from_secs(10);

/// A line for the log: the losses of an application since the line before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossLine {
    /// The application's client id.
    pub client: Arc<str>,
    /// The peer and the protocol of the latest loss on one channel; `None` if no loss since the line before it was on
    /// one channel.
    pub origin: Option<(NodeId, Arc<str>)>,
    /// The messages that were lost.
    pub lost: Lost,
    /// Whether the application is attached: then it is slow, and not absent.
    pub attached: bool,
}

/// The losses of a registration, and how many of them are in the log.
#[derive(Debug)]
pub(super) struct LossLog {
    client: Arc<str>,
    /// Wakes the engine's driver when a line becomes due that was not.
    attention: Arc<WakeSlot>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    logged: Lost,
    lost: Lost,
    /// There is no line before this time.
    quiet_until: Option<Instant>,
    /// When the next line is due, if there are losses to report.
    due: Option<Instant>,
    /// The channel of the latest loss.
    latest: Option<Origin>,
}

/// The channel of a loss.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) session: Arc<Session>,
    pub(super) protocol: Arc<str>,
}

impl LossLog {
    pub(super) fn new(client: Arc<str>, attention: Arc<WakeSlot>) -> Arc<Self> {
        Arc::new(Self { client, attention, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares the total losses of the registration with those known. If there are more, a line is due: now, or when
    /// the quiet time after the last line is over.
    pub(super) fn note(&self, now: Instant, inbox: &Inbox, origin: Option<&Origin>) {
        let lost = inbox.lock().counters().lost();
        self.lost_in_all(now, lost, origin);
    }

    fn lost_in_all(&self, now: Instant, lost: Lost, origin: Option<&Origin>) {
        {
            let mut state = self.state();
            if lost.messages <= state.lost.messages {
                return;
            }
            state.lost = lost;
            state.latest = origin.cloned().or(state.latest.take());
            if state.due.is_some() {
                return;
            }
            state.due = Some(state.quiet_until.map_or(now, |until| until.max(now)));
        }
        self.attention.wake();
    }

    /// When a line is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.state().due
    }

    /// Takes the line that is due.
    pub(super) fn take_due(&self, now: Instant, attached: bool) -> Option<LossLine> {
        let mut state = self.state();
        let due = state.due.take_if(|due| *due <= now)?;
        state.quiet_until = Some(due + QUIET);
        Some(self.line(&mut state, attached))
    }

    /// Takes the last line of a registration that has ended, due or not, if there are losses to report.
    pub(super) fn take_last(&self, attached: bool) -> Option<LossLine> {
        let mut state = self.state();
        state.due.take()?;
        Some(self.line(&mut state, attached))
    }

    fn line(&self, state: &mut State, attached: bool) -> LossLine {
        let lost = Lost {
            messages: state.lost.messages.saturating_sub(state.logged.messages),
            bytes: state.lost.bytes.saturating_sub(state.logged.bytes),
        };
        state.logged = state.lost;
        let origin = state.latest.take().map(|Origin { session, protocol }| (session.node_id, protocol));
        LossLine { client: Arc::clone(&self.client), origin, lost, attached }
    }
}

/// The losses of one channel.
#[derive(Clone, Debug)]
pub(super) struct Losses {
    pub(super) log: Arc<LossLog>,
    pub(super) origin: Origin,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_registration_has_one_line_in_ten_seconds_and_none_is_forgotten() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (attention, woken) = (Arc::<WakeSlot>::default(), Arc::<Count>::default());
        attention.fill(Arc::clone(&woken) as _);
        let woken = || woken.0.swap(0, Ordering::Relaxed);
        woken();
        let log = LossLog::new("app".into(), attention);
        let lost = |messages| Lost { messages, bytes: messages * 100 };
        let said = |seconds| log.take_due(at(seconds), true).map(|line| line.lost);

        log.lost_in_all(at(0), lost(1), None);
        assert_eq!((woken(), log.due()), (1, Some(at(0))), "the first line is due at once");
        assert_eq!(said(0), Some(lost(1)));
        assert_eq!(said(0), None);
        log.lost_in_all(at(1), lost(3), None);
        log.lost_in_all(at(2), lost(6), None);
        log.lost_in_all(at(3), lost(6), None);
        assert_eq!((woken(), log.due()), (1, Some(at(10))), "one wake-up for the line that waits");
        assert_eq!(said(9), None);
        assert_eq!(said(10), Some(lost(5)), "all since the line before");
        log.lost_in_all(at(15), lost(7), None);
        assert_eq!(log.due(), Some(at(20)));
        assert_eq!(log.take_last(false).map(|line| (line.lost, line.attached)), Some((lost(1), false)));
        assert_eq!(log.take_last(false), None);
        log.lost_in_all(at(60), lost(8), None);
        assert_eq!(log.due(), Some(at(60)), "after a quiet time a line does not wait");
    }
}
