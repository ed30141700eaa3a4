//! Names that were looked up lately. Of very many resources that are used in turn each look-up in the catalog misses the
//! processor's caches at every level of its tree; here it does so once.

use std::collections::HashMap;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

use crate::catalog::{Catalog, ResourceInfo, name_hash};
use crate::ids::CatalogVersion;
use crate::path::{Kind, full_name};

/// Names that are remembered at most: more than are used in turn where it matters, and what a table of 1 MiB holds.
const NAMES_MAX: usize = 14 * 1024;

/// Bytes of a name that stand in its place itself: with its hash a place is one line of the processor's cache.
const NAME_BYTES: usize = 39;

/// A name that was found, as of a version of the catalog.
#[derive(Clone, Debug)]
struct Place {
    version: CatalogVersion,
    info: Arc<ResourceInfo>,
    /// The name, if it fits; else the resource has it.
    name: [u8; NAME_BYTES],
    len: u8,
}

impl Place {
    fn new(version: CatalogVersion, info: Arc<ResourceInfo>) -> Self {
        let full = info.path.as_str().as_bytes();
        let (mut name, len) = ([0; NAME_BYTES], full.len().min(NAME_BYTES + 1) as u8);
        if let Some(place) = name.get_mut(..full.len()) {
            place.copy_from_slice(full);
        }
        Self { version, info, name, len }
    }

    fn is_of(&self, full_name: &[u8]) -> bool {
        let name = self.name.get(..self.len.into());
        name.unwrap_or_else(|| self.info.path.as_str().as_bytes()) == full_name
    }
}

/// Names that were looked up lately, by their hashes: of those with the same hash, the last one. What it says is what the
/// catalog says. Once it is full it begins anew.
#[derive(Debug, Default)]
pub struct RecentNames {
    places: HashMap<u64, Place, FxBuildHasher>,
}

impl RecentNames {
    /// As [`Catalog::find`].
    pub fn find(&mut self, catalog: &Catalog, kind: Kind, name: &str) -> Option<Arc<ResourceInfo>> {
        let full = full_name(kind, name)?;
        let hash = name_hash(&full);
        if let Some(place) = self.places.get(&hash)
            && place.version == catalog.version()
            && place.is_of(&full)
        {
            return Some(Arc::clone(&place.info));
        }
        let info = Arc::clone(catalog.find_hashed(hash, &full)?);
        if self.places.len() >= NAMES_MAX {
            self.places.clear();
        }
        self.places.insert(hash, Place::new(catalog.version(), Arc::clone(&info)));
        Some(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Millis, ResourceId};
    use crate::path::ResourcePath;
    use crate::settings::Settings;

    fn info(id: u64, name: &str) -> Arc<ResourceInfo> {
        let path = ResourcePath::parse(Kind::Stream, name).unwrap();
        Arc::new(ResourceInfo::new(ResourceId(id), path, Settings::default_for(Kind::Stream), Millis(0)))
    }

    #[test]
    fn what_is_remembered_is_what_the_catalog_says() {
        let (mut catalog, mut names) = (Catalog::default(), RecentNames::default());
        let mut id = 0;
        // More names than are remembered, short and long ones.
        let count = 3 * NAMES_MAX as u64;
        let name = |number: u64| format!("s{number}{}", "-".repeat(number as usize % 40));
        for number in 0..count {
            id += 1;
            catalog.put(info(id, &name(number)));
        }
        for round in 0..4 {
            for number in (0..count + 10).step_by(if round == 3 { 1 } else { 7 }) {
                let name = name(number);
                for _ in 0..2 {
                    let found = names.find(&catalog, Kind::Stream, &name);
                    assert_eq!(found.as_ref(), catalog.find(Kind::Stream, &name), "{name}");
                }
                assert_eq!(names.find(&catalog, Kind::Queue, &name), None);
                assert!(names.places.len() <= NAMES_MAX);
            }
            for number in (0..count).step_by(1_000) {
                // Deleted, and made again under another number.
                let old = catalog.find(Kind::Stream, &name(number)).unwrap().id;
                catalog.remove(old);
                assert_eq!(names.find(&catalog, Kind::Stream, &name(number)), None);
                id += 1;
                catalog.put(info(id, &name(number)));
            }
        }
    }
}
