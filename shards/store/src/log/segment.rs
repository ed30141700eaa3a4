//! Segment files: names, preparing the next one, trimming and recycling.
//!
//! | name | what it is |
//! |---|---|
//! | `<seq>.log` | a segment; its header is durable |
//! | `<seq>.spare` | a trimmed segment, kept to be prepared again under a new number |
//! | `<seq>.new` | being prepared; left over after a crash and removed at the next opening |
//! | `<seq>.cut` | the same, of a suffix truncation |

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::batch::Whose;
use super::error::LogError;
use super::format::SegmentHeader;
use crate::disk::{ALIGN, Disk, DiskFile};

/// What a file in the log's directory is by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Log,
    Spare,
    Unfinished,
}

pub(super) fn log_name(seq: u64) -> String {
    format!("{seq:020}.log")
}

pub(super) fn spare_name(seq: u64) -> String {
    format!("{seq:020}.spare")
}

pub(super) fn new_name(seq: u64) -> String {
    format!("{seq:020}.new")
}

pub(super) fn cut_name(seq: u64) -> String {
    format!("{seq:020}.cut")
}

/// What the name says; `None` for a file that is not the log's.
pub(super) fn parse_name(name: &Path) -> Option<(u64, FileKind)> {
    let (number, extension) = name.to_str()?.split_once('.')?;
    if number.len() != 20 || !number.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let kind = match extension {
        "log" => FileKind::Log,
        "spare" => FileKind::Spare,
        "new" | "cut" => FileKind::Unfinished,
        _ => return None,
    };
    Some((number.parse().ok()?, kind))
}

/// A segment that can be written to.
pub(super) struct OpenSegment<F> {
    pub header: SegmentHeader,
    pub file: Rc<F>,
}

/// A segment to prepare. Take it with [`super::Log::wants_segment`].
#[must_use = "hand the outcome to Log::segment_prepared"]
pub struct SegmentRequest<D: Disk> {
    pub(super) disk: D,
    pub(super) whose: Whose,
    pub(super) header: SegmentHeader,
    /// The number of the spare to recycle.
    pub(super) spare: Option<u64>,
}

impl<D: Disk> SegmentRequest<D> {
    /// Makes the segment, under its name and durable: recycles a spare, or writes a new file full of zeros.
    ///
    /// # Errors
    /// [`PrepareFailed`]; hand it over too, so that the log asks again.
    pub async fn prepare(self) -> Result<Prepared<D>, PrepareFailed> {
        let made = match self.spare {
            Some(spare) => self.recycle(spare).await,
            None => self.create().await,
        };
        match made {
            Ok(file) => {
                let segment = OpenSegment { header: self.header, file: Rc::new(file) };
                Ok(Prepared { segment })
            }
            Err(source) => {
                // Whatever is left over is cleaned up at the next opening; space is wanted back now.
                let leftover = self.whose.dir.join(new_name(self.header.seq));
                drop(self.disk.remove(&leftover).await);
                Err(PrepareFailed { error: self.whose.io("prepare", self.header.seq, source) })
            }
        }
    }

    async fn create(&self) -> io::Result<D::File> {
        let path = self.whose.dir.join(new_name(self.header.seq));
        let created = match self.disk.create_zeroed(&path, self.header.bytes).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Left over from a failed attempt under the same number.
                self.disk.remove(&path).await?;
                self.disk.create_zeroed(&path, self.header.bytes).await
            }
            created => created,
        };
        self.finish(created?, &path).await
    }

    async fn recycle(&self, spare: u64) -> io::Result<D::File> {
        let path = self.whose.dir.join(spare_name(spare));
        let file = self.disk.open(&path).await?;
        if file.size().await? != self.header.bytes {
            // From before the setting was changed.
            drop(file);
            self.disk.remove(&path).await?;
            return self.create().await;
        }
        self.finish(file, &path).await
    }

    /// Header first, then the name: a named segment always has a durable header.
    async fn finish(&self, file: D::File, path: &Path) -> io::Result<D::File> {
        let mut page = self.disk.alloc(ALIGN);
        page.as_mut().fill(0);
        self.header.encode(page.as_mut());
        file.write_at(page, ALIGN, 0).await?;
        file.sync().await?;
        self.disk.rename(path, &self.whose.dir.join(log_name(self.header.seq))).await?;
        self.disk.sync_dir(&self.whose.dir).await?;
        Ok(file)
    }
}

/// A segment that is ready to be written to.
pub struct Prepared<D: Disk> {
    pub(super) segment: OpenSegment<D::File>,
}

/// No segment could be prepared, most often because the disk is full.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct PrepareFailed {
    /// Why.
    pub error: LogError,
}

/// Segments that are no longer needed. Take it with [`super::Log::trim`].
#[must_use = "hand the outcome to Log::trimmed"]
pub struct TrimWork<D: Disk> {
    pub(super) disk: D,
    pub(super) whose: Whose,
    /// Becomes spares.
    pub(super) keep: Vec<u64>,
    /// Is removed.
    pub(super) remove: Vec<u64>,
}

impl<D: Disk> TrimWork<D> {
    /// Renames or removes the files.
    ///
    /// # Errors
    /// [`LogError::Io`]; harmless: what is left is trimmed after the next opening.
    pub async fn run(self) -> Result<Trimmed, LogError> {
        for &seq in &self.remove {
            let removed = self.disk.remove(&self.whose.dir.join(log_name(seq))).await;
            removed.map_err(|error| self.whose.io("remove", seq, error))?;
        }
        for &seq in &self.keep {
            make_spare(&self.disk, &self.whose, seq).await?;
        }
        let synced = self.disk.sync_dir(&self.whose.dir).await;
        synced.map_err(|error| self.whose.io("sync the directory of", 0, error))?;
        Ok(Trimmed { spares: self.keep })
    }
}

/// Renames a segment to a spare; the directory is not synced yet.
pub(super) async fn make_spare<D: Disk>(disk: &D, whose: &Whose, seq: u64) -> Result<(), LogError> {
    let (from, to) = (whose.dir.join(log_name(seq)), whose.dir.join(spare_name(seq)));
    disk.rename(&from, &to).await.map_err(|error| whose.io("rename", seq, error))
}

/// Takes segments off the end of the log, the last first, each durably before the next: whenever that is interrupted,
/// no segment is missing between two others.
pub(super) async fn drop_suffix<D: Disk>(disk: &D, whose: &Whose, seqs: &[u64]) -> Result<(), LogError> {
    for &seq in seqs.iter().rev() {
        make_spare(disk, whose, seq).await?;
        sync_dir(disk, whose).await?;
    }
    Ok(())
}

pub(super) async fn sync_dir<D: Disk>(disk: &D, whose: &Whose) -> Result<(), LogError> {
    disk.sync_dir(&whose.dir).await.map_err(|source| LogError::Io {
        shard: whose.shard,
        action: "sync",
        file: PathBuf::clone(&whose.dir),
        source,
    })
}

/// Segments that were trimmed.
#[derive(Debug)]
pub struct Trimmed {
    pub(super) spares: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for seq in [1, u64::MAX] {
            assert_eq!(parse_name(Path::new(&log_name(seq))), Some((seq, FileKind::Log)));
            assert_eq!(parse_name(Path::new(&spare_name(seq))), Some((seq, FileKind::Spare)));
            assert_eq!(parse_name(Path::new(&new_name(seq))), Some((seq, FileKind::Unfinished)));
            assert_eq!(parse_name(Path::new(&cut_name(seq))), Some((seq, FileKind::Unfinished)));
        }
        for other in ["1.log", "x", "00000000000000000001.log.bak", "99999999999999999999.log"] {
            assert_eq!(parse_name(Path::new(other)), None, "{other}");
        }
    }
}
