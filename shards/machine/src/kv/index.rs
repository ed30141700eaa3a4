//! A store's part of checkpoints.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, Reader, put_varint};
use flowmesh_model::{IndexWrite, Lsn, Millis, SlotId, Space};

use super::value::Value;
use super::{Entry, Store};
use crate::changes::{Change, Mark, Seals, Touch, image, removal};
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
    let bytes = if let Value::Bytes(bytes) = &entry.value { Some(bytes) } else { None };
    let mut out = BytesMut::with_capacity(21 + bytes.map_or(256, Bytes::len));
    out.put_u8(if bytes.is_some() { keys::FORMAT } else { TYPED });
    put_varint(&mut out, entry.version.0);
    put_varint(&mut out, entry.expires_at.0);
    match bytes {
        Some(bytes) => out.put_slice(bytes),
        None => entry.value.encode(&mut out),
    }
    out.freeze()
}

/// The format of an entry that is not bytes.
const TYPED: u8 = 2;

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

    /// Takes a page out of the index: what follows slot and store in its key.
    pub fn restore_page(&mut self, slot: SlotId, rest: &[u8], value: Bytes) -> Result<(), Malformed> {
        self.pages.restore(slot, rest, value)
    }

    /// Takes an entry out of the index.
    pub fn restore_entry(&mut self, slot: SlotId, key: &[u8], value: Bytes) -> Result<(), Malformed> {
        let mut reader = Reader::new(value);
        let format = reader.byte()?;
        let (version, expires_at) = (Lsn(reader.varint()?), Millis(reader.varint()?));
        let value = match format {
            // Shared, it would keep the piece of the index alive that it was read with.
            keys::FORMAT => Value::Bytes(Bytes::copy_from_slice(&reader.take(reader.remaining())?)),
            TYPED => Value::decode(&mut reader, slot)?,
            _ => return Err(Malformed("index value of an unknown format")),
        };
        keys::close(&reader)?;
        let hash = self.sip.hash(key);
        if self.table.find(hash, key).is_some() {
            return Err(Malformed("the same key twice"));
        }
        let (key, mark) = (Arc::from(key), Mark::IN_INDEX);
        self.put(hash, Entry { key, value, version, expires_at, due: Millis(0), expiry_number: 0, mark });
        Ok(())
    }

    /// What else a checkpoint takes.
    fn indexed(&mut self) -> [&mut dyn Indexed<Home>; 2] {
        [&mut self.pages.pages, &mut self.pages.gone]
    }

    /// Takes the changes into the sealed state.
    pub fn seal(&mut self) {
        self.changes.seal();
        self.indexed().into_iter().for_each(Indexed::seal);
    }

    /// Writes at most `items_max` sealed changes. Returns how many it looked at: fewer means that is all.
    pub fn collect(
        &mut self,
        home: &Home,
        seals: &Seals,
        items_max: usize,
        out: &mut Vec<IndexWrite>,
    ) -> usize {
        for count in 0..items_max {
            match self.changes.next() {
                None => {
                    return self.indexed().into_iter().fold(count, |count, items| {
                        count + items.collect(home, seals, items_max - count, out)
                    });
                }
                Some(Change::Gone(key)) => out.push(removal(Space::Keys, home.entry_key(&key))),
                Some(Change::Listed(key)) => {
                    let entry = self.table.find_mut(self.sip.hash(&key), &key);
                    if let Some(entry) = entry.filter(|entry| seals.is_sealed(entry.mark)) {
                        Seals::written(&mut entry.mark);
                        out.push(image(Space::Keys, home.entry_key(&key), encode(entry)));
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
    }

    /// The sealed state did not get into the index.
    pub fn unseal(&mut self, seals: &Seals) {
        self.indexed().into_iter().for_each(|items| items.unseal(seals));
        let (changed, gone) = self.changes.unseal();
        for key in changed {
            let entry = self.table.find_mut(self.sip.hash(&key), &key);
            if let Some(entry) = entry
                && seals.touch(&mut entry.mark) != Touch::Known
            {
                let key = Arc::clone(&entry.key);
                self.changes.list(key);
            }
        }
        for key in gone {
            match self.table.find_mut(self.sip.hash(&key), &key) {
                Some(entry) => entry.mark.set_in_index(),
                None => self.changes.list_gone(key),
            }
        }
    }

    /// Takes at most `items_max` entries of a dropped store out of memory and appends the keys the index has of them
    /// to `gone`. Returns how many it took: fewer means that is all.
    pub fn bury(&mut self, home: &Home, items_max: usize, gone: &mut Vec<(Space, Bytes)>) -> usize {
        for count in 0..items_max {
            let (key, in_index) = if let Some(key) = self.ordered.pop_first() {
                let entry = self.table.remove(self.sip.hash(&key), &key);
                (key, entry.is_some_and(|entry| entry.mark.in_index()))
            } else if let Some(Change::Gone(key)) = self.changes.next() {
                (key, true)
            } else {
                self.expiry = std::collections::BTreeMap::new();
                return self
                    .indexed()
                    .into_iter()
                    .fold(count, |count, items| count + items.bury(home, items_max - count, gone));
            };
            if in_index {
                gone.push((Space::Keys, home.entry_key(&key)));
            }
        }
        items_max
    }
}
