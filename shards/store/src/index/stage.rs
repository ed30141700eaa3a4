//! The stage: the changes of a checkpoint that is too large for one batch, in a file beside the database.
//!
//! A file and not a keyspace: fjall 3.1 gives the files of a keyspace that is cleared back only at the next opening, keeps
//! every journal for as long as a cleared keyspace has nothing on disk, and would write each change three times.
//!
//! The file is frames, one behind the other, each what was added at once:
//!
//! | field | size | meaning |
//! |---|---|---|
//! | checkpoint | u64 LE | whose frame it is |
//! | bytes | u32 LE | of the changes |
//! | checksum | u32 LE | CRC32C of checkpoint and changes |
//! | changes | | each: bytes u32 LE of what follows, space u8, 1 = set or 0 = remove u8, key bytes u16 LE, key, value |
//!
//! What lies beyond the length that the checkpoint's marker names, or is not of its number, is left from before.
//!
//! Frames are in the order of keys, and read side by side: all changes come in that order, so that what fjall makes of them
//! are tables that do not overlap, of which it has next to nothing to merge. If a frame is in another order, as those of
//! earlier servers, they are read one after the other.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::BufMut;
use flowmesh_model::{IndexWrite, Space};

const HEADER_BYTES: usize = 16;

/// Bytes that are read of a frame at once.
const PIECE_BYTES: u64 = 64 * 1024;

/// The stage of one index.
pub(super) struct Stage {
    path: PathBuf,
    /// The checkpoint that is being written, if one is.
    writing: Option<Writing>,
}

struct Writing {
    file: File,
    number: u64,
    bytes: u64,
}

/// A checkpoint on the stage, all of it and synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Staged {
    /// Its number.
    pub number: u64,
    /// Length of its frames.
    pub bytes: u64,
}

impl Stage {
    pub fn new(path: PathBuf) -> Self {
        Self { path, writing: None }
    }

    /// Whether a checkpoint is being written.
    pub fn is_used(&self) -> bool {
        self.writing.is_some()
    }

    /// Adds changes to the checkpoint that is being written; begins one with this number if none is.
    pub fn add(&mut self, number: impl FnOnce() -> u64, writes: &[IndexWrite]) -> io::Result<()> {
        let writing = match &mut self.writing {
            Some(writing) => writing,
            None => self.writing.insert(Writing { file: create(&self.path)?, number: number(), bytes: 0 }),
        };
        let mut frame = vec![0; HEADER_BYTES];
        for write in writes {
            put_change(&mut frame, write);
        }
        let (header, changes) = frame.split_at_mut(HEADER_BYTES);
        let mut fields = header;
        fields.put_u64_le(writing.number);
        fields.put_u32_le(changes.len() as u32);
        fields.put_u32_le(checksum(writing.number, changes));
        writing.file.write_all(&frame)?;
        writing.bytes += frame.len() as u64;
        Ok(())
    }

    /// Syncs what was added. It stays until another checkpoint begins or [`Stage::clear`].
    ///
    /// # Errors
    /// Also if nothing was added.
    pub fn finish(&mut self) -> io::Result<Staged> {
        let Writing { file, number, bytes } =
            self.writing.take().ok_or_else(|| io::Error::other("no checkpoint is on the stage"))?;
        file.sync_data()?;
        Ok(Staged { number, bytes })
    }

    /// Hands every change of a finished checkpoint to `sink`, in the order of the keys if all frames have it; those of a key in
    /// the order they came. All frames are checked before any change.
    pub fn read(
        &self,
        staged: Staged,
        mut sink: impl FnMut(StagedChange<'_>) -> fjall::Result<()>,
    ) -> fjall::Result<()> {
        let file = File::open(&self.path)?;
        let (mut frames, in_order) = self.check(staged, &file)?;
        if !in_order {
            for frame in &mut frames {
                while let Some(change) = frame.first(&file)? {
                    sink(change)?;
                    frame.pass();
                }
            }
            return Ok(());
        }
        let mut next = BinaryHeap::with_capacity(frames.len());
        for (number, frame) in frames.iter_mut().enumerate() {
            next.extend(frame.first(&file)?.map(|(space, key, _)| Reverse((space, key.to_vec(), number))));
        }
        while let Some(Reverse((_, mut key, number))) = next.pop() {
            let Some(frame) = frames.get_mut(number) else { continue };
            if let Some(change) = frame.first(&file)? {
                sink(change)?;
            }
            frame.pass();
            if let Some((space, next_key, _)) = frame.first(&file)? {
                key.clear();
                key.extend_from_slice(next_key);
                next.push(Reverse((space, key, number)));
            }
        }
        Ok(())
    }

    /// Checks every byte. Returns the frames, and whether each is in the order of keys.
    fn check(&self, staged: Staged, file: &File) -> fjall::Result<(Vec<Frame>, bool)> {
        let mut reader = BufReader::new(file);
        let (mut left, mut frames, mut in_order) = (staged.bytes, Vec::new(), true);
        while left > 0 {
            let frame =
                read_frame(&mut reader, staged.number, left).map_err(|_| self.damaged(staged, left))?;
            let start = staged.bytes - left + HEADER_BYTES as u64;
            left -= (HEADER_BYTES + frame.len()) as u64;
            let (mut rest, mut before) = (&frame[..], None);
            while !rest.is_empty() {
                let ((space, key, _), after) =
                    split_change(rest).ok_or_else(|| self.damaged(staged, left))?;
                in_order &= before <= Some((space, key));
                (rest, before) = (after, Some((space, key)));
            }
            frames.push(Frame { at: start, end: start + frame.len() as u64, read: Vec::new(), passed: 0 });
        }
        Ok((frames, in_order))
    }

    /// Forgets the checkpoint that is being written.
    pub fn abandon(&mut self) {
        self.writing = None;
    }

    /// Gives its space back.
    pub fn clear(&mut self) -> io::Result<()> {
        self.abandon();
        match File::options().write(true).open(&self.path) {
            Ok(file) => file.set_len(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn damaged(&self, staged: Staged, left: u64) -> fjall::Error {
        let (path, at) = (self.path.display(), staged.bytes - left);
        let text =
            format!("{path} is damaged in the frame at byte {at}, of a checkpoint that was acknowledged");
        io::Error::new(io::ErrorKind::InvalidData, text).into()
    }
}

/// What is left of a frame that was checked.
struct Frame {
    /// Where what was not read begins, and where the frame ends.
    at: u64,
    end: u64,
    read: Vec<u8>,
    /// How much of what was read is through.
    passed: usize,
}

impl Frame {
    /// The first change that is left.
    fn first(&mut self, file: &File) -> io::Result<Option<StagedChange<'_>>> {
        while self.at < self.end && split_change(self.left()).is_none() {
            self.read.drain(..self.passed);
            let (before, piece) = (self.read.len(), PIECE_BYTES.min(self.end - self.at));
            self.read.resize(before + piece as usize, 0);
            file.read_exact_at(self.read.get_mut(before..).unwrap_or_default(), self.at)?;
            (self.at, self.passed) = (self.at + piece, 0);
        }
        Ok(split_change(self.left()).map(|(change, _)| change))
    }

    /// The first change is through.
    fn pass(&mut self) {
        let after = split_change(self.left()).map_or(0, |(_, after)| after.len());
        self.passed = self.read.len() - after;
    }

    fn left(&self) -> &[u8] {
        self.read.get(self.passed..).unwrap_or_default()
    }
}

/// A new file, or an old one without what it had, whose name is on the disk.
fn create(path: &Path) -> io::Result<File> {
    let file = File::create(path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(file)
}

fn checksum(number: u64, changes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), changes)
}

/// The changes of the next frame, which ends within `left` bytes.
fn read_frame(file: &mut impl Read, number: u64, left: u64) -> io::Result<Vec<u8>> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header)?;
    let mut fields = crate::pages::Fields(&header);
    let (found, bytes, sum) = (fields.u64(), fields.u32(), fields.u32());
    if found != number || HEADER_BYTES as u64 + u64::from(bytes) > left {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut changes = vec![0; bytes as usize];
    file.read_exact(&mut changes)?;
    if checksum(number, &changes) == sum { Ok(changes) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// A change on the stage: where, the key, the value or none.
pub(super) type StagedChange<'a> = (Space, &'a [u8], Option<&'a [u8]>);

fn put_change(out: &mut Vec<u8>, write: &IndexWrite) {
    let value = write.value.as_deref();
    out.put_u32_le((4 + write.key.len() + value.map_or(0, <[u8]>::len)) as u32);
    out.put_u8(write.space as u8);
    out.put_u8(u8::from(value.is_some()));
    out.put_u16_le(write.key.len() as u16);
    out.put_slice(&write.key);
    out.put_slice(value.unwrap_or_default());
}

/// The first change and what follows it.
fn split_change(bytes: &[u8]) -> Option<(StagedChange<'_>, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (change, after) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some((read_change(change)?, after))
}

/// What [`put_change`] wrote behind the length.
pub(super) fn read_change(bytes: &[u8]) -> Option<StagedChange<'_>> {
    let (&[space, is_set], rest) = bytes.split_first_chunk::<2>()?;
    let (&key_len, rest) = rest.split_first_chunk::<2>()?;
    let (key, value) = rest.split_at_checked(usize::from(u16::from_le_bytes(key_len)))?;
    let space = *Space::ALL.get(usize::from(space))?;
    Some((space, key, (is_set == 1).then_some(value)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn change(n: u32) -> IndexWrite {
        let value = (!n.is_multiple_of(3)).then(|| Bytes::from(vec![n as u8; n as usize % 200]));
        IndexWrite { space: Space::Jobs, key: Bytes::from(n.to_be_bytes().to_vec()), value }
    }

    fn read(stage: &Stage, staged: Staged) -> fjall::Result<Vec<IndexWrite>> {
        let mut found = Vec::new();
        stage.read(staged, |(space, key, value)| {
            let (key, value) = (Bytes::copy_from_slice(key), value.map(Bytes::copy_from_slice));
            found.push(IndexWrite { space, key, value });
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn what_was_finished_is_read_back_and_what_was_before_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut stage = Stage::new(dir.path().join("index.stage"));
        let changes: Vec<_> = (0..1000).map(change).collect();
        for part in changes.chunks(300) {
            stage.add(|| 7, part).unwrap();
        }
        let staged = stage.finish().unwrap();
        assert_eq!((staged.number, stage.is_used()), (7, false));
        assert_eq!(read(&stage, staged).unwrap(), changes);
        // A shorter one takes its place.
        stage.add(|| 8, &changes[..2]).unwrap();
        let next = stage.finish().unwrap();
        assert_eq!(read(&stage, next).unwrap(), changes[..2]);
        assert!(read(&stage, staged).is_err(), "what was there is gone");
        stage.clear().unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("index.stage")).unwrap().len(), 0);
        assert!(read(&stage, next).is_err());
        assert!(stage.finish().is_err());
    }

    #[test]
    fn a_byte_that_changed_anywhere_is_named_and_nothing_of_its_frame_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.stage");
        let mut stage = Stage::new(path.clone());
        let changes: Vec<_> = (0..6).map(change).collect();
        for part in changes.chunks(3) {
            stage.add(|| 7, part).unwrap();
        }
        let staged = stage.finish().unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, bad).unwrap();
            let mut used = 0;
            let error = stage.read(staged, |_| {
                used += 1;
                Ok(())
            });
            assert!(error.unwrap_err().to_string().contains("index.stage is damaged"), "byte {at}");
            assert!(used == 0 || used == 3, "byte {at}: {used} changes used");
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(read(&stage, staged).is_err(), "cut off");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn changes_come_in_the_order_of_keys_and_those_of_a_key_as_they_came(
            // Values larger than what is read at once, too.
            parts in prop::collection::vec(
                prop::collection::vec((0u32..500, prop_oneof![9 => 0usize..300, 1 => 60_000usize..200_000]), 1..60),
                1..6,
            ),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut stage = Stage::new(dir.path().join("index.stage"));
            let mut all = Vec::new();
            for mut part in parts {
                part.sort_by_key(|(key, _)| *key);
                let part: Vec<IndexWrite> = part
                    .into_iter()
                    .map(|(key, len)| IndexWrite { value: Some(vec![len as u8; len].into()), ..change(key) })
                    .collect();
                stage.add(|| 7, &part).unwrap();
                all.extend(part);
            }
            all.sort_by(|one, other| one.key.cmp(&other.key));
            let staged = stage.finish().unwrap();
            prop_assert!(read(&stage, staged).unwrap() == all);
        }

        #[test]
        fn what_is_in_no_order_is_read_as_it_came(
            parts in prop::collection::vec(prop::collection::vec(0u32..50, 1..60), 1..6),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut stage = Stage::new(dir.path().join("index.stage"));
            // One frame that is in no order is enough: what comes last of a key counts.
            let first: Vec<u32> = [50, 49].into_iter().chain(parts.into_iter().flatten()).collect();
            for part in first.chunks(20) {
                stage.add(|| 7, &part.iter().map(|key| change(*key)).collect::<Vec<_>>()).unwrap();
            }
            let staged = stage.finish().unwrap();
            let found: Vec<_> = read(&stage, staged).unwrap();
            prop_assert!(found == first.iter().map(|key| change(*key)).collect::<Vec<_>>());
        }

        #[test]
        fn changes_round_trip(which in 0usize..Space::ALL.len(), key: Vec<u8>, value: Option<Vec<u8>>) {
            let write = IndexWrite {
                space: Space::ALL[which],
                key: key.clone().into(),
                value: value.clone().map(Bytes::from),
            };
            let mut bytes = Vec::new();
            put_change(&mut bytes, &write);
            let whole = Some(((Space::ALL[which], &key[..], value.as_deref()), &[][..]));
            prop_assert_eq!(split_change(&bytes), whole);
        }

        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            let _ = split_change(&noise);
        }
    }
}
