//! Claims: who may hold a registration, and what they are answered.

use std::sync::Arc;

use super::Capability;
use super::error::{LeaseError, cut, shown};
use super::registration::{Attempt, Registration};
use super::spec::RegistrationSpec;
use super::state::{LeaseStream, State};
use super::token::{RegistrationId, ResumeToken, Secret};
use super::{Registry, unknown_id};
use crate::Now;

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
    /// The attachment; `None` from [`Registry::register`].
    pub stream: Option<LeaseStream>,
    /// The stream that held the registration until now; it has to end with ABORTED.
    pub replaced: Option<LeaseStream>,
    /// What the spec changed; all added for a new registration, nothing for a claim without spec.
    pub changes: Changes,
}

impl Registry {
    /// Makes or resumes a registration by a call; its lease waits for a stream.
    pub fn register(
        &mut self,
        now: Now,
        caller: Caller<'_>,
        claim: Claim<'_>,
    ) -> Result<Claimed, LeaseError> {
        self.claim(now, caller, claim, false)
    }

    /// Makes or resumes a registration for a stream that holds it.
    pub fn attach(&mut self, now: Now, caller: Caller<'_>, claim: Claim<'_>) -> Result<Claimed, LeaseError> {
        self.claim(now, caller, claim, true)
    }

    /// The registration a caller may act for. A token must be the current one.
    pub fn resolve(
        &mut self,
        now: Now,
        caller: Caller<'_>,
        who: Who<'_>,
    ) -> Result<RegistrationId, LeaseError> {
        self.handle_timeout(now);
        match who {
            Who::Token(text) => {
                let (registration, secret) = self.by_token(text)?;
                if registration.secret.is(&secret) {
                    Ok(registration.id)
                } else {
                    Err(LeaseError::ResumeTokenStale { generation: registration.generation })
                }
            }
            Who::Client(client_id) => {
                let id = self.by_client(caller, client_id).ok_or_else(|| unknown_client(client_id))?;
                self.without_token().map(|()| id)
            }
            Who::Protocol(protocol) => {
                let unknown = || LeaseError::ProtocolNotRegistered { protocol: cut(protocol) };
                let (name, version) = parse_protocol(protocol).ok_or_else(unknown)?;
                let registration = self.owner(name).ok_or_else(unknown)?;
                registration.spec.protocol(name, version).ok_or_else(unknown)?;
                if registration.principal != *caller.principal {
                    let what = "the protocol belongs to another principal; only its resume token acts for it";
                    return Err(LeaseError::NotAuthorized { what });
                }
                self.without_token().map(|()| registration.id)
            }
        }
    }

    fn claim(
        &mut self,
        now: Now,
        caller: Caller<'_>,
        claim: Claim<'_>,
        stream: bool,
    ) -> Result<Claimed, LeaseError> {
        self.handle_timeout(now);
        let is_repeated = |attempt: &Attempt| {
            attempt.stream == stream
                && !claim.request_id.is_empty()
                && *attempt.request_id == *claim.request_id
        };
        let preceding;
        let id = match claim.who {
            Who::Token(text) => {
                let (registration, secret) = self.by_token(text)?;
                if !registration.secret.is(&secret) {
                    let attempt = registration.attempt.as_ref().filter(|attempt| is_repeated(attempt));
                    if attempt
                        .and_then(|attempt| attempt.preceding.as_ref())
                        .is_none_or(|old| !old.is(&secret))
                    {
                        return Err(LeaseError::ResumeTokenStale { generation: registration.generation });
                    }
                    return self.answer(now, registration.id, stream, Changes::default());
                }
                preceding = Some(secret);
                registration.id
            }
            Who::Client(client_id) => {
                let Some(id) = self.by_client(caller, client_id) else {
                    let spec = claim.spec.ok_or_else(|| unknown_client(client_id))?;
                    return self.create(now, caller, client_id, spec, claim.request_id, stream);
                };
                self.without_token()?;
                let registration = self.get(id).ok_or_else(|| unknown_client(client_id))?;
                let attempt = registration.attempt.as_ref().filter(|attempt| is_repeated(attempt));
                if attempt.is_some_and(|attempt| attempt.preceding.is_none()) {
                    return self.answer(now, id, stream, Changes::default());
                }
                if registration.stream().is_some() {
                    if !claim.takeover {
                        let client_id = registration.spec.client_id.clone();
                        return Err(LeaseError::RegistrationAttached { client_id });
                    }
                    if !caller.may_take_over {
                        let what = "taking over an attached registration needs the Unix socket or a token";
                        return Err(LeaseError::NotAuthorized { what });
                    }
                }
                preceding = None;
                id
            }
            Who::Protocol(_) => {
                return Err(LeaseError::field(
                    "target",
                    "attach by resume token or client id, not by protocol",
                ));
            }
        };
        let changes = match claim.spec {
            Some(spec) => self.update(now, id, spec)?,
            None => Changes::default(),
        };
        let secret = Secret::random(&mut self.rng);
        if let Some(registration) = self.registrations.get_mut(&id) {
            registration.secret = secret;
            registration.generation = registration.generation.saturating_add(1);
            registration.attempt = Some(Attempt { request_id: claim.request_id.into(), stream, preceding });
        }
        self.answer(now, id, stream, changes)
    }

    fn create(
        &mut self,
        now: Now,
        caller: Caller<'_>,
        client_id: &str,
        spec: RegistrationSpec,
        request_id: &str,
        stream: bool,
    ) -> Result<Claimed, LeaseError> {
        if *spec.client_id != *client_id {
            return Err(LeaseError::field("spec.client_id", "differs from the client id of the request"));
        }
        self.check(now, None, &spec)?;
        let limits = [
            ("registrations", self.registrations.len(), self.config.max_registrations),
            (
                "registrations of this principal",
                self.iter().filter(|other| other.principal == *caller.principal).count(),
                self.config.max_per_principal,
            ),
        ];
        for (what, count, limit) in limits {
            if count >= limit {
                return Err(LeaseError::LimitReached { what, limit });
            }
        }
        let id = RegistrationId::random(&mut self.rng);
        let changes = Changes {
            added: spec.protocols.iter().map(|protocol| protocol.capability.clone()).collect(),
            ..Changes::default()
        };
        let registration = Registration {
            id,
            principal: caller.principal.clone(),
            spec,
            state: State::Detached { expires: now.mono },
            generation: 1,
            secret: Secret::random(&mut self.rng),
            attempt: Some(Attempt { request_id: request_id.into(), stream, preceding: None }),
        };
        self.registrations.insert(id, registration);
        let claimed = self.answer(now, id, stream, changes)?;
        Ok(Claimed { resumed: false, ..claimed })
    }

    /// Gives the registration to the caller's stream or, without one, lets its lease wait for one.
    fn answer(
        &mut self,
        now: Now,
        id: RegistrationId,
        stream: bool,
        changes: Changes,
    ) -> Result<Claimed, LeaseError> {
        let registration = self.registrations.get_mut(&id).ok_or_else(|| unknown_id(id))?;
        let replaced = registration.stream();
        registration.state = if stream {
            self.streams = self.streams.saturating_add(1);
            State::Attached { stream: LeaseStream(self.streams) }
        } else {
            State::Detached { expires: now.mono }
        };
        registration.renew(now);
        Ok(Claimed {
            id,
            token: registration.token(),
            resumed: true,
            stream: registration.stream(),
            replaced,
            changes,
        })
    }

    fn by_token(&self, text: &str) -> Result<(&Registration, Secret), LeaseError> {
        let unknown = || LeaseError::RegistrationNotFound { what: "has this resume token".into() };
        let token = ResumeToken::parse(text).ok_or_else(unknown)?;
        let registration = self.get(token.id).ok_or_else(unknown)?;
        Ok((registration, token.secret))
    }

    fn by_client(&self, caller: Caller<'_>, client_id: &str) -> Option<RegistrationId> {
        let mut all = self.iter();
        all.find(|known| *known.spec.client_id == *client_id && known.principal == *caller.principal)
            .map(Registration::id)
    }

    fn without_token(&self) -> Result<(), LeaseError> {
        if !self.config.require_resume_token {
            return Ok(());
        }
        Err(LeaseError::NotAuthorized {
            what: "this sidecar requires a resume token to act for a registration",
        })
    }
}

/// Splits `eth/69` or `eth`.
fn parse_protocol(protocol: &str) -> Option<(&str, Option<u32>)> {
    match protocol.split_once('/') {
        None => Some((protocol, None)),
        Some((name, version)) => Some((name, Some(version.parse().ok()?))),
    }
}

fn unknown_client(client_id: &str) -> LeaseError {
    LeaseError::RegistrationNotFound { what: format!("has the client id {}", shown(client_id)) }
}
