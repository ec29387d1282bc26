//! One HTTP request to a gateway: without redirects and proxies, at most 64 KiB and three seconds.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use super::error::Error;

/// The largest answer that is read, in bytes. The description of a gateway has a few thousand.
const MAX_ANSWER: usize = 64 * 1024;

/// The longest time for a request (go-ethereum's number).
const TIMEOUT: Duration = Duration::from_secs(3);

/// The answer of the gateway.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: String,
}

/// Sends a GET, or, with `soap` (action and body), a POST. Returns the answer.
pub(super) async fn request(
    to: SocketAddr,
    path: &str,
    soap: Option<(&str, String)>,
) -> Result<Answer, Error> {
    timeout(TIMEOUT, exchange(to, path, soap)).await.map_err(|_| Error::Timeout(to))?
}

async fn exchange(to: SocketAddr, path: &str, soap: Option<(&str, String)>) -> Result<Answer, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Http { to, error: error.to_string() };
    let stream = TcpStream::connect(to).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let mut request = Request::builder().uri(path).header(header::HOST, to.to_string());
    let mut body = Bytes::new();
    if let Some((action, envelope)) = soap {
        request = request
            .method("POST")
            .header("SOAPAction", action)
            .header(header::CONTENT_TYPE, "text/xml; charset=\"utf-8\"");
        body = envelope.into();
    }
    let request =
        request.header(header::CONNECTION, "close").body(Full::new(body)).map_err(|error| failed(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| failed(&error))?.to_bytes();
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    // The connection must be polled while the answer is awaited. Both are dropped together.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
}
