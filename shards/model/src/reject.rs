//! Why a command was not carried out: one closed list, with a stable code each.
//!
//! [`Reject::code`] says what kind of failure it is; the edges map codes to their protocol in one table.

use thiserror::Error;

use crate::ids::{CatalogVersion, GroupEpoch, JobId, Lsn, Millis, Offset, ProducerId};
use crate::job::JobPhase;
use crate::kv::KvType;
use crate::path::Kind;
use crate::replay::{ReplayAction, ReplayState};
use crate::worker::WorkerState;

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
    /// A record without a key, of an append to a stream that keeps the latest record of each key.
    #[error("record {record} of the append, counted from 0, has no key; the stream is compacted by key")]
    KeyMissing {
        /// Which record.
        record: u32,
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
    /// A cron expression that cannot be used.
    #[error("cron: {part} at byte {at}: {problem}")]
    IllegalCron {
        /// Which part of it.
        part: &'static str,
        /// The byte where that begins, from 0.
        at: u64,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// A trace context that is none.
    #[error("{field}: {problem}")]
    IllegalTrace {
        /// Which part of it: `traceparent` or `tracestate`.
        field: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// No such time zone.
    #[error("no such time zone: {name}; use a name of the tz database, such as Europe/Berlin or UTC")]
    UnknownTimeZone {
        /// The name as given.
        name: String,
    },
    /// A schedule that would fire only before now.
    #[error("the schedule's time, {at}, lies {late_ms} ms in the past; up to {allowed_ms} ms are allowed")]
    ScheduleInPast {
        /// The time.
        at: Millis,
        /// How long ago that is.
        late_ms: u64,
        /// How long ago it may be.
        allowed_ms: u64,
    },
    /// No such schedule in the queue.
    #[error("no such schedule: {name}")]
    ScheduleNotFound {
        /// Its name.
        name: String,
    },
    /// The queue has a schedule of that name that does something else.
    #[error("schedule {name} exists already and does something else; delete it first, or use another name")]
    ScheduleExists {
        /// Its name.
        name: String,
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
    /// The next record's offset is another than the append expects.
    #[error("the next offset is {next}, not {expected}")]
    OffsetMismatch {
        /// What the append expects.
        expected: Offset,
        /// What it is.
        next: Offset,
    },
    /// Records of the producer are missing before these.
    #[error("sequence {got} leaves a gap: the producer's next one is {expected}")]
    SequenceGap {
        /// The sequence number that comes next.
        expected: u64,
        /// That of the append.
        got: u64,
    },
    /// A newer incarnation of the producer has taken over.
    #[error("epoch {epoch} of producer {id} is fenced: epoch {current} has taken over")]
    ProducerFenced {
        /// The producer.
        id: ProducerId,
        /// The epoch of the append.
        epoch: u32,
        /// The partition's.
        current: u32,
    },
    /// The partition does not know the producer, whose records these cannot be the first of.
    #[error(
        "the partition does not know producer {id}, or has forgotten it; sequence {sequence} cannot be its first"
    )]
    UnknownProducer {
        /// The producer.
        id: ProducerId,
        /// The sequence number of the append.
        sequence: u64,
    },
    /// Records that were appended before, but not as this batch, or too long ago to say where.
    #[error(
        "sequence {sequence} was appended before; {count} records from there on are no batch that is remembered \
         ({remembered_from} to {next})"
    )]
    DuplicateSequence {
        /// The sequence number of the append.
        sequence: u64,
        /// Its records.
        count: u32,
        /// The sequence number of the oldest batch that is remembered.
        remembered_from: u64,
        /// The sequence number that comes next.
        next: u64,
    },
    /// A stream keeps its partitions.
    #[error("the stream has {partitions} partitions, which can only become more; {requested} were asked for")]
    PartitionsLowered {
        /// How many there are.
        partitions: u32,
        /// How many were asked for.
        requested: u32,
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
    /// The job is not where it would have to be for this.
    #[error("job {job} is {}; this is only for jobs that are {wanted}", .phase.as_str())]
    WrongPhase {
        /// The job.
        job: JobId,
        /// Where it is in its life.
        phase: JobPhase,
        /// Where it would have to be.
        wanted: &'static str,
    },
    /// The job is on its way to another queue or a stream; nothing else can happen to it until it has arrived.
    #[error("job {job} is on its way to another queue or a stream; try again once it has arrived")]
    JobInTransit {
        /// The job.
        job: JobId,
    },
    /// Jobs are only replayed into a sandbox.
    #[error("{path} is no sandbox; jobs are only replayed into a queue that was created with sandbox")]
    QueueNotSandbox {
        /// The queue.
        path: String,
    },
    /// A sandbox takes and gives no jobs but by replays.
    #[error("{path} is a sandbox: jobs come to it by replays, and leave it for no other queue or stream")]
    SandboxQueue {
        /// The queue.
        path: String,
    },
    /// Dead letters would go round in a circle.
    #[error("dead letters sent to {path} would in the end come back to where they died")]
    DeadLetterCycle {
        /// The target.
        path: String,
    },
    /// Dead letters of a queue go to it.
    #[error("dead letters of {of} go to {path}; change that setting first")]
    DeadLetterTarget {
        /// What was to be deleted.
        path: String,
        /// The queue whose dead letters they are, or one of several.
        of: String,
    },
    /// A compacted stream keeps of each key only the newest record, and none of one that ends with an empty one.
    #[error(
        "dead letters of {of} cannot go to {path} while it is compacted: it would keep one of each group, and none that has no payload"
    )]
    CompactedTarget {
        /// The stream.
        path: String,
        /// The queue.
        of: String,
    },
    /// Another job has the key, with another payload.
    #[error("the key belongs to job {job}, which has another payload")]
    KeyConflict {
        /// That job.
        job: JobId,
    },
    /// The queue takes no more jobs.
    #[error("the queue is full: it has {waiting} of at most {max} {what}; try again in {retry_after_ms} ms")]
    QueueFull {
        /// What it has too many of.
        what: &'static str,
        /// How many, or how many bytes, wait.
        waiting: u64,
        /// At most so many.
        max: u64,
        /// When it makes sense to try again.
        retry_after_ms: u64,
    },
    /// The store takes nothing more.
    #[error(
        "the store is full: this shard's share of its {what} is {max}, it has {held} and would have {wanted}; deletes and \
         what makes it smaller pass, {setting} raises it"
    )]
    StoreFull {
        /// What it would have too much of.
        what: &'static str,
        /// The setting.
        setting: &'static str,
        /// What the shard has of it.
        held: u64,
        /// What it would have.
        wanted: u64,
        /// At most so much.
        max: u64,
    },
    /// Jobs of a batch wait for each other.
    #[error("job {job} of the batch, counted from 0, waits in the end for itself")]
    FlowCycle {
        /// One of them.
        job: u32,
    },
    /// A job is to wait for one that is not there.
    #[error("job {job} of the batch, counted from 0, waits for {missing}, which is not there")]
    FlowMissing {
        /// Which job waits.
        job: u32,
        /// For what.
        missing: String,
    },
    /// Nobody registered under this name, or it was forgotten.
    #[error("no such worker: {path}; register first")]
    WorkerNotFound {
        /// Its path.
        path: String,
    },
    /// Another process has registered under the name of this worker.
    #[error(
        "worker {path} speaks in epoch {given}, but has {current}: another process has registered; this one must stop"
    )]
    StaleWorker {
        /// Its path.
        path: String,
        /// The epoch it gave.
        given: Lsn,
        /// The epoch it has.
        current: Lsn,
    },
    /// The worker is not there any more.
    #[error("worker {path} is gone ({}); register anew", .state.as_str())]
    WorkerGone {
        /// Its path.
        path: String,
        /// What it is.
        state: WorkerState,
    },
    /// A worker that is there is not forgotten.
    #[error("worker {path} is {}; only one that is dead or has left can be forgotten", .state.as_str())]
    WorkerPresent {
        /// Its path.
        path: String,
        /// What it is.
        state: WorkerState,
    },
    /// The shard has as many workers as it may have, and all of them are there.
    #[error("the shard has {max} workers, which is the most, and all are there")]
    TooManyWorkers {
        /// How many.
        max: u64,
    },
    /// A condition of a write does not hold.
    #[error("condition does not hold: the key is {}", describe_version(*.actual))]
    ConditionFailed {
        /// The key's version, `None` if there is no such key.
        actual: Option<Lsn>,
    },
    /// The key holds something else than the operation is for.
    #[error("the key is of type {}; this operation is for type {}", .actual.as_str(), .expected.as_str())]
    WrongType {
        /// What the operation is for.
        expected: KvType,
        /// What the key holds.
        actual: KvType,
    },
    /// What is to be counted is no number.
    #[error("{what} is no {wanted}")]
    NotANumber {
        /// What.
        what: &'static str,
        /// `64-bit integer` or `finite decimal`.
        wanted: &'static str,
    },
    /// A counter, or the score of a member, would leave its range.
    #[error("{what} would leave the range of a {range}; it stays as it is")]
    CounterOverflow {
        /// What.
        what: &'static str,
        /// `64-bit integer` or `finite decimal`.
        range: &'static str,
    },
    /// There is no such key.
    #[error("there is no such key")]
    NoSuchKey,
    /// The cursor of another scan.
    #[error(
        "after: is outside of what is scanned, so it is the cursor of another scan; begin anew without one"
    )]
    ForeignCursor,
    /// The list has no such index.
    #[error("index {index} is outside of the list, which has {len} values")]
    IndexOutOfRange {
        /// The index asked for.
        index: i64,
        /// How many values there are.
        len: u64,
    },
    /// Keys that must be on one partition are on several.
    #[error(
        "keys {first} and {other}, counted from 0, are on different partitions; keys that share a {{tag}} are on one"
    )]
    KeysApart {
        /// The place of one of them among the keys of the call.
        first: u32,
        /// The place of the other.
        other: u32,
    },
    /// An operation of an atomic batch was refused, so that nothing of the batch was done.
    #[error("operation {index} of the batch, counted from 0, was refused, and nothing was done: {cause}")]
    BatchRefused {
        /// Which.
        index: u32,
        /// Why.
        cause: Box<Reject>,
    },
    /// The group has no such member: it never joined, left, was removed, or its session is over.
    #[error("no such member: {member}; it must let go of its partitions and join anew")]
    UnknownMember {
        /// Its id or the name of its instance, as asked for.
        member: String,
    },
    /// The member speaks in an epoch that it cannot have any more, or never had.
    #[error(
        "member {member} speaks in epoch {given}, but has {current}; it must let go of its partitions and join anew"
    )]
    StaleMemberEpoch {
        /// Its id.
        member: String,
        /// The epoch it gave.
        given: GroupEpoch,
        /// The epoch it has.
        current: GroupEpoch,
    },
    /// Another process has joined with the instance of this member.
    #[error("instance {instance} was taken over by another process: this one must stop")]
    FencedInstance {
        /// The instance.
        instance: String,
    },
    /// A member commits a partition that it does not own, or did not own in the epoch it speaks in.
    #[error("partition {partition} is not owned by this member in this epoch: it was revoked")]
    PartitionNotOwned {
        /// The partition.
        partition: u32,
    },
    /// Members of the group subscribe to the partition's stream: only they may commit.
    #[error("partition {partition} is in use: members of the group subscribe to its stream")]
    PartitionInUse {
        /// The partition.
        partition: u32,
    },
    /// The group has members.
    #[error("the group has {members} members; stop or remove them first")]
    GroupNotEmpty {
        /// How many.
        members: u64,
    },
    /// Nothing is committed for the partition.
    #[error("no offset is committed for partition {partition}")]
    OffsetNotCommitted {
        /// The partition.
        partition: u32,
    },
    /// A replay session is to work with a group that is not its sandbox: one that consumers work with.
    #[error(
        "{path} is no sandbox of a replay session: a replay never touches a group that consumers work with"
    )]
    GroupNotSandbox {
        /// The group.
        path: String,
    },
    /// The group is the sandbox of a replay session, for that one's members alone.
    #[error("{path} is the sandbox of a replay session: only the session works with it")]
    SandboxGroup {
        /// The group.
        path: String,
    },
    /// The stream is the feed of a store, which alone appends to it and with which it is created and deleted.
    #[error(
        "{path} is the feed of {of}: only changes of that store are appended to it, and it goes with the store"
    )]
    FeedStream {
        /// The stream.
        path: String,
        /// The store.
        of: String,
    },
    /// A store has a feed, whose stream and partitions are fixed.
    #[error(
        "{path} has the feed {stream} with {partitions} partitions, which are fixed; only old_values may change"
    )]
    FeedFixed {
        /// The store.
        path: String,
        /// The feed.
        stream: String,
        /// How many partitions it has.
        partitions: u32,
    },
    /// Keys and their partitions of the feed are not on the same shards.
    #[error(
        "{path} has a feed with {partitions} partitions, which is not for {shards} shards with the slots dealt out as \
         they are: changes and their records would be on different shards"
    )]
    FeedMisplaced {
        /// The store.
        path: String,
        /// Partitions of the feed.
        partitions: u32,
        /// Shards.
        shards: u16,
    },
    /// The store has no feed.
    #[error("{path} has no feed; resources update gives it one, with the changes from then on")]
    NoFeed {
        /// The store.
        path: String,
    },
    /// The feed has no longer all that came behind a version.
    #[error("changes behind version {requested} are not kept; the feed is whole behind version {earliest}")]
    VersionNotKept {
        /// The version.
        requested: Lsn,
        /// From here on it can be resumed.
        earliest: Lsn,
    },
    /// The store keeps no history.
    #[error("{path} keeps no history; resources update with history_ms gives it one, from then on")]
    NoHistory {
        /// The store.
        path: String,
    },
    /// What was so long ago is not kept.
    #[error(
        "what was at {} {requested} is not kept: the oldest is time {oldest_ms} ms, version {oldest_version}",
        if *.is_version { "version" } else { "time" }
    )]
    HistoryNotKept {
        /// The time, ms, or the version.
        requested: u64,
        /// Whether it is a version.
        is_version: bool,
        /// The oldest time, ms since the Unix epoch.
        oldest_ms: u64,
        /// The oldest version.
        oldest_version: Lsn,
    },
    /// What is to be read as of the past changes something.
    #[error("operation {index}, counted from 0, changes something: what was can only be read")]
    PastChange {
        /// Which.
        index: u32,
    },
    /// The state of a replay session does not allow it.
    #[error(
        "a replay session that is {} cannot be {}; possible now: {}",
        .state.as_str(), .action.as_str(), .state.allowed()
    )]
    ReplayState {
        /// What was to be done.
        action: ReplayAction,
        /// The state it is in.
        state: ReplayState,
    },
    /// A replay session was moved meanwhile: what rests on where it was does not count.
    #[error("the replay session was moved meanwhile: it is at generation {generation}")]
    ReplayMoved {
        /// Its generation.
        generation: u64,
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
            | Self::KeyMissing { .. }
            | Self::IllegalFilter { .. }
            | Self::IllegalCron { .. }
            | Self::IllegalTrace { .. }
            | Self::UnknownTimeZone { .. }
            | Self::FlowCycle { .. }
            | Self::KeysApart { .. }
            | Self::PastChange { .. }
            | Self::ForeignCursor
            | Self::WrongKind { .. }
            | Self::NoSuchPartition { .. } => Code::InvalidArgument,
            Self::ResourceNotFound { .. }
            | Self::JobNotFound { .. }
            | Self::ScheduleNotFound { .. }
            | Self::FlowMissing { .. }
            | Self::WorkerNotFound { .. }
            | Self::NoSuchKey
            | Self::UnknownMember { .. } => Code::NotFound,
            Self::ResourceExists { .. }
            | Self::ScheduleExists { .. }
            | Self::DuplicateSequence { .. }
            | Self::KeyConflict { .. } => Code::AlreadyExists,
            Self::OffsetOutOfRange { .. }
            | Self::IndexOutOfRange { .. }
            | Self::VersionNotKept { .. }
            | Self::HistoryNotKept { .. } => Code::OutOfRange,
            Self::BatchRefused { cause, .. } => cause.code(),
            Self::LeaseLost { .. }
            | Self::WrongPhase { .. }
            | Self::StaleMemberEpoch { .. }
            | Self::FencedInstance { .. }
            | Self::PartitionNotOwned { .. }
            | Self::PartitionInUse { .. }
            | Self::GroupNotEmpty { .. }
            | Self::OffsetNotCommitted { .. }
            | Self::ConditionFailed { .. }
            | Self::WrongType { .. }
            | Self::NotANumber { .. }
            | Self::CounterOverflow { .. }
            | Self::OffsetMismatch { .. }
            | Self::SequenceGap { .. }
            | Self::ProducerFenced { .. }
            | Self::UnknownProducer { .. }
            | Self::PartitionsLowered { .. }
            | Self::GroupNotSandbox { .. }
            | Self::SandboxGroup { .. }
            | Self::FeedStream { .. }
            | Self::FeedFixed { .. }
            | Self::FeedMisplaced { .. }
            | Self::NoFeed { .. }
            | Self::NoHistory { .. }
            | Self::ReplayState { .. }
            | Self::ReplayMoved { .. }
            | Self::StaleWorker { .. }
            | Self::WorkerGone { .. }
            | Self::WorkerPresent { .. }
            | Self::JobInTransit { .. }
            | Self::QueueNotSandbox { .. }
            | Self::SandboxQueue { .. }
            | Self::DeadLetterCycle { .. }
            | Self::DeadLetterTarget { .. }
            | Self::CompactedTarget { .. }
            | Self::ScheduleInPast { .. } => Code::FailedPrecondition,
            Self::Overloaded { .. }
            | Self::QueueFull { .. }
            | Self::StoreFull { .. }
            | Self::TooManyWorkers { .. }
            | Self::DiskFull => Code::ResourceExhausted,
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
            Self::KeyMissing { .. } => "KEY_MISSING",
            Self::IllegalFilter { .. } => "ILLEGAL_FILTER",
            Self::IllegalCron { .. } => "ILLEGAL_CRON",
            Self::IllegalTrace { .. } => "ILLEGAL_TRACE_CONTEXT",
            Self::UnknownTimeZone { .. } => "UNKNOWN_TIME_ZONE",
            Self::ScheduleInPast { .. } => "SCHEDULE_IN_PAST",
            Self::ScheduleNotFound { .. } => "SCHEDULE_NOT_FOUND",
            Self::ScheduleExists { .. } => "SCHEDULE_EXISTS",
            Self::ResourceNotFound { .. } => "RESOURCE_NOT_FOUND",
            Self::ResourceExists { .. } => "RESOURCE_EXISTS",
            Self::WrongKind { .. } => "WRONG_KIND",
            Self::NoSuchPartition { .. } => "NO_SUCH_PARTITION",
            Self::OffsetOutOfRange { .. } => "OFFSET_OUT_OF_RANGE",
            Self::OffsetMismatch { .. } => "OFFSET_MISMATCH",
            Self::SequenceGap { .. } => "SEQUENCE_GAP",
            Self::ProducerFenced { .. } => "PRODUCER_FENCED",
            Self::UnknownProducer { .. } => "UNKNOWN_PRODUCER",
            Self::DuplicateSequence { .. } => "DUPLICATE_SEQUENCE",
            Self::PartitionsLowered { .. } => "PARTITIONS_LOWERED",
            Self::JobNotFound { .. } => "JOB_NOT_FOUND",
            Self::LeaseLost { reason: LeaseLost::Expired, .. } => "LEASE_EXPIRED",
            Self::LeaseLost { reason: LeaseLost::Superseded, .. } => "LEASE_SUPERSEDED",
            Self::LeaseLost { reason: LeaseLost::Settled, .. } => "LEASE_SETTLED",
            Self::WrongPhase { .. } => "WRONG_PHASE",
            Self::KeyConflict { .. } => "KEY_CONFLICT",
            Self::JobInTransit { .. } => "JOB_IN_TRANSIT",
            Self::QueueNotSandbox { .. } => "QUEUE_NOT_SANDBOX",
            Self::SandboxQueue { .. } => "SANDBOX_QUEUE",
            Self::DeadLetterCycle { .. } => "DEAD_LETTER_CYCLE",
            Self::DeadLetterTarget { .. } => "DEAD_LETTER_TARGET",
            Self::CompactedTarget { .. } => "COMPACTED_TARGET",
            Self::QueueFull { .. } => "QUEUE_FULL",
            Self::StoreFull { .. } => "STORE_FULL",
            Self::FlowCycle { .. } => "FLOW_CYCLE",
            Self::FlowMissing { .. } => "FLOW_MISSING",
            Self::WorkerNotFound { .. } => "WORKER_NOT_FOUND",
            Self::StaleWorker { .. } => "STALE_WORKER",
            Self::WorkerGone { .. } => "WORKER_GONE",
            Self::WorkerPresent { .. } => "WORKER_PRESENT",
            Self::TooManyWorkers { .. } => "TOO_MANY_WORKERS",
            Self::ConditionFailed { .. } => "CONDITION_FAILED",
            Self::WrongType { .. } => "WRONG_TYPE",
            Self::NotANumber { .. } => "NOT_A_NUMBER",
            Self::CounterOverflow { .. } => "COUNTER_OVERFLOW",
            Self::NoSuchKey => "NO_SUCH_KEY",
            Self::IndexOutOfRange { .. } => "INDEX_OUT_OF_RANGE",
            Self::KeysApart { .. } => "KEYS_APART",
            Self::ForeignCursor => "FOREIGN_CURSOR",
            Self::BatchRefused { .. } => "BATCH_REFUSED",
            Self::UnknownMember { .. } => "UNKNOWN_MEMBER",
            Self::StaleMemberEpoch { .. } => "STALE_MEMBER_EPOCH",
            Self::FencedInstance { .. } => "FENCED_INSTANCE",
            Self::PartitionNotOwned { .. } => "PARTITION_NOT_OWNED",
            Self::PartitionInUse { .. } => "PARTITION_IN_USE",
            Self::GroupNotEmpty { .. } => "GROUP_NOT_EMPTY",
            Self::OffsetNotCommitted { .. } => "OFFSET_NOT_COMMITTED",
            Self::GroupNotSandbox { .. } => "GROUP_NOT_SANDBOX",
            Self::SandboxGroup { .. } => "SANDBOX_GROUP",
            Self::FeedStream { .. } => "FEED_STREAM",
            Self::FeedFixed { .. } => "FEED_FIXED",
            Self::FeedMisplaced { .. } => "FEED_MISPLACED",
            Self::NoFeed { .. } => "NO_FEED",
            Self::VersionNotKept { .. } => "VERSION_NOT_KEPT",
            Self::NoHistory { .. } => "NO_HISTORY",
            Self::HistoryNotKept { .. } => "HISTORY_NOT_KEPT",
            Self::PastChange { .. } => "PAST_CHANGE",
            Self::ReplayState { .. } => "REPLAY_STATE",
            Self::ReplayMoved { .. } => "REPLAY_MOVED",
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

    /// What a program may need to go on, by name. Part of the API: documented with the calls.
    #[must_use]
    pub fn details(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::KeyMissing { record } => vec![("record", u64::from(*record))],
            Self::KeyConflict { job } => vec![("job_id", job.0)],
            Self::QueueFull { waiting, max, .. } => vec![("waiting", *waiting), ("max", *max)],
            Self::StoreFull { held, wanted, max, .. } => {
                vec![("held", *held), ("wanted", *wanted), ("max", *max)]
            }
            Self::OffsetMismatch { expected, next } => vec![("expected", expected.0), ("next", next.0)],
            Self::SequenceGap { expected, got } => vec![("expected", *expected), ("got", *got)],
            Self::ProducerFenced { id, epoch, current } => {
                vec![("id", id.0), ("epoch", u64::from(*epoch)), ("current", u64::from(*current))]
            }
            Self::UnknownProducer { id, sequence } => vec![("id", id.0), ("sequence", *sequence)],
            Self::DuplicateSequence { sequence, remembered_from, next, .. } => {
                vec![("sequence", *sequence), ("remembered_from", *remembered_from), ("next", *next)]
            }
            Self::StaleWorker { given, current, .. } => vec![("epoch", given.0), ("current", current.0)],
            Self::TooManyWorkers { max } => vec![("max", *max)],
            Self::PartitionsLowered { partitions, requested } => {
                vec![("partitions", u64::from(*partitions)), ("requested", u64::from(*requested))]
            }
            Self::OffsetOutOfRange { requested, earliest, next } => {
                vec![("requested", requested.0), ("earliest", earliest.0), ("next", next.0)]
            }
            Self::ConditionFailed { actual } => vec![("version", actual.map_or(0, Lsn::get))],
            Self::VersionNotKept { requested, earliest } => {
                vec![("requested", requested.0), ("earliest", earliest.0)]
            }
            Self::HistoryNotKept { requested, oldest_ms, oldest_version, .. } => vec![
                ("requested", *requested),
                ("oldest_ms", *oldest_ms),
                ("oldest_version", oldest_version.0),
            ],
            Self::PastChange { index } => vec![("operation", u64::from(*index))],
            Self::IndexOutOfRange { len, .. } => vec![("len", *len)],
            Self::KeysApart { first, other } => {
                vec![("first", u64::from(*first)), ("other", u64::from(*other))]
            }
            Self::BatchRefused { index, cause } => {
                let mut details = vec![("operation", u64::from(*index))];
                details.extend(cause.details());
                details
            }
            _ => Vec::new(),
        }
    }

    /// When to try again, where that makes sense.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Overloaded { retry_after_ms, .. } | Self::QueueFull { retry_after_ms, .. } => {
                Some(*retry_after_ms)
            }
            Self::DiskFull | Self::TooManyWorkers { .. } => Some(1_000),
            Self::CatalogBehind { .. } => Some(1),
            Self::BatchRefused { cause, .. } => cause.retry_after_ms(),
            _ => None,
        }
    }
}
