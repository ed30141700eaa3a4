//! A key as it was: what it holds now, or what the first record says that names all of it, with what came between undone.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::past::PastAt;
use flowmesh_model::limits::{HISTORY_LOOKED_BYTES_MAX, HISTORY_LOOKED_MAX, HISTORY_NAMES_MAX};
use flowmesh_model::reply::EntryValue;
use flowmesh_model::{Lsn, Millis, Reject};

use super::History;
use super::record::{self, Before, Place, Record, read_row};
use super::rows::{PastRange, PastRead, PastRows};
use crate::kv::change;
use crate::kv::decide::Asked;
use crate::kv::entry::View;
use crate::kv::is_live;
use crate::kv::pages::Look;
use crate::kv::tree::Scratch;
use crate::kv::value::Value;

/// Rows of a single key that are read at first: mostly the first one says it all.
const ROWS_OF_KEY: usize = 4;

/// When a key is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    At(PastAt),
    /// Right behind a record.
    Behind(Place),
}

impl Point {
    /// Whether a record says what was before something later.
    fn is_before(self, place: Place) -> bool {
        match self {
            Self::At(PastAt::Time(time)) => place.time > time,
            Self::At(PastAt::Version(version)) => place.lsn > version,
            Self::Behind(behind) => place > behind,
        }
    }

    /// The first time that records may have.
    fn from(self) -> Millis {
        match self {
            Self::At(PastAt::Time(time)) => time.plus(1),
            Self::At(PastAt::Version(_)) => Millis(0),
            Self::Behind(place) => place.time,
        }
    }
}

/// What ends at or before this has ended.
pub(super) fn now_at(at: PastAt) -> Millis {
    match at {
        PastAt::Time(time) => time,
        PastAt::Version(_) => Millis(0),
    }
}

/// Why a key cannot be shown yet, or at all.
#[derive(Debug)]
pub(super) enum Stop {
    /// Rows of the index are needed first: [`Past::wanted`] has them.
    Read,
    /// A value of so many bytes that is there now is needed first, and wanted.
    Value(u64),
    Refuse(Reject),
}

impl From<Reject> for Stop {
    fn from(reject: Reject) -> Self {
        Self::Refuse(reject)
    }
}

/// What a key held.
pub(in crate::kv) struct Was<'a> {
    pub value: Option<Value>,
    pub version: Lsn,
    pub end: Millis,
    pub pages: Scratch<Look<'a>>,
}

impl Was<'_> {
    fn nothing() -> Self {
        Self { value: None, version: Lsn(0), end: Millis(0), pages: Scratch::new(Look::NOTHING) }
    }

    /// Whether it was there then.
    pub fn is_live(&self, now: Millis) -> bool {
        self.value.as_ref().is_some_and(|value| is_live(View::from(value), self.end, now))
    }

    /// As replies have it.
    pub fn shown(&self, now: Millis, with_value: bool) -> Option<EntryValue> {
        let value = self.value.as_ref().filter(|_| self.is_live(now))?;
        Some(EntryValue {
            holds: value.holds(),
            value: if with_value { value.text().unwrap_or_default() } else { Bytes::new() },
            version: self.version,
            expires_at: Some(self.end).filter(|end| end.0 != 0),
        })
    }
}

/// A store, and what was read of its history.
pub(super) struct Past<'a> {
    pub asked: &'a Asked<'a>,
    pub history: &'a History,
    rows: &'a PastRows,
    /// Whether there is an index to be read.
    has_index: bool,
    wanted: RefCell<Vec<PastRange>>,
    /// Entries of the index with values that are there now.
    wanted_values: RefCell<Vec<(Bytes, Lsn)>>,
}

impl<'a> Past<'a> {
    pub fn new(asked: &'a Asked<'a>, history: &'a History, rows: &'a PastRows, has_index: bool) -> Self {
        let (wanted, wanted_values) = (RefCell::default(), RefCell::default());
        Self { asked, history, rows, has_index, wanted, wanted_values }
    }

    /// What is to be read first.
    pub fn wanted(&self) -> PastRead {
        PastRead {
            generation: self.history.records.generation(),
            ranges: self.wanted.take(),
            entries: self.wanted_values.take(),
        }
    }

    /// Whether values that are there now are among it.
    pub fn wants_values(&self) -> bool {
        !self.wanted_values.borrow().is_empty()
    }

    pub fn wants(&self) -> bool {
        !self.wanted.borrow().is_empty() || self.wants_values()
    }

    /// Parts that may have records behind a point, the first one first.
    pub fn parts(&self, point: Point) -> impl Iterator<Item = Millis> {
        let parts = self.history.parts.iter();
        parts
            .filter(move |(_, part)| match point {
                Point::At(PastAt::Time(time)) => part.last.1 > time,
                Point::At(PastAt::Version(version)) => part.last.0 > version,
                Point::Behind(place) => part.last.0 >= place.lsn,
            })
            .map(|(start, _)| *start)
    }

    /// Rows of a range, in order, those of the index and those in memory, until `each` has enough. Returns whether they all
    /// are known; what is not is wanted, up to `ahead`.
    pub fn rows(
        &self,
        range: &Range<Bytes>,
        ahead: &Bytes,
        rows_max: usize,
        mut each: impl FnMut(&Bytes, Bytes) -> Result<ControlFlow<()>, Stop>,
    ) -> Result<bool, Stop> {
        let known = if self.has_index {
            let generation = self.history.records.generation();
            let key = |row: &Bytes| self.asked.history_row_key(row);
            let known = self.rows.known(generation, &key(&range.start)).cloned();
            known.map_or_else(|| range.start.clone(), |upto| upto.slice(ROW..))
        } else {
            range.end.clone()
        };
        let upto = known.clone().min(range.end.clone());
        let (from_key, upto_key) =
            (self.asked.history_row_key(&range.start), self.asked.history_row_key(&upto));
        let mut indexed = self.rows.range(&from_key..&upto_key).peekable();
        let mut held = self.history.records.range(range.start.clone()..upto.clone()).peekable();
        loop {
            let order = match (indexed.peek(), held.peek()) {
                (Some((one, _)), Some((other, _))) => one.slice(ROW..).cmp(other),
                (Some(_), None) => Ordering::Less,
                _ => Ordering::Greater,
            };
            // What a checkpoint writes is in both.
            if order == Ordering::Equal {
                held.next();
            }
            let next = if order == Ordering::Greater {
                held.next().map(|(row, value)| (row.clone(), Bytes::copy_from_slice(value)))
            } else {
                indexed.next().map(|(row, value)| (row.slice(ROW..), value.clone()))
            };
            let Some((row, value)) = next else { break };
            if each(&row, value)?.is_break() {
                return Ok(true);
            }
        }
        if upto >= range.end {
            return Ok(true);
        }
        let (rows, bytes) = self.rows.size();
        if rows > HISTORY_LOOKED_MAX || bytes > HISTORY_LOOKED_BYTES_MAX {
            let what = "records of the history that one read looks at";
            return Err(Stop::Refuse(Reject::TooLarge {
                what,
                size: rows as u64,
                max: HISTORY_LOOKED_MAX as u64,
            }));
        }
        // The more there was, the more there is.
        let rows_max = rows_max.max(rows.min(8 * 1024));
        let (from, to) = (self.asked.history_row_key(&upto), self.asked.history_row_key(ahead));
        self.wanted.borrow_mut().push(PastRange { from, to, rows_max });
        Ok(false)
    }

    /// What a key held at a point.
    pub fn was(&self, key: &[u8], point: Point) -> Result<Was<'a>, Stop> {
        self.was_named(key, point, 0)
    }

    fn was_named(&self, key: &[u8], point: Point, names: usize) -> Result<Was<'a>, Stop> {
        if names > HISTORY_NAMES_MAX {
            let (size, max) = (names as u64, HISTORY_NAMES_MAX as u64);
            return Err(Stop::Refuse(Reject::TooLarge { what: "names that a key had since", size, max }));
        }
        let slot = self.asked.placement.key_slot(key);
        let (mut parts, mut first) = (Vec::new(), None);
        for part in self.parts(point) {
            let range = record::rows_of(part, key, point.from());
            let known = self.rows(&range, &range.end, ROWS_OF_KEY, |row, value| {
                let (_, place) = read_row(row).map_err(|_| damaged(key))?;
                if !point.is_before(place) {
                    return Ok(ControlFlow::Continue(()));
                }
                let record = Record::read(&value, slot).map_err(|_| damaged(key))?;
                if let Before::Part(undo) = record.before {
                    parts.push((undo, record.version, record.end));
                    return Ok(ControlFlow::Continue(()));
                }
                first = Some((record, place));
                Ok(ControlFlow::Break(()))
            })?;
            // One part after the other: mostly the first one with a record says it all.
            if !known {
                return Err(Stop::Read);
            }
            if first.is_some() {
                break;
            }
        }
        let was = match first {
            None => self.present(key)?,
            Some((record, place)) => self.whole(record, place, names)?,
        };
        Self::undone(key, was, parts)
    }

    /// What a record says that says all.
    fn whole(&self, record: Record, place: Place, names: usize) -> Result<Was<'a>, Stop> {
        let Record { before, version, end } = record;
        Ok(match before {
            Before::Absent | Before::Part(_) => Was::nothing(),
            Before::Whole(value) => self.held(value, version, end),
            Before::Moved(to) => {
                let was = self.was_named(&to, Point::Behind(place), names + 1)?;
                Was { version, end, ..was }
            }
        })
    }

    /// A key before a record.
    pub fn undo(&self, key: &[u8], was: Was<'a>, record: Record, place: Place) -> Result<Was<'a>, Stop> {
        match record.before {
            Before::Part(undo) => Self::undone(key, was, vec![(undo, record.version, record.end)]),
            _ => self.whole(record, place, 0),
        }
    }

    /// A key as it is with changes undone, of which the first come first.
    fn undone(key: &[u8], mut was: Was<'a>, parts: Vec<(Vec<KvFact>, Lsn, Millis)>) -> Result<Was<'a>, Stop> {
        let facts: usize = parts.iter().map(|(undo, ..)| undo.len()).sum();
        if facts > HISTORY_LOOKED_MAX {
            let what = "changes of a collection that one read undoes";
            let (size, max) = (facts as u64, HISTORY_LOOKED_MAX as u64);
            return Err(Stop::Refuse(Reject::TooLarge { what, size, max }));
        }
        for (undo, version, end) in parts.into_iter().rev() {
            (was.version, was.end) = (version, end);
            for fact in undo.iter().rev() {
                let Some(Value::Collection(collection)) = &mut was.value else {
                    return Err(damaged(key));
                };
                if change::collection_of(fact) != Some(collection.holds) {
                    return Err(damaged(key));
                }
                let undone = change::apply(collection, &mut was.pages, fact);
                undone.map_err(|cold| Stop::Refuse(cold.into()))?;
            }
        }
        Ok(was)
    }

    /// What a key holds now.
    fn present(&self, key: &[u8]) -> Result<Was<'a>, Stop> {
        let Some(entry) = self.asked.store.entry(key) else { return Ok(Was::nothing()) };
        let value = match entry.view().to_value() {
            Ok(value) => value,
            Err(cold) => {
                let index_key = self.asked.entry_key(key);
                let found = self.rows.entry(&index_key, entry.version()).map_err(|_| damaged_entry(key))?;
                let Some(found) = found else {
                    self.wanted_values.borrow_mut().push((index_key, entry.version()));
                    return Err(Stop::Value(u64::from(cold.len)));
                };
                Value::Bytes(found)
            }
        };
        Ok(self.held(value, entry.version(), entry.end()))
    }

    fn held(&self, value: Value, version: Lsn, end: Millis) -> Was<'a> {
        let look = value.collection().map_or(Look::NOTHING, |of| self.asked.store.pages.look(of));
        Was { value: Some(value), version, end, pages: Scratch::new(look) }
    }
}

/// Bytes of slot and store in the key of a row.
const ROW: usize = 10;

fn damaged_entry(key: &[u8]) -> Stop {
    Stop::Refuse(Reject::Damaged {
        place: format!("the value of key {:?} in the index", Bytes::copy_from_slice(key)),
    })
}

pub(super) fn damaged(key: &[u8]) -> Stop {
    Stop::Refuse(Reject::Damaged { place: format!("the history of key {:?}", Bytes::copy_from_slice(key)) })
}
