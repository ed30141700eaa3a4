//! `Group.List` and `Group.Describe`: what a group says of itself, and what its partitions' shards say of the lag.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::command::ReadFrom;
use flowmesh_model::group::{
    GroupDescription, GroupReply, GroupStatus, HeldUp, MemberDescription, PartitionDescription,
};
use flowmesh_model::{
    Catalog, Command, GroupCommand, Millis, Offset, Reject, Reply, ResourceInfo, Settings, StreamCommand,
};
use flowmesh_proto::v1;
use futures::StreamExt;

use super::names::{stream_name, stream_partitions};
use super::offsets::ASKED_AT_ONCE;
use super::{answer_later, ask, existing, state_number};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::services::admin::page;
use crate::edge::grpc::services::stream::partition_status;
use crate::edge::grpc::services::{attempt, decode};
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::status::item_error;

/// `Group.List`
pub fn list<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ListGroupsRequest = attempt!(responder, decode(message));
    let page = attempt!(
        responder,
        page(
            edge,
            &v1::ListResourcesRequest {
                kind: v1::Kind::Group.into(),
                prefix: request.prefix,
                page_size: request.page_size,
                page_token: request.page_token,
            }
        )
    );
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let edge = &edge;
        let summaries = page.resources.into_iter().map(|resource| async move {
            match status(edge, &resource.path).await {
                Ok(status) => summary(resource.path, &status),
                Err(reject) => v1::GroupSummary {
                    path: resource.path,
                    error: Some(item_error(&reject)),
                    ..Default::default()
                },
            }
        });
        let groups = futures::stream::iter(summaries).buffered(ASKED_AT_ONCE).collect().await;
        Ok(v1::ListGroupsResponse { groups, next_page_token: page.next_page_token })
    }))
}

async fn status<B: Backend>(edge: &Edge<B>, path: &str) -> Result<GroupStatus, Reject> {
    let info = existing(edge, path)?;
    match ask(edge, &info, GroupCommand::Status).await? {
        GroupReply::Status(status) => Ok(status),
        _ => Err(wrong_reply()),
    }
}

fn summary(path: String, status: &GroupStatus) -> v1::GroupSummary {
    v1::GroupSummary {
        path,
        state: state_number(status.state),
        epoch: status.epoch.get(),
        members: status.members,
        partitions: status.partitions,
        assigned: status.assigned,
        offsets: status.offsets,
        empty_since_ms: status.empty_since.map(Millis::get),
        error: None,
    }
}

/// All a group says of itself.
pub async fn description<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
) -> Result<GroupDescription, Reject> {
    match ask(edge, info, GroupCommand::Describe).await? {
        GroupReply::Description(description) => Ok(description),
        _ => Err(wrong_reply()),
    }
}

/// `Group.Describe`
pub fn describe<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::DescribeGroupRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.group));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move { describe_group(&edge, &info, &request).await }))
}

async fn describe_group<B: Backend>(
    edge: &Edge<B>,
    info: &Arc<ResourceInfo>,
    request: &v1::DescribeGroupRequest,
) -> Result<v1::DescribeGroupResponse, Reject> {
    let Settings::Group(settings) = &info.settings else { return Err(wrong_reply()) };
    let GroupDescription { status, members, partitions } = description(edge, info).await?;
    let catalog = edge.backend.catalog();
    let partitions = partitions.into_iter().map(|partition| {
        let catalog = &catalog;
        async move {
            let stream = catalog.get(partition.at.resource);
            let mut message = partition_message(catalog, &partition);
            if !request.without_lag
                && let Some(stream) = stream
                && let Err(reject) =
                    add_lag(edge, stream, &partition, request.with_time_lag, &mut message).await
            {
                message.error = Some(item_error(&reject));
            }
            message
        }
    });
    Ok(v1::DescribeGroupResponse {
        group: Some(summary(info.path.to_string(), &status)),
        assignor: settings.assignor.as_str().to_owned(),
        session_timeout_ms: settings.session_timeout_ms,
        rebalance_timeout_ms: settings.rebalance_timeout_ms,
        members: members.iter().map(|member| member_message(&catalog, member)).collect(),
        partitions: futures::stream::iter(partitions).buffered(ASKED_AT_ONCE).collect().await,
    })
}

fn member_message(catalog: &Catalog, member: &MemberDescription) -> v1::GroupMember {
    v1::GroupMember {
        member_id: member.id.as_ref().to_owned(),
        name: member.client.as_ref().to_owned(),
        instance_id: member.instance.as_deref().unwrap_or_default().to_owned(),
        member_epoch: member.epoch.get(),
        streams: member.subscribed.iter().map(|&stream| stream_name(catalog, stream)).collect(),
        assigned: stream_partitions(catalog, &member.assigned),
        revoking: stream_partitions(catalog, &member.revoking),
        target: stream_partitions(catalog, &member.target),
        away: member.away,
        joined_at_ms: member.joined_at.get(),
        last_heartbeat_at_ms: member.last_heartbeat.get(),
        expires_at_ms: member.expires_at.get(),
        revoke_until_ms: member.revoke_until.map(Millis::get),
    }
}

fn partition_message(catalog: &Catalog, partition: &PartitionDescription) -> v1::GroupPartition {
    let committed = partition.committed.as_ref();
    v1::GroupPartition {
        stream: stream_name(catalog, partition.at.resource),
        partition: partition.at.partition,
        owner: partition.owner.as_deref().unwrap_or_default().to_owned(),
        target: partition.target.as_deref().unwrap_or_default().to_owned(),
        held_up: partition.held_up.map_or(v1::HeldUp::Unspecified, held_up_number).into(),
        why: partition.held_up.map_or("", HeldUp::as_str).to_owned(),
        committed: committed.map(|committed| committed.offset.get()),
        metadata: committed.map(|committed| committed.metadata.clone()).unwrap_or_default(),
        committed_at_ms: committed.map(|committed| committed.committed_at.get()),
        ..Default::default()
    }
}

fn held_up_number(reason: HeldUp) -> v1::HeldUp {
    match reason {
        HeldUp::NoMembers => v1::HeldUp::NoMembers,
        HeldUp::NotSubscribed => v1::HeldUp::NotSubscribed,
        HeldUp::NotReleased => v1::HeldUp::NotReleased,
        HeldUp::TargetReleasing => v1::HeldUp::TargetReleasing,
        HeldUp::NotTaken => v1::HeldUp::NotTaken,
        HeldUp::Away => v1::HeldUp::Away,
    }
}

/// Asks the partition where it begins and ends; and, if wanted, when the next record to read was appended.
async fn add_lag<B: Backend>(
    edge: &Edge<B>,
    stream: &ResourceInfo,
    partition: &PartitionDescription,
    with_time: bool,
    message: &mut v1::GroupPartition,
) -> Result<(), Reject> {
    let state = partition_status(edge, stream, partition.at.partition).await?;
    let position = message.committed.unwrap_or(state.earliest_offset).max(state.earliest_offset);
    let lag = state.next_offset.saturating_sub(position);
    message.earliest_offset = Some(state.earliest_offset);
    message.next_offset = Some(state.next_offset);
    message.lag = Some(lag);
    if !with_time {
        return Ok(());
    }
    message.lag_ms = Some(0);
    if lag > 0 {
        let find = StreamCommand::FindOffset { from: ReadFrom::Offset(Offset(position)) };
        let shard = edge.backend.shard_of_partition(stream, partition.at.partition);
        let Reply::OffsetFound { appended_at, .. } =
            edge.backend.call(shard, Command::Stream(partition.at, find)).await?
        else {
            return Err(wrong_reply());
        };
        message.lag_ms = appended_at.map(|at| edge.backend.now().since(at));
    }
    Ok(())
}
