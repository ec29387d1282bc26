//! The static, trusted and ban lists as one value that survives restarts.
//!
//! It contains only entries that calls have added: the configuration's entries are read from there at each start. Nodes
//! are kept in the words that were given, so that a host name stays a name. The file is written by `net`. It is not the
//! node database, whose loss must not lift a ban.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    bans::{Ban, BanTarget, MAX_BANS},
    dial::{ListSource, Listed, MAX_LISTED},
};
use crate::node::{NodeRef, node_ref::NodeRefError};

/// The layout of this value. A file of a later layout is refused rather than half understood.
pub const VERSION: u32 = 1;

/// The lists, serializable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lists {
    /// [`VERSION`].
    pub version: u32,
    /// Static peers, each in one of the four forms of [`NodeRef`].
    #[serde(default)]
    pub static_peers: Vec<String>,
    /// Trusted peers, likewise.
    #[serde(default)]
    pub trusted_peers: Vec<String>,
    /// Bans.
    #[serde(default)]
    pub bans: Vec<BanLine>,
}

/// One ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BanLine {
    /// A node id, an address or a network.
    pub target: String,
    /// The end, in seconds since the Unix epoch.
    pub until: u64,
    /// Why.
    #[serde(default)]
    pub reason: String,
}

impl Default for Lists {
    fn default() -> Self {
        Self { version: VERSION, static_peers: Vec::new(), trusted_peers: Vec::new(), bans: Vec::new() }
    }
}

/// The error in lists that were read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListsError {
    /// Another layout.
    #[error("the peer lists have layout {0}; this version reads layout {VERSION}")]
    Version(u32),
    /// Too long.
    #[error("the list of {list} has {len} entries; at most {max} are held")]
    TooLong {
        /// Which list.
        list: &'static str,
        /// How long.
        len: usize,
        /// How long it may be.
        max: usize,
    },
    /// A line that names no node.
    #[error("entry {index} of the list of {list}: {error}")]
    Node {
        /// Which list.
        list: &'static str,
        /// Which line, from 0.
        index: usize,
        /// The problem.
        error: NodeRefError,
    },
    /// A ban of nothing.
    #[error("ban {index}: {target:?} is no node id, address or network")]
    Target {
        /// Which line, from 0.
        index: usize,
        /// The value as it was read, cut.
        target: String,
    },
}

/// Lists that were read and checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Static peers.
    pub static_peers: Vec<NodeRef>,
    /// Trusted peers.
    pub trusted_peers: Vec<NodeRef>,
    /// Bans: target, end since the Unix epoch, reason.
    pub bans: Vec<(BanTarget, Duration, String)>,
}

impl Lists {
    /// The entries that calls have added to the lists, and the bans that stand.
    pub(super) fn of<'a>(listed: &Listed, bans: impl Iterator<Item = &'a Ban>) -> Self {
        let called = |source: Option<ListSource>| source == Some(ListSource::Call);
        let bans = bans.filter(|ban| ban.source == ListSource::Call);
        Self {
            version: VERSION,
            static_peers: listed.words(|as_static, _| called(as_static)),
            trusted_peers: listed.words(|_, as_trusted| called(as_trusted)),
            bans: bans
                .map(|ban| BanLine {
                    target: ban.target.to_string(),
                    until: ban.until.as_secs(),
                    reason: ban.reason.clone(),
                })
                .collect(),
        }
    }

    /// Checks everything and returns the first error. Damaged entries are not skipped, because a lost ban is a security
    /// hole.
    pub fn parse(&self) -> Result<Parsed, ListsError> {
        if self.version != VERSION {
            return Err(ListsError::Version(self.version));
        }
        let bans = &self.bans;
        if bans.len() > MAX_BANS {
            return Err(ListsError::TooLong { list: "bans", len: bans.len(), max: MAX_BANS });
        }
        let bans = bans.iter().enumerate().map(|(index, line)| {
            let target = line.target.parse().map_err(|_| ListsError::Target {
                index,
                target: super::bans::cut_at(&line.target, 80).to_owned(),
            })?;
            Ok((target, Duration::from_secs(line.until), line.reason.clone()))
        });
        Ok(Parsed {
            static_peers: nodes("static peers", &self.static_peers)?,
            trusted_peers: nodes("trusted peers", &self.trusted_peers)?,
            bans: bans.collect::<Result<_, _>>()?,
        })
    }
}

fn nodes(list: &'static str, lines: &[String]) -> Result<Vec<NodeRef>, ListsError> {
    if lines.len() > MAX_LISTED {
        return Err(ListsError::TooLong { list, len: lines.len(), max: MAX_LISTED });
    }
    let parse = |(index, line): (usize, &String)| {
        line.parse().map_err(|error| ListsError::Node { list, index, error })
    };
    lines.iter().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "a448f24c6d18e575453db13171562b71999873db5b286df957af199ec94617f7";

    fn ban(target: &str) -> BanLine {
        BanLine { target: target.into(), until: 7, reason: "spam".into() }
    }

    #[test]
    fn what_is_wrong_is_named_and_nothing_is_passed_over() {
        let good = Lists { static_peers: vec![ID.into()], bans: vec![ban("8.8.8.0/24")], ..Lists::default() };
        let parsed = good.parse().unwrap();
        assert_eq!((parsed.static_peers.len(), parsed.bans[0].1), (1, Duration::from_secs(7)));
        let error = |change: fn(&mut Lists)| {
            let mut lists = good.clone();
            change(&mut lists);
            lists.parse().unwrap_err().to_string()
        };
        type Damage = fn(&mut Lists);
        let table: [(Damage, &str); 5] = [
            (|lists| lists.version = 2, "layout 2"),
            (|lists| lists.trusted_peers.push("enode://x".into()), "entry 0 of the list of trusted peers"),
            (|lists| lists.bans.push(ban("nobody")), "ban 1: \"nobody\""),
            (|lists| lists.static_peers = vec![ID.into(); MAX_LISTED + 1], "at most 1024"),
            (|lists| lists.bans = vec![ban("8.8.8.8"); MAX_BANS + 1], "at most 4096"),
        ];
        for (change, expected) in table {
            let error = error(change);
            assert!(error.contains(expected), "{error}");
        }
    }
}
