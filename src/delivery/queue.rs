//! The queue of one channel: messages, and gaps where messages were lost.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::credit::{MESSAGE_COST, cost};

/// Payloads below this size (in bytes) are copied if they may wait: they may be slices of a buffer a thousand times as
/// large, which they would keep alive. Larger payloads are not copied: the pusher ensures that each of them keeps at
/// most a read buffer alive (64 times its size).
const PINNING: usize = 1024;

/// How much may wait uncopied, in bytes of cost: what a reader that keeps up takes in its next turn.
const UNCOPIED: u64 = 4 << 10;

/// Small payloads are copied into shared blocks of this many bytes, so that many of them cost one allocation.
const ARENA: usize = 8 << 10;

/// How many items an empty queue keeps room for; the rest of a burst's memory is released.
const KEPT_ITEMS: usize = 32;

/// A number of messages that were lost, or that count as lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub messages: u64,
    /// The bytes of their payloads.
    pub bytes: u64,
}

impl Lost {
    pub(super) fn one(len: usize) -> Self {
        Self { messages: 1, bytes: len as u64 }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.messages = self.messages.saturating_add(other.messages);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

#[derive(Debug)]
pub(super) enum Item {
    Message { code: u32, payload: Bytes },
    Gap(Lost),
}

impl Item {
    fn cost(&self) -> u64 {
        match self {
            Self::Message { payload, .. } => cost(payload.len()),
            Self::Gap(_) => MESSAGE_COST,
        }
    }

    fn as_lost(&self) -> Lost {
        match self {
            Self::Message { payload, .. } => Lost::one(payload.len()),
            Self::Gap(lost) => *lost,
        }
    }
}

/// Messages and gaps in their order, with their total cost.
#[derive(Debug, Default)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    cost: u64,
    arena: BytesMut,
}

impl Queue {
    /// The cost of everything in the queue: bytes, and [`MESSAGE_COST`] for each item.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn head(&self) -> Option<&Item> {
        self.items.front()
    }

    /// Appends a message. `waits`: the reader will not take it soon.
    pub(super) fn push(&mut self, code: u32, payload: Bytes, waits: bool) {
        let payload = if payload.len() < PINNING && !payload.is_empty() && (waits || self.cost >= UNCOPIED) {
            self.copy(&payload)
        } else {
            payload
        };
        self.cost = self.cost.saturating_add(cost(payload.len()));
        self.items.push_back(Item::Message { code, payload });
    }

    /// Appends a loss, or adds it to the gap at the end of the queue.
    pub(super) fn lose(&mut self, lost: Lost) {
        if lost.messages == 0 {
            return;
        }
        if let Some(Item::Gap(last)) = self.items.back_mut() {
            last.add(lost);
        } else {
            self.cost = self.cost.saturating_add(MESSAGE_COST);
            self.items.push_back(Item::Gap(lost));
        }
    }

    pub(super) fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.cost = self.cost.saturating_sub(item.cost());
        if self.items.is_empty() {
            self.arena = BytesMut::new();
            if self.items.capacity() > KEPT_ITEMS {
                self.items.shrink_to(KEPT_ITEMS);
            }
        }
        Some(item)
    }

    /// Drops the newest messages until at most `bound` is held, and puts a gap in their place, which adds its own cost.
    /// Returns the messages that this call lost.
    pub(super) fn trim(&mut self, bound: u64) -> Lost {
        let mut lost = Lost::default();
        let mut gap = Lost::default();
        while self.cost > bound
            && let Some(item) = self.items.pop_back()
        {
            self.cost = self.cost.saturating_sub(item.cost());
            gap.add(item.as_lost());
            if let Item::Message { payload, .. } = &item {
                lost.add(Lost::one(payload.len()));
            }
        }
        self.lose(gap);
        if self.items.capacity() > KEPT_ITEMS {
            self.items.shrink_to(KEPT_ITEMS);
        }
        lost
    }

    /// The waiting messages, without earlier losses.
    pub(super) fn messages(&self) -> Lost {
        let mut sum = Lost::default();
        for item in &self.items {
            if let Item::Message { payload, .. } = item {
                sum.add(Lost::one(payload.len()));
            }
        }
        sum
    }

    /// Everything in the queue, counted as lost: messages and gaps.
    pub(super) fn total(&self) -> Lost {
        self.items.iter().fold(Lost::default(), |mut sum, item| {
            sum.add(item.as_lost());
            sum
        })
    }

    fn copy(&mut self, payload: &[u8]) -> Bytes {
        if self.arena.capacity() < payload.len() {
            self.arena = BytesMut::with_capacity(ARENA);
        }
        self.arena.extend_from_slice(payload);
        self.arena.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(len: usize) -> Bytes {
        Bytes::from(vec![7; len])
    }

    #[test]
    fn a_loss_stands_where_the_messages_would_have_been() {
        let mut queue = Queue::default();
        queue.push(1, payload(10), false);
        queue.lose(Lost { messages: 2, bytes: 30 });
        queue.lose(Lost { messages: 1, bytes: 5 });
        queue.push(2, payload(20), false);
        assert_eq!(queue.cost(), 74 + 64 + 84);
        assert_eq!(queue.total(), Lost { messages: 5, bytes: 65 });
        assert!(matches!(queue.pop(), Some(Item::Message { code: 1, .. })));
        assert!(matches!(queue.pop(), Some(Item::Gap(Lost { messages: 3, bytes: 35 }))));
        assert!(matches!(queue.pop(), Some(Item::Message { code: 2, .. })));
        assert!(queue.pop().is_none());
        assert_eq!(queue.cost(), 0);
    }

    #[test]
    fn trimming_gives_up_the_newest_and_counts_all() {
        let mut queue = Queue::default();
        for code in 0..4 {
            queue.push(code, payload(100), false);
            queue.lose(Lost { messages: 1, bytes: 1 });
        }
        let before = queue.total();
        let lost = queue.trim(300);
        assert_eq!(lost, Lost { messages: 3, bytes: 300 });
        assert_eq!(queue.total(), before, "every message is still accounted for");
        assert_eq!(queue.messages(), Lost { messages: 1, bytes: 100 });
        assert!(matches!(queue.pop(), Some(Item::Message { code: 0, .. })));
        assert!(matches!(queue.pop(), Some(Item::Gap(Lost { messages: 7, .. }))));
        assert!(queue.is_empty());
    }

    #[test]
    fn small_slices_do_not_keep_large_buffers_alive() {
        let buffer = payload(1 << 20);
        let mut queue = Queue::default();
        for at in 0..200 {
            queue.push(0, buffer.slice(at * 100..at * 100 + 50), false);
        }
        let shared = |queue: &Queue| {
            let range = buffer.as_ptr_range();
            queue
                .items
                .iter()
                .filter(
                    |item| matches!(item, Item::Message { payload, .. } if range.contains(&payload.as_ptr())),
                )
                .count()
        };
        assert!(shared(&queue) <= 40, "{} slices kept the buffer", shared(&queue));
        let mut waiting = Queue::default();
        waiting.push(0, buffer.slice(..50), true);
        assert_eq!(shared(&waiting), 0);
        waiting.push(0, buffer.slice(..4096), true);
        assert_eq!(shared(&waiting), 1, "a payload of some size is not copied");
    }

    #[test]
    fn a_burst_gives_its_memory_back() {
        let mut queue = Queue::default();
        for _ in 0..10_000 {
            queue.push(0, Bytes::new(), false);
        }
        while queue.pop().is_some() {}
        assert!(queue.items.capacity() <= KEPT_ITEMS);
    }
}
