//! Back-pressure: writes that found the log full wait in order, instead of being sent away to try again at once.
//!
//! What waits is bounded, in number and bytes; beyond that writes are refused with `OVERLOADED`.

use std::collections::VecDeque;

use flowmesh_model::{Command, KvCommand, QueueCommand, StreamCommand};

use crate::sink::ReplySink;

/// Writes that wait: what the fullest connections may have in flight.
const STALLED_MAX: usize = 16 * 1024;

/// Their bytes: a few commit buffers.
const STALLED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Writes that wait for room in the log.
#[derive(Default)]
pub(crate) struct Stalled {
    queue: VecDeque<(Command, Box<dyn ReplySink>, u64)>,
    bytes: usize,
}

impl Stalled {
    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Adds a write behind all others.
    ///
    /// # Errors
    /// The sink, if no more may wait.
    pub fn push_back(
        &mut self,
        command: Command,
        sink: Box<dyn ReplySink>,
        started_ns: u64,
    ) -> Result<(), Box<dyn ReplySink>> {
        if self.queue.len() >= STALLED_MAX || self.bytes >= STALLED_BYTES_MAX {
            return Err(sink);
        }
        self.bytes += weight(&command);
        self.queue.push_back((command, sink, started_ns));
        Ok(())
    }

    /// Puts back what [`Stalled::pop_front`] took.
    pub fn push_front(&mut self, command: Command, sink: Box<dyn ReplySink>, started_ns: u64) {
        self.bytes += weight(&command);
        self.queue.push_front((command, sink, started_ns));
    }

    /// Takes the first, with the time it arrived.
    pub fn pop_front(&mut self) -> Option<(Command, Box<dyn ReplySink>, u64)> {
        let taken = self.queue.pop_front()?;
        self.bytes -= weight(&taken.0);
        Some(taken)
    }
}

/// The bytes a command keeps alive.
fn weight(command: &Command) -> usize {
    match command {
        Command::Stream(_, StreamCommand::Append { records, .. }) => records.bytes().len(),
        Command::Queue(_, QueueCommand::Enqueue { jobs, .. }) => {
            jobs.iter().map(|job| job.payload.len() + job.headers.len()).sum()
        }
        Command::Kv(_, KvCommand::Set { entries }) => {
            entries.iter().map(|e| e.key.len() + e.value.len()).sum()
        }
        Command::Kv(_, KvCommand::Run { ops, .. }) => {
            ops.iter().map(|op| op.key.len() + op.action.bytes()).sum()
        }
        _ => 0,
    }
}
