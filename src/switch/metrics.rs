//! The numbers of the switch for metrics: sums over all peers. No value names a peer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use super::{registration::Application, sessions::Totals};
use super::{registrations::Registrations, sessions::Sessions};
use crate::{
    Now,
    delivery::Lost,
    lease::StateName,
    p2p::Counters,
    policy::{Policy, Slots, Warning, recent::Counts},
};

/// The numbers at one time.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Connected peers that dialed us.
    pub inbound: usize,
    /// Connected peers that we dialed.
    pub dialed: usize,
    /// Slots for peers on no list.
    pub slots: Slots,
    /// Inbound peers that take a slot.
    pub inbound_used: usize,
    /// Dialed peers that take a slot.
    pub dialed_used: usize,
    /// The outcomes of candidates, dials and connections since the start.
    pub counts: Counts,
    /// The traffic of all sessions since the start.
    pub traffic: Totals,
    /// Messages that applications lost because they did not keep up, each reported in a gap.
    pub lost: Lost,
    /// Bytes that wait for applications.
    pub inbound_queued: u64,
    /// Bytes that wait for peers.
    pub outbound_queued: u64,
    /// Messages of the base protocol that had no effect, on connections that have ended.
    pub base: Counters,
    /// The losses and the current queues of applications, by client id.
    pub applications: BTreeMap<Arc<str>, Application>,
    /// Registrations by state.
    pub registrations: [(StateName, usize); 3],
    /// The number of current bans.
    pub bans: usize,
    /// The warnings for the operator.
    pub warnings: Vec<Warning>,
    /// The number of forks that are followed although schedules lack them.
    pub followed_forks: usize,
    /// The latest round trip of each peer that has had one, shortest first.
    pub round_trips: Vec<Duration>,
}

impl Metrics {
    /// Returns the numbers of policy, sessions and registrations. The engine adds those of queues and connections.
    pub(super) fn of(
        now: Now,
        policy: &mut Policy,
        sessions: &Sessions,
        registrations: &Registrations,
    ) -> Self {
        let (slots, inbound_used, dialed_used) = policy.slot_use();
        let inbound = sessions.iter().filter(|session| session.inbound).count();
        let round_trips = sessions.iter().filter_map(|session| session.traffic.snapshot().round_trip);
        let mut round_trips: Vec<Duration> = round_trips.collect();
        round_trips.sort_unstable();
        let in_state = |state: StateName| (state, registrations.in_state(state));
        Self {
            registrations: [StateName::Detached, StateName::Attached, StateName::Lingering].map(in_state),
            base: Counters::default(),
            applications: registrations.applications(),
            inbound,
            dialed: sessions.len() - inbound,
            slots,
            inbound_used,
            dialed_used,
            counts: policy.totals().clone(),
            traffic: sessions.totals(),
            lost: registrations.lost(),
            inbound_queued: 0,
            outbound_queued: 0,
            bans: policy.bans(now).count(),
            warnings: policy.warnings(now),
            followed_forks: policy.followed_forks().len(),
            round_trips,
        }
    }

    /// Returns the round trip that this share of peers, from 0 to 1, does not exceed.
    #[must_use]
    pub fn round_trip(&self, share: f64) -> Option<Duration> {
        let last = self.round_trips.len().checked_sub(1)?;
        self.round_trips.get((last as f64 * share).round() as usize).copied()
    }
}
