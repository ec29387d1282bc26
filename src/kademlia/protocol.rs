//! Which of the two discovery protocols is meant.

use std::fmt;

/// A discovery protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Node discovery v4.
    V4,
    /// Node discovery v5.1.
    V5,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "discv4",
            Self::V5 => "discv5",
        })
    }
}
