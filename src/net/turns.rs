//! Turns for the arithmetic of handshakes.
//!
//! A handshake costs half a millisecond of elliptic-curve arithmetic, and strangers decide when it happens. If forty
//! handshakes arrive together, every message that becomes ready at that time waits for all of them: the runtime's
//! queues are fair by task, not by cost. So at most half of the workers do handshakes at a time, and a task that moves
//! messages waits for one piece of arithmetic at most. `benches/handshakes.rs` measures the difference.
//!
//! The number of waiters is limited by the limits for pending dials and pending inbound connections. A turn is as long
//! as the arithmetic: no task holds one while it waits for a socket.
//!
//! Left out: how many handshakes there may be (`policy`), and discovery, whose arithmetic one task does.

use tokio::sync::{Semaphore, SemaphorePermit};

/// The turns of all connections. Waiters are served in the order in which they came.
#[derive(Debug)]
pub struct Turns(Semaphore);

impl Turns {
    /// Returns the turns for a runtime with `workers` workers: half of them may do arithmetic, and at least one.
    #[must_use]
    pub fn among(workers: usize) -> Self {
        Self(Semaphore::new((workers / 2).max(1)))
    }

    /// Waits for a turn, which ends when the returned value is dropped. Never returns `None`, as the semaphore is never
    /// closed.
    pub async fn take(&self) -> Option<SemaphorePermit<'_>> {
        self.0.acquire().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn half_of_the_workers_and_at_least_one() {
        for (workers, at_once) in [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (16, 8)] {
            let turns = Turns::among(workers);
            let mut taken = Vec::new();
            for _ in 0..at_once {
                taken.push(turns.take().await.unwrap());
            }
            assert_eq!(turns.0.available_permits(), 0, "{workers} workers");
            taken.pop();
            assert_eq!(turns.0.available_permits(), 1, "a turn ends when it is dropped");
        }
    }
}
