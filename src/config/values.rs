//! The values that settings take, where the standard library has no type for them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU64,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;

use crate::{
    budget::MIN_MEMORY,
    net::peer_socket::{MAX_RECEIVE_BUFFER, MIN_RECEIVE_BUFFER},
    node::network::{self, NetworkError},
};

/// A network whose presets (bootnodes, DNS tree, fork filter) apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// Ethereum mainnet.
    Mainnet,
    /// The Sepolia test network.
    Sepolia,
    /// The Hoodi test network.
    Hoodi,
    /// No presets.
    None,
}

/// How log events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One line of text per event.
    Text,
    /// One JSON object per line.
    Json,
}

/// How a protocol that is registered late reaches peers that are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Rehello {
    /// Peers are reconnected one by one.
    Rolling,
    /// It waits for the next connection.
    None,
}

/// A length of time: a whole number with a unit (`500ms`, `15s`, `10m`, `1h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span(pub(super) Duration);

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected a whole number with a unit: 500ms, 15s, 10m, 1h";
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at_checked(digits).ok_or(EXPECTED)?;
        let number: u64 = number.parse().map_err(|_| EXPECTED)?;
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(EXPECTED),
        };
        // Timers add spans to the clock: no setting needs more than a year, and a year cannot overflow it.
        let year = 365 * 24 * 3_600_000;
        let ms = number.checked_mul(unit_ms).filter(|ms| *ms <= year).ok_or("at most a year")?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

/// A rate in bytes per second: a whole number with a unit (`64KiB`, `1MiB`, `500KB`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteRate(pub(super) NonZeroU64);

/// Below it not even the small messages of a protocol get through in the time that peers wait.
const MIN_RATE: u64 = 1024;

impl FromStr for ByteRate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected a whole number of bytes per second with a unit: 64KiB, 1MiB, 500KB";
        let (number, unit) = number_and_unit(text).ok_or(EXPECTED)?;
        let rate = number.checked_mul(unit).filter(|rate| *rate >= MIN_RATE);
        rate.and_then(NonZeroU64::new).map(Self).ok_or("at least 1KiB")
    }
}

/// A size of a socket's receive buffer: a whole number of bytes with a unit (`512KiB`, `1MiB`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReceiveBuffer(pub(super) usize);

impl FromStr for ReceiveBuffer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected a whole number of bytes with a unit: 64KiB, 512KiB, 1MiB";
        let (number, unit) = number_and_unit(text).ok_or(EXPECTED)?;
        let bytes = number.checked_mul(unit).and_then(|bytes| usize::try_from(bytes).ok());
        let bounds = MIN_RECEIVE_BUFFER..=MAX_RECEIVE_BUFFER;
        bytes.filter(|bytes| bounds.contains(bytes)).map(Self).ok_or("at least 16KiB and at most 8MiB")
    }
}

/// How much memory the process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory(pub(super) Option<u64>);

impl FromStr for Memory {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected `auto`, or a whole number of bytes with a unit: 128MiB, 1GiB";
        if text == "auto" {
            return Ok(Self(None));
        }
        let (number, unit) = number_and_unit(text).ok_or(EXPECTED)?;
        let bytes = number.checked_mul(unit).filter(|bytes| *bytes >= MIN_MEMORY);
        bytes
            .map(Some)
            .map(Self)
            .ok_or("at least 96MiB, so that one message of the largest size fits everywhere")
    }
}

/// A whole number, and how many bytes its unit is; nothing if either is missing.
fn number_and_unit(text: &str) -> Option<(u64, u64)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let bytes = match unit {
        "B" => 1,
        "KB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        _ => return None,
    };
    Some((number.parse().ok()?, bytes))
}

/// Where the Unix socket is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SocketPath {
    /// In the data directory, if that can be.
    Auto,
    /// Nowhere.
    None,
    /// Here.
    At(PathBuf),
}

impl FromStr for SocketPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("expected a path, `auto` or `none`"),
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            path => Ok(Self::At(path.into())),
        }
    }
}

/// One part of a list: spaces around it do not count, and an empty part (a comma at the end) is nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item<T>(pub(super) Option<T>);

impl<T> Item<T> {
    /// The values of a list, without its empty parts.
    pub(super) fn values(list: &[Self]) -> impl Iterator<Item = &T> {
        list.iter().filter_map(|item| item.0.as_ref())
    }
}

impl<T: FromStr> FromStr for Item<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        match text.trim() {
            "" => Ok(Self(None)),
            text => text.parse().map(|value| Self(Some(value))),
        }
    }
}

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Net(pub(super) IpNet);

impl FromStr for Net {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        network::parse(text).map(Self)
    }
}

/// The address of a socket of ours, or of a server: an IP address with a port. `localhost` is the loopback address;
/// other names are not looked up, because the meaning of a name can change between two starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address(pub(super) SocketAddr);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "write an IP address and a port, as 127.0.0.1:50051 or [::1]:50051";
        if let Ok(addr) = text.parse() {
            return Ok(Self(addr));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_ip = bare.parse::<IpAddr>().is_ok();
        let Some(port) = port else {
            let problem = if is_ip { "the port is missing" } else { "this is no address with a port" };
            return Err(format!("{problem}; {EXPECTED}"));
        };
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let Some(port) = Some(port).filter(|_| digits).and_then(|port| port.parse::<u16>().ok()) else {
            return Err(format!("{port:?} is not a port (0 to 65535); {EXPECTED}"));
        };
        if host.eq_ignore_ascii_case("localhost") {
            return Ok(Self(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        }
        Err(match (host, is_ip) {
            ("", _) => format!(
                "the address before the port is missing: {}:{port} is all addresses, {}:{port} this machine alone",
                Ipv4Addr::UNSPECIFIED,
                Ipv4Addr::LOCALHOST
            ),
            (_, true) => format!("an IPv6 address stands in brackets: [{}]:{port}", Ipv6Addr::LOCALHOST),
            (_, false) => format!(
                "{host:?} is a name or no plain address; names are not looked up here (except localhost), {EXPECTED}"
            ),
        })
    }
}

/// Something, or nothing by the word `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OrNone<T>(pub(super) Option<T>);

impl<T: FromStr<Err: fmt::Display>> FromStr for OrNone<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        text.parse().map(|value| Self(Some(value))).map_err(|error: T::Err| format!("{error} (or `none`)"))
    }
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListenAddr {
    /// On all addresses of all families that the machine has.
    Any,
    /// On an IP address, with a port if it differs from the common one.
    At(IpAddr, Option<u16>),
}

impl FromStr for ListenAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "any" {
            return Ok(Self::Any);
        }
        if text.eq_ignore_ascii_case("localhost") {
            return Ok(Self::At(Ipv4Addr::LOCALHOST.into(), None));
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse() {
            return Ok(Self::At(ip, None));
        }
        text.parse::<Address>().map(|Address(addr)| Self::At(addr.ip(), Some(addr.port()))).map_err(
            |_| "expected `any`, an IP address, or one with a port: 192.0.2.1, 192.0.2.1:30304, [::1]:30304",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        for (text, ms) in [("0s", 0), ("500ms", 500), ("15s", 15_000), ("10m", 600_000), ("2h", 7_200_000)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(ms))), "{text}");
        }
        for text in [
            "",
            "15",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "1d",
            "1S",
            "99999999999999999999s",
            "8761h",
            "18446744073709551615h",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn listening_addresses() {
        for (text, ip, port) in [
            ("0.0.0.0", "0.0.0.0", None),
            ("::", "::", None),
            ("[::1]", "::1", None),
            ("127.0.0.1:0", "127.0.0.1", Some(0)),
            ("[::1]:30304", "::1", Some(30304)),
        ] {
            assert_eq!(text.parse(), Ok(ListenAddr::At(ip.parse().unwrap(), port)), "{text}");
        }
        for text in ["", "example.org", "1.2.3", "1.2.3.4:", "1.2.3.4:99999", ":30303", "010.0.0.1"] {
            assert!(text.parse::<ListenAddr>().is_err(), "{text}");
        }
        for text in ["localhost", "localhost:7"] {
            let port = text.strip_prefix("localhost:").map(|port| port.parse().unwrap());
            let addr = ListenAddr::At(Ipv4Addr::LOCALHOST.into(), port);
            assert_eq!(text.parse(), Ok(addr), "{text}");
        }
    }

    #[test]
    fn addresses_have_a_port_and_one_meaning() {
        for (text, addr) in [
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::1]:0", "[::1]:0"),
            ("localhost:9091", "127.0.0.1:9091"),
            ("LOCALHOST:1", "127.0.0.1:1"),
        ] {
            assert_eq!(text.parse(), Ok(Address(addr.parse().unwrap())), "{text}");
        }
        for (text, expected) in [
            ("", "this is no address"),
            ("localhost", "this is no address with a port"),
            ("127.0.0.1", "the port is missing"),
            ("::1", "the port is missing"),
            ("127.0.0.1:x", "\"x\" is not a port (0 to 65535)"),
            ("127.0.0.1:+1", "is not a port"),
            ("127.0.0.1:70000", "is not a port"),
            (":9303", "0.0.0.0:9303 is all addresses, 127.0.0.1:9303 this machine alone"),
            ("my-host:1", "\"my-host\" is a name"),
            ("127.0.0.010:1", "no plain address"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains(expected), "{text}: {expected:?} not in {error:?}");
        }
    }

    #[test]
    fn items_of_a_list_are_trimmed() {
        assert_eq!(" 7 ".parse(), Ok(Item(Some(7_u16))));
        assert_eq!(" ".parse(), Ok(Item::<u16>(None)));
        assert!("x".parse::<Item<u16>>().is_err());
    }

    #[test]
    fn rates() {
        for (text, bytes) in [("1024B", 1024), ("64KiB", 65_536), ("1MB", 1_000_000), ("2GiB", 2 << 30)] {
            assert_eq!(text.parse::<ByteRate>().unwrap().0.get(), bytes, "{text}");
        }
        for text in ["", "1024", "1kb", "1000B", "0KiB", "-1KiB", "1.5MiB", "99999999999999999999GiB"] {
            assert!(text.parse::<ByteRate>().is_err(), "{text}");
        }
    }

    #[test]
    fn memory_has_a_least_size() {
        assert_eq!("auto".parse(), Ok(Memory(None)));
        assert_eq!("96MiB".parse(), Ok(Memory(Some(96 << 20))));
        assert_eq!("2GiB".parse(), Ok(Memory(Some(2 << 30))));
        for (text, part) in [
            ("95MiB", "at least 96MiB"),
            ("512", "with a unit"),
            ("", "`auto`"),
            ("99999999999GiB", "at least"),
        ] {
            assert!(text.parse::<Memory>().unwrap_err().contains(part), "{text}");
        }
    }

    #[test]
    fn receive_buffers_have_bounds() {
        for (text, bytes) in [
            ("16KiB", 16 << 10),
            ("100KB", 100_000),
            ("512KiB", 512 << 10),
            ("8MiB", 8 << 20),
            ("20000B", 20_000),
        ] {
            assert_eq!(text.parse(), Ok(ReceiveBuffer(bytes)), "{text}");
        }
        for (text, expected) in [
            ("", "a whole number of bytes"),
            ("524288", "with a unit"),
            ("0.5MiB", "a whole number"),
            ("-1MiB", "a whole number"),
            ("16383B", "at least 16KiB"),
            ("8193KiB", "at most 8MiB"),
            ("18446744073709551615GiB", "at most 8MiB"),
        ] {
            let error = text.parse::<ReceiveBuffer>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn none_is_a_word() {
        assert_eq!("none".parse(), Ok(OrNone::<u16>(None)));
        assert_eq!("7".parse(), Ok(OrNone(Some(7_u16))));
        assert!("seven".parse::<OrNone<u16>>().unwrap_err().contains("`none`"));
    }
}
