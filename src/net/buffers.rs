//! Buffers that idle connections do not hold, and a budget for those that receive large messages.
//!
//! A connection needs a buffer only from the arrival of bytes to the end of their message. So a buffer is borrowed when
//! the socket is readable and returned when it is drained: ten thousand idle peers hold none. If a peer announces 16
//! MiB and sends slowly, its buffer grows only with the bytes that have arrived. The bytes that all connections hold
//! beyond their first [`CHUNK`] count against one [`ReceiveBudget`]. When the budget is used up, a connection that
//! needs more waits. A slow peer does not move the deadline of its frame, so that deadline ends its connection.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use bytes::BytesMut;
use tokio::sync::Notify;

/// The bytes that one read asks for. Many small frames fit, and a socket buffer usually holds about as much.
pub const CHUNK: usize = 64 * 1024;

/// The most spare buffers that are kept for the next readable sockets; 64 of them are 4 MiB. On a machine with a few
/// cores more peers are rarely readable at the same moment.
const SPARE: usize = 64;

/// The most bytes that all connections together hold in receive buffers beyond one chunk each: enough for 16 peers in
/// the middle of a message of the largest size.
pub const RECEIVE_BUDGET: usize = 256 * 1024 * 1024;

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
    free: AtomicUsize,
    returned: Notify,
}

impl ReceiveBudget {
    /// Returns a budget of `bytes`.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { free: AtomicUsize::new(bytes), returned: Notify::new() }
    }

    fn try_take(&self, bytes: usize) -> bool {
        self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| free.checked_sub(bytes)).is_ok()
    }

    /// Returns the bytes of the budget that are free now.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn free(&self) -> usize {
        self.free.load(Ordering::Acquire)
    }
}

/// One connection's part of the [`ReceiveBudget`]. Dropping it returns its bytes.
#[derive(Debug)]
pub struct BudgetShare<'a> {
    budget: &'a ReceiveBudget,
    held: usize,
}

impl<'a> BudgetShare<'a> {
    /// Returns a share of 0 bytes.
    #[must_use]
    pub fn new(budget: &'a ReceiveBudget) -> Self {
        Self { budget, held: 0 }
    }

    /// Sets the share to `bytes` if the budget has room. Returns whether it had.
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

    /// Sets the share to `bytes`, and waits while the budget has no room. A smaller share never waits. Cancel-safe.
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
    /// Returns an empty receive buffer that borrows from `pool` and counts against `budget`.
    #[must_use]
    pub fn new(pool: &'a BufferPool, budget: &'a ReceiveBudget) -> Self {
        Self { pool, share: BudgetShare::new(budget), buffer: None }
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
        // It grows beyond the budget.
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
