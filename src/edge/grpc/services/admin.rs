//! `flowmesh.v1.Admin`.

use std::collections::BinaryHeap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::settings::within;
use flowmesh_model::{
    CatalogCommand, Command, Kind, Reject, Reply, ResourceInfo, ResourcePath, Settings, ShardId,
};
use flowmesh_proto::v1;

use super::admin_settings::{durability_number, kind_of, merged, path_of, resource};
use super::stream::{check_partition, or_default};
use super::{answer, attempt, decode, dispatch, put};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;

/// Resources on a page that does not say how many.
pub const PAGE_DEFAULT: u32 = 100;

/// Resources on a page at most.
pub const PAGE_MAX: u64 = 1000;

/// The shard that owns the catalog.
const CATALOG_SHARD: ShardId = ShardId(0);

/// `Admin.CreateResource`
pub fn create<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::CreateResourceRequest = attempt!(responder, decode(message));
    let path = attempt!(responder, path_of(request.kind, &request.name, request.settings.as_ref()));
    if path.kind() == Kind::Replay {
        responder.fail(Reject::invalid("kind", "is replay: sessions are created by Replay.Create"));
        return None;
    }
    let settings = attempt!(responder, merged(Settings::default_for(path.kind()), request.settings));
    attempt!(responder, settings.validate());
    let create = CatalogCommand::Create { path, settings, or_existing: request.or_existing };
    dispatch(edge, CATALOG_SHARD, Command::Catalog(create), responder, |reply, out| {
        let Reply::Resource { info, changed, .. } = reply else { return Err(wrong_reply()) };
        put(out, &v1::CreateResourceResponse { resource: Some(resource(&info)), created: changed });
        Ok(())
    });
    None
}

/// `Admin.UpdateResource`
pub fn update<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::UpdateResourceRequest = attempt!(responder, decode(message));
    let path = attempt!(responder, path_of(request.kind, &request.name, request.settings.as_ref()));
    let info = attempt!(responder, existing(edge, &path));
    let settings = attempt!(responder, merged(info.settings.clone(), request.settings));
    attempt!(responder, settings.validate());
    let update = CatalogCommand::Update { path, settings };
    dispatch(edge, CATALOG_SHARD, Command::Catalog(update), responder, |reply, out| {
        let Reply::Resource { info, .. } = reply else { return Err(wrong_reply()) };
        put(out, &v1::UpdateResourceResponse { resource: Some(resource(&info)) });
        Ok(())
    });
    None
}

/// `Admin.DeleteResource`
pub fn delete<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::DeleteResourceRequest = attempt!(responder, decode(message));
    let path = attempt!(responder, path_of(request.kind, &request.name, None));
    let delete = CatalogCommand::Delete { path };
    dispatch(edge, CATALOG_SHARD, Command::Catalog(delete), responder, |reply, out| {
        let Reply::Resource { info, .. } = reply else { return Err(wrong_reply()) };
        put(out, &v1::DeleteResourceResponse { resource: Some(resource(&info)) });
        Ok(())
    });
    None
}

/// `Admin.DescribeResource`
pub fn describe<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::DescribeResourceRequest = attempt!(responder, decode(message));
    let path = attempt!(responder, path_of(request.kind, &request.name, None));
    let info = attempt!(responder, existing(edge, &path));
    let places = partition_places(edge, &info, None).unwrap_or_default();
    answer(responder, &v1::DescribeResourceResponse { resource: Some(resource(&info)), places });
    None
}

fn existing<B: Backend>(edge: &Edge<B>, path: &ResourcePath) -> Result<Arc<ResourceInfo>, Reject> {
    let name = path.to_string();
    edge.backend.find(path.kind(), &name).ok_or_else(|| missing(path.kind(), &name))
}

/// `Admin.ListResources`
pub fn list<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ListResourcesRequest = attempt!(responder, decode(message));
    let response = attempt!(responder, page(edge, &request));
    answer(responder, &response);
    None
}

/// One page: the smallest paths beyond the token.
pub fn page<B: Backend>(
    edge: &Edge<B>,
    request: &v1::ListResourcesRequest,
) -> Result<v1::ListResourcesResponse, Reject> {
    within("page_size", request.page_size.into(), 0, PAGE_MAX)?;
    let size = or_default(request.page_size, PAGE_DEFAULT) as usize;
    let kind = kind_of(request.kind)?;
    let after = (!request.page_token.is_empty()).then(|| parse_token(&request.page_token)).transpose()?;
    let catalog = edge.backend.catalog();
    let wanted = catalog.iter().filter(|info| {
        kind.is_none_or(|kind| info.path.kind() == kind)
            && after.as_ref().is_none_or(|after| info.path > *after)
            && has_prefix(&info.path, &request.prefix)
    });
    let mut smallest = BinaryHeap::new();
    for info in wanted {
        smallest.push(ByPath(info));
        if smallest.len() > size + 1 {
            smallest.pop();
        }
    }
    let mut found = smallest.into_sorted_vec();
    let more = found.len() > size;
    found.truncate(size);
    let last = found.last().filter(|_| more);
    Ok(v1::ListResourcesResponse {
        next_page_token: last.map_or_else(String::new, |last| last.0.path.to_string()),
        resources: found.iter().map(|found| resource(found.0)).collect(),
    })
}

fn parse_token(token: &str) -> Result<ResourcePath, Reject> {
    let bad = || Reject::invalid("page_token", "is not one that a page came with");
    let kind = token.split('/').nth(2).and_then(Kind::parse).ok_or_else(bad)?;
    ResourcePath::parse(kind, token).map_err(|_| bad())
}

fn has_prefix(path: &ResourcePath, prefix: &str) -> bool {
    path.name().starts_with(prefix) || (prefix.contains('/') && path.to_string().starts_with(prefix))
}

/// Ordered by path.
struct ByPath<'a>(&'a Arc<ResourceInfo>);

impl Ord for ByPath<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.path.cmp(&other.0.path)
    }
}

impl PartialOrd for ByPath<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByPath<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.path == other.0.path
    }
}

impl Eq for ByPath<'_> {}

/// `Admin.Topology`
pub fn topology<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::TopologyRequest = attempt!(responder, decode(message));
    let places = if request.name.is_empty() { Ok(Vec::new()) } else { places(edge, &request) };
    let places = attempt!(responder, places);
    let facts = &edge.common.facts;
    let shards = (0..edge.backend.shards()).map(ShardId);
    let response = v1::TopologyResponse {
        shards: shards.map(|shard| shard_message(edge, shard)).collect(),
        shared_address: facts.shared_address.clone(),
        answered_by: edge.backend.local_shard().get().into(),
        slot_map_version: facts.slot_map_version,
        catalog_version: edge.backend.catalog().version().get(),
        places,
        slots: if request.with_slots { slot_list(edge) } else { Vec::new() },
    };
    answer(responder, &response);
    None
}

fn shard_message<B: Backend>(edge: &Edge<B>, shard: ShardId) -> v1::Shard {
    let facts = &edge.common.facts;
    v1::Shard {
        shard: shard.get().into(),
        address: facts.shard_addresses.get(usize::from(shard.get())).cloned().unwrap_or_default(),
        slots: facts.slots.slots_of(shard) as u32,
    }
}

fn slot_list<B: Backend>(edge: &Edge<B>) -> Vec<u32> {
    let slots = &edge.common.facts.slots;
    (0..flowmesh_model::placement::SLOTS)
        .map(|slot| slots.shard(flowmesh_model::SlotId(slot)).get().into())
        .collect()
}

fn places<B: Backend>(edge: &Edge<B>, request: &v1::TopologyRequest) -> Result<Vec<v1::Place>, Reject> {
    let path = path_of(request.kind, &request.name, None)?;
    let info = existing(edge, &path)?;
    match (&request.key, path.kind()) {
        (None, _) => partition_places(edge, &info, request.partition),
        (Some(key), Kind::Kv) => {
            let slot = info.placement.key_slot(key);
            let shard = edge.backend.shard_of_key(&info, key);
            Ok(vec![v1::Place { partition: 0, slot: slot.get().into(), shard: shard.get().into() }])
        }
        (Some(_), kind) => Err(Reject::invalid("key", format!("is for a kv; this is a {kind}"))),
    }
}

/// Where partitions are; none for a store, which is on all shards.
fn partition_places<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    partition: Option<u32>,
) -> Result<Vec<v1::Place>, Reject> {
    if let Some(partition) = partition {
        check_partition(info, partition)?;
    }
    if info.path.kind() == Kind::Kv {
        return Ok(Vec::new());
    }
    let chosen = partition.map_or(0..info.settings.partitions(), |partition| partition..partition + 1);
    Ok(chosen
        .map(|partition| v1::Place {
            partition,
            slot: info.placement.partition_slot(partition).get().into(),
            shard: edge.backend.shard_of_partition(info, partition).get().into(),
        })
        .collect())
}

/// `Admin.ServerInfo`
pub fn server_info<B: Backend>(
    edge: &Rc<Edge<B>>,
    message: Bytes,
    responder: Responder,
) -> Option<CallFuture> {
    let v1::ServerInfoRequest {} = attempt!(responder, decode(message));
    let facts = &edge.common.facts;
    let response = v1::ServerInfoResponse {
        version: facts.version.to_owned(),
        started_at_ms: facts.started_at.get(),
        uptime_ms: edge.backend.now().since(facts.started_at),
        durability: durability_number(facts.durability),
        shards: edge.backend.shards().into(),
        auto_create: facts.auto_create,
    };
    answer(responder, &response);
    None
}
