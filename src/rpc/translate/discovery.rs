//! Nodes that discovery knows, and the protocols of discovery.

use super::{status::ErrorStatus, value::timestamp};
use crate::{
    kademlia::{self, Contact, Placement, Protocol},
    net::discovery::TableNode,
    node::{Enode, NodeRef},
    rpc::proto::{self, DiscoverySource},
};

fn source(table: Protocol) -> DiscoverySource {
    match table {
        Protocol::V4 => DiscoverySource::Discv4,
        Protocol::V5 => DiscoverySource::Discv5,
    }
}

/// Reads the discovery protocol that a request names; `None` if any will do. `field` is the field's path for an error.
pub(in crate::rpc) fn protocol(
    field: &str,
    wanted: DiscoverySource,
) -> Result<Option<Protocol>, ErrorStatus> {
    match wanted {
        DiscoverySource::Unspecified => Ok(None),
        DiscoverySource::Discv4 => Ok(Some(Protocol::V4)),
        DiscoverySource::Discv5 => Ok(Some(Protocol::V5)),
        _ => Err(ErrorStatus::field(field, "must be DISCOVERY_SOURCE_DISCV4 or DISCOVERY_SOURCE_DISCV5")),
    }
}

/// Translates a node. Its enode URL comes from its record, which is signed. Without a record that has an address, the
/// URL comes from the endpoint that discovery knows.
pub(in crate::rpc) fn node(contact: &Contact, sources: &[DiscoverySource]) -> proto::Node {
    let from_record = contact.record.clone().and_then(|record| NodeRef::Record(record).enode());
    let heard = || {
        let addr = std::net::SocketAddr::new(contact.endpoint.ip, contact.endpoint.tcp);
        (addr.port() != 0).then(|| Enode { udp: contact.endpoint.udp, ..Enode::at(contact.public_key, addr) })
    };
    proto::Node {
        node_id: contact.id.to_string(),
        public_key: contact.public_key.to_string(),
        enode: from_record.or_else(heard).map(|enode| enode.to_string()).unwrap_or_default(),
        enr: contact.record.as_ref().map(ToString::to_string).unwrap_or_default(),
        sources: sources.iter().map(|source| (*source).into()).collect(),
    }
}

/// Translates a node of a table, with its place in the table and how it came there.
pub(in crate::rpc) fn table_node(found: &TableNode) -> proto::TableNode {
    let entry = &found.entry;
    let came = match entry.source {
        kademlia::Source::Bootnode => "a bootnode".to_owned(),
        kademlia::Source::Database => "from the node database".to_owned(),
        kademlia::Source::Inbound => "contacted us and proved its endpoint".to_owned(),
        kademlia::Source::Relayed { by } => format!("relayed by {by}"),
    };
    let stands = match entry.placement {
        Placement::HadRoom => "its bucket had room".to_owned(),
        Placement::Waiting => "its bucket was full, so it waits for a place".to_owned(),
        Placement::Promoted { replaced } => format!("took the place of {replaced}, which was removed"),
    };
    let life =
        if entry.live { "answered its last check" } else { "has not answered a check at this endpoint" };
    let how = match entry.source {
        kademlia::Source::Bootnode => DiscoverySource::Bootnode,
        kademlia::Source::Database => DiscoverySource::Database,
        kademlia::Source::Inbound | kademlia::Source::Relayed { .. } => source(found.table),
    };
    proto::TableNode {
        node: Some(node(&entry.contact, &[how])),
        table: source(found.table).into(),
        bucket: u32::try_from(found.bucket).unwrap_or(u32::MAX),
        replacement: entry.placement == Placement::Waiting,
        live_checks: if entry.live { entry.checks } else { 0 },
        added_time: Some(timestamp(entry.added)),
        last_seen_time: entry.last_seen.map(timestamp),
        detail: format!("{came}; {stands}; {life}"),
    }
}

/// Translates why a node was removed from a table.
pub(in crate::rpc) fn removal(why: kademlia::Removal) -> proto::NodeRemoval {
    match why {
        kademlia::Removal::Dead => proto::NodeRemoval::Dead,
        kademlia::Removal::Unhelpful => proto::NodeRemoval::Unhelpful,
    }
}
