//! How a call that failed is answered: a status, with details for programs.
//!
//! | trailer | what |
//! |---|---|
//! | `grpc-status` | the code, see [`crate::edge::error_map`] |
//! | `grpc-message` | for people, percent-encoded |
//! | `grpc-status-details-bin` | base64 of a `google.rpc.Status` with `ErrorInfo` (its metadata: [`Reject::details`]), and `BadRequest` or `RetryInfo` |

use flowmesh_model::Reject;
use flowmesh_proto::{rpc, v1};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;

use crate::edge::error_map::{GrpcCode, grpc_code};

/// `ErrorInfo.domain` of every error here.
pub const DOMAIN: &str = "flowmesh";

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// The longest text of an error; what is longer is cut, since trailers have a limit of their own.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    code: GrpcCode,
    reason: &'static str,
    message: String,
    field: Option<&'static str>,
    retry_after_ms: Option<u64>,
    details: Vec<(&'static str, u64)>,
}

impl Status {
    /// A failure of the protocol itself, that no shard knows of.
    pub fn new(code: GrpcCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), field: None, retry_after_ms: None, details: vec![] }
    }

    /// Its code.
    pub fn code(&self) -> GrpcCode {
        self.code
    }

    /// The trailers that say so.
    pub fn trailers(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(3);
        self.write(&mut map);
        map
    }

    /// Adds the trailers to headers, for an answer without a body.
    pub fn write(&self, map: &mut HeaderMap) {
        map.insert(GRPC_STATUS, HeaderValue::from_static(self.code.digits()));
        if let Ok(text) = HeaderValue::try_from(percent_encoded(&self.message)) {
            map.insert(GRPC_MESSAGE, text);
        }
        if let Ok(details) = HeaderValue::try_from(base64(&self.details().encode_to_vec())) {
            map.insert(GRPC_DETAILS, details);
        }
    }

    fn details(&self) -> rpc::Status {
        let info = rpc::ErrorInfo {
            reason: self.reason.to_owned(),
            domain: DOMAIN.to_owned(),
            metadata: metadata(&self.details),
        };
        let mut details = vec![any("google.rpc.ErrorInfo", &info)];
        if let Some(field) = self.field {
            let violation = rpc::bad_request::FieldViolation {
                field: field.to_owned(),
                description: self.message.clone(),
            };
            details
                .push(any("google.rpc.BadRequest", &rpc::BadRequest { field_violations: vec![violation] }));
        }
        if let Some(ms) = self.retry_after_ms {
            let delay = prost_types::Duration {
                seconds: (ms / 1000).cast_signed(),
                nanos: (ms % 1000 * 1_000_000) as i32,
            };
            details.push(any("google.rpc.RetryInfo", &rpc::RetryInfo { retry_delay: Some(delay) }));
        }
        rpc::Status { code: self.code.number(), message: self.message.clone(), details }
    }
}

impl From<&Reject> for Status {
    fn from(reject: &Reject) -> Self {
        let (field, message) = match reject {
            Reject::InvalidArgument { field, .. } | Reject::IllegalTrace { field, .. } => {
                (Some(*field), reject.to_string())
            }
            Reject::TooLarge { what, .. } => (Some(*what), reject.to_string()),
            Reject::NoSuchPartition { .. } => (Some("partition"), reject.to_string()),
            Reject::IllegalFilter { .. } => (Some("filter"), reject.to_string()),
            Reject::IllegalCron { .. } => (Some("cron"), reject.to_string()),
            Reject::UnknownTimeZone { .. } => (Some("time_zone"), reject.to_string()),
            _ => (None, reject.to_string()),
        };
        Self {
            code: grpc_code(reject.code()),
            reason: reject.reason(),
            message: cut(message),
            field,
            retry_after_ms: reject.retry_after_ms(),
            details: reject.details(),
        }
    }
}

impl From<Reject> for Status {
    fn from(reject: Reject) -> Self {
        Self::from(&reject)
    }
}

/// The same for one item of a batch.
pub fn item_error(reject: &Reject) -> v1::Error {
    v1::Error {
        code: grpc_code(reject.code()).number(),
        reason: reject.reason().to_owned(),
        message: cut(reject.to_string()),
        retry_after_ms: reject.retry_after_ms(),
        details: metadata(&reject.details()),
    }
}

fn metadata(details: &[(&'static str, u64)]) -> std::collections::HashMap<String, String> {
    details.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect()
}

fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

fn any(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

/// As gRPC over HTTP/2 asks of `grpc-message`: printable ASCII but `%` stays.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, 0x20..=0x7e) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 15] {
                out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0').to_ascii_uppercase());
            }
        }
    }
    out
}

/// Standard base64 without padding, as binary metadata travels.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            let index = word >> (18 - 6 * digit) & 63;
            out.extend(ALPHABET.get(index as usize).map(|&letter| char::from(letter)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let cases =
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("fooba", "Zm9vYmE")];
        for (plain, encoded) in cases {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encoded("a b%ü\n"), "a b%25%C3%BC%0A");
    }

    #[test]
    fn a_client_finds_reason_field_and_delay() {
        let trailers = Status::from(Reject::invalid("key", "is empty")).trailers();
        let status = tonic::Status::from_header_map(&trailers).unwrap();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert_eq!(status.message(), "key: is empty");
        let details = rpc::Status::decode(status.details()).unwrap().details;
        let info = rpc::ErrorInfo::decode(details[0].value.as_slice()).unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INVALID_ARGUMENT", DOMAIN));
        let bad = rpc::BadRequest::decode(details[1].value.as_slice()).unwrap();
        assert_eq!(bad.field_violations[0].field, "key");

        let full = Status::from(Reject::Overloaded { what: "log buffer", retry_after_ms: 1500 }).trailers();
        let status = tonic::Status::from_header_map(&full).unwrap();
        let details = rpc::Status::decode(status.details()).unwrap().details;
        let retry = rpc::RetryInfo::decode(details[1].value.as_slice()).unwrap().retry_delay.unwrap();
        assert_eq!((retry.seconds, retry.nanos), (1, 500_000_000));
    }

    #[test]
    fn long_messages_are_cut_between_letters() {
        let status = Status::from(Reject::invalid("key", "ü".repeat(4000)));
        assert!(status.message.len() <= MESSAGE_BYTES_MAX + 4);
        assert!(status.message.ends_with('…'));
    }
}
