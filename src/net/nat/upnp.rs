//! UPnP gateways (IGD 1 and 2). They are found by multicast, describe themselves in XML, and are asked by SOAP for
//! their address and for ports.
//!
//! Every machine on the network can answer the search. So an answer may only name URLs at the responder's own address,
//! and that address must be on a local network. Libraries for UPnP read a mebibyte from any address that answers, so
//! the few requests are made with an HTTP client instead.
//!
//! The XML is not parsed. It is searched for elements by name, within the 64 KiB that are read. That is enough, because
//! the elements that matter do not repeat. A search, unlike a parser, has no nesting and no entities to expand.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use tokio::{net::UdpSocket, time::timeout};
use url::Url;

use super::{Protocol, error::Error, http};
use crate::node::AddressClass;

/// The multicast address on which gateways listen for searches.
pub(super) const MULTICAST: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900));

/// The device types to search for: both versions of the gateway device.
const DEVICES: [&str; 2] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
];

/// The services that map ports, best first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// The time in which answers to a search are taken.
const SEARCH_TIME: Duration = Duration::from_secs(3);

/// The most answers that are followed: a network has one or two gateways.
const MAX_ANSWERS: usize = 8;

/// "Only permanent leases supported" (IGD 1).
const ONLY_PERMANENT: u16 = 725;

/// A gateway's service that maps ports.
#[derive(Debug)]
pub(super) struct Gateway {
    control: SocketAddr,
    path: String,
    service: &'static str,
}

impl Gateway {
    /// Searches for a gateway by sending to `to`, which is [`MULTICAST`] except in tests.
    pub(super) async fn find(to: SocketAddr) -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::Search(error.to_string());
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.map_err(failed)?;
        for device in DEVICES {
            let search = format!(
                "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nST: {device}\r\nMAN: \"ssdp:discover\"\r\n\
                 MX: 2\r\n\r\n"
            );
            socket.send_to(search.as_bytes(), to).await.map_err(failed)?;
        }
        let mut seen = HashSet::new();
        let search = async {
            let mut packet = [0; 2048];
            while seen.len() < MAX_ANSWERS {
                let Ok((len, from)) = socket.recv_from(&mut packet).await else { continue };
                let answer = String::from_utf8_lossy(packet.get(..len).unwrap_or_default());
                let Some((addr, path)) = location(&answer, from.ip()) else { continue };
                if !seen.insert((addr, path.clone())) {
                    continue;
                }
                match Self::described(addr, &path).await {
                    Ok(gateway) => return Some(gateway),
                    Err(error) => {
                        tracing::debug!(%addr, %error, "an answer to the gateway search is not usable")
                    }
                }
            }
            None
        };
        timeout(SEARCH_TIME, search).await.ok().flatten().ok_or(Error::NotFound("UPnP"))
    }

    /// Reads the description at `addr`, and chooses the best service that maps ports.
    async fn described(addr: SocketAddr, path: &str) -> Result<Self, Error> {
        let answer = http::request(addr, path, None).await?;
        let bad = || Error::Answer { to: addr, what: "its description names no service that maps ports" };
        let base = Url::parse(&format!("http://{addr}{path}")).map_err(|_| bad())?;
        let base = element(&answer.body, "URLBase").and_then(|url| base.join(url).ok()).unwrap_or(base);
        for service in SERVICES {
            for described in elements(&answer.body, "service") {
                if element(described, "serviceType") != Some(service) {
                    continue;
                }
                let control = element(described, "controlURL").and_then(|url| base.join(url).ok());
                let control = control.and_then(|url| at_address(&url, addr.ip()));
                if let Some((control, path)) = control {
                    return Ok(Self { control, path, service });
                }
            }
        }
        Err(bad())
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.control
    }

    pub(super) async fn external_ip(&self) -> Result<Ipv4Addr, Error> {
        let answer = self.call("GetExternalIPAddress", "").await?;
        let ip = element(&answer, "NewExternalIPAddress").and_then(|ip| ip.parse().ok());
        ip.ok_or(Error::Answer { to: self.control, what: "its answer has no external address" })
    }

    /// Opens the outside port `external`, and returns it.
    pub(super) async fn map(
        &self,
        protocol: Protocol,
        port: u16,
        external: u16,
        lifetime: Duration,
    ) -> Result<u16, Error> {
        match self.add(protocol, port, external, lifetime.as_secs()).await {
            // A permanent mapping is deleted at the end like all others. After a crash it stays until the gateway
            // restarts.
            Err(Error::Refused { code: ONLY_PERMANENT, .. }) => self.add(protocol, port, external, 0).await?,
            added => added?,
        }
        Ok(external)
    }

    async fn add(&self, protocol: Protocol, port: u16, external: u16, seconds: u64) -> Result<(), Error> {
        let client = self.own_ip()?;
        let arguments = format!(
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort>\
             <NewProtocol>{protocol}</NewProtocol><NewInternalPort>{port}</NewInternalPort>\
             <NewInternalClient>{client}</NewInternalClient><NewEnabled>1</NewEnabled>\
             <NewPortMappingDescription>devp2pd</NewPortMappingDescription>\
             <NewLeaseDuration>{seconds}</NewLeaseDuration>"
        );
        self.call("AddPortMapping", &arguments).await.map(drop)
    }

    pub(super) async fn unmap(&self, protocol: Protocol, external: u16) -> Result<(), Error> {
        let arguments = format!(
            "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort>\
             <NewProtocol>{protocol}</NewProtocol>"
        );
        self.call("DeletePortMapping", &arguments).await.map(drop)
    }
}

impl Gateway {
    /// Returns our address on the network of the gateway: on a machine with several networks only that one is right.
    /// Connecting a UDP socket sends nothing.
    fn own_ip(&self) -> Result<IpAddr, Error> {
        let own = || {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(self.control)?;
            socket.local_addr()
        };
        own().map(|addr| addr.ip()).map_err(|error| Error::Search(error.to_string()))
    }

    /// Calls an action of the service. Returns the body of the answer.
    async fn call(&self, action: &str, arguments: &str) -> Result<String, Error> {
        let service = self.service;
        let envelope = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{action} xmlns:u=\"{service}\">{arguments}</u:{action}></s:Body></s:Envelope>\r\n"
        );
        let header = format!("\"{service}#{action}\"");
        let answer = http::request(self.control, &self.path, Some((&header, envelope))).await?;
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        match element(&answer.body, "errorCode").and_then(|code| code.parse().ok()) {
            Some(code) => Err(Error::Refused { to: self.control, code }),
            None => Err(Error::Http { to: self.control, error: answer.status.to_string() }),
        }
    }
}

/// Returns the address and path of the description that an answer names; `None` if it is not at the responder's own
/// address, or that address is not private.
fn location(answer: &str, from: IpAddr) -> Option<(SocketAddr, String)> {
    if !AddressClass::of(from).is_lan() || !answer.starts_with("HTTP/1.1 200") {
        return None;
    }
    let mut headers = answer.lines().skip(1).filter_map(|line| line.split_once(':'));
    let (_, url) = headers.find(|(name, _)| name.trim().eq_ignore_ascii_case("location"))?;
    at_address(&Url::parse(url.trim()).ok()?, from)
}

/// Returns the socket address and path of an HTTP URL, if its host is the address `ip` and not a name.
fn at_address(url: &Url, ip: IpAddr) -> Option<(SocketAddr, String)> {
    let host: IpAddr = url.host_str()?.trim_matches(['[', ']']).parse().ok()?;
    let plain = url.scheme() == "http" && url.username().is_empty() && url.password().is_none();
    if !plain || host != ip {
        return None;
    }
    let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    Some((SocketAddr::new(host, url.port_or_known_default()?), path))
}

/// Returns the trimmed content of the first element of this name.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    elements(xml, name).next()
}

/// Returns the trimmed contents of all elements of this name, in order. An element with another of the same name inside
/// ends at the first closing tag.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        loop {
            let (_, after) = rest.split_once(&open)?;
            rest = after;
            // `<service` also begins `<serviceList>` and `<serviceType>`.
            if !after.starts_with(['>', ' ', '\t', '\r', '\n']) {
                continue;
            }
            let (content, after) = after.split_once('>')?.1.split_once(&close)?;
            rest = after;
            return Some(content.trim());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_believed_about_the_responder_alone() {
        let answer = |url: &str| format!("HTTP/1.1 200 OK\r\nST: x\r\nLOCATION: {url}\r\n\r\n");
        let at = |url: &str, from: &str| location(&answer(url), from.parse().unwrap());
        let good = Some(("192.168.1.1:5000".parse().unwrap(), "/a.xml?b".to_owned()));
        assert_eq!(at("http://192.168.1.1:5000/a.xml?b", "192.168.1.1"), good);
        for (url, from) in [
            ("http://192.168.1.2:5000/a.xml", "192.168.1.1"), // another machine
            ("http://127.0.0.1:8545/", "192.168.1.1"),        // ourselves
            ("http://8.8.8.8/a.xml", "8.8.8.8"),              // the Internet
            ("http://gateway.lan/a.xml", "192.168.1.1"),      // a name, which may resolve to any address
            ("https://192.168.1.1/a.xml", "192.168.1.1"),
            ("http://u:p@192.168.1.1/a.xml", "192.168.1.1"),
            ("ftp://192.168.1.1/", "192.168.1.1"),
            ("", "192.168.1.1"),
        ] {
            assert_eq!(at(url, from), None, "{url} from {from}");
        }
        assert_eq!(
            location("NOTIFY * HTTP/1.1\r\nLOCATION: http://10.0.0.1/\r\n", "10.0.0.1".parse().unwrap()),
            None
        );
    }

    #[test]
    fn elements_are_found_by_their_whole_name() {
        let xml = "<serviceList><service><serviceType> a </serviceType></service>\n<service x='1'><serviceType>b\
                   </serviceType></service></serviceList>";
        let types: Vec<_> = elements(xml, "service").map(|service| element(service, "serviceType")).collect();
        assert_eq!(types, [Some("a"), Some("b")]);
        for broken in
            ["", "<service", "<service>", "<service><service><service>", "</service>", "<service\u{1F600}>"]
        {
            assert_eq!(element(broken, "service"), None, "{broken}");
        }
    }
}
