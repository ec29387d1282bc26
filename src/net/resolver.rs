//! Lookups of addresses and TXT records: a thin layer over a resolver library, with exactly the functions that we need.
//!
//! Names are looked up as they are written, with the final dot added, so the search domains of the machine are not
//! used. The strings of a TXT record are joined, because a string in the DNS has at most 255 bytes and tree entries may
//! be longer. A lookup takes at most five seconds. A name without records gives an empty list, not an error.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
};

/// The longest time for a lookup (go-ethereum's number).
const TIMEOUT: Duration = Duration::from_secs(5);

/// The time for the answer to one packet. Two packets fit the time for a lookup, so that one may get lost.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// The most answers in the cache, where each stays until it expires.
const CACHE: u64 = 1024;

/// The most addresses of one name that are used. No node has more, and a name server could send thousands.
const MAX_ADDRESSES: usize = 16;

/// Why a lookup failed.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The machine's configuration of name servers cannot be used.
    #[error("cannot read the name servers of this machine ({0}); name one with --dns-server IP:PORT")]
    System(String),
    /// The text is not a domain name.
    #[error("{0:?} is not a domain name")]
    Name(String),
    /// No name server answered in time.
    #[error("no answer for {0} within {seconds} s", seconds = TIMEOUT.as_secs())]
    Timeout(String),
    /// The name server returned an error.
    #[error("cannot look up {name}: {error}")]
    Failed {
        /// The name.
        name: String,
        /// The error.
        error: String,
    },
}

/// A resolver; clones share its cache.
#[derive(Clone)]
pub struct Resolver(TokioResolver);

impl Resolver {
    /// Returns a resolver with the name servers of this machine.
    pub fn system() -> Result<Self, ResolveError> {
        let system = |error: NetError| ResolveError::System(error.to_string());
        let mut builder = TokioResolver::builder_tokio().map_err(system)?;
        configure(builder.options_mut());
        builder.build().map(Self).map_err(system)
    }

    /// Returns a resolver with the name server at `addr`. It uses UDP, and TCP for answers that do not fit a packet.
    pub fn with_server(addr: SocketAddr) -> Result<Self, ResolveError> {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = addr.port();
            connection
        });
        let server = NameServerConfig::new(addr.ip(), true, connections.into());
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        configure(builder.options_mut());
        builder.build().map(Self).map_err(|error| ResolveError::System(error.to_string()))
    }

    /// Returns the TXT records of `name`, each with its strings joined. Bytes that are not UTF-8 are replaced; a valid
    /// entry of a tree has none.
    pub async fn txt(&self, name: &str) -> Result<Vec<String>, ResolveError> {
        let answer = limited(name, self.0.txt_lookup(absolute(name))).await?;
        let records = answer.iter().flat_map(|answer| answer.answers());
        let texts = records.filter_map(|record| match &record.data {
            RData::TXT(text) => Some(String::from_utf8_lossy(&text.txt_data.concat()).into_owned()),
            _ => None,
        });
        Ok(texts.collect())
    }

    /// Returns the addresses of `name`, at most 16. If `name` is an IP address, returns that address.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        if let Ok(ip) = name.parse() {
            return Ok(vec![ip]);
        }
        let answer = limited(name, self.0.lookup_ip(absolute(name))).await?;
        Ok(answer.iter().flat_map(|answer| answer.iter()).take(MAX_ADDRESSES).collect())
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

fn configure(options: &mut ResolverOpts) {
    options.timeout = TRY_TIMEOUT;
    options.attempts = 2;
    options.cache_size = CACHE;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
}

fn absolute(name: &str) -> String {
    if name.ends_with('.') { name.to_owned() } else { format!("{name}.") }
}

/// Waits for an answer, for at most [`TIMEOUT`]. Returns `None` if the name has no records of this type.
async fn limited<T>(
    name: &str,
    answer: impl Future<Output = Result<T, NetError>>,
) -> Result<Option<T>, ResolveError> {
    match tokio::time::timeout(TIMEOUT, answer).await {
        Err(_) => Err(ResolveError::Timeout(name.to_owned())),
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(error)) if error.is_no_records_found() => Ok(None),
        Ok(Err(NetError::Timeout)) => Err(ResolveError::Timeout(name.to_owned())),
        Ok(Err(NetError::Proto(_))) => Err(ResolveError::Name(name.to_owned())),
        Ok(Err(error)) => Err(ResolveError::Failed { name: name.to_owned(), error: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::test_dns::{Reply, TestDns};

    #[tokio::test]
    async fn texts_are_joined_and_absence_is_no_error() {
        let long = "x".repeat(700);
        let dns = TestDns::start([
            ("a.test", Reply::Texts(vec!["one".into(), "v=spf1 -all".into()])),
            ("long.test", Reply::Texts(vec![long.clone()])),
            ("empty.test", Reply::Texts(vec![])),
        ])
        .await;
        let resolver = Resolver::with_server(dns.addr).unwrap();
        assert_eq!(resolver.txt("a.test").await.unwrap(), ["one", "v=spf1 -all"]);
        assert_eq!(resolver.txt("A.test.").await.unwrap(), ["one", "v=spf1 -all"]);
        assert_eq!(resolver.txt("long.test").await.unwrap(), [long]);
        assert_eq!(resolver.txt("empty.test").await.unwrap(), [""; 0]);
        assert_eq!(resolver.txt("missing.test").await.unwrap(), [""; 0]);
        assert!(dns.asked().iter().all(|name| name.to_lowercase().ends_with(".test.")), "{:?}", dns.asked());
    }

    #[tokio::test]
    async fn addresses_of_both_families() {
        let ips: Vec<IpAddr> = vec!["1.2.3.4".parse().unwrap(), "2a00::1".parse().unwrap()];
        let many = (0..200).map(|host| IpAddr::from([9, 9, 9, host])).collect();
        let dns = TestDns::start([
            ("both.test", Reply::Addresses(ips.clone())),
            ("many.test", Reply::Addresses(many)),
            ("none.test", Reply::Addresses(vec![])),
        ])
        .await;
        let resolver = Resolver::with_server(dns.addr).unwrap();
        let mut found = resolver.addresses("both.test").await.unwrap();
        found.sort();
        assert_eq!(found, ips);
        assert_eq!(resolver.addresses("none.test").await.unwrap(), [] as [IpAddr; 0]);
        assert_eq!(resolver.addresses("::1").await.unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
        assert_eq!(resolver.addresses("many.test").await.unwrap().len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn failures_are_told_apart_from_absence() {
        let dns =
            TestDns::start([("broken.test", Reply::ServerFailure), ("dead.test", Reply::Silence)]).await;
        let resolver = Resolver::with_server(dns.addr).unwrap();
        let broken = resolver.txt("broken.test").await.unwrap_err();
        assert!(matches!(broken, ResolveError::Failed { .. }), "{broken}");
        let bad = resolver.txt(&"a".repeat(300)).await.unwrap_err();
        assert!(matches!(bad, ResolveError::Name(_)), "{bad:?}");
        let begin = crate::net::clock::now().mono;
        let dead = resolver.txt("dead.test").await.unwrap_err();
        assert!(matches!(dead, ResolveError::Timeout(_)), "{dead:?}");
        assert!(begin.elapsed() < TIMEOUT + Duration::from_secs(1));
    }
}
