//! Values of stores that leave memory and come back, for all stores of a shard.

use bytes::Bytes;
use flowmesh_model::{Fact, Reject, ResourceId};

use crate::decision::ColdKeys;
use crate::held::{Held, Parts};
use crate::kv::Store;
use crate::kv::cold::ColdItem;
use crate::machine::{Machine, arm_earlier};

/// What [`Machine::chill`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chill {
    /// As much is free as was asked for.
    Enough,
    /// There may be more to leave to the index.
    More,
    /// Whatever could leave memory has: the rest changed since the last checkpoint, or is needed there.
    NothingLeft,
}

/// How far [`Machine::chill`] has come.
#[derive(Clone, Debug, Default)]
pub struct ChillCursor {
    /// Stores that are still to be gone through, the next last.
    stores: Vec<ResourceId>,
    /// Whether anything left memory since the first of them.
    some_went: bool,
    /// Whether all of them were gone through and nothing left memory.
    none_went: bool,
}

impl Machine {
    /// Leaves values to the index that it has as they are, until the state takes no more than `bytes_max`. Looks at no more than
    /// about `looks_max` entries at once, some 50 ns each.
    pub fn chill(&mut self, bytes_max: u64, looks_max: usize, cursor: &mut ChillCursor) -> Chill {
        let mut looks_left = looks_max;
        while looks_left > 0 {
            let over = self.memory_bytes().saturating_sub(bytes_max);
            if over == 0 {
                return Chill::Enough;
            }
            let Some(&id) = cursor.stores.last() else {
                let through = std::mem::replace(&mut cursor.none_went, true) && !cursor.some_went;
                cursor.some_went = false;
                cursor.stores = self.stores();
                if through || cursor.stores.is_empty() {
                    *cursor = ChillCursor::default();
                    return Chill::NothingLeft;
                }
                continue;
            };
            let Some(Parts::Kv(store)) = self.held.get_mut(&id).map(|held| &mut held.parts) else {
                cursor.stores.pop();
                continue;
            };
            let before = store.memory_bytes();
            let could_go = store.cold().could_go;
            let chilled = store.chill(&self.seals, over, looks_left);
            self.memory_bytes = self.memory_bytes + store.memory_bytes() - before;
            self.could_go = self.could_go + store.cold().could_go - could_go;
            looks_left -= chilled.looked.max(1).min(looks_left);
            cursor.some_went |= chilled.bytes > 0;
            if chilled.is_through {
                cursor.stores.pop();
            }
        }
        Chill::More
    }

    /// Memory that values take which could leave it, once the index has them.
    #[inline]
    pub fn could_go(&self) -> u64 {
        self.could_go
    }

    /// Stores that hold something, in no order that means anything.
    fn stores(&self) -> Vec<ResourceId> {
        let stores = self.held.iter().filter(|(_, held)| matches!(held.parts, Parts::Kv(_)));
        stores.map(|(id, _)| *id).collect()
    }

    fn store(&self, id: ResourceId) -> Option<(&Held, &Store)> {
        let held = self.held.get(&id)?;
        if let Parts::Kv(store) = &held.parts { Some((held, store)) } else { None }
    }

    /// Those of some values that are cold, as the index can be asked for them.
    ///
    /// # Errors
    /// [`Reject::TooLarge`] if that is more than one call may bring into memory.
    pub fn cold_items(&self, cold: &ColdKeys) -> Result<Vec<ColdItem>, Reject> {
        let Some((held, store)) = self.store(cold.store) else { return Ok(Vec::new()) };
        store.cold_items(&held.home, &cold.keys)
    }

    /// Takes a cold value into memory, as the index has it. Nothing happens if its key holds something else by now.
    ///
    /// # Errors
    /// [`Reject::Damaged`] if the index has not what it must have.
    pub fn warm_item(&mut self, store: ResourceId, item: &ColdItem, value: Option<Bytes>) -> Result<(), Reject> {
        let Some(held) = self.held.get_mut(&store) else { return Ok(()) };
        let Parts::Kv(kv) = &mut held.parts else { return Ok(()) };
        let (before, could_go) = (kv.memory_bytes(), kv.cold().could_go);
        kv.warm_item(item, value).map_err(|what| Reject::Damaged {
            place: format!("{}: {item} is {what} in the index", held.home.path),
        })?;
        self.memory_bytes = self.memory_bytes + kv.memory_bytes() - before;
        self.could_go = self.could_go + kv.cold().could_go - could_go;
        // What was due and could not be said without it.
        arm_earlier(&mut self.timers, held);
        Ok(())
    }

    /// What a fact of the log changes and does not say, if it is cold: it must be in memory before the fact is applied.
    pub fn cold_of(&self, fact: &Fact) -> Option<ColdKeys> {
        let Fact::Kv(id, fact) = fact else { return None };
        let key = self.store(*id)?.1.cold_of(fact)?;
        Some(ColdKeys { store: *id, keys: vec![key] })
    }

    /// Takes what ticks need that is cold: what is due stays due until it is in memory.
    pub fn take_cold_due(&mut self) -> Option<ColdKeys> {
        self.cold_due.pop()
    }

    /// Whether [`Machine::take_cold_due`] has something. Costs next to nothing.
    #[inline]
    pub fn has_cold_due(&self) -> bool {
        !self.cold_due.is_empty()
    }

    /// At start: values beyond so much memory for the state stay in the index.
    pub fn restore_within(&mut self, bytes_max: u64) {
        self.restore_bytes_max = bytes_max;
    }
}
