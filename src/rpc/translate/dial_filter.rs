//! The dial filter of a registration, read from the contract and written to it.
//!
//! Left out: which filters are valid (the lease), and which nodes pass a filter (`policy`).

use std::sync::Arc;

use super::status::ErrorStatus;
use crate::{
    lease::{Chain, Wanted},
    node::Head,
    rpc::proto::{self, dial_filter::Filter},
};

/// Reads which nodes an application wants dialed.
pub(super) fn wanted(filter: Option<proto::DialFilter>) -> Result<Wanted, ErrorStatus> {
    let Some(filter) = filter else { return Ok(Wanted::Unsaid) };
    match filter.filter {
        None => Err(ErrorStatus::field("spec.dial_filter", "is empty; set any_node, record_entry or fork")),
        Some(Filter::AnyNode(_)) => Ok(Wanted::Any),
        Some(Filter::RecordEntry(proto::RecordEntryFilter { key, accepted_values })) => {
            Ok(Wanted::Entry { key, accepted: accepted_values.into_iter().map(Into::into).collect() })
        }
        Some(Filter::Fork(fork)) if fork.genesis_hash.is_empty() => {
            if fork.genesis_time != 0 || !fork.fork_heights.is_empty() || !fork.fork_times.is_empty() {
                let problem = "is missing. Set its 32 bytes together with genesis_time and the forks, or set none of \
                               them for the network that the sidecar was started for";
                return Err(ErrorStatus::field("spec.dial_filter.fork.genesis_hash", problem));
            }
            let head = Head { height: fork.head_height, time: fork.head_time };
            Ok(Wanted::Network { head, announce: fork.announce })
        }
        Some(Filter::Fork(fork)) => {
            let genesis_hash = <[u8; 32]>::try_from(&fork.genesis_hash[..]).map_err(|_| {
                let problem = format!("must have 32 bytes, not {}", fork.genesis_hash.len());
                ErrorStatus::field("spec.dial_filter.fork.genesis_hash", problem)
            })?;
            Ok(Wanted::Fork(Arc::new(Chain {
                genesis_hash,
                genesis_time: fork.genesis_time,
                fork_heights: fork.fork_heights,
                fork_times: fork.fork_times,
                head: Head { height: fork.head_height, time: fork.head_time },
                announce: fork.announce,
            })))
        }
    }
}

/// Writes the dial filter as a message of the contract; `None` if the registration has none.
pub(super) fn view(wanted: &Wanted) -> Option<proto::DialFilter> {
    let filter = match wanted {
        Wanted::Unsaid => return None,
        Wanted::Any => Filter::AnyNode(proto::AnyNode {}),
        Wanted::Entry { key, accepted } => Filter::RecordEntry(proto::RecordEntryFilter {
            key: key.clone(),
            accepted_values: accepted.iter().map(|value| value.clone().into()).collect(),
        }),
        Wanted::Network { head, announce } => Filter::Fork(proto::ForkFilter {
            head_height: head.height,
            head_time: head.time,
            announce: *announce,
            ..proto::ForkFilter::default()
        }),
        Wanted::Fork(chain) => Filter::Fork(proto::ForkFilter {
            genesis_hash: chain.genesis_hash.to_vec().into(),
            genesis_time: chain.genesis_time,
            fork_heights: chain.fork_heights.clone(),
            fork_times: chain.fork_times.clone(),
            head_height: chain.head.height,
            head_time: chain.head.time,
            announce: chain.announce,
        }),
    };
    Some(proto::DialFilter { filter: Some(filter) })
}
