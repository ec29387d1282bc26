//! Calls that discovery refuses, without sockets: what each refusal blames.

use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::{mpsc, watch};

use super::{DiscoveryError, TableNode, TableObserver, queries::State};
use crate::{
    Now, discv4, discv5,
    kademlia::{CallError, Contact, Protocol, Removal, query::MAX_LOOKUPS},
    net::clock,
    node::{
        NodeId, NodeKey, PublicKey,
        local::{LocalRecord, Ports},
        record::RecordBuilder,
    },
};

struct Unwatched;

impl TableObserver for Unwatched {
    fn there(&self, _: TableNode) {}
    fn gone(&self, _: Protocol, _: NodeId, _: Removal, _: Duration) {}
}

fn key(seed: u64) -> NodeKey {
    NodeKey::random(&mut StdRng::seed_from_u64(seed))
}

/// A node in a network of its own.
fn node(number: u8) -> Contact {
    let mut builder = RecordBuilder::new(1);
    builder.ip([8, number, 1, 1].into()).port("udp", 30303);
    Contact::from_record(builder.sign(&key(u64::from(number))).unwrap()).unwrap()
}

/// Discovery whose tables hold 12 nodes. No node is really asked: time stands still, and nothing is sent.
fn discovery(now: Now, v4: bool, v5: bool) -> State {
    let key = key(99);
    let local = LocalRecord::new(now, key.clone(), Ports { tcp: 30303, udp: 30303 }, None).unwrap();
    let (own, rng) = (local.record().clone(), StdRng::seed_from_u64(1));
    let v4 = v4
        .then(|| discv4::Engine::new(now, discv4::Config::default(), key.clone(), own.clone(), rng.clone()));
    let v5 = v5.then(|| discv5::Engine::new(now, discv5::Config::default(), key.clone(), own.clone(), rng));
    let (candidates, _) = mpsc::channel(1);
    let record = watch::channel(own).0;
    let mut state = State::new(v4, v5, local, record, None, candidates, Box::new(Unwatched));
    for number in 1..=12 {
        let contact = node(number);
        if let Some(engine) = &mut state.v5 {
            engine.add_seed(now, contact.clone());
        }
        if let Some(engine) = &mut state.v4 {
            engine.add_seed(now, contact);
        }
    }
    state
}

fn stranger() -> PublicKey {
    key(1_000).public()
}

#[test]
fn a_full_discovery_refuses_calls_with_too_many_lookups() {
    let now = clock::now();
    for (v4, v5) in [(true, false), (false, true), (true, true)] {
        let mut state = discovery(now, v4, v5);
        let targets = (0..).map(|seed| key(seed).public());
        let mut running = Vec::new();
        let refused = targets.take(1_000).find_map(|target| match state.lookup(now, target.into(), None) {
            Ok(met) => {
                running.push(met);
                None
            }
            Err(error) => Some(error),
        });
        let busy = DiscoveryError::Call(CallError::TooManyLookups);
        assert_eq!(refused, Some(busy.clone()), "discv4 {v4}, discv5 {v5}");
        assert!(running.len() >= MAX_LOOKUPS);
        let key = stranger();
        assert_eq!(state.resolve(now, key.into()).err(), Some(busy), "discv4 {v4}, discv5 {v5}");
    }
}

#[test]
fn one_protocol_that_is_busy_leaves_the_search_to_the_other() {
    let now = clock::now();
    let mut state = discovery(now, true, true);
    let mut full = Vec::new();
    for seed in 0..MAX_LOOKUPS as u64 {
        full.push(state.lookup(now, key(seed).public().id().into(), Some(Protocol::V5)).unwrap());
    }
    let key = stranger();
    let mut found = state.resolve(now, key.into()).unwrap();
    assert!(found.try_recv().is_err(), "discv4 still searches");
    assert!(state.lookup(now, key.into(), None).is_ok());
}

#[test]
fn each_refusal_says_what_is_wrong() {
    let now = clock::now();
    let mut state = discovery(now, true, true);
    let us = Contact { id: key(99).public().id(), ..node(1) };
    let mut nowhere = node(2);
    nowhere.endpoint.udp = 0;
    for over in [Protocol::V4, Protocol::V5] {
        for (contact, error) in [(&us, CallError::Myself), (&nowhere, CallError::NoEndpoint)] {
            let refused = state.ping(now, contact.clone(), Some(over)).err();
            assert_eq!(refused, Some(DiscoveryError::Call(error)), "{over:?}");
        }
    }
    let refused = state.talk(now, &node(3), b"p", &[0; 1_300]).err();
    assert!(matches!(refused, Some(DiscoveryError::Call(CallError::TooLarge(_, _)))), "{refused:?}");
    let mut only_v4 = discovery(now, true, false);
    let id = NodeId([7; 32]);
    assert_eq!(only_v4.lookup(now, id.into(), None).err(), Some(DiscoveryError::Call(CallError::KeyNeeded)));
    assert_eq!(only_v4.talk(now, &node(3), b"p", b"").err(), Some(DiscoveryError::Off(Protocol::V5)));
    let refused = only_v4.lookup(now, id.into(), Some(Protocol::V5)).err();
    assert_eq!(refused, Some(DiscoveryError::Off(Protocol::V5)));
}
