//! Capabilities, and the layout of those that two nodes share in one space of message codes.
//!
//! For each name the highest version that both have is used. The names are sorted by their bytes. They get consecutive
//! ranges of codes from 0x10 on, each as long as *our* message count for that version (rlpx.md, "Capability
//! Messaging"). Both sides compute the layout for themselves, so a wrong count shifts every range behind it.

use std::sync::Arc;

use super::BASE_CODES;

/// A protocol and version that a remote node offered in its Hello.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability {
    /// The protocol's short name. From a stranger: escape it before showing it.
    pub name: String,
    /// The protocol's version.
    pub version: u32,
}

/// A protocol and version that we have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocalCapability {
    /// The protocol's short name, such as `eth`.
    pub name: Arc<str>,
    /// The protocol's version.
    pub version: u32,
    /// How many message codes the protocol uses in this version, the highest code plus one.
    pub message_count: u64,
}

/// A channel among those of a connection: its position in the order of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelIndex(pub u16);

/// One shared capability of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Its position among the connection's channels.
    pub index: ChannelIndex,
    /// The protocol's short name.
    pub name: Arc<str>,
    /// The version that was negotiated.
    pub version: u32,
    /// The code on the wire of the protocol's message 0.
    pub offset: u64,
    /// How many message codes the protocol has.
    pub message_count: u64,
}

impl Channel {
    /// The protocol's own code for `code` on the wire, if it is in this channel's range.
    #[must_use]
    pub fn relative(&self, code: u64) -> Option<u64> {
        code.checked_sub(self.offset).filter(|relative| *relative < self.message_count)
    }
}

/// The channels of a connection between `local` and `remote`, in the order of their codes.
#[must_use]
pub fn negotiate(local: &[LocalCapability], remote: &[Capability]) -> Arc<[Channel]> {
    let shared = |ours: &&LocalCapability| {
        remote.iter().any(|theirs| *theirs.name == *ours.name && theirs.version == ours.version)
    };
    let mut best: Vec<&LocalCapability> = local.iter().filter(shared).collect();
    best.sort_by(|a, b| a.name.cmp(&b.name).then(b.version.cmp(&a.version)));
    best.dedup_by(|later, earlier| later.name == earlier.name);

    let mut offset = BASE_CODES;
    let channel = |(index, ours): (u16, &LocalCapability)| {
        let channel = Channel {
            index: ChannelIndex(index),
            name: ours.name.clone(),
            version: ours.version,
            offset,
            message_count: ours.message_count,
        };
        offset = offset.saturating_add(ours.message_count);
        channel
    };
    (0..u16::MAX).zip(best).map(channel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(list: &[(&str, u32, u64)]) -> Vec<LocalCapability> {
        let one = |&(name, version, message_count): &(&str, u32, u64)| LocalCapability {
            name: name.into(),
            version,
            message_count,
        };
        list.iter().map(one).collect()
    }

    fn remote(list: &[(&str, u32)]) -> Vec<Capability> {
        list.iter().map(|&(name, version)| Capability { name: name.to_owned(), version }).collect()
    }

    #[test]
    fn channels_are_laid_out_by_name_with_the_highest_shared_version() {
        type Case<'a> = (&'a [(&'a str, u32, u64)], &'a [(&'a str, u32)], &'a [(&'a str, u32, u64)]);
        // ours (name, version, count), theirs, expected (name, version, offset)
        let table: &[Case<'_>] = &[
            (&[], &[("eth", 69)], &[]),
            (&[("eth", 69, 18)], &[], &[]),
            (&[("eth", 69, 18)], &[("eth", 68)], &[]),
            (&[("eth", 68, 17), ("eth", 69, 18)], &[("eth", 68), ("eth", 67)], &[("eth", 68, 0x10)]),
            // The order of neither list matters; the offset of snap follows the version of eth that was chosen.
            (
                &[("snap", 1, 8), ("eth", 68, 17), ("eth", 69, 18)],
                &[("eth", 69), ("snap", 1), ("eth", 68)],
                &[("eth", 69, 0x10), ("snap", 1, 0x22)],
            ),
            (
                &[("snap", 1, 8), ("eth", 68, 17)],
                &[("snap", 1), ("eth", 68)],
                &[("eth", 68, 0x10), ("snap", 1, 0x21)],
            ),
            // Names are ordered by bytes: capitals first.
            (&[("a", 1, 5), ("Z", 1, 5)], &[("a", 1), ("Z", 1)], &[("Z", 1, 0x10), ("a", 1, 0x15)]),
            // A capability that is named twice counts once.
            (&[("a", 1, 5), ("b", 1, 1)], &[("a", 1), ("a", 1), ("b", 1)], &[("a", 1, 0x10), ("b", 1, 0x15)]),
            (
                &[("a", 1, 5), ("a", 1, 5), ("b", 1, 1)],
                &[("a", 1), ("b", 1)],
                &[("a", 1, 0x10), ("b", 1, 0x15)],
            ),
        ];
        for (ours, theirs, expected) in table {
            let channels = negotiate(&local(ours), &remote(theirs));
            let found: Vec<_> = channels.iter().map(|c| (&*c.name, c.version, c.offset)).collect();
            assert_eq!(found, *expected, "{ours:?} with {theirs:?}");
            assert!(channels.iter().enumerate().all(|(at, c)| usize::from(c.index.0) == at));
        }
    }

    #[test]
    fn a_count_of_any_size_does_not_overflow() {
        let channels = negotiate(&local(&[("a", 1, u64::MAX), ("b", 1, 1)]), &remote(&[("a", 1), ("b", 1)]));
        assert_eq!(channels[1].offset, u64::MAX);
        assert_eq!(channels[1].relative(u64::MAX), Some(0));
    }

    #[test]
    fn codes_belong_to_one_channel() {
        let channels = negotiate(&local(&[("a", 1, 5), ("b", 1, 2)]), &remote(&[("a", 1), ("b", 1)]));
        let find = |code| channels.iter().find_map(|c| Some((c.index.0, c.relative(code)?)));
        assert_eq!(find(0x0f), None);
        assert_eq!(find(0x10), Some((0, 0)));
        assert_eq!(find(0x14), Some((0, 4)));
        assert_eq!(find(0x15), Some((1, 0)));
        assert_eq!(find(0x16), Some((1, 1)));
        assert_eq!(find(0x17), None);
    }
}
