//! Reads of records that are only in segment files: the machine says where, the disk is read without holding the
//! state, and the reply goes out as any other.
//!
//! A command that must first be told which record it means is decided on again once files have said so.

use bytes::Bytes;
use flowmesh_machine::{ColdFind, ColdKeys, ColdRead, Decision, PastRange, PastRead, PastRows};
use flowmesh_model::command::ReadFrom;
use flowmesh_model::reply::RecordRuns;
use flowmesh_model::{
    Command, JobId, Lsn, Offset, PartitionRef, Reject, Reply, ResourceId, Space, StreamCommand,
};
use flowmesh_store::disk::Disk;
use flowmesh_store::index::HistoryRange;
use flowmesh_store::segments::FoundRecords;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::pump::{Effects, items_of};
use crate::release::{Need, Outgoing};
use crate::shard::{Shard, State};
use crate::timer::Timer;

/// Reads of the disk at the same time: enough to keep an NVMe queue busy, few enough to bound their buffers.
const CONCURRENT: usize = 16;

/// Bytes of rows of one part of a history that are read at once: so many parts as there are come together.
const PAST_CHUNK_BYTES: usize = 512 * 1024;

/// So long after a commit there are others who write: reads leave the disk to the log as far as they can.
const BESIDE_WRITES_NS: u64 = 20_000_000;

/// A command that waits for segment files.
pub(crate) struct Fetch {
    /// What for.
    pub wanted: Wanted,
    /// Who gets the answer; the outcome is still to come.
    pub outgoing: Outgoing,
}

/// What a command wants of segment files.
pub(crate) enum Wanted {
    /// Records, for a command that may be decided on again.
    Records(ColdRead, Command),
    /// The place of a record; the command starts there.
    Place(ColdFind, Command),
    /// What jobs of a queue are about, in the index; the command is decided on again.
    Bodies(ResourceId, Vec<JobId>, Command),
    /// What was, in the index, for a command that may need more then.
    Past(PastRead, Command),
    /// What keys of a store hold, in the index; the command is decided on again.
    Values(ColdKeys, Command),
}

/// What there is to be read.
enum Work {
    /// For a command.
    Fetch(Box<Fetch>),
    /// What jobs are about that a queue gives out next, before anybody asks.
    Ahead(ResourceId),
    /// What keys hold whose end is to be said.
    Due(ColdKeys),
}

/// What a look for a record came to.
enum Found {
    /// The answer.
    Outcome(Result<Reply, Reject>),
    /// The command, to be decided on again.
    Again(Command),
}

impl<D: Disk, T: Timer> Shard<D, T> {
    /// Serves cold reads. Runs until it is dropped.
    pub async fn run_fetches(self) {
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < CONCURRENT {
                let next = self.inner.state.borrow_mut().next_work();
                match next {
                    Some(work) => running.push(self.work(work)),
                    None => break,
                }
            }
            if running.is_empty() {
                self.inner.signals.fetch.wait().await;
            } else {
                let woken = std::pin::pin!(self.inner.signals.fetch.wait());
                futures::future::select(running.next(), woken).await;
            }
        }
    }

    async fn work(&self, work: Work) {
        match work {
            Work::Fetch(fetch) => self.fetch(*fetch).await,
            Work::Ahead(queue) => {
                // If it fails, the command that needs one of them is told.
                if let Err(error) = self.read_ahead(queue).await {
                    tracing::debug!(%queue, %error, "payloads were not fetched ahead");
                }
                self.inner.state.borrow_mut().looking_ahead -= 1;
            }
            Work::Due(cold) => match self.read_values(&cold, false).await {
                Ok(read) => {
                    drop(self.take_values(&cold, read));
                    self.tick();
                }
                Err(error) => tracing::error!(%error, "keys do not end whose feed needs what they held"),
            },
        }
    }

    async fn fetch(&self, fetch: Fetch) {
        let Fetch { wanted, mut outgoing } = fetch;
        if outgoing.sink.is_closed() {
            return;
        }
        let at = match wanted {
            Wanted::Records(read, command) => match self.read_segments(&read, command).await {
                Found::Outcome(outcome) => {
                    outgoing.outcome = outcome;
                    read.at
                }
                Found::Again(command) => return self.run_again(command, outgoing),
            },
            Wanted::Place(find, command) => match self.find_place(&find, command).await {
                Found::Outcome(outcome) => {
                    outgoing.outcome = outcome;
                    find.at
                }
                Found::Again(command) => return self.run_again(command, outgoing),
            },
            Wanted::Past(read, command) => {
                outgoing.outcome = self.read_past(read, &command).await;
                match command {
                    Command::Kv(store, _) => PartitionRef { resource: store, partition: 0 },
                    _ => return,
                }
            }
            Wanted::Values(cold, command) => return self.fetch_values(cold, command, outgoing).await,
            Wanted::Bodies(queue, jobs, command) => match self.read_bodies(queue, jobs).await {
                Ok(()) => return self.run_again(command, outgoing),
                Err(reject) => {
                    outgoing.outcome = Err(reject);
                    PartitionRef { resource: queue, partition: 0 }
                }
            },
        };
        self.answer(at, outgoing);
    }

    pub(crate) fn answer(&self, at: PartitionRef, outgoing: Outgoing) {
        let now_ns = self.inner.timer.monotonic_ns();
        let mut effects = Effects::default();
        {
            let mut state = self.inner.state.borrow_mut();
            let stats = state.stats.operation_mut(outgoing.operation);
            stats.commands += 1;
            match &outgoing.outcome {
                Ok(Reply::Records(records)) => {
                    stats.items += records.runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
                }
                Ok(reply) => stats.items += items_of(reply),
                Err(_) => stats.rejected += 1,
            }
            // The high watermark in the reply shows everything so far, and so does what is no longer there.
            let shows = matches!(&outgoing.outcome, Ok(_) | Err(Reject::OffsetOutOfRange { .. }));
            let (seen, need) = (state.last_lsn(), state.need_of(at.resource));
            let (seen, need) = if shows { (seen, need) } else { (Lsn(0), Need::Written) };
            state.park_or_release(seen, need, outgoing, now_ns, &mut effects);
        }
        self.carry_on(effects);
    }

    /// What is there of a partition now, if a record is not any more.
    fn trimmed(&self, at: PartitionRef, record: Offset) -> Option<(Offset, Offset)> {
        let range = self.inner.state.borrow().machine.stream_range(at);
        range.filter(|(earliest, _)| record < *earliest)
    }

    /// Looks in segment files for the record that a command starts at.
    async fn find_place(&self, find: &ColdFind, mut command: Command) -> Found {
        let Some(durable) = &self.inner.durable else { return Found::Outcome(Err(NO_DISK)) };
        let found = durable.streams.find(find.at, find.from, find.since).await;
        let place = found.as_ref().ok().copied().flatten();
        // Deleted meanwhile: what is meant is another record now.
        if self.trimmed(find.at, place.map_or(find.from, |(offset, _)| offset)).is_some() {
            return Found::Again(command);
        }
        if let Err(error) = found {
            return Found::Outcome(Err(Reject::Damaged { place: error.to_string() }));
        }
        let behind = durable.streams.next_offset(find.at);
        match (&mut command, place) {
            (Command::Stream(_, StreamCommand::FindOffset { .. }), Some((offset, appended_at))) => {
                Found::Outcome(Ok(Reply::OffsetFound { offset, appended_at: Some(appended_at) }))
            }
            (
                Command::Stream(_, StreamCommand::FindOffset { from } | StreamCommand::Read { from, .. }),
                place,
            ) => {
                *from = ReadFrom::Offset(place.map_or(behind, |(offset, _)| offset));
                Found::Again(command)
            }
            _ => Found::Outcome(Err(Reject::Internal("a command that starts nowhere"))),
        }
    }

    pub(crate) fn run_again(&self, command: Command, outgoing: Outgoing) {
        let (now, now_ns) = (self.inner.timer.now(), self.inner.timer.monotonic_ns());
        let Outgoing { sink, started_ns, .. } = outgoing;
        let mut effects = Effects::default();
        {
            let mut state = self.inner.state.borrow_mut();
            state.run(command, sink, now, now_ns, started_ns, &mut effects);
        }
        self.carry_on(effects);
    }

    /// Brings into memory what jobs are about that only the index has. One call after the other: those who come together
    /// mostly want the same jobs, which the first one fetches for all.
    async fn read_bodies(&self, queue: ResourceId, jobs: Vec<JobId>) -> Result<(), Reject> {
        let _alone = self.inner.warming.lock().await;
        let keys = self.inner.state.borrow().machine.cold_bodies(queue, &jobs);
        self.read_keys(queue, keys).await
    }

    /// Brings into memory what jobs are about that a queue gives out next.
    async fn read_ahead(&self, queue: ResourceId) -> Result<(), Reject> {
        let _alone = self.inner.warming.lock().await;
        let keys = self.inner.state.borrow_mut().machine.bodies_ahead(queue);
        self.read_keys(queue, keys).await
    }

    async fn read_keys(&self, queue: ResourceId, keys: Vec<(JobId, Bytes)>) -> Result<(), Reject> {
        let Some(durable) = &self.inner.durable else { return Err(NO_DISK) };
        if keys.is_empty() {
            return Ok(());
        }
        let found = durable.index.bodies(keys.iter().map(|(_, key)| key.clone()).collect());
        let found = found.await.map_err(|error| Reject::Damaged { place: error.to_string() })?;
        let machine = &mut self.inner.state.borrow_mut().machine;
        for ((job, _), value) in keys.into_iter().zip(found) {
            // Of a job that is gone by now the index may have nothing.
            if !machine.is_cold(queue, job) {
                continue;
            }
            let place = |what: &str| Reject::Damaged {
                place: format!("the payload of job {job} is {what} in the index"),
            };
            let value = value.ok_or_else(|| place("not"))?;
            machine.warm(queue, job, value).map_err(|_| place("malformed"))?;
        }
        Ok(())
    }

    /// Reads of histories what a command needs, until it can be answered. The state is asked with all that was read so far: what
    /// left memory for the index meanwhile makes it begin anew.
    async fn read_past(&self, mut read: PastRead, command: &Command) -> Result<Reply, Reject> {
        let Some(durable) = &self.inner.durable else { return Err(NO_DISK) };
        let mut rows = PastRows::default();
        loop {
            let range = |range: &PastRange| HistoryRange {
                from: range.from.clone(),
                to: range.to.clone(),
                rows_max: range.rows_max,
                bytes_max: PAST_CHUNK_BYTES,
            };
            let found = durable.index.history(read.ranges.iter().map(range).collect()).await;
            let found = found.map_err(|error| Reject::Damaged { place: error.to_string() })?;
            for (range, (chunk, is_all)) in read.ranges.iter().zip(found) {
                rows.add(read.generation, range, chunk, is_all);
            }
            let keys: Vec<Bytes> = read.entries.iter().map(|(key, _)| key.clone()).collect();
            let values = self.read_beside(Space::Keys, &keys).await?;
            read.entries.into_iter().zip(values).for_each(|(entry, value)| rows.add_entry(entry, value));
            let state = self.inner.state.borrow();
            match state.machine.past(self.inner.timer.now(), state.log.next_lsn(), command, &rows)? {
                Decision::Answer { reply, .. } => return Ok(reply),
                Decision::Past(more) => read = more,
                _ => return Err(Reject::Internal("what was is only read")),
            }
        }
    }

    async fn read_segments(&self, read: &ColdRead, mut command: Command) -> Found {
        let Some(durable) = &self.inner.durable else { return Found::Outcome(Err(NO_DISK)) };
        let now_ns = self.inner.timer.monotonic_ns();
        let committed_at_ns = self.inner.state.borrow().committed_at_ns;
        let since_ns = committed_at_ns.map(|committed_at_ns| now_ns.saturating_sub(committed_at_ns));
        durable.streams.beside_writes(since_ns.is_some_and(|since_ns| since_ns < BESIDE_WRITES_NS));
        let found = durable.streams.read(read.at, read.from, read.records_max, read.bytes_max).await;
        // They may have been deleted meanwhile.
        if let Some((earliest, next)) = self.trimmed(read.at, read.from) {
            return Found::Outcome(Err(Reject::OffsetOutOfRange { requested: read.from, earliest, next }));
        }
        let FoundRecords { runs, next } = match found {
            Ok(found) => found,
            Err(error) => return Found::Outcome(Err(Reject::Damaged { place: error.to_string() })),
        };
        if next <= read.from {
            // The machine knew of the record, so it must be in a segment file or, by now, trimmed.
            return Found::Outcome(Err(missing(read, next)));
        }
        // All that files have from there on was compacted away. What follows is in memory, unless this is the end: then
        // the reader is told how far it is.
        if runs.is_empty()
            && next < read.high_watermark
            && let Command::Stream(_, StreamCommand::Read { from, .. }) = &mut command
        {
            *from = ReadFrom::Offset(next);
            return Found::Again(command);
        }
        Found::Outcome(Ok(Reply::Records(RecordRuns {
            runs,
            next,
            earliest: read.earliest,
            high_watermark: read.high_watermark,
        })))
    }
}

impl<D: Disk> State<D> {
    /// Commands first: they wait.
    fn next_work(&mut self) -> Option<Work> {
        if let Some(fetch) = self.fetches.pop_front() {
            return Some(Work::Fetch(Box::new(fetch)));
        }
        if let Some(cold) = self.machine.take_cold_due() {
            return Some(Work::Due(cold));
        }
        let queue = self.machine.take_ahead()?;
        self.looking_ahead += 1;
        Some(Work::Ahead(queue))
    }
}

pub(crate) const NO_DISK: Reject = Reject::Internal("a cold read without a disk");

fn missing(read: &ColdRead, found: Offset) -> Reject {
    Reject::Damaged {
        place: format!(
            "stream {}: record {} is in no segment file (found up to {found})",
            read.at, read.from
        ),
    }
}
