//! What time brings: workers that nothing is heard of are dead, those that have gone are forgotten.

use flowmesh_model::worker::fact::{WorkerChange, WorkerFact};
use flowmesh_model::{Fact, Millis, WorkerPath};

use super::Workers;

/// Workers that a tick looks at, for each fact it may return: most are found to have been heard of since.
const LOOKED_PER_FACT: usize = 16;

impl Workers {
    /// When something is due next; may be early, never late.
    #[inline]
    pub fn next_due(&self) -> Option<Millis> {
        self.due.first().map(|(due, _)| *due).filter(|_| self.awake)
    }

    /// Appends at most `facts_max` facts about what is due. Their timers stay where they are: once they are applied,
    /// another tick finds nothing due.
    pub fn tick(&mut self, now: Millis, facts_max: usize, facts: &mut Vec<Fact>) {
        if !self.awake {
            return;
        }
        let end = facts.len() + facts_max;
        let due = self.due.iter().take_while(|(due, _)| *due <= now).map(|(_, path)| path.clone());
        let due: Vec<WorkerPath> = due.take(facts_max.saturating_mul(LOOKED_PER_FACT)).collect();
        for path in due {
            let Some(worker) = self.known.get(&path) else { continue };
            if worker.state.is_present() && worker.heard.get().is_none() {
                worker.heard.set(Some(now));
            }
            if worker.ends_at().is_some_and(|ends_at| ends_at > now) {
                self.unlink(&path);
                self.link(&path);
            } else if facts.len() < end {
                let present = worker.state.is_present();
                let change = if present { WorkerChange::Died } else { WorkerChange::Forgotten };
                facts.push(Fact::Worker(WorkerFact { path, epoch: worker.epoch, change }));
            }
        }
    }
}
