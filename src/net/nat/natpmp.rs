//! NAT-PMP (RFC 6886): asks the router of our network, by small UDP packets, for its address and for open ports.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    num::NonZeroU16,
    time::Duration,
};

use crab_nat::{InternetProtocol, PortMappingOptions, TimeoutConfig, natpmp};

use super::{Protocol, error::Error};
use crate::node::AddressClass;

/// The time for one request. A router answers within milliseconds; after a second in all there is none (go-ethereum's
/// number).
const TIMEOUT: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(150),
    max_retries: 2,
    max_retry_timeout: Some(Duration::from_millis(600)),
};

/// A router that speaks NAT-PMP.
#[derive(Debug)]
pub(super) struct Gateway {
    ip: Ipv4Addr,
}

impl Gateway {
    /// Returns the first of `candidates` that answers.
    pub(super) async fn find(candidates: Vec<Ipv4Addr>) -> Result<Self, Error> {
        let mut last = Error::NotFound("NAT-PMP");
        for ip in candidates {
            let gateway = Self { ip };
            match gateway.external_ip().await {
                Ok(_) => return Ok(gateway),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub(super) fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    pub(super) async fn external_ip(&self) -> Result<Ipv4Addr, Error> {
        natpmp::external_address(self.ip.into(), Some(TIMEOUT)).await.map_err(Error::pmp)
    }

    /// Opens a port. Returns the outside port, which may differ from `wanted`, as the router may choose it.
    pub(super) async fn map(
        &self,
        protocol: Protocol,
        port: NonZeroU16,
        wanted: NonZeroU16,
        lifetime: Duration,
    ) -> Result<u16, Error> {
        let options = PortMappingOptions {
            external_port: Some(wanted),
            lifetime_seconds: u32::try_from(lifetime.as_secs()).ok(),
            timeout_config: Some(TIMEOUT),
        };
        let mapping = natpmp::port_mapping(self.ip.into(), internet(protocol), port, options).await;
        mapping.map(|mapping| mapping.external_port().get()).map_err(Error::pmp)
    }

    pub(super) async fn unmap(&self, protocol: Protocol, port: NonZeroU16) -> Result<(), Error> {
        natpmp::try_drop_mapping(self.ip.into(), internet(protocol), Some(port), Some(TIMEOUT))
            .await
            .map_err(Error::pmp)
    }
}

fn internet(protocol: Protocol) -> InternetProtocol {
    match protocol {
        Protocol::Tcp => InternetProtocol::Tcp,
        Protocol::Udp => InternetProtocol::Udp,
    }
}

/// Returns the addresses at which the router probably is: the gateways of the default routes if the system lists them,
/// or else the first address of our network. Never returns an address on the Internet.
pub(super) fn likely() -> Vec<Ipv4Addr> {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let mut candidates = default_gateways(&routes);
    if candidates.is_empty() {
        candidates.extend(own_address().ok().map(|ip| {
            let [a, b, c, _] = ip.octets();
            Ipv4Addr::new(a, b, c, 1)
        }));
    }
    candidates.retain(|ip| AddressClass::of(IpAddr::V4(*ip)) == AddressClass::Private);
    candidates
}

/// Returns the gateways of default routes in Linux's `/proc/net/route`, at most 4. The file has addresses in hex, with
/// the bytes in memory order.
fn default_gateways(routes: &str) -> Vec<Ipv4Addr> {
    let gateway = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let ip = u32::from_str_radix(gateway, 16).ok()?;
        (destination == "00000000" && ip != 0).then(|| Ipv4Addr::from(ip.to_ne_bytes()))
    };
    routes.lines().filter_map(gateway).take(4).collect()
}

/// Returns our address on the default route. Connecting a UDP socket sends nothing.
fn own_address() -> io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_read() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                     eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\n\
                     eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\n\
                     tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\n\
                     bad\t00000000\tzz\n";
        let expected: &[Ipv4Addr] =
            if cfg!(target_endian = "little") { &[Ipv4Addr::new(192, 168, 1, 1)] } else { &[] };
        if cfg!(target_endian = "little") {
            assert_eq!(default_gateways(table), expected);
        }
        assert_eq!(default_gateways(""), [] as [Ipv4Addr; 0]);
    }
}
