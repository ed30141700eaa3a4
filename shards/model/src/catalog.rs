//! The catalog as every core sees it: an immutable snapshot with a version, sent by shard 0 after each durable change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::ids::{CatalogVersion, Millis, ResourceId};
use crate::path::{Kind, ResourcePath};
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
        let placement = PlacementHash::of(&path);
        Self { id, path, settings, created_at, placement }
    }
}

/// All resources at one version.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    version: CatalogVersion,
    last_id: ResourceId,
    by_id: BTreeMap<ResourceId, Arc<ResourceInfo>>,
    by_name: [HashMap<String, Arc<ResourceInfo>>; 3],
}

impl Catalog {
    /// A snapshot of these resources.
    pub fn new(version: CatalogVersion, resources: impl IntoIterator<Item = Arc<ResourceInfo>>) -> Self {
        let mut catalog = Self { version, ..Self::default() };
        for info in resources {
            catalog.insert(&info);
        }
        catalog
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

    fn insert(&mut self, info: &Arc<ResourceInfo>) {
        let path = &info.path;
        let Some(names) = self.by_name.get_mut(path.kind() as usize) else { return };
        names.insert(path.to_string(), Arc::clone(info));
        names.insert(format!("{}/{}/{}", path.tenant(), path.namespace(), path.name()), Arc::clone(info));
        if path.is_default_scope() {
            names.insert(path.name().to_owned(), Arc::clone(info));
        }
        self.last_id = self.last_id.max(info.id);
        self.by_id.insert(info.id, Arc::clone(info));
    }

    /// Which version this is.
    pub fn version(&self) -> CatalogVersion {
        self.version
    }

    /// The resource of that kind that a client names, in any form [`ResourcePath::parse`] accepts.
    pub fn find(&self, kind: Kind, name: &str) -> Option<&Arc<ResourceInfo>> {
        self.by_name.get(kind as usize)?.get(name)
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
