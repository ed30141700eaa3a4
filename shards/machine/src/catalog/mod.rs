//! The catalog: which resources exist, with which settings. Shard 0's alone; other shards see snapshots.
//!
//! [`decide`] is what can be asked, [`targets`] where queues' dead letters may go, [`feed`] the streams that come with stores, [`index`] its part of checkpoints. The version counts the catalog's facts, numbers of
//! resources are never given out twice.

pub(crate) mod decide;
mod feed;
mod index;
mod targets;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flowmesh_model::{
    Catalog, CatalogVersion, Lsn, Millis, ResourceId, ResourceInfo, ResourcePath, Settings,
};

use crate::decision::EntryContext;

/// What a resource takes in memory, its names and its places in the maps included.
const RESOURCE_BYTES: u64 = 400;

/// The catalog's state. A change costs O(log n), its snapshot nothing more.
#[derive(Debug, Default)]
pub(crate) struct CatalogState {
    catalog: Catalog,
    /// The entry that changed the catalog last.
    last_lsn: Lsn,
    /// Made when first asked for after a change.
    snapshot: OnceCell<Arc<Catalog>>,
    /// Resources that changed since the last seal, and those in the sealed state.
    dirty: BTreeSet<ResourceId>,
    sealed: BTreeSet<ResourceId>,
    /// Resources that the index may have.
    in_index: BTreeSet<ResourceId>,
    /// Queues whose dead letters go to a queue or stream, by its full path.
    targets: BTreeMap<String, BTreeSet<ResourceId>>,
    /// While the index is read: the version and the last number it has.
    restored: (CatalogVersion, ResourceId),
}

impl CatalogState {
    /// The catalog as it is now.
    pub fn snapshot(&self) -> Arc<Catalog> {
        Arc::clone(self.snapshot.get_or_init(|| Arc::new(self.catalog.clone())))
    }

    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.catalog.len() as u64 * RESOURCE_BYTES
    }

    /// `ResourceCreated`.
    pub fn created(&mut self, at: EntryContext, id: ResourceId, path: ResourcePath, settings: Settings) {
        assert!(id > self.catalog.last_id(), "numbers of resources only grow");
        assert!(self.catalog.find_path(&path).is_none(), "two resources with one path");
        self.note_target(id, &settings);
        self.catalog.put(Arc::new(ResourceInfo::new(id, path, settings, at.time)));
        self.changed(at, id);
    }

    /// `ResourceUpdated`.
    pub fn updated(&mut self, at: EntryContext, id: ResourceId, settings: Settings) {
        let Some(info) = self.catalog.get(id).cloned() else { panic!("no such resource: {id}") };
        self.forget_target(id, &info.settings);
        self.note_target(id, &settings);
        let info = ResourceInfo { settings, ..ResourceInfo::clone(&info) };
        self.catalog.put(Arc::new(info));
        self.changed(at, id);
    }

    /// `ResourceDeleted`.
    pub fn deleted(&mut self, at: EntryContext, id: ResourceId) {
        let removed = self.catalog.remove(id);
        let Some(removed) = removed else { panic!("no such resource: {id}") };
        self.forget_target(id, &removed.settings);
        self.changed(at, id);
    }

    fn changed(&mut self, at: EntryContext, id: ResourceId) {
        self.last_lsn = at.lsn;
        self.snapshot = OnceCell::new();
        self.dirty.insert(id);
    }

    /// The state as text.
    pub fn dump(&self, out: &mut String) {
        use std::fmt::Write;
        let (version, last_id, lsn) = (self.catalog.version(), self.catalog.last_id(), self.last_lsn);
        let _ = writeln!(out, "catalog version {version} last id {last_id} lsn {lsn}");
        for info in self.catalog.iter() {
            let Millis(created) = info.created_at;
            let _ = writeln!(out, "  {} {} {:?} created {created}", info.id, info.path, info.settings);
        }
    }

    /// Checks every invariant.
    pub fn check(&self) {
        for info in self.catalog.iter() {
            for found in [self.catalog.find_path(&info.path), self.catalog.get(info.id)] {
                assert!(found.is_some_and(|found| Arc::ptr_eq(found, info)), "{} is not found", info.path);
            }
            assert!(info.id <= self.catalog.last_id());
        }
        assert!(self.catalog.version().0 >= self.catalog.last_id().0, "every number took a fact");
        self.check_targets();
        let snapshot = self.snapshot();
        assert_eq!(snapshot.version(), self.catalog.version());
        assert!(snapshot.iter().eq(self.catalog.iter()));
    }
}
