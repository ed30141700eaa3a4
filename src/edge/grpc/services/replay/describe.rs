//! Sessions as messages, and `Replay.List`.

use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::replay::{ReplayProgress, ReplayState, ReplayStatus};
use flowmesh_model::{Millis, Offset, Reject};
use flowmesh_proto::v1;
use futures::StreamExt;

use super::{Session, speed_number};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::Responder;
use crate::edge::grpc::services::admin::page;
use crate::edge::grpc::services::filter::filter_message;
use crate::edge::grpc::services::group::answer_later;
use crate::edge::grpc::services::group::offsets::ASKED_AT_ONCE;
use crate::edge::grpc::services::{attempt, decode};
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::status::item_error;

/// A session's state as a message has it.
pub fn state_number(state: ReplayState) -> i32 {
    match state {
        ReplayState::Created => v1::ReplayState::Created.into(),
        ReplayState::Active => v1::ReplayState::Active.into(),
        ReplayState::Paused => v1::ReplayState::Paused.into(),
        ReplayState::Stopped => v1::ReplayState::Stopped.into(),
        ReplayState::Completed => v1::ReplayState::Completed.into(),
        ReplayState::Error => v1::ReplayState::Error.into(),
    }
}

/// A session as a message.
pub fn session_message(session: &Session, status: &ReplayStatus) -> v1::ReplaySession {
    let Millis(created_at_ms) = session.info.created_at;
    let stream = match &session.stream {
        Some(info) if info.path.is_default_scope() => info.path.name().to_owned(),
        Some(info) => info.path.to_string(),
        None => format!("deleted stream {}", session.settings.stream),
    };
    v1::ReplaySession {
        path: session.info.path.to_string(),
        state: state_number(status.state),
        since_ms: status.since.get(),
        error: status.error.as_deref().unwrap_or_default().to_owned(),
        stream,
        group: session.settings.group.clone(),
        speed: speed_number(status.pace.speed),
        generation: status.generation,
        members: status.members,
        records_total: status.records_total,
        partitions: status.partitions.iter().map(partition_message).collect(),
        left: status.partitions.iter().map(left).sum(),
        created_at_ms,
        filter: filter_message(&session.settings.filter),
        shard_error: None,
    }
}

fn left(at: &ReplayProgress) -> Option<u64> {
    at.range.until.map(|until| until.get().saturating_sub(at.position.get()))
}

fn partition_message(at: &ReplayProgress) -> v1::ReplayPartition {
    v1::ReplayPartition {
        partition: at.range.partition,
        from: at.range.from.get(),
        position: at.position.get(),
        until: at.range.until.map(Offset::get),
        left: left(at),
    }
}

/// `Replay.List`
pub fn list<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ListReplaysRequest = attempt!(responder, decode(message));
    let resources = v1::ListResourcesRequest {
        kind: v1::Kind::Replay.into(),
        prefix: request.prefix,
        page_size: request.page_size,
        page_token: request.page_token,
    };
    let page = attempt!(responder, page(edge, &resources));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let edge = &edge;
        let sessions = page.resources.into_iter().map(|resource| async move {
            match described(edge, &resource.path).await {
                Ok(session) => session,
                Err(reject) => {
                    let shard_error = Some(item_error(&reject));
                    v1::ReplaySession { path: resource.path, shard_error, ..Default::default() }
                }
            }
        });
        let sessions = futures::stream::iter(sessions).buffered(ASKED_AT_ONCE).collect().await;
        Ok(v1::ListReplaysResponse { sessions, next_page_token: page.next_page_token })
    }))
}

async fn described<B: Backend>(edge: &Edge<B>, path: &str) -> Result<v1::ReplaySession, Reject> {
    let session = Session::find(edge, path)?;
    let status = session.status(edge).await?;
    Ok(session_message(&session, &status))
}
