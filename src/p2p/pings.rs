//! The Ping and the Pongs that are due on one connection.
//!
//! They do not wait in a queue: one Ping can be due, and Pongs are a number with a bound, so that a flood of Pings is
//! answered with as many Pongs as fit, not with memory.
//!
//! Left out: when a Ping is due (`keepalive`, `intake`), and messages, which wait in the session's queue (`outbound`).

use std::mem;

/// How many Pongs can be due at a time, as many as geth keeps. More Pings than that are counted, not answered.
pub const MAX_PONGS: u32 = 16;

/// What is due.
#[derive(Debug, Default)]
pub struct Pings {
    ping: bool,
    pongs: u32,
}

impl Pings {
    /// A Ping is due.
    pub fn owe_ping(&mut self) {
        self.ping = true;
    }

    /// A Pong is due; `false` if too many are already.
    pub fn owe_pong(&mut self) -> bool {
        let room = self.pongs < MAX_PONGS;
        self.pongs += u32::from(room);
        room
    }

    /// The Ping that is due.
    pub fn take_ping(&mut self) -> bool {
        mem::take(&mut self.ping)
    }

    /// One of the Pongs that are due.
    pub fn take_pong(&mut self) -> bool {
        let due = self.pongs > 0;
        self.pongs = self.pongs.saturating_sub(1);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pongs_are_a_number_with_a_bound_and_a_ping_is_due_once() {
        let mut pings = Pings::default();
        assert_eq!((0..10_000).filter(|_| pings.owe_pong()).count(), 16);
        assert_eq!((0..10_000).filter(|_| pings.take_pong()).count(), 16);
        (0..10).for_each(|_| pings.owe_ping());
        assert_eq!((0..10).filter(|_| pings.take_ping()).count(), 1);
    }
}
