//! Every limit, with its reason. A breach is answered with [`crate::Reject::TooLarge`] or
//! [`crate::Reject::InvalidArgument`] that names the limit.

/// Letters of a tenant, namespace or resource name. 255 is what file systems and FlashQ clients accept.
pub const NAME_BYTES_MAX: usize = 255;

/// A record's or entry's key. Keys are compared, hashed and kept in memory: 1 KiB as in FlowMesh's older API.
pub const KEY_BYTES_MAX: usize = 1024;

/// A record's value, a job's payload, an entry's value. What is larger belongs in an object store.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;

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

/// Bytes of records or values one reply carries; the rest is for the next call.
pub const REPLY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Partitions of one stream.
pub const PARTITIONS_MAX: u32 = 1024;

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

/// A worker's error text or name, kept with the job.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Shards of one server. Each has a full set of channels to all others.
pub const SHARDS_MAX: u16 = 256;
