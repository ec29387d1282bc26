//! Bootnodes whose address is a host name. The name is looked up, and the bootnode is added to discovery when the name
//! has an address.
//!
//! A name that has no address yet is looked up again, with a growing pause: in a cluster the name may appear minutes
//! after the start of the sidecar.

use std::{net::IpAddr, time::Duration};

use super::{dialer, discovery::Discovery, running::Running};
use crate::{
    kademlia::{Contact, Protocol},
    node::{Enode, Host},
};

/// The first and the longest pause before a name is looked up again. The pauses grow, as other programs use the
/// resolver, too.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A bootnode with a host name, for one protocol.
#[derive(Clone, Debug)]
pub struct Named {
    /// The node.
    pub enode: Enode,
    /// The protocol for which the node is a bootnode.
    pub protocol: Protocol,
}

/// Starts to look up the names of bootnodes and to add those that have an address.
pub fn start(nodes: Vec<Named>, discovery: Discovery) -> Running {
    Running::start_without_end("the names of bootnodes", add(nodes, discovery))
}

async fn add(mut nodes: Vec<Named>, discovery: Discovery) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut left = Vec::new();
        for node in nodes {
            let Host::Name(name) = &node.enode.host else { continue };
            match dialer::lookup(name).await.as_deref().map(chosen) {
                Ok(Some(ip)) => found(&discovery, node, ip).await,
                Ok(None) => {
                    tracing::warn!(
                        enode = %node.enode,
                        "the host name of a bootnode has no address; the sidecar looks it up again"
                    );
                    left.push(node);
                }
                Err(error) => {
                    tracing::warn!(
                        enode = %node.enode,
                        %error,
                        "cannot look up the host name of a bootnode; the sidecar looks it up again"
                    );
                    left.push(node);
                }
            }
        }
        if left.is_empty() {
            return;
        }
        nodes = left;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Returns the address of a node: the first IPv4 address, or else the first address. Records are read in the same way.
fn chosen(all: &[IpAddr]) -> Option<IpAddr> {
    all.iter().find(|ip| ip.is_ipv4()).or(all.first()).copied()
}

async fn found(discovery: &Discovery, node: Named, ip: IpAddr) {
    let enode = Enode { host: Host::Ip(ip), ..node.enode };
    if let Some(contact) = Contact::from_enode(&enode)
        && let Err(error) = discovery.add_bootnode(contact, Some(node.protocol)).await
    {
        tracing::warn!(%error, %enode, "discovery did not take a bootnode, so the bootnode is not used");
    }
}
