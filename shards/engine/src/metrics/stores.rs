//! What a shard counts for each key-value store. A store's keys are on all shards, and so are its numbers: whoever shows them adds them up.

pub use flowmesh_machine::StoreHeld;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::{Command, Fact, KvCommand, Lsn, Reply, ResourceId};

use super::resources::{Merge, Rows};

/// What is counted of a store since the shard's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Keys that were read and are there.
    pub hits: u64,
    /// Keys that were read and are not there.
    pub misses: u64,
    /// Changes of what keys hold, one for each field, member or value; and of when they end.
    pub changes: u64,
    /// Keys that were deleted.
    pub deleted: u64,
    /// Keys whose time was up.
    pub expired: u64,
    /// Keys that went because there was no room for all.
    pub evicted: u64,
    /// Fields of hashes whose time was up, without their key.
    pub fields_expired: u64,
}

/// Rows of stores.
pub type StoreRows = Rows<ResourceId, StoreCounts, StoreHeld>;

impl Merge for StoreCounts {
    fn merge(&mut self, other: &Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.changes += other.changes;
        self.deleted += other.deleted;
        self.expired += other.expired;
        self.evicted += other.evicted;
        self.fields_expired += other.fields_expired;
    }
}

impl Merge for StoreHeld {
    fn merge(&mut self, other: &Self) {
        self.keys += other.keys;
        self.memory_bytes += other.memory_bytes;
        self.history.records += other.history.records;
        self.history.bytes += other.history.bytes;
        self.keys_cold += other.keys_cold;
        self.cold_bytes += other.cold_bytes;
    }
}

/// The store that a fact is about, and what it counts as.
pub(super) fn counts_of(fact: &Fact) -> Option<(ResourceId, StoreCounts)> {
    let mut counts = StoreCounts::default();
    let store = match fact {
        Fact::KeyDeleted { store, .. } => {
            counts.deleted = 1;
            store
        }
        Fact::KeyExpired { store, .. } => {
            counts.expired = 1;
            store
        }
        Fact::Kv(
            _,
            KvFact::PagesFreed { .. } | KvFact::HistoryKept { .. } | KvFact::HistoryTrimmed { .. },
        ) => return None,
        Fact::Kv(store, KvFact::Evicted { .. }) => {
            counts.evicted = 1;
            store
        }
        Fact::Kv(store, KvFact::FieldRemoved { expired: true, .. }) => {
            counts.fields_expired = 1;
            store
        }
        Fact::KeySet { store, .. } | Fact::Kv(store, _) => {
            counts.changes = 1;
            store
        }
        _ => return None,
    };
    Some((*store, counts))
}

/// The store that a command read keys of, and how many were there and were not. Operations that change a key are no reads, and
/// neither are scans.
pub(super) fn looks_of(command: &Command, reply: &Reply) -> Option<(ResourceId, StoreCounts)> {
    let Command::Kv(store, command) = command else { return None };
    let (mut hits, mut looks) = (0, 0);
    let mut look = |is_there: bool| {
        looks += 1;
        hits += u64::from(is_there);
    };
    match (command, reply) {
        (KvCommand::Get { .. }, Reply::Values(values)) => {
            values.iter().for_each(|value| look(value.is_some()));
        }
        (KvCommand::Exists { .. }, Reply::Flags(flags)) => flags.iter().copied().for_each(look),
        (KvCommand::Run { ops, .. }, Reply::Kv(outcomes)) => {
            let reads = ops.iter().zip(outcomes).filter(|(op, _)| !op.action.is_write());
            reads
                .filter_map(|(_, outcome)| outcome.as_ref().ok())
                .for_each(|outcome| look(outcome.version != Lsn(0)));
        }
        _ => return None,
    }
    (looks > 0).then(|| (*store, StoreCounts { hits, misses: looks - hits, ..StoreCounts::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use flowmesh_model::command::SetIf;
    use flowmesh_model::kv::{BytesOp, KvAction, KvOp, KvOutcome, KvResult};
    use flowmesh_model::{Millis, Reject};

    const STORE: ResourceId = ResourceId(7);
    const KEY: Bytes = Bytes::from_static(b"k");

    #[test]
    fn a_fact_counts_as_one_thing() {
        let removed = |expired| Fact::Kv(STORE, KvFact::FieldRemoved { key: KEY, field: KEY, expired });
        let set = Fact::KeySet { store: STORE, key: KEY, value: KEY, expires_at: None };
        let end = Fact::Kv(STORE, KvFact::EndSet { key: KEY, expires_at: Some(Millis(1)) });
        let change = StoreCounts { changes: 1, ..StoreCounts::default() };
        for (fact, counts) in [
            (set, change),
            (end, change),
            (removed(false), change),
            (removed(true), StoreCounts { fields_expired: 1, ..StoreCounts::default() }),
            (
                Fact::KeyDeleted { store: STORE, key: KEY },
                StoreCounts { deleted: 1, ..StoreCounts::default() },
            ),
            (
                Fact::KeyExpired { store: STORE, key: KEY },
                StoreCounts { expired: 1, ..StoreCounts::default() },
            ),
            (
                Fact::Kv(STORE, KvFact::Evicted { key: KEY }),
                StoreCounts { evicted: 1, ..StoreCounts::default() },
            ),
        ] {
            assert_eq!(counts_of(&fact), Some((STORE, counts)), "{fact:?}");
        }
        let freed = KvFact::PagesFreed { collection: 1, upto: 9 };
        assert_eq!(counts_of(&Fact::Kv(STORE, freed)), None, "nobody asked for that");
    }

    #[test]
    fn reads_hit_or_miss_and_changes_and_refusals_do_neither() {
        let looks = |hits, misses| Some((STORE, StoreCounts { hits, misses, ..StoreCounts::default() }));
        let exists = Command::Kv(STORE, KvCommand::Exists { keys: [KEY, KEY].into_iter().collect() });
        let flags = |flags: &[bool]| Reply::Flags(flags.iter().copied().collect());
        assert_eq!(looks_of(&exists, &flags(&[true, false])), looks(1, 1));
        assert_eq!(looks_of(&exists, &flags(&[])), None);
        let deleted = KvCommand::Delete { keys: [KEY].into_iter().collect(), if_version: None };
        assert_eq!(looks_of(&Command::Kv(STORE, deleted), &flags(&[true])), None);

        let op = |action| KvOp { key: KEY, condition: SetIf::Always, action: KvAction::Bytes(action) };
        let ops = [op(BytesOp::Length), op(BytesOp::Increment(1)), op(BytesOp::Length), op(BytesOp::Get)];
        let ops = ops.into_iter().collect();
        let run = Command::Kv(STORE, KvCommand::Run { ops, atomic: false, seed: 0 });
        let done = |version| Ok(KvOutcome { version: Lsn(version), result: KvResult::Integer(1) });
        let outcomes = [done(0), done(5), done(5), Err(Reject::Cancelled)];
        assert_eq!(looks_of(&run, &Reply::Kv(outcomes.into_iter().collect())), looks(1, 1));
    }
}
