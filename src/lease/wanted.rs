//! The nodes that an application asks to have dialed, as it wrote them, and the check that its values are valid.
//!
//! The application's own form is kept, because registrations are shown in it. The policy's filter is made from it. Left
//! out: the nodes that a filter accepts (`policy::dial_filter`).

use std::sync::Arc;

use super::error::LeaseError;
use crate::{
    node::{ForkSchedule, Head},
    policy::DialFilter,
};

/// The longest key of a record entry that a filter names, in bytes. A record has at most 300 bytes.
const MAX_KEY: usize = 64;

/// The most values that a filter accepts, and the most bytes of each.
const MAX_VALUES: usize = 16;
const MAX_VALUE: usize = 300;

/// The most forks by height, and the most by time. Mainnet has had about twenty in ten years.
const MAX_FORKS: usize = 256;

/// The protocol whose nodes belong to different networks, which the preset of a network tells apart.
pub(super) const ETH: &str = "eth";

/// The nodes that are dialed for an application.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The application set no filter: the nodes of the sidecar's network if it speaks `eth` and there is a network,
    /// else all.
    #[default]
    Unsaid,
    /// All nodes.
    Any,
    /// Nodes with an entry in their record.
    Entry {
        /// The entry's key.
        key: String,
        /// Accepted values, each one RLP item. If empty, every value is accepted.
        accepted: Vec<Vec<u8>>,
    },
    /// Nodes whose fork id is compatible with a chain.
    Fork(Arc<Chain>),
    /// Nodes of the network that the sidecar was started for.
    Network {
        /// The head of the chain, as far as the application has followed it.
        head: Head,
        /// Whether our record announces this chain.
        announce: bool,
    },
}

/// A chain as an application describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The hash of the genesis block.
    pub genesis_hash: [u8; 32],
    /// The time of the genesis block, in Unix seconds.
    pub genesis_time: u64,
    /// Forks by height.
    pub fork_heights: Vec<u64>,
    /// Forks by Unix time.
    pub fork_times: Vec<u64>,
    /// The head of the chain, as far as the application has followed it.
    pub head: Head,
    /// Whether our record announces this chain.
    pub announce: bool,
}

impl Chain {
    /// Returns the chain's forks with their checksums.
    #[must_use]
    pub fn schedule(&self) -> ForkSchedule {
        ForkSchedule::new(self.genesis_hash, self.genesis_time, &self.fork_heights, &self.fork_times)
    }
}

impl Wanted {
    /// Checks that the values are valid. `has_network` says whether the sidecar was started for a network.
    pub(super) fn check(&self, has_network: bool) -> Result<(), LeaseError> {
        let wrong = |field: &str, problem: String| {
            Err(LeaseError::field(format!("spec.dial_filter.{field}"), problem))
        };
        match self {
            Self::Unsaid | Self::Any => Ok(()),
            Self::Network { .. } if !has_network => wrong(
                "fork.genesis_hash",
                "must have 32 bytes: the sidecar was started without a network (--network none), so it knows no chain"
                    .to_owned(),
            ),
            Self::Network { .. } => Ok(()),
            Self::Entry { key, .. } if key.is_empty() || key.len() > MAX_KEY => {
                wrong("record_entry.key", format!("must have 1 to {MAX_KEY} bytes"))
            }
            Self::Entry { accepted, .. } if accepted.len() > MAX_VALUES => wrong(
                "record_entry.accepted_values",
                format!("{} values are more than the {MAX_VALUES} allowed", accepted.len()),
            ),
            Self::Entry { accepted, .. } => {
                let bad = |value: &Vec<u8>| value.len() > MAX_VALUE || crate::rlp::validate(value).is_err();
                match accepted.iter().position(bad) {
                    None => Ok(()),
                    Some(at) => wrong(
                        &format!("record_entry.accepted_values[{at}]"),
                        format!("must be one RLP item of at most {MAX_VALUE} bytes"),
                    ),
                }
            }
            Self::Fork(chain) => {
                for (field, forks) in
                    [("fork_heights", &chain.fork_heights), ("fork_times", &chain.fork_times)]
                {
                    if forks.len() > MAX_FORKS {
                        return wrong(&format!("fork.{field}"), format!("must have at most {MAX_FORKS} forks"));
                    }
                }
                Ok(())
            }
        }
    }

    /// Returns the policy's filter. `network` is the fork schedule of the network that the sidecar was started for;
    /// `speaks_eth` says whether the registration has the protocol [`ETH`].
    pub(super) fn dial_filter(&self, network: Option<&Arc<ForkSchedule>>, speaks_eth: bool) -> DialFilter {
        match (self, network) {
            (Self::Unsaid, Some(schedule)) if speaks_eth => {
                DialFilter::Fork { schedule: Arc::clone(schedule), head: Head::default() }
            }
            (Self::Network { head, .. }, Some(schedule)) => {
                DialFilter::Fork { schedule: Arc::clone(schedule), head: *head }
            }
            // Without a network, the check refuses `Network` at registration, so this arm never sees it.
            (Self::Unsaid | Self::Any | Self::Network { .. }, _) => DialFilter::Any,
            (Self::Entry { key, accepted }, _) if accepted.is_empty() => {
                DialFilter::HasKey(key.as_bytes().to_vec())
            }
            (Self::Entry { key, accepted }, _) => {
                DialFilter::Values { key: key.as_bytes().to_vec(), accepted: accepted.clone() }
            }
            (Self::Fork(chain), _) => {
                DialFilter::Fork { schedule: Arc::new(chain.schedule()), head: chain.head }
            }
        }
    }

    /// Returns the chain that our record announces for the registration; `None` if it does not ask for that.
    pub(super) fn announced(&self, network: Option<&Arc<ForkSchedule>>) -> Option<(Arc<ForkSchedule>, Head)> {
        match self {
            Self::Network { head, announce: true } => Some((Arc::clone(network?), *head)),
            Self::Fork(chain) if chain.announce => Some((Arc::new(chain.schedule()), chain.head)),
            _ => None,
        }
    }
}
