//! Metrics of single key-value stores. A store's keys are on all shards, whose numbers are added up here.
//!
//! A store has labels of its own if every shard that had to leave stores out has counted this one by itself, and only the
//! [`METRIC_RESOURCES_MAX`] first created of those; all others are one row. That row can fall when another
//! store is deleted and one of them gets its place.

use std::collections::BTreeMap;
use std::fmt;

use flowmesh_engine::metrics::StoreRows;
use flowmesh_engine::metrics::resources::{Merge, Row};
use flowmesh_engine::metrics::stores::{StoreCounts, StoreHeld};
use flowmesh_model::limits::METRIC_RESOURCES_MAX;
use flowmesh_model::{Catalog, ResourceId};
use prometheus_client::encoding::DescriptorEncoder;

use super::Scrape;
use super::resources::{Labelled, Numbers, OTHER, QueueLabels, labels};

type Store = Row<StoreCounts, StoreHeld>;

const GAUGES: &[Numbers<Store>] = &[
    ("flowmesh_kv_entries", "Keys, those included whose time is up and that are not removed yet", |s| {
        s.holds.keys
    }),
    ("flowmesh_kv_memory_bytes", "What keys and what they hold take in memory, estimated", |s| {
        s.holds.memory_bytes
    }),
    ("flowmesh_kv_history_records", "Records of what was before changes", |s| s.holds.history.records),
    ("flowmesh_kv_history_bytes", "Bytes of records of what was before changes", |s| s.holds.history.bytes),
    ("flowmesh_kv_cold_entries", "Keys whose values have left memory", |s| s.holds.keys_cold),
    ("flowmesh_kv_cold_bytes", "What these values are together", |s| s.holds.cold_bytes),
];

const COUNTERS: &[Numbers<Store>] = &[
    ("flowmesh_kv_hits", "Keys that were read and were there", |s| s.counts.hits),
    ("flowmesh_kv_misses", "Keys that were read and were not there", |s| s.counts.misses),
    ("flowmesh_kv_changes", "Changes of what keys hold, by field, member or value, and of their ends", |s| {
        s.counts.changes
    }),
    ("flowmesh_kv_deletes", "Keys deleted", |s| s.counts.deleted),
    ("flowmesh_kv_expired", "Keys whose time was up", |s| s.counts.expired),
    ("flowmesh_kv_evicted", "Keys that went because there was no room for all", |s| s.counts.evicted),
    ("flowmesh_kv_fields_expired", "Fields of hashes whose time was up", |s| s.counts.fields_expired),
];

/// Writes all families of stores out.
pub(super) fn encode(scrape: &Scrape, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let shards: Vec<&StoreRows> = scrape.cores.iter().map(|core| &core.shard.stores).collect();
    let stores = label(&added_up(&shards), &scrape.catalog);
    stores.gauges(encoder, GAUGES)?;
    stores.counters(encoder, COUNTERS)
}

/// Stores with labels of their own, and all others.
#[derive(Debug, Default)]
struct AddedUp {
    own: BTreeMap<ResourceId, Store>,
    other: Store,
}

fn added_up(shards: &[&StoreRows]) -> AddedUp {
    let mut sums = AddedUp::default();
    for shard in shards {
        sums.other.merge(&shard.other);
        for (id, row) in &shard.own {
            sums.own.entry(*id).or_default().merge(row);
        }
    }
    let full = || shards.iter().filter(|shard| shard.own.len() >= METRIC_RESOURCES_MAX);
    let is_own =
        |id: &ResourceId| full().all(|shard| shard.own.binary_search_by_key(id, |(own, _)| *own).is_ok());
    let (own, left_out): (Vec<_>, Vec<_>) =
        std::mem::take(&mut sums.own).into_iter().partition(|(id, _)| is_own(id));
    let mut own = own.into_iter();
    sums.own.extend(own.by_ref().take(METRIC_RESOURCES_MAX));
    own.chain(left_out).for_each(|(_, row)| sums.other.merge(&row));
    sums
}

/// One that the catalog does not have any more is left out.
fn label(stores: &AddedUp, catalog: &Catalog) -> Labelled<QueueLabels, StoreCounts, StoreHeld> {
    const NAMES: [&str; 3] = ["tenant", "namespace", "store"];
    let own = stores.own.iter().filter_map(|(id, row)| {
        let path = &catalog.get(*id)?.path;
        Some((labels([path.tenant(), path.namespace(), path.name()], NAMES), row.clone()))
    });
    let other =
        (stores.other != Row::default()).then(|| (labels(["", "", OTHER], NAMES), stores.other.clone()));
    Labelled(own.chain(other).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(hits: u64) -> Store {
        let counts = StoreCounts { hits, ..StoreCounts::default() };
        Row { counts, holds: StoreHeld { keys: 1, memory_bytes: 10, ..StoreHeld::default() } }
    }

    fn shard(own: impl IntoIterator<Item = u64>, other: Store) -> StoreRows {
        StoreRows { own: own.into_iter().map(|id| (ResourceId(id), store(id))).collect(), other }
    }

    #[test]
    fn what_shards_have_of_a_store_is_added_up() {
        let shards = [shard([1, 2], Row::default()), shard([2, 3], Row::default())];
        let sums = added_up(&[&shards[0], &shards[1]]);
        let hits: Vec<_> = sums.own.iter().map(|(id, row)| (id.0, row.counts.hits, row.holds.keys)).collect();
        assert_eq!(hits, [(1, 1, 1), (2, 4, 2), (3, 3, 1)]);
        assert_eq!(sums.other, Row::default());
    }

    #[test]
    fn a_store_that_a_shard_left_out_or_that_is_one_too_many_has_no_row_of_its_own() {
        let max = METRIC_RESOURCES_MAX as u64;
        // The first shard had no place for the store `max`, and counted it with another.
        let shards = [shard(0..max, store(1000)), shard([max], Row::default())];
        let sums = added_up(&[&shards[0], &shards[1]]);
        assert_eq!(sums.own.len() as u64, max);
        assert_eq!((sums.other.counts.hits, sums.other.holds.keys), (1000 + max, 2));
        // No shard is full, but together they are too many.
        let shards = [shard(0..max - 1, Row::default()), shard(max..max + 3, Row::default())];
        let sums = added_up(&[&shards[0], &shards[1]]);
        assert_eq!(sums.own.len() as u64, max);
        assert_eq!(sums.other.counts.hits, 2 * max + 3);
    }
}
