//! A queue's schedules: by name, and by when something is to be done with them.
//!
//! [`cron`] computes times, [`decide`] is what can be asked of schedules, [`due`] what time brings, [`apply`] how facts
//! change them, [`index`] their part of checkpoints. Times are computed where facts come to be and stand in them:
//! applying a fact computes none.

mod apply;
mod check;
pub(crate) mod cron;
mod decide;
mod due;
mod index;

use std::collections::BTreeSet;

use flowmesh_model::group::Name;
use flowmesh_model::job::JobOptions;
use flowmesh_model::limits::SCHEDULE_FINISHED_KEPT_MS;
use flowmesh_model::schedule::{ScheduleSpec, ScheduleState, ScheduleStatus, Timing};
use flowmesh_model::{JobId, Millis, Reject};

use crate::items::Items;
use cron::Cron;

/// What a schedule takes in memory besides its name, its texts and its job: itself, and its places in maps.
const SCHEDULE_BYTES: u64 = (size_of::<Schedule>() + 160) as u64;

/// All schedules of a queue.
#[derive(Debug, Default)]
pub(crate) struct Schedules {
    by_name: Items<Name, Box<Schedule>>,
    /// By when they fire next, or are forgotten once they are finished.
    due: BTreeSet<(Millis, Name)>,
    memory_bytes: u64,
    /// How many are held back. Not part of the state.
    held_back: usize,
    /// Whether the queue's settings are known, which jobs are enqueued with: until then nothing fires. Not part of the
    /// state.
    awake: bool,
}

/// One schedule.
#[derive(Clone, Debug)]
struct Schedule {
    spec: ScheduleSpec,
    paused: bool,
    /// When it fires next; `None` if it is paused or finished.
    next_at: Option<Millis>,
    created_at: Millis,
    finished_at: Option<Millis>,
    fired_total: u64,
    skipped_total: u64,
    last_fired: Option<(JobId, Millis)>,
    /// Its time has come and the queue has no room: when to look again. Not part of the state.
    retry_at: Option<Millis>,
}

impl Schedules {
    /// An estimate of what they take in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// How many have a time that has come and no room in the queue.
    pub fn held_back(&self) -> usize {
        self.held_back
    }

    /// Whether that is the next time of a schedule.
    pub fn is_time_of(&self, name: &Name, at: Millis) -> bool {
        self.by_name.get(name).is_some_and(|schedule| schedule.next_at == Some(at))
    }

    /// The queue's settings are known.
    pub fn wake(&mut self) {
        self.awake = true;
    }

    fn find(&self, name: &Name) -> Result<&Schedule, Reject> {
        let found = self.by_name.get(name).map(Box::as_ref);
        found.ok_or_else(|| Reject::ScheduleNotFound { name: name.to_string() })
    }
}

impl Schedule {
    fn new(spec: ScheduleSpec, paused: bool, next_at: Option<Millis>, created_at: Millis) -> Self {
        Self {
            spec,
            paused,
            next_at,
            created_at,
            finished_at: None,
            fired_total: 0,
            skipped_total: 0,
            last_fired: None,
            retry_at: None,
        }
    }

    fn state(&self) -> ScheduleState {
        match (self.paused, self.next_at) {
            (true, _) => ScheduleState::Paused,
            (false, Some(_)) => ScheduleState::Active,
            (false, None) => ScheduleState::Finished,
        }
    }

    /// When it is looked at: it fires, or is forgotten.
    fn due(&self) -> Option<Millis> {
        let next_at = self.next_at.map(|at| at.max(self.retry_at.unwrap_or(at)));
        next_at.or(self.finished_at.map(|at| at.plus(SCHEDULE_FINISHED_KEPT_MS)))
    }

    /// It fires then, or is finished.
    fn set_next(&mut self, next_at: Option<Millis>, now: Millis) {
        self.next_at = next_at;
        if self.state() == ScheduleState::Finished {
            self.finished_at.get_or_insert(now);
        }
    }

    fn memory_bytes(&self, name: &Name) -> u64 {
        let texts = match &self.spec.timing {
            Timing::Once(_) => 0,
            Timing::Cron { expression, time_zone } => expression.len() + time_zone.len(),
        };
        let options = self.spec.job.options.as_ref().map_or(0, |of| size_of::<JobOptions>() + of.group.len());
        let job = self.spec.job.headers.len() + self.spec.job.payload.len() + options;
        SCHEDULE_BYTES + (name.len() + texts + job) as u64
    }

    fn status(&self, name: &Name) -> ScheduleStatus {
        ScheduleStatus {
            name: name.clone(),
            spec: self.spec.clone(),
            state: self.state(),
            next_at: self.next_at,
            created_at: self.created_at,
            finished_at: self.finished_at,
            fired_total: self.fired_total,
            skipped_total: self.skipped_total,
            last_fired: self.last_fired,
            held_back: self.retry_at.is_some(),
        }
    }
}

/// The times of a schedule, ready to be computed.
struct Times {
    kind: Kind,
    end: Millis,
}

enum Kind {
    Once(Millis),
    Cron(Box<Cron>),
}

impl Times {
    /// Of a schedule; `from` is the earliest time that matters.
    ///
    /// # Errors
    /// `ILLEGAL_CRON`, `UNKNOWN_TIME_ZONE`.
    fn of(spec: &ScheduleSpec, from: Millis) -> Result<Self, Reject> {
        let kind = match &spec.timing {
            Timing::Once(at) => Kind::Once(*at),
            Timing::Cron { expression, time_zone } => {
                Kind::Cron(Box::new(Cron::new(expression, time_zone, from)?))
            }
        };
        Ok(Self { kind, end: spec.end.unwrap_or(Millis(u64::MAX)) })
    }

    /// The first time later than `at`.
    fn after(&self, at: Millis) -> Option<Millis> {
        let next = match &self.kind {
            Kind::Once(time) => Some(*time).filter(|time| *time > at),
            Kind::Cron(cron) => cron.after(at),
        };
        next.filter(|next| *next <= self.end)
    }

    /// The last time not later than `at`.
    fn last(&self, at: Millis) -> Option<Millis> {
        let at = at.min(self.end);
        match &self.kind {
            Kind::Once(time) => Some(*time).filter(|time| *time <= at),
            Kind::Cron(cron) => cron.last(at),
        }
    }
}
