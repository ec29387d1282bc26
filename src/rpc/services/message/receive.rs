//! The stream of `ReceiveMessages`, for shells: one event in each frame, and each message names the peer that sent it.

use std::{
    collections::HashMap,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::Status;

use super::reader::{Found, Reader};
use crate::delivery::Event;
use crate::net::switch::{Attached, Handle};
use crate::rpc::{
    proto::{self, receive_messages_response::Event as Out},
    translate::{
        event::{closed, drain, fragment, opened},
        peer, registration,
    },
};
use crate::switch::attachment::{PeerChannel, Reply};

/// The response side of `ReceiveMessages`.
pub(super) struct ReceiveStream {
    reader: Reader,
    /// Node id and capability of each open channel, by channel id.
    names: HashMap<u32, (String, proto::Capability)>,
}

impl ReceiveStream {
    pub(super) fn open(handle: Handle, opened: Attached) -> Self {
        let (attached, attaching) = oneshot::channel();
        let _ = attached.send(Ok(opened));
        Self { reader: Reader::new(handle, attaching), names: HashMap::new() }
    }

    fn event(&mut self, event: Event<PeerChannel>, send_window: u64) -> Out {
        match event {
            Event::Opened(open) => {
                let about = &open.about;
                let name = (about.peer.session.node_id.to_string(), peer::capability(&about.peer.channel));
                self.names.insert(open.channel, name);
                Out::ChannelOpened(opened(*open, send_window))
            }
            Event::Message { channel, code, payload, part } => {
                let (node_id, capability) = self.names.get(&channel).cloned().unwrap_or_default();
                Out::Message(proto::PeerMessage {
                    node_id,
                    capability: Some(capability),
                    channel_id: channel,
                    code,
                    payload,
                    fragment: part.map(fragment),
                })
            }
            Event::Gap { channel, sessions, messages, bytes } => {
                Out::Gap(proto::Gap { channel_id: channel, messages, bytes, sessions })
            }
            Event::Closed { channel, close, .. } => {
                self.names.remove(&channel);
                Out::ChannelClosed(closed(channel, &close))
            }
        }
    }
}

impl Stream for ReceiveStream {
    type Item = Result<proto::ReceiveMessagesResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let event = loop {
            match this.reader.poll(cx, 1) {
                Poll::Ready(Found::Attached(attached)) => {
                    break Out::Attached(registration::attached(&attached));
                }
                Poll::Ready(Found::Batch) => {
                    // Only a drain is passed on: all other replies are for events of a client, and this stream has
                    // none.
                    let (reply, event) = {
                        let (mut replies, mut events) = this.reader.batch.drain();
                        (replies.next(), events.next())
                    };
                    if let Some(Reply::Drain { deadline }) = reply {
                        break Out::Drain(drain(deadline));
                    }
                    if let Some((event, send_window)) = event {
                        break this.event(event, send_window);
                    }
                }
                Poll::Ready(Found::End(status)) => return Poll::Ready(status.map(Err)),
                Poll::Pending => return Poll::Pending,
            }
        };
        Poll::Ready(Some(Ok(proto::ReceiveMessagesResponse { event: Some(event) })))
    }
}
