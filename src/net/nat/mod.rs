//! Address translation: our outside address, and whether our ports are open there.
//!
//! [`run`] keeps the result in a watch ([`Mapped`]), from which it goes into our record. Mappings live ten minutes and
//! are renewed after eight, so that a process that dies leaves no port open for long. The gateway is asked for the
//! outside address every two minutes. If the gateway changes the address or a port, the watch changes, too. At the end
//! the mappings are deleted.
//!
//! Without a gateway there is one line in the log, and the votes of other nodes give the address.

mod error;
mod http;
mod method;
mod natpmp;
mod stun;
#[cfg(test)]
mod tests;
mod upnp;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

use rand::{Rng, rngs::StdRng, seq::SliceRandom};
use tokio::{
    sync::watch,
    time::{sleep, sleep_until, timeout},
};

use error::Error;
pub use method::{NatMethod, NatMethodError};

use super::{resolver::Resolver, running::Running};
use crate::{
    net::clock,
    node::local::{Mapped, Ports},
};

/// "The entry conflicts with another" (IGD 1): the outside port belongs to another machine.
const CONFLICT: u16 = 718;

/// The number of other outside ports that are tried when ours is taken.
const OTHER_PORTS: usize = 3;

/// The longest time for deleting the mappings at the end.
const CLOSING_TIME: Duration = Duration::from_secs(3);

/// The most renewals that may fail in a row. After one more, the gateway is searched for again.
const MAX_FAILURES: u32 = 5;

/// The times between the steps of [`run`].
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The lifetime of a mapping that is not renewed.
    pub lifetime: Duration,
    /// The time after which a mapping is renewed.
    pub renew: Duration,
    /// The time after which a failed renewal is tried again.
    pub retry: Duration,
    /// The time between two questions for the outside address.
    pub poll: Duration,
    /// The time from a search without a result to the next one.
    pub search: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        Self {
            lifetime: minutes(10),
            renew: minutes(8),
            retry: minutes(5),
            poll: minutes(2),
            search: minutes(60),
        }
    }
}

/// The configuration of [`run`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The method, which says which gateway or server is asked.
    pub method: NatMethod,
    /// The ports that other nodes must reach from outside.
    pub ports: Ports,
    /// The times between the steps.
    pub timing: Timing,
    /// The address to which searches for UPnP gateways are sent.
    pub search_addr: SocketAddr,
    /// The addresses that are asked for NAT-PMP. `None`: each search reads them from the routes of this machine.
    pub gateways: Option<Vec<Ipv4Addr>>,
}

impl Config {
    /// Returns a configuration with the default times and addresses.
    #[must_use]
    pub fn new(method: NatMethod, ports: Ports) -> Self {
        Self { method, ports, timing: Timing::default(), search_addr: upnp::MULTICAST, gateways: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// The gateway or server that tells our outside address.
#[derive(Debug)]
enum Gateway {
    Upnp(upnp::Gateway),
    Pmp(natpmp::Gateway),
    /// A STUN server: it tells the address and opens no ports. Host and port.
    Stun(String, u16),
}

/// Starts to follow the outside address and to keep the ports open. The order to stop closes the open ports.
pub fn start(config: Config, resolver: Resolver, rng: StdRng, mapped: watch::Sender<Mapped>) -> Running {
    Running::start("the gateway", async move |ordered| {
        let (stop, stopped) = watch::channel(false);
        let mut following = std::pin::pin!(run(config, resolver, rng, mapped, stopped));
        tokio::select! {
            () = &mut following => {}
            _ = ordered => {
                // Sending fails only if `run` has ended.
                let _ = stop.send(true);
                following.await;
            }
        }
    })
}

/// Follows the outside address and keeps the ports open until `stop` is true or its sender is dropped. Returns at once
/// if there is nothing to do: with the method `none`, and with `extip`, whose address is in the configuration.
async fn run(
    config: Config,
    resolver: Resolver,
    mut rng: StdRng,
    mapped: watch::Sender<Mapped>,
    mut stop: watch::Receiver<bool>,
) {
    if matches!(config.method, NatMethod::None | NatMethod::ExtIp(_)) {
        return;
    }
    let mut told = false;
    loop {
        let searched = tokio::select! {
            searched = find(&config, &mut rng) => searched,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let mut pause = config.timing.search;
        match searched {
            Ok(gateway) => {
                tracing::info!(%gateway, "found a gateway for address translation");
                let mut session =
                    Session { config: &config, resolver: &resolver, gateway, tcp: None, udp: None, ip: None };
                let stopped = session.keep(&mut rng, &mapped, &mut stop).await;
                if stopped {
                    return;
                }
                told = false;
                pause = config.timing.retry;
            }
            Err(error) if !told => {
                told = true;
                tracing::info!(method = %config.method, %error, "found no gateway; other nodes will tell our address");
            }
            Err(error) => tracing::debug!(%error, "found no gateway yet"),
        }
        tokio::select! {
            () = sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

async fn find(config: &Config, rng: &mut StdRng) -> Result<Gateway, Error> {
    let upnp = async { upnp::Gateway::find(config.search_addr).await.map(Gateway::Upnp) };
    let pmp = |ip: Option<Ipv4Addr>| async move {
        let likely = || config.gateways.clone().unwrap_or_else(natpmp::likely);
        natpmp::Gateway::find(ip.map_or_else(likely, |ip| vec![ip])).await.map(Gateway::Pmp)
    };
    match &config.method {
        NatMethod::Upnp => upnp.await,
        NatMethod::Pmp(ip) => pmp(*ip).await,
        NatMethod::Stun(Some((host, port))) => Ok(Gateway::Stun(host.clone(), *port)),
        NatMethod::Stun(None) => {
            let mut servers = stun::SERVERS.to_vec();
            servers.shuffle(rng);
            let (host, port) = servers.first().ok_or(Error::NotFound("STUN"))?;
            Ok(Gateway::Stun((*host).to_owned(), *port))
        }
        // The first gateway that answers; an error if neither protocol finds one.
        NatMethod::Any | NatMethod::None | NatMethod::ExtIp(_) => {
            tokio::pin!(upnp);
            let pmp = pmp(None);
            tokio::pin!(pmp);
            tokio::select! {
                Ok(gateway) = &mut upnp => Ok(gateway),
                Ok(gateway) = &mut pmp => Ok(gateway),
                else => Err(Error::NotFound("UPnP or NAT-PMP")),
            }
        }
    }
}

/// The work with one gateway, until it is lost or the process stops.
struct Session<'a> {
    config: &'a Config,
    resolver: &'a Resolver,
    gateway: Gateway,
    /// The outside ports that are open.
    tcp: Option<u16>,
    udp: Option<u16>,
    ip: Option<Ipv4Addr>,
}

impl Session<'_> {
    /// Works with the gateway. Returns true when the process stops, and false when the gateway is lost.
    async fn keep(
        &mut self,
        rng: &mut StdRng,
        mapped: &watch::Sender<Mapped>,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        let timing = self.config.timing;
        let mut failures = 0;
        let (mut poll_at, mut renew_at) = (clock::now().mono, clock::now().mono);
        let stopped = loop {
            let now = clock::now().mono;
            // The wait for the gateway also ends with the order to stop, so that a gateway that hangs does not delay
            // the end.
            let work = async {
                if poll_at <= now {
                    poll_at = now + timing.poll;
                    if self.poll(rng).await {
                        renew_at = now; // With a new address the gateway may have lost the mappings.
                    }
                }
                if renew_at <= now {
                    let renewed = self.renew(rng).await;
                    failures = if renewed { 0 } else { failures + 1 };
                    renew_at = now + if renewed { timing.renew } else { timing.retry };
                }
            };
            tokio::select! {
                () = work => {}
                _ = stop.wait_for(|stop| *stop) => break true,
            }
            let state = Mapped { ip: self.ip, tcp: self.tcp, udp: self.udp };
            mapped.send_if_modified(|told| std::mem::replace(told, state) != state);
            if failures > MAX_FAILURES {
                tracing::warn!(
                    gateway = %self.gateway,
                    "the gateway does not renew the mappings any more; the sidecar searches again. Without a gateway, \
                     open the ports by hand"
                );
                break false;
            }
            tokio::select! {
                () = sleep_until(poll_at.min(renew_at).into()) => {}
                _ = stop.wait_for(|stop| *stop) => break true,
            }
        };
        let _ = timeout(CLOSING_TIME, self.unmap()).await;
        mapped.send_if_modified(|told| std::mem::take(told) != Mapped::default());
        stopped
    }

    /// Asks for the outside address. Returns whether it has changed. After a failure the known address stays.
    async fn poll(&mut self, rng: &mut StdRng) -> bool {
        match self.external_ip(rng).await {
            Ok(ip) if self.ip != Some(ip) => {
                tracing::info!(%ip, gateway = %self.gateway, "the gateway told our outside address");
                self.ip.replace(ip).is_some()
            }
            Ok(_) => false,
            Err(error) => {
                tracing::debug!(%error, gateway = %self.gateway, "the gateway did not tell our outside address");
                false
            }
        }
    }

    async fn external_ip(&self, rng: &mut StdRng) -> Result<Ipv4Addr, Error> {
        match &self.gateway {
            Gateway::Upnp(gateway) => gateway.external_ip().await,
            Gateway::Pmp(gateway) => gateway.external_ip().await,
            Gateway::Stun(host, port) => {
                let servers = self.resolver.addresses(host).await?;
                let server = servers.into_iter().find(IpAddr::is_ipv4).ok_or(Error::NotFound("STUN"))?;
                match stun::external_ip(SocketAddr::new(server, *port), rng).await? {
                    IpAddr::V4(ip) => Ok(ip),
                    IpAddr::V6(_) => Err(Error::NotFound("STUN")),
                }
            }
        }
    }

    /// Opens or renews both ports. Returns whether both are open.
    async fn renew(&mut self, rng: &mut StdRng) -> bool {
        let Ports { tcp, udp } = self.config.ports;
        let mut well = true;
        for (protocol, port) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
            let Some(port) = NonZeroU16::new(port) else { continue };
            match self.open(protocol, port, rng).await {
                Ok(outside) => *self.outside(protocol) = outside,
                Err(error) => {
                    well = false;
                    tracing::debug!(%error, %protocol, port, gateway = %self.gateway, "cannot open a port");
                }
            }
        }
        well
    }

    fn outside(&mut self, protocol: Protocol) -> &mut Option<u16> {
        match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
        }
    }

    /// Opens `port` outside. The outside number is the one that we have already, or else the same number, or else one
    /// that the gateway accepts. Returns that number; `None` for a STUN server, which opens no ports.
    async fn open(
        &mut self,
        protocol: Protocol,
        port: NonZeroU16,
        rng: &mut StdRng,
    ) -> Result<Option<u16>, Error> {
        let lifetime = self.config.timing.lifetime;
        let wanted = self.outside(protocol).and_then(NonZeroU16::new).unwrap_or(port);
        let before = *self.outside(protocol);
        let outside = match &self.gateway {
            Gateway::Stun(..) => return Ok(None),
            Gateway::Pmp(gateway) => gateway.map(protocol, port, wanted, lifetime).await?,
            Gateway::Upnp(gateway) => {
                let mut opened = gateway.map(protocol, port.get(), wanted.get(), lifetime).await;
                for _ in 0..OTHER_PORTS {
                    if !matches!(opened, Err(Error::Refused { code: CONFLICT, .. })) {
                        break;
                    }
                    let other = rng.random_range(10_000..=u16::MAX);
                    opened = gateway.map(protocol, port.get(), other, lifetime).await;
                }
                opened?
            }
        };
        if before != Some(outside) {
            tracing::info!(%protocol, port, outside, gateway = %self.gateway, "the gateway opened a port");
        }
        Ok(Some(outside))
    }

    async fn unmap(&mut self) {
        let Ports { tcp, udp } = self.config.ports;
        for (protocol, port) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
            let outside = self.outside(protocol).take();
            let (Some(outside), Some(port)) = (outside, NonZeroU16::new(port)) else { continue };
            let closed = match &self.gateway {
                Gateway::Upnp(gateway) => gateway.unmap(protocol, outside).await,
                Gateway::Pmp(gateway) => gateway.unmap(protocol, port).await,
                Gateway::Stun(..) => Ok(()),
            };
            if let Err(error) = closed {
                tracing::debug!(%error, %protocol, outside, "cannot close a port");
            }
        }
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upnp(gateway) => write!(f, "UPnP at {}", gateway.addr()),
            Self::Pmp(gateway) => write!(f, "NAT-PMP at {}", gateway.ip()),
            Self::Stun(host, port) => write!(f, "STUN at {host}:{port}"),
        }
    }
}
