//! `flowmesh.v1.Queue`: what is done to jobs from outside.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use flowmesh_model::job::{JobCursor, JobFilter, JobPhase, Which};
use flowmesh_model::reply::Cancelled;
use flowmesh_model::{Batch, JobId, Millis, QueueCommand, Reject, Reply, TransferCommand};
use flowmesh_proto::v1;

use super::super::{attempt, check_items, decode, put};
use super::{ask, existing, lease_ref, put_nothing, to_priority};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::status::item_error;

/// `Queue.Progress`
pub fn progress<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ProgressRequest = attempt!(responder, decode(message));
    let lease = lease_ref(request.job_id, request.token);
    let command = QueueCommand::Progress { lease, progress: request.progress };
    ask(edge, &request.queue, command, responder, put_nothing)
}

/// `Queue.Cancel`
pub fn cancel<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::CancelJobsRequest = attempt!(responder, decode(message));
    let jobs = attempt!(responder, jobs(&request.job_ids));
    ask(edge, &request.queue, QueueCommand::Cancel { jobs }, responder, |reply, out| {
        let Reply::Cancelled(outcomes) = reply else { return Err(wrong_reply()) };
        let outcomes = outcomes.into_iter().map(|outcome| match outcome {
            Ok(cancelled) => v1::CancelOutcome { requested: cancelled == Cancelled::Requested, error: None },
            Err(reject) => v1::CancelOutcome { requested: false, error: Some(item_error(&reject)) },
        });
        put(out, &v1::CancelJobsResponse { outcomes: outcomes.collect() });
        Ok(())
    })
}

/// `Queue.Change`
pub fn change<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ChangeJobRequest = attempt!(responder, decode(message));
    let priority = attempt!(responder, request.priority.map(|it| to_priority(it.into())).transpose());
    let ready_at = request.run_at_ms.map(Millis);
    let command = QueueCommand::Change { job: JobId(request.job_id), priority, ready_at };
    ask(edge, &request.queue, command, responder, put_nothing)
}

/// `Queue.Redrive`
pub fn redrive<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::RedriveRequest = attempt!(responder, decode(message));
    let which = attempt!(responder, which(&request.job_ids, request.filter, request.after));
    let per_second = Some(request.per_second).filter(|rate| *rate > 0);
    let delay_ms = request.delay_ms;
    let command = if request.to_queue.is_empty() {
        QueueCommand::Redrive { which, per_second, delay_ms }
    } else {
        let to = attempt!(responder, existing(edge, &request.to_queue)).id;
        QueueCommand::Transfer(TransferCommand::Move { which, to, per_second, delay_ms })
    };
    ask(edge, &request.queue, command, responder, put_swept)
}

/// `Queue.Purge`
pub fn purge<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::PurgeRequest = attempt!(responder, decode(message));
    let which = attempt!(responder, which(&request.job_ids, request.filter, request.after));
    let phase = attempt!(responder, phase(request.phase)).unwrap_or(JobPhase::Dead);
    ask(edge, &request.queue, QueueCommand::Purge { which, phase }, responder, put_swept)
}

/// `Queue.Pause` and `Queue.Resume`
pub fn pause<B: Backend>(
    edge: &Rc<Edge<B>>,
    paused: bool,
    message: Bytes,
    responder: Responder,
) -> Option<CallFuture> {
    let request: v1::PauseQueueRequest = attempt!(responder, decode(message));
    ask(edge, &request.queue, QueueCommand::Pause(paused), responder, put_nothing)
}

#[expect(clippy::needless_pass_by_value, reason = "what answers are made of is passed by value")]
pub(super) fn put_swept(reply: Reply, out: &mut BytesMut) -> Result<(), Reject> {
    let Reply::Swept { count, next } = reply else { return Err(wrong_reply()) };
    put(out, &v1::SweepResponse { jobs: count, next: next.map(cursor_message) });
    Ok(())
}

fn jobs(numbers: &[u64]) -> Result<Batch<JobId>, Reject> {
    check_items("job_ids", numbers.len())?;
    Ok(numbers.iter().copied().map(JobId).collect())
}

pub(super) fn which(
    numbers: &[u64],
    filter: Option<v1::JobFilter>,
    after: Option<v1::JobCursor>,
) -> Result<Which, Reject> {
    if numbers.is_empty() {
        return Ok(Which::Matching(self::filter(filter), cursor(after)));
    }
    if filter.is_some() {
        return Err(Reject::invalid("filter", "goes without job_ids; give one of them"));
    }
    jobs(numbers).map(Which::Jobs)
}

/// A filter as commands have it.
pub fn filter(message: Option<v1::JobFilter>) -> JobFilter {
    let Some(v1::JobFilter { error, header, since_ms, before_ms, group }) = message else {
        return JobFilter::default();
    };
    let time = |ms: u64| Some(Millis(ms)).filter(|at| at.0 > 0);
    JobFilter {
        error: error.into(),
        header: header.map(|header| (header.name.into(), header.value)),
        since: time(since_ms),
        before: time(before_ms),
        group: group.into(),
    }
}

/// A place as commands have it.
pub fn cursor(message: Option<v1::JobCursor>) -> JobCursor {
    message.map_or_else(JobCursor::default, |v1::JobCursor { moment_ms, job_id }| JobCursor {
        moment: Millis(moment_ms),
        job: JobId(job_id),
    })
}

/// A place as a message has it.
pub fn cursor_message(cursor: JobCursor) -> v1::JobCursor {
    v1::JobCursor { moment_ms: cursor.moment.get(), job_id: cursor.job.get() }
}

/// The phase a message gives, `None` if it gives none.
pub fn phase(number: i32) -> Result<Option<JobPhase>, Reject> {
    match v1::JobPhase::try_from(number) {
        Ok(v1::JobPhase::Unspecified) => Ok(None),
        Ok(v1::JobPhase::Ready) => Ok(Some(JobPhase::Ready)),
        Ok(v1::JobPhase::Delayed) => Ok(Some(JobPhase::Delayed)),
        Ok(v1::JobPhase::Leased) => Ok(Some(JobPhase::Leased)),
        Ok(v1::JobPhase::Blocked) => Ok(Some(JobPhase::Blocked)),
        Ok(v1::JobPhase::Dead) => Ok(Some(JobPhase::Dead)),
        Ok(v1::JobPhase::Done) => Ok(Some(JobPhase::Done)),
        Err(_) => Err(Reject::invalid("phase", format!("{number} is none"))),
    }
}
