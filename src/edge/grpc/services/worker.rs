//! `flowmesh.v1.Worker`: a worker is on the shard of its name; what it works on is asked of its queues, each on its own.

use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::group::Name;
use flowmesh_model::job::JobCursor;
use flowmesh_model::limits::{
    REPLY_BYTES_MAX, WORKER_JOBS_SHOWN_MAX, WORKER_RETENTION_MS, WORKER_SESSION_MS,
};
use flowmesh_model::settings::within;
use flowmesh_model::worker::{
    Registration, RunningJob, WorkerFilter, WorkerOnQueue, WorkerState, WorkerStatus,
};
use flowmesh_model::{
    Command, Kind, Lsn, Millis, QueueCommand, Reject, Reply, ResourcePath, ShardId, WorkerCommand,
    WorkerPath, WorkerReply,
};
use flowmesh_proto::v1;
use futures::StreamExt;

use super::admin::{PAGE_DEFAULT, PAGE_MAX};
use super::group::answer_later;
use super::group::offsets::ASKED_AT_ONCE;
use super::queue::{existing, queue_shard};
use super::stream::or_default;
use super::{attempt, decode};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::status::item_error;

/// Jobs of each queue that `Describe` shows if it is not said how many.
const JOBS_DEFAULT: u32 = 100;

/// What stands around a worker in a page, about; and what one page has of them: a client takes messages of 4 MiB.
const STATUS_BYTES: usize = 512;
const PAGE_BYTES_MAX: usize = REPLY_BYTES_MAX / 4;

/// Carries out a command on one worker.
async fn ask<B: Backend>(
    edge: &Edge<B>,
    path: &WorkerPath,
    command: WorkerCommand,
) -> Result<WorkerStatus, Reject> {
    match edge.backend.call(edge.backend.shard_of_worker(path), Command::Worker(command)).await? {
        Reply::Worker(WorkerReply::Status(status, _)) => Ok(*status),
        _ => Err(wrong_reply()),
    }
}

/// `Worker.Register`
pub fn register<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::RegisterWorkerRequest = attempt!(responder, decode(message));
    let path = attempt!(responder, WorkerPath::parse(&request.worker));
    let registration = Box::new(attempt!(responder, registration(request)));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let command = WorkerCommand::Register { path: path.clone(), registration };
        let status = ask(&edge, &path, command).await?;
        Ok(v1::RegisterWorkerResponse {
            epoch: status.epoch.get(),
            heartbeat_interval_ms: status.registration.heartbeat_interval_ms(),
            session_timeout_ms: status.registration.session_timeout_ms,
            worker: path.to_string(),
        })
    }))
}

fn registration(request: v1::RegisterWorkerRequest) -> Result<Registration, Reject> {
    let queues = request.queues.iter().map(|queue| queue_path(queue)).collect::<Result<_, Reject>>()?;
    let labels = request.labels.into_iter().map(|label| (label.name.into(), label.value.into()));
    Ok(Registration {
        queues,
        concurrency: or_default(request.concurrency, 1),
        host: request.host.into(),
        process_id: request.process_id,
        labels: labels.collect(),
        session_timeout_ms: request.session_timeout_ms.unwrap_or(WORKER_SESSION_MS),
        retention_ms: request.retention_ms.unwrap_or(WORKER_RETENTION_MS),
    })
}

/// A queue's full path, whether it is there or not.
fn queue_path(queue: &str) -> Result<Name, Reject> {
    Ok(Name::from(ResourcePath::parse(Kind::Queue, queue)?.as_str()))
}

/// `Worker.Heartbeat`
pub fn heartbeat<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::WorkerHeartbeatRequest = attempt!(responder, decode(message));
    let path = attempt!(responder, WorkerPath::parse(&request.worker));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let command = WorkerCommand::Heartbeat { path: path.clone(), epoch: Lsn(request.epoch) };
        let status = ask(&edge, &path, command).await?;
        let asked = if request.without_queues { &[][..] } else { &status.registration.queues };
        let queues = asked.iter().map(|queue| {
            let (edge, path) = (&edge, &path);
            async move {
                // One that does not answer says nothing of its state.
                let state = match on_queue(edge, path, queue, 0).await {
                    Ok(seen) => queue_state(seen.as_ref()),
                    Err(_) => v1::WorkerQueueState::Unspecified,
                };
                v1::WorkerQueue { queue: queue.as_ref().to_owned(), state: state.into() }
            }
        });
        Ok(v1::WorkerHeartbeatResponse {
            stop: status.state == WorkerState::Stopping,
            heartbeat_interval_ms: status.registration.heartbeat_interval_ms(),
            queues: futures::stream::iter(queues).buffered(ASKED_AT_ONCE).collect().await,
        })
    }))
}

/// `Worker.Leave`
pub fn leave<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::LeaveWorkerRequest = attempt!(responder, decode(message));
    let path = attempt!(responder, WorkerPath::parse(&request.worker));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let command = WorkerCommand::Leave { path: path.clone(), epoch: Lsn(request.epoch) };
        ask(&edge, &path, command).await.map(|_| v1::LeaveWorkerResponse {})
    }))
}

/// `Worker.Stop`
pub fn stop<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::StopWorkerRequest = attempt!(responder, decode(message));
    act(edge, &request.worker, responder, WorkerCommand::Stop)
}

/// `Worker.Forget`
pub fn forget<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ForgetWorkerRequest = attempt!(responder, decode(message));
    act(edge, &request.worker, responder, WorkerCommand::Forget)
}

/// Carries a command out that answers with the worker alone.
fn act<B: Backend>(
    edge: &Rc<Edge<B>>,
    worker: &str,
    responder: Responder,
    command: impl FnOnce(WorkerPath) -> WorkerCommand + 'static,
) -> Option<CallFuture> {
    let path = attempt!(responder, WorkerPath::parse(worker));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        Ok(worker_message(ask(&edge, &path, command(path.clone())).await?))
    }))
}

/// `Worker.Describe`
pub fn describe<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::DescribeWorkerRequest = attempt!(responder, decode(message));
    attempt!(responder, within("jobs_max", request.jobs_max.into(), 0, WORKER_JOBS_SHOWN_MAX.into()));
    let jobs_max = or_default(request.jobs_max, JOBS_DEFAULT) as usize;
    let path = attempt!(responder, WorkerPath::parse(&request.worker));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let status = ask(&edge, &path, WorkerCommand::Describe(path.clone())).await?;
        let queues = work(&edge, &status, jobs_max).await;
        let mut worker = worker_message(status);
        worker.totals = Some(totals(&queues));
        Ok(v1::DescribeWorkerResponse { worker: Some(worker), queues })
    }))
}

/// `Worker.List`
pub fn list<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ListWorkersRequest = attempt!(responder, decode(message));
    attempt!(responder, within("page_size", request.page_size.into(), 0, PAGE_MAX));
    let size = or_default(request.page_size, PAGE_DEFAULT) as usize;
    let filter = attempt!(responder, filter(&request));
    let after = attempt!(responder, page_start(&request.page_token));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let (workers, next) = page(&edge, &filter, after, size).await?;
        let messages = workers.into_iter().map(|status| {
            let edge = &edge;
            async move {
                let mut totals = None;
                if request.with_totals {
                    totals = Some(self::totals(&work(edge, &status, 0).await));
                }
                v1::WorkerInfo { totals, ..worker_message(status) }
            }
        });
        let workers = futures::stream::iter(messages).buffered(ASKED_AT_ONCE).collect().await;
        let next_page_token = next.map_or_else(String::new, |next| next.to_string());
        Ok(v1::ListWorkersResponse { workers, next_page_token })
    }))
}

fn filter(request: &v1::ListWorkersRequest) -> Result<WorkerFilter, Reject> {
    let states = request.states().map(|state| match state {
        v1::WorkerState::Alive => Ok(WorkerState::Alive),
        v1::WorkerState::Stopping => Ok(WorkerState::Stopping),
        v1::WorkerState::Left => Ok(WorkerState::Left),
        v1::WorkerState::Dead => Ok(WorkerState::Dead),
        v1::WorkerState::Unspecified => Err(Reject::invalid("states", "has one that is no state")),
    });
    let queue = Some(&request.queue).filter(|queue| !queue.is_empty());
    Ok(WorkerFilter {
        states: states.collect::<Result<_, Reject>>()?,
        queue: queue.map(|queue| queue_path(queue)).transpose()?,
        prefix: request.prefix.as_str().into(),
    })
}

fn page_start(token: &str) -> Result<Option<WorkerPath>, Reject> {
    let bad = |_| Reject::invalid("page_token", "is not one that a page came with");
    (!token.is_empty()).then(|| WorkerPath::parse(token).map_err(bad)).transpose()
}

/// So many workers of all shards in order, and the last of them if there may be more.
async fn page<B: Backend>(
    edge: &Edge<B>,
    filter: &WorkerFilter,
    after: Option<WorkerPath>,
    size: usize,
) -> Result<(Vec<WorkerStatus>, Option<WorkerPath>), Reject> {
    // Who asks for the first page asks for all, in the end: each shard is asked anew from where the page before ended.
    let parts = (0..edge.backend.shards()).map(|shard| {
        let list = WorkerCommand::List {
            after: after.clone(),
            filter: filter.clone(),
            workers_max: u32::try_from(size).unwrap_or(u32::MAX),
        };
        edge.backend.call(ShardId(shard), Command::Worker(list))
    });
    // Behind the smallest place that a shard came to, workers may be missing.
    let (mut all, mut known_upto): (Vec<WorkerStatus>, Option<WorkerPath>) = (Vec::new(), None);
    for reply in futures::future::try_join_all(parts).await? {
        let Reply::Worker(WorkerReply::List { workers, next }) = reply else { return Err(wrong_reply()) };
        all.extend(workers);
        known_upto = match (known_upto, next) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    all.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    if let Some(upto) = &known_upto {
        all.retain(|status| status.path <= *upto);
    }
    let mut bytes = 0;
    let mut fits = |status: &&WorkerStatus| {
        bytes += STATUS_BYTES + status.registration.encoded_len_max();
        bytes <= PAGE_BYTES_MAX
    };
    let size = size.min(all.iter().take_while(|status| fits(status)).count().max(1));
    let more = all.len() > size;
    all.truncate(size);
    let next = if more { all.last().map(|last| last.path.clone()) } else { known_upto };
    Ok((all, next))
}

/// A worker's work on each of its queues.
async fn work<B: Backend>(edge: &Edge<B>, status: &WorkerStatus, jobs_max: usize) -> Vec<v1::WorkerOnQueue> {
    let queues = status.registration.queues.iter().map(|queue| async move {
        let mut message = v1::WorkerOnQueue { queue: queue.as_ref().to_owned(), ..Default::default() };
        match on_queue(edge, &status.path, queue, jobs_max).await {
            Ok(seen) => {
                message.state = queue_state(seen.as_ref()).into();
                if let Some(seen) = seen {
                    put_work(&mut message, &seen);
                }
            }
            Err(reject) => message.error = Some(item_error(&reject)),
        }
        message
    });
    futures::stream::iter(queues).buffered(ASKED_AT_ONCE).collect().await
}

fn put_work(message: &mut v1::WorkerOnQueue, seen: &WorkerOnQueue) {
    let counts = seen.counts;
    message.totals = Some(v1::WorkerTotals {
        running: seen.running,
        acked: counts.acked,
        failed: counts.failed,
        lost: counts.lost,
    });
    message.last_seen_ms = Some(counts.last_seen.get()).filter(|ms| *ms > 0);
    message.jobs = seen.jobs.iter().map(running_message).collect();
}

fn running_message(job: &RunningJob) -> v1::RunningJob {
    v1::RunningJob {
        job_id: job.job.get(),
        since_ms: job.since.get(),
        attempt: job.attempt,
        leased_until_ms: job.until.get(),
    }
}

fn totals(queues: &[v1::WorkerOnQueue]) -> v1::WorkerTotals {
    let each = queues.iter().filter_map(|queue| queue.totals);
    each.fold(v1::WorkerTotals::default(), |sum, of| v1::WorkerTotals {
        running: sum.running + of.running,
        acked: sum.acked + of.acked,
        failed: sum.failed + of.failed,
        lost: sum.lost + of.lost,
    })
}

fn queue_state(seen: Option<&WorkerOnQueue>) -> v1::WorkerQueueState {
    match seen {
        None => v1::WorkerQueueState::Missing,
        Some(seen) if seen.paused => v1::WorkerQueueState::Paused,
        Some(_) => v1::WorkerQueueState::Open,
    }
}

/// What a queue knows of a worker; `None`: there is no such queue.
async fn on_queue<B: Backend>(
    edge: &Edge<B>,
    path: &WorkerPath,
    queue: &str,
    jobs_max: usize,
) -> Result<Option<WorkerOnQueue>, Reject> {
    let Ok(info) = existing(edge, queue) else { return Ok(None) };
    let worker = Bytes::copy_from_slice(path.name().as_bytes());
    let mut all: Option<WorkerOnQueue> = None;
    let mut after = JobCursor::default();
    loop {
        let left = jobs_max.saturating_sub(all.as_ref().map_or(0, |all| all.jobs.len()));
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        let look = QueueCommand::Worker { worker: worker.clone(), after, jobs_max: left };
        let seen = match edge.backend.call(queue_shard(edge, &info), Command::Queue(info.id, look)).await {
            Ok(Reply::WorkerOnQueue(seen)) => *seen,
            Ok(_) => return Err(wrong_reply()),
            Err(Reject::ResourceNotFound { .. }) => return Ok(None),
            Err(reject) => return Err(reject),
        };
        let next = seen.next;
        let all = match &mut all {
            None => all.insert(seen),
            Some(all) => {
                // A lease that was extended meanwhile comes again.
                let known = |job: &RunningJob| all.jobs.iter().any(|known| known.job == job.job);
                let new: Vec<RunningJob> = seen.jobs.into_iter().filter(|job| !known(job)).collect();
                all.jobs.extend(new);
                all
            }
        };
        match next {
            Some(next) if all.jobs.len() < jobs_max => after = next,
            _ => return Ok(Some(all.clone())),
        }
    }
}

/// A worker as a message.
fn worker_message(status: WorkerStatus) -> v1::WorkerInfo {
    let Registration { queues, concurrency, host, process_id, labels, session_timeout_ms, retention_ms } =
        status.registration;
    let text = |name: &Name| name.as_ref().to_owned();
    let label = |(name, value): &(Name, Name)| v1::WorkerLabel { name: text(name), value: text(value) };
    v1::WorkerInfo {
        worker: status.path.to_string(),
        state: state_number(status.state),
        since_ms: status.since.get(),
        epoch: status.epoch.get(),
        queues: queues.iter().map(text).collect(),
        concurrency,
        host: text(&host),
        process_id,
        labels: labels.iter().map(label).collect(),
        registered_at_ms: status.registered_at.get(),
        heard_at_ms: status.heard_at.map(Millis::get),
        session_timeout_ms,
        retention_ms,
        deaths: status.deaths,
        until_ms: status.until.map(Millis::get),
        totals: None,
    }
}

fn state_number(state: WorkerState) -> i32 {
    match state {
        WorkerState::Alive => v1::WorkerState::Alive.into(),
        WorkerState::Stopping => v1::WorkerState::Stopping.into(),
        WorkerState::Left => v1::WorkerState::Left.into(),
        WorkerState::Dead => v1::WorkerState::Dead.into(),
    }
}
