//! A node in the table, with the results of its checks.

use std::time::Duration;

use super::contact::{Contact, Source};
use crate::node::NodeId;

/// Why a node stands where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Its bucket had room.
    HadRoom,
    /// It waits: its bucket was full when it came. It is never relayed nor checked.
    Waiting,
    /// It waited and took the place of a node that was removed.
    Promoted {
        /// The node whose place it took.
        replaced: NodeId,
    },
}

/// A node in the table. Times are wall time since the Unix epoch.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The node.
    pub contact: Contact,
    /// The source from which we first learned of it.
    pub source: Source,
    /// Why it stands where it stands.
    pub placement: Placement,
    /// When it came to the table, as a waiting node too.
    pub added: Duration,
    /// When it last proved to be there.
    pub last_seen: Option<Duration>,
    /// Passed liveness checks; divided by three at each failed one.
    pub checks: u32,
    /// Whether it passed a check at its present endpoint. Only such nodes are relayed.
    pub live: bool,
    /// Requests other than checks that it left unanswered in a row.
    pub(super) failures: u8,
    /// Whether a check is under way.
    pub(super) checking: bool,
}

impl Entry {
    pub(super) fn new(contact: Contact, source: Source, placement: Placement, added: Duration) -> Self {
        let last_seen = source.is_proven().then_some(added);
        Self {
            contact,
            source,
            placement,
            added,
            last_seen,
            checks: 0,
            live: false,
            failures: 0,
            checking: false,
        }
    }
}
