//! Records that the index does not have yet.
//!
//! A checkpoint takes all that is there, as [`crate::changes`] says; records are never changed once another key or entry
//! follows, so nothing needs to be captured. What is not wanted any more leaves some at a time.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use bytes::Bytes;
use flowmesh_model::{IndexWrite, Space};

use crate::changes::image;
use crate::keys::Home;

/// Records that leave memory with each record that comes, and with each tick: about 100 µs of work.
const LEAVE_PER_RECORD: usize = 4;
pub(super) const LEAVE_PER_TICK: usize = 1_000;

/// What a record takes in memory besides its bytes.
const RECORD_BYTES: u64 = 2 * 32 + 24;

type Rows = BTreeMap<Bytes, Vec<u8>>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Records {
    fresh: Rows,
    sealed: Rows,
    /// The last one that the checkpoint got.
    collected: Option<Bytes>,
    /// What is not wanted any more.
    leaving: Vec<Rows>,
    bytes: u64,
    /// How often records left memory for the index. Not part of the state.
    generation: u64,
}

fn bytes_of(row: &Bytes, value: &[u8]) -> u64 {
    RECORD_BYTES + (row.len() + value.len()) as u64
}

impl Records {
    pub fn insert(&mut self, row: Bytes, value: Vec<u8>) {
        self.leave(LEAVE_PER_RECORD);
        self.bytes += bytes_of(&row, &value);
        self.fresh.insert(row, value);
    }

    /// Adds to the last record, if a checkpoint did not take it.
    pub fn grow(&mut self, row: &Bytes, grow: impl FnOnce(&mut Vec<u8>)) -> Option<u64> {
        let value = self.fresh.get_mut(row)?;
        let before = value.len();
        grow(value);
        let grown = (value.len() - before) as u64;
        self.bytes += grown;
        Some(grown)
    }

    /// The last record, if a checkpoint did not take it.
    pub fn get(&self, row: &Bytes) -> Option<&[u8]> {
        self.fresh.get(row).map(Vec::as_slice)
    }

    pub fn memory_bytes(&self) -> u64 {
        self.bytes
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Those of a range, in order; each once.
    pub fn range(&self, rows: Range<Bytes>) -> impl Iterator<Item = (&Bytes, &[u8])> {
        // A map refuses a range that ends before it starts, and takes an empty one.
        let rows = if rows.start < rows.end { rows } else { Bytes::new()..Bytes::new() };
        let mut sealed = self.sealed.range(rows.clone()).peekable();
        let mut fresh = self.fresh.range(rows).peekable();
        std::iter::from_fn(move || {
            let next = match (sealed.peek(), fresh.peek()) {
                (Some((one, _)), Some((other, _))) if one <= other => sealed.next(),
                (Some(_), None) => sealed.next(),
                _ => fresh.next(),
            };
            next.map(|(row, value)| (row, value.as_slice()))
        })
    }

    /// What lies before this row is not wanted any more.
    pub fn part_gone(&mut self, behind: &Bytes) {
        let later = self.fresh.split_off(behind);
        self.leaving.push(std::mem::replace(&mut self.fresh, later));
    }

    pub fn are_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Takes so many of what is not wanted any more out of memory.
    pub fn leave(&mut self, mut records: usize) {
        while let Some(rows) = self.leaving.last_mut()
            && records > 0
        {
            match rows.pop_first() {
                Some((row, value)) => {
                    self.bytes -= bytes_of(&row, &value);
                    records -= 1;
                }
                None => drop(self.leaving.pop()),
            }
        }
    }

    pub fn seal(&mut self) {
        self.sealed = std::mem::take(&mut self.fresh);
    }

    /// Writes at most so many of what is sealed. Returns how many: fewer means that is all.
    pub fn collect(&mut self, home: &Home, records_max: usize, out: &mut Vec<IndexWrite>) -> usize {
        let from = self.collected.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let (mut count, mut last) = (0, None);
        for (row, value) in self.sealed.range::<Bytes, _>((from, Bound::Unbounded)).take(records_max) {
            out.push(image(Space::History, home.history_row_key(row), Bytes::copy_from_slice(value)));
            (count, last) = (count + 1, Some(row));
        }
        if let Some(last) = last.cloned() {
            self.collected = Some(last);
        }
        count
    }

    pub fn sealed_written(&mut self) {
        self.leaving.push(std::mem::take(&mut self.sealed));
        self.collected = None;
        self.generation += 1;
    }

    pub fn unseal(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        self.fresh = std::mem::take(&mut self.sealed);
        self.fresh.extend(fresh);
        self.collected = None;
    }

    /// Takes at most so many out of memory. Returns how many: fewer means that is all.
    pub fn bury(&mut self, records_max: usize) -> usize {
        for map in [&mut self.fresh, &mut self.sealed] {
            let rows = std::mem::take(map);
            if !rows.is_empty() {
                self.leaving.push(rows);
            }
        }
        let before = self.leaving.iter().map(Rows::len).sum::<usize>();
        self.leave(records_max);
        before - self.leaving.iter().map(Rows::len).sum::<usize>()
    }
}
