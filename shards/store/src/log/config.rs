//! Settings of one shard's log.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use flowmesh_model::ShardId;
use flowmesh_model::limits::ENTRY_BYTES_MAX;

use super::format::{BATCH_HEADER_BYTES, ENTRY_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use crate::disk::ALIGN;

/// A segment of a server must hold the largest entry with room to spare.
pub const SEGMENT_BYTES_MIN_SERVER: u64 = 16 * 1024 * 1024;

/// No segment is smaller, in tests either.
pub const SEGMENT_BYTES_MIN: u64 = 1024 * 1024;

/// Settings of one shard's log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Where the segments are: `log` in the shard's directory.
    pub dir: PathBuf,
    /// Whose log it is; part of every segment's header.
    pub shard: ShardId,
    /// Size of new segments, a multiple of 4 KiB. Servers use at least [`SEGMENT_BYTES_MIN_SERVER`].
    pub segment_bytes: u64,
    /// Size of the buffers that entries gather in, and so of the largest write of small entries.
    pub buffer_bytes: usize,
    /// Memory that gathering and in-flight buffers may take together; beyond it [`super::LogFull::Buffers`].
    pub buffered_bytes_max: usize,
    /// Buffers kept for reuse over a trim of the log; in between, as many as may be in use.
    pub buffers_kept: usize,
    /// Trimmed segments kept for reuse.
    pub spares_max: usize,
    /// Segments prepared ahead of need, at least 1.
    pub segments_ahead: usize,
    /// Makes salts that no client can guess (see [`super::format`]). Fixed only in tests.
    pub seed: u64,
}

impl LogConfig {
    /// The defaults for a shard with this directory.
    pub fn new(shard_dir: &Path, shard: ShardId) -> Self {
        Self {
            dir: shard_dir.join("log"),
            shard,
            segment_bytes: 64 * 1024 * 1024,
            buffer_bytes: 1024 * 1024,
            buffered_bytes_max: 16 * 1024 * 1024,
            buffers_kept: 3,
            spares_max: 2,
            segments_ahead: 1,
            seed: RandomState::new().hash_one(shard),
        }
    }

    /// The largest body that an entry can have.
    pub fn body_bytes_max(&self) -> usize {
        let room = usize::try_from(self.segment_bytes)
            .unwrap_or(usize::MAX)
            .saturating_sub(SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES + ENTRY_HEADER_BYTES);
        room.min(ENTRY_BYTES_MAX)
    }

    /// What is wrong with the settings, if anything: the setting's name and what is allowed.
    pub fn problem(&self) -> Option<(&'static str, &'static str)> {
        let aligned = |bytes: u64| bytes.is_multiple_of(ALIGN as u64);
        if self.segment_bytes < SEGMENT_BYTES_MIN || !aligned(self.segment_bytes) {
            return Some(("segment_bytes", "a multiple of 4096, at least 1 MiB"));
        }
        if self.segment_bytes > u64::from(u32::MAX) {
            return Some(("segment_bytes", "below 4 GiB"));
        }
        if self.buffer_bytes < ALIGN || !aligned(self.buffer_bytes as u64) {
            return Some(("buffer_bytes", "a multiple of 4096"));
        }
        if self.buffered_bytes_max < 2 * self.buffer_bytes {
            return Some(("buffered_bytes_max", "at least twice buffer_bytes"));
        }
        if self.segments_ahead == 0 {
            return Some(("segments_ahead", "at least 1"));
        }
        None
    }
}
