//! Events and replies of an attached stream, written as events of `Exchange` and `ReceiveMessages`.
//!
//! Left out: why a message was refused (`errors`).

use std::time::Duration;

use super::{
    errors,
    peer::{capability, closed_by, session},
    value::{disconnect_reason, text, timestamp},
};
use crate::delivery::{Close, Event, Opened, Part};
use crate::rpc::proto::{self, ErrorReason, server_event};
use crate::switch::attachment::{PeerChannel, Reply};

/// Translates a reply to something that the application sent.
pub(in crate::rpc) fn reply_event(reply: Reply) -> server_event::Event {
    match reply {
        Reply::Failure { send_id, channel, reason } => {
            let (reason, detail) = errors::unsent(reason);
            server_event::Event::SendFailure(proto::SendFailure {
                send_id,
                channel_id: channel,
                reason: reason.into(),
                detail,
            })
        }
        Reply::Result { send_id, channel, written } => server_event::Event::SendResult(proto::SendResult {
            send_id,
            channel_id: channel,
            written,
            reason: if written { ErrorReason::Unspecified } else { ErrorReason::PeerNotConnected }.into(),
        }),
        Reply::Credit { channel, bytes } => {
            server_event::Event::WindowUpdate(proto::WindowUpdate { channel_id: channel, bytes })
        }
        Reply::Barrier { nonce } => server_event::Event::BarrierReply(proto::Barrier { nonce }),
        Reply::Drain { deadline } => server_event::Event::Drain(drain(deadline)),
    }
}

/// Translates the announcement that the sidecar stops. `deadline` is the wall time at which streams end.
pub(in crate::rpc) fn drain(deadline: Duration) -> proto::DrainNotice {
    proto::DrainNotice { deadline: Some(timestamp(deadline)) }
}

/// Translates the position of a part in its message.
pub(in crate::rpc) fn fragment(part: Part) -> proto::Fragment {
    // The length of a message fits 24 bits, so the conversion never fails.
    let int = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    proto::Fragment { total_bytes: int(part.total), offset: int(part.offset) }
}

/// Translates a channel that opened. `send_window` is the number of bytes that the application may send on it now.
pub(in crate::rpc) fn opened(opened: Opened<PeerChannel>, send_window: u64) -> proto::ChannelOpened {
    proto::ChannelOpened {
        channel_id: opened.channel,
        capability: Some(capability(&opened.about.peer.channel)),
        peer: Some(session(&opened.about.peer.session)),
        existing: opened.existing,
        send_window_bytes: send_window,
        session_id: opened.about.session_id,
        position: opened.position,
        uncredited_messages: opened.uncredited_messages,
        greeting_sent: opened.about.greeting_sent,
        first_messages: opened
            .first_messages
            .into_iter()
            .map(|message| proto::Payload { code: message.code, payload: message.payload })
            .collect(),
    }
}

/// Translates the end of a channel.
pub(in crate::rpc) fn closed(channel: u32, close: &Close) -> proto::ChannelClosed {
    proto::ChannelClosed {
        channel_id: channel,
        reason: disconnect_reason(close.reason).into(),
        by: closed_by(&close.by),
        detail: text(&close.detail),
        unsent_messages: close.unsent_messages,
    }
}

/// Translates an event of a channel. `send_window`, in bytes, is used only if the channel opens.
pub(in crate::rpc) fn inbound_event(event: Event<PeerChannel>, send_window: u64) -> server_event::Event {
    match event {
        Event::Opened(open) => server_event::Event::ChannelOpened(opened(*open, send_window)),
        Event::Message { channel, code, payload, part } => {
            server_event::Event::Message(proto::InboundMessage {
                channel_id: channel,
                code,
                payload,
                fragment: part.map(fragment),
            })
        }
        Event::Gap { channel, sessions, messages, bytes } => {
            server_event::Event::Gap(proto::Gap { channel_id: channel, messages, bytes, sessions })
        }
        Event::Closed { channel, close } => server_event::Event::ChannelClosed(closed(channel, &close)),
    }
}
