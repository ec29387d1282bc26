//! What a message costs, and how much the application said it can take.
//!
//! Credit is bytes plus a fixed cost a message: counting messages alone lets large ones through, counting bytes alone
//! lets floods of tiny ones through, and both have failed elsewhere (RSocket's and h2's histories). A window is open
//! while it is above zero and a message may take it below, so that one message of any size always fits.

use std::collections::VecDeque;

/// What a message costs beside its bytes, in queues and in windows: about what it takes to hold and to frame one.
pub const MESSAGE_COST: u64 = 64;

/// The channel window when an application names none (`0`).
pub const DEFAULT_CHANNEL_WINDOW: u64 = 1 << 20;

/// The stream window when an application names none (`0`): sixteen channels at full speed.
pub const DEFAULT_STREAM_WINDOW: u64 = 16 << 20;

/// What a whole message of `len` bytes costs.
#[must_use]
pub fn cost(len: usize) -> u64 {
    (len as u64).saturating_add(MESSAGE_COST)
}

/// A credit window. Automatic credit is a window that never closes: the flow control of HTTP/2 is the limit then.
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

/// How many runs an [`Uncredited`] log remembers apart. Beyond it neighbours are joined, which only makes the bound
/// of [`Uncredited::messages`] looser.
const MAX_RUNS: usize = 32;

/// Which messages were handed over without their credit having come back: an upper bound of what a broken stream
/// took with it. A run of messages counts as processed when credit for all of it has returned.
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
        // A client that returns more than it was given (its window grows by it) has paid for nothing to come.
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
