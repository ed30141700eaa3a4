//! What a shard counts about itself: plain numbers, written by its core alone, copied out when someone asks.

pub mod resources;
mod spans;
pub mod stores;

use flowmesh_machine::MachineStats;
pub use flowmesh_machine::Spread;
use flowmesh_model::kv::past::PastAsk;
use flowmesh_model::{
    Command, GroupCommand, KvCommand, QueueCommand, ReplayCommand, StreamCommand, TransferCommand,
};

pub use resources::{GroupRows, OffsetRows, PartitionRows, QueueRows};
pub use spans::Spans;
pub use stores::StoreRows;

/// Operations that are counted and timed, each with its batch forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Records appended.
    StreamAppend,
    /// Records read.
    StreamRead,
    /// Records of streams deleted.
    StreamTrim,
    /// Producers initialised, and older epochs of them fenced.
    StreamInitProducer,
    /// Jobs enqueued.
    QueueEnqueue,
    /// Jobs reserved.
    QueueReserve,
    /// Jobs acknowledged.
    QueueAck,
    /// Jobs given back.
    QueueNack,
    /// Leases extended.
    QueueExtend,
    /// Cancel, change, redrive, purge jobs.
    QueueManage,
    /// Look at jobs.
    QueueLook,
    /// Keys set.
    KvSet,
    /// Keys read.
    KvGet,
    /// Keys deleted.
    KvDelete,
    /// Keys looked for.
    KvExists,
    /// Keys scanned.
    KvScan,
    /// Operations on what keys hold.
    KvRun,
    /// Heartbeats of group members, and members that left or were removed.
    GroupMember,
    /// Offsets committed or forgotten.
    GroupCommit,
    /// Committed offsets read.
    GroupFetch,
    /// States asked for.
    Status,
    /// Catalog changes.
    Catalog,
    /// Replay sessions started, paused, moved, ended.
    Replay,
    /// On a queue's schedules.
    Schedule,
    /// On workers.
    Worker,
    /// Jobs sent to other queues and streams, and received.
    Transfer,
}

impl Operation {
    /// All operations, in the order of their counters.
    pub const ALL: [Self; 26] = [
        Self::StreamAppend,
        Self::StreamRead,
        Self::StreamTrim,
        Self::StreamInitProducer,
        Self::QueueEnqueue,
        Self::QueueReserve,
        Self::QueueAck,
        Self::QueueNack,
        Self::QueueExtend,
        Self::QueueManage,
        Self::QueueLook,
        Self::KvSet,
        Self::KvGet,
        Self::KvDelete,
        Self::KvExists,
        Self::KvScan,
        Self::KvRun,
        Self::GroupMember,
        Self::GroupCommit,
        Self::GroupFetch,
        Self::Status,
        Self::Catalog,
        Self::Replay,
        Self::Schedule,
        Self::Worker,
        Self::Transfer,
    ];

    /// The operation's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StreamAppend => "stream_append",
            Self::StreamRead => "stream_read",
            Self::StreamTrim => "stream_trim",
            Self::StreamInitProducer => "stream_init_producer",
            Self::QueueEnqueue => "queue_enqueue",
            Self::QueueReserve => "queue_reserve",
            Self::QueueAck => "queue_ack",
            Self::QueueNack => "queue_nack",
            Self::QueueExtend => "queue_extend",
            Self::QueueManage => "queue_manage",
            Self::QueueLook => "queue_look",
            Self::KvSet => "kv_set",
            Self::KvGet => "kv_get",
            Self::KvDelete => "kv_delete",
            Self::KvExists => "kv_exists",
            Self::KvScan => "kv_scan",
            Self::KvRun => "kv_run",
            Self::GroupMember => "group_member",
            Self::GroupCommit => "group_commit",
            Self::GroupFetch => "group_fetch",
            Self::Status => "status",
            Self::Catalog => "catalog",
            Self::Replay => "replay",
            Self::Schedule => "schedule",
            Self::Worker => "worker",
            Self::Transfer => "transfer",
        }
    }

    /// What a command counts as, and how many items it has.
    pub fn of(command: &Command) -> (Self, u64) {
        match command {
            Command::Stream(_, StreamCommand::Append { records, .. }) => {
                (Self::StreamAppend, u64::from(records.count()))
            }
            Command::Stream(_, StreamCommand::InitProducer { .. } | StreamCommand::FenceProducer { .. }) => {
                (Self::StreamInitProducer, 1)
            }
            Command::Stream(_, StreamCommand::Read { .. }) => (Self::StreamRead, 0),
            Command::Stream(_, StreamCommand::Trim { .. }) => (Self::StreamTrim, 1),
            Command::Stream(_, StreamCommand::Status | StreamCommand::FindOffset { .. })
            | Command::Queue(_, QueueCommand::Status | QueueCommand::Pause(_))
            | Command::Kv(_, KvCommand::Status) => (Self::Status, 1),
            Command::Queue(_, QueueCommand::Enqueue { jobs, .. }) => (Self::QueueEnqueue, jobs.len() as u64),
            Command::Queue(_, QueueCommand::Reserve { .. }) => (Self::QueueReserve, 0),
            Command::Queue(_, QueueCommand::Ack { acks }) => (Self::QueueAck, acks.len() as u64),
            Command::Queue(_, QueueCommand::Nack { nacks }) => (Self::QueueNack, nacks.len() as u64),
            Command::Queue(_, QueueCommand::Extend { leases, .. }) => {
                (Self::QueueExtend, leases.len() as u64)
            }
            Command::Queue(_, QueueCommand::Schedule(_)) => (Self::Schedule, 1),
            Command::Queue(_, QueueCommand::Transfer(command)) => Self::of_transfer(command),
            Command::Stream(_, StreamCommand::Receive(arrival)) => {
                (Self::Transfer, arrival.jobs.len() as u64)
            }
            Command::Queue(_, QueueCommand::Progress { .. }) => (Self::QueueExtend, 1),
            Command::Queue(_, QueueCommand::Cancel { jobs }) => (Self::QueueManage, jobs.len() as u64),
            Command::Queue(_, QueueCommand::Change { .. }) => (Self::QueueManage, 1),
            Command::Queue(_, QueueCommand::Redrive { .. } | QueueCommand::Purge { .. }) => {
                (Self::QueueManage, 0)
            }
            Command::Queue(_, QueueCommand::Get { .. } | QueueCommand::Worker { .. }) => (Self::QueueLook, 1),
            Command::Queue(_, QueueCommand::Peek { .. } | QueueCommand::List { .. }) => (Self::QueueLook, 0),
            Command::Kv(_, KvCommand::Set { entries }) => (Self::KvSet, entries.len() as u64),
            Command::Kv(_, KvCommand::Get { keys }) => (Self::KvGet, keys.len() as u64),
            Command::Kv(_, KvCommand::Delete { keys, .. }) => (Self::KvDelete, keys.len() as u64),
            Command::Kv(_, KvCommand::Exists { keys }) => (Self::KvExists, keys.len() as u64),
            Command::Kv(_, KvCommand::Scan(_) | KvCommand::Random { .. } | KvCommand::Snapshot { .. }) => {
                (Self::KvScan, 0)
            }
            Command::Kv(_, KvCommand::Past(ask)) => match ask {
                PastAsk::Get { keys, .. } => (Self::KvGet, keys.len() as u64),
                PastAsk::Run { ops, .. } => (Self::KvRun, ops.len() as u64),
                PastAsk::Scan { .. } | PastAsk::Versions { .. } | PastAsk::Diff { .. } => (Self::KvScan, 0),
            },
            Command::Kv(_, KvCommand::Run { ops, .. }) => (Self::KvRun, ops.len() as u64),
            Command::Kv(_, KvCommand::Clear { .. }) => (Self::KvDelete, 0),
            Command::Group(_, command) => Self::of_group(command),
            Command::Catalog(_) => (Self::Catalog, 1),
            Command::Worker(_) => (Self::Worker, 1),
            Command::Replay(_, command) => Self::of_replay(command),
        }
    }
}

impl Operation {
    fn of_transfer(command: &TransferCommand) -> (Self, u64) {
        match command {
            TransferCommand::Move { .. } | TransferCommand::Replay { .. } => (Self::QueueManage, 0),
            TransferCommand::Outbox => (Self::Status, 1),
            TransferCommand::Receive(arrival) => (Self::Transfer, arrival.jobs.len() as u64),
            TransferCommand::Next { .. } | TransferCommand::Sent { .. } | TransferCommand::Failed { .. } => {
                (Self::Transfer, 0)
            }
        }
    }

    fn of_replay(command: &ReplayCommand) -> (Self, u64) {
        match command {
            ReplayCommand::Member(command) => Self::of_group(command),
            ReplayCommand::Commit { offsets, .. } => (Self::GroupCommit, offsets.len() as u64),
            ReplayCommand::Status { .. } => (Self::Status, 1),
            _ => (Self::Replay, 1),
        }
    }

    fn of_group(command: &GroupCommand) -> (Self, u64) {
        match command {
            GroupCommand::Heartbeat(_) | GroupCommand::Leave { .. } | GroupCommand::Remove { .. } => {
                (Self::GroupMember, 1)
            }
            GroupCommand::Commit { offsets, .. } => (Self::GroupCommit, offsets.len() as u64),
            GroupCommand::ForgetOffsets { of } => (Self::GroupCommit, of.len() as u64),
            GroupCommand::FetchOffsets { .. } => (Self::GroupFetch, 1),
            GroupCommand::Status | GroupCommand::Describe => (Self::Status, 1),
        }
    }
}

/// Buckets of a [`Histogram`]: four a power of two, over all of `u64`.
const BUCKETS: usize = 64 * SUB;
const SUB: usize = 4;

/// A log-linear histogram: four buckets a power of two, so a quantile is at most 25 % off. Recording is two shifts
/// and an add.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), count: 0, sum: 0 }
    }
}

impl Histogram {
    /// Counts a value.
    #[inline]
    pub fn record(&mut self, value: u64) {
        if let Some(bucket) = self.buckets.get_mut(Self::bucket_of(value)) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum = self.sum.wrapping_add(value);
    }

    #[inline]
    fn bucket_of(value: u64) -> usize {
        if value < SUB as u64 {
            return value as usize;
        }
        let power = 63 - value.leading_zeros() as usize;
        (power - 1) * SUB + ((value >> (power - 2)) & 3) as usize
    }

    /// The largest value of a bucket.
    fn bucket_max(bucket: usize) -> u64 {
        if bucket < SUB {
            return bucket as u64;
        }
        let (power, sub) = (bucket / SUB + 1, (bucket % SUB) as u128);
        let next = ((4 + sub + 1) << (power - 2)) - 1;
        u64::try_from(next).unwrap_or(u64::MAX)
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// How many values are at most `bound`, exact where `bound` is a bucket's largest value, else a little low.
    pub fn at_most(&self, bound: u64) -> u64 {
        (0..BUCKETS).take_while(|&b| Self::bucket_max(b) <= bound).filter_map(|b| self.buckets.get(b)).sum()
    }

    /// The value that so many percent of all values do not exceed; 0 if there are none.
    pub fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return Self::bucket_max(bucket);
            }
        }
        0
    }
}

/// One operation's counters.
#[derive(Clone, Debug, Default)]
pub struct OperationStats {
    /// Commands, rejected ones included.
    pub commands: u64,
    /// Items in them: records, jobs, keys.
    pub items: u64,
    /// Commands that were rejected.
    pub rejected: u64,
    /// Nanoseconds from arrival on the shard to the release of the reply; long polls include their wait.
    pub latency_ns: Histogram,
}

/// What compactions have done, whether they came to their end or not.
#[derive(Clone, Debug, Default)]
pub struct CompactionCounters {
    /// Nanoseconds of those that went through.
    pub duration_ns: Histogram,
    /// Those that failed.
    pub failures: u64,
    /// Records that were looked at to be rewritten.
    pub records_in: u64,
    /// Records of them that were left.
    pub records_out: u64,
    /// Their packed bytes.
    pub bytes_in: u64,
    /// Packed bytes that were left.
    pub bytes_out: u64,
    /// Bytes read from and written to the disk.
    pub disk_bytes: u64,
}

/// A shard's counters since its start, and a few of its sizes now.
#[derive(Clone, Debug, Default)]
pub struct ShardStats {
    /// By [`Operation`], in the order of [`Operation::ALL`].
    pub operations: [OperationStats; Operation::ALL.len()],
    /// Log entries a commit carried.
    pub commit_entries: Histogram,
    /// Bytes a commit wrote.
    pub commit_bytes: Histogram,
    /// Nanoseconds of a commit: write and sync.
    pub commit_ns: Histogram,
    /// Nanoseconds of a checkpoint.
    pub checkpoint_ns: Histogram,
    /// Checkpoints that failed.
    pub checkpoint_failures: u64,
    /// Commands that waited for what jobs are about, which memory had no longer.
    pub body_waits: u64,
    /// Commands that waited for values of stores, which memory had no longer.
    pub value_waits: u64,
    /// Values of stores read from the index.
    pub values_read: u64,
    /// Nanoseconds that reading the values for one command took.
    pub value_read_ns: Histogram,
    /// Looks ahead for what jobs are about that are not through.
    pub body_looks: u64,
    /// What compactions have done.
    pub compaction: CompactionCounters,
    /// Facts applied by recovery.
    pub recovered_facts: u64,
    /// Nanoseconds recovery took.
    pub recovery_ns: u64,
    /// How much of it was reading the log.
    pub replay_ns: u64,
    /// The last LSN given.
    pub last_lsn: u64,
    /// The last LSN on disk.
    pub synced_lsn: u64,
    /// The LSN of the last checkpoint.
    pub checkpoint_lsn: u64,
    /// Bytes of log that a restart would read.
    pub log_bytes: u64,
    /// Estimated bytes of state in memory.
    pub memory_bytes: u64,
    /// Replies that wait for the disk.
    pub parked_replies: u64,
    /// Writes that wait for room in the log.
    pub stalled_writes: u64,
    /// Commands that wait for something to arrive.
    pub waiting_commands: u64,
    /// 1 if the shard is fenced.
    pub fenced: u64,
    /// Counts of what the shard holds.
    pub state: MachineStats,
    /// Numbers of single partitions; filled in only when someone asks.
    pub partitions: PartitionRows,
    /// Numbers of single queues; filled in only when someone asks.
    pub queues: QueueRows,
    /// Numbers of groups in single partitions; filled in only when someone asks.
    pub offsets: OffsetRows,
    /// Groups, as far as they have numbers of their own.
    pub groups: GroupRows,
    /// What the shard has of single stores; filled in only when someone asks.
    pub stores: StoreRows,
    /// How late jobs of schedules were enqueued; filled in only when someone asks.
    pub schedule_lateness: Spread,
}

impl ShardStats {
    /// The counters of one operation.
    pub fn operation_mut(&mut self, operation: Operation) -> &mut OperationStats {
        #[expect(clippy::indexing_slicing, reason = "one element for each operation")]
        &mut self.operations[operation as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_lies_in_its_bucket(value: u64) {
            let bucket = Histogram::bucket_of(value);
            prop_assert!(bucket < BUCKETS);
            prop_assert!(value <= Histogram::bucket_max(bucket));
            prop_assert!(bucket == 0 || value > Histogram::bucket_max(bucket - 1));
        }
    }

    #[test]
    fn percentiles_are_at_most_a_quarter_off() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|value| histogram.record(value));
        assert!((500..=640).contains(&histogram.percentile(50)));
        assert!((990..=1279).contains(&histogram.percentile(99)));
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.at_most(u64::MAX), 1000);
    }
}
