//! What time brings.

use std::collections::BTreeSet;

use flowmesh_model::limits::EVICTIONS_PER_ENTRY;
use flowmesh_model::transfer::fact::TransferFact;
use flowmesh_model::{Fact, Lsn, Millis, Reject, ResourceId, ResourceInfo, Settings};

use crate::decision::{ColdKeys, Tick, WaitKey};
use crate::held::Parts;
use crate::kv;
use crate::machine::{Machine, arm, arm_earlier};

/// Delayed jobs one tick makes ready, for each fact it may return: about as much work.
const PROMOTIONS_PER_FACT: usize = 4;

/// Bytes of facts beyond which a tick looks at no other resource: they are one entry.
pub(crate) const BYTES_PER_TICK: usize = 1024 * 1024;

/// When the ends of a store are looked at again that could not be said.
const RETRY_MS: u64 = 1_000;

impl Machine {
    /// Promotes delayed jobs whose time has come, and says which facts are due: dropped resources, leases and keys whose
    /// time is up, schedules that fire, workers that nothing is heard of. At most `facts_max` facts, 2 or more, and besides
    /// them what jobs of schedules drop from full queues, and what feeds get of stores; the caller logs and applies them at
    /// once. `lsn` is the one their entry will get.
    pub fn tick(&mut self, now: Millis, lsn: Lsn, facts_max: usize) -> Tick {
        self.clock = self.clamp(now);
        let now = self.clock;
        let mut facts = Vec::new();
        facts.extend(self.drops.iter().take(facts_max).map(|&id| Fact::ResourceDropped { id }));
        let forgets = self.forgets.iter().filter(|(target, _)| !self.drops.contains(target));
        let forgets = forgets.take(facts_max.saturating_sub(facts.len()));
        facts.extend(
            forgets
                .map(|&(target, source)| Fact::Transfer(target, TransferFact::ReceivedForgotten { source })),
        );
        let mut promotions = facts_max.saturating_mul(PROMOTIONS_PER_FACT);
        let due = self.timers.range(..=(now, ResourceId(u64::MAX))).map(|&(_, id)| id);
        let due: Vec<ResourceId> = due.take(facts_max.max(1)).collect();
        let (mut bytes, mut of_feeds) = (0, 0);
        let mut touched = BTreeSet::new();
        for id in due {
            if facts.len() >= facts_max + of_feeds || promotions == 0 || bytes > BYTES_PER_TICK {
                break;
            }
            // Two causes of one entry know nothing of what the other makes of a stream.
            let streams = [Some(id), self.feed_id(id)];
            if streams.iter().flatten().any(|stream| touched.contains(stream)) {
                continue;
            }
            let before = facts.len();
            promotions -= self.tick_one(id, now, facts_max + of_feeds, promotions, &mut facts);
            of_feeds += self.complete(id, now, lsn, before, &mut facts);
            touched.extend(streams.into_iter().flatten().filter(|_| facts.len() > before));
            bytes += facts.iter().skip(before).map(Fact::encoded_len_max).sum::<usize>();
        }
        if facts.len() < facts_max + of_feeds {
            self.workers.tick(now, facts_max + of_feeds - facts.len(), &mut facts);
        }
        let next = if facts.is_empty() { self.next_due().map(|due| due.max(now)) } else { Some(now) };
        Tick { facts, next }
    }

    /// Returns how many jobs were promoted. The timer of a resource with facts stays where it is: once they are
    /// applied, another tick finds nothing due and moves it.
    fn tick_one(
        &mut self,
        id: ResourceId,
        now: Millis,
        facts_max: usize,
        promotions_max: usize,
        facts: &mut Vec<Fact>,
    ) -> usize {
        let Some(held) = self.held.get_mut(&id) else { return 0 };
        let (before, mut promoted) = (facts.len(), 0);
        // What is about to be dropped needs no other fact.
        if !self.drops.contains(&id) {
            match &mut held.parts {
                Parts::Stream(stream) => stream.expire(id, now, facts_max - before, facts),
                Parts::Queue(queue) => {
                    promoted = queue.promote(now, promotions_max);
                    queue.expire(id, now, facts_max - before, facts);
                    let settings = held.info.as_deref().map(|info| &info.settings);
                    if let Some(Settings::Queue(settings)) = settings {
                        queue.fire(id, settings, now, facts_max - facts.len(), facts);
                        if let Some(catalog) = self.snapshot.as_deref() {
                            let (to, most) =
                                (settings.dead_letters_to.as_deref(), facts_max.saturating_sub(facts.len()));
                            queue.forward(id, to, catalog, now, most, facts);
                        }
                    }
                    if queue.is_leasable(now) {
                        self.woken.wake(&mut queue.woken, WaitKey::Queue(id));
                    }
                }
                Parts::Kv(store) => {
                    let memory_bytes = store.memory_bytes();
                    store.leave_history();
                    store.expire(id, now, facts_max - before, facts);
                    // What ends makes room as well; and nothing goes twice with one entry.
                    if facts.len() == before {
                        store.evict(id, now, facts_max - before, facts);
                    }
                    self.memory_bytes = self.memory_bytes + store.memory_bytes() - memory_bytes;
                }
                Parts::Group(group) => {
                    let (info, catalog) = (held.info.as_deref(), self.snapshot.as_deref());
                    group.tick(id, info, catalog, now, facts_max - before, facts);
                }
            }
        }
        if facts.len() == before {
            let due = if self.drops.contains(&id) { None } else { held.parts.next_due() };
            arm(&mut self.timers, held, due);
        }
        promoted
    }

    /// The feed of a held store, if it has one.
    fn feed_id(&self, store: ResourceId) -> Option<ResourceId> {
        let Settings::Kv(settings) = &self.held.get(&store)?.info.as_ref()?.settings else { return None };
        Some(self.feed_of(settings).ok()??.info.id)
    }

    /// Leaves out of the facts of a store from `before` on what changes values that are not in memory and must be, and what one
    /// entry does not take with what the store's feed gets, which it adds: all that stays due. Returns how much it added.
    fn complete(
        &mut self,
        store: ResourceId,
        now: Millis,
        lsn: Lsn,
        before: usize,
        facts: &mut Vec<Fact>,
    ) -> usize {
        let Some(held) = self.held.get(&store).filter(|_| facts.len() > before) else { return 0 };
        let (Parts::Kv(kv), Some(info)) = (&held.parts, &held.info) else { return 0 };
        let Ok(asked) = self.ask_store(kv, info, now, lsn) else { return 0 };
        let mut of_store = facts.split_off(before);
        of_store.truncate(asked.ready(&of_store));
        let records = self.records_of(&asked, info, &of_store);
        let keys = asked.wanted.into_keys();
        let (records, taken) = records.ok().filter(|_| keys.is_empty()).unwrap_or_default();
        if !keys.is_empty() {
            self.cold_due.push(ColdKeys { store, keys });
        }
        if taken == 0 {
            // Nothing ends unsaid: it stays due, and is looked at again.
            if let Some(held) = self.held.get_mut(&store) {
                arm(&mut self.timers, held, Some(now.plus(RETRY_MS)));
            }
            return 0;
        }
        facts.extend(of_store.into_iter().take(taken));
        let count = records.len();
        facts.extend(records);
        count
    }

    /// What the feed of a store gets of facts, if it has one, and how many of them one entry takes with it.
    fn records_of(
        &self,
        asked: &kv::decide::Asked<'_>,
        info: &ResourceInfo,
        facts: &[Fact],
    ) -> Result<(Vec<Fact>, usize), Reject> {
        if asked.settings.feed.is_none() || facts.is_empty() {
            return Ok((Vec::new(), facts.len()));
        }
        kv::feed::check_place(asked.settings, &info.path, self.config.shards)?;
        let feed = self.feed_of(asked.settings)?;
        feed.map_or(Ok((Vec::new(), 0)), |feed| feed.records(asked, facts, BYTES_PER_TICK))
    }

    /// Says which entries of caches go to make room for what changes added to them: to be logged and applied right behind
    /// the change, and asked for again until there is nothing. `lsn` is the one their entry will get. After the last one a
    /// cache is within its limits, or has lost twice what it got. What cannot be logged now stays due.
    pub fn make_room(&mut self, now: Millis, lsn: Lsn) -> Vec<Fact> {
        let now = self.clamp(now);
        let mut facts = Vec::new();
        while let Some(&id) = self.crowded.first() {
            if let Some(Parts::Kv(store)) = self.held.get_mut(&id).map(|held| &mut held.parts)
                && !self.drops.contains(&id)
            {
                let bytes = store.memory_bytes();
                store.evict_owed(id, now, self.tight, EVICTIONS_PER_ENTRY, &mut facts);
                self.memory_bytes = self.memory_bytes + store.memory_bytes() - bytes;
                self.complete(id, now, lsn, 0, &mut facts);
            }
            if !facts.is_empty() {
                return facts;
            }
            self.crowded.remove(&id);
            self.settle(id);
        }
        facts
    }

    /// Leaves it to ticks to make room: what [`Machine::make_room`] said could not be logged.
    pub fn leave_room_to_ticks(&mut self) {
        while let Some(id) = self.crowded.pop_first() {
            self.settle(id);
        }
    }

    fn settle(&mut self, id: ResourceId) {
        let Some(held) = self.held.get_mut(&id) else { return };
        if let Parts::Kv(store) = &mut held.parts {
            store.settle();
        }
        arm_earlier(&mut self.timers, held);
    }

    /// Whether [`Machine::make_room`] may have something. Costs next to nothing.
    #[inline]
    pub fn is_crowded(&self) -> bool {
        !self.crowded.is_empty()
    }

    /// Whether memory is short: then caches lose at least as much as they get, even within their limits.
    #[inline]
    pub fn set_tight(&mut self, tight: bool) {
        self.tight = tight;
    }

    /// Whether a store is a cache that can make room for what it gets.
    pub fn can_make_room(&self, store: ResourceId) -> bool {
        match self.held.get(&store).map(|held| &held.parts) {
            Some(Parts::Kv(store)) => store.can_make_room(),
            _ => false,
        }
    }

    /// When [`Machine::tick`] has something to do next; may be early, never late. Costs next to nothing.
    #[inline]
    pub fn next_due(&self) -> Option<Millis> {
        if !self.drops.is_empty() || !self.forgets.is_empty() {
            return Some(self.clock);
        }
        let resources = self.timers.first().map(|(due, _)| *due);
        resources.into_iter().chain(self.workers.next_due()).min()
    }
}
