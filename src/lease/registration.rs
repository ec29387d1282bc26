//! One registration: what was asked for, who holds it, and with which token it is claimed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::spec::RegistrationSpec;
use super::state::{State, StateName};
use super::token::{ResumeToken, Secret};
use crate::Now;
use crate::delivery::StreamId;
use crate::node::RegistrationId;

/// A registration made by a call waits at least so long for its stream.
const MIN_DETACHED: Duration = Duration::from_secs(30);

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
        self.state.name()
    }

    /// When it ends unless its application comes back; `None` while attached.
    #[must_use]
    pub fn expires(&self) -> Option<Instant> {
        self.state.expires()
    }

    /// [`expires`](Self::expires) as wall time since the Unix epoch.
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
