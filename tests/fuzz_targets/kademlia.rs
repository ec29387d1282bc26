//! The table of both discovery protocols, under any sequence of operations of its owner.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use devp2pd::Now;
use devp2pd::kademlia::bucket::{BUCKET_SIZE, MAX_REPLACEMENTS, index_of};
use devp2pd::kademlia::distance::{closer, log_distance};
use devp2pd::kademlia::subnets::{MAX_PER_BUCKET, MAX_PER_TABLE};
use devp2pd::kademlia::{Contact, Event, Source, Table};
use devp2pd::node::{Endpoint, NodeId, NodeKey, PublicKey};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Enough nodes to fill the two farthest buckets and their lists of replacements.
static KEYS: LazyLock<Vec<PublicKey>> = LazyLock::new(|| {
    let mut rng = StdRng::seed_from_u64(1);
    (0..128).map(|_| NodeKey::random(&mut rng).public()).collect()
});

const US: NodeId = NodeId([0x42; 32]);

/// Each operation takes three bytes: the operation, the node, and a number. After each operation the table keeps its
/// invariants, and its events agree with its content.
pub fn kademlia_table(data: &[u8]) {
    let mut scene = Scene::new();
    for operation in data.chunks_exact(3) {
        scene.step(operation[0], usize::from(operation[1]) % KEYS.len(), operation[2]);
    }
}

struct Scene {
    table: Table,
    now: Now,
    /// The nodes in use, according to the table's events.
    told: HashSet<NodeId>,
}

impl Scene {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) };
        let table = Table::new(US, &mut StdRng::seed_from_u64(2));
        Self { table, now, told: HashSet::new() }
    }

    fn step(&mut self, operation: u8, who: usize, number: u8) {
        let (now, id) = (self.now, KEYS[who].id());
        let mut may_leave = HashSet::from([id]);
        match operation % 8 {
            0 => self.insert(who, number, Source::Inbound),
            1 => self.insert(who, number, Source::Relayed { by: KEYS[0].id() }),
            2 => self.insert(who, number, Source::Bootnode),
            3 => may_leave = self.pass(number),
            4 => self.table.request_ended(now, &id, number.is_multiple_of(2)),
            6 => self.table.set_private(number.is_multiple_of(2)),
            _ => self.table.take_inbound(),
        }
        let inserting = operation % 8 < 3;
        while let Some(event) = self.table.poll_event() {
            match event {
                Event::Added(contact) => assert!(self.told.insert(contact.id), "added twice"),
                Event::Live(contact) | Event::Updated(contact) => assert!(self.told.contains(&contact.id)),
                Event::Removed(contact, _) => {
                    assert!(self.told.remove(&contact.id), "removed without having been added");
                    assert!(!inserting && may_leave.contains(&contact.id), "a node was displaced");
                }
            }
        }
        self.check(&id);
    }

    /// Offers a node at one of a few addresses, so that some share a /24.
    fn insert(&mut self, who: usize, number: u8, source: Source) {
        let ip = Ipv4Addr::new(203, number % 3, number / 64, u8::try_from(who).unwrap_or(0));
        let endpoint = Endpoint { ip: ip.into(), udp: 30303, tcp: 30303 };
        self.table.insert(self.now, Contact::new(KEYS[who], endpoint), source);
    }

    /// Lets time pass. The bits of `number` choose which of the checked nodes answer. Returns the checked nodes.
    fn pass(&mut self, number: u8) -> HashSet<NodeId> {
        let mut checked = HashSet::new();
        self.now = self.now.after(Duration::from_secs(u64::from(number)));
        for round in 0.. {
            let Some(contact) = self.table.poll_check(self.now) else { break };
            assert!(round < 64, "checks without end at one moment");
            checked.insert(contact.id);
            match (number >> (round % 8)) & 1 {
                0 => self.table.check_failed(self.now, &contact.id),
                _ if round % 5 == 4 => self.table.check_skipped(&contact.id),
                _ => drop(self.table.check_passed(self.now, &contact.id, Some(u64::from(number)))),
            }
        }
        let next = self.table.poll_timeout();
        assert!(next.is_none_or(|next| next > self.now.mono), "a timer without progress");
        checked
    }

    fn check(&self, target: &NodeId) {
        let mut seen = HashSet::new();
        let mut in_table: HashMap<IpAddr, usize> = HashMap::new();
        for (index, bucket) in self.table.buckets().iter().enumerate() {
            assert!(bucket.entries().len() <= BUCKET_SIZE && bucket.replacements().len() <= MAX_REPLACEMENTS);
            let mut in_bucket: HashMap<IpAddr, usize> = HashMap::new();
            for entry in bucket.entries().iter().chain(bucket.replacements()) {
                let id = &entry.contact.id;
                assert!(seen.insert(*id) && *id != US, "a node twice, or ourselves");
                assert_eq!(index_of(log_distance(&US, id)), index, "in the wrong bucket");
                let IpAddr::V4(ip) = entry.contact.endpoint.ip else { continue };
                let [a, b, c, _] = ip.octets();
                let subnet = IpAddr::from([a, b, c, 0]);
                *in_bucket.entry(subnet).or_default() += 1;
                *in_table.entry(subnet).or_default() += 1;
            }
            assert!(in_bucket.values().all(|count| *count <= MAX_PER_BUCKET), "{in_bucket:?}");
        }
        assert!(in_table.values().all(|count| *count <= MAX_PER_TABLE), "{in_table:?}");

        let in_use = self.table.buckets().iter().flat_map(|bucket| bucket.entries());
        let mut nearest: Vec<NodeId> = in_use.map(|entry| entry.contact.id).collect();
        assert_eq!(nearest.iter().copied().collect::<HashSet<_>>(), self.told);
        assert_eq!(self.table.len(), seen.len());
        nearest.sort_by(|a, b| closer(target, a, b));
        nearest.truncate(16);
        let found: Vec<NodeId> =
            self.table.closest(target, 16, |_| true).iter().map(|contact| contact.id).collect();
        assert_eq!(found, nearest, "not the closest, or not in order");
    }
}
