//! Claims: a request to hold a registration, and the answer to it.
//!
//! Left out: what is granted (`registry`).

use std::sync::Arc;

use super::capability::Capability;
use super::spec::RegistrationSpec;
use super::token::ResumeToken;
use crate::delivery::StreamId;
use crate::node::RegistrationId;

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The authenticated principal (`uid:1000`, a token's name, a certificate's), or one name for everybody where
    /// callers are not told apart.
    pub principal: &'a Arc<str>,
    /// Whether it may take over an attached registration (its principal is proven).
    pub may_take_over: bool,
}

/// Which registration is meant.
#[derive(Clone, Copy)]
pub enum Who<'a> {
    /// The one this resume token belongs to.
    Token(&'a str),
    /// The one with this client id, of the same principal.
    Client(&'a str),
    /// The one that owns this capability (`eth` or `eth/69`), of the same principal. Not for attaching.
    Protocol(&'a str),
}

/// A request to hold a registration.
#[derive(Clone)]
pub struct Claim<'a> {
    /// Which registration. With a client id that none has and a spec, a new one is made.
    pub who: Who<'a>,
    /// What to register, or to change an existing registration to.
    pub spec: Option<RegistrationSpec>,
    /// The caller's name for this attempt, the same when it repeats it; empty for none.
    pub request_id: &'a str,
    /// Whether to take an attached registration over.
    pub takeover: bool,
}

/// What a changed spec changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The same name, version and message count as before: their channels go on.
    pub kept: Vec<Capability>,
    /// Not registered before, or with another count: late registrations.
    pub added: Vec<Capability>,
    /// Not registered any more: their channels close.
    pub removed: Vec<Capability>,
}

/// An answered claim.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The registration.
    pub id: RegistrationId,
    /// The current token, for the caller alone.
    pub token: ResumeToken,
    /// Whether the registration existed before.
    pub resumed: bool,
    /// The attachment; `None` from [`Registry::register`](super::Registry::register).
    pub stream: Option<StreamId>,
    /// The stream that held the registration until now; it has to end with ABORTED.
    pub replaced: Option<StreamId>,
    /// What the spec changed; all added for a new registration, nothing for a claim without spec.
    pub changes: Changes,
}
