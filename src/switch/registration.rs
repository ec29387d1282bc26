//! One registration as callers name it, claim it and see it.
//!
//! Left out: the registrations themselves (`registrations`).

use std::{sync::Arc, time::Duration};

use super::{attachment::Attachment, channel::PeerChannel, session::Session};
pub use super::{error::SwitchError, shared::Ended};
use crate::{
    delivery::{AttachParams, Lost},
    lease::{Caller, Claim, RegistrationSpec, ResumeToken, StateName, Who},
    node::RegistrationId,
};

/// The caller, as the transport knows it.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The name to which registrations belong.
    pub name: Arc<str>,
    /// Whether it is authenticated, so that it may take over registrations.
    pub proven: bool,
    /// Whether it is an operator, which may end every registration.
    pub operator: bool,
}

impl Principal {
    pub(super) fn caller(&self) -> Caller<'_> {
        Caller { principal: &self.name, may_take_over: self.proven }
    }
}

/// Names the registration that a stream is for.
#[derive(Clone, Debug)]
pub enum RegistrationRef {
    /// The registration with this token.
    Token(String),
    /// A new registration, or the principal's registration with this client id and a changed spec.
    Spec(RegistrationSpec),
    /// The principal's registration with this client id.
    Client(Arc<str>),
}

/// A stream's request to attach.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// The registration to attach to.
    pub target: RegistrationRef,
    /// The windows and frame sizes of the stream.
    pub params: AttachParams,
    /// The client's name for the attempt, so that a repeated attempt gets the same answer; empty for none.
    pub request_id: String,
    /// Whether an attached registration may be taken over.
    pub takeover: bool,
}

/// Names the registration for which a call acts.
#[derive(Clone, Debug)]
pub enum Acting {
    /// The holder of a resume token.
    Token(String),
    /// The principal's registration with this client id.
    Client(Arc<str>),
    /// The principal's registration that owns the protocol of the call.
    Protocol(String),
}

impl Acting {
    pub(super) fn who(&self) -> Who<'_> {
        match self {
            Self::Token(token) => Who::Token(token),
            Self::Client(client) => Who::Client(client),
            Self::Protocol(protocol) => Who::Protocol(protocol),
        }
    }
}

/// Names a registration that a caller wants to see.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// By its public id.
    Id(RegistrationId),
    /// By its client id.
    Client(Arc<str>),
    /// By a protocol it owns, with or without a version.
    Protocol(String),
}

/// A registration as every caller may see it.
#[derive(Clone, Debug)]
pub struct RegistrationView {
    /// Its public id.
    pub id: RegistrationId,
    /// Its contents.
    pub spec: RegistrationSpec,
    /// The lease's state.
    pub state: StateName,
    /// How many resume tokens it has had.
    pub generation: u64,
    /// Wall time at which the lease ends unless a stream attaches; `None` while attached.
    pub expire_time: Option<Duration>,
    /// The number of open channels.
    pub open_channels: usize,
    /// The bytes that wait for the application: the payloads, and a cost for each message.
    pub waiting_bytes: u64,
    /// The number of channels that hold their connection.
    pub holding_channels: usize,
    /// Wall time at which the longest of these holds began.
    pub holding_since: Option<Duration>,
    /// The messages that the application lost so far.
    pub lost: Lost,
}

impl RegistrationView {
    /// Returns the memory that the view takes, in bytes: mostly greetings.
    pub(super) fn bytes(&self) -> usize {
        let protocols = self.spec.protocols.iter().map(|protocol| {
            size_of_val(protocol)
                + protocol.greeting.iter().map(|said| said.payload.len() + 64).sum::<usize>()
        });
        size_of::<Self>() + protocols.sum::<usize>()
    }
}

/// The numbers of the registrations with one client id.
#[derive(Clone, Copy, Debug, Default)]
pub struct Application {
    /// The messages that it lost, and the bytes of their payloads.
    pub lost: Lost,
    /// The messages that its streams took whole.
    pub delivered: u64,
    /// The messages that its streams took as gaps.
    pub reported: u64,
    /// The sessions that were combined into one gap while it was away.
    pub folded_sessions: u64,
    /// The bytes that wait for it.
    pub waiting_bytes: u64,
    /// The number of its channels that hold their connection.
    pub holding_channels: usize,
    /// The messages that were discarded because their channel had closed: the capability is mute on the session.
    pub discarded: u64,
    /// How often a message did not fit because of the memory bound of the whole process, and not of the channel's own
    /// bound.
    pub forced: u64,
}

/// The answer to a registration by a call.
#[derive(Clone, Debug)]
pub struct Registered {
    /// The registration after the call.
    pub registration: RegistrationView,
    /// The resume token, which is a secret.
    pub token: ResumeToken,
    /// Whether it existed before.
    pub resumed: bool,
    /// The id of this run of the sidecar.
    pub instance_id: Arc<str>,
}

/// The answer to a stream that attached.
#[derive(Debug)]
pub struct Attached<A = Attachment> {
    /// The registration that the stream holds.
    pub registration: RegistrationView,
    /// The resume token, which is a secret.
    pub token: ResumeToken,
    /// Whether it existed before.
    pub resumed: bool,
    /// The id of this run of the sidecar.
    pub instance_id: Arc<str>,
    /// The id of the last send that an earlier stream processed; 0 if there was none.
    pub last_send_id: u64,
    /// The number of channels that were announced on earlier streams and are announced again on this one.
    pub existing_channels: usize,
    /// The largest frame that the client takes, in bytes.
    pub max_frame: usize,
    /// The stream's side of the registration: [`Attachment`], or a driver's type around it.
    pub attachment: A,
}

/// The registration for which a call sends, and the protocol that it names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender<'p> {
    pub(super) owner: RegistrationId,
    pub(super) name: &'p str,
    pub(super) version: Option<u32>,
}

impl Sender<'_> {
    /// The registration's channel on a session, if they share the protocol.
    pub(super) fn channel(&self, session: &Arc<Session>) -> Option<PeerChannel> {
        let channel = session.channel(self.name)?;
        let fits =
            channel.owner == self.owner && self.version.is_none_or(|version| version == channel.version);
        fits.then(|| PeerChannel { session: Arc::clone(session), channel: channel.clone() })
    }
}

/// Returns the claim on the lease that a stream's target makes.
pub(super) fn claim<'a>(target: &'a RegistrationRef, request_id: &'a str, takeover: bool) -> Claim<'a> {
    let (who, spec) = match target {
        RegistrationRef::Token(token) => (Who::Token(token), None),
        RegistrationRef::Spec(spec) => (Who::Client(&spec.client_id), Some(spec.clone())),
        RegistrationRef::Client(client) => (Who::Client(client), None),
    };
    Claim { who, spec, request_id, takeover }
}

/// Returns the first 40 characters of a caller's text, for the text of an error.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}
