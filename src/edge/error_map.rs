//! The one table from rejections to the codes of each protocol. The matches have no catch-all arm: a new
//! [`Code`] does not compile before it has its row.
//!
//! | code | gRPC | HTTP |
//! |---|---|---|
//! | `InvalidArgument` | `INVALID_ARGUMENT` 3 | 400 |
//! | `NotFound` | `NOT_FOUND` 5 | 404 |
//! | `AlreadyExists` | `ALREADY_EXISTS` 6 | 409 |
//! | `OutOfRange` | `OUT_OF_RANGE` 11 | 416 |
//! | `FailedPrecondition` | `FAILED_PRECONDITION` 9 | 412 |
//! | `ResourceExhausted` | `RESOURCE_EXHAUSTED` 8 | 429 |
//! | `Unavailable` | `UNAVAILABLE` 14 | 503 |
//! | `DeadlineExceeded` | `DEADLINE_EXCEEDED` 4 | 504 |
//! | `Cancelled` | `CANCELLED` 1 | 499 |
//! | `Unimplemented` | `UNIMPLEMENTED` 12 | 501 |
//! | `DataLoss` | `DATA_LOSS` 15 | 500 |
//! | `Internal` | `INTERNAL` 13 | 500 |

use flowmesh_model::Code;

/// The status codes of gRPC (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the standard's")]
pub enum GrpcCode {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl GrpcCode {
    /// How many there are.
    pub const COUNT: usize = 17;

    /// All codes by number.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The number as the trailer `grpc-status` has it.
    #[must_use]
    pub const fn digits(self) -> &'static str {
        const DIGITS: [&str; GrpcCode::COUNT] =
            ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];
        DIGITS[self as usize]
    }

    /// The name, as in documentation and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Cancelled => "CANCELLED",
            Self::Unknown => "UNKNOWN",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::DataLoss => "DATA_LOSS",
            Self::Unauthenticated => "UNAUTHENTICATED",
        }
    }
}

/// A rejection's code in gRPC.
#[must_use]
pub const fn grpc_code(code: Code) -> GrpcCode {
    row(code).0
}

/// A rejection's status in HTTP.
#[must_use]
pub const fn http_status(code: Code) -> u16 {
    row(code).1
}

const fn row(code: Code) -> (GrpcCode, u16) {
    match code {
        Code::InvalidArgument => (GrpcCode::InvalidArgument, 400),
        Code::NotFound => (GrpcCode::NotFound, 404),
        Code::AlreadyExists => (GrpcCode::AlreadyExists, 409),
        Code::OutOfRange => (GrpcCode::OutOfRange, 416),
        Code::FailedPrecondition => (GrpcCode::FailedPrecondition, 412),
        Code::ResourceExhausted => (GrpcCode::ResourceExhausted, 429),
        Code::Unavailable => (GrpcCode::Unavailable, 503),
        Code::DeadlineExceeded => (GrpcCode::DeadlineExceeded, 504),
        Code::Cancelled => (GrpcCode::Cancelled, 499),
        Code::Unimplemented => (GrpcCode::Unimplemented, 501),
        Code::DataLoss => (GrpcCode::DataLoss, 500),
        Code::Internal => (GrpcCode::Internal, 500),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_names_and_order_agree() {
        for (number, code) in GrpcCode::ALL.into_iter().enumerate() {
            assert_eq!(code.number() as usize, number);
            assert_eq!(code.digits(), number.to_string());
            assert_eq!(code.number(), tonic::Code::from(code.number()) as i32);
        }
    }

    #[test]
    fn only_bugs_and_damage_are_server_errors_that_a_retry_does_not_help() {
        assert_eq!(http_status(Code::Internal), 500);
        assert_eq!(http_status(Code::DataLoss), 500);
        assert_eq!(http_status(Code::Unavailable), 503);
        assert_eq!(http_status(Code::ResourceExhausted), 429);
    }
}
