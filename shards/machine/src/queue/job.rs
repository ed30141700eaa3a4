//! One job and its life:
//!
//! ```text
//!      JobEnqueued, JobReturned                      JobEnqueued, JobReturned
//!          (ready_at > time)                            (ready_at <= time)
//!                 │                                             │
//!                 ▼               the time comes                ▼
//!             delayed ─────────────────────────────────────► ready
//!                 │                                             │
//!                 │ JobLeased, once its time has come           │ JobLeased
//!                 └────────────────────┬────────────────────────┘
//!                                      ▼
//!                                   leased ◄──► LeaseExtended
//!                                      │
//!         ┌────────────────────────────┼────────────────────────────┐
//!         ▼ JobDone                    ▼ JobReturned                ▼ JobDied
//!        gone                   delayed or ready                  dead
//! ```
//!
//! `delayed` and `ready` differ only by the time it is: no fact leads from one to the other. A delayed job may be leased
//! as soon as its time has come, whether or not a tick has moved it.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{COPY_BELOW_BYTES, Malformed, put_bytes, put_varint};
use flowmesh_model::fact::ReturnCause;
use flowmesh_model::{LeaseToken, Millis};

use crate::changes::Mark;
use crate::keys;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobState {
    /// To be had from then on.
    Delayed { ready_at: Millis },
    /// To be had since then.
    Ready { since: Millis },
    /// With a worker until then.
    Leased { until: Millis },
    /// Out of attempts since then, kept.
    Dead { since: Millis },
}

impl JobState {
    /// To be had from `ready_at` on, seen at `now`.
    pub fn waiting(ready_at: Millis, now: Millis) -> Self {
        if ready_at <= now { Self::Ready { since: ready_at } } else { Self::Delayed { ready_at } }
    }
}

/// A job.
#[derive(Debug)]
pub(crate) struct Job {
    /// Headers, then payload: one piece of memory.
    body: Bytes,
    headers_bytes: u32,
    pub priority: u8,
    /// How its last lease ended, if one has.
    pub last_end: Option<ReturnCause>,
    pub attempts: u32,
    pub max_attempts: u32,
    pub enqueued_at: Millis,
    /// The token of its last lease, 0 before the first.
    pub token: LeaseToken,
    pub state: JobState,
    /// Who had it last.
    pub worker: Bytes,
    /// What went wrong last.
    error: Option<Box<Bytes>>,
    pub mark: Mark,
}

impl Job {
    pub fn new(
        headers: &Bytes,
        payload: &Bytes,
        priority: u8,
        max_attempts: u32,
        enqueued_at: Millis,
        state: JobState,
    ) -> Self {
        Self {
            body: join(headers, payload),
            headers_bytes: headers.len() as u32,
            priority,
            last_end: None,
            attempts: 0,
            max_attempts,
            enqueued_at,
            token: LeaseToken(0),
            state,
            worker: Bytes::new(),
            error: None,
            mark: Mark::new(false),
        }
    }

    pub fn headers(&self) -> Bytes {
        if self.headers_bytes == 0 { Bytes::new() } else { self.body.slice(..self.headers_bytes as usize) }
    }

    pub fn payload(&self) -> Bytes {
        if self.headers_bytes == 0 {
            self.body.clone()
        } else {
            self.body.slice(self.headers_bytes as usize..)
        }
    }

    /// Bytes of headers and payload.
    pub fn body_bytes(&self) -> usize {
        self.body.len()
    }

    /// What went wrong last; empty if nothing did.
    pub fn error(&self) -> &[u8] {
        self.error.as_deref().map_or(&[], Bytes::as_ref)
    }

    /// What it takes in memory, besides what every job takes.
    pub fn extra_bytes(&self) -> u64 {
        (self.body.len() + self.error.as_ref().map_or(0, |error| error.len() + size_of::<Bytes>())) as u64
    }

    /// `JobLeased`.
    pub fn lease(&mut self, token: LeaseToken, until: Millis, now: Millis, worker: Bytes) {
        match self.state {
            JobState::Ready { .. } => {}
            JobState::Delayed { ready_at } => assert!(ready_at <= now, "a job was leased before its time"),
            JobState::Leased { .. } => panic!("a job was leased twice"),
            JobState::Dead { .. } => panic!("a dead job was leased"),
        }
        assert!(token > self.token, "a lease's token is above all before it");
        self.token = token;
        self.attempts += 1;
        self.worker = worker;
        self.state = JobState::Leased { until };
    }

    /// `LeaseExtended`.
    pub fn extend(&mut self, until: Millis) {
        self.assert_leased();
        self.state = JobState::Leased { until };
    }

    /// `JobReturned`.
    pub fn give_back(&mut self, ready_at: Millis, now: Millis, cause: ReturnCause, error: &Bytes) {
        self.assert_leased();
        self.note_end(cause, error);
        self.state = JobState::waiting(ready_at, now);
    }

    /// `JobDied`.
    pub fn die(&mut self, now: Millis, cause: ReturnCause, error: &Bytes) {
        self.assert_leased();
        self.note_end(cause, error);
        self.state = JobState::Dead { since: now };
    }

    /// Refuses every state a lease cannot end in, for `JobDone` too.
    pub fn assert_leased(&self) {
        match self.state {
            JobState::Leased { .. } => {}
            JobState::Delayed { .. } | JobState::Ready { .. } | JobState::Dead { .. } => {
                panic!("a lease ended that there was not")
            }
        }
    }

    fn note_end(&mut self, cause: ReturnCause, error: &Bytes) {
        self.last_end = Some(cause);
        if !error.is_empty() {
            self.error = Some(Box::new(flowmesh_model::codec::detached(error)));
        }
    }
}

fn join(headers: &Bytes, payload: &Bytes) -> Bytes {
    let bytes = headers.len() + payload.len();
    if headers.is_empty() && bytes >= COPY_BELOW_BYTES {
        return payload.clone();
    }
    let mut body = Vec::with_capacity(bytes);
    body.extend_from_slice(headers);
    body.extend_from_slice(payload);
    body.into()
}

const WAITING: u8 = 0;
const LEASED: u8 = 1;
const DEAD: u8 = 2;

/// The job in the index.
///
/// | field | size | meaning |
/// |---|---|---|
/// | format | 1 | 1 |
/// | state | 1 | 0 waiting, 1 leased, 2 dead |
/// | moment | varint | ready at; leased until; dead since |
/// | priority | 1 | higher is sooner |
/// | last end | 1 | 0 no lease has ended yet, 1 nacked, 2 expired |
/// | attempts, max attempts | varint each | |
/// | enqueued at | varint | ms |
/// | token | varint | of the last lease, 0 before the first |
/// | worker, error | varint length + bytes each | |
/// | headers | varint length + bytes | packed |
/// | payload | the rest | |
pub(crate) fn encode(job: &Job) -> Bytes {
    let (state, moment) = match job.state {
        JobState::Delayed { ready_at: moment } | JobState::Ready { since: moment } => (WAITING, moment),
        JobState::Leased { until } => (LEASED, until),
        JobState::Dead { since } => (DEAD, since),
    };
    let mut out = BytesMut::with_capacity(64 + job.worker.len() + job.error().len() + job.body.len());
    out.put_u8(keys::FORMAT);
    out.put_u8(state);
    put_varint(&mut out, moment.0);
    out.put_u8(job.priority);
    out.put_u8(job.last_end.map_or(0, |cause| cause.to_byte() + 1));
    put_varint(&mut out, u64::from(job.attempts));
    put_varint(&mut out, u64::from(job.max_attempts));
    put_varint(&mut out, job.enqueued_at.0);
    put_varint(&mut out, job.token.0);
    put_bytes(&mut out, &job.worker);
    put_bytes(&mut out, job.error());
    put_varint(&mut out, u64::from(job.headers_bytes));
    out.put_slice(&job.body);
    out.freeze()
}

/// Reads what [`encode`] wrote, seen at `now`.
pub(crate) fn decode(value: Bytes, now: Millis) -> Result<Job, Malformed> {
    let mut reader = keys::open(value)?;
    let (state, moment) = (reader.byte()?, Millis(reader.varint()?));
    let state = match state {
        WAITING => JobState::waiting(moment, now),
        LEASED => JobState::Leased { until: moment },
        DEAD => JobState::Dead { since: moment },
        _ => return Err(Malformed("unknown state of a job")),
    };
    let priority = reader.byte()?;
    let last_end = match reader.byte()? {
        0 => None,
        cause => Some(ReturnCause::from_byte(cause - 1)?),
    };
    let (attempts, max_attempts) = (reader.varint_u32()?, reader.varint_u32()?);
    let (enqueued_at, token) = (Millis(reader.varint()?), LeaseToken(reader.varint()?));
    let (worker, error) = (reader.bytes()?, reader.bytes()?);
    let headers = reader.bytes()?;
    let mut payload = reader.take(reader.remaining())?;
    if headers.is_empty() && payload.len() >= COPY_BELOW_BYTES {
        // It would keep the piece of the index alive that it was read with.
        payload = Bytes::copy_from_slice(&payload);
    }
    let mut job = Job::new(&headers, &payload, priority, max_attempts, enqueued_at, state);
    job.last_end = last_end;
    job.attempts = attempts;
    job.token = token;
    job.worker = Bytes::copy_from_slice(&worker);
    job.error = (!error.is_empty()).then(|| Box::new(Bytes::copy_from_slice(&error)));
    job.mark = Mark::IN_INDEX;
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: JobState) -> Job {
        Job::new(&Bytes::from_static(b"hh"), &Bytes::from_static(b"work"), 5, 3, Millis(7), state)
    }

    #[test]
    fn a_job_comes_back_from_the_index_as_it_was() {
        let mut first = job(JobState::Ready { since: Millis(7) });
        first.lease(LeaseToken(9), Millis(50), Millis(8), Bytes::from_static(b"w1"));
        first.give_back(Millis(99), Millis(10), ReturnCause::Nacked, &Bytes::from_static(b"no"));
        let read = decode(encode(&first), Millis(10)).unwrap();
        assert_eq!(encode(&read), encode(&first));
        assert_eq!(read.state, JobState::Delayed { ready_at: Millis(99) });
        assert_eq!((read.headers(), read.payload()), (first.headers(), first.payload()));
        assert_eq!((read.error(), read.last_end), (&b"no"[..], Some(ReturnCause::Nacked)));
        assert_eq!(decode(encode(&first), Millis(99)).unwrap().state, JobState::Ready { since: Millis(99) });
    }

    #[test]
    fn cut_values_are_refused() {
        let value = encode(&job(JobState::Dead { since: Millis(7) }));
        for end in 0..value.len() - 6 {
            assert!(decode(value.slice(..end), Millis(0)).is_err(), "cut at {end}");
        }
    }

    #[test]
    #[should_panic(expected = "leased twice")]
    fn a_leased_job_is_not_leased_again() {
        job(JobState::Leased { until: Millis(9) }).lease(LeaseToken(1), Millis(9), Millis(9), Bytes::new());
    }

    #[test]
    #[should_panic(expected = "a lease ended")]
    fn a_dead_job_does_not_die_again() {
        job(JobState::Dead { since: Millis(9) }).die(Millis(9), ReturnCause::Nacked, &Bytes::new());
    }
}
