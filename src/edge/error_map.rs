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

macro_rules! grpc_codes {
    ($($variant:ident = $number:literal, $digits:literal, $name:literal;)+) => {
        /// The status codes of gRPC (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the names are the standard's")]
        pub enum GrpcCode { $($variant = $number),+ }

        impl GrpcCode {
            /// All codes by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> i32 {
                self as i32
            }

            /// The number as the trailer `grpc-status` has it.
            #[must_use]
            pub const fn digits(self) -> &'static str {
                match self { $(Self::$variant => $digits),+ }
            }

            /// The name, as in documentation and metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

grpc_codes! {
    Ok = 0, "0", "OK";
    Cancelled = 1, "1", "CANCELLED";
    Unknown = 2, "2", "UNKNOWN";
    InvalidArgument = 3, "3", "INVALID_ARGUMENT";
    DeadlineExceeded = 4, "4", "DEADLINE_EXCEEDED";
    NotFound = 5, "5", "NOT_FOUND";
    AlreadyExists = 6, "6", "ALREADY_EXISTS";
    PermissionDenied = 7, "7", "PERMISSION_DENIED";
    ResourceExhausted = 8, "8", "RESOURCE_EXHAUSTED";
    FailedPrecondition = 9, "9", "FAILED_PRECONDITION";
    Aborted = 10, "10", "ABORTED";
    OutOfRange = 11, "11", "OUT_OF_RANGE";
    Unimplemented = 12, "12", "UNIMPLEMENTED";
    Internal = 13, "13", "INTERNAL";
    Unavailable = 14, "14", "UNAVAILABLE";
    DataLoss = 15, "15", "DATA_LOSS";
    Unauthenticated = 16, "16", "UNAUTHENTICATED";
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
        for (number, code) in (0..).zip(GrpcCode::ALL) {
            assert_eq!(code.number(), number);
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
