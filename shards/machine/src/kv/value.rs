//! What a key holds.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, Reader, put_bytes, put_varint};
use flowmesh_model::kv::fact::{unzigzag, zigzag};
use flowmesh_model::kv::{KvType, Number, Real};
use flowmesh_model::{Millis, Reject, SlotId};

use super::tree::{Order, Page, PageNo, Tree};

/// What a key holds.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Bytes(Bytes),
    Counter(Number),
    Collection(Box<Collection>),
}

/// A hash, a set, a sorted set or a list: one or two trees, whose pages but for the roots are the store's.
///
/// | type | `items` | `order` |
/// |---|---|---|
/// | hash | field → value with its end | end and field, of fields that end |
/// | set | member | – |
/// | sorted set | member → score | score and member |
/// | list | values | – |
#[derive(Clone, Debug)]
pub(crate) struct Collection {
    pub holds: KvType,
    /// Names its pages, for ever: a key that gets another name keeps it.
    pub number: u64,
    /// Where its key is.
    pub slot: SlotId,
    /// The number of the page that is added next.
    pub next_page: PageNo,
    pub items: Tree,
    pub order: Tree,
    /// When the first of its fields ends; 0 if none does.
    pub first_end: Millis,
    /// When the last of its fields ends; 0 if one does not.
    pub last_end: Millis,
}

impl Collection {
    pub fn new(holds: KvType, number: u64, slot: SlotId) -> Self {
        Self {
            holds,
            number,
            slot,
            next_page: PageNo(0),
            items: Tree::default(),
            order: Tree::default(),
            first_end: Millis(0),
            last_end: Millis(0),
        }
    }

    /// How its items are ordered.
    pub fn order_of_items(&self) -> Order {
        if self.holds == KvType::List { Order::ByPlace } else { Order::ByKey }
    }

    /// Its collection, or why an operation on another type cannot have it.
    pub fn expect(&self, expected: KvType) -> Result<&Self, Reject> {
        if self.holds == expected {
            Ok(self)
        } else {
            Err(Reject::WrongType { expected, actual: self.holds })
        }
    }

    /// What it takes in memory but for pages that are the store's.
    fn memory_bytes(&self) -> u64 {
        let roots = self.items.root().memory_bytes() + self.order.root().memory_bytes();
        (size_of::<Self>() - 2 * size_of::<Page>()) as u64 + roots
    }
}

const BYTES: u8 = KvType::Bytes as u8;
const COUNTER: u8 = KvType::Counter as u8;
const INTEGER: u8 = 0;
const FLOAT: u8 = 1;

impl Value {
    pub fn holds(&self) -> KvType {
        match self {
            Self::Bytes(_) => KvType::Bytes,
            Self::Counter(_) => KvType::Counter,
            Self::Collection(collection) => collection.holds,
        }
    }

    /// The bytes of bytes and of counters.
    pub fn text(&self) -> Option<Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes.clone()),
            Self::Counter(number) => Some(number.to_string().into()),
            Self::Collection(_) => None,
        }
    }

    pub fn collection(&self) -> Option<&Collection> {
        if let Self::Collection(collection) = self { Some(collection) } else { None }
    }

    pub fn collection_mut(&mut self) -> Option<&mut Collection> {
        if let Self::Collection(collection) = self { Some(collection) } else { None }
    }

    /// What it takes in memory besides itself and pages that are the store's.
    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Counter(_) => 0,
            Self::Collection(collection) => collection.memory_bytes(),
        }
    }

    /// Appends what is not bytes in its form in the index.
    ///
    /// | field | size | meaning |
    /// |---|---|---|
    /// | type | 1 | 1 counter, 2 hash, 3 set, 4 sorted set, 5 list |
    /// | counter: sort | 1 | 0 whole, 1 decimal |
    /// | number | varint, zigzag; or 8 | a decimal is IEEE 754, little-endian |
    /// | collection: number, next page | varint each | |
    /// | first end, last end | varint each | of fields; 0 = never |
    /// | root of items | varint length + bytes | a page |
    /// | root of order | varint length + bytes | a page; nothing if it has no items |
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(self.holds() as u8);
        match self {
            Self::Bytes(bytes) => out.put_slice(bytes),
            Self::Counter(Number::Integer(value)) => {
                out.put_u8(INTEGER);
                put_varint(out, zigzag(*value));
            }
            Self::Counter(Number::Float(value)) => {
                out.put_u8(FLOAT);
                out.put_f64_le(value.get());
            }
            Self::Collection(collection) => {
                put_varint(out, collection.number);
                put_varint(out, u64::from(collection.next_page.0));
                put_varint(out, collection.first_end.0);
                put_varint(out, collection.last_end.0);
                put_bytes(out, &collection.items.root().encode());
                let order = &collection.order;
                put_bytes(out, &if order.len() == 0 { Bytes::new() } else { order.root().encode() });
            }
        }
    }

    /// Reads what [`Value::encode`] wrote.
    pub fn decode(reader: &mut Reader, slot: SlotId) -> Result<Self, Malformed> {
        let holds = match reader.byte()? {
            BYTES => return Ok(Self::Bytes(Bytes::copy_from_slice(&reader.take(reader.remaining())?))),
            COUNTER => return Ok(Self::Counter(read_number(reader)?)),
            byte => *KvType::ALL.get(usize::from(byte)).ok_or(Malformed("a type that there is not"))?,
        };
        let mut collection = Collection::new(holds, reader.varint()?, slot);
        collection.next_page = PageNo(reader.varint_u32()?);
        collection.first_end = Millis(reader.varint()?);
        collection.last_end = Millis(reader.varint()?);
        collection.items = Tree::from_root(Page::decode(&reader.bytes()?, collection.order_of_items())?);
        let order = reader.bytes()?;
        if !order.is_empty() {
            collection.order = Tree::from_root(Page::decode(&order, Order::ByKey)?);
        }
        Ok(Self::Collection(Box::new(collection)))
    }
}

fn read_number(reader: &mut Reader) -> Result<Number, Malformed> {
    match reader.byte()? {
        INTEGER => Ok(Number::Integer(unzigzag(reader.varint()?))),
        FLOAT => {
            let bytes = reader.take(8)?;
            let bytes = bytes.as_ref().try_into().map_err(|_| Malformed("a decimal has eight bytes"))?;
            let real = Real::new(f64::from_le_bytes(bytes));
            real.map(Number::Float).ok_or(Malformed("a number that is none"))
        }
        _ => Err(Malformed("a counter of an unknown sort")),
    }
}
