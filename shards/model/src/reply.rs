//! What a shard answers. One variant for each shape; [`crate::command`] says which command gets which.

use bytes::Bytes;

use crate::Batch;
use crate::catalog::ResourceInfo;
use crate::codec::Malformed;
use crate::compression;
use crate::group::GroupReply;
use crate::ids::{CatalogVersion, JobId, LeaseToken, Lsn, Millis, Offset, ProducerId};
use crate::job::{Awaited, JobCursor, JobView};
use crate::kv::change::SnapshotPart;
use crate::kv::past::{KeyDiff, KeyVersion};
use crate::kv::{KvOutcome, KvType};
use crate::reject::Reject;
use crate::replay::ReplayStatus;
use crate::schedule::ScheduleReply;
use crate::transfer::TransferReply;
use crate::worker::{WorkerOnQueue, WorkerReply};

use std::sync::Arc;

/// Consecutive records of one append, or a part of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRun {
    /// The first record's offset.
    pub base: Offset,
    /// How many there are.
    pub count: u32,
    /// When they were appended.
    pub appended_at: Millis,
    /// The packed records (see [`crate::record`]), perhaps compressed.
    pub records: Bytes,
}

impl RecordRun {
    /// The same run with its records as they are.
    ///
    /// # Errors
    /// [`Malformed`] if they are compressed and cannot be decoded: they were checked when they were appended.
    pub fn plain(&self) -> Result<Self, Malformed> {
        Ok(Self { records: compression::plain(&self.records)?, ..*self })
    }
}

/// The answer to a read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordRuns {
    /// Records in order, without a gap.
    pub runs: Vec<RecordRun>,
    /// Where the next read starts.
    pub next: Offset,
    /// The first record there is.
    pub earliest: Offset,
    /// The offset the next appended record will get.
    pub high_watermark: Offset,
}

/// A job with its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedJob {
    /// The job.
    pub job: JobId,
    /// The lease's fencing token.
    pub token: LeaseToken,
    /// Which delivery this is, from 1.
    pub attempt: u32,
    /// The job's priority.
    pub priority: u8,
    /// When the lease ends.
    pub leased_until: Millis,
    /// When the job was enqueued.
    pub enqueued_at: Millis,
    /// What to work on.
    pub payload: Bytes,
    /// Packed headers.
    pub headers: Bytes,
    /// Its group; empty: none.
    pub group: Bytes,
    /// What became of the jobs it waited for.
    pub awaited: Vec<Awaited>,
}

/// A queue's jobs and what became of them.
///
/// `enqueued_total` = ready + delayed + blocked + leased + dead + done + `done_total` - done + `expired_total` +
/// `cancelled_total` + `dropped_total` + `purged_total` + `moved_total`: what is kept once it is done was counted as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStatus {
    /// To be had now.
    pub ready: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// With a worker.
    pub leased: u64,
    /// Waiting for other jobs, or ready behind others of their group.
    pub blocked: u64,
    /// Out of attempts, kept.
    pub dead: u64,
    /// Done, kept.
    pub done: u64,
    /// Enqueued since the queue was created.
    pub enqueued_total: u64,
    /// Acknowledged since the queue was created.
    pub done_total: u64,
    /// Attempts that failed and were followed by another one.
    pub retried_total: u64,
    /// Jobs that died, each time.
    pub died_total: u64,
    /// Jobs nobody had in their time.
    pub expired_total: u64,
    /// Cancelled jobs.
    pub cancelled_total: u64,
    /// Dropped because the queue was full.
    pub dropped_total: u64,
    /// Dead jobs that are not kept any more.
    pub purged_total: u64,
    /// Dead jobs that went to another queue.
    pub moved_total: u64,
    /// Copies that went to other queues and streams.
    pub copied_total: u64,
    /// Jobs, or copies of them, that will never get where they were to go.
    pub send_failed_total: u64,
    /// Jobs on their way to other queues and streams; each is among the dead or done ones, too.
    pub outbox: u64,
    /// How long the oldest ready job has been ready.
    pub oldest_ready_ms: u64,
    /// Bytes of headers and payloads of jobs that wait.
    pub waiting_bytes: u64,
    /// Whether no job is given out.
    pub paused: bool,
}

impl QueueStatus {
    /// Jobs that wait for a worker, their time or others.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.ready + self.delayed + self.blocked
    }
}

/// So many in the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastMinute {
    /// Enqueued.
    pub enqueued: u64,
    /// Acknowledged.
    pub done: u64,
    /// Failed attempts that are followed by another.
    pub retried: u64,
    /// Died.
    pub died: u64,
}

/// A distribution, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    /// How many values it is made of.
    pub count: u64,
    /// Half of them are at most this.
    pub p50: u64,
    /// 95 %.
    pub p95: u64,
    /// 99 %.
    pub p99: u64,
    /// All.
    pub max: u64,
}

/// What a queue has done of late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueActivity {
    /// How many jobs came and went.
    pub last_minute: LastMinute,
    /// How long jobs were ready before they were leased, over the last minutes.
    pub wait_ms: Percentiles,
    /// How long jobs were leased before they were acknowledged, over the last minutes.
    pub run_ms: Percentiles,
}

/// A job that was enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnqueuedJob {
    /// Its number.
    pub job: JobId,
    /// Whether it was there before, under the same key.
    pub existing: bool,
}

/// A lease that was extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extended {
    /// When it ends now.
    pub until: Millis,
    /// Whether the worker is to stop: the job was cancelled.
    pub cancel_requested: bool,
}

/// What became of a job that was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It is gone.
    Removed,
    /// Its worker learns that it is to stop when it next extends its lease.
    Requested,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryValue {
    /// Of which type it is.
    pub holds: KvType,
    /// The value; empty of a collection, and where only keys were asked for.
    pub value: Bytes,
    /// The entry that set it. Only grows.
    pub version: Lsn,
    /// When it ends, if it does.
    pub expires_at: Option<Millis>,
}

/// What a shard has of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvStatus {
    /// Keys, those included whose time is up and that are not removed yet.
    pub keys: u64,
    /// Those of them that end.
    pub expiring: u64,
    /// An estimate of what they take in memory.
    pub memory_bytes: u64,
    /// Those of them whose values have left memory.
    pub cold: u64,
    /// What they would take with all values in memory, which is what the store's limits are about.
    pub bytes: u64,
}

/// What a shard answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The records have offsets `base..base + count`.
    Appended {
        /// The first record's offset.
        base: Offset,
        /// How many.
        count: u32,
        /// The append's time.
        appended_at: Millis,
        /// Whether they were appended before, by an append whose answer this is.
        duplicate: bool,
    },
    /// A producer and its epoch.
    Producer {
        /// Its number.
        id: ProducerId,
        /// Its epoch.
        epoch: u32,
    },
    /// Records.
    Records(RecordRuns),
    /// First and next offset of a partition.
    StreamStatus {
        /// The first record there is.
        earliest: Offset,
        /// The offset the next record will get.
        next: Offset,
        /// Packed bytes of all segments there are: trimmed records count until their segment goes.
        bytes: u64,
        /// How many segments have records.
        segments: u64,
        /// When the first of those segments was begun, if that is known.
        oldest: Option<Millis>,
        /// When the last record was appended, if there is one.
        newest: Option<Millis>,
        /// Of the records before each key has one, if it was ever compacted.
        clean_upto: Option<Offset>,
        /// With compaction: packed bytes of closed segments that were not compacted yet.
        dirty_bytes: u64,
    },
    /// The record that a start stands for.
    OffsetFound {
        /// Its offset; of the next record to come if there is no such record.
        offset: Offset,
        /// When it was appended, if it is there.
        appended_at: Option<Millis>,
    },
    /// Records were deleted, or had been before.
    Trimmed {
        /// The first record there is, or the next one to come.
        earliest: Offset,
        /// The offset the next record will get.
        next: Offset,
    },
    /// The new jobs, in order.
    Enqueued(Batch<EnqueuedJob>),
    /// The leased jobs.
    Reserved(Vec<LeasedJob>),
    /// One outcome a lease, in order.
    Settled(Batch<Result<(), Reject>>),
    /// The leases' new ends, or why not, in order.
    Extended(Batch<Result<Extended, Reject>>),
    /// What became of each job, or why not, in order.
    Cancelled(Batch<Result<Cancelled, Reject>>),
    /// All that is known of a job.
    Job(Box<JobView>),
    /// Jobs in order.
    Jobs {
        /// As far as they were looked at.
        jobs: Vec<JobView>,
        /// The last one that was looked at, if there are more behind it.
        next: Option<JobCursor>,
    },
    /// Jobs were redriven or purged, or are on their way elsewhere.
    Swept {
        /// How many.
        count: u64,
        /// The last one that was looked at, if there are more behind it.
        next: Option<JobCursor>,
    },
    /// Counts by state, and what the queue has done of late.
    QueueStatus(QueueStatus, Box<QueueActivity>),
    /// The new versions, or why not, in order.
    Written(Batch<Result<Lsn, Reject>>),
    /// What the keys hold, in order.
    Values(Batch<Option<EntryValue>>),
    /// One answer a key, in order.
    Flags(Batch<bool>),
    /// Keys in byte order.
    Scanned {
        /// Keys and what they hold.
        entries: Vec<(Bytes, EntryValue)>,
        /// If there may be more: what was looked at last, which need not be shown.
        next: Option<Bytes>,
    },
    /// What came of each operation, or why not, in order.
    Kv(Batch<Result<KvOutcome, Reject>>),
    /// How many keys there are.
    KvStatus(KvStatus),
    /// A part of what keys hold.
    KvSnapshot(SnapshotPart),
    /// What a key held.
    KvVersions {
        /// The oldest first.
        versions: Vec<KeyVersion>,
        /// If there are more: the last one.
        next: Option<Lsn>,
    },
    /// Keys that held something else.
    KvDiff {
        /// In byte order.
        keys: Vec<KeyDiff>,
        /// If there may be more: what was looked at last, which need not be shown.
        next: Option<Bytes>,
    },
    /// Keys were deleted.
    KvCleared {
        /// How many.
        count: u64,
        /// Whether there are more.
        more: bool,
    },
    /// A consumer group's answer.
    Group(Box<GroupReply>),
    /// A resource, and the catalog version from which on it is so.
    Resource {
        /// The resource.
        info: Arc<ResourceInfo>,
        /// Whether this command made the change.
        changed: bool,
        /// The catalog with the change.
        version: CatalogVersion,
    },
    /// A replay session, as it is once the command is carried out.
    Replay(Box<ReplayStatus>),
    /// What a queue says of its schedules.
    Schedule(ScheduleReply),
    /// What a shard says of workers.
    Worker(WorkerReply),
    /// What a queue knows of whoever reserves jobs under a name.
    WorkerOnQueue(Box<WorkerOnQueue>),
    /// What a queue or stream says of jobs on their way.
    Transfer(TransferReply),
}
