//! What time brings.

use std::collections::BTreeSet;

use flowmesh_model::transfer::fact::TransferFact;
use flowmesh_model::{Fact, Lsn, Millis, ResourceId, Settings};

use crate::decision::{ColdKeys, Tick, WaitKey};
use crate::held::Parts;
use crate::kv;
use crate::kv::cold::Wanted;
use crate::machine::{Machine, arm};

/// Delayed jobs one tick makes ready, for each fact it may return: about as much work.
const PROMOTIONS_PER_FACT: usize = 4;

/// Bytes of facts beyond which a tick looks at no other resource: they are one entry.
pub(crate) const BYTES_PER_TICK: usize = 1024 * 1024;

/// When the ends of a store are looked at again whose feed cannot be written.
const FEED_RETRY_MS: u64 = 1_000;

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
            of_feeds += self.feed_tick(id, now, lsn, before, &mut facts);
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
                Parts::Kv(store) => store.expire(id, now, facts_max - before, facts),
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

    /// Adds to the facts of a store from `before` on what its feed gets, and leaves those out that one entry does not take:
    /// they stay due. Returns how many it added.
    fn feed_tick(
        &mut self,
        store: ResourceId,
        now: Millis,
        lsn: Lsn,
        before: usize,
        facts: &mut Vec<Fact>,
    ) -> usize {
        let Some(held) = self.held.get(&store).filter(|_| facts.len() > before) else { return 0 };
        let (Parts::Kv(kv), Some(info)) = (&held.parts, &held.info) else { return 0 };
        let Settings::Kv(settings) = &info.settings else { return 0 };
        if settings.feed.is_none() {
            return 0;
        }
        let placement = &info.placement;
        let wanted = Wanted::default();
        let asked = kv::decide::Asked { store: kv, id: store, settings, placement, now, lsn, wanted };
        let of_store = facts.split_off(before);
        let place = kv::feed::check_place(settings, &info.path, self.config.shards);
        let records = place
            .and_then(|()| self.feed_of(settings))
            .and_then(|feed| feed.map(|feed| feed.records(&asked, &of_store, BYTES_PER_TICK)).transpose());
        let records = records.ok().flatten().filter(|_| asked.wanted.is_empty());
        let Some((records, taken)) = records else {
            let keys = asked.wanted.into_keys();
            if !keys.is_empty() {
                self.cold_due.push(ColdKeys { store, keys });
            }
            // Nothing ends unsaid: it stays due, and is looked at again.
            if let Some(held) = self.held.get_mut(&store) {
                arm(&mut self.timers, held, Some(now.plus(FEED_RETRY_MS)));
            }
            return 0;
        };
        facts.extend(of_store.into_iter().take(taken));
        let count = records.len();
        facts.extend(records);
        count
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
