//! What a store has of a key: 24 bytes in its [`super::slab`] and one piece of memory of its own.
//!
//! | packed bytes | size | meaning |
//! |---|---|---|
//! | version | 8 | LSN |
//! | end | 8 | ms; only of an entry that ends |
//! | key | | |
//! | value | the rest | of a **cold** entry, whose value only the index has, how many bytes it is, 4 |
//!
//! Bytes up to [`PACKED_BYTES_MAX`] are packed so, and cold entries. Whatever else a key holds lies beside it.

use bytes::Bytes;
use flowmesh_model::codec::detached;
use flowmesh_model::kv::KvType;
use flowmesh_model::{Lsn, Millis};

use super::eviction::Heat;
use super::value::{Collection, Value};
use crate::changes::Mark;

/// Values up to this size lie with their key: to copy so much into a reply costs no more than to share it.
const PACKED_BYTES_MAX: usize = 1024;

const NUMBER_BYTES: usize = size_of::<u64>();

/// One entry.
#[derive(Debug)]
pub(crate) struct Entry {
    holds: Holds,
    pub mark: Mark,
    /// Of packed bytes.
    key_bytes: u16,
    /// Of packed bytes: [`ENDS`] and [`COLD`].
    shape: u8,
    /// How often it was asked for, where that matters.
    pub heat: Heat,
}

/// Packed bytes have an end.
const ENDS: u8 = 1;

/// In place of the value is how long it is.
const COLD: u8 = 2;

/// A niche in the first pointer tells the two apart.
#[derive(Debug)]
enum Holds {
    Packed(Box<[u8]>),
    Apart(Box<Apart>),
}

const _: () = assert!(size_of::<Entry>() == 24);

/// A key with something that is not packed.
#[derive(Debug)]
struct Apart {
    key: Box<[u8]>,
    value: Value,
    version: Lsn,
    expires_at: Millis,
}

/// What a key holds, as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum View<'a> {
    Bytes(&'a [u8]),
    Value(&'a Value),
    Cold(ColdValue<'a>),
}

/// Bytes that only the index has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ColdValue<'a> {
    pub key: &'a [u8],
    /// How many they are.
    pub len: u32,
}

impl ColdValue<'_> {
    /// What they would take in memory beyond what stands for them.
    pub fn away(self) -> u64 {
        bytes_memory_bytes(self.len as usize) - COLD_BYTES
    }
}

impl<'a> From<&'a Value> for View<'a> {
    fn from(value: &'a Value) -> Self {
        Self::Value(value)
    }
}

impl<'a> View<'a> {
    pub fn holds(self) -> KvType {
        match self {
            Self::Bytes(_) | Self::Cold(_) => KvType::Bytes,
            Self::Value(value) => value.holds(),
        }
    }

    /// The bytes of bytes and of counters.
    ///
    /// # Errors
    /// If only the index has them.
    pub fn text(self) -> Result<Option<Bytes>, ColdValue<'a>> {
        match self {
            Self::Bytes(bytes) => Ok(Some(Bytes::copy_from_slice(bytes))),
            Self::Value(value) => Ok(value.text()),
            Self::Cold(cold) => Err(cold),
        }
    }

    /// How many bytes [`View::text`] has; of a collection 0.
    pub fn text_len(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Value(Value::Bytes(bytes)) => bytes.len() as u64,
            Self::Value(value) => value.text().map_or(0, |text| text.len() as u64),
            Self::Cold(cold) => u64::from(cold.len),
        }
    }

    /// The bytes that only the index has.
    pub fn cold(self) -> Option<ColdValue<'a>> {
        if let Self::Cold(cold) = self { Some(cold) } else { None }
    }

    pub fn collection(self) -> Option<&'a Collection> {
        match self {
            Self::Bytes(_) | Self::Cold(_) => None,
            Self::Value(value) => value.collection(),
        }
    }

    /// # Errors
    /// If only the index has it.
    pub fn to_value(self) -> Result<Value, ColdValue<'a>> {
        match self {
            Self::Bytes(bytes) => Ok(Value::Bytes(Bytes::copy_from_slice(bytes))),
            Self::Value(value) => Ok(value.clone()),
            Self::Cold(cold) => Err(cold),
        }
    }

    /// When something of it ends first; 0 if nothing does.
    pub fn first_end(self) -> Millis {
        self.collection().map_or(Millis(0), |collection| collection.first_end)
    }

    /// When all of it has ended; 0 if never.
    pub fn last_end(self) -> Millis {
        self.collection().map_or(Millis(0), |collection| collection.last_end)
    }

    /// What it takes in memory besides its entry and pages that are the store's.
    pub fn memory_bytes(self) -> u64 {
        match self {
            Self::Cold(_) => COLD_BYTES,
            Self::Bytes(bytes) => bytes_memory_bytes(bytes.len()),
            Self::Value(Value::Bytes(bytes)) => bytes_memory_bytes(bytes.len()),
            Self::Value(value) => size_of::<Apart>() as u64 + value.memory_bytes(),
        }
    }

    /// What it takes, or would take, with its value in memory.
    pub fn whole_memory_bytes(self) -> u64 {
        self.cold().map_or_else(|| self.memory_bytes(), |cold| bytes_memory_bytes(cold.len as usize))
    }
}

/// What stands in place of a cold value.
const COLD_BYTES: u64 = size_of::<u32>() as u64;

/// What so many bytes take in memory besides their entry.
fn bytes_memory_bytes(len: usize) -> u64 {
    let apart = if len > PACKED_BYTES_MAX { size_of::<Apart>() } else { 0 };
    (apart + len) as u64
}

impl Entry {
    /// Where no entry is.
    pub fn vacant() -> Self {
        Self {
            holds: Holds::Packed(Box::default()),
            mark: Mark::NEW,
            key_bytes: 0,
            shape: 0,
            heat: Heat::default(),
        }
    }

    /// An entry. Bytes that are not packed are kept as they are if they are many: they must not keep more memory alive
    /// than their own.
    pub fn new(key: &[u8], value: Value, version: Lsn, expires_at: Millis, mark: Mark) -> Self {
        let mut entry = Self { mark, ..Self::vacant() };
        match value {
            Value::Bytes(bytes) if bytes.len() <= PACKED_BYTES_MAX => {
                entry.pack(key, &bytes, version, expires_at);
            }
            other => entry.holds = Holds::Apart(Box::new(Apart::new(key.into(), other, version, expires_at))),
        }
        entry
    }

    /// An entry out of the index whose value stays there, unless it is as short as what would stand for it.
    pub fn restored_cold(key: &[u8], value: &[u8], version: Lsn, expires_at: Millis) -> Self {
        let mut entry = Self { mark: Mark::IN_INDEX, ..Self::vacant() };
        if value.len() as u64 > COLD_BYTES {
            entry.pack_cold(key, value.len(), version, expires_at);
        } else {
            entry.pack(key, value, version, expires_at);
        }
        entry
    }

    /// An entry out of the index. What is not packed is copied: shared, it would keep the piece of the index alive that it
    /// was read with.
    pub fn restored(key: &[u8], value: Value, version: Lsn, expires_at: Millis) -> Self {
        let value = match value {
            Value::Bytes(bytes) if bytes.len() > PACKED_BYTES_MAX => {
                Value::Bytes(Bytes::copy_from_slice(&bytes))
            }
            other => other,
        };
        Self::new(key, value, version, expires_at, Mark::IN_INDEX)
    }

    /// Whether no entry is here: one has a version at least.
    #[inline]
    pub fn is_vacant(&self) -> bool {
        matches!(&self.holds, Holds::Packed(packed) if packed.is_empty())
    }

    fn pack(&mut self, key: &[u8], value: &[u8], version: Lsn, expires_at: Millis) {
        let ends = expires_at.0 != 0;
        let head = if ends { 2 * NUMBER_BYTES } else { NUMBER_BYTES };
        let mut packed = Vec::with_capacity(head + key.len() + value.len());
        packed.extend_from_slice(&version.0.to_le_bytes());
        if ends {
            packed.extend_from_slice(&expires_at.0.to_le_bytes());
        }
        packed.extend_from_slice(key);
        packed.extend_from_slice(value);
        let Ok(key_bytes) = u16::try_from(key.len()) else { panic!("a key longer than keys may be") };
        let shape = if ends { ENDS } else { 0 };
        (self.holds, self.key_bytes, self.shape) = (Holds::Packed(packed.into()), key_bytes, shape);
    }

    fn pack_cold(&mut self, key: &[u8], len: usize, version: Lsn, expires_at: Millis) {
        let Ok(len) = u32::try_from(len) else { panic!("a value longer than values may be") };
        self.pack(key, &len.to_le_bytes(), version, expires_at);
        self.shape |= COLD;
    }

    /// Whether only the index has its value.
    #[inline]
    pub fn is_cold(&self) -> bool {
        self.shape & COLD != 0
    }

    /// The memory that its value takes beyond what would stand for it, if it can be left to the index at all.
    #[inline]
    pub fn could_go(&self) -> u64 {
        match self.view() {
            View::Bytes(bytes) => bytes_memory_bytes(bytes.len()).saturating_sub(COLD_BYTES),
            View::Value(Value::Bytes(bytes)) => bytes_memory_bytes(bytes.len()).saturating_sub(COLD_BYTES),
            View::Value(_) | View::Cold(_) => 0,
        }
    }

    /// Leaves its value to the index, which must have it as it is. Returns whether there was anything to leave: bytes that take more
    /// than what stands for them.
    pub fn chill(&mut self) -> bool {
        if self.could_go() == 0 {
            return false;
        }
        let len = self.view().text_len() as usize;
        let (key, version, end) = (self.key().to_vec(), self.version(), self.end());
        self.pack_cold(&key, len, version, end);
        true
    }

    /// Takes its value into memory again, out of the index.
    pub fn warm(&mut self, value: Bytes) {
        assert!(self.is_cold(), "a value that is in memory came out of the index");
        let (key, mark, heat) = (self.key().to_vec(), self.mark, self.heat.clone());
        *self = Self { mark, heat, ..Self::restored(&key, Value::Bytes(value), self.version(), self.end()) };
    }

    #[inline]
    fn ends(&self) -> bool {
        self.shape & ENDS != 0
    }

    /// Where the key of packed bytes begins and ends.
    #[inline]
    fn key_range(&self) -> std::ops::Range<usize> {
        let start = if self.ends() { 2 * NUMBER_BYTES } else { NUMBER_BYTES };
        start..start + usize::from(self.key_bytes)
    }

    #[inline]
    pub fn key(&self) -> &[u8] {
        match &self.holds {
            Holds::Packed(packed) => packed.get(self.key_range()).unwrap_or_default(),
            Holds::Apart(apart) => &apart.key,
        }
    }

    /// The value of packed bytes.
    #[inline]
    pub fn packed_value(&self) -> Option<&[u8]> {
        if let View::Bytes(value) = self.view() { Some(value) } else { None }
    }

    #[inline]
    pub fn view(&self) -> View<'_> {
        match &self.holds {
            Holds::Packed(packed) => {
                let value = packed.get(self.key_range().end..).unwrap_or_default();
                if self.is_cold() {
                    let len = value.first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
                    return View::Cold(ColdValue { key: self.key(), len });
                }
                View::Bytes(value)
            }
            Holds::Apart(apart) => View::Value(&apart.value),
        }
    }

    /// The log entry that changed it last.
    #[inline]
    pub fn version(&self) -> Lsn {
        match &self.holds {
            Holds::Packed(packed) => Lsn(number(packed, 0)),
            Holds::Apart(apart) => apart.version,
        }
    }

    /// When it is no longer there; `Millis(0)` if never.
    #[inline]
    pub fn end(&self) -> Millis {
        match &self.holds {
            Holds::Packed(packed) if self.ends() => Millis(number(packed, NUMBER_BYTES)),
            Holds::Packed(_) => Millis(0),
            Holds::Apart(apart) => apart.expires_at,
        }
    }

    /// When it is no longer there, if ever.
    #[inline]
    pub fn expires_at(&self) -> Option<Millis> {
        Some(self.end()).filter(|end| end.0 != 0)
    }

    /// Whether it is there at `now`.
    #[inline]
    pub fn is_live(&self, now: Millis) -> bool {
        super::is_live(self.view(), self.end(), now)
    }

    /// When it, or the first field of it, ends; `Millis(0)` if never.
    pub fn next_end(&self) -> Millis {
        let ends = [self.end(), self.view().first_end()];
        ends.into_iter().filter(|end| end.0 != 0).min().unwrap_or_default()
    }

    /// Something of each line of its memory, so that it is in the processor's caches.
    #[inline]
    pub fn touch(&self) -> u8 {
        match &self.holds {
            Holds::Packed(packed) => {
                let each_line = packed.iter().step_by(64).fold(0, |all, byte| all ^ byte);
                each_line ^ packed.last().copied().unwrap_or(0)
            }
            Holds::Apart(apart) => apart.version.0 as u8,
        }
    }

    pub fn set_version(&mut self, version: Lsn) {
        match &mut self.holds {
            Holds::Packed(packed) => {
                if let Some(place) = packed.first_chunk_mut() {
                    *place = version.0.to_le_bytes();
                }
            }
            Holds::Apart(apart) => apart.version = version,
        }
    }

    pub fn set_end(&mut self, end: Millis) {
        if let Holds::Apart(apart) = &mut self.holds {
            apart.expires_at = end;
        } else if end != self.end() {
            let View::Bytes(value) = self.view() else {
                panic!("an entry changes whose value is not in memory")
            };
            let (key, value) = (self.key().to_vec(), value.to_vec());
            self.pack(&key, &value, self.version(), end);
        }
    }

    /// Puts bytes in place of as many others, if they lie here as they would lie. Returns whether it did.
    pub fn put_over(&mut self, value: &[u8], version: Lsn, end: Millis) -> bool {
        let (values, ends) = (self.key_range().end, self.ends());
        if self.is_cold() {
            return false;
        }
        let Holds::Packed(packed) = &mut self.holds else { return false };
        if packed.len() != values + value.len() || ends != (end.0 != 0) {
            return false;
        }
        let Some((before, place)) = packed.split_at_mut_checked(values) else { return false };
        place.copy_from_slice(value);
        let (numbers, _) = before.as_chunks_mut::<NUMBER_BYTES>();
        for (place, number) in
            numbers.iter_mut().zip([version.0, end.0].into_iter().take(1 + usize::from(ends)))
        {
            *place = number.to_le_bytes();
        }
        true
    }

    /// It holds this from now on. Returns the collection that it held.
    pub fn replace(&mut self, value: Value, version: Lsn, end: Millis) -> Option<Box<Collection>> {
        if let Value::Bytes(bytes) = &value
            && self.put_over(bytes, version, end)
        {
            return None;
        }
        let key: Box<[u8]> = self.key().into();
        let new = Self { heat: self.heat.clone(), ..Self::new(&key, value, version, end, self.mark) };
        std::mem::replace(self, new).into_collection()
    }

    pub fn collection_mut(&mut self) -> Option<&mut Collection> {
        match &mut self.holds {
            Holds::Packed(_) => None,
            Holds::Apart(apart) => apart.value.collection_mut(),
        }
    }

    /// The collection that it held.
    pub fn into_collection(self) -> Option<Box<Collection>> {
        match self.holds {
            Holds::Apart(apart) => match apart.value {
                Value::Collection(collection) => Some(collection),
                Value::Bytes(_) | Value::Counter(_) => None,
            },
            Holds::Packed(_) => None,
        }
    }

    /// What it held, which must be in memory.
    pub fn into_value(self) -> Value {
        match self.holds {
            Holds::Packed(_) => {
                let value = self.view().to_value();
                value.unwrap_or_else(|_| panic!("a value is wanted that is not in memory"))
            }
            Holds::Apart(apart) => apart.value,
        }
    }
}

impl Apart {
    fn new(key: Box<[u8]>, value: Value, version: Lsn, expires_at: Millis) -> Self {
        let value = match value {
            Value::Bytes(bytes) => Value::Bytes(detached(&bytes)),
            other => other,
        };
        Self { key, value, version, expires_at }
    }
}

#[inline]
fn number(packed: &[u8], at: usize) -> u64 {
    let bytes = packed.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use flowmesh_model::kv::Number;
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let lens = prop_oneof![0..40_usize, PACKED_BYTES_MAX - 1..PACKED_BYTES_MAX + 2];
        prop_oneof![
            4 => (lens, any::<u8>()).prop_map(|(len, byte)| Value::Bytes(vec![byte; len].into())),
            1 => any::<i64>().prop_map(|number| Value::Counter(Number::Integer(number))),
            1 => Just(Value::Collection(Box::new(Collection::new(KvType::Set, 3, flowmesh_model::SlotId(7))))),
        ]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Replace(Value, u64, u64),
        End(u64),
        Version(u64),
        Chill,
    }

    fn step() -> impl Strategy<Value = Step> {
        // Ends come and go.
        let end = || prop_oneof![Just(0), any::<u64>()];
        prop_oneof![
            (value(), any::<u64>(), end())
                .prop_map(|(value, version, end)| Step::Replace(value, version, end)),
            end().prop_map(Step::End),
            any::<u64>().prop_map(Step::Version),
            Just(Step::Chill),
        ]
    }

    proptest! {
        #[test]
        fn it_is_what_was_put_however_it_lies(
            key in prop::collection::vec(any::<u8>(), 1..1025),
            first in value(),
            steps in prop::collection::vec(step(), 0..12),
        ) {
            let (mut version, mut end, mut held) = (Lsn(1), Millis(0), first.clone());
            let mut entry = Entry::new(&key, first, version, end, Mark::IN_INDEX);
            for step in steps {
                // What only another value can replace.
                if entry.is_cold() && !matches!(step, Step::Replace(..) | Step::Chill) {
                    entry.warm(held.text().unwrap());
                }
                match step {
                    Step::Chill => {
                        let goes = held.holds() == KvType::Bytes && held.text().unwrap().len() > 4;
                        let was_cold = entry.is_cold();
                        prop_assert_eq!(entry.chill(), goes && !was_cold);
                        prop_assert_eq!(entry.is_cold(), goes);
                    }
                    Step::Replace(value, at, until) => {
                        let before = entry.replace(value.clone(), Lsn(at), Millis(until));
                        prop_assert_eq!(before.is_some(), held.collection().is_some());
                        (held, version, end) = (value, Lsn(at), Millis(until));
                    }
                    Step::End(until) => {
                        entry.set_end(Millis(until));
                        end = Millis(until);
                    }
                    Step::Version(at) => {
                        entry.set_version(Lsn(at));
                        version = Lsn(at);
                    }
                }
                prop_assert!(!entry.is_vacant());
                prop_assert_eq!((entry.key(), entry.version(), entry.end()), (&*key, version, end));
                prop_assert_eq!(entry.mark, Mark::IN_INDEX);
                let (shown, held) = (entry.view(), View::from(&held));
                prop_assert_eq!(shown.text_len(), held.text_len());
                prop_assert_eq!(shown.whole_memory_bytes(), held.memory_bytes());
                if entry.is_cold() {
                    prop_assert_eq!(shown.text(), Err(ColdValue { key: &key, len: held.text_len() as u32 }));
                    prop_assert_eq!((shown.holds(), shown.memory_bytes()), (KvType::Bytes, COLD_BYTES));
                    continue;
                }
                prop_assert_eq!(shown.holds(), held.holds());
                prop_assert_eq!(shown.text(), held.text());
                prop_assert_eq!(shown.memory_bytes(), held.memory_bytes());
                prop_assert_eq!(shown.collection().map(|it| it.number), held.collection().map(|it| it.number));
                prop_assert_eq!(entry.packed_value().is_some(), held.text().unwrap().is_some_and(|text| {
                    held.holds() == KvType::Bytes && text.len() <= PACKED_BYTES_MAX
                }));
            }
        }
    }
}
