//! Forks that the schedule lacks, as the scheduler meets them: the nodes that are dialed to test one, and the effects
//! of the result.

use std::sync::Arc;

use super::*;
use crate::{
    node::{ForkId, ForkSchedule, Head, Record, RecordBuilder, fork_id::hash_after},
    policy::fork_following::News,
};

/// A fork that nodes have passed and our schedule lacks: an epoch after ours.
const FORK: u64 = 1_699_996_416;

fn schedule() -> Arc<ForkSchedule> {
    Arc::new(ForkSchedule::new([7; 32], 0, &[], &[FORK - 384 * 1000]))
}

/// A node's candidate, whose record announces `hash`.
fn announcing(n: u64, hash: [u8; 4]) -> Candidate {
    let mut scalar = [0; 32];
    scalar[24..].copy_from_slice(&(n + 1).to_be_bytes());
    let key = NodeKey::from_bytes(&scalar).unwrap();
    let entry = ForkId { hash, next: 0 }.encode_entry();
    let record: Record = RecordBuilder::new(1).set_raw(b"eth", &entry).sign(&key).unwrap();
    Candidate { record: Some(record), ..candidate(n, Source::V5) }
}

struct Chain {
    bench: Bench,
    hash: [u8; 4],
}

impl Chain {
    fn new(follow_forks: bool) -> Self {
        let mut bench = Bench::unregistered(Settings { follow_forks, ..Settings::default() });
        let filter = DialFilter::Fork { schedule: schedule(), head: Head::default() };
        bench.dial.register(bench.now, &bench.rules, RegistrationId(0), filter, None);
        Self { bench, hash: hash_after(schedule().end().0, FORK) }
    }

    fn offer(&mut self, n: u64) -> Result<(), Refusal> {
        let Self { bench, hash } = self;
        let result = bench.dial.candidate(bench.now, &bench.rules, announcing(n, *hash), false);
        bench.drain();
        result
    }

    fn news(&mut self) -> Vec<News> {
        let is_news = |action: &Action| matches!(action, Action::Fork(_));
        let (news, other) = std::mem::take(&mut self.bench.other).into_iter().partition(is_news);
        self.bench.other = other;
        let news: Vec<Action> = news;
        news.into_iter()
            .filter_map(|action| if let Action::Fork(news) = action { Some(news) } else { None })
            .collect()
    }

    /// Three networks show nodes of the fork.
    fn follow(&mut self) {
        for n in 1..=3 {
            assert_eq!(self.offer(n), Ok(()), "one dial for each network");
            assert_eq!(self.news(), []);
            self.bench.step(&Do::Up(n));
        }
        let news = self.news();
        assert!(matches!(news[..], [News::Followed(fork)] if fork.time == FORK), "{news:?}");
    }
}

#[test]
fn nodes_of_three_networks_make_a_fork_and_then_all_of_it_are_dialed() {
    let mut chain = Chain::new(true);
    chain.follow();
    assert_eq!(chain.offer(4), Ok(()));
    assert_eq!(chain.bench.dial.followed_forks().len(), 1);
}

/// A full node proves as well as a peer that it is at the address of its record; an address without a node proves
/// nothing.
#[test]
fn a_claim_is_backed_by_an_answer_alone() {
    let mut chain = Chain::new(true);
    for (n, cause) in
        [(1, Cause::Unreachable), (2, Cause::WrongIdentity), (3, Cause::Silent), (4, Cause::HungUp)]
    {
        assert_eq!(chain.offer(n), Ok(()));
        chain.bench.step(&Do::Fail(n, cause));
    }
    assert_eq!(chain.news(), []);
    for n in 5..=7 {
        assert_eq!(chain.offer(n), Ok(()));
        chain.bench.step(&Do::Fail(n, Cause::TooManyPeers));
    }
    assert_eq!(chain.news().len(), 1);
}

#[test]
fn switched_off_the_hash_is_filtered_and_counted() {
    let mut chain = Chain::new(false);
    for n in 1..=3 {
        assert_eq!(chain.offer(n), Err(Refusal::Filtered));
    }
    let hash = chain.hash;
    assert_eq!(chain.bench.dial.recent().total.unknown_forks.get(&hash), Some(&3));
    // A fork that the schedule has is none of these.
    let known = announcing(9, schedule().end().0);
    assert_eq!(chain.bench.dial.candidate(chain.bench.now, &chain.bench.rules, known, false), Ok(()));
    assert_eq!(chain.bench.dial.recent().total.unknown_forks.len(), 1);
}

#[test]
fn a_fork_whose_peers_applications_send_away_is_dropped() {
    let mut chain = Chain::new(true);
    chain.follow();
    for n in 1..=3 {
        chain.bench.step(&Do::Pass(1));
        chain.bench.step(&Do::Gone(n, Cause::Operator));
    }
    let news = chain.news();
    assert!(matches!(news[..], [News::Dropped(_)]), "{news:?}");
    assert_eq!(chain.offer(8), Err(Refusal::Filtered), "it stays out");
}

#[test]
fn one_peer_that_stays_keeps_a_fork() {
    let mut chain = Chain::new(true);
    chain.follow();
    chain.bench.step(&Do::Pass(61));
    for n in 4..=9 {
        assert_eq!(chain.offer(n), Ok(()));
        chain.bench.step(&Do::Up(n));
        chain.bench.step(&Do::Gone(n, Cause::Operator));
    }
    assert_eq!(chain.news(), []);
}

/// A registration with another schedule replaces the forks that were followed; one that moves its head does not.
#[test]
fn a_new_schedule_begins_anew_and_a_new_head_does_not() {
    let mut chain = Chain::new(true);
    chain.follow();
    let mut register = |schedule, head| {
        let filter = DialFilter::Fork { schedule, head };
        let bench = &mut chain.bench;
        bench.dial.register(bench.now, &bench.rules, RegistrationId(0), filter, None);
        bench.dial.followed_forks().len()
    };
    assert_eq!(register(schedule(), Head { height: 5, time: FORK - 1 }), 1);
    assert_eq!(register(Arc::new(ForkSchedule::new([7; 32], 0, &[], &[FORK])), Head::default()), 0);
}

#[test]
fn starving_is_told_by_the_time_since_the_last_candidate() {
    let mut bench = Bench::new(Settings::default());
    let starved = |bench: &Bench| bench.dial.starved_since().map(|since| (bench.now.mono - since).as_secs());
    assert_eq!(starved(&bench), Some(0));
    bench.step(&Do::Pass(100));
    assert_eq!(starved(&bench), Some(100));
    bench.step(&Do::Offer(1, Source::V4, Ok(())));
    assert_eq!(starved(&bench), Some(0));
    bench.step(&Do::Unregister(0));
    assert_eq!(starved(&bench), None, "no node is wanted");
}
