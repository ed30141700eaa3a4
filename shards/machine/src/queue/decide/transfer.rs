//! How jobs go to other queues and streams, and come from other queues.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::put_bytes;
use flowmesh_model::command::NewJob;
use flowmesh_model::job::fact::EnqueuedOptions;
use flowmesh_model::job::{JobOptions, JobPhase, Which};
use flowmesh_model::limits::{
    DELAY_MS_MAX, OUTBOX_JOBS_MAX, TEXT_BYTES_MAX, TRANSFER_BYTES_MAX, TRANSFER_JOBS_MAX,
};
use flowmesh_model::record::{ITEM_TAG, RecordSlices, put_header, split_header};
use flowmesh_model::settings::within;
use flowmesh_model::transfer::fact::TransferFact;
use flowmesh_model::transfer::{
    Arrival, DEAD_LETTER_ATTEMPTS, DEAD_LETTER_DIED_AT, DEAD_LETTER_ERROR, DEAD_LETTER_JOB,
    DEAD_LETTER_QUEUE, Incoming, REPLAYED_JOB, REPLAYED_PHASE, REPLAYED_QUEUE, TransferCommand, TransferMode,
    TransferReply,
};
use flowmesh_model::{
    Batch, Catalog, Fact, JobId, Kind, Lsn, Millis, PartitionRef, Reject, Reply, ResourceId, ResourceInfo,
    Settings,
};

use super::Asked;
use super::enqueue::{Room, Wanted, full};
use super::look::Found;
use crate::decision::Decision;
use crate::limit::{items, size};
use crate::queue::job::Job;
use crate::queue::jobs::Body;
use crate::queue::outbox::{Outbox, Outgoing};

/// When a full outbox is worth another try.
const RETRY_AFTER_MS: u64 = 100;

/// The setting or field that names where jobs go.
const TO_QUEUE: &str = "to_queue";

/// A queue, as the catalog has it, and the catalog.
pub(crate) struct Around<'a> {
    pub info: &'a ResourceInfo,
    pub catalog: Option<&'a Catalog>,
}

impl Around<'_> {
    fn find(&self, id: ResourceId) -> Result<&ResourceInfo, Reject> {
        find(self.catalog, id)
    }
}

/// What is there under a number.
fn find(catalog: Option<&Catalog>, id: ResourceId) -> Result<&ResourceInfo, Reject> {
    let found = catalog.and_then(|catalog| catalog.get(id));
    found.map(|info| &**info).ok_or_else(|| Reject::ResourceNotFound { path: format!("number {id}") })
}

/// Refuses what comes from a queue that is not there: what is known of it may be forgotten already.
pub(crate) fn check_source(catalog: Option<&Catalog>, arrival: &Arrival) -> Result<(), Reject> {
    items("jobs", arrival.jobs.len())?;
    debug_assert!(arrival.jobs.is_sorted_by(|a, b| a.sequence < b.sequence), "jobs arrive in order");
    find(catalog, arrival.source).map(|_| ())
}

/// What is new of jobs that arrive, if all up to a number is here.
pub(crate) fn news(arrival: &Arrival, upto: u64) -> &[Incoming] {
    let new = arrival.jobs.partition_point(|job| job.sequence <= upto);
    arrival.jobs.get(new..).unwrap_or_default()
}

/// The answer to jobs of which nothing is new; `seen`: the entry that brought the last.
pub(crate) fn nothing_new(arrival: &Arrival, seen: Lsn) -> Decision {
    Decision::Answer { reply: received(arrival.jobs.last().map_or(0, |job| job.sequence)), seen }
}

/// The answer to jobs that arrived.
pub(crate) fn received(upto: u64) -> Reply {
    Reply::Transfer(TransferReply::Received { upto })
}

impl Asked<'_> {
    pub fn transfer(&self, around: &Around<'_>, command: &TransferCommand) -> Result<Decision, Reject> {
        match command {
            TransferCommand::Move { which, to, per_second, delay_ms } => {
                self.move_jobs(around, which, *to, *per_second, *delay_ms)
            }
            TransferCommand::Replay { which, phase, to } => self.replay(around, which, *phase, *to),
            TransferCommand::Next { to } => Ok(self.next(around, *to)),
            TransferCommand::Sent { to, upto } => {
                let sent = |sequence| TransferFact::Sent { sequence };
                Ok(self.settle_lane(*to, *upto, sent))
            }
            TransferCommand::Failed { to, upto, error } => {
                size("error", error, TEXT_BYTES_MAX)?;
                let failed = |sequence| TransferFact::SendFailed { sequence, error: error.clone() };
                Ok(self.settle_lane(*to, *upto, failed))
            }
            TransferCommand::Outbox => {
                let outbox = self.queue.outbox();
                let lanes = outbox.map_or_else(Vec::new, Outbox::lanes);
                let failed = outbox.and_then(|outbox| outbox.totals().last_failed);
                Ok(self.answer(Reply::Transfer(TransferReply::Outbox { lanes, failed })))
            }
            TransferCommand::Receive(arrival) => self.receive(around, arrival),
        }
    }

    fn move_jobs(
        &self,
        around: &Around<'_>,
        which: &Which,
        to: ResourceId,
        per_second: Option<u32>,
        delay_ms: u64,
    ) -> Result<Decision, Reject> {
        within("delay_ms", delay_ms, 0, DELAY_MS_MAX)?;
        per_second.map_or(Ok(()), |rate| within("per_second", u64::from(rate), 1, u64::from(u32::MAX)))?;
        let target = self.other_queue(around, to, TO_QUEUE)?;
        for info in [around.info, target] {
            if is_sandbox(info) {
                return Err(Reject::SandboxQueue { path: info.path.to_string() });
            }
        }
        let ready_at = |place: u64| {
            let later_ms = per_second.map_or(0, |rate| place * 1_000 / u64::from(rate));
            self.now.plus(delay_ms + later_ms)
        };
        self.send(which, JobPhase::Dead, to, TransferMode::Move, ready_at)
    }

    fn replay(
        &self,
        around: &Around<'_>,
        which: &Which,
        phase: JobPhase,
        to: ResourceId,
    ) -> Result<Decision, Reject> {
        if !matches!(phase, JobPhase::Dead | JobPhase::Done) {
            let reason = format!("is {}; allowed: dead, done", phase.as_str());
            return Err(Reject::invalid("phase", reason));
        }
        let target = self.other_queue(around, to, "sandbox")?;
        if !is_sandbox(target) {
            return Err(Reject::QueueNotSandbox { path: target.path.to_string() });
        }
        self.send(which, phase, to, TransferMode::Replay, |_| self.now)
    }

    fn other_queue<'a>(
        &self,
        around: &'a Around<'_>,
        to: ResourceId,
        field: &'static str,
    ) -> Result<&'a ResourceInfo, Reject> {
        if to == self.id {
            return Err(Reject::invalid(field, "is the queue itself; name another one"));
        }
        let target = around.find(to)?;
        match target.path.kind() {
            Kind::Queue => Ok(target),
            actual => Err(Reject::WrongKind { path: target.path.to_string(), expected: Kind::Queue, actual }),
        }
    }

    /// Puts jobs into the outbox, as many as there is room for.
    fn send(
        &self,
        which: &Which,
        phase: JobPhase,
        to: ResourceId,
        mode: TransferMode,
        ready_at: impl Fn(u64) -> Millis,
    ) -> Result<Decision, Reject> {
        let outbox = self.queue.outbox();
        let room = outbox.map_or(OUTBOX_JOBS_MAX, Outbox::room);
        let no_room = Reject::Overloaded { what: "outbox", retry_after_ms: RETRY_AFTER_MS };
        if room == 0 {
            return Err(no_room);
        }
        let (jobs, next) = match self.swept(which, phase, room)? {
            Found::Cold(jobs) => return Ok(Decision::Warm(self.id, jobs)),
            Found::Jobs { jobs, next } => (jobs, next),
        };
        if jobs.len() > room {
            return Err(no_room);
        }
        let count = jobs.len() as u64;
        let last = outbox.map_or(0, Outbox::last_sequence);
        // A queue is its own partition 0.
        let to = PartitionRef { resource: to, partition: 0 };
        let sending = |(place, job): (u64, JobId)| {
            let (sequence, ready_at) = (last + 1 + place, ready_at(place));
            Fact::Transfer(self.id, TransferFact::Sending { sequence, job, to, mode, ready_at })
        };
        let facts = (0u64..).zip(jobs).map(sending).collect();
        Ok(self.change_or_answer(facts, Reply::Swept { count, next }))
    }

    /// The oldest of a lane, as many as are sent at once.
    fn next(&self, around: &Around<'_>, to: PartitionRef) -> Decision {
        let lane = || self.queue.outbox().into_iter().flat_map(move |outbox| outbox.lane(to));
        let (mut bytes, mut next) = (0, Vec::new());
        for (sequence, entry) in lane().take(TRANSFER_JOBS_MAX) {
            bytes += self.queue.jobs.get(entry.job).map_or(0, |job| job.body_bytes as usize);
            if bytes > TRANSFER_BYTES_MAX && !next.is_empty() {
                break;
            }
            next.push((sequence, entry));
        }
        if let Some(cold) = self.cold(next.iter().map(|(_, entry)| entry.job)) {
            return cold;
        }
        let jobs = next.into_iter().filter_map(|(sequence, entry)| {
            let (job, body) = (self.queue.jobs.get(entry.job)?, self.queue.jobs.body(entry.job)?);
            Some(self.outgoing(around.info, sequence, entry, job, body))
        });
        self.answer(Reply::Transfer(TransferReply::Next(jobs.collect())))
    }

    /// A job as its target gets it.
    fn outgoing(
        &self,
        info: &ResourceInfo,
        sequence: u64,
        entry: &Outgoing,
        job: &Job,
        body: &Body,
    ) -> Incoming {
        let moves = entry.mode == TransferMode::Move;
        let (path, number) = (info.path.to_string(), entry.job.to_string());
        let headers = match entry.mode {
            TransferMode::Move => body.headers(),
            TransferMode::DeadLetter => {
                let attempts = job.attempts.to_string();
                let error = job.last_attempt().map_or(&[][..], |attempt| &attempt.error);
                let died_at = job.moment().to_string();
                let said: [(&str, &[u8]); 5] = [
                    (DEAD_LETTER_QUEUE, path.as_bytes()),
                    (DEAD_LETTER_JOB, number.as_bytes()),
                    (DEAD_LETTER_ATTEMPTS, attempts.as_bytes()),
                    (DEAD_LETTER_ERROR, error),
                    (DEAD_LETTER_DIED_AT, died_at.as_bytes()),
                ];
                with_headers(&body.headers(), &said)
            }
            TransferMode::Replay => {
                let said: [(&str, &[u8]); 3] = [
                    (REPLAYED_QUEUE, path.as_bytes()),
                    (REPLAYED_JOB, number.as_bytes()),
                    (REPLAYED_PHASE, job.phase().as_str().as_bytes()),
                ];
                with_headers(&body.headers(), &said)
            }
        };
        Incoming {
            sequence,
            mode: entry.mode,
            job: entry.job,
            ready_at: entry.ready_at,
            priority: job.priority,
            max_attempts: moves.then(|| u32::from(job.max_attempts)),
            retry: job.extra().and_then(|extra| extra.retry).filter(|_| moves),
            group: self.queue.ready.key(job.group),
            headers,
            payload: body.payload(),
        }
    }

    /// What became of the entries of a lane up to a number.
    fn settle_lane(&self, to: PartitionRef, upto: u64, fact: impl Fn(u64) -> TransferFact) -> Decision {
        let lane = self.queue.outbox().into_iter().flat_map(|outbox| outbox.lane(to));
        let settled = lane.map(|(sequence, _)| sequence).take_while(|sequence| *sequence <= upto);
        let facts = settled.take(TRANSFER_JOBS_MAX).map(|sequence| Fact::Transfer(self.id, fact(sequence)));
        self.change_or_answer(facts.collect(), Reply::Settled(Batch::from_elem(Ok(()), 1)))
    }

    /// Takes in what arrives of another queue, as many as there is room for.
    fn receive(&self, around: &Around<'_>, arrival: &Arrival) -> Result<Decision, Reject> {
        check_source(around.catalog, arrival)?;
        let known = self.queue.received.as_ref();
        let (upto, seen) = known.map_or((0, Lsn(0)), |known| known.upto(0, arrival.source));
        let new = news(arrival, upto);
        if new.is_empty() {
            return Ok(nothing_new(arrival, seen));
        }
        let path = || around.info.path.to_string();
        match new.iter().find(|job| (job.mode == TransferMode::Replay) != self.settings.sandbox) {
            Some(_) if self.settings.sandbox => return Err(Reject::SandboxQueue { path: path() }),
            Some(_) => return Err(Reject::QueueNotSandbox { path: path() }),
            None => {}
        }
        let jobs: Vec<NewJob> = new.iter().map(|job| self.arrived(job)).collect();
        let (mut count, ids) = (jobs.len(), self.new_numbers(&jobs));
        let mut facts = loop {
            match Room::of(self).take(Wanted::of(jobs.iter().take(count))) {
                Ok(facts) => break facts,
                Err(over) if count <= 1 => return Err(full(&over)),
                Err(_) => count /= 2,
            }
        };
        for (job, id) in jobs.iter().zip(&ids).take(count) {
            facts.push(without_options(self.enqueued(0, job, id.job, &[])?));
        }
        let sequence = new.get(count - 1).map_or(0, |job| job.sequence);
        let fact = TransferFact::Received { partition: 0, source: arrival.source, sequence };
        facts.push(Fact::Transfer(self.id, fact));
        Ok(Decision::Change { facts, reply: received(sequence) })
    }

    fn arrived(&self, job: &Incoming) -> NewJob {
        // Of few there is more to be said than when they are ready.
        let options = JobOptions {
            run_at: Some(job.ready_at.max(self.now)),
            retry: job.retry,
            group: job.group.clone(),
            ..JobOptions::default()
        };
        NewJob {
            payload: job.payload.clone(),
            headers: job.headers.clone(),
            priority: job.priority,
            delay_ms: 0,
            max_attempts: job.max_attempts,
            options: Some(Box::new(options)),
        }
    }
}

/// A new job that has no options needs none.
fn without_options(fact: Fact) -> Fact {
    match fact {
        Fact::JobEnqueued { queue, job, ready_at, max_attempts, priority, headers, payload, options } => {
            let options = options.filter(|options| **options != EnqueuedOptions::default());
            Fact::JobEnqueued { queue, job, ready_at, max_attempts, priority, headers, payload, options }
        }
        other => other,
    }
}

fn is_sandbox(info: &ResourceInfo) -> bool {
    matches!(&info.settings, Settings::Queue(settings) if settings.sandbox)
}

/// Packed headers with these, in place of those of the same names.
fn with_headers(packed: &Bytes, said: &[(&str, &[u8])]) -> Bytes {
    let mut out = BytesMut::with_capacity(packed.len() + 512);
    for header in RecordSlices::new(packed).flatten() {
        let named = split_header(header).map(|(name, _)| name);
        if !named.is_ok_and(|name| said.iter().any(|(of, _)| of.as_bytes() == name)) {
            out.put_u8(ITEM_TAG);
            put_bytes(&mut out, header);
        }
    }
    for (name, value) in said {
        put_header(&mut out, name.as_bytes(), value);
    }
    out.freeze()
}
