//! Why a request to a node was not made, or came to nothing.
//!
//! Both protocols refuse for the same reasons, and a caller wants to know what is to blame: the node that was named,
//! the request, or how busy we are. Left out: how a node is asked (the engines), and what a caller is told (`rpc`).

/// The most lookups of one protocol at a time. Each asks three nodes at a time; refresh and walk make at most four.
pub const MAX_LOOKUPS: usize = 64;

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Too many requests wait for this node, or for all.
    #[error("too many requests to this node, or to all nodes, wait for their answers")]
    QueueFull,
    /// As many lookups run as may.
    #[error("{MAX_LOOKUPS} lookups run already, which is the limit")]
    TooManyLookups,
    /// The node has no UDP endpoint.
    #[error("the node has no UDP endpoint")]
    NoEndpoint,
    /// The configured restriction of networks forbids the address, or our announced address cannot reach it.
    #[error("the node's address is outside the networks that may be contacted")]
    Address,
    /// The node is ourselves.
    #[error("the node is this one")]
    Myself,
    /// The request does not fit into a packet: its bytes, and the room for them.
    #[error("the request has {0} bytes; a packet has room for {1}")]
    TooLarge(usize, usize),
    /// No answer came in time.
    #[error("the node did not answer in time")]
    Timeout,
}

impl CallError {
    /// Whether the same request may be made later: neither the node nor the request is to blame.
    #[must_use]
    pub fn is_busy(self) -> bool {
        matches!(self, Self::QueueFull | Self::TooManyLookups)
    }
}
