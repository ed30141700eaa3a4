//! Schedules: a queue's jobs that the server enqueues by itself, once at a time or whenever a cron expression says.
//! [`fact`] is what becomes true of one.
//!
//! A schedule belongs to a queue and lives in that queue's state, so that a firing, the job and the note that it was
//! enqueued, is one entry of the log: it happened, or it did not, and never twice.
//!
//! ```text
//!            ┌─ Fired, Skipped, ──────┐                    no time is left
//!            │  Updated               │
//!  Created ──┴──► active ◄────────────┘ ── Fired, Skipped, Resumed ──► finished ── kept for a week ──► Deleted
//!                 │    ▲                                                   ▲  Updated: active again, if it has times
//!          Paused │    │ Resumed                                          │ Resumed
//!                 ▼    │                                                   │
//!                 paused ──────────────────────────────────────────────────┘
//! ```

pub mod fact;

use crate::command::NewJob;
use crate::group::Name;
use crate::ids::{JobId, Millis};

/// The header of an enqueued job that names its schedule.
pub const SCHEDULE_HEADER: &str = "flowmesh-schedule";

/// The header with the time it was enqueued for, in ms since the Unix epoch as decimal digits.
pub const SCHEDULED_AT_HEADER: &str = "flowmesh-scheduled-at";

/// The header of a job that was not enqueued for one of its schedule's times, with who asked for it.
pub const TRIGGER_HEADER: &str = "flowmesh-trigger";

/// The value of [`TRIGGER_HEADER`] of a job that was asked for with a call.
pub const TRIGGERED_BY_HAND: &str = "run-now";

/// When a schedule fires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timing {
    /// Once.
    Once(Millis),
    /// Whenever the clocks of a time zone show what a cron expression says.
    Cron {
        /// The expression: five fields, or six with the second first.
        expression: Name,
        /// The name of the zone in the tz database.
        time_zone: Name,
    },
}

/// What becomes of firings that nobody was there for: those that are noticed later than
/// [`crate::limits::SCHEDULE_MISSED_AFTER_MS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissedPolicy {
    /// They are left out.
    Skip,
    /// The last time that has come stands for all of them.
    #[default]
    Once,
    /// Each fires, the last [`crate::limits::SCHEDULE_CATCH_UP_MAX`] of them.
    All,
}

impl MissedPolicy {
    /// All of them, by their byte on disk.
    pub const ALL: [Self; 3] = [Self::Skip, Self::Once, Self::All];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Once => "once",
            Self::All => "all",
        }
    }
}

/// What a schedule is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleSpec {
    /// When it fires.
    pub timing: Timing,
    /// It does not fire after this.
    pub end: Option<Millis>,
    /// What becomes of missed firings.
    pub missed: MissedPolicy,
    /// The job it enqueues, without the two headers that each gets.
    pub job: NewJob,
}

/// What of a schedule is to be another way; what is not given stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScheduleChanges {
    /// An expression in place of when it fires now.
    pub cron: Option<Name>,
    /// Once, in place of when it fires now. Not together with `cron`.
    pub at: Option<Millis>,
    /// The zone of the expression, the new one or the one there is.
    pub time_zone: Option<Name>,
    /// Not after this; `Some(None)`: without an end.
    pub end: Option<Option<Millis>>,
    /// What becomes of missed firings.
    pub missed: Option<MissedPolicy>,
    /// The job it enqueues, all of it.
    pub job: Option<NewJob>,
}

/// What a schedule is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleState {
    /// It waits for its next time.
    Active,
    /// It lets its times pass.
    Paused,
    /// It has no time left.
    Finished,
}

/// How a schedule is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleStatus {
    /// Its name, unique in its queue.
    pub name: Name,
    /// What it does.
    pub spec: ScheduleSpec,
    /// What it is doing.
    pub state: ScheduleState,
    /// When it fires next, if it is active.
    pub next_at: Option<Millis>,
    /// When it was created.
    pub created_at: Millis,
    /// Since when it is finished, if it is.
    pub finished_at: Option<Millis>,
    /// How often it fired, by hand too.
    pub fired_total: u64,
    /// Missed times that were left out.
    pub skipped_total: u64,
    /// The last job that it enqueued, and the time it was for.
    pub last_fired: Option<(JobId, Millis)>,
    /// Its time has come, and the queue has no room: it is tried again.
    pub held_back: bool,
}

/// On one schedule of a queue, or on all.
#[derive(Clone, Debug)]
pub enum ScheduleCommand {
    /// Creates a schedule; one with the same name that does the same is left as it is.
    /// → [`ScheduleReply::Status`]. Errors: `SCHEDULE_EXISTS`, `ILLEGAL_CRON`, `UNKNOWN_TIME_ZONE`, `SCHEDULE_IN_PAST`.
    Create {
        /// Its name.
        name: Name,
        /// What it does.
        spec: ScheduleSpec,
        /// Whether it begins paused.
        paused: bool,
    },
    /// Changes what it does; what it has done, and whether it is paused, stays. Unless when it fires changes, its next
    /// time stays, too; a finished one with times to come is active again.
    /// → [`ScheduleReply::Status`]. Errors: as of `Create`.
    Update {
        /// Which.
        name: Name,
        /// How.
        changes: Box<ScheduleChanges>,
    },
    /// Deletes it; jobs that it has enqueued stay. → [`ScheduleReply::Status`] as it was.
    Delete(Name),
    /// Lets times pass from now on. → [`ScheduleReply::Status`]
    Pause(Name),
    /// Fires again from its next time on. → [`ScheduleReply::Status`]
    Resume(Name),
    /// Enqueues its job now, whatever it is doing, which changes nothing else. → [`ScheduleReply::Fired`]. Errors:
    /// `QUEUE_FULL`.
    RunNow(Name),
    /// How it is. → [`ScheduleReply::Status`]
    Describe(Name),
    /// When it fires next, as far as is known now. → [`ScheduleReply::Times`]
    Next {
        /// Which.
        name: Name,
        /// So many times, at least 1; at most [`crate::limits::SCHEDULE_NEXT_MAX`].
        times_max: u32,
    },
    /// Schedules of the queue by name. → [`ScheduleReply::List`]
    List {
        /// Only those after this one.
        after: Option<Name>,
        /// At most so many, at least 1.
        schedules_max: u32,
    },
}

/// What a queue answers about its schedules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScheduleReply {
    /// A schedule, as it is once the command is carried out, and whether that changed it.
    Status(Box<ScheduleStatus>, bool),
    /// The job that was enqueued.
    Fired(JobId),
    /// Times to come; fewer than asked for if there are no more.
    Times(Vec<Millis>),
    /// Schedules in the order of their names.
    List {
        /// The schedules.
        schedules: Vec<ScheduleStatus>,
        /// Whether there are more after the last.
        more: bool,
    },
}

impl ScheduleCommand {
    /// Whether it can change anything.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        match self {
            Self::Create { .. }
            | Self::Update { .. }
            | Self::Delete(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::RunNow(_) => true,
            Self::Describe(_) | Self::Next { .. } | Self::List { .. } => false,
        }
    }
}
