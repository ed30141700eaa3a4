//! Values of stores that only the index has: read without holding the state, taken into memory, and the command decided on again.
//!
//! A command is decided on in the same breath in which its values came, so that none of them can leave memory before. One that
//! needs more by then, since something changed meanwhile, gets all of it at once the next time.

use bytes::Bytes;
use flowmesh_machine::{ColdItem, ColdKeys, Decision};
use flowmesh_model::{Command, PartitionRef, Reject, Space};
use flowmesh_store::disk::Disk;

use crate::fetch::NO_DISK;
use crate::pump::Effects;
use crate::release::Outgoing;
use crate::shard::{Shard, State};
use crate::timer::Timer;

/// Values read before those of others get their turn.
const AT_ONCE: usize = 64;

/// So often a command is told to fetch values that others changed meanwhile.
const ROUNDS_MAX: usize = 16;

/// What was read, as it was asked for.
type Read = Vec<(ColdItem, Option<Bytes>)>;

impl<D: Disk, T: Timer> Shard<D, T> {
    /// Reads what a command needs, and decides on it again.
    pub(crate) async fn fetch_values(&self, mut cold: ColdKeys, command: Command, mut outgoing: Outgoing) {
        let at = PartitionRef { resource: cold.store, partition: 0 };
        let mut reject = Reject::Overloaded { what: "cold reads", retry_after_ms: 50 };
        for round in 0..ROUNDS_MAX {
            let read = match self.read_values(&cold, round > 0).await {
                Ok(read) => read,
                Err(refused) => {
                    reject = refused;
                    break;
                }
            };
            let more = match self.take_values(&cold, read) {
                Ok(()) => self.wants(&command),
                Err(damaged) => {
                    reject = damaged;
                    break;
                }
            };
            let Some(more) = more else { return self.run_again(command, outgoing) };
            // All of it at once: what is in memory by now may have left it by then.
            cold.keys.extend(more.keys);
            cold.keys.sort_unstable();
            cold.keys.dedup();
            if outgoing.sink.is_closed() {
                return;
            }
        }
        outgoing.outcome = Err(reject);
        self.answer(at, outgoing);
    }

    /// What a command needs that is not in memory.
    fn wants(&self, command: &Command) -> Option<ColdKeys> {
        let now = self.inner.timer.now();
        let state = self.inner.state.borrow();
        match state.machine.decide(now, state.log.next_lsn(), command) {
            Ok(Decision::WarmStore(cold)) => Some(cold),
            _ => None,
        }
    }

    /// Reads values from the index, as far as they are cold now; or `all`.
    pub(crate) async fn read_values(&self, cold: &ColdKeys, all: bool) -> Result<Read, Reject> {
        let started_ns = self.inner.timer.monotonic_ns();
        let items = self.inner.state.borrow().machine.cold_items(cold, all)?;
        let mut read = Read::with_capacity(items.len());
        for items in items.chunk_by(|one, next| one.space == next.space) {
            let Some(space) = items.first().map(|item| item.space) else { continue };
            let keys: Vec<Bytes> = items.iter().map(|item| item.index_key.clone()).collect();
            read.extend(items.iter().cloned().zip(self.read_beside(space, &keys).await?));
        }
        let elapsed_ns = self.inner.timer.monotonic_ns().saturating_sub(started_ns);
        let stats = &mut self.inner.state.borrow_mut().stats;
        stats.values_read += read.len() as u64;
        stats.value_read_ns.record(elapsed_ns);
        Ok(read)
    }

    /// What the index has of keys that no checkpoint in the making changes.
    pub(crate) async fn read_beside(
        &self,
        space: Space,
        keys: &[Bytes],
    ) -> Result<Vec<Option<Bytes>>, Reject> {
        let Some(durable) = &self.inner.durable else { return Err(NO_DISK) };
        let mut read = Vec::with_capacity(keys.len());
        for keys in keys.chunks(AT_ONCE) {
            let found = durable.index.beside(space, keys.to_vec()).await;
            read.extend(found.map_err(|error| Reject::Damaged { place: error.to_string() })?);
        }
        Ok(read)
    }

    /// Takes what was read into memory.
    pub(crate) fn take_values(&self, cold: &ColdKeys, read: Read) -> Result<(), Reject> {
        let mut effects = Effects::default();
        let taken = self.inner.state.borrow_mut().take_values(cold, read, &mut effects);
        self.carry_on(effects);
        taken
    }
}

impl<D: Disk> State<D> {
    fn take_values(&mut self, cold: &ColdKeys, read: Read, effects: &mut Effects) -> Result<(), Reject> {
        let taken =
            read.into_iter().try_for_each(|(item, value)| self.machine.warm_item(cold.store, &item, value));
        effects.chill |= self.is_memory_short();
        taken
    }
}
