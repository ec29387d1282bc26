//! Forks that the program does not know: a chain's next fork, computed from the checksums that its nodes announce.
//!
//! A fork schedule in a program ages. At the first fork that it lacks, every node of the chain announces a checksum
//! that the schedule does not contain, and a filter that only compares would dial no node. But a checksum is CRC-32
//! over the checksum before it and the time of the fork, so the two of them give the time ([`fork_between`]). A hash
//! that belongs to another chain gives an arbitrary time. The hash of our next fork gives one that
//!
//! * lies after the last known fork, and not in the future, because only passed forks are in a checksum;
//! * begins an epoch of our chain.
//!
//! Of arbitrary hashes, one in (seconds since the last fork) / 384 / 2³² passes: about 2 · 10⁻⁵ after a year. Such a
//! hash is a claim, not yet a fork. Any node can invent one and sign any number of records that claim any address, so
//! records prove nothing. A claim is followed when nodes in [`NETWORKS`] networks were dialed and proved their identity
//! at the addresses of their records. Before that, a few of its nodes are dialed as a test, and no others.
//!
//! A fork that is followed can still be wrong: a minority that forked off deliberately looks the same. The application
//! knows the chain. If it disconnects those peers and keeps none, the fork is dropped and stays distrusted. Nothing is
//! kept over a restart, and nothing is announced for it.
//!
//! Left out: the rules for known hashes (`node::fork_id`), the dials (`policy::dial`), and the message to the operator
//! (`switch` logs [`News`]).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    Now,
    node::{
        ForkId, ForkSchedule, Head,
        endpoint::Subnet,
        fork_id::{fork_between, hash_after},
    },
};

/// Networks (IPv4 /24, IPv6 /48) that must show nodes of a fork before it is followed, and that must reject it before
/// it is dropped. An attacker with addresses in three networks can also run nodes that pass every filter.
pub const NETWORKS: usize = 3;

/// How far a fork may lie ahead of our clock. A node that announces it has passed it, so this allows for clocks only.
const AHEAD: Duration = Duration::from_secs(86_400);

/// How far ahead nodes may announce their next fork. Ethereum's are set some weeks or months before.
const PLANNED_AHEAD: Duration = Duration::from_secs(365 * 86_400);

/// Claims that are looked into at a time, networks that are asked about each, and claims that one network may raise.
const MAX_CLAIMS: usize = 16;
const MAX_ASKED: usize = 16;
const CLAIMS_PER_NETWORK: usize = 2;

/// When so many networks have been asked about a claim, one more is asked in this time. Records can claim the addresses of
/// others, so an attacker can make us ask networks that have no node; it must not keep us from asking further ones.
const ASK_FURTHER: Duration = Duration::from_secs(10);

/// How long a network that was asked about a claim is not asked again, and how long a claim lasts without a new
/// announcement.
const ASK_AGAIN: Duration = Duration::from_secs(600);
const CLAIM_LIFE: Duration = Duration::from_secs(3600);

/// Forks that are followed at a time. Ethereum has had three within a month.
const MAX_FOLLOWED: usize = 8;

/// Announced forks from which further ones are searched.
const MAX_STEPS: usize = 8;

/// Hashes that are remembered as wrong; the oldest is forgotten first.
const MAX_DISTRUSTED: usize = 64;

/// A peer that stayed this long was not sent away for its chain: applications compare chains within seconds.
pub const SETTLED: Duration = Duration::from_secs(60);

/// A fork that our schedule lacks and that we follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The checksum that its nodes announce.
    pub hash: [u8; 4],
    /// The checksum before it.
    pub before: [u8; 4],
    /// When the fork was, Unix seconds.
    pub time: u64,
    /// Since when we follow it, as Unix time.
    pub since: Duration,
}

/// A change of the followed forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Enough networks showed nodes of this fork: it counts as one of our chain from now on.
    Followed(Followed),
    /// Applications rejected the peers of this fork: it does not count any more.
    Dropped(Followed),
}

/// The meaning of a node's fork id for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// It does not belong to our chain, by the known forks.
    Foreign,
    /// It may belong to our chain. One dial shows whether the node is at the address of its record.
    Ask,
    /// It can be of our chain, by the schedule alone.
    Known,
    /// It can be of our chain, by a fork that we follow.
    Followed,
}

#[derive(Debug)]
struct Claim {
    before: [u8; 4],
    time: u64,
    /// Networks whose nodes were to be dialed for this claim, and when.
    asked: BTreeMap<Subnet, Instant>,
    /// Networks whose nodes proved their identity.
    shown: BTreeSet<Subnet>,
    /// The time of the last announcement.
    raised: Instant,
}

/// A fork that nodes of our chain announce as their next one.
#[derive(Debug)]
struct Step {
    /// The checksum after it.
    hash: [u8; 4],
    time: u64,
    /// Networks whose nodes announce it, at most [`MAX_ASKED`].
    by: BTreeSet<Subnet>,
}

/// Follows the chain of one schedule.
#[derive(Debug)]
pub struct Follower {
    schedule: Arc<ForkSchedule>,
    followed: Vec<Followed>,
    /// Networks whose peers of a followed fork were sent away at once.
    rejected: BTreeMap<[u8; 4], BTreeSet<Subnet>>,
    /// Forks that nodes of our chain expect: bases for the forks after them.
    steps: Vec<Step>,
    claims: BTreeMap<[u8; 4], Claim>,
    distrusted: VecDeque<[u8; 4]>,
}

impl Follower {
    /// A follower for `schedule`, without followed forks.
    #[must_use]
    pub fn new(schedule: Arc<ForkSchedule>) -> Self {
        Self {
            schedule,
            followed: Vec::new(),
            rejected: BTreeMap::new(),
            steps: Vec::new(),
            claims: BTreeMap::new(),
            distrusted: VecDeque::new(),
        }
    }

    /// The schedule that it began with.
    #[must_use]
    pub fn schedule(&self) -> &Arc<ForkSchedule> {
        &self.schedule
    }

    /// The forks beyond the schedule that count as our chain's.
    #[must_use]
    pub fn followed(&self) -> &[Followed] {
        &self.followed
    }

    /// The opinion of a node at `ip` that announces `remote`, seen from `head`. [`Opinion::Ask`] counts as asked.
    pub fn opinion(&mut self, now: Now, head: Head, remote: ForkId, ip: IpAddr) -> Opinion {
        if self.schedule.contains(remote.hash) {
            self.expect(now, remote, ip);
            return if self.schedule.check(head, remote).is_ok() { Opinion::Known } else { Opinion::Foreign };
        }
        if self.followed.iter().any(|followed| followed.hash == remote.hash) {
            self.expect(now, remote, ip);
            // EIP-2124, rule 1a: it waits for a fork that our head has passed without it.
            let parted = remote.next != 0 && head.time >= remote.next;
            return if parted { Opinion::Foreign } else { Opinion::Followed };
        }
        match self.invert(now.unix, remote.hash) {
            Some((before, time)) if self.ask(now.mono, remote.hash, before, time, Subnet::wide(ip)) => {
                Opinion::Ask
            }
            _ => Opinion::Foreign,
        }
    }

    /// The state and the fork that lead to `hash`, if it can be a later state of our chain.
    #[must_use]
    pub fn invert(&self, unix: Duration, hash: [u8; 4]) -> Option<([u8; 4], u64)> {
        if self.distrusted.contains(&hash) {
            return None;
        }
        let latest = unix.saturating_add(AHEAD).as_secs();
        let followed = self.followed.iter().map(|followed| (followed.hash, followed.time));
        let bases = std::iter::once(self.schedule.end())
            .chain(followed)
            .chain(self.steps.iter().map(|step| (step.hash, step.time)));
        bases.map(|(before, after)| (before, after, fork_between(before, hash))).find_map(
            |(before, after, time)| {
                let fits = time > after.max(self.schedule.first_epoch()) && time <= latest;
                (fits && self.schedule.begins_epoch(time)).then_some((before, time))
            },
        )
    }

    /// A node of our chain names the fork that it expects next. Nodes that lag behind expect forks that have passed, so
    /// a schedule that lacks several forks is completed step by step.
    fn expect(&mut self, now: Now, remote: ForkId, ip: IpAddr) {
        let ForkId { hash, next } = remote;
        let (end, last) = self.schedule.end();
        let followed = self.followed.iter().find(|followed| followed.hash == hash);
        let after = match followed {
            Some(followed) => followed.time,
            None if hash == end => last.max(self.schedule.first_epoch()),
            None => return,
        };
        let latest = now.unix.saturating_add(PLANNED_AHEAD).as_secs();
        let (hash, network) = (hash_after(hash, next), Subnet::wide(ip));
        let fits = next > after && next <= latest && self.schedule.begins_epoch(next);
        if !fits {
            return;
        }
        if let Some(step) = self.steps.iter_mut().find(|step| step.hash == hash) {
            if step.by.len() < MAX_ASKED {
                step.by.insert(network);
            }
            return;
        }
        if self.steps.len() >= MAX_STEPS {
            // The one that the fewest networks announce, and of these the oldest: a network that invents forks pushes
            // out its own.
            let fewest = self.steps.iter().enumerate().min_by_key(|(index, step)| (step.by.len(), *index));
            if let Some(index) = fewest.map(|(index, _)| index) {
                self.steps.remove(index);
            }
        }
        self.steps.push(Step { hash, time: next, by: BTreeSet::from([network]) });
    }

    /// Whether a node of `network` is to be dialed to look into a claim.
    fn ask(&mut self, now: Instant, hash: [u8; 4], before: [u8; 4], time: u64, network: Subnet) -> bool {
        self.claims.retain(|_, claim| now.saturating_duration_since(claim.raised) < CLAIM_LIFE);
        let raised_by = |claim: &&Claim| claim.asked.contains_key(&network);
        if !self.claims.contains_key(&hash) {
            if self.claims.values().filter(raised_by).count() >= CLAIMS_PER_NETWORK {
                return false;
            }
            if self.claims.len() >= MAX_CLAIMS {
                // Those that no node has backed go first.
                let weakest = self.claims.iter().min_by_key(|(_, claim)| (claim.shown.len(), claim.raised));
                let Some(weakest) = weakest.map(|(hash, _)| *hash) else { return false };
                self.claims.remove(&weakest);
            }
        }
        let claim = self.claims.entry(hash).or_insert_with(|| Claim {
            before,
            time,
            asked: BTreeMap::new(),
            shown: BTreeSet::new(),
            raised: now,
        });
        claim.raised = now;
        claim.asked.retain(|_, asked| now.saturating_duration_since(*asked) < ASK_AGAIN);
        let known = claim.shown.contains(&network) || claim.asked.contains_key(&network);
        if known {
            return false;
        }
        if claim.asked.len() >= MAX_ASKED {
            let newest = claim.asked.values().max().copied();
            if newest.is_some_and(|newest| now.saturating_duration_since(newest) < ASK_FURTHER) {
                return false;
            }
            let oldest = claim.asked.iter().min_by_key(|(_, asked)| **asked).map(|(network, _)| *network);
            oldest.map(|oldest| claim.asked.remove(&oldest));
        }
        claim.asked.insert(network, now);
        true
    }

    /// A node at `ip` that announces `hash` proved its identity at the address of its record.
    pub fn proved(&mut self, now: Now, hash: [u8; 4], ip: IpAddr) -> Option<News> {
        let claim = self.claims.get_mut(&hash)?;
        claim.shown.insert(Subnet::wide(ip));
        if claim.shown.len() < NETWORKS || self.followed.len() >= MAX_FOLLOWED {
            return None;
        }
        let followed = Followed { hash, before: claim.before, time: claim.time, since: now.unix };
        self.claims.remove(&hash);
        self.followed.push(followed);
        Some(News::Followed(followed))
    }

    /// A peer at `ip` that was dialed for `hash` was disconnected at once, or refused us at once because of its chain.
    /// `kept`: another peer of the same fork has stayed. Returns the forks that are dropped because of it.
    pub fn rejected(&mut self, hash: [u8; 4], ip: IpAddr, kept: bool) -> Vec<News> {
        if kept || !self.followed.iter().any(|followed| followed.hash == hash) {
            return Vec::new();
        }
        let networks = self.rejected.entry(hash).or_default();
        networks.insert(Subnet::wide(ip));
        if networks.len() < NETWORKS {
            return Vec::new();
        }
        // The forks after a wrong one are wrong too.
        let mut wrong = BTreeSet::from([hash]);
        let mut dropped = Vec::new();
        while let Some(at) = self
            .followed
            .iter()
            .position(|followed| wrong.contains(&followed.hash) || wrong.contains(&followed.before))
        {
            let followed = self.followed.remove(at);
            wrong.insert(followed.hash);
            self.rejected.remove(&followed.hash);
            self.steps.retain(|step| step.hash != followed.hash);
            if self.distrusted.len() >= MAX_DISTRUSTED {
                self.distrusted.pop_front();
            }
            self.distrusted.push_back(followed.hash);
            dropped.push(News::Dropped(followed));
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use rand::{Rng as _, SeedableRng, rngs::StdRng};

    use super::{super::test_now, *};

    const MAINNET: &str = "mainnet";
    const SEPOLIA: &str = "sepolia";
    const HOODI: &str = "hoodi";
    const NETWORKS_OF_TODAY: [&str; 3] = [MAINNET, SEPOLIA, HOODI];

    /// A public network, from the vectors of fork ids.
    struct Preset {
        genesis_hash: [u8; 32],
        genesis_time: u64,
        fork_heights: Vec<u64>,
        fork_times: Vec<u64>,
        first_epoch: u64,
    }

    impl Preset {
        fn of(name: &str) -> Self {
            let rows = include_str!("../../tests/vectors/fork_id.txt").lines();
            let row: Vec<&str> = rows
                .map(|row| row.split_whitespace().collect::<Vec<_>>())
                .find(|row| row.starts_with(&["chain", name]))
                .unwrap();
            let numbers =
                |list: &str| -> Vec<u64> { list.split(',').map(|text| text.parse().unwrap()).collect() };
            let genesis_time = row[3].parse().unwrap();
            Self {
                genesis_hash: HEXLOWER.decode(row[2].as_bytes()).unwrap().try_into().unwrap(),
                genesis_time,
                fork_heights: numbers(row[4]),
                fork_times: numbers(row[5]).into_iter().filter(|time| *time > genesis_time).collect(),
                first_epoch: match name {
                    MAINNET => 1_606_824_023,
                    SEPOLIA => 1_655_733_600,
                    _ => 1_742_213_400,
                },
            }
        }

        /// The schedule with only the first `known` forks by time.
        fn cut(&self, known: usize) -> Arc<ForkSchedule> {
            let times = &self.fork_times[..known];
            let schedule = ForkSchedule::new(self.genesis_hash, self.genesis_time, &self.fork_heights, times);
            Arc::new(schedule.with_epochs(self.first_epoch))
        }

        fn fork_schedule(&self) -> Arc<ForkSchedule> {
            self.cut(self.fork_times.len())
        }
    }

    /// 1 December 2026: all forks of the presets have passed.
    const TODAY: u64 = 1_796_083_200;

    fn at(unix: u64) -> Now {
        Now { unix: Duration::from_secs(unix), ..test_now() }
    }

    /// Addresses in networks of their own.
    fn ip(network: u8) -> IpAddr {
        IpAddr::from([8, network, 0, 1])
    }

    /// Nodes of so many networks announce `id`; each that is asked is there.
    fn announce(follower: &mut Follower, now: Now, id: ForkId, networks: u8) -> Vec<News> {
        let mut news = Vec::new();
        for network in 0..networks {
            if follower.opinion(now, Head::default(), id, ip(network)) == Opinion::Ask {
                news.extend(follower.proved(now, id.hash, ip(network)));
            }
        }
        news
    }

    /// A schedule that ends after any fork by time finds all later ones, whether it has run on or was started late.
    #[test]
    fn a_schedule_that_is_cut_anywhere_finds_the_rest() {
        for network in NETWORKS_OF_TODAY {
            let preset = Preset::of(network);
            let whole = preset.fork_schedule();
            let ids: Vec<ForkId> =
                preset.fork_times.iter().map(|time| whole.id(whole.synced_head(*time))).collect();
            for known in 0..preset.fork_times.len() {
                // Running while the forks pass: each is announced by the nodes that have passed it.
                let mut follower = Follower::new(preset.cut(known));
                for (id, time) in ids.iter().zip(&preset.fork_times).skip(known) {
                    announce(&mut follower, at(*time + 60), ForkId { next: 0, ..*id }, 3);
                }
                let found = |follower: &Follower| -> Vec<u64> {
                    follower.followed().iter().map(|followed| followed.time).collect()
                };
                assert_eq!(found(&follower), preset.fork_times[known..], "{network} from {known}");
                // Started today: nodes that lag announce the steps between.
                let mut follower = Follower::new(preset.cut(known));
                let before = preset.cut(known).end().0;
                let first = ForkId { hash: before, next: preset.fork_times[known] };
                for _ in 0..2 {
                    for id in std::iter::once(&first).chain(&ids[known..]) {
                        announce(&mut follower, at(TODAY), *id, 3);
                    }
                }
                assert_eq!(found(&follower), preset.fork_times[known..], "{network} from {known}, late");
                let last = ForkId { next: 0, ..*ids.last().unwrap() };
                let opinion = follower.opinion(at(TODAY), Head::default(), last, ip(200));
                assert_eq!(opinion, Opinion::Followed);
            }
        }
    }

    #[test]
    fn invented_next_forks_push_out_only_each_other() {
        let preset = Preset::of(SEPOLIA);
        let mut follower = Follower::new(preset.cut(6));
        let ((end, last), now) = (follower.schedule().end(), at(TODAY));
        let expects = |step: u64| ForkId { hash: end, next: last + step * 384 };
        for network in 1..=2 {
            follower.opinion(now, Head::default(), expects(1), IpAddr::from([8, 8, network, 1]));
        }
        for lie in 2..500 {
            follower.opinion(now, Head::default(), expects(lie), IpAddr::from([9, 9, 9, 1]));
        }
        assert_eq!(follower.steps.len(), MAX_STEPS);
        let honest = hash_after(end, last + 384);
        assert!(follower.steps.iter().any(|step| step.hash == honest && step.by.len() == 2));
    }

    #[test]
    fn foreign_hashes_hardly_ever_look_like_a_fork() {
        let mut rng = StdRng::seed_from_u64(11);
        for network in NETWORKS_OF_TODAY {
            let schedule = Preset::of(network).fork_schedule();
            let follower = Follower::new(Arc::clone(&schedule));
            let tries = 1_000_000;
            let passed = (0..tries)
                .filter(|_| follower.invert(Duration::from_secs(TODAY), rng.random()).is_some())
                .count();
            // The expected number is the age of the last fork in epochs, of 2³² hashes.
            let expected =
                f64::from(tries) * (TODAY + 86_400 - schedule.end().1) as f64 / 384.0 / 2_f64.powi(32);
            assert!(expected < 21.0, "{network}: {expected}");
            let passed = passed as f64;
            assert!(
                (passed - expected).abs() <= 4.0 * expected.sqrt().max(1.0),
                "{network}: {passed}, {expected}"
            );
        }
    }

    /// Liars can invent claims and sign records for any address, but they cannot answer there.
    #[test]
    fn one_network_of_liars_changes_nothing() {
        let preset = Preset::of(SEPOLIA);
        let whole = preset.fork_schedule();
        let truth = whole.id(whole.synced_head(TODAY));
        let mut follower = Follower::new(preset.cut(6));
        let (end, last) = follower.schedule().end();
        let now = at(TODAY);
        let mut asked = 0;
        for lie in 1..2_000_u64 {
            let hash = hash_after(end, last + lie * 384 * 7);
            let id = ForkId { hash, next: 0 };
            for host in 1..=50 {
                let liar = IpAddr::from([9, 9, 9, host]);
                if follower.opinion(now, Head::default(), id, liar) == Opinion::Ask {
                    asked += 1;
                    assert_eq!(follower.proved(now, hash, liar), None);
                }
            }
        }
        assert!(asked <= CLAIMS_PER_NETWORK, "{asked} dials for one network");
        // Records with addresses of others cost some dials, and prove nothing.
        for lie in 1..200_u64 {
            let id = ForkId { hash: hash_after(end, last + lie * 384 * 11), next: 0 };
            for network in 0..250 {
                follower.opinion(now, Head::default(), id, IpAddr::from([11, lie as u8, network, 1]));
            }
        }
        assert!(follower.followed().is_empty() && follower.claims.len() <= MAX_CLAIMS);
        // Records with the true fork and addresses of others use up what is asked at once, and no more.
        for network in 0..250 {
            follower.opinion(now, Head::default(), truth, IpAddr::from([12, 1, network, 1]));
        }
        let mut later = now;
        let mut news = Vec::new();
        for network in 1..=3 {
            later = later.after(ASK_FURTHER);
            let honest = IpAddr::from([8, 8, network, 1]);
            assert_eq!(follower.opinion(later, Head::default(), truth, honest), Opinion::Ask, "{network}");
            for forged in 0..250 {
                let ip = IpAddr::from([13, network, forged, 1]);
                assert_eq!(follower.opinion(later, Head::default(), truth, ip), Opinion::Foreign);
            }
            news.extend(follower.proved(later, truth.hash, honest));
        }
        assert!(matches!(news[..], [News::Followed(Followed { time: 1_791_294_816, .. })]), "{news:?}");
    }

    #[test]
    fn two_networks_are_not_enough_and_a_second_dial_to_one_is_none() {
        let preset = Preset::of(HOODI);
        let whole = preset.fork_schedule();
        let id = whole.id(whole.synced_head(TODAY));
        let mut follower = Follower::new(preset.cut(3));
        for _ in 0..5 {
            assert_eq!(announce(&mut follower, at(TODAY), id, 2), []);
        }
        assert_eq!(follower.opinion(at(TODAY), Head::default(), id, ip(1)), Opinion::Foreign);
        assert_eq!(announce(&mut follower, at(TODAY), id, 3).len(), 1);
    }

    #[test]
    fn what_applications_reject_is_dropped_with_what_follows_and_stays_out() {
        let preset = Preset::of(MAINNET);
        let whole = preset.fork_schedule();
        let ids = [4, 5].map(|fork: usize| whole.id(whole.synced_head(preset.fork_times[fork])));
        let mut follower = Follower::new(preset.cut(4));
        for id in ids {
            assert_eq!(announce(&mut follower, at(TODAY), id, 3).len(), 1);
        }
        // A peer that stayed counts for the fork.
        for network in 0..9 {
            assert_eq!(follower.rejected(ids[0].hash, ip(network), true), []);
        }
        assert_eq!(follower.rejected(ids[0].hash, ip(1), false), []);
        assert_eq!(follower.rejected(ids[0].hash, ip(1), false), [], "the same network twice");
        assert_eq!(follower.rejected(ids[0].hash, ip(2), false), []);
        assert_eq!(follower.rejected(ids[0].hash, ip(3), false).len(), 2);
        assert!(follower.followed().is_empty());
        assert_eq!(announce(&mut follower, at(TODAY), ids[0], 9), []);
    }

    /// Neither the far future, nor the middle of an epoch, nor a time before the last fork.
    #[test]
    fn times_that_make_no_sense_are_no_forks() {
        let schedule = Preset::of(SEPOLIA).fork_schedule();
        let follower = Follower::new(Arc::clone(&schedule));
        let (end, last) = schedule.end();
        let now = Duration::from_secs(TODAY);
        let future = last + (TODAY + 172_800 - last) / 384 * 384;
        let table =
            [(last + 384, true), (last + 383, false), (last - 384, false), (last, false), (future, false)];
        for (time, fits) in table {
            assert_eq!(follower.invert(now, hash_after(end, time)).is_some(), fits, "{time}");
        }
    }
}
