//! Claims: a request to hold a registration, and the answer to it.
//!
//! Left out: the decision on a claim (`registry`).

use std::sync::Arc;

use super::capability::Capability;
use super::spec::RegistrationSpec;
use super::token::ResumeToken;
use crate::delivery::StreamId;
use crate::node::RegistrationId;

/// The caller of one request.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The authenticated principal (`uid:1000`, a token's name, a certificate's). All callers share one name where they
    /// are not told apart.
    pub principal: &'a Arc<str>,
    /// Whether it may take over an attached registration (its principal is proven).
    pub may_take_over: bool,
}

/// Names the registration that a request is about.
#[derive(Clone, Copy)]
pub enum Who<'a> {
    /// The registration to which this resume token belongs.
    Token(&'a str),
    /// The registration of the same principal with this client id.
    Client(&'a str),
    /// The registration of the same principal that owns this capability (`eth` or `eth/69`). Not valid in a claim.
    Protocol(&'a str),
}

/// A request to hold a registration.
#[derive(Clone)]
pub struct Claim<'a> {
    /// The registration that is claimed. If no registration of the principal has this client id, a new one is made from
    /// the spec.
    pub who: Who<'a>,
    /// The contents of a new registration, or the new contents of an existing one.
    pub spec: Option<RegistrationSpec>,
    /// The caller's name for this attempt, which a repeated attempt has too; empty for none.
    pub request_id: &'a str,
    /// Whether to take an attached registration over.
    pub takeover: bool,
}

/// The capabilities that a new spec keeps, adds and removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Capabilities with the same name, version and message count as before: their channels go on.
    pub kept: Vec<Capability>,
    /// Capabilities that were not registered before, or with another count.
    pub added: Vec<Capability>,
    /// Capabilities that are not registered any more: their channels close.
    pub removed: Vec<Capability>,
}

/// The answer to a claim that was granted.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The registration.
    pub id: RegistrationId,
    /// The current token. It is a secret of the caller.
    pub token: ResumeToken,
    /// Whether the registration existed before.
    pub resumed: bool,
    /// The attachment; `None` from [`Registry::register`](super::Registry::register).
    pub stream: Option<StreamId>,
    /// The stream that held the registration until now; it has to end with ABORTED.
    pub replaced: Option<StreamId>,
    /// The changes by the spec: all added for a new registration, none for a claim without a spec.
    pub changes: Changes,
}
