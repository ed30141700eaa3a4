//! One file's bytes, and for each 512-byte sector every older version that a crash could bring back.

use std::collections::BTreeMap;

use crate::random::Random;
use crate::survival::{Remains, Survival};

/// What a disk writes whole or not at all.
pub(crate) const SECTOR: usize = 512;

/// A version of a sector, and the number of the write that replaced it.
type Version = (u64, [u8; SECTOR]);

#[derive(Clone, Debug, Default)]
pub(crate) struct FileBytes {
    /// What reads see.
    data: Vec<u8>,
    /// The length that is durable.
    synced_len: usize,
    /// Versions of sectors that may come back, oldest first.
    older: BTreeMap<usize, Vec<Version>>,
    /// The last write to each sector, where that is known: not of those that a crash chose.
    written: BTreeMap<usize, u64>,
    /// The last write that returned when it was durable.
    durable_write: u64,
}

impl FileBytes {
    /// A file whose content is durable.
    pub fn durable(data: Vec<u8>) -> Self {
        Self { synced_len: data.len(), data, ..Self::default() }
    }

    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn data(&self) -> &[u8] {
        &self.data
    }

    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    pub fn read(&self, position: usize, bytes: usize) -> &[u8] {
        let start = position.min(self.data.len());
        let end = (position + bytes).min(self.data.len());
        &self.data[start..end]
    }

    /// The write with number `stamp`.
    pub fn write(&mut self, position: usize, bytes: &[u8], stamp: u64) {
        let end = position + bytes.len();
        if end > self.data.len() {
            self.data.resize(end, 0);
        }
        self.remember(position, end, stamp);
        self.data[position..end].copy_from_slice(bytes);
    }

    pub fn truncate(&mut self, len: usize, stamp: u64) {
        self.remember(len.next_multiple_of(SECTOR), self.data.len(), stamp);
        self.data.resize(len, 0);
    }

    fn remember(&mut self, start: usize, end: usize, stamp: u64) {
        for sector in start / SECTOR..end.div_ceil(SECTOR) {
            let old = self.sector(sector);
            self.older.entry(sector).or_default().push((stamp, old));
            self.written.insert(sector, stamp);
        }
    }

    pub fn sector(&self, sector: usize) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        let found = self.read(sector * SECTOR, SECTOR);
        bytes[..found.len()].copy_from_slice(found);
        bytes
    }

    /// A sync that began after the write `stamp` and when the file had this length is over.
    pub fn synced(&mut self, stamp: u64, len: usize) {
        self.synced_len = len;
        self.older.retain(|_, versions| {
            versions.retain(|&(replaced_by, _)| replaced_by > stamp);
            !versions.is_empty()
        });
    }

    /// A durable write with number `stamp` is over: what it wrote stays, and so does the length that it needs. Nothing
    /// is known of the rest of the file.
    pub fn written_durably(&mut self, position: usize, bytes: usize, stamp: u64) {
        let end = position + bytes;
        self.durable_write = self.durable_write.max(stamp);
        self.synced_len = self.synced_len.max(end);
        for sector in position / SECTOR..end.div_ceil(SECTOR) {
            if let Some(versions) = self.older.get_mut(&sector) {
                versions.retain(|&(replaced_by, _)| replaced_by > stamp);
                if versions.is_empty() {
                    self.older.remove(&sector);
                }
            }
        }
    }

    /// The oldest write that may be lost.
    pub fn first_pending(&self) -> Option<u64> {
        self.older.values().flatten().map(|(replaced_by, _)| *replaced_by).min()
    }

    /// The last write that returned when it was durable.
    pub fn durable_write(&self) -> u64 {
        self.durable_write
    }

    /// Sectors that were written and are durable, by a write before this one.
    pub fn durable_sectors(&self, before: u64) -> impl Iterator<Item = usize> {
        let sectors =
            self.written.iter().filter(move |(_, stamp)| **stamp < before).map(|(sector, _)| *sector);
        sectors.filter(|sector| !self.older.contains_key(sector) && (sector + 1) * SECTOR <= self.data.len())
    }

    /// Another content of a sector, on the disk itself: wherever it was this one.
    pub fn replace_sector(&mut self, sector: usize, was: &[u8; SECTOR], is: &[u8; SECTOR]) {
        let (start, end) = (sector * SECTOR, (sector + 1) * SECTOR);
        if let Some(data) = self.data.get_mut(start..end).filter(|data| *data == was) {
            data.copy_from_slice(is);
        }
        let versions = self.older.get_mut(&sector).into_iter().flatten();
        for (_, version) in versions.filter(|(_, version)| version == was) {
            *version = *is;
        }
    }

    /// The file after a crash: its durable length or the new one, and of each sector what the writes that are left make of
    /// it.
    pub fn after_crash(&self, random: &mut Random, survival: &Survival, remains: &mut Remains) -> Self {
        let len = if random.coin() { self.synced_len } else { self.data.len() };
        let mut data = self.data.clone();
        data.resize(data.len().max(len), 0);
        let mut written = self.written.clone();
        for (&sector, versions) in &self.older {
            written.remove(&sector);
            // What the last write that is left put there: the version that the next one replaced.
            let left = versions.iter().rposition(|(stamp, _)| survival.is_left(*stamp, sector));
            let first_lost = left.map_or(0, |left| left + 1);
            let lost = versions.get(first_lost..).unwrap_or_default();
            if let Some((stamp, _)) = left.and_then(|left| versions.get(left)) {
                remains.note(*stamp, sector, true);
            }
            for (stamp, _) in lost {
                remains.note(*stamp, sector, false);
            }
            let start = sector * SECTOR;
            if let Some((_, version)) = lost.first()
                && start < data.len()
            {
                let end = (start + SECTOR).min(data.len());
                data[start..end].copy_from_slice(&version[..end - start]);
            }
        }
        data.truncate(len);
        Self { written, durable_write: self.durable_write, ..Self::durable(data) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crashed(file: &FileBytes, seed: u64) -> FileBytes {
        let mut random = Random::new(seed);
        let survival = Survival::new(&mut random, 1, 2);
        file.after_crash(&mut random, &survival, &mut Remains::default())
    }

    #[test]
    fn what_is_synced_stays_and_what_is_not_may_go() {
        let mut lost = 0;
        for seed in 0..64 {
            let mut file = FileBytes::durable(vec![0; 4 * SECTOR]);
            file.write(0, &[1; 2 * SECTOR], 1);
            file.synced(1, file.len());
            file.write(SECTOR, &[2; 2 * SECTOR], 2);
            let after = crashed(&file, seed);
            assert_eq!(after.len(), 4 * SECTOR);
            assert_eq!(after.read(0, SECTOR), [1; SECTOR]);
            assert!([[1; SECTOR], [2; SECTOR]].iter().any(|version| after.read(SECTOR, SECTOR) == version));
            lost += u32::from(after.read(SECTOR, SECTOR) == [1; SECTOR]);
        }
        assert!(lost > 8 && lost < 56, "lost {lost} of 64");
    }

    #[test]
    fn a_write_during_a_sync_is_not_covered_by_it() {
        let mut file = FileBytes::durable(vec![0; SECTOR]);
        file.write(0, &[1; SECTOR], 1);
        file.write(0, &[2; SECTOR], 2);
        file.synced(1, SECTOR);
        let seen: Vec<u8> = (0..64).map(|seed| crashed(&file, seed).data()[0]).collect();
        assert!(seen.contains(&1) && seen.contains(&2) && !seen.contains(&0));
    }
}
