//! The check of every call: the identity of the caller, its role, and the number of its open calls.
//!
//! The gate reads the path and the headers of a request, and no byte of its body, so a refusal costs no decoding. It
//! authenticates the caller (`authentication`), compares its role with the one that the call needs (`methods`), and
//! counts the call among the caller's open calls. Then it passes the request on, with the caller attached and its body
//! under the budget (`server::decoding`).
//!
//! Errors of the gRPC library have only a code and a text. The gate adds the reason that every error of this contract
//! has.
//!
//! Left out: deadlines that clients set. The library enforces them outside the gate.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use http_body_util::BodyExt as _;
use tokio::sync::watch;
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
};
use tower_layer::Layer;

use super::{
    super::{
        proto::ErrorReason,
        server::{connection_slots::OpenCall, decoding::Budgeted, incoming::Connection},
        translate::status::{self, ErrorStatus},
    },
    Access, Caller, Role, authenticate, methods,
};

type Request = http::Request<Body>;
type Response = http::Response<Body>;

/// The most open calls of one caller, streams included: as many as two full connections (1,024 streams each). A caller
/// with more of them has probably forgotten to end some.
pub const MAX_CALLS: usize = 2_048;

/// The gate: a layer around the services.
#[derive(Clone)]
pub struct Gate {
    access: watch::Receiver<Option<Arc<Access>>>,
    calls: Arc<Calls>,
}

impl Gate {
    /// Returns a gate that authenticates callers by the current access file.
    #[must_use]
    pub fn new(access: watch::Receiver<Option<Arc<Access>>>) -> Self {
        Self { access, calls: Arc::default() }
    }

    /// Admits the request, or returns its refusal. The call counts as open until the returned values are dropped.
    fn admit(&self, request: Request) -> Result<(Request, (Call, OpenCall)), ErrorStatus> {
        // Each request over our listeners has connect info, so a request without it is an error of the sidecar.
        let connection = request.extensions().get::<Connection>();
        let connection =
            connection.ok_or_else(|| ErrorStatus::internal("a call without a connection"))?.clone();
        let needs = methods::needs(request.uri().path());
        let caller = match needs.role {
            Some(role) => {
                let caller = self.authenticate(&connection, request.headers())?;
                if caller.role < role {
                    let message = format!(
                        "this call needs the role {role}, and {} has the role {}",
                        caller.name, caller.role
                    );
                    return Err(ErrorStatus::forbidden(message));
                }
                caller
            }
            None => Caller { name: connection.origin.name().into(), role: Role::Read, proven: false },
        };
        let call = Calls::begin(&self.calls, &caller.name)?;
        let open = connection.standing.call(needs.role.is_some());
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(caller);
        let body = Budgeted::new(body, needs.max_request, connection.share);
        Ok((http::Request::from_parts(parts, Body::new(body)), (call, open)))
    }

    fn authenticate(
        &self,
        connection: &Connection,
        headers: &http::HeaderMap,
    ) -> Result<Caller, ErrorStatus> {
        let mut given = headers.get_all(http::header::AUTHORIZATION).iter();
        let first = given.next();
        if given.next().is_some() {
            // It is not clear which of them the caller means.
            return Err(ErrorStatus::new(
                ErrorReason::NotAuthorized,
                "more than one authorization header; send one",
            ));
        }
        let names = connection.certificate.as_deref().unwrap_or_default();
        let access = self.access.borrow().clone();
        authenticate(access.as_deref(), &connection.origin, names, first.map(http::HeaderValue::as_bytes))
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.clone(), inner }
    }
}

/// Services behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S> Service<Request> for Gated<S>
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send + 'static>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        if !is_grpc(request.headers()) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Box::pin(std::future::ready(Ok(response)));
        }
        let path = request.uri().path();
        // Health and reflection are outside this contract and have their own conventions for errors.
        let ours = !path.starts_with("/grpc.");
        let (request, call) = match self.gate.admit(request) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                tracing::debug!(message = refusal.message(), "refused a gRPC call");
                let response = Status::from(refusal).into_http();
                return Box::pin(std::future::ready(Ok(response)));
            }
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            let response = if ours { with_reason(response) } else { response };
            // The call counts as open until its response body is dropped.
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _open = &call;
                    frame
                }))
            }))
        })
    }
}

/// Whether the content type says gRPC, as it does for every gRPC client. A page in a browser cannot send this type: its
/// requests without a CORS preflight have other types (`text/plain`), and gRPC-Web has its own type.
fn is_grpc(headers: &http::HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Returns the response, with a reason added if it is an error without one.
fn with_reason(response: Response) -> Response {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != tonic::Code::Ok && status.details().is_empty() => {
            status::with_reason(status).into_http()
        }
        _ => response,
    }
}

/// The number of open calls by caller.
#[derive(Default)]
struct Calls(Mutex<HashMap<Arc<str>, usize>>);

/// One open call. It is counted until this is dropped.
struct Call {
    calls: Arc<Calls>,
    caller: Arc<str>,
}

impl Calls {
    fn begin(calls: &Arc<Self>, caller: &Arc<str>) -> Result<Call, ErrorStatus> {
        let mut counts = calls.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = counts.entry(Arc::clone(caller)).or_default();
        if *open >= MAX_CALLS {
            let message =
                format!("{caller} has {MAX_CALLS} open calls, which is the limit; end some of them");
            return Err(ErrorStatus::new(ErrorReason::LimitReached, message)
                .with("limit", MAX_CALLS)
                .with("what", "open calls"));
        }
        *open += 1;
        Ok(Call { calls: Arc::clone(calls), caller: Arc::clone(caller) })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut counts = self.calls.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = counts.get_mut(&self.caller) {
            *open -= 1;
            if *open == 0 {
                counts.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_calls_are_counted_by_caller_and_freed() {
        let calls = Arc::default();
        let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
        let open: Vec<_> = (0..MAX_CALLS).map(|_| Calls::begin(&calls, &one).ok().unwrap()).collect();
        let refused = Calls::begin(&calls, &one).err().unwrap();
        assert_eq!(refused.reason(), ErrorReason::LimitReached);
        assert!(Calls::begin(&calls, &two).is_ok());
        drop(open);
        assert!(Calls::begin(&calls, &one).is_ok());
        assert!(calls.0.lock().unwrap().is_empty());
    }
}
