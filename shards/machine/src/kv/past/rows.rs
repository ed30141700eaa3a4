//! Records that a read got of the index, beforehand: a decision names what it lacks, the engine reads it, and the command is
//! decided on again with all that was read so far.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use bytes::Bytes;
use flowmesh_model::Lsn;

use crate::kv::index::read_bytes;

/// Ranges of the index that a command needs, whatever else it needs then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastRead {
    /// What was read with another number is of no use: records have left memory since.
    pub generation: u64,
    /// What is to be read.
    pub ranges: Vec<PastRange>,
    /// Keys of [`flowmesh_model::Space::Keys`] whose values are to be read as well, and which versions they must be.
    pub entries: Vec<(Bytes, Lsn)>,
}

/// A range of [`flowmesh_model::Space::History`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastRange {
    /// From this key on.
    pub from: Bytes,
    /// Before this one.
    pub to: Bytes,
    /// At most so many rows, at least one.
    pub rows_max: usize,
}

/// A value that the index must have.
#[derive(Debug)]
pub(super) struct NotThere;

/// What was read for one command.
#[derive(Debug, Default)]
pub struct PastRows {
    generation: u64,
    rows: BTreeMap<Bytes, Bytes>,
    /// Ranges that `rows` has all of, from their first key; they do not touch.
    covered: BTreeMap<Bytes, Bytes>,
    bytes: usize,
    /// What keys hold that only the index has, by the version that was asked for; `None` if that is not there.
    entries: BTreeMap<Bytes, (Lsn, Option<Bytes>)>,
}

impl PastRows {
    /// Takes what was read of a range: whether that is all of it, else up to the last row.
    pub fn add(&mut self, generation: u64, range: &PastRange, rows: Vec<(Bytes, Bytes)>, is_all: bool) {
        if generation != self.generation {
            *self = Self { generation, entries: std::mem::take(&mut self.entries), ..Self::default() };
        }
        let upto = match rows.last() {
            _ if is_all => range.to.clone(),
            Some((last, _)) => [&last[..], &[0]].concat().into(),
            None => return,
        };
        self.bytes += rows.iter().map(|(row, value)| row.len() + value.len()).sum::<usize>();
        self.rows.extend(rows);
        self.cover(range.from.clone(), upto);
    }

    /// Takes what the index has of an entry that was asked for.
    pub fn add_entry(&mut self, (key, version): (Bytes, Lsn), value: Option<Bytes>) {
        let found = value.and_then(|value| read_bytes(value).ok().flatten());
        let found = found.filter(|found| found.version == version).map(|found| found.bytes);
        self.entries.insert(key, (version, found));
    }

    /// What was read of an entry, if this version was asked for.
    ///
    /// # Errors
    /// If the index has not what it must have.
    pub(super) fn entry(&self, key: &[u8], version: Lsn) -> Result<Option<Bytes>, NotThere> {
        match self.entries.get(key) {
            Some((asked, bytes)) if *asked == version => bytes.clone().map(Some).ok_or(NotThere),
            _ => Ok(None),
        }
    }

    fn cover(&mut self, mut from: Bytes, mut upto: Bytes) {
        let touching = self.covered.range::<Bytes, _>(..=&upto).rev().take_while(|(_, end)| **end >= from);
        let touching: Vec<Bytes> = touching.map(|(start, _)| start.clone()).collect();
        for start in touching {
            if let Some(end) = self.covered.remove(&start) {
                upto = upto.max(end);
                from = from.min(start);
            }
        }
        self.covered.insert(from, upto);
    }

    /// Up to where all rows from this key on are known, if any are.
    pub(super) fn known(&self, generation: u64, from: &[u8]) -> Option<&Bytes> {
        if generation != self.generation {
            return None;
        }
        let upto_from = (Bound::Unbounded, Bound::Included(from));
        let (_, upto) = self.covered.range::<[u8], _>(upto_from).next_back()?;
        Some(upto).filter(|upto| ***upto > *from)
    }

    pub(super) fn range(&self, rows: Range<&[u8]>) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        let end = if rows.start < rows.end { rows.end } else { rows.start };
        self.rows.range::<[u8], _>((Bound::Included(rows.start), Bound::Excluded(end)))
    }

    /// How many rows there are, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.rows.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Bytes {
        vec![number].into()
    }

    proptest! {
        #[test]
        fn what_was_read_is_known_and_nothing_else(
            reads in prop::collection::vec((0..40u8, 1..12u8, 1..5usize), 0..20),
            there in prop::collection::btree_set(0..50u8, 0..30),
        ) {
            let (mut rows, mut known) = (PastRows::default(), [false; 64]);
            for (from, len, rows_max) in reads {
                let to = from + len;
                let found: Vec<u8> = there.range(from..to).copied().collect();
                let is_all = found.len() <= rows_max;
                let found = &found[..found.len().min(rows_max)];
                let upto = if is_all { to } else { found.last().unwrap() + 1 };
                known[usize::from(from)..usize::from(upto)].fill(true);
                let range = PastRange { from: key(from), to: key(to), rows_max };
                rows.add(0, &range, found.iter().map(|row| (key(*row), key(*row))).collect(), is_all);
                for at in 0..60u8 {
                    let upto = rows.known(0, &[at]);
                    prop_assert_eq!(upto.is_some(), known[usize::from(at)], "{}", at);
                    if let Some(upto) = upto {
                        let end = upto[0] + u8::from(upto.len() > 1);
                        prop_assert!(known[usize::from(at)..usize::from(end)].iter().all(|known| *known));
                        let shown: Vec<u8> = rows.range(&[at]..&[end]).map(|(row, _)| row[0]).collect();
                        prop_assert_eq!(shown, there.range(at..end).copied().collect::<Vec<_>>());
                    }
                }
            }
            prop_assert!(rows.known(1, &[0]).is_none(), "of another generation nothing is known");
        }
    }
}
