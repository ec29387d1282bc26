//! Leases: who owns which capability, for how long, and who may act for it.
//!
//! A registration is a lease on capability names. A stream holds it; when the stream breaks it lingers, so that an
//! application can restart while its peers stay connected. Coming back is a matter of proof: each attachment yields a
//! new resume token and retires the one before, so of two processes that believe they own a registration exactly one
//! is right, and the other learns it from its next call instead of fighting.
//!
//! # Tokens
//!
//! | the caller has | and the registration is | then |
//! | --- | --- | --- |
//! | the current token | in any state | it attaches; a stream that held it ends (ABORTED) |
//! | the preceding token and the `request_id` that retired it | in any state | the answer got lost: the same attempt is answered again |
//! | an older token | in any state | RESUME_TOKEN_STALE |
//! | its client id, same principal | DETACHED or LINGERING | it attaches; all earlier tokens are retired |
//! | its client id, same principal | ATTACHED | REGISTRATION_ATTACHED; with `takeover` it attaches, all earlier tokens are retired |
//! | its client id and the `request_id` of the last attempt | in any state | the same attempt is answered again |
//!
//! A token is enough by itself: whoever holds it is the application, whatever its principal.
//!
//! # Use
//!
//! [`Registry::register`] and [`Registry::attach`] answer at once; leases that end on their own leave through
//! [`Registry::poll_action`] after [`Registry::handle_timeout`]. Nothing is remembered over a restart of the sidecar.
//!
//! # Files
//!
//! `capability` (names, versions and message counts), `spec` and `wanted` (what an application asks for, and its limits),
//! `registration` (one lease), `state` (whether a stream holds it), `claim` (who may take it), `token` (its secret), `error` and `reason` (why something is
//! refused, and the word for it that programs compare).
//!
//! Left out: the channels of a registration ([`delivery`](crate::delivery)), what its names mean for live sessions, and
//! whether the caller's principal is who it says.

mod capability;
mod claim;
mod error;
pub mod reason;
mod registration;
mod spec;
mod state;
mod token;
mod wanted;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use rand::rngs::StdRng;

pub use capability::{Capability, MAX_MESSAGE_COUNT, check_name, known_message_count};
pub use claim::{Caller, Changes, Claim, Claimed, Who};
pub use error::LeaseError;
pub use registration::Registration;
pub use spec::{
    Greeting, MAX_HELLO, MAX_LINGER, MAX_MESSAGE_BYTES, ProtocolSpec, RegistrationSpec, check_greeting,
    hello_len,
};
pub use state::{LeaseStream, State, StateName};
pub use token::{RegistrationId, ResumeToken};
pub use wanted::{Chain, Wanted};

use crate::Now;
use error::shown;

/// What the operator may set.
#[derive(Clone, Debug)]
pub struct Config {
    /// The most registrations.
    pub max_registrations: usize,
    /// The most registrations of one principal.
    pub max_per_principal: usize,
    /// Whether message counts other than those everybody knows are accepted.
    pub any_message_count: bool,
    /// Whether the sidecar was started for a network, whose chain registrations may ask for without describing it.
    pub has_network: bool,
    /// Capabilities whose message counts the operator knows, beside those that everybody knows.
    pub message_counts: Vec<Capability>,
    /// Whether only a resume token may act for a registration, not its client id or a protocol's name.
    pub require_resume_token: bool,
    /// The length of our client name in the Hello, in bytes.
    pub client_name_len: usize,
}

impl Default for Config {
    fn default() -> Self {
        // 32 applications on one node are more than anybody runs; the bound is there for clients in a loop.
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

/// What happened on its own.
#[derive(Debug)]
pub enum Action {
    /// A registration is gone: its names are free. Its stream, if one is left, has to end.
    Ended {
        /// What it was.
        registration: Box<Registration>,
        /// Whether its lease ran out, rather than being deleted.
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

    /// The stream broke: the lease lingers. Ignored if another stream holds it.
    pub fn detach(&mut self, now: Now, id: RegistrationId, stream: LeaseStream) {
        let Some(registration) = self.registrations.get_mut(&id) else { return };
        if registration.stream() != Some(stream) {
            return;
        }
        registration.state = State::Lingering { expires: now.mono };
        registration.renew(now);
        self.handle_timeout(now);
    }

    /// Begins the lease of a registration without stream anew, as each call that acts for it does.
    pub fn renew(&mut self, now: Now, id: RegistrationId) {
        if let Some(registration) = self.registrations.get_mut(&id) {
            registration.renew(now);
        }
    }

    /// Changes what is registered: all of it or nothing.
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

    /// Who owns a capability's name.
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

    /// What happened on its own.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether a spec has the message counts of the operator's table.
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

    /// Whether a spec can be registered beside what the others registered.
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
