//! The commit log: the truth of a shard.
//!
//! In the order of a write: [`writer`] ([`Log`]: entries are encoded into aligned buffers, synchronously) →
//! [`batch`] ([`Batch`]: what gathered, written as an owned job; [`SyncJob`]: made durable) → [`segment`] (files
//! prepared ahead, trimmed, recycled). [`format`] has every byte on disk. [`recovery`] has the truth table by which
//! an opened log is accepted, cut or refused; [`reader`] reads for it. [`truncate`] and [`range`] are for replication.
//!
//! No method of [`Log`] is async, so that it can live in a `RefCell`: jobs are taken out, run, and their outcome is
//! handed back.
//!
//! ```text
//!   append* ─► take_batch ─► Batch::write ─► written ─► sync_job ─► SyncJob::run ─► durable
//!   wants_segment ─► SegmentRequest::prepare ─► segment_prepared
//!   trim ─► TrimWork::run ─► trimmed
//! ```
//!
//! After a failed write or sync the log must not be used further: what is on disk is unknown (the engine fences).

pub mod batch;
pub mod buffer;
pub mod config;
pub mod error;
pub mod format;
pub mod range;
mod reader;
pub mod recovery;
pub mod segment;
mod truncate;
pub mod writer;

pub use batch::{Batch, SyncJob, Synced, Written};
pub use buffer::Body;
pub use config::LogConfig;
pub use error::{Damage, LogError, LogFull};
pub use range::RangeRead;
pub use recovery::{Cut, Entry, Recovered, recover, recover_with};
pub use segment::{PrepareFailed, Prepared, SegmentRequest, TrimWork, Trimmed};
pub use writer::Log;
