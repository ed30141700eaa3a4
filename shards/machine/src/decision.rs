//! What goes into the machine besides commands and facts, and what comes out.

use bytes::Bytes;
use flowmesh_model::{Batch, Fact, JobId, Lsn, Millis, Offset, PartitionRef, Reply, ResourceId, ShardId};

use crate::kv::past::rows::PastRead;

/// What a machine is told once.
#[derive(Clone, Copy, Debug)]
pub struct MachineConfig {
    /// Whose state it is.
    pub shard: ShardId,
    /// Whether it owns the catalog: shard 0 does.
    pub catalog_owner: bool,
    /// How many shards there are, with the slots dealt out to them in turn; 0: dealt out otherwise.
    pub shards: u16,
    /// How many shards share what a store may have.
    pub shares: u16,
    /// The key of the hash of what clients choose. Secret, drawn once for a data directory or a process; never
    /// visible in replies, facts or checkpoints.
    pub hash_seed: u64,
    /// Whether checkpoints are made. Without them nothing is remembered about what changed.
    pub checkpoints: bool,
}

/// The entry a fact is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryContext {
    /// Its place in the log; the version of what it changes.
    pub lsn: Lsn,
    /// Its time; never before that of an earlier entry (see [`crate::Machine::clamp`]).
    pub time: Millis,
}

/// What a command that found nothing waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WaitKey {
    /// A record in this partition.
    Stream(PartitionRef),
    /// A ready job in this queue.
    Queue(ResourceId),
    /// Room for more jobs in this queue.
    Room(ResourceId),
    /// The end of this job.
    Job(ResourceId, JobId),
    /// News for a member of this group.
    Group(ResourceId),
}

/// A read of records that are only in segment files. Where it starts exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColdRead {
    /// Where.
    pub at: PartitionRef,
    /// The first record wanted.
    pub from: Offset,
    /// At most so many records.
    pub records_max: u32,
    /// Stop before more packed bytes than this; the first record always comes.
    pub bytes_max: u32,
    /// For the reply: the first record there is.
    pub earliest: Offset,
    /// For the reply: the offset of the next record to come.
    pub high_watermark: Offset,
}

/// What becomes of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The facts become true as one entry; the reply may be shown once the entry is durable.
    Change {
        /// At least one.
        facts: Batch<Fact>,
        /// What the client gets.
        reply: Reply,
    },
    /// Nothing changes.
    Answer {
        /// What the client gets.
        reply: Reply,
        /// All that the reply shows became true in this entry or before.
        seen: Lsn,
    },
    /// Nothing is there yet and the command may wait: decide again when the key is woken, or at `wait_until`.
    /// Before the command is put away it goes through [`crate::Machine::pin`].
    Wait(WaitKey),
    /// What these jobs of a queue are about is only in the index: decide again once [`crate::Machine::warm`] has it.
    Warm(ResourceId, Vec<JobId>),
    /// What was is in the index: ask [`crate::Machine::past`] once that is read.
    Past(PastRead),
    /// These values of a store are only in the index: decide again once [`crate::Machine::warm_item`] has them.
    WarmStore(ColdKeys),
    /// The records are in segment files.
    Fetch(ColdRead),
    /// Segment files know which record is meant.
    Find(ColdFind),
}

/// Keys of a store with values that are only in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColdKeys {
    /// The store.
    pub store: ResourceId,
    /// Each once, in order.
    pub keys: Vec<Bytes>,
}

/// A look for a record that is only in segment files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColdFind {
    /// Where.
    pub at: PartitionRef,
    /// The first record that it can be; it exists.
    pub from: Offset,
    /// Wanted is the first record from there on that was appended at this time or later. If segment files have none, it
    /// is the first one they do not have, and the command is to be decided on again from there.
    pub since: Millis,
}

/// What a newer snapshot of the catalog changes for a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogNews {
    /// At most these resources were created, updated or deleted; none if the snapshot is not newer.
    Of(Vec<ResourceId>),
    /// The one before is too old to tell.
    OfAny,
}

/// What is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tick {
    /// To be logged and applied now. What is not stays due.
    pub facts: Vec<Fact>,
    /// When to tick again, `now` if there is more at once, `None` if nothing is due ever.
    pub next: Option<Millis>,
}

/// Which records of a partition's segment a checkpoint must bring into segment files: `from..upto`, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushRange {
    /// Where.
    pub at: PartitionRef,
    /// The first record that segment files have not.
    pub from: Offset,
    /// The offset behind the last one.
    pub upto: Offset,
    /// Whether they begin a file: what lies before them may be gone, and goes separately.
    pub new_file: bool,
}

/// Counts for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineStats {
    /// Partitions of streams with at least one record ever.
    pub partitions: u64,
    /// Bytes of packed records in memory.
    pub tail_bytes: u64,
    /// Packed bytes of closed segments of streams with compaction that were not compacted yet.
    pub dirty_bytes: u64,
    /// Idempotent producers that are remembered, each partition's counted.
    pub producers: u64,
    /// Queues with at least one job ever.
    pub queues: u64,
    /// Jobs to be had.
    pub jobs_ready: u64,
    /// Jobs that wait for their time.
    pub jobs_delayed: u64,
    /// Jobs that wait for others.
    pub jobs_blocked: u64,
    /// Jobs with a worker.
    pub jobs_leased: u64,
    /// Dead jobs.
    pub jobs_dead: u64,
    /// Jobs that are done and kept.
    pub jobs_done: u64,
    /// Schedules of queues.
    pub schedules: u64,
    /// Those of them whose time has come and that find no room in their queue.
    pub schedules_held_back: u64,
    /// Key-value stores with at least one key ever.
    pub stores: u64,
    /// Keys.
    pub keys: u64,
    /// Records of what stores keep of their past.
    pub history_records: u64,
    /// Their bytes.
    pub history_bytes: u64,
    /// Those of them whose values are only in the index.
    pub keys_cold: u64,
    /// What these values are together.
    pub cold_bytes: u64,
    /// Consumer groups with a member or an offset ever.
    pub groups: u64,
    /// Members of consumer groups.
    pub members: u64,
    /// Replay sessions, by the place of their state in [`flowmesh_model::replay::ReplayState::ALL`].
    pub replays: [u64; 6],
    /// Workers, by the place of their state in [`flowmesh_model::worker::WorkerState::ALL`].
    pub workers: [u64; 4],
    /// Records that these have gone past.
    pub replay_records: u64,
    /// What the machine keeps in memory, as [`crate::Machine::memory_bytes`].
    pub memory_bytes: u64,
}
