//! The catalog: which resources exist, with which settings. Shard 0's alone; other shards see snapshots.
//!
//! [`decide`] is what can be asked, [`index`] its part of checkpoints. The version counts the catalog's facts, numbers of
//! resources are never given out twice.

pub(crate) mod decide;
mod index;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flowmesh_model::{
    Catalog, CatalogVersion, Lsn, Millis, ResourceId, ResourceInfo, ResourcePath, Settings,
};

use crate::decision::EntryContext;

/// What a resource takes in memory, twice over for the snapshot, besides its names.
const RESOURCE_BYTES: u64 = 1024;

/// The catalog's state.
#[derive(Debug, Default)]
pub(crate) struct CatalogState {
    resources: BTreeMap<ResourceId, Arc<ResourceInfo>>,
    by_path: BTreeMap<ResourcePath, ResourceId>,
    version: CatalogVersion,
    /// The largest number given out.
    last_id: ResourceId,
    /// The entry that changed the catalog last.
    last_lsn: Lsn,
    /// Built when first asked for after a change.
    snapshot: OnceCell<Arc<Catalog>>,
    /// Resources that changed since the last seal, and those in the sealed state.
    dirty: BTreeSet<ResourceId>,
    sealed: BTreeSet<ResourceId>,
    /// Resources that the index may have.
    in_index: BTreeSet<ResourceId>,
}

impl CatalogState {
    /// The catalog as it is now.
    pub fn snapshot(&self) -> Arc<Catalog> {
        let build = || {
            let resources = self.resources.values().map(Arc::clone);
            Arc::new(Catalog::new(self.version, resources).with_last_id(self.last_id))
        };
        Arc::clone(self.snapshot.get_or_init(build))
    }

    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.resources.len() as u64 * RESOURCE_BYTES
    }

    /// `ResourceCreated`.
    pub fn created(&mut self, at: EntryContext, id: ResourceId, path: ResourcePath, settings: Settings) {
        assert!(id > self.last_id, "numbers of resources only grow");
        self.last_id = id;
        self.insert(ResourceInfo::new(id, path, settings, at.time));
        self.changed(at, id);
    }

    /// `ResourceUpdated`.
    pub fn updated(&mut self, at: EntryContext, id: ResourceId, settings: Settings) {
        let Some(info) = self.resources.get(&id) else { panic!("no such resource: {id}") };
        let info = ResourceInfo { settings, ..ResourceInfo::clone(info) };
        self.resources.insert(id, Arc::new(info));
        self.changed(at, id);
    }

    /// `ResourceDeleted`.
    pub fn deleted(&mut self, at: EntryContext, id: ResourceId) {
        let Some(info) = self.resources.remove(&id) else { panic!("no such resource: {id}") };
        self.by_path.remove(&info.path);
        self.changed(at, id);
    }

    fn insert(&mut self, info: ResourceInfo) {
        let before = self.by_path.insert(info.path.clone(), info.id);
        assert!(before.is_none(), "two resources with one path");
        self.resources.insert(info.id, Arc::new(info));
    }

    fn changed(&mut self, at: EntryContext, id: ResourceId) {
        self.version = CatalogVersion(self.version.0 + 1);
        self.last_lsn = at.lsn;
        self.snapshot = OnceCell::new();
        self.dirty.insert(id);
    }

    fn find(&self, path: &ResourcePath) -> Option<&Arc<ResourceInfo>> {
        self.resources.get(self.by_path.get(path)?)
    }

    /// The state as text.
    pub fn dump(&self, out: &mut String) {
        use std::fmt::Write;
        let (version, last_id, lsn) = (self.version, self.last_id, self.last_lsn);
        let _ = writeln!(out, "catalog version {version} last id {last_id} lsn {lsn}");
        for info in self.resources.values() {
            let Millis(created) = info.created_at;
            let _ = writeln!(out, "  {} {} {:?} created {created}", info.id, info.path, info.settings);
        }
    }

    /// Checks every invariant.
    pub fn check(&self) {
        assert_eq!(self.by_path.len(), self.resources.len());
        for (path, id) in &self.by_path {
            assert!(self.resources.get(id).is_some_and(|info| info.path == *path && info.id == *id));
        }
        assert!(self.resources.last_key_value().is_none_or(|(id, _)| *id <= self.last_id));
        assert!(self.version.0 >= self.last_id.0, "every number took a fact");
        let snapshot = self.snapshot();
        assert_eq!(snapshot.version(), self.version);
        assert!(snapshot.iter().eq(self.resources.values()));
    }
}
