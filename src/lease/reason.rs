//! Why a call or a send was refused, as a word that programs can compare.
//!
//! `google.rpc.ErrorInfo.reason` and stream events have the same words, so that a client has one set of constants. The
//! texts of errors are for people; programs must not compare them.

use std::fmt;

/// The machine-readable reason of a refusal (`ErrorReason` in the proto files).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorReason {
    /// Another application owns the capability's name.
    ProtocolAlreadyRegistered,
    /// No application registered the capability.
    ProtocolNotRegistered,
    /// The registration is attached to another stream.
    RegistrationAttached,
    /// The lease ended, or the sidecar restarted.
    RegistrationNotFound,
    /// A newer stream or process holds the registration.
    ResumeTokenStale,
    /// No session with this peer, or its channel is closed.
    PeerNotConnected,
    /// The peer is connected and does not speak this capability or version.
    ProtocolNotShared,
    /// The messages that wait for this peer already use all that is allowed.
    SendWindowExceeded,
    /// The message is larger than the capability or RLPx allows.
    MessageTooLarge,
    /// The code is not below the capability's message count.
    MessageCodeOutOfRange,
    /// A field has an invalid value.
    InvalidField,
    /// With these capabilities our Hello would be larger than peers accept.
    HelloTooLarge,
    /// A configured limit is reached.
    LimitReached,
    /// The caller may not do this.
    NotAuthorized,
}

impl ErrorReason {
    /// Returns the word, without the enum's prefix.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ProtocolAlreadyRegistered => "PROTOCOL_ALREADY_REGISTERED",
            Self::ProtocolNotRegistered => "PROTOCOL_NOT_REGISTERED",
            Self::RegistrationAttached => "REGISTRATION_ATTACHED",
            Self::RegistrationNotFound => "REGISTRATION_NOT_FOUND",
            Self::ResumeTokenStale => "RESUME_TOKEN_STALE",
            Self::PeerNotConnected => "PEER_NOT_CONNECTED",
            Self::ProtocolNotShared => "PROTOCOL_NOT_SHARED",
            Self::SendWindowExceeded => "SEND_WINDOW_EXCEEDED",
            Self::MessageTooLarge => "MESSAGE_TOO_LARGE",
            Self::MessageCodeOutOfRange => "MESSAGE_CODE_OUT_OF_RANGE",
            Self::InvalidField => "INVALID_FIELD",
            Self::HelloTooLarge => "HELLO_TOO_LARGE",
            Self::LimitReached => "LIMIT_REACHED",
            Self::NotAuthorized => "NOT_AUTHORIZED",
        }
    }
}

impl fmt::Display for ErrorReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
