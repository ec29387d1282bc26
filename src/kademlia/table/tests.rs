//! Tables of offers, checks and moves, and the resulting node tables.

use std::time::Duration;

use super::*;
use crate::{
    kademlia::{
        bucket::MAX_REPLACEMENTS,
        revalidation::{FAST_INTERVAL, SLOW_INTERVAL},
        subnets::MAX_PER_BUCKET,
    },
    node::{Endpoint, NodeKey, RecordBuilder},
};

const OWN: NodeId = NodeId([0; 32]);

fn start() -> Now {
    #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
    Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) }
}

fn table() -> Table {
    let mut table = Table::new(OWN, &mut StdRng::seed_from_u64(7));
    table.take_inbound();
    table
}

fn key() -> NodeKey {
    NodeKey::random(&mut StdRng::seed_from_u64(1))
}

/// A node at logarithmic distance `distance` from [`OWN`]; `n` distinguishes nodes of one distance. The id is made up:
/// the table does not check that it is a hash.
fn contact(distance: u16, n: u8, ip: &str) -> Contact {
    let mut id = OWN;
    let bit = usize::from(distance - 1);
    id.0[31 - bit / 8] = 1 << (bit % 8);
    id.0[31] ^= n;
    let endpoint = Endpoint { ip: ip.parse().unwrap(), udp: 30303, tcp: 30303 };
    Contact { id, public_key: key().public(), endpoint, record: None }
}

/// A node with an address of its own.
fn spread(distance: u16, n: u8) -> Contact {
    contact(distance, n, &format!("{}.{n}.0.1", distance - 200))
}

fn add(table: &mut Table, contact: &Contact) -> Insert {
    table.insert(start(), contact.clone(), Source::Bootnode)
}

fn events(table: &mut Table) -> Vec<Event> {
    std::iter::from_fn(|| table.poll_event()).collect()
}

#[test]
fn offers_and_what_becomes_of_them() {
    let mut table = table();
    let own = Contact { id: OWN, ..spread(250, 1) };
    assert_eq!(add(&mut table, &own), Insert::Refused(Refusal::Myself));
    let mut no_port = spread(250, 1);
    no_port.endpoint.udp = 0;
    assert_eq!(add(&mut table, &no_port), Insert::Refused(Refusal::Address));
    for ip in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "192.0.2.1"] {
        assert_eq!(add(&mut table, &contact(250, 1, ip)), Insert::Refused(Refusal::Address), "{ip}");
    }
    assert!(table.is_empty());
    assert_eq!(add(&mut table, &spread(250, 1)), Insert::Added);
    assert_eq!(add(&mut table, &spread(250, 1)), Insert::Known);
    assert_eq!(events(&mut table), [Event::Added(spread(250, 1))]);
}

#[test]
fn inbound_nodes_wait_for_the_first_refresh() {
    let mut table = Table::new(OWN, &mut StdRng::seed_from_u64(7));
    let refused = Insert::Refused(Refusal::BeforeRefresh);
    assert_eq!(table.insert(start(), spread(250, 1), Source::Inbound), refused);
    assert_eq!(table.insert(start(), spread(250, 2), Source::Database), Insert::Added);
    table.take_inbound();
    assert_eq!(table.insert(start(), spread(250, 1), Source::Inbound), Insert::Added);
}

#[test]
fn a_full_bucket_displaces_nobody() {
    let mut table = table();
    for n in 0..16 {
        assert_eq!(add(&mut table, &spread(256, n)), Insert::Added);
    }
    for n in 16..16 + 12 {
        assert_eq!(add(&mut table, &spread(256, n)), Insert::Waiting);
    }
    let bucket = table.buckets().last().unwrap();
    assert_eq!(bucket.entries().len(), BUCKET_SIZE);
    assert_eq!(bucket.replacements().len(), MAX_REPLACEMENTS);
    assert_eq!(table.len(), 26);
    assert!(table.get(&spread(256, 16).id).is_none(), "the longest waiting ones went");
    assert_eq!(table.get(&spread(256, 18).id).unwrap().placement, Placement::Waiting);
    assert_eq!(table.get(&spread(256, 0).id).unwrap().placement, Placement::HadRoom);
    // A waiting node that is offered again keeps its place in the queue.
    assert_eq!(add(&mut table, &spread(256, 18)), Insert::Known);
}

#[test]
fn a_dead_node_is_replaced_by_a_waiting_one() {
    let mut table = table();
    for n in 0..20 {
        add(&mut table, &spread(256, n));
    }
    events(&mut table);
    let dead = spread(256, 3);
    table.check_failed(start(), &dead.id);
    let events = events(&mut table);
    let [Event::Removed(removed, Removal::Dead), Event::Added(promoted)] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!(*removed, dead);
    let entry = table.get(&promoted.id).unwrap();
    assert_eq!(entry.placement, Placement::Promoted { replaced: dead.id });
    assert!(!entry.live);
    assert_eq!(table.revalidation.pace(&promoted.id), Some(Pace::Fast));
    assert_eq!(table.len(), 19);
}

#[test]
fn checks_are_counted_and_divided() {
    let mut table = table();
    let node = spread(256, 1);
    add(&mut table, &node);
    events(&mut table);
    assert_eq!(table.revalidation.pace(&node.id), Some(Pace::Fast));
    for checks in 1..=9 {
        let passed = table.check_passed(start(), &node.id, None).unwrap();
        assert_eq!(passed, Passed { checks, wants_record: false });
    }
    assert_eq!(events(&mut table), [Event::Live(node.clone())], "live once");
    assert_eq!(table.revalidation.pace(&node.id), Some(Pace::Slow));
    for checks in [3, 1] {
        table.check_failed(start(), &node.id);
        let entry = table.get(&node.id).unwrap();
        assert_eq!((entry.checks, entry.live), (checks, true));
        assert_eq!(table.revalidation.pace(&node.id), Some(Pace::Fast));
    }
    table.check_failed(start(), &node.id);
    assert_eq!(events(&mut table), [Event::Removed(node.clone(), Removal::Dead)]);
    assert_eq!(table.poll_timeout(), None, "no node is left to check");
    assert_eq!(table.check_passed(start(), &node.id, None), None);
}

#[test]
fn a_higher_sequence_number_asks_for_the_record() {
    let mut table = table();
    let record = |seq: u64, ip: &str| {
        let mut builder = RecordBuilder::new(seq);
        builder.ip(ip.parse().unwrap()).port("udp", 30303);
        Contact::from_record(builder.sign(&key()).unwrap()).unwrap()
    };
    let node = record(5, "1.2.3.4");
    add(&mut table, &node);
    for (seq, wants) in [(None, false), (Some(4), false), (Some(5), false), (Some(6), true)] {
        assert_eq!(table.check_passed(start(), &node.id, seq).unwrap().wants_record, wants, "{seq:?}");
    }
    // The newer record moves the node: it must prove itself again.
    assert_eq!(add(&mut table, &record(4, "9.9.9.9")), Insert::Known);
    assert!(table.get(&node.id).unwrap().live);
    assert_eq!(add(&mut table, &record(6, "5.6.7.8")), Insert::Updated);
    let entry = table.get(&node.id).unwrap();
    assert_eq!((entry.contact.seq(), entry.live, entry.checks), (6, false, 4));
    assert_eq!(table.revalidation.pace(&node.id), Some(Pace::Fast));
}

#[test]
fn hearsay_does_not_move_a_node() {
    let mut table = table();
    let node = spread(256, 1);
    add(&mut table, &node);
    table.check_passed(start(), &node.id, None);
    let elsewhere = contact(256, 1, "6.6.6.6");
    assert_eq!(table.insert(start(), elsewhere.clone(), Source::Relayed { by: OWN }), Insert::Known);
    assert_eq!(table.get(&node.id).unwrap().contact, node);
    assert_eq!(table.insert(start(), elsewhere.clone(), Source::Inbound), Insert::Updated);
    let entry = table.get(&node.id).unwrap();
    assert_eq!((entry.contact.endpoint, entry.live), (elsewhere.endpoint, false));
    // A new TCP port alone shows nothing about liveness.
    table.check_passed(start(), &node.id, None);
    let mut tcp = elsewhere;
    tcp.endpoint.tcp = 1;
    assert_eq!(table.insert(start(), tcp, Source::Inbound), Insert::Updated);
    assert!(table.get(&node.id).unwrap().live);
}

#[test]
fn subnets_have_their_share_and_no_more() {
    let (in_bucket, in_table) = (Refusal::SubnetInBucket, Refusal::SubnetInTable);
    // addresses of one subnet, whether we are private, what stops them
    type Case = (fn(u8) -> String, bool, Option<Refusal>);
    let cases: &[Case] = &[
        (|n| format!("9.9.9.{n}"), false, Some(in_bucket)),
        (|n| format!("9.9.9.{n}"), true, Some(in_bucket)),
        (|n| format!("2a00:1:2:{n}::1"), false, Some(in_bucket)),
        (|n| format!("10.0.0.{n}"), false, Some(in_bucket)),
        (|n| format!("10.0.0.{n}"), true, None),
        (|n| format!("127.0.0.{n}"), false, None),
    ];
    for (ip, private, refusal) in cases {
        let mut table = table();
        table.set_private(*private);
        let results: Vec<_> = (0..4).map(|n| add(&mut table, &contact(256, n, &ip(n)))).collect();
        let expected = refusal.map_or(Insert::Added, Insert::Refused);
        assert_eq!(results, [Insert::Added, Insert::Added, expected, expected], "{}", ip(0));
        for distance in 245..256 {
            for n in 0..2 {
                add(&mut table, &contact(distance, n, &ip(n)));
            }
        }
        let last = add(&mut table, &contact(244, 0, &ip(0)));
        assert_eq!(last, refusal.map_or(Insert::Added, |_| Insert::Refused(in_table)), "{}", ip(0));
        if refusal.is_some() {
            assert_eq!(table.len(), MAX_PER_TABLE);
        }
    }
}

#[test]
fn waiting_nodes_count_and_removed_ones_do_not() {
    let mut table = table();
    for n in 0..16 {
        add(&mut table, &spread(256, n));
    }
    let near: Vec<_> = (20..24).map(|n| contact(256, n, &format!("9.9.9.{n}"))).collect();
    let offers: Vec<_> = near.iter().map(|node| add(&mut table, node)).collect();
    let refused = Insert::Refused(Refusal::SubnetInBucket);
    assert_eq!(offers, [Insert::Waiting, Insert::Waiting, refused, refused]);
    table.remove_for(start(), &near[0].id, Removal::Dead);
    assert_eq!(add(&mut table, &near[2]), Insert::Waiting);
    // Moving into a full subnet is refused and leaves the node where it was.
    let mover = spread(256, 1);
    let moved = contact(256, 1, "9.9.9.99");
    assert_eq!(table.insert(start(), moved, Source::Inbound), refused);
    assert_eq!(table.get(&mover.id).unwrap().contact, mover);
    let ids: Vec<_> = table.index.keys().copied().collect();
    for id in ids {
        table.remove_for(start(), &id, Removal::Dead);
    }
    assert!(table.is_empty());
    assert_eq!(format!("{:?}", table.subnets), "SubnetCounts({})");
    assert_eq!(MAX_PER_BUCKET, 2);
}

#[test]
fn one_check_per_tick_and_list_at_the_right_pace() {
    let mut table = table();
    for n in 0..8 {
        add(&mut table, &spread(256, n));
    }
    // Half of them proven.
    for n in 0..4 {
        table.check_passed(start(), &spread(256, n).id, None);
    }
    let mut now = start();
    let end = now.mono + Duration::from_secs(9_000);
    let mut checks = [0_u32; 8];
    while let Some(at) = table.poll_timeout().filter(|at| *at < end) {
        now = now.after(at - now.mono);
        while let Some(node) = table.poll_check(now) {
            let n = usize::from(node.id.0[31]);
            checks[n] += 1;
            // Keep both lists as they are.
            let id = node.id;
            let pace = if n < 4 { Pace::Slow } else { Pace::Fast };
            table.in_use_mut(&id).unwrap().checking = false;
            table.revalidation.put(id, pace, now.mono, &mut StdRng::seed_from_u64(1));
        }
    }
    let (slow, fast) = (checks[..4].iter().sum::<u32>(), checks[4..].iter().sum::<u32>());
    // Uniform waits: on average half of the interval, so 9,000 s give about 2,000 and 6,000 checks.
    assert!((1_800..2_200).contains(&slow), "{slow} checks at {SLOW_INTERVAL:?}");
    assert!((5_600..6_400).contains(&fast), "{fast} checks at {FAST_INTERVAL:?}");
    assert!(checks.iter().all(|count| *count > 300), "each has its turn: {checks:?}");
}

#[test]
fn a_node_is_not_checked_twice_at_a_time() {
    let mut table = table();
    let node = spread(256, 1);
    add(&mut table, &node);
    let mut now = start();
    let mut checks = 0;
    for _ in 0..100 {
        now = now.after(FAST_INTERVAL);
        checks += usize::from(table.poll_check(now).is_some());
    }
    assert_eq!(checks, 1);
    table.check_passed(now, &node.id, None);
    assert!(table.poll_check(now.after(SLOW_INTERVAL)).is_some());
}

#[test]
fn unhelpful_nodes_go_unless_the_bucket_is_nearly_empty() {
    for (nodes, stays) in [(3, true), (4, false)] {
        let mut table = table();
        for n in 0..nodes {
            add(&mut table, &spread(256, n));
        }
        let node = spread(256, 0);
        for answered in [false, false, false, false, true, false, false, false, false] {
            table.request_ended(start(), &node.id, answered);
        }
        assert!(table.get(&node.id).is_some(), "never five in a row");
        events(&mut table);
        table.request_ended(start(), &node.id, false);
        assert_eq!(table.get(&node.id).is_some(), stays);
        let removed = events(&mut table).contains(&Event::Removed(node, Removal::Unhelpful));
        assert_eq!(removed, !stays);
    }
}

#[test]
fn nodes_are_found_by_distance() {
    let mut table = table();
    for (distance, n) in [(256, 1), (250, 2), (240, 3), (239, 4), (200, 5)] {
        // The shared bucket holds 239 and 200 too, and neither is mistaken for the other.
        add(&mut table, &contact(distance, n, &format!("9.{n}.0.1")));
    }
    for distance in [256, 250, 240, 239, 200, 199, 1] {
        let found: Vec<_> = table.at_distance(distance).map(|entry| entry.contact.id).collect();
        let distances: Vec<_> = found.iter().map(|id| log_distance(&OWN, id)).collect();
        assert_eq!(distances, if matches!(distance, 199 | 1) { vec![] } else { vec![distance] });
    }
}

proptest::proptest! {
    /// The closest nodes are those that a full sort finds, whatever the target.
    #[test]
    fn closest_agrees_with_a_full_sort(
        own in proptest::array::uniform32(0u8..),
        near in 0usize..4,
        target in proptest::array::uniform32(0u8..),
        ids in proptest::collection::vec(proptest::array::uniform32(0u8..), 0..120),
    ) {
        let own = NodeId(own);
        let mut table = Table::new(own, &mut StdRng::seed_from_u64(7));
        for mut id in ids {
            // Ids that share their first bytes with ours fill the near buckets.
            id[..near].copy_from_slice(&own.0[..near]);
            table.insert(start(), Contact { id: NodeId(id), ..contact(256, 0, "127.0.0.1") }, Source::Bootnode);
        }
        let target = NodeId(target);
        let mut all: Vec<_> =
            table.buckets().iter().flat_map(Bucket::entries).map(|entry| entry.contact.id).collect();
        all.sort_by(|a, b| closer(&target, a, b));
        for count in [0, 1, 16, 300] {
            let found: Vec<_> = table.closest(&target, count, |_| true).iter().map(|node| node.id).collect();
            proptest::prop_assert_eq!(&found[..], &all[..count.min(all.len())]);
        }
    }
}
