//! One registration: its contents, its holder, and the token with which it is claimed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::spec::RegistrationSpec;
use super::state::{State, StateName};
use super::token::{ResumeToken, Secret};
use crate::Now;
use crate::delivery::StreamId;
use crate::node::RegistrationId;

/// The shortest time that a registration made by a call waits for its stream.
const MIN_DETACHED: Duration = Duration::from_secs(30);

/// The attempt that made the current token, kept so that a repeated attempt gets the same answer.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) request_id: Arc<str>,
    /// Whether it attached a stream.
    pub(super) stream: bool,
    /// The token that the attempt had; `None` if it named the client id.
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

    /// Its contents.
    #[must_use]
    pub fn spec(&self) -> &RegistrationSpec {
        &self.spec
    }

    /// How many resume tokens it has had: 1 when it is new, and one more for each claim that is not a repeated attempt.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The state without its data.
    #[must_use]
    pub fn state_name(&self) -> StateName {
        self.state.name()
    }

    /// When the lease ends unless a stream attaches; `None` while attached.
    #[must_use]
    pub fn expires(&self) -> Option<Instant> {
        self.state.expires()
    }

    /// [`expires`](Self::expires) as the time since the Unix epoch.
    #[must_use]
    pub fn expire_time(&self, now: Now) -> Option<Duration> {
        let left = self.expires()?.saturating_duration_since(now.mono);
        Some(now.unix.saturating_add(left))
    }

    /// The stream that holds it.
    #[must_use]
    pub fn stream(&self) -> Option<StreamId> {
        self.state.stream()
    }

    pub(super) fn token(&self) -> ResumeToken {
        ResumeToken { id: self.id, secret: self.secret.clone() }
    }

    /// Starts the lease anew, unless a stream holds it.
    pub(super) fn renew(&mut self, now: Now) {
        let linger = self.spec.linger();
        match &mut self.state {
            State::Detached { expires } => *expires = now.mono + linger.max(MIN_DETACHED),
            State::Lingering { expires } => *expires = now.mono + linger,
            State::Attached { .. } => {}
        }
    }
}
