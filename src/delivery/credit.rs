//! The cost of a message, and the credit that an application gives.
//!
//! Credit is bytes plus a fixed cost for each message. A count of messages alone lets large ones through, and a count
//! of bytes alone lets floods of tiny ones through; both have failed elsewhere (see the histories of RSocket and h2). A
//! window is open while it is above zero, and a message may take it below zero, so that one message of any size always
//! fits.

use std::collections::VecDeque;

/// The cost of a message beside its bytes, in queues and in windows: about the memory that it takes to hold and to
/// frame one.
pub const MESSAGE_COST: u64 = 64;

/// The channel window when an application names none (`0`): 1 MiB.
pub const DEFAULT_CHANNEL_WINDOW: u64 = 1 << 20;

/// The stream window when an application names none (`0`): 16 MiB, for sixteen channels at full speed.
pub const DEFAULT_STREAM_WINDOW: u64 = 16 << 20;

/// The cost of a whole message of `len` bytes.
#[must_use]
pub fn cost(len: usize) -> u64 {
    (len as u64).saturating_add(MESSAGE_COST)
}

/// A credit window. With automatic credit the window never closes: then only the flow control of HTTP/2 limits the
/// stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    left: i64,
    unlimited: bool,
}

impl Window {
    pub(super) fn new(bytes: u64, auto_credit: bool) -> Self {
        Self { left: i64::try_from(bytes).unwrap_or(i64::MAX), unlimited: auto_credit }
    }

    pub(super) fn is_open(self) -> bool {
        self.unlimited || self.left > 0
    }

    pub(super) fn take(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub_unsigned(bytes);
    }

    pub(super) fn give(&mut self, bytes: u64) {
        self.left = self.left.saturating_add_unsigned(bytes);
    }
}

/// How many runs an [`Uncredited`] log keeps apart. Beyond that, neighbours are joined, which only makes the bound of
/// [`Uncredited::messages`] looser.
const MAX_RUNS: usize = 32;

/// The messages that were handed over and whose credit has not come back: an upper bound on the messages that a broken
/// stream took. A run of messages counts as processed when credit for all of it has come back.
#[derive(Debug, Default)]
pub(super) struct Uncredited {
    /// Messages and cost of each run, oldest first. The last run is the one that grows.
    runs: VecDeque<(u64, u64)>,
    messages: u64,
    /// Credit that does not cover the oldest run yet.
    spare: u64,
}

impl Uncredited {
    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    /// A message of this cost was handed over.
    pub(super) fn add(&mut self, cost: u64) {
        if self.runs.len() >= MAX_RUNS {
            self.join();
        }
        self.runs.push_back((1, cost));
        self.messages = self.messages.saturating_add(1);
    }

    /// Credit came back.
    pub(super) fn credit(&mut self, bytes: u64) {
        self.spare = self.spare.saturating_add(bytes);
        while let Some(&(messages, cost)) = self.runs.front() {
            if cost > self.spare {
                return;
            }
            self.spare -= cost;
            self.messages = self.messages.saturating_sub(messages);
            self.runs.pop_front();
        }
        // Credit beyond all runs is dropped: a client that returns more than it was given only makes its window larger,
        // and does not pay for messages to come.
        self.spare = 0;
    }

    /// Joins neighbouring runs two by two.
    fn join(&mut self) {
        let mut joined = VecDeque::with_capacity(MAX_RUNS);
        while let Some((messages, cost)) = self.runs.pop_front() {
            let (more, also) = self.runs.pop_front().unwrap_or((0, 0));
            joined.push_back((messages.saturating_add(more), cost.saturating_add(also)));
        }
        self.runs = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_open_above_zero_and_may_go_below() {
        let mut window = Window::new(10, false);
        window.take(1_000);
        assert!(!window.is_open());
        window.give(990);
        assert!(!window.is_open());
        window.give(1);
        assert!(window.is_open());
        window.give(u64::MAX);
        window.give(u64::MAX);
        assert!(window.is_open(), "credit without end saturates");
        window.take(u64::MAX);
        assert!(!window.is_open());
        assert!(Window::new(0, true).is_open());
    }

    #[test]
    fn uncredited_messages_are_bounded_from_above() {
        let mut log = Uncredited::default();
        for _ in 0..3 {
            log.add(100);
        }
        log.credit(99);
        assert_eq!(log.messages(), 3);
        log.credit(1);
        assert_eq!(log.messages(), 2);
        log.credit(1_000_000);
        assert_eq!(log.messages(), 0);
        log.add(100);
        assert_eq!(log.messages(), 1, "credit in advance proves nothing");
    }

    #[test]
    fn the_log_stays_small_and_never_reports_too_little() {
        let mut log = Uncredited::default();
        let mut credited = 0;
        for handed in 1..=10_000_u64 {
            log.add(65);
            if handed % 3 == 0 {
                log.credit(65);
                credited += 1;
            }
            assert!(log.messages() >= handed - credited);
            assert!(log.runs.len() <= MAX_RUNS);
        }
        log.credit(65 * (10_000 - credited));
        assert_eq!(log.messages(), 0);
    }
}
