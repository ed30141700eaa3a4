//! Time passes: due jobs become ready, leases and keys expire, long polls end.

use std::time::Duration;

use flowmesh_model::{Batch, Millis};
use flowmesh_store::disk::Disk;
use futures::future::{Either, select};

use crate::pump::Effects;
use crate::shard::Shard;
use crate::timer::Timer;

/// Facts one tick may cause: bounds how long the core is held.
const FACTS_PER_TICK: usize = 512;

/// The longest sleep. Nothing is due that the loop does not know of; this only heals a clock that jumped.
const SLEEP_MAX: Duration = Duration::from_secs(1);

impl<D: Disk, T: Timer> Shard<D, T> {
    /// Ticks whenever something is due. Runs until the shard has stopped.
    pub async fn run_ticks(self) {
        while !self.is_closed() {
            let next = self.tick();
            let wait = match next {
                None => SLEEP_MAX,
                Some(due) => Duration::from_millis(due.since(self.inner.timer.now())).min(SLEEP_MAX),
            };
            if wait.is_zero() {
                self.inner.timer.yield_now().await;
                continue;
            }
            let sleep = std::pin::pin!(self.inner.timer.sleep(wait));
            let rearmed = std::pin::pin!(self.inner.signals.tick.wait());
            match select(sleep, rearmed).await {
                Either::Left(_) | Either::Right(_) => {}
            }
        }
    }

    /// Does what is due now. Returns when something is due next; the time now if there is more at once.
    pub fn tick(&self) -> Option<Millis> {
        let (now, now_ns) = (self.inner.timer.now(), self.inner.timer.monotonic_ns());
        let mut effects = Effects::default();
        let next = {
            let mut state = self.inner.state.borrow_mut();
            let mut next = None;
            if state.fenced.is_none() && !state.disk_full && !state.stopping {
                let lsn = state.log.next_lsn();
                let tick = state.machine.tick(now, lsn, FACTS_PER_TICK);
                next = tick.next;
                effects.fetch |= state.machine.has_cold_due();
                if !tick.facts.is_empty() {
                    // Facts that cannot be logged now stay due.
                    let logged = state.log_and_apply(now, Batch::from_vec(tick.facts), &mut effects);
                    next = if logged.is_ok() { state.machine.next_due() } else { Some(now.plus(20)) };
                }
            }
            state.serve_woken(now, now_ns, &mut effects);
            while let Some(waiter) = state.waiting.take_due(now) {
                state.run_waiter(waiter, now, now_ns, &mut effects);
            }
            let due = [next, state.waiting.next_due()].into_iter().flatten().min();
            state.armed = due;
            due
        };
        effects.rearm = false;
        self.carry_on(effects);
        next
    }

    /// Under `interval`: asks for a sync every `sync_interval_ms`. Runs until the shard has stopped.
    pub async fn run_interval_syncs(self) {
        let span = Duration::from_millis(self.inner.config.sync_interval_ms.max(1));
        while !self.is_closed() {
            self.inner.timer.sleep(span).await;
            let behind = {
                let mut state = self.inner.state.borrow_mut();
                let behind = state.parked.synced() < state.last_lsn();
                state.sync_due |= behind;
                behind
            };
            if behind {
                self.inner.signals.commit.notify();
            }
        }
    }

    fn is_closed(&self) -> bool {
        let state = self.inner.state.borrow();
        state.stopping && state.parked.len() == 0
    }
}
