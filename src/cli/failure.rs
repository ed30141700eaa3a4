//! Why a command failed: what is said on standard error, and the exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | refused or failed, for another reason than those below |
//! | 2 | the command line or a setting is wrong; nothing was tried |
//! | 3 | there is no such thing: a resource, key or job; a queue with nothing to reserve |
//! | 4 | not now: no connection, connection lost, overloaded, shutting down, deadline passed; trying again makes sense |
//! | 5 | a condition does not hold: the key or resource exists, another version, a lost lease |
//! | 130 | interrupted |

use std::error::Error;
use std::fmt;
use std::io;

use flowmesh::config::ConfigErrors;
use flowmesh_proto::{rpc, v1};
use prost::Message;
use tonic::{Code, Status};

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// The command line asks for something that makes no sense.
    Usage(String),
    /// Settings are wrong.
    Config(ConfigErrors),
    /// The server could not be reached, or went away.
    Unreachable {
        /// Its address.
        addr: String,
        /// What happened.
        problem: String,
    },
    /// The server said no.
    Refused(Refusal),
    /// Something asked for is not there; said already, or obvious.
    Absent,
    /// Input from the user cannot be used.
    Input(String),
    /// A file, pipe or process failed.
    Io {
        /// What was being done.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Nobody reads the output any more: an ordinary end in a pipeline.
    ClosedPipe,
    /// Part of the work failed; what, is in the text.
    Partly {
        /// What was done and what was not.
        report: String,
        /// Exit code of the reason.
        code: u8,
    },
    /// The user interrupted.
    Interrupted,
    /// The server or the measurement that this process runs ended with an error.
    Ended(anyhow::Error),
}

/// A rejection, by the server's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// The stable reason; empty if none came along.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When to try again, if that makes sense.
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// Reads a status with its `google.rpc` details.
    pub fn of_status(status: &Status) -> Self {
        let mut refusal = Self {
            code: status.code(),
            reason: String::new(),
            message: root_cause(status, status.message()),
            retry_after_ms: None,
        };
        let details = rpc::Status::decode(status.details()).unwrap_or_default().details;
        for detail in details {
            if detail.type_url.ends_with("google.rpc.ErrorInfo") {
                refusal.reason = rpc::ErrorInfo::decode(&*detail.value).unwrap_or_default().reason;
            } else if detail.type_url.ends_with("google.rpc.RetryInfo") {
                let delay = rpc::RetryInfo::decode(&*detail.value).unwrap_or_default().retry_delay;
                refusal.retry_after_ms = delay.map(|d| {
                    u64::try_from(d.seconds).unwrap_or(0) * 1000
                        + u64::try_from(d.nanos).unwrap_or(0) / 1_000_000
                });
            }
        }
        refusal
    }

    /// Reads the error of one item of a batch.
    pub fn of_item(error: &v1::Error) -> Self {
        Self {
            code: Code::from_i32(error.code),
            reason: error.reason.clone(),
            message: error.message.clone(),
            retry_after_ms: error.retry_after_ms,
        }
    }

    /// Whether this is no answer of the server but the loss of the connection. The server's own rejections always
    /// carry a reason.
    pub fn is_lost_connection(&self) -> bool {
        self.reason.is_empty()
            && matches!(self.code, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
    }

    /// Whether a write that got this answer may have been carried out all the same.
    pub fn leaves_writes_open(&self) -> bool {
        self.is_lost_connection() || self.code == Code::DeadlineExceeded
    }

    /// Whether the same call may succeed later without anybody changing anything but the server's state.
    pub fn is_temporary(&self) -> bool {
        self.is_lost_connection() || self.code == Code::Unavailable || self.retry_after_ms.is_some()
    }

    /// The exit code of a command that fails with this.
    pub fn exit_code(&self) -> u8 {
        match self.code {
            Code::NotFound => 3,
            // The same status as a full queue, but for good.
            Code::ResourceExhausted if self.reason == "TOO_LARGE" => 1,
            Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded => 4,
            _ if self.is_lost_connection() => 4,
            Code::FailedPrecondition | Code::AlreadyExists => 5,
            _ => 1,
        }
    }
}

/// The words of the deepest error below `error`, else `words`: transport errors only say "transport error" themselves.
pub fn root_cause(error: &(dyn Error + 'static), words: &str) -> String {
    let mut text = words.to_owned();
    let mut source = error.source();
    while let Some(deeper) = source {
        text = deeper.to_string();
        source = deeper.source();
    }
    text
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_lost_connection() {
            return write!(f, "connection lost: {}", self.message);
        }
        if self.reason.is_empty() {
            write!(f, "{:?}: {}", self.code, self.message)
        } else {
            write!(f, "{}: {}", self.reason, self.message)
        }
    }
}

impl Failure {
    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ClosedPipe => 0,
            Self::Input(_) | Self::Io { .. } | Self::Ended(_) => 1,
            Self::Usage(_) | Self::Config(_) => 2,
            Self::Absent => 3,
            Self::Unreachable { .. } => 4,
            Self::Refused(refusal) => refusal.exit_code(),
            Self::Partly { code, .. } => *code,
            Self::Interrupted => 130,
        }
    }

    /// What stands on standard error; `None`: nothing.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::ClosedPipe | Self::Absent | Self::Interrupted => None,
            Self::Usage(text) | Self::Input(text) | Self::Partly { report: text, .. } => Some(text.clone()),
            Self::Config(errors) => Some(errors.to_string()),
            Self::Unreachable { addr, problem } => Some(format!(
                "cannot reach {addr}: {problem}; is the server running there? (flowmesh serve, --addr, FLOWMESH_ADDR)"
            )),
            Self::Refused(refusal) => Some(refusal.to_string()),
            Self::Io { action, source } => Some(format!("cannot {action}: {source}")),
            Self::Ended(error) => Some(format!("{error:#}")),
        }
    }

    /// An input or output error, by what was being done.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(Refusal::of_status(&status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_with(code: Code, reason: &str, retry_ms: Option<i64>) -> Status {
        let any = |name: &str, value: Vec<u8>| prost_types::Any {
            type_url: format!("type.googleapis.com/google.rpc.{name}"),
            value,
        };
        let info =
            rpc::ErrorInfo { reason: reason.to_owned(), domain: "flowmesh".to_owned(), ..Default::default() };
        let mut details = vec![any("ErrorInfo", info.encode_to_vec())];
        if let Some(ms) = retry_ms {
            let delay = prost_types::Duration { seconds: ms / 1000, nanos: (ms % 1000 * 1_000_000) as i32 };
            details.push(any("RetryInfo", rpc::RetryInfo { retry_delay: Some(delay) }.encode_to_vec()));
        }
        let status = rpc::Status { code: code as i32, message: "m".to_owned(), details };
        Status::with_details(code, "m", status.encode_to_vec().into())
    }

    #[test]
    fn the_reason_and_the_delay_are_read_from_the_details() {
        let refusal = Refusal::of_status(&status_with(Code::ResourceExhausted, "OVERLOADED", Some(1_250)));
        assert_eq!((refusal.reason.as_str(), refusal.retry_after_ms), ("OVERLOADED", Some(1_250)));
        assert!(refusal.is_temporary() && !refusal.is_lost_connection());
        assert_eq!(Failure::Refused(refusal).message().unwrap(), "OVERLOADED: m");
    }

    #[test]
    fn exit_codes_are_those_of_the_table() {
        let code = |code, reason| Failure::from(status_with(code, reason, None)).exit_code();
        assert_eq!(code(Code::InvalidArgument, "TOO_LARGE"), 1);
        assert_eq!(code(Code::NotFound, "RESOURCE_NOT_FOUND"), 3);
        assert_eq!(code(Code::Unavailable, "SHUTTING_DOWN"), 4);
        assert_eq!(code(Code::ResourceExhausted, "DISK_FULL"), 4);
        assert_eq!(code(Code::ResourceExhausted, "TOO_LARGE"), 1, "trying again does not make it smaller");
        assert_eq!(code(Code::FailedPrecondition, "CONDITION_FAILED"), 5);
        assert_eq!(code(Code::AlreadyExists, "RESOURCE_EXISTS"), 5);
        assert_eq!(code(Code::Internal, "INTERNAL"), 1, "the server's own INTERNAL is no lost connection");
        assert_eq!(Failure::from(Status::unknown("broken pipe")).exit_code(), 4);
        assert_eq!(Failure::Usage(String::new()).exit_code(), 2);
        assert_eq!(Failure::ClosedPipe.exit_code(), 0);
    }
}
