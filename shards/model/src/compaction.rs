//! What compaction is to do, and what it did: the machine says the one, segment files the other.

use crate::ids::{Millis, Offset, PartitionRef};

/// Closed segments of a partition whose records are all in segment files, to be rewritten with the latest record of each
/// key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactionJob {
    /// Whose segments.
    pub at: PartitionRef,
    /// Where each begins and how many packed bytes it has, in order, at least one; each ends where the next one begins.
    pub segments: Vec<(Offset, u64)>,
    /// Where the last one ends.
    pub end: Offset,
    /// Records before are gone.
    pub earliest: Offset,
    /// Of the records before each key has one already.
    pub dirty_from: Offset,
    /// Tombstones before have been the only record of their key for long enough, and go.
    pub tombstones_before: Offset,
    /// Small neighbours are merged to segments of about so many packed bytes.
    pub segment_bytes: u64,
}

/// One closed segment in place of some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactedSegment {
    /// Where it begins.
    pub base: Offset,
    /// Where it ends.
    pub end: Offset,
    /// Packed bytes that are left.
    pub bytes: u64,
    /// When the first and the last record that is left were appended; `None` if there is none.
    pub times: Option<(Millis, Millis)>,
}

/// How far a compaction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleaned {
    /// Of the records before each key has one.
    pub upto: Offset,
    /// The first tombstone among them.
    pub tombstone: Option<Offset>,
}
