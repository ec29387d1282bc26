//! Peers of earlier runs as candidates for the dialer.
//!
//! Each is offered once, when the dialer has room for it. They come before other nodes are searched for, because a
//! search takes seconds. The dialer still leaves half of the slots to other sources.

use tokio::sync::{mpsc, watch};

use super::{NodeDb, StoredPeer};
use crate::{
    net::running::Running,
    policy::dial::{Candidate, Source},
};

/// The most peers that are offered: more than there are dialed slots, because some peers do not exist any more.
const PEERS: usize = 64;

/// Starts to offer the peers of `database`. `demand` is the number of candidates that the dialer has room for.
pub fn offer(
    database: NodeDb,
    mut demand: watch::Receiver<usize>,
    candidates: mpsc::Sender<Candidate>,
) -> Running {
    Running::start_without_end("the peers of earlier runs", async move {
        if demand.wait_for(|wanted| *wanted > 0).await.is_err() {
            return;
        }
        for StoredPeer { public_key, addr, record, served, .. } in database.peers(PEERS).await {
            if demand.wait_for(|wanted| *wanted > 0).await.is_err() {
                return;
            }
            let candidate = Candidate { public_key, addr, record, source: Source::Database, served };
            if candidates.send(candidate).await.is_err() {
                return;
            }
        }
    })
}
