//! Why a command was not carried out: one closed list, with a stable code each.
//!
//! [`Reject::code`] says what kind of failure it is; the edges map codes to their protocol in one table.

use thiserror::Error;

use crate::ids::{CatalogVersion, JobId, Lsn, Offset};
use crate::path::Kind;

/// Why a lease no longer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseLost {
    /// The lease's time was up; the job is ready again, or will be.
    Expired,
    /// Somebody else holds the job now, with a larger token.
    Superseded,
    /// The job was acknowledged or given back with this token before.
    Settled,
}

impl LeaseLost {
    /// The words in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "its time was up",
            Self::Superseded => "the job was leased again since",
            Self::Settled => "it was already settled",
        }
    }
}

/// What a rejection is to a client: which side must change, and whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request is wrong whatever the state.
    InvalidArgument,
    /// There is no such thing.
    NotFound,
    /// There already is such a thing.
    AlreadyExists,
    /// Outside what exists: an offset before the start or beyond the end.
    OutOfRange,
    /// The state does not allow it: a lost lease, a condition that does not hold.
    FailedPrecondition,
    /// Too much at once: try again after the delay.
    ResourceExhausted,
    /// Not now: restarting, fenced, moving.
    Unavailable,
    /// The time the client gave is over.
    DeadlineExceeded,
    /// The client went away.
    Cancelled,
    /// No such call.
    Unimplemented,
    /// Data is damaged.
    DataLoss,
    /// A bug.
    Internal,
}

/// Why a command was not carried out. Nothing of it was done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reject {
    /// A field of the request is wrong.
    #[error("{field}: {reason}")]
    InvalidArgument {
        /// The field, by its name in the API.
        field: &'static str,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// Something is larger than its limit.
    #[error("{what} has {size} bytes or items; at most {max} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size, in bytes or items.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// A filter that cannot be used.
    #[error("filter condition {condition}, {part} at byte {at}: {problem}")]
    IllegalFilter {
        /// Which condition, from 0.
        condition: u32,
        /// Which part of it.
        part: &'static str,
        /// The byte of that part where it goes wrong, from 0.
        at: u64,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// No such resource.
    #[error("no such resource: {path}")]
    ResourceNotFound {
        /// Its path.
        path: String,
    },
    /// The resource exists already.
    #[error("resource exists already: {path}")]
    ResourceExists {
        /// Its path.
        path: String,
    },
    /// The path names a resource of another kind.
    #[error("{path} is a {actual}; this call needs a {expected}")]
    WrongKind {
        /// The path as given.
        path: String,
        /// What the call works on.
        expected: Kind,
        /// What the path names.
        actual: Kind,
    },
    /// The stream has no such partition.
    #[error("no partition {partition}; there are {partitions}, numbered from 0")]
    NoSuchPartition {
        /// The one asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The offset lies before the first record or beyond the end.
    #[error("offset {requested} is outside of {earliest}..={next} (first record to next record)")]
    OffsetOutOfRange {
        /// The offset asked for.
        requested: Offset,
        /// The first record there is.
        earliest: Offset,
        /// The offset the next record will get.
        next: Offset,
    },
    /// No such job in the queue: never enqueued, or done.
    #[error("no such job: {job}")]
    JobNotFound {
        /// The job.
        job: JobId,
    },
    /// The lease no longer counts.
    #[error("lease on job {job} is lost: {}", .reason.as_str())]
    LeaseLost {
        /// The job.
        job: JobId,
        /// Why.
        reason: LeaseLost,
    },
    /// A condition of a write does not hold.
    #[error("condition does not hold: the key is {}", describe_version(*.actual))]
    ConditionFailed {
        /// The key's version, `None` if there is no such key.
        actual: Option<Lsn>,
    },
    /// The command was checked against a newer catalog than this shard has; the edge tries again.
    #[error("the shard's catalog is at version {known}, the command's at {wanted}")]
    CatalogBehind {
        /// What the shard has.
        known: CatalogVersion,
        /// What the command needs.
        wanted: CatalogVersion,
    },
    /// A bounded queue or budget is full.
    #[error("{what} is full; try again in {retry_after_ms} ms")]
    Overloaded {
        /// What is full, by its name in the documentation.
        what: &'static str,
        /// When it makes sense to try again.
        retry_after_ms: u64,
    },
    /// The disk has no space for the log; reads go on.
    #[error("the disk is full: writes are refused until there is space, reads go on")]
    DiskFull,
    /// A sync failed: what is on disk is unknown, so the shard takes no more writes.
    #[error("shard is fenced: {reason}; reads go on, restart the server after checking the disk")]
    Fenced {
        /// The failure.
        reason: String,
    },
    /// Stored data does not match its checksum.
    #[error("damaged data: {place}")]
    Damaged {
        /// Which file and where.
        place: String,
    },
    /// The server is stopping.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The client's deadline has passed.
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// The client cancelled or disconnected.
    #[error("cancelled")]
    Cancelled,
    /// No such call.
    #[error("unknown method {method}")]
    UnknownMethod {
        /// As called.
        method: String,
    },
    /// A bug in the server; the log has more.
    #[error("internal error: {0}")]
    Internal(&'static str),
}

fn describe_version(version: Option<Lsn>) -> String {
    version.map_or_else(|| "absent".to_owned(), |lsn| format!("at version {lsn}"))
}

impl Reject {
    /// A wrong field.
    #[must_use]
    pub fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidArgument { field, reason: reason.into() }
    }

    /// What it is to a client.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::InvalidArgument { .. }
            | Self::TooLarge { .. }
            | Self::WrongKind { .. }
            | Self::NoSuchPartition { .. } => Code::InvalidArgument,
            Self::ResourceNotFound { .. } | Self::JobNotFound { .. } => Code::NotFound,
            Self::ResourceExists { .. } => Code::AlreadyExists,
            Self::OffsetOutOfRange { .. } => Code::OutOfRange,
            Self::LeaseLost { .. } | Self::ConditionFailed { .. } => Code::FailedPrecondition,
            Self::Overloaded { .. } | Self::DiskFull => Code::ResourceExhausted,
            Self::CatalogBehind { .. } | Self::Fenced { .. } | Self::ShuttingDown => Code::Unavailable,
            Self::Damaged { .. } => Code::DataLoss,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::Cancelled => Code::Cancelled,
            Self::UnknownMethod { .. } => Code::Unimplemented,
            Self::Internal(_) => Code::Internal,
        }
    }

    /// A stable word for clients that decide by reason: `google.rpc.ErrorInfo.reason`, and the JSON `error`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "INVALID_ARGUMENT",
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::ResourceNotFound { .. } => "RESOURCE_NOT_FOUND",
            Self::ResourceExists { .. } => "RESOURCE_EXISTS",
            Self::WrongKind { .. } => "WRONG_KIND",
            Self::NoSuchPartition { .. } => "NO_SUCH_PARTITION",
            Self::OffsetOutOfRange { .. } => "OFFSET_OUT_OF_RANGE",
            Self::JobNotFound { .. } => "JOB_NOT_FOUND",
            Self::LeaseLost { reason: LeaseLost::Expired, .. } => "LEASE_EXPIRED",
            Self::LeaseLost { reason: LeaseLost::Superseded, .. } => "LEASE_SUPERSEDED",
            Self::LeaseLost { reason: LeaseLost::Settled, .. } => "LEASE_SETTLED",
            Self::ConditionFailed { .. } => "CONDITION_FAILED",
            Self::CatalogBehind { .. } => "CATALOG_BEHIND",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::DiskFull => "DISK_FULL",
            Self::Fenced { .. } => "SHARD_FENCED",
            Self::Damaged { .. } => "DATA_DAMAGED",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Cancelled => "CANCELLED",
            Self::UnknownMethod { .. } => "UNKNOWN_METHOD",
            Self::Internal(_) => "INTERNAL",
        }
    }

    /// When to try again, where that makes sense.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Overloaded { retry_after_ms, .. } => Some(*retry_after_ms),
            Self::DiskFull => Some(1_000),
            Self::CatalogBehind { .. } => Some(1),
            _ => None,
        }
    }
}
            | Self::IllegalFilter { .. }
            Self::IllegalFilter { .. } => "ILLEGAL_FILTER",
