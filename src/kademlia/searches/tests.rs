//! Searches without an engine: nodes that answer, lie, keep silent or cannot be asked, in any order.

use std::collections::HashMap;

use proptest::prelude::*;
use rand::{Rng, seq::IndexedRandom};

use super::*;
use crate::node::{NodeKey, PublicKey, Record, RecordBuilder};

type Machine = Searches<()>;

#[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
fn start() -> Now {
    Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) }
}

fn key(seed: u64) -> NodeKey {
    NodeKey::random(&mut StdRng::seed_from_u64(seed))
}

fn record(seed: u64, seq: u64) -> Record {
    let mut builder = RecordBuilder::new(seq);
    let [.., b, c] = seed.to_be_bytes();
    builder.ip([9, b, c, 1].into()).port("udp", 30303);
    builder.sign(&key(seed)).unwrap()
}

/// A node in a network of its own. In discv4 it comes without its record.
fn node(seed: u64, of: Protocol) -> Contact {
    let mut contact = Contact::from_record(record(seed, 1)).unwrap();
    if of == Protocol::V4 {
        contact.record = None;
    }
    contact
}

/// The machine of one node, its table, and the actions so far.
struct Rig {
    searches: Machine,
    table: Table,
    reach: Reach,
    now: Now,
    protocol: Protocol,
    actions: Vec<Action<()>>,
}

impl Rig {
    fn new(protocol: Protocol, bootnodes: Vec<Contact>) -> Self {
        let (now, mut rng) = (start(), StdRng::seed_from_u64(7));
        let own = key(0).public();
        Self {
            searches: Searches::new(protocol, own.into(), bootnodes, now.mono, &mut rng),
            table: Table::new(own.id(), &mut rng),
            reach: Reach::new(Vec::new(), &record(0, 1)),
            now,
            protocol,
            actions: Vec::new(),
        }
    }

    /// A machine whose first refresh is over, with `nodes` in its table.
    fn with_nodes(protocol: Protocol, nodes: std::ops::Range<u64>) -> Self {
        let mut rig = Self::new(protocol, Vec::new());
        rig.pass(Duration::from_millis(500));
        for seed in nodes {
            rig.table.insert(rig.now, node(seed, protocol), Source::Bootnode);
        }
        rig.actions.clear();
        rig
    }

    fn questions(&mut self) -> Vec<Question> {
        let questions: Vec<_> =
            std::iter::from_fn(|| self.searches.poll_question(self.now, &mut self.table)).collect();
        self.actions.extend(std::iter::from_fn(|| self.searches.poll_action()));
        questions
    }

    /// Lets time pass. No node can be asked meanwhile.
    fn pass(&mut self, by: Duration) {
        let end = self.now.mono + by;
        while let Some(at) = self.searches.poll_timeout(&self.table).filter(|at| *at <= end) {
            self.now = self.now.after(at.saturating_duration_since(self.now.mono));
            self.searches.handle_timeout(self.now, &mut self.table, &self.reach);
            self.refuse_all();
        }
        self.now = self.now.after(end - self.now.mono);
    }

    fn refuse_all(&mut self) {
        loop {
            let questions = self.questions();
            if questions.is_empty() {
                return;
            }
            questions.iter().for_each(|question| self.searches.unasked(&self.table, question));
        }
    }

    /// The node answers with all nodes of a range.
    fn answer(&mut self, question: &Question, told: std::ops::Range<u64>) {
        let told = told.map(|seed| node(seed, self.protocol)).collect();
        let (search, by) = (question.search, question.to.id);
        self.searches.told(self.now, &mut self.table, search, by, told);
        self.searches.answered(self.now, &mut self.table, search, &by, true);
    }

    fn lookup(&mut self, query: u64, target: PublicKey) -> Result<(), CallError> {
        self.searches.lookup(&self.table, QueryId(query), target.into())
    }

    fn done(&self) -> Vec<QueryId> {
        let done = self.actions.iter().filter_map(|action| match action {
            Action::LookupDone { query, .. } | Action::Resolved { query, .. } => Some(*query),
            _ => None,
        });
        done.collect()
    }
}

const BOTH: [Protocol; 2] = [Protocol::V4, Protocol::V5];

#[test]
fn a_lookup_asks_three_at_a_time_and_tells_each_node_once() {
    for protocol in BOTH {
        let mut rig = Rig::with_nodes(protocol, 1..6);
        rig.lookup(1, key(99).public()).unwrap();
        let mut asked = Vec::new();
        let mut waiting = rig.questions();
        assert_eq!(waiting.len(), 3, "{protocol}");
        while let Some(question) = waiting.pop() {
            assert_eq!(question.wants, Wants::Nodes);
            assert!(!asked.contains(&question.to.id), "asked twice");
            asked.push(question.to.id);
            rig.answer(&question, 1..10);
            waiting.extend(rig.questions());
            assert!(waiting.len() <= 3);
        }
        assert_eq!((asked.len(), rig.done()), (9, vec![QueryId(1)]), "{protocol}");
        let told = rig.actions.iter().filter(|action| matches!(action, Action::LookupNode { .. })).count();
        assert_eq!(told, 9, "{protocol}");
        assert!(rig.searches.is_empty() && rig.searches.is_consistent());
    }
}

#[test]
fn answers_that_were_not_asked_for_change_no_lookup() {
    for protocol in BOTH {
        let mut rig = Rig::with_nodes(protocol, 1..3);
        rig.lookup(1, key(99).public()).unwrap();
        let questions = rig.questions();
        let told = |rig: &Rig| rig.actions.iter().filter(|a| matches!(a, Action::LookupNode { .. })).count();
        let before = told(&rig);
        let forged = Question { to: node(50, protocol), ..questions[0].clone() };
        rig.answer(&forged, 60..70);
        rig.answer(&Question { search: SearchId(9_999), ..forged.clone() }, 70..80);
        rig.searches.record_came(&rig.table, SearchId(9_999), Some(node(50, protocol)), true);
        rig.searches.record_came(&rig.table, questions[0].search, Some(node(50, protocol)), true);
        assert!(rig.questions().is_empty(), "no other node is asked for it");
        assert_eq!((told(&rig), rig.searches.len()), (before, 1), "{protocol}");
        for question in &questions {
            rig.answer(question, 1..3);
            // The same answer again is of a node that is not being asked any more.
            rig.answer(question, 80..90);
        }
        assert!(rig.questions().is_empty());
        assert_eq!(rig.done(), [QueryId(1)], "{protocol}");
    }
}

#[test]
fn full_means_refused_and_silence_ends_everything() {
    for protocol in BOTH {
        let mut rig = Rig::with_nodes(protocol, 1..3);
        let mut waiting = Vec::new();
        for n in 0..MAX_LOOKUPS as u64 {
            rig.lookup(n, key(100 + n).public()).unwrap();
            waiting.extend(rig.questions());
        }
        assert_eq!(rig.lookup(900, key(900).public()), Err(CallError::TooManyLookups));
        let stranger = Target::from(key(901).public());
        let refused = rig.searches.resolve(&rig.table, QueryId(901), stranger, None);
        assert_eq!((refused, rig.searches.take_refused()), (Err(CallError::TooManyLookups), 2));
        // A node that is known is asked without a lookup; its silence finds no room for one.
        let known = node(1, protocol);
        rig.searches.resolve(&rig.table, QueryId(902), known.public_key.into(), None).unwrap();
        let [question] = rig.questions().try_into().unwrap();
        rig.searches.record_came(&rig.table, question.search, None, false);
        // The walk and the refresh find no room either, and end.
        rig.searches.set_demand(5);
        rig.pass(Duration::from_secs(100));
        for question in waiting {
            rig.searches.answered(rig.now, &mut rig.table, question.search, &question.to.id, false);
        }
        rig.refuse_all();
        let mut done = rig.done();
        done.sort();
        assert_eq!(done, (0..MAX_LOOKUPS as u64).chain([902]).map(QueryId).collect::<Vec<_>>());
        let resolved = Action::Resolved { query: QueryId(902), contact: Some(known) };
        assert!(rig.actions.contains(&resolved), "{protocol}");
        assert!(rig.searches.is_empty() && rig.searches.is_consistent());
    }
}

#[test]
fn a_node_that_is_found_by_address_alone_is_asked_for_its_record() {
    let sought = Contact::from_record(record(77, 5)).unwrap();
    for protocol in BOTH {
        let mut rig = Rig::with_nodes(protocol, 1..2);
        rig.searches.resolve(&rig.table, QueryId(1), sought.public_key.into(), None).unwrap();
        let [question] = rig.questions().try_into().unwrap();
        rig.answer(&question, 77..78);
        let next = rig.questions();
        if protocol == Protocol::V4 {
            let [question] = next.try_into().unwrap();
            assert_eq!((question.wants, question.to.id), (Wants::Record, sought.id));
            rig.searches.record_came(&rig.table, question.search, Some(sought.clone()), true);
            rig.questions();
            assert!(
                rig.actions.contains(&Action::Resolved { query: QueryId(1), contact: Some(sought.clone()) })
            );
        } else {
            assert!(next.is_empty(), "its record was in the answer");
            assert_eq!(rig.done(), [QueryId(1)]);
        }
    }
}

/// Its entry in the table is all that is known of it, and it is silent there.
#[test]
fn a_node_that_has_moved_is_looked_for_at_other_nodes() {
    for protocol in BOTH {
        let mut rig = Rig::with_nodes(protocol, 1..9);
        let old = node(5, protocol);
        let mut builder = RecordBuilder::new(2);
        builder.ip([9, 9, 9, 1].into()).port("udp", 30303);
        let moved = Contact::from_record(builder.sign(&key(5)).unwrap()).unwrap();
        rig.searches.resolve(&rig.table, QueryId(1), old.public_key.into(), None).unwrap();
        let [question] = rig.questions().try_into().unwrap();
        assert_eq!((question.wants, &question.to), (Wants::Record, &old), "{protocol}");
        rig.searches.record_came(&rig.table, question.search, None, false);

        let asked = rig.questions();
        assert!(rig.done().is_empty(), "{protocol}: the search goes on");
        assert!(asked.iter().all(|question| question.wants == Wants::Nodes && question.to.id != old.id));
        let Some(first) = asked.first() else { panic!("{protocol}: no one is asked") };
        let told =
            Contact { record: moved.record.clone().filter(|_| protocol == Protocol::V5), ..moved.clone() };
        rig.searches.told(rig.now, &mut rig.table, first.search, first.to.id, vec![told]);
        for question in rig.questions() {
            if question.wants == Wants::Record {
                assert_eq!(question.to.endpoint, moved.endpoint, "{protocol}: it is asked where it is now");
                rig.searches.record_came(&rig.table, question.search, Some(moved.clone()), true);
            }
        }
        rig.questions();
        let resolved = Action::Resolved { query: QueryId(1), contact: Some(moved) };
        assert!(rig.actions.contains(&resolved), "{protocol}: {:?}", rig.actions);
    }
}

#[test]
fn discv4_cannot_look_for_a_bare_id_and_discv5_can() {
    let id = Target::from(key(77).id());
    for (protocol, lookup, ended) in [(Protocol::V4, Err(CallError::KeyNeeded), 1), (Protocol::V5, Ok(()), 0)]
    {
        let mut rig = Rig::with_nodes(protocol, 1..3);
        assert_eq!(rig.searches.lookup(&rig.table, QueryId(1), id), lookup);
        assert_eq!(rig.searches.resolve(&rig.table, QueryId(2), id, None), Ok(()));
        rig.questions();
        assert_eq!((rig.done().len(), rig.searches.take_refused()), (ended, 0), "{protocol}");
        // A hint is an address at which to ask.
        let hint = node(77, protocol);
        rig.searches.resolve(&rig.table, QueryId(3), id, Some(hint.clone())).unwrap();
        let asked = rig.questions();
        assert!(asked.iter().any(|question| question.to == hint && question.wants == Wants::Record));
    }
}

#[test]
fn the_walk_gives_what_is_wanted_each_in_its_protocols_way() {
    for protocol in BOTH {
        let mut rig = Rig::with_nodes(protocol, 1..9);
        rig.searches.set_demand(3);
        let at = rig.searches.poll_timeout(&rig.table).unwrap();
        rig.now = rig.now.after(at.saturating_duration_since(rig.now.mono));
        rig.searches.handle_timeout(rig.now, &mut rig.table, &rig.reach);
        let questions = rig.questions();
        let records: Vec<_> = questions.iter().filter(|question| question.wants == Wants::Record).collect();
        assert_eq!(records.len(), if protocol == Protocol::V4 { 3 } else { 0 }, "{protocol}");
        for question in records {
            let contact = Some(Contact { record: Some(record(1, 1)), ..question.to.clone() });
            rig.searches.record_came(&rig.table, question.search, contact, true);
        }
        rig.questions();
        let found = rig.actions.iter().filter(|action| matches!(action, Action::Discovered(_))).count();
        assert_eq!(found, if protocol == Protocol::V4 { 3 } else { 8 }, "{protocol}");
    }
}

#[test]
fn a_refresh_looks_for_ourselves_and_three_times_at_random() {
    let own = Target::from(key(0).public());
    for (protocol, together) in [(Protocol::V4, 4), (Protocol::V5, 1)] {
        let mut rig = Rig::new(protocol, vec![node(1, protocol)]);
        let mut targets = Vec::new();
        let mut ready = Vec::new();
        for _ in 0..2 {
            let at = rig.searches.poll_timeout(&rig.table).unwrap();
            rig.now = rig.now.after(at.saturating_duration_since(rig.now.mono));
            rig.searches.handle_timeout(rig.now, &mut rig.table, &rig.reach);
            ready.extend(rig.questions());
        }
        assert_eq!(ready.len(), together, "{protocol}");
        assert!(!rig.table.takes_inbound());
        // A bootnode that comes meanwhile makes the next refresh due at the end of this one.
        rig.searches.add_bootnode(rig.now, node(2, protocol));
        assert_eq!(rig.searches.poll_timeout(&rig.table), None);
        while let Some(question) = ready.pop() {
            targets.push(rig.searches.target(question.search).unwrap());
            rig.answer(&question, 1..2);
            ready.extend(rig.questions());
        }
        assert_eq!((targets.len(), targets.contains(&own)), (4, true), "{protocol}");
        assert!(rig.table.takes_inbound());
        assert_eq!(rig.searches.poll_timeout(&rig.table), Some(rig.now.mono));
        let seeds = rig.actions.iter().filter(|action| **action == Action::SeedsWanted).count();
        assert_eq!(seeds, 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// For all answers in all orders, with lies and repetitions: every bound holds, no node is asked twice by one
    /// lookup, and each query ends exactly once when all its questions have ended.
    #[test]
    fn every_query_ends_once(is_v4 in any::<bool>(), seed in any::<u64>(), steps in prop::collection::vec(0_u8..16, 1..400)) {
        let protocol = if is_v4 { Protocol::V4 } else { Protocol::V5 };
        let mut rng = StdRng::seed_from_u64(seed);
        let contacts: Vec<Contact> = (1..64).map(|seed| node(seed, protocol)).collect();
        let mut rig = Rig::with_nodes(protocol, 1..8);
        let (mut waiting, mut ended): (Vec<Question>, Vec<Question>) = Default::default();
        let mut owed: HashMap<QueryId, usize> = HashMap::new();
        let mut asked = std::collections::HashSet::new();
        for (number, step) in (0..).zip(steps) {
            let (query, some) = (QueryId(number), contacts.choose(&mut rng).unwrap().clone());
            let lies: Vec<Contact> = contacts.choose_multiple(&mut rng, 16).cloned().collect();
            let accepted = match step {
                0 | 1 => rig.searches.lookup(&rig.table, query, some.public_key.into()).is_ok(),
                2 | 3 => rig.searches.resolve(&rig.table, query, some.public_key.into(), None).is_ok(),
                4 => rig.searches.resolve(&rig.table, query, some.id.into(), Some(some.clone())).is_ok(),
                _ => false,
            };
            if accepted {
                owed.insert(query, 0);
            }
            match step {
                5 => rig.searches.set_demand(rng.random_range(0..40)),
                6 => rig.searches.add_bootnode(rig.now, some),
                7 => {
                    rig.now = rig.now.after(Duration::from_secs(rng.random_range(0..40)));
                    rig.searches.handle_timeout(rig.now, &mut rig.table, &rig.reach);
                }
                // A lie about an answer that is complete, or was never asked for.
                8 => {
                    let old = ended.choose(&mut rng).map_or(SearchId(number), |question| question.search);
                    rig.searches.told(rig.now, &mut rig.table, old, some.id, lies);
                    rig.searches.answered(rig.now, &mut rig.table, old, &some.id, true);
                }
                9.. if !waiting.is_empty() => {
                    let question = waiting.swap_remove(rng.random_range(0..waiting.len()));
                    let (search, by) = (question.search, question.to.id);
                    match (question.wants, step) {
                        (_, 9) => rig.searches.unasked(&rig.table, &question),
                        (Wants::Nodes, 10) => {
                            rig.searches.answered(rig.now, &mut rig.table, search, &by, false);
                        }
                        (Wants::Nodes, _) => {
                            rig.searches.told(rig.now, &mut rig.table, search, by, lies);
                            rig.searches.answered(rig.now, &mut rig.table, search, &by, true);
                        }
                        (Wants::Record, 10..=12) => {
                            rig.searches.record_came(&rig.table, search, None, step == 11);
                        }
                        (Wants::Record, _) => {
                            rig.searches.record_came(&rig.table, search, Some(question.to.clone()), true);
                        }
                    }
                    ended.push(question);
                }
                _ => {}
            }
            for question in rig.questions() {
                prop_assert!(asked.insert((question.search, question.to.id)), "asked twice");
                prop_assert!(question.to.id != key(0).id(), "asked ourselves");
                waiting.push(question);
            }
            prop_assert!(rig.searches.is_consistent());
        }
        // All that is asked falls silent; then all that was begun has ended.
        while let Some(question) = waiting.pop() {
            match question.wants {
                Wants::Nodes => {
                    rig.searches.answered(rig.now, &mut rig.table, question.search, &question.to.id, false);
                }
                Wants::Record => rig.searches.record_came(&rig.table, question.search, None, false),
            }
            waiting.extend(rig.questions());
        }
        prop_assert!(rig.searches.is_empty() && rig.searches.is_consistent());
        for query in rig.done() {
            *owed.entry(query).or_default() += 1;
        }
        prop_assert!(owed.values().all(|count| *count == 1), "{owed:?}");
    }
}
