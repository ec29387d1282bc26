//! Who we are to every peer.

use super::hello;
use crate::node::NodeKey;

/// Who we are, the same for all connections.
#[derive(Debug)]
pub struct LocalNode {
    /// Our static key.
    pub key: NodeKey,
    /// The name of our software in Hello.
    pub client: String,
}

impl LocalNode {
    /// A node with this key and name; what is too long of the name is cut.
    #[must_use]
    pub fn new(key: NodeKey, client: &str) -> Self {
        Self { key, client: hello::cut(client).to_owned() }
    }
}
