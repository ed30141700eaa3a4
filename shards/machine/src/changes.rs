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

/// What an item knows about the index: the epoch, and in the lowest bit whether the index may have its key. There are
/// very many of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark(u32);

/// Marks have no later epoch: 2^31 checkpoints are far away.
const NEVER: u32 = u32::MAX >> 1;

/// Of items that were collected for a checkpoint, in turn one or the other: while that one is not durable, the index does not
/// have them as they are.
const COLLECTED: [u32; 2] = [NEVER - 1, NEVER - 2];

impl Mark {
    /// The mark of an item that comes out of the index.
    pub const IN_INDEX: Self = Self(NEVER << 1 | 1);

    /// The mark of an item that the index knows nothing of.
    pub const NEW: Self = Self(NEVER << 1);

    /// A new item, of which the index may have an older version under the same key.
    pub fn new(in_index: bool) -> Self {
        Self(NEVER << 1 | u32::from(in_index))
    }

    #[inline]
    fn epoch(self) -> u32 {
        self.0 >> 1
    }

    /// Whether the index may have the item's key.
    #[inline]
    pub fn in_index(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether it did not change since it was collected, or restored.
    #[inline]
    pub fn is_settled(self) -> bool {
        self.in_index() && (self.epoch() == NEVER || COLLECTED.contains(&self.epoch()))
    }

    pub fn set_in_index(&mut self) {
        self.0 |= 1;
    }

    #[inline]
    fn set_epoch(&mut self, epoch: u32) {
        self.0 = epoch << 1 | self.0 & 1;
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
        self.epoch += 1;
        assert!(self.epoch < COLLECTED[1], "epochs of marks that are long past never meet again");
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
        if mark.epoch() == self.epoch || self.epoch == 0 {
            return Touch::Known;
        }
        let sealed = self.is_sealed(*mark);
        mark.set_epoch(self.epoch);
        if sealed {
            mark.set_in_index();
        }
        if sealed { Touch::CaptureAndList } else { Touch::List }
    }

    /// Whether the item is as it was at the seal and still to be written.
    pub fn is_sealed(&self, mark: Mark) -> bool {
        self.writing && mark.epoch() == self.epoch - 1
    }

    /// Whether the item is on the current list of changes.
    pub fn is_listed(&self, mark: Mark) -> bool {
        mark.epoch() == self.epoch
    }

    /// Marks an item whose image was just collected for the checkpoint in the making.
    pub fn collected(&self, mark: &mut Mark) {
        *mark = Mark(self.collected_epoch() << 1 | 1);
    }

    fn collected_epoch(&self) -> u32 {
        if self.sealed_epoch().is_multiple_of(2) { COLLECTED[0] } else { COLLECTED[1] }
    }

    /// Whether a durable checkpoint has the item as it is. Of some it is not known while another one is being made.
    #[inline]
    pub fn is_clean(&self, mark: Mark) -> bool {
        mark.is_settled() && !(self.writing && mark.epoch() == self.collected_epoch())
    }

    /// Marks an item whose image was just written.
    pub fn written(mark: &mut Mark) {
        *mark = Mark::IN_INDEX;
    }
}

/// Changes of one kind of item, by key. Items that are there may be listed by something shorter, `K`, than what the index
/// has them under, `G`.
#[derive(Debug)]
pub(crate) struct Changes<K, G = K> {
    dirty: Vec<K>,
    gone: BTreeSet<G>,
    sealed: Vec<K>,
    collected: usize,
    sealed_gone: BTreeSet<G>,
    collected_gone: Vec<G>,
}

impl<K, G> Default for Changes<K, G> {
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

impl<K: Ord + Clone, G: Ord + Clone> Changes<K, G> {
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

    /// Forgets listed keys that `keep` does not want, which must be of items that are gone, and those that came twice.
    pub fn thin(&mut self, keep: impl FnMut(&K) -> bool) {
        self.dirty.retain(keep);
        self.dirty.sort_unstable();
        self.dirty.dedup();
    }

    /// Lists the removal of an item that the index may have.
    pub fn list_gone(&mut self, key: G) {
        self.gone.insert(key);
    }

    /// An item with this key is there again. Returns whether the index may have an older one.
    #[inline]
    pub fn is_back<Q: Ord + ?Sized>(&mut self, key: &Q) -> bool
    where
        G: std::borrow::Borrow<Q>,
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
    pub fn next(&mut self) -> Option<Change<K, G>> {
        if let Some(key) = self.sealed_gone.pop_first() {
            self.collected_gone.push(key.clone());
            return Some(Change::Gone(key));
        }
        let key = self.sealed.get(self.collected)?.clone();
        self.collected += 1;
        Some(Change::Listed(key))
    }

    /// At most so many of the sealed changes to write next, but for what is gone.
    pub fn ahead(&self, items_max: usize) -> &[K] {
        let ahead = self.sealed.get(self.collected..).unwrap_or_default();
        ahead.get(..items_max).unwrap_or(ahead)
    }

    /// The sealed state is in the index.
    pub fn sealed_written(&mut self) {
        debug_assert!(self.sealed_gone.is_empty() && self.collected == self.sealed.len());
        self.sealed = Vec::new();
        self.collected_gone = Vec::new();
    }

    /// The sealed state did not get into the index: returns the keys of items that changed or went.
    pub fn unseal(&mut self) -> (Vec<K>, Vec<G>) {
        let mut gone = std::mem::take(&mut self.collected_gone);
        gone.extend(std::mem::take(&mut self.sealed_gone));
        (std::mem::take(&mut self.sealed), gone)
    }
}

/// One sealed change.
pub(crate) enum Change<K, G = K> {
    /// The item may have changed: its mark says whether its image must be written.
    Listed(K),
    /// The item is gone.
    Gone(G),
}

/// An index write that removes a key.
pub(crate) fn removal(space: Space, key: Bytes) -> IndexWrite {
    IndexWrite { space, key, value: None }
}

/// An index write that puts a value.
pub(crate) fn image(space: Space, key: Bytes, value: Bytes) -> IndexWrite {
    IndexWrite { space, key, value: Some(value) }
}
