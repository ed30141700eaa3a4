//! `flowmesh.v1.Queue`: how jobs go to other queues and streams.

use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::job::JobPhase;
use flowmesh_model::transfer::{FailedTransfer, Lane};
use flowmesh_model::{Catalog, QueueCommand, Reply, TransferCommand, TransferReply};
use flowmesh_proto::v1;

use super::super::{attempt, decode, put};
use super::look::text;
use super::manage::{phase, put_swept, which};
use super::{ask, existing};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;

/// `Queue.Replay`
pub fn replay<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ReplayJobsRequest = attempt!(responder, decode(message));
    let which = attempt!(responder, which(&request.job_ids, request.filter, request.after));
    let phase = attempt!(responder, phase(request.phase)).unwrap_or(JobPhase::Done);
    let to = attempt!(responder, existing(edge, &request.sandbox)).id;
    let command = QueueCommand::Transfer(TransferCommand::Replay { which, phase, to });
    ask(edge, &request.queue, command, responder, put_swept)
}

/// `Queue.Outbox`
pub fn outbox<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::OutboxRequest = attempt!(responder, decode(message));
    let catalog = edge.backend.catalog();
    let command = QueueCommand::Transfer(TransferCommand::Outbox);
    ask(edge, &request.queue, command, responder, move |reply, out| {
        let Reply::Transfer(TransferReply::Outbox { lanes, failed }) = reply else {
            return Err(wrong_reply());
        };
        let lanes = lanes.iter().map(|lane| lane_message(&catalog, lane)).collect();
        put(out, &v1::OutboxResponse { lanes, failed: failed.as_ref().map(failed_message) });
        Ok(())
    })
}

fn lane_message(catalog: &Catalog, lane: &Lane) -> v1::OutboxLane {
    let Lane { to, jobs, since, error } = lane;
    let path = catalog.get(to.resource).map(|info| info.path.to_string());
    v1::OutboxLane {
        to: path.unwrap_or_else(|| format!("number {}", to.resource)),
        partition: to.partition,
        jobs: *jobs,
        since_ms: since.get(),
        error: text(error),
    }
}

fn failed_message(failed: &FailedTransfer) -> v1::FailedTransfer {
    v1::FailedTransfer { job_id: failed.job.get(), at_ms: failed.at.get(), error: text(&failed.error) }
}
