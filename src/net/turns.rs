//! Whose turn it is to do the arithmetic of a handshake.
//!
//! A handshake costs half a millisecond of elliptic-curve arithmetic, and strangers decide when. Forty of them that
//! arrive together would stand in front of every message that becomes ready meanwhile: the runtime's queues are fair
//! by task, not by cost. So handshakes take turns, half of the workers at a time, and what moves messages waits behind
//! one piece of arithmetic at most. `benches/handshakes.rs` measures what that is worth.
//!
//! The number of waiters is bounded by who admits connections (pending dials and pending inbound), and a turn is as
//! long as the arithmetic: nobody holds one while waiting for a socket.
//!
//! Left out: how many handshakes there may be (`policy`), and discovery, whose arithmetic is done by one task.

use tokio::sync::{Semaphore, SemaphorePermit};

/// The turns of all connections. Waiters are served in the order in which they came.
#[derive(Debug)]
pub struct Turns(Semaphore);

impl Turns {
    /// Turns on a runtime with this many workers: half of them may do arithmetic, and at least one.
    #[must_use]
    pub fn among(workers: usize) -> Self {
        Self(Semaphore::new((workers / 2).max(1)))
    }

    /// Waits for a turn, which ends when the answer is dropped. `None` would mean that the turns were closed, which
    /// nobody does.
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
