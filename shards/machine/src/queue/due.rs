//! What time brings: delayed jobs become ready, leases expire, what is kept goes.

use bytes::Bytes;
use flowmesh_model::job::AttemptEnd;
use flowmesh_model::job::fact::{QueueFact, RemovalCause};
use flowmesh_model::{Fact, JobId, Millis, QueueSettings, ResourceId};

use super::decide::Asked;
use super::job::{Job, JobState};
use super::{Facets, Queue};

impl Queue {
    /// When something is due next.
    #[inline]
    pub fn next_due(&self) -> Option<Millis> {
        let first = |order: &std::collections::BTreeSet<(Millis, JobId)>| order.first().map(|(at, _)| *at);
        let (dead, done) = self.over_due();
        let token = self.limits.rate.filter(|_| self.ready.any()).map(|rate| self.bucket.next(rate));
        [
            first(&self.delayed),
            first(&self.leases),
            first(&self.expiring),
            done,
            dead,
            self.forward_due(),
            self.keys.next_due(),
            self.ready.next_due(),
            self.schedules.next_due(),
            token.filter(|at| *at > self.looked_at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// When the next of the dead jobs, and of those that are done, are over.
    #[inline]
    fn over_due(&self) -> (Option<Millis>, Option<Millis>) {
        let (dead_from, done_from) = self.over_from();
        let done = self.done.range(done_from..).next().map(|(until, _)| *until);
        let Some(ms) = self.limits.dead_retention_ms else { return (None, done) };
        let dead = self.dead.range(dead_from..).next().filter(|job| **job <= self.dead_upto());
        (dead.map(|(since, _)| since.plus(ms)), done)
    }

    /// Moves at most `jobs_max` jobs whose time has come from `delayed` to `ready`, and lets groups go on whose rate
    /// allows it again: no change of the state, which only depends on the time. Returns how many jobs.
    pub fn promote(&mut self, now: Millis, jobs_max: usize) -> usize {
        self.looked_at = self.looked_at.max(now);
        self.pass_over(now, jobs_max);
        self.ready.refill(now, jobs_max);
        for count in 0..jobs_max {
            let Some(&(ready_at, id)) = self.delayed.first().filter(|(ready_at, _)| *ready_at <= now) else {
                return count;
            };
            let Some(job) = self.jobs.get_mut(id) else { continue };
            let before = Facets::of(job);
            job.set_state(JobState::Ready { since: ready_at });
            let after = Facets::of(job);
            self.disarrange(id, now, before);
            self.arrange(id, now, after);
        }
        jobs_max
    }

    /// Appends at most `facts_max` facts about what is over: leases, times to live, what is kept.
    pub fn expire(&self, queue: ResourceId, now: Millis, facts_max: usize, facts: &mut Vec<Fact>) {
        let room = |facts: &Vec<Fact>, end: usize| end.saturating_sub(facts.len());
        let end = facts.len() + facts_max;
        let upto = ..=(now, JobId(u64::MAX));
        for (_, id) in self.leases.range(upto).take(facts_max) {
            facts.extend(self.jobs.get(*id).map(|job| self.expired_lease(queue, *id, job, now)));
        }
        // What came back may be over, too: that is for the next tick, in order.
        if facts.len() > end - facts_max {
            return;
        }
        let removed = |cause| {
            move |(_, job): &(Millis, JobId)| Fact::Queue(queue, QueueFact::Removed { job: *job, cause })
        };
        let most = room(facts, end);
        facts.extend(self.expiring.range(upto).take(most).map(removed(RemovalCause::Expired)));
        let most = room(facts, end);
        let stays = |(_, id): &(Millis, JobId)| self.outbox().is_some_and(|outbox| outbox.has(*id));
        let (dead_from, done_from) = self.over_from();
        let done = self.done.range(done_from..).copied().take_while(|(until, _)| *until <= now);
        facts
            .extend(done.filter(|job| !stays(job)).take(most).map(|job| removed(RemovalCause::Purged)(&job)));
        if let Some(ms) = self.limits.dead_retention_ms {
            let kept_from = (Millis(now.0.saturating_sub(ms)), JobId(u64::MAX)).min(self.dead_upto());
            let most = room(facts, end);
            let dead = self.dead.range(dead_from..).copied().take_while(|job| *job <= kept_from);
            facts.extend(
                dead.filter(|job| !stays(job)).take(most).map(|job| removed(RemovalCause::Purged)(&job)),
            );
        }
        if room(facts, end) > 0
            && let Some(upto) = self.keys.due(now, facts_max)
        {
            facts.push(Fact::Queue(queue, QueueFact::KeysForgotten(upto)));
        }
    }

    /// Appends at most `facts_max` facts about schedules that are due, and what their jobs drop.
    pub fn fire(
        &mut self,
        id: ResourceId,
        settings: &QueueSettings,
        now: Millis,
        facts_max: usize,
        facts: &mut Vec<Fact>,
    ) {
        let held_back = Asked { queue: self, id, settings, now }.tick_schedules(facts_max, facts);
        self.schedules.hold_back(held_back, now);
    }

    /// What becomes of a job whose lease is over: ready at once, dead after the last attempt or the last crash.
    fn expired_lease(&self, queue: ResourceId, id: JobId, job: &Job, now: Millis) -> Fact {
        let error = Bytes::new();
        if job.cancel_requested() {
            return Fact::Queue(queue, QueueFact::Removed { job: id, cause: RemovalCause::Cancelled });
        }
        if self.limits.quarantine_after.is_some_and(|most| u32::from(job.crashes) + 1 >= most) {
            return Fact::JobDied { queue, job: id, cause: AttemptEnd::Quarantined, error };
        }
        let cause = AttemptEnd::Expired;
        if job.attempts >= job.max_attempts {
            Fact::JobDied { queue, job: id, cause, error }
        } else {
            Fact::JobReturned { queue, job: id, ready_at: now, cause, error }
        }
    }
}
