//! The log line about messages that an application lost.
//!
//! Each loss stands in the application's stream as a gap and in the metrics. An operator must see it as well, without a
//! line for each message: a registration writes one line at most in [`QUIET`], which sums up what was lost since the
//! line before it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{attachment::Inbox, session::Session};
use crate::delivery::Lost;

/// The least time between two lines about one registration.
const QUIET: Duration = Duration::from_secs(10);

/// What a registration lost, and what of it stands in the log.
#[derive(Debug)]
pub(super) struct LossLog {
    client: Arc<str>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    logged: Lost,
    lost: Lost,
    /// No line before this.
    quiet_until: Option<Instant>,
    /// A task will write the next line.
    scheduled: bool,
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
    pub(super) fn new(client: Arc<str>) -> Arc<Self> {
        Arc::new(Self { client, state: Mutex::default() })
    }

    /// The registration has lost so much in all. Writes a line, now or when the quiet time after the last one is over.
    pub(super) fn note(self: &Arc<Self>, now: Instant, inbox: &Inbox, origin: Option<&Origin>) {
        let (lost, attached) = {
            let inbox = inbox.lock();
            (inbox.counters().lost(), inbox.is_attached())
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.messages <= state.lost.messages {
            return;
        }
        state.lost = lost;
        state.latest = origin.cloned().or(state.latest.take());
        match state.quiet_until.filter(|until| now < *until) {
            None => {
                state.quiet_until = Some(now + QUIET);
                self.write(&mut state, attached);
            }
            Some(until) if !state.scheduled => {
                state.scheduled = true;
                let (log, inbox) = (Arc::clone(self), inbox.clone());
                tokio::spawn(async move {
                    tokio::time::sleep_until(until.into()).await;
                    let attached = inbox.lock().is_attached();
                    let mut state = log.state.lock().unwrap_or_else(PoisonError::into_inner);
                    (state.scheduled, state.quiet_until) = (false, Some(until + QUIET));
                    log.write(&mut state, attached);
                });
            }
            Some(_) => {}
        }
    }

    fn write(&self, state: &mut State, attached: bool) {
        let messages = state.lost.messages.saturating_sub(state.logged.messages);
        let bytes = state.lost.bytes.saturating_sub(state.logged.bytes);
        state.logged = state.lost;
        let (peer, protocol) = match state.latest.take() {
            Some(Origin { session, protocol }) => (session.node_id.to_string(), protocol),
            None => ("several".to_owned(), Arc::from("several")),
        };
        let advice = if attached {
            "it takes messages more slowly than they come: return credit sooner, or choose another overflow policy \
             (docs/grpc.md, \"Overflow\")"
        } else {
            "it is not attached, and what waits for it is bounded: attach again sooner"
        };
        tracing::warn!(
            client = %self.client, %peer, %protocol, messages, bytes, advice,
            "an application lost messages of its peers"
        );
    }
}

/// The losses of one channel.
#[derive(Clone, Debug)]
pub(super) struct Losses {
    pub(super) log: Arc<LossLog>,
    pub(super) origin: Origin,
}
