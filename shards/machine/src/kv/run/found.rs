//! What an operation finds of a key.

use bytes::Bytes;
use flowmesh_model::kv::KvType;
use flowmesh_model::kv::{KeyInfo, PageOf, Real};
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_model::settings::within;
use flowmesh_model::{Lsn, Millis, Reject};

use super::glob;
use super::later::Later;
use crate::kv::change::{ordered, read_end, read_field, read_score};
use crate::kv::cold::Wanted;
use crate::kv::entry::View;
use crate::kv::pages::Look;
use crate::kv::tree::{Cold, Cursor, Page, PageNo, Pages, Scratch};
use crate::kv::value::Collection;

/// A key that is there.
#[derive(Clone, Copy)]
pub(super) struct Found<'r> {
    pub value: View<'r>,
    pub version: Lsn,
    pub expires_at: Option<Millis>,
    pub memory_bytes: u64,
    pub pages: Seen<'r>,
    /// Members that are not in the pages, of a key that is tried.
    pub later: Option<&'r Later>,
    pub now: Millis,
    pub wanted: &'r Wanted,
}

/// Pages of a collection, as the store has them or as they are tried.
#[derive(Clone, Copy)]
pub(super) enum Seen<'r> {
    Stored(Look<'r>),
    Tried(&'r Scratch<Look<'r>>),
}

impl Pages for Seen<'_> {
    #[inline]
    fn page(&self, no: PageNo) -> Option<&Page> {
        match self {
            Self::Stored(pages) => pages.page(no),
            Self::Tried(pages) => pages.page(no),
        }
    }

    fn next_no(&self) -> PageNo {
        match self {
            Self::Stored(pages) => pages.next_no(),
            Self::Tried(pages) => pages.next_no(),
        }
    }
}

impl<'r> Found<'r> {
    /// The bytes of bytes and of counters.
    pub fn text(&self) -> Result<Bytes, Reject> {
        let refused = Reject::WrongType { expected: KvType::Bytes, actual: self.value.holds() };
        self.wanted.text(self.value)?.ok_or(refused)
    }

    /// How many bytes [`Found::text`] has.
    pub fn text_len(&self) -> Result<u64, Reject> {
        match self.value.cold() {
            Some(cold) => Ok(u64::from(cold.len)),
            None => Ok(self.text()?.len() as u64),
        }
    }

    /// The value stays and something else changes of it: it must be in memory for that.
    pub fn keep(&self) -> Result<(), Reject> {
        self.wanted.keep(self.value)
    }

    /// The collection of a type.
    pub fn collection(&self, expected: KvType) -> Result<Members<'r>, Reject> {
        match self.value.collection() {
            Some(collection) => {
                let collection = collection.expect(expected)?;
                Ok(self.members(collection))
            }
            None => Err(Reject::WrongType { expected, actual: self.value.holds() }),
        }
    }

    fn members(&self, collection: &'r Collection) -> Members<'r> {
        Members { collection, pages: self.pages, later: self.later, now: self.now }
    }

    pub fn info(&self) -> Result<KeyInfo, Reject> {
        let len = match self.value.collection() {
            Some(collection) => self.members(collection).live_len()?,
            None => self.value.text_len(),
        };
        Ok(KeyInfo {
            holds: self.value.holds(),
            version: self.version,
            expires_at: self.expires_at,
            len,
            memory_bytes: self.memory_bytes,
        })
    }
}

/// The collection of a type that a key holds, if it is there.
pub(super) fn members<'r>(
    found: Option<&Found<'r>>,
    expected: KvType,
) -> Result<Option<Members<'r>>, Reject> {
    found.map(|found| found.collection(expected)).transpose()
}

/// A collection and its pages.
#[derive(Clone, Copy)]
pub(super) struct Members<'r> {
    collection: &'r Collection,
    pages: Seen<'r>,
    later: Option<&'r Later>,
    now: Millis,
}

/// The end and value of a field.
pub(super) type Field<'i> = (Option<Millis>, &'i [u8]);

/// A key and its item.
pub(super) type Pair<'i> = (&'i [u8], &'i [u8]);

/// A page of keys and values, and where the next begins.
pub(super) type Paged = (Vec<(Bytes, Bytes)>, Option<Bytes>);

impl<'r> Members<'r> {
    /// The collection that a key holds, if it holds one.
    pub fn of(found: &Found<'r>) -> Option<Self> {
        found.value.collection().map(|collection| found.members(collection))
    }

    /// The number that names its pages.
    pub fn number(&self) -> u64 {
        self.collection.number
    }

    /// Whether what ends then has ended.
    pub fn has_ended(&self, end: Millis) -> bool {
        end <= self.now
    }

    /// Items behind this field or member.
    pub fn items_behind(&self, key: &[u8]) -> Result<Cursor<'_, Seen<'r>>, Cold> {
        self.trees().items.behind_key(&self.pages, key)
    }

    /// The collection with its trees, of which nothing may be missing.
    fn trees(&self) -> &'r Collection {
        assert!(self.later.is_none_or(Later::is_empty), "an operation asks for more than members");
        self.collection
    }

    /// Of which type it is.
    pub fn holds(&self) -> KvType {
        self.collection.holds
    }

    /// Items, those included that have ended and are not removed.
    pub fn len(&self) -> u64 {
        self.trees().items.len()
    }

    /// Items that are there now.
    pub fn live_len(&self) -> Result<u64, Cold> {
        Ok(self.len() - self.ended_len()?)
    }

    /// Fields that have ended and are not removed.
    pub fn ended_len(&self) -> Result<u64, Cold> {
        let first_end = self.trees().first_end;
        if self.collection.holds != KvType::Hash || first_end.0 == 0 || first_end > self.now {
            return Ok(0);
        }
        let later = (self.now.0 + 1).to_be_bytes();
        Ok(either(self.collection.order.rank(&self.pages, &later)?))
    }

    /// The value of an item that is there.
    pub fn get(&self, key: &[u8]) -> Result<Option<&[u8]>, Cold> {
        if let Some(item) = self.later.and_then(|later| later.get(key)) {
            return Ok(Some(item));
        }
        self.collection.items.get(&self.pages, key)
    }

    pub fn has(&self, key: &[u8]) -> Result<bool, Cold> {
        Ok(self.get(key)?.is_some())
    }

    /// The end and value of a field, if it has not ended.
    pub fn field(&self, field: &[u8]) -> Result<Option<Field<'_>>, Cold> {
        Ok(self.get(field)?.and_then(|item| self.live_field(item)))
    }

    /// Of a field's item.
    pub fn live_field<'i>(&self, item: &'i [u8]) -> Option<Field<'i>> {
        match read_field(item) {
            (Millis(0), value) => Some((None, value)),
            (end, value) => (end > self.now).then_some((Some(end), value)),
        }
    }

    /// The score of a member; of a set's 1.
    pub fn score(&self, member: &[u8]) -> Result<Option<Real>, Cold> {
        let item = self.get(member)?;
        Ok(item.map(|item| if self.collection.holds == KvType::Set { Real::ONE } else { read_score(item) }))
    }

    /// The rank of a member by its score.
    pub fn rank(&self, score: Real, member: &[u8]) -> Result<u64, Cold> {
        let key = ordered(&score.to_ordered(), member);
        Ok(either(self.trees().order.rank(&self.pages, &key)?))
    }

    /// How many keys of the order are below these bytes.
    pub fn below(&self, key: &[u8]) -> Result<u64, Cold> {
        Ok(either(self.trees().order.rank(&self.pages, key)?))
    }

    /// Items from a rank on.
    pub fn items_from(&self, rank: u64) -> Result<Cursor<'_, Seen<'r>>, Cold> {
        self.trees().items.before_rank(&self.pages, rank)
    }

    /// The order from a rank on.
    pub fn order_from(&self, rank: u64) -> Result<Cursor<'_, Seen<'r>>, Cold> {
        self.trees().order.before_rank(&self.pages, rank)
    }

    /// Key and item of a rank.
    pub fn at(&self, rank: u64) -> Result<Option<Pair<'_>>, Cold> {
        self.trees().items.at(&self.pages, rank)
    }

    /// Keys and items of a page in the order of the keys; `item` says what is shown of an item, if it is.
    pub fn page(&self, page: &PageOf, item: impl Fn(&[u8]) -> Option<Bytes>) -> Result<Paged, Reject> {
        within("limit", u64::from(page.limit), 1, BATCH_ITEMS_MAX as u64)?;
        let mut cursor = match &page.after {
            None => self.items_from(0)?,
            Some(after) => self.items_behind(after)?,
        };
        let (mut items, mut last) = (Vec::new(), None);
        for _ in 0..page.limit {
            let Some((key, value)) = cursor.forward()? else { return Ok((items, None)) };
            last = Some(key);
            if page.glob.as_ref().is_none_or(|glob| glob::matches(glob, key))
                && let Some(value) = item(value)
            {
                items.push((Bytes::copy_from_slice(key), value));
            }
        }
        let more = cursor.forward()?.is_some();
        Ok((items, last.filter(|_| more).map(Bytes::copy_from_slice)))
    }
}

/// Fields of a hash that have ended, the first first.
pub(crate) fn ended_fields(
    hash: &Collection,
    pages: &Look<'_>,
    now: Millis,
    fields_max: usize,
) -> Result<Vec<Bytes>, Cold> {
    let mut cursor = hash.order.before_rank(pages, 0)?;
    let mut ended = Vec::new();
    while ended.len() < fields_max
        && let Some((key, _)) = cursor.forward()?
        && read_end(key) <= now
    {
        ended.push(Bytes::copy_from_slice(key.get(size_of::<u64>()..).unwrap_or_default()));
    }
    Ok(ended)
}

fn either(rank: Result<u64, u64>) -> u64 {
    match rank {
        Ok(rank) | Err(rank) => rank,
    }
}
