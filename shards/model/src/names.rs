//! Names that were looked up lately. Of very many resources that are used in turn each look-up in the catalog misses the
//! processor's caches at every level of its tree; here it does so once.

use std::sync::Arc;

use crate::catalog::{Catalog, ResourceInfo, name_hash};
use crate::ids::CatalogVersion;
use crate::path::{Kind, full_name};

/// Names that are remembered at most: more than are used in turn where it matters, 400 KiB.
const PLACES: usize = 16 * 1024;

/// A name that was found, as of a version of the catalog.
#[derive(Clone, Debug)]
struct Place {
    hash: u64,
    version: CatalogVersion,
    info: Arc<ResourceInfo>,
}

/// Names that were looked up lately: one for each place that hashes lead to. What it says is what the catalog says.
#[derive(Debug, Default)]
pub struct RecentNames {
    /// None before the first look-up.
    places: Vec<Option<Place>>,
}

impl RecentNames {
    /// As [`Catalog::find`].
    pub fn find(&mut self, catalog: &Catalog, kind: Kind, name: &str) -> Option<Arc<ResourceInfo>> {
        let full = full_name(kind, name)?;
        let hash = name_hash(&full);
        if self.places.is_empty() {
            self.places.resize(PLACES, None);
        }
        let place = self.places.get_mut(hash as usize % PLACES)?;
        if let Some(Place { hash: known, version, info }) = place
            && *known == hash
            && *version == catalog.version()
            && info.path.as_str().as_bytes() == &full[..]
        {
            return Some(Arc::clone(info));
        }
        let info = Arc::clone(catalog.find_hashed(hash, &full)?);
        *place = Some(Place { hash, version: catalog.version(), info: Arc::clone(&info) });
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
        // More names than places, so that they take each other's.
        let count = 3 * PLACES as u64;
        for number in 0..count {
            id += 1;
            catalog.put(info(id, &format!("s{number}")));
        }
        for round in 0..4 {
            for number in (0..count + 10).step_by(if round == 3 { 1 } else { 7 }) {
                let name = format!("s{number}");
                for _ in 0..2 {
                    let found = names.find(&catalog, Kind::Stream, &name);
                    assert_eq!(found.as_ref(), catalog.find(Kind::Stream, &name), "{name}");
                }
                assert_eq!(names.find(&catalog, Kind::Queue, &name), None);
            }
            for number in (0..count).step_by(1_000) {
                // Deleted, and made again under another number.
                let old = catalog.find(Kind::Stream, &format!("s{number}")).unwrap().id;
                catalog.remove(old);
                assert_eq!(names.find(&catalog, Kind::Stream, &format!("s{number}")), None);
                id += 1;
                catalog.put(info(id, &format!("s{number}")));
            }
        }
    }
}
