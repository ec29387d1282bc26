//! Variables that Kubernetes and Docker make for other containers, and that only look like settings.
//!
//! For each Service of a namespace, Kubernetes puts seven variables or more into every pod (`enableServiceLinks`),
//! named after the Service; Docker does the same for a linked container. A Service called `devp2pd-grpc` makes
//! `DEVP2PD_GRPC_PORT=tcp://10.0.0.7:50051`, and a start must not fail for it. They are known by the form of name and
//! value, whatever the Service is called:
//!
//! | name after the Service's own | value |
//! | --- | --- |
//! | `SERVICE_HOST` | an IP address |
//! | `SERVICE_PORT`, `SERVICE_PORT_<name>` | a port |
//! | `PORT`, `PORT_<n>_<protocol>` | `tcp://`, `udp://` or `sctp://`, address and port |
//! | `PORT_<n>_<protocol>_PROTO`, `_PORT`, `_ADDR`; Docker's `_START`, `_END` | protocol, port, IP address, URL |
//! | Docker's `NAME` | `/container/alias` |
//! | Docker's `ENV_<name>` | any value: the variables of the other container |
//!
//! A setting never has a name of this form, with the exception of `DEVP2PD_PORT`, whose value is a number.

use std::net::IpAddr;

/// Protocols of a Service's port.
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Whether the variable `DEVP2PD_<rest>` with this value is a link.
pub(super) fn is_link(rest: &str, value: &str) -> bool {
    // The name of the Service after `DEVP2PD_` may be empty, and may have any number of parts.
    let parts: Vec<&str> = rest.split('_').collect();
    (0..parts.len()).any(|own| parts.get(own..).is_some_and(|form| has_form(form, value)))
}

fn has_form(parts: &[&str], value: &str) -> bool {
    match parts {
        ["SERVICE", "HOST"] => is_ip(value),
        ["SERVICE", "PORT", ..] => is_number(value),
        ["PORT"] => is_url(value),
        ["PORT", number, protocol, rest @ ..] if is_number(number) && PROTOCOLS.contains(protocol) => {
            match rest {
                [] | ["START"] | ["END"] => is_url(value),
                ["PROTO"] => PROTOCOLS.contains(&value.to_ascii_uppercase().as_str()),
                ["PORT"] | ["PORT", "START" | "END"] => is_number(value),
                ["ADDR"] => is_ip(value),
                _ => false,
            }
        }
        ["NAME"] => value.strip_prefix('/').is_some_and(|path| path.contains('/')),
        ["ENV", _, ..] => true,
        _ => false,
    }
}

fn is_ip(value: &str) -> bool {
    value.parse::<IpAddr>().is_ok()
}

fn is_number(value: &str) -> bool {
    value.parse::<u16>().is_ok()
}

fn is_url(value: &str) -> bool {
    PROTOCOLS.iter().any(|protocol| {
        let scheme = value.split_once("://").map(|(scheme, _)| scheme);
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(protocol))
    })
}

#[cfg(test)]
mod tests {
    use super::super::layers;
    use super::*;

    /// The variables of Kubernetes for a Service, and of Docker for a link, by the documentation of both.
    fn links(service: &str) -> Vec<(String, &'static str)> {
        [
            ("SERVICE_HOST", "10.0.0.7"),
            ("SERVICE_PORT", "50051"),
            ("SERVICE_PORT_GRPC", "50051"),
            ("SERVICE_PORT_P2P_UDP", "30303"),
            ("PORT", "tcp://10.0.0.7:50051"),
            ("PORT_50051_TCP", "tcp://10.0.0.7:50051"),
            ("PORT_50051_TCP_PROTO", "tcp"),
            ("PORT_50051_TCP_PORT", "50051"),
            ("PORT_50051_TCP_ADDR", "fd00::7"),
            ("PORT_30303_UDP", "udp://10.0.0.7:30303"),
            ("PORT_30303_UDP_PROTO", "udp"),
            ("PORT_30303_TCP_START", "tcp://10.0.0.7:30303"),
            ("NAME", "/app/devp2pd"),
            ("ENV_PATH", "/usr/bin"),
            ("ENV_LANG", "C"),
        ]
        .map(|(form, value)| (format!("{service}{form}"), value))
        .into()
    }

    #[test]
    fn links_are_known_whatever_the_service_is_called() {
        for service in ["", "GRPC_", "P2P_", "A_B_C_", "GRPC_ADDR_", "PORT_", "SERVICE_", "0_"] {
            for (rest, value) in links(service) {
                assert!(is_link(&rest, value), "DEVP2PD_{rest}={value}");
            }
        }
    }

    #[test]
    fn settings_and_misspelt_settings_are_no_links() {
        for (key, _) in layers::keys() {
            let rest = key.to_ascii_uppercase().replace('-', "_");
            for value in ["7", "true", "any", "127.0.0.1:1", "/a/b", "enode://key@192.0.2.1:1"] {
                assert!(!is_link(&rest, value), "DEVP2PD_{rest}={value}");
            }
        }
        for (rest, value) in [
            ("PROT", "30303"),
            ("PORT", "30303"),
            ("GRPC_PORT", "50051"),
            ("SERVICE_HOST", "example"),
            ("HTTP_PORT_9303_TCP_ADDR", "everywhere"),
            ("MAX_PEERS", "7"),
            ("NAME", "node"),
        ] {
            assert!(!is_link(rest, value), "DEVP2PD_{rest}={value}");
        }
    }
}
