//! The schedules' invariants, and their state as text.

use std::fmt::Write;

use flowmesh_model::JobId;
use flowmesh_model::schedule::ScheduleStatus;

use super::Schedules;
use crate::changes::Seals;

impl Schedules {
    /// Checks every invariant.
    pub fn check(&self, last_job: JobId, seals: &Seals) {
        self.by_name.check(seals);
        let mut due = 0;
        for (name, schedule) in self.by_name.iter() {
            assert!(schedule.next_at.is_none() || schedule.finished_at.is_none());
            assert!(!schedule.paused || (schedule.next_at.is_none() && schedule.finished_at.is_none()));
            assert!(schedule.last_fired.is_none_or(|(job, _)| job <= last_job));
            assert!(schedule.retry_at.is_none() || schedule.next_at.is_some());
            assert_eq!(schedule.fired_total == 0, schedule.last_fired.is_none());
            if let Some(at) = schedule.due() {
                assert!(self.due.contains(&(at, name.clone())), "schedule {name} is not among those due");
                due += 1;
            }
        }
        assert_eq!(self.due.len(), due);
        let held_back = self.by_name.iter().filter(|(_, schedule)| schedule.retry_at.is_some());
        assert_eq!(self.held_back, held_back.count());
        let memory_bytes: u64 = self.by_name.iter().map(|(name, schedule)| schedule.memory_bytes(name)).sum();
        assert_eq!(self.memory_bytes, memory_bytes);
    }

    /// The state as text.
    pub fn dump(&self, out: &mut String) {
        for (name, schedule) in self.by_name.iter() {
            let status = ScheduleStatus { held_back: false, ..schedule.status(name) };
            let _ = writeln!(out, "  schedule {status:?}");
        }
    }
}
