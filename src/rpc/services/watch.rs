//! The streams of WatchPeers, WatchNodes and WatchRegistrations: one loop for all of them.
//!
//! The loop pulls a frame only when the stream has room for it, so the client sets the pace by reading. Changes that
//! the client has not read yet do not queue here: the view keeps the latest state of each key. At most one frame waits
//! for the client.
//!
//! Left out: which changes a slow client loses (the view decides).

use std::{pin::Pin, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use crate::net::switch::{Watches, watched::Watched, watches::WatchSlot};
use crate::rpc::{
    proto::{self, ErrorReason},
    translate::{peer, registration, status::ErrorStatus, value::duration},
};
use crate::switch::{Principal, views::PeerState};
use crate::watch::{Change, Cursor, Kind, Mark, Watch, WatchToken};

/// The most changes in one frame. A peer's Hello has at most 2 KiB, and escaping may make it eight times as long. So
/// 128 changes stay below the 4 MiB that gRPC clients take by default.
pub(super) const FRAME_CHANGES: usize = 128;

/// The default of `mark_interval`: the longest time between two marks.
const MARK_INTERVAL: Duration = Duration::from_secs(30);

/// The limits of `mark_interval`.
const MIN_MARK_INTERVAL: Duration = Duration::from_secs(1);
const MAX_MARK_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The response stream of a watch.
pub(super) type WatchStream<F> = Pin<Box<dyn Stream<Item = Result<F, Status>> + Send>>;

/// A frame that was pulled from a view.
pub(super) struct Pulled<F> {
    pub(super) frame: F,
    /// Whether the frame must be sent: it has changes, or a mark that says something new.
    pub(super) says_something: bool,
    /// Whether the view has more to pull now.
    pub(super) more: bool,
}

/// The fields that all requests for a watch have, checked.
pub(super) struct WatchRequest {
    pub(super) token: Token,
    interval: Duration,
    slot: WatchSlot,
}

/// Where a watch begins.
#[derive(Clone, Copy)]
pub(super) enum Token {
    /// The request has no token: the watch begins with a snapshot.
    None,
    /// The watch begins with the changes after this token.
    Some(WatchToken),
    /// The text is not a token of this version. The watch begins with a reset, as with any token that the view does not
    /// know.
    Unknown,
}

impl WatchRequest {
    /// Checks a request, and takes one of the limited slots for watches.
    pub(super) fn new(
        watches: &Watches,
        principal: &Principal,
        token: &str,
        interval: Option<prost_types::Duration>,
    ) -> Result<Self, ErrorStatus> {
        let token = match (token, token.parse()) {
            ("", _) => Token::None,
            (_, Ok(token)) => Token::Some(token),
            (_, Err(_)) => Token::Unknown,
        };
        let interval = duration("mark_interval", interval, MAX_MARK_INTERVAL)?;
        let interval = interval.unwrap_or(MARK_INTERVAL);
        if interval < MIN_MARK_INTERVAL {
            return Err(ErrorStatus::field("mark_interval", "must be at least \"1s\""));
        }
        let slot = watches.slot(&principal.name)?;
        Ok(Self { token, interval, slot })
    }

    /// Returns the position in a view where this watch begins.
    pub(super) fn cursor<K: Ord + Clone, V>(&self, watch: &Watch<K, V>) -> Cursor<K> {
        match self.token {
            Token::None => watch.watch(None),
            Token::Some(token) => watch.watch(Some(token)),
            Token::Unknown => watch.watch_anew(),
        }
    }
}

/// Starts a watch: `pull` takes the next frame from the view.
pub(super) fn stream<S: Send + 'static, F: Send + 'static>(
    watched: Watched<S>,
    asked: WatchRequest,
    pull: impl FnMut(&S) -> Pulled<F> + Send + 'static,
) -> WatchStream<F> {
    let (out, frames) = mpsc::channel(1);
    tokio::spawn(run(watched, asked, pull, out));
    Box::pin(ReceiverStream::new(frames))
}

async fn run<S, F>(
    watched: Watched<S>,
    asked: WatchRequest,
    mut pull: impl FnMut(&S) -> Pulled<F>,
    out: mpsc::Sender<Result<F, Status>>,
) {
    let WatchRequest { interval, slot: _slot, .. } = asked;
    let mut changes = watched.changes();
    // The first frame is sent at once, even if it has only a mark.
    let mut mark_due = Instant::now();
    loop {
        let Ok(room) = out.reserve().await else { return };
        let Pulled { frame, says_something, more } = watched.read(&mut pull);
        if says_something || mark_due <= Instant::now() {
            mark_due = Instant::now() + interval;
            room.send(Ok(frame));
        }
        if more {
            continue;
        }
        // Nothing is left to pull. Wait for the next change, for the time of the next mark, or until the client ends
        // the watch. The changes end when the sidecar stops.
        tokio::select! {
            open = changes.changed() => if !open {
                let ended = "the sidecar is stopping; watch again from the last mark after its restart";
                // Sending fails if the client has ended the watch, which is no error.
                let _ = out.send(Err(ErrorStatus::new(ErrorReason::ServerDraining, ended).into())).await;
                return;
            },
            () = sleep_until(mark_due) => {}
            () = out.closed() => return,
        }
    }
}

/// Pulls the next changes of a view, at most `max`, and translates each with `say`. A change for which `say` returns
/// `None` is left out. Returns the translated changes, and the mark after them.
pub(super) fn changes<K: Ord + Clone, V, C>(
    watch: &Watch<K, V>,
    cursor: &mut Cursor<K>,
    max: usize,
    mut say: impl FnMut(proto::ChangeType, &Change<K, V>) -> Option<C>,
) -> (Vec<C>, Mark) {
    let mut told = Vec::new();
    let mark = watch.pull(cursor, max, &mut told);
    let said = told
        .iter()
        .filter_map(|change| {
            let kind = match change.kind {
                Kind::Snapshot => proto::ChangeType::Snapshot,
                Kind::Added => proto::ChangeType::Added,
                Kind::Updated => proto::ChangeType::Updated,
                Kind::Removed => proto::ChangeType::Removed,
            };
            say(kind, change)
        })
        .collect();
    (said, mark)
}

/// Whether a mark must be sent even if its frame has no changes.
pub(super) fn is_news(mark: &Mark) -> bool {
    mark.reset || mark.synced || mark.coalesced > 0
}

/// Translates a mark.
pub(super) fn mark(mark: &Mark) -> proto::WatchMark {
    proto::WatchMark {
        resume_token: mark.token.map(|token| token.to_string()).unwrap_or_default(),
        reset: mark.reset,
        synced: mark.synced,
        coalesced: mark.coalesced,
    }
}

/// Returns the stream of WatchPeers: changes of peers, and failed attempts to connect.
pub(super) fn peers(watches: &Watches, asked: WatchRequest) -> WatchStream<proto::WatchPeersResponse> {
    let (mut cursor, mut attempts) =
        watches.peers.read(|view| (asked.cursor(&view.peers), view.attempts.watch()));
    stream(watches.peers.clone(), asked, move |view| {
        let (changes, mark_of) = changes(&view.peers, &mut cursor, FRAME_CHANGES, |kind, change| {
            let (seen, end) = match &*change.value {
                PeerState::Connected(view) => (peer::peer(view), None),
                PeerState::Gone(gone) => (peer::gone_peer(gone), Some(peer::peer_end(&gone.end))),
            };
            Some(proto::PeerChange { r#type: kind.into(), peer: Some(seen), end })
        });
        let mut failed_attempts = Vec::new();
        let missed = view.attempts.pull(&mut attempts, FRAME_CHANGES, |attempt| {
            failed_attempts.push(peer::attempt(attempt));
        });
        let missed_attempts: Vec<_> = missed.into_iter().map(peer::missed).collect();
        let says_something = is_news(&mark_of)
            || !(changes.is_empty() && failed_attempts.is_empty() && missed_attempts.is_empty());
        let more = mark_of.more || failed_attempts.len() == FRAME_CHANGES;
        let mark = Some(mark(&mark_of));
        let frame = proto::WatchPeersResponse { changes, failed_attempts, missed_attempts, mark };
        Pulled { frame, says_something, more }
    })
}

/// Returns the stream of WatchRegistrations. A frame has one change, because a registration may have greetings of half
/// a megabyte.
pub(super) fn registrations(
    watches: &Watches,
    asked: WatchRequest,
) -> WatchStream<proto::WatchRegistrationsResponse> {
    let mut cursor = watches.registrations.read(|view| asked.cursor(view));
    stream(watches.registrations.clone(), asked, move |view| {
        let (changes, mark_of) = changes(view, &mut cursor, 1, |kind, change| {
            let registration = Some(registration::view(&change.value));
            Some(proto::RegistrationChange { r#type: kind.into(), registration })
        });
        let says_something = is_news(&mark_of) || !changes.is_empty();
        let frame = proto::WatchRegistrationsResponse { changes, mark: Some(mark(&mark_of)) };
        Pulled { frame, says_something, more: mark_of.more }
    })
}
