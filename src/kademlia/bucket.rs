//! A bucket: the nodes of one range of distances, and those that wait for a place among them.

use std::net::IpAddr;

use super::{
    entry::Entry,
    subnets::{MAX_PER_BUCKET, SubnetCounts},
};
use crate::node::NodeId;

/// The most nodes in a bucket (Kademlia's k; discv4.md, discv5-theory.md).
pub const BUCKET_SIZE: usize = 16;
/// The most nodes that wait for a place in a bucket, as geth.
pub const MAX_REPLACEMENTS: usize = 10;
/// The number of buckets: the shared one and one for each distance above it.
pub const BUCKETS: usize = 17;
/// The highest logarithmic distance of the shared first bucket. Nodes that close are rare: one in 2^16.
pub const SHARED_DISTANCE: u16 = 240;

/// The index of the bucket for a logarithmic distance.
#[must_use]
pub fn index_of(distance: u16) -> usize {
    usize::from(distance.clamp(SHARED_DISTANCE, 256) - SHARED_DISTANCE)
}

/// One bucket of the table.
#[derive(Debug)]
pub struct Bucket {
    entries: Vec<Entry>,
    replacements: Vec<Entry>,
    subnets: SubnetCounts,
}

impl Bucket {
    /// An empty bucket.
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), replacements: Vec::new(), subnets: SubnetCounts::default() }
    }

    /// The nodes in use, oldest first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The nodes that wait for a place, newest last.
    #[must_use]
    pub fn replacements(&self) -> &[Entry] {
        &self.replacements
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= BUCKET_SIZE
    }

    pub(super) fn has_subnet_room(&self, ip: IpAddr) -> bool {
        self.subnets.count(ip) < MAX_PER_BUCKET
    }

    /// The entry or replacement of `id`: at most 26 are looked at.
    pub(super) fn get_mut(&mut self, id: &NodeId) -> Option<&mut Entry> {
        self.entries.iter_mut().chain(&mut self.replacements).find(|entry| entry.contact.id == *id)
    }

    pub(super) fn push_entry(&mut self, entry: Entry) {
        debug_assert!(!self.is_full());
        self.subnets.add(entry.contact.endpoint.ip);
        self.entries.push(entry);
    }

    /// Lets `entry` wait. The one that waited longest makes room: it is the least likely to be there still.
    pub(super) fn push_replacement(&mut self, entry: Entry) -> Option<Entry> {
        self.subnets.add(entry.contact.endpoint.ip);
        self.replacements.push(entry);
        (self.replacements.len() > MAX_REPLACEMENTS).then(|| {
            let dropped = self.replacements.remove(0);
            self.subnets.remove(dropped.contact.endpoint.ip);
            dropped
        })
    }

    pub(super) fn remove_entry(&mut self, id: &NodeId) -> Option<Entry> {
        let index = self.entries.iter().position(|entry| entry.contact.id == *id)?;
        let entry = self.entries.remove(index);
        self.subnets.remove(entry.contact.endpoint.ip);
        Some(entry)
    }

    pub(super) fn remove_replacement(&mut self, id: &NodeId) -> Option<Entry> {
        let index = self.replacements.iter().position(|entry| entry.contact.id == *id)?;
        Some(self.take_replacement(index))
    }

    /// Takes the waiting node at `index`, which must be below the number of those that wait.
    pub(super) fn take_replacement(&mut self, index: usize) -> Entry {
        let entry = self.replacements.remove(index);
        self.subnets.remove(entry.contact.endpoint.ip);
        entry
    }

    pub(super) fn move_ip(&mut self, from: IpAddr, to: IpAddr) {
        self.subnets.remove(from);
        self.subnets.add(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_share_the_first_bucket() {
        for (distance, index) in [(0, 0), (1, 0), (239, 0), (240, 0), (241, 1), (255, 15), (256, 16)] {
            assert_eq!(index_of(distance), index, "{distance}");
            assert!(index < BUCKETS);
        }
    }
}
