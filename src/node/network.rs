//! Networks in the form that people write: an address and the number of its leading bits, `192.0.2.0/24`.
//!
//! `ipnet` reads leading zeros as decimal, where other programs read them as octal, and its error does not name the
//! part that is wrong. This reader accepts only the plain form of an address, and its errors say what to write instead.

use std::net::IpAddr;

use ipnet::IpNet;

use super::endpoint::canonical;

/// How many characters of a wrong text an error repeats.
const MAX_SHOWN: usize = 64;

/// A text that is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// There is no `/`.
    #[error("{given:?} has no prefix length; write {hint}, or /{bits} for this address alone")]
    NoPrefix {
        /// The text as it was given.
        given: String,
        /// A network that the text may mean.
        hint: IpNet,
        /// How many bits an address of its family has.
        bits: u8,
    },
    /// The part before `/` is no address.
    #[error(
        "{0:?} is not a network: the part before `/` is not a plain IP address (no names, no leading zeros); write for \
         example 192.0.2.0/24 or 2001:db8::/32"
    )]
    Address(String),
    /// The part after `/` is no prefix length.
    #[error("{given:?} is not a network: an {family} prefix length is a number from 0 to {bits}")]
    Prefix {
        /// The text as it was given.
        given: String,
        /// The family of its address.
        family: &'static str,
        /// The largest prefix length.
        bits: u8,
    },
}

/// Reads a network. Host bits are cleared, and an IPv4-mapped IPv6 network becomes the IPv4 network.
pub fn parse(text: &str) -> Result<IpNet, NetworkError> {
    let given = || text.chars().take(MAX_SHOWN).collect::<String>();
    let (ip, prefix) = match text.split_once('/') {
        Some((ip, prefix)) => (ip, Some(prefix)),
        None => (text, None),
    };
    let ip: IpAddr = ip.parse().map_err(|_| NetworkError::Address(given()))?;
    let (family, bits, usual) = if ip.is_ipv4() { ("IPv4", 32, 24) } else { ("IPv6", 128, 64) };
    let Some(prefix) = prefix else {
        let hint = IpNet::new(ip, usual).map_err(|_| NetworkError::Address(given()))?.trunc();
        return Err(NetworkError::NoPrefix { given: given(), hint, bits });
    };
    let wrong = || NetworkError::Prefix { given: given(), family, bits };
    let digits = Some(prefix).filter(|prefix| prefix.bytes().all(|byte| byte.is_ascii_digit()));
    let length: u8 = digits.and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
    let net = IpNet::new(ip, length).map_err(|_| wrong())?;
    let mapped = length.checked_sub(96).and_then(|length| match canonical(ip) {
        v4 @ IpAddr::V4(_) if ip.is_ipv6() => IpNet::new(v4, length).ok(),
        _ => None,
    });
    Ok(mapped.unwrap_or(net).trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_in_one_way() {
        for (text, expected) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("192.0.2.7/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.0.2.7/32", "192.0.2.7/32"),
            ("fd00::/8", "fd00::/8"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn errors_say_which_half_is_wrong_and_what_to_write() {
        for (text, expected) in [
            ("10.0.0.0/33", "an IPv4 prefix length is a number from 0 to 32"),
            ("10.0.0.0/", "an IPv4 prefix length is a number from 0 to 32"),
            ("10.0.0.0/+8", "an IPv4 prefix length is a number from 0 to 32"),
            ("10.0.0.0/255.0.0.0", "an IPv4 prefix length"),
            ("fd00::/129", "an IPv6 prefix length is a number from 0 to 128"),
            ("10.1.2.3", "write 10.1.2.0/24, or /32 for this address alone"),
            ("fd00::1", "write fd00::/64, or /128 for this address alone"),
            ("192.168.001.010/24", "no leading zeros"),
            ("10.0.0/8", "not a plain IP address"),
            ("example.org/24", "not a plain IP address"),
            ("", "not a plain IP address"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {expected:?} not in {error:?}");
        }
    }
}
