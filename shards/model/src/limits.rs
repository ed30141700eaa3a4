//! Every limit, with its reason. A breach is answered with [`crate::Reject::TooLarge`] or
//! [`crate::Reject::InvalidArgument`] that names the limit.

/// Letters of a tenant, namespace or resource name. 255 is what file systems and FlashQ clients accept.
pub const NAME_BYTES_MAX: usize = 255;

/// A record's or entry's key. Keys are compared, hashed and kept in memory: 1 KiB as in FlowMesh's older API.
pub const KEY_BYTES_MAX: usize = 1024;

/// A record's value, a job's payload, an entry's value. What is larger belongs in an object store.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// What a key of a store holds as bytes. A record, a job, a field or a value of a list has at most [`VALUE_BYTES_MAX`]: those
/// lie together in batches and pages.
pub const KV_VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A value of a store above this goes into the log in pieces of this size, one with each commit: so long the commits of
/// others wait for one of it, some tenths of a millisecond.
pub const LOG_PIECE_BYTES: usize = 256 * 1024;

/// Values above [`LOG_PIECE_BYTES`] that one call sets, together: what its message has at most.
pub const KV_LARGE_BYTES_MAX: usize = KV_MESSAGE_BYTES_MAX;

/// Large values of calls that wait for their turn to go into the log of a shard. At least one always may.
pub const KV_LARGE_WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How often a call is decided on anew whose large values are others than those that went into the log.
pub const KV_LARGE_TRIES_MAX: u32 = 4;

/// A field of a hash, a member of a set. They are compared and stand in order: larger ones belong into values.
pub const MEMBER_BYTES_MAX: usize = 64 * 1024;

/// Members, fields or values of collections that one operation looks at or copies: bounds the time a core spends, to some
/// ten milliseconds. Operations that go to a place find it without looking.
pub const KV_LOOKED_MAX: u64 = 100_000;

/// How long a store may keep what was: a year, as a time to live.
pub const HISTORY_MS_MAX: u64 = DELAY_MS_MAX;
/// The shortest history: shorter than this a reader who looks at a clock comes too late.
pub const HISTORY_MS_MIN: u64 = 1_000;
/// A history goes in so many parts, each as a whole: so it is kept for up to one part longer than asked for.
pub const HISTORY_PARTS: u64 = 8;
/// Records of a history that one read looks at: bounds the time a core spends. A page of a scan ends there; what a single key
/// needs more of is refused.
pub const HISTORY_LOOKED_MAX: usize = 100_000;
/// Bytes of records that one read of a history keeps in memory. See [`HISTORY_LOOKED_MAX`].
pub const HISTORY_LOOKED_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Versions of a key, or keys of a difference, that one reply has at most.
pub const HISTORY_PAGE_MAX: usize = 1_000;
/// Names that a key may have had between a time and now: each is another look.
pub const HISTORY_NAMES_MAX: usize = 64;
/// Items of a collection that one key of a difference names; beyond them it says that there are more.
pub const DIFF_ITEMS_MAX: usize = 1_000;
/// The limits of a store in bytes, at least: below this a few large entries would be all of it.
pub const KV_BYTES_MAX_MIN: u64 = 1024 * 1024;
/// A petabyte.
pub const KV_BYTES_MAX_MAX: u64 = 1 << 50;
/// The limit of a store in entries, at most: a million million.
pub const KV_ENTRIES_MAX_MAX: u64 = 1 << 40;
/// Facts of one entry of the log that let entries of a store go.
pub const EVICTIONS_PER_ENTRY: usize = 512;
/// Values and pages of a store that one call brings into memory at once because only the index has them: some calls at the same
/// time must not take the memory that all the others share.
pub const KV_FETCHED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// One header's name.
pub const HEADER_NAME_BYTES_MAX: usize = 255;

/// One header's value.
pub const HEADER_VALUE_BYTES_MAX: usize = 1024;

/// Headers of one record or job.
pub const HEADERS_MAX: usize = 64;

/// Items (records, jobs, entries, keys, leases) in one call: bounds the time a core spends on one command.
pub const BATCH_ITEMS_MAX: usize = 10_000;

/// The facts of one command, encoded: an entry must fit one commit buffer.
pub const ENTRY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A gRPC request message, decompressed. Above the largest batch of facts it could become.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The request of a call that sets values of a store, decompressed: one value and, beside it, what other messages have.
pub const KV_MESSAGE_BYTES_MAX: usize = KV_VALUE_BYTES_MAX + MESSAGE_BYTES_MAX;

/// Bytes of records or values one reply carries; the rest is for the next call.
pub const REPLY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a reply may have beside one value of a store that is larger than [`VALUE_BYTES_MAX`].
pub const REPLY_BESIDE_LARGE_BYTES_MAX: usize = 1024 * 1024;

/// Packed records of a compressed batch once they are decoded: with what is around them they still make one message.
pub const COMPRESSED_PLAIN_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 4096;

/// Packed bytes below which the server compresses no batch: a frame's own bytes would eat what is saved.
pub const COMPRESS_FROM_BYTES: usize = 512;

/// Partitions of one stream.
pub const PARTITIONS_MAX: u32 = 1024;
/// Partitions of a store's feed at least, where its settings do not say: so many consumers can share them.
pub const FEED_PARTITIONS: u32 = 4;
/// Bytes of records of a feed that are appended together: a batch is read and sent as a whole.
pub const FEED_BATCH_BYTES: usize = 512 * 1024;
/// Keys of one part of a snapshot, and the bytes after which it ends: about as much work as a large read.
pub const SNAPSHOT_KEYS_MAX: usize = 1_000;
/// See [`SNAPSHOT_KEYS_MAX`].
pub const SNAPSHOT_BYTES: usize = 512 * 1024;
/// How often a list that is too large for one part of a snapshot, and changes while it is read, is begun anew.
pub const SNAPSHOT_AGAIN_MAX: u32 = 16;
/// Items of a collection that one record of a feed, or one message of a watch, has at most, and their bytes.
pub const FEED_ITEMS_MAX: usize = 1_000;
/// A value of bytes that a record of a feed, or a message of a watch, has. Of a larger one it says how many bytes it has.
pub const FEED_VALUE_BYTES_MAX: usize = VALUE_BYTES_MAX;
/// See [`FEED_ITEMS_MAX`].
pub const FEED_ITEMS_BYTES_MAX: usize = 256 * 1024;

/// Idempotent producers that one partition remembers; beyond it forgets the one that appended least recently. Each takes
/// up to about 1.5 KiB of memory.
pub const PARTITION_PRODUCERS_MAX: usize = 1000;

/// Batches of a producer that a partition remembers: a retry among them is answered as the first time. More than a
/// client has in flight: Kafka's allow 5.
pub const PRODUCER_BATCHES_MAX: usize = 32;

/// Names of idempotent producers that one stream remembers; beyond it forgets the one that was initialised least recently.
pub const PRODUCER_NAMES_MAX: usize = 10_000;

/// How long a partition remembers an idle producer unless the stream says otherwise: a week, as Kafka's transactional ids.
pub const PRODUCER_RETENTION_MS: u64 = 7 * 24 * 3600 * 1000;

/// The shortest time: a retry must still find its producer.
pub const PRODUCER_RETENTION_MS_MIN: u64 = 1_000;

/// A producer's sequence number: what signed clients can count to.
pub const SEQUENCE_MAX: u64 = i64::MAX as u64;

/// Resources of one server: each costs memory on every core.
pub const RESOURCES_MAX: usize = 100_000;

/// A delay, a time to live: a year, as in FlowMesh's older API.
pub const DELAY_MS_MAX: u64 = 366 * 24 * 3600 * 1000;

/// A visibility timeout: 12 hours, as in SQS.
pub const VISIBILITY_MS_MAX: u64 = 12 * 3600 * 1000;

/// A visibility timeout: shorter than this a worker cannot answer in time.
pub const VISIBILITY_MS_MIN: u64 = 100;

/// How long a call may wait for something to arrive.
pub const WAIT_MS_MAX: u64 = 60_000;

/// Delivery attempts of a job.
pub const ATTEMPTS_MAX: u32 = 10_000;

/// A group, or the key by which a job is recognised: as SQS's message groups and deduplication ids, and then some.
pub const JOB_KEY_BYTES_MAX: usize = 255;

/// Jobs that one job waits for.
pub const JOB_AFTER_MAX: usize = 1_000;

/// Attempts that are kept with a job: the last ones.
pub const ATTEMPTS_KEPT_MAX: usize = 20;

/// What comes of a job, kept with it and given to the jobs that wait for it. What is larger belongs elsewhere.
pub const RESULT_BYTES_MAX: usize = 64 * 1024;

/// What came of the jobs that one job waited for, in all; results beyond are left out, for the job is handed out with them.
pub const AWAITED_BYTES_MAX: usize = 1024 * 1024;

/// How long a result is kept unless the queue says otherwise: an hour.
pub const RESULT_RETENTION_MS: u64 = 3_600 * 1000;

/// Leases a second, of a queue or group: beyond it there is no limit.
pub const RATE_PER_SECOND_MAX: u64 = 1_000_000;

/// Jobs that a list, a redrive or a purge looks at before it answers with what it has: bounds the time a core spends.
pub const JOBS_LOOKED_MAX: usize = 10_000;

/// A worker's error text or name, kept with the job.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Partitions, and as many queues and stores, that have metrics of their own, over all shards; each has some 35 lines of them. Those
/// of all others are added up. Every shard has at least one.
pub const METRIC_RESOURCES_MAX: usize = 200;

/// Shards of one server. Each has a full set of channels to all others.
pub const SHARDS_MAX: u16 = 256;

/// Conditions of one filter: each costs time for every record that is looked at.
pub const FILTER_CONDITIONS_MAX: usize = 16;

/// Packed bytes that one filtered read looks at, some 0.1 s of a core, before it answers with what it has.
pub const FILTER_LOOKED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Records that a filtered subscription passes over before it says how far it is.
pub const FILTER_PROGRESS_RECORDS: u64 = 100_000;

/// A filtered subscription that passed over records says how far it is at least this often.
pub const FILTER_PROGRESS_MS: u64 = 1_000;

/// A JSON path in a filter, as text.
pub const JSON_PATH_BYTES_MAX: usize = 1024;

/// Steps of a JSON path: bounds how deep the search in a value goes.
pub const JSON_PATH_SEGMENTS_MAX: usize = 32;

/// The JSON scalar that a filter compares with, as text.
pub const JSON_SCALAR_BYTES_MAX: usize = 1024;

/// A segment of a stream: a file of about this size is deleted in one go.
pub const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// The smallest segment: each is a file and some 40 bytes of memory.
pub const SEGMENT_BYTES_MIN: u64 = 64 * 1024;

/// The largest segment: one file.
pub const SEGMENT_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// A week, as in Kafka: retention by age is exact to a segment.
pub const SEGMENT_MS: u64 = 7 * 24 * 3600 * 1000;

/// A stream with a segment a minute has half a million a year.
pub const SEGMENT_MS_MIN: u64 = 60 * 1000;

/// Retention by age: a second costs a segment a second at most.
pub const RETENTION_MS_MIN: u64 = 1_000;

/// Retention by age: a hundred years; without a setting records stay for ever.
pub const RETENTION_MS_MAX: u64 = 100 * 366 * 24 * 3600 * 1000;

/// Retention by bytes, of one partition: an exbibyte, beyond any disk.
pub const RETENTION_BYTES_MAX: u64 = 1 << 60;

/// How long a record without a value stays as the last one of its key: a day, as in Kafka. A reader that started at the
/// beginning has so long to come to it.
pub const TOMBSTONE_RETENTION_MS: u64 = 24 * 3600 * 1000;

/// The share of bytes that were not compacted yet at which a partition is: a half, as in Kafka, so that what is rewritten
/// is at most twice what came.
pub const MIN_DIRTY_PERCENT: u32 = 50;

/// Members of one consumer group: a change of one assigns anew for all.
pub const GROUP_MEMBERS_MAX: usize = 1_000;

/// Streams that one member of a consumer group subscribes to.
pub const GROUP_STREAMS_MAX: usize = 100;

/// Partitions that a consumer group knows, shared by members or with a committed offset: assigning them takes a few
/// milliseconds. Partitions that are added to a stream later come on top.
pub const GROUP_PARTITIONS_MAX: usize = 10_000;

/// What a consumer keeps with a committed offset.
pub const OFFSET_METADATA_BYTES_MAX: usize = 1024;

/// What the consumers of one group keep with all its offsets: they must fit one reply.
pub const GROUP_METADATA_BYTES_MAX: usize = 1024 * 1024;

/// A member's session: shorter than this it is over whenever the network holds its breath.
pub const SESSION_MS_MIN: u64 = 1_000;

/// A member's session: as long a dead member keeps its partitions. Half an hour, as in Kafka.
pub const SESSION_MS_MAX: u64 = 30 * 60 * 1000;

/// The longest time between heartbeats: a member learns of changes no later.
pub const HEARTBEAT_MS_MAX: u64 = 5_000;

/// The speed of a replay session, in thousandths of real time: a million times as fast, beyond which there is "as fast as
/// possible".
pub const REPLAY_SPEED_MAX: u64 = 1_000_000_000;

/// What a replay session says went wrong.
pub const REPLAY_ERROR_BYTES_MAX: usize = 1024;

/// Records of one step of a replay session: for people.
pub const REPLAY_STEP_RECORDS_MAX: u32 = 1_000;

/// What a step looks at, with a filter, before it answers with what it has found.
pub const REPLAY_STEP_LOOKED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Jobs of one queue that are on their way to other queues or streams: each takes some 250 bytes of memory. More wait for
/// room where they are.
pub const OUTBOX_JOBS_MAX: usize = 10_000;

/// Jobs that are sent to another queue or a stream at once: one entry of its log.
pub const TRANSFER_JOBS_MAX: usize = 1_000;

/// Bytes of headers and payloads of them; the first one always goes.
pub const TRANSFER_BYTES_MAX: usize = 1024 * 1024;

/// Queues in a row of which each sends its dead letters to the next: looking for circles walks over them.
pub const DEAD_LETTER_CHAIN_MAX: usize = 16;

/// Schedules of one queue: each takes some 300 bytes of memory besides its job.
pub const SCHEDULES_MAX: usize = 10_000;

/// A cron expression, as text.
pub const CRON_BYTES_MAX: usize = 256;

/// How far ahead a cron expression's next time is looked for: one that never comes is refused after half a millisecond.
/// Days that are the rarest, a leap day that is a given weekday, are up to 40 years apart.
pub const CRON_YEARS_MAX: i64 = 50;

/// How far ahead a schedule's single time, or its end, may lie: as far as cron expressions are looked ahead.
pub const SCHEDULE_AHEAD_MS_MAX: u64 = CRON_YEARS_MAX as u64 * 366 * 24 * 3600 * 1000;

/// The payload of a schedule's job: all firings that were missed may come at once.
pub const SCHEDULE_PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// A firing that is noticed later than this was missed: no restart takes so long.
pub const SCHEDULE_MISSED_AFTER_MS: u64 = 60_000;

/// Missed firings that fire after all, with the policy `all`: the last ones; a thousand jobs come in a burst.
pub const SCHEDULE_CATCH_UP_MAX: usize = 1_000;

/// When a firing that finds its queue full is tried again.
pub const SCHEDULE_RETRY_MS: u64 = 1_000;

/// Times that are counted of those that are left out at once: each takes a microsecond.
pub const SCHEDULE_SKIPPED_COUNTED_MAX: u64 = 1_000;

/// Schedules that one list has, with their jobs, in bytes: a client takes messages of 4 MiB.
pub const SCHEDULE_LIST_BYTES_MAX: usize = 1024 * 1024;

/// Times to come that one call tells.
pub const SCHEDULE_NEXT_MAX: u32 = 1_000;

/// How long a schedule is kept that has no time left: a week.
pub const SCHEDULE_FINISHED_KEPT_MS: u64 = 7 * 24 * 3600 * 1000;

/// Workers that one shard shows; beyond it the one that is gone for longest is forgotten. Each takes about 1 KiB of memory.
pub const WORKERS_MAX: usize = 20_000;

/// Queues that one worker works on: a look at it asks each of them.
pub const WORKER_QUEUES_MAX: usize = 100;

/// Jobs that one worker runs at a time.
pub const WORKER_CONCURRENCY_MAX: u64 = 100_000;

/// Labels of a worker.
pub const WORKER_LABELS_MAX: usize = 32;

/// Names and values of a worker's labels.
pub const WORKER_LABELS_BYTES_MAX: usize = 4096;

/// A worker's session unless it says otherwise: as long it may be silent.
pub const WORKER_SESSION_MS: u64 = 30_000;

/// The longest time between a worker's heartbeats: it learns no later that it is to stop.
pub const WORKER_SLOWEST_HEARTBEAT_MS: u64 = 5_000;

/// How long a worker is shown that is dead or has left, unless it says otherwise: a day.
pub const WORKER_RETENTION_MS: u64 = 24 * 3600 * 1000;

/// The same, at most: a month.
pub const WORKER_RETENTION_MS_MAX: u64 = 31 * 24 * 3600 * 1000;

/// Names of workers whose jobs one queue counts; beyond it those are forgotten that have no job and were idle for longest.
/// Each takes some 200 bytes of memory.
pub const QUEUE_WORKERS_MAX: usize = 1_000;

/// Of its jobs that a look at a worker shows, of each queue.
pub const WORKER_JOBS_SHOWN_MAX: u32 = 1_000;

/// What tracing systems say to each other, in a job's trace context: what the standard wants kept.
pub const TRACE_STATE_BYTES_MAX: usize = 512;

/// Members of it: what the standard allows.
pub const TRACE_STATE_MEMBERS_MAX: usize = 32;
