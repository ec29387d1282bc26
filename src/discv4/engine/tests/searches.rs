//! Our requests, their order, and the reaction to silence.

use super::*;
use crate::kademlia;

fn done(script: &mut Script) -> Vec<Action> {
    let mut actions = script.actions();
    actions.retain(|action| {
        !matches!(action, Action::Table(_) | Action::EndpointStatement { .. } | Action::SeedsWanted)
    });
    actions
}

#[test]
fn a_node_that_does_not_know_us_is_bonded_first() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    script.ask_record(1, &peer);
    let sent = script.sent_to(&peer);
    let [Sent::Ping { hash, .. }] = sent.as_slice() else { panic!("{sent:?}") };
    script.pong(&peer, *hash);
    assert_eq!(script.sent(), [], "its own ping is waited for, so that it has our proof");
    script.wait(100);
    script.ping(&peer);
    let sent = script.sent_to(&peer);
    let [Sent::Pong(_), Sent::EnrRequest { hash }] = sent.as_slice() else { panic!("{sent:?}") };
    let theirs = record(&peer.key, 1, peer.addr);
    script.enr_response(&peer, *hash, theirs.encoded());
    let contact = Some(Contact { record: Some(theirs), ..peer.contact() });
    assert_eq!(done(&mut script), [Action::Resolved { query: QueryId(1), contact }]);
    assert_eq!(script.engine.conversations.len(), 0);
    // Within a day nothing of that is needed again.
    script.ask_record(2, &peer);
    assert!(matches!(script.sent_to(&peer).as_slice(), [Sent::EnrRequest { .. }]));
}

#[test]
fn a_node_that_had_bonded_earlier_is_asked_after_the_settle_time() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    script.ask_record(1, &peer);
    let sent = script.sent_to(&peer);
    let [Sent::Ping { hash, .. }] = sent.as_slice() else { panic!("{sent:?}") };
    script.pong(&peer, *hash);
    script.wait(499);
    assert_eq!(script.sent(), []);
    script.wait(1);
    assert!(matches!(script.sent_to(&peer).as_slice(), [Sent::EnrRequest { .. }]));
    script.wait(500);
    assert_eq!(done(&mut script), [Action::Resolved { query: QueryId(1), contact: Some(peer.contact()) }]);
}

#[test]
fn silence_ends_every_question() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    let contact = peer.contact();
    script.engine.ping(script.now, QueryId(1), &contact).unwrap();
    script.ask_record(2, &peer);
    script.engine.resolve(script.now, QueryId(3), peer.id(), Some(contact.clone())).unwrap();
    script.engine.resolve(script.now, QueryId(4), peer.id(), None).unwrap();
    script.engine.lookup(script.now, QueryId(5), [1; 64]).unwrap();
    assert_eq!(script.sent_to(&peer).len(), 1, "one ping serves all");
    script.wait(500);
    assert_eq!(script.engine.conversations.len(), 0);
    assert_eq!(
        done(&mut script),
        [
            Action::Resolved { query: QueryId(4), contact: None },
            Action::LookupDone { query: QueryId(5), closest: vec![] },
            Action::PingResult { query: QueryId(1), pong: Err(CallError::Timeout) },
            Action::Resolved { query: QueryId(2), contact: Some(contact.clone()) },
            Action::Resolved { query: QueryId(3), contact: Some(contact) },
        ]
    );
}

#[test]
fn a_ping_tells_the_round_trip_and_where_we_are() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    script.engine.ping(script.now, QueryId(1), &peer.contact()).unwrap();
    let sent = script.sent_to(&peer);
    let [Sent::Ping { hash, .. }] = sent.as_slice() else { panic!("{sent:?}") };
    script.wait(120);
    script.pong(&peer, *hash);
    let pong =
        Ponged { round_trip: Duration::from_millis(120), sees_us_at: Some(addr(OUR_ADDR)), enr_seq: Some(1) };
    assert_eq!(done(&mut script), [Action::PingResult { query: QueryId(1), pong: Ok(pong) }]);
}

#[test]
fn one_find_node_at_a_time_to_one_node() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    script.make_live(&peer);
    script.sent();
    done(&mut script);
    for n in 1..=3 {
        script.engine.lookup(script.now, QueryId(n), [u8::try_from(n).unwrap(); 64]).unwrap();
    }
    for n in 1..=3 {
        assert_eq!(script.sent_to(&peer), [Sent::FindNode([n; 64])]);
        script.neighbors(&peer, vec![]);
        script.wait(100);
    }
    let ended = done(&mut script).iter().filter(|action| matches!(action, Action::LookupDone { .. })).count();
    assert_eq!(ended, 3);
}

#[test]
fn five_unanswered_find_nodes_in_a_row_cost_the_place_in_a_filled_bucket() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    script.make_live(&peer);
    script.sent();
    // A second node in its bucket: without one it would stay, as the only node there.
    let us = script.engine.table().own_id();
    let distance = crate::kademlia::distance::log_distance(&us, &peer.id());
    let company =
        (1_000..).map(key).filter(|key| crate::kademlia::distance::log_distance(&us, &key.id()) == distance);
    let mut answering = vec![peer];
    for (n, key) in (10..).zip(company.take(4)) {
        let friend = Peer { key, addr: addr(&format!("8.{n}.1.1:30303")) };
        script.engine.add_seed(script.now, friend.contact());
        answering.push(friend);
    }
    let peer = &answering[0];
    for n in 0..5 {
        assert!(script.engine.table().get(&peer.id()).is_some(), "after {n}");
        script.engine.lookup(script.now, QueryId(n), peer.key.public().to_uncompressed()).unwrap();
        for _ in 0..40 {
            script.wait(50);
            for (to, sent) in script.sent() {
                let Some(who) = answering.iter().find(|who| who.addr == to) else { continue };
                match sent {
                    // All answer every ping, and this one no FINDNODE.
                    Sent::Ping { hash, .. } => drop(script.pong_with(who, hash, None)),
                    Sent::FindNode(_) if who.addr != peer.addr => drop(script.neighbors(who, vec![])),
                    _ => {}
                }
            }
        }
    }
    assert!(script.engine.table().get(&peer.id()).is_none());
}

#[test]
fn a_refresh_asks_for_seeds_and_looks_around() {
    let bootnode = Peer::new(1, "8.8.1.1:30303");
    let mut script = Script::with(Config { bootnodes: vec![bootnode.contact()], ..Config::default() });
    assert!(script.actions().contains(&Action::SeedsWanted));
    let sent = script.sent_to(&bootnode);
    let [Sent::Ping { hash, .. }] = sent.as_slice() else { panic!("{sent:?}") };
    script.pong(&bootnode, *hash);
    script.ping(&bootnode);
    let mut targets = Vec::new();
    for _ in 0..60 {
        for sent in script.sent_to(&bootnode) {
            match sent {
                Sent::FindNode(target) => {
                    targets.push(target);
                    script.neighbors(&bootnode, vec![]);
                }
                Sent::Ping { hash, .. } => drop(script.pong_with(&bootnode, hash, None)),
                _ => {}
            }
        }
        script.wait(50);
    }
    assert_eq!(targets.len(), 4);
    assert_eq!(targets[0], key(0).public().to_uncompressed(), "ourselves first");
    script.actions();
    script.wait(31 * 60 * 1000);
    assert!(script.actions().contains(&Action::SeedsWanted));
}

#[test]
fn an_empty_table_tries_the_bootnodes_again_within_half_a_minute() {
    let bootnode = Peer::new(1, "8.8.1.1:30303");
    let mut script = Script::with(Config { bootnodes: vec![bootnode.contact()], ..Config::default() });
    script.wait(5_000);
    assert!(script.engine.table().is_empty(), "it did not answer");
    script.sent();
    script.actions();
    script.wait(31_000);
    assert!(script.actions().contains(&Action::SeedsWanted));
    assert!(script.sent().iter().any(|(to, _)| *to == bootnode.addr));
    // Nobody at all is no reason to spin either.
    let mut alone = Script::new();
    alone.wait(600_000);
    let refreshes = alone.actions().iter().filter(|action| **action == Action::SeedsWanted).count();
    assert!((20..=41).contains(&refreshes), "{refreshes}");
}

/// A small world: nodes that answer everything, each with all the others.
fn run_world(script: &mut Script, world: &[Peer], milliseconds: u64) -> usize {
    let mut packets = 0;
    for _ in 0..milliseconds / 10 {
        for (to, sent) in script.sent() {
            packets += 1;
            let Some(peer) = world.iter().find(|peer| peer.addr == to) else { continue };
            match sent {
                Sent::Ping { hash, .. } => {
                    script.pong_with(peer, hash, Some(1));
                    script.ping(peer);
                }
                Sent::FindNode(_) => {
                    let others = world.iter().filter(|other| other.addr != peer.addr).map(Peer::neighbor);
                    let others: Vec<_> = others.collect();
                    for part in others.chunks(12) {
                        script.neighbors(peer, part.to_vec());
                    }
                }
                Sent::EnrRequest { hash } => {
                    script.enr_response(peer, hash, record(&peer.key, 1, peer.addr).encoded());
                }
                _ => {}
            }
        }
        script.wait(10);
    }
    packets
}

fn world() -> Vec<Peer> {
    (1..=12).map(|n| Peer::new(n, &format!("8.{n}.1.1:30303"))).collect()
}

#[test]
fn candidates_come_as_long_as_they_are_wanted_and_with_their_records() {
    let world = world();
    let mut script = Script::with(Config { bootnodes: vec![world[0].contact()], ..Config::default() });
    run_world(&mut script, &world, 5_000);
    script.actions();
    script.engine.set_demand(script.now, 5);
    run_world(&mut script, &world, 5_000);
    let found: Vec<Contact> = script
        .actions()
        .into_iter()
        .filter_map(|action| match action {
            Action::Discovered(contact) => Some(contact),
            _ => None,
        })
        .collect();
    assert!((5..=5 + 16).contains(&found.len()), "{}", found.len());
    assert!(found.iter().all(|contact| contact.record.is_some() && contact.endpoint.tcp == 30303));
    // Nothing wanted: checks alone go out.
    script.sent();
    script.wait(3_000);
    assert!(script.sent().iter().all(|(_, sent)| matches!(sent, Sent::Ping { .. })));
}

#[test]
fn a_node_is_resolved_by_its_key_alone() {
    let world = world();
    let hidden = Peer::new(77, "8.77.1.1:30303");
    let mut script = Script::with(Config { bootnodes: vec![world[0].contact()], ..Config::default() });
    script.wait(10);
    let mut all = world;
    all.push(hidden);
    run_world(&mut script, &all[..12], 3_000);
    done(&mut script);
    let hidden = &all[12];
    assert!(script.engine.table().get(&hidden.id()).is_none());
    script.engine.resolve(script.now, QueryId(8), hidden.key.public(), None).unwrap();
    run_world(&mut script, &all, 3_000);
    let expected = Contact { record: Some(record(&hidden.key, 1, hidden.addr)), ..hidden.contact() };
    assert!(done(&mut script).contains(&Action::Resolved { query: QueryId(8), contact: Some(expected) }));
}

#[test]
fn passed_checks_are_for_the_database() {
    let mut script = Script::new();
    let peer = Peer::new(1, "8.8.1.1:30303");
    script.make_live(&peer);
    let actions = script.actions();
    let contact = script.engine.table().get(&peer.id()).unwrap().contact.clone();
    assert!(actions.contains(&Action::Persist { contact: contact.clone(), checks: 1 }));
    assert!(actions.contains(&Action::Table(kademlia::Event::Live(contact.clone()))));
    // It dies.
    script.wait(60_000);
    let removed = kademlia::Event::Removed(contact, kademlia::Removal::Dead);
    assert!(script.actions().contains(&Action::Table(removed)));
}

#[test]
fn who_cannot_be_asked_and_what_finds_no_room_is_told_at_once() {
    use crate::kademlia::query::MAX_LOOKUPS;
    let mut script = Script::new();
    let us = Contact { id: script.engine.table().own_id(), ..Peer::new(1, "8.8.1.1:30303").contact() };
    assert_eq!(script.engine.ping(script.now, QueryId(1), &us), Err(CallError::Myself));
    let mut nowhere = Peer::new(2, "8.8.1.1:30303").contact();
    nowhere.endpoint.udp = 0;
    assert_eq!(script.engine.ping(script.now, QueryId(2), &nowhere), Err(CallError::NoEndpoint));
    // Lookups that wait for answers, until there is room for no other.
    for n in 3..11_u8 {
        script.make_live(&Peer::new(u64::from(n), &format!("8.{n}.1.1:30303")));
    }
    for n in 0..1_000_u16 {
        let mut target = [7; 64];
        target[..2].copy_from_slice(&n.to_be_bytes());
        if script.engine.overlay.lookups() < MAX_LOOKUPS {
            script.engine.lookup(script.now, QueryId(n.into()), target).unwrap();
        }
    }
    assert_eq!(script.engine.overlay.lookups(), MAX_LOOKUPS);
    done(&mut script);
    let refused = script.engine.lookup(script.now, QueryId(9_999), [9; 64]);
    assert_eq!(refused, Err(CallError::TooManyLookups));
    let stranger = key(5).public();
    let refused = script.engine.resolve(script.now, QueryId(9_998), stranger, None);
    assert_eq!(refused, Err(CallError::TooManyLookups));
    assert_eq!(done(&mut script), [], "a refused call has no other answer");
}
