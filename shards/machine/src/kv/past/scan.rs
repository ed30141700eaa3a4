//! Ranges of keys as they were: those that are there and those of records, put together in byte order.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use flowmesh_model::command::KeyScan;
use flowmesh_model::kv::past::PastAt;
use flowmesh_model::limits::{BATCH_ITEMS_MAX, KEY_BYTES_MAX, REPLY_BYTES_MAX};
use flowmesh_model::settings::within;
use flowmesh_model::{Millis, Reject, Reply};

use super::record;
use super::view::{Past, Point, Stop, now_at};
use crate::kv::run::glob;
use crate::kv::scan::{is_empty, range};
use crate::limit::size;

/// Rows of each part that are read at once.
const ROWS_OF_SCAN: usize = 512;

/// Keys that one page looks at: bounds the work of one call to some milliseconds.
const KEYS_PER_PAGE: usize = 512;

/// Keys that are there and that one page steps over at most.
const PASSED_MAX: usize = 4_096;

/// Which of the keys that are there are looked at, whether or not there are records of them.
#[derive(Clone, Copy)]
pub(super) enum Present {
    All,
    /// Those of which something ends up to then.
    Ending(Millis),
}

/// A walk over keys.
pub(super) struct Walk<'s> {
    low: Bound<Bytes>,
    high: Bound<Bytes>,
    glob: Option<&'s Bytes>,
    /// What was looked at last.
    pub last: Option<Bytes>,
    looked: usize,
    /// Keys that are there and were stepped over.
    passed: usize,
}

impl<'s> Walk<'s> {
    /// Over the keys of a scan.
    pub fn new(scan: &'s KeyScan) -> Result<Self, Reject> {
        size("prefix", &scan.prefix, KEY_BYTES_MAX)?;
        for (name, key) in
            [("start", &scan.start), ("end", &scan.end), ("after", &scan.after), ("glob", &scan.glob)]
        {
            size(name, key.as_deref().unwrap_or_default(), KEY_BYTES_MAX)?;
        }
        within("keys_max", u64::from(scan.keys_max), 1, BATCH_ITEMS_MAX as u64)?;
        if scan.reverse {
            return Err(Reject::invalid(
                "reverse",
                "is not for what was: it is scanned from the first key on",
            ));
        }
        let (low, high) = range(scan);
        let mut low = low.map(Bytes::copy_from_slice);
        let high = high.map(Bytes::from);
        if let Some(after) = &scan.after {
            use std::ops::RangeBounds;
            if !RangeBounds::<Bytes>::contains(&(low.as_ref(), high.as_ref()), after) {
                return Err(Reject::ForeignCursor);
            }
            low = Bound::Excluded(after.clone());
        }
        Ok(Self { low, high, glob: scan.glob.as_ref(), last: None, looked: 0, passed: 0 })
    }

    /// Whether the page ends here, with more to come: where nothing was looked at, it does not.
    pub fn ends_with(&self, stop: &Stop) -> bool {
        self.last.is_some() && matches!(stop, Stop::Read | Stop::Refuse(Reject::TooLarge { .. }))
    }
}

impl Past<'_> {
    /// The next key of a walk that may have been there at a point or later. `Err(Stop::Read)` also where it has looked at
    /// enough.
    pub fn next(&self, walk: &mut Walk<'_>, point: Point, present: Present) -> Result<Option<Bytes>, Stop> {
        loop {
            let Some(key) = self.next_key(walk, point, present)? else { return Ok(None) };
            if walk.looked == KEYS_PER_PAGE || walk.passed > PASSED_MAX {
                return Err(Stop::Read);
            }
            walk.looked += 1;
            if walk.glob.is_none_or(|glob| glob::matches(glob, &key)) {
                return Ok(Some(key));
            }
            walk.passed(key);
        }
    }

    fn next_key(&self, walk: &mut Walk<'_>, point: Point, present: Present) -> Result<Option<Bytes>, Stop> {
        let (low, high) = (walk.low.clone(), walk.high.clone());
        let (low, high) = (low.as_ref().map(|key| &key[..]), high.as_ref().map(|key| &key[..]));
        if is_empty(low, high) {
            return Ok(None);
        }
        let store = self.asked.store;
        let entries = store.ordered.range(&store.slab, (low, high));
        let mut entries = entries.filter_map(|place| store.slab.get(place));
        let mut first = match present {
            Present::All => entries.next().map(|entry| Bytes::copy_from_slice(entry.key())),
            Present::Ending(_) => None,
        };
        let mut all = true;
        for part in self.parts(point) {
            let from = match low {
                Bound::Included(key) => record::at(part, key),
                Bound::Excluded(key) => record::behind(part, key),
                Bound::Unbounded => record::at(part, &[]),
            };
            let to = match high {
                Bound::Excluded(key) | Bound::Included(key) => record::at(part, key),
                Bound::Unbounded => record::behind_part(part),
            };
            // Beyond what is known to be first nothing matters, but what is read is there for the keys behind it.
            let ahead = to.clone();
            let to = first.as_ref().map_or(to.clone(), |first| record::behind(part, first).min(to));
            all &= self.rows(&(from..to), &ahead, ROWS_OF_SCAN, |row, _| {
                let (key, _) = record::read_row(row).map_err(|_| super::view::damaged(row))?;
                if first.as_ref().is_none_or(|first| key < *first) {
                    first = Some(key);
                }
                Ok(ControlFlow::Break(()))
            })?;
        }
        if !all {
            return Err(Stop::Read);
        }
        if let Present::Ending(upto) = present {
            for entry in
                entries.take_while(|entry| first.as_ref().is_none_or(|first| entry.key() < &first[..]))
            {
                walk.passed += 1;
                let ends = (1..=upto.0).contains(&entry.next_end().0);
                if ends || walk.passed.is_multiple_of(PASSED_MAX) {
                    return Ok(Some(Bytes::copy_from_slice(entry.key())));
                }
            }
        }
        Ok(first)
    }

    pub(super) fn scan(&self, at: PastAt, scan: &KeyScan) -> Result<Reply, Stop> {
        let mut walk = Walk::new(scan)?;
        let (mut entries, mut bytes, mut more) = (Vec::new(), 0, false);
        loop {
            if entries.len() == scan.keys_max as usize {
                more = true;
                break;
            }
            let next = self.next(&mut walk, Point::At(at), Present::All);
            let shown = next.and_then(|key| {
                let Some(key) = key else { return Ok(None) };
                let value = match self.was(&key, Point::At(at)) {
                    Ok(was) => was.shown(now_at(at), scan.with_values),
                    Err(Stop::Value(len)) => {
                        bytes += len as usize;
                        None
                    }
                    Err(stop) => return Err(stop),
                };
                Ok(Some((value, key)))
            });
            match shown {
                Ok(None) => break,
                Ok(Some((value, key))) => {
                    bytes += value.as_ref().map_or(0, |value| key.len() + value.value.len());
                    if bytes > REPLY_BYTES_MAX && (!entries.is_empty() || self.wants_values()) {
                        more = true;
                        break;
                    }
                    entries.extend(value.map(|value| (key.clone(), value)));
                    walk.passed(key);
                }
                Err(stop) if walk.ends_with(&stop) => {
                    more = true;
                    break;
                }
                Err(stop) => return Err(stop),
            }
        }
        // All that the page shows is read at once.
        if self.wants_values() {
            return Err(Stop::Read);
        }
        let next = walk.last.filter(|_| more);
        Ok(Reply::Scanned { entries, next })
    }
}

impl Walk<'_> {
    /// A key was looked at.
    pub fn passed(&mut self, key: Bytes) {
        self.low = Bound::Excluded(key.clone());
        self.last = Some(key);
    }
}
