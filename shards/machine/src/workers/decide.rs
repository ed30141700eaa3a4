//! What can be asked about workers.

use std::ops::Bound;

use flowmesh_model::limits::{BATCH_ITEMS_MAX, JOBS_LOOKED_MAX, REPLY_BYTES_MAX, WORKERS_MAX};
use flowmesh_model::settings::within;
use flowmesh_model::worker::fact::{WorkerChange, WorkerFact};
use flowmesh_model::worker::{Registration, WorkerFilter, WorkerReply, WorkerState, WorkerStatus};
use flowmesh_model::{Batch, Fact, Lsn, Millis, Reject, Reply, WorkerCommand, WorkerPath};

use super::{Worker, Workers};
use crate::decision::Decision;

/// What stands around a worker in a reply, about.
const STATUS_BYTES: usize = 256;

/// The workers, the time it is, and the entry that a change would be.
pub(crate) struct Asked<'a> {
    pub workers: &'a Workers,
    pub now: Millis,
    pub lsn: Lsn,
}

impl Asked<'_> {
    pub fn decide(&self, command: &WorkerCommand) -> Result<Decision, Reject> {
        match command {
            WorkerCommand::Register { path, registration } => self.register(path, registration),
            WorkerCommand::Heartbeat { path, epoch } => {
                let worker = self.current(path, *epoch)?;
                match worker.state {
                    WorkerState::Alive | WorkerState::Stopping => {
                        worker.heard.set(Some(self.now));
                        Ok(self.as_it_is(path, worker))
                    }
                    WorkerState::Dead => Ok(self.changed(path, worker, WorkerChange::Revived)),
                    WorkerState::Left => Err(gone(path, worker)),
                }
            }
            WorkerCommand::Leave { path, epoch } => {
                let worker = self.current(path, *epoch)?;
                Ok(match worker.state {
                    WorkerState::Left => self.as_it_is(path, worker),
                    _ => self.changed(path, worker, WorkerChange::Left),
                })
            }
            WorkerCommand::Stop(path) => {
                let worker = self.find(path)?;
                match worker.state {
                    WorkerState::Alive => Ok(self.changed(path, worker, WorkerChange::StopRequested)),
                    WorkerState::Stopping => Ok(self.as_it_is(path, worker)),
                    WorkerState::Left | WorkerState::Dead => Err(gone(path, worker)),
                }
            }
            WorkerCommand::Forget(path) => {
                let worker = self.find(path)?;
                if worker.state.is_present() {
                    return Err(Reject::WorkerPresent { path: path.to_string(), state: worker.state });
                }
                Ok(self.changed(path, worker, WorkerChange::Forgotten))
            }
            WorkerCommand::Describe(path) => Ok(self.as_it_is(path, self.find(path)?)),
            WorkerCommand::List { after, filter, workers_max } => {
                within("workers_max", u64::from(*workers_max), 1, BATCH_ITEMS_MAX as u64)?;
                Ok(self.list(after.as_ref(), filter, *workers_max as usize))
            }
        }
    }

    fn find(&self, path: &WorkerPath) -> Result<&Worker, Reject> {
        self.workers.known.get(path).ok_or_else(|| Reject::WorkerNotFound { path: path.to_string() })
    }

    /// The worker, if it is the one that registered last.
    fn current(&self, path: &WorkerPath, given: Lsn) -> Result<&Worker, Reject> {
        let worker = self.find(path)?;
        if worker.epoch == given {
            return Ok(worker);
        }
        if given > worker.epoch {
            return Err(Reject::invalid("epoch", format!("{given} was never given out to {path}")));
        }
        Err(Reject::StaleWorker { path: path.to_string(), given, current: worker.epoch })
    }

    fn register(&self, path: &WorkerPath, registration: &Registration) -> Result<Decision, Reject> {
        registration.check()?;
        let known = self.workers.known.get(path);
        let mut facts = Batch::new();
        if known.is_none() && self.workers.known.len() >= WORKERS_MAX {
            let too_many = Reject::TooManyWorkers { max: WORKERS_MAX as u64 };
            let (_, longest) = self.workers.gone.first().ok_or(too_many)?;
            let epoch = self.find(longest)?.epoch;
            let change = WorkerChange::Forgotten;
            facts.push(Fact::Worker(WorkerFact { path: longest.clone(), epoch, change }));
        }
        // An entry's number is given once, so that who was forgotten is fenced, too.
        let epoch = known.map_or(self.lsn, |worker| self.lsn.max(worker.epoch.next()));
        let worker = Worker::new(epoch, Box::new(registration.clone()), self.now);
        let change = WorkerChange::Registered(Box::new(registration.clone()));
        facts.push(Fact::Worker(WorkerFact { path: path.clone(), epoch, change }));
        Ok(Decision::Change { facts, reply: status(worker.status(path), true) })
    }

    /// The worker as it is, changed.
    fn changed(&self, path: &WorkerPath, worker: &Worker, change: WorkerChange) -> Decision {
        let mut after = worker.clone();
        after.change(&change, self.now);
        let facts = [Fact::Worker(WorkerFact { path: path.clone(), epoch: worker.epoch, change })];
        Decision::Change { facts: facts.into_iter().collect(), reply: status(after.status(path), true) }
    }

    fn as_it_is(&self, path: &WorkerPath, worker: &Worker) -> Decision {
        Decision::Answer { reply: status(worker.status(path), false), seen: self.workers.last_lsn }
    }

    fn list(&self, after: Option<&WorkerPath>, filter: &WorkerFilter, workers_max: usize) -> Decision {
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.clone()));
        let (mut workers, mut next, mut last, mut bytes) = (Vec::new(), None, None, 0);
        let all = self.workers.known.range((from, Bound::Unbounded)).enumerate();
        for (looked, (path, worker)) in all {
            if workers.len() == workers_max || looked == JOBS_LOOKED_MAX || bytes > REPLY_BYTES_MAX / 2 {
                next = last;
                break;
            }
            last = Some(path.clone());
            if worker.is_wanted(path, filter) {
                bytes += STATUS_BYTES + worker.registration.encoded_len_max();
                workers.push(worker.status(path));
            }
        }
        let reply = Reply::Worker(WorkerReply::List { workers, next });
        Decision::Answer { reply, seen: self.workers.last_lsn }
    }
}

impl Worker {
    fn is_wanted(&self, path: &WorkerPath, filter: &WorkerFilter) -> bool {
        let WorkerFilter { states, queue, prefix } = filter;
        (states.is_empty() || states.contains(&self.state))
            && (path.name().starts_with(&**prefix)
                || (prefix.contains('/') && path.as_str().starts_with(&**prefix)))
            && queue.as_ref().is_none_or(|queue| self.registration.queues.contains(queue))
    }
}

fn status(status: WorkerStatus, changed: bool) -> Reply {
    Reply::Worker(WorkerReply::Status(Box::new(status), changed))
}

fn gone(path: &WorkerPath, worker: &Worker) -> Reject {
    Reject::WorkerGone { path: path.to_string(), state: worker.state }
}
