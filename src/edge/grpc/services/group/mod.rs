//! `flowmesh.v1.Group`. Here: membership by single calls, and deleting a group. [`offsets`]: commit, fetch, forget;
//! [`reset`] moves them; [`describe`]: list, describe, lag; [`consume`]: all of membership on one call. [`names`] stands
//! between what clients call a stream and what groups do.

mod consume;
mod describe;
mod names;
pub mod offsets;
mod reset;

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::group::{GroupReply, GroupState, Heartbeat, HeartbeatReply, MemberName, Name};
use flowmesh_model::{
    Catalog, CatalogCommand, Command, GroupCommand, Kind, Lsn, Reject, Reply, ResourceInfo, ShardId,
};
use flowmesh_proto::v1;

use super::{answer, attempt, check_wait, decode, dispatch, dispatch_waiting, put, with_resource};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;

pub use consume::{consume, consume_replay};
pub use describe::{describe, list};
pub use offsets::{commit, delete_offsets, fetch_offsets};
pub use reset::reset;

use names::{client_name, member_ref, owned_ranges, some_name, stream, stream_partitions};

/// Where a group is: all of it is its partition 0.
pub fn group_shard<B: Backend>(edge: &Edge<B>, info: &ResourceInfo) -> ShardId {
    edge.backend.shard_of_partition(info, 0)
}

/// The group of that name.
fn existing<B: Backend>(edge: &Edge<B>, name: &str) -> Result<Arc<ResourceInfo>, Reject> {
    edge.backend.find(Kind::Group, name).ok_or_else(|| missing(Kind::Group, name))
}

/// What a group answers to a command.
async fn ask<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    command: GroupCommand,
) -> Result<GroupReply, Reject> {
    match edge.backend.call(group_shard(edge, info), Command::Group(info.id, command)).await? {
        Reply::Group(reply) => Ok(*reply),
        _ => Err(wrong_reply()),
    }
}

/// Answers with what the future comes to.
pub fn answer_later<M: prost::Message>(
    responder: Responder,
    outcome: impl Future<Output = Result<M, Reject>> + 'static,
) -> CallFuture {
    Box::pin(async move {
        match outcome.await {
            Ok(message) => answer(responder, &message),
            Err(reject) => responder.fail(reject),
        }
    })
}

/// A group's state as a message has it.
fn state_number(state: GroupState) -> i32 {
    match state {
        GroupState::Empty => v1::GroupState::Empty.into(),
        GroupState::Reconciling => v1::GroupState::Reconciling.into(),
        GroupState::Stable => v1::GroupState::Stable.into(),
    }
}

/// `Group.Heartbeat`
pub fn heartbeat<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::HeartbeatRequest = attempt!(responder, decode(message));
    attempt!(responder, check_wait(request.wait_ms));
    if request.leave {
        return leave(edge, &request, responder);
    }
    let command = attempt!(responder, heartbeat_command(edge, &request));
    let encode = {
        let edge = Rc::clone(edge);
        move |reply: Reply, out: &mut _| {
            let Reply::Group(reply) = reply else { return Err(wrong_reply()) };
            let GroupReply::Heartbeat(reply) = *reply else { return Err(wrong_reply()) };
            put(out, &heartbeat_message(&edge.backend.catalog(), &reply));
            Ok(())
        }
    };
    // Who joins is always told something, so does not wait.
    if request.member_epoch == 0 {
        return with_resource(
            edge,
            Kind::Group,
            &request.group,
            true,
            responder,
            move |edge, info, responder| {
                let command = Command::Group(info.id, command);
                dispatch(edge, group_shard(edge, &info), command, responder, encode);
            },
        );
    }
    let info = attempt!(responder, existing(edge, &request.group));
    let command = Command::Group(info.id, command);
    dispatch_waiting(edge, group_shard(edge, &info), command, request.wait_ms, responder, encode)
}

fn heartbeat_command<B: Backend>(
    edge: &Edge<B>,
    request: &v1::HeartbeatRequest,
) -> Result<GroupCommand, Reject> {
    let subscribed = match request.streams.as_slice() {
        [] if request.member_epoch == 0 => {
            return Err(Reject::invalid("streams", "is empty; who joins must name at least one stream"));
        }
        [] => None,
        names => Some(
            names.iter().map(|name| stream(edge, name).map(|info| info.id)).collect::<Result<_, Reject>>()?,
        ),
    };
    Ok(GroupCommand::Heartbeat(Box::new(Heartbeat {
        member: member_ref(&request.member_id, request.member_epoch, &request.instance_id),
        client: client_name(&request.name)?,
        host: Name::from(""),
        known: Lsn(request.known_version),
        subscribed,
        owned: request.owned.as_ref().map(|owned| owned_ranges(edge, &owned.streams)),
        wait_until: None,
    })))
}

fn heartbeat_message(catalog: &Catalog, reply: &HeartbeatReply) -> v1::HeartbeatResponse {
    v1::HeartbeatResponse {
        member_id: reply.member.as_ref().to_owned(),
        member_epoch: reply.epoch.get(),
        version: reply.version.get(),
        assigned: stream_partitions(catalog, &reply.assigned),
        revoking: stream_partitions(catalog, &reply.revoking),
        pending: stream_partitions(catalog, &reply.pending),
        group_epoch: reply.group_epoch.get(),
        heartbeat_interval_ms: reply.heartbeat_interval_ms,
        session_timeout_ms: reply.session_timeout_ms,
    }
}

fn leave<B: Backend>(
    edge: &Rc<Edge<B>>,
    request: &v1::HeartbeatRequest,
    responder: Responder,
) -> Option<CallFuture> {
    let info = attempt!(responder, existing(edge, &request.group));
    let member = member_ref(&request.member_id, request.member_epoch, &request.instance_id);
    let member_id = request.member_id.clone();
    let leave = GroupCommand::Leave { member, keep_place: request.keep_place };
    dispatch(edge, group_shard(edge, &info), Command::Group(info.id, leave), responder, |reply, out| {
        let Reply::Group(reply) = reply else { return Err(wrong_reply()) };
        let GroupReply::Left = *reply else { return Err(wrong_reply()) };
        put(out, &v1::HeartbeatResponse { member_id, ..Default::default() });
        Ok(())
    });
    None
}

/// `Group.RemoveMember`
pub fn remove_member<B: Backend>(
    edge: &Rc<Edge<B>>,
    message: Bytes,
    responder: Responder,
) -> Option<CallFuture> {
    let request: v1::RemoveMemberRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.group));
    let member = attempt!(responder, named_member(&request));
    let remove = Command::Group(info.id, GroupCommand::Remove { member });
    dispatch(edge, group_shard(edge, &info), remove, responder, |reply, out| {
        let Reply::Group(reply) = reply else { return Err(wrong_reply()) };
        let GroupReply::Removed { member } = *reply else { return Err(wrong_reply()) };
        put(out, &v1::RemoveMemberResponse { member_id: member.as_ref().to_owned() });
        Ok(())
    });
    None
}

fn named_member(request: &v1::RemoveMemberRequest) -> Result<MemberName, Reject> {
    match (some_name(&request.member_id), some_name(&request.instance_id)) {
        (Some(id), None) => Ok(MemberName::Id(id)),
        (None, Some(instance)) => Ok(MemberName::Instance(instance)),
        _ => Err(Reject::invalid("member_id", "is to be given, or instance_id, not both")),
    }
}

/// `Group.Delete`
pub fn delete<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::DeleteGroupRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.group));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        if !request.force {
            let GroupReply::Status(status) = ask(&edge, &info, GroupCommand::Status).await? else {
                return Err(wrong_reply());
            };
            if status.members > 0 {
                return Err(Reject::GroupNotEmpty { members: status.members.into() });
            }
        }
        let delete = CatalogCommand::Delete { path: info.path.clone() };
        match edge.backend.call(ShardId(0), Command::Catalog(delete)).await? {
            Reply::Resource { info, .. } => Ok(v1::DeleteGroupResponse { path: info.path.to_string() }),
            _ => Err(wrong_reply()),
        }
    }))
}
