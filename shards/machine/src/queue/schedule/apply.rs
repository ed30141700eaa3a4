//! How facts change schedules. Whatever contradicts the state is a bug, or another machine's log.

use bytes::Bytes;
use flowmesh_model::codec::detached;
use flowmesh_model::group::Name;
use flowmesh_model::schedule::ScheduleSpec;
use flowmesh_model::schedule::fact::ScheduleFact;
use flowmesh_model::{Millis, Space};

use super::{Schedule, Schedules, index};
use crate::changes::{Mark, Touch, image};
use crate::held::Apply;

impl Schedules {
    /// Makes a fact true.
    pub fn apply(&mut self, cx: &mut Apply<'_>, fact: ScheduleFact) {
        let now = cx.at.time;
        match fact {
            ScheduleFact::Created { name, paused, next_at, spec } => {
                self.created(cx, name, Schedule::new(detach(*spec), paused, next_at, now));
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
        }
    }

    fn created(&mut self, cx: &Apply<'_>, name: Name, mut schedule: Schedule) {
        schedule.mark = Mark::new(self.changes.is_back(&name));
        let touch = cx.seals.touch(&mut schedule.mark);
        self.put(name.clone(), schedule);
        if touch != Touch::Known {
            self.list(name);
        }
    }

    /// Adds a schedule that is not there.
    pub(super) fn put(&mut self, name: Name, schedule: Schedule) {
        self.memory_bytes += schedule.memory_bytes(&name);
        self.due.extend(schedule.due().map(|due| (due, name.clone())));
        let before = self.by_name.insert(name, Box::new(schedule));
        assert!(before.is_none(), "a schedule was created that there was");
    }

    fn deleted(&mut self, cx: &mut Apply<'_>, name: &Name) {
        let Some((name, mut schedule)) = self.by_name.remove_entry(name) else {
            panic!("no such schedule: {name}")
        };
        if cx.seals.touch(&mut schedule.mark) == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Jobs, cx.home.schedule_key(&name), index::encode(&schedule)));
        }
        self.memory_bytes -= schedule.memory_bytes(&name);
        if let Some(due) = schedule.due() {
            self.due.remove(&(due, name.clone()));
        }
        if schedule.mark.in_index() {
            self.changes.list_gone(name);
        }
    }

    /// Changes a schedule and when it is due.
    fn change(&mut self, cx: &mut Apply<'_>, name: &Name, change: impl FnOnce(&mut Schedule)) {
        let schedule = self.by_name.get_mut(name).unwrap_or_else(|| panic!("no such schedule: {name}"));
        let touch = cx.seals.touch(&mut schedule.mark);
        if touch == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Jobs, cx.home.schedule_key(name), index::encode(schedule)));
        }
        let before = schedule.due();
        change(schedule);
        let after = schedule.due();
        if before != after {
            if let Some(before) = before {
                self.due.remove(&(before, name.clone()));
            }
            self.due.extend(after.map(|after| (after, name.clone())));
        }
        if touch != Touch::Known {
            self.list(name.clone());
        }
    }

    /// Lists a change of a schedule that is there: of one that is not, thinning out would forget it.
    pub(super) fn list(&mut self, name: Name) {
        self.changes.list(name);
        if self.changes.is_stale(self.by_name.len()) {
            self.changes.thin(|name| self.by_name.contains_key(name));
        }
    }
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
