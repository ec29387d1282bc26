//! Our answers to other nodes: the records that answer a FINDNODE, and how they are divided among packets.

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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        Now,
        kademlia::{Contact, Source},
        node::{NodeKey, RecordBuilder, record::MAX_RECORD_BYTES},
    };

    fn record(seed: u64, ip: IpAddr, size: usize) -> Record {
        let key = NodeKey::random(&mut StdRng::seed_from_u64(seed));
        let mut builder = RecordBuilder::new(1);
        builder.ip(ip).port("udp", 30303);
        let without = builder.sign(&key).unwrap().encoded().len();
        // The key takes two bytes and the value's header up to two.
        builder.set_bytes("x", &vec![7; size.saturating_sub(without + 5)]);
        builder.sign(&key).unwrap()
    }

    #[test]
    fn answers_are_divided_by_bytes_and_end_after_five_packets() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        for (count, size, packets) in
            [(0, 150, 1), (1, 150, 1), (6, 150, 1), (7, 150, 2), (16, 150, 3), (16, 300, 5)]
        {
            let records: Vec<Record> = (0..count).map(|seed| record(seed, ip, size)).collect();
            assert!(
                records.iter().all(|record| (size - 3..=MAX_RECORD_BYTES).contains(&record.encoded().len()))
            );
            let divided = divide(&records);
            assert_eq!(divided.len(), packets, "{count} of {size} bytes");
            let mut next = 0;
            for range in divided {
                assert_eq!(range.start, next);
                next = range.end;
                let bytes: usize = records[range].iter().map(|record| record.encoded().len()).sum();
                assert!(bytes <= MAX_NODES_BYTES);
            }
            assert_eq!(next, records.len().min(if size == 300 { 15 } else { 16 }));
        }
    }

    #[test]
    fn only_live_nodes_that_the_asker_can_reach_are_told_and_at_most_sixteen() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Now { mono: Instant::now(), unix: Duration::ZERO };
        let own = record(0, [9, 9, 9, 9].into(), 0);
        let mut table = Table::new(own.id(), &mut StdRng::seed_from_u64(1));
        for seed in 1..=60 {
            let ip = if seed % 2 == 0 { [127, 0, 0, 1] } else { [8, 8, seed, 8] };
            let contact = Contact::from_record(record(seed.into(), ip.into(), 0)).unwrap();
            let id = contact.id;
            table.insert(now, contact, Source::Inbound);
            table.insert(
                now,
                Contact::from_record(record(seed.into(), ip.into(), 0)).unwrap(),
                Source::Bootnode,
            );
            if seed % 3 != 0 {
                table.check_passed(now, &id, None);
            }
        }
        let (public, loopback) = (IpAddr::from([7, 7, 7, 7]), IpAddr::from([127, 0, 0, 1]));
        let told = find(&table, &own, public, 1..=256);
        assert!(!told.is_empty() && told.len() <= MAX_RECORDS);
        for record in &told {
            let entry = table.get(&record.id()).unwrap();
            assert!(entry.live && entry.contact.endpoint.ip != loopback);
        }
        assert_eq!(find(&table, &own, loopback, (1..=256).rev()).len(), MAX_RECORDS);
        assert_eq!(find(&table, &own, public, [0, 0, 257, u64::MAX]), [own]);
    }
}
