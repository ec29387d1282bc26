//! The Ping and the Pongs that are due on one connection.
//!
//! They do not wait in a queue: at most one Ping is due, and the due Pongs are a number with a bound. So a flood of
//! Pings costs no memory, and is answered with that many Pongs.
//!
//! Left out: when a Ping is due (`keepalive`, `intake`), and messages, which wait in the session's queue (`outbound`).

use std::mem;

/// How many Pongs can be due at a time, as many as go-ethereum keeps. Pings beyond that are counted and not answered.
pub const MAX_PONGS: u32 = 16;

/// The Ping and the Pongs that are due.
#[derive(Debug, Default)]
pub struct Pings {
    ping: bool,
    pongs: u32,
}

impl Pings {
    /// Makes a Ping due.
    pub fn owe_ping(&mut self) {
        self.ping = true;
    }

    /// Makes a Pong due; returns false if [`MAX_PONGS`] are due already.
    pub fn owe_pong(&mut self) -> bool {
        let room = self.pongs < MAX_PONGS;
        self.pongs += u32::from(room);
        room
    }

    /// Takes the Ping that is due; returns whether there was one.
    pub fn take_ping(&mut self) -> bool {
        mem::take(&mut self.ping)
    }

    /// Takes one of the Pongs that are due; returns whether there was one.
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
