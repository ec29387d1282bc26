//! The client against zones that are good, that change, and that are malicious; in virtual time.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

use super::{
    client::{Action, Answer, Client, Config, MAX_LINKED, Problem},
    entry::Hash,
    link::Link,
    tree::{MAX_ENTRIES, MAX_LINK_ENTRIES},
    zone::{Maker, Zone, record_at, records},
};
use crate::{
    Now,
    node::{NodeId, Record},
};

#[expect(clippy::disallowed_methods, reason = "virtual time needs a beginning")]
fn start() -> Now {
    Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) }
}

/// A client, a name server that answers at once, and the current time.
struct World {
    client: Client,
    now: Now,
    zone: Zone,
    /// Names that get no answer.
    dead: BTreeSet<String>,
    asked: Vec<(Instant, String)>,
    found: Vec<(NodeId, String)>,
    problems: Vec<(String, Problem)>,
}

impl World {
    fn new(links: &[Link], zones: impl IntoIterator<Item = Zone>) -> Self {
        Self::with(Config::default(), links, zones)
    }

    fn with(config: Config, links: &[Link], zones: impl IntoIterator<Item = Zone>) -> Self {
        let now = start();
        Self {
            client: Client::new(now, config, links, StdRng::seed_from_u64(7)),
            now,
            zone: zones.into_iter().flatten().collect(),
            dead: BTreeSet::new(),
            asked: Vec::new(),
            found: Vec::new(),
            problems: Vec::new(),
        }
    }

    fn drain(&mut self) {
        while let Some(action) = self.client.poll_action() {
            match action {
                Action::Found { record, domain } => self.found.push((record.id(), domain.to_string())),
                Action::Problem { entry, problem, .. } => self.problems.push((entry, problem)),
                Action::Resolve { id, name } => {
                    let texts: Vec<String> = self.zone.get(&name).cloned().into_iter().collect();
                    let answer =
                        if self.dead.contains(&name) { Answer::Failed } else { Answer::Texts(&texts) };
                    self.asked.push((self.now.mono, name));
                    self.client.handle_answer(self.now, id, answer);
                }
            }
        }
    }

    /// Wants `nodes` and lets `time` pass. Returns the ids of the nodes found.
    fn run(&mut self, nodes: usize, time: Duration) -> BTreeSet<NodeId> {
        let (end, before) = (self.now.mono + time, self.found.len());
        self.client.want(self.now, nodes);
        self.drain();
        while let Some(at) = self.client.poll_timeout().filter(|at| *at <= end) {
            assert!(at > self.now.mono, "a timer in the past would spin");
            self.now = self.now.after(at - self.now.mono);
            self.client.handle_timeout(self.now);
            self.drain();
        }
        self.now = self.now.after(end - self.now.mono);
        self.found[before..].iter().map(|(id, _)| *id).collect()
    }

    fn domains(&self) -> Vec<&str> {
        self.client.trees().map(|(link, _)| &*link.domain).collect()
    }
}

fn ids(records: &[Record]) -> BTreeSet<NodeId> {
    records.iter().map(Record::id).collect()
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn every_node_of_a_tree_is_found_and_none_before_it_is_wanted() {
    let maker = Maker::new(1, "n");
    let (link, nodes) = (maker.link(), records(0..30));
    let mut world = World::new(&[link], [maker.tree(1, &nodes, &[])]);
    assert_eq!((world.run(0, HOUR).len(), world.asked.len()), (0, 0));
    assert_eq!(world.run(1, MINUTE).len(), 1);
    let asked = world.asked.len();
    assert_eq!((world.run(0, HOUR).len(), world.asked.len()), (0, asked), "no more are wanted");
    assert_eq!(world.run(29, MINUTE).len(), 29, "the walk goes on where it was");
    assert_eq!(world.run(30, HOUR), ids(&nodes), "and starts over");
    assert_eq!(world.found.len(), 60);
    assert_eq!(world.problems, []);
}

#[test]
fn what_is_found_when_fewer_are_wanted_waits_until_more_are() {
    let maker = Maker::new(1, "n");
    let link = maker.link();
    let mut world = World::new(&[link], [maker.tree(1, &records(0..30), &[])]);
    world.run(4, MINUTE);
    // Four requests are in flight when their answers are not wanted any more.
    world.client.want(world.now, 4);
    world.client.want(world.now, 0);
    world.drain();
    assert_eq!((world.found.len(), world.client.counters().found), (4, 4));
    let asked = world.asked.len();
    world.client.want(world.now, 3);
    world.drain();
    assert_eq!((world.found.len(), world.asked.len()), (7, asked), "no request was needed");
}

/// The zone of EIP-1459 (and go-ethereum's TestClientSyncTree). Its nodes have no addresses.
#[test]
fn the_example_of_the_specification() {
    let zone: Zone = include_str!("../../tests/vectors/eip1459.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .collect();
    let link = "enrtree://AKPYQIUQIL7PSIACI32J7FGZW56E5FKHEFCCOFHILBIMW3M6LWXS2@nodes.example.org";
    let mut world = World::new(&[link.parse().unwrap()], [zone]);
    world.run(1, MINUTE - Duration::from_secs(1));
    let refused = world.problems.iter().filter(|(_, problem)| matches!(problem, Problem::Address(_)));
    assert_eq!(refused.count(), 3);
    assert_eq!(world.domains(), ["nodes.example.org", "morenodes.example.org"]);
    assert_eq!(world.client.trees().next().unwrap().1, Some(1));
}

#[test]
fn requests_keep_to_the_rate() {
    let maker = Maker::new(1, "n");
    let link = maker.link();
    let mut world = World::new(&[link], [maker.tree(1, &records(0..200), &[])]);
    world.run(1000, Duration::from_secs(30));
    let begin = world.asked[0].0;
    assert_eq!(world.asked.iter().filter(|(at, _)| *at == begin).count(), 10, "the burst");
    assert_eq!(world.asked.len(), 10 + 3 * 30);
}

#[test]
fn a_changed_tree_is_noticed_at_the_next_look_at_its_root() {
    let nodes = records(0..60);
    let mut world = World::new(&[Maker::new(1, "n").link()], [Maker::new(1, "n").tree(1, &nodes[..30], &[])]);
    assert_eq!(world.run(30, MINUTE), ids(&nodes[..30]));
    world.zone.extend(Maker::new(1, "n").tree(2, &nodes[30..], &[]));
    assert_eq!(world.run(30, MINUTE), ids(&nodes[..30]), "not before");
    assert_eq!(world.run(30, 31 * MINUTE).len(), 30);
    assert_eq!(world.run(usize::MAX, 31 * MINUTE), ids(&nodes[30..]));
    // The old entries are removed: the failed requests bring the next request for the root forward.
    world.zone = Maker::new(1, "n").tree(3, &nodes[..30], &[]);
    assert_eq!(world.run(usize::MAX, 2 * MINUTE), ids(&nodes[..30]));
}

#[test]
fn a_lower_sequence_is_never_accepted() {
    let nodes = records(0..20);
    let mut world = World::new(&[Maker::new(1, "n").link()], [Maker::new(1, "n").tree(5, &nodes[..10], &[])]);
    world.run(10, MINUTE);
    // An old root is replayed, and all its entries exist.
    world.zone.extend(Maker::new(1, "n").tree(4, &nodes[10..], &[]));
    assert_eq!(world.run(usize::MAX, HOUR), ids(&nodes[..10]));
    let old = world.problems.iter().filter(|(_, problem)| *problem == Problem::OldRoot { new: 4, known: 5 });
    assert!((1..=2).contains(&old.count()), "reported at each regular request for the root");
    assert_eq!(world.client.trees().next().unwrap().1, Some(5));
}

#[test]
fn a_root_that_cannot_be_had_is_retried_with_growing_pauses() {
    let maker = Maker::new(1, "n");
    let (link, nodes) = (maker.link(), records(0..3));
    let zone = maker.tree(1, &nodes, &[]);
    let mut world = World::new(&[link], []);
    world.dead.insert("n".into());
    world.run(1, Duration::from_secs(200));
    let begin = world.asked[0].0;
    let seconds: Vec<u64> = world.asked.iter().map(|(at, _)| (*at - begin).as_secs()).collect();
    assert_eq!(seconds, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
    world.dead.clear();
    world.zone = zone;
    assert_eq!(world.run(1, MINUTE).len(), 1, "back online");
}

#[test]
fn one_bad_entry_spoils_nothing_else() {
    let nodes = records(0..12);
    let mut maker = Maker::new(1, "n");
    let mut hashes: Vec<Hash> = nodes.iter().map(|record| maker.entry(record.to_string())).collect();
    hashes.push(maker.entry("enr:-----".into()));
    hashes.push(Hash::of("nobody serves this"));
    let wrong = Hash::of("one thing");
    maker.zone.insert(format!("{wrong}.n"), records(50..51)[0].to_string());
    let dead = Hash::of("another thing");
    hashes.extend([wrong, dead]);
    let link_hash = maker.entry(Maker::new(2, "m").link().to_string());
    hashes.push(link_hash);
    let (nodes_root, links_root) = (maker.subtree(hashes), maker.subtree(vec![]));
    maker.root(nodes_root, links_root, 1);
    let mut world = World::new(&[maker.link()], [maker.zone]);
    world.dead.insert(format!("{dead}.n"));
    assert_eq!(world.run(usize::MAX, MINUTE - Duration::from_secs(1)), ids(&nodes));
    let asked = |hash: Hash| world.asked.iter().filter(|(_, name)| *name == format!("{hash}.n")).count();
    assert_eq!(asked(dead), 3, "no answer: asked again, within bounds");
    assert_eq!(asked(wrong), 1, "a wrong answer stays wrong");
    let mut kinds: Vec<String> = world.problems.iter().map(|(_, problem)| problem.to_string()).collect();
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds.len(), 5, "{kinds:?}");
    assert_eq!(world.domains(), ["n"], "a link among the nodes is not followed");
}

#[test]
fn links_are_followed_first_in_loops_and_until_they_are_gone() {
    let nodes = records(0..30);
    let link = |seed: u64| Maker::new(seed, &format!("t{seed}")).link();
    let tree = |seed: u64, seq, range: std::ops::Range<usize>, links: &[Link]| {
        Maker::new(seed, &format!("t{seed}")).tree(seq, &nodes[range], links)
    };
    // t1 → t2 → t1, and to itself.
    let mut world = World::new(
        &[link(1)],
        [
            tree(1, 1, 0..10, &[link(2), link(1)]),
            tree(2, 1, 10..20, &[link(1), link(2)]),
            tree(3, 1, 20..30, &[]),
        ],
    );
    assert_eq!(world.run(1, MINUTE).len(), 1);
    assert!(world.asked.iter().take(4).all(|(_, name)| !world.zone[name].starts_with("enr:")));
    assert_eq!(world.run(usize::MAX, 2 * MINUTE), ids(&nodes[..20]));
    assert_eq!(world.domains(), ["t1", "t2"]);
    world.zone.extend(tree(1, 2, 0..10, &[link(3)]));
    world.run(usize::MAX, HOUR);
    assert_eq!(world.domains(), ["t1", "t3"], "no link leads to t2");
    let again = world.run(usize::MAX, 2 * MINUTE);
    assert_eq!(again, ids(&[&nodes[..10], &nodes[20..]].concat()));
    // The loop t2 → t1 does not keep t2, and a configured tree stays without any link.
    world.zone.extend(tree(1, 3, 0..10, &[]));
    world.run(usize::MAX, HOUR);
    assert_eq!(world.domains(), ["t1"]);
}

#[test]
fn links_without_end_are_not_followed_without_end() {
    // Every tree links to 40 further ones.
    let mut world = World::new(&[Maker::new(0, "t0").link()], []);
    for seed in 0..200 {
        let links: Vec<Link> =
            (1..=40).map(|n| Maker::new(seed * 40 + n, &format!("t{}", seed * 40 + n)).link()).collect();
        world.zone.extend(Maker::new(seed, &format!("t{seed}")).tree(1, &[], &links));
    }
    world.run(usize::MAX, HOUR);
    assert_eq!(world.client.trees().count(), 1 + MAX_LINKED);
    assert!(world.client.counters().over_limit > 0);
}

#[test]
fn a_link_subtree_without_end_does_not_keep_the_nodes_waiting() {
    let nodes = records(0..5);
    let mut maker = Maker::new(1, "n");
    let children: Vec<Hash> = (0..1000).map(|n| Hash::of(&format!("empty {n}"))).collect();
    let branches: Vec<Hash> = children.chunks(100).map(|chunk| maker.branch(chunk)).collect();
    let links = maker.subtree(branches);
    let hashes = nodes.iter().map(|record| maker.entry(record.to_string())).collect();
    let node_root = maker.subtree(hashes);
    maker.root(node_root, links, 1);
    let mut world = World::new(&[maker.link()], [maker.zone]);
    assert_eq!(world.run(usize::MAX, 2 * MINUTE), ids(&nodes));
    assert!(world.asked.len() < MAX_LINK_ENTRIES + 100 + world.found.len() * 3);
    assert!(world.client.counters().over_limit > 700);
}

/// The end of all invented hashes.
const TAIL: &str = "AAAAAAAAAAAAAAAA";

#[test]
fn a_million_entries_are_cut_at_the_limit() {
    let mut maker = Maker::new(1, "n");
    // 2^20 hashes of twelve bytes, which differ in their first four characters. The zone has none of their entries.
    let mut branches = Vec::new();
    for high in 0..1 << 15 {
        let digit = |shift: u32| char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[(high >> shift) & 31]);
        let three: String = [digit(10), digit(5), digit(0)].into_iter().collect();
        let children = "A,B,C,D,E,F,G,H,I,J,K,L,M,N,O,P,Q,R,S,T,U,V,W,X,Y,Z,2,3,4,5,6,7,";
        let children = children.replace(',', &format!("{TAIL},{three}"));
        let children = children.trim_end_matches(&format!(",{three}"));
        branches.push(maker.entry(format!("enrtree-branch:{three}{children}")));
    }
    while branches.len() > 1 {
        branches = branches.chunks(128).map(|chunk| maker.branch(chunk)).collect();
    }
    let nodes = branches[0];
    let links = maker.subtree(vec![]);
    maker.root(nodes, links, 1);
    let mut world = World::new(&[maker.link()], [maker.zone]);
    // At three requests a second, 50,000 entries take under five hours; then the walk ends and a new one begins.
    world.run(usize::MAX, 5 * HOUR);
    let begun = world.asked.iter().filter(|(_, name)| *name == format!("{nodes}.n")).count();
    assert_eq!((begun, world.client.trees().count()), (2, 1));
    assert!(world.asked.len() > MAX_ENTRIES, "{}", world.asked.len());
    assert!(world.client.counters().over_limit > 200_000, "{:?}", world.client.counters());
}

#[test]
fn a_zone_that_unfolds_is_walked_once() {
    // Each branch names its one child a hundred times: 100^6 paths, but seven entries.
    let record = &records(0..1)[0];
    let mut maker = Maker::new(1, "n");
    let mut hash = maker.entry(record.to_string());
    for _ in 0..6 {
        hash = maker.branch(&[hash; 100]);
    }
    let links = maker.subtree(vec![]);
    maker.root(hash, links, 1);
    let mut world = World::new(&[maker.link()], [maker.zone]);
    world.run(usize::MAX, MINUTE - Duration::from_secs(1));
    assert_eq!((world.found.len(), world.asked.len()), (1, 9));
}

#[test]
fn private_addresses_are_refused_unless_allowed() {
    let at = |seed, ip: &str| record_at(seed, ip.parse().unwrap());
    let good = at(1, "8.8.8.8");
    let lan = [at(2, "10.0.0.1"), at(3, "127.0.0.1"), at(4, "169.254.0.1"), at(5, "fd00::1")];
    let bad = [at(6, "192.0.2.1"), at(7, "255.255.255.255")];
    let good = std::slice::from_ref(&good);
    let all: Vec<Record> = [good, &lan[..], &bad[..]].concat();
    let zone = || Maker::new(1, "n").tree(1, &all, &[]);
    let link = Maker::new(1, "n").link();
    let mut world = World::new(std::slice::from_ref(&link), [zone()]);
    assert_eq!(world.run(usize::MAX, Duration::from_secs(30)), ids(good));
    assert_eq!(world.client.counters().bad_addresses, 6);
    let mut world = World::with(Config { allow_private: true }, &[link], [zone()]);
    assert_eq!(world.run(usize::MAX, Duration::from_secs(30)), ids(&[good, &lan[..]].concat()));
}

#[test]
fn only_the_right_text_counts_among_several() {
    let maker = Maker::new(1, "n");
    let (link, nodes) = (maker.link(), records(0..3));
    let zone = maker.tree(3, &nodes, &[]);
    let old = Maker::new(1, "n").tree(2, &nodes[..1], &[])["n"].clone();
    let forged = Maker::new(2, "n").tree(9, &nodes[..1], &[])["n"].clone();
    let mut client = Client::new(start(), Config::default(), &[link], StdRng::seed_from_u64(1));
    client.want(start(), 10);
    let mut found = 0;
    while let Some(action) = client.poll_action() {
        match action {
            Action::Resolve { id, name } => {
                let texts = ["v=spf1 -all".to_owned(), old.clone(), forged.clone(), zone[&name].clone()];
                client.handle_answer(start(), id, Answer::Texts(&texts));
            }
            Action::Found { .. } => found += 1,
            Action::Problem { problem, .. } => panic!("{problem}"),
        }
    }
    assert_eq!(found, 3);
}

#[test]
fn answers_nobody_waits_for_are_ignored() {
    let maker = Maker::new(1, "n");
    let (link, mut ids) = (maker.link(), HashMap::new());
    let zone = maker.tree(1, &records(0..3), &[]);
    let mut client = Client::new(start(), Config::default(), &[link], StdRng::seed_from_u64(1));
    client.want(start(), 3);
    while let Some(action) = client.poll_action() {
        if let Action::Resolve { id, name } = action {
            let texts = [zone[&name].clone()];
            client.handle_answer(start(), id, Answer::Texts(&texts));
            ids.insert(id, texts);
        }
    }
    let before = client.counters();
    for (id, texts) in &ids {
        client.handle_answer(start(), *id, Answer::Texts(texts));
    }
    assert_eq!((client.counters(), client.poll_action()), (before, None));
}
