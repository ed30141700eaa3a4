//! A store's part of checkpoints.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, Reader, put_varint};
use flowmesh_model::{IndexWrite, Lsn, Millis, SlotId, Space};

use super::past::History;
use super::value::Value;
use super::{Entry, Order, Store, View};
use crate::changes::{Change, Seals, Touch, image, removal};
use crate::items::Indexed;
use crate::keys::{self, Home};

/// An entry in the index.
///
/// | field | size | meaning |
/// |---|---|---|
/// | format | 1 | 1 bytes, 2 another type |
/// | version | varint | LSN |
/// | expires at | varint | ms, 0 = never |
/// | value | the rest | format 1: the bytes; format 2: as [`Value::encode`] says |
pub(super) fn encode(entry: &Entry) -> Bytes {
    let (bytes, other) = match entry.view() {
        View::Bytes(bytes) => (bytes, None),
        View::Value(Value::Bytes(bytes)) => (&**bytes, None),
        View::Value(other) => (&[][..], Some(other)),
        View::Cold(_) => panic!("a value is written that is not in memory"),
    };
    let mut out = BytesMut::with_capacity(21 + if other.is_some() { 256 } else { bytes.len() });
    out.put_u8(if other.is_some() { TYPED } else { keys::FORMAT });
    put_varint(&mut out, entry.version().0);
    put_varint(&mut out, entry.end().0);
    match other {
        Some(value) => value.encode(&mut out),
        None => out.put_slice(bytes),
    }
    out.freeze()
}

/// The format of an entry that is not bytes.
const TYPED: u8 = 2;

/// An entry in the index before its value is looked at.
struct Head {
    format: u8,
    version: Lsn,
    expires_at: Millis,
}

impl Head {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(Self {
            format: reader.byte()?,
            version: Lsn(reader.varint()?),
            expires_at: Millis(reader.varint()?),
        })
    }
}

/// An entry of bytes as the index has it.
pub(super) struct IndexedBytes {
    pub version: Lsn,
    pub expires_at: Millis,
    pub bytes: Bytes,
}

/// Reads an entry of bytes; `None` if it is of another type.
pub(super) fn read_bytes(value: Bytes) -> Result<Option<IndexedBytes>, Malformed> {
    let mut reader = Reader::new(value);
    let Head { format, version, expires_at } = Head::read(&mut reader)?;
    match format {
        keys::FORMAT => {
            Ok(Some(IndexedBytes { version, expires_at, bytes: reader.take(reader.remaining())? }))
        }
        TYPED => Ok(None),
        _ => Err(UNKNOWN_FORMAT),
    }
}

const UNKNOWN_FORMAT: Malformed = Malformed("index value of an unknown format");

impl Store {
    /// Appends the store's counters in their form in the index: the LSN of the last removal and the number of the
    /// collection made last, varints; the second may be absent.
    pub fn encode_counters(&self, out: &mut BytesMut) {
        put_varint(out, self.last_removal.0);
        put_varint(out, self.collections);
    }

    /// Reads what [`Store::encode_counters`] wrote.
    pub fn restore_counters(&mut self, reader: &mut Reader) -> Result<(), Malformed> {
        self.last_removal = Lsn(reader.varint()?);
        if !reader.is_empty() {
            self.collections = reader.varint()?;
        }
        Ok(())
    }

    /// The history in its form in the index, if there is or was one.
    pub fn encode_history(&self) -> Option<Bytes> {
        self.history.as_ref().map(|history| history.encode())
    }

    /// Reads what [`Store::encode_history`] wrote.
    pub fn restore_history(&mut self, value: Bytes) -> Result<(), Malformed> {
        self.history = Some(Box::new(History::restore(value)?));
        Ok(())
    }

    /// Takes a page out of the index: what follows slot and store in its key.
    pub fn restore_page(&mut self, slot: SlotId, rest: &[u8], value: Bytes) -> Result<(), Malformed> {
        self.pages.restore(slot, rest, value)
    }

    /// Takes an entry out of the index; the value of a `cold` one, if it is bytes, stays there.
    pub fn restore_entry(
        &mut self,
        slot: SlotId,
        key: &[u8],
        value: Bytes,
        cold: bool,
    ) -> Result<(), Malformed> {
        let mut reader = Reader::new(value);
        let Head { format, version, expires_at } = Head::read(&mut reader)?;
        let value = match format {
            keys::FORMAT => Value::Bytes(reader.take(reader.remaining())?),
            TYPED => Value::decode(&mut reader, slot)?,
            _ => return Err(UNKNOWN_FORMAT),
        };
        keys::close(&reader)?;
        let hash = self.sip.hash(key);
        if self.table.find(hash, key, &self.slab).is_some() {
            return Err(Malformed("the same key twice"));
        }
        let entry = match &value {
            Value::Bytes(bytes) if cold => Entry::restored_cold(key, bytes, version, expires_at),
            _ => Entry::restored(key, value, version, expires_at),
        };
        self.put(hash, entry);
        Ok(())
    }

    /// All entries are there: builds the orders. One by one, each would wait for memory that no other needs.
    pub fn finish_restore(&mut self) {
        self.ordered = Order::of(&self.slab);
        let ends = self.slab.iter().map(|(place, entry)| (entry.next_end(), place));
        self.expiry = ends.filter(|(end, _)| end.0 != 0).collect();
    }

    /// What else a checkpoint takes.
    fn indexed(&mut self) -> [&mut dyn Indexed<Home>; 3] {
        [&mut self.pages.pages, &mut self.pages.gone, &mut self.pages.kept]
    }

    /// Takes the changes into the sealed state.
    pub fn seal(&mut self) {
        self.changes.seal();
        self.indexed().into_iter().for_each(Indexed::seal);
        if let Some(history) = &mut self.history {
            history.seal();
        }
    }

    /// Writes at most `items_max` sealed changes. Returns how many it looked at: fewer means that is all.
    pub fn collect(
        &mut self,
        home: &Home,
        seals: &Seals,
        items_max: usize,
        out: &mut Vec<IndexWrite>,
    ) -> usize {
        self.warm_places(self.changes.ahead(items_max));
        for count in 0..items_max {
            match self.changes.next() {
                None => {
                    let count = self.indexed().into_iter().fold(count, |count, items| {
                        count + items.collect(home, seals, items_max - count, out)
                    });
                    let history = self.history.as_mut();
                    return count
                        + history.map_or(0, |history| history.records.collect(home, items_max - count, out));
                }
                Some(Change::Gone(key)) => out.push(removal(Space::Keys, home.entry_key(&key))),
                Some(Change::Listed(place)) => {
                    // Another entry may be there by now: then its mark says that it came later.
                    let entry = self.slab.get_mut(place);
                    if let Some(entry) = entry.filter(|entry| seals.is_sealed(entry.mark)) {
                        seals.collected(&mut entry.mark);
                        out.push(image(Space::Keys, home.entry_key(entry.key()), encode(entry)));
                    }
                }
            }
        }
        items_max
    }

    /// The sealed state is in the index.
    pub fn sealed_written(&mut self) {
        self.changes.sealed_written();
        self.indexed().into_iter().for_each(Indexed::sealed_written);
        if let Some(history) = &mut self.history {
            history.sealed_written();
        }
    }

    /// The sealed state did not get into the index.
    pub fn unseal(&mut self, seals: &Seals) {
        self.indexed().into_iter().for_each(|items| items.unseal(seals));
        if let Some(history) = &mut self.history {
            history.records.unseal();
        }
        let (changed, gone) = self.changes.unseal();
        for place in changed {
            if let Some(entry) = self.slab.get_mut(place)
                && seals.touch(&mut entry.mark) != Touch::Known
            {
                self.changes.list(place);
            }
        }
        for key in gone {
            match self.place(&key).and_then(|place| self.slab.get_mut(place)) {
                Some(entry) => entry.mark.set_in_index(),
                None => self.changes.list_gone(key),
            }
        }
    }

    /// Takes at most `items_max` entries of a dropped store out of memory and appends the keys the index has of them
    /// to `gone`. Returns how many it took: fewer means that is all.
    pub fn bury(&mut self, home: &Home, items_max: usize, gone: &mut Vec<(Space, Bytes)>) -> usize {
        for count in 0..items_max {
            if let Some(place) = self.ordered.pop_first() {
                let entry = self.slab.remove(place);
                if let Some(entry) = entry.filter(|entry| entry.mark.in_index()) {
                    gone.push((Space::Keys, home.entry_key(entry.key())));
                }
            } else if let Some(Change::Gone(key)) = self.changes.next() {
                gone.push((Space::Keys, home.entry_key(&key)));
            } else {
                (self.table, self.expiry) = Default::default();
                self.eviction = None;
                let count = self
                    .indexed()
                    .into_iter()
                    .fold(count, |count, items| count + items.bury(home, items_max - count, gone));
                // What the index has of the history goes as a whole.
                let history = self.history.as_mut();
                return count + history.map_or(0, |history| history.records.bury(items_max - count));
            }
        }
        items_max
    }
}
