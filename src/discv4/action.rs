//! What the engine tells its owner ([`Action`]), and what its owner decides ([`Config`]).

use ipnet::IpNet;

use super::limits::Rates;
use crate::kademlia::{self, Contact};

/// What does not change while the engine runs.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The only networks that we speak with, and that the table takes nodes of (`--netrestrict`); empty means all.
    pub restrict: Vec<IpNet>,
    /// Whom to ask first, at every refresh. Default: nobody.
    pub bootnodes: Vec<Contact>,
    /// How many packets strangers and proven nodes may make us check.
    pub rates: Rates,
}

/// Our clock seems to be wrong, told by how the packets of others expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSkew {
    /// By how many seconds our clock is ahead; negative means behind.
    pub ahead: i64,
}

/// What happened, or is wanted.
pub type Action = kademlia::Action<ClockSkew>;
