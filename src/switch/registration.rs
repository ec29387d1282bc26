//! One registration as callers name it, claim it and see it, and why a call of theirs is refused.
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
    /// The name under which registrations are kept.
    pub name: Arc<str>,
    /// Whether it is proven, so that taking over is allowed.
    pub proven: bool,
    /// Whether it is an operator, who may end every registration.
    pub operator: bool,
}

impl Principal {
    pub(super) fn caller(&self) -> Caller<'_> {
        Caller { principal: &self.name, may_take_over: self.proven }
    }
}

/// Which registration a stream is for.
#[derive(Clone, Debug)]
pub enum RegistrationRef {
    /// The one with this token.
    Token(String),
    /// A new one, or the client's own with a changed spec.
    Spec(RegistrationSpec),
    /// The client's own.
    Client(Arc<str>),
}

/// A stream's wish to attach.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// Which registration.
    pub target: RegistrationRef,
    /// Windows and frame sizes.
    pub params: AttachParams,
    /// Names the attempt, so that a repeated one gets the same answer; empty for none.
    pub request_id: String,
    /// Whether an attached registration may be taken over.
    pub takeover: bool,
}

/// On whose behalf a call acts.
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

/// How a registration is looked up by whoever wants to see it.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// By its public id.
    Id(RegistrationId),
    /// By its client id.
    Client(Arc<str>),
    /// By a protocol it owns, with or without a version.
    Protocol(String),
}

/// A registration as everybody may see it.
#[derive(Clone, Debug)]
pub struct RegistrationView {
    /// Its public id.
    pub id: RegistrationId,
    /// What was registered.
    pub spec: RegistrationSpec,
    /// The lease's state.
    pub state: StateName,
    /// How many tokens it has had.
    pub generation: u64,
    /// Wall time at which the lease ends unless its application comes back.
    pub expire_time: Option<Duration>,
    /// Open channels.
    pub open_channels: usize,
    /// What waits for the application: bytes, and a cost for each message.
    pub waiting_bytes: u64,
    /// Channels that hold their connection.
    pub holding_channels: usize,
    /// Wall time at which the longest of these holds began.
    pub holding_since: Option<Duration>,
    /// What the application lost so far.
    pub lost: Lost,
}

impl RegistrationView {
    /// What it takes in memory, in bytes: greetings above all.
    pub(super) fn bytes(&self) -> usize {
        let protocols = self.spec.protocols.iter().map(|protocol| {
            size_of_val(protocol)
                + protocol.greeting.iter().map(|said| said.payload.len() + 64).sum::<usize>()
        });
        size_of::<Self>() + protocols.sum::<usize>()
    }
}

/// The part of the registrations with one client id.
#[derive(Clone, Copy, Debug, Default)]
pub struct Application {
    /// Messages that it lost, and the bytes of their payloads.
    pub lost: Lost,
    /// Bytes that wait for it.
    pub waiting_bytes: u64,
    /// Its channels that hold their connection.
    pub holding_channels: usize,
    /// Messages on channels that had closed: its capability is mute there.
    pub discarded: u64,
    /// How often the memory of the whole process, and not a channel's own bound, decided that a message does not fit.
    pub forced: u64,
}

/// The answer to a registration by call.
#[derive(Clone, Debug)]
pub struct Registered {
    /// What was registered.
    pub registration: RegistrationView,
    /// The secret that stands for it.
    pub token: ResumeToken,
    /// Whether it existed before.
    pub resumed: bool,
    /// This run of the sidecar.
    pub instance_id: Arc<str>,
}

/// The answer to a stream.
#[derive(Debug)]
pub struct Attached<A = Attachment> {
    /// What it holds now.
    pub registration: RegistrationView,
    /// The secret that stands for it.
    pub token: ResumeToken,
    /// Whether it existed before.
    pub resumed: bool,
    /// This run of the sidecar.
    pub instance_id: Arc<str>,
    /// The last send that an earlier stream's task processed.
    pub last_send_id: u64,
    /// How many channels of earlier streams will be told to this one.
    pub existing_channels: usize,
    /// The largest frame that the client takes, in bytes.
    pub max_frame: usize,
    /// The stream's hold: [`Attachment`], or what a driver wraps around it.
    pub attachment: A,
}

/// The registration for which a call sends, and the protocol that it means.
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

/// The claim that a stream's target makes on the lease.
pub(super) fn claim<'a>(target: &'a RegistrationRef, request_id: &'a str, takeover: bool) -> Claim<'a> {
    let (who, spec) = match target {
        RegistrationRef::Token(token) => (Who::Token(token), None),
        RegistrationRef::Spec(spec) => (Who::Client(&spec.client_id), Some(spec.clone())),
        RegistrationRef::Client(client) => (Who::Client(client), None),
    };
    Claim { who, spec, request_id, takeover }
}

/// The beginning of what a caller wrote, short enough for an error's text.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}
