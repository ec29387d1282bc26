//! Settings of peers that calls may change: between the contract and what policy and connections obey.

use std::{num::NonZeroU64, time::Duration};

use ipnet::IpNet;

use super::{proto, registration, status::Refusal};
use crate::{net::switch::PeerSettings, node::network, policy::ChurnSettings};

/// The most peers that may be asked for: beyond it files, not settings, are the limit.
const MAX_PEERS: u32 = 65_536;

/// The longest pause or timeout.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The lowest cap, as in the configuration.
const MIN_RATE: u64 = 1024;

/// Networks of one restriction.
const MAX_NETWORKS: usize = 1024;

/// What a request changes, checked: a function of the settings before it.
pub(super) fn change(
    wish: proto::PeerSettings,
) -> Result<impl FnOnce(&mut PeerSettings) + Send + 'static, Refusal> {
    let field = |name: &str| format!("settings.{name}");
    let count = |name: &str, value: Option<u32>, least: u32| match value {
        Some(value) if value < least || value > MAX_PEERS => {
            Err(Refusal::field(field(name), format!("must be {least} to {MAX_PEERS}")))
        }
        value => Ok(value.map(|value| value as usize)),
    };
    let max_peers = count("max_peers", wish.max_peers, 0)?;
    let dial_ratio = count("dial_ratio", wish.dial_ratio, 1)?;
    let max_pending_dials = count("max_pending_dials", wish.max_pending_dials, 1)?;
    let max_pending_inbound = count("max_pending_inbound", wish.max_pending_inbound, 1)?;
    let per_subnet = count("max_peers_per_subnet", wish.max_peers_per_subnet, 0)?;
    let pending_per_subnet = count("max_pending_per_subnet", wish.max_pending_per_subnet, 0)?;
    let time = |name: &str, value| registration::duration(&field(name), value, MAX_TIME);
    let dial_timeout = time("dial_timeout", wish.dial_timeout)?;
    if dial_timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(Refusal::field(field("dial_timeout"), "must be longer than 0s"));
    }
    let inbound_throttle = time("inbound_throttle", wish.inbound_throttle)?;
    let churn = time("churn_interval", wish.churn_interval)?;
    if churn.is_some_and(|every| !every.is_zero() && every < Duration::from_secs(1)) {
        return Err(Refusal::field(field("churn_interval"), "must be at least 1s, or 0s for never"));
    }
    let rate = |name: &str, value: Option<u64>| match value {
        Some(1..MIN_RATE) => {
            Err(Refusal::field(field(name), format!("must be at least {MIN_RATE}, or 0 for no cap")))
        }
        value => Ok(value.map(NonZeroU64::new)),
    };
    let peer_in = rate("peer_receive_rate", wish.peer_receive_rate)?;
    let peer_out = rate("peer_send_rate", wish.peer_send_rate)?;
    let total_in = rate("receive_rate", wish.receive_rate)?;
    let total_out = rate("send_rate", wish.send_rate)?;
    let net_restrict = wish.net_restrict.map(|list| networks(&list.networks)).transpose()?;
    let (dialing, allowlist_only, allow_lan) = (wish.dialing, wish.allowlist_only, wish.allow_lan);
    Ok(move |settings: &mut PeerSettings| {
        let PeerSettings { policy, bandwidth } = settings;
        put(&mut policy.max_peers, max_peers);
        put(&mut policy.dial_ratio, dial_ratio);
        put(&mut policy.max_pending_dials, max_pending_dials);
        put(&mut policy.max_pending_inbound, max_pending_inbound);
        put(&mut policy.dial_timeout, dial_timeout);
        put(&mut policy.inbound_throttle, inbound_throttle);
        put(&mut policy.peers_per_subnet, per_subnet);
        put(&mut policy.pending_per_subnet, pending_per_subnet);
        put(&mut policy.churn, churn.map(of_interval));
        put(&mut policy.dialing, dialing);
        put(&mut policy.allowlist_only, allowlist_only);
        put(&mut policy.allow_lan, allow_lan);
        put(&mut policy.net_restrict, net_restrict);
        put(&mut bandwidth.peer_in, peer_in);
        put(&mut bandwidth.peer_out, peer_out);
        put(&mut bandwidth.total_in, total_in);
        put(&mut bandwidth.total_out, total_out);
    })
}

fn put<T>(setting: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *setting = value;
    }
}

fn of_interval(every: Duration) -> Option<ChurnSettings> {
    (!every.is_zero()).then(|| ChurnSettings { every, ..ChurnSettings::default() })
}

fn networks(list: &[String]) -> Result<Vec<IpNet>, Refusal> {
    let field = "settings.net_restrict.networks";
    if list.len() > MAX_NETWORKS {
        return Err(Refusal::field(field, format!("names {}; {MAX_NETWORKS} are allowed", list.len())));
    }
    let network = |(at, text): (usize, &String)| {
        network::parse(text).map_err(|error| Refusal::field(format!("{field}[{at}]"), error))
    };
    list.iter().enumerate().map(network).collect()
}

/// All settings, each of them set.
pub(super) fn view(settings: &PeerSettings) -> proto::PeerSettings {
    let PeerSettings { policy, bandwidth } = settings;
    let int = |count: usize| Some(u32::try_from(count).unwrap_or(u32::MAX));
    let time = |time: Duration| prost_types::Duration::try_from(time).ok();
    let rate = |rate: Option<NonZeroU64>| Some(rate.map_or(0, NonZeroU64::get));
    proto::PeerSettings {
        max_peers: int(policy.max_peers),
        dial_ratio: int(policy.dial_ratio),
        max_pending_dials: int(policy.max_pending_dials),
        max_pending_inbound: int(policy.max_pending_inbound),
        dial_timeout: time(policy.dial_timeout),
        inbound_throttle: time(policy.inbound_throttle),
        max_peers_per_subnet: int(policy.peers_per_subnet),
        max_pending_per_subnet: int(policy.pending_per_subnet),
        churn_interval: time(policy.churn.map_or(Duration::ZERO, |churn| churn.every)),
        dialing: Some(policy.dialing),
        allowlist_only: Some(policy.allowlist_only),
        allow_lan: Some(policy.allow_lan),
        net_restrict: Some(proto::NetworkList {
            networks: policy.net_restrict.iter().map(ToString::to_string).collect(),
        }),
        peer_receive_rate: rate(bandwidth.peer_in),
        peer_send_rate: rate(bandwidth.peer_out),
        receive_rate: rate(bandwidth.total_in),
        send_rate: rate(bandwidth.total_out),
    }
}
