//! Values of the other rooms as messages of the contract, and back.
//!
//! Left out: which call takes or returns what (`services`), and the rules of what a value means (the rooms that own it).

mod dial_filter;
pub(in crate::rpc) mod event;
pub(in crate::rpc) mod peer;
pub(in crate::rpc) mod registration;
pub(in crate::rpc) mod settings;
pub mod status;

use self::status::Refusal;
use crate::node::NodeRef;

/// A node of a request that may have to be dialed, in any of the four forms.
pub(super) fn dialable_node(field: &str, text: &str) -> Result<NodeRef, Refusal> {
    let node = node_ref(field, text)?;
    node.check_dialable().map_err(|error| Refusal::field(field, error))?;
    Ok(node)
}

/// A node of a request, in any of the four forms.
pub(super) fn node_ref(field: &str, text: &str) -> Result<NodeRef, Refusal> {
    if text.is_empty() {
        let problem = "is missing; a node id (64 hex digits), a public key (128), enode:// or enr:";
        return Err(Refusal::field(field, problem));
    }
    text.parse().map_err(|error| Refusal::field(field, error))
}
