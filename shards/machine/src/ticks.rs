//! What time brings.

use flowmesh_model::transfer::fact::TransferFact;
use flowmesh_model::{Fact, Millis, ResourceId, Settings};

use crate::decision::{Tick, WaitKey};
use crate::held::Parts;
use crate::machine::{Machine, arm};

/// Delayed jobs one tick makes ready, for each fact it may return: about as much work.
const PROMOTIONS_PER_FACT: usize = 4;

/// Bytes of facts beyond which a tick looks at no other resource: they are one entry.
const BYTES_PER_TICK: usize = 1024 * 1024;

impl Machine {
    /// Promotes delayed jobs whose time has come, and says which facts are due: dropped resources, leases and keys whose
    /// time is up, schedules that fire, workers that nothing is heard of. At most `facts_max` facts, 2 or more, and besides
    /// them what jobs of schedules drop from full queues; the caller logs and applies them at once.
    pub fn tick(&mut self, now: Millis, facts_max: usize) -> Tick {
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
        let mut bytes = 0;
        for id in due {
            if facts.len() >= facts_max || promotions == 0 || bytes > BYTES_PER_TICK {
                break;
            }
            let before = facts.len();
            promotions -= self.tick_one(id, now, facts_max, promotions, &mut facts);
            bytes += facts.iter().skip(before).map(Fact::encoded_len_max).sum::<usize>();
        }
        if facts.len() < facts_max {
            self.workers.tick(now, facts_max - facts.len(), &mut facts);
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
