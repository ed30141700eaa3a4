//! Files that are open, those used last: of ten thousand partitions that are appended to now and then, few are worth a
//! descriptor and a KiB of memory each.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use flowmesh_model::{Offset, PartitionRef};

use super::files::SparseIndex;
use super::format::Compacted;

/// A file that is open, with what is known of it.
pub(super) struct OpenFile<F> {
    pub base: Offset,
    pub file: Rc<F>,
    /// Where some of its blocks start, in order, sparse.
    pub index: Rc<RefCell<SparseIndex>>,
    /// If it is compacted, so that records may be missing: what its header says.
    pub compacted: Option<Compacted>,
    /// [`Replaced::swaps`](super::files::Replaced::swaps) when it was opened.
    pub swaps: u64,
}

impl<F> Clone for OpenFile<F> {
    fn clone(&self) -> Self {
        let (file, index) = (Rc::clone(&self.file), Rc::clone(&self.index));
        Self { file, index, ..*self }
    }
}

/// The open files of a shard, by partition and first record, each with the turn at which it was last used.
pub(super) struct OpenFiles<F> {
    files: BTreeMap<(PartitionRef, Offset), (OpenFile<F>, u64)>,
    turn: u64,
}

impl<F> Default for OpenFiles<F> {
    fn default() -> Self {
        Self { files: BTreeMap::new(), turn: 0 }
    }
}

impl<F> OpenFiles<F> {
    /// The file, if it is open.
    pub fn get(&self, at: PartitionRef, base: Offset) -> Option<OpenFile<F>> {
        self.files.get(&(at, base)).map(|(file, _)| file.clone())
    }

    /// Keeps a file that was just used. With more than `max` the half that was not used for longest is closed.
    pub fn keep(&mut self, at: PartitionRef, file: OpenFile<F>, max: usize) {
        self.turn += 1;
        self.files.insert((at, file.base), (file, self.turn));
        if self.files.len() > max {
            let oldest = self.turn.saturating_sub(max.div_ceil(2) as u64);
            self.files.retain(|_, (_, used)| *used > oldest);
        }
    }

    /// Closes a file.
    pub fn close(&mut self, at: PartitionRef, base: Offset) {
        self.files.remove(&(at, base));
    }

    /// Closes all of a partition.
    pub fn close_all(&mut self, at: PartitionRef) {
        let bases = self.files.range((at, Offset(0))..=(at, Offset(u64::MAX))).map(|(&(_, base), _)| base);
        for base in bases.collect::<Vec<_>>() {
            self.close(at, base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::ResourceId;

    fn at(partition: u32) -> PartitionRef {
        PartitionRef { resource: ResourceId(1), partition }
    }

    fn file(base: u64) -> OpenFile<()> {
        let index = Rc::new(RefCell::new(SparseIndex::new(Offset(base))));
        OpenFile { base: Offset(base), file: Rc::new(()), index, compacted: None, swaps: 0 }
    }

    #[test]
    fn never_more_than_the_maximum_stay_open_and_those_used_last_do() {
        let mut open = OpenFiles::default();
        for partition in 0..100 {
            open.keep(at(0), file(7), 10);
            open.keep(at(partition), file(9), 10);
            assert!(open.files.len() <= 10);
            assert!(open.get(at(0), Offset(7)).is_some(), "used all the time");
            assert!(open.get(at(partition), Offset(9)).is_some(), "just used");
        }
        assert!(open.get(at(50), Offset(9)).is_none());
    }

    #[test]
    fn a_partition_is_closed_and_others_are_not() {
        let mut open = OpenFiles::default();
        for (partition, base) in [(0, 5), (1, 0), (1, 5), (2, 0)] {
            open.keep(at(partition), file(base), 10);
        }
        open.close_all(at(1));
        let left: Vec<_> = open.files.keys().map(|(at, base)| (at.partition, base.0)).collect();
        assert_eq!(left, [(0, 5), (2, 0)]);
    }
}
