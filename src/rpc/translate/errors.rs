//! Errors of the other rooms as an [`ErrorStatus`]: the one table that gives each error its reason and its metadata.
//!
//! The message is the error's own text. The reason, the metadata and the wrong fields are added here, so that no
//! service decides under which reason an error is reported.
//!
//! Left out: the gRPC code of a reason and the encoding of a refusal (`status`); refusals of requests that are wrong
//! whatever the state is (the services and the other translations).

use std::time::Duration;

use tonic::Status;

use super::status::ErrorStatus;
use crate::{
    delivery::CreditError,
    kademlia::{CallError, query::MAX_LOOKUPS},
    lease::LeaseError,
    net::discovery::DiscoveryError,
    net::switch::watches::TooManyWatchers,
    node::{NodeId, local::EntryError},
    policy::{
        BanError,
        dial::{AddError, ConnectOutcome, RemoveError},
    },
    rpc::proto::ErrorReason,
    switch::{
        attachment::SendError,
        peers::ListError,
        registrations::{Ended, SwitchError},
    },
};

/// How long a caller should wait after it was refused because too many requests or lookups were open. A request ends
/// within 700 ms, a lookup within one or two seconds.
const BUSY_RETRY: Duration = Duration::from_secs(1);

impl From<SwitchError> for Status {
    fn from(error: SwitchError) -> Self {
        ErrorStatus::from(error).into()
    }
}

impl From<SwitchError> for ErrorStatus {
    fn from(error: SwitchError) -> Self {
        let message = error.to_string();
        match error {
            SwitchError::Stopped => Self::new(ErrorReason::ServerDraining, message),
            SwitchError::Lease(lease) => lease.into(),
            SwitchError::PeerNotConnected { node } => {
                Self::new(ErrorReason::PeerNotConnected, message).with("node_id", node)
            }
            SwitchError::ProtocolNotShared { node, protocol } => {
                Self::new(ErrorReason::ProtocolNotShared, message)
                    .with("node_id", node)
                    .with("protocol", protocol)
            }
            SwitchError::SharedSession { .. } => Self::forbidden(message),
            SwitchError::List(list) => list.into(),
        }
    }
}

impl From<LeaseError> for ErrorStatus {
    fn from(error: LeaseError) -> Self {
        let message = error.to_string();
        match error {
            LeaseError::ProtocolAlreadyRegistered { protocol, owner, state, expire_time } => {
                let refusal = Self::new(ErrorReason::ProtocolAlreadyRegistered, message)
                    .with("protocol", protocol)
                    .with("owner", owner)
                    .with("state", state);
                match expire_time {
                    Some(time) => refusal.with("expire_time", time.as_secs()),
                    None => refusal,
                }
            }
            LeaseError::ProtocolNotRegistered { protocol } => {
                Self::new(ErrorReason::ProtocolNotRegistered, message).with("protocol", protocol)
            }
            LeaseError::RegistrationAttached { client_id } => {
                Self::new(ErrorReason::RegistrationAttached, message).with("client_id", client_id)
            }
            LeaseError::RegistrationNotFound { .. } => Self::new(ErrorReason::RegistrationNotFound, message),
            LeaseError::ResumeTokenStale { generation } => {
                Self::new(ErrorReason::ResumeTokenStale, message).with("generation", generation)
            }
            LeaseError::HelloTooLarge { limit } => {
                Self::new(ErrorReason::HelloTooLarge, message).with("limit", limit)
            }
            LeaseError::LimitReached { what, limit } => {
                Self::new(ErrorReason::LimitReached, message).with("limit", limit).with("what", what)
            }
            LeaseError::InvalidField { field, problem } => Self::field(field, problem),
            LeaseError::InvalidFields(fields) => Self::fields(fields),
            LeaseError::NotAuthorized { .. } => Self::forbidden(message),
        }
    }
}

impl From<ListError> for ErrorStatus {
    fn from(error: ListError) -> Self {
        let message = error.to_string();
        match error {
            ListError::Add(AddError::OwnIdentity) => Self::field("node", message),
            ListError::Add(AddError::Banned(ban)) => Self::new(ErrorReason::NodeBanned, message)
                .with("target", ban.target)
                .with("expire_time", ban.until.as_secs()),
            ListError::Add(AddError::AddressUnknown) => Self::new(ErrorReason::NodeAddressUnknown, message),
            ListError::Add(AddError::Full { max }) => {
                Self::new(ErrorReason::LimitReached, message).with("limit", max)
            }
            ListError::Remove(RemoveError::NotListed) => Self::new(ErrorReason::EntryNotFound, message),
            ListError::Remove(RemoveError::FromConfig) => Self::new(ErrorReason::EntryFromConfig, message),
        }
    }
}

impl From<BanError> for ErrorStatus {
    fn from(error: BanError) -> Self {
        let message = error.to_string();
        match error {
            BanError::Protected(id) => Self::field("force", message).with("node_id", id),
            BanError::NotBanned => Self::new(ErrorReason::EntryNotFound, message),
            BanError::Full => Self::new(ErrorReason::LimitReached, message),
            BanError::OwnIdentity | BanError::Target => Self::field("target", message),
            BanError::ZeroDuration => Self::field("duration", message),
        }
    }
}

impl From<DiscoveryError> for ErrorStatus {
    fn from(error: DiscoveryError) -> Self {
        let message = error.to_string();
        match error {
            DiscoveryError::Stopped => Self::new(ErrorReason::ServerDraining, message),
            DiscoveryError::Off(_) | DiscoveryError::NoDiscovery | DiscoveryError::NotFound => {
                Self::new(ErrorReason::NodeAddressUnknown, message)
            }
            DiscoveryError::Call(CallError::KeyNeeded) => Self::field("target", message),
            DiscoveryError::Call(CallError::Timeout) => Self::new(ErrorReason::TimedOut, message),
            DiscoveryError::Call(CallError::TooManyLookups) => {
                busy(message).with("limit", MAX_LOOKUPS).with("what", "lookups")
            }
            DiscoveryError::Call(CallError::QueueFull) => busy(message).with("what", "requests"),
            DiscoveryError::Call(CallError::NoEndpoint | CallError::Address | CallError::Myself) => {
                Self::field("node", message)
            }
            DiscoveryError::Call(CallError::TooLarge(..)) | DiscoveryError::Talk(_) => {
                Self::field("payload", message)
            }
            DiscoveryError::TalkOwned(protocol) => {
                Self::new(ErrorReason::ProtocolAlreadyRegistered, message).with("protocol", protocol)
            }
            DiscoveryError::Entry(EntryError::Owned { .. }) => {
                Self::new(ErrorReason::RecordKeyOwned, message)
            }
            DiscoveryError::Entry(EntryError::TooLarge(bytes)) => {
                Self::new(ErrorReason::RecordTooLarge, message).with("bytes", bytes)
            }
            DiscoveryError::Entry(EntryError::Value(_)) => Self::field("value", message),
            DiscoveryError::Entry(EntryError::Reserved(_) | EntryError::EmptyKey) => {
                Self::field("key", message)
            }
        }
    }
}

/// Too many requests or lookups are open. Neither the caller nor the node is at fault, so the refusal says when to
/// retry.
fn busy(message: String) -> ErrorStatus {
    ErrorStatus::new(ErrorReason::LimitReached, message).retry_after(BUSY_RETRY)
}

impl From<TooManyWatchers> for ErrorStatus {
    fn from(full: TooManyWatchers) -> Self {
        Self::new(ErrorReason::LimitReached, full.to_string())
            .with("limit", full.limit)
            .with("what", "watches")
    }
}

/// Credit that is wrong for certain: for a channel that was never opened, or more than a window can hold.
impl From<CreditError> for ErrorStatus {
    fn from(error: CreditError) -> Self {
        match error {
            CreditError::NeverOpened { .. } => Self::field("window_update.channel_id", error),
            CreditError::TooMuch { .. } => Self::field("window_update.bytes", error),
        }
    }
}

/// Returns the refusal to change a record entry that another owner has set. `owner` is that owner's client id.
pub(in crate::rpc) fn record_key_owned(key: &str, owner: &str) -> ErrorStatus {
    let message = format!("the record entry {key:?} belongs to {owner}; {owner} must delete it first");
    ErrorStatus::new(ErrorReason::RecordKeyOwned, message).with("key", key).with("owner", owner)
}

/// Returns the refusal of a TALKREQ that does not fit a packet. It names the field that must be shorter, and by how
/// many bytes. All sizes are in bytes.
pub(in crate::rpc) fn talk_too_long(payload: usize, bytes: usize, room: usize) -> ErrorStatus {
    let excess = bytes.saturating_sub(room);
    let field = if excess < payload { "payload" } else { "protocol" };
    ErrorStatus::field(
        field,
        format!(
            "the request and its envelope have {bytes} bytes, and a packet has room for {room}; make this field \
             {excess} bytes shorter"
        ),
    )
}

/// Returns the refusal for a one-off dial that did not lead to a session.
pub(in crate::rpc) fn not_connected(id: NodeId, outcome: ConnectOutcome) -> ErrorStatus {
    use crate::policy::Refusal;
    let refusal = match outcome {
        ConnectOutcome::Failed { cause, detail } => {
            let message = if detail.is_empty() { cause.to_string() } else { format!("{cause}: {detail}") };
            ErrorStatus::new(ErrorReason::DialFailed, message).with("cause", cause.name())
        }
        ConnectOutcome::Refused(why) => {
            let reason = match why {
                Refusal::BannedNode | Refusal::BannedAddress => ErrorReason::NodeBanned,
                Refusal::AddressUnknown => ErrorReason::NodeAddressUnknown,
                Refusal::NoProtocol => ErrorReason::ProtocolNotRegistered,
                Refusal::QueueFull => ErrorReason::LimitReached,
                _ => ErrorReason::DialFailed,
            };
            ErrorStatus::new(reason, format!("not dialed: {why}")).with("cause", why.name())
        }
        ConnectOutcome::TimedOut => ErrorStatus::new(
            ErrorReason::TimedOut,
            "the dial took longer than the field timeout allows; give more, such as \"30s\", or check the address",
        ),
        ConnectOutcome::Connected => {
            ErrorStatus::new(ErrorReason::PeerNotConnected, "the peer connected and disconnected at once")
        }
    };
    refusal.with("node_id", id)
}

/// Translates why a message was not accepted, as events and lists carry it: a reason for programs, and a sentence.
pub(in crate::rpc) fn unsent(error: SendError) -> (ErrorReason, String) {
    let reason = match error {
        SendError::WindowExceeded => ErrorReason::SendWindowExceeded,
        SendError::NotConnected | SendError::NeverOpened { .. } => ErrorReason::PeerNotConnected,
        SendError::CodeOutOfRange { .. } => ErrorReason::MessageCodeOutOfRange,
        SendError::TooLarge { .. } => ErrorReason::MessageTooLarge,
    };
    (reason, error.to_string())
}

/// Translates why a message was not accepted, for a call that sends to one node: as a refusal with metadata.
pub(in crate::rpc) fn not_sent(error: SendError, node: NodeId) -> ErrorStatus {
    let (reason, message) = unsent(error);
    let refusal = ErrorStatus::new(reason, message);
    match error {
        SendError::CodeOutOfRange { message_count } => refusal.with("message_count", message_count),
        SendError::TooLarge { bytes, limit } => refusal.with("bytes", bytes).with("limit", limit),
        SendError::NotConnected => refusal.with("node_id", node),
        SendError::WindowExceeded | SendError::NeverOpened { .. } => refusal,
    }
}

/// Returns the refusal of a message that can be sent to no peer, because it is larger than a frame can be.
pub(in crate::rpc) fn too_large_for_all(bytes: usize, error: &impl ToString) -> ErrorStatus {
    ErrorStatus::new(ErrorReason::MessageTooLarge, error.to_string()).with("bytes", bytes)
}

/// Returns the refusal with which the sidecar ends a stream that its client has not ended.
pub(in crate::rpc) fn ended(ended: Ended) -> ErrorStatus {
    match ended {
        Ended::TakenOver => ErrorStatus::new(
            ErrorReason::ResumeTokenStale,
            "another stream attached to this registration, so this stream has ended",
        ),
        Ended::Deleted => ErrorStatus::new(
            ErrorReason::RegistrationNotFound,
            "the registration was deleted; register again",
        ),
        Ended::Drained => ErrorStatus::new(
            ErrorReason::ServerDraining,
            "the sidecar is stopping; reconnect after its restart",
        ),
    }
}

#[cfg(test)]
mod tests;
