//! The catalog as every core sees it: an immutable snapshot with a version, sent by shard 0 after each durable change.

use std::sync::Arc;

use imbl::shared_ptr::DefaultSharedPtr;
use imbl::{GenericHashMap, OrdMap};
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use crate::ids::{CatalogVersion, Millis, ResourceId};
use crate::path::{Kind, ResourcePath, full_name};
use crate::placement::PlacementHash;
use crate::settings::Settings;

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceInfo {
    /// Its number.
    pub id: ResourceId,
    /// Its full name.
    pub path: ResourcePath,
    /// Its settings.
    pub settings: Settings,
    /// When it was created.
    pub created_at: Millis,
    /// Its part of every placement.
    pub placement: PlacementHash,
}

impl ResourceInfo {
    /// A resource as the catalog knows it.
    pub fn new(id: ResourceId, path: ResourcePath, settings: Settings, created_at: Millis) -> Self {
        let of = if settings.is_feed() { PlacementHash::of_feed } else { PlacementHash::of };
        let placement = of(&path);
        Self { id, path, settings, created_at, placement }
    }
}

/// Changes that a snapshot knows of. One is sent after each change, so a core that kept up needs the last one only; one
/// that missed more than this looks at everything.
const CHANGES_MAX: usize = 64;

/// Resources whose names have the same hash: one, but for a wonder.
type Named = SmallVec<[Arc<ResourceInfo>; 1]>;

pub(crate) fn name_hash(full_name: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(full_name)
}

/// All resources at one version.
///
/// The maps are persistent: a clone costs next to nothing, and a change of it copies what lies on the way to one
/// resource, O(log n), and shares the rest. So shard 0 keeps the catalog in this form and every version of it is a
/// snapshot.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    version: CatalogVersion,
    last_id: ResourceId,
    by_id: OrdMap<ResourceId, Arc<ResourceInfo>>,
    /// By the hash of the full name. Two that share one are both there.
    by_name: GenericHashMap<u64, Named, FxBuildHasher, DefaultSharedPtr>,
    /// What the last versions changed, one resource each, oldest first.
    changes: Vec<ResourceId>,
}

impl Catalog {
    /// A snapshot of these resources, which knows of no version before it.
    pub fn new(version: CatalogVersion, resources: impl IntoIterator<Item = Arc<ResourceInfo>>) -> Self {
        let mut catalog = Self { version, ..Self::default() };
        for info in resources {
            catalog.insert(info);
        }
        catalog
    }

    /// The same resources as of this version, which knows of no version before it.
    #[must_use]
    pub fn at_version(mut self, version: CatalogVersion) -> Self {
        self.version = version;
        self.changes.clear();
        self
    }

    /// The same snapshot, which also knows that numbers up to `last_id` were given out: what is missing up to there
    /// was deleted.
    #[must_use]
    pub fn with_last_id(mut self, last_id: ResourceId) -> Self {
        self.last_id = self.last_id.max(last_id);
        self
    }

    /// The largest number given out to a resource, deleted ones included. What lies beyond may be newer than this
    /// snapshot.
    pub fn last_id(&self) -> ResourceId {
        self.last_id
    }

    /// The next version: with this resource, new or in place of what it was. Its path belongs to no other.
    pub fn put(&mut self, info: Arc<ResourceInfo>) {
        self.changed(info.id);
        self.insert(info);
    }

    /// The next version: without this resource, which is returned. Does nothing if there is none.
    pub fn remove(&mut self, id: ResourceId) -> Option<Arc<ResourceInfo>> {
        let info = self.by_id.remove(&id)?;
        let hash = name_hash(info.path.as_str().as_bytes());
        if let Some(named) = self.by_name.get_mut(&hash) {
            named.retain(|other| other.path != info.path);
            if named.is_empty() {
                self.by_name.remove(&hash);
            }
        }
        self.changed(id);
        Some(info)
    }

    fn insert(&mut self, info: Arc<ResourceInfo>) {
        let named = self.by_name.entry(name_hash(info.path.as_str().as_bytes())).or_default();
        named.retain(|other| other.path != info.path);
        named.push(Arc::clone(&info));
        self.last_id = self.last_id.max(info.id);
        self.by_id.insert(info.id, info);
    }

    fn changed(&mut self, id: ResourceId) {
        self.version = CatalogVersion(self.version.0 + 1);
        if self.changes.len() == CHANGES_MAX {
            self.changes.remove(0);
        }
        self.changes.push(id);
    }

    /// Which resources may differ from how they were at an earlier version of this catalog: created, updated or deleted
    /// since, in order, at times more than once. `None` if that is too long ago to know.
    pub fn changed_since(&self, version: CatalogVersion) -> Option<&[ResourceId]> {
        let behind = usize::try_from(self.version.0.checked_sub(version.0)?).ok()?;
        self.changes.get(self.changes.len().checked_sub(behind)?..)
    }

    /// Which version this is.
    pub fn version(&self) -> CatalogVersion {
        self.version
    }

    /// The resource of that kind that a client names, in any form [`ResourcePath::parse`] accepts.
    pub fn find(&self, kind: Kind, name: &str) -> Option<&Arc<ResourceInfo>> {
        self.find_full(&full_name(kind, name)?)
    }

    fn find_full(&self, full_name: &[u8]) -> Option<&Arc<ResourceInfo>> {
        self.find_hashed(name_hash(full_name), full_name)
    }

    pub(crate) fn find_hashed(&self, hash: u64, full_name: &[u8]) -> Option<&Arc<ResourceInfo>> {
        let named = self.by_name.get(&hash)?;
        named.iter().find(|info| info.path.as_str().as_bytes() == full_name)
    }

    /// The resource of that path.
    pub fn find_path(&self, path: &ResourcePath) -> Option<&Arc<ResourceInfo>> {
        self.find_full(path.as_str().as_bytes())
    }

    /// The resource of that path, as [`ResourcePath::as_str`] writes it.
    pub fn find_path_text(&self, path: &str) -> Option<&Arc<ResourceInfo>> {
        self.find_full(path.as_bytes())
    }

    /// The resource of that number.
    pub fn get(&self, id: ResourceId) -> Option<&Arc<ResourceInfo>> {
        self.by_id.get(&id)
    }

    /// All resources by number.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ResourceInfo>> {
        self.by_id.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}
