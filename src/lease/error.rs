//! Why a registration was refused: each with what its message needs to say what would be right.

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
        /// When the owner's lease ends unless it comes back (time since the Unix epoch); `None` while attached.
        expire_time: Option<Duration>,
    },
    /// Nobody registered the capability.
    #[error("no application registered {protocol:?}; ListRegistrations shows what is registered")]
    ProtocolNotRegistered {
        /// The capability as it was asked for.
        protocol: String,
    },
    /// The caller's registration is attached to another stream.
    #[error(
        "the registration of client {client_id:?} is attached to another stream; attach with its resume token, or set takeover"
    )]
    RegistrationAttached {
        /// Whose registration.
        client_id: Arc<str>,
    },
    /// No such registration.
    #[error("no registration {what}; its lease ended or the sidecar restarted: register again")]
    RegistrationNotFound {
        /// By what it was looked for, without secrets.
        what: String,
    },
    /// The token was current once; a newer stream or process holds the registration.
    #[error("the resume token is stale: a newer stream holds the registration (generation {generation})")]
    ResumeTokenStale {
        /// The generation of the current token.
        generation: u64,
    },
    /// With these capabilities our Hello would be larger than peers accept.
    #[error("the limit of {limit} bytes of Hello, with these capabilities is reached")]
    HelloTooLarge {
        /// The largest Hello, in bytes.
        limit: usize,
    },
    /// A limit is reached.
    #[error("the limit of {limit} {what} is reached")]
    LimitReached {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A field has a value that cannot be right.
    #[error("{field}: {problem}")]
    InvalidField {
        /// The path of the field, as `protocols[1].message_count`.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Several fields have values that cannot be right: path and problem of each.
    #[error("{}", list(_0))]
    InvalidFields(Vec<(String, String)>),
    /// The caller may not do this.
    #[error("{what}")]
    NotAuthorized {
        /// What is missing.
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

/// What is wrong with the fields of one request: all of it, so that a caller does not mend one field for the next error.
#[derive(Debug, Default)]
pub(super) struct Wrong(Vec<(String, String)>);

impl Wrong {
    /// A field has a value that cannot be right.
    pub(super) fn field(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.0.push((field.into(), problem.into()));
    }

    /// Notes the fields that a check found. Other errors stand alone and are returned.
    pub(super) fn note(&mut self, checked: Result<(), LeaseError>) -> Result<(), LeaseError> {
        match checked {
            Err(LeaseError::InvalidField { field, problem }) => self.0.push((field, problem)),
            Err(LeaseError::InvalidFields(fields)) => self.0.extend(fields),
            other => return other,
        }
        Ok(())
    }

    /// Nothing, or what was found.
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

/// At most 40 characters of what a caller wrote, as it stands there: for particulars that programs compare.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

fn until(expire_time: Option<Duration>) -> String {
    expire_time.map_or_else(String::new, |time| format!(", lease ends at {} s Unix time", time.as_secs()))
}

/// At most 40 characters of what a caller wrote, escaped, for a message.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('\u{2026}');
    }
    format!("{short:?}")
}
