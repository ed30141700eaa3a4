//! The head of a request: which method, and how its body is to be read.

use flowmesh_model::{Millis, Reject};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method as HttpMethod, Response, StatusCode, header};

use super::message::Encoding;
use super::method::Method;
use super::shared::{ACCEPTED_ENCODINGS, GRPC_ACCEPT_ENCODING, GRPC_CONTENT_TYPE};
use super::status::Status;
use crate::edge::error_map::GrpcCode;

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// What a request's headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What is called.
    pub method: Method,
    /// How its messages may be compressed.
    pub encoding: Encoding,
    /// When the client stops waiting.
    pub deadline: Option<Millis>,
}

/// Why a request is answered before its body is read.
#[derive(Debug)]
pub enum Refusal {
    /// It is not gRPC: an HTTP status.
    Http(StatusCode),
    /// It is gRPC: a status.
    Grpc(Option<Method>, Status),
}

impl Head {
    /// Reads the headers; `now` is asked only where there is a timeout.
    pub fn read(parts: &Parts, now: impl FnOnce() -> Millis) -> Result<Self, Refusal> {
        if parts.method != HttpMethod::POST {
            return Err(Refusal::Http(StatusCode::METHOD_NOT_ALLOWED));
        }
        if !parts.headers.get(header::CONTENT_TYPE).is_some_and(is_grpc) {
            return Err(Refusal::Http(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let path = parts.uri.path();
        let Some(method) = Method::of(path) else {
            let reject = Reject::UnknownMethod { method: path.to_owned() };
            return Err(Refusal::Grpc(None, reject.into()));
        };
        let refuse = |status| Refusal::Grpc(Some(method), status);
        let encoding = encoding(&parts.headers).map_err(refuse)?;
        let deadline = match parts.headers.get(&GRPC_TIMEOUT) {
            None => None,
            Some(timeout) => Some(deadline(timeout, now()).map_err(refuse)?),
        };
        Ok(Self { method, encoding, deadline })
    }
}

impl Refusal {
    /// The answer, which ends the stream.
    pub fn response(&self) -> Response<()> {
        let mut response = Response::new(());
        match self {
            Self::Http(status) => {
                *response.status_mut() = *status;
                if *status == StatusCode::METHOD_NOT_ALLOWED {
                    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
                }
            }
            Self::Grpc(_, status) => {
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
                headers.insert(GRPC_ACCEPT_ENCODING, ACCEPTED_ENCODINGS);
                status.write(headers);
            }
        }
        response
    }
}

fn is_grpc(content_type: &HeaderValue) -> bool {
    let bytes = content_type.as_bytes();
    let Some(rest) = bytes.strip_prefix(b"application/grpc") else { return false };
    match rest.strip_prefix(b"+proto").unwrap_or(rest) {
        [] => true,
        [first, ..] => *first == b';',
    }
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, Status> {
    match headers.get(&GRPC_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(Encoding::Identity),
        Some(b"gzip") => Ok(Encoding::Gzip),
        Some(other) => Err(Status::new(
            GrpcCode::Unimplemented,
            "UNKNOWN_ENCODING",
            format!(
                "grpc-encoding {:?} is not supported; use identity or gzip",
                String::from_utf8_lossy(other)
            ),
        )),
    }
}

/// The moment a `grpc-timeout` means: up to eight digits and a unit.
fn deadline(timeout: &HeaderValue, now: Millis) -> Result<Millis, Status> {
    let malformed = || {
        Status::from(Reject::invalid(
            "grpc-timeout",
            "is not one to eight digits and a unit H, M, S, m, u or n",
        ))
    };
    let (&unit, digits) = timeout.as_bytes().split_last().ok_or_else(malformed)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(malformed());
    }
    let count = digits.iter().fold(0u64, |count, digit| count * 10 + u64::from(digit - b'0'));
    let millis = match unit {
        b'H' => count * 3_600_000,
        b'M' => count * 60_000,
        b'S' => count * 1_000,
        b'm' => count,
        b'u' => count.div_ceil(1_000),
        b'n' => count.div_ceil(1_000_000),
        _ => return Err(malformed()),
    };
    if millis == 0 { Err(Reject::DeadlineExceeded.into()) } else { Ok(now.plus(millis)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(build: impl FnOnce(http::request::Builder) -> http::request::Builder) -> Result<Head, Refusal> {
        let request = Request::builder().method("POST").uri("http://h/flowmesh.v1.Kv/Get");
        let (parts, ()) = build(request).body(()).unwrap().into_parts();
        Head::read(&parts, || Millis(1_000))
    }

    fn grpc(build: impl FnOnce(http::request::Builder) -> http::request::Builder) -> Result<Head, Refusal> {
        head(|request| build(request.header("content-type", "application/grpc")))
    }

    #[test]
    fn what_is_no_grpc_gets_an_http_status() {
        let status = |refusal| match refusal {
            Err(Refusal::Http(status)) => status.as_u16(),
            other => panic!("{other:?}"),
        };
        assert_eq!(status(grpc(|r| r.method("GET"))), 405);
        assert_eq!(status(head(|r| r)), 415);
        assert_eq!(status(head(|r| r.header("content-type", "application/json"))), 415);
        assert_eq!(status(head(|r| r.header("content-type", "application/grpc-web"))), 415);
        assert_eq!(status(head(|r| r.header("content-type", "application/grpc+json"))), 415);
        assert!(head(|r| r.header("content-type", "application/grpc+proto")).is_ok());
        assert!(head(|r| r.header("content-type", "application/grpc;charset=utf-8")).is_ok());
    }

    #[test]
    fn what_is_grpc_gets_a_grpc_status() {
        let code = |refusal| match refusal {
            Err(Refusal::Grpc(_, status)) => status.code(),
            other => panic!("{other:?}"),
        };
        assert_eq!(code(grpc(|r| r.uri("http://h/flowmesh.v1.Kv/Nothing"))), GrpcCode::Unimplemented);
        assert_eq!(code(grpc(|r| r.header("grpc-encoding", "br"))), GrpcCode::Unimplemented);
        assert_eq!(code(grpc(|r| r.header("grpc-timeout", "0S"))), GrpcCode::DeadlineExceeded);
        for bad in ["", "S", "1", "123456789S", "1x", "-1S", "1.5S"] {
            assert_eq!(code(grpc(|r| r.header("grpc-timeout", bad))), GrpcCode::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn a_timeout_becomes_a_deadline() {
        for (timeout, deadline) in [
            ("1H", 3_601_000),
            ("2M", 121_000),
            ("3S", 4_000),
            ("5m", 1_005),
            ("1u", 1_001),
            ("99999999n", 1_100),
        ] {
            let head = grpc(|r| r.header("grpc-timeout", timeout)).unwrap();
            assert_eq!(head.deadline, Some(Millis(deadline)), "{timeout}");
        }
        assert_eq!(grpc(|r| r).unwrap().deadline, None);
        assert_eq!(grpc(|r| r.header("grpc-encoding", "gzip")).unwrap().encoding, Encoding::Gzip);
    }
}
