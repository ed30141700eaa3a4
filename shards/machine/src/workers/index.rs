//! The workers' part of checkpoints.

use std::cell::Cell;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, put_varint};
use flowmesh_model::worker::fact::read_worker_path;
use flowmesh_model::worker::{Registration, WorkerState};
use flowmesh_model::{IndexWrite, Lsn, Millis, Space, WorkerPath};

use super::{Worker, Workers};
use crate::changes::Seals;
use crate::items::{Indexed, Item, Key};
use crate::keys;

impl Key for WorkerPath {
    type Home = ();

    const SPACE: Space = Space::Meta;

    fn in_index(&self, (): &()) -> Bytes {
        keys::worker_key(self)
    }
}

impl Item for Worker {
    /// The worker in the index.
    ///
    /// | field | size | meaning |
    /// |---|---|---|
    /// | format | 1 | 1 |
    /// | state | 1 | 0 alive, 1 stopping, 2 left, 3 dead |
    /// | told to stop | 1 | 0 or 1 |
    /// | epoch | varint | |
    /// | registered at, since | varint each | ms |
    /// | deaths | varint | |
    /// | registration | the rest | as [`flowmesh_model::worker::fact`] says |
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64 + self.registration.encoded_len_max());
        out.put_u8(keys::FORMAT);
        out.put_u8(self.state as u8);
        out.put_u8(u8::from(self.told_to_stop));
        for number in [self.epoch.0, self.registered_at.0, self.since.0, self.deaths] {
            put_varint(&mut out, number);
        }
        self.registration.encode(&mut out);
        out.freeze()
    }
}

/// Reads what [`Worker::encode`] wrote.
fn decode(value: Bytes) -> Result<Worker, Malformed> {
    let mut reader = keys::open(value)?;
    let state = WorkerState::ALL.get(usize::from(reader.byte()?));
    let state = *state.ok_or(Malformed("a worker in an unknown state"))?;
    let told_to_stop = reader.byte()? != 0;
    let epoch = Lsn(reader.varint()?);
    let (registered_at, since) = (Millis(reader.varint()?), Millis(reader.varint()?));
    let deaths = reader.varint()?;
    let registration = Box::new(Registration::decode(&mut reader)?);
    keys::close(&reader)?;
    let (heard, armed) = (Cell::new(None), Cell::new(None));
    Ok(Worker { epoch, registration, registered_at, state, since, told_to_stop, deaths, heard, armed })
}

impl Workers {
    /// Takes a worker out of the index.
    pub fn restore(&mut self, path: &str, value: Bytes) -> Result<(), Malformed> {
        let path = read_worker_path(path)?;
        if !self.known.restore(path.clone(), decode(value)?) {
            return Err(Malformed("the same worker twice"));
        }
        self.link(&path);
        Ok(())
    }

    /// Takes the changes into the sealed state.
    pub fn seal(&mut self) {
        self.known.seal();
        self.collected = false;
    }

    /// Whether all sealed changes were written.
    pub fn is_collected(&self) -> bool {
        self.collected
    }

    /// Writes at most `items_max` sealed changes. Returns how many it looked at.
    pub fn collect(&mut self, seals: &Seals, items_max: usize, out: &mut Vec<IndexWrite>) -> usize {
        if self.collected {
            return 0;
        }
        let looked = self.known.collect(&(), seals, items_max, out);
        self.collected = looked < items_max;
        looked
    }

    /// The sealed state is in the index.
    pub fn sealed_written(&mut self) {
        self.known.sealed_written();
    }

    /// The sealed state did not get into the index.
    pub fn unseal(&mut self, seals: &Seals) {
        self.known.unseal(seals);
    }
}
