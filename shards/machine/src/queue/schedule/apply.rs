//! How facts change schedules. Whatever contradicts the state is a bug, or another machine's log.

use bytes::Bytes;
use flowmesh_model::Millis;
use flowmesh_model::codec::detached;
use flowmesh_model::group::Name;
use flowmesh_model::schedule::ScheduleSpec;
use flowmesh_model::schedule::fact::ScheduleFact;

use super::{Schedule, Schedules};
use crate::held::Apply;

impl Schedules {
    /// Makes a fact true.
    pub fn apply(&mut self, cx: &mut Apply<'_>, fact: ScheduleFact) {
        let now = cx.at.time;
        match fact {
            ScheduleFact::Created { name, paused, next_at, spec } => {
                self.created(cx, &name, Schedule::new(detach(*spec), paused, next_at, now));
            }
            ScheduleFact::Deleted { name } => self.deleted(cx, &name),
            ScheduleFact::Paused { name } => self.change(cx, &name, Schedule::pause),
            ScheduleFact::Resumed { name, next_at } => {
                self.change(cx, &name, |schedule| schedule.resume(next_at, now));
            }
            ScheduleFact::Fired { name, job, scheduled_for, next_at } => self.change(cx, &name, |schedule| {
                schedule.fired_total += 1;
                schedule.last_fired = Some((job, scheduled_for));
                schedule.go_on(next_at, now);
            }),
            ScheduleFact::Skipped { name, count, next_at } => self.change(cx, &name, |schedule| {
                schedule.skipped_total += count;
                schedule.go_on(next_at, now);
            }),
            ScheduleFact::Updated { name, next_at, spec } => {
                self.change(cx, &name, |schedule| schedule.update(detach(*spec), next_at, now));
            }
        }
    }

    fn created(&mut self, cx: &mut Apply<'_>, name: &Name, schedule: Schedule) {
        assert!(self.by_name.get(name).is_none(), "a schedule was created that there was");
        self.added(name, &schedule);
        self.by_name.change(cx.home, cx.seals, name, || Box::new(schedule), |_| ());
    }

    /// Counts a schedule that comes.
    pub(super) fn added(&mut self, name: &Name, schedule: &Schedule) {
        self.memory_bytes += schedule.memory_bytes(name);
        self.due.extend(schedule.due().map(|due| (due, name.clone())));
    }

    fn deleted(&mut self, cx: &mut Apply<'_>, name: &Name) {
        let schedule = self.by_name.remove(cx.home, cx.seals, name).unwrap_or_else(|| no_such(name));
        self.memory_bytes -= schedule.memory_bytes(name);
        self.held_back -= usize::from(schedule.retry_at.is_some());
        self.is_due(name, schedule.due(), None);
    }

    /// Changes a schedule and when it is due.
    fn change(&mut self, cx: &mut Apply<'_>, name: &Name, change: impl FnOnce(&mut Schedule)) {
        let (before, after) = self.by_name.change(
            cx.home,
            cx.seals,
            name,
            || no_such(name),
            |schedule| {
                let before = (schedule.due(), schedule.memory_bytes(name), schedule.retry_at.take());
                change(schedule);
                (before, (schedule.due(), schedule.memory_bytes(name)))
            },
        );
        let (due_before, bytes_before, held_back) = before;
        let (due_after, bytes_after) = after;
        self.memory_bytes = self.memory_bytes + bytes_after - bytes_before;
        self.held_back -= usize::from(held_back.is_some());
        self.is_due(name, due_before, due_after);
    }

    /// A schedule is due at another time than before.
    pub(super) fn is_due(&mut self, name: &Name, before: Option<Millis>, after: Option<Millis>) {
        if before != after {
            if let Some(before) = before {
                self.due.remove(&(before, name.clone()));
            }
            self.due.extend(after.map(|after| (after, name.clone())));
        }
    }
}

fn no_such<T>(name: &Name) -> T {
    panic!("no such schedule: {name}")
}

impl Schedule {
    /// `Paused`.
    pub(super) fn pause(&mut self) {
        assert!(!self.paused && self.next_at.is_some(), "only an active schedule is paused");
        self.paused = true;
        self.next_at = None;
    }

    /// `Resumed`.
    pub(super) fn resume(&mut self, next_at: Option<Millis>, now: Millis) {
        assert!(self.paused, "only a paused schedule is resumed");
        self.paused = false;
        self.set_next(next_at, now);
    }

    /// `Updated`.
    pub(super) fn update(&mut self, spec: ScheduleSpec, next_at: Option<Millis>, now: Millis) {
        assert!(!self.paused || next_at.is_none(), "a paused schedule has no next time");
        self.spec = spec;
        if next_at.is_some() {
            self.finished_at = None;
        }
        self.set_next(next_at, now);
    }

    /// `Fired`, `Skipped`: its time only goes on.
    fn go_on(&mut self, next_at: Option<Millis>, now: Millis) {
        assert!(next_at.is_none() || next_at >= self.next_at, "a schedule's time goes back");
        self.set_next(next_at, now);
    }
}

/// The same in memory of its own, where that is worth it.
fn detach(mut spec: ScheduleSpec) -> ScheduleSpec {
    let own = |bytes: &mut Bytes| *bytes = detached(bytes);
    own(&mut spec.job.headers);
    own(&mut spec.job.payload);
    spec.job.options.iter_mut().for_each(|options| own(&mut options.group));
    spec
}
