//! ProtocolService: registrations, which say which application has which sub-protocols, and for how long.

use tonic::{Request, Response, Status};

use super::{caller::principal, paging, watch};
use crate::{
    net::switch::Handle,
    rpc::{
        proto::{self, protocol_service_server::ProtocolService},
        translate::{registration, status::ErrorStatus},
    },
    switch::registrations::{Acting, Lookup, RegistrationRef, RegistrationView},
};

/// The service.
#[derive(Debug)]
pub(super) struct Protocols {
    handle: Handle,
}

impl Protocols {
    /// Returns the service for a switch.
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

fn missing() -> ErrorStatus {
    ErrorStatus::field("registration", "must be named by resume_token or client_id")
}

#[tonic::async_trait]
impl ProtocolService for Protocols {
    type WatchRegistrationsStream = watch::WatchStream<proto::WatchRegistrationsResponse>;

    async fn watch_registrations(
        &self,
        request: Request<proto::WatchRegistrationsRequest>,
    ) -> Result<Response<Self::WatchRegistrationsStream>, Status> {
        let caller = principal(&request);
        let proto::WatchRegistrationsRequest { resume_token, mark_interval } = request.into_inner();
        let watches = self.handle.watches();
        let asked = watch::WatchRequest::new(watches, &caller, &resume_token, mark_interval)?;
        Ok(Response::new(watch::registrations(watches, asked)))
    }

    async fn register_protocols(
        &self,
        request: Request<proto::RegisterProtocolsRequest>,
    ) -> Result<Response<proto::RegisterProtocolsResponse>, Status> {
        let caller = principal(&request);
        let request = request.into_inner();
        let target = RegistrationRef::Spec(registration::spec(request.spec)?);
        let request_id = registration::request_id(request.request_id)?;
        let takeover = request.takeover;
        let registered = self
            .handle
            .call(move |switch, now| switch.register(now, &caller, &target, &request_id, takeover))
            .await?;
        Ok(Response::new(proto::RegisterProtocolsResponse {
            registration: Some(registration::view(&registered.registration)),
            resume_token: registered.token.expose(),
            resumed: registered.resumed,
            instance_id: registered.instance_id.to_string(),
        }))
    }

    async fn update_registration(
        &self,
        request: Request<proto::UpdateRegistrationRequest>,
    ) -> Result<Response<proto::UpdateRegistrationResponse>, Status> {
        let caller = principal(&request);
        let request = request.into_inner();
        let acting = request.registration.map(Acting::from).ok_or_else(missing)?;
        let spec = registration::spec(request.spec)?;
        let view = self
            .handle
            .call(move |switch, now| switch.update_registration(now, &caller, &acting, spec))
            .await?;
        let registration = Some(registration::view(&view));
        Ok(Response::new(proto::UpdateRegistrationResponse { registration }))
    }

    async fn set_greeting(
        &self,
        request: Request<proto::SetGreetingRequest>,
    ) -> Result<Response<proto::SetGreetingResponse>, Status> {
        let caller = principal(&request);
        let request = request.into_inner();
        let acting = request.registration.map(Acting::from).ok_or_else(missing)?;
        let greeting = request.messages.into_iter().map(registration::payload).collect();
        let (name, version) = (request.name, request.version);
        self.handle
            .call(move |switch, now| {
                switch.registrations().set_greeting_of(now, &caller, &acting, &name, version, greeting)
            })
            .await?;
        Ok(Response::new(proto::SetGreetingResponse {}))
    }

    async fn renew_registration(
        &self,
        request: Request<proto::RenewRegistrationRequest>,
    ) -> Result<Response<proto::RenewRegistrationResponse>, Status> {
        let caller = principal(&request);
        let acting = request.into_inner().registration.map(Acting::from).ok_or_else(missing)?;
        let view =
            self.handle.call(move |switch, now| switch.registrations().renew(now, &caller, &acting)).await?;
        Ok(Response::new(proto::RenewRegistrationResponse { registration: Some(registration::view(&view)) }))
    }

    async fn delete_registration(
        &self,
        request: Request<proto::DeleteRegistrationRequest>,
    ) -> Result<Response<proto::DeleteRegistrationResponse>, Status> {
        let caller = principal(&request);
        let acting = request.into_inner().registration.map(Acting::from).ok_or_else(missing)?;
        self.handle.call(move |switch, now| switch.registrations().delete(now, &caller, &acting)).await?;
        Ok(Response::new(proto::DeleteRegistrationResponse {}))
    }

    async fn get_registration(
        &self,
        request: Request<proto::GetRegistrationRequest>,
    ) -> Result<Response<proto::GetRegistrationResponse>, Status> {
        use proto::get_registration_request::Registration as By;
        let lookup = match request.into_inner().registration {
            Some(By::RegistrationId(text)) => Lookup::Id(registration::registration_id(&text)?),
            Some(By::ClientId(id)) => Lookup::Client(id.into()),
            Some(By::Protocol(name)) => Lookup::Protocol(name),
            None => {
                let problem = "must be named by registration_id, client_id or protocol";
                return Err(ErrorStatus::field("registration", problem).into());
            }
        };
        let view =
            self.handle.call(move |switch, now| switch.registrations().registration(now, &lookup)).await?;
        Ok(Response::new(proto::GetRegistrationResponse { registration: Some(registration::view(&view)) }))
    }

    async fn list_registrations(
        &self,
        request: Request<proto::ListRegistrationsRequest>,
    ) -> Result<Response<proto::ListRegistrationsResponse>, Status> {
        let proto::ListRegistrationsRequest { page_size, page_token } = request.into_inner();
        let page = paging::PageRequest::new(page_size, &page_token)?;
        let views = self.handle.run(|switch, now| switch.registrations().registrations(now)).await?;
        // Two callers may use the same client id, so the id of the registration is part of the key. A space separates
        // the two, as a client id has no spaces.
        let key = |view: &RegistrationView| format!("{} {}", view.spec.client_id, view.id);
        let (registrations, next_page_token) = page.of(views, key, registration::view);
        Ok(Response::new(proto::ListRegistrationsResponse { registrations, next_page_token }))
    }
}
