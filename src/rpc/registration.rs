//! Registrations on both sides of the contract: what an application asks for, checked and translated, and what it is
//! told.

use std::{sync::Arc, time::Duration};

use tonic::Status;

use super::{
    convert, dial_filter, exchange,
    proto::{self, ErrorReason},
    status::Refusal,
};
use crate::delivery::{Action, OverflowPolicy};
use crate::{
    lease::{
        Capability, Greeting, LeaseError, MAX_HELLO, MAX_LINGER, MAX_MESSAGE_BYTES, ProtocolSpec,
        RegistrationId, RegistrationSpec, StateName,
    },
    net::switch::Attached,
    policy::dial::{AddError, RemoveError},
    switch::{
        peers::ListError,
        registrations::{AttachRequest, Ended, RegistrationView, SwitchError, Target},
    },
};

/// A refusal of the switch, in the contract's words.
impl From<SwitchError> for Refusal {
    fn from(error: SwitchError) -> Self {
        let message = error.to_string();
        match error {
            SwitchError::Stopped => Self::new(ErrorReason::ServerDraining, "the sidecar is stopping"),
            SwitchError::Lease(lease) => lease_refusal(lease, message),
            SwitchError::PeerNotConnected { node } => {
                Self::new(ErrorReason::PeerNotConnected, message).with("node_id", node)
            }
            SwitchError::ProtocolNotShared { node, protocol } => {
                Self::new(ErrorReason::ProtocolNotShared, message)
                    .with("node_id", node)
                    .with("protocol", protocol)
            }
            SwitchError::SharedSession { .. } => Self::forbidden(message),
            SwitchError::List(list) => list_refusal(&list, message),
        }
    }
}

fn lease_refusal(error: LeaseError, message: String) -> Refusal {
    match error {
        LeaseError::ProtocolAlreadyRegistered { protocol, owner, state, expire_time } => {
            let refusal = Refusal::new(ErrorReason::ProtocolAlreadyRegistered, message)
                .with("protocol", protocol)
                .with("owner", owner)
                .with("state", state);
            match expire_time {
                Some(time) => refusal.with("expire_time", time.as_secs()),
                None => refusal,
            }
        }
        LeaseError::ProtocolNotRegistered { protocol } => {
            Refusal::new(ErrorReason::ProtocolNotRegistered, message).with("protocol", protocol)
        }
        LeaseError::RegistrationAttached { client_id } => {
            Refusal::new(ErrorReason::RegistrationAttached, message).with("client_id", client_id)
        }
        LeaseError::RegistrationNotFound { .. } => Refusal::new(ErrorReason::RegistrationNotFound, message),
        LeaseError::ResumeTokenStale { generation } => {
            Refusal::new(ErrorReason::ResumeTokenStale, message).with("generation", generation)
        }
        LeaseError::LimitReached { limit: MAX_HELLO, .. } => {
            Refusal::new(ErrorReason::HelloTooLarge, message).with("limit", MAX_HELLO)
        }
        LeaseError::LimitReached { what, limit } => {
            Refusal::new(ErrorReason::LimitReached, message).with("limit", limit).with("what", what)
        }
        LeaseError::InvalidField { field, problem } => Refusal::field(field, problem),
        LeaseError::InvalidFields(fields) => Refusal::fields(fields),
        LeaseError::NotAuthorized { .. } => Refusal::forbidden(message),
    }
}

fn list_refusal(error: &ListError, message: String) -> Refusal {
    match error {
        ListError::Add(AddError::OwnIdentity) => Refusal::field("node", message),
        ListError::Add(AddError::Banned(ban)) => Refusal::new(ErrorReason::NodeBanned, message)
            .with("target", ban.target)
            .with("expire_time", ban.until.as_secs()),
        ListError::Add(AddError::AddressUnknown) => Refusal::new(ErrorReason::NodeAddressUnknown, message),
        ListError::Add(AddError::Full { max }) => {
            Refusal::new(ErrorReason::LimitReached, message).with("limit", max)
        }
        ListError::Remove(RemoveError::NotListed) => Refusal::new(ErrorReason::EntryNotFound, message),
        ListError::Remove(RemoveError::FromConfig) => Refusal::new(ErrorReason::EntryFromConfig, message),
    }
}

/// Why a stream ended that its client did not end.
pub(super) fn ended(ended: Ended) -> Status {
    match ended {
        Ended::TakenOver => Refusal::new(
            ErrorReason::ResumeTokenStale,
            "another stream of the registration was attached; this one is over",
        ),
        Ended::Deleted => {
            Refusal::new(ErrorReason::RegistrationNotFound, "the registration was deleted; register again")
        }
        Ended::Drained => {
            Refusal::new(ErrorReason::ServerDraining, "the sidecar is stopping; reconnect when it is back")
        }
    }
    .into()
}

/// A duration of a request: not negative, at most `max`.
pub(super) fn duration(
    field: &str,
    duration: Option<prost_types::Duration>,
    max: Duration,
) -> Result<Option<Duration>, Refusal> {
    let Some(duration) = duration else { return Ok(None) };
    let duration = Duration::try_from(duration).map_err(|_| {
        Refusal::field(field, "is a duration that must not be negative, such as \"10s\" in JSON")
    })?;
    if duration > max {
        let problem = format!("must be at most \"{}s\"", max.as_secs());
        return Err(Refusal::field(field, problem));
    }
    Ok(Some(duration))
}

/// The spec of a request. The rules of its content are the lease's; here it only becomes typed.
pub(super) fn spec(spec: Option<proto::RegistrationSpec>) -> Result<RegistrationSpec, Refusal> {
    let spec =
        spec.ok_or_else(|| Refusal::field("spec", "is missing; it names the client and its protocols"))?;
    let policy = spec.overflow_policy.unwrap_or_default();
    let defaults = OverflowPolicy::default();
    // All that is wrong is told at once.
    let mut wrong = Vec::new();
    // The lease refuses what is too long, with its own limit.
    let stall_limit = duration("spec.overflow_policy.stall_limit", policy.stall_limit, Duration::MAX);
    let stall_limit = noted(&mut wrong, stall_limit).flatten();
    let linger = noted(&mut wrong, duration("spec.linger", spec.linger, MAX_LINGER)).flatten();
    let wanted = noted(&mut wrong, dial_filter::wanted(spec.dial_filter)).unwrap_or_default();
    if !wrong.is_empty() {
        return Err(Refusal::fields(wrong));
    }
    let overflow = OverflowPolicy {
        stall_limit: stall_limit.unwrap_or(defaults.stall_limit),
        action: match policy.action() {
            proto::overflow_policy::Action::Unspecified => defaults.action,
            proto::overflow_policy::Action::DropAndReport => Action::DropAndReport,
            proto::overflow_policy::Action::DisconnectPeer => Action::DisconnectPeer,
            proto::overflow_policy::Action::Wait => Action::Wait,
        },
    };
    Ok(RegistrationSpec {
        client_id: Arc::from(spec.client_id),
        protocols: spec.protocols.into_iter().map(protocol).collect(),
        linger,
        overflow,
        channel_queue_bytes: policy.channel_queue_bytes,
        wanted,
        desired_peers: spec.desired_peers as usize,
    })
}

/// The value of a field, or nothing, and what is wrong with it among the rest.
fn noted<T>(wrong: &mut Vec<(String, String)>, field: Result<T, Refusal>) -> Option<T> {
    field.map_err(|refusal| wrong.extend(refusal.into_fields())).ok()
}

fn protocol(spec: proto::ProtocolSpec) -> ProtocolSpec {
    ProtocolSpec {
        capability: Capability::new(&spec.name, spec.version, u64::from(spec.message_count)),
        max_message_bytes: spec.max_message_bytes,
        keep_first: spec.keep_first as usize,
        greeting: spec.greeting.into_iter().map(payload).collect(),
    }
}

pub(super) fn payload(payload: proto::Payload) -> Greeting {
    Greeting { code: payload.code, payload: payload.payload }
}

/// What `SetGreeting` and the event `set_greeting` carry: name, version, messages.
pub(super) fn greeting(event: proto::SetGreeting) -> (String, u32, Vec<Greeting>) {
    (event.name, event.version, event.messages.into_iter().map(payload).collect())
}

/// The caller's name for an attempt.
pub(super) fn request_id(text: String) -> Result<String, Refusal> {
    /// A UUID has 36 characters.
    const LIMIT: usize = 64;
    if text.len() > LIMIT {
        return Err(Refusal::field("request_id", format!("must have at most {LIMIT} bytes")));
    }
    Ok(text)
}

pub(super) fn attach_request(attach: proto::Attach) -> Result<AttachRequest, Refusal> {
    let params = exchange::params(&attach);
    let target = match attach.target {
        Some(proto::attach::Target::ResumeToken(text)) => Target::Token(text),
        Some(proto::attach::Target::Spec(value)) => Target::Spec(spec(Some(value))?),
        Some(proto::attach::Target::ClientId(id)) => Target::Client(id.into()),
        None => {
            return Err(Refusal::field("attach", "must name a spec, a resume_token or a client_id"));
        }
    };
    Ok(AttachRequest {
        target,
        params,
        request_id: request_id(attach.request_id)?,
        takeover: attach.takeover,
    })
}

pub(super) fn receive_request(request: proto::ReceiveMessagesRequest) -> Result<AttachRequest, Refusal> {
    use proto::receive_messages_request::Target as Wanted;
    let target = match request.target {
        Some(Wanted::ResumeToken(text)) => Target::Token(text),
        Some(Wanted::Spec(value)) => Target::Spec(spec(Some(value))?),
        Some(Wanted::ClientId(id)) => Target::Client(id.into()),
        None => {
            return Err(Refusal::field("target", "must name a spec, a resume_token or a client_id"));
        }
    };
    let params = crate::delivery::AttachParams {
        max_frame_bytes: request.max_frame_bytes as usize,
        auto_credit: true,
        ..Default::default()
    };
    Ok(AttachRequest {
        target,
        params,
        request_id: request_id(request.request_id)?,
        takeover: request.takeover,
    })
}

fn spec_view(spec: &RegistrationSpec) -> proto::RegistrationSpec {
    let seconds = |duration: Duration| prost_types::Duration::try_from(duration).ok();
    proto::RegistrationSpec {
        client_id: spec.client_id.to_string(),
        protocols: spec
            .protocols
            .iter()
            .map(|protocol| proto::ProtocolSpec {
                name: protocol.capability.name.to_string(),
                version: protocol.capability.version,
                message_count: u32::try_from(protocol.capability.message_count).unwrap_or(u32::MAX),
                max_message_bytes: match protocol.max_message_bytes {
                    0 => MAX_MESSAGE_BYTES,
                    bytes => bytes,
                },
                greeting: protocol
                    .greeting
                    .iter()
                    .map(|message| proto::Payload { code: message.code, payload: message.payload.clone() })
                    .collect(),
                keep_first: u32::try_from(protocol.keep_first).unwrap_or(u32::MAX),
            })
            .collect(),
        linger: seconds(spec.linger()),
        overflow_policy: Some(proto::OverflowPolicy {
            stall_limit: seconds(spec.overflow.stall_limit),
            action: match spec.overflow.action {
                Action::DropAndReport => proto::overflow_policy::Action::DropAndReport,
                Action::DisconnectPeer => proto::overflow_policy::Action::DisconnectPeer,
                Action::Wait => proto::overflow_policy::Action::Wait,
            }
            .into(),
            channel_queue_bytes: match spec.channel_queue_bytes {
                0 => crate::delivery::Config::default().channel_bytes,
                bytes => bytes,
            },
        }),
        dial_filter: dial_filter::view(&spec.wanted),
        desired_peers: u32::try_from(spec.desired_peers).unwrap_or(u32::MAX),
    }
}

/// A registration as everybody may see it: without secrets.
pub(super) fn view(view: &RegistrationView) -> proto::Registration {
    proto::Registration {
        registration_id: view.id.to_string(),
        spec: Some(spec_view(&view.spec)),
        state: match view.state {
            StateName::Detached => proto::RegistrationState::Detached,
            StateName::Attached => proto::RegistrationState::Attached,
            StateName::Lingering => proto::RegistrationState::Lingering,
        }
        .into(),
        generation: view.generation,
        expire_time: view.expire_time.map(convert::timestamp),
        open_channels: u32::try_from(view.open_channels).unwrap_or(u32::MAX),
        waiting_bytes: view.waiting_bytes,
        holding_channels: u32::try_from(view.holding_channels).unwrap_or(u32::MAX),
        holding_since: view.holding_since.map(convert::timestamp),
        lost_messages: view.lost.messages,
        lost_bytes: view.lost.bytes,
    }
}

pub(super) fn attached(attached: &Attached) -> proto::Attached {
    proto::Attached {
        registration: Some(view(&attached.registration)),
        resume_token: attached.token.expose(),
        resumed: attached.resumed,
        instance_id: attached.instance_id.to_string(),
        last_send_id: attached.last_send_id,
        existing_channels: u32::try_from(attached.existing_channels).unwrap_or(u32::MAX),
    }
}

/// A registration named by its public id.
pub(super) fn registration_id(text: &str) -> Result<RegistrationId, Refusal> {
    RegistrationId::parse(text)
        .ok_or_else(|| Refusal::field("registration_id", "is not a registration id (16 hex digits)"))
}
