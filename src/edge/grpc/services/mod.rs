//! The services: what each method does with its message. One file a service, and one for each call that streams.
//!
//! A unary method gets its message and a [`Responder`] and returns at once. Most hand a command to a shard together
//! with a sink that answers; the few that wait for something else first return a future.

mod admin;
mod admin_settings;
mod append;
mod append_stream;
mod as_of;
mod filter;
mod gather;
mod group;
mod health;
mod kv;
mod kv_operations;
mod kv_outcomes;
mod kv_past;
mod kv_run;
mod kv_scan;
mod kv_watch;
mod kv_whole;
mod offsets;
mod outbox;
mod producer;
mod queue;
mod read_filtered;
mod records;
mod reflection;
mod replay;
mod schedule;
mod stream;
mod subscribe;
mod unpack;
mod work;
mod worker;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use flowmesh_model::limits::{BATCH_ITEMS_MAX, WAIT_MS_MAX};
use flowmesh_model::settings::within;
use flowmesh_model::{Command, Kind, Millis, Reject, Reply, ResourceInfo, ShardId};
use prost::Message;

use super::Edge;
use super::method::Method;
use super::respond::{Responder, UnarySink};
use super::shared::CallFuture;
use super::streaming::{Ended, StreamCall};
use crate::edge::backend::{Backend, missing};

/// Begins a unary call; what is left to do for it is returned.
pub fn unary<B: Backend>(
    edge: &Rc<Edge<B>>,
    method: Method,
    message: Bytes,
    responder: Responder,
) -> Option<CallFuture> {
    match method {
        Method::KvGet => kv::get(edge, &message, responder),
        Method::KvSet => kv::set(edge, &message, responder),
        Method::KvDelete => kv::delete(edge, &message, responder),
        Method::KvExists => kv::exists(edge, &message, responder),
        Method::KvScan => kv_scan::scan(edge, message, responder),
        Method::KvRun => kv_run::run(edge, &message, responder),
        Method::KvRandom => kv_whole::random(edge, message, responder),
        Method::KvStatus => kv_whole::status(edge, message, responder),
        Method::KvVersions => kv_past::versions(edge, message, responder),
        Method::KvDiff => kv_past::diff(edge, message, responder),
        Method::KvClear => kv_whole::clear(edge, message, responder),
        Method::StreamAppend => stream::append(edge, &message, responder),
        Method::StreamRead => stream::read(edge, message, responder),
        Method::StreamInitProducer => producer::init(edge, message, responder),
        Method::StreamStatus => stream::status(edge, message, responder),
        Method::StreamOffsetsFor => offsets::offsets_for(edge, message, responder),
        Method::StreamTrim => offsets::trim(edge, message, responder),
        Method::QueueEnqueue => queue::enqueue(edge, &message, responder),
        Method::QueueReserve => queue::reserve(edge, message, responder),
        Method::QueueAck => queue::ack(edge, message, responder),
        Method::QueueNack => queue::nack(edge, message, responder),
        Method::QueueExtend => queue::extend(edge, message, responder),
        Method::QueueProgress => queue::manage::progress(edge, message, responder),
        Method::QueueCancel => queue::manage::cancel(edge, message, responder),
        Method::QueueChange => queue::manage::change(edge, message, responder),
        Method::QueueRedrive => queue::manage::redrive(edge, message, responder),
        Method::QueuePurge => queue::manage::purge(edge, message, responder),
        Method::QueueReplay => queue::transfer::replay(edge, message, responder),
        Method::QueueOutbox => queue::transfer::outbox(edge, message, responder),
        Method::QueuePause => queue::manage::pause(edge, true, message, responder),
        Method::QueueResume => queue::manage::pause(edge, false, message, responder),
        Method::QueueGet => queue::look::get(edge, message, responder),
        Method::QueuePeek => queue::look::peek(edge, message, responder),
        Method::QueueList => queue::look::list(edge, message, responder),
        Method::QueueStatus => queue::look::status(edge, message, responder),
        Method::GroupHeartbeat => group::heartbeat(edge, message, responder),
        Method::GroupCommit => group::commit(edge, message, responder),
        Method::GroupFetchOffsets => group::fetch_offsets(edge, message, responder),
        Method::GroupList => group::list(edge, message, responder),
        Method::GroupDescribe => group::describe(edge, message, responder),
        Method::GroupResetOffsets => group::reset(edge, message, responder),
        Method::GroupDeleteOffsets => group::delete_offsets(edge, message, responder),
        Method::GroupRemoveMember => group::remove_member(edge, message, responder),
        Method::GroupDelete => group::delete(edge, message, responder),
        Method::ReplayCreate => replay::create(edge, message, responder),
        Method::ReplayStart => replay::start(edge, message, responder),
        Method::ReplayPause => replay::pause(edge, message, responder),
        Method::ReplayResume => replay::resume(edge, message, responder),
        Method::ReplaySeek => replay::seek(edge, message, responder),
        Method::ReplayStop => replay::stop(edge, message, responder),
        Method::ReplayStep => replay::step(edge, message, responder),
        Method::ReplaySetSpeed => replay::set_speed(edge, message, responder),
        Method::ReplayFail => replay::fail(edge, message, responder),
        Method::ReplayDescribe => replay::describe(edge, message, responder),
        Method::ReplayList => replay::list(edge, message, responder),
        Method::ReplayDelete => replay::delete(edge, message, responder),
        Method::ScheduleCreate => schedule::create(edge, message, responder),
        Method::ScheduleUpdate => schedule::update(edge, message, responder),
        Method::ScheduleList => schedule::list(edge, message, responder),
        Method::ScheduleDescribe => schedule::describe(edge, message, responder),
        Method::SchedulePause => schedule::pause(edge, message, responder),
        Method::ScheduleResume => schedule::resume(edge, message, responder),
        Method::ScheduleNext => schedule::next(edge, message, responder),
        Method::ScheduleRunNow => schedule::run_now(edge, message, responder),
        Method::ScheduleDelete => schedule::delete(edge, message, responder),
        Method::WorkerRegister => worker::register(edge, message, responder),
        Method::WorkerHeartbeat => worker::heartbeat(edge, message, responder),
        Method::WorkerLeave => worker::leave(edge, message, responder),
        Method::WorkerList => worker::list(edge, message, responder),
        Method::WorkerDescribe => worker::describe(edge, message, responder),
        Method::WorkerStop => worker::stop(edge, message, responder),
        Method::WorkerForget => worker::forget(edge, message, responder),
        Method::AdminCreateResource => admin::create(edge, message, responder),
        Method::AdminUpdateResource => admin::update(edge, message, responder),
        Method::AdminDescribeResource => admin::describe(edge, message, responder),
        Method::AdminListResources => admin::list(edge, message, responder),
        Method::AdminDeleteResource => admin::delete(edge, message, responder),
        Method::AdminTopology => admin::topology(edge, message, responder),
        Method::AdminServerInfo => admin::server_info(edge, message, responder),
        Method::HealthCheck => health::check(edge, message, responder),
        Method::StreamAppendStream
        | Method::StreamSubscribe
        | Method::KvWatch
        | Method::QueueWork
        | Method::GroupConsume
        | Method::ReplayConsume
        | Method::HealthWatch
        | Method::ReflectionInfo => {
            responder.fail(Reject::Internal("a streaming method was called as a unary one"));
            None
        }
    }
}

pub use kv::large_values;

/// Carries out a streaming call.
pub async fn streaming<B: Backend>(
    edge: &Rc<Edge<B>>,
    method: Method,
    call: &mut StreamCall,
) -> Result<(), Ended> {
    match method {
        Method::StreamAppendStream => append_stream::append_stream(edge, call).await,
        Method::StreamSubscribe => subscribe::subscribe(edge, call).await,
        Method::KvWatch => kv_watch::watch(edge, call).await,
        Method::QueueWork => work::work(edge, call).await,
        Method::GroupConsume => group::consume(edge, call).await,
        Method::ReplayConsume => group::consume_replay(edge, call).await,
        Method::HealthWatch => health::watch(edge, call).await,
        Method::ReflectionInfo => reflection::reflect(call).await,
        _ => Err(Reject::Internal("a unary method was called as a streaming one").into()),
    }
}

/// Answers with the error if there is one.
macro_rules! attempt {
    ($responder:expr, $outcome:expr) => {
        match $outcome {
            Ok(value) => value,
            Err(reject) => {
                $responder.fail(reject);
                return None;
            }
        }
    };
}
use attempt;

/// A message of a generated type.
fn decode<M: Message + Default>(message: Bytes) -> Result<M, Reject> {
    M::decode(message).map_err(|error| Reject::invalid("message", error.to_string()))
}

/// Answers with a message of a generated type.
fn answer(responder: Responder, message: &impl Message) {
    responder.answer(message.encoded_len(), |out| put(out, message));
}

/// Writes a message of a generated type.
fn put(out: &mut BytesMut, message: &impl Message) {
    // Fails only if the buffer is full, and it grows.
    let _ = message.encode(out);
}

/// Calls `go` with the resource: at once if the catalog has it, else, for a write, after it was created.
fn with_resource<B: Backend>(
    edge: &Rc<Edge<B>>,
    kind: Kind,
    name: &str,
    create: bool,
    responder: Responder,
    go: impl FnOnce(&Rc<Edge<B>>, Arc<ResourceInfo>, Responder) + 'static,
) -> Option<CallFuture> {
    if let Some(info) = edge.backend.find(kind, name) {
        go(edge, info, responder);
        return None;
    }
    if !create {
        responder.fail(missing(kind, name));
        return None;
    }
    let (edge, name) = (Rc::clone(edge), name.to_owned());
    Some(Box::pin(async move {
        match edge.backend.resolve(kind, &name, true).await {
            Ok(info) => go(&edge, info, responder),
            Err(reject) => responder.fail(reject),
        }
    }))
}

/// Hands a command to a shard and answers with its reply, as `encode` puts it.
fn dispatch<B: Backend>(
    edge: &Edge<B>,
    to: ShardId,
    command: Command,
    responder: Responder,
    encode: impl FnOnce(Reply, &mut BytesMut) -> Result<(), Reject> + 'static,
) {
    edge.backend.dispatch(to, command, UnarySink::boxed(responder, encode));
}

/// The same for a command that may wait: it ends early if the client or the server goes away, and an answer that was
/// waited for in vain until the client's deadline is `DEADLINE_EXCEEDED`.
fn dispatch_waiting<B: Backend>(
    edge: &Rc<Edge<B>>,
    to: ShardId,
    mut command: Command,
    wait_ms: u64,
    responder: Responder,
    encode: impl FnOnce(Reply, &mut BytesMut) -> Result<(), Reject> + 'static,
) -> Option<CallFuture> {
    if wait_ms == 0 {
        dispatch(edge, to, command, responder, encode);
        return None;
    }
    let until = edge.backend.now().plus(wait_ms);
    let deadline = responder.deadline().filter(|&deadline| deadline < until);
    if let Some(wait_until) = command.wait_until_mut() {
        *wait_until = Some(deadline.unwrap_or(until));
    }
    let edge = Rc::clone(edge);
    Some(Box::pin(async move {
        let reply = edge.backend.call(to, command);
        let Some(outcome) = unless_over(&responder, reply).await else { return };
        let in_vain = |reply: &Reply| match reply {
            Reply::Records(records) => records.runs.is_empty(),
            Reply::Reserved(jobs) => jobs.is_empty(),
            _ => false,
        };
        match outcome {
            Ok(reply) if in_vain(&reply) && deadline.is_some_and(|at| edge.backend.now() >= at) => {
                responder.fail(Reject::DeadlineExceeded);
            }
            outcome => UnarySink::boxed(responder, encode).deliver(outcome),
        }
    }))
}

/// What a future comes to, or a rejection if the server stops first, or `None` if there is no client any more.
async fn unless_over<T>(
    responder: &Responder,
    reply: impl Future<Output = Result<T, Reject>>,
) -> Option<Result<T, Reject>> {
    let mut reply = pin!(reply);
    let mut closing = pin!(responder.closing());
    poll_fn(|cx| {
        if let Poll::Ready(outcome) = reply.as_mut().poll(cx) {
            return Poll::Ready(Some(outcome));
        }
        if responder.poll_cancelled(cx).is_ready() {
            return Poll::Ready(None);
        }
        closing.as_mut().poll(cx).map(|()| Some(Err(Reject::ShuttingDown)))
    })
    .await
}

/// Refuses a wait that is too long.
fn check_wait(wait_ms: u64) -> Result<(), Reject> {
    within("wait_ms", wait_ms, 0, WAIT_MS_MAX)
}

/// Refuses a batch that is too long, while it is being read.
fn check_items(what: &'static str, items: usize) -> Result<(), Reject> {
    if items > BATCH_ITEMS_MAX {
        return Err(Reject::TooLarge { what, size: items as u64, max: BATCH_ITEMS_MAX as u64 });
    }
    Ok(())
}

/// Refuses an empty batch.
fn check_not_empty(what: &'static str, items: usize) -> Result<(), Reject> {
    if items == 0 { Err(Reject::invalid(what, "is empty; send at least one")) } else { Ok(()) }
}

/// How far in the future something is that a stream waits for before it looks around.
fn next_round(now: Millis) -> Millis {
    now.plus(WAIT_MS_MAX / 2)
}
