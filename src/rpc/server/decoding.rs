//! One budget over all requests that are being decoded.
//!
//! The gRPC library reserves the size that the five bytes before a message announce, and keeps received bytes until the
//! message is whole. Each message has its limit, but a thousand calls that each send half a message would hold a
//! thousand halves. So a message that is not whole when its first bytes arrive claims its size before the library sees
//! them: first from the share of its connection, then from the total of all connections. A message that finds no room
//! waits unread, and the windows of HTTP/2 stop its sender.
//!
//! A message that holds room and is not finished makes room for others: while a message waits, the oldest one that has
//! had [`PATIENCE`] is cut off. Its time counts from the moment at which it has all its room. Messages wait in order
//! within their connection, and only a message that fits the share of its connection waits for the total. So a thousand
//! halves on one connection cost another caller a few turns at most.
//!
//! A message that arrives whole in one frame of HTTP/2 claims nothing: its bytes are already here, within the windows.
//! So a small message takes no lock, and a large one takes a few.
//!
//! Left out: limits for messages after they are decoded; each service has its own.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};
use tonic::Status;

use crate::{
    budget::{self, Budget},
    rpc::{proto::ErrorReason, translate::status::ErrorStatus},
};

/// The time that a message may take while others wait for its room: the largest, of 17 MiB, then needs 3.4 MiB a
/// second.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The least share of a connection: the largest message fits it.
const MIN_PER_CONNECTION: u64 = 18 << 20;

/// Bytes before each message: a flag for compression and four bytes of length.
const PREFIX: usize = 5;

/// A budget, and the messages that hold room of it.
#[derive(Debug)]
struct Pool {
    budget: Arc<Budget>,
    /// Notified when room was freed.
    freed: Notify,
    patience: Duration,
    /// Held by the one message that waits for room. The other waiting messages wait for this lock, in order.
    turn: tokio::sync::Mutex<()>,
    /// The messages that wait. While there are any, no other message takes the room that they wait for.
    waiting: AtomicUsize,
    /// In the order in which they got their room.
    holders: Mutex<BTreeMap<u64, Holder>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Holder {
    /// The time from which its sender may send. `None`: it has room in this pool, and waits for room in the other one.
    since: Option<Instant>,
    /// Freed when this holder is removed: its message is whole, dropped, or cut off.
    _room: budget::Share,
    /// Dropped with this holder; that tells the message that it was cut off.
    _tie: oneshot::Sender<()>,
}

/// The room of one message in one pool. Dropping it frees the room.
#[derive(Debug)]
struct Place {
    pool: Arc<Pool>,
    id: u64,
    cut: oneshot::Receiver<()>,
}

impl Place {
    fn start(&self) {
        if let Some(holder) = self.pool.holders().get_mut(&self.id) {
            holder.since = Some(Instant::now());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.remove(self.id);
    }
}

/// Counts a message that waits, while it exists.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Pool {
    fn new(budget: Arc<Budget>, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            budget,
            freed: Notify::new(),
            patience,
            turn: tokio::sync::Mutex::default(),
            waiting: AtomicUsize::new(0),
            holders: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    fn holders(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Holder>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, id: u64) {
        let holder = self.holders().remove(&id);
        if holder.is_some() {
            drop(holder);
            self.freed.notify_one();
        }
    }

    /// Takes room for a message, whose connection holds `held` bytes here. Returns `None` if there is none.
    fn take(self: &Arc<Self>, bytes: u64, held: u64) -> Option<Place> {
        let mut room = budget::Share::new(Arc::clone(&self.budget));
        if !room.try_hold(bytes.min(self.budget.limit()), held) {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tie, cut) = oneshot::channel();
        self.holders().insert(id, Holder { since: None, _room: room, _tie: tie });
        Some(Place { pool: Arc::clone(self), id, cut })
    }

    fn try_claim(self: &Arc<Self>, bytes: u64, held: u64) -> Option<Place> {
        if self.waiting.load(Ordering::Acquire) > 0 { None } else { self.take(bytes, held) }
    }

    /// Waits for room, and cuts off messages that have had their time. `held` returns what the message's connection
    /// holds here.
    async fn claim(self: &Arc<Self>, bytes: u64, held: impl Fn() -> u64) -> Place {
        let _waiting = Waiting::new(&self.waiting);
        let _turn = self.turn.lock().await;
        // Wait for two things: for room, and for the time at which the oldest message may be cut off. Each message that
        // is cut off frees room, and the next oldest has its own time. Without such a message the time is checked again
        // after `patience`, as another message may have got its room in the meantime.
        loop {
            let freed = self.freed.notified();
            if let Some(place) = self.take(bytes, held()) {
                return place;
            }
            let oldest = self.oldest().map(|(_, since)| since);
            let due = oldest.unwrap_or_else(Instant::now) + self.patience;
            tokio::select! {
                () = freed => {}
                () = sleep_until(due) => self.cut_off_oldest(),
            }
        }
    }

    /// Returns the message that got its room here first, of those that may send.
    fn oldest(&self) -> Option<(u64, Instant)> {
        self.holders().iter().find_map(|(id, holder)| Some((*id, holder.since?)))
    }

    fn cut_off_oldest(&self) {
        if let Some((id, since)) = self.oldest()
            && since.elapsed() >= self.patience
        {
            self.remove(id);
        }
    }
}

/// The requests of the whole server that are being decoded.
#[derive(Clone, Debug)]
pub struct Requests {
    all: Arc<Pool>,
    per_connection: u64,
}

impl Requests {
    /// Requests that share `budget`. One connection may hold half of it, so that it cannot stop all others. Bytes that
    /// wait unread use the HTTP/2 window of the connection: with a smaller share, a client that sends some hundred large
    /// messages at once would stop itself.
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Self {
        let half = (budget.limit() / 2).max(MIN_PER_CONNECTION);
        Self::with(budget, half, PATIENCE)
    }

    fn with(budget: Arc<Budget>, per_connection: u64, patience: Duration) -> Self {
        Self { all: Pool::new(budget, patience), per_connection }
    }

    /// Returns the share of a new connection.
    #[must_use]
    pub fn share(&self) -> Share {
        let own = Budget::new(self.all.budget.resource(), self.per_connection);
        let mut member = budget::Share::new(Arc::clone(&self.all.budget));
        member.set_holders(1);
        let member = Arc::new(member);
        Share { own: Pool::new(own, self.all.patience), all: Arc::clone(&self.all), _member: member }
    }
}

/// The part of the budget that one connection may hold.
#[derive(Clone, Debug)]
pub struct Share {
    own: Arc<Pool>,
    all: Arc<Pool>,
    /// Makes the connection a holder of the budget; its messages hold the bytes.
    _member: Arc<budget::Share>,
}

/// The room of one message, in the share of its connection and in the total.
struct Claim {
    own: Place,
    all: Place,
}

impl Claim {
    fn start(own: Place, all: Place) -> Self {
        own.start();
        all.start();
        Self { own, all }
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> bool {
        Pin::new(&mut self.own.cut).poll(cx).is_ready() || Pin::new(&mut self.all.cut).poll(cx).is_ready()
    }
}

impl Share {
    /// What the connection holds of the total, when `bytes` of its own share belong to a message that holds nothing of
    /// the total yet. Within its own share each message is a holder by itself: it takes all its room at once.
    fn held(&self, bytes: u64) -> u64 {
        self.own.budget.used().saturating_sub(bytes)
    }

    fn try_claim(&self, bytes: u64) -> Option<Claim> {
        let own = self.own.try_claim(bytes, 0)?;
        Some(Claim::start(own, self.all.try_claim(bytes, self.held(bytes))?))
    }

    async fn claim(self, bytes: u64) -> Claim {
        let own = self.own.claim(bytes, || 0).await;
        let all = self.all.claim(bytes, || self.held(bytes)).await;
        Claim::start(own, all)
    }
}

/// The position of the reader in the stream of messages.
#[derive(Clone, Copy, Debug)]
enum At {
    /// Within a prefix: its bytes, and how many of them have been read.
    Prefix([u8; PREFIX], usize),
    /// Within a message: the number of bytes that are still to come.
    Message(usize),
}

/// The body of a request. Its messages claim their room before they are read.
pub struct Budgeted<B> {
    inner: B,
    limit: usize,
    share: Share,
    at: At,
    /// The room of the message that is not whole yet.
    claim: Option<Claim>,
    waiting: Option<Pin<Box<dyn Future<Output = Claim> + Send>>>,
    /// Data that waits for room. Its first byte is the last byte of a prefix, which has already been read.
    held: Option<Bytes>,
    refused: bool,
}

impl<B> Budgeted<B> {
    /// Returns `inner` under the budget, with messages of at most `limit` bytes.
    pub fn new(inner: B, limit: usize, share: Share) -> Self {
        let at = At::Prefix([0; PREFIX], 0);
        Self { inner, limit, share, at, claim: None, waiting: None, held: None, refused: false }
    }

    /// Ends the body with an error: nothing more is read, and its room is freed.
    fn refuse(&mut self, refusal: ErrorStatus) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        (self.refused, self.claim, self.held) = (true, None, None);
        Poll::Ready(Some(Err(refusal.into())))
    }

    /// Follows `data` from the byte `from` on. Returns how many bytes of `data` may be passed on, and the size of a
    /// message that must wait for room before the rest is passed on.
    fn follow(&mut self, data: &[u8], mut from: usize) -> Result<(usize, Option<usize>), ErrorStatus> {
        while let Some(rest) = data.get(from..).filter(|rest| !rest.is_empty()) {
            match &mut self.at {
                At::Message(left) => {
                    let passed = rest.len().min(*left);
                    *left -= passed;
                    from += passed;
                    if *left == 0 {
                        self.claim = None;
                        self.at = At::Prefix([0; PREFIX], 0);
                    }
                }
                At::Prefix(bytes, have) => {
                    for (slot, byte) in bytes.iter_mut().skip(*have).zip(rest) {
                        *slot = *byte;
                        *have += 1;
                        from += 1;
                    }
                    if *have < PREFIX {
                        continue;
                    }
                    let [_, length @ ..] = *bytes;
                    let size = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                    if size > self.limit {
                        return Err(too_large(size, self.limit));
                    }
                    let here = data.len() - from;
                    self.at = if size == 0 { At::Prefix([0; PREFIX], 0) } else { At::Message(size) };
                    if size > here {
                        self.claim = self.share.try_claim(size as u64);
                        if self.claim.is_none() {
                            return Ok((from - 1, Some(size)));
                        }
                    }
                }
            }
        }
        Ok((data.len(), None))
    }
}

fn too_large(bytes: usize, limit: usize) -> ErrorStatus {
    let message = format!("the request has {bytes} bytes, and this call takes at most {limit}");
    ErrorStatus::new(ErrorReason::RequestTooLarge, message).with("bytes", bytes).with("limit", limit)
}

fn cut_off() -> ErrorStatus {
    let message = format!(
        "the message was not whole after {} s, and other requests waited for its memory; send it faster, or later",
        PATIENCE.as_secs()
    );
    ErrorStatus::new(ErrorReason::LimitReached, message).with("what", "bytes of requests that are not whole")
}

impl<B: Body<Data = Bytes> + Unpin> Body for Budgeted<B>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if this.refused {
                return Poll::Ready(None);
            }
            if this.claim.as_mut().is_some_and(|claim| claim.poll_cut(cx)) {
                return this.refuse(cut_off());
            }
            if let Some(waiting) = &mut this.waiting {
                let claim = ready!(waiting.as_mut().poll(cx));
                (this.waiting, this.claim) = (None, Some(claim));
            }
            let (data, from) = match this.held.take() {
                Some(data) => (data, 1),
                None => match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                    None => return Poll::Ready(None),
                    Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(error.into())))),
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => (data, 0),
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    },
                },
            };
            let (passed, wanted) = match this.follow(&data, from) {
                Ok(followed) => followed,
                Err(refusal) => return this.refuse(refusal),
            };
            if let Some(size) = wanted {
                this.held = Some(data.slice(passed..));
                this.waiting = Some(Box::pin(this.share.clone().claim(size as u64)));
                if passed == 0 {
                    continue;
                }
            }
            return Poll::Ready(Some(Ok(Frame::data(data.slice(..passed)))));
        }
    }
}

#[cfg(test)]
mod tests;
