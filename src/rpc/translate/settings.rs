//! Settings of peers that calls may change, read from the contract and written to it.
//!
//! Left out: what a setting does (`policy`, `net::bandwidth`).

use std::{num::NonZeroU64, time::Duration};

use ipnet::IpNet;

use super::{status::ErrorStatus, value::duration};
use crate::{net::switch::PeerSettings, node::network, policy::ChurnSettings, rpc::proto};

/// The largest value of a setting that counts peers. Beyond it, the number of files that a process may open is the
/// limit.
const MAX_PEERS: u32 = 65_536;

/// The largest value of a setting that is a time: one day.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The lowest cap of a rate, in bytes a second. The configuration has the same.
const MIN_RATE: u64 = 1024;

/// The most networks of `net_restrict`.
const MAX_NETWORKS: usize = 1024;

/// Checks a request and returns a function that applies it to the settings. A setting that is not in the request stays
/// as it is.
pub(in crate::rpc) fn change(
    wanted: proto::PeerSettings,
) -> Result<impl FnOnce(&mut PeerSettings) + Send + 'static, ErrorStatus> {
    let field = |name: &str| format!("settings.{name}");
    let count = |name: &str, value: Option<u32>, least: u32| match value {
        Some(value) if value < least || value > MAX_PEERS => {
            Err(ErrorStatus::field(field(name), format!("must be {least} to {MAX_PEERS}")))
        }
        value => Ok(value.map(|value| value as usize)),
    };
    let max_peers = count("max_peers", wanted.max_peers, 0)?;
    let dial_ratio = count("dial_ratio", wanted.dial_ratio, 1)?;
    let max_pending_dials = count("max_pending_dials", wanted.max_pending_dials, 1)?;
    let max_pending_inbound = count("max_pending_inbound", wanted.max_pending_inbound, 1)?;
    let per_subnet = count("max_peers_per_subnet", wanted.max_peers_per_subnet, 0)?;
    let pending_per_subnet = count("max_pending_per_subnet", wanted.max_pending_per_subnet, 0)?;
    let time = |name: &str, value| duration(&field(name), value, MAX_TIME);
    let dial_timeout = time("dial_timeout", wanted.dial_timeout)?;
    if dial_timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(ErrorStatus::field(field("dial_timeout"), "must be longer than 0s"));
    }
    let inbound_throttle = time("inbound_throttle", wanted.inbound_throttle)?;
    let churn = time("churn_interval", wanted.churn_interval)?;
    if churn.is_some_and(|every| !every.is_zero() && every < Duration::from_secs(1)) {
        return Err(ErrorStatus::field(field("churn_interval"), "must be at least 1s, or 0s for never"));
    }
    let rate = |name: &str, value: Option<u64>| match value {
        Some(1..MIN_RATE) => Err(ErrorStatus::field(
            field(name),
            format!("must be at least {MIN_RATE} bytes/s, or 0 for no cap"),
        )),
        value => Ok(value.map(NonZeroU64::new)),
    };
    let peer_in = rate("peer_receive_rate", wanted.peer_receive_rate)?;
    let peer_out = rate("peer_send_rate", wanted.peer_send_rate)?;
    let total_in = rate("receive_rate", wanted.receive_rate)?;
    let total_out = rate("send_rate", wanted.send_rate)?;
    let net_restrict = wanted.net_restrict.map(|list| networks(&list.networks)).transpose()?;
    let (dialing, allowlist_only, allow_lan) = (wanted.dialing, wanted.allowlist_only, wanted.allow_lan);
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

fn networks(list: &[String]) -> Result<Vec<IpNet>, ErrorStatus> {
    let field = "settings.net_restrict.networks";
    if list.len() > MAX_NETWORKS {
        return Err(ErrorStatus::field(
            field,
            format!("has {} entries; the most is {MAX_NETWORKS}", list.len()),
        ));
    }
    let network = |(at, text): (usize, &String)| {
        network::parse(text).map_err(|error| ErrorStatus::field(format!("{field}[{at}]"), error))
    };
    list.iter().enumerate().map(network).collect()
}

/// Translates the settings. Every field is set.
pub(in crate::rpc) fn view(settings: &PeerSettings) -> proto::PeerSettings {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> PeerSettings {
        PeerSettings { policy: crate::policy::Settings::default(), bandwidth: Default::default() }
    }

    /// All settings, each with a value that is not the default.
    fn all() -> proto::PeerSettings {
        let time = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        proto::PeerSettings {
            max_peers: Some(7),
            dial_ratio: Some(5),
            max_pending_dials: Some(6),
            max_pending_inbound: Some(8),
            dial_timeout: time(9),
            inbound_throttle: time(10),
            max_peers_per_subnet: Some(11),
            max_pending_per_subnet: Some(12),
            churn_interval: time(13),
            dialing: Some(!settings().policy.dialing),
            allowlist_only: Some(!settings().policy.allowlist_only),
            allow_lan: Some(!settings().policy.allow_lan),
            net_restrict: Some(proto::NetworkList { networks: vec!["10.0.0.0/8".to_owned()] }),
            peer_receive_rate: Some(2_001),
            peer_send_rate: Some(2_002),
            receive_rate: Some(2_003),
            send_rate: Some(2_004),
        }
    }

    #[test]
    fn what_is_set_is_what_is_shown() {
        let mut now = settings();
        change(all()).unwrap()(&mut now);
        assert_eq!(view(&now), all());
        change(proto::PeerSettings::default()).unwrap()(&mut now);
        assert_eq!(view(&now), all(), "a setting that is not in the request stays");
        let none = prost_types::Duration { seconds: 0, nanos: 0 };
        let off = proto::PeerSettings {
            churn_interval: Some(none),
            send_rate: Some(0),
            ..proto::PeerSettings::default()
        };
        change(off).unwrap()(&mut now);
        let expected = proto::PeerSettings { churn_interval: Some(none), send_rate: Some(0), ..all() };
        assert_eq!(view(&now), expected);
    }

    #[test]
    fn a_setting_that_cannot_be_right_names_its_field() {
        let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        let none = proto::PeerSettings::default;
        let networks = |networks| Some(proto::NetworkList { networks });
        for (wanted, field) in [
            (proto::PeerSettings { max_peers: Some(MAX_PEERS + 1), ..none() }, "max_peers"),
            (proto::PeerSettings { dial_ratio: Some(0), ..none() }, "dial_ratio"),
            (proto::PeerSettings { dial_timeout: time(0, 0), ..none() }, "dial_timeout"),
            (proto::PeerSettings { inbound_throttle: time(-1, 0), ..none() }, "inbound_throttle"),
            (proto::PeerSettings { churn_interval: time(0, 1), ..none() }, "churn_interval"),
            (proto::PeerSettings { send_rate: Some(MIN_RATE - 1), ..none() }, "send_rate"),
            (
                proto::PeerSettings { net_restrict: networks(vec!["x".to_owned()]), ..none() },
                "net_restrict.networks[0]",
            ),
        ] {
            let Err(refusal) = change(wanted) else { panic!("{field} was taken") };
            let fields = refusal.into_fields();
            assert_eq!(fields.first().map(|(name, _)| name.clone()), Some(format!("settings.{field}")));
        }
    }
}
