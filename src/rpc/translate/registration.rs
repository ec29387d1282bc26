//! Registrations, read from the contract and written to it: specs, requests to attach, and the state of a registration.
//!
//! Left out: which specs are valid (the lease), and why a request is refused (`errors`).

use std::{sync::Arc, time::Duration};

use super::{
    dial_filter,
    status::ErrorStatus,
    value::{duration, timestamp},
};
use crate::delivery::{Action, AttachParams, OverflowPolicy};
use crate::{
    lease::{Capability, Greeting, MAX_LINGER, MAX_MESSAGE_BYTES, ProtocolSpec, RegistrationSpec, StateName},
    net::switch::Attached,
    node::RegistrationId,
    rpc::proto,
    switch::registrations::{Acting, AttachRequest, RegistrationRef, RegistrationView},
};

/// Reads the spec of a request. Only types and durations are checked here; the lease checks the content.
pub(in crate::rpc) fn spec(spec: Option<proto::RegistrationSpec>) -> Result<RegistrationSpec, ErrorStatus> {
    let spec =
        spec.ok_or_else(|| ErrorStatus::field("spec", "is missing; set it with client_id and protocols"))?;
    let policy = spec.overflow_policy.unwrap_or_default();
    let defaults = OverflowPolicy::default();
    // All wrong fields are reported at once.
    let mut wrong = Vec::new();
    // No limit here: the lease refuses a stall limit that is too long.
    let stall_limit = duration("spec.overflow_policy.stall_limit", policy.stall_limit, Duration::MAX);
    let stall_limit = noted(&mut wrong, stall_limit).flatten();
    let linger = noted(&mut wrong, duration("spec.linger", spec.linger, MAX_LINGER)).flatten();
    let wanted = noted(&mut wrong, dial_filter::wanted(spec.dial_filter)).unwrap_or_default();
    if !wrong.is_empty() {
        return Err(ErrorStatus::fields(wrong));
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

/// Returns the value of a field. If the field is wrong, returns `None` and adds the problem to `wrong`.
fn noted<T>(wrong: &mut Vec<(String, String)>, field: Result<T, ErrorStatus>) -> Option<T> {
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

pub(in crate::rpc) fn payload(payload: proto::Payload) -> Greeting {
    Greeting { code: payload.code, payload: payload.payload }
}

/// Reads the event `set_greeting`: the protocol's name and version, and its messages.
pub(in crate::rpc) fn greeting(event: proto::SetGreeting) -> (String, u32, Vec<Greeting>) {
    (event.name, event.version, event.messages.into_iter().map(payload).collect())
}

/// Reads the registration for which a call acts. Each request has its own `oneof` with the same two choices.
macro_rules! acting {
    ($($of:ty),+ $(,)?) => {$(
        impl From<$of> for Acting {
            fn from(by: $of) -> Self {
                type By = $of;
                match by {
                    By::ResumeToken(text) => Self::Token(text),
                    By::ClientId(id) => Self::Client(id.into()),
                }
            }
        }
    )+};
}

acting!(
    proto::update_registration_request::Registration,
    proto::set_greeting_request::Registration,
    proto::renew_registration_request::Registration,
    proto::delete_registration_request::Registration,
    proto::set_record_entry_request::Registration,
    proto::delete_record_entry_request::Registration,
    proto::send_message_request::Sender,
    proto::broadcast_message_request::Sender,
);

/// Reads the request id: the caller's name for one attempt, which it repeats when it retries.
pub(in crate::rpc) fn request_id(text: String) -> Result<String, ErrorStatus> {
    /// A UUID has 36 characters.
    const LIMIT: usize = 64;
    if text.len() > LIMIT {
        return Err(ErrorStatus::field("request_id", format!("must have at most {LIMIT} bytes")));
    }
    Ok(text)
}

pub(in crate::rpc) fn attach_request(attach: proto::Attach) -> Result<AttachRequest, ErrorStatus> {
    let params = AttachParams {
        stream_window: attach.stream_window_bytes,
        channel_window: attach.channel_window_bytes,
        max_frame_bytes: attach.max_frame_bytes as usize,
        auto_credit: attach.auto_credit,
    };
    let target = match attach.target {
        Some(proto::attach::Target::ResumeToken(text)) => RegistrationRef::Token(text),
        Some(proto::attach::Target::Spec(value)) => RegistrationRef::Spec(spec(Some(value))?),
        Some(proto::attach::Target::ClientId(id)) => RegistrationRef::Client(id.into()),
        None => {
            return Err(ErrorStatus::field("attach", "must name a spec, a resume_token or a client_id"));
        }
    };
    Ok(AttachRequest {
        target,
        params,
        request_id: request_id(attach.request_id)?,
        takeover: attach.takeover,
    })
}

pub(in crate::rpc) fn receive_request(
    request: proto::ReceiveMessagesRequest,
) -> Result<AttachRequest, ErrorStatus> {
    use proto::receive_messages_request::Target as Wanted;
    let target = match request.target {
        Some(Wanted::ResumeToken(text)) => RegistrationRef::Token(text),
        Some(Wanted::Spec(value)) => RegistrationRef::Spec(spec(Some(value))?),
        Some(Wanted::ClientId(id)) => RegistrationRef::Client(id.into()),
        None => {
            return Err(ErrorStatus::field("target", "must name a spec, a resume_token or a client_id"));
        }
    };
    let params = AttachParams {
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

/// Translates a registration, without its secrets: every caller may see the result.
pub(in crate::rpc) fn view(view: &RegistrationView) -> proto::Registration {
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
        expire_time: view.expire_time.map(timestamp),
        open_channels: u32::try_from(view.open_channels).unwrap_or(u32::MAX),
        waiting_bytes: view.waiting_bytes,
        holding_channels: u32::try_from(view.holding_channels).unwrap_or(u32::MAX),
        holding_since: view.holding_since.map(timestamp),
        lost_messages: view.lost.messages,
        lost_bytes: view.lost.bytes,
    }
}

pub(in crate::rpc) fn attached(attached: &Attached) -> proto::Attached {
    proto::Attached {
        registration: Some(view(&attached.registration)),
        resume_token: attached.token.expose(),
        resumed: attached.resumed,
        instance_id: attached.instance_id.to_string(),
        last_send_id: attached.last_send_id,
        existing_channels: u32::try_from(attached.existing_channels).unwrap_or(u32::MAX),
    }
}

/// Reads the public id of a registration.
pub(in crate::rpc) fn registration_id(text: &str) -> Result<RegistrationId, ErrorStatus> {
    RegistrationId::parse(text)
        .ok_or_else(|| ErrorStatus::field("registration_id", "is not a registration id (16 hex digits)"))
}

#[cfg(test)]
mod tests;
