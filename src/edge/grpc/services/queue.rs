//! `flowmesh.v1.Queue`, the unary calls.

use std::ops::Range;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use flowmesh_model::command::{LeaseRef, Nack, NewJob};
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_model::reply::LeasedJob;
use flowmesh_model::settings::within;
use flowmesh_model::{
    Batch, Command, JobId, Kind, LeaseToken, QueueCommand, Reject, Reply, ResourceInfo, ShardId,
};
use flowmesh_proto::v1;
use prost::Message;

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
    let (queue, jobs) = attempt!(responder, read_enqueue(message));
    with_resource(edge, Kind::Queue, queue, true, responder, move |edge, info, responder| {
        let command = Command::Queue(info.id, QueueCommand::Enqueue { jobs });
        dispatch(edge, queue_shard(edge, &info), command, responder, |reply, out| {
            let Reply::Enqueued(jobs) = reply else { return Err(wrong_reply()) };
            put(out, &v1::EnqueueResponse { job_ids: jobs.into_iter().map(JobId::get).collect() });
            Ok(())
        });
    })
}

fn read_enqueue(message: &Bytes) -> Result<(&str, Batch<NewJob>), Reject> {
    let mut fields = Fields::new(message);
    let (mut queue, mut jobs) = ("", Batch::new());
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(range)) => queue = fields.text("queue", range)?,
            (2, Value::Bytes(range)) => {
                jobs.push(read_job(message, &fields, range)?);
                check_items("jobs", jobs.len())?;
            }
            (1, _) => return Err(wrong_type("queue")),
            (2, _) => return Err(wrong_type("jobs")),
            _ => {}
        }
    }
    Ok((queue, jobs))
}

/// Reads a `NewJob`; its headers stay packed as they are.
fn read_job(message: &Bytes, fields: &Fields<'_>, range: Range<usize>) -> Result<NewJob, Reject> {
    let mut fields = fields.nested(range);
    let mut job = NewJob::default();
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
            _ => {}
        }
    }
    job.headers = headers.finish(message);
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
}

pub fn existing<B: Backend>(edge: &Edge<B>, queue: &str) -> Result<std::sync::Arc<ResourceInfo>, Reject> {
    edge.backend.find(Kind::Queue, queue).ok_or_else(|| missing(Kind::Queue, queue))
}

/// `Queue.Ack`
pub fn ack<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::AckRequest = attempt!(responder, decode(message));
    let leases = attempt!(responder, lease_refs(&request.leases));
    let info = attempt!(responder, existing(edge, &request.queue));
    let command = Command::Queue(info.id, QueueCommand::Ack { leases });
    dispatch(edge, queue_shard(edge, &info), command, responder, put_outcomes);
    None
}

/// `Queue.Nack`
pub fn nack<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::NackRequest = attempt!(responder, decode(message));
    let nacks = attempt!(responder, nacks(request.nacks));
    let info = attempt!(responder, existing(edge, &request.queue));
    let command = Command::Queue(info.id, QueueCommand::Nack { nacks });
    dispatch(edge, queue_shard(edge, &info), command, responder, put_outcomes);
    None
}

/// `Queue.Extend`
pub fn extend<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ExtendRequest = attempt!(responder, decode(message));
    let leases = attempt!(responder, lease_refs(&request.leases));
    let info = attempt!(responder, existing(edge, &request.queue));
    let visibility_timeout_ms = request.visibility_timeout_ms;
    let command = Command::Queue(info.id, QueueCommand::Extend { leases, visibility_timeout_ms });
    dispatch(edge, queue_shard(edge, &info), command, responder, |reply, out| {
        let Reply::Extended(outcomes) = reply else { return Err(wrong_reply()) };
        let outcomes = outcomes.into_iter().map(|outcome| match outcome {
            Ok(until) => v1::ExtendOutcome { leased_until_ms: until.get(), error: None },
            Err(reject) => v1::ExtendOutcome { leased_until_ms: 0, error: Some(item_error(&reject)) },
        });
        put(out, &v1::ExtendResponse { outcomes: outcomes.collect() });
        Ok(())
    });
    None
}

/// `Queue.Status`
pub fn status<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::QueueStatusRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.queue));
    let command = Command::Queue(info.id, QueueCommand::Status);
    dispatch(edge, queue_shard(edge, &info), command, responder, |reply, out| {
        let Reply::QueueStatus(status) = reply else { return Err(wrong_reply()) };
        let response = v1::QueueStatusResponse {
            ready: status.ready,
            delayed: status.delayed,
            leased: status.leased,
            dead: status.dead,
            done_total: status.done_total,
            enqueued_total: status.enqueued_total,
            oldest_ready_ms: status.oldest_ready_ms,
        };
        put(out, &response);
        Ok(())
    });
    None
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

/// Jobs given back, as commands have them.
pub fn nacks(nacks: Vec<v1::NackItem>) -> Result<Batch<Nack>, Reject> {
    check_items("nacks", nacks.len())?;
    let nack = |item: v1::NackItem| Nack {
        lease: lease_ref(item.job_id, item.token),
        delay_ms: item.delay_ms,
        error: item.error.into(),
    };
    Ok(nacks.into_iter().map(nack).collect())
}

fn lease_ref(job: u64, token: u64) -> LeaseRef {
    LeaseRef { job: JobId(job), token: LeaseToken(token) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::Millis;
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
        };
        let request = v1::EnqueueRequest { queue: "mail".into(), jobs: vec![job, v1::NewJob::default()] };
        let message = Bytes::from(request.encode_to_vec());
        let (queue, jobs) = read_enqueue(&message).unwrap();
        assert_eq!((queue, jobs.len()), ("mail", 2));
        assert_eq!((&jobs[0].payload[..], jobs[0].priority, jobs[0].delay_ms), (&b"work"[..], 255, 10));
        assert_eq!(jobs[0].max_attempts, Some(2));
        let first = &jobs[0].headers[2..2 + usize::from(jobs[0].headers[1])];
        assert_eq!(split_header(first).unwrap(), (&b"n"[..], &b"v"[..]));
        assert!(jobs[1].payload.is_empty() && jobs[1].headers.is_empty());
    }

    #[test]
    fn a_priority_above_a_byte_is_refused_by_name() {
        let job = v1::NewJob { priority: 256, ..Default::default() };
        let request = v1::EnqueueRequest { queue: "mail".into(), jobs: vec![job] };
        let refused = read_enqueue(&request.encode_to_vec().into()).unwrap_err();
        assert!(matches!(refused, Reject::InvalidArgument { field: "priority", .. }));
    }

    #[test]
    fn a_client_reads_leased_jobs_written_by_hand() {
        let header = v1::Header { name: "n".into(), value: Bytes::from_static(b"v") };
        let enqueued = v1::NewJob { headers: vec![header], ..Default::default() };
        let request = v1::EnqueueRequest { queue: "q".into(), jobs: vec![enqueued] };
        let message = Bytes::from(request.encode_to_vec());
        let (_, jobs) = read_enqueue(&message).unwrap();
        let job = LeasedJob {
            job: JobId(1),
            token: LeaseToken(300),
            attempt: 1,
            priority: 9,
            leased_until: Millis(1 << 40),
            enqueued_at: Millis(5),
            payload: Bytes::from_static(b"work"),
            headers: jobs[0].headers.clone(),
        };
        let mut out = BytesMut::new();
        put_leased_job(&mut out, &job);
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
            }]
        );
    }
}
