//! The actions of the engine ([`Action`]), and the settings of its owner ([`Config`]).

use ipnet::IpNet;

use super::limits::Rates;
use crate::kademlia::{self, Contact};

/// The settings that do not change while the engine runs.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The only networks that we exchange packets with, and that the table takes nodes of (`--netrestrict`); empty
    /// means all.
    pub restrict: Vec<IpNet>,
    /// The nodes to ask first, at every refresh. Default: none.
    pub bootnodes: Vec<Contact>,
    /// How many packets strangers and proven nodes may make us check.
    pub rates: Rates,
}

/// Our clock seems to be wrong, by the expiration times in the packets of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSkew {
    /// By how many seconds our clock is ahead; negative means behind.
    pub ahead: i64,
}

/// An event, or a request to the owner.
pub type Action = kademlia::Action<ClockSkew>;
