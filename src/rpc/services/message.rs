//! MessageService: messages of sub-protocols, on streams (`exchange`, `receive`) or one at a time (here, `broadcast`).

mod broadcast;
mod exchange;
mod reader;
mod receive;

use std::{pin::Pin, time::Duration};

use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use self::{exchange::ExchangeStream, receive::ReceiveStream};
use super::caller::principal;
use crate::{
    net::switch::Handle,
    net::wake,
    rpc::{
        proto::{self, message_service_server::MessageService},
        translate::{errors::not_sent, registration, status::ErrorStatus, value::node_ref},
    },
    switch::{Principal, attachment::SendError, registrations::Acting},
};

/// How long `wait_written` waits until the message is written to a slow peer's socket. After that the call fails, and
/// the message stays queued.
const WRITTEN_TIMEOUT: Duration = Duration::from_secs(20);

/// The service.
#[derive(Debug)]
pub(super) struct Messages {
    handle: Handle,
}

impl Messages {
    /// Returns the service for a switch.
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle }
    }

    async fn send(&self, caller: Principal, request: proto::SendMessageRequest) -> Result<(), ErrorStatus> {
        let node = node_ref("node", &request.node)?.id();
        let acting = request.sender.map_or_else(|| Acting::Protocol(request.protocol.clone()), Acting::from);
        if request.protocol.is_empty() {
            return Err(ErrorStatus::field("protocol", "is missing; write eth or eth/69"));
        }
        let protocol = request.protocol;
        let target = self
            .handle
            .call(move |switch, now| switch.sender(now, &caller, &acting, node, &protocol))
            .await?;
        let number =
            target.send_payload(request.code, &request.payload).map_err(|error| not_sent(error, node))?;
        if !request.wait_written {
            return Ok(());
        }
        let written = wake::call_written(&target.session.outbound, target.channel.index, number);
        match tokio::time::timeout(WRITTEN_TIMEOUT, written).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(not_sent(SendError::NotConnected, node)),
            Err(_) => Err(ErrorStatus::new(
                proto::ErrorReason::TimedOut,
                "the peer has not taken the message within 20 s; the message is still queued",
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
        // The attachment is awaited here, so that a refusal is the answer to the call and not the end of a stream.
        let attached = self.handle.attach(caller, attach).await?;
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
        let answer = broadcast::broadcast(&self.handle, caller, request.into_inner()).await?;
        Ok(Response::new(answer))
    }
}
