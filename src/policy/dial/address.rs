//! Which addresses may be dialed, and in which order those of one name are tried.

use std::net::{IpAddr, SocketAddr};

use super::{
    super::{cause::Cause, refusal::Refusal, rules::Rules},
    candidates::Source,
};
use crate::{Now, node::AddressClass};

/// Whether an address may be dialed, whatever its source. `widest` is the reach that earlier addresses of the node had:
/// a name or record that was global and turns private would make us knock at doors on our own network.
pub(super) fn check_addr(
    now: Now,
    rules: &Rules,
    addr: SocketAddr,
    widest: Option<AddressClass>,
) -> Result<(), Refusal> {
    if addr.port() == 0 {
        return Err(Refusal::NoTcpPort);
    }
    let class = AddressClass::of(addr.ip());
    if class == AddressClass::Special {
        return Err(Refusal::SpecialAddress);
    }
    if class.is_lan() && widest == Some(AddressClass::Global) && !rules.settings.allow_lan {
        return Err(Refusal::LanAddress);
    }
    rules.check_ip(now, addr.ip())
}

/// Whether this source may give us private addresses. While we are on the Internet no source may; DNS trees, which are
/// public, never may; loopback addresses are accepted only while we are on loopback ourselves.
pub(super) fn check_lan(rules: &Rules, ip: IpAddr, source: Source) -> Result<(), Refusal> {
    let (class, here) = (AddressClass::of(ip), rules.settings.announced);
    let foreign =
        !here.is_lan() || source == Source::Dns || (class == AddressClass::Loopback && here != class);
    if class.is_lan() && foreign && !rules.settings.allow_lan {
        return Err(Refusal::LanAddress);
    }
    Ok(())
}

/// The addresses of a name that may be dialed: the first one, and those to be tried after it; or why there is none.
pub(super) fn choose(
    now: Now,
    rules: &Rules,
    port: u16,
    widest: Option<AddressClass>,
    addrs: Result<&[IpAddr], &str>,
) -> Result<(IpAddr, Vec<IpAddr>), (Cause, String)> {
    let addrs = addrs.map_err(|error| (Cause::NameUnknown, error.to_owned()))?;
    let check = |ip: IpAddr| check_addr(now, rules, SocketAddr::new(ip, port), widest);
    let allowed = by_turns(addrs.iter().copied().filter(|ip| check(*ip).is_ok()));
    match (allowed.split_first(), addrs.first()) {
        (Some((first, also)), _) => Ok((*first, also.to_vec())),
        (None, None) => Err((Cause::NameUnknown, String::new())),
        (None, Some(ip)) => {
            let reason = check(*ip).err().map(|refusal| refusal.to_string()).unwrap_or_default();
            Err((Cause::AddressRefused, format!("{ip}: {reason}")))
        }
    }
}

/// Addresses with the families taking turns, each in its order, the family of the first one first (RFC 8305 section 4):
/// a family without a route costs one attempt before the other one has its chance.
fn by_turns(addrs: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let addrs: Vec<IpAddr> = addrs.collect();
    let first = addrs.first().is_some_and(IpAddr::is_ipv6);
    let (mut one, mut other) =
        (addrs.iter().filter(|ip| ip.is_ipv6() == first), addrs.iter().filter(|ip| ip.is_ipv6() != first));
    let turns = (0..addrs.len()).flat_map(|_| [one.next(), other.next()]);
    turns.flatten().copied().collect()
}
