//! MessageService: messages of sub-protocols, streamed (`exchange`) or one at a time.

use std::{pin::Pin, time::Duration};

use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    events::send_error,
    exchange::ExchangeStream,
    node_ref, principal,
    proto::{self, message_service_server::MessageService},
    receive::ReceiveStream,
    registration,
    status::Refusal,
};
use crate::{
    net::switch::Handle,
    net::wake,
    p2p::{Lane, Refused},
    rlpx::Compressor,
    switch::{Principal, attachment::SendError, registrations::Acting},
};

/// How long `wait_written` waits for a slow peer's socket before it says that the message still waits.
const WRITTEN_TIMEOUT: Duration = Duration::from_secs(20);

/// The service.
#[derive(Debug)]
pub struct Messages {
    handle: Handle,
}

impl Messages {
    /// The service over a switch.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }

    async fn send(&self, caller: Principal, request: proto::SendMessageRequest) -> Result<(), Refusal> {
        let node = node_ref("node", &request.node)?.id();
        let acting = match request.sender {
            Some(proto::send_message_request::Sender::ResumeToken(text)) => Acting::Token(text),
            Some(proto::send_message_request::Sender::ClientId(id)) => Acting::Client(id.into()),
            None => Acting::Protocol(request.protocol.clone()),
        };
        if request.protocol.is_empty() {
            return Err(Refusal::field("protocol", "is missing; write eth or eth/69"));
        }
        let target = self.handle.sender(caller, acting, node, request.protocol).await?;
        let to = &target.channel;
        let refuse = |error| {
            let (reason, message) = send_error(error);
            let refusal = Refusal::new(reason, message);
            match error {
                SendError::CodeOutOfRange { message_count } => refusal.with("message_count", message_count),
                SendError::TooLarge { bytes, limit } => refusal.with("bytes", bytes).with("limit", limit),
                SendError::WindowExceeded | SendError::NotConnected | SendError::NeverOpened { .. } => {
                    refusal
                }
            }
        };
        let bytes = request.payload.len();
        let limit = to.max_message;
        let message = Compressor::default()
            .compress(&request.payload)
            .map_err(|_| refuse(SendError::TooLarge { bytes, limit }))?;
        target.check(request.code, &message).map_err(refuse)?;
        let outbound = &target.session.outbound;
        let number = outbound.send(Lane::Call, to.index, u64::from(request.code), message).map_err(
            |error| match error {
                Refused::Full => refuse(SendError::WindowExceeded),
                Refused::Closed => refuse(SendError::NotConnected).with("node_id", node),
            },
        )?;
        if !request.wait_written {
            return Ok(());
        }
        let written = wake::written(outbound, Lane::Call, to.index, number);
        match tokio::time::timeout(WRITTEN_TIMEOUT, written).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(refuse(SendError::NotConnected).with("node_id", node)),
            Err(_) => Err(Refusal::new(
                proto::ErrorReason::TimedOut,
                "the peer has not taken the message yet; it is still queued",
            )),
        }
    }
}

#[tonic::async_trait]
impl MessageService for Messages {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<proto::ExchangeResponse, Status>> + Send>>;
    type ReceiveMessagesStream =
        Pin<Box<dyn Stream<Item = Result<proto::ReceiveMessagesResponse, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<proto::ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let caller = principal(&request);
        let stream = ExchangeStream::open(self.handle.clone(), caller, request.into_inner());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn receive_messages(
        &self,
        request: Request<proto::ReceiveMessagesRequest>,
    ) -> Result<Response<Self::ReceiveMessagesStream>, Status> {
        let caller = principal(&request);
        let attach = registration::receive_request(request.into_inner())?;
        // Awaited here, so that a refusal is the answer to the call and not the end of a stream.
        let attached = self.handle.attach(caller, attach).await.map_err(Refusal::from)?;
        Ok(Response::new(Box::pin(ReceiveStream::open(self.handle.clone(), attached))))
    }

    async fn send_message(
        &self,
        request: Request<proto::SendMessageRequest>,
    ) -> Result<Response<proto::SendMessageResponse>, Status> {
        let caller = principal(&request);
        self.send(caller, request.into_inner()).await?;
        Ok(Response::new(proto::SendMessageResponse {}))
    }

    async fn broadcast_message(
        &self,
        request: Request<proto::BroadcastMessageRequest>,
    ) -> Result<Response<proto::BroadcastMessageResponse>, Status> {
        let caller = principal(&request);
        let answer = super::broadcast::broadcast(&self.handle, caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }
}
