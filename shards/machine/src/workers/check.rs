//! The workers' invariants, and their state as text.

use std::fmt::Write;

use flowmesh_model::limits::WORKERS_MAX;

use flowmesh_model::worker::WorkerState;

use super::Workers;
use crate::changes::Seals;

impl Workers {
    /// Checks every invariant.
    pub fn check(&self, seals: &Seals) {
        self.known.check(seals);
        assert!(self.known.len() <= WORKERS_MAX);
        assert_eq!(self.due.len(), self.known.len());
        let (mut counts, mut gone, mut memory_bytes) = ([0u64; 4], 0, 0);
        for (path, worker) in self.known.iter() {
            assert_eq!(worker.registration.check(), Ok(()));
            assert!(worker.registered_at <= worker.since);
            assert!(worker.told_to_stop || worker.state != WorkerState::Stopping);
            assert!(!worker.told_to_stop || worker.state != WorkerState::Alive);
            counts.get_mut(worker.state as usize).into_iter().for_each(|count| *count += 1);
            if !worker.state.is_present() {
                gone += 1;
                assert!(self.gone.contains(&(worker.since, path.clone())));
            }
            let armed = worker.armed.get().unwrap_or_else(|| panic!("{path} has no timer"));
            assert!(self.due.contains(&(armed, path.clone())));
            assert!(worker.ends_at().is_none_or(|ends_at| armed <= ends_at), "a timer is late");
            memory_bytes += worker.memory_bytes(path);
        }
        assert_eq!((self.counts, self.gone.len(), self.memory_bytes), (counts, gone, memory_bytes));
    }

    /// The state as text.
    pub fn dump(&self, out: &mut String) {
        for (path, worker) in self.known.iter() {
            let (state, registration) = (worker.state.as_str(), &worker.registration);
            let _ = writeln!(
                out,
                "worker {path} epoch {} {state} since {} registered {} deaths {} told to stop {} {registration:?}",
                worker.epoch, worker.since, worker.registered_at, worker.deaths, worker.told_to_stop
            );
        }
    }
}
