//! A catalog that is changed step by step is the one built from all its resources; snapshots share what did not change.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use flowmesh_model::{
    Catalog, Durability, Kind, Millis, ResourceId, ResourceInfo, ResourcePath, Settings, StreamSettings,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Create { path: usize },
    Update { which: usize, durability: Option<Durability> },
    Delete { which: usize },
    Snapshot,
}

fn step() -> impl Strategy<Value = Step> {
    let durability = prop::option::of(Just(Durability::Always));
    prop_oneof![
        4 => (0usize..24).prop_map(|path| Step::Create { path }),
        3 => (any::<usize>(), durability).prop_map(|(which, durability)| Step::Update { which, durability }),
        2 => any::<usize>().prop_map(|which| Step::Delete { which }),
        2 => Just(Step::Snapshot),
    ]
}

fn path(number: usize) -> ResourcePath {
    let kind = Kind::ALL[number % 3];
    let scope = ["", "acme/prod/", "default/default/"][number / 3 % 3];
    ResourcePath::parse(kind, &format!("{scope}name-{}", number / 9)).unwrap()
}

fn info(id: u64, path: ResourcePath) -> Arc<ResourceInfo> {
    let settings = Settings::default_for(path.kind());
    Arc::new(ResourceInfo::new(ResourceId(id), path, settings, Millis(id)))
}

type Model = BTreeMap<ResourceId, Arc<ResourceInfo>>;

/// The catalog has these resources and no others, however it is asked.
fn check(catalog: &Catalog, model: &Model) {
    let rebuilt = Catalog::new(catalog.version(), model.values().cloned());
    assert!(catalog.iter().eq(model.values()) && rebuilt.iter().eq(model.values()));
    assert_eq!((catalog.len(), catalog.is_empty()), (model.len(), model.is_empty()));
    for id in 0..=catalog.last_id().0 + 1 {
        assert_eq!(catalog.get(ResourceId(id)), model.get(&ResourceId(id)));
    }
    for path in (0..24).map(path) {
        let expected = model.values().find(|info| info.path == path);
        assert_eq!(catalog.find_path(&path), expected);
        let middle = format!("{}/{}/{}", path.tenant(), path.namespace(), path.name());
        for name in [path.to_string(), middle, path.name().to_owned()] {
            assert_eq!(catalog.find(path.kind(), &name), rebuilt.find(path.kind(), &name), "{name}");
        }
    }
}

proptest! {
    #[test]
    fn changed_step_by_step_it_is_what_it_would_be_built_anew(steps in prop::collection::vec(step(), 1..200)) {
        let (mut catalog, mut model) = (Catalog::default(), Model::new());
        let mut snapshots = vec![(catalog.clone(), model.clone())];
        for step in steps {
            let pick = |which: usize| model.values().nth(which % model.len().max(1)).cloned();
            match step {
                Step::Create { path: number } => {
                    if catalog.find_path(&path(number)).is_none() {
                        let new = info(catalog.last_id().0 + 1, path(number));
                        model.insert(new.id, Arc::clone(&new));
                        catalog.put(new);
                    }
                }
                Step::Update { which, durability } => {
                    if let Some(old) = pick(which) {
                        let settings = Settings::Stream(StreamSettings { durability, ..StreamSettings::default() });
                        let new = Arc::new(ResourceInfo { settings, ..ResourceInfo::clone(&old) });
                        model.insert(new.id, Arc::clone(&new));
                        catalog.put(new);
                    }
                }
                Step::Delete { which } => {
                    if let Some(old) = pick(which) {
                        model.remove(&old.id);
                        prop_assert_eq!(catalog.remove(old.id), Some(old.clone()));
                        prop_assert_eq!(catalog.remove(old.id), None);
                    }
                }
                Step::Snapshot => snapshots.push((catalog.clone(), model.clone())),
            }
        }
        check(&catalog, &model);
        for (before, model_before) in &snapshots {
            // A snapshot stays what it was.
            check(before, model_before);
            let behind = catalog.version().0 - before.version().0;
            let Some(changed) = catalog.changed_since(before.version()) else {
                prop_assert!(behind > 64, "so many changes are known");
                continue;
            };
            prop_assert_eq!(changed.len() as u64, behind);
            for id in (0..=catalog.last_id().0).map(ResourceId) {
                prop_assert!(changed.contains(&id) || before.get(id) == catalog.get(id), "{} is not listed", id);
            }
            prop_assert!(behind == 0 || before.changed_since(catalog.version()).is_none());
        }
    }
}

/// How often snapshots that are all in use refer to the resources of the last one.
fn references(catalog: &Catalog) -> usize {
    catalog.iter().map(Arc::strong_count).sum()
}

#[test]
fn a_snapshot_shares_all_but_one_change_with_the_one_before() {
    let each = [2_000, 20_000].map(|count| {
        let mut catalog = Catalog::default();
        let next = |catalog: &Catalog| {
            let id = catalog.last_id().0 + 1;
            info(id, ResourcePath::parse(Kind::Stream, &format!("s-{id}")).unwrap())
        };
        for _ in 0..count {
            catalog.put(next(&catalog));
        }
        let before = references(&catalog);
        // One by number and one by each of its three names.
        assert!(before <= 4 * count, "{before}");
        let mut snapshots = Vec::new();
        for _ in 0..500 {
            snapshots.push(catalog.clone());
            catalog.put(next(&catalog));
        }
        (references(&catalog) - before) / 500
    });
    // The nodes on the way to one resource, by number and by three names, have 16 to 64 entries each; a copy of everything
    // would be 8 000 and 80 000 references.
    assert!(each.iter().all(|references| *references < 200), "{each:?}");
}
