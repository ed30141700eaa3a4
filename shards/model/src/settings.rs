//! What can be set for a resource. On disk and in the API: JSON with these names; an absent name is the default.

use serde::{Deserialize, Serialize};

use crate::compression::Codec;
use crate::ids::SlotId;
use crate::job::{Backoff, RetryPolicy};
use crate::limits;
use crate::path::{Kind, ResourcePath};
use crate::reject::Reject;
use crate::replay::ReplaySettings;
use crate::transfer::{TARGET_SETTING, target_path};

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Acknowledged means on disk (write + fdatasync), shared by all that gathered meanwhile.
    #[default]
    Always,
    /// Acknowledged means written; synced at least every `sync_interval_ms` of the server.
    Interval,
    /// Acknowledged means written; synced when the kernel likes.
    Never,
    /// No files at all. Only for a whole server.
    Memory,
}

impl Durability {
    /// The word in settings and flags.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Interval => "interval",
            Self::Never => "never",
            Self::Memory => "memory",
        }
    }
}

/// Settings of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamSettings {
    /// Partitions, 1 to [`limits::PARTITIONS_MAX`]; can only become more.
    pub partitions: u32,
    /// How long a partition remembers an idempotent producer that appends nothing; `None`:
    /// [`limits::PRODUCER_RETENTION_MS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producer_retention_ms: Option<u64>,
    /// Segments whose newest record is older are deleted; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<u64>,
    /// The oldest segments of a partition are deleted as long as the others still have so many bytes; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_bytes: Option<u64>,
    /// Packed bytes of records after which a new segment is begun.
    #[serde(skip_serializing_if = "is_default_segment_bytes")]
    pub segment_bytes: u64,
    /// The age of its first record after which a new segment is begun.
    #[serde(skip_serializing_if = "is_default_segment_ms")]
    pub segment_ms: u64,
    /// The server compresses batches that come as they are; `None`: each rests as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Codec>,
    /// Whether of each key only the latest record is kept, in closed segments. With retention both happen.
    #[serde(skip_serializing_if = "is_false")]
    pub compaction: bool,
    /// How long a key's last record stays that has no value, once all before it are gone; `None`:
    /// [`limits::TOMBSTONE_RETENTION_MS`]. Only with compaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tombstone_retention_ms: Option<u64>,
    /// Segments whose newest record is younger are not compacted; `None`: 0. Only with compaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_compaction_lag_ms: Option<u64>,
    /// The share of bytes that were not compacted yet at which a partition is; `None`: [`limits::MIN_DIRTY_PERCENT`].
    /// Only with compaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_dirty_percent: Option<u32>,
    /// The full path of the store whose changes it has: it is created and deleted with that one, which alone appends to it,
    /// and its partition `p` is in slot `p`. Fixed at creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feed_of: Option<String>,
    /// Overrides the server's durability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            partitions: 1,
            producer_retention_ms: None,
            retention_ms: None,
            retention_bytes: None,
            segment_bytes: limits::SEGMENT_BYTES,
            segment_ms: limits::SEGMENT_MS,
            compression: None,
            compaction: false,
            tombstone_retention_ms: None,
            min_compaction_lag_ms: None,
            min_dirty_percent: None,
            feed_of: None,
            durability: None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_default_segment_bytes(bytes: &u64) -> bool {
    *bytes == limits::SEGMENT_BYTES
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_default_segment_ms(ms: &u64) -> bool {
    *ms == limits::SEGMENT_MS
}

impl StreamSettings {
    fn validate_segments(&self) -> Result<(), Reject> {
        if let Some(ms) = self.retention_ms {
            within("retention_ms", ms, limits::RETENTION_MS_MIN, limits::RETENTION_MS_MAX)?;
        }
        if let Some(bytes) = self.retention_bytes {
            within("retention_bytes", bytes, 1, limits::RETENTION_BYTES_MAX)?;
        }
        within("segment_bytes", self.segment_bytes, limits::SEGMENT_BYTES_MIN, limits::SEGMENT_BYTES_MAX)?;
        within("segment_ms", self.segment_ms, limits::SEGMENT_MS_MIN, limits::RETENTION_MS_MAX)
    }

    fn validate_compaction(&self) -> Result<(), Reject> {
        if self.compaction && self.feed_of.is_some() {
            let reason = "is not for the feed of a store: each change of a key counts, not only the last";
            return Err(Reject::invalid("compaction", reason));
        }
        let percent = self.min_dirty_percent.map(u64::from);
        let of_compaction = [
            ("tombstone_retention_ms", self.tombstone_retention_ms, limits::RETENTION_MS_MAX),
            ("min_compaction_lag_ms", self.min_compaction_lag_ms, limits::RETENTION_MS_MAX),
            ("min_dirty_percent", percent, 100),
        ];
        for (name, value, max) in of_compaction {
            let Some(value) = value else { continue };
            if !self.compaction {
                return Err(Reject::invalid(name, "is only for streams with compaction; set compaction too"));
            }
            within(name, value, 1, max)?;
        }
        Ok(())
    }

    /// The age of its first record after which a new segment is begun: no record outlives its time by more than the
    /// retention itself.
    #[must_use]
    pub fn segment_age_ms(&self) -> u64 {
        self.segment_ms.min(self.retention_ms.unwrap_or(u64::MAX))
    }
}

impl StreamSettings {
    /// How long a key's last record stays that has no value, once all before it are gone.
    #[must_use]
    pub fn tombstone_retention_ms(&self) -> u64 {
        self.tombstone_retention_ms.unwrap_or(limits::TOMBSTONE_RETENTION_MS)
    }

    /// The share of bytes that were not compacted yet at which a partition is.
    #[must_use]
    pub fn min_dirty_percent(&self) -> u32 {
        self.min_dirty_percent.unwrap_or(limits::MIN_DIRTY_PERCENT)
    }

    /// How long a partition remembers an idle producer.
    #[must_use]
    pub fn producer_retention_ms(&self) -> u64 {
        self.producer_retention_ms.unwrap_or(limits::PRODUCER_RETENTION_MS)
    }
}

/// What happens to a job that is enqueued when its queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// It is refused.
    #[default]
    Refuse,
    /// The call waits for room, as long as it says.
    Wait,
    /// The oldest waiting job is dropped.
    DropOldest,
    /// The waiting job of the lowest priority is dropped, the newest of several; if none has a lower one than the new job,
    /// that one is refused.
    DropLowestPriority,
}

impl WhenFull {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Refuse, Self::Wait, Self::DropOldest, Self::DropLowestPriority];

    /// The word in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Wait => "wait",
            Self::DropOldest => "drop_oldest",
            Self::DropLowestPriority => "drop_lowest_priority",
        }
    }
}

/// So many a second, and so many at once after a pause: a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// How many a second.
    pub per_second: u32,
    /// How many at once; absent: as many as a second has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

impl Rate {
    /// How many at once.
    #[must_use]
    pub fn burst(&self) -> u32 {
        self.burst.unwrap_or(self.per_second)
    }

    fn validate(&self, name: &'static str) -> Result<(), Reject> {
        within(name, u64::from(self.per_second), 1, limits::RATE_PER_SECOND_MAX)?;
        within(name, u64::from(self.burst()), 1, limits::RATE_PER_SECOND_MAX)
    }
}

/// Settings of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueSettings {
    /// How long a lease lasts when the call does not say.
    pub visibility_timeout_ms: u64,
    /// Deliveries before a job is dead; a job may set its own.
    pub max_attempts: u32,
    /// How the wait between attempts grows; a job may have its own retries.
    #[serde(skip_serializing_if = "is_default")]
    pub backoff: Backoff,
    /// The wait before the second attempt.
    pub backoff_initial_ms: u64,
    /// The longest wait between attempts.
    pub backoff_max_ms: u64,
    /// By so much, in percent, a wait may be shorter.
    #[serde(skip_serializing_if = "is_default")]
    pub backoff_jitter_percent: u8,
    /// A job whose lease ran out without an answer so many times, whatever happened in between, is set aside: dead,
    /// quarantined. `None`: never for that alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine_after: Option<u32>,
    /// For each so many milliseconds that a job is ready it counts as one priority higher. `None`: priorities are
    /// strict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_aging_ms: Option<u64>,
    /// Jobs of a group that are leased at the same time; with 1 they are worked on strictly in order.
    #[serde(skip_serializing_if = "is_one")]
    pub group_concurrency: u32,
    /// Jobs that are leased at the same time. `None`: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Leases a second. `None`: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Leases a second of each group. `None`: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_rate: Option<Rate>,
    /// Jobs that may wait. `None`: as many as the disk holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs_max: Option<u64>,
    /// Bytes of headers and payloads of jobs that may wait. `None`: as many as the disk holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
    /// What happens beyond those.
    #[serde(skip_serializing_if = "is_default")]
    pub when_full: WhenFull,
    /// How long dead jobs are kept. `None`: until they are purged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_retention_ms: Option<u64>,
    /// How long jobs are kept that are done. `None`: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_retention_ms: Option<u64>,
    /// How long jobs are kept that are done with a result, if that is longer.
    #[serde(skip_serializing_if = "is_default_result_retention")]
    pub result_retention_ms: u64,
    /// The full path of the queue or stream that gets a copy of each dead letter. `None`: none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letters_to: Option<String>,
    /// Jobs come to it by replays, and leave it for no other queue or stream. Fixed at creation.
    #[serde(skip_serializing_if = "is_false")]
    pub sandbox: bool,
    /// Overrides the server's durability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            visibility_timeout_ms: 30_000,
            max_attempts: 3,
            backoff: Backoff::default(),
            backoff_initial_ms: 1_000,
            backoff_max_ms: 60_000,
            backoff_jitter_percent: 0,
            quarantine_after: None,
            priority_aging_ms: None,
            group_concurrency: 1,
            concurrency: None,
            rate: None,
            group_rate: None,
            jobs_max: None,
            bytes_max: None,
            when_full: WhenFull::default(),
            dead_retention_ms: None,
            done_retention_ms: None,
            result_retention_ms: limits::RESULT_RETENTION_MS,
            dead_letters_to: None,
            sandbox: false,
            durability: None,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(value: &u32) -> bool {
    *value == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_default_result_retention(ms: &u64) -> bool {
    *ms == limits::RESULT_RETENTION_MS
}

impl QueueSettings {
    /// When jobs that failed are tried again that do not say it themselves.
    #[must_use]
    pub fn retry(&self) -> RetryPolicy {
        RetryPolicy {
            backoff: self.backoff,
            initial_ms: self.backoff_initial_ms,
            max_ms: self.backoff_max_ms,
            jitter_percent: self.backoff_jitter_percent,
        }
    }

    fn validate(&self) -> Result<(), Reject> {
        within(
            "visibility_timeout_ms",
            self.visibility_timeout_ms,
            limits::VISIBILITY_MS_MIN,
            limits::VISIBILITY_MS_MAX,
        )?;
        within("max_attempts", u64::from(self.max_attempts), 1, u64::from(limits::ATTEMPTS_MAX))?;
        check_retry(&self.retry())?;
        let counts = [
            ("quarantine_after", self.quarantine_after.map(u64::from), u64::from(limits::ATTEMPTS_MAX)),
            ("priority_aging_ms", self.priority_aging_ms, limits::DELAY_MS_MAX),
            ("group_concurrency", Some(u64::from(self.group_concurrency)), u64::from(u32::MAX)),
            ("concurrency", self.concurrency.map(u64::from), u64::from(u32::MAX)),
            ("jobs_max", self.jobs_max, u64::MAX),
            ("bytes_max", self.bytes_max, u64::MAX),
            ("dead_retention_ms", self.dead_retention_ms, limits::RETENTION_MS_MAX),
            ("done_retention_ms", self.done_retention_ms, limits::RETENTION_MS_MAX),
            ("result_retention_ms", Some(self.result_retention_ms), limits::RETENTION_MS_MAX),
        ];
        for (name, value, max) in counts {
            value.map_or(Ok(()), |value| within(name, value, 1, max))?;
        }
        if self.when_full != WhenFull::Refuse && self.jobs_max.is_none() && self.bytes_max.is_none() {
            let reason = "is only for queues with jobs_max or bytes_max; set one of them too";
            return Err(Reject::invalid("when_full", reason));
        }
        self.rate.map_or(Ok(()), |rate| rate.validate("rate"))?;
        self.validate_target()?;
        self.group_rate.map_or(Ok(()), |rate| rate.validate("group_rate"))
    }
}

impl QueueSettings {
    /// Where dead letters go, if they do.
    ///
    /// # Errors
    /// [`Reject::InvalidArgument`] if that is no legal name of a queue or stream.
    pub fn dead_letter_target(&self) -> Result<Option<ResourcePath>, Reject> {
        self.dead_letters_to.as_deref().map(target_path).transpose()
    }

    fn validate_target(&self) -> Result<(), Reject> {
        let Some(target) = self.dead_letter_target()? else { return Ok(()) };
        if self.sandbox {
            return Err(Reject::invalid(
                TARGET_SETTING,
                "is not for a sandbox: what is replayed stays there",
            ));
        }
        if self.dead_letters_to.as_deref() != Some(target.as_str()) {
            return Err(Reject::invalid(TARGET_SETTING, format!("is kept as a full path: {target}")));
        }
        Ok(())
    }
}

/// Refuses retries that are none.
///
/// # Errors
/// [`Reject::InvalidArgument`].
pub fn check_retry(retry: &RetryPolicy) -> Result<(), Reject> {
    within("backoff_max_ms", retry.max_ms, 0, limits::DELAY_MS_MAX)?;
    within("backoff_initial_ms", retry.initial_ms, 0, retry.max_ms)?;
    within("backoff_jitter_percent", u64::from(retry.jitter_percent), 0, 100)
}

/// The feed of a store: a stream that has a record of each change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedSettings {
    /// The full path of its stream. Fixed.
    pub stream: String,
    /// Partitions, a multiple of the number of shards: changes of a key of slot `s` are in partition `s mod partitions`,
    /// which is on the same shard. 0 only until the catalog chooses. Fixed.
    pub partitions: u32,
    /// Whether records also say what was before, from the next change on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub old_values: bool,
    /// The store was there before it, so that its first records may not be the first changes. The catalog says so.
    #[serde(default, skip_serializing_if = "is_false")]
    pub late: bool,
}

impl FeedSettings {
    /// The path of its stream.
    ///
    /// # Errors
    /// [`Reject::InvalidArgument`] if that is no legal name.
    pub fn path(&self) -> Result<ResourcePath, Reject> {
        ResourcePath::parse(Kind::Stream, &self.stream)
    }

    /// As many partitions as a store gets that does not say: at least [`limits::FEED_PARTITIONS`], and as many on each shard.
    #[must_use]
    pub fn partitions_for(shards: u16) -> u32 {
        let shards = u32::from(shards.max(1));
        shards * limits::FEED_PARTITIONS.div_ceil(shards)
    }

    /// The partition that has the changes of keys of a slot.
    #[must_use]
    pub fn partition(&self, slot: SlotId) -> u32 {
        u32::from(slot.0) % self.partitions.max(1)
    }

    fn validate(&self) -> Result<(), Reject> {
        let path = self.path()?;
        if path.as_str() != self.stream {
            return Err(Reject::invalid("feed.stream", format!("is kept as a full path: {path}")));
        }
        within("feed.partitions", self.partitions.into(), 0, limits::PARTITIONS_MAX.into())
    }
}

/// What a store does that has all that it may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvMode {
    /// It drops nothing: what would make it larger is refused.
    #[default]
    Durable,
    /// Entries go, those first that are asked for least.
    Cache,
}

impl KvMode {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Durable, Self::Cache];

    /// The word in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Cache => "cache",
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_durable(mode: &KvMode) -> bool {
    *mode == KvMode::Durable
}

/// Settings of a key-value store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvSettings {
    /// What it does at its limits.
    #[serde(skip_serializing_if = "is_durable")]
    pub mode: KvMode,
    /// What its entries may take in memory, in all; each shard has an equal share. `None`: no limit of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
    /// How many entries it may have, in all; each shard has an equal share. `None`: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries_max: Option<u64>,
    /// Time to live of entries that are set without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_ttl_ms: Option<u64>,
    /// Where its changes can be read, if they can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feed: Option<FeedSettings>,
    /// For how long reads as of the past are possible, at least; not at all if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history_ms: Option<u64>,
    /// Overrides the server's durability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
}

impl KvSettings {
    fn validate_limits(&self) -> Result<(), Reject> {
        if let Some(bytes) = self.bytes_max {
            within("bytes_max", bytes, limits::KV_BYTES_MAX_MIN, limits::KV_BYTES_MAX_MAX)?;
        }
        if let Some(entries) = self.entries_max {
            within("entries_max", entries, 1, limits::KV_ENTRIES_MAX_MAX)?;
        }
        if self.mode == KvMode::Cache && self.bytes_max.is_none() && self.entries_max.is_none() {
            return Err(Reject::invalid("mode", "is cache, which needs bytes_max or entries_max".to_owned()));
        }
        // What was would take the room of what is.
        if self.mode == KvMode::Cache && self.history_ms.is_some() {
            return Err(Reject::invalid("history_ms", "is not for a cache; mode must be durable".to_owned()));
        }
        Ok(())
    }
}

/// How a consumer group deals out partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assignor {
    /// Stream by stream, consecutive partitions to members in order of their ids: the same partitions of several streams
    /// go to the same member.
    Range,
    /// As even as can be; who gets what depends on who is there and on nothing that was before. A change of the members
    /// moves most partitions.
    Uniform,
    /// As even as can be, with as few moves as possible.
    #[default]
    Sticky,
}

impl Assignor {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Range, Self::Uniform, Self::Sticky];

    /// The word in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::Uniform => "uniform",
            Self::Sticky => "sticky",
        }
    }
}

/// Settings of a consumer group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupSettings {
    /// Without a heartbeat for so long a member is out.
    pub session_timeout_ms: u64,
    /// A member that must let go of partitions and has let go of none for so long is out.
    pub rebalance_timeout_ms: u64,
    /// How partitions are dealt out, from the next change of members or streams on.
    pub assignor: Assignor,
    /// Offsets are kept for so long after the group lost its last member, and after they were committed.
    pub offsets_retention_ms: u64,
    /// It belongs to a replay session, with which it is created and deleted, and is for that one's members alone.
    #[serde(skip_serializing_if = "is_false")]
    pub sandbox: bool,
    /// Overrides the server's durability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self {
            session_timeout_ms: 45_000,
            rebalance_timeout_ms: 300_000,
            assignor: Assignor::default(),
            offsets_retention_ms: 7 * 24 * 3600 * 1000,
            sandbox: false,
            durability: None,
        }
    }
}

impl GroupSettings {
    /// When a member is to heartbeat again: nine times in a session, so that a few may get lost.
    #[must_use]
    pub fn heartbeat_interval_ms(&self) -> u64 {
        (self.session_timeout_ms / 9).min(limits::HEARTBEAT_MS_MAX)
    }
}

/// Settings of a resource, by its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Settings {
    /// Of a stream.
    Stream(StreamSettings),
    /// Of a queue.
    Queue(QueueSettings),
    /// Of a key-value store.
    Kv(KvSettings),
    /// Of a consumer group.
    Group(GroupSettings),
    /// Of a replay session.
    Replay(ReplaySettings),
}

impl Settings {
    /// What a resource of that kind gets when nothing is set.
    #[must_use]
    pub fn default_for(kind: Kind) -> Self {
        match kind {
            Kind::Stream => Self::Stream(StreamSettings::default()),
            Kind::Queue => Self::Queue(QueueSettings::default()),
            Kind::Kv => Self::Kv(KvSettings::default()),
            Kind::Group => Self::Group(GroupSettings::default()),
            Kind::Replay => Self::Replay(ReplaySettings::default()),
        }
    }

    /// The kind these settings are for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Stream(_) => Kind::Stream,
            Self::Queue(_) => Kind::Queue,
            Self::Kv(_) => Kind::Kv,
            Self::Group(_) => Kind::Group,
            Self::Replay(_) => Kind::Replay,
        }
    }

    /// The resource's own durability, if it has one.
    #[must_use]
    pub fn durability(&self) -> Option<Durability> {
        match self {
            Self::Stream(s) => s.durability,
            Self::Queue(s) => s.durability,
            Self::Kv(s) => s.durability,
            Self::Group(s) => s.durability,
            Self::Replay(s) => s.durability,
        }
    }

    /// Whether partition `p` is in slot `p`.
    #[must_use]
    pub fn is_feed(&self) -> bool {
        matches!(self, Self::Stream(StreamSettings { feed_of: Some(_), .. }))
    }

    /// Partitions; a queue has one, and so, for placement, has a store (its keys are spread instead).
    #[must_use]
    pub fn partitions(&self) -> u32 {
        match self {
            Self::Stream(s) => s.partitions,
            Self::Queue(_) | Self::Kv(_) | Self::Group(_) | Self::Replay(_) => 1,
        }
    }

    /// Checks every value against its limits.
    ///
    /// # Errors
    /// [`Reject::InvalidArgument`] that names the setting, its value and what is allowed.
    pub fn validate(&self) -> Result<(), Reject> {
        if self.durability() == Some(Durability::Memory) {
            return Err(Reject::invalid(
                "durability",
                "memory is for a whole server; use always, interval or never".to_owned(),
            ));
        }
        match self {
            Self::Stream(s) => {
                if let Some(ms) = s.producer_retention_ms {
                    within(
                        "producer_retention_ms",
                        ms,
                        limits::PRODUCER_RETENTION_MS_MIN,
                        limits::DELAY_MS_MAX,
                    )?;
                }
                within("partitions", u64::from(s.partitions), 1, u64::from(limits::PARTITIONS_MAX))?;
                s.validate_segments()?;
                s.validate_compaction()
            }
            Self::Queue(s) => s.validate(),
            Self::Kv(s) => {
                s.default_ttl_ms
                    .map_or(Ok(()), |ttl| within("default_ttl_ms", ttl, 1, limits::DELAY_MS_MAX))?;
                s.history_ms.map_or(Ok(()), |ms| {
                    within("history_ms", ms, limits::HISTORY_MS_MIN, limits::HISTORY_MS_MAX)
                })?;
                s.validate_limits()?;
                s.feed.as_ref().map_or(Ok(()), FeedSettings::validate)
            }
            Self::Group(s) => {
                let (min, max) = (limits::SESSION_MS_MIN, limits::SESSION_MS_MAX);
                within("session_timeout_ms", s.session_timeout_ms, min, max)?;
                within("rebalance_timeout_ms", s.rebalance_timeout_ms, min, max)?;
                within("offsets_retention_ms", s.offsets_retention_ms, 1_000, limits::DELAY_MS_MAX)
            }
            Self::Replay(s) => s.validate(),
        }
    }
}

/// Refuses a value outside `min..=max`, naming all three.
///
/// # Errors
/// [`Reject::InvalidArgument`].
pub fn within(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), Reject> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(Reject::invalid(field, format!("is {value}; allowed: {min} to {max}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(settings: StreamSettings) -> &'static str {
        match Settings::Stream(settings).validate() {
            Err(Reject::InvalidArgument { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_only_compaction_needs_is_refused_without_it() {
        let plain = StreamSettings::default();
        let compacted = StreamSettings { compaction: true, ..plain.clone() };
        for (name, set) in [
            ("tombstone_retention_ms", (|s| s.tombstone_retention_ms = Some(5)) as fn(&mut StreamSettings)),
            ("min_compaction_lag_ms", |s| s.min_compaction_lag_ms = Some(5)),
            ("min_dirty_percent", |s| s.min_dirty_percent = Some(5)),
        ] {
            let (mut without, mut with) = (plain.clone(), compacted.clone());
            set(&mut without);
            set(&mut with);
            assert_eq!(refused(without), name);
            assert_eq!(Settings::Stream(with).validate(), Ok(()));
        }
        assert_eq!(
            refused(StreamSettings { min_dirty_percent: Some(101), ..compacted }),
            "min_dirty_percent"
        );
    }

    #[test]
    fn a_feed_has_as_many_partitions_on_each_shard_and_at_least_so_many() {
        let partitions = [1, 2, 3, 4, 5, 256].map(FeedSettings::partitions_for);
        assert_eq!(partitions, [4, 4, 6, 4, 5, 256]);
    }

    #[test]
    fn a_feed_is_not_compacted() {
        let feed_of = Some("default/default/kv/s".to_owned());
        assert_eq!(
            refused(StreamSettings { compaction: true, feed_of, ..StreamSettings::default() }),
            "compaction"
        );
    }

    #[test]
    fn a_cache_has_limits_and_limits_have_bounds() {
        let refused = |settings: KvSettings| match Settings::Kv(settings).validate() {
            Err(Reject::InvalidArgument { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let cache = KvSettings { mode: KvMode::Cache, ..KvSettings::default() };
        assert_eq!(refused(cache.clone()), "mode");
        for entries in [0, limits::KV_ENTRIES_MAX_MAX + 1] {
            assert_eq!(refused(KvSettings { entries_max: Some(entries), ..cache.clone() }), "entries_max");
        }
        for bytes in [limits::KV_BYTES_MAX_MIN - 1, limits::KV_BYTES_MAX_MAX + 1] {
            assert_eq!(refused(KvSettings { bytes_max: Some(bytes), ..cache.clone() }), "bytes_max");
        }
        assert_eq!(
            refused(KvSettings { entries_max: Some(1), history_ms: Some(5_000), ..cache.clone() }),
            "history_ms"
        );
        let whole = KvSettings { entries_max: Some(1), bytes_max: Some(limits::KV_BYTES_MAX_MIN), ..cache };
        assert_eq!(Settings::Kv(whole).validate(), Ok(()));
        let json = serde_json::to_string(&Settings::default_for(Kind::Kv)).unwrap();
        assert_eq!(json, r#"{"kind":"kv"}"#, "written as before there were modes");
    }

    #[test]
    fn settings_without_compaction_are_written_as_before_there_was_any() {
        let json = serde_json::to_string(&Settings::default_for(Kind::Stream)).unwrap();
        assert_eq!(json, r#"{"kind":"stream","partitions":1}"#);
    }
}
