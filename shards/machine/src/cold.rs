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
    /// Stores that have still to have their turn, the next last.
    stores: Vec<ResourceId>,
    /// All stores had a turn.
    turns: usize,
    /// Since the last time that they all had, a value went or another one may.
    is_worthwhile: bool,
}

/// Entries of a store that are looked at in its turn: one in so many, and some at least.
const TURN_SHARE: usize = 64;
const TURN_MIN: usize = 32;

impl Machine {
    /// Leaves values to the index that it has as they are, until the state takes no more than `bytes_max`; those of a store in the
    /// order in which its entries go, of all stores in turn. Looks at no more than about `looks_max` entries at once, some 100 ns
    /// each.
    pub fn chill(&mut self, bytes_max: u64, looks_max: usize, cursor: &mut ChillCursor) -> Chill {
        let mut looks_left = looks_max;
        while looks_left > 0 {
            let over = self.memory_bytes().saturating_sub(bytes_max);
            if over == 0 {
                return Chill::Enough;
            }
            let Some(id) = cursor.stores.pop() else {
                cursor.stores = self.stores();
                let ended = !std::mem::replace(&mut cursor.is_worthwhile, false);
                if cursor.stores.is_empty() || ended && cursor.turns > 0 {
                    *cursor = ChillCursor::default();
                    return Chill::NothingLeft;
                }
                if cursor.turns == 0 {
                    self.begin_chill();
                }
                cursor.turns += 1;
                continue;
            };
            looks_left -= self.chill_one(id, over, looks_left, cursor).min(looks_left);
        }
        Chill::More
    }

    /// What could not go before may be able to now.
    fn begin_chill(&mut self) {
        for held in self.held.values_mut() {
            if let Parts::Kv(store) = &mut held.parts {
                store.begin_chill();
            }
        }
    }

    /// Returns how many entries it looked at, at least one.
    fn chill_one(&mut self, id: ResourceId, over: u64, looks_max: usize, cursor: &mut ChillCursor) -> usize {
        let Some(Parts::Kv(store)) = self.held.get_mut(&id).map(|held| &mut held.parts) else { return 1 };
        let (before, could_go) = (store.memory_bytes(), store.could_go());
        if could_go == 0 {
            return 1;
        }
        let looks = (store.len() / TURN_SHARE).max(TURN_MIN).min(looks_max);
        let chilled = store.chill(&self.seals, over, looks);
        self.memory_bytes = self.memory_bytes + store.memory_bytes() - before;
        self.could_go = self.could_go + store.could_go() - could_go;
        cursor.is_worthwhile |= !chilled.is_through;
        chilled.looked.max(1)
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

    /// Those of some values that are cold, as the index can be asked for them; or `all`, since others can leave memory meanwhile.
    ///
    /// # Errors
    /// [`Reject::TooLarge`] if that is more than one call may bring into memory.
    pub fn cold_items(&self, cold: &ColdKeys, all: bool) -> Result<Vec<ColdItem>, Reject> {
        let Some((held, store)) = self.store(cold.store) else { return Ok(Vec::new()) };
        store.cold_items(&held.home, &cold.keys, all)
    }

    /// Takes a cold value into memory, as the index has it. Nothing happens if its key holds something else by now.
    ///
    /// # Errors
    /// [`Reject::Damaged`] if the index has not what it must have.
    pub fn warm_item(
        &mut self,
        store: ResourceId,
        item: &ColdItem,
        value: Option<Bytes>,
    ) -> Result<(), Reject> {
        let Some(held) = self.held.get_mut(&store) else { return Ok(()) };
        let Parts::Kv(kv) = &mut held.parts else { return Ok(()) };
        let (before, could_go) = (kv.memory_bytes(), kv.could_go());
        kv.warm_item(item, value).map_err(|what| Reject::Damaged {
            place: format!("{}: {item} is {what} in the index", held.home.path),
        })?;
        self.memory_bytes = self.memory_bytes + kv.memory_bytes() - before;
        self.could_go = self.could_go + kv.could_go() - could_go;
        // What was due and could not be said without it.
        arm_earlier(&mut self.timers, held);
        Ok(())
    }

    /// What a fact of the log changes and does not say, if it is cold: it must be in memory before the fact is applied.
    pub fn cold_of(&self, fact: &Fact) -> Option<ColdKeys> {
        let (Fact::KeySet { store, .. }
        | Fact::KeyDeleted { store, .. }
        | Fact::KeyExpired { store, .. }
        | Fact::Kv(store, _)) = fact
        else {
            return None;
        };
        let store = *store;
        let keys = self.store(store)?.1.cold_of(fact);
        (!keys.is_empty()).then_some(ColdKeys { store, keys })
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
