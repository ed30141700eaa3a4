//! What can be wrong with segment files: each error names the file and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use flowmesh_model::{Offset, PartitionRef};
use thiserror::Error;

/// What exactly does not hold at a place in a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentDamage {
    /// The file's header.
    FileHeader,
    /// The header of a block, or there is none.
    BlockHeader,
    /// A block is cut off.
    BlockLength,
    /// A run of records does not match its checksum.
    RunChecksum,
    /// Lengths, counts or offsets do not fit each other.
    Shape,
    /// Records between two blocks are missing.
    Gap,
}

impl fmt::Display for SegmentDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FileHeader => "the file's header does not match its checksum",
            Self::BlockHeader => "a block header does not match its checksum",
            Self::BlockLength => "a block is cut off",
            Self::RunChecksum => "records do not match their checksum",
            Self::Shape => "lengths, counts or offsets do not fit each other",
            Self::Gap => "records are missing",
        })
    }
}

/// Segment files that cannot be read or written.
#[derive(Debug, Error)]
pub enum SegmentError {
    /// The operating system said no.
    #[error("stream {at}: cannot {action} {}: {source}", .file.display())]
    Io {
        /// Whose files.
        at: PartitionRef,
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is damaged.
    #[error(
        "stream {at}: {} is damaged at byte {offset}: {what}. Restore the file from a backup or a replica; check the \
         disk",
        .file.display()
    )]
    Damaged {
        /// Whose files.
        at: PartitionRef,
        /// Which file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What does not hold.
        what: SegmentDamage,
    },
    /// Records that must be there are in no file.
    #[error("stream {at}: record {record} should be in a file in {} and is in none. Restore it from a backup", .dir.display())]
    Missing {
        /// Whose files.
        at: PartitionRef,
        /// The directory.
        dir: PathBuf,
        /// The first record that is missing.
        record: Offset,
    },
    /// Written by a newer server.
    #[error("stream {at}: {} has format version {version}, this server knows up to {known}", .file.display())]
    NewerFormat {
        /// Whose files.
        at: PartitionRef,
        /// Which file.
        file: PathBuf,
        /// Its version.
        version: u32,
        /// The newest known one.
        known: u32,
    },
    /// A file of another stream, or under another's name.
    #[error("stream {at}: {} belongs to stream {found}, base offset {base}. Put it back where it was", .file.display())]
    Misplaced {
        /// Whose files.
        at: PartitionRef,
        /// Which file.
        file: PathBuf,
        /// Whose it is.
        found: PartitionRef,
        /// The first offset in it.
        base: Offset,
    },
}

impl SegmentError {
    /// Whether there was no space on the disk.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}
