//! Our own key and name, which every connection shows to its peer.

use super::hello;
use crate::node::NodeKey;

/// Our own key and name, the same for all connections.
#[derive(Debug)]
pub struct LocalNode {
    /// Our static key.
    pub key: NodeKey,
    /// The name of our software in Hello.
    pub client: String,
}

impl LocalNode {
    /// A node with this key and name. The name is cut to [`MAX_CLIENT`](super::hello::MAX_CLIENT) bytes.
    #[must_use]
    pub fn new(key: NodeKey, client: &str) -> Self {
        Self { key, client: hello::cut(client).to_owned() }
    }
}
