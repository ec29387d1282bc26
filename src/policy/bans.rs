//! Who is banned: nodes by id, addresses and networks by prefix, each for a time and with a reason.
//!
//! Bans end by the wall clock, since they survive restarts. A lookup by address tries the prefix lengths that are in
//! use, longest first, so its cost follows the number of distinct lengths, never the number of bans. Overlapping
//! networks are all kept: when the narrow one ends, the wide one still holds.
//!
//! Left out: the effect of a ban on connections and dials (`engine.rs`), and the file that keeps it (`net`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;

use super::dial::ListSource;
use crate::node::{NodeId, endpoint::canonical, network};

/// The most bans held. An operator's list, not a blocklist of the Internet; 4,096 of the longest are about 2 MiB.
pub const MAX_BANS: usize = 4096;

/// The most bytes of a reason that are kept; longer ones are cut.
pub const MAX_REASON_BYTES: usize = 256;

/// The target of a ban. An address is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BanTarget {
    /// A node, wherever it is.
    Node(NodeId),
    /// An address or network, and every node there.
    Net(IpNet),
}

impl BanTarget {
    /// The ban of one address.
    #[must_use]
    pub fn ip(ip: IpAddr) -> Self {
        Self::Net(IpNet::from(canonical(ip)))
    }

    /// The ban of a network; host bits are cleared, and IPv4-mapped networks are the IPv4 networks they are.
    #[must_use]
    pub fn net(net: IpNet) -> Self {
        let mapped = net.prefix_len().checked_sub(96).and_then(|len| match canonical(net.addr()) {
            ip @ IpAddr::V4(_) if net.addr().is_ipv6() => IpNet::new(ip, len).ok(),
            _ => None,
        });
        Self::Net(mapped.unwrap_or(net).trunc())
    }
}

impl fmt::Display for BanTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => id.fmt(f),
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
        }
    }
}

impl FromStr for BanTarget {
    type Err = BanError;

    /// A node id, an address, or a network in CIDR notation.
    fn from_str(text: &str) -> Result<Self, BanError> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::ip(ip));
        }
        if let Ok(net) = network::parse(text) {
            return Ok(Self::net(net));
        }
        text.parse::<NodeId>().map(Self::Node).map_err(|_| BanError::Target)
    }
}

/// One ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// On what.
    pub target: BanTarget,
    /// The wall time at which it ends, since the Unix epoch.
    pub until: Duration,
    /// Why, in the operator's words, cut at [`MAX_REASON_BYTES`].
    pub reason: String,
    /// Whether the configuration or a call made it.
    pub source: ListSource,
}

/// Why a ban was not made or lifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BanError {
    /// No target.
    #[error("a ban is on a node id (64 hex digits), an address or a network such as 198.51.100.0/24")]
    Target,
    /// No duration.
    #[error("a ban needs a duration above zero; lifting the ban is a call of its own")]
    ZeroDuration,
    /// A static or trusted peer would be banned.
    #[error(
        "the ban would hit the static or trusted peer {0}; set force, or remove the peer from its list first"
    )]
    Protected(NodeId),
    /// We would be banned.
    #[error("that is our own identity")]
    OwnIdentity,
    /// Full.
    #[error("{MAX_BANS} bans stand already; lift some, or ban a network instead of its addresses")]
    Full,
    /// Not there.
    #[error("there is no such ban; a ban is lifted by the same node, address or network that was banned")]
    NotBanned,
}

/// All bans.
#[derive(Clone, Debug, Default)]
pub struct Bans {
    bans: BTreeMap<BanTarget, Ban>,
    ends: BTreeSet<(Duration, BanTarget)>,
    /// Networks by prefix length, one table per family.
    lengths4: BTreeMap<u8, usize>,
    lengths6: BTreeMap<u8, usize>,
}

impl Bans {
    /// Bans `target` for `duration`, or changes the ban that stands.
    pub fn ban(
        &mut self,
        now: Duration,
        target: BanTarget,
        duration: Duration,
        reason: &str,
        source: ListSource,
    ) -> Result<&Ban, BanError> {
        if duration.is_zero() {
            return Err(BanError::ZeroDuration);
        }
        self.restore(now, Ban { target, until: now.saturating_add(duration), reason: cut(reason), source })
    }

    /// Restores a ban that was kept in a file. A ban that has ended is accepted, and removed at the next change.
    pub fn restore(&mut self, now: Duration, mut ban: Ban) -> Result<&Ban, BanError> {
        self.expire(now);
        if !self.bans.contains_key(&ban.target) && self.bans.len() >= MAX_BANS {
            return Err(BanError::Full);
        }
        ban.reason = cut(&ban.reason);
        self.remove(&ban.target);
        let target = ban.target;
        self.ends.insert((ban.until, target));
        if let Some((lengths, len)) = self.lengths(&target) {
            *lengths.entry(len).or_default() += 1;
        }
        Ok(self.bans.entry(target).or_insert(ban))
    }

    /// Lifts the ban of exactly `target`.
    pub fn unban(&mut self, target: &BanTarget) -> Result<Ban, BanError> {
        self.remove(target).ok_or(BanError::NotBanned)
    }

    /// Removes the bans that have ended, and returns their targets.
    pub fn expire(&mut self, now: Duration) -> Vec<Ban> {
        let mut ended = Vec::new();
        while let Some((_, target)) = self.ends.first().copied().filter(|(until, _)| *until <= now) {
            ended.extend(self.remove(&target));
        }
        ended
    }

    /// The ban on `id`, if one stands.
    #[must_use]
    pub fn of_node(&self, now: Duration, id: &NodeId) -> Option<&Ban> {
        self.bans.get(&BanTarget::Node(*id)).filter(|ban| ban.until > now)
    }

    /// The narrowest ban on `ip` that stands.
    #[must_use]
    pub fn of_ip(&self, now: Duration, ip: IpAddr) -> Option<&Ban> {
        let ip = canonical(ip);
        let lengths = if ip.is_ipv4() { &self.lengths4 } else { &self.lengths6 };
        lengths.keys().rev().find_map(|len| {
            let net = IpNet::new(ip, *len).ok()?.trunc();
            self.bans.get(&BanTarget::Net(net)).filter(|ban| ban.until > now)
        })
    }

    /// All bans that stand.
    pub fn iter(&self, now: Duration) -> impl Iterator<Item = &Ban> {
        self.bans.values().filter(move |ban| ban.until > now)
    }

    fn remove(&mut self, target: &BanTarget) -> Option<Ban> {
        let ban = self.bans.remove(target)?;
        self.ends.remove(&(ban.until, *target));
        if let Some((lengths, len)) = self.lengths(target)
            && let Some(count) = lengths.get_mut(&len)
        {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&len);
            }
        }
        Some(ban)
    }

    fn lengths(&mut self, target: &BanTarget) -> Option<(&mut BTreeMap<u8, usize>, u8)> {
        match target {
            BanTarget::Node(_) => None,
            BanTarget::Net(IpNet::V4(net)) => Some((&mut self.lengths4, net.prefix_len())),
            BanTarget::Net(IpNet::V6(net)) => Some((&mut self.lengths6, net.prefix_len())),
        }
    }
}

fn cut(reason: &str) -> String {
    cut_at(reason, MAX_REASON_BYTES).to_owned()
}

/// The longest start of `text` that has at most `max` bytes and ends between characters.
pub(super) fn cut_at(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn bans(list: &[(&str, u64)]) -> Bans {
        let mut bans = Bans::default();
        for (target, secs) in list {
            let duration = Duration::from_secs(*secs);
            bans.ban(NOW, target.parse().unwrap(), duration, "test", ListSource::Call).unwrap();
        }
        bans
    }

    #[test]
    fn overlapping_networks_end_one_by_one() {
        let bans = bans(&[("8.8.8.8", 10), ("8.8.8.0/24", 20), ("8.0.0.0/8", 30), ("2001:4860::/32", 10)]);
        // seconds from now, address, the ban that is named
        let table = [
            (0, "8.8.8.8", Some("8.8.8.8")),
            (0, "8.8.8.9", Some("8.8.8.0/24")),
            (0, "8.9.0.1", Some("8.0.0.0/8")),
            (0, "9.0.0.1", None),
            (0, "::ffff:8.8.8.8", Some("8.8.8.8")),
            (0, "2001:4860:4860::8888", Some("2001:4860::/32")),
            (0, "2a00::1", None),
            (10, "8.8.8.8", Some("8.8.8.0/24")),
            (20, "8.8.8.8", Some("8.0.0.0/8")),
            (30, "8.8.8.8", None),
        ];
        for (secs, ip, expected) in table {
            let found = bans.of_ip(NOW + Duration::from_secs(secs), ip.parse().unwrap());
            assert_eq!(found.map(|ban| ban.target.to_string()).as_deref(), expected, "{ip} after {secs} s");
        }
    }

    #[test]
    fn targets_are_read_in_their_one_form() {
        let id = "a448f24c6d18e575453db13171562b71999873db5b286df957af199ec94617f7";
        let table = [
            ("8.8.8.8/32", Some("8.8.8.8")),
            ("8.8.8.8/16", Some("8.8.0.0/16")),
            ("::ffff:8.8.8.8", Some("8.8.8.8")),
            ("::ffff:8.8.8.0/120", Some("8.8.8.0/24")),
            (id, Some(id)),
            ("8.8.8.8/33", None),
            ("example.org", None),
        ];
        for (text, expected) in table {
            let target = text.parse::<BanTarget>().ok().map(|target| target.to_string());
            assert_eq!(target.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_ban_needs_time_and_has_bounds() {
        let mut bans = bans(&[("8.8.8.8", 10)]);
        let target: BanTarget = "8.8.8.8".parse().unwrap();
        assert_eq!(
            bans.ban(NOW, target, Duration::ZERO, "", ListSource::Call).err(),
            Some(BanError::ZeroDuration)
        );
        let long = "ä".repeat(200);
        let ban = bans.ban(NOW, target, Duration::MAX, &long, ListSource::Call).unwrap();
        assert_eq!((ban.reason.chars().count(), ban.until), (128, Duration::MAX));
        assert!(bans.unban(&target).is_ok());
        assert_eq!(bans.unban(&target), Err(BanError::NotBanned));
        assert_eq!(bans.of_ip(NOW, "8.8.8.8".parse().unwrap()), None);
        for n in 0..MAX_BANS {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            bans.ban(NOW, BanTarget::Node(NodeId(id)), Duration::from_secs(5), "", ListSource::Call).unwrap();
        }
        assert_eq!(bans.ban(NOW, target, Duration::MAX, "", ListSource::Call).err(), Some(BanError::Full));
        // Ended ones make room.
        let later = NOW + Duration::from_secs(5);
        bans.ban(later, target, Duration::MAX, "", ListSource::Call).unwrap();
        assert_eq!((bans.iter(later).count(), bans.bans.len()), (1, 1));
    }
}
