//! `flowmesh.v1.Queue`, the unary calls: here those of callers and workers, in [`manage`] what is done to jobs from outside,
//! in [`look`] what can be seen, in [`transfer`] how they go to other queues; [`trace`] is the trace context of jobs.

pub mod look;
pub mod manage;
mod trace;
pub mod transfer;

use std::ops::Range;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use flowmesh_model::command::{Ack, LeaseRef, Nack, NewJob};
use flowmesh_model::job::{Awaited, JobKey, JobOptions, JobRef, NackKind, RetryPolicy};
use flowmesh_model::limits::{BATCH_ITEMS_MAX, DELAY_MS_MAX};
use flowmesh_model::reply::{Extended, LeasedJob};
use flowmesh_model::settings::within;
use flowmesh_model::{
    Batch, Command, JobId, Kind, LeaseToken, Millis, QueueCommand, Reject, Reply, ResourceInfo, ShardId,
};
use flowmesh_proto::v1;
use prost::Message;

use super::admin_settings::{backoff, backoff_number};
use super::{attempt, check_items, check_wait, decode, dispatch, dispatch_waiting, put, with_resource};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::status::item_error;
use crate::edge::grpc::wire::{
    Fields, RawRepeated, Value, bytes_field_len, integer_len, put_bytes_field, put_integer, put_length,
    to_u32, wrong_type,
};

/// Where a queue is: all of it is its partition 0.
pub fn queue_shard<B: Backend>(edge: &Edge<B>, info: &ResourceInfo) -> ShardId {
    edge.backend.shard_of_partition(info, 0)
}

/// `Queue.Enqueue`
pub fn enqueue<B: Backend>(edge: &Rc<Edge<B>>, message: &Bytes, responder: Responder) -> Option<CallFuture> {
    let Enqueue { queue, jobs, wait_ms } = attempt!(responder, read_enqueue(message));
    attempt!(responder, check_wait(wait_ms));
    if wait_ms > 0
        && let Some(info) = edge.backend.find(Kind::Queue, queue)
    {
        let command = Command::Queue(info.id, QueueCommand::enqueue(jobs));
        return dispatch_waiting(edge, queue_shard(edge, &info), command, wait_ms, responder, put_enqueued);
    }
    with_resource(edge, Kind::Queue, queue, true, responder, move |edge, info, responder| {
        let command = Command::Queue(info.id, QueueCommand::enqueue(jobs));
        dispatch(edge, queue_shard(edge, &info), command, responder, put_enqueued);
    })
}

fn put_enqueued(reply: Reply, out: &mut BytesMut) -> Result<(), Reject> {
    let Reply::Enqueued(jobs) = reply else { return Err(wrong_reply()) };
    let existing = (0u32..).zip(&jobs).filter(|(_, job)| job.existing).map(|(place, _)| place).collect();
    put(out, &v1::EnqueueResponse { job_ids: jobs.iter().map(|job| job.job.get()).collect(), existing });
    Ok(())
}

/// An `EnqueueRequest`.
#[derive(Debug)]
struct Enqueue<'a> {
    queue: &'a str,
    jobs: Batch<NewJob>,
    wait_ms: u64,
}

fn read_enqueue(message: &Bytes) -> Result<Enqueue<'_>, Reject> {
    let mut fields = Fields::new(message);
    let (mut queue, mut jobs, mut wait_ms) = ("", Batch::new(), 0);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(range)) => queue = fields.text("queue", range)?,
            (2, Value::Bytes(range)) => {
                jobs.push(read_job(message, &fields, range)?);
                check_items("jobs", jobs.len())?;
            }
            (3, Value::Integer(value)) => wait_ms = value,
            (1, _) => return Err(wrong_type("queue")),
            (2, _) => return Err(wrong_type("jobs")),
            (3, _) => return Err(wrong_type("wait_ms")),
            _ => {}
        }
    }
    Ok(Enqueue { queue, jobs, wait_ms })
}

/// Reads a `NewJob`; its headers stay packed as they are.
fn read_job(message: &Bytes, fields: &Fields<'_>, range: Range<usize>) -> Result<NewJob, Reject> {
    let whole = fields.slice(range.clone());
    let mut fields = fields.nested(range);
    let (mut job, mut has_options, mut has_trace) = (NewJob::default(), false, false);
    let mut headers = RawRepeated::default();
    loop {
        let start = fields.position();
        let Some(field) = fields.next()? else { break };
        match field {
            (1, Value::Bytes(range)) => job.payload = fields.slice(range),
            (2, Value::Integer(value)) => job.priority = to_priority(value)?,
            (3, Value::Bytes(_)) => headers.push(message, start..fields.position()),
            (4, Value::Integer(value)) => job.delay_ms = value,
            (5, Value::Integer(value)) => job.max_attempts = Some(to_u32("max_attempts", value)?),
            (1, _) => return Err(wrong_type("payload")),
            (2, _) => return Err(wrong_type("priority")),
            (3, _) => return Err(wrong_type("headers")),
            (4, _) => return Err(wrong_type("delay_ms")),
            (5, _) => return Err(wrong_type("max_attempts")),
            // Most jobs have none of the rest: those that do are read once more, by the generated code.
            (6..=14, _) => has_options = true,
            (15 | 16, _) => has_trace = true,
            _ => {}
        }
    }
    job.headers = headers.finish(message);
    if has_trace {
        job.headers = trace::with_context(&job.headers, &decode(whole.clone())?)?;
    }
    if has_options {
        job.options = Some(Box::new(options(decode(whole)?)?));
    }
    Ok(job)
}

/// A job of a message that was read already.
pub fn new_job(job: &v1::NewJob) -> Result<NewJob, Reject> {
    let message = Bytes::from(job.encode_to_vec());
    read_job(&message, &Fields::new(&message), 0..message.len())
}

/// A job as a message.
pub fn job_message(job: &NewJob) -> v1::NewJob {
    // Packed headers are the field of the message as it is.
    let headers = v1::NewJob::decode(job.headers.clone()).map(|job| job.headers).unwrap_or_default();
    v1::NewJob {
        payload: job.payload.clone(),
        priority: job.priority.into(),
        headers,
        delay_ms: job.delay_ms,
        max_attempts: job.max_attempts,
        ..options_message(job.options.as_deref())
    }
}

fn options(message: v1::NewJob) -> Result<JobOptions, Reject> {
    let some = |number: u64| Some(number).filter(|number| *number > 0);
    let in_batch = message.after.into_iter().map(JobRef::InBatch);
    let key = Some(message.key).filter(|key| !key.is_empty());
    if key.is_none() && message.key_window_ms > 0 {
        return Err(Reject::invalid("key_window_ms", "is only for jobs with a key"));
    }
    Ok(JobOptions {
        run_at: some(message.run_at_ms).map(Millis),
        ttl_ms: some(message.ttl_ms),
        retry: message.retry.map(retry).transpose()?,
        key: key.map(|key| JobKey { key: key.into(), window_ms: some(message.key_window_ms) }),
        group: message.group.into(),
        after: in_batch.chain(message.after_jobs.into_iter().map(|job| JobRef::Job(JobId(job)))).collect(),
        after_any_end: message.after_any_end,
    })
}

fn retry(message: v1::RetryPolicy) -> Result<RetryPolicy, Reject> {
    let backoff = backoff(message.backoff)?;
    let max_ms = if message.max_ms == 0 { DELAY_MS_MAX } else { message.max_ms };
    let jitter_percent = u8::try_from(message.jitter_percent).unwrap_or(u8::MAX);
    Ok(RetryPolicy { backoff, initial_ms: message.initial_ms, max_ms, jitter_percent })
}

/// The same the other way round: what a job of a schedule may have.
fn options_message(options: Option<&JobOptions>) -> v1::NewJob {
    let Some(options) = options else { return v1::NewJob::default() };
    let retry = |retry: RetryPolicy| v1::RetryPolicy {
        backoff: backoff_number(retry.backoff),
        initial_ms: retry.initial_ms,
        max_ms: retry.max_ms,
        jitter_percent: retry.jitter_percent.into(),
    };
    v1::NewJob {
        ttl_ms: options.ttl_ms.unwrap_or(0),
        retry: options.retry.map(retry),
        group: String::from_utf8_lossy(&options.group).into_owned(),
        ..v1::NewJob::default()
    }
}

fn to_priority(value: u64) -> Result<u8, Reject> {
    u8::try_from(value).map_err(|_| Reject::invalid("priority", format!("is {value}; allowed: 0 to 255")))
}

/// `Queue.Reserve`
pub fn reserve<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ReserveRequest = attempt!(responder, decode(message));
    attempt!(responder, check_wait(request.wait_ms));
    attempt!(responder, within("max_jobs", request.max_jobs.into(), 0, BATCH_ITEMS_MAX as u64));
    let info = attempt!(responder, existing(edge, &request.queue));
    let command = QueueCommand::Reserve {
        jobs_max: request.max_jobs.max(1),
        visibility_timeout_ms: request.visibility_timeout_ms,
        worker: request.worker.into(),
        wait_until: None,
    };
    let to = queue_shard(edge, &info);
    let command = Command::Queue(info.id, command);
    dispatch_waiting(edge, to, command, request.wait_ms, responder, |reply, out| {
        let Reply::Reserved(jobs) = reply else { return Err(wrong_reply()) };
        for job in &jobs {
            put_leased_job(out, job);
        }
        Ok(())
    })
}

/// Writes a `LeasedJob` as field 1. Its packed headers are its field 3 as they are.
pub fn put_leased_job(out: &mut BytesMut, job: &LeasedJob) {
    put_length(out, 1, leased_job_len(job));
    put_integer(out, 1, job.job.get());
    put_integer(out, 2, job.token.get());
    out.extend_from_slice(&job.headers);
    put_bytes_field(out, 4, &job.payload);
    put_integer(out, 5, job.attempt.into());
    put_integer(out, 6, job.priority.into());
    put_integer(out, 7, job.leased_until.get());
    put_integer(out, 8, job.enqueued_at.get());
    put_bytes_field(out, 9, &job.group);
    for awaited in &job.awaited {
        let awaited = awaited_message(awaited);
        put_length(out, 10, awaited.encoded_len());
        put(out, &awaited);
    }
}

fn awaited_message(Awaited { job, done, result }: &Awaited) -> v1::AwaitedJob {
    v1::AwaitedJob { job_id: job.get(), done: *done, result: result.clone() }
}

/// Bytes of a `LeasedJob`.
pub fn leased_job_len(job: &LeasedJob) -> usize {
    integer_len(job.job.get())
        + integer_len(job.token.get())
        + job.headers.len()
        + bytes_field_len(job.payload.len())
        + integer_len(job.attempt.into())
        + integer_len(job.priority.into())
        + integer_len(job.leased_until.get())
        + integer_len(job.enqueued_at.get())
        + bytes_field_len(job.group.len())
        + job.awaited.iter().map(awaited_len).sum::<usize>()
}

fn awaited_len(awaited: &Awaited) -> usize {
    let len = awaited_message(awaited).encoded_len();
    1 + prost::length_delimiter_len(len) + len
}

pub fn existing<B: Backend>(edge: &Edge<B>, queue: &str) -> Result<std::sync::Arc<ResourceInfo>, Reject> {
    edge.backend.find(Kind::Queue, queue).ok_or_else(|| missing(Kind::Queue, queue))
}

/// `Queue.Ack`
pub fn ack<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::AckRequest = attempt!(responder, decode(message));
    let acks = attempt!(responder, acks(request.leases));
    ask(edge, &request.queue, QueueCommand::Ack { acks }, responder, put_outcomes)
}

/// `Queue.Nack`
pub fn nack<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::NackRequest = attempt!(responder, decode(message));
    let nacks = attempt!(responder, nacks(request.nacks));
    ask(edge, &request.queue, QueueCommand::Nack { nacks }, responder, put_outcomes)
}

/// `Queue.Extend`
pub fn extend<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ExtendRequest = attempt!(responder, decode(message));
    let leases = attempt!(responder, lease_refs(&request.leases));
    let visibility_timeout_ms = request.visibility_timeout_ms;
    let command = QueueCommand::Extend { leases, visibility_timeout_ms };
    ask(edge, &request.queue, command, responder, |reply, out| {
        let Reply::Extended(outcomes) = reply else { return Err(wrong_reply()) };
        let outcomes = outcomes.into_iter().map(|outcome| match outcome {
            Ok(Extended { until, cancel_requested }) => {
                v1::ExtendOutcome { leased_until_ms: until.get(), error: None, cancel_requested }
            }
            Err(reject) => {
                v1::ExtendOutcome { error: Some(item_error(&reject)), ..v1::ExtendOutcome::default() }
            }
        });
        put(out, &v1::ExtendResponse { outcomes: outcomes.collect() });
        Ok(())
    })
}

/// Hands a command to the queue's shard and answers with its reply, as `encode` puts it.
fn ask<B: Backend>(
    edge: &Rc<Edge<B>>,
    queue: &str,
    command: QueueCommand,
    responder: Responder,
    encode: impl FnOnce(Reply, &mut BytesMut) -> Result<(), Reject> + 'static,
) -> Option<CallFuture> {
    let info = attempt!(responder, existing(edge, queue));
    dispatch(edge, queue_shard(edge, &info), Command::Queue(info.id, command), responder, encode);
    None
}

/// Writes the answer of a call that says no more than that it was carried out.
fn put_nothing(reply: Reply, _: &mut BytesMut) -> Result<(), Reject> {
    let Reply::Settled(mut outcomes) = reply else { return Err(wrong_reply()) };
    outcomes.pop().unwrap_or_else(|| Err(wrong_reply()))
}

/// Writes an `AckResponse` or `NackResponse`, which are alike.
fn put_outcomes(reply: Reply, out: &mut BytesMut) -> Result<(), Reject> {
    let Reply::Settled(outcomes) = reply else { return Err(wrong_reply()) };
    for outcome in outcomes {
        match outcome {
            Ok(()) => put_length(out, 1, 0),
            Err(reject) => {
                let outcome = v1::Outcome { error: Some(item_error(&reject)) };
                put_length(out, 1, outcome.encoded_len());
                put(out, &outcome);
            }
        }
    }
    Ok(())
}

/// Leases as commands have them.
pub fn lease_refs(leases: &[v1::Lease]) -> Result<Batch<LeaseRef>, Reject> {
    check_items("leases", leases.len())?;
    Ok(leases.iter().map(|lease| lease_ref(lease.job_id, lease.token)).collect())
}

/// Jobs that are done, as commands have them.
pub fn acks(acks: Vec<v1::AckItem>) -> Result<Batch<Ack>, Reject> {
    check_items("leases", acks.len())?;
    let ack = |item: v1::AckItem| Ack { lease: lease_ref(item.job_id, item.token), result: item.result };
    Ok(acks.into_iter().map(ack).collect())
}

/// Jobs given back, as commands have them.
pub fn nacks(nacks: Vec<v1::NackItem>) -> Result<Batch<Nack>, Reject> {
    check_items("nacks", nacks.len())?;
    let nack = |item: v1::NackItem| {
        let kind = match v1::NackKind::try_from(item.kind) {
            Ok(v1::NackKind::NackFailed) => NackKind::Failed,
            Ok(v1::NackKind::NackFinal) => NackKind::Final,
            Ok(v1::NackKind::NackReleased) => NackKind::Released,
            Err(_) => return Err(Reject::invalid("kind", format!("{} is none", item.kind))),
        };
        let lease = lease_ref(item.job_id, item.token);
        Ok(Nack { lease, kind, delay_ms: item.delay_ms, error: item.error.into() })
    };
    nacks.into_iter().map(nack).collect()
}

/// A lease as commands have it.
pub fn lease_ref(job: u64, token: u64) -> LeaseRef {
    LeaseRef { job: JobId(job), token: LeaseToken(token) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::record::split_header;

    #[test]
    fn jobs_are_read_with_their_headers_as_they_came() {
        let header = v1::Header { name: "n".into(), value: Bytes::from_static(b"v") };
        let job = v1::NewJob {
            payload: Bytes::from_static(b"work"),
            priority: 255,
            headers: vec![header.clone(), header],
            delay_ms: 10,
            max_attempts: Some(2),
            ..v1::NewJob::default()
        };
        let request =
            v1::EnqueueRequest { queue: "mail".into(), jobs: vec![job, v1::NewJob::default()], wait_ms: 7 };
        let message = Bytes::from(request.encode_to_vec());
        let Enqueue { queue, jobs, wait_ms } = read_enqueue(&message).unwrap();
        assert_eq!((queue, jobs.len(), wait_ms), ("mail", 2, 7));
        assert!(jobs[0].options.is_none());
        assert_eq!((&jobs[0].payload[..], jobs[0].priority, jobs[0].delay_ms), (&b"work"[..], 255, 10));
        assert_eq!(jobs[0].max_attempts, Some(2));
        let first = &jobs[0].headers[2..2 + usize::from(jobs[0].headers[1])];
        assert_eq!(split_header(first).unwrap(), (&b"n"[..], &b"v"[..]));
        assert!(jobs[1].payload.is_empty() && jobs[1].headers.is_empty());
    }

    #[test]
    fn a_priority_above_a_byte_is_refused_by_name() {
        let job = v1::NewJob { priority: 256, ..Default::default() };
        let request = v1::EnqueueRequest { queue: "mail".into(), jobs: vec![job], wait_ms: 0 };
        let refused = read_enqueue(&request.encode_to_vec().into()).unwrap_err();
        assert!(matches!(refused, Reject::InvalidArgument { field: "priority", .. }));
    }

    #[test]
    fn a_client_reads_leased_jobs_written_by_hand() {
        let header = v1::Header { name: "n".into(), value: Bytes::from_static(b"v") };
        let enqueued = v1::NewJob { headers: vec![header], ..Default::default() };
        let request = v1::EnqueueRequest { queue: "q".into(), jobs: vec![enqueued], wait_ms: 0 };
        let message = Bytes::from(request.encode_to_vec());
        let jobs = read_enqueue(&message).unwrap().jobs;
        let job = LeasedJob {
            job: JobId(1),
            token: LeaseToken(300),
            attempt: 1,
            priority: 9,
            leased_until: Millis(1 << 40),
            enqueued_at: Millis(5),
            payload: Bytes::from_static(b"work"),
            headers: jobs[0].headers.clone(),
            group: Bytes::from_static(b"g"),
            awaited: vec![Awaited { job: JobId(300), done: true, result: Bytes::from_static(b"r") }],
        };
        let mut out = BytesMut::new();
        put_leased_job(&mut out, &job);
        assert_eq!(out.len(), leased_job_len(&job) + 2, "a tag and a length before it");
        let read = v1::ReserveResponse::decode(out.freeze()).unwrap();
        assert_eq!(
            read.jobs,
            [v1::LeasedJob {
                job_id: 1,
                token: 300,
                headers: vec![v1::Header { name: "n".into(), value: Bytes::from_static(b"v") }],
                payload: Bytes::from_static(b"work"),
                attempt: 1,
                priority: 9,
                leased_until_ms: 1 << 40,
                enqueued_at_ms: 5,
                group: "g".into(),
                awaited: vec![v1::AwaitedJob { job_id: 300, done: true, result: Bytes::from_static(b"r") }],
            }]
        );
    }
}
