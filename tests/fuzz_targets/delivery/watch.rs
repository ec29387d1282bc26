//! A watch against a plain map.

use std::collections::BTreeMap;

use devp2pd::watch::{Cursor, Kind, Watch};

use super::Script;

/// Runs the script.
pub(super) fn run(data: &[u8]) {
    let mut script = Script(data);
    let capacity = 1 + script.below(64).unwrap_or(0);
    let mut source: Watch<usize, usize> = Watch::new(1, capacity);
    let mut cursor: Cursor<usize> = source.watch(None);
    let mut copy: BTreeMap<usize, usize> = BTreeMap::new();
    let mut token = None;
    let mut value = 0;
    let pull = |source: &Watch<usize, usize>, cursor: &mut Cursor<usize>, copy: &mut BTreeMap<_, _>, max| {
        let mut out = Vec::new();
        let mark = source.pull(cursor, max, &mut out);
        assert!(out.len() <= max + 1);
        if mark.reset {
            assert!(out.is_empty());
            copy.clear();
        }
        for change in out {
            match change.kind {
                Kind::Removed => copy.remove(&change.key),
                Kind::Snapshot | Kind::Added | Kind::Updated => copy.insert(change.key, *change.value),
            };
        }
        mark
    };
    while let Some(operation) = script.below(8) {
        let argument = script.next().unwrap_or(0);
        value += 1;
        match operation {
            0..=2 => source.set(argument % 20, value),
            3 | 4 => source.remove(&(argument % 20), value, argument),
            5 | 6 => {
                let mark = pull(&source, &mut cursor, &mut copy, 1 + argument % 9);
                token = mark.token.or(token);
            }
            _ => {
                token = token.filter(|_| argument % 3 > 0);
                cursor = source.watch(token);
                if token.is_none() {
                    copy.clear();
                }
            }
        }
    }
    while pull(&source, &mut cursor, &mut copy, 5).more {}
    assert!(source.is_current(&cursor));
    let state: BTreeMap<usize, usize> = source.iter().map(|(key, value)| (*key, **value)).collect();
    assert_eq!(copy, state);
}
