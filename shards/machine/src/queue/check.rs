//! A queue's invariants, and its state as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use flowmesh_model::JobId;
use flowmesh_model::job::JobPhase;

use super::Queue;
use super::job::{Job, JobState};
use crate::changes::Seals;

impl Queue {
    /// Checks every invariant.
    pub fn check(&self, seals: &Seals) {
        self.jobs.check();
        self.ready.check();
        self.keys.check(seals);
        self.schedules.check(self.counters.last_job, seals);
        self.work.check(self.counters.done_total, seals);
        self.check_outbox(seals);
        let (mut in_orders, mut waiting_bytes, mut expiring, mut waiters) = (0, 0, 0, 0);
        let mut groups: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        for (id, job) in self.jobs.iter() {
            assert!(id.0 > 0 && id <= self.counters.last_job);
            assert!(job.token <= self.counters.last_token);
            assert!(job.attempts <= job.max_attempts.max(1), "no delivery beyond the last attempt");
            assert!(job.worker == 0 || job.phase() == JobPhase::Leased, "a worker without a lease");
            self.check_place(id, job);
            in_orders += 1;
            let (leased, retrying) = groups.entry(job.group).or_default();
            *leased += u32::from(job.phase() == JobPhase::Leased);
            *retrying += u32::from(job.phase() == JobPhase::Delayed && job.attempts > 0);
            if job.state().is_waiting() {
                waiting_bytes += u64::from(job.body_bytes);
                expiring += usize::from(job.expires_at().is_some());
                assert!(job.expires_at().is_none_or(|at| self.expiring.contains(&(at, id))));
                assert!(self.victims.as_ref().is_none_or(|all| all.contains(&self.victim(id, job.priority))));
            }
            let after = job.extra().map_or(&[][..], |extra| &extra.after);
            if job.phase() == JobPhase::Blocked {
                assert!(!after.is_empty(), "a job is blocked by nothing");
                waiters += after.len();
                for other in after {
                    assert!(self.waiters.get(other).is_some_and(|waiters| waiters.contains(&id)));
                }
            }
            if let Some(body) = self.jobs.body(id) {
                assert_eq!(body.len(), job.body_bytes as usize);
            } else {
                assert!(job.mark.in_index(), "what job {id} is about is nowhere");
            }
            if seals.is_listed(job.mark) && seals.are_made() {
                assert!(self.changes.has_listed(&id), "job {id} is marked but not listed");
            }
        }
        for (group, (leased, retrying)) in groups {
            if group > 0 {
                assert_eq!(self.ready.group_counts(group), (leased, retrying));
            }
        }
        assert_eq!(self.waiting_bytes, waiting_bytes);
        assert_eq!(self.expiring.len(), expiring);
        assert_eq!(self.waiters.values().map(Vec::len).sum::<usize>(), waiters);
        let others = self.leases.len() + self.dead.len() + self.done.len();
        assert_eq!(self.waiting() + others as u64, in_orders, "each job is in one order");
        let c = &self.counters;
        let ended = c.done_total
            + c.expired_total
            + c.cancelled_total
            + c.dropped_total
            + c.purged_total
            + self.outbox().map_or(0, |outbox| outbox.totals().moved);
        assert_eq!(ended + in_orders - self.done.len() as u64, c.enqueued_total, "jobs add up");
    }

    fn check_place(&self, id: JobId, job: &Job) {
        let found = match job.state() {
            JobState::Delayed { ready_at } => self.delayed.contains(&(ready_at, id)),
            JobState::Ready { since } => {
                self.ready.has(id, job.group, self.ready.rules().rank(job.priority, since))
            }
            JobState::Blocked { .. } => self.blocked.contains(&id),
            JobState::Leased { until } => job.attempts > 0 && self.leases.contains(&(until, id)),
            JobState::Dead { since } => job.last_attempt().is_some() && self.dead.contains(&(since, id)),
            JobState::Done { until } => self.done.contains(&(until, id)),
        };
        assert!(found, "job {id} is not in the order of its state");
    }

    /// The state as text. Delayed and ready are one: only the time tells them apart. What jobs are about may be in the
    /// index alone: of that, the length.
    pub fn dump(&self, out: &mut String) {
        let _ = writeln!(out, "  {:?}", self.counters);
        for (key, job, until, digest) in self.keys.iter() {
            let _ = writeln!(out, "  key {key:?} job {job} until {until:?} digest {digest}");
        }
        for (name, counts) in self.work.iter() {
            let _ = writeln!(out, "  worker {name:?} {counts:?}");
        }
        for (id, job) in self.jobs.iter() {
            let names = self.names_of(job);
            let _ = writeln!(
                out,
                "  job {id} {} priority {} attempts {}/{} crashes {} token {} began {} cancel {} any end {} worker {:?} group \
                 {:?} body {} {:?}",
                job.state().text(),
                job.priority,
                job.attempts,
                job.max_attempts,
                job.crashes,
                job.token,
                job.began_at,
                job.cancel_requested(),
                job.after_any_end(),
                names.worker,
                names.group,
                job.body_bytes,
                job.extra(),
            );
        }
        self.schedules.dump(out);
        self.dump_outbox(out);
    }
}
