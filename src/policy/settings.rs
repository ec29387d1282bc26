//! The operator's settings about peers, and how peer slots are shared.
//!
//! Slots: `max_peers` peers that are on no list, shared between dialed and inbound peers by the dial ratio. Static and
//! trusted peers take no slots: they come on top, so that they neither starve behind others nor lock them out. The
//! length of the lists limits their number.

use std::time::Duration;

use ipnet::IpNet;

use super::churn::ChurnSettings;
use crate::node::AddressClass;

/// All settings of this room. Every one may change at run time (`Policy::set_settings`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Peers held, static and trusted ones not counted. geth's default, 50.
    pub max_peers: usize,
    /// One of so many slots is for peers that we dial. 3, as in geth: 16 of 50. 0 counts as 3.
    pub dial_ratio: usize,
    /// Dials in progress at once, from the first lookup to the end of the handshake. 50, as in geth.
    pub max_pending_dials: usize,
    /// Inbound connections in handshake at once. 50, as in geth.
    pub max_pending_inbound: usize,
    /// Inbound connections in handshake from one network (IPv4 /24, IPv6 /64). 4: silent sockets of one network
    /// cannot take the slots of all others. 0: no limit.
    pub pending_per_subnet: usize,
    /// How long a TCP connection may take. 15 s, as in geth.
    pub dial_timeout: Duration,
    /// The pause between two dials to one node or one IP and port. 35 s, as in geth: just above the 30 s inbound
    /// throttle at the other end.
    pub history: Duration,
    /// Dials of dynamic candidates into one network (IPv4 /24, IPv6 /64) within the history window. 5.
    pub dials_per_subnet: usize,
    /// The pause between two connections from one IP (IPv6: one /64). 30 s, as in geth; zero switches it off.
    pub inbound_throttle: Duration,
    /// Peers from one network (IPv4 /24, IPv6 /64), static and trusted ones not counted. 5: one rented network is at
    /// most a tenth of 50 peers. An IPv6 /48, which one site has, may have twice as many. 0: no limit, for both.
    pub peers_per_subnet: usize,
    /// How long a source of candidates that is alone waits before it may hold over half of the dialed slots. 10 s:
    /// the first lookups of the slower sources end in that time.
    pub mix_patience: Duration,
    /// Whether we dial at all (`--nodial` clears it).
    pub dialing: bool,
    /// Whether discovery is there to be asked for addresses.
    pub discovery: bool,
    /// Only static and trusted peers, both ways (`--allowlist-only`).
    pub allowlist_only: bool,
    /// Dial private addresses that DNS trees or re-resolved names give, whatever our own address is.
    pub allow_lan: bool,
    /// The class of our own announced address. Private networks are exempt from limits per address only while it is
    /// private too: behind a cluster's address translation every stranger looks like LAN.
    pub announced: AddressClass,
    /// Whether fork filters follow forks that their schedules lack (`--follow-forks`).
    pub follow_forks: bool,
    /// If not empty, no other networks are dialed or let in (`--netrestrict`).
    pub net_restrict: Vec<IpNet>,
    /// When a peer makes room although nothing is wrong with it. `None`: never.
    pub churn: Option<ChurnSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_peers: 50,
            dial_ratio: 3,
            max_pending_dials: 50,
            max_pending_inbound: 50,
            pending_per_subnet: 4,
            dial_timeout: Duration::from_secs(15),
            history: Duration::from_secs(35),
            dials_per_subnet: 5,
            inbound_throttle: Duration::from_secs(30),
            peers_per_subnet: 5,
            mix_patience: Duration::from_secs(10),
            dialing: true,
            discovery: true,
            allowlist_only: false,
            allow_lan: false,
            announced: AddressClass::Loopback,
            follow_forks: true,
            net_restrict: Vec::new(),
            churn: None,
        }
    }
}

/// How many peers that are neither static nor trusted there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// In all.
    pub total: usize,
    /// Dialed by us.
    pub dialed: usize,
    /// Dialed by them.
    pub inbound: usize,
}

impl Settings {
    /// The slots for peers on no list.
    #[must_use]
    pub fn slots(&self) -> Slots {
        let total = if self.allowlist_only { 0 } else { self.max_peers };
        let ratio = if self.dial_ratio == 0 { 3 } else { self.dial_ratio };
        let dialed = if self.dialing && total > 0 { (total / ratio).max(1) } else { 0 };
        Slots { total, dialed, inbound: total - dialed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_shared_out() {
        // max_peers, ratio, dialing, expected total, dialed, inbound
        let table = [
            (50, 3, true, (50, 16, 34)),
            (50, 0, true, (50, 16, 34)),
            (50, 1, true, (50, 50, 0)),
            (50, 3, false, (50, 0, 50)),
            (2, 3, true, (2, 1, 1)),
            (1, 3, true, (1, 1, 0)),
            (0, 3, true, (0, 0, 0)),
        ];
        for (max_peers, dial_ratio, dialing, (total, dialed, inbound)) in table {
            let settings = Settings { max_peers, dial_ratio, dialing, ..Settings::default() };
            assert_eq!(settings.slots(), Slots { total, dialed, inbound }, "{max_peers}/{dial_ratio}");
        }
        let settings = Settings { allowlist_only: true, ..Settings::default() };
        assert_eq!(settings.slots(), Slots { total: 0, dialed: 0, inbound: 0 });
    }
}
