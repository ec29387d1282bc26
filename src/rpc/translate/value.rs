//! Values that requests and responses of several services have in common: texts, times, reasons, nodes.
//!
//! Text from other nodes (client names, capability names) is cut and escaped here, in one place. So it cannot control
//! the terminal on which a user reads it.

use std::time::Duration;

use prost_types::Timestamp;

use super::status::ErrorStatus;
use crate::{node::NodeRef, p2p, rpc::proto};

/// The most characters of another node's text that callers get.
const MAX_TEXT: usize = 256;

/// Makes another node's text safe to print: cuts it to [`MAX_TEXT`] characters, and escapes control characters and
/// characters that change the direction of writing.
pub(in crate::rpc) fn text(stranger: &str) -> String {
    text_up_to(MAX_TEXT, stranger)
}

/// Makes another node's text safe to print, as [`text`] does, and cuts it to `characters`.
pub(in crate::rpc) fn text_up_to(characters: usize, stranger: &str) -> String {
    let mut out = String::new();
    for character in stranger.chars().take(characters) {
        if character.is_control() || matches!(character, '\u{200e}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    out
}

/// Translates a wall time, given as the time since the Unix epoch.
pub(in crate::rpc) fn timestamp(unix: Duration) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(unix.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(unix.subsec_nanos()).unwrap_or_default(),
    }
}

/// Translates a disconnect reason: the code on the wire plus one, so that 0 stays "unspecified".
pub(in crate::rpc) fn disconnect_reason(code: u8) -> proto::DisconnectReason {
    proto::DisconnectReason::try_from(i32::from(code) + 1).unwrap_or(proto::DisconnectReason::Unspecified)
}

/// Returns the disconnect reason that a request names; `Requested` if it names none.
pub(in crate::rpc) fn wire_reason(reason: proto::DisconnectReason) -> p2p::DisconnectReason {
    let code = u8::try_from(reason as i32 - 1).unwrap_or(0);
    p2p::DisconnectReason::from_code(code)
}

/// Reads a duration of a request. It must not be negative, and must not be longer than `max`.
pub(in crate::rpc) fn duration(
    field: &str,
    duration: Option<prost_types::Duration>,
    max: Duration,
) -> Result<Option<Duration>, ErrorStatus> {
    let Some(duration) = duration else { return Ok(None) };
    let duration = Duration::try_from(duration).map_err(|_| {
        ErrorStatus::field(field, "must not be negative; write a duration such as \"10s\" in JSON")
    })?;
    if duration > max {
        let problem = format!("must be at most \"{}s\"", max.as_secs());
        return Err(ErrorStatus::field(field, problem));
    }
    Ok(Some(duration))
}

/// Reads a node of a request, in any of the four forms of [`node_ref`]. If the node has an address, checks that the
/// address can be dialed.
pub(in crate::rpc) fn dialable_node(field: &str, text: &str) -> Result<NodeRef, ErrorStatus> {
    let node = node_ref(field, text)?;
    node.check_dialable().map_err(|error| ErrorStatus::field(field, error))?;
    Ok(node)
}

/// Reads a node of a request: a node id, a public key, `enode://` or `enr:`.
pub(in crate::rpc) fn node_ref(field: &str, text: &str) -> Result<NodeRef, ErrorStatus> {
    if text.is_empty() {
        let problem =
            "is missing; give a node id (64 hex digits), a public key (128 hex digits), enode:// or enr:";
        return Err(ErrorStatus::field(field, problem));
    }
    text.parse().map_err(|error| ErrorStatus::field(field, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_do_not_write_on_the_terminal() {
        assert_eq!(text("Geth/v1.17.5"), "Geth/v1.17.5");
        assert_eq!(text("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\u{a}");
        assert_eq!(text("\u{202e}gnp.exe"), "\\u{202e}gnp.exe");
        assert_eq!(text(&"x".repeat(10_000)).len(), MAX_TEXT);
    }

    #[test]
    fn a_disconnect_reason_of_the_contract_is_the_code_on_the_wire_plus_one() {
        for code in 0..=u8::MAX {
            let told = disconnect_reason(code);
            if told == proto::DisconnectReason::Unspecified {
                continue;
            }
            assert_eq!(told as i32, i32::from(code) + 1);
            assert_eq!(wire_reason(told).code(), code);
        }
        assert_eq!(wire_reason(proto::DisconnectReason::Unspecified), p2p::DisconnectReason::Requested);
        for reason in [p2p::DisconnectReason::Requested, p2p::DisconnectReason::SubprotocolError] {
            assert_eq!(wire_reason(disconnect_reason(reason.code())), reason);
        }
    }

    #[test]
    fn a_duration_is_within_its_limit_or_names_its_field() {
        let read = |seconds, nanos| {
            duration("wait", Some(prost_types::Duration { seconds, nanos }), Duration::from_secs(10))
        };
        assert_eq!(duration("wait", None, Duration::ZERO), Ok(None));
        assert_eq!(read(10, 0), Ok(Some(Duration::from_secs(10))));
        assert_eq!(read(0, 5), Ok(Some(Duration::from_nanos(5))));
        for (seconds, nanos, problem) in
            [(10, 1, "at most \"10s\""), (-1, 0, "not be negative"), (0, -1, "not be negative")]
        {
            let refusal = read(seconds, nanos).unwrap_err();
            assert!(refusal.message().starts_with("wait: "), "{refusal:?}");
            assert!(refusal.message().contains(problem), "{refusal:?}");
        }
    }

    #[test]
    fn a_node_that_is_missing_or_wrong_names_its_field() {
        for text in ["", "x", "enode://"] {
            let refusal = node_ref("except[3]", text).unwrap_err();
            assert_eq!(refusal.into_fields().first().map(|(field, _)| field.as_str()), Some("except[3]"));
        }
        let id = "07".repeat(32);
        assert!(node_ref("node", &id).is_ok());
    }
}
