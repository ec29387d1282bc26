//! Streams that watch: one loop for peers, nodes and registrations.
//!
//! A frame is pulled only when the stream has room for it, so a client that reads slowly is what paces the pull, and
//! what it does not read waits nowhere: it is folded on the board. One frame is on its way at most.

use std::{pin::Pin, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use super::{
    convert,
    proto::{self, ErrorReason},
    registration,
    status::Refusal,
};
use crate::net::switch::{Boards, boards::Seat, watched::Watched};
use crate::switch::{Principal, views::PeerState};
use crate::watch::{Change, Cursor, Kind, Mark, Watch, WatchToken};

/// Changes in one frame. A peer's Hello has 2 KiB, which may grow eightfold when it is escaped: 128 of the worst stay
/// within the 4 MiB that gRPC clients take by default.
pub(super) const FRAME_CHANGES: usize = 128;

/// Marks come at least this often unless the client says otherwise.
const MARK_INTERVAL: Duration = Duration::from_secs(30);

/// The limits of what it may say.
const MIN_MARK_INTERVAL: Duration = Duration::from_secs(1);
const MAX_MARK_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// What the methods answer.
pub(super) type WatchStream<F> = Pin<Box<dyn Stream<Item = Result<F, Status>> + Send>>;

/// A frame as it was pulled.
pub(super) struct Pulled<F> {
    pub(super) frame: F,
    /// Whether it says anything but where the watch stands.
    pub(super) says_something: bool,
    /// Whether there is more to pull now.
    pub(super) more: bool,
}

/// What all requests for a watch have in common.
pub(super) struct Wish {
    pub(super) token: Token,
    interval: Duration,
    seat: Seat,
}

/// Where a watch begins.
#[derive(Clone, Copy)]
pub(super) enum Token {
    /// With a snapshot.
    None,
    /// With what came after this.
    Some(WatchToken),
    /// The text is no token of this version: with a reset, as any token that is not known.
    Unknown,
}

impl Wish {
    /// Checks a request, and takes a place among those who watch.
    pub(super) fn new(
        boards: &Boards,
        principal: &Principal,
        token: &str,
        interval: Option<prost_types::Duration>,
    ) -> Result<Self, Refusal> {
        let token = match (token, token.parse()) {
            ("", _) => Token::None,
            (_, Ok(token)) => Token::Some(token),
            (_, Err(_)) => Token::Unknown,
        };
        let interval = registration::duration("mark_interval", interval, MAX_MARK_INTERVAL)?;
        let interval = interval.unwrap_or(MARK_INTERVAL);
        if interval < MIN_MARK_INTERVAL {
            return Err(Refusal::field("mark_interval", "must be at least 1 s"));
        }
        let seat = boards.seat(&principal.name).map_err(|full| {
            Refusal::new(ErrorReason::LimitReached, full.to_string())
                .with("limit", full.limit)
                .with("what", "watches")
        })?;
        Ok(Self { token, interval, seat })
    }

    /// The place on a board where this watch begins.
    pub(super) fn cursor<K: Ord + Clone, V>(&self, watch: &Watch<K, V>) -> Cursor<K> {
        match self.token {
            Token::None => watch.watch(None),
            Token::Some(token) => watch.watch(Some(token)),
            Token::Unknown => watch.watch_anew(),
        }
    }
}

/// Starts a watch: `pull` takes the next frame from the board.
pub(super) fn stream<S: Send + 'static, F: Send + 'static>(
    watched: Watched<S>,
    wish: Wish,
    pull: impl FnMut(&S) -> Pulled<F> + Send + 'static,
) -> WatchStream<F> {
    let (out, frames) = mpsc::channel(1);
    tokio::spawn(run(watched, wish, pull, out));
    Box::pin(ReceiverStream::new(frames))
}

async fn run<S, F>(
    watched: Watched<S>,
    wish: Wish,
    mut pull: impl FnMut(&S) -> Pulled<F>,
    out: mpsc::Sender<Result<F, Status>>,
) {
    let Wish { interval, seat: _seat, .. } = wish;
    let mut changes = watched.changes();
    // The first frame tells at once where the watch stands.
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
        tokio::select! {
            open = changes.changed() => if !open {
                let ended = "the sidecar is stopping; go on from the last mark when it is back";
                // The client may have gone.
                let _ = out.send(Err(Refusal::new(ErrorReason::ServerDraining, ended).into())).await;
                return;
            },
            () = sleep_until(mark_due) => {}
            () = out.closed() => return,
        }
    }
}

/// The next changes of a board as the contract says them, and the mark after them.
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

/// Whether a mark must be told although nothing changed.
pub(super) fn is_news(mark: &Mark) -> bool {
    mark.reset || mark.synced || mark.coalesced > 0
}

/// A mark as the contract says it.
pub(super) fn mark(mark: &Mark) -> proto::WatchMark {
    proto::WatchMark {
        resume_token: mark.token.map(|token| token.to_string()).unwrap_or_default(),
        reset: mark.reset,
        synced: mark.synced,
        coalesced: mark.coalesced,
    }
}

/// Peers and attempts that failed.
pub(super) fn peers(boards: &Boards, wish: Wish) -> WatchStream<proto::WatchPeersResponse> {
    let (mut cursor, mut attempts) =
        boards.peers.read(|board| (wish.cursor(&board.peers), board.attempts.watch()));
    stream(boards.peers.clone(), wish, move |board| {
        let (changes, mark_of) = changes(&board.peers, &mut cursor, FRAME_CHANGES, |kind, change| {
            let (peer, end) = match &*change.value {
                PeerState::Connected(view) => (convert::peer(view), None),
                PeerState::Gone(gone) => (convert::gone_peer(gone), Some(convert::peer_end(&gone.end))),
            };
            Some(proto::PeerChange { r#type: kind.into(), peer: Some(peer), end })
        });
        let mut failed_attempts = Vec::new();
        let missed = board.attempts.pull(&mut attempts, FRAME_CHANGES, |attempt| {
            failed_attempts.push(convert::attempt(attempt));
        });
        let missed_attempts: Vec<_> = missed.into_iter().map(convert::missed).collect();
        let says_something = is_news(&mark_of)
            || !(changes.is_empty() && failed_attempts.is_empty() && missed_attempts.is_empty());
        let more = mark_of.more || failed_attempts.len() == FRAME_CHANGES;
        let mark = Some(mark(&mark_of));
        let frame = proto::WatchPeersResponse { changes, failed_attempts, missed_attempts, mark };
        Pulled { frame, says_something, more }
    })
}

/// Registrations. Each may carry greetings of half a megabyte, so a frame has one change.
pub(super) fn registrations(boards: &Boards, wish: Wish) -> WatchStream<proto::WatchRegistrationsResponse> {
    let mut cursor = boards.registrations.read(|board| wish.cursor(board));
    stream(boards.registrations.clone(), wish, move |board| {
        let (changes, mark_of) = changes(board, &mut cursor, 1, |kind, change| {
            let registration = Some(registration::view(&change.value));
            Some(proto::RegistrationChange { r#type: kind.into(), registration })
        });
        let says_something = is_news(&mark_of) || !changes.is_empty();
        let frame = proto::WatchRegistrationsResponse { changes, mark: Some(mark(&mark_of)) };
        Pulled { frame, says_something, more: mark_of.more }
    })
}
