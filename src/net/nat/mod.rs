//! Address translation: which address the world sees us at, and whether our ports are open there.
//!
//! [`run`] keeps the answer in a watch ([`Mapped`]), from which it goes into our record. Mappings live ten minutes and
//! are renewed after eight, so that a process that dies leaves nothing open for long; the outside address is asked for
//! every two minutes. What the gateway changes, address or port, is followed. At the end the mappings are deleted.
//!
//! Without a gateway there is one line in the log, and the votes of other nodes tell the address.

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

/// "The entry conflicts with another" (IGD 1): somebody else has the outside port.
const CONFLICT: u16 = 718;

/// Other outside ports that are tried when ours is taken.
const OTHER_PORTS: usize = 3;

/// How long deleting the mappings may take at the end.
const CLOSING_TIME: Duration = Duration::from_secs(3);

/// Renewals that may fail in a row before the gateway is searched for anew.
const MAX_FAILURES: u32 = 5;

/// How often what is done.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a mapping lives unless it is renewed.
    pub lifetime: Duration,
    /// When it is renewed.
    pub renew: Duration,
    /// When a renewal that failed is tried again.
    pub retry: Duration,
    /// How often the outside address is asked for.
    pub poll: Duration,
    /// How long after a search without result the next one is made.
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

/// What [`run`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who is asked.
    pub method: NatMethod,
    /// The ports that are to be reached from outside.
    pub ports: Ports,
    /// How often.
    pub timing: Timing,
    /// Where UPnP gateways are searched for.
    pub search_addr: SocketAddr,
    /// Where NAT-PMP gateways are looked for; unset: where the routes say, at every search.
    pub gateways: Option<Vec<Ipv4Addr>>,
}

impl Config {
    /// The usual times and places.
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

/// Whoever answers for our outside address.
#[derive(Debug)]
enum Gateway {
    Upnp(upnp::Gateway),
    Pmp(natpmp::Gateway),
    /// Tells the address and opens nothing.
    Stun(String, u16),
}

/// Starts to follow the outside address and to keep the ports open. A stop closes the ports that are open.
pub fn start(config: Config, resolver: Resolver, rng: StdRng, mapped: watch::Sender<Mapped>) -> Running {
    Running::start("the gateway", async move |ordered| {
        let (stop, stopped) = watch::channel(false);
        let mut following = std::pin::pin!(run(config, resolver, rng, mapped, stopped));
        tokio::select! {
            () = &mut following => {}
            _ = ordered => {
                // The receiver is gone only when following has ended.
                let _ = stop.send(true);
                following.await;
            }
        }
    })
}

/// Follows the outside address and keeps the ports open until `stop` changes or its sender is gone. Returns at once
/// where there is nothing to do: method `none`, and `extip`, whose address is in the configuration.
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
                tracing::info!(%gateway, "address translation");
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
                tracing::info!(method = %config.method, %error, "no gateway; others will tell us our address");
            }
            Err(error) => tracing::debug!(%error, "no gateway yet"),
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
        // The first that answers; the error of the slower one when neither does.
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

/// The time with one gateway.
struct Session<'a> {
    config: &'a Config,
    resolver: &'a Resolver,
    gateway: Gateway,
    /// Outside ports that are open.
    tcp: Option<u16>,
    udp: Option<u16>,
    ip: Option<Ipv4Addr>,
}

impl Session<'_> {
    /// Returns true when the process stops, false when the gateway is lost.
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
            // A gateway that hangs does not hold up the end.
            let work = async {
                if poll_at <= now {
                    poll_at = now + timing.poll;
                    if self.poll(rng).await {
                        renew_at = now; // another address: the gateway may have forgotten the ports
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
                tracing::warn!(gateway = %self.gateway, "the gateway no longer answers");
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

    /// Asks for the outside address; returns whether it is another one. One failure does not unlearn it.
    async fn poll(&mut self, rng: &mut StdRng) -> bool {
        match self.external_ip(rng).await {
            Ok(ip) if self.ip != Some(ip) => {
                tracing::info!(%ip, gateway = %self.gateway, "our outside address");
                self.ip.replace(ip).is_some()
            }
            Ok(_) => false,
            Err(error) => {
                tracing::debug!(%error, gateway = %self.gateway, "asking for our outside address");
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

    /// Opens or renews both ports; returns whether all went well.
    async fn renew(&mut self, rng: &mut StdRng) -> bool {
        let Ports { tcp, udp } = self.config.ports;
        let mut well = true;
        for (protocol, port) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
            let Some(port) = NonZeroU16::new(port) else { continue };
            match self.open(protocol, port, rng).await {
                Ok(outside) => *self.outside(protocol) = outside,
                Err(error) => {
                    well = false;
                    tracing::debug!(%error, %protocol, port, gateway = %self.gateway, "opening a port");
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

    /// Opens `port` outside: the number we have there already, else the same, else what the gateway gives.
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
            tracing::info!(%protocol, port, outside, gateway = %self.gateway, "port open");
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
                tracing::debug!(%error, %protocol, outside, "closing a port");
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
