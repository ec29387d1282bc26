//! The position of a watcher, and the changes that it gets next.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::str::FromStr;

use super::{Change, Kind, Watch};

/// How many changes one pull handles, reported or passed over: a bound on the time for which the owner's lock is held.
const MAX_STEPS: usize = 4_096;

/// The point at which a watcher can resume after its connection broke: a run of the sidecar and a position in its
/// changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchToken {
    instance: u64,
    position: u64,
}

impl fmt::Display for WatchToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.instance, self.position)
    }
}

/// The text is not a token that a sidecar wrote. A watcher with such a token starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a resume token of a watch: expected the 32 lowercase hex digits of an earlier mark")]
pub struct NotAToken;

impl FromStr for WatchToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| NotAToken)?;
        let bytes: [u8; 16] = bytes.try_into().map_err(|_| NotAToken)?;
        let both = u128::from_be_bytes(bytes);
        let low = both & u128::from(u64::MAX);
        let part = |half: u128| u64::try_from(half).map_err(|_| NotAToken);
        Ok(Self { instance: part(both >> 64)?, position: part(low)? })
    }
}

/// The mark after the changes of one pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The point at which to resume. `None` within a snapshot, which cannot be resumed.
    pub token: Option<WatchToken>,
    /// The changes since the watcher's position are not kept any more: the watcher must discard its copy, and a
    /// snapshot follows. No changes come before this mark.
    pub reset: bool,
    /// The changes before this mark complete the snapshot.
    pub synced: bool,
    /// How many changes were passed over since the last mark.
    pub coalesced: u64,
    /// Whether there is more to pull now.
    pub more: bool,
}

#[derive(Debug)]
enum Phase<K> {
    /// The watcher must get a reset, and then a snapshot.
    Reset,
    /// The watcher got all keys up to this one.
    Snapshot(Option<K>),
    /// The watcher gets changes as they come.
    Live,
}

/// The position of a watcher in a [`Watch`].
#[derive(Debug)]
pub struct Cursor<K> {
    phase: Phase<K>,
    /// All changes up to here were reported or passed over.
    position: u64,
    /// Keys whose reported state is later than the watcher's position, with the position of that state.
    ahead: BTreeMap<K, u64>,
    /// For a watcher that resumed: the last position when it did. Its client may have got changes up to here, later
    /// than its token. So it may know keys that were added before.
    maybe_known: u64,
    coalesced: u64,
}

impl<K: Ord + Clone> Cursor<K> {
    /// A watcher that begins with a snapshot, or after `token` if the ring still has the changes since then.
    pub(super) fn new<V>(watch: &Watch<K, V>, token: Option<WatchToken>) -> Self {
        let begin = |phase, position, maybe_known| Self {
            phase,
            position,
            ahead: BTreeMap::new(),
            maybe_known,
            coalesced: 0,
        };
        match token {
            None => begin(Phase::Snapshot(None), watch.head, 0),
            // The pull finds out whether the ring reaches back so far.
            Some(token) if token.instance == watch.instance && token.position <= watch.head => {
                begin(Phase::Live, token.position, watch.head)
            }
            Some(_) => Self::anew(watch),
        }
    }

    /// A watcher that gets a reset, then the snapshot.
    pub(super) fn anew<V>(watch: &Watch<K, V>) -> Self {
        Self { phase: Phase::Reset, ..Self::new(watch, None) }
    }

    /// How many keys the watcher is ahead of: what it costs in memory.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.ahead.len()
    }

    /// Whether there is nothing to pull.
    #[cfg(any(test, feature = "internals"))]
    pub(super) fn is_current<V>(&self, watch: &Watch<K, V>) -> bool {
        matches!(self.phase, Phase::Live) && self.position == watch.head
    }

    /// Appends the next changes for the watcher to `out`, about `max`, and returns the mark that follows them.
    pub(super) fn pull<V>(&mut self, watch: &Watch<K, V>, max: usize, out: &mut Vec<Change<K, V>>) -> Mark {
        if self.position.saturating_add(1) < watch.oldest() {
            self.phase = Phase::Reset;
        }
        let mut mark = Mark { token: None, reset: false, synced: false, coalesced: 0, more: true };
        match &self.phase {
            Phase::Reset => {
                self.phase = Phase::Snapshot(None);
                self.position = watch.head;
                self.ahead.clear();
                self.maybe_known = 0;
                mark.reset = true;
            }
            Phase::Snapshot(after) => {
                let after = after.clone();
                mark.synced = self.snapshot(watch, after, max, out);
            }
            Phase::Live => self.changes(watch, max, out),
        }
        if matches!(self.phase, Phase::Live) {
            mark.token = Some(WatchToken { instance: watch.instance, position: self.position });
            mark.more = self.position < watch.head;
        }
        mark.coalesced = std::mem::take(&mut self.coalesced);
        mark
    }

    /// Appends the next keys of the snapshot; returns true if they were the last.
    fn snapshot<V>(
        &mut self,
        watch: &Watch<K, V>,
        after: Option<K>,
        max: usize,
        out: &mut Vec<Change<K, V>>,
    ) -> bool {
        let mut left = max.max(1);
        let begin = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        for (key, entry) in watch.entries.range((begin, Bound::Unbounded)) {
            if left == 0 {
                return false;
            }
            // For a key that changed since the snapshot began, the watcher gets the current state now, and will pass
            // over the changes that led to it.
            if entry.latest > self.position {
                self.ahead.insert(key.clone(), entry.latest);
            }
            if entry.present {
                left -= 1;
                out.push(Change { kind: Kind::Snapshot, key: key.clone(), value: entry.value.clone() });
                self.phase = Phase::Snapshot(Some(key.clone()));
            }
        }
        self.phase = Phase::Live;
        true
    }

    /// Appends the next changes.
    fn changes<V>(&mut self, watch: &Watch<K, V>, max: usize, out: &mut Vec<Change<K, V>>) {
        let full = out.len().saturating_add(max.max(1));
        let skip = self.position.saturating_add(1).saturating_sub(watch.oldest());
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        for past in watch.ring.iter().skip(skip).take(MAX_STEPS) {
            if out.len() >= full {
                return;
            }
            self.position = self.position.saturating_add(1);
            let position = self.position;
            if let Some(&ahead) = self.ahead.get(&past.key) {
                if ahead <= position {
                    self.ahead.remove(&past.key);
                }
                if position <= ahead {
                    self.coalesced = self.coalesced.saturating_add(1);
                    continue;
                }
            }
            let Some(entry) = watch.entries.get(&past.key) else { continue };
            if entry.latest > position {
                self.ahead.insert(past.key.clone(), entry.latest);
            }
            let mut tell =
                |kind| out.push(Change { kind, key: past.key.clone(), value: entry.value.clone() });
            let is_new = past.kind == Kind::Added && position > self.maybe_known;
            // Three facts decide what the watcher gets. Is the key present now? Was it removed and added again since
            // this change (then it has another life)? Is it certain that the watcher does not know the key yet
            // (`is_new`)?
            match (entry.present, past.life == entry.life) {
                (true, true) => tell(past.kind),
                (true, false) if is_new => tell(Kind::Added),
                (true, false) => {
                    tell(Kind::Removed);
                    tell(Kind::Added);
                }
                // Added and removed before the watcher got either.
                (false, _) if is_new => self.coalesced = self.coalesced.saturating_add(1),
                (false, _) => tell(Kind::Removed),
            }
        }
    }
}
