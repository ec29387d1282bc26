//! Values that unit tests of this room share.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::session::{Session, SessionChannel};
use crate::{
    node::{Enode, NodeKey, RegistrationId},
    p2p::{self, ChannelIndex, Outbound, RemoteHello, session::ConnectionId},
};

/// The key of node `n`.
pub(super) fn key(n: u8) -> NodeKey {
    let mut scalar = [1; 32];
    scalar[31] = n;
    NodeKey::from_bytes(&scalar).unwrap()
}

/// A session with node `n`, which we dialed and which shares `echo/1`.
pub(super) fn session(n: u8, connection: u64) -> Arc<Session> {
    let public_key = key(n).public();
    let remote: SocketAddr = ([192, 0, 2, n], 30303).into();
    let hello = RemoteHello {
        version: 5,
        client: "far".into(),
        capabilities: vec![p2p::Capability { name: "echo".into(), version: 1 }],
        listen_port: 0,
    };
    let channel = SessionChannel {
        index: ChannelIndex(0),
        name: "echo".into(),
        version: 1,
        offset: 16,
        message_count: 2,
        max_message: 1 << 20,
        owner: RegistrationId::parse("0000000000000001").unwrap(),
    };
    Arc::new(Session {
        id: ConnectionId(connection),
        public_key,
        node_id: public_key.id(),
        enode: Enode::at(public_key, remote),
        record: None,
        remote,
        local: remote,
        inbound: false,
        dialed_as: None,
        was_static: false,
        was_trusted: false,
        hello: Arc::new(hello),
        channels: vec![channel],
        since: Duration::ZERO,
        outbound: Outbound::alone(),
        traffic: Arc::default(),
    })
}
