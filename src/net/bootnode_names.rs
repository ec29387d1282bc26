//! Bootnodes whose address is a host name: looked up, and added to discovery when the name has an address.
//!
//! A name that has no address yet is asked for again, with a growing pause: in a cluster it may appear minutes after us.

use std::{net::IpAddr, time::Duration};

use super::{dialer, discovery::Discovery, running::Running};
use crate::{
    kademlia::{Contact, Protocol},
    node::{Enode, Host},
};

/// The pause before a name is asked for again, and the longest one. The resolver serves others too.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A bootnode with a host name, for one protocol.
#[derive(Clone, Debug)]
pub struct Named {
    /// The node.
    pub enode: Enode,
    /// The protocol that shall start there.
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
                    tracing::warn!(enode = %node.enode, "the host name of a bootnode has no address");
                    left.push(node);
                }
                Err(error) => {
                    tracing::warn!(enode = %node.enode, %error, "the host name of a bootnode has no address");
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

/// One address a node; IPv4 of two, as with records.
fn chosen(all: &[IpAddr]) -> Option<IpAddr> {
    all.iter().find(|ip| ip.is_ipv4()).or(all.first()).copied()
}

async fn found(discovery: &Discovery, node: Named, ip: IpAddr) {
    let enode = Enode { host: Host::Ip(ip), ..node.enode };
    if let Some(contact) = Contact::from_enode(&enode)
        && let Err(error) = discovery.add_bootnode(contact, Some(node.protocol)).await
    {
        tracing::warn!(%error, %enode, "a bootnode is not used");
    }
}
