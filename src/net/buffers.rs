//! Buffers that idle connections do not hold, and a budget for those that receive large messages.
//!
//! A connection needs a buffer only from the arrival of bytes to the end of their message. So a buffer is borrowed when
//! the socket is readable and returned when it is drained: ten thousand idle peers hold none. If a peer announces 16
//! MiB and sends slowly, its buffer grows only with the bytes that have arrived. The bytes that all connections hold
//! beyond their first [`CHUNK`] count against one [`ReceiveBudget`]. A connection that needs more than the budget
//! allows it waits, and [`verdict`] decides which connection gives way to it.
//!
//! The budget counts the bytes that have arrived, and not the capacity of the buffers: a large buffer takes memory only
//! where bytes were written.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio::{sync::Notify, time::timeout};

use super::clock;
use crate::{
    budget::{Budget, Share},
    p2p::incomplete::{Incomplete, Verdict, verdict},
};

/// The bytes that one read asks for. Many small frames fit, and a socket buffer usually holds about as much.
pub const CHUNK: usize = 64 * 1024;

/// The most spare buffers that are kept for the next readable sockets; 64 of them are 4 MiB. On a machine with a few
/// cores more peers are rarely readable at the same moment.
const SPARE: usize = 64;

/// How long a connection waits for memory before it asks again which connection gives way: the verdict changes with
/// time.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Drained buffers for the next readers.
#[derive(Debug, Default)]
pub struct BufferPool {
    spare: Mutex<Vec<BytesMut>>,
}

impl BufferPool {
    /// Returns an empty buffer with room for a [`CHUNK`].
    #[must_use]
    pub fn take(&self) -> BytesMut {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| BytesMut::with_capacity(CHUNK))
    }

    /// Takes a drained buffer back. A buffer that has grown, or whose memory is shared with messages that are not
    /// delivered yet, is dropped instead.
    pub fn give_back(&self, mut buffer: BytesMut) {
        buffer.clear();
        // `try_reclaim` fails while payloads still point into the buffer.
        if !buffer.try_reclaim(CHUNK) || buffer.capacity() > 2 * CHUNK {
            return;
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE {
            spare.push(buffer);
        }
    }
}

/// The budget for the bytes that receive buffers of all connections hold beyond their first chunk.
#[derive(Debug)]
pub struct ReceiveBudget {
    budget: Arc<Budget>,
    returned: Notify,
    holders: Mutex<Holders>,
}

/// The connections that have had a large message.
#[derive(Debug, Default)]
struct Holders {
    all: BTreeMap<u64, Arc<Holder>>,
    next: u64,
}

/// What one connection holds. The connections that wait for memory read it.
#[derive(Debug)]
struct Holder {
    message: Mutex<Incomplete>,
    /// Notified when it is to give way.
    told: Notify,
}

impl Holder {
    fn message(&self) -> MutexGuard<'_, Incomplete> {
        self.message.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReceiveBudget {
    /// Returns a budget with nothing taken by receive buffers.
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, returned: Notify::new(), holders: Mutex::default() }
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection. Returns its key.
    fn add(&self, now: Instant) -> (u64, Arc<Holder>) {
        let holder = Arc::new(Holder { message: Mutex::new(Incomplete::new(now)), told: Notify::new() });
        let mut holders = self.holders();
        let key = holders.next;
        holders.next = key.wrapping_add(1);
        holders.all.insert(key, Arc::clone(&holder));
        (key, holder)
    }

    /// Decides for the connection `own`, which waits for memory. Returns whether it may take what it needs.
    fn ask(&self, now: Instant, own: u64, fits: bool) -> bool {
        let holders = self.holders();
        let all: Vec<_> = holders.all.iter().map(|(key, holder)| (*key, *holder.message())).collect();
        match verdict(now, own, &all, fits) {
            Verdict::Wait => false,
            Verdict::Take => true,
            Verdict::GiveWay(key) => {
                if let Some(holder) = holders.all.get(&key) {
                    holder.message().give_way();
                    holder.told.notify_one();
                }
                false
            }
        }
    }
}

/// The reason for which a wait for memory is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// The budget covers the buffer.
    Covered,
    /// The connection is to end, so that others get its memory.
    GivesWay,
}

/// Waits until the connection is to end. Without a large message it never is.
async fn told(holder: Option<&Holder>) {
    let Some(holder) = holder else { return std::future::pending().await };
    while !holder.message().gives_way() {
        holder.told.notified().await;
    }
}

/// One connection's receive buffer. It holds memory only while bytes wait in it.
#[derive(Debug)]
pub struct ReceiveBuffer<'a> {
    pool: &'a BufferPool,
    of: &'a ReceiveBudget,
    share: Share,
    buffer: Option<BytesMut>,
    /// `None` until the first message that needs more than a chunk.
    holder: Option<(u64, Arc<Holder>)>,
    /// Whether [`Room::GivesWay`] was returned: once is enough.
    gave_way: bool,
}

impl<'a> ReceiveBuffer<'a> {
    /// Returns an empty receive buffer that borrows from `pool` and counts against `budget`.
    #[must_use]
    pub fn new(pool: &'a BufferPool, budget: &'a ReceiveBudget) -> Self {
        let share = Share::new(Arc::clone(&budget.budget));
        Self { pool, of: budget, share, buffer: None, holder: None, gave_way: false }
    }

    /// Returns the received bytes, with room for more after them.
    pub fn space(&mut self) -> &mut BytesMut {
        let buffer = self.buffer.get_or_insert_with(|| self.pool.take());
        if buffer.capacity() - buffer.len() < CHUNK / 4 {
            buffer.reserve(CHUNK);
        }
        buffer
    }

    /// Returns the received bytes that are not consumed yet; there may be none.
    pub fn bytes(&mut self) -> &mut BytesMut {
        self.buffer.get_or_insert_default()
    }

    /// Gives the buffer back if it is drained, and adjusts its share of the budget. Returns whether the budget covers
    /// the buffer; until it does, the socket must not be read.
    pub fn settle(&mut self, now: Instant) -> bool {
        if let Some(buffer) = self.buffer.take_if(|buffer| buffer.is_empty()) {
            self.pool.give_back(buffer);
        }
        self.try_resize(now)
    }

    /// Says whether the socket is read now. A message is slow only while it is.
    pub fn set_reading(&self, now: Instant, reading: bool) {
        if let Some((_, holder)) = self.holder.as_ref().filter(|_| self.share.taken() > 0) {
            holder.message().go_on(now, reading);
        }
    }

    /// Waits until the budget covers the buffer, unless it does already (`covered`), or until the connection is to end,
    /// which is returned once. Cancel-safe.
    pub async fn memory(&mut self, covered: bool) -> Room {
        let holder = self.holder.as_ref().filter(|_| !self.gave_way).map(|(_, holder)| Arc::clone(holder));
        tokio::select! {
            biased;
            () = told(holder.as_deref()) => {
                self.gave_way = true;
                Room::GivesWay
            }
            () = self.covered(), if !covered => Room::Covered,
        }
    }

    async fn covered(&mut self) {
        loop {
            let now = clock::now().mono;
            let of = self.of;
            // Enabled before the budget is asked: what is returned in between is not missed.
            let mut returned = std::pin::pin!(of.returned.notified());
            returned.as_mut().enable();
            if self.try_resize(now) || self.take(now) {
                return;
            }
            let _ = timeout(ASK_AGAIN, returned).await;
        }
    }

    fn beyond_chunk(&self) -> u64 {
        self.buffer.as_ref().map_or(0, BytesMut::len).saturating_sub(CHUNK) as u64
    }

    /// Adjusts the share, within what is due to this connection. Returns whether it covers the buffer.
    fn try_resize(&mut self, now: Instant) -> bool {
        let (bytes, taken) = (self.beyond_chunk(), self.share.taken());
        if bytes == taken && bytes == 0 {
            return true;
        }
        // Only connections in the middle of a large message are holders: most are idle.
        self.share.set_holders(u64::from(bytes > 0));
        let covered = self.share.try_hold(bytes, taken);
        let (_, holder) = self.holder.get_or_insert_with(|| self.of.add(now));
        let mut message = holder.message();
        message.resize(now, bytes);
        if !covered {
            message.wait(now);
        }
        drop(message);
        if self.share.taken() < taken {
            self.of.returned.notify_waiters();
        }
        covered
    }

    /// Asks which connection gives way. Returns whether this one got what it needs.
    fn take(&mut self, now: Instant) -> bool {
        let Some((key, _)) = self.holder else { return false };
        let bytes = self.beyond_chunk();
        let more = bytes.saturating_sub(self.share.taken());
        let budget = &self.of.budget;
        let fits = more <= budget.limit().saturating_sub(budget.used());
        self.of.ask(now, key, fits) && self.share.try_hold(bytes, 0)
    }
}

impl Drop for ReceiveBuffer<'_> {
    fn drop(&mut self) {
        if let Some((key, _)) = &self.holder {
            self.of.holders().all.remove(key);
            self.share.release();
            self.of.returned.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Resource;

    #[test]
    fn grown_and_shared_buffers_are_not_kept() {
        let pool = BufferPool::default();
        let mut buffer = pool.take();
        buffer.extend_from_slice(b"payload");
        let payload = buffer.split().freeze();
        pool.give_back(buffer);
        assert_eq!(pool.spare.lock().unwrap().len(), 0, "a payload still points into it");
        drop(payload);
        pool.give_back(BytesMut::with_capacity(CHUNK));
        pool.give_back(BytesMut::with_capacity(16 * CHUNK));
        assert_eq!(pool.spare.lock().unwrap().len(), 1);
    }

    /// Another thread must never see the old and the new part of one owner together.
    #[test]
    fn a_share_that_changes_is_never_counted_twice() {
        let budget = Budget::new(Resource::Receive, 1 << 40);
        let (small, large) = (3 << 20, 5 << 20);
        let of = Arc::clone(&budget);
        let owner = std::thread::spawn(move || {
            let mut share = Share::new(of);
            for round in 0..200_000 {
                share.hold(if round % 2 == 0 { small } else { large });
            }
        });
        while !owner.is_finished() {
            let used = budget.used();
            assert!(used <= large, "{used}");
        }
        owner.join().unwrap();
    }

    const TEN: usize = 10 * CHUNK;

    fn fill(receive: &mut ReceiveBuffer<'_>, len: usize) {
        receive.bytes().resize(len, 0);
    }

    #[tokio::test]
    async fn a_connection_waits_until_others_return_what_it_needs() {
        let of = Budget::new(Resource::Receive, TEN as u64);
        let (pool, budget) = (BufferPool::default(), ReceiveBudget::new(Arc::clone(&of)));
        let mut first = ReceiveBuffer::new(&pool, &budget);
        fill(&mut first, 8 * CHUNK);
        assert!(first.settle(clock::now().mono));
        first.set_reading(clock::now().mono, true);
        let mut second = ReceiveBuffer::new(&pool, &budget);
        fill(&mut second, 3 * CHUNK);
        assert!(second.settle(clock::now().mono), "it holds nothing yet");
        assert_eq!(of.used(), 9 * CHUNK as u64);
        fill(&mut second, 6 * CHUNK);
        assert!(!second.settle(clock::now().mono), "that is more than there is");
        {
            let mut waiting = std::pin::pin!(second.memory(false));
            assert!(futures_poll(waiting.as_mut()).await.is_none());
            first.bytes().clear();
            assert!(first.settle(clock::now().mono));
            waiting.await;
        }
        assert_eq!(of.used(), 5 * CHUNK as u64);
        drop((first, second));
        assert_eq!(of.used(), 0);
    }

    #[tokio::test]
    async fn a_slow_message_gives_way_to_one_that_waits() {
        let of = Budget::new(Resource::Receive, TEN as u64);
        let (pool, budget) = (BufferPool::default(), ReceiveBudget::new(Arc::clone(&of)));
        let mut slow = ReceiveBuffer::new(&pool, &budget);
        fill(&mut slow, 10 * CHUNK);
        assert!(slow.settle(clock::now().mono));
        slow.set_reading(clock::now().mono, true);
        let mut other = ReceiveBuffer::new(&pool, &budget);
        fill(&mut other, 3 * CHUNK);
        assert!(!other.settle(clock::now().mono));
        let (left, room) = tokio::join!(
            async {
                assert_eq!(slow.memory(true).await, Room::GivesWay);
                let again = futures_poll(std::pin::pin!(slow.memory(true))).await;
                assert_eq!(again, None, "a connection that is closing does not spin");
                drop(slow);
                of.used()
            },
            other.memory(false)
        );
        assert_eq!((left, room, of.used()), (0, Room::Covered, 2 * CHUNK as u64));
    }

    #[tokio::test]
    async fn of_connections_that_wait_for_each_other_one_takes_the_rest() {
        let of = Budget::new(Resource::Receive, TEN as u64);
        let (pool, budget) = (BufferPool::default(), ReceiveBudget::new(Arc::clone(&of)));
        let mut all: Vec<_> = (0..2).map(|_| ReceiveBuffer::new(&pool, &budget)).collect();
        for receive in &mut all {
            fill(receive, 5 * CHUNK);
            assert!(receive.settle(clock::now().mono));
        }
        for receive in &mut all {
            fill(receive, 6 * CHUNK);
            assert!(!receive.settle(clock::now().mono));
        }
        assert!(
            futures_poll(std::pin::pin!(all[1].memory(false))).await.is_none(),
            "the other one has waited longer"
        );
        all[0].memory(false).await;
        assert_eq!(of.used(), 9 * CHUNK as u64);
    }

    #[tokio::test]
    async fn a_connection_holds_memory_only_while_bytes_wait() {
        let of = Budget::new(Resource::Receive, 3 * CHUNK as u64);
        let (pool, budget) = (BufferPool::default(), ReceiveBudget::new(Arc::clone(&of)));
        let mut receive = ReceiveBuffer::new(&pool, &budget);
        assert!(receive.bytes().is_empty() && receive.settle(clock::now().mono));
        assert_eq!(pool.spare.lock().unwrap().len(), 0, "it had none");
        receive.space().extend_from_slice(b"half a message");
        assert!(receive.settle(clock::now().mono));
        assert_eq!(receive.bytes(), &b"half a message"[..]);
        // It grows beyond the budget.
        receive.space().extend_from_slice(&vec![0; 8 * CHUNK]);
        assert!(!receive.settle(clock::now().mono));
        assert_eq!(of.used(), 0);
        assert!(futures_poll(std::pin::pin!(receive.memory(false))).await.is_none());
        receive.bytes().clear();
        assert!(receive.settle(clock::now().mono));
        receive.memory(false).await;
        receive.space();
        assert!(receive.settle(clock::now().mono));
        assert_eq!(pool.spare.lock().unwrap().len(), 1);
    }

    /// Polls once. Returns `None` while the future is pending.
    async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match future.as_mut().poll(cx) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
