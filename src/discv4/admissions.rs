//! Nodes that proved themselves and wait for their place in the table.
//!
//! A node that has just proved itself reads the answer to its own request: conformance suites read the very next packet
//! after the bond, within 300 ms. So it gets nothing unasked from us for a second, and comes to the table after that.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{kademlia::Contact, node::NodeId};

/// How long a node waits.
const QUIET: Duration = Duration::from_secs(1);
/// The most nodes that wait. Beyond, a node is refused and counted; it comes again.
const MAX_WAITING: usize = 1024;

/// The nodes that wait, by when they come to the table.
#[derive(Debug, Default)]
pub(super) struct Admissions {
    waiting: VecDeque<(Instant, Contact)>,
    ids: HashSet<NodeId>,
}

impl Admissions {
    /// Puts a node in line, once. False if there is no room.
    pub(super) fn add(&mut self, now: Instant, contact: Contact) -> bool {
        if self.ids.contains(&contact.id) {
            return true;
        }
        let has_room = self.waiting.len() < MAX_WAITING;
        if has_room {
            self.ids.insert(contact.id);
            self.waiting.push_back((now + QUIET, contact));
        }
        has_room
    }

    /// When the next node's wait is over.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.front().map(|(at, _)| *at)
    }

    /// Takes the next node whose wait is over.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Contact> {
        self.next().filter(|at| *at <= now)?;
        let (_, contact) = self.waiting.pop_front()?;
        self.ids.remove(&contact.id);
        Some(contact)
    }

    /// Whether both indices agree; for tests and fuzzing.
    #[cfg(any(test, feature = "internals"))]
    pub(super) fn is_consistent(&self) -> bool {
        self.waiting.len() == self.ids.len() && self.waiting.len() <= MAX_WAITING
    }
}
