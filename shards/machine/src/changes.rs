//! What a checkpoint has to write, and how the state can change while it is being written.
//!
//! Every seal starts a new **epoch**. An item's [`Mark`] says in which epoch it was last put on a list of changes:
//!
//! | mark's epoch | means | a change of the item | collecting it |
//! |---|---|---|---|
//! | the current one | changed since the last seal, on the `dirty` list | nothing to do | skipped: its image was captured |
//! | the sealed one | changed before the seal, not collected yet | image captured first, then `dirty` | image written |
//! | another | the index has it as it is | `dirty` | skipped |
//!
//! An item that is removed leaves a key on the `gone` list if the index may have it; one that lived and died between
//! two seals leaves nothing. Epoch 0 means that checkpoints are never made: then nothing is ever listed.

use std::collections::BTreeSet;

use bytes::Bytes;
use flowmesh_model::{IndexWrite, Space};

/// Listed changes below which a list is not worth thinning out. Small, so that tests get there.
const THIN_ABOVE: usize = 32;

/// What an item knows about the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    epoch: u32,
    in_index: bool,
}

impl Mark {
    /// The mark of an item that comes out of the index.
    pub const IN_INDEX: Self = Self { epoch: u32::MAX, in_index: true };

    /// The mark of an item that the index knows nothing of.
    pub const NEW: Self = Self { epoch: u32::MAX, in_index: false };

    /// A new item, of which the index may have an older version under the same key.
    pub fn new(in_index: bool) -> Self {
        Self { epoch: u32::MAX, in_index }
    }

    /// Whether the index may have the item's key.
    pub fn in_index(self) -> bool {
        self.in_index
    }

    pub fn set_in_index(&mut self) {
        self.in_index = true;
    }
}

/// What must happen before an item changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    /// Nothing.
    Known,
    /// It goes on the list of changes.
    List,
    /// Its image goes to [`Seals::capture`] first, then it goes on the list of changes.
    CaptureAndList,
}

/// The seal that is being written, if any, and the images that were captured for it.
#[derive(Debug)]
pub(crate) struct Seals {
    epoch: u32,
    writing: bool,
    captured: Vec<IndexWrite>,
}

impl Seals {
    pub fn new(checkpoints: bool) -> Self {
        Self { epoch: u32::from(checkpoints), writing: false, captured: Vec::new() }
    }

    /// Whether changes are listed at all.
    pub fn are_made(&self) -> bool {
        self.epoch != 0
    }

    /// The epoch of what is being written, or was written last.
    pub fn sealed_epoch(&self) -> u32 {
        self.epoch - 1
    }

    /// Whether a sealed state is being written.
    pub fn writing(&self) -> bool {
        self.writing
    }

    /// Starts a new epoch.
    pub fn seal(&mut self) {
        assert!(self.are_made(), "a machine without checkpoints is not sealed");
        assert!(!self.writing, "one checkpoint at a time");
        // Epochs of marks that are long past never meet again: 2^32 checkpoints are far away.
        self.epoch += 1;
        self.writing = true;
    }

    /// Ends the writing of the sealed state.
    pub fn end(&mut self) {
        self.writing = false;
        self.captured = Vec::new();
    }

    /// Keeps an image of the sealed state.
    pub fn capture(&mut self, image: IndexWrite) {
        self.captured.push(image);
    }

    pub fn captured(&mut self) -> &mut Vec<IndexWrite> {
        &mut self.captured
    }

    /// Marks an item that is about to change.
    #[inline]
    pub fn touch(&self, mark: &mut Mark) -> Touch {
        if mark.epoch == self.epoch || self.epoch == 0 {
            return Touch::Known;
        }
        let sealed = self.is_sealed(*mark);
        mark.epoch = self.epoch;
        mark.in_index |= sealed;
        if sealed { Touch::CaptureAndList } else { Touch::List }
    }

    /// Whether the item is as it was at the seal and still to be written.
    pub fn is_sealed(&self, mark: Mark) -> bool {
        self.writing && mark.epoch == self.epoch - 1
    }

    /// Whether the item is on the current list of changes.
    pub fn is_listed(&self, mark: Mark) -> bool {
        mark.epoch == self.epoch
    }

    /// Marks an item whose image was just written.
    pub fn written(mark: &mut Mark) {
        *mark = Mark::IN_INDEX;
    }
}

/// Changes of one kind of item, by key.
#[derive(Debug)]
pub(crate) struct Changes<K> {
    dirty: Vec<K>,
    gone: BTreeSet<K>,
    sealed: Vec<K>,
    collected: usize,
    sealed_gone: BTreeSet<K>,
    collected_gone: Vec<K>,
}

impl<K> Default for Changes<K> {
    fn default() -> Self {
        Self {
            dirty: Vec::new(),
            gone: BTreeSet::new(),
            sealed: Vec::new(),
            collected: 0,
            sealed_gone: BTreeSet::new(),
            collected_gone: Vec::new(),
        }
    }
}

impl<K: Ord + Clone> Changes<K> {
    /// Lists a change.
    #[inline]
    pub fn list(&mut self, key: K) {
        self.dirty.push(key);
    }

    /// Whether the list is mostly about items that are gone, so that [`Changes::thin`] is worth its while, for so many
    /// live items.
    #[inline]
    pub fn is_stale(&self, live: usize) -> bool {
        self.dirty.len() > 4 * live + THIN_ABOVE
    }

    /// Forgets listed keys that `keep` does not want. They must be of items that are gone.
    pub fn thin(&mut self, keep: impl FnMut(&K) -> bool) {
        self.dirty.retain(keep);
    }

    /// Lists the removal of an item that the index may have.
    pub fn list_gone(&mut self, key: K) {
        self.gone.insert(key);
    }

    /// An item with this key is there again. Returns whether the index may have an older one.
    #[inline]
    pub fn is_back<Q: Ord + ?Sized>(&mut self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
    {
        !self.gone.is_empty() && self.gone.remove(key)
    }

    /// Whether a change of `key` is listed. Slow.
    pub fn has_listed(&self, key: &K) -> bool {
        self.dirty.contains(key)
    }

    /// Takes what is listed into the sealed state.
    pub fn seal(&mut self) {
        debug_assert!(
            self.sealed.is_empty() && self.sealed_gone.is_empty() && self.collected_gone.is_empty()
        );
        self.sealed = std::mem::take(&mut self.dirty);
        self.sealed_gone = std::mem::take(&mut self.gone);
        self.collected = 0;
    }

    /// The next sealed change to write.
    pub fn next(&mut self) -> Option<Change<K>> {
        if let Some(key) = self.sealed_gone.pop_first() {
            self.collected_gone.push(key.clone());
            return Some(Change::Gone(key));
        }
        let key = self.sealed.get(self.collected)?.clone();
        self.collected += 1;
        Some(Change::Listed(key))
    }

    /// The sealed state is in the index.
    pub fn sealed_written(&mut self) {
        debug_assert!(self.sealed_gone.is_empty() && self.collected == self.sealed.len());
        self.sealed = Vec::new();
        self.collected_gone = Vec::new();
    }

    /// The sealed state did not get into the index: returns the keys of items that changed or went.
    pub fn unseal(&mut self) -> (Vec<K>, Vec<K>) {
        let mut gone = std::mem::take(&mut self.collected_gone);
        gone.extend(std::mem::take(&mut self.sealed_gone));
        (std::mem::take(&mut self.sealed), gone)
    }
}

/// One sealed change.
pub(crate) enum Change<K> {
    /// The item may have changed: its mark says whether its image must be written.
    Listed(K),
    /// The item is gone.
    Gone(K),
}

/// An index write that removes a key.
pub(crate) fn removal(space: Space, key: Bytes) -> IndexWrite {
    IndexWrite { space, key, value: None }
}

/// An index write that puts a value.
pub(crate) fn image(space: Space, key: Bytes, value: Bytes) -> IndexWrite {
    IndexWrite { space, key, value: Some(value) }
}
