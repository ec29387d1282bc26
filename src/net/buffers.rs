//! Buffers that idle connections do not hold, and a budget for those that receive large messages.
//!
//! A connection needs a buffer only between the arrival of bytes and the end of the message they belong to. So a
//! buffer is borrowed when the socket is readable and returned when it is drained: ten thousand idle peers hold
//! none. A peer that announces 16 MiB and dribbles makes its buffer grow only with what really arrived, and what all
//! connections hold beyond their first [`CHUNK`] counts against one [`ReceiveBudget`]. When that is used up, a
//! connection that wants more waits, and the deadline of its frame, which dribbling does not move, ends it.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use bytes::BytesMut;
use tokio::sync::Notify;

/// What one read asks for: many small frames at once, and the same as a socket buffer's usual fill.
pub const CHUNK: usize = 64 * 1024;

/// Spare buffers kept for the next readable socket. More peers than this are rarely readable in the same instant on
/// a machine of a few cores; 64 of them are 4 MiB.
const SPARE: usize = 64;

/// What all connections together may hold in receive buffers beyond one chunk each: 16 peers in the middle of a
/// message of the largest size.
pub const RECEIVE_BUDGET: usize = 256 * 1024 * 1024;

/// Drained buffers, waiting for the next reader.
#[derive(Debug, Default)]
pub struct BufferPool {
    spare: Mutex<Vec<BytesMut>>,
}

impl BufferPool {
    /// An empty buffer with room for a [`CHUNK`].
    #[must_use]
    pub fn take(&self) -> BytesMut {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| BytesMut::with_capacity(CHUNK))
    }

    /// Gives a drained buffer back. One that grew, or whose memory is still shared with messages on their way, is
    /// let go instead.
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

/// Bytes that receive buffers hold beyond their first chunk, over all connections.
#[derive(Debug)]
pub struct ReceiveBudget {
    free: AtomicUsize,
    returned: Notify,
}

impl ReceiveBudget {
    /// A budget of `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { free: AtomicUsize::new(bytes), returned: Notify::new() }
    }

    fn try_take(&self, bytes: usize) -> bool {
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| free.checked_sub(bytes)).is_ok()
    }

    /// Bytes not taken at the moment.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn free(&self) -> usize {
        self.free.load(Ordering::Acquire)
    }
}

/// One connection's part of the [`ReceiveBudget`]. Returned when dropped.
#[derive(Debug)]
pub struct BudgetShare<'a> {
    budget: &'a ReceiveBudget,
    held: usize,
}

impl<'a> BudgetShare<'a> {
    /// A share of nothing yet.
    #[must_use]
    pub fn new(budget: &'a ReceiveBudget) -> Self {
        Self { budget, held: 0 }
    }

    /// Sets the share to `bytes` if the budget allows it now.
    pub fn try_resize(&mut self, bytes: usize) -> bool {
        if let Some(surplus) = self.held.checked_sub(bytes) {
            if surplus > 0 {
                self.budget.free.fetch_add(surplus, Ordering::AcqRel);
                self.budget.returned.notify_waiters();
                self.held = bytes;
            }
            return true;
        }
        let fits = self.budget.try_take(bytes.saturating_sub(self.held));
        if fits {
            self.held = bytes;
        }
        fits
    }

    /// Sets the share to `bytes`; waits while the budget is used up. Shrinking never waits. Cancel-safe.
    pub async fn resize(&mut self, bytes: usize) {
        loop {
            let returned = self.budget.returned.notified();
            if self.try_resize(bytes) {
                return;
            }
            returned.await;
        }
    }
}

impl Drop for BudgetShare<'_> {
    fn drop(&mut self) {
        self.budget.free.fetch_add(self.held, Ordering::AcqRel);
        self.budget.returned.notify_waiters();
    }
}

/// One connection's receive buffer. It holds memory only while bytes wait in it.
#[derive(Debug)]
pub struct ReceiveBuffer<'a> {
    pool: &'a BufferPool,
    share: BudgetShare<'a>,
    buffer: Option<BytesMut>,
}

impl<'a> ReceiveBuffer<'a> {
    /// A buffer that is borrowed from `pool` and counts against `budget`.
    #[must_use]
    pub fn new(pool: &'a BufferPool, budget: &'a ReceiveBudget) -> Self {
        Self { pool, share: BudgetShare::new(budget), buffer: None }
    }

    /// Received bytes, with room for more behind them.
    pub fn space(&mut self) -> &mut BytesMut {
        let buffer = self.buffer.get_or_insert_with(|| self.pool.take());
        if buffer.capacity() - buffer.len() < CHUNK / 4 {
            buffer.reserve(CHUNK);
        }
        buffer
    }

    /// Received bytes that no one has consumed yet; there may be none.
    pub fn bytes(&mut self) -> &mut BytesMut {
        self.buffer.get_or_insert_default()
    }

    /// Gives the buffer back if it is drained, and brings its share of the budget in step. Returns whether the budget
    /// covers it; while it does not, nothing more is to be read.
    pub fn settle(&mut self) -> bool {
        if let Some(buffer) = self.buffer.take_if(|buffer| buffer.is_empty()) {
            self.pool.give_back(buffer);
        }
        self.share.try_resize(self.beyond_chunk())
    }

    /// Waits until the budget covers the buffer. Cancel-safe.
    pub async fn covered(&mut self) {
        self.share.resize(self.beyond_chunk()).await;
    }

    fn beyond_chunk(&self) -> usize {
        self.buffer.as_ref().map_or(0, BytesMut::capacity).saturating_sub(CHUNK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[tokio::test]
    async fn who_wants_more_than_is_left_waits_until_it_is_returned() {
        let budget = ReceiveBudget::new(100);
        let mut first = BudgetShare::new(&budget);
        first.resize(80).await;
        let mut second = BudgetShare::new(&budget);
        second.resize(20).await;
        {
            let mut waiting = std::pin::pin!(second.resize(30));
            assert!(futures_poll(waiting.as_mut()).await.is_none());
            first.resize(10).await;
            waiting.await;
        }
        assert_eq!(budget.free(), 60);
        drop((first, second));
        assert_eq!(budget.free(), 100);
    }

    #[tokio::test]
    async fn a_connection_holds_memory_only_while_bytes_wait() {
        let (pool, budget) = (BufferPool::default(), ReceiveBudget::new(3 * CHUNK));
        let mut receive = ReceiveBuffer::new(&pool, &budget);
        assert!(receive.bytes().is_empty() && receive.settle());
        assert_eq!(pool.spare.lock().unwrap().len(), 0, "it had none");
        receive.space().extend_from_slice(b"half a message");
        assert!(receive.settle());
        assert_eq!(receive.bytes(), &b"half a message"[..]);
        // It grows beyond what the process has.
        receive.space().extend_from_slice(&vec![0; 8 * CHUNK]);
        assert!(!receive.settle());
        assert_eq!(budget.free(), 3 * CHUNK);
        assert!(futures_poll(std::pin::pin!(receive.covered())).await.is_none());
        receive.bytes().clear();
        assert!(receive.settle());
        receive.covered().await;
        receive.space();
        assert!(receive.settle());
        assert_eq!(pool.spare.lock().unwrap().len(), 1);
    }

    /// Polls once: `None` while pending.
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
