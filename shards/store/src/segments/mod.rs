//! Stream segment files: the records of streams, out of memory and out of the commit log.
//!
//! A checkpoint appends what a stream got since the last one, syncs, and commits to the index how far that is. Files
//! that reach further than the index knows are cut when they are next used: the log brings those records again.
//!
//! ```text
//!   streams/<resource>-<partition>/<base offset, 20 digits>.seg
//!   append* ─► sync ─► (the index commits the new ends)          read ◄─ cold reads
//! ```
//!
//! A file begins where a segment of the stream does, so that files go with their segments: once the index knows that all
//! records of a file are gone, it is removed ([`StreamFiles::trim`]).
//!
//! In the background, files of closed segments of compacted streams are rewritten with the latest record of each key, and
//! replaced: [`compact`].
//!
//! [`format`] has every byte, [`names`] every name, [`files`] the shard's partitions ([`StreamFiles`]), [`open`] those of their files that are open, [`append`], [`read`], [`ahead`] and
//! [`find`] (by time) what their names say.

mod ahead;
mod append;
mod compact;
pub mod error;
pub mod files;
mod find;
pub mod format;
mod names;
mod open;
mod read;
mod sorted;

pub use append::FewRecords;
pub use compact::{Compaction, CompactionError, CompactionStats, GivenUp, Pace};
pub use error::{SegmentDamage, SegmentError};
pub use files::{StreamFiles, StreamFilesConfig};
pub use read::FoundRecords;
