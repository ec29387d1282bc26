//! An application: one `Exchange` stream, with its sends and its events.

use std::collections::VecDeque;

use devp2pd::rpc::proto::{
    Attach, Attached, Barrier, ChannelClosed, ChannelOpened, ClientEvent, ExchangeRequest, ExchangeResponse,
    InboundMessage, OutboundMessage, Payload, ProtocolSpec, RegistrationSpec, ServerEvent, attach::Target,
    client_event, message_service_client::MessageServiceClient, server_event,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use super::soon;

pub(crate) use client_event::Event as ClientEventKind;
pub(crate) use server_event::Event;

/// Requests that may wait: more than any test sends at once.
const REQUESTS: usize = 256;

/// A stream attached to a registration. Dropping it breaks the stream.
pub(crate) struct Application {
    requests: mpsc::Sender<ExchangeRequest>,
    responses: Streaming<ExchangeResponse>,
    ready: VecDeque<Event>,
    /// The answer to the attachment.
    pub(crate) attached: Attached,
}

impl Application {
    /// Opens a stream and attaches it. The refusal, if there is one.
    pub(crate) async fn attach(
        mut client: MessageServiceClient<Channel>,
        attach: Attach,
    ) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        let first = ClientEvent { event: Some(ClientEventKind::Attach(attach)) };
        requests.send(ExchangeRequest { events: vec![first] }).await.unwrap();
        let mut responses = client.exchange(ReceiverStream::new(outgoing)).await?.into_inner();
        let frame = soon("attached", responses.message()).await?.expect("an answer to attach");
        let mut ready: VecDeque<Event> = frame.events.into_iter().filter_map(|event| event.event).collect();
        match ready.pop_front() {
            Some(Event::Attached(attached)) => Ok(Self { requests, responses, ready, attached }),
            other => panic!("{other:?} came before attached"),
        }
    }

    /// The registration's secret.
    pub(crate) fn token(&self) -> String {
        self.attached.resume_token.clone()
    }

    /// The next event, or how the stream ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Status> {
        while self.ready.is_empty() {
            match soon("an event", self.responses.message()).await? {
                Some(frame) => {
                    self.ready.extend(frame.events.into_iter().filter_map(|ServerEvent { event }| event));
                }
                None => return Ok(None),
            }
        }
        Ok(self.ready.pop_front())
    }

    /// The next event that is not credit, which comes when it likes.
    pub(crate) async fn event(&mut self) -> Event {
        loop {
            match self.next().await.unwrap().expect("the stream goes on") {
                Event::WindowUpdate(_) => {}
                event => return event,
            }
        }
    }

    /// How the stream ends, whatever comes before.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }

    /// The next event, which opens a channel.
    pub(crate) async fn opened(&mut self) -> ChannelOpened {
        match self.event().await {
            Event::ChannelOpened(opened) => opened,
            other => panic!("{other:?}, a channel should open"),
        }
    }

    /// The next event, which closes a channel.
    pub(crate) async fn closed(&mut self) -> ChannelClosed {
        match self.event().await {
            Event::ChannelClosed(closed) => closed,
            other => panic!("{}, a channel should close", short(&other)),
        }
    }

    /// The next event, which is a message or a part of one.
    pub(crate) async fn part(&mut self) -> InboundMessage {
        match self.event().await {
            Event::Message(message) => message,
            other => panic!("{other:?}, a message should come"),
        }
    }

    /// The next event, which is a whole message: its code and payload.
    pub(crate) async fn message(&mut self) -> (u32, Vec<u8>) {
        let message = self.part().await;
        assert_eq!(message.fragment, None, "a part of a message");
        (message.code, message.payload.to_vec())
    }

    /// Sends one event.
    pub(crate) async fn tell(&self, event: ClientEventKind) {
        self.tell_all(vec![event]).await;
    }

    /// Sends events in one frame.
    pub(crate) async fn tell_all(&self, events: Vec<ClientEventKind>) {
        let events = events.into_iter().map(|event| ClientEvent { event: Some(event) }).collect();
        self.requests.send(ExchangeRequest { events }).await.unwrap();
    }

    /// Sends a message on a channel.
    pub(crate) async fn send(&self, channel: u32, code: u32, payload: impl Into<Vec<u8>>) {
        self.tell(ClientEventKind::Message(message(channel, code, payload))).await;
    }

    /// Waits until everything sent before was queued or refused. Nothing else may come before the answer.
    pub(crate) async fn barrier(&mut self, nonce: u64) {
        self.tell(ClientEventKind::Barrier(Barrier { nonce })).await;
        match self.event().await {
            Event::BarrierReply(reply) => assert_eq!(reply.nonce, nonce),
            other => panic!("{other:?} before the answer to a barrier"),
        }
    }

    /// Says "no more requests", and keeps receiving.
    pub(crate) fn close_requests(&mut self) {
        self.requests = mpsc::channel(1).0;
    }
}

fn short(event: &Event) -> String {
    format!("{event:?}").chars().take(300).collect()
}

/// A message without number or result.
pub(crate) fn message(channel: u32, code: u32, payload: impl Into<Vec<u8>>) -> OutboundMessage {
    let payload = payload.into().into();
    OutboundMessage { channel_ids: vec![channel], code, payload, send_id: 0, want_result: false }
}

/// A registration of these protocols: name, version, message count.
pub(crate) fn spec(client_id: &str, protocols: &[(&str, u32, u32)]) -> RegistrationSpec {
    let protocols = protocols.iter().map(|&(name, version, count)| protocol(name, version, count)).collect();
    RegistrationSpec { client_id: client_id.to_owned(), protocols, ..Default::default() }
}

/// One version of a protocol.
pub(crate) fn protocol(name: &str, version: u32, message_count: u32) -> ProtocolSpec {
    ProtocolSpec { name: name.to_owned(), version, message_count, ..Default::default() }
}

/// A message that the sidecar sends by itself.
pub(crate) fn greeting(code: u32, payload: &[u8]) -> Payload {
    Payload { code, payload: payload.to_vec().into() }
}

/// An attachment with a spec, automatic credit, and frames as large as messages get.
pub(crate) fn attach(spec: RegistrationSpec) -> Attach {
    Attach {
        target: Some(Target::Spec(spec)),
        auto_credit: true,
        max_frame_bytes: u32::try_from(super::sidecar::MAX_RESPONSE).unwrap(),
        ..Default::default()
    }
}
