//! XOR distance between node ids (discv4.md "Node Identities", discv5-theory.md "Sybil and distance").
//!
//! The engines think in logarithmic distances: 0 for the same id, otherwise the position of the highest differing
//! bit, 1 to 256. Half of all ids are at distance 256, a quarter at 255, and so on.

use std::cmp::Ordering;

use crate::node::NodeId;

/// The logarithmic distance of two ids: 0 (equal) to 256.
#[must_use]
pub fn log_distance(a: &NodeId, b: &NodeId) -> u16 {
    let mut distance = 256;
    for (a, b) in a.0.iter().zip(&b.0) {
        let differing = a ^ b;
        if differing != 0 {
            // At most 8 leading zeros; a u16 holds 256.
            return distance - u16::from(differing.leading_zeros() as u8);
        }
        distance -= 8;
    }
    0
}

/// Which of `a` and `b` is closer to `target`: `Less` means `a`.
#[must_use]
pub fn closer(target: &NodeId, a: &NodeId, b: &NodeId) -> Ordering {
    let of = |id: &NodeId| xor(target, id);
    of(a).cmp(&of(b))
}

/// The XOR of two ids, which orders ids by their distance when it is compared as a number.
#[must_use]
pub fn xor(a: &NodeId, b: &NodeId) -> [u8; 32] {
    let mut out = a.0;
    out.iter_mut().zip(&b.0).for_each(|(a, b)| *a ^= b);
    out
}

/// How many distances one FINDNODE of a discv5 lookup asks for, as geth's.
pub const LOOKUP_DISTANCES: usize = 3;

/// The distances to ask `asked` for in a discv5 lookup of `target`: its own distance to the target first, then the
/// neighbouring ones, nearest first, all within 1 to 256. Empty only when `asked` is the target itself.
#[must_use]
pub fn lookup_distances(target: &NodeId, asked: &NodeId) -> Vec<u16> {
    let middle = log_distance(target, asked);
    let mut out = Vec::with_capacity(LOOKUP_DISTANCES);
    if middle == 0 {
        return out;
    }
    out.push(middle);
    let mut step = 1;
    while out.len() < LOOKUP_DISTANCES {
        // Of 1 ..= 256 three distances always exist, so the loop ends.
        if middle + step <= 256 {
            out.push(middle + step);
        }
        if out.len() < LOOKUP_DISTANCES && middle > step {
            out.push(middle - step);
        }
        step += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(set: &[(usize, u8)]) -> NodeId {
        let mut bytes = [0; 32];
        for (index, byte) in set {
            bytes[*index] = *byte;
        }
        NodeId(bytes)
    }

    #[test]
    fn log_distance_is_the_highest_differing_bit() {
        let zero = id(&[]);
        let table = [
            (id(&[]), 0),
            (id(&[(31, 1)]), 1),
            (id(&[(31, 0x80)]), 8),
            (id(&[(30, 1)]), 9),
            (id(&[(1, 0x80)]), 248),
            (id(&[(0, 1), (31, 1)]), 249),
            (id(&[(0, 0x80)]), 256),
            (NodeId([0xff; 32]), 256),
        ];
        for (other, distance) in table {
            assert_eq!(log_distance(&zero, &other), distance, "{other}");
            assert_eq!(log_distance(&other, &zero), distance, "{other}");
        }
    }

    #[test]
    fn lookups_ask_three_neighbouring_distances() {
        let zero = id(&[]);
        let table = [
            (id(&[]), vec![]),
            (id(&[(31, 1)]), vec![1, 2, 3]),
            (id(&[(31, 2)]), vec![2, 3, 1]),
            (id(&[(0, 1)]), vec![249, 250, 248]),
            (id(&[(0, 0x80)]), vec![256, 255, 254]),
        ];
        for (asked, distances) in table {
            assert_eq!(lookup_distances(&zero, &asked), distances, "{asked}");
        }
    }

    proptest::proptest! {
        #[test]
        fn closer_agrees_with_log_distance(t in proptest::array::uniform32(0u8..), a in proptest::array::uniform32(0u8..), b in proptest::array::uniform32(0u8..)) {
            let (t, a, b) = (NodeId(t), NodeId(a), NodeId(b));
            let logs = log_distance(&t, &a).cmp(&log_distance(&t, &b));
            proptest::prop_assert!(logs == Ordering::Equal || logs == closer(&t, &a, &b));
            proptest::prop_assert_eq!(closer(&t, &a, &b), closer(&t, &b, &a).reverse());
        }
    }
}
