//! What a shard is told at start.

use std::path::PathBuf;
use std::sync::Arc;

use flowmesh_model::{Durability, ShardId};

/// Settings of one shard. Sizes are this shard's share, already divided by the number of shards.
#[derive(Clone)]
pub struct ShardConfig {
    /// Which shard this is. Shard 0 owns the catalog.
    pub shard: ShardId,
    /// How many there are, with the slots dealt out to them in turn; 0: dealt out otherwise.
    pub shards: u16,
    /// How many there are, however slots are dealt out: so many share what a store may have.
    pub shares: u16,
    /// Its directory, with `log/`, `index/` and `streams/` in it.
    pub dir: PathBuf,
    /// When writes are acknowledged, where a resource does not say otherwise.
    pub durability: Durability,
    /// Under `interval`: the longest time between two syncs.
    pub sync_interval_ms: u64,
    /// Memory for state and buffers. Writes that grow it are refused beyond.
    pub memory_bytes: u64,
    /// Of it, how much the newest records of streams may take once they are in segment files.
    pub tail_bytes: u64,
    /// Of it, how much headers and payloads of jobs may take once they are in the index.
    pub body_bytes: u64,
    /// The size of a log segment.
    pub log_segment_bytes: u64,
    /// Log to keep at most; writes wait beyond, until a checkpoint has trimmed it.
    pub log_bytes_max: u64,
    /// A checkpoint starts after so much log.
    pub checkpoint_log_bytes: u64,
    /// And at the latest after so much time, if anything changed.
    pub checkpoint_interval_ms: u64,
    /// How much compaction reads and writes in a second.
    pub compaction_bytes_per_second: u64,
    /// Memory that compaction remembers keys in, while it runs.
    pub compaction_memory_bytes: usize,
    /// So many partitions, and as many queues, have metrics of their own.
    pub metric_resources_max: usize,
    /// A number of this directory's own, so that clients cannot choose keys that collide.
    pub hash_seed: u64,
    /// Runs first on the storage thread: lets it leave the CPU of the core that started it.
    pub on_thread_start: Option<Arc<dyn Fn() + Send + Sync>>,
}
