//! The values that settings take, where the standard library has no type for them.

use std::{fmt, net::IpAddr, num::NonZeroU64, path::PathBuf, str::FromStr, time::Duration};

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
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at_checked(digits).ok_or(EXPECTED)?;
        let number: u64 = number.parse().map_err(|_| EXPECTED)?;
        let bytes = match unit {
            "B" => 1,
            "KB" => 1_000,
            "KiB" => 1 << 10,
            "MB" => 1_000_000,
            "MiB" => 1 << 20,
            "GB" => 1_000_000_000,
            "GiB" => 1 << 30,
            _ => return Err(EXPECTED),
        };
        let rate = number.checked_mul(bytes).filter(|rate| *rate >= MIN_RATE);
        rate.and_then(NonZeroU64::new).map(Self).ok_or("at least 1KiB")
    }
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
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse() {
            return Ok(Self::At(ip, None));
        }
        text.parse::<std::net::SocketAddr>().map(|addr| Self::At(addr.ip(), Some(addr.port()))).map_err(
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
        for text in ["", "localhost", "1.2.3", "1.2.3.4:", "1.2.3.4:99999", ":30303"] {
            assert!(text.parse::<ListenAddr>().is_err(), "{text}");
        }
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
    fn none_is_a_word() {
        assert_eq!("none".parse(), Ok(OrNone::<u16>(None)));
        assert_eq!("7".parse(), Ok(OrNone(Some(7_u16))));
        assert!("seven".parse::<OrNone<u16>>().unwrap_err().contains("`none`"));
    }
}
