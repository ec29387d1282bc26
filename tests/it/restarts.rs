//! The facts about the network that a sidecar keeps over a restart.

use devp2pd::rpc::proto::{ConnectPeerRequest, PeerSource};

use crate::harness::{PATIENCE, Sidecar, spec};

/// The other node is in no table, in no list, and dials no node: only the database has it.
#[tokio::test]
async fn the_last_good_peers_are_dialed_after_a_restart() {
    let other = Sidecar::start_with(&["--nodial"]).await;
    let _theirs = other.application(spec("theirs", &[("echo", 1, 8)])).await;
    let flags = ["--nodiscover=false"];
    let before = Sidecar::start_with(&flags).await;
    let ours = before.application(spec("ours", &[("echo", 1, 8)])).await;
    let connect = ConnectPeerRequest { node: other.enode(), ..ConnectPeerRequest::default() };
    before.peers().connect_peer(connect).await.unwrap();
    before.connected(other.id()).await;
    let mut dir = before.stop().await;
    drop(ours);
    // A machine that is too busy for one handshake in time gets another start: the peer stays in the database.
    for _ in 0..5 {
        let after = Sidecar::start_in(dir, &flags).await;
        let _ours = after.application(spec("ours", &[("echo", 1, 8)])).await;
        if let Ok(peer) = tokio::time::timeout(PATIENCE / 3, after.connected(other.id())).await {
            assert_eq!(peer.source(), PeerSource::Database);
            return;
        }
        dir = after.stop().await;
    }
    panic!("the peer of the earlier run was not dialed");
}
