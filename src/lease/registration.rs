//! One registration and the state of its lease.
//!
//! ```text
//!   registered by a call          stream attaches             stream breaks
//! ───────────────────────▶ DETACHED ─────────▶ ATTACHED ─────────────▶ LINGERING
//!                             │                   ▲   ▲                    │
//!                             │ expires           │   └────────────────────┤ stream attaches
//!                             ▼                   │                        ▼ expires
//!                            gone                 └── another stream      gone
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::spec::RegistrationSpec;
use super::token::{RegistrationId, ResumeToken, Secret};
use crate::Now;

/// A registration made by a call waits at least so long for its stream.
const MIN_DETACHED: Duration = Duration::from_secs(30);

/// Names one attachment of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseStream(pub(super) u64);

/// The state of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made by a call, no stream yet.
    Detached {
        /// When it ends.
        expires: Instant,
    },
    /// A stream holds it.
    Attached {
        /// Which.
        stream: LeaseStream,
    },
    /// The stream broke.
    Lingering {
        /// When it ends.
        expires: Instant,
    },
}

/// A state without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateName {
    /// No stream yet.
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

/// How the current token came about, so that the same attempt can be answered again.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) request_id: Arc<str>,
    /// Whether it attached a stream.
    pub(super) stream: bool,
    /// The token it came with; `None` if it named the client.
    pub(super) preceding: Option<Secret>,
}

/// A registration.
#[derive(Debug)]
pub struct Registration {
    pub(super) id: RegistrationId,
    pub(super) principal: Arc<str>,
    pub(super) spec: RegistrationSpec,
    pub(super) state: State,
    pub(super) generation: u64,
    pub(super) secret: Secret,
    pub(super) attempt: Option<Attempt>,
}

impl Registration {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> RegistrationId {
        self.id
    }

    /// What was registered.
    #[must_use]
    pub fn spec(&self) -> &RegistrationSpec {
        &self.spec
    }

    /// How often it was attached or taken over.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The state without its data.
    #[must_use]
    pub fn state_name(&self) -> StateName {
        match self.state {
            State::Detached { .. } => StateName::Detached,
            State::Attached { .. } => StateName::Attached,
            State::Lingering { .. } => StateName::Lingering,
        }
    }

    /// When it ends unless its application comes back; `None` while attached.
    #[must_use]
    pub fn expires(&self) -> Option<Instant> {
        match self.state {
            State::Detached { expires } | State::Lingering { expires } => Some(expires),
            State::Attached { .. } => None,
        }
    }

    /// [`expires`](Self::expires) as wall time since the Unix epoch.
    #[must_use]
    pub fn expire_time(&self, now: Now) -> Option<Duration> {
        let left = self.expires()?.saturating_duration_since(now.mono);
        Some(now.unix.saturating_add(left))
    }

    /// The stream that holds it.
    #[must_use]
    pub fn stream(&self) -> Option<LeaseStream> {
        match self.state {
            State::Attached { stream } => Some(stream),
            State::Detached { .. } | State::Lingering { .. } => None,
        }
    }

    pub(super) fn token(&self) -> ResumeToken {
        ResumeToken { id: self.id, secret: self.secret.clone() }
    }

    /// The lease of an application that is not attached begins anew.
    pub(super) fn renew(&mut self, now: Now) {
        let linger = self.spec.linger();
        match &mut self.state {
            State::Detached { expires } => *expires = now.mono + linger.max(MIN_DETACHED),
            State::Lingering { expires } => *expires = now.mono + linger,
            State::Attached { .. } => {}
        }
    }
}
