//! How facts change workers. Whatever contradicts the state is a bug, or another machine's log.

use flowmesh_model::worker::WorkerState;
use flowmesh_model::worker::fact::{WorkerChange, WorkerFact};
use flowmesh_model::{Millis, WorkerPath};

use super::{Worker, Workers};
use crate::changes::Seals;
use crate::decision::EntryContext;

impl Workers {
    /// Makes a fact true.
    pub fn apply(&mut self, at: EntryContext, seals: &mut Seals, fact: WorkerFact) {
        let WorkerFact { path, epoch, change } = fact;
        self.last_lsn = at.lsn;
        let before = self.known.get(&path).map(|worker| worker.epoch);
        self.unlink(&path);
        match change {
            WorkerChange::Registered(registration) => {
                assert!(before.is_none_or(|before| before < epoch), "epochs only grow");
                let new = Worker::new(epoch, registration, at.time);
                self.known.change(&(), seals, &path, || new.clone(), |worker| *worker = new.clone());
            }
            WorkerChange::Forgotten => {
                assert_eq!(before, Some(epoch), "another worker was forgotten");
                let forgotten = self.known.remove(&(), seals, &path);
                assert!(forgotten.is_some_and(|worker| !worker.state.is_present()), "one that is there");
            }
            change => {
                assert_eq!(before, Some(epoch), "a fact about another registration");
                let none = || -> Worker { panic!("a fact about a worker that is not there: {path}") };
                self.known.change(&(), seals, &path, none, |worker| worker.change(&change, at.time));
            }
        }
        self.link(&path);
    }

    /// After a start: nobody has missed a heartbeat, each session begins anew with the next tick.
    pub fn begin_sessions(&mut self) {
        self.awake = true;
        let all: Vec<WorkerPath> = self.known.iter().map(|(path, _)| path.clone()).collect();
        for path in all {
            self.unlink(&path);
            self.known.get(&path).into_iter().for_each(|worker| worker.heard.set(None));
            self.link(&path);
        }
    }
}

impl Worker {
    /// What becomes true of a worker that is known.
    pub(super) fn change(&mut self, change: &WorkerChange, now: Millis) {
        use WorkerState::{Alive, Dead, Left, Stopping};
        let state = match (change, self.state) {
            (WorkerChange::Revived, Dead) => {
                self.heard.set(Some(now));
                if self.told_to_stop { Stopping } else { Alive }
            }
            (WorkerChange::StopRequested, Alive) => {
                self.told_to_stop = true;
                Stopping
            }
            (WorkerChange::Died, Alive | Stopping) => {
                self.deaths += 1;
                Dead
            }
            (WorkerChange::Left, Alive | Stopping | Dead) => Left,
            (WorkerChange::Forgotten, Left | Dead) => return,
            (change, state) => panic!("{change:?} of a worker that is {}", state.as_str()),
        };
        (self.state, self.since) = (state, now);
    }
}
