//! The state of a lease: whether a stream holds it, and when it ends if none does.
//!
//! ```text
//!   registered by a call          stream attaches             stream breaks
//! ───────────────────────▶ DETACHED ─────────▶ ATTACHED ─────────────▶ LINGERING
//!                             │                   ▲   ▲                    │
//!                             │ expires           │   └────────────────────┤ stream attaches
//!                             ▼                   │                        ▼ expires
//!                           ended                 └── another stream     ended
//! ```

use std::fmt;
use std::time::Instant;

use crate::delivery::StreamId;

/// The state of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Registered by a call, and no stream has attached since then.
    Detached {
        /// When it ends.
        expires: Instant,
    },
    /// A stream holds it.
    Attached {
        /// The stream's number.
        stream: StreamId,
    },
    /// The stream broke.
    Lingering {
        /// When it ends.
        expires: Instant,
    },
}

impl State {
    pub(super) fn name(self) -> StateName {
        match self {
            Self::Detached { .. } => StateName::Detached,
            Self::Attached { .. } => StateName::Attached,
            Self::Lingering { .. } => StateName::Lingering,
        }
    }

    /// When the lease ends unless a stream attaches; `None` while attached.
    pub(super) fn expires(self) -> Option<Instant> {
        match self {
            Self::Detached { expires } | Self::Lingering { expires } => Some(expires),
            Self::Attached { .. } => None,
        }
    }

    /// The stream that holds it.
    pub(super) fn stream(self) -> Option<StreamId> {
        match self {
            Self::Attached { stream } => Some(stream),
            Self::Detached { .. } | Self::Lingering { .. } => None,
        }
    }
}

/// A state without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateName {
    /// Registered by a call, and no stream has attached since then.
    Detached,
    /// A stream holds it.
    Attached,
    /// The stream broke.
    Lingering,
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Detached => "DETACHED",
            Self::Attached => "ATTACHED",
            Self::Lingering => "LINGERING",
        })
    }
}
