//! Why the switch refuses a call.

use crate::{
    lease::LeaseError,
    node::NodeId,
    policy::dial::{AddError, RemoveError},
};

/// Why the switch refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// The sidecar is stopping.
    #[error("the sidecar is stopping")]
    Stopped,
    /// The lease refuses.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The peer is not connected.
    #[error("no session with node {node}; ListPeers lists the connected peers")]
    PeerNotConnected {
        /// The node that was named.
        node: NodeId,
    },
    /// The peer is connected but does not speak the protocol.
    #[error("node {node} is connected, but does not share {protocol}")]
    ProtocolNotShared {
        /// The peer.
        node: NodeId,
        /// The protocol that the caller named.
        protocol: String,
    },
    /// Another application uses the session too.
    #[error(
        "the session with node {node} is shared with {others} other application(s); ending it for all needs the admin \
         role, or end-shared-sessions in the configuration"
    )]
    SharedSession {
        /// The peer of the session.
        node: NodeId,
        /// The number of other applications.
        others: usize,
    },
    /// A list of peers refuses.
    #[error(transparent)]
    List(#[from] ListError),
}

/// Why a list was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The node was not added.
    #[error(transparent)]
    Add(#[from] AddError),
    /// The node was not removed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
}
