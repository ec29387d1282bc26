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
    pub(super) position: u64,
    /// Keys whose reported state is later than the watcher's position, with the position of that state.
    pub(super) ahead: BTreeMap<K, u64>,
    /// For a watcher that resumed: the last position when it did. Its client may have got changes up to here, later
    /// than its token. So it may know keys that were added before.
    maybe_known: u64,
    coalesced: u64,
}

impl<K> Cursor<K> {
    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }
}

impl<K: Ord + Clone, V> Watch<K, V> {
    /// A watcher that begins with a snapshot, or after `token` if the ring still has the changes since then.
    #[must_use]
    pub fn watch(&self, token: Option<WatchToken>) -> Cursor<K> {
        let mut cursor = Cursor {
            phase: Phase::Snapshot(None),
            position: self.head,
            ahead: BTreeMap::new(),
            maybe_known: 0,
            coalesced: 0,
        };
        if let Some(token) = token {
            if token.instance == self.instance && token.position <= self.head {
                cursor.phase = Phase::Live; // the pull finds out whether the ring reaches back so far
                cursor.position = token.position;
                cursor.maybe_known = self.head;
            } else {
                cursor.phase = Phase::Reset;
            }
        }
        cursor
    }

    /// A watcher with a token that this sidecar cannot have written: it gets a reset, then the snapshot.
    #[must_use]
    pub fn watch_anew(&self) -> Cursor<K> {
        Cursor { phase: Phase::Reset, ..self.watch(None) }
    }

    /// Appends the next changes for the watcher to `out`, about `max`, and returns the mark that follows them.
    pub fn pull(&self, cursor: &mut Cursor<K>, max: usize, out: &mut Vec<Change<K, V>>) -> Mark {
        if cursor.position.saturating_add(1) < self.oldest() {
            cursor.phase = Phase::Reset;
        }
        let mut mark = Mark { token: None, reset: false, synced: false, coalesced: 0, more: true };
        match &cursor.phase {
            Phase::Reset => {
                cursor.phase = Phase::Snapshot(None);
                cursor.position = self.head;
                cursor.ahead.clear();
                cursor.maybe_known = 0;
                mark.reset = true;
            }
            Phase::Snapshot(after) => {
                let after = after.clone();
                mark.synced = self.snapshot(cursor, after, max, out);
            }
            Phase::Live => self.changes(cursor, max, out),
        }
        if cursor.is_live() {
            mark.token = Some(WatchToken { instance: self.instance, position: cursor.position });
            mark.more = cursor.position < self.head;
        }
        mark.coalesced = std::mem::take(&mut cursor.coalesced);
        mark
    }

    /// Appends the next keys of the snapshot; returns true if they were the last.
    fn snapshot(
        &self,
        cursor: &mut Cursor<K>,
        after: Option<K>,
        max: usize,
        out: &mut Vec<Change<K, V>>,
    ) -> bool {
        let mut left = max.max(1);
        let begin = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        for (key, entry) in self.entries.range((begin, Bound::Unbounded)) {
            if left == 0 {
                return false;
            }
            // For a key that changed since the snapshot began, the watcher gets the current state now, and will pass
            // over the changes that led to it.
            if entry.latest > cursor.position {
                cursor.ahead.insert(key.clone(), entry.latest);
            }
            if entry.present {
                left -= 1;
                out.push(Change { kind: Kind::Snapshot, key: key.clone(), value: entry.value.clone() });
                cursor.phase = Phase::Snapshot(Some(key.clone()));
            }
        }
        cursor.phase = Phase::Live;
        true
    }

    /// Appends the next changes.
    fn changes(&self, cursor: &mut Cursor<K>, max: usize, out: &mut Vec<Change<K, V>>) {
        let full = out.len().saturating_add(max.max(1));
        let skip = cursor.position.saturating_add(1).saturating_sub(self.oldest());
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        for past in self.ring.iter().skip(skip).take(MAX_STEPS) {
            if out.len() >= full {
                return;
            }
            cursor.position = cursor.position.saturating_add(1);
            let position = cursor.position;
            if let Some(&ahead) = cursor.ahead.get(&past.key) {
                if ahead <= position {
                    cursor.ahead.remove(&past.key);
                }
                if position <= ahead {
                    cursor.coalesced = cursor.coalesced.saturating_add(1);
                    continue;
                }
            }
            let Some(entry) = self.entries.get(&past.key) else { continue };
            if entry.latest > position {
                cursor.ahead.insert(past.key.clone(), entry.latest);
            }
            let mut tell =
                |kind| out.push(Change { kind, key: past.key.clone(), value: entry.value.clone() });
            let is_new = past.kind == Kind::Added && position > cursor.maybe_known;
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
                (false, _) if is_new => cursor.coalesced = cursor.coalesced.saturating_add(1),
                (false, _) => tell(Kind::Removed),
            }
        }
    }
}
