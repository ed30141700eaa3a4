//! What can be asked of the past: keys, operations that change nothing, versions. [`super::scan`] has ranges.

use std::ops::ControlFlow;

use bytes::Bytes;
use flowmesh_model::kv::KvOp;
use flowmesh_model::kv::past::{KeyVersion, PastAsk, PastAt};
use flowmesh_model::limits::{HISTORY_PAGE_MAX, REPLY_BYTES_MAX};
use flowmesh_model::settings::within;
use flowmesh_model::{Batch, Lsn, Millis, Reject, Reply, ResourcePath};

use super::History;
use super::record::{Place, Record, read_row, rows_of};
use super::rows::PastRows;
use super::view::{Past, Point, Stop, damaged, now_at};
use crate::decision::Decision;
use crate::kv::cold::fetched;
use crate::kv::decide::{Asked, check_key, check_keys};
use crate::kv::shown::Shown;

/// Rows of one key's versions that are read at once.
const ROWS_OF_VERSIONS: usize = 512;

impl<'a> Asked<'a> {
    /// What was, as far as what was read of the index says it; else what is to be read.
    pub fn past(
        &'a self,
        ask: &PastAsk,
        path: &ResourcePath,
        rows: &'a PastRows,
        has_index: bool,
    ) -> Result<Decision, Reject> {
        if self.settings.history_ms.is_none() {
            return Err(Reject::NoHistory { path: path.to_string() });
        }
        let new = History { since: (self.lsn, self.now), ..History::default() };
        let blank = History::default();
        let history = match self.store.history.as_deref() {
            Some(history) if history.is_on() => history,
            // Where nothing is held there was never anything; else what the settings say is not so yet.
            _ if self.store.is_blank() => &blank,
            _ => &new,
        };
        let past = Past::new(self, history, rows, has_index);
        match past.ask(ask) {
            Ok(reply) => Ok(Decision::Answer { reply, seen: Lsn(self.lsn.0.saturating_sub(1)) }),
            Err(Stop::Read | Stop::Value(_)) => Ok(Decision::Past(past.wanted())),
            Err(Stop::Refuse(reject)) => Err(reject),
        }
    }
}

impl Past<'_> {
    fn ask(&self, ask: &PastAsk) -> Result<Reply, Stop> {
        match ask {
            PastAsk::Get { at, keys } => {
                self.check(*at)?;
                self.get(*at, keys)
            }
            PastAsk::Run { at, ops, seed } => {
                self.check(*at)?;
                self.run(*at, ops, *seed)
            }
            PastAsk::Scan { at, scan } => {
                self.check(*at)?;
                self.scan(*at, scan)
            }
            PastAsk::Versions { key, after, limit } => self.versions(key, *after, *limit),
            PastAsk::Diff { from, to, scan } => {
                self.check(*from)?;
                self.check(*to)?;
                self.diff(*from, *to, scan)
            }
        }
    }

    /// Refuses what is not known: what will be, and what is not kept.
    fn check(&self, at: PastAt) -> Result<(), Reject> {
        let (oldest_version, oldest) = self.history.since;
        let not_kept = |requested: u64, is_version: bool| {
            Err(Reject::HistoryNotKept { requested, is_version, oldest_ms: oldest.0, oldest_version })
        };
        match at {
            PastAt::Time(time) if time > self.asked.now => {
                let now = self.asked.now;
                Err(Reject::invalid("as_of_ms", format!("is {time}, which lies in the future: it is {now}")))
            }
            PastAt::Version(version) if version >= self.asked.lsn => {
                let newest = self.asked.lsn.0.saturating_sub(1);
                Err(Reject::invalid("at_version", format!("is {version}; the newest is {newest}")))
            }
            PastAt::Time(time) if time < oldest => not_kept(time.0, false),
            PastAt::Version(version) if version < oldest_version => not_kept(version.0, true),
            _ => Ok(()),
        }
    }

    fn get(&self, at: PastAt, keys: &[Bytes]) -> Result<Reply, Stop> {
        check_keys(keys)?;
        let (mut values, mut shown) = (Batch::with_capacity(keys.len()), Shown::default());
        for key in keys {
            let value = match self.was(key, Point::At(at)) {
                Ok(was) => was.shown(now_at(at), true),
                Err(Stop::Read) => continue,
                Err(Stop::Value(len)) => {
                    shown.add(len as usize);
                    None
                }
                Err(refused) => return Err(refused),
            };
            shown.add(value.as_ref().map_or(0, |value| value.value.len()));
            shown.check("values of one reply")?;
            values.push(value);
        }
        if self.wants() { Err(Stop::Read) } else { Ok(Reply::Values(values)) }
    }

    fn run(&self, at: PastAt, ops: &[KvOp], seed: u64) -> Result<Reply, Stop> {
        if let Some(index) = ops.iter().position(|op| op.action.is_write()) {
            return Err(Reject::PastChange { index: index as u32 }.into());
        }
        let (mut keys, mut bytes) = (Vec::new(), 0);
        for key in ops.iter().flat_map(|op| std::iter::once(&op.key).chain(op.action.other_keys())) {
            check_key(key)?;
            match self.was(key, Point::At(at)) {
                Ok(was) => keys.push((key.clone(), was)),
                Err(Stop::Read) => {}
                Err(Stop::Value(len)) => bytes += len,
                Err(refused) => return Err(refused),
            }
        }
        fetched(bytes)?;
        if self.wants() {
            return Err(Stop::Read);
        }
        let then = self.asked.at(now_at(at));
        Ok(then.run_past(ops, seed, keys)?)
    }

    /// What a key held, the oldest first.
    fn versions(&self, key: &Bytes, after: Lsn, limit: u32) -> Result<Reply, Stop> {
        check_key(key)?;
        within("limit", u64::from(limit), 1, HISTORY_PAGE_MAX as u64)?;
        let after = after.max(self.history.since.0);
        let slot = self.asked.placement.key_slot(key);
        let (mut records, mut entries, mut bytes, mut more) = (Vec::<(Place, Record)>::new(), 0, 0, false);
        for part in self.parts(Point::At(PastAt::Version(after))) {
            let range = rows_of(part, key, Millis(0));
            let known = self.rows(&range, &range.end, ROWS_OF_VERSIONS, |row, value| {
                let (_, place) = read_row(row).map_err(|_| damaged(key))?;
                if place.lsn <= after {
                    return Ok(ControlFlow::Continue(()));
                }
                if records.last().is_none_or(|(last, _)| last.lsn != place.lsn) {
                    if entries == limit || bytes > REPLY_BYTES_MAX / 2 {
                        more = true;
                        return Ok(ControlFlow::Break(()));
                    }
                    entries += 1;
                }
                bytes += value.len();
                records.push((place, Record::read(&value, slot).map_err(|_| damaged(key))?));
                Ok(ControlFlow::Continue(()))
            })?;
            if !known {
                return Err(Stop::Read);
            }
            if more {
                break;
            }
        }
        let last = records.last().map_or(after, |(place, _)| place.lsn);
        let mut was = self.was(key, Point::At(PastAt::Version(last)))?;
        let mut versions = Vec::new();
        let mut shown = None;
        for (place, record) in records.into_iter().rev() {
            if shown != Some(place.lsn) {
                let value = was.shown(Millis(0), true);
                versions.push(KeyVersion { version: place.lsn, at: Some(place.time), value });
                shown = Some(place.lsn);
            }
            was = self.undo(key, was, record, place)?;
        }
        // What was there when the history begins.
        if after == self.history.since.0
            && let Some(value) = was.shown(Millis(0), true)
        {
            versions.push(KeyVersion { version: value.version, at: None, value: Some(value) });
        }
        versions.reverse();
        Ok(Reply::KvVersions { versions, next: more.then_some(last) })
    }
}
