//! Why a call on a registration was refused. Each error has the values with which its text says what would be right.

use std::sync::Arc;
use std::time::Duration;

use super::reason::ErrorReason;
use super::state::StateName;

/// A refused call on a registration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Another registration owns a capability's name. None of the request's capabilities was taken.
    #[error("{protocol} is registered by client {owner:?} ({state}{}); one application owns a name with all its versions",
        until(*expire_time))]
    ProtocolAlreadyRegistered {
        /// The capability's name.
        protocol: Arc<str>,
        /// The owner's client id.
        owner: Arc<str>,
        /// The state of the owner's lease.
        state: StateName,
        /// The time at which the owner's lease ends unless the owner attaches, since the Unix epoch; `None` while
        /// attached.
        expire_time: Option<Duration>,
    },
    /// No application registered the capability.
    #[error("no application registered {protocol:?}; ListRegistrations shows what is registered")]
    ProtocolNotRegistered {
        /// The beginning of the capability, as the caller wrote it.
        protocol: String,
    },
    /// The caller's registration is attached to another stream.
    #[error(
        "the registration of client {client_id:?} is attached to another stream; attach with its resume token, or set takeover"
    )]
    RegistrationAttached {
        /// The client id of the registration.
        client_id: Arc<str>,
    },
    /// There is no such registration.
    #[error("no registration {what}; its lease ended or the sidecar restarted: register again")]
    RegistrationNotFound {
        /// The property by which it was looked up, for example `has the id …`; without secrets.
        what: String,
    },
    /// The token was current earlier. A newer stream or process holds the registration.
    #[error("the resume token is stale: a newer stream holds the registration (generation {generation})")]
    ResumeTokenStale {
        /// The generation of the current token.
        generation: u64,
    },
    /// With these capabilities our Hello would be larger than peers accept.
    #[error("our Hello would exceed the {limit} bytes that peers accept: register fewer capabilities")]
    HelloTooLarge {
        /// The largest Hello, in bytes.
        limit: usize,
    },
    /// A limit is reached.
    #[error("the limit of {limit} {what} is reached")]
    LimitReached {
        /// The items that are limited, in the plural.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A field has an invalid value.
    #[error("{field}: {problem}")]
    InvalidField {
        /// The path of the field, for example `spec.protocols[1].message_count`.
        field: String,
        /// The problem, and a correct value.
        problem: String,
    },
    /// Several fields have invalid values: the path and the problem of each.
    #[error("{}", list(_0))]
    InvalidFields(Vec<(String, String)>),
    /// The caller may not do this.
    #[error("{what}")]
    NotAuthorized {
        /// The right that the caller lacks.
        what: &'static str,
    },
}

impl LeaseError {
    /// The machine-readable reason.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::ProtocolAlreadyRegistered { .. } => ErrorReason::ProtocolAlreadyRegistered,
            Self::ProtocolNotRegistered { .. } => ErrorReason::ProtocolNotRegistered,
            Self::RegistrationAttached { .. } => ErrorReason::RegistrationAttached,
            Self::RegistrationNotFound { .. } => ErrorReason::RegistrationNotFound,
            Self::ResumeTokenStale { .. } => ErrorReason::ResumeTokenStale,
            Self::HelloTooLarge { .. } => ErrorReason::HelloTooLarge,
            Self::LimitReached { .. } => ErrorReason::LimitReached,
            Self::InvalidField { .. } | Self::InvalidFields(_) => ErrorReason::InvalidField,
            Self::NotAuthorized { .. } => ErrorReason::NotAuthorized,
        }
    }

    pub(super) fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::InvalidField { field: field.into(), problem: problem.into() }
    }
}

fn list(problems: &[(String, String)]) -> String {
    let each: Vec<String> = problems.iter().map(|(field, problem)| format!("{field}: {problem}")).collect();
    each.join("; ")
}

/// The invalid fields of one request. It collects all of them, so that a caller can correct them in one step.
#[derive(Debug, Default)]
pub(super) struct Wrong(Vec<(String, String)>);

impl Wrong {
    /// Adds a field with an invalid value.
    pub(super) fn field(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.0.push((field.into(), problem.into()));
    }

    /// Adds the fields that a check found invalid. Other errors are not collected: they are returned.
    pub(super) fn note(&mut self, checked: Result<(), LeaseError>) -> Result<(), LeaseError> {
        match checked {
            Err(LeaseError::InvalidField { field, problem }) => self.0.push((field, problem)),
            Err(LeaseError::InvalidFields(fields)) => self.0.extend(fields),
            other => return other,
        }
        Ok(())
    }

    /// Returns the error for the fields that were added, if there are any.
    pub(super) fn verdict(mut self) -> Result<(), LeaseError> {
        match (self.0.pop(), self.0.is_empty()) {
            (None, _) => Ok(()),
            (Some((field, problem)), true) => Err(LeaseError::InvalidField { field, problem }),
            (Some(last), false) => {
                self.0.push(last);
                Err(LeaseError::InvalidFields(self.0))
            }
        }
    }
}

/// Returns the first 40 characters of a caller's text, unescaped: for values that programs compare.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

fn until(expire_time: Option<Duration>) -> String {
    expire_time.map_or_else(String::new, |time| format!(", lease ends at {} s Unix time", time.as_secs()))
}

/// Returns the first 40 characters of a caller's text, escaped and in quotation marks: for the text of an error.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('\u{2026}');
    }
    format!("{short:?}")
}
