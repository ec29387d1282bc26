//! What we tell others: the records that answer a FINDNODE, and how they are divided among packets.

use std::{net::IpAddr, ops::Range};

use super::message::MAX_NODES_BYTES;
use crate::{
    kademlia::Table,
    node::{Record, endpoint::may_relay},
};

/// The most records in one answer, over all distances (the specification's recommendation).
pub const MAX_RECORDS: usize = 16;
/// The most NODES packets in one answer, and the most that we take as one: geth takes no more.
pub const MAX_PACKETS: usize = 5;
/// The greatest logarithmic distance.
const MAX_DISTANCE: u64 = 256;

/// The records at `distances` from us that may be told to somebody at `asker`: nodes that passed a liveness check
/// at an address that the relay rule lets us tell there. Our own `own` record is at distance 0.
#[must_use]
pub fn find(
    table: &Table,
    own: &Record,
    asker: IpAddr,
    distances: impl IntoIterator<Item = u64>,
) -> Vec<Record> {
    let mut seen = [false; MAX_DISTANCE as usize + 1];
    let mut records = Vec::new();
    for distance in distances {
        let index = usize::try_from(distance).unwrap_or(usize::MAX);
        // Beyond 256, or asked for twice.
        let Some(seen) = seen.get_mut(index).filter(|seen| !**seen) else { continue };
        *seen = true;
        if distance == 0 {
            records.push(own.clone());
        } else {
            let entries = table.at_distance(u16::try_from(distance).unwrap_or(u16::MAX));
            let tellable = entries.filter(|entry| entry.live && may_relay(asker, entry.contact.endpoint.ip));
            records.extend(tellable.filter_map(|entry| entry.contact.record.clone()));
        }
        if records.len() >= MAX_RECORDS {
            break;
        }
    }
    records.truncate(MAX_RECORDS);
    records
}

/// Divides records among packets of at most 1,000 bytes of records each. There is always one packet, an empty one if
/// need be, and never more than [`MAX_PACKETS`]: what would stand in a sixth is not told.
#[must_use]
pub fn divide(records: &[Record]) -> Vec<Range<usize>> {
    let mut packets: Vec<Range<usize>> = Vec::with_capacity(MAX_PACKETS);
    let (mut start, mut bytes) = (0, 0);
    for (index, record) in records.iter().enumerate() {
        let size = record.encoded().len();
        if bytes + size > MAX_NODES_BYTES {
            packets.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    packets.push(start..records.len());
    packets.truncate(MAX_PACKETS);
    packets
}
