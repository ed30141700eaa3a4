//! Jobs on their way from their queue to another queue or a stream, of any shard: each arrives once.
//!
//! | where | what |
//! |---|---|
//! | source | notes which job goes where, under a number that only grows: its **outbox** |
//! | between | the oldest of the outbox are sent again and again, until the target says that it has them |
//! | target | takes them in, and notes in the same entry up to which number it has those of this source |
//! | source | strikes them out: a job that moves is gone, one that was copied may change again |
//!
//! [`fact`] is what becomes true of both.

pub mod fact;

use bytes::Bytes;

use crate::ids::{JobId, Millis, PartitionRef, ResourceId};
use crate::job::{JobPhase, RetryPolicy, Which};
use crate::path::{Kind, ResourcePath};
use crate::reject::Reject;

/// Headers of the copy of a dead letter: its queue's path, its number there, its deliveries, the last error, when it died
/// in milliseconds since the epoch.
pub const DEAD_LETTER_QUEUE: &str = "flowmesh-dead-letter-queue";
/// See [`DEAD_LETTER_QUEUE`].
pub const DEAD_LETTER_JOB: &str = "flowmesh-dead-letter-job";
/// See [`DEAD_LETTER_QUEUE`].
pub const DEAD_LETTER_ATTEMPTS: &str = "flowmesh-dead-letter-attempts";
/// See [`DEAD_LETTER_QUEUE`].
pub const DEAD_LETTER_ERROR: &str = "flowmesh-dead-letter-error";
/// See [`DEAD_LETTER_QUEUE`].
pub const DEAD_LETTER_DIED_AT: &str = "flowmesh-dead-letter-died-at";

/// Headers of a replayed job: its queue's path, its number and its phase there.
pub const REPLAYED_QUEUE: &str = "flowmesh-replayed-queue";
/// See [`REPLAYED_QUEUE`].
pub const REPLAYED_JOB: &str = "flowmesh-replayed-job";
/// See [`REPLAYED_QUEUE`].
pub const REPLAYED_PHASE: &str = "flowmesh-replayed-phase";

/// What becomes of a job that goes to another queue or a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferMode {
    /// It is there, and no longer here.
    Move,
    /// It stays as a dead letter, a copy goes.
    DeadLetter,
    /// It stays, a copy goes into a sandbox.
    Replay,
}

impl TransferMode {
    /// All of them, by their byte on disk.
    pub const ALL: [Self; 3] = [Self::Move, Self::DeadLetter, Self::Replay];

    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Move => "move",
            Self::DeadLetter => "dead letter",
            Self::Replay => "replay",
        }
    }
}

/// A job as its target gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// The number under which its source sends it, above all that it sent to this target before.
    pub sequence: u64,
    /// What for.
    pub mode: TransferMode,
    /// Its number in the source.
    pub job: JobId,
    /// When it is ready.
    pub ready_at: Millis,
    /// Higher is sooner.
    pub priority: u8,
    /// Deliveries before it is dead; `None`: as the target's settings say.
    pub max_attempts: Option<u32>,
    /// Its own retries.
    pub retry: Option<RetryPolicy>,
    /// Its group; empty: none.
    pub group: Bytes,
    /// Packed headers.
    pub headers: Bytes,
    /// What the worker gets.
    pub payload: Bytes,
}

/// Jobs of one source that arrive at a target.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The queue they come from.
    pub source: ResourceId,
    /// In the order of their numbers, at least one.
    pub jobs: Vec<Incoming>,
}

/// On what a queue sends, or receives.
#[derive(Clone, Debug)]
pub enum TransferCommand {
    /// Dead jobs go to another queue. → [`crate::Reply::Swept`]
    Move {
        /// Which.
        which: Which,
        /// The other queue.
        to: ResourceId,
        /// So many of them become ready a second there; `None`: all at once.
        per_second: Option<u32>,
        /// The first of them becomes ready after so many milliseconds.
        delay_ms: u64,
    },
    /// Copies of dead jobs, or of kept ones that are done, go to a sandbox. → [`crate::Reply::Swept`]
    Replay {
        /// Which.
        which: Which,
        /// [`JobPhase::Dead`] or [`JobPhase::Done`].
        phase: JobPhase,
        /// The sandbox.
        to: ResourceId,
    },
    /// What is to be sent next to one target. → [`TransferReply::Next`]
    Next {
        /// The target.
        to: PartitionRef,
    },
    /// The target has what was sent. → [`crate::Reply::Settled`], one outcome
    Sent {
        /// The target.
        to: PartitionRef,
        /// Up to which number.
        upto: u64,
    },
    /// The target will never take what was sent. → [`crate::Reply::Settled`], one outcome
    Failed {
        /// The target.
        to: PartitionRef,
        /// Up to which number.
        upto: u64,
        /// Why.
        error: Bytes,
    },
    /// What is on its way. → [`TransferReply::Outbox`]
    Outbox,
    /// Jobs of another queue arrive. → [`TransferReply::Received`]
    Receive(Arrival),
}

impl TransferCommand {
    /// Whether it can change anything.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Next { .. } | Self::Outbox)
    }
}

/// What is on its way to one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The target.
    pub to: PartitionRef,
    /// How many jobs.
    pub jobs: u64,
    /// Since when the oldest of them is on its way.
    pub since: Millis,
    /// Why the last try did not get there; empty: there was none, or it did.
    pub error: Bytes,
}

/// The last job that will never get to its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedTransfer {
    /// Which.
    pub job: JobId,
    /// When that was known.
    pub at: Millis,
    /// Why.
    pub error: Bytes,
}

/// What a queue says of what it sends, or receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferReply {
    /// What is to be sent next; nothing if all was.
    Next(Vec<Incoming>),
    /// Up to which number the target has what its source sent.
    Received {
        /// That number.
        upto: u64,
    },
    /// What is on its way.
    Outbox {
        /// By target.
        lanes: Vec<Lane>,
        /// The last one that failed for good.
        failed: Option<FailedTransfer>,
    },
}

/// The queue or stream that a name stands for in the setting `dead_letters_to`: a queue's name in any form, or one with its
/// kind: `stream/NAME`, `queue/NAME`, `TENANT/NAMESPACE/stream/NAME`.
///
/// # Errors
/// [`Reject::InvalidArgument`] for what is neither a queue nor a stream, or no legal name.
pub fn target_path(text: &str) -> Result<ResourcePath, Reject> {
    let parts: Vec<&str> = text.split('/').collect();
    let (kind, name) = match parts.as_slice() {
        [kind, name] => (*kind, *name),
        [_, _, kind, _] => (*kind, text),
        _ => (Kind::Queue.as_str(), text),
    };
    match Kind::parse(kind) {
        Some(kind @ (Kind::Queue | Kind::Stream)) => {
            ResourcePath::parse(kind, name).map_err(|reject| match reject {
                Reject::InvalidArgument { reason, .. } => Reject::invalid(TARGET_SETTING, reason),
                other => other,
            })
        }
        _ => Err(Reject::invalid(
            TARGET_SETTING,
            format!(
                "{text} is neither a queue nor a stream; allowed: NAME of a queue, queue/NAME, stream/NAME, or a full path"
            ),
        )),
    }
}

/// The setting that names a target.
pub const TARGET_SETTING: &str = "dead_letters_to";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_queues_unless_their_kind_is_said() {
        for (text, full) in [
            ("bin", "default/default/queue/bin"),
            ("queue/bin", "default/default/queue/bin"),
            ("stream/bin", "default/default/stream/bin"),
            ("acme/prod/bin", "acme/prod/queue/bin"),
            ("acme/prod/stream/bin", "acme/prod/stream/bin"),
        ] {
            let path = target_path(text).unwrap();
            assert_eq!(path.to_string(), full);
            assert_eq!(target_path(full).unwrap(), path);
        }
        for wrong in ["kv/bin", "acme/prod/group/bin", "", "a/b/c/d/e", "tree/bin"] {
            assert!(
                matches!(target_path(wrong), Err(Reject::InvalidArgument { field: TARGET_SETTING, .. })),
                "{wrong}"
            );
        }
    }
}
