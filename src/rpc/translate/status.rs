//! The errors of the contract: a [`ErrorStatus`] becomes a `google.rpc.Status` that a program can read.
//!
//! Every error carries exactly one `ErrorInfo` (domain `devp2pd`, reason the name of an [`ErrorReason`]), a
//! `BadRequest` where fields are wrong, and a `RetryInfo` where a retry helps. This file alone maps a reason to its
//! gRPC code, so that a reason always has the same code.
//!
//! Errors travel in HTTP/2 headers. Most clients limit a list of headers to 8 to 16 KiB, and a longer one makes the
//! call hang instead of fail (grpc-rust issue 1834). So all texts are cut: see [`MESSAGE_LIMIT`] and [`DETAILS_LIMIT`].
//!
//! Left out: the reasons themselves (`proto/devp2p/v1/types.proto`), and which call refuses what (the services).

use std::{collections::HashMap, time::Duration};

use prost::Message as _;
use tonic::{Code, Status};

use crate::rpc::{
    google_rpc::{BadRequest, ErrorInfo, RetryInfo, Status as RpcStatus, bad_request::FieldViolation},
    proto::ErrorReason,
};

/// The value of `ErrorInfo.domain`: the program that defines the reasons.
const DOMAIN: &str = "devp2pd";

/// The most bytes of a message in the `grpc-message` header. A space, some punctuation and each byte that is not ASCII
/// take three bytes there. An enode URL with some sentences fits. Together with the details in base64, which adds a
/// third, the headers stay below 4 KiB.
const MESSAGE_LIMIT: usize = 900;

/// The most bytes of the encoded details, before base64 turns every 3 bytes into 4.
const DETAILS_LIMIT: usize = 2_300;

/// The most bytes of one metadata value or field description, as both may contain text from strangers or applications.
const TEXT_LIMIT: usize = 256;

/// The most metadata entries: as many as always fit [`DETAILS_LIMIT`] together with the message.
const METADATA_LIMIT: usize = 4;

/// The most wrong fields that `BadRequest` names one by one. A request with more of them probably has one common cause.
const FIELDS_LIMIT: usize = 8;

/// Why a request is refused. Services return this value; it becomes a gRPC status where the call returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorStatus {
    reason: ErrorReason,
    code: Code,
    message: String,
    metadata: Vec<(&'static str, String)>,
    fields: Vec<(String, String)>,
    retry_after: Option<Duration>,
}

impl ErrorStatus {
    /// Returns a refusal for `reason`. `message` says what was wrong and what would be right.
    pub fn new(reason: ErrorReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            code: code(reason),
            message: message.into(),
            metadata: Vec::new(),
            fields: Vec::new(),
            retry_after: retry_after(reason),
        }
    }

    /// INVALID_ARGUMENT / INVALID_FIELD. `field` is the path of the field (`spec.protocols[0].name`); `problem` says
    /// what is wrong with it and what would be right.
    pub fn field(field: impl Into<String>, problem: impl ToString) -> Self {
        let (field, problem) = (field.into(), problem.to_string());
        Self::new(ErrorReason::InvalidField, format!("{field}: {problem}")).with_field(field, problem)
    }

    /// INVALID_ARGUMENT / INVALID_FIELD for several fields: path and problem of each.
    pub fn fields(problems: Vec<(String, String)>) -> Self {
        let each: Vec<String> =
            problems.iter().map(|(field, problem)| format!("{field}: {problem}")).collect();
        Self { fields: problems, ..Self::new(ErrorReason::InvalidField, each.join("; ")) }
    }

    /// Returns the wrong fields alone, so that they can be reported with other wrong fields of the same request.
    pub(in crate::rpc) fn into_fields(self) -> Vec<(String, String)> {
        self.fields
    }

    /// INTERNAL: an error of the sidecar. `message` holds no internal details; the code that noticed it logs those.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorReason::Internal, message)
    }

    /// PERMISSION_DENIED / NOT_AUTHORIZED: the caller is known and may not do this. For the same reason, [`Self::new`]
    /// takes the code UNAUTHENTICATED.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self { code: Code::PermissionDenied, ..Self::new(ErrorReason::NotAuthorized, message) }
    }

    /// Adds a metadata entry for programs. Keys are snake_case and are documented with the reason in `types.proto`.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// Adds one more wrong field.
    #[must_use]
    fn with_field(mut self, field: impl Into<String>, problem: impl ToString) -> Self {
        self.fields.push((field.into(), problem.to_string()));
        self
    }

    /// Sets the time after which a retry makes sense, in place of the reason's default.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Returns the reason. Events in a stream carry it, too.
    #[must_use]
    pub fn reason(&self) -> ErrorReason {
        self.reason
    }

    /// Returns the gRPC code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// Returns the message, cut to [`MESSAGE_LIMIT`]. Events in a stream carry it, too.
    #[must_use]
    pub fn message(&self) -> String {
        cut(&self.message, MESSAGE_LIMIT)
    }

    fn details(&self, message: &str) -> Vec<u8> {
        let name = self.reason.as_str_name();
        let info = ErrorInfo {
            reason: name.strip_prefix("ERROR_REASON_").unwrap_or(name).to_owned(),
            domain: DOMAIN.to_owned(),
            metadata: self
                .metadata
                .iter()
                .take(METADATA_LIMIT)
                .map(|(key, value)| ((*key).to_owned(), cut(value, TEXT_LIMIT)))
                .collect::<HashMap<_, _>>(),
        };
        let mut details = vec![any("ErrorInfo", &info)];
        if let Some(delay) = self.retry_after {
            let retry_delay = prost_types::Duration::try_from(delay).ok();
            details.push(any("RetryInfo", &RetryInfo { retry_delay }));
        }
        if !self.fields.is_empty() {
            let field_violations = self
                .fields
                .iter()
                .take(FIELDS_LIMIT)
                .map(|(field, problem)| FieldViolation {
                    field: cut(field, TEXT_LIMIT),
                    description: cut(problem, TEXT_LIMIT),
                })
                .collect();
            details.push(any("BadRequest", &BadRequest { field_violations }));
        }
        let mut status = RpcStatus { code: self.code as i32, message: message.to_owned(), details };
        // Drop the last details until the rest fits. The message has the same content for a reader; only programs lose
        // the dropped details. ErrorInfo alone always fits.
        while status.encoded_len() > DETAILS_LIMIT && status.details.len() > 1 {
            status.details.pop();
        }
        status.encode_to_vec()
    }
}

impl From<ErrorStatus> for Status {
    fn from(refusal: ErrorStatus) -> Self {
        let message = refusal.message();
        let details = refusal.details(&message);
        Self::with_details(refusal.code, message, details.into())
    }
}

/// Gives an error of the gRPC library a reason, as the library sets only a code and a text. A status that has details
/// stays as it is.
#[must_use]
pub fn with_reason(status: Status) -> Status {
    if !status.details().is_empty() {
        return status;
    }
    let reason = match status.code() {
        Code::Unimplemented => ErrorReason::NotSupported,
        Code::OutOfRange | Code::ResourceExhausted => ErrorReason::RequestTooLarge,
        // The library uses INTERNAL for what it cannot decode: wrong frames, wrong protobuf, or a missing request.
        Code::Internal | Code::InvalidArgument => ErrorReason::RequestMalformed,
        Code::DeadlineExceeded => ErrorReason::TimedOut,
        _ => return status,
    };
    let message = match status.message() {
        "" if reason == ErrorReason::NotSupported => "this version of devp2pd has no such call",
        "" => "the request cannot be decoded",
        message => message,
    };
    ErrorStatus::new(reason, message).into()
}

/// Returns the gRPC code of a reason. Clients rely on this table.
fn code(reason: ErrorReason) -> Code {
    use ErrorReason as R;
    match reason {
        R::ProtocolAlreadyRegistered | R::RecordKeyOwned => Code::AlreadyExists,
        R::RegistrationAttached
        | R::ProtocolNotShared
        | R::NodeBanned
        | R::NodeAddressUnknown
        | R::EntryFromConfig
        | R::DialFailed => Code::FailedPrecondition,
        R::RegistrationNotFound | R::PeerNotConnected | R::ProtocolNotRegistered | R::EntryNotFound => {
            Code::NotFound
        }
        R::ResumeTokenStale => Code::Aborted,
        R::SendWindowExceeded | R::LimitReached | R::RequestTooLarge => Code::ResourceExhausted,
        R::MessageCodeOutOfRange => Code::OutOfRange,
        R::MessageTooLarge
        | R::InvalidField
        | R::StreamProtocolViolation
        | R::RecordTooLarge
        | R::HelloTooLarge
        | R::RequestMalformed => Code::InvalidArgument,
        R::NotAuthorized => Code::Unauthenticated,
        R::ServerDraining => Code::Unavailable,
        R::TimedOut => Code::DeadlineExceeded,
        R::NotSupported => Code::Unimplemented,
        R::Unspecified | R::Internal => Code::Internal,
    }
}

/// Returns the time after which a retry makes sense; `None` where a retry does not help.
fn retry_after(reason: ErrorReason) -> Option<Duration> {
    match reason {
        // A full queue of 1 MiB empties within about 10 ms on a fast link, and within a second on a slow one.
        ErrorReason::SendWindowExceeded => Some(Duration::from_millis(100)),
        // A sidecar that stops is back in about a second if a supervisor restarts it.
        ErrorReason::ServerDraining => Some(Duration::from_secs(1)),
        _ => None,
    }
}

fn any(name: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any {
        type_url: format!("type.googleapis.com/google.rpc.{name}"),
        value: message.encode_to_vec(),
    }
}

/// Returns `text` without control characters, cut so that it takes at most `limit` bytes in a header.
fn cut(text: &str, limit: usize) -> String {
    let clean = || text.chars().map(|char| if char.is_control() { ' ' } else { char });
    // tonic percent-encodes spaces, much punctuation and all that is not ASCII: three bytes in place of each byte.
    let cost = |char: char| {
        let plain =
            char.is_ascii_graphic() && !matches!(char, '"' | '#' | '%' | '<' | '>' | '`' | '?' | '{' | '}');
        if plain { 1 } else { 3 * char.len_utf8() }
    };
    if clean().map(cost).sum::<usize>() <= limit {
        return clean().collect();
    }
    let mut left = limit.saturating_sub("...".len());
    let head = clean().take_while(|char| {
        let fits = cost(*char) <= left;
        left = left.saturating_sub(cost(*char));
        fits
    });
    head.chain("...".chars()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Decodes a status as a client does: the status, its ErrorInfo, and its RetryInfo and BadRequest if it has them.
    pub(in crate::rpc::translate) fn read(
        status: &Status,
    ) -> (RpcStatus, ErrorInfo, Option<RetryInfo>, Option<BadRequest>) {
        let rpc = RpcStatus::decode(status.details()).unwrap();
        let find = |name: &str| {
            let url = format!("type.googleapis.com/google.rpc.{name}");
            let mut found = rpc.details.iter().filter(|any| any.type_url == url);
            let first = found.next().map(|any| any.value.clone());
            assert!(found.next().is_none(), "two {name}");
            first
        };
        let info = ErrorInfo::decode(&*find("ErrorInfo").expect("every error has an ErrorInfo")).unwrap();
        let retry = find("RetryInfo").map(|bytes| RetryInfo::decode(&*bytes).unwrap());
        let bad = find("BadRequest").map(|bytes| BadRequest::decode(&*bytes).unwrap());
        (rpc, info, retry, bad)
    }

    /// All reasons of the contract.
    pub(in crate::rpc::translate) fn reasons() -> impl Iterator<Item = ErrorReason> {
        (0..200).filter_map(|number| ErrorReason::try_from(number).ok())
    }

    #[test]
    fn every_reason_travels_with_its_name_and_one_code() {
        let mut seen = 0;
        for reason in reasons() {
            let status = Status::from(ErrorStatus::new(reason, "no"));
            let (rpc, info, retry, bad) = read(&status);
            assert_eq!(format!("ERROR_REASON_{}", info.reason), reason.as_str_name());
            assert_eq!(info.domain, "devp2pd");
            assert_eq!((rpc.code, rpc.message.as_str()), (status.code() as i32, "no"));
            assert_eq!(bad, None);
            let unavailable = status.code() == Code::Unavailable;
            assert!(retry.is_some() || !unavailable, "{reason:?}: UNAVAILABLE says when to come back");
            seen += 1;
        }
        assert!(seen >= 24, "only {seen} reasons");
    }

    #[test]
    fn the_codes_that_clients_rely_on() {
        for (reason, code) in [
            (ErrorReason::ProtocolAlreadyRegistered, Code::AlreadyExists),
            (ErrorReason::RegistrationAttached, Code::FailedPrecondition),
            (ErrorReason::RegistrationNotFound, Code::NotFound),
            (ErrorReason::ResumeTokenStale, Code::Aborted),
            (ErrorReason::PeerNotConnected, Code::NotFound),
            (ErrorReason::ProtocolNotShared, Code::FailedPrecondition),
            (ErrorReason::SendWindowExceeded, Code::ResourceExhausted),
            (ErrorReason::LimitReached, Code::ResourceExhausted),
            (ErrorReason::MessageCodeOutOfRange, Code::OutOfRange),
            (ErrorReason::InvalidField, Code::InvalidArgument),
            (ErrorReason::MessageTooLarge, Code::InvalidArgument),
            (ErrorReason::StreamProtocolViolation, Code::InvalidArgument),
            (ErrorReason::NotAuthorized, Code::Unauthenticated),
            (ErrorReason::NotSupported, Code::Unimplemented),
            (ErrorReason::RequestMalformed, Code::InvalidArgument),
            (ErrorReason::RequestTooLarge, Code::ResourceExhausted),
            (ErrorReason::ServerDraining, Code::Unavailable),
        ] {
            assert_eq!(ErrorStatus::new(reason, "").code(), code, "{reason:?}");
        }
        assert_eq!(ErrorStatus::forbidden("").code(), Code::PermissionDenied);
    }

    #[test]
    fn errors_of_the_library_get_a_reason_and_others_keep_theirs() {
        for (code, text, reason) in [
            (Code::Unimplemented, "", "NOT_SUPPORTED"),
            (Code::Unimplemented, "Content is compressed with `gzip`", "NOT_SUPPORTED"),
            (Code::OutOfRange, "decoded message length too large", "REQUEST_TOO_LARGE"),
            (Code::Internal, "failed to decode Protobuf message", "REQUEST_MALFORMED"),
        ] {
            let (rpc, info, ..) = read(&with_reason(Status::new(code, text)));
            assert_eq!(info.reason, reason);
            assert!(!rpc.message.is_empty() && rpc.message.contains(text));
        }
        let ours = Status::from(ErrorStatus::new(ErrorReason::Internal, "ours"));
        assert_eq!(read(&with_reason(ours)).1.reason, "INTERNAL");
        assert_eq!(with_reason(Status::cancelled("gone")).code(), Code::Cancelled);
    }

    #[test]
    fn particulars_fields_and_delays_come_through() {
        let refusal =
            ErrorStatus::new(ErrorReason::ProtocolAlreadyRegistered, "\"eth\" is held by \"geth-1\"")
                .with("protocol", "eth")
                .with("owner", "geth-1")
                .retry_after(Duration::from_millis(1_500));
        let (_, info, retry, _) = read(&refusal.into());
        assert_eq!(info.metadata.len(), 2);
        assert_eq!(info.metadata.get("owner").map(String::as_str), Some("geth-1"));
        let delay = retry.unwrap().retry_delay.unwrap();
        assert_eq!((delay.seconds, delay.nanos), (1, 500_000_000));

        let refusal =
            ErrorStatus::field("spec.protocols[0].name", "is empty").with_field("node", "is missing");
        assert_eq!(refusal.message(), "spec.protocols[0].name: is empty");
        let fields = read(&refusal.into()).3.unwrap().field_violations;
        let fields: Vec<_> = fields.iter().map(|f| (f.field.as_str(), f.description.as_str())).collect();
        assert_eq!(fields, [("spec.protocols[0].name", "is empty"), ("node", "is missing")]);
    }

    #[test]
    fn what_others_wrote_never_outgrows_a_header() {
        for text in ["x", "%", "\u{1f980}", "\n", "\0"] {
            let long = text.repeat(100_000);
            let mut refusal = ErrorStatus::field(&long, &long);
            for key in ["a", "b", "c", "d", "e", "f"] {
                refusal = refusal.with(key, &long);
            }
            for _ in 0..100 {
                refusal = refusal.with_field(&long, &long);
            }
            let status = Status::from(refusal);
            let (_, info, ..) = read(&status);
            assert_eq!(info.reason, "INVALID_FIELD");
            let headers = status.into_http::<()>();
            let total: usize =
                headers.headers().iter().map(|(key, value)| key.as_str().len() + value.len()).sum();
            assert!(total <= 4_096, "{total} bytes of headers with {text:?}");
        }
    }

    #[test]
    fn texts_are_cut_at_a_character_and_say_so() {
        for (text, limit, expected) in [
            ("abcdef", 6, "abcdef"),
            ("abcdefg", 6, "abc..."),
            ("a\nb", 5, "a b"),
            ("é%", 9, "é%"),
            ("éé", 11, "é..."),
            ("", 0, ""),
        ] {
            assert_eq!(cut(text, limit), expected, "{text:?} to {limit}");
        }
    }
}
