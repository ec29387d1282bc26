//! The stream `Exchange`: everything for a program, many events a frame, both ways.
//!
//! Response headers go out at once, before anything is read: a client library that waits for them while we wait for
//! its first event would wait for ever. What the application sends is always read, into queues that refuse instead
//! of wait, because an unread stream can cost the whole HTTP/2 connection (see `server`). What it receives is pulled
//! from the inbox when HTTP/2 has room for it, as many events a frame as are ready: batching is the largest factor
//! of speed for every language, and a timer would add delay for nothing.
//!
//! This file is the response side. `requests` is the request side, a task of its own; `ending` is what both share: when
//! the stream ends because its client did something wrong.

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

/// Events of one frame: measured as the number from which larger frames gain nothing.
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
