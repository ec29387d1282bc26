//! Scripts, and sequences of operations under which a watcher must end with the right state.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type TestWatch = Watch<u8, u32>;

fn pulled(watch: &TestWatch, cursor: &mut Cursor<u8>, max: usize) -> (Vec<String>, Mark) {
    let mut out = Vec::new();
    let mark = watch.pull(cursor, max, &mut out);
    (out.iter().map(|change| format!("{:?} {} {}", change.kind, change.key, change.value)).collect(), mark)
}

fn token(mark: &Mark) -> WatchToken {
    let text = mark.token.expect("a token").to_string();
    text.parse().expect("what we wrote")
}

#[test]
fn snapshot_then_changes() {
    let mut watch = TestWatch::new(1, MAX_CHANGES);
    for key in 1..=3 {
        watch.set(key, 10);
    }
    watch.remove(&2, 99, 0);
    let mut cursor = watch.watch(None);
    let (seen, mark) = pulled(&watch, &mut cursor, 1);
    assert_eq!((seen, mark.synced, mark.more), (vec!["Snapshot 1 10".into()], false, true));
    assert_eq!(mark.token, None, "a snapshot cannot be resumed in the middle");
    let (seen, mark) = pulled(&watch, &mut cursor, 500);
    assert_eq!((seen, mark.synced, mark.more), (vec!["Snapshot 3 10".into()], true, false));
    assert!(watch.is_current(&cursor));
    watch.set(2, 20);
    watch.set(1, 11);
    watch.remove(&3, 30, 0);
    assert!(!watch.is_current(&cursor));
    let (seen, mark) = pulled(&watch, &mut cursor, 500);
    assert_eq!(seen, ["Added 2 20", "Updated 1 11", "Removed 3 30"]);
    assert_eq!((mark.reset, mark.synced, mark.coalesced, mark.more), (false, false, 0, false));
    assert_eq!((watch.len(), watch.get(&3), watch.iter().count()), (2, None, 2));
}

#[test]
fn what_changed_often_is_told_once() {
    let mut watch = TestWatch::new(1, MAX_CHANGES);
    watch.set(1, 0);
    watch.set(2, 0);
    let mut cursor = watch.watch(None);
    pulled(&watch, &mut cursor, 10);
    for value in 1..=1000 {
        watch.set(1, value);
    }
    watch.remove(&2, 7, 0); // removed and added again: not an update
    watch.set(2, 8);
    watch.set(3, 1); // added and removed between two pulls
    watch.remove(&3, 2, 0);
    watch.set(4, 1);
    watch.set(4, 2);
    let (seen, mark) = pulled(&watch, &mut cursor, 500);
    assert_eq!(seen, ["Updated 1 1000", "Removed 2 8", "Added 2 8", "Added 4 2"]);
    assert_eq!((mark.coalesced, mark.more), (999 + 1 + 2 + 1, false));
    assert!(watch.is_current(&cursor));
    watch.set(1, 5);
    assert_eq!(pulled(&watch, &mut cursor, 9).0, ["Updated 1 5"]);
}

#[test]
fn resuming() {
    let mut watch = TestWatch::new(1, 4);
    watch.set(1, 1);
    let mut cursor = watch.watch(None);
    let (_, mark) = pulled(&watch, &mut cursor, 9);
    let token = token(&mark);
    watch.set(2, 2);
    watch.remove(&1, 0, 0);
    let mut resumed = watch.watch(Some(token));
    let (seen, mark) = pulled(&watch, &mut resumed, 9);
    assert_eq!((seen, mark.reset), (vec!["Added 2 2".into(), "Removed 1 0".into()], false));

    for value in 0..5 {
        watch.set(3, value);
    }
    // The ring has dropped the changes after the first token. The second has a position that this run has not reached.
    // The third is of another run.
    let strange: WatchToken = "0000000000000001ffffffffffffffff".parse().unwrap();
    let other: WatchToken = "00000000000000020000000000000001".parse().unwrap();
    for token in [token, strange, other] {
        let mut cursor = watch.watch(Some(token));
        let (seen, mark) = pulled(&watch, &mut cursor, 9);
        assert!(seen.is_empty() && mark.reset && mark.more && mark.token.is_none());
        let (seen, mark) = pulled(&watch, &mut cursor, 9);
        assert_eq!((seen, mark.synced), (vec!["Snapshot 2 2".into(), "Snapshot 3 4".into()], true));
    }
    // A watcher that has missed more changes than the ring holds is reset, too.
    let (seen, mark) = pulled(&watch, &mut resumed, 9);
    assert!(seen.is_empty() && mark.reset);
    for text in ["", "xyz", "00", "000000000000000100000000000000010", "0000000000000001FFFFFFFFFFFFFFFF"] {
        assert!(text.parse::<WatchToken>().is_err(), "{text}");
    }
}

#[test]
fn memory_is_bounded_by_keys_and_ring() {
    let mut watch: Watch<u32, u32> = Watch::new(1, 100);
    let mut cursor = watch.watch(None);
    watch.pull(&mut cursor, 10, &mut Vec::new());
    for key in 0..10_000 {
        watch.set(key, 0);
        watch.remove(&key, 1, 0);
    }
    assert!(watch.is_empty());
    assert!(watch.entries.len() <= 100, "{} entries are remembered", watch.entries.len());
    assert!(watch.ring.len() <= 100);
}

#[derive(Clone, Debug)]
enum Operation {
    Set(u8, u32),
    Remove(u8),
    Pull(usize),
    /// The connection breaks; the watcher resumes with its last mark, or without one.
    Resume(bool),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (0_u8..6, any::<u32>()).prop_map(|(key, value)| Operation::Set(key, value)),
        3 => (0_u8..6).prop_map(Operation::Remove),
        3 => (1_usize..4).prop_map(Operation::Pull),
        1 => any::<bool>().prop_map(Operation::Resume),
    ]
}

/// A client's copy of the state, made from the changes that it got.
#[derive(Default)]
struct Copy {
    state: BTreeMap<u8, u32>,
    token: Option<WatchToken>,
    /// Whether its state may be later than its token: then it may get a change twice.
    resumed: bool,
}

impl Copy {
    fn take(&mut self, changes: &[Change<u8, u32>], mark: &Mark) -> Result<(), TestCaseError> {
        if mark.reset {
            prop_assert!(changes.is_empty());
            self.state.clear();
            self.resumed = false;
        }
        for change in changes {
            let known = self.state.contains_key(&change.key);
            if !self.resumed {
                prop_assert_eq!(known, matches!(change.kind, Kind::Updated | Kind::Removed), "{:?}", change);
            }
            match change.kind {
                Kind::Removed => self.state.remove(&change.key),
                _ => self.state.insert(change.key, *change.value),
            };
        }
        if mark.token.is_some() {
            self.token = mark.token;
        }
        Ok(())
    }
}

proptest! {
    /// However slowly a watcher pulls and however often its connection breaks, it ends with the right state. Without a
    /// break, every change fits the state before. No more than a ring of changes is ever held for it.
    #[test]
    fn state_is_never_lost(
        operations in proptest::collection::vec(operation(), 1..150),
        capacity in 1_usize..40,
    ) {
        let mut watch = TestWatch::new(7, capacity);
        let mut cursor = watch.watch(None);
        let mut copy = Copy::default();
        let pull = |watch: &TestWatch, cursor: &mut Cursor<u8>, copy: &mut Copy, max| {
            let mut out = Vec::new();
            let mark = watch.pull(cursor, max, &mut out);
            copy.take(&out, &mark).map(|()| mark.more)
        };
        for operation in operations {
            match operation {
                Operation::Set(key, value) => watch.set(key, value),
                Operation::Remove(key) => watch.remove(&key, 0, 0),
                Operation::Pull(max) => { pull(&watch, &mut cursor, &mut copy, max)?; }
                Operation::Resume(with_token) => {
                    let token = copy.token.filter(|_| with_token);
                    cursor = watch.watch(token);
                    if token.is_none() {
                        copy.state.clear();
                    }
                    copy.resumed = token.is_some();
                    copy.token = token;
                }
            }
            prop_assert!(cursor.remembered() <= 6);
            prop_assert!(watch.entries.len() <= 6 && watch.ring.len() <= capacity);
        }
        while pull(&watch, &mut cursor, &mut copy, 3)? {}
        prop_assert!(watch.is_current(&cursor));
        let state: BTreeMap<u8, u32> = watch.iter().map(|(key, value)| (*key, **value)).collect();
        prop_assert_eq!(copy.state, state);
    }
}

#[test]
fn what_went_is_bounded_in_bytes() {
    let mut watch: Watch<u32, u32> = Watch::new(1, MAX_CHANGES);
    watch.set(0, 0);
    let mut early = watch.watch(None);
    let mut out = Vec::new();
    while watch.pull(&mut early, 10, &mut out).more {}
    let bytes = MAX_GONE_BYTES / 100;
    for key in 1..10_000 {
        watch.set(key, key);
        watch.remove(&key, key, bytes);
        assert!(watch.gone_bytes <= MAX_GONE_BYTES && watch.entries.len() <= 102);
    }
    assert_eq!(watch.gone_bytes, 100 * bytes);
    // A watcher that has not come so far starts again and gets the state; the key that is present is not affected.
    out.clear();
    let mark = watch.pull(&mut early, 10, &mut out);
    assert!(mark.reset && out.is_empty());
    while watch.pull(&mut early, 10, &mut out).more {}
    assert_eq!(out.iter().map(|change| change.key).collect::<Vec<_>>(), [0]);
    // A key that is added again no longer counts its last value; the removal of an unknown key adds nothing.
    watch.set(9_999, 1);
    assert_eq!(watch.gone_bytes, 99 * bytes);
    watch.remove(&77_777, 1, bytes);
    assert_eq!(watch.gone_bytes, 99 * bytes);
}
