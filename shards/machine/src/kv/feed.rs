//! The feed of a store: records of what its facts change, appended in the same entry.
//!
//! Keys of slot `s` have partition `s mod partitions`, which is in the slot of that number and so, while slots are dealt out
//! in turn, on this shard. What is logged are the records themselves, as facts of the stream: a start needs no settings and
//! decides nothing. A record's key is the key, its value the [`flowmesh_model::kv::change`], its header `change` the name of
//! its kind.

use std::collections::BTreeMap;

use flowmesh_model::kv::change::CHANGE_HEADER;
use flowmesh_model::limits::{BATCH_ITEMS_MAX, ENTRY_BYTES_MAX, FEED_BATCH_BYTES};
use flowmesh_model::record::{PackedRecords, RecordPacker, RecordView};
use flowmesh_model::settings::FeedSettings;
use flowmesh_model::{
    Fact, KvSettings, Offset, PartitionRef, Reject, ResourceInfo, ResourcePath, Settings, StreamSettings,
};

use super::decide::Asked;
use super::run::changed::{Changed, Changes};
use crate::stream::{EMPTY, Stream};

/// What an entry takes besides its facts.
const RECORD_BYTES: usize = 64;

/// The feed of a store, as this shard has it.
pub(crate) struct Feed<'a> {
    pub settings: &'a FeedSettings,
    /// Its stream.
    pub info: &'a ResourceInfo,
    /// What the shard holds of it, if it does.
    pub stream: Option<&'a Stream>,
}

/// Records for one partition.
#[derive(Default)]
struct Lane {
    packer: RecordPacker,
    bytes: usize,
    full: Vec<PackedRecords>,
}

impl Lane {
    fn push(&mut self, (key, change): &Changed) -> usize {
        let value = change.encode();
        if self.bytes + value.len() > FEED_BATCH_BYTES || self.packer.count() as usize == BATCH_ITEMS_MAX {
            self.close();
        }
        let headers = vec![(CHANGE_HEADER.as_bytes(), change.kind.as_str().as_bytes())];
        self.packer.push(&RecordView { key: Some(key), value: &value, headers, timestamp_ms: None });
        let bytes = key.len() + value.len() + RECORD_BYTES;
        self.bytes += bytes;
        bytes
    }

    fn close(&mut self) {
        let packer = std::mem::take(&mut self.packer);
        if packer.count() > 0 {
            self.full.push(PackedRecords::of_jobs(packer));
        }
        self.bytes = 0;
    }
}

impl Feed<'_> {
    /// Facts of the feed that belong to the first of these facts of its store, and how many those are: as many as one entry
    /// takes with `bytes_max`, at least one. All others are for another entry.
    ///
    /// # Errors
    /// [`Reject::TooLarge`] if already the first is too much for one entry.
    pub fn records(
        &self,
        asked: &Asked<'_>,
        facts: &[Fact],
        bytes_max: usize,
    ) -> Result<(Vec<Fact>, usize), Reject> {
        let mut changes = Changes::new(asked, facts, self.settings.old_values);
        let mut lanes: BTreeMap<u32, Lane> = BTreeMap::new();
        let (mut bytes, mut taken) = (0, 0);
        for fact in facts {
            if taken > 0 && bytes > bytes_max {
                break;
            }
            for changed in changes.of(fact)? {
                let partition = self.settings.partition(asked.placement.key_slot(&changed.0));
                bytes += lanes.entry(partition).or_default().push(&changed);
                if bytes > ENTRY_BYTES_MAX {
                    let what = "changes of one call with their records in the store's feed";
                    return Err(Reject::TooLarge { what, size: bytes as u64, max: ENTRY_BYTES_MAX as u64 });
                }
            }
            bytes += fact.entry_len_max();
            taken += 1;
        }
        Ok((self.appends(asked, lanes)?, taken))
    }

    fn appends(&self, asked: &Asked<'_>, lanes: BTreeMap<u32, Lane>) -> Result<Vec<Fact>, Reject> {
        let Settings::Stream(settings) = &self.info.settings else {
            return Err(Reject::Internal("a feed that is no stream"));
        };
        let mut facts = Vec::new();
        if self.stream.is_none() && !lanes.is_empty() {
            facts.push(Fact::FeedHeld { id: self.info.id, path: self.info.path.clone() });
        }
        for (partition, mut lane) in lanes {
            lane.close();
            let at = PartitionRef { resource: self.info.id, partition };
            self.append(asked, settings, at, lane.full, &mut facts);
        }
        Ok(facts)
    }

    fn append(
        &self,
        asked: &Asked<'_>,
        settings: &StreamSettings,
        at: PartitionRef,
        batches: Vec<PackedRecords>,
        facts: &mut Vec<Fact>,
    ) {
        let partition = self.stream.and_then(|stream| stream.partition(at.partition)).unwrap_or(&EMPTY);
        let mut base: Offset = partition.next;
        for (index, batch) in batches.into_iter().enumerate() {
            let batch = match settings.compression {
                Some(codec) => batch.compressed(codec),
                None => batch,
            };
            // What one entry appends stays together.
            if index == 0 && partition.rolls(settings, asked.now, batch.bytes().len()) {
                facts.push(Fact::SegmentRolled { at, base });
            }
            let (count, records) = (batch.count(), batch.bytes().clone());
            facts.push(Fact::RecordsAppended { at, base, count, records });
            base = base.plus(u64::from(count));
        }
    }
}

/// Refuses changes of a store whose keys and partitions of the feed are not on the same shards.
pub(crate) fn check_place(settings: &KvSettings, path: &ResourcePath, shards: u16) -> Result<(), Reject> {
    let Some(feed) = &settings.feed else { return Ok(()) };
    if shards > 0 && feed.partitions > 0 && feed.partitions.is_multiple_of(u32::from(shards)) {
        return Ok(());
    }
    Err(Reject::FeedMisplaced { path: path.to_string(), partitions: feed.partitions, shards })
}
