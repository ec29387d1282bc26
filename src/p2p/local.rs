//! Who we are to every peer.

use super::{hello, outbox};
use crate::node::NodeKey;

/// Who we are, the same for all connections.
#[derive(Debug)]
pub struct LocalNode {
    /// Our static key.
    pub key: NodeKey,
    /// The name of our software in Hello.
    pub client: String,
    /// How many bytes may wait to be written to one peer ([`outbox::DEFAULT_LIMIT`]).
    pub outbound_limit: usize,
}

impl LocalNode {
    /// A node with the default bounds.
    #[must_use]
    pub fn new(key: NodeKey, client: &str) -> Self {
        Self { key, client: hello::cut(client).to_owned(), outbound_limit: outbox::DEFAULT_LIMIT }
    }
}
