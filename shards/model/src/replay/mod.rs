//! Replay sessions: a stream once more, from then to then, at another pace, without touching who reads it for real.
//! [`fact`] is what becomes true of one.
//!
//! A session is two resources that are created and deleted together: one of the kind `replay`, whose settings say what is
//! replayed, and a consumer group of its own, its **sandbox**, whose members share the partitions and whose committed
//! offsets are how far the session is. All that changes of a session is kept with its sandbox, on that one's shard, so
//! that the last commit and the end of the session are one entry of the log.
//!
//! ```text
//!            start             pause
//!  created ────────► active ─────────► paused        seek: from any of them but stopped; step: created, paused
//!     │               ▲ │ ▲   resume     │ │
//!     │               │ │ └──────────────┘ │         stopped: from any of them but completed
//!     │        resume │ │ fail             │
//!     │               │ ▼                  │ step
//!     │              error                 │
//!     │ step            │ commit           ▼         completed: whenever all partitions are at their end
//!     └─────────────────┴────────────► completed ── seek ──► paused
//! ```
//!
//! Two doors that never lead to the other's room: ordinary commands of groups are refused for a sandbox
//! ([`Reject::SandboxGroup`]), and commands of sessions are refused for any other group ([`Reject::GroupNotSandbox`]).

pub mod fact;
mod settings;

use crate::Batch;
use crate::group::{GroupCommand, MemberRef, Name, NewOffset};
use crate::ids::{Lsn, Millis, Offset, ResourceId};
use crate::reject::Reject;

pub use settings::{ReplayRange, ReplaySettings};

/// The header that every replayed record has, with the value `true`.
pub const REPLAY_HEADER: &str = "x-flowmesh-replay";

/// The header with the session's name.
pub const REPLAY_SESSION_HEADER: &str = "x-flowmesh-replay-session";

/// What a session is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplayState {
    /// Not started yet.
    #[default]
    Created,
    /// Its members get records.
    Active,
    /// Its members wait.
    Paused,
    /// Ended by hand, for good.
    Stopped,
    /// Every partition is at its end.
    Completed,
    /// Somebody said what went wrong; its members wait.
    Error,
}

/// What can be done to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayAction {
    /// Begin.
    Start,
    /// Wait.
    Pause,
    /// Go on.
    Resume,
    /// Go elsewhere.
    Seek,
    /// Show the next records.
    Step,
    /// Be faster or slower.
    SetSpeed,
    /// End.
    Stop,
    /// Say what went wrong.
    Fail,
    /// Keep how far a member is.
    Commit,
}

impl ReplayState {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Created, Self::Active, Self::Paused, Self::Stopped, Self::Completed, Self::Error];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Completed => "completed",
            Self::Error => "error",
        }
    }

    /// Whether members have nothing to wait for.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Stopped | Self::Completed)
    }

    /// Whether that can be done to a session in this state.
    #[must_use]
    pub const fn allows(self, action: ReplayAction) -> bool {
        use ReplayAction as A;
        match self {
            Self::Created => matches!(action, A::Start | A::Seek | A::Step | A::SetSpeed | A::Stop),
            Self::Active => {
                matches!(action, A::Pause | A::Seek | A::SetSpeed | A::Stop | A::Fail | A::Commit)
            }
            Self::Paused => {
                matches!(action, A::Resume | A::Seek | A::Step | A::SetSpeed | A::Stop | A::Fail | A::Commit)
            }
            Self::Error => {
                matches!(action, A::Resume | A::Seek | A::SetSpeed | A::Stop | A::Fail | A::Commit)
            }
            Self::Completed => matches!(action, A::Seek),
            Self::Stopped => false,
        }
    }

    /// Refuses what cannot be done now.
    ///
    /// # Errors
    /// [`Reject::ReplayState`].
    pub const fn check(self, action: ReplayAction) -> Result<(), Reject> {
        if self.allows(action) { Ok(()) } else { Err(Reject::ReplayState { action, state: self }) }
    }

    /// What a person can do now, in words.
    #[must_use]
    pub const fn allowed(self) -> &'static str {
        match self {
            Self::Created => "start, seek, step, set the speed, stop",
            Self::Active => "pause, seek, set the speed, stop",
            Self::Paused => "resume, seek, step, set the speed, stop",
            Self::Error => "resume, seek, set the speed, stop",
            Self::Completed => "seek, which pauses it",
            Self::Stopped => "nothing; create another session",
        }
    }
}

impl ReplayAction {
    /// The words in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::Pause => "paused",
            Self::Resume => "resumed",
            Self::Seek => "moved",
            Self::Step => "stepped",
            Self::SetSpeed => "given another speed",
            Self::Stop => "stopped",
            Self::Fail => "reported as failed",
            Self::Commit => "committed to",
        }
    }
}

/// How fast a session goes, in thousandths of real time; 0: as fast as possible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Speed(pub u64);

impl Speed {
    /// As fast as possible.
    pub const MAX: Self = Self(0);

    /// As it was.
    pub const REAL_TIME: Self = Self(1000);
}

/// When records are due: from the moment `wall`, at which those of the time `record` are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// How fast.
    pub speed: Speed,
    /// When the session last began to go at this pace.
    pub wall: Millis,
    /// The time of its records then.
    pub record: Millis,
}

impl Pace {
    /// When a record of that time is due: never before `wall`. The same for every member, who need not talk.
    #[must_use]
    pub const fn due(self, appended_at: Millis) -> Millis {
        match appended_at.since(self.record).saturating_mul(1000).checked_div(self.speed.0) {
            None => Millis(0),
            Some(span_ms) => self.wall.plus(span_ms),
        }
    }
}

/// Which session, and its sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayRef {
    /// The session's resource.
    pub session: ResourceId,
    /// Its sandbox, which holds what changes of it.
    pub group: ResourceId,
}

/// Where a partition goes.
pub type Position = (u32, Offset);

/// A step in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepMove {
    /// Which.
    pub partition: u32,
    /// Where it was when the records were read.
    pub from: Offset,
    /// Where it is once they are shown.
    pub to: Offset,
}

/// On one session. Its shard is that of its sandbox.
///
/// Where `record_time` is asked for, it is the time of the earliest record to come, from which the pace counts; without
/// one, records to come are due when they come. All but `Member` and `Commit` answer with
/// [`crate::Reply::Replay`], and are refused with `REPLAY_STATE` where the state does not allow them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayCommand {
    /// What the settings say becomes true, unless it is already.
    Begin,
    /// Records flow.
    Start {
        /// See [`ReplayCommand`].
        record_time: Option<Millis>,
    },
    /// No more records for now.
    Pause,
    /// Records flow again.
    Resume {
        /// See [`ReplayCommand`].
        record_time: Option<Millis>,
    },
    /// Partitions go on elsewhere. Members drop what they have of all partitions and begin anew.
    /// Errors: `NO_SUCH_PARTITION` (of the session), `OFFSET_OUT_OF_RANGE` (outside of the session).
    Seek {
        /// Where to; partitions that are not named stay.
        to: Vec<Position>,
        /// See [`ReplayCommand`].
        record_time: Option<Millis>,
    },
    /// Ends the session.
    Stop,
    /// Another speed, from now on.
    SetSpeed {
        /// The speed.
        speed: Speed,
        /// See [`ReplayCommand`].
        record_time: Option<Millis>,
    },
    /// Something went wrong; members wait.
    Fail {
        /// What, for people. At most [`crate::limits::REPLAY_ERROR_BYTES_MAX`].
        error: Name,
    },
    /// Records were shown. Errors: `REPLAY_MOVED`: a partition is no longer where they were read.
    Step {
        /// What moves.
        moves: Vec<StepMove>,
    },
    /// How the session is; waits for a change of its state, pace or generation.
    Status {
        /// The version that is known.
        known: Option<Lsn>,
        /// How long to wait for another.
        wait_until: Option<Millis>,
    },
    /// What a member of the sandbox does: heartbeats and leaves. → [`crate::Reply::Group`]
    Member(GroupCommand),
    /// A member keeps how far it is. → [`crate::group::GroupReply::Committed`], as of [`GroupCommand::Commit`]. Errors:
    /// `REPLAY_MOVED` if the session was moved since the member got what it commits; as of `Seek`.
    Commit {
        /// The generation of what is committed.
        generation: u64,
        /// Who.
        member: MemberRef,
        /// At least one.
        offsets: Batch<NewOffset>,
    },
}

/// How far a session is in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayProgress {
    /// Where it began and ends.
    pub range: ReplayRange,
    /// The next record to replay.
    pub position: Offset,
}

impl ReplayProgress {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.range.until.is_some_and(|until| self.position >= until)
    }
}

/// How a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayStatus {
    /// What it is doing.
    pub state: ReplayState,
    /// Since when.
    pub since: Millis,
    /// What went wrong, in the state `error`.
    pub error: Option<Name>,
    /// Counts how often it was moved by other than its members' commits.
    pub generation: u64,
    /// The entry that last changed its state, pace or generation.
    pub version: Lsn,
    /// Its pace; counts while it is active.
    pub pace: Pace,
    /// Records that members and steps have gone past, with what a filter left out; those that were gone past again count
    /// again.
    pub records_total: u64,
    /// Members of the sandbox.
    pub members: u32,
    /// Its partitions, in order.
    pub partitions: Vec<ReplayProgress>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_due_as_far_apart_as_they_were_at_the_speed() {
        let pace = |speed| Pace { speed: Speed(speed), wall: Millis(5_000), record: Millis(100) };
        assert_eq!(pace(1000).due(Millis(100)), Millis(5_000));
        assert_eq!(pace(1000).due(Millis(600)), Millis(5_500));
        assert_eq!(pace(2500).due(Millis(600)), Millis(5_200));
        assert_eq!(pace(1000).due(Millis(7)), Millis(5_000));
        assert_eq!(pace(0).due(Millis(u64::MAX)), Millis(0));
        assert_eq!(pace(1).due(Millis(u64::MAX)), Millis(u64::MAX));
    }

    #[test]
    fn what_is_refused_says_the_state_and_what_can_be_done() {
        let refused = ReplayState::Created.check(ReplayAction::Pause).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "a replay session that is created cannot be paused; possible now: start, seek, step, set the speed, stop"
        );
    }
}
