//! The registry: all registrations, whose leases begin, change and end here.
//!
//! Left out: the parts of a claim (`claim`), and the values that a registration may have (`spec`, `wanted`).

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use rand::rngs::StdRng;

use super::capability::Capability;
use super::claim::{Caller, Changes, Claim, Claimed, Who};
use super::error::{LeaseError, cut, shown};
use super::registration::{Attempt, Registration};
use super::spec::{Greeting, MAX_HELLO, RegistrationSpec, check_greeting, hello_len};
use super::state::State;
use super::token::{ResumeToken, Secret};
use crate::Now;
use crate::delivery::StreamId;
use crate::node::RegistrationId;

/// The settings of the operator.
#[derive(Clone, Debug)]
pub struct Config {
    /// The largest number of registrations.
    pub max_registrations: usize,
    /// The largest number of registrations of one principal.
    pub max_per_principal: usize,
    /// Whether message counts are accepted that differ from those in `capability`.
    pub any_message_count: bool,
    /// Whether the sidecar was started for a network. If so, registrations may ask for its chain without describing it.
    pub has_network: bool,
    /// The operator's table of message counts, beside those in `capability`.
    pub message_counts: Vec<Capability>,
    /// Whether callers must name a registration by its resume token. If so, a client id or a protocol's name does not
    /// suffice.
    pub require_resume_token: bool,
    /// The length of our client name in the Hello, in bytes.
    pub client_name_len: usize,
}

impl Default for Config {
    fn default() -> Self {
        // No node runs 32 applications; the bound is for clients that register in a loop.
        Self {
            max_registrations: 32,
            max_per_principal: 32,
            any_message_count: false,
            has_network: false,
            message_counts: Vec::new(),
            require_resume_token: false,
            client_name_len: 128,
        }
    }
}

/// A registration ended.
#[derive(Debug)]
pub enum Action {
    /// A registration has ended and its names are free. If a stream still holds it, the stream has to end.
    Ended {
        /// The registration as it was.
        registration: Box<Registration>,
        /// Whether its lease ran out; false if it was deleted.
        expired: bool,
    },
}

/// All registrations.
#[derive(Debug)]
pub struct Registry {
    config: Config,
    rng: StdRng,
    registrations: BTreeMap<RegistrationId, Registration>,
    streams: u64,
    actions: VecDeque<Action>,
}

impl Registry {
    /// A registry without registrations.
    #[must_use]
    pub fn new(config: Config, rng: StdRng) -> Self {
        Self { config, rng, registrations: BTreeMap::new(), streams: 0, actions: VecDeque::new() }
    }

    /// Makes or resumes a registration by a call. Its lease then waits for a stream.
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

    /// Returns the registration that `who` names, if the caller may act for it. A token must be the current one.
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

    /// Gives the registration to the caller's stream. Without a stream, its lease waits for one.
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
            State::Attached { stream: StreamId(self.streams) }
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

    /// Reports that a stream broke: the lease lingers. Ignored if another stream holds the registration.
    pub fn detach(&mut self, now: Now, id: RegistrationId, stream: StreamId) {
        let Some(registration) = self.registrations.get_mut(&id) else { return };
        if registration.stream() != Some(stream) {
            return;
        }
        registration.state = State::Lingering { expires: now.mono };
        registration.renew(now);
        self.handle_timeout(now);
    }

    /// Starts the lease anew unless a stream holds it. Each call that acts for the registration does this.
    pub fn renew(&mut self, now: Now, id: RegistrationId) {
        if let Some(registration) = self.registrations.get_mut(&id) {
            registration.renew(now);
        }
    }

    /// Changes the contents of a registration: all of the spec, or nothing if it is refused.
    pub fn update(
        &mut self,
        now: Now,
        id: RegistrationId,
        spec: RegistrationSpec,
    ) -> Result<Changes, LeaseError> {
        self.check(now, Some(id), &spec)?;
        let registration = self.registrations.get_mut(&id).ok_or_else(|| unknown_id(id))?;
        let changes = changes(&registration.spec, &spec);
        registration.spec = spec;
        registration.renew(now);
        Ok(changes)
    }

    /// Replaces the greeting of one capability.
    pub fn set_greeting(
        &mut self,
        id: RegistrationId,
        name: &str,
        version: u32,
        greeting: Vec<Greeting>,
    ) -> Result<(), LeaseError> {
        let registration = self.registrations.get_mut(&id).ok_or_else(|| unknown_id(id))?;
        let protocol =
            registration.spec.protocols.iter_mut().find(|protocol| {
                *protocol.capability.name == *name && protocol.capability.version == version
            });
        let Some(protocol) = protocol else {
            let problem = format!("{}/{version} is not in this registration", shown(name));
            return Err(LeaseError::field("name", problem));
        };
        check_greeting(&greeting, protocol.capability.message_count, |field| field.to_owned())?;
        protocol.greeting = greeting;
        Ok(())
    }

    /// Ends a registration now.
    pub fn delete(&mut self, id: RegistrationId) {
        if let Some(registration) = self.registrations.remove(&id) {
            self.actions.push_back(Action::Ended { registration: Box::new(registration), expired: false });
        }
    }

    /// A registration.
    #[must_use]
    pub fn get(&self, id: RegistrationId) -> Option<&Registration> {
        self.registrations.get(&id)
    }

    /// All registrations, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Registration> {
        self.registrations.values()
    }

    /// Returns the registration that owns a capability's name.
    #[must_use]
    pub fn owner(&self, name: &str) -> Option<&Registration> {
        self.iter().find(|registration| registration.spec.protocol(name, None).is_some())
    }

    /// Ends the leases that ran out.
    pub fn handle_timeout(&mut self, now: Now) {
        let over =
            |registration: &Registration| registration.expires().is_some_and(|expires| expires <= now.mono);
        let ids: Vec<RegistrationId> =
            self.iter().filter(|known| over(known)).map(Registration::id).collect();
        for registration in ids.iter().filter_map(|id| self.registrations.remove(id)) {
            self.actions.push_back(Action::Ended { registration: Box::new(registration), expired: true });
        }
    }

    /// When the next lease runs out.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.iter().filter_map(Registration::expires).min()
    }

    /// Returns the next registration that ended.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Checks that a spec has the message counts of the operator's table.
    fn check_message_counts(&self, spec: &RegistrationSpec) -> Result<(), LeaseError> {
        for (index, protocol) in spec.protocols.iter().enumerate() {
            let Capability { name, version, message_count } = &protocol.capability;
            let table = &self.config.message_counts;
            let right = table.iter().find(|known| known.name == *name && known.version == *version);
            if let Some(right) = right.map(|known| known.message_count).filter(|right| right != message_count)
            {
                let problem = format!(
                    "{name}/{version} has {right} messages on this node (--message-counts), not {message_count}; a wrong \
                     count shifts the codes of other capabilities"
                );
                return Err(LeaseError::field(format!("spec.protocols[{index}].message_count"), problem));
            }
        }
        Ok(())
    }

    /// Checks that a spec can be registered beside the other registrations.
    fn check(&self, now: Now, id: Option<RegistrationId>, spec: &RegistrationSpec) -> Result<(), LeaseError> {
        spec.check(self.config.any_message_count)?;
        spec.wanted.check(self.config.has_network)?;
        self.check_message_counts(spec)?;
        if let Some(registration) = id.and_then(|id| self.get(id))
            && registration.spec.client_id != spec.client_id
        {
            let problem = format!("this registration belongs to client {:?}", registration.spec.client_id);
            return Err(LeaseError::field("spec.client_id", problem));
        }
        for protocol in &spec.protocols {
            let name = &protocol.capability.name;
            if let Some(owner) = self.owner(name).filter(|owner| Some(owner.id) != id) {
                return Err(LeaseError::ProtocolAlreadyRegistered {
                    protocol: name.clone(),
                    owner: owner.spec.client_id.clone(),
                    state: owner.state_name(),
                    expire_time: owner.expire_time(now),
                });
            }
        }
        let others = self.iter().filter(|other| Some(other.id) != id).flat_map(|other| &other.spec.protocols);
        let all = others.chain(&spec.protocols).map(|protocol| &protocol.capability);
        if hello_len(self.config.client_name_len, all) > MAX_HELLO {
            return Err(LeaseError::HelloTooLarge { limit: MAX_HELLO });
        }
        Ok(())
    }
}

fn unknown_id(id: RegistrationId) -> LeaseError {
    LeaseError::RegistrationNotFound { what: format!("has the id {id}") }
}

fn changes(old: &RegistrationSpec, new: &RegistrationSpec) -> Changes {
    let of = |spec: &RegistrationSpec| -> Vec<Capability> {
        spec.protocols.iter().map(|protocol| protocol.capability.clone()).collect()
    };
    let (old, new) = (of(old), of(new));
    let (kept, added) = new.iter().cloned().partition(|capability| old.contains(capability));
    let removed = old.into_iter().filter(|capability| !new.contains(capability)).collect();
    Changes { kept, added, removed }
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
