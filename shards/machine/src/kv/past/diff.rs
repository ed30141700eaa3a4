//! What is different at two times.

use bytes::Bytes;
use flowmesh_model::command::KeyScan;
use flowmesh_model::kv::KvType;
use flowmesh_model::kv::change::ChangeItem;
use flowmesh_model::kv::past::{ItemDiff, KeyDiff, PastAt};
use flowmesh_model::limits::{DIFF_ITEMS_MAX, FEED_ITEMS_BYTES_MAX, KV_LOOKED_MAX, REPLY_BYTES_MAX};
use flowmesh_model::{Millis, Reject, Reply};

use super::scan::{Present, Walk};
use super::view::{Past, Point, Stop, Was, now_at};
use crate::kv::change::read_field;
use crate::kv::run::changed::item;
use crate::kv::tree::Cold;
use crate::kv::value::{Collection, Value};

impl Past<'_> {
    pub(super) fn diff(&self, from: PastAt, to: PastAt, scan: &KeyScan) -> Result<Reply, Stop> {
        let upto = match (from, to) {
            (PastAt::Time(from), PastAt::Time(to)) if from <= to => Present::Ending(to),
            (PastAt::Version(from), PastAt::Version(to)) if from <= to => Present::Ending(Millis(0)),
            _ => {
                return Err(Reject::invalid(
                    "to",
                    "is before `from`, or the one is a time and the other a version",
                )
                .into());
            }
        };
        let mut walk = Walk::new(scan)?;
        let (mut keys, mut bytes, mut members, mut more) = (Vec::new(), 0, 0, false);
        loop {
            if keys.len() == scan.keys_max as usize || members > KV_LOOKED_MAX {
                more = true;
                break;
            }
            let next = self.next(&mut walk, Point::At(from), upto);
            let found = next.and_then(|key| {
                let Some(key) = key else { return Ok(None) };
                let (before, after) = (self.was(&key, Point::At(from)), self.was(&key, Point::At(to)));
                let (before, after) = match (before, after) {
                    (Err(Stop::Value(len)), _) | (Ok(_), Err(Stop::Value(len))) => {
                        bytes += len as usize;
                        return Ok(Some((None, key)));
                    }
                    (before, after) => (before?, after?),
                };
                members += [&before, &after].into_iter().map(members_of).sum::<u64>();
                let diff = key_diff(&key, (&before, now_at(from)), (&after, now_at(to)), scan.with_values);
                Ok(Some((diff.map_err(|cold| Stop::Refuse(cold.into()))?, key)))
            });
            match found {
                Ok(None) => break,
                Ok(Some((diff, key))) => {
                    bytes += diff.as_ref().map_or(0, KeyDiff::bytes);
                    if bytes > REPLY_BYTES_MAX && (!keys.is_empty() || self.wants_values()) {
                        more = true;
                        break;
                    }
                    keys.extend(diff);
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
        Ok(Reply::KvDiff { keys, next: walk.last.filter(|_| more) })
    }
}

fn members_of(was: &Was<'_>) -> u64 {
    was.value.as_ref().and_then(Value::collection).map_or(0, |of| of.items.len())
}

/// What is different of a key, if anything is.
fn key_diff(
    key: &Bytes,
    (before, then): (&Was<'_>, Millis),
    (after, later): (&Was<'_>, Millis),
    with_values: bool,
) -> Result<Option<KeyDiff>, Cold> {
    let (old, new) = (before.shown(then, true), after.shown(later, true));
    let mut diff = KeyDiff { key: key.clone(), before: old, after: new, items: Vec::new(), more: false };
    if let (Some(old), Some(new)) = (&diff.before, &diff.after) {
        let is_same_head = old.expires_at == new.expires_at && old.value == new.value;
        if old.holds == new.holds && old.version != new.version {
            (diff.items, diff.more) = item_diffs((before, then), (after, later))?;
        }
        let fields_end = old.version == new.version && ends_between(before, then, later);
        if fields_end {
            (diff.items, diff.more) = item_diffs((before, then), (after, later))?;
        }
        if old.holds == new.holds && is_same_head && diff.items.is_empty() && !diff.more {
            return Ok(None);
        }
    } else if diff.before.is_none() && diff.after.is_none() {
        return Ok(None);
    }
    if !with_values {
        for value in diff.before.iter_mut().chain(&mut diff.after) {
            value.value = Bytes::new();
        }
        diff.items.clear();
    }
    Ok(Some(diff))
}

/// Whether fields may have ended between two times.
fn ends_between(was: &Was<'_>, then: Millis, later: Millis) -> bool {
    let first = was.value.as_ref().and_then(Value::collection).map_or(Millis(0), |of| of.first_end);
    first.0 != 0 && first <= later && then < later
}

type Items = Vec<(Bytes, ChangeItem)>;

/// The items of a collection then, as far as they had not ended; nothing if they are too many.
fn items_of(collection: &Collection, was: &Was<'_>, now: Millis) -> Result<Option<Items>, Cold> {
    if collection.items.len() > KV_LOOKED_MAX {
        return Ok(None);
    }
    let (mut cursor, mut items) = (collection.items.before_rank(&was.pages, 0)?, Vec::new());
    while let Some((key, value)) = cursor.forward()? {
        let ended = collection.holds == KvType::Hash && (1..=now.0).contains(&read_field(value).0.0);
        if !ended {
            items.push((Bytes::copy_from_slice(key), item(collection.holds, key, value)));
        }
    }
    Ok(Some(items))
}

/// What is different of two collections of a type, and whether there is more.
fn item_diffs(
    (before, then): (&Was<'_>, Millis),
    (after, later): (&Was<'_>, Millis),
) -> Result<(Vec<ItemDiff>, bool), Cold> {
    let (old, new) = (before.value.as_ref(), after.value.as_ref());
    let (Some(old), Some(new)) = (old.and_then(Value::collection), new.and_then(Value::collection)) else {
        return Ok((Vec::new(), false));
    };
    let (old_items, new_items) = (items_of(old, before, then)?, items_of(new, after, later)?);
    let (Some(old_items), Some(new_items)) = (old_items, new_items) else { return Ok((Vec::new(), true)) };
    let all = if old.holds == KvType::List {
        list_diffs(&old_items, &new_items)
    } else {
        keyed_diffs(old_items, new_items)
    };
    let (mut shown, mut bytes) = (Vec::new(), 0);
    for diff in all {
        bytes += diff.bytes();
        if shown.len() == DIFF_ITEMS_MAX || (bytes > FEED_ITEMS_BYTES_MAX && !shown.is_empty()) {
            return Ok((shown, true));
        }
        shown.push(diff);
    }
    Ok((shown, false))
}

/// Fields or members, in byte order.
fn keyed_diffs(old: Items, new: Items) -> Vec<ItemDiff> {
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    let mut all = Vec::new();
    loop {
        let (before, after) = match (old.peek(), new.peek()) {
            (None, None) => return all,
            (Some((one, _)), Some((other, _))) if one == other => (old.next(), new.next()),
            (Some((one, _)), Some((other, _))) if one > other => (None, new.next()),
            (Some(_), _) => (old.next(), None),
            (None, Some(_)) => (None, new.next()),
        };
        let (before, after) = (before.map(|(_, item)| item), after.map(|(_, item)| item));
        if before != after {
            all.push(ItemDiff { index: None, before, after });
        }
    }
}

/// Values of a list between what both begin and end with: those that it had, then those that it has.
fn list_diffs(old: &Items, new: &Items) -> Vec<ItemDiff> {
    let same = |(one, other): &(&(Bytes, ChangeItem), &(Bytes, ChangeItem))| one.1 == other.1;
    let begin = old.iter().zip(new).take_while(same).count();
    let (old, new) = (old.get(begin..).unwrap_or_default(), new.get(begin..).unwrap_or_default());
    let end = old.iter().rev().zip(new.iter().rev()).take_while(same).count();
    let index = |place: usize| Some((begin + place) as u64);
    let had = old.iter().take(old.len() - end).enumerate().map(|(place, (_, item))| ItemDiff {
        index: index(place),
        before: Some(item.clone()),
        after: None,
    });
    let has = new.iter().take(new.len() - end).enumerate().map(|(place, (_, item))| ItemDiff {
        index: index(place),
        before: None,
        after: Some(item.clone()),
    });
    had.chain(has).collect()
}
