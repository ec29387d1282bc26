//! The contents of a registration, and the check that its values are valid.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rlp::RlpStream;

use super::capability::{Capability, MAX_MESSAGE_COUNT, check_name, known_message_count, network_of};
use super::error::{LeaseError, Wrong, shown};
use super::wanted::{ETH, Wanted};
use crate::delivery::overflow::MAX_STALL_LIMIT;
use crate::delivery::{MAX_KEEP_FIRST, OverflowPolicy};
use crate::node::{ForkSchedule, Head};
use crate::policy::DialFilter;

/// The linger of a registration that sets none.
const DEFAULT_LINGER: Duration = Duration::from_secs(30);

/// The longest linger.
pub const MAX_LINGER: Duration = Duration::from_secs(600);

/// The most capabilities (name and version) of one registration.
pub(super) const MAX_PROTOCOLS: usize = 16;

/// The longest client id, in bytes.
const MAX_CLIENT_ID: usize = 64;

/// The most messages of a greeting.
const MAX_GREETING: usize = 8;

/// The most bytes of a greeting's payloads in all.
const MAX_GREETING_BYTES: usize = 64 << 10;

/// The largest message RLPx can carry: snappy lengths and frame sizes have 24 bits.
pub const MAX_MESSAGE_BYTES: u32 = (1 << 24) - 1;

/// The largest Hello that we send, in bytes of RLP. Every known peer accepts it (geth refuses base messages over 2
/// KiB).
pub(super) const MAX_HELLO: usize = 2 << 10;

/// A message that the sidecar itself sends on every new channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Its code inside the capability.
    pub code: u32,
    /// Its payload.
    pub payload: Bytes,
}

/// One capability of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolSpec {
    /// Name, version and message count.
    pub capability: Capability,
    /// The largest inbound message that the application takes, in bytes; 0 for the sidecar's limit.
    pub max_message_bytes: u32,
    /// The number of first inbound messages to keep for each channel, at most [`MAX_KEEP_FIRST`].
    pub keep_first: usize,
    /// The messages that are sent on every new channel.
    pub greeting: Vec<Greeting>,
}

/// The contents of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationSpec {
    /// The application's name for itself: 1 to 64 printable ASCII characters.
    pub client_id: Arc<str>,
    /// Its capabilities; it owns their names with all versions.
    pub protocols: Vec<ProtocolSpec>,
    /// The time for which the lease outlives the stream; `None` for [`DEFAULT_LINGER`]. With zero the lease ends with
    /// the stream.
    pub linger: Option<Duration>,
    /// The policy for the case that the application does not keep up.
    pub overflow: OverflowPolicy,
    /// The bound of a channel's queue in bytes; 0 for the default.
    pub channel_queue_bytes: u64,
    /// The nodes that are dialed for the application.
    pub wanted: Wanted,
    /// The number of peers that the application asks for; 0 for as many as there are slots.
    pub desired_peers: usize,
}

impl RegistrationSpec {
    /// Returns the policy's filter. `network` is the fork schedule of the network that the sidecar was started for.
    #[must_use]
    pub fn dial_filter(&self, network: Option<&Arc<ForkSchedule>>) -> DialFilter {
        self.wanted.dial_filter(network, self.protocol(ETH, None).is_some())
    }

    /// Returns the chain that our record announces for the registration; `None` if it does not ask for that.
    #[must_use]
    pub fn announced(&self, network: Option<&Arc<ForkSchedule>>) -> Option<(Arc<ForkSchedule>, Head)> {
        self.wanted.announced(network)
    }

    /// The time for which the lease outlives the stream: as set, or [`DEFAULT_LINGER`].
    #[must_use]
    pub fn linger(&self) -> Duration {
        self.linger.unwrap_or(DEFAULT_LINGER)
    }

    /// Returns the capability with this name, and with this version if one is given.
    #[must_use]
    pub fn protocol(&self, name: &str, version: Option<u32>) -> Option<&ProtocolSpec> {
        self.protocols.iter().find(|protocol| {
            &*protocol.capability.name == name
                && version.is_none_or(|version| protocol.capability.version == version)
        })
    }

    /// Checks that every field is valid. `any_message_count`: the operator allows other message counts than the known
    /// ones.
    pub fn check(&self, any_message_count: bool) -> Result<(), LeaseError> {
        let mut wrong = Wrong::default();
        let id = &*self.client_id;
        if id.is_empty() || id.len() > MAX_CLIENT_ID || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem = format!("{} is not 1 to {MAX_CLIENT_ID} printable ASCII characters", shown(id));
            wrong.field("spec.client_id", problem);
        }
        if self.linger() > MAX_LINGER {
            let problem =
                format!("{} s is more than the {} s allowed", self.linger().as_secs(), MAX_LINGER.as_secs());
            wrong.field("spec.linger", problem);
        }
        if self.overflow.stall_limit > MAX_STALL_LIMIT {
            let problem = format!("must be at most {} s: peers wait no longer", MAX_STALL_LIMIT.as_secs());
            wrong.field("spec.overflow_policy.stall_limit", problem);
        }
        if self.protocols.is_empty() {
            wrong.field("spec.protocols", "must have at least one protocol");
        }
        if self.protocols.len() > MAX_PROTOCOLS {
            return Err(LeaseError::LimitReached {
                what: "protocols of one registration",
                limit: MAX_PROTOCOLS,
            });
        }
        let mut seen = HashSet::new();
        for (index, protocol) in self.protocols.iter().enumerate() {
            let field = |name: &str| format!("spec.protocols[{index}].{name}");
            wrong.note(protocol.check(any_message_count, field))?;
            if !seen.insert((&protocol.capability.name, protocol.capability.version)) {
                let problem = format!("{} is in the list twice", protocol.capability);
                wrong.field(field("name"), problem);
            }
        }
        wrong.verdict()
    }
}

impl ProtocolSpec {
    fn check(&self, any_message_count: bool, field: impl Fn(&str) -> String) -> Result<(), LeaseError> {
        let mut wrong = Wrong::default();
        let Capability { name, version, message_count } = &self.capability;
        if !check_name(name) {
            let problem = format!("{} is not 1 to 8 printable ASCII characters without '/'", shown(name));
            wrong.field(field("name"), problem);
        }
        if !(1..=MAX_MESSAGE_COUNT).contains(message_count) {
            let problem = format!("{message_count} is not between 1 and {MAX_MESSAGE_COUNT}");
            wrong.field(field("message_count"), problem);
        }
        match known_message_count(name, *version) {
            Some(right) if right != *message_count && !any_message_count => {
                let of = network_of(name).map(|network| format!(" of {network}")).unwrap_or_default();
                let problem = format!(
                    "{}{of} has {right} messages, not {message_count}; a wrong count shifts the codes of other \
                     capabilities",
                    self.capability
                );
                wrong.field(field("message_count"), problem);
            }
            _ => {}
        }
        if self.max_message_bytes > MAX_MESSAGE_BYTES {
            let problem =
                format!("{} is more than RLPx carries ({MAX_MESSAGE_BYTES})", self.max_message_bytes);
            wrong.field(field("max_message_bytes"), problem);
        }
        if self.keep_first > MAX_KEEP_FIRST {
            let problem = format!("{} is more than the {MAX_KEEP_FIRST} that can be kept", self.keep_first);
            wrong.field(field("keep_first"), problem);
        }
        wrong.note(check_greeting(&self.greeting, *message_count, field))?;
        wrong.verdict()
    }
}

/// Checks that a greeting can be sent on a capability with `message_count` codes.
pub(super) fn check_greeting(
    greeting: &[Greeting],
    message_count: u64,
    field: impl Fn(&str) -> String,
) -> Result<(), LeaseError> {
    if greeting.len() > MAX_GREETING {
        return Err(LeaseError::LimitReached { what: "messages of one greeting", limit: MAX_GREETING });
    }
    let bytes = greeting.iter().fold(0_usize, |sum, message| sum.saturating_add(message.payload.len()));
    if bytes > MAX_GREETING_BYTES {
        let problem = format!("{bytes} bytes are more than the {MAX_GREETING_BYTES} allowed");
        return Err(LeaseError::field(field("greeting"), problem));
    }
    match greeting.iter().position(|message| u64::from(message.code) >= message_count) {
        None => Ok(()),
        Some(index) => {
            let problem = format!("must be below the message count {message_count}");
            Err(LeaseError::field(field(&format!("greeting[{index}].code")), problem))
        }
    }
}

/// The size of our Hello in bytes of RLP with these capabilities and a client name of `name_len` bytes (devp2p,
/// "RLPx": `[version, clientId, [[cap, capVersion], …], listenPort, nodeKey]`).
#[must_use]
pub(super) fn hello_len<'a>(name_len: usize, capabilities: impl Iterator<Item = &'a Capability>) -> usize {
    let mut stream = RlpStream::new_list(5);
    stream.append(&5_u8).append(&vec![b'x'; name_len]).begin_unbounded_list();
    for Capability { name, version, .. } in capabilities {
        stream.begin_list(2).append(&name.as_bytes()).append(version);
    }
    stream.finalize_unbounded_list();
    stream.append(&u16::MAX).append(&[0_u8; 64].as_slice());
    stream.out().len()
}
