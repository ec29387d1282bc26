//! Why the switch refuses a call.

use crate::{
    lease::LeaseError,
    node::NodeId,
    policy::dial::{AddError, RemoveError},
};

/// Why the switch refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// The process is ending.
    #[error("the sidecar is stopping")]
    Stopped,
    /// The lease says no.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The peer is not connected.
    #[error("no session with node {node}; ListPeers shows who is connected")]
    PeerNotConnected {
        /// Who.
        node: NodeId,
    },
    /// The peer is connected but does not speak the protocol.
    #[error("node {node} is connected and does not share {protocol}")]
    ProtocolNotShared {
        /// Who.
        node: NodeId,
        /// What was asked for.
        protocol: String,
    },
    /// Another application uses the session too.
    #[error(
        "other applications use the session with node {node} too, {others} of them; ending it for all needs the admin \
         role, or end-shared-sessions in the configuration"
    )]
    SharedSession {
        /// Whose session.
        node: NodeId,
        /// How many others.
        others: usize,
    },
    /// A list of peers says no.
    #[error(transparent)]
    List(#[from] ListError),
}

/// Why a list was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Not added.
    #[error(transparent)]
    Add(#[from] AddError),
    /// Not removed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
}
