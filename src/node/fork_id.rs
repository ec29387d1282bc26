//! Fork identifiers (EIP-2124, with times as of EIP-6122): a node's chain, and how far it has followed it, in twelve
//! bytes.
//!
//! A node announces the CRC-32 of its genesis hash and of every fork it has passed, and the next fork it knows of. So
//! nodes of other chains and of abandoned forks can be recognised before a dial. The `eth` entry of a node record
//! carries the identifier. So does eth's Status message, which the application handles.
//!
//! Left out: the position of the head. Callers pass it ([`Head`]). A sidecar without a chain passes zero and accepts
//! every node that can still come to be on its chain, as go-ethereum's static filter does.

use super::Record;
use crate::rlp::{self, Reader};

/// Fork numbers up to this one are block heights, larger ones are Unix times: it is the genesis time of mainnet
/// (EIP-6122).
const TIME_THRESHOLD: u64 = 1_438_269_973;

/// The seconds of an epoch of Ethereum's beacon chain: 32 slots of 12 seconds. Forks by time happen at the start of an
/// epoch.
pub const EPOCH_SECONDS: u64 = 384;

/// The fork identifier of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForkId {
    /// CRC-32 (IEEE) of the genesis hash and the forks passed, big-endian.
    pub hash: [u8; 4],
    /// Height or time of the next fork the node knows of; 0 if it knows of none.
    pub next: u64,
}

impl ForkId {
    /// The fork id in the `eth` entry of `record`: `[[hash, next], …]`.
    ///
    /// Further elements in either list are ignored, so that the entry can be extended (EIP-2124 allows for that). An
    /// entry of any other form counts as absent.
    #[must_use]
    pub fn of_record(record: &Record) -> Option<Self> {
        Self::decode_entry(record.get(b"eth")?).ok()
    }

    /// Reads the value of an `eth` record entry.
    pub fn decode_entry(value: &[u8]) -> Result<Self, rlp::Error> {
        let mut id = Reader::list(value)?.nested()?;
        Ok(Self { hash: id.array()?, next: id.u64()? })
    }

    /// The value of the `eth` record entry that announces this id.
    #[must_use]
    pub fn encode_entry(&self) -> Vec<u8> {
        let mut entry = ::rlp::RlpStream::new_list(1);
        entry.begin_list(2).append(&self.hash.as_slice()).append(&self.next);
        entry.out().to_vec()
    }
}

/// How far a chain has been followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Height of the head block.
    pub height: u64,
    /// Unix time of the head block, seconds.
    pub time: u64,
}

/// The reason why a node's fork id does not match our chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForkMismatch {
    /// The node is behind a fork that we have passed, and does not know of it.
    #[error("the node does not know of a fork that our chain has passed: its software is too old")]
    RemoteStale,
    /// The node is on another chain, or has passed a fork that we do not know.
    #[error("the node is on another chain, or past a fork that our fork schedule lacks")]
    Incompatible,
}

/// The forks of one chain, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkSchedule {
    /// Heights first, then times; each ascending, without duplicates and without forks that are part of genesis.
    forks: Vec<u64>,
    /// The checksum before each fork, and after the last one: one more than there are forks.
    sums: Vec<[u8; 4]>,
    /// How many of the forks are heights.
    heights: usize,
    /// The Unix time at which some epoch of the chain begins, if that is known.
    epoch: Option<u64>,
}

impl ForkSchedule {
    /// The schedule of the chain with this genesis block, by heights and Unix times, in any order.
    ///
    /// Forks at height 0, and at times up to the genesis block's, are part of the genesis rules and not of the
    /// checksum.
    #[must_use]
    pub fn new(genesis_hash: [u8; 32], genesis_time: u64, heights: &[u64], times: &[u64]) -> Self {
        let mut forks = ascending(heights, 0);
        let heights = forks.len();
        forks.extend(ascending(times, genesis_time));
        let mut crc = crc32(0, &genesis_hash);
        let mut sums = vec![crc.to_be_bytes()];
        for fork in &forks {
            crc = crc32(crc, &fork.to_be_bytes());
            sums.push(crc.to_be_bytes());
        }
        // A fork by time happens at the start of an epoch.
        let epoch = forks.get(heights..).and_then(<[u64]>::last).copied();
        Self { forks, sums, heights, epoch }
    }

    /// The same schedule of a chain whose epochs are counted from `first_epoch`, a Unix time. Without this, epochs are
    /// counted from the last fork by time.
    #[must_use]
    pub fn with_epochs(mut self, first_epoch: u64) -> Self {
        self.epoch = Some(first_epoch);
        self
    }

    /// The checksum after the last fork of the schedule, and that fork: a Unix time, or 0 if it is a height or there is
    /// none.
    #[must_use]
    pub fn end(&self) -> ([u8; 4], u64) {
        let time = self.forks.get(self.heights..).and_then(<[u64]>::last).copied().unwrap_or(0);
        (self.sums.last().copied().unwrap_or_default(), time)
    }

    /// Whether `hash` is the checksum of some state of this chain.
    #[must_use]
    pub fn contains(&self, hash: [u8; 4]) -> bool {
        self.sums.contains(&hash)
    }

    /// The earliest known start of an epoch of the chain, as a Unix time; 0 if none is known.
    #[must_use]
    pub fn first_epoch(&self) -> u64 {
        self.epoch.unwrap_or(0)
    }

    /// Whether an epoch of the chain begins at `time`, a Unix time. False while no epoch of the chain is known.
    #[must_use]
    pub fn begins_epoch(&self, time: u64) -> bool {
        self.epoch.is_some_and(|epoch| time.abs_diff(epoch) % EPOCH_SECONDS == 0)
    }

    /// The first fork by time after `time`, a Unix time.
    #[must_use]
    pub fn next_time(&self, time: u64) -> Option<u64> {
        self.forks.get(self.heights..)?.iter().copied().find(|fork| *fork > time)
    }

    /// The head of a node that has followed the chain up to `time`, a Unix time. Its height is the last fork by height
    /// if some fork by time has passed, else 0.
    #[must_use]
    pub fn synced_head(&self, time: u64) -> Head {
        let passed = self.forks.get(self.heights).is_some_and(|first| *first <= time);
        let last = self.heights.checked_sub(1).and_then(|last| self.forks.get(last)).copied().unwrap_or(0);
        Head { height: if passed { last } else { 0 }, time }
    }

    /// The fork id that a node on this chain announces at `head`.
    #[must_use]
    pub fn id(&self, head: Head) -> ForkId {
        let passed = self.passed(head);
        ForkId {
            hash: self.sums.get(passed).copied().unwrap_or_default(),
            next: self.forks.get(passed).copied().unwrap_or(0),
        }
    }

    /// Whether a node that announces `remote` can be on this chain, seen from `head` (EIP-2124, "Validation rules").
    pub fn check(&self, head: Head, remote: ForkId) -> Result<(), ForkMismatch> {
        let passed = self.passed(head);
        let Some(at) = self.sums.iter().position(|sum| *sum == remote.hash) else {
            return Err(ForkMismatch::Incompatible);
        };
        if at > passed {
            // Rule 3: we have not synced that far ourselves.
            return Ok(());
        }
        if at < passed {
            // Rule 2: the node is syncing, if the fork that it expects next is the one that our chain passed.
            let came = self.forks.get(at).copied();
            return if came == Some(remote.next) { Ok(()) } else { Err(ForkMismatch::RemoteStale) };
        }
        // Rule 1: the same state. If the other node expects a fork that our head has already passed (1a), the chains
        // have split. The number is compared with our height or our time, whichever our next fork uses; a number that
        // can only be a time is also compared with our time.
        let by_height = passed < self.heights || self.forks.len() == self.heights;
        let reached = if by_height { head.height } else { head.time };
        let parted = reached >= remote.next || (remote.next > TIME_THRESHOLD && head.time >= remote.next);
        if remote.next != 0 && parted { Err(ForkMismatch::Incompatible) } else { Ok(()) }
    }

    /// How many forks are at or before `head`. A later fork does not count while an earlier one is still to come.
    fn passed(&self, head: Head) -> usize {
        let reached = |(index, fork): &(usize, &u64)| {
            **fork <= if *index < self.heights { head.height } else { head.time }
        };
        self.forks.iter().enumerate().take_while(reached).count()
    }
}

/// The checksum of a chain that passes a fork at `time` after the state `before`.
#[must_use]
pub fn hash_after(before: [u8; 4], time: u64) -> [u8; 4] {
    crc32(u32::from_be_bytes(before), &time.to_be_bytes()).to_be_bytes()
}

/// The only Unix time below 2^32 at which a fork leads from the checksum `before` to the checksum `after`.
///
/// A fork's eight bytes begin with four zeros until the year 2106. CRC-32 maps the four bytes after them one to one to
/// checksums, so every pair of checksums has exactly one such time. The caller must judge whether that time makes
/// sense.
#[must_use]
pub fn fork_between(before: [u8; 4], after: [u8; 4]) -> u64 {
    let zeros = !crc32(u32::from_be_bytes(before), &[0; 4]);
    let mut state = !u32::from_be_bytes(after);
    // Each step reverses one step of the division: the top bit shows whether the polynomial was subtracted.
    for _ in 0..u32::BITS {
        let carry = state >> 31 == 1;
        if carry {
            state ^= POLYNOMIAL;
        }
        state = (state << 1) | u32::from(carry);
    }
    // The register takes bytes lowest first; the fork number is written highest first.
    u64::from((state ^ zeros).swap_bytes())
}

fn ascending(forks: &[u64], genesis: u64) -> Vec<u64> {
    let mut forks: Vec<u64> = forks.iter().copied().filter(|fork| *fork > genesis).collect();
    forks.sort_unstable();
    forks.dedup();
    forks
}

/// The polynomial of CRC-32 (IEEE 802.3), reflected.
const POLYNOMIAL: u32 = 0xedb8_8320;

/// CRC-32 (IEEE 802.3, reflected) of `bytes`, continued from `crc`. A schedule hashes a few hundred bytes once, so
/// computing bit by bit is fast enough and needs no table.
fn crc32(crc: u32, bytes: &[u8]) -> u32 {
    let mut crc = !crc;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = crc & 1 == 1;
            crc >>= 1;
            if carry {
                crc ^= POLYNOMIAL;
            }
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use data_encoding::HEXLOWER;
    use rand::{Rng as _, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::node::{NodeKey, RecordBuilder};

    const VECTORS: &str = include_str!("../../tests/vectors/fork_id.txt");

    fn rows(kind: &str) -> impl Iterator<Item = Vec<&'static str>> {
        let rows = VECTORS.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(move |row| row.first() == Some(&kind))
    }

    fn numbers(list: &str) -> Vec<u64> {
        list.split(',').filter(|text| *text != "-").map(|text| text.parse().unwrap()).collect()
    }

    fn hash<const N: usize>(hex: &str) -> [u8; N] {
        HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap()
    }

    fn chains() -> HashMap<&'static str, ForkSchedule> {
        let chain = |row: Vec<&'static str>| {
            let time = row[3].parse().unwrap();
            (row[1], ForkSchedule::new(hash(row[2]), time, &numbers(row[4]), &numbers(row[5])))
        };
        rows("chain").map(chain).collect()
    }

    fn head_and_id(row: &[&str]) -> (Head, ForkId) {
        let number = |index: usize| row[index].parse().unwrap();
        (Head { height: number(2), time: number(3) }, ForkId { hash: hash(row[4]), next: number(5) })
    }

    #[test]
    fn ids_of_the_public_chains() {
        let chains = chains();
        for row in rows("id") {
            let (head, id) = head_and_id(&row);
            assert_eq!(chains[row[1]].id(head), id, "{row:?}");
        }
        assert_eq!(rows("id").count(), 83);
    }

    #[test]
    fn validation() {
        let chains = chains();
        for row in rows("check") {
            let (head, id) = head_and_id(&row);
            let verdict = match chains[row[1]].check(head, id) {
                Ok(()) => "ok",
                Err(ForkMismatch::RemoteStale) => "stale",
                Err(ForkMismatch::Incompatible) => "incompatible",
            };
            assert_eq!(verdict, row[6], "{row:?}");
        }
        assert_eq!(rows("check").count(), 45);
    }

    #[test]
    fn a_checksum_and_the_next_give_the_fork_between() {
        // Sepolia's Amsterdam fork, from the checksums that its nodes announce.
        assert_eq!(fork_between(hash("268956b6"), hash("6c1d9423")), 1_791_294_816);
        let mut rng = StdRng::seed_from_u64(3);
        for _ in 0..10_000 {
            let (before, time) = (rng.random::<[u8; 4]>(), u64::from(rng.random::<u32>()));
            assert_eq!(fork_between(before, hash_after(before, time)), time);
        }
        for chain in chains().values() {
            for (index, fork) in chain.forks.iter().enumerate() {
                assert_eq!(fork_between(chain.sums[index], chain.sums[index + 1]), *fork);
            }
        }
    }

    #[test]
    fn record_entry() {
        for row in rows("rlp") {
            let id = ForkId { hash: hash(row[1]), next: row[2].parse().unwrap() };
            let inner = HEXLOWER.decode(row[3].as_bytes()).unwrap();
            let mut entry = vec![0xc0 + u8::try_from(inner.len()).unwrap()];
            entry.extend(&inner);
            assert_eq!(id.encode_entry(), entry);
            assert_eq!(ForkId::decode_entry(&entry), Ok(id));
        }
        let read = |hex: &str| ForkId::decode_entry(&HEXLOWER.decode(hex.as_bytes()).unwrap());
        let zero = Ok(ForkId { hash: [0; 4], next: 0 });
        assert_eq!(read("c8c684000000008005"), zero, "more elements in the entry");
        assert_eq!(read("c8c784000000008005"), zero, "more elements in the id");
    }

    #[test]
    fn an_entry_that_is_something_else_counts_as_absent() {
        let key = NodeKey::random(&mut StdRng::seed_from_u64(1));
        let id = ForkId { hash: [1, 2, 3, 4], next: 5 };
        let of = |value: &[u8]| {
            ForkId::of_record(&RecordBuilder::new(1).set_raw(b"eth", value).sign(&key).unwrap())
        };
        assert_eq!(of(&id.encode_entry()), Some(id));
        // A string; an empty list; a hash of three bytes; a number of nine; the id without the outer list.
        let table: [&[u8]; 5] = [
            &[0x80],
            &[0xc0],
            &[0xc6, 0xc5, 0x83, 1, 2, 3, 0x80],
            &[0xd0, 0xcf, 0x84, 1, 2, 3, 4, 0x89, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xc6, 0x84, 1, 2, 3, 4, 0x80],
        ];
        for value in table {
            assert_eq!(of(value), None, "{value:02x?}");
        }
    }
}
