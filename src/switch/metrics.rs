//! The switch in numbers, all peers together: for metrics.
//!
//! Nothing here names a peer. What went over sessions is counted by protocol; names are the applications', and beyond
//! [`MAX_PROTOCOLS`] they are counted as one, so that a client in a loop does not make a monitor grow.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{registrations::Registrations, session::Session, sessions::Sessions};
use crate::{
    Now,
    delivery::Lost,
    lease::StateName,
    p2p::{ChannelTraffic, Counters},
    policy::{Policy, Slots, Warning, recent::Counts},
};

/// Protocols that are counted apart.
const MAX_PROTOCOLS: usize = 256;

/// What went over some sessions.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// By protocol name and version.
    pub protocols: BTreeMap<(Arc<str>, u32), ChannelTraffic>,
    /// Bytes read from sockets.
    pub bytes_in: u64,
    /// Bytes that sockets took.
    pub bytes_out: u64,
}

impl Totals {
    pub(super) fn add(&mut self, session: &Session) {
        let traffic = session.traffic.snapshot();
        self.bytes_in += traffic.bytes_in;
        self.bytes_out += traffic.bytes_out;
        for channel in &session.channels {
            let key = (Arc::clone(&channel.name), channel.version);
            let full = self.protocols.len() >= MAX_PROTOCOLS && !self.protocols.contains_key(&key);
            let key = if full { ("other".into(), 0) } else { key };
            self.protocols.entry(key).or_default().add(session.channel_traffic(channel));
        }
    }
}

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
    /// What became of candidates, dials and connections since the start.
    pub counts: Counts,
    /// What went over all sessions since the start.
    pub traffic: Totals,
    /// Messages that applications lost because they did not keep up, each reported in a gap.
    pub lost: Lost,
    /// Bytes that wait for applications.
    pub inbound_queued: u64,
    /// Bytes that wait for peers.
    pub outbound_queued: u64,
    /// Messages of the base protocol that had no effect, on connections that have ended.
    pub base: Counters,
    /// What applications lost and hold now, by client id.
    pub applications: BTreeMap<Arc<str>, Application>,
    /// Registrations by state.
    pub registrations: [(StateName, usize); 3],
    /// Bans that stand.
    pub bans: usize,
    /// What the operator should know.
    pub warnings: Vec<Warning>,
    /// How many forks are followed although schedules lack them.
    pub followed_forks: usize,
    /// The last round trips of peers that have had one, shortest first.
    pub round_trips: Vec<Duration>,
}

/// The part of the registrations with one client id.
#[derive(Clone, Copy, Debug, Default)]
pub struct Application {
    /// Messages that it lost, and the bytes of their payloads.
    pub lost: Lost,
    /// Bytes that wait for it.
    pub waiting_bytes: u64,
    /// Its channels that hold their connection.
    pub holding_channels: usize,
    /// Messages on channels that had closed: its capability is mute there.
    pub discarded: u64,
    /// How often the memory of the whole process, and not a channel's own bound, decided that a message does not fit.
    pub forced: u64,
}

impl Metrics {
    /// What policy, sessions and registrations say. Connections add what they have queued and counted.
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

    /// The round trip that this share of peers, from 0 to 1, does not exceed.
    #[must_use]
    pub fn round_trip(&self, share: f64) -> Option<Duration> {
        let last = self.round_trips.len().checked_sub(1)?;
        self.round_trips.get((last as f64 * share).round() as usize).copied()
    }
}
