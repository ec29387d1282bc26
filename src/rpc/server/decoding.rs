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
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep_until},
};
use tonic::Status;

use crate::rpc::{proto::ErrorReason, translate::status::ErrorStatus};

/// The most bytes that all connections may hold: fifteen of the largest messages.
pub const TOTAL: usize = 256 * 1024 * 1024;

/// The most bytes that one connection may hold: half of the total, so that one connection cannot stop all others. Bytes
/// that wait unread use the HTTP/2 window of the connection. With a smaller share, a client that sends some hundred
/// large messages at once would stop itself.
pub const PER_CONNECTION: usize = 128 * 1024 * 1024;

/// The time that a message may take while others wait for its room: the largest, of 17 MiB, then needs 3.4 MiB a
/// second.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of one permit. The semaphore counts in 32 bits, so it counts KiB; no more precision is needed.
const UNIT: usize = 1024;

/// Bytes before each message: a flag for compression and four bytes of length.
const PREFIX: usize = 5;

/// A budget in bytes, and the messages that hold room of it.
#[derive(Debug)]
struct Pool {
    room: Arc<Semaphore>,
    capacity: usize,
    patience: Duration,
    /// Held by the one message that waits for room. The other waiting messages wait for this lock, in order.
    turn: tokio::sync::Mutex<()>,
    /// In the order in which they got their room.
    holders: Mutex<BTreeMap<u64, Holder>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Holder {
    /// The time from which its sender may send. `None`: it has room in this pool, and waits for room in the other one.
    since: Option<Instant>,
    /// Freed when this holder is removed: its message is whole, dropped, or cut off.
    _room: OwnedSemaphorePermit,
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
        self.pool.holders().remove(&self.id);
    }
}

impl Pool {
    fn new(capacity: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            room: Arc::new(Semaphore::new(capacity / UNIT)),
            capacity: capacity / UNIT,
            patience,
            turn: tokio::sync::Mutex::default(),
            holders: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    fn holders(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Holder>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn units(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT).min(self.capacity)).unwrap_or(u32::MAX)
    }

    fn place(self: &Arc<Self>, room: OwnedSemaphorePermit) -> Place {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tie, cut) = oneshot::channel();
        self.holders().insert(id, Holder { since: None, _room: room, _tie: tie });
        Place { pool: Arc::clone(self), id, cut }
    }

    fn try_claim(self: &Arc<Self>, bytes: usize) -> Option<Place> {
        let room = Arc::clone(&self.room).try_acquire_many_owned(self.units(bytes)).ok()?;
        Some(self.place(room))
    }

    /// Waits for room, and cuts off messages that have had their time. Never returns `None`, as the semaphore is not
    /// closed.
    async fn claim(self: &Arc<Self>, bytes: usize) -> Option<Place> {
        let _turn = self.turn.lock().await;
        let room = Arc::clone(&self.room).acquire_many_owned(self.units(bytes));
        tokio::pin!(room);
        // Wait for two things: for room, and for the time at which the oldest message may be cut off. Each message that
        // is cut off frees room, and the next oldest has its own time. Without such a message the time is checked again
        // after `patience`, as another message may have got its room in the meantime.
        loop {
            let oldest = self.oldest().map(|(_, since)| since);
            let due = oldest.unwrap_or_else(Instant::now) + self.patience;
            tokio::select! {
                room = &mut room => return Some(self.place(room.ok()?)),
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
            self.holders().remove(&id);
        }
    }
}

/// The budget of the whole server.
#[derive(Clone, Debug)]
pub struct Budget {
    all: Arc<Pool>,
    per_connection: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(TOTAL, PER_CONNECTION, PATIENCE)
    }
}

impl Budget {
    fn new(total: usize, per_connection: usize, patience: Duration) -> Self {
        Self { all: Pool::new(total, patience), per_connection }
    }

    /// Returns the share of a new connection.
    #[must_use]
    pub fn share(&self) -> Share {
        Share { own: Pool::new(self.per_connection, self.all.patience), all: Arc::clone(&self.all) }
    }
}

/// The part of the budget that one connection may hold.
#[derive(Clone, Debug)]
pub struct Share {
    own: Arc<Pool>,
    all: Arc<Pool>,
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
    fn try_claim(&self, bytes: usize) -> Option<Claim> {
        Some(Claim::start(self.own.try_claim(bytes)?, self.all.try_claim(bytes)?))
    }

    async fn claim(self, bytes: usize) -> Option<Claim> {
        let own = self.own.claim(bytes).await?;
        Some(Claim::start(own, self.all.claim(bytes).await?))
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
    waiting: Option<Pin<Box<dyn Future<Output = Option<Claim>> + Send>>>,
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
                        self.claim = self.share.try_claim(size);
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
                this.waiting = None;
                if claim.is_none() {
                    return this.refuse(ErrorStatus::internal("the budget of requests is closed"));
                }
                this.claim = claim;
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
                this.waiting = Some(Box::pin(this.share.clone().claim(size)));
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
