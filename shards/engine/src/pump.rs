//! Phases 1 to 4 of a command: may it, decide, apply, log; then its reply is parked.
//!
//! | the machine says | then |
//! |---|---|
//! | change | the facts are logged and applied; the reply waits for their entry. Large values go into the log first |
//! | answer | the reply waits for the newest entry it shows |
//! | wait | the command waits for its key, or its time |
//! | fetch, find | the records, or their place, are read from segment files first |
//! | warm, past | what jobs are about, what keys hold, or what was, is read from the index first |
//! | rejected by the state | as an answer that shows everything so far: a crash must not take the reason back |
//! | rejected by itself | answered at once |

use std::collections::VecDeque;

use flowmesh_machine::{Decision, EntryContext, WaitKey};
use flowmesh_model::limits::ENTRY_BYTES_MAX;
use flowmesh_model::{
    Batch, Code, Command, Durability, Fact, GroupCommand, KvCommand, Lsn, Millis, QueueCommand, Reject,
    ReplayCommand, Reply, ResourceId, StreamCommand, TransferCommand,
};
use flowmesh_store::disk::Disk;
use flowmesh_store::log::LogFull;

use crate::fetch::{Fetch, Wanted};
use crate::large::Passed;
use crate::metrics::Operation;
use crate::metrics::resources::counted_for;
use crate::release::{Need, Outgoing};
use crate::shard::{Shard, State};
use crate::sink::ReplySink;
use crate::timer::Timer;
use crate::waiting::Waiter;

/// Long polls of one shard. Each keeps a command and a sink.
const WAITING_MAX: usize = 65_536;

/// Reads of segment files that wait their turn.
const FETCHES_MAX: usize = 4096;

/// What a pass over the state leaves to do once the state is no longer borrowed.
#[derive(Default)]
pub(crate) struct Effects {
    pub released: Vec<Outgoing>,
    pub commit: bool,
    pub fetch: bool,
    pub segment: bool,
    pub checkpoint: bool,
    pub rearm: bool,
    pub transfer: bool,
    pub chill: bool,
}

/// Why an entry was not logged.
pub(crate) enum LogRefusal {
    /// The log has no room now: the disk is behind.
    NoRoom,
    /// The command cannot be logged.
    Reject(Reject),
}

impl<D: Disk, T: Timer> Shard<D, T> {
    /// Carries a command out. `sink` gets the reply once it may be shown; never from within this call's borrow of the
    /// state, so a sink may submit again.
    pub fn submit(&self, command: Command, sink: Box<dyn ReplySink>) {
        let (now, now_ns) = (self.inner.timer.now(), self.inner.timer.monotonic_ns());
        let mut effects = Effects::default();
        {
            let mut state = self.inner.state.borrow_mut();
            state.run(command, sink, now, now_ns, now_ns, &mut effects);
            state.serve_woken(now, now_ns, &mut effects);
            state.note_times(&mut effects);
        }
        self.carry_on(effects);
    }

    /// Decides again for those who wait for one of these.
    pub(crate) fn serve_keys(&self, keys: Vec<WaitKey>) {
        if keys.is_empty() {
            return;
        }
        let (now, now_ns) = (self.inner.timer.now(), self.inner.timer.monotonic_ns());
        let mut effects = Effects::default();
        {
            let mut state = self.inner.state.borrow_mut();
            for key in keys {
                state.serve(key, now, now_ns, &mut effects);
            }
        }
        self.carry_on(effects);
    }

    /// Wakes the loops that have something to do, and hands out what was released.
    pub(crate) fn carry_on(&self, effects: Effects) {
        let signals = &self.inner.signals;
        for (wanted, signal) in [
            (effects.commit, &signals.commit),
            (effects.fetch, &signals.fetch),
            (effects.segment, &signals.segment),
            (effects.checkpoint, &signals.checkpoint),
            (effects.rearm, &signals.tick),
            (effects.transfer, &signals.transfer),
            (effects.chill, &signals.chill),
        ] {
            if wanted {
                signal.notify();
            }
        }
        effects.released.into_iter().for_each(Outgoing::deliver);
    }
}

impl<D: Disk> State<D> {
    /// One command, from gate to park. A write that finds the log full waits behind those before it.
    pub fn run(
        &mut self,
        command: Command,
        sink: Box<dyn ReplySink>,
        now: Millis,
        now_ns: u64,
        started_ns: u64,
        effects: &mut Effects,
    ) {
        let held = if command.is_write() && !self.stalled.is_empty() {
            Some((command, sink))
        } else {
            self.try_run(command, sink, (now, now_ns, started_ns), None, effects)
        };
        let Some((command, sink)) = held else { return };
        if let Err(sink) = self.stalled.push_back(command, sink, started_ns) {
            let reject = Reject::Overloaded { what: "commit log", retry_after_ms: 100 };
            effects.released.push(Outgoing {
                sink,
                outcome: Err(reject),
                operation: Operation::Status,
                counted_for: None,
                started_ns,
            });
        }
    }

    /// Runs the writes that waited for the log, in order, as far as it has room.
    pub fn run_stalled(&mut self, now: Millis, now_ns: u64, effects: &mut Effects) {
        while let Some((command, sink, started_ns)) = self.stalled.pop_front() {
            if sink.is_closed() {
                continue;
            }
            let times = (now, now_ns, started_ns);
            if let Some((command, sink)) = self.try_run(command, sink, times, None, effects) {
                self.stalled.push_front(command, sink, started_ns);
                break;
            }
        }
        effects.commit |= self.large.waits();
    }

    /// One command, from gate to park, at a time, by the clock as well, that arrived then; given back if the log has no room for
    /// it now. Large values that are in the log already have their room.
    pub fn try_run(
        &mut self,
        command: Command,
        sink: Box<dyn ReplySink>,
        (now, now_ns, started_ns): (Millis, u64, u64),
        passed: Option<&Passed>,
        effects: &mut Effects,
    ) -> Option<(Command, Box<dyn ReplySink>)> {
        let (operation, items) = Operation::of(&command);
        let counted_for = counted_for(&command);
        let mut outgoing =
            Outgoing { sink, outcome: Err(Reject::Cancelled), operation, counted_for, started_ns };
        let waits_for_memory = passed.is_none() && self.waits_for_memory(&command);
        let waits_for_log = passed.is_none() && self.is_log_full();
        if command.is_write() && self.fenced.is_none() && (waits_for_log || waits_for_memory) {
            // Where no value can go that has not changed, a checkpoint must come first.
            let may_chill = waits_for_memory && self.is_memory_short();
            effects.checkpoint |= self.is_log_full() || !may_chill;
            effects.chill |= may_chill;
            // If it cannot be trimmed, waiting would be waiting for somebody to make room.
            let Some(reject) = self.log_refusal() else { return Some((command, outgoing.sink)) };
            effects.released.push(Outgoing { outcome: Err(reject), ..outgoing });
            return None;
        }
        let decided =
            self.gate(&command).and_then(|()| self.machine.decide(now, self.log.next_lsn(), &command));
        let (seen, outcome) = match decided {
            Err(reject) => (self.seen_by(&reject), Err(reject)),
            Ok(Decision::Answer { reply, seen }) => (seen, Ok(reply)),
            Ok(Decision::Change { facts, reply }) if facts.is_empty() => (self.last_lsn(), Ok(reply)),
            Ok(Decision::Change { facts, .. }) if self.must_line_up(&facts, passed) => {
                self.line_up(command, outgoing, &facts, passed, effects);
                return None;
            }
            Ok(Decision::Change { facts, reply }) => match self.log_change(now, facts, passed, effects) {
                Ok(lsn) => {
                    self.make_room(now, effects);
                    (lsn, Ok(reply))
                }
                Err(LogRefusal::NoRoom) => return Some((command, outgoing.sink)),
                Err(LogRefusal::Reject(reject)) => (Lsn(0), Err(reject)),
            },
            Ok(Decision::Wait(key)) => {
                let until = command_wait(&command).unwrap_or(now);
                if !self.stopping && self.waiting.len() < WAITING_MAX {
                    let mut command = command;
                    self.machine.pin(&mut command);
                    self.waiting.push(key, command, outgoing.sink, until, started_ns);
                    effects.rearm |= self.armed.is_none_or(|armed| until < armed);
                    return None;
                }
                let reject = if self.stopping {
                    Reject::ShuttingDown
                } else {
                    Reject::Overloaded { what: "waiting commands", retry_after_ms: 1_000 }
                };
                (Lsn(0), Err(reject))
            }
            Ok(
                Decision::Fetch(_)
                | Decision::Find(_)
                | Decision::Warm(..)
                | Decision::WarmStore(_)
                | Decision::Past(_),
            ) if self.fetches.len() >= FETCHES_MAX => {
                (Lsn(0), Err(Reject::Overloaded { what: "cold reads", retry_after_ms: 50 }))
            }
            Ok(Decision::Fetch(read)) => {
                self.fetches.push_back(Fetch { wanted: Wanted::Records(read, command), outgoing });
                effects.fetch = true;
                return None;
            }
            Ok(Decision::Warm(queue, jobs)) => {
                self.stats.body_waits += 1;
                self.fetches.push_back(Fetch { wanted: Wanted::Bodies(queue, jobs, command), outgoing });
                effects.fetch = true;
                return None;
            }
            Ok(Decision::Past(read)) => {
                self.fetches.push_back(Fetch { wanted: Wanted::Past(read, command), outgoing });
                effects.fetch = true;
                return None;
            }
            Ok(Decision::WarmStore(cold)) => {
                self.stats.value_waits += 1;
                self.fetches.push_back(Fetch { wanted: Wanted::Values(cold, command), outgoing });
                effects.fetch = true;
                return None;
            }
            Ok(Decision::Find(find)) => {
                self.fetches.push_back(Fetch { wanted: Wanted::Place(find, command), outgoing });
                effects.fetch = true;
                return None;
            }
        };
        let need = self.need(&command);
        let stats = self.stats.operation_mut(operation);
        stats.commands += 1;
        stats.items += if items > 0 { items } else { outcome.as_ref().map_or(0, items_of) };
        stats.rejected += u64::from(outcome.is_err());
        if let Ok(reply) = &outcome {
            self.resources.looked(&command, reply);
        }
        outgoing.outcome = outcome;
        self.park_or_release(seen, need, outgoing, now_ns, effects);
        None
    }

    /// Releases a reply if what it shows is durable, else keeps it until it is.
    pub fn park_or_release(
        &mut self,
        seen: Lsn,
        need: Need,
        outgoing: Outgoing,
        now_ns: u64,
        effects: &mut Effects,
    ) {
        if self.parked.is_released(seen, need) {
            self.released(&outgoing, now_ns);
            effects.released.push(outgoing);
        } else if let Some(fenced) = &self.fenced {
            let reject = fenced.clone();
            effects.released.push(Outgoing { outcome: Err(reject), ..outgoing });
        } else {
            effects.commit |= self.parked.park(seen, need, outgoing);
        }
    }

    /// Counts how long a reply that goes out now has taken.
    pub fn released(&mut self, outgoing: &Outgoing, now_ns: u64) {
        let latency_ns = now_ns.saturating_sub(outgoing.started_ns);
        self.stats.operation_mut(outgoing.operation).latency_ns.record(latency_ns);
        if let (Some(at), Ok(reply)) = (outgoing.counted_for, &outgoing.outcome) {
            self.resources.released(at, outgoing.operation, reply, latency_ns);
        }
    }

    /// Whether the shard takes such a command now.
    fn gate(&mut self, command: &Command) -> Result<(), Reject> {
        if !command.is_write() {
            return Ok(());
        }
        if let Some(reject) = &self.fenced {
            return Err(reject.clone());
        }
        if self.stopping {
            return Err(Reject::ShuttingDown);
        }
        let memory_bytes = self.machine.memory_bytes();
        self.machine.set_tight(memory_bytes > self.memory_bytes_max / 16 * 15);
        let makes_room = || match command {
            Command::Kv(id, _) => self.machine.can_make_room(*id),
            _ => false,
        };
        if memory_bytes > self.memory_bytes_max && grows(command) && !makes_room() {
            // What checkpoints would free of it waits for space on the disk.
            return Err(match &self.untrimmed {
                Some(Reject::DiskFull) => Reject::DiskFull,
                _ => Reject::Overloaded { what: "memory budget", retry_after_ms: 1_000 },
            });
        }
        Ok(())
    }

    /// Whether large values of facts must go into the log first.
    fn must_line_up(&self, facts: &[Fact], passed: Option<&Passed>) -> bool {
        let are_there = || passed.is_some_and(|passed| passed.has_all(facts));
        !self.memory_only && facts.iter().any(|fact| fact.large_value().is_some()) && !are_there()
    }

    /// Whether the log has all that it may have.
    pub fn is_log_full(&self) -> bool {
        self.log.log_bytes() > self.log_bytes_max
    }

    /// What writes are told that find the log full and would wait for a checkpoint in vain.
    pub fn log_refusal(&self) -> Option<Reject> {
        let reject = self.untrimmed.clone().filter(|_| self.is_log_full())?;
        Some(if self.disk_full { Reject::DiskFull } else { reject })
    }

    /// Whether writes are refused until the disk has space.
    pub fn refuses_for_space(&self) -> bool {
        let stuck = self.is_log_full() || self.machine.memory_bytes() > self.memory_bytes_max;
        self.disk_full || (stuck && self.untrimmed == Some(Reject::DiskFull))
    }

    /// Logs facts as one entry and makes them true. Either both or, with a refusal, neither.
    pub fn log_and_apply(
        &mut self,
        now: Millis,
        facts: Batch<Fact>,
        effects: &mut Effects,
    ) -> Result<Lsn, LogRefusal> {
        self.log_change(now, facts, None, effects)
    }

    /// As [`State::log_and_apply`], with large values that are in the log already.
    fn log_change(
        &mut self,
        now: Millis,
        mut facts: Batch<Fact>,
        passed: Option<&Passed>,
        effects: &mut Effects,
    ) -> Result<Lsn, LogRefusal> {
        let names = passed.map(|passed| passed.name(&mut facts)).unwrap_or_default();
        let apart = passed.is_some() || self.memory_only;
        let bytes_of = |fact: &Fact| if apart { fact.entry_len_max() } else { fact.encoded_len_max() };
        let bytes_max: usize = facts.iter().map(bytes_of).sum();
        if bytes_max > ENTRY_BYTES_MAX {
            let (size, max) = (bytes_max as u64, ENTRY_BYTES_MAX as u64);
            return Err(LogRefusal::Reject(Reject::TooLarge { what: "batch", size, max }));
        }
        let time = self.machine.clamp(now);
        let logged = self.log.append(time, bytes_max, |buffer| {
            for (index, fact) in facts.iter().enumerate() {
                let logged = names.get(index).and_then(Option::as_ref);
                logged.unwrap_or(fact).encode(buffer);
            }
        });
        let lsn = match logged {
            Ok(lsn) => lsn,
            Err(LogFull::Buffers) => {
                effects.commit = true;
                return Err(LogRefusal::NoRoom);
            }
            Err(LogFull::NoSegment) => {
                effects.segment = true;
                return Err(LogRefusal::NoRoom);
            }
            Err(LogFull::DiskFull) => {
                if !self.disk_full {
                    tracing::error!("the disk is full: writes are refused until there is space, reads go on");
                }
                self.disk_full = true;
                return Err(LogRefusal::Reject(Reject::DiskFull));
            }
            Err(LogFull::EntryTooLarge { bytes, max }) => {
                let (size, max) = (bytes as u64, max as u64);
                return Err(LogRefusal::Reject(Reject::TooLarge { what: "batch", size, max }));
            }
        };
        self.resources.facts(&facts);
        for fact in facts {
            self.machine.apply(EntryContext { lsn, time }, fact);
        }
        effects.fetch |= self.machine.looks_ahead();
        if self.memory_only {
            self.parked.advance(lsn);
        }
        effects.transfer |= self.machine.has_outgoing();
        effects.chill |= self.is_memory_short();
        effects.commit = true;
        Ok(lsn)
    }

    /// Lets entries of caches go for what they just got. What cannot be logged now ticks see to.
    fn make_room(&mut self, now: Millis, effects: &mut Effects) {
        while self.machine.is_crowded() {
            let facts = self.machine.make_room(now, self.log.next_lsn());
            if facts.is_empty() {
                return;
            }
            if self.log_and_apply(now, Batch::from_vec(facts), effects).is_err() {
                return self.machine.leave_room_to_ticks();
            }
        }
    }

    /// Decides again for those whose key was woken, first come first served.
    pub fn serve_woken(&mut self, now: Millis, now_ns: u64, effects: &mut Effects) {
        if self.waiting.len() == 0 {
            self.machine.forget_woken();
            return;
        }
        while let Some(key) = self.machine.take_woken() {
            self.serve(key, now, now_ns, effects);
        }
    }

    fn serve(&mut self, key: WaitKey, now: Millis, now_ns: u64, effects: &mut Effects) {
        let mut waiters = self.waiting.take(key);
        let mut still = VecDeque::new();
        while let Some(waiter) = waiters.pop_front() {
            if waiter.sink.is_closed() {
                continue;
            }
            if matches!(self.machine.decide(now, self.log.next_lsn(), &waiter.command), Ok(Decision::Wait(_)))
            {
                still.push_back(waiter);
                // Nothing is left in a queue: those behind need not look.
                if matches!(key, WaitKey::Queue(_)) {
                    still.append(&mut waiters);
                }
            } else {
                self.run_waiter(waiter, now, now_ns, effects);
            }
        }
        self.waiting.put_back(key, still);
    }

    /// Runs a command that has waited.
    pub fn run_waiter(&mut self, waiter: Waiter, now: Millis, now_ns: u64, effects: &mut Effects) {
        self.run(waiter.command, waiter.sink, now, now_ns, waiter.started_ns, effects);
    }

    /// Whether the tick loop must be woken because something is due earlier than it thinks.
    pub fn note_times(&mut self, effects: &mut Effects) {
        if let Some(due) = self.machine.next_due() {
            effects.rearm |= self.armed.is_none_or(|armed| due < armed);
        }
    }

    /// Up to which entry a rejection shows the state.
    fn seen_by(&self, reject: &Reject) -> Lsn {
        match reject.code() {
            Code::NotFound | Code::AlreadyExists | Code::OutOfRange | Code::FailedPrecondition => {
                self.last_lsn()
            }
            _ => Lsn(0),
        }
    }

    /// How durable the replies about a command's resource must be.
    pub fn need(&self, command: &Command) -> Need {
        let resource = match command {
            // A producer's number comes from its entry: one that a crash took back would be given out twice.
            Command::Catalog(_)
            | Command::Worker(_)
            | Command::Stream(_, StreamCommand::InitProducer { .. }) => None,
            // Two shards must remember the same, whatever each of them loses in a crash.
            Command::Queue(_, QueueCommand::Transfer(_)) | Command::Stream(_, StreamCommand::Receive(_)) => {
                None
            }
            Command::Stream(at, _) => Some(at.resource),
            Command::Queue(id, _) | Command::Kv(id, _) | Command::Group(id, _) => Some(*id),
            Command::Replay(at, _) => Some(at.group),
        };
        resource.map_or(Need::Synced, |id| self.need_of(id))
    }

    /// How durable replies about a resource must be.
    pub fn need_of(&self, id: ResourceId) -> Need {
        let durability = if self.durability_of.is_empty() {
            self.default_durability
        } else {
            self.durability_of.get(&id).copied().unwrap_or(self.default_durability)
        };
        if durability == Durability::Always { Need::Synced } else { Need::Written }
    }
}

fn command_wait(command: &Command) -> Option<Millis> {
    match command {
        Command::Stream(_, StreamCommand::Read { wait_until, .. })
        | Command::Queue(
            _,
            QueueCommand::Enqueue { wait_until, .. }
            | QueueCommand::Reserve { wait_until, .. }
            | QueueCommand::Get { wait_until, .. },
        )
        | Command::Replay(_, ReplayCommand::Status { wait_until, .. }) => *wait_until,
        Command::Group(_, GroupCommand::Heartbeat(heartbeat))
        | Command::Replay(_, ReplayCommand::Member(GroupCommand::Heartbeat(heartbeat))) => {
            heartbeat.wait_until
        }
        _ => None,
    }
}

/// Whether a command adds to the state.
pub(crate) fn grows(command: &Command) -> bool {
    if let Command::Kv(_, KvCommand::Run { ops, .. }) = command {
        return ops.iter().any(|op| op.action.adds());
    }
    matches!(
        command,
        Command::Stream(
            _,
            StreamCommand::Append { .. }
                | StreamCommand::InitProducer { .. }
                | StreamCommand::FenceProducer { .. }
                | StreamCommand::Receive(_)
        ) | Command::Queue(
            _,
            QueueCommand::Enqueue { .. } | QueueCommand::Transfer(TransferCommand::Receive(_))
        ) | Command::Kv(_, KvCommand::Set { .. })
            | Command::Worker(flowmesh_model::WorkerCommand::Register { .. })
            | Command::Catalog(flowmesh_model::CatalogCommand::Create { .. })
    )
}

/// Items in a reply, for commands whose request does not say.
pub(crate) fn items_of(reply: &Reply) -> u64 {
    match reply {
        Reply::Records(records) => records.runs.iter().map(|run| u64::from(run.count)).sum(),
        Reply::Reserved(jobs) => jobs.len() as u64,
        Reply::Jobs { jobs, .. } => jobs.len() as u64,
        Reply::Swept { count, .. } => *count,
        Reply::Scanned { entries, .. } => entries.len() as u64,
        Reply::KvSnapshot(part) => part.changes.len() as u64,
        Reply::Values(values) => values.len() as u64,
        Reply::Kv(outcomes) => outcomes.len() as u64,
        Reply::KvVersions { versions, .. } => versions.len() as u64,
        Reply::KvDiff { keys, .. } => keys.len() as u64,
        _ => 0,
    }
}
