//! Writes the log lines of the switch.

use data_encoding::HEXLOWER;

use crate::{policy::fork_following::News, switch::LogLine};

/// The target of these lines, by which a log filter names them. Operators write it in filters, so it stays the same if
/// this file moves.
const TARGET: &str = "devp2pd::switch";

/// Writes one line.
pub(super) fn write(line: LogLine) {
    match line {
        LogLine::Connected(session) => tracing::info!(
            target: TARGET,
            node = %session.node_id,
            remote = %session.remote,
            inbound = session.inbound,
            client = cut(&session.hello.client),
            "peer connected"
        ),
        LogLine::Disconnected { session, reason, detail } => tracing::info!(
            target: TARGET,
            node = %session.node_id,
            remote = %session.remote,
            %reason,
            detail = cut(&detail),
            "peer disconnected"
        ),
        LogLine::LinesLeftOut(count) => {
            tracing::info!(target: TARGET, count, "lines about sessions that others began were left out, as there were many");
        }
        LogLine::Refused { remote, refusal } => {
            tracing::debug!(target: TARGET, %remote, %refusal, "refused a connection")
        }
        LogLine::Registered { client, protocols } => {
            tracing::info!(target: TARGET, %client, %protocols, "protocols registered");
        }
        LogLine::RegistrationEnded { client, expired } => {
            let why = if expired { "its lease ran out" } else { "it was deleted" };
            tracing::info!(target: TARGET, %client, why, "registration ended");
        }
        LogLine::Lost(line) => {
            let several = || ("several".to_owned(), "several".into());
            let (peer, protocol) = line.origin.map_or_else(several, |(node, of)| (node.to_string(), of));
            let advice = if line.attached {
                "it takes messages more slowly than they come: return credit sooner, or choose another overflow \
                 policy (docs/grpc.md, \"Overflow\")"
            } else {
                "it is not attached, and its inbox is limited: attach again sooner"
            };
            tracing::warn!(
                target: TARGET,
                client = %line.client, %peer, %protocol, messages = line.lost.messages, bytes = line.lost.bytes,
                advice, "an application lost messages of its peers"
            );
        }
        LogLine::Rehello(node) => {
            tracing::info!(target: TARGET, %node, "the sidecar reconnects a peer, so that it learns of a new protocol");
        }
        LogLine::Fork(news) => write_fork(news),
        LogLine::Warn(warning) => tracing::warn!(target: TARGET, name = warning.name(), "{warning}"),
        LogLine::WarningOver(name) => {
            tracing::info!(target: TARGET, name, "the reason of this warning has ended")
        }
        LogLine::OneSource(source) => tracing::warn!(target: TARGET, "{source}"),
        LogLine::LeftOut { node, error } => {
            tracing::warn!(
                target: TARGET,
                node,
                %error,
                "a static or trusted peer of an earlier run is left out; add it again if it is still wanted"
            );
        }
    }
}

/// The first 128 bytes of a text that a stranger may have written. It is logged in quotes with escapes, so that it
/// cannot look like a field of its own.
fn cut(text: &str) -> &str {
    const MAX: usize = 128;
    let end = (0..=MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

fn write_fork(news: News) {
    let hex = |hash: [u8; 4]| HEXLOWER.encode(&hash);
    match news {
        News::Followed(fork) => tracing::warn!(
            target: TARGET,
            hash = hex(fork.hash),
            before = hex(fork.before),
            time = fork.time,
            "the chain has passed a fork that our schedule lacks; nodes of several networks announce it, and it is \
             followed until the next start (--follow-forks false switches this off)"
        ),
        News::Dropped(fork) => tracing::warn!(
            target: TARGET,
            hash = hex(fork.hash),
            time = fork.time,
            "a fork that was followed is not our chain's, because applications rejected its peers; the sidecar does \
             not follow it any more"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_is_cut_and_stays_one_field() {
        assert_eq!(cut("geth/v1"), "geth/v1");
        assert_eq!(cut(&"x".repeat(3000)).len(), 128);
        assert_eq!(cut(&"é".repeat(100)).len(), 128);
        assert_eq!(cut(&format!("x{}", "é".repeat(100))).len(), 127, "no half of a character");
        assert_eq!(format!("{:?}", cut("a\" node=\u{1b}")), r#""a\" node=\u{1b}""#);
    }
}
