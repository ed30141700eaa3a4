//! Workers: processes that work on jobs and say so, so that one sees who is there, what each does, and who died.
//! [`fact`] is what becomes true of one.
//!
//! A worker is a name in a namespace, `tenant/namespace/worker/name`, placed by that path like any other; it is there by
//! registering, the catalog does not know it. Leases do not hang on it: the name that jobs are reserved with is all that
//! joins a worker and what its queues know of it.
//!
//! ```text
//!                 ┌────────────── Revived ──────────────┐
//!                 ▼                                     │
//!  Registered ──► alive ── no heartbeat in time: Died ──┴► dead ──┐
//!                 │  │ StopRequested                     ▲        ├── kept for a while ──► Forgotten
//!                 │  └──► stopping ──────── Died ────────┘        │
//!                 └────────────┴── Left ─────────────────► left ──┘
//! ```
//!
//! Registering again, from wherever, begins anew with a greater epoch; the one before is fenced.

pub mod fact;

use std::fmt;
use std::sync::Arc;

use crate::group::Name;
use crate::ids::{Lsn, Millis};
use crate::limits::{
    NAME_BYTES_MAX, SESSION_MS_MAX, SESSION_MS_MIN, WORKER_CONCURRENCY_MAX, WORKER_LABELS_BYTES_MAX,
    WORKER_LABELS_MAX, WORKER_QUEUES_MAX, WORKER_RETENTION_MS_MAX, WORKER_SLOWEST_HEARTBEAT_MS,
};
use crate::path::{self, DEFAULT_SCOPE};
use crate::reject::Reject;
use crate::settings::within;

/// What a worker is called: `tenant/namespace/worker/name`. Always valid: see [`WorkerPath::parse`]. A clone shares the
/// text; in the order of the texts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerPath(Arc<str>);

/// The word of a worker's path that stands where a resource has its kind.
const WORD: &str = "worker";

impl WorkerPath {
    /// Reads `name`, `tenant/namespace/name` or `tenant/namespace/worker/name`.
    ///
    /// # Errors
    /// [`Reject::InvalidArgument`], [`Reject::TooLarge`] that say what is wrong with which part.
    pub fn parse(text: &str) -> Result<Self, Reject> {
        let parts: Vec<&str> = text.split('/').collect();
        let (tenant, namespace, name) = match parts.as_slice() {
            [name] => (DEFAULT_SCOPE, DEFAULT_SCOPE, *name),
            [tenant, namespace, name] | [tenant, namespace, WORD, name] => (*tenant, *namespace, *name),
            _ => {
                let problem = "use name, tenant/namespace/name or tenant/namespace/worker/name";
                return Err(Reject::invalid("worker", format!("`{text}` names no worker; {problem}")));
            }
        };
        path::check_scope("tenant", tenant)?;
        path::check_scope("namespace", namespace)?;
        path::check_name("worker", name)?;
        Ok(Self(format!("{tenant}/{namespace}/{WORD}/{name}").into()))
    }

    /// The full form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part: the name that its jobs are reserved with.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// `tenant/namespace/`.
    #[must_use]
    pub fn scope(&self) -> &str {
        self.0.get(..self.0.len() - self.name().len() - WORD.len() - 1).unwrap_or_default()
    }
}

impl fmt::Display for WorkerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a worker says of itself when it registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// The full paths of the queues it works on, which need not be there yet. At least one, each once.
    pub queues: Vec<Name>,
    /// How many jobs it runs at a time.
    pub concurrency: u32,
    /// The machine it runs on.
    pub host: Name,
    /// Its process there; 0: it does not say.
    pub process_id: u32,
    /// Whatever it wants to be found by, in the order it gave.
    pub labels: Vec<(Name, Name)>,
    /// Without a heartbeat for so long it is dead.
    pub session_timeout_ms: u64,
    /// How long it is shown once it is dead or has left.
    pub retention_ms: u64,
}

impl Registration {
    /// Checks what it says.
    ///
    /// # Errors
    /// [`Reject::InvalidArgument`], [`Reject::TooLarge`].
    pub fn check(&self) -> Result<(), Reject> {
        let too_large = |what, size: usize, max: usize| {
            if size > max {
                Err(Reject::TooLarge { what, size: size as u64, max: max as u64 })
            } else {
                Ok(())
            }
        };
        if self.queues.is_empty() {
            return Err(Reject::invalid("queues", "is empty; name at least one"));
        }
        too_large("queues", self.queues.len(), WORKER_QUEUES_MAX)?;
        let mut queues: Vec<&Name> = self.queues.iter().collect();
        queues.sort_unstable();
        if let Some([twice, _]) = queues.windows(2).find(|pair| pair.first() == pair.last()) {
            return Err(Reject::invalid("queues", format!("has {twice} twice")));
        }
        within("concurrency", u64::from(self.concurrency), 1, WORKER_CONCURRENCY_MAX)?;
        too_large("host", self.host.len(), NAME_BYTES_MAX)?;
        too_large("labels", self.labels.len(), WORKER_LABELS_MAX)?;
        let label_bytes = self.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        too_large("labels, in bytes,", label_bytes, WORKER_LABELS_BYTES_MAX)?;
        let mut names: Vec<&Name> = self.labels.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        if names.first().is_some_and(|name| name.is_empty()) {
            return Err(Reject::invalid("labels", "has a label without a name"));
        }
        if let Some([twice, _]) = names.windows(2).find(|pair| pair.first() == pair.last()) {
            return Err(Reject::invalid("labels", format!("has {twice} twice")));
        }
        within("session_timeout_ms", self.session_timeout_ms, SESSION_MS_MIN, SESSION_MS_MAX)?;
        within("retention_ms", self.retention_ms, 0, WORKER_RETENTION_MS_MAX)
    }

    /// How often the worker is to say that it is there: three times in a session.
    #[must_use]
    pub fn heartbeat_interval_ms(&self) -> u64 {
        (self.session_timeout_ms / 3).min(WORKER_SLOWEST_HEARTBEAT_MS)
    }
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// It says in time that it is there.
    Alive,
    /// The same, and it was told to stop.
    Stopping,
    /// It said that it goes.
    Left,
    /// Nothing was heard of it for its session timeout.
    Dead,
}

impl WorkerState {
    /// All of them, by their byte on disk.
    pub const ALL: [Self; 4] = [Self::Alive, Self::Stopping, Self::Left, Self::Dead];

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Stopping => "stopping",
            Self::Left => "left",
            Self::Dead => "dead",
        }
    }

    /// Whether it is there.
    #[must_use]
    pub const fn is_present(self) -> bool {
        match self {
            Self::Alive | Self::Stopping => true,
            Self::Left | Self::Dead => false,
        }
    }
}

/// How a worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Its name.
    pub path: WorkerPath,
    /// Which registration of that name this is. Only grows.
    pub epoch: Lsn,
    /// What it said of itself.
    pub registration: Registration,
    /// When it registered.
    pub registered_at: Millis,
    /// What it is doing.
    pub state: WorkerState,
    /// Since when.
    pub since: Millis,
    /// How often it was dead since it registered.
    pub deaths: u64,
    /// When something was last heard of it, or, after a start of the server, since when it is listened to.
    pub heard_at: Option<Millis>,
    /// When it is dead unless something is heard of it before; when it is forgotten if it is not there.
    pub until: Option<Millis>,
}

/// Which workers a list has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerFilter {
    /// Only in these states; empty: in any.
    pub states: Vec<WorkerState>,
    /// Only those that work on the queue with this full path.
    pub queue: Option<Name>,
    /// Only those whose name begins with this; with a `/` in it, whose full path does.
    pub prefix: Name,
}

/// On one worker, or on all that a shard has.
#[derive(Clone, Debug)]
pub enum WorkerCommand {
    /// It is there, anew; whoever registered under the name before is fenced. → [`WorkerReply::Status`]. Error:
    /// `TOO_MANY_WORKERS`.
    Register {
        /// Its name.
        path: WorkerPath,
        /// What it says of itself.
        registration: Box<Registration>,
    },
    /// It is still there; one that was thought dead is alive again. → [`WorkerReply::Status`]. Errors:
    /// `WORKER_NOT_FOUND`, `STALE_WORKER`, `WORKER_GONE`.
    Heartbeat {
        /// Which.
        path: WorkerPath,
        /// As it was registered.
        epoch: Lsn,
    },
    /// It goes. → [`WorkerReply::Status`]. Errors: as a heartbeat; one that has left may say so again.
    Leave {
        /// Which.
        path: WorkerPath,
        /// As it was registered.
        epoch: Lsn,
    },
    /// It is told to stop, with its next heartbeat. → [`WorkerReply::Status`]. Errors: `WORKER_NOT_FOUND`,
    /// `WORKER_GONE`.
    Stop(WorkerPath),
    /// It is shown no more. → [`WorkerReply::Status`] as it was. Errors: `WORKER_NOT_FOUND`, `WORKER_PRESENT`.
    Forget(WorkerPath),
    /// How it is. → [`WorkerReply::Status`]
    Describe(WorkerPath),
    /// The shard's workers by name. → [`WorkerReply::List`]
    List {
        /// Only those after this one.
        after: Option<WorkerPath>,
        /// Only these.
        filter: WorkerFilter,
        /// At most so many, at least 1.
        workers_max: u32,
    },
}

impl WorkerCommand {
    /// Whether it can change anything.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        match self {
            Self::Register { .. }
            | Self::Heartbeat { .. }
            | Self::Leave { .. }
            | Self::Stop(_)
            | Self::Forget(_) => true,
            Self::Describe(_) | Self::List { .. } => false,
        }
    }
}

/// What a shard answers about workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerReply {
    /// A worker, as it is once the command is carried out, and whether that changed it.
    Status(Box<WorkerStatus>, bool),
    /// Workers in the order of their names.
    List {
        /// The workers.
        workers: Vec<WorkerStatus>,
        /// The last one that was looked at, if there are more behind it.
        next: Option<WorkerPath>,
    },
}

/// What a queue knows of whoever reserves jobs under a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkCounts {
    /// Jobs that it acknowledged.
    pub acked: u64,
    /// Jobs that it gave back because they failed.
    pub failed: u64,
    /// Jobs whose leases ran out while it had them.
    pub lost: u64,
    /// When it last ended a lease, or lost one.
    pub last_seen: Millis,
}

/// A job that somebody works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningJob {
    /// The job.
    pub job: crate::ids::JobId,
    /// Since when.
    pub since: Millis,
    /// Which delivery this is, from 1.
    pub attempt: u32,
    /// When the lease ends.
    pub until: Millis,
}

/// Somebody's work on one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerOnQueue {
    /// Whether the queue gives out no job.
    pub paused: bool,
    /// What it did.
    pub counts: WorkCounts,
    /// How many jobs it has.
    pub running: u64,
    /// Those of them that were looked for, by the end of their leases.
    pub jobs: Vec<RunningJob>,
    /// The last lease that was looked at, if there are more behind it.
    pub next: Option<crate::job::JobCursor>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_full_names_mean_the_same_worker() {
        let full = WorkerPath::parse("default/default/worker/w-1").unwrap();
        assert_eq!(WorkerPath::parse("w-1").unwrap(), full);
        assert_eq!(WorkerPath::parse("default/default/w-1").unwrap(), full);
        assert_eq!((full.as_str(), full.name()), ("default/default/worker/w-1", "w-1"));
        assert_eq!(WorkerPath::parse("acme/prod/w{7}").unwrap().scope(), "acme/prod/");
    }

    #[test]
    fn illegal_names_are_refused_with_the_part() {
        for (bad, part) in [
            ("", "worker"),
            ("a:1", "worker"),
            ("a b", "worker"),
            ("w{", "worker"),
            ("a/b", "worker"),
            ("a/b/queue/c", "worker"),
            ("a/b/worker/c/d", "worker"),
            ("ä/b/c", "tenant"),
            ("a/../c", "namespace"),
        ] {
            let refused = WorkerPath::parse(bad).unwrap_err();
            assert!(
                matches!(&refused, Reject::InvalidArgument { field, .. } if *field == part),
                "{bad}: {refused}"
            );
        }
        let long = WorkerPath::parse(&"w".repeat(256)).unwrap_err();
        assert_eq!(long, Reject::TooLarge { what: "worker", size: 256, max: 255 });
    }

    fn registration() -> Registration {
        Registration {
            queues: vec!["default/default/queue/mail".into()],
            concurrency: 1,
            session_timeout_ms: 30_000,
            ..Registration::default()
        }
    }

    #[test]
    fn what_a_worker_says_of_itself_is_bounded() {
        assert_eq!(registration().check(), Ok(()));
        let refused = |change: &dyn Fn(&mut Registration)| {
            let mut wrong = registration();
            change(&mut wrong);
            wrong.check().unwrap_err().to_string()
        };
        let names = |count: usize| (0..count).map(|n| Name::from(n.to_string())).collect::<Vec<_>>();
        let label = |name: &str, value: &str| (Name::from(name), Name::from(value));
        for (words, got) in [
            ("queues: is empty", refused(&|r| r.queues.clear())),
            ("queues has 101 bytes or items; at most 100", refused(&|r| r.queues = names(101))),
            ("queues: has default/default/queue/mail twice", refused(&|r| r.queues.extend(r.queues.clone()))),
            ("concurrency", refused(&|r| r.concurrency = 0)),
            ("concurrency", refused(&|r| r.concurrency = 100_001)),
            ("host has 256", refused(&|r| r.host = "h".repeat(256).into())),
            (
                "labels has 33",
                refused(&|r| r.labels = names(33).into_iter().map(|n| (n, "".into())).collect()),
            ),
            ("labels, in bytes, has 4097", refused(&|r| r.labels = vec![label("a", &"v".repeat(4096))])),
            ("labels: has a label without a name", refused(&|r| r.labels = vec![label("", "x")])),
            ("labels: has zone twice", refused(&|r| r.labels = vec![label("zone", "a"), label("zone", "b")])),
            ("session_timeout_ms", refused(&|r| r.session_timeout_ms = 999)),
            ("session_timeout_ms", refused(&|r| r.session_timeout_ms = SESSION_MS_MAX + 1)),
            ("retention_ms", refused(&|r| r.retention_ms = WORKER_RETENTION_MS_MAX + 1)),
        ] {
            assert!(got.starts_with(words), "{got}");
        }
    }
}
