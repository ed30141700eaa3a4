//! Jobs on the way to the disk: write what gathered, make it durable. They own all they need.

use std::path::PathBuf;
use std::rc::Rc;

use flowmesh_model::{Lsn, Mutation, ShardId};
use futures::future::join_all;

use super::buffer::Sealed;
use super::error::LogError;
use crate::disk::{Disk, DiskFile};

/// A file that was written to, with what an error needs to name it.
pub(super) struct Dirty<F> {
    pub seq: u64,
    pub file: Rc<F>,
}

impl<F> Clone for Dirty<F> {
    fn clone(&self) -> Self {
        Self { seq: self.seq, file: Rc::clone(&self.file) }
    }
}

/// What an error message needs.
#[derive(Clone)]
pub(super) struct Whose {
    pub shard: ShardId,
    pub dir: Rc<PathBuf>,
}

impl Whose {
    pub fn io(&self, action: &'static str, seq: u64, source: std::io::Error) -> LogError {
        let file = self.dir.join(super::segment::log_name(seq));
        LogError::Io { shard: self.shard, action, file, source }
    }
}

/// Everything that gathered since the last batch was taken: one or more writes.
#[must_use = "entries are lost unless the batch is written"]
pub struct Batch<D: Disk> {
    pub(super) ticket: u64,
    pub(super) writes: Vec<Sealed<D>>,
    pub(super) last: Lsn,
    pub(super) whose: Whose,
}

impl<D: Disk> Batch<D> {
    /// The last entry in it.
    pub fn last_lsn(&self) -> Lsn {
        self.last
    }

    /// How many entries it has.
    pub fn entries(&self) -> u64 {
        self.writes.iter().map(|write| u64::from(write.header.entries)).sum()
    }

    /// How many bytes will be written.
    pub fn bytes(&self) -> u64 {
        self.writes.iter().map(|write| write.bytes as u64).sum()
    }

    /// Writes it so that it is durable at once. Hand the outcome to [`super::Log::written_durably`]. To be used only if
    /// everything before it is durable, else what it says of itself would not be true of the log.
    ///
    /// # Errors
    /// [`LogError::Io`]. What reached the disk is unknown then, and the log must not be used any more.
    pub async fn write_durably(self) -> Result<Written<D>, LogError> {
        let mut bufs = Vec::with_capacity(self.writes.len());
        for Sealed { target, buf, bytes, .. } in self.writes {
            let written = if Mutation::SkipSync.is_made() {
                target.file.write_at(buf, bytes, target.position).await
            } else {
                target.file.write_durable_at(buf, bytes, target.position).await
            };
            bufs.push(written.map_err(|error| self.whose.io("write to", target.seq, error))?);
        }
        Ok(Written { ticket: self.ticket, bufs, files: Vec::new() })
    }

    /// Writes it. Hand the outcome to [`super::Log::written`].
    ///
    /// # Errors
    /// [`LogError::Io`]. What reached the disk is unknown then, and the log must not be used any more.
    pub async fn write(self) -> Result<Written<D>, LogError> {
        let mut files: Vec<Dirty<D::File>> = Vec::with_capacity(1);
        for Sealed { target, .. } in &self.writes {
            if files.last().is_none_or(|last| last.seq != target.seq) {
                files.push(Dirty { seq: target.seq, file: Rc::clone(&target.file) });
            }
        }
        // All at once, and all waited for: one that is left behind could still land later.
        let writes = self.writes.into_iter().map(|Sealed { target, buf, bytes, .. }| async move {
            (target.seq, target.file.write_at(buf, bytes, target.position).await)
        });
        let mut bufs = Vec::with_capacity(files.len());
        for (seq, written) in join_all(writes).await {
            bufs.push(written.map_err(|error| self.whose.io("write to", seq, error))?);
        }
        Ok(Written { ticket: self.ticket, bufs, files })
    }
}

/// A batch that was written and is not known to be durable.
#[must_use = "hand it to Log::written"]
pub struct Written<D: Disk> {
    pub(super) ticket: u64,
    pub(super) bufs: Vec<D::Buf>,
    pub(super) files: Vec<Dirty<D::File>>,
}

/// Makes durable what was written when the job was taken.
#[must_use = "nothing is durable unless the job is run"]
pub struct SyncJob<D: Disk> {
    pub(super) files: Vec<Dirty<D::File>>,
    pub(super) upto: Lsn,
    pub(super) whose: Whose,
}

impl<D: Disk> SyncJob<D> {
    /// Syncs. Hand the outcome to [`super::Log::durable`].
    ///
    /// # Errors
    /// [`LogError::Io`]. It must not be tried again: the kernel has dropped what it could not write.
    pub async fn run(self) -> Result<Synced, LogError> {
        for dirty in self.files.into_iter().filter(|_| !Mutation::SkipSync.is_made()) {
            dirty.file.sync().await.map_err(|error| self.whose.io("sync", dirty.seq, error))?;
        }
        Ok(Synced { upto: self.upto })
    }
}

/// A sync that succeeded.
#[derive(Debug)]
#[must_use = "hand it to Log::durable"]
pub struct Synced {
    pub(super) upto: Lsn,
}
