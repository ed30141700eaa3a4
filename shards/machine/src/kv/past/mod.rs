//! The past of a store: for each change what was before, so that what a key held at a time is what it holds now with all
//! changes since undone.
//!
//! ```text
//! fact ──► note   what was before ──► records in memory ──checkpoint──► records in the index
//! read ──► rows   of the index, read beforehand ─┐
//!                 records in memory ─────────────┼──► view   a key as it was ──► ask, scan, diff
//!                 what is there now ─────────────┘
//! ```
//!
//! The first record of a key behind a time that says all that the key held is enough; a [`record`] of a collection may only
//! say what of it changed, and then that is undone, on a copy of the pages that it touches. The pages of a collection that
//! a key does not hold any more stay until nothing kept leads to them.
//!
//! Records stand in parts, each of an eighth of the time for which they are kept, and within each in the order of keys: one
//! look into each part finds a key, and what is too old goes as a whole part. What a start needs is where parts begin and
//! end, and no record.

mod ask;
mod diff;
mod note;
pub(crate) mod record;
mod records;
pub(crate) mod rows;
mod scan;
mod view;

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::limits::{HISTORY_PARTS, KV_LOOKED_MAX};
use flowmesh_model::{Fact, Lsn, Millis, Reject, ResourceId};

use crate::held::Apply;
use crate::keys;
use record::Place;
use records::Records;
pub(in crate::kv) use view::Was;

use super::Store;

/// Collections whose pages nothing leads to any more that go with one fact.
const KEPT_PER_FACT: usize = 64;

/// Refuses what would take too long to note.
///
/// # Errors
/// [`Reject::TooLarge`] if a list loses more values than one call may look at.
pub(crate) fn check_noted(fact: &Fact) -> Result<(), Reject> {
    match fact {
        Fact::Kv(_, KvFact::ItemsRemoved { count, .. }) if *count > KV_LOOKED_MAX => {
            let what = "values that a list of a store with a history loses at once";
            Err(Reject::TooLarge { what, size: *count, max: KV_LOOKED_MAX })
        }
        _ => Ok(()),
    }
}

/// The history of a store on this shard.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// For how long it is kept; 0: not at all.
    ms: u64,
    /// What was after this entry can be read, and what was at this time.
    since: (Lsn, Millis),
    /// By the time of their first record.
    parts: BTreeMap<Millis, Part>,
    pub(super) records: Records,
    /// Where the last record went. Its number says how many the entry has.
    last: Option<(Bytes, Bytes, Place)>,
    /// The first part that the last durable checkpoint knows: what the index has of earlier ones is of no use.
    indexed_from: Millis,
    sealed_from: Millis,
}

/// Records of a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    /// The last entry that it has a record of, and its time.
    last: (Lsn, Millis),
    records: u64,
    bytes: u64,
}

/// What a store keeps of its past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryStats {
    /// Records of what was.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl History {
    /// Whether what changes is noted.
    fn is_on(&self) -> bool {
        self.ms > 0
    }

    /// The part that gets the records of an entry.
    fn open_part(&mut self, time: Millis) -> Millis {
        let width = (self.ms / HISTORY_PARTS).max(1);
        match self.parts.last_key_value() {
            Some((&start, _)) if time.0 < start.0.saturating_add(width) => start,
            _ => {
                self.parts.insert(time, Part::default());
                time
            }
        }
    }

    /// Adds a record.
    fn push(&mut self, cx: &Apply<'_>, key: &[u8], value: Vec<u8>) {
        let number = match &self.last {
            Some((_, _, place)) if place.lsn == cx.at.lsn => place.number + 1,
            _ => 0,
        };
        let place = Place { time: cx.at.time, lsn: cx.at.lsn, number };
        let start = self.open_part(cx.at.time);
        let row = record::row(start, key, place);
        if let Some(part) = self.parts.get_mut(&start) {
            part.last = (place.lsn, place.time);
            part.records += 1;
            part.bytes += (row.len() + value.len()) as u64;
        }
        self.last = Some((row.clone(), Bytes::copy_from_slice(key), place));
        self.records.insert(row, value);
    }

    /// When the oldest part is no longer wanted.
    fn next_due(&self) -> Option<Millis> {
        self.parts.values().next().map(|part| part.last.1.plus(self.ms))
    }

    /// What the whole store keeps.
    fn stats(&self) -> HistoryStats {
        let add = |all: HistoryStats, part: &Part| HistoryStats {
            records: all.records + part.records,
            bytes: all.bytes + part.bytes,
        };
        self.parts.values().fold(HistoryStats::default(), add)
    }

    fn first_part(&self) -> Millis {
        self.parts.keys().next().copied().unwrap_or(Millis(u64::MAX))
    }

    /// | field | size |
    /// |---|---|
    /// | format | 1 |
    /// | for how long it is kept, ms | varint |
    /// | entry and time since when | varint each |
    /// | parts, in order: first time, last entry, last time, records, bytes | varint each |
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(32 + 24 * self.parts.len());
        out.put_u8(keys::FORMAT);
        for number in [self.ms, self.since.0.0, self.since.1.0] {
            put_varint(&mut out, number);
        }
        for (start, part) in &self.parts {
            for number in [start.0, part.last.0.0, part.last.1.0, part.records, part.bytes] {
                put_varint(&mut out, number);
            }
        }
        out.freeze()
    }

    /// Reads what [`History::encode`] wrote.
    pub fn restore(value: Bytes) -> Result<Self, Malformed> {
        let mut reader = keys::open(value)?;
        let mut history = Self {
            ms: reader.varint()?,
            since: (Lsn(reader.varint()?), Millis(reader.varint()?)),
            ..Self::default()
        };
        while !reader.is_empty() {
            let start = Millis(reader.varint()?);
            let last = (Lsn(reader.varint()?), Millis(reader.varint()?));
            let part = Part { last, records: reader.varint()?, bytes: reader.varint()? };
            history.parts.insert(start, part);
        }
        history.indexed_from = history.first_part();
        Ok(history)
    }

    /// A checkpoint takes the state as it is.
    pub fn seal(&mut self) {
        self.sealed_from = self.first_part();
        self.records.seal();
    }

    /// The sealed state is in the index.
    pub fn sealed_written(&mut self) {
        self.indexed_from = self.sealed_from;
        self.records.sealed_written();
    }
}

impl Store {
    /// For how long the past is kept; 0: not at all.
    pub fn history_ms(&self) -> u64 {
        self.history.as_ref().map_or(0, |history| history.ms)
    }

    /// What the settings say.
    pub fn want_history(&mut self, ms: Option<u64>) {
        self.history_wanted = Some(ms.unwrap_or(0));
    }

    /// What is kept of the past.
    pub fn history_stats(&self) -> HistoryStats {
        self.history.as_deref().map(History::stats).unwrap_or_default()
    }

    /// The first part of the history that the index has something of that counts; `None` if there never was a history.
    pub fn history_from(&self) -> Option<Millis> {
        self.history.as_ref().map(|history| history.indexed_from)
    }

    /// The fact that makes the history what the settings say, if it is not.
    pub fn history_fact(&self, wanted_ms: u64) -> Option<KvFact> {
        (wanted_ms != self.history_ms()).then_some(KvFact::HistoryKept { ms: wanted_ms })
    }

    /// When something of the history is due.
    pub(super) fn history_due(&self) -> Option<Millis> {
        if self.history_wanted.is_some_and(|wanted| wanted != self.history_ms()) {
            return Some(Millis(0));
        }
        let history = self.history.as_deref()?;
        if history.records.are_leaving() { Some(Millis(0)) } else { history.next_due() }
    }

    /// Appends what is due of the history.
    pub(super) fn tick_history(&self, store: ResourceId, now: Millis, facts: &mut Vec<Fact>) {
        if let Some(fact) = self.history_wanted.and_then(|wanted| self.history_fact(wanted)) {
            // What is trimmed comes with the next tick.
            return facts.push(Fact::Kv(store, fact));
        }
        let Some(history) = self.history.as_deref() else { return };
        let due = history.next_due().filter(|due| *due <= now);
        let Some(part) = due.and_then(|_| history.parts.values().next()) else { return };
        let (last, time) = part.last;
        let upto = self.pages.nth_kept(KEPT_PER_FACT).map_or(last, |kept| kept.min(last));
        facts.push(Fact::Kv(store, KvFact::HistoryTrimmed { upto, time }));
    }

    /// Takes some of what is no longer wanted out of memory.
    pub fn leave_history(&mut self) {
        if let Some(history) = &mut self.history {
            history.records.leave(records::LEAVE_PER_TICK);
        }
    }

    /// `HistoryKept`
    pub(super) fn history_kept(&mut self, cx: &Apply<'_>, ms: u64) {
        // Of a store that never had a key all is known.
        let is_new = self.is_blank();
        let history = self.history.get_or_insert_default();
        if !history.is_on() {
            history.since = if is_new { (Lsn(0), Millis(0)) } else { (cx.at.lsn, cx.at.time) };
        }
        history.ms = ms;
    }

    /// `HistoryTrimmed`
    pub(super) fn history_trimmed(&mut self, cx: &mut Apply<'_>, upto: Lsn, time: Millis) {
        let Some(history) = &mut self.history else { panic!("a history was trimmed that there is not") };
        history.since = history.since.max((upto, time));
        while let Some(first) = history.parts.first_entry()
            && first.get().last.0 <= upto
        {
            let (start, _) = first.remove_entry();
            history.records.part_gone(&record::behind_part(start));
        }
        self.pages.release(cx.home, cx.seals, upto);
    }
}
