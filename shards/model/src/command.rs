//! What can be asked of a shard. An edge makes commands out of bytes; a shard's machine decides on them.
//!
//! Commands name resources by number: the edge has looked the path up in its catalog snapshot. Names, sizes and
//! ranges are checked by the machine's `decide`, so that every edge gets the same answer.

use bytes::Bytes;

use crate::Batch;
use crate::group::GroupCommand;
use crate::ids::{JobId, LeaseToken, Lsn, Millis, Offset, PartitionRef, ProducerId, ResourceId};
use crate::job::{JobCursor, JobFilter, JobOptions, JobPhase, NackKind, Which};
use crate::kv::KvOp;
use crate::kv::change::SnapshotFrom;
use crate::kv::past::PastAsk;
use crate::path::ResourcePath;
use crate::record::PackedRecords;
use crate::replay::{ReplayCommand, ReplayRef};
use crate::schedule::ScheduleCommand;
use crate::settings::Settings;
use crate::transfer::{Arrival, TransferCommand};
use crate::worker::WorkerCommand;

/// One command to one shard.
#[derive(Clone, Debug)]
pub enum Command {
    /// On a stream's partition.
    Stream(PartitionRef, StreamCommand),
    /// On a queue.
    Queue(ResourceId, QueueCommand),
    /// On the keys of a store that this shard holds.
    Kv(ResourceId, KvCommand),
    /// On a consumer group.
    Group(ResourceId, GroupCommand),
    /// On the catalog; only shard 0 answers.
    Catalog(CatalogCommand),
    /// On a replay session.
    Replay(ReplayRef, ReplayCommand),
    /// On workers.
    Worker(WorkerCommand),
}

/// Where a read starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// The first record there is.
    Earliest,
    /// The next record to come.
    Latest,
    /// The record with this offset.
    Offset(Offset),
    /// The first record that was appended at this time or later; if there is none, the next record to come.
    Timestamp(Millis),
}

/// Who appends, and which of its records these are: a batch that comes again is recognised by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerStamp {
    /// The producer, as it was initialised.
    pub id: ProducerId,
    /// Its incarnation; once a partition has seen a larger one, this one is fenced.
    pub epoch: u32,
    /// The number of the batch's first record, counted from 0 by partition and epoch.
    pub sequence: u64,
}

/// On one partition of a stream.
#[derive(Clone, Debug)]
pub enum StreamCommand {
    /// Appends the records, all or none, under dense offsets. → [`crate::Reply::Appended`]
    Append {
        /// The records.
        records: PackedRecords,
        /// Append them once, however often they come. `None`: each time.
        producer: Option<ProducerStamp>,
        /// Only if the first record gets this offset; else `OFFSET_MISMATCH`.
        expected_offset: Option<Offset>,
    },
    /// Gives out a producer's number and epoch; on partition 0. → [`crate::Reply::Producer`]
    InitProducer {
        /// A name that outlives the process: the same number with the next epoch each time. Empty: a new number.
        name: Bytes,
    },
    /// From now on the partition takes no records of older epochs of the producer. → [`crate::Reply::Producer`]
    FenceProducer {
        /// Which.
        id: ProducerId,
        /// The oldest epoch to be taken.
        epoch: u32,
    },
    /// Reads records in order. → [`crate::Reply::Records`], empty at the end unless it waits.
    Read {
        /// Where to start. Before the first record or beyond the next: `OFFSET_OUT_OF_RANGE`.
        from: ReadFrom,
        /// At most so many records, at least 1.
        records_max: u32,
        /// Stop before more packed bytes than this; the first record always comes.
        bytes_max: u32,
        /// With `wait_until`: wait for so many packed bytes, or for as many records or bytes as it may return; 0 as 1.
        /// Records that are no longer in memory are not waited with.
        bytes_min: u32,
        /// Wait for records until then if there are too few.
        wait_until: Option<Millis>,
    },
    /// Which record a start stands for. → [`crate::Reply::OffsetFound`]
    FindOffset {
        /// The start.
        from: ReadFrom,
    },
    /// Deletes the records before `upto`. → [`crate::Reply::Trimmed`]
    Trim {
        /// The first record that stays; beyond the end: `OFFSET_OUT_OF_RANGE`.
        upto: Offset,
    },
    /// First and next offset, bytes, segments. → [`crate::Reply::StreamStatus`]
    Status,
    /// Jobs of a queue arrive, as records. → [`crate::TransferReply::Received`]
    Receive(Arrival),
}

/// A job to enqueue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewJob {
    /// What the worker gets.
    pub payload: Bytes,
    /// Packed headers (see [`crate::record`]): (0x1A, length, header)*.
    pub headers: Bytes,
    /// Higher is sooner.
    pub priority: u8,
    /// Milliseconds before it is ready.
    pub delay_ms: u64,
    /// Deliveries before it is dead; `None`: the queue's setting.
    pub max_attempts: Option<u32>,
    /// What most jobs have not.
    pub options: Option<Box<JobOptions>>,
}

/// What a worker holds: the job and the token of its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRef {
    /// The job.
    pub job: JobId,
    /// The token the lease came with.
    pub token: LeaseToken,
}

/// A job that is done.
#[derive(Clone, Debug)]
pub struct Ack {
    /// Which lease.
    pub lease: LeaseRef,
    /// What came of it, kept as long as the queue's `result_retention_ms`; empty: nothing to be kept.
    pub result: Bytes,
}

/// A job given back.
#[derive(Clone, Debug)]
pub struct Nack {
    /// Which lease.
    pub lease: LeaseRef,
    /// Why.
    pub kind: NackKind,
    /// Milliseconds before the next attempt; `None`: as the job's or queue's retries say, at once if it is released.
    pub delay_ms: Option<u64>,
    /// What went wrong, kept with the job.
    pub error: Bytes,
}

/// On one queue.
#[derive(Clone, Debug)]
pub enum QueueCommand {
    /// Enqueues the jobs, all or none. → [`crate::Reply::Enqueued`]
    Enqueue {
        /// The jobs, at least one.
        jobs: Batch<NewJob>,
        /// Wait for room until then, if the queue is full and its `when_full` is to wait.
        wait_until: Option<Millis>,
    },
    /// Leases ready jobs: highest priority first, then oldest. → [`crate::Reply::Reserved`], empty if none is ready.
    Reserve {
        /// At most so many jobs, at least 1.
        jobs_max: u32,
        /// How long the leases last; `None`: the queue's setting.
        visibility_timeout_ms: Option<u64>,
        /// The worker's name, kept with the job.
        worker: Bytes,
        /// Wait for a job until then if none is ready.
        wait_until: Option<Millis>,
    },
    /// The jobs are done. → [`crate::Reply::Settled`], one outcome a lease.
    Ack {
        /// Which leases, and what came of them.
        acks: Batch<Ack>,
    },
    /// The jobs are given back: they are ready again later, or dead. → [`crate::Reply::Settled`]
    Nack {
        /// Which leases, and what went wrong.
        nacks: Batch<Nack>,
    },
    /// The leases last `visibility_timeout_ms` from now. → [`crate::Reply::Extended`]
    Extend {
        /// Which leases.
        leases: Batch<LeaseRef>,
        /// How long from now; `None`: the queue's setting.
        visibility_timeout_ms: Option<u64>,
    },
    /// The worker says how far it is. → [`crate::Reply::Settled`], one outcome.
    Progress {
        /// Which lease.
        lease: LeaseRef,
        /// What it says, kept with the job.
        progress: Bytes,
    },
    /// The jobs are not to be done: those that wait are gone, workers of others are asked to stop.
    /// → [`crate::Reply::Cancelled`]
    Cancel {
        /// Which.
        jobs: Batch<JobId>,
    },
    /// A waiting job gets another priority or time. → [`crate::Reply::Settled`], one outcome.
    Change {
        /// Which.
        job: JobId,
        /// Its priority from now on.
        priority: Option<u8>,
        /// When it is ready.
        ready_at: Option<Millis>,
    },
    /// Dead jobs wait again, with all their attempts to come. → [`crate::Reply::Swept`]
    Redrive {
        /// Which.
        which: Which,
        /// So many of them become ready a second; `None`: all at once.
        per_second: Option<u32>,
        /// The first of them becomes ready after so many milliseconds.
        delay_ms: u64,
    },
    /// Dead jobs, or kept ones that are done, are forgotten. → [`crate::Reply::Swept`]
    Purge {
        /// Which.
        which: Which,
        /// [`JobPhase::Dead`] or [`JobPhase::Done`].
        phase: JobPhase,
    },
    /// No job is given out, or they are again. → [`crate::Reply::Settled`], one outcome.
    Pause(bool),
    /// All that is known of a job. → [`crate::Reply::Job`]
    Get {
        /// Which.
        job: JobId,
        /// Wait until then for it to be done or dead.
        wait_until: Option<Millis>,
    },
    /// The jobs that would be leased next, which they are not. → [`crate::Reply::Jobs`]
    Peek {
        /// At most so many.
        jobs_max: u32,
    },
    /// Jobs in the order of their numbers; dead and done ones in the order of time. → [`crate::Reply::Jobs`]
    List {
        /// Only in this phase.
        phase: Option<JobPhase>,
        /// Only those that match.
        filter: JobFilter,
        /// Only behind this one.
        after: JobCursor,
        /// At most so many.
        jobs_max: u32,
        /// Whether headers and payloads come along.
        with_bodies: bool,
    },
    /// Counts of jobs by state. → [`crate::Reply::QueueStatus`]
    Status,
    /// Who reserves jobs under a name: what it has and what became of what it had. → [`crate::Reply::WorkerOnQueue`]
    Worker {
        /// The name.
        worker: Bytes,
        /// Of what it has, only leases behind this one.
        after: JobCursor,
        /// At most so many of those.
        jobs_max: u32,
    },
    /// On the queue's schedules. → [`crate::Reply::Schedule`]
    Schedule(ScheduleCommand),
    /// On what it sends to other queues and streams, or receives.
    Transfer(TransferCommand),
}

impl QueueCommand {
    /// Jobs without conditions on the queue's room.
    #[must_use]
    pub fn enqueue(jobs: Batch<NewJob>) -> Self {
        Self::Enqueue { jobs, wait_until: None }
    }

    /// Jobs that are done and have nothing to say.
    pub fn ack(leases: impl IntoIterator<Item = LeaseRef>) -> Self {
        Self::Ack { acks: leases.into_iter().map(|lease| Ack { lease, result: Bytes::new() }).collect() }
    }

    /// Whether it can change anything.
    #[must_use]
    pub fn is_write(&self) -> bool {
        match self {
            Self::Status | Self::Get { .. } | Self::Peek { .. } | Self::List { .. } | Self::Worker { .. } => {
                false
            }
            Self::Schedule(command) => command.is_write(),
            Self::Transfer(command) => command.is_write(),
            _ => true,
        }
    }
}

/// What must hold of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SetIf {
    /// Nothing.
    #[default]
    Always,
    /// There is no such key.
    Absent,
    /// The key is there.
    Present,
    /// The key has this version.
    Version(Lsn),
    /// The key holds these bytes, or a counter whose text they are.
    Value(Bytes),
}

/// How long a new value lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTtl {
    /// As the store's `default_ttl_ms` says, else for ever.
    #[default]
    Default,
    /// For so many milliseconds.
    Millis(u64),
    /// Until then; if that has passed, it is as if the key was deleted.
    At(Millis),
    /// As long as the value before it.
    Keep,
}

/// A key to set.
#[derive(Clone, Debug)]
pub struct SetEntry {
    /// The key, 1 to 1024 bytes.
    pub key: Bytes,
    /// Its new value.
    pub value: Bytes,
    /// How long it lives.
    pub ttl: SetTtl,
    /// What must hold.
    pub condition: SetIf,
}

/// Which keys a scan shows, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyScan {
    /// Only keys that start with this.
    pub prefix: Bytes,
    /// Only this key and those behind it.
    pub start: Option<Bytes>,
    /// Only keys before this one.
    pub end: Option<Bytes>,
    /// Only keys that match this glob (see [`crate::kv::PageOf`]).
    pub glob: Option<Bytes>,
    /// From the last to the first.
    pub reverse: bool,
    /// Only what comes after this one, in the order of the scan: the cursor of the page before. Outside of what is scanned:
    /// `FOREIGN_CURSOR`.
    pub after: Option<Bytes>,
    /// At most so many keys, at least 1.
    pub keys_max: u32,
    /// Whether values come along.
    pub with_values: bool,
}

/// On the keys of a store that the shard holds.
#[derive(Clone, Debug)]
pub enum KvCommand {
    /// Sets keys, in order; a condition that fails leaves that key as it is. → [`crate::Reply::Written`]
    Set {
        /// The keys, at least one.
        entries: Batch<SetEntry>,
    },
    /// Values and versions. → [`crate::Reply::Values`]
    Get {
        /// The keys, at least one.
        keys: Batch<Bytes>,
    },
    /// Deletes keys. → [`crate::Reply::Flags`]: was it there?
    Delete {
        /// The keys, at least one.
        keys: Batch<Bytes>,
        /// Delete only this version; then exactly one key.
        if_version: Option<Lsn>,
    },
    /// Whether keys are there. → [`crate::Reply::Flags`]
    Exists {
        /// The keys, at least one.
        keys: Batch<Bytes>,
    },
    /// Keys in byte order. → [`crate::Reply::Scanned`]
    Scan(KeyScan),
    /// Operations one after the other, each of which sees what those before it did. → [`crate::Reply::Kv`], one outcome an
    /// operation
    Run {
        /// At least one.
        ops: Batch<KvOp>,
        /// All or none: if one is refused, none is done, and `BATCH_REFUSED` says which. Then all keys must be on one
        /// partition.
        atomic: bool,
        /// What chance is drawn from. Different for each command.
        seed: u64,
    },
    /// A key by chance. → [`crate::Reply::Scanned`], with one key or none
    Random {
        /// What chance is drawn from.
        seed: u64,
    },
    /// How many keys there are, and what they take. → [`crate::Reply::KvStatus`]
    Status,
    /// What keys hold, as of one entry of the log, collections included. → [`crate::Reply::KvSnapshot`]
    Snapshot {
        /// Only keys that start with this.
        prefix: Bytes,
        /// Only this key.
        key: Option<Bytes>,
        /// Where it goes on.
        from: SnapshotFrom,
    },
    /// What was.
    Past(PastAsk),
    /// Deletes keys, whichever. → [`crate::Reply::KvCleared`]
    Clear {
        /// At most so many, at least 1.
        keys_max: u32,
    },
}

impl KvCommand {
    /// Whether it can change anything.
    #[must_use]
    pub fn is_write(&self) -> bool {
        match self {
            Self::Set { .. } | Self::Delete { .. } | Self::Clear { .. } => true,
            Self::Run { ops, .. } => ops.iter().any(|op| op.action.is_write()),
            Self::Get { .. }
            | Self::Exists { .. }
            | Self::Scan(_)
            | Self::Random { .. }
            | Self::Snapshot { .. }
            | Self::Past(_)
            | Self::Status => false,
        }
    }
}

/// On the catalog.
#[derive(Clone, Debug)]
pub enum CatalogCommand {
    /// Creates a resource. → [`crate::Reply::Resource`]
    Create {
        /// Its path.
        path: ResourcePath,
        /// Its settings, of the path's kind.
        settings: Settings,
        /// Answer with the existing resource instead of `RESOURCE_EXISTS`.
        or_existing: bool,
    },
    /// Changes the settings of a resource; what is fixed at creation must stay. → [`crate::Reply::Resource`]
    Update {
        /// Its path.
        path: ResourcePath,
        /// All its new settings.
        settings: Settings,
    },
    /// Deletes a resource with all it holds. → [`crate::Reply::Resource`]
    Delete {
        /// Its path.
        path: ResourcePath,
    },
}

impl StreamCommand {
    /// An append without a producer and without a condition.
    #[must_use]
    pub fn append(records: PackedRecords) -> Self {
        Self::Append { records, producer: None, expected_offset: None }
    }
}

impl Command {
    /// Whether it can change anything. A fenced or full shard still answers those that cannot.
    pub fn is_write(&self) -> bool {
        match self {
            Self::Stream(_, command) => matches!(
                command,
                StreamCommand::Append { .. }
                    | StreamCommand::InitProducer { .. }
                    | StreamCommand::FenceProducer { .. }
                    | StreamCommand::Trim { .. }
                    | StreamCommand::Receive(_)
            ),
            Self::Queue(_, command) => command.is_write(),
            Self::Kv(_, command) => command.is_write(),
            Self::Group(_, command) => !matches!(
                command,
                GroupCommand::FetchOffsets { .. } | GroupCommand::Status | GroupCommand::Describe
            ),
            Self::Catalog(_) => true,
            Self::Replay(_, command) => !matches!(command, ReplayCommand::Status { .. }),
            Self::Worker(command) => command.is_write(),
        }
    }

    /// The same command, which no longer waits.
    pub fn wait_until_mut(&mut self) -> Option<&mut Option<Millis>> {
        match self {
            Self::Stream(_, StreamCommand::Read { wait_until, .. })
            | Self::Queue(
                _,
                QueueCommand::Enqueue { wait_until, .. }
                | QueueCommand::Reserve { wait_until, .. }
                | QueueCommand::Get { wait_until, .. },
            )
            | Self::Replay(_, ReplayCommand::Status { wait_until, .. }) => Some(wait_until),
            Self::Group(_, GroupCommand::Heartbeat(heartbeat))
            | Self::Replay(_, ReplayCommand::Member(GroupCommand::Heartbeat(heartbeat))) => {
                Some(&mut heartbeat.wait_until)
            }
            _ => None,
        }
    }
}
