//! Test zones: trees as a name server would serve them, good ones and bad ones.

use std::collections::HashMap;

use data_encoding::BASE64URL_NOPAD;
use rand::{SeedableRng, rngs::StdRng};

use super::{Link, entry::Hash};
use crate::node::{NodeKey, Record, RecordBuilder, id::keccak256};

/// The names of a zone, and the TXT record at each.
pub(crate) type Zone = HashMap<String, String>;

/// A tree that is being built.
pub(crate) struct Maker {
    pub(crate) key: NodeKey,
    pub(crate) domain: String,
    pub(crate) zone: Zone,
}

impl Maker {
    pub(crate) fn new(seed: u64, domain: &str) -> Self {
        Self { key: Link::test_key(seed), domain: domain.to_owned(), zone: Zone::new() }
    }

    pub(crate) fn link(&self) -> Link {
        Link { public_key: self.key.public(), domain: self.domain.as_str().into() }
    }

    /// Adds an entry at its name.
    pub(crate) fn entry(&mut self, text: String) -> Hash {
        let hash = Hash::of(&text);
        self.zone.insert(format!("{hash}.{}", self.domain), text);
        hash
    }

    pub(crate) fn branch(&mut self, children: &[Hash]) -> Hash {
        let children: Vec<String> = children.iter().map(Hash::to_string).collect();
        self.entry(format!("enrtree-branch:{}", children.join(",")))
    }

    /// Branches of at most 13 children over all of `entries`, as go-ethereum builds them.
    pub(crate) fn subtree(&mut self, mut entries: Vec<Hash>) -> Hash {
        while entries.len() > 13 {
            entries = entries.chunks(13).map(|children| self.branch(children)).collect();
        }
        self.branch(&entries)
    }

    pub(crate) fn root(&mut self, nodes: Hash, links: Hash, seq: u64) {
        let signed = format!("enrtree-root:v1 e={nodes} l={links} seq={seq}");
        let signature = self.key.sign_recoverable(&keccak256(&[signed.as_bytes()]));
        let text = format!("{signed} sig={}", BASE64URL_NOPAD.encode(&signature));
        self.zone.insert(self.domain.clone(), text);
    }

    /// A whole tree.
    pub(crate) fn tree(mut self, seq: u64, records: &[Record], links: &[Link]) -> Zone {
        let nodes = records.iter().map(|record| self.entry(record.to_string())).collect();
        let links = links.iter().map(|link| self.entry(link.to_string())).collect();
        let (nodes, links) = (self.subtree(nodes), self.subtree(links));
        self.root(nodes, links, seq);
        self.zone
    }
}

/// Records at 1.0.0.0 and the addresses after it.
pub(crate) fn records(range: std::ops::Range<u32>) -> Vec<Record> {
    range.map(|number| record_at(number, std::net::Ipv4Addr::from(0x0100_0000 + number).into())).collect()
}

pub(crate) fn record_at(seed: u32, ip: std::net::IpAddr) -> Record {
    let key = NodeKey::random(&mut StdRng::seed_from_u64(u64::from(seed)));
    RecordBuilder::new(1).ip(ip).port("tcp", 30303).port("udp", 30303).sign(&key).unwrap()
}
