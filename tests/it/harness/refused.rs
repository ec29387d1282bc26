//! A refusal of the API, taken apart as a client library would.

use std::collections::HashMap;

use devp2pd::rpc::google_rpc::{BadRequest, ErrorInfo, RetryInfo, Status as RpcStatus};
use prost::Message;
use tonic::{Code, Status};

/// The parts of a status that a program reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) code: Code,
    /// The reason of the one `ErrorInfo`.
    pub(crate) reason: String,
    pub(crate) metadata: HashMap<String, String>,
    /// The fields to blame.
    pub(crate) fields: Vec<String>,
    /// Whether it has a time to try again.
    pub(crate) retry: bool,
    pub(crate) message: String,
}

/// Reads a status. Fails unless there is exactly one `ErrorInfo`, of our domain, and the status repeats code and
/// message.
pub(crate) fn refused(status: &Status) -> Refused {
    let rpc = RpcStatus::decode(status.details()).expect("details are a google.rpc.Status");
    assert_eq!(rpc.code, status.code() as i32, "{status}");
    assert_eq!(rpc.message, status.message());
    let all = |name: &str| -> Vec<Vec<u8>> {
        let url = format!("type.googleapis.com/google.rpc.{name}");
        rpc.details.iter().filter(|any| any.type_url == url).map(|any| any.value.clone()).collect()
    };
    let infos = all("ErrorInfo");
    assert_eq!(infos.len(), 1, "one ErrorInfo: {status}");
    let info = ErrorInfo::decode(&*infos[0]).unwrap();
    assert_eq!(info.domain, "devp2pd");
    let bad = all("BadRequest");
    let fields = bad.iter().flat_map(|bytes| {
        BadRequest::decode(&**bytes).unwrap().field_violations.into_iter().map(|violation| {
            assert!(!violation.description.is_empty(), "does not mention {}", violation.field);
            violation.field
        })
    });
    Refused {
        code: status.code(),
        reason: info.reason,
        metadata: info.metadata,
        fields: fields.collect(),
        retry: all("RetryInfo").iter().any(|bytes| RetryInfo::decode(&**bytes).is_ok()),
        message: rpc.message,
    }
}

impl Refused {
    /// Code and reason, which is what most tests compare.
    pub(crate) fn kind(&self) -> (Code, &str) {
        (self.code, &self.reason)
    }
}
