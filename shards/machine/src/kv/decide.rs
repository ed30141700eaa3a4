//! What can be asked of single keys.

use bytes::{Bytes, BytesMut};
use flowmesh_model::command::{SetEntry, SetIf, SetTtl};
use flowmesh_model::limits::{
    DELAY_MS_MAX, KEY_BYTES_MAX, KV_LARGE_BYTES_MAX, KV_VALUE_BYTES_MAX, VALUE_BYTES_MAX,
};
use flowmesh_model::placement::PlacementHash;
use flowmesh_model::reply::EntryValue;
use flowmesh_model::settings::within;
use flowmesh_model::{Batch, Fact, KvCommand, KvSettings, Lsn, Millis, Reject, Reply, ResourceId};
use smallvec::smallvec;

use super::batch::{Current, Written};
use super::cold::Wanted;
use super::shown::Shown;
use super::{Entry, Store};
use crate::decision::Decision;
use crate::keys::{entry_key, history_row_key};
use crate::limit::{items, size};

/// The store, its number, its settings, the time it is and the LSN a change will get.
pub(crate) struct Asked<'a> {
    pub store: &'a Store,
    pub id: ResourceId,
    pub settings: &'a KvSettings,
    /// Which partition a key is on.
    pub placement: &'a PlacementHash,
    pub now: Millis,
    pub lsn: Lsn,
    /// How many shards share what the store may have.
    pub shares: u16,
    /// What the decision needs that is not in memory.
    pub wanted: Wanted,
}

impl<'a> Asked<'a> {
    pub fn decide(&'a self, command: &KvCommand) -> Result<Decision, Reject> {
        match command {
            KvCommand::Set { entries } => self.set(entries),
            KvCommand::Get { keys } => self.get(keys),
            KvCommand::Delete { keys, if_version: None } => self.delete(keys),
            KvCommand::Delete { keys, if_version: Some(version) } => self.delete_version(keys, *version),
            KvCommand::Exists { keys } => {
                check_keys(keys)?;
                let mut seen = Lsn(0);
                let found = self.store.entries(keys);
                let flags = found.iter().map(|entry| self.live(*entry, &mut seen).is_some()).collect();
                Ok(Decision::Answer { reply: Reply::Flags(flags), seen })
            }
            KvCommand::Scan(scan) => self.scan(scan),
            KvCommand::Run { ops, atomic, seed } => self.run(ops, *atomic, *seed),
            KvCommand::Random { seed } => Ok(self.random(*seed)),
            KvCommand::Status => Ok(self.status()),
            KvCommand::Snapshot { prefix, key, from } => self.snapshot(prefix, key.as_ref(), from),
            KvCommand::Past(_) => Err(Reject::Internal("what was is asked of the machine")),
            KvCommand::Clear { keys_max } => self.clear(*keys_max),
        }
    }

    /// The key of a record of the history, whose last part this is.
    pub fn history_row_key(&self, row: &[u8]) -> Bytes {
        history_row_key(self.placement.partition_slot(0), self.id, row)
    }

    /// The key of what a key holds, in the index.
    pub fn entry_key(&self, key: &[u8]) -> Bytes {
        entry_key(self.placement.key_slot(key), self.id, key)
    }

    /// The same store at another time.
    pub fn at(&self, now: Millis) -> Self {
        let Self { store, id, settings, placement, lsn, shares, .. } = *self;
        Self { store, id, settings, placement, now, lsn, shares, wanted: Wanted::default() }
    }

    /// The entry of a key if it is there now. `seen` grows to what this shows.
    #[inline]
    pub fn look(&self, key: &[u8], seen: &mut Lsn) -> Option<&'a Entry> {
        self.live(self.store.entry(key), seen)
    }

    /// What was found of a key if it is there now. `seen` grows to what this shows.
    #[inline]
    fn live(&self, entry: Option<&'a Entry>, seen: &mut Lsn) -> Option<&'a Entry> {
        *seen = (*seen).max(entry.map_or(self.store.last_removal, Entry::version));
        entry.filter(|entry| entry.is_live(self.now))
    }

    fn get(&self, keys: &[Bytes]) -> Result<Decision, Reject> {
        check_keys(keys)?;
        let (mut seen, mut shown, mut packed_bytes) = (Lsn(0), Shown::default(), 0);
        let found = self.store.entries(keys);
        let mut values = Batch::with_capacity(keys.len());
        for entry in &found {
            values.push(self.live(*entry, &mut seen).map(|entry| {
                entry.heat.count();
                let packed = entry.packed_value();
                let value = self.value_of(entry, packed.is_none());
                shown.add(value.value.len() + entry.view().cold().map_or(0, |cold| cold.len as usize));
                packed_bytes += packed.map_or(0, <[u8]>::len);
                value
            }));
        }
        shown.add_all(packed_bytes);
        shown.check("values of one reply")?;
        // All that lie with their keys share one piece of memory.
        let mut packed = BytesMut::with_capacity(packed_bytes);
        for (value, entry) in values.iter_mut().zip(found) {
            if let (Some(value), Some(text)) = (value, entry.and_then(Entry::packed_value)) {
                packed.extend_from_slice(text);
                value.value = packed.split().freeze();
            }
        }
        Ok(Decision::Answer { reply: Reply::Values(values), seen })
    }

    fn set(&self, entries: &[SetEntry]) -> Result<Decision, Reject> {
        items("entries", entries.len())?;
        let (mut facts, mut seen) = (Batch::with_capacity(entries.len()), Lsn(0));
        let mut large_bytes = 0;
        let mut written = Written::when(entries.len() > 1 && entries.iter().any(looks), self.store.sip);
        let mut outcomes = Batch::with_capacity(entries.len());
        // Some are looked up here, and all when they change.
        self.store.warm(entries.iter().map(|entry| &*entry.key));
        for entry in entries {
            check_entry(entry)?;
            self.check_kept(&entry.value)?;
            // What is there is looked up only if it matters.
            let before = if looks(entry) {
                let of = |found| Current::of(found, self.text_for(&entry.condition, found));
                written.get(&entry.key).or_else(|| self.look(&entry.key, &mut seen).map(of))
            } else {
                None
            };
            let equals =
                |value: &Bytes| Ok(before.as_ref().is_some_and(|before| before.text.as_ref() == Some(value)));
            if let Err(reject) = holds(&entry.condition, before.as_ref().map(|before| before.version), equals)
            {
                outcomes.push(Err(reject));
                continue;
            }
            let expires_at = self.expires_at(entry.ttl, before.as_ref());
            let current = || Current { version: self.lsn, expires_at, text: Some(entry.value.clone()) };
            written.put(&entry.key, current);
            outcomes.push(Ok(self.lsn));
            let (key, value) = (entry.key.clone(), entry.value.clone());
            let fact = Fact::KeySet { store: self.id, key, value, expires_at };
            large_bytes += fact.large_value().map_or(0, Bytes::len);
            check_large(large_bytes)?;
            facts.push(fact);
        }
        let reply = Reply::Written(outcomes);
        Ok(if facts.is_empty() {
            Decision::Answer { reply, seen }
        } else {
            Decision::Change { facts, reply }
        })
    }

    /// A store that keeps its past copies what is replaced, while all others wait.
    pub(super) fn check_kept(&self, value: &[u8]) -> Result<(), Reject> {
        if value.len() > VALUE_BYTES_MAX && (self.settings.history_ms.is_some() || self.store.keeps_history())
        {
            return size("value in a store with a history", value, VALUE_BYTES_MAX);
        }
        Ok(())
    }

    /// The text of an entry, if a condition looks at it.
    fn text_for(&self, condition: &SetIf, entry: &Entry) -> Option<Bytes> {
        match condition {
            SetIf::Value(_) => self.wanted.text(entry.view()).ok().flatten(),
            SetIf::Always | SetIf::Absent | SetIf::Present | SetIf::Version(_) => None,
        }
    }

    /// What a reply shows of an entry; of a collection no value.
    pub fn value_of(&self, entry: &Entry, with_value: bool) -> EntryValue {
        let value = if with_value { self.wanted.text(entry.view()).ok().flatten() } else { None };
        EntryValue {
            holds: entry.view().holds(),
            value: value.unwrap_or_default(),
            version: entry.version(),
            expires_at: entry.expires_at(),
        }
    }

    fn expires_at(&self, ttl: SetTtl, before: Option<&Current>) -> Option<Millis> {
        let default = || self.settings.default_ttl_ms.map(|ttl_ms| self.now.plus(ttl_ms));
        match ttl {
            SetTtl::Millis(ttl_ms) => Some(self.now.plus(ttl_ms)),
            SetTtl::At(at) => Some(at),
            SetTtl::Default => default(),
            SetTtl::Keep => before.map_or_else(default, |before| before.expires_at),
        }
    }

    fn delete(&self, keys: &[Bytes]) -> Result<Decision, Reject> {
        check_keys(keys)?;
        let mut seen = Lsn(0);
        let (mut facts, mut flags) = (Batch::new(), Batch::with_capacity(keys.len()));
        let mut deleted = Written::when(keys.len() > 1, self.store.sip);
        self.store.warm(keys.iter().map(|key| &**key));
        for key in keys {
            let there = deleted.get(key).is_none() && self.look(key, &mut seen).is_some();
            flags.push(there);
            if there {
                deleted.put(key, || Current { version: self.lsn, expires_at: None, text: None });
                facts.push(Fact::KeyDeleted { store: self.id, key: key.clone() });
            }
        }
        let reply = Reply::Flags(flags);
        Ok(if facts.is_empty() {
            Decision::Answer { reply, seen }
        } else {
            Decision::Change { facts, reply }
        })
    }

    fn delete_version(&self, keys: &[Bytes], version: Lsn) -> Result<Decision, Reject> {
        check_keys(keys)?;
        let [key] = keys else {
            return Err(Reject::invalid("if_version", format!("needs exactly one key, not {}", keys.len())));
        };
        let actual = self.look(key, &mut Lsn(0)).map(Entry::version);
        holds(&SetIf::Version(version), actual, |_| Ok(false))?;
        Ok(Decision::Change {
            facts: smallvec![Fact::KeyDeleted { store: self.id, key: key.clone() }],
            reply: Reply::Flags(smallvec![true]),
        })
    }
}

/// Whether what is there makes a difference.
fn looks(entry: &SetEntry) -> bool {
    entry.condition != SetIf::Always || entry.ttl == SetTtl::Keep
}

/// Whether a condition holds of a key that has this version, or is not there; `equals` compares what it holds.
pub(super) fn holds(
    condition: &SetIf,
    actual: Option<Lsn>,
    equals: impl FnOnce(&Bytes) -> Result<bool, Reject>,
) -> Result<(), Reject> {
    let holds = match condition {
        SetIf::Always => true,
        SetIf::Absent => actual.is_none(),
        SetIf::Present => actual.is_some(),
        SetIf::Version(version) => actual == Some(*version),
        SetIf::Value(value) => actual.is_some() && equals(value)?,
    };
    if holds { Ok(()) } else { Err(Reject::ConditionFailed { actual }) }
}

/// Values of one call that go into the log apart.
pub(super) fn check_large(bytes: usize) -> Result<(), Reject> {
    if bytes > KV_LARGE_BYTES_MAX {
        let (size, max) = (bytes as u64, KV_LARGE_BYTES_MAX as u64);
        return Err(Reject::TooLarge { what: "large values of one call", size, max });
    }
    Ok(())
}

pub(super) fn check_keys(keys: &[Bytes]) -> Result<(), Reject> {
    items("keys", keys.len())?;
    keys.iter().try_for_each(|key| check_key(key))
}

#[inline]
pub(super) fn check_key(key: &[u8]) -> Result<(), Reject> {
    if key.is_empty() {
        return Err(Reject::invalid("key", "is empty; at least 1 byte is needed"));
    }
    size("key", key, KEY_BYTES_MAX)
}

#[inline]
fn check_entry(entry: &SetEntry) -> Result<(), Reject> {
    check_key(&entry.key)?;
    size("value", &entry.value, KV_VALUE_BYTES_MAX)?;
    match entry.ttl {
        SetTtl::Millis(ttl_ms) => within("ttl_ms", ttl_ms, 1, DELAY_MS_MAX),
        SetTtl::At(_) | SetTtl::Default | SetTtl::Keep => Ok(()),
    }
}
