//! `flowmesh.v1.Queue`: what can be seen of a queue.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use flowmesh_model::job::{Attempt, JobPhase, JobView};
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_model::reply::{LastMinute, Percentiles};
use flowmesh_model::settings::within;
use flowmesh_model::{Command, JobId, Millis, QueueCommand, Reject, Reply};
use flowmesh_proto::v1;
use prost::Message;

use super::super::{attempt, check_wait, decode, dispatch_waiting, put};
use super::manage::{cursor, cursor_message, filter, phase};
use super::{ask, existing, queue_shard};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::wire::put_length;

/// Jobs of a page where a request does not say how many.
const PAGE_JOBS: u32 = 100;

/// `Queue.Get`
pub fn get<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::GetJobRequest = attempt!(responder, decode(message));
    attempt!(responder, check_wait(request.wait_ms));
    let info = attempt!(responder, existing(edge, &request.queue));
    let get = QueueCommand::Get { job: JobId(request.job_id), wait_until: None };
    let (to, command) = (queue_shard(edge, &info), Command::Queue(info.id, get));
    dispatch_waiting(edge, to, command, request.wait_ms, responder, |reply, out| {
        let Reply::Job(job) = reply else { return Err(wrong_reply()) };
        put(out, &job_message(&job));
        Ok(())
    })
}

/// `Queue.Peek`
pub fn peek<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::PeekRequest = attempt!(responder, decode(message));
    attempt!(responder, within("max_jobs", request.max_jobs.into(), 0, BATCH_ITEMS_MAX as u64));
    let command = QueueCommand::Peek { jobs_max: request.max_jobs.max(1) };
    ask(edge, &request.queue, command, responder, put_jobs)
}

/// `Queue.List`
pub fn list<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ListJobsRequest = attempt!(responder, decode(message));
    attempt!(responder, within("max_jobs", request.max_jobs.into(), 0, BATCH_ITEMS_MAX as u64));
    let command = QueueCommand::List {
        phase: attempt!(responder, phase(request.phase)),
        filter: filter(request.filter),
        after: cursor(request.after),
        jobs_max: if request.max_jobs == 0 { PAGE_JOBS } else { request.max_jobs },
        with_bodies: !request.without_bodies,
    };
    ask(edge, &request.queue, command, responder, put_jobs)
}

fn put_jobs(reply: Reply, out: &mut BytesMut) -> Result<(), Reject> {
    let Reply::Jobs { jobs, next } = reply else { return Err(wrong_reply()) };
    for job in &jobs {
        let job = job_message(job);
        put_length(out, 1, job.encoded_len());
        put(out, &job);
    }
    put(out, &v1::ListJobsResponse { jobs: Vec::new(), next: next.map(cursor_message) });
    Ok(())
}

fn job_message(job: &JobView) -> v1::Job {
    v1::Job {
        job_id: job.job.get(),
        phase: phase_number(job.phase),
        moment_ms: job.moment.get(),
        priority: job.priority.into(),
        attempts: job.attempts,
        max_attempts: job.max_attempts,
        enqueued_at_ms: job.enqueued_at.get(),
        expires_at_ms: job.expires_at.map_or(0, Millis::get),
        token: job.token.get(),
        worker: text(&job.worker),
        leased_at_ms: job.leased_at.map_or(0, Millis::get),
        group: text(&job.group),
        key: job.key.as_ref().map_or_else(String::new, text),
        progress: job.progress.clone(),
        result: job.result.clone(),
        cancel_requested: job.cancel_requested,
        waits_for: job.waits_for.iter().copied().map(JobId::get).collect(),
        history: job.history.iter().map(attempt_message).collect(),
        headers: headers(&job.headers),
        payload: job.payload.clone(),
    }
}

fn attempt_message(attempt: &Attempt) -> v1::JobAttempt {
    v1::JobAttempt {
        began_at_ms: attempt.began_at.get(),
        ended_at_ms: attempt.ended_at.get(),
        end: attempt.end.as_str().to_owned(),
        worker: text(&attempt.worker),
        error: text(&attempt.error),
    }
}

/// What came as text is text.
pub fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn headers(packed: &Bytes) -> Vec<v1::Header> {
    // Field 3 of a `NewJob`, as which they came, is field 3 of a `LeasedJob`, too.
    v1::LeasedJob::decode(packed.clone()).map(|job| job.headers).unwrap_or_default()
}

fn phase_number(phase: JobPhase) -> i32 {
    match phase {
        JobPhase::Ready => v1::JobPhase::Ready.into(),
        JobPhase::Delayed => v1::JobPhase::Delayed.into(),
        JobPhase::Leased => v1::JobPhase::Leased.into(),
        JobPhase::Blocked => v1::JobPhase::Blocked.into(),
        JobPhase::Dead => v1::JobPhase::Dead.into(),
        JobPhase::Done => v1::JobPhase::Done.into(),
    }
}

fn rates(LastMinute { enqueued, done, retried, died }: LastMinute) -> v1::JobRates {
    let per_second = |count: u64| count as f64 / 60.0;
    v1::JobRates {
        enqueued: per_second(enqueued),
        done: per_second(done),
        retried: per_second(retried),
        died: per_second(died),
    }
}

fn percentiles(Percentiles { count, p50, p95, p99, max }: Percentiles) -> v1::Percentiles {
    v1::Percentiles { count, p50, p95, p99, max }
}

/// `Queue.Status`
pub fn status<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::QueueStatusRequest = attempt!(responder, decode(message));
    ask(edge, &request.queue, QueueCommand::Status, responder, |reply, out| {
        let Reply::QueueStatus(status, activity) = reply else { return Err(wrong_reply()) };
        let response = v1::QueueStatusResponse {
            ready: status.ready,
            delayed: status.delayed,
            leased: status.leased,
            dead: status.dead,
            done_total: status.done_total,
            enqueued_total: status.enqueued_total,
            oldest_ready_ms: status.oldest_ready_ms,
            blocked: status.blocked,
            done: status.done,
            retried_total: status.retried_total,
            died_total: status.died_total,
            expired_total: status.expired_total,
            cancelled_total: status.cancelled_total,
            dropped_total: status.dropped_total,
            purged_total: status.purged_total,
            waiting_bytes: status.waiting_bytes,
            paused: status.paused,
            rates: Some(rates(activity.last_minute)),
            wait_ms: Some(percentiles(activity.wait_ms)),
            run_ms: Some(percentiles(activity.run_ms)),
            moved_total: status.moved_total,
            copied_total: status.copied_total,
            send_failed_total: status.send_failed_total,
            outbox: status.outbox,
        };
        put(out, &response);
        Ok(())
    })
}
