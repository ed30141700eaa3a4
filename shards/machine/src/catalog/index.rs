//! The catalog's part of checkpoints: small, so that it is captured whole at the seal.

use std::cell::OnceCell;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_bytes, put_varint};
use flowmesh_model::fact::{put_settings, read_path, read_settings};
use flowmesh_model::{CatalogVersion, Lsn, Millis, ResourceId, ResourceInfo, Space};

use super::CatalogState;
use crate::changes::{Seals, image, removal};
use crate::keys;

/// A resource of the catalog in the index.
///
/// | field | size | meaning |
/// |---|---|---|
/// | format | 1 | 1 |
/// | path | varint length + bytes | |
/// | settings | varint length + bytes | JSON |
/// | created at | varint | ms |
fn encode(info: &ResourceInfo) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(keys::FORMAT);
    put_bytes(&mut out, info.path.to_string().as_bytes());
    put_settings(&mut out, &info.settings);
    put_varint(&mut out, info.created_at.0);
    out.freeze()
}

impl CatalogState {
    /// Captures what changed since the last seal.
    ///
    /// | field of the catalog's own entry | size |
    /// |---|---|
    /// | format | 1 |
    /// | version, last number, last LSN | varint each |
    pub fn seal(&mut self, seals: &mut Seals) {
        self.sealed = std::mem::take(&mut self.dirty);
        if self.sealed.is_empty() {
            return;
        }
        for &id in &self.sealed {
            let key = keys::catalog_resource_key(id);
            if let Some(info) = self.catalog.get(id) {
                seals.capture(image(Space::Meta, key, encode(info)));
                self.in_index.insert(id);
            } else if self.in_index.remove(&id) {
                seals.capture(removal(Space::Meta, key));
            }
        }
        let mut out = BytesMut::with_capacity(31);
        out.put_u8(keys::FORMAT);
        for number in [self.catalog.version().0, self.catalog.last_id().0, self.last_lsn.0] {
            put_varint(&mut out, number);
        }
        seals.capture(image(Space::Meta, keys::catalog_key(), out.freeze()));
    }

    /// The sealed state is in the index.
    pub fn sealed_written(&mut self) {
        self.sealed.clear();
    }

    /// The sealed state did not get into the index, which may still have what the sealed state removed.
    pub fn unseal(&mut self) {
        self.in_index.extend(self.sealed.iter().copied());
        self.dirty.append(&mut self.sealed);
    }

    /// Takes the catalog's own entry out of the index.
    pub fn restore_counters(&mut self, value: Bytes) -> Result<(), Malformed> {
        let mut reader = keys::open(value)?;
        self.restored = (CatalogVersion(reader.varint()?), ResourceId(reader.varint()?));
        self.last_lsn = Lsn(reader.varint()?);
        keys::close(&reader)
    }

    /// Takes a resource out of the index.
    pub fn restore_resource(&mut self, id: ResourceId, value: Bytes) -> Result<(), Malformed> {
        let mut reader = keys::open(value)?;
        let path = read_path(&reader.text()?)?;
        let settings = read_settings(&mut reader)?;
        let created_at = Millis(reader.varint()?);
        keys::close(&reader)?;
        if self.catalog.find_path(&path).is_some() {
            return Err(Malformed("two resources with one path"));
        }
        self.note_target(id, &settings);
        self.catalog.put(Arc::new(ResourceInfo::new(id, path, settings, created_at)));
        self.in_index.insert(id);
        Ok(())
    }

    /// All of it was restored: it gets its version. Refuses what does not fit together.
    pub fn finish_restore(&mut self) -> Result<(), Malformed> {
        let (version, last_id) = self.restored;
        if self.catalog.last_id() > last_id {
            return Err(Malformed("a resource beyond the last number"));
        }
        self.catalog = std::mem::take(&mut self.catalog).at_version(version).with_last_id(last_id);
        self.snapshot = OnceCell::new();
        Ok(())
    }
}
