//! Which slot a partition or key belongs to, and which shard holds a slot.
//!
//! The hash is part of the disk format: the golden tests below may never change.
//! - The **placement text** of a resource is its path, or, if its name holds a `{tag}`, `tenant/namespace/{tag}`.
//! - A stream's or queue's partition `p` is in slot `xxh3_64(text, seed = p) mod 4096`.
//! - Partition `p` of a store's feed is in slot `p`, whatever its path: while slots are dealt out in turn and a feed has as many
//!   partitions on each shard, a key of slot `s` and partition `s mod partitions` are on one shard.
//! - A key of a store is in slot `xxh3_64(key, seed = xxh3_64(text))  mod 4096`, or, if the key holds a `{tag}`,
//!   in slot `xxh3_64("tenant/namespace/{tag}", seed = 0) mod 4096`: where a queue or stream of that tag is.
//! - A worker is in slot `xxh3_64(text, seed = 0) mod 4096`; its path is `tenant/namespace/worker/name`, and a `{tag}` in
//!   its name counts as above.
//! - A record whose request names no partition is in partition `xxh3_64(key) mod partitions` of its stream. Not part of
//!   the disk format, but of the API: clients and older records rely on it.

use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::ids::{ShardId, SlotId};
use crate::path::ResourcePath;
use crate::worker::WorkerPath;

/// The number of slots, fixed for ever: 4096 keeps 256 shards within 7 % of even and the map small.
pub const SLOTS: u16 = 4096;

/// A resource's part of every placement, computed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementHash {
    /// The placement text; shared with the path unless that has a tag.
    text: Arc<str>,
    seed: u64,
    /// How long `tenant/namespace/` is, with which it begins.
    scope_len: u16,
    /// Whether partition `p` is in slot `p`.
    is_feed: bool,
}

impl PlacementHash {
    /// The placement of a path.
    pub fn of(path: &ResourcePath) -> Self {
        let text = match tag_of(path.name().as_bytes()) {
            Some(tag) => {
                let tag = String::from_utf8_lossy(tag);
                format!("{}/{}/{{{tag}}}", path.tenant(), path.namespace()).into()
            }
            None => path.shared(),
        };
        let seed = xxh3_64(text.as_bytes());
        Self { text, seed, scope_len: path.scope_len() as u16, is_feed: false }
    }

    /// The placement of a store's feed.
    pub fn of_feed(path: &ResourcePath) -> Self {
        Self { is_feed: true, ..Self::of(path) }
    }

    /// Whether it is that of a store's feed.
    pub fn is_feed(&self) -> bool {
        self.is_feed
    }

    /// The slot of a stream's or queue's partition.
    pub fn partition_slot(&self, partition: u32) -> SlotId {
        if self.is_feed {
            return to_slot(partition.into());
        }
        to_slot(xxh3_64_with_seed(self.text.as_bytes(), u64::from(partition)))
    }

    /// The slot of a key of a store.
    pub fn key_slot(&self, key: &[u8]) -> SlotId {
        match tag_of(key) {
            None => to_slot(xxh3_64_with_seed(key, self.seed)),
            Some(tag) => {
                let scope = self.text.get(..self.scope_len.into()).unwrap_or_default();
                let mut text = Vec::with_capacity(scope.len() + tag.len() + 2);
                text.extend_from_slice(scope.as_bytes());
                text.push(b'{');
                text.extend_from_slice(tag);
                text.push(b'}');
                to_slot(xxh3_64_with_seed(&text, 0))
            }
        }
    }
}

/// The partition of a record with that key, where its request names none.
#[must_use]
pub fn key_partition(key: &[u8], partitions: u32) -> u32 {
    (xxh3_64(key) % u64::from(partitions.max(1))) as u32
}

/// The slot of a worker.
#[must_use]
pub fn worker_slot(path: &WorkerPath) -> SlotId {
    match tag_of(path.name().as_bytes()) {
        None => to_slot(xxh3_64_with_seed(path.as_str().as_bytes(), 0)),
        Some(tag) => {
            let tag = String::from_utf8_lossy(tag);
            to_slot(xxh3_64_with_seed(format!("{}{{{tag}}}", path.scope()).as_bytes(), 0))
        }
    }
}

fn to_slot(hash: u64) -> SlotId {
    SlotId((hash % u64::from(SLOTS)) as u16)
}

/// The bytes between the first `{` and the next `}`, if there are any (as in Redis Cluster).
fn tag_of(name: &[u8]) -> Option<&[u8]> {
    let open = name.iter().position(|&c| c == b'{')?;
    let rest = name.get(open + 1..)?;
    let close = rest.iter().position(|&c| c == b'}')?;
    if close == 0 { None } else { rest.get(..close) }
}

/// Which shard holds which slot.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SlotMap(Vec<ShardId>);

impl SlotMap {
    /// The map of a new data directory: slots dealt out in turn.
    pub fn new(shards: u16) -> Self {
        assert!(shards > 0, "a server has at least one shard");
        Self((0..SLOTS).map(|slot| ShardId(slot % shards)).collect())
    }

    /// The shard that holds a slot.
    pub fn shard(&self, slot: SlotId) -> ShardId {
        self.0.get(usize::from(slot.0)).copied().unwrap_or_default()
    }

    /// Whether the map has an entry for every slot and names only shards below `shards`.
    pub fn is_valid(&self, shards: u16) -> bool {
        self.0.len() == usize::from(SLOTS) && self.0.iter().all(|shard| shard.0 < shards)
    }

    /// Whether slots are dealt out to so many shards in turn, as in a new directory.
    pub fn is_in_turn(&self, shards: u16) -> bool {
        shards > 0 && *self == Self::new(shards)
    }

    /// Slots held by a shard.
    pub fn slots_of(&self, shard: ShardId) -> usize {
        self.0.iter().filter(|&&holder| holder == shard).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Kind;

    fn placed(kind: Kind, name: &str) -> PlacementHash {
        PlacementHash::of(&ResourcePath::parse(kind, name).unwrap())
    }

    #[test]
    fn the_hash_never_changes() {
        let stream = placed(Kind::Stream, "logs");
        let store = placed(Kind::Kv, "sessions");
        let golden = [
            stream.partition_slot(0),
            stream.partition_slot(1),
            placed(Kind::Queue, "logs").partition_slot(0),
            store.key_slot(b"user:1"),
            store.key_slot(b"user:{1}"),
            placed(Kind::Queue, "mail{1}").partition_slot(0),
        ];
        assert_eq!(golden.map(SlotId::get), GOLDEN);
    }

    const GOLDEN: [u16; 6] = [3300, 589, 61, 1183, 4003, 4003];

    #[test]
    fn the_partition_of_a_key_never_changes() {
        let partitions = [&b""[..], b"k", b"user:1", b"user:2"].map(|key| key_partition(key, 16));
        assert_eq!(partitions, [2, 13, 1, 2]);
        assert_eq!(key_partition(b"k", 1), 0);
    }

    #[test]
    fn the_slot_of_a_worker_never_changes() {
        let slots = ["w1", "acme/prod/w1"].map(|name| worker_slot(&WorkerPath::parse(name).unwrap()).get());
        assert_eq!(slots, [3504, 2019]);
    }

    #[test]
    fn what_shares_a_tag_shares_a_slot() {
        let queue = placed(Kind::Queue, "cart{42}").partition_slot(0);
        assert_eq!(placed(Kind::Stream, "events{42}").partition_slot(0), queue);
        assert_eq!(placed(Kind::Kv, "stock").key_slot(b"item:{42}:left"), queue);
        assert_eq!(worker_slot(&WorkerPath::parse("w{42}").unwrap()), queue);
    }

    #[test]
    fn a_key_and_its_partition_of_a_feed_are_on_one_shard() {
        let path = ResourcePath::parse(Kind::Stream, "changes").unwrap();
        let feed = PlacementHash::of_feed(&path);
        assert_eq!(feed.partition_slot(7), SlotId(7));
        for (shards, partitions) in [(1, 1), (1, 4), (2, 4), (3, 6), (3, 1023), (7, 14), (256, 1024)] {
            let map = SlotMap::new(shards);
            assert!(map.is_in_turn(shards) && !map.is_in_turn(shards + 1));
            for slot in (0..SLOTS).map(SlotId) {
                let partition = u32::from(slot.0) % partitions;
                assert_eq!(
                    map.shard(slot),
                    map.shard(feed.partition_slot(partition)),
                    "{shards} {partitions}"
                );
            }
        }
    }

    #[test]
    fn new_maps_are_even() {
        let map = SlotMap::new(3);
        assert!(map.is_valid(3));
        assert!((0..3).all(|s| (1365..=1366).contains(&map.slots_of(ShardId(s)))));
    }
}
