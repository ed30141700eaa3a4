//! What can be wrong with a log: each error names the shard, the file and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use flowmesh_model::{Lsn, ShardId};
use thiserror::Error;

/// Why an entry was not taken. Nothing was changed; all but the last pass with time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LogFull {
    /// The disk is slower than the clients: `buffered_bytes_max` is reached.
    #[error("the log's buffers are full")]
    Buffers,
    /// The next segment is still being prepared.
    #[error("the log's next segment is not ready yet")]
    NoSegment,
    /// The next segment could not be prepared: there is no space on the disk.
    #[error("there is no space on the disk for the log's next segment")]
    DiskFull,
    /// The entry is larger than any batch; a bug, the machine checks before.
    #[error("an entry of {bytes} bytes; a log entry has at most {max}")]
    EntryTooLarge {
        /// Its size at most.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
}

/// What exactly does not hold at a place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The 4 KiB at the start of a segment.
    SegmentHeader,
    /// The file's length is not what its header says.
    SegmentLength,
    /// There is no batch where one must be.
    NoBatch,
    /// A batch header's checksum.
    BatchHeader,
    /// A batch reaches beyond its segment, or is cut off.
    BatchLength,
    /// The batch does not follow the one before it.
    LsnGap,
    /// The batch is of an earlier run than the one before it.
    StaleRun,
    /// An entry's checksum.
    EntryChecksum,
    /// An entry's length or number.
    EntryShape,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SegmentHeader => "the segment's header does not match its checksum",
            Self::SegmentLength => "the file's length is not what its header says",
            Self::NoBatch => "there is no batch",
            Self::BatchHeader => "a batch header does not match its checksum",
            Self::BatchLength => "a batch is cut off",
            Self::LsnGap => "a batch does not follow the one before it",
            Self::StaleRun => "a batch of an earlier run follows one of a later run",
            Self::EntryChecksum => "an entry does not match its checksum",
            Self::EntryShape => "an entry has an impossible length or number",
        })
    }
}

/// A log that cannot be opened, read or written.
#[derive(Debug, Error)]
pub enum LogError {
    /// The operating system said no.
    #[error("shard {shard}: cannot {action} {}: {source}", .file.display())]
    Io {
        /// Whose log.
        shard: ShardId,
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What was durable is damaged.
    #[error(
        "shard {shard}: the log is damaged in {} at byte {offset} (LSN {lsn}): {what}. It was durable, so it is not cut \
         off. Restore this shard's directory from a backup or a replica; check the disk",
        .file.display()
    )]
    Damaged {
        /// Whose log.
        shard: ShardId,
        /// Which file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// The first entry that cannot be read.
        lsn: Lsn,
        /// What does not hold.
        what: Damage,
    },
    /// A segment between two others is not there.
    #[error(
        "shard {shard}: the log segment before {} (number {missing}) is missing. Put the file back, or restore this \
         shard's directory from a backup",
        .file.display()
    )]
    SegmentMissing {
        /// Whose log.
        shard: ShardId,
        /// The segment after the gap.
        file: PathBuf,
        /// The number of the one that should be before it.
        missing: u64,
    },
    /// A segment whose header has another number than its name: a copy, or renamed by hand.
    #[error(
        "shard {shard}: {} says inside that it is segment {inside}: it was copied or renamed. Move it out of the log \
         directory, or give it its name back",
        .file.display()
    )]
    SegmentMisnamed {
        /// Whose log.
        shard: ShardId,
        /// The file.
        file: PathBuf,
        /// The number in its header.
        inside: u64,
    },
    /// A segment of another shard.
    #[error("shard {shard}: {} belongs to shard {found}. Put each shard's files back into its own directory", .file.display())]
    WrongShard {
        /// Whose log is being opened.
        shard: ShardId,
        /// The file.
        file: PathBuf,
        /// Whose it is.
        found: ShardId,
    },
    /// Written by a newer server.
    #[error(
        "shard {shard}: {} has format version {version}, this server knows up to {known}. Start the newer server again",
        .file.display()
    )]
    NewerFormat {
        /// Whose log.
        shard: ShardId,
        /// The file.
        file: PathBuf,
        /// Its version.
        version: u32,
        /// The newest known one.
        known: u32,
    },
    /// The log does not reach back to what the index needs.
    #[error(
        "shard {shard}: the index needs the log from LSN {needed} on, but {} starts at {first}. Index and log are not \
         of the same time: restore both from one backup",
        .dir.display()
    )]
    StartsLate {
        /// Whose log.
        shard: ShardId,
        /// The log's directory.
        dir: PathBuf,
        /// The first LSN needed.
        needed: Lsn,
        /// The first LSN there is.
        first: Lsn,
    },
    /// The index holds more than the log does.
    #[error(
        "shard {shard}: the index holds everything up to LSN {applied}, but {} ends before {next}. A part of the log was \
         lost: restore this shard's directory from a backup",
        .dir.display()
    )]
    EndsEarly {
        /// Whose log.
        shard: ShardId,
        /// The log's directory.
        dir: PathBuf,
        /// What the index holds.
        applied: Lsn,
        /// The LSN the log would continue with.
        next: Lsn,
    },
    /// An entry passed its checksum but cannot be understood.
    #[error(
        "shard {shard}: the entry with LSN {lsn} in {} cannot be read: {reason}. Start the server version that wrote it",
        .file.display()
    )]
    Undecodable {
        /// Whose log.
        shard: ShardId,
        /// The file.
        file: PathBuf,
        /// The entry.
        lsn: Lsn,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A range that the log does not, or no longer, hold.
    #[error("shard {shard}: the log does not hold LSN {from} to {to}")]
    OutOfRange {
        /// Whose log.
        shard: ShardId,
        /// The first entry asked for.
        from: Lsn,
        /// The last entry asked for.
        to: Lsn,
    },
    /// A setting of the log is wrong; a bug, the configuration is checked before.
    #[error("log setting {setting}: allowed is {allowed}")]
    Config {
        /// Which one.
        setting: &'static str,
        /// What it may be.
        allowed: &'static str,
    },
}

impl LogError {
    /// Whether there was no space on the disk.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}
