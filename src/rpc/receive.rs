//! The stream of `ReceiveMessages`: for shells, one event a message, each message with its peer's name.

use std::{
    collections::HashMap,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::Status;

use super::{
    convert,
    events::{closed, drain, fragment, opened},
    proto::{self, receive_messages_response::Event as Out},
    reader::{Found, Reader},
    registration,
};
use crate::delivery::Event;
use crate::net::switch::{Attached, Handle};
use crate::switch::attachment::{PeerChannel, Reply};

/// The stream of `ReceiveMessages`: one event a message, each message with its peer's name.
pub(super) struct ReceiveStream {
    reader: Reader,
    /// Names of the channels that were announced.
    names: HashMap<u32, (String, proto::Capability)>,
}

impl ReceiveStream {
    pub(super) fn open(handle: Handle, opened: Attached) -> Self {
        let (attached, attaching) = oneshot::channel();
        let _ = attached.send(Ok(opened));
        Self { reader: Reader::new(handle, attaching), names: HashMap::new() }
    }

    fn event(&mut self, event: Event<PeerChannel>) -> Out {
        match event {
            Event::Opened(open) => {
                let about = &open.about;
                let name = (about.peer.session.node_id.to_string(), convert::capability(&about.peer.channel));
                self.names.insert(open.channel, name);
                Out::ChannelOpened(opened(*open))
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
                    // Credit and results concern senders on the stream, which this one has none of.
                    if let Some(Reply::Drain { deadline }) = this.reader.replies.pop() {
                        break Out::Drain(drain(deadline));
                    }
                    if let Some(event) = this.reader.events.pop() {
                        break this.event(event);
                    }
                }
                Poll::Ready(Found::End(status)) => return Poll::Ready(status.map(Err)),
                Poll::Pending => return Poll::Pending,
            }
        };
        Poll::Ready(Some(Ok(proto::ReceiveMessagesResponse { event: Some(event) })))
    }
}
