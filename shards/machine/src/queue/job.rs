//! One job and its life:
//!
//! ```text
//!       enqueued, waits for others                    enqueued (ready at > time)      enqueued (ready at <= time)
//!                 │                                             │                                │
//!                 ▼        they have ended                      ▼         the time comes         ▼
//!              blocked ─────────────────────────────────────► delayed ───────────────────────► ready ◄─┐
//!                                                               ▲   │                            │      │
//!                                 JobReturned (ready at > time) │   │ once its time has come     │      │ JobReturned
//!                                                               │   └──────────► JobLeased ◄─────┘      │ (at once)
//!                                                               │                    │                  │
//!                                                               └────────────── leased ◄─► extended ────┘
//!                                                                                    │
//!                       Redriven                 JobDied                             │ JobDone, Finished
//!        delayed or ready ◄────── dead ◄─────────────────────────────────────────────┴───────► done (kept), or gone
//! ```
//!
//! `Removed` leads from every state but leased to gone; what is leased is asked to stop first, and is gone when its worker
//! gives it back. `delayed` becomes `ready` by a tick: a change of where it is kept, not of the state.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, Reader, detached, put_bytes, put_varint};
use flowmesh_model::job::fact::{one_of, put_retry, read_retry};
use flowmesh_model::job::{Attempt, AttemptEnd, Awaited, JobPhase, RetryPolicy};
use flowmesh_model::limits::{ATTEMPTS_KEPT_MAX, AWAITED_BYTES_MAX};
use flowmesh_model::{JobId, LeaseToken, Millis};

use super::jobs::Body;
use crate::changes::Mark;
use crate::keys;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobState {
    /// To be had from then on.
    Delayed { ready_at: Millis },
    /// To be had since then.
    Ready { since: Millis },
    /// Waits for others; not to be had before then.
    Blocked { ready_at: Millis },
    /// With a worker until then.
    Leased { until: Millis },
    /// Given up then, kept.
    Dead { since: Millis },
    /// Done, kept until then.
    Done { until: Millis },
}

impl JobState {
    /// To be had from `ready_at` on, seen at `now`.
    pub fn waiting(ready_at: Millis, now: Millis) -> Self {
        if ready_at <= now { Self::Ready { since: ready_at } } else { Self::Delayed { ready_at } }
    }

    pub fn phase(self) -> JobPhase {
        match self {
            Self::Delayed { .. } => JobPhase::Delayed,
            Self::Ready { .. } => JobPhase::Ready,
            Self::Blocked { .. } => JobPhase::Blocked,
            Self::Leased { .. } => JobPhase::Leased,
            Self::Dead { .. } => JobPhase::Dead,
            Self::Done { .. } => JobPhase::Done,
        }
    }

    fn moment(self) -> Millis {
        match self {
            Self::Delayed { ready_at: moment }
            | Self::Ready { since: moment }
            | Self::Blocked { ready_at: moment }
            | Self::Leased { until: moment }
            | Self::Dead { since: moment }
            | Self::Done { until: moment } => moment,
        }
    }

    /// Whether it waits for a worker, its time or others.
    pub fn is_waiting(self) -> bool {
        matches!(self, Self::Delayed { .. } | Self::Ready { .. } | Self::Blocked { .. })
    }
}

/// What a job has that most have not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extra {
    /// Removed then if no worker has it.
    pub expires_at: Option<Millis>,
    /// Its own retries.
    pub retry: Option<RetryPolicy>,
    /// By which it is recognised.
    pub key: Option<Bytes>,
    /// Attempts that are over, oldest first.
    pub history: Vec<Attempt>,
    pub progress: Bytes,
    pub result: Bytes,
    /// Jobs it still waits for.
    pub after: Vec<JobId>,
    /// What became of those it waited for.
    pub awaited: Vec<Awaited>,
}

impl Extra {
    fn memory_bytes(&self) -> u64 {
        let attempts = self.history.iter().map(|attempt| attempt.error.len() + attempt.worker.len() + 32);
        let awaited = self.awaited.iter().map(|awaited| awaited.result.len());
        let bytes = size_of::<Self>()
            + self.history.capacity() * size_of::<Attempt>()
            + self.awaited.capacity() * size_of::<Awaited>()
            + self.after.capacity() * size_of::<JobId>()
            + attempts.sum::<usize>()
            + awaited.sum::<usize>()
            + self.key.as_ref().map_or(0, Bytes::len)
            + self.progress.len()
            + self.result.len();
        bytes as u64 + 16
    }
}

/// Its worker is asked to stop.
const CANCEL_REQUESTED: u8 = 1;
/// It goes on however those it waits for end.
const AFTER_ANY_END: u8 = 2;
/// Somebody waits for its end. Not part of the state.
const WATCHED: u8 = 4;

/// A job, without what it is about (see [`Body`]).
#[derive(Debug)]
pub(crate) struct Job {
    moment: Millis,
    /// The token of its last lease, 0 before the first.
    pub token: LeaseToken,
    /// When its last lease began.
    pub began_at: Millis,
    extra: Option<Box<Extra>>,
    pub mark: Mark,
    /// Its group among the queue's; 0: none.
    pub group: u32,
    /// Who has it among the queue's workers; 0: nobody.
    pub worker: u32,
    /// Bytes of headers and payload.
    pub body_bytes: u32,
    pub attempts: u16,
    pub max_attempts: u16,
    /// Leases that ran out without an answer.
    pub crashes: u16,
    pub priority: u8,
    phase: JobPhase,
    flags: u8,
}

impl Job {
    pub fn new(priority: u8, max_attempts: u32, body_bytes: usize, state: JobState) -> Self {
        Self {
            moment: state.moment(),
            token: LeaseToken(0),
            began_at: Millis(0),
            extra: None,
            mark: Mark::new(false),
            group: 0,
            worker: 0,
            body_bytes: body_bytes as u32,
            attempts: 0,
            max_attempts: u16::try_from(max_attempts).unwrap_or(u16::MAX),
            crashes: 0,
            priority,
            phase: state.phase(),
            flags: 0,
        }
    }

    pub fn state(&self) -> JobState {
        let moment = self.moment;
        match self.phase {
            JobPhase::Delayed => JobState::Delayed { ready_at: moment },
            JobPhase::Ready => JobState::Ready { since: moment },
            JobPhase::Blocked => JobState::Blocked { ready_at: moment },
            JobPhase::Leased => JobState::Leased { until: moment },
            JobPhase::Dead => JobState::Dead { since: moment },
            JobPhase::Done => JobState::Done { until: moment },
        }
    }

    pub fn phase(&self) -> JobPhase {
        self.phase
    }

    pub fn moment(&self) -> Millis {
        self.moment
    }

    pub fn set_state(&mut self, state: JobState) {
        (self.phase, self.moment) = (state.phase(), state.moment());
    }

    /// What most jobs have not.
    pub fn extra(&self) -> Option<&Extra> {
        self.extra.as_deref()
    }

    pub fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// What it takes in memory beside its own size.
    pub fn extra_bytes(&self) -> u64 {
        self.extra().map_or(0, Extra::memory_bytes)
    }

    fn flag(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub fn cancel_requested(&self) -> bool {
        self.flag(CANCEL_REQUESTED)
    }

    pub fn request_cancel(&mut self) {
        self.flags |= CANCEL_REQUESTED;
    }

    pub fn after_any_end(&self) -> bool {
        self.flag(AFTER_ANY_END)
    }

    pub fn set_after_any_end(&mut self) {
        self.flags |= AFTER_ANY_END;
    }

    pub fn is_watched(&self) -> bool {
        self.flag(WATCHED)
    }

    pub fn watch(&mut self) {
        self.flags |= WATCHED;
    }

    pub fn expires_at(&self) -> Option<Millis> {
        self.extra()?.expires_at
    }

    /// The last attempt that is over.
    pub fn last_attempt(&self) -> Option<&Attempt> {
        self.extra()?.history.last()
    }

    /// `JobLeased`.
    pub fn lease(&mut self, token: LeaseToken, until: Millis, now: Millis, worker: u32) {
        match self.state() {
            JobState::Ready { .. } => {}
            JobState::Delayed { ready_at } => assert!(ready_at <= now, "a job was leased before its time"),
            JobState::Leased { .. } => panic!("a job was leased twice"),
            JobState::Dead { .. } | JobState::Done { .. } | JobState::Blocked { .. } => {
                panic!("a job was leased that is not to be had")
            }
        }
        assert!(token > self.token, "a lease's token is above all before it");
        self.token = token;
        self.attempts += 1;
        self.worker = worker;
        self.began_at = now;
        self.set_state(JobState::Leased { until });
    }

    /// The lease is over; the job is with nobody.
    pub fn end_lease(&mut self, now: Millis, end: AttemptEnd, worker: Bytes, error: &Bytes) {
        self.assert_leased();
        match end {
            AttemptEnd::Released => self.attempts -= 1,
            AttemptEnd::Expired | AttemptEnd::Quarantined => self.crashes = self.crashes.saturating_add(1),
            AttemptEnd::Nacked | AttemptEnd::Final | AttemptEnd::Acked => {}
        }
        self.worker = 0;
        let began_at = self.began_at;
        let attempt = Attempt { began_at, ended_at: now, end, worker, error: detached(error) };
        let history = &mut self.extra_mut().history;
        if history.len() == ATTEMPTS_KEPT_MAX {
            history.remove(0);
        }
        history.push(attempt);
    }

    /// One of those it waits for has ended. Returns whether it was the last.
    pub fn awaited(&mut self, ended: JobId, done: bool, result: &Bytes) -> bool {
        let extra = self.extra_mut();
        extra.after.retain(|job| *job != ended);
        let known: usize = extra.awaited.iter().map(|awaited| awaited.result.len()).sum();
        let result = if known + result.len() <= AWAITED_BYTES_MAX { detached(result) } else { Bytes::new() };
        extra.awaited.push(Awaited { job: ended, done, result });
        extra.after.is_empty()
    }

    /// It can never be had.
    pub fn give_up(&mut self, now: Millis, why: String) {
        let attempt = Attempt {
            began_at: now,
            ended_at: now,
            end: AttemptEnd::Final,
            worker: Bytes::new(),
            error: why.into(),
        };
        self.extra_mut().history.push(attempt);
        self.set_state(JobState::Dead { since: now });
    }

    /// `Redriven`.
    pub fn redrive(&mut self, ready_at: Millis, now: Millis) {
        assert!(self.phase == JobPhase::Dead, "a job was redriven that is not dead");
        (self.attempts, self.crashes) = (0, 0);
        self.set_state(JobState::waiting(ready_at, now));
    }

    /// Refuses every state a lease cannot end in.
    pub fn assert_leased(&self) {
        assert!(self.phase == JobPhase::Leased, "a lease ended that there was not");
    }
}

const KEPT_FLAGS: u8 = CANCEL_REQUESTED | AFTER_ANY_END;

/// The format of jobs without their bodies.
const FORMAT: u8 = 2;

const HAS_EXPIRY: u8 = 1;
const HAS_RETRY: u8 = 2;
const HAS_KEY: u8 = 4;

/// What a job names that the queue keeps once for all.
#[derive(Clone, Debug, Default)]
pub(crate) struct JobNames {
    pub group: Bytes,
    pub worker: Bytes,
}

/// The job in the index.
///
/// | field | size | meaning |
/// |---|---|---|
/// | format | 1 | 2; 1: see [`decode`] |
/// | state | 1 | 0 waiting, 1 leased, 2 dead, 3 blocked, 4 done |
/// | moment | varint | ready at; leased until; dead since; ready at; kept until |
/// | priority, flags | 1 each | flags: 1 cancel requested, 2 after any end |
/// | attempts, max attempts, crashes | varint each | |
/// | token, began at | varint each | of the last lease, 0 before the first |
/// | body bytes | varint | |
/// | group, worker | varint length + bytes each | |
/// | extra | the rest | absent, or: has (1 expiry, 2 retry, 4 key), those; progress, result; after (count, jobs); awaited (count; job, done, result each); history (count; began, ended, end, worker, error each) |
pub(crate) fn encode(job: &Job, names: &JobNames) -> Bytes {
    let state = match job.phase {
        JobPhase::Delayed | JobPhase::Ready => WAITING,
        JobPhase::Leased => LEASED,
        JobPhase::Dead => DEAD,
        JobPhase::Blocked => BLOCKED,
        JobPhase::Done => DONE,
    };
    let mut out = BytesMut::with_capacity(48 + names.group.len() + names.worker.len());
    out.put_u8(FORMAT);
    out.put_u8(state);
    put_varint(&mut out, job.moment.0);
    out.put_u8(job.priority);
    out.put_u8(job.flags & KEPT_FLAGS);
    for number in [job.attempts, job.max_attempts, job.crashes] {
        put_varint(&mut out, u64::from(number));
    }
    for number in [job.token.0, job.began_at.0, u64::from(job.body_bytes)] {
        put_varint(&mut out, number);
    }
    put_bytes(&mut out, &names.group);
    put_bytes(&mut out, &names.worker);
    if let Some(extra) = job.extra() {
        encode_extra(&mut out, extra);
    }
    out.freeze()
}

const WAITING: u8 = 0;
const LEASED: u8 = 1;
const DEAD: u8 = 2;
const BLOCKED: u8 = 3;
const DONE: u8 = 4;

fn encode_extra(out: &mut BytesMut, extra: &Extra) {
    let has = |has: bool, flag: u8| if has { flag } else { 0 };
    let Extra { expires_at, retry, key, history, progress, result, after, awaited } = extra;
    out.put_u8(
        has(expires_at.is_some(), HAS_EXPIRY) | has(retry.is_some(), HAS_RETRY) | has(key.is_some(), HAS_KEY),
    );
    if let Some(at) = expires_at {
        put_varint(out, at.0);
    }
    if let Some(retry) = retry {
        put_retry(out, retry);
    }
    if let Some(key) = key {
        put_bytes(out, key);
    }
    put_bytes(out, progress);
    put_bytes(out, result);
    put_varint(out, after.len() as u64);
    for job in after {
        put_varint(out, job.0);
    }
    put_varint(out, awaited.len() as u64);
    for Awaited { job, done, result } in awaited {
        put_varint(out, job.0);
        out.put_u8(u8::from(*done));
        put_bytes(out, result);
    }
    put_varint(out, history.len() as u64);
    for Attempt { began_at, ended_at, end, worker, error } in history {
        put_varint(out, began_at.0);
        put_varint(out, ended_at.0);
        out.put_u8(*end as u8);
        put_bytes(out, worker);
        put_bytes(out, error);
    }
}

/// A job out of the index.
pub(crate) struct ReadJob {
    pub job: Job,
    pub names: JobNames,
    /// Of the old format, which had them together.
    pub body: Option<Body>,
}

/// Reads what [`encode`] wrote, seen at `now`; also format 1, in which the body stood with the job: state, moment,
/// priority, last end (0 none, 1 nacked, 2 expired), attempts, max attempts, enqueued at, token, worker, error, headers,
/// payload.
pub(crate) fn decode(value: Bytes, now: Millis) -> Result<ReadJob, Malformed> {
    let mut reader = Reader::new(value);
    let format = reader.byte()?;
    let state = read_state(&mut reader, now)?;
    match format {
        1 => decode_first(&mut reader, state),
        FORMAT => decode_job(&mut reader, state),
        _ => Err(Malformed("index value of an unknown format")),
    }
}

fn read_state(reader: &mut Reader, now: Millis) -> Result<JobState, Malformed> {
    let (state, moment) = (reader.byte()?, Millis(reader.varint()?));
    Ok(match state {
        WAITING => JobState::waiting(moment, now),
        LEASED => JobState::Leased { until: moment },
        DEAD => JobState::Dead { since: moment },
        BLOCKED => JobState::Blocked { ready_at: moment },
        DONE => JobState::Done { until: moment },
        _ => return Err(Malformed("unknown state of a job")),
    })
}

fn decode_job(reader: &mut Reader, state: JobState) -> Result<ReadJob, Malformed> {
    let mut job = Job::new(reader.byte()?, 0, 0, state);
    job.flags = reader.byte()? & KEPT_FLAGS;
    (job.attempts, job.max_attempts, job.crashes) = (small(reader)?, small(reader)?, small(reader)?);
    (job.token, job.began_at) = (LeaseToken(reader.varint()?), Millis(reader.varint()?));
    job.body_bytes = reader.varint_u32()?;
    let names = JobNames {
        group: Bytes::copy_from_slice(&reader.bytes()?),
        worker: Bytes::copy_from_slice(&reader.bytes()?),
    };
    if !reader.is_empty() {
        job.extra = Some(Box::new(decode_extra(reader)?));
    }
    job.mark = Mark::IN_INDEX;
    keys::close(reader)?;
    Ok(ReadJob { job, names, body: None })
}

fn small(reader: &mut Reader) -> Result<u16, Malformed> {
    u16::try_from(reader.varint()?).map_err(|_| Malformed("a count beyond its limit"))
}

fn decode_extra(reader: &mut Reader) -> Result<Extra, Malformed> {
    let own = |reader: &mut Reader| Ok(Bytes::copy_from_slice(&reader.bytes()?));
    let has = reader.byte()?;
    let mut extra = Extra::default();
    if has & HAS_EXPIRY != 0 {
        extra.expires_at = Some(Millis(reader.varint()?));
    }
    if has & HAS_RETRY != 0 {
        extra.retry = Some(read_retry(reader)?);
    }
    if has & HAS_KEY != 0 {
        extra.key = Some(own(reader)?);
    }
    (extra.progress, extra.result) = (own(reader)?, own(reader)?);
    for _ in 0..reader.varint()? {
        extra.after.push(JobId(reader.varint()?));
    }
    for _ in 0..reader.varint()? {
        let (job, done) = (JobId(reader.varint()?), reader.byte()? != 0);
        extra.awaited.push(Awaited { job, done, result: own(reader)? });
    }
    for _ in 0..reader.varint()? {
        extra.history.push(Attempt {
            began_at: Millis(reader.varint()?),
            ended_at: Millis(reader.varint()?),
            end: one_of(&AttemptEnd::ALL, reader.byte()?)?,
            worker: own(reader)?,
            error: own(reader)?,
        });
    }
    Ok(extra)
}

fn decode_first(reader: &mut Reader, state: JobState) -> Result<ReadJob, Malformed> {
    let priority = reader.byte()?;
    let last_end = match reader.byte()? {
        0 => None,
        end => Some(one_of(&[AttemptEnd::Nacked, AttemptEnd::Expired], end - 1)?),
    };
    let (attempts, max_attempts) = (small(reader)?, small(reader)?);
    let (enqueued_at, token) = (Millis(reader.varint()?), LeaseToken(reader.varint()?));
    let (worker, error) = (reader.bytes()?, reader.bytes()?);
    let headers = reader.bytes()?;
    let payload = Bytes::copy_from_slice(&reader.take(reader.remaining())?);
    let body = Body::new(&headers, &payload, enqueued_at);
    let mut job = Job::new(priority, u32::from(max_attempts), body.len(), state);
    (job.attempts, job.token, job.mark) = (attempts, token, Mark::IN_INDEX);
    let worker = Bytes::copy_from_slice(&worker);
    if let Some(end) = last_end {
        let error = Bytes::copy_from_slice(&error);
        let (began_at, ended_at) = (Millis(0), Millis(0));
        job.extra_mut().history.push(Attempt { began_at, ended_at, end, worker: worker.clone(), error });
    }
    let worker = if job.phase == JobPhase::Leased { worker } else { Bytes::new() };
    Ok(ReadJob { job, names: JobNames { worker, ..JobNames::default() }, body: Some(body) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::job::Backoff;

    fn job(state: JobState) -> Job {
        Job::new(5, 3, 6, state)
    }

    fn names() -> JobNames {
        JobNames { group: Bytes::from_static(b"g"), worker: Bytes::from_static(b"w1") }
    }

    #[test]
    fn a_job_is_small() {
        assert!(size_of::<Job>() <= 64, "{}", size_of::<Job>());
    }

    #[test]
    fn a_job_comes_back_from_the_index_as_it_was() {
        let mut first = job(JobState::Ready { since: Millis(7) });
        first.lease(LeaseToken(9), Millis(50), Millis(8), 4);
        first.end_lease(
            Millis(10),
            AttemptEnd::Nacked,
            Bytes::from_static(b"w1"),
            &Bytes::from_static(b"no"),
        );
        first.set_state(JobState::Delayed { ready_at: Millis(99) });
        first.request_cancel();
        first.watch();
        *first.extra_mut() = Extra {
            expires_at: Some(Millis(200)),
            retry: Some(RetryPolicy { backoff: Backoff::Fixed, initial_ms: 1, max_ms: 2, jitter_percent: 3 }),
            key: Some(Bytes::from_static(b"k")),
            progress: Bytes::from_static(b"half"),
            result: Bytes::from_static(b"r"),
            after: vec![JobId(4)],
            awaited: vec![Awaited { job: JobId(3), done: true, result: Bytes::from_static(b"x") }],
            ..first.extra().unwrap().clone()
        };
        let value = encode(&first, &names());
        let ReadJob { job: read, names: read_names, body } = decode(value.clone(), Millis(10)).unwrap();
        assert!(body.is_none() && read.cancel_requested() && !read.is_watched());
        assert_eq!(encode(&read, &read_names), value);
        assert_eq!(read.state(), JobState::Delayed { ready_at: Millis(99) });
        assert_eq!(
            decode(value.clone(), Millis(99)).unwrap().job.state(),
            JobState::Ready { since: Millis(99) }
        );
        let plain = encode(&job(JobState::Dead { since: Millis(7) }), &JobNames::default());
        assert_eq!(encode(&decode(plain.clone(), Millis(0)).unwrap().job, &JobNames::default()), plain);
        let at = |end: usize| decode(value.slice(..end), Millis(0)).is_err();
        let cut = (0..value.len()).filter(|end| !at(*end)).count();
        assert_eq!(cut, 1, "only where the extra would begin");
    }

    #[test]
    fn a_job_of_the_first_format_is_read() {
        let first: &[u8] = &[1, 0, 99, 5, 1, 1, 3, 7, 9, 1, b'w', 2, b'n', b'o', 2, b'h', b'h', b'p'];
        let ReadJob { job, names, body } = decode(Bytes::from_static(first), Millis(0)).unwrap();
        assert_eq!(job.state(), JobState::Delayed { ready_at: Millis(99) });
        assert_eq!((job.priority, job.attempts, job.max_attempts, job.token), (5, 1, 3, LeaseToken(9)));
        let attempt = job.last_attempt().unwrap();
        assert_eq!(
            (attempt.end, &attempt.worker[..], &attempt.error[..]),
            (AttemptEnd::Nacked, &b"w"[..], &b"no"[..])
        );
        let body = body.unwrap();
        assert_eq!(
            (&body.headers()[..], &body.payload()[..], body.enqueued_at),
            (&b"hh"[..], &b"p"[..], Millis(7))
        );
        assert!(names.worker.is_empty());
    }

    #[test]
    #[should_panic(expected = "leased twice")]
    fn a_leased_job_is_not_leased_again() {
        job(JobState::Leased { until: Millis(9) }).lease(LeaseToken(1), Millis(9), Millis(9), 0);
    }

    #[test]
    #[should_panic(expected = "a lease ended")]
    fn a_dead_job_ends_no_lease() {
        let mut job = job(JobState::Dead { since: Millis(9) });
        job.end_lease(Millis(9), AttemptEnd::Nacked, Bytes::new(), &Bytes::new());
    }
}
