//! How facts change a collection. The store applies them to what it has, a decision to what it tries.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::Millis;
use flowmesh_model::kv::fact::KvFact;
use flowmesh_model::kv::{KvType, Real, Side};
use smallvec::SmallVec;

use super::tree::{Cold, Pages, PagesMut};
use super::value::Collection;

/// Which type of collection a fact is about, if it is about one's items.
pub(super) fn collection_of(fact: &KvFact) -> Option<KvType> {
    match fact {
        KvFact::FieldSet { .. } | KvFact::FieldRemoved { .. } | KvFact::FieldEndSet { .. } => {
            Some(KvType::Hash)
        }
        KvFact::MemberAdded { .. } | KvFact::MemberRemoved { .. } => Some(KvType::Set),
        KvFact::ScoreSet { .. } | KvFact::ScoreRemoved { .. } => Some(KvType::SortedSet),
        KvFact::Pushed { .. }
        | KvFact::ItemsRemoved { .. }
        | KvFact::ItemSet { .. }
        | KvFact::ItemInserted { .. } => Some(KvType::List),
        KvFact::Counted { .. }
        | KvFact::EndSet { .. }
        | KvFact::Renamed { .. }
        | KvFact::Copied { .. }
        | KvFact::Evicted { .. }
        | KvFact::PagesFreed { .. }
        | KvFact::HistoryKept { .. }
        | KvFact::HistoryTrimmed { .. } => None,
    }
}

/// Changes a collection as a fact about its items says.
pub(super) fn apply(
    collection: &mut Collection,
    pages: &mut impl PagesMut,
    fact: &KvFact,
) -> Result<(), Cold> {
    match fact {
        KvFact::FieldSet { field, value, expires_at, .. } => {
            put_field(collection, pages, field, value, expires_at.unwrap_or_default())?;
        }
        KvFact::FieldRemoved { field, .. } => remove_field(collection, pages, field)?,
        KvFact::FieldEndSet { field, expires_at, .. } => {
            let value =
                collection.items.get(pages, field)?.map(|item| Bytes::copy_from_slice(read_field(item).1));
            if let Some(value) = value {
                put_field(collection, pages, field, &value, expires_at.unwrap_or_default())?;
            }
        }
        KvFact::MemberAdded { member, .. } => drop(collection.items.insert(pages, member, &[])?),
        KvFact::MemberRemoved { member, .. } => drop(collection.items.remove(pages, member)?),
        KvFact::ScoreSet { member, score, .. } => {
            let score = score.to_ordered();
            let before =
                collection.items.insert_over(pages, member, &score, |score| ordered(score, member))?;
            if let Some(before) = before {
                collection.order.remove(pages, &before)?;
            }
            collection.order.insert(pages, &ordered(&score, member), &[])?;
        }
        KvFact::ScoreRemoved { member, .. } => {
            remove_score(collection, pages, member)?;
            collection.items.remove(pages, member)?;
        }
        KvFact::Pushed { side, value, .. } => {
            let at = if *side == Side::Front { 0 } else { collection.items.len() };
            collection.items.insert_at(pages, at, value)?;
        }
        KvFact::ItemsRemoved { index, count: 1, .. } => drop(collection.items.remove_at(pages, *index)?),
        KvFact::ItemsRemoved { index, count, .. } => {
            collection.items.remove_range(pages, *index, *count)?;
        }
        KvFact::ItemSet { index, value, .. } => drop(collection.items.replace_at(pages, *index, value)?),
        KvFact::ItemInserted { index, value, .. } => drop(collection.items.insert_at(pages, *index, value)?),
        KvFact::Counted { .. }
        | KvFact::EndSet { .. }
        | KvFact::Renamed { .. }
        | KvFact::Copied { .. }
        | KvFact::Evicted { .. }
        | KvFact::PagesFreed { .. }
        | KvFact::HistoryKept { .. }
        | KvFact::HistoryTrimmed { .. } => panic!("no fact about items of a collection: {fact:?}"),
    }
    collection.next_page = pages.next_no();
    if collection.holds == KvType::Hash {
        note_ends(collection, pages)?;
    }
    Ok(())
}

fn put_field(
    collection: &mut Collection,
    pages: &mut impl PagesMut,
    field: &[u8],
    value: &[u8],
    end: Millis,
) -> Result<(), Cold> {
    remove_end(collection, pages, field)?;
    collection.items.insert(pages, field, &field_item(value, end))?;
    if end.0 != 0 {
        collection.order.insert(pages, &ordered(&end.0.to_be_bytes(), field), &[])?;
    }
    Ok(())
}

fn remove_field(collection: &mut Collection, pages: &mut impl PagesMut, field: &[u8]) -> Result<(), Cold> {
    remove_end(collection, pages, field)?;
    collection.items.remove(pages, field)?;
    Ok(())
}

fn remove_end(collection: &mut Collection, pages: &mut impl PagesMut, field: &[u8]) -> Result<(), Cold> {
    if collection.order.len() == 0 {
        return Ok(());
    }
    let end = collection.items.get(pages, field)?.map_or(Millis(0), |item| read_field(item).0);
    if end.0 != 0 {
        collection.order.remove(pages, &ordered(&end.0.to_be_bytes(), field))?;
    }
    Ok(())
}

fn remove_score(collection: &mut Collection, pages: &mut impl PagesMut, member: &[u8]) -> Result<(), Cold> {
    let score = collection.items.get(pages, member)?.map(|score| ordered(score, member));
    if let Some(key) = score {
        collection.order.remove(pages, &key)?;
    }
    Ok(())
}

fn note_ends(collection: &mut Collection, pages: &impl Pages) -> Result<(), Cold> {
    let ends = &collection.order;
    let end_of = |item: Option<(&[u8], &[u8])>| item.map_or(Millis(0), |(key, _)| read_end(key));
    collection.first_end = if ends.len() == 0 { Millis(0) } else { end_of(ends.at(pages, 0)?) };
    let all_end = ends.len() > 0 && ends.len() == collection.items.len();
    collection.last_end = if all_end { end_of(ends.at(pages, ends.len() - 1)?) } else { Millis(0) };
    Ok(())
}

/// The key of an item in an order: what it is ordered by, and its own key.
pub(super) fn ordered(by: &[u8], key: &[u8]) -> SmallVec<[u8; 64]> {
    let mut out = SmallVec::with_capacity(by.len() + key.len());
    out.extend_from_slice(by);
    out.extend_from_slice(key);
    out
}

/// The end at the start of a key in a hash's order.
pub(super) fn read_end(key: &[u8]) -> Millis {
    key.first_chunk().map_or(Millis(0), |end| Millis(u64::from_be_bytes(*end)))
}

/// Score and member of a key in a sorted set's order.
pub(super) fn read_scored(key: &[u8]) -> (Real, &[u8]) {
    let Some((score, member)) = key.split_first_chunk::<8>() else { panic!("a score has eight bytes") };
    (read_score(score), member)
}

/// A score as a sorted set's items have it.
pub(super) fn read_score(score: &[u8]) -> Real {
    let real = score.try_into().ok().and_then(Real::from_ordered);
    real.unwrap_or_else(|| panic!("a score that is none"))
}

/// End, 0 if never, and value of a field, as a hash's items have them: 0 and the value, or 1, the end, and the value.
pub(super) fn read_field(item: &[u8]) -> (Millis, &[u8]) {
    match item {
        [1, rest @ ..] => match rest.split_first_chunk::<8>() {
            Some((end, value)) => (Millis(u64::from_be_bytes(*end)), value),
            None => panic!("an end has eight bytes"),
        },
        [_, value @ ..] => (Millis(0), value),
        [] => panic!("a field has a value"),
    }
}

fn field_item(value: &[u8], end: Millis) -> BytesMut {
    let mut out = BytesMut::with_capacity(9 + value.len());
    if end.0 == 0 {
        out.put_u8(0);
    } else {
        out.put_u8(1);
        out.put_u64(end.0);
    }
    out.put_slice(value);
    out
}
