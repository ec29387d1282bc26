//! The stream `Exchange`: all events of a registration, in both directions, many events in a frame.
//!
//! Response headers are sent at once, before anything is read. A client library that waits for them while we wait for
//! its first event would wait for ever. The application's events are always read, into queues that refuse a message
//! instead of waiting, because an unread stream can end the whole HTTP/2 connection (see `server`). Events for the
//! application are pulled from the inbox when HTTP/2 has room. A frame has all events that are ready: batching makes
//! the largest difference to speed in every language, and a timer would only add delay.
//!
//! This file is the response side. `requests` is the request side, in a task of its own. Both share `ending`, which
//! ends the stream if its client did something wrong.

mod ending;
mod requests;

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use self::ending::Ending;
use super::reader::{Found, Reader};
use crate::{
    net::switch::Handle,
    rpc::{
        proto::{self, server_event},
        translate::{
            event::{inbound_event, reply_event},
            registration,
        },
    },
    switch::Principal,
};

/// The most events of one frame. Measured: larger frames are not faster.
const FRAME_EVENTS: usize = 512;

/// The response side of `Exchange`.
pub(super) struct ExchangeStream {
    reader: Reader,
    ending: Ending,
    request_task: tokio::task::AbortHandle,
}

impl ExchangeStream {
    pub(super) fn open(
        handle: Handle,
        principal: Principal,
        requests: Streaming<proto::ExchangeRequest>,
    ) -> Self {
        let (attached, attaching) = oneshot::channel();
        let ending = Ending::default();
        let task =
            tokio::spawn(requests::read(handle.clone(), principal, requests, attached, ending.verdict()));
        Self { reader: Reader::new(handle, attaching), ending, request_task: task.abort_handle() }
    }
}

impl Drop for ExchangeStream {
    fn drop(&mut self) {
        self.request_task.abort();
    }
}

impl Stream for ExchangeStream {
    type Item = Result<proto::ExchangeResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(status) = this.ending.due() {
            this.reader.close();
            return Poll::Ready(Some(Err(status)));
        }
        let event = |event| proto::ServerEvent { event: Some(event) };
        let events = match this.reader.poll(cx, FRAME_EVENTS) {
            Poll::Ready(Found::Attached(attached)) => {
                vec![event(server_event::Event::Attached(registration::attached(&attached)))]
            }
            Poll::Ready(Found::Batch) => {
                let (replies, inbound) = this.reader.batch.drain();
                this.ending.told(replies.len() >= FRAME_EVENTS);
                let inbound = inbound.map(|(inbound, send_window)| inbound_event(inbound, send_window));
                replies.map(reply_event).chain(inbound).map(event).collect()
            }
            Poll::Ready(Found::End(status)) => return Poll::Ready(status.map(Err)),
            Poll::Pending => {
                return match this.ending.idle() {
                    Some(status) => {
                        this.reader.close();
                        Poll::Ready(Some(Err(status)))
                    }
                    None => Poll::Pending,
                };
            }
        };
        Poll::Ready(Some(Ok(proto::ExchangeResponse { events })))
    }
}
