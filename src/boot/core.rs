//! The life of one core: recover its shard, wait for the others, serve, drain, make a last checkpoint.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use flowmesh_engine::{Shard, ShardConfig};
use flowmesh_model::limits::METRIC_RESOURCES_MAX;
use flowmesh_model::{Durability, ShardId};
use flowmesh_rt::core::{spawn_local, unpin_this_thread};
use flowmesh_rt::disk::RtDisk;
use flowmesh_rt::mesh::Mesh;
use flowmesh_rt::net::Listener;
use flowmesh_rt::time;

use super::{Plan, RtTimer};
use crate::admin::{self, Status};
use crate::edge::backend::ServerFacts;
use crate::edge::grpc::{Edge, GrpcConfig, serve_connection};
use crate::net::{Connections, accept, stopped};
use crate::router::message::Message;
use crate::router::{LocalShard, Router, RouterConfig};
use crate::telemetry::storage::Storage;

/// How often a core looks for long polls whose client has gone.
const SWEEP: Duration = Duration::from_millis(500);

/// Records kept in memory once segment files have them: enough for readers that follow. More would only be memory that
/// is new again and again: a page of new memory costs more than writing its records.
const TAIL_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Memory that compaction remembers keys in, while it runs: 1.5 million. With more of them it goes over the stream more than
/// once.
const COMPACTION_MEMORY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A checkpoint starts after so much log at the latest, for the same reason: records stay in memory until then.
const CHECKPOINT_LOG_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Runs core `core` from start to stop.
pub(super) async fn live(core: usize, plan: Arc<Plan>) -> anyhow::Result<()> {
    let id = ShardId(u16::try_from(core)?);
    let lived = recover_and_serve(id, &plan).await;
    if lived.is_err() {
        plan.stage.fail();
        plan.stage.stop();
    }
    lived
}

async fn recover_and_serve(id: ShardId, plan: &Arc<Plan>) -> anyhow::Result<()> {
    let status = if id.0 == 0 { Some(admin::start(plan.config.http_addr, storage(plan))?) } else { None };
    let mesh = Rc::new(plan.mesh.take(usize::from(id.0)));
    let shard = Shard::open(shard_config(id, plan), RtDisk::new(), RtTimer).await?;
    let (facts, ms, replay_ms) = {
        let stats = shard.stats();
        (stats.recovered_facts, stats.recovery_ns / 1_000_000, stats.replay_ns / 1_000_000)
    };
    tracing::info!(shard = %id, facts, ms, replay_ms, "recovered");
    let router = route(id, plan, &shard, &mesh);
    run_loops(&shard, plan.config.durability);
    if id.0 == 0 {
        router.publish_catalog();
    }
    while !router.has_catalog() {
        if plan.stage.has_failed() {
            return Ok(());
        }
        time::sleep(Duration::from_millis(1)).await;
    }
    if !plan.stage.recovered().await {
        return Ok(());
    }
    // Now every shard knows the catalog, and can be reached.
    spawn_local(shard.clone().run_transfers(router.clone())).detach();
    serve(id, plan, &router, status).await?;
    plan.stage.drained().await;
    shard.shut_down().await;
    Ok(())
}

fn storage(plan: &Plan) -> Storage {
    let dirs = plan.data.iter().flat_map(|data| (0..plan.shards).map(|shard| data.shard_dir(ShardId(shard))));
    Storage::new(dirs.collect())
}

fn shard_config(id: ShardId, plan: &Plan) -> ShardConfig {
    let config = &plan.config;
    let memory_bytes = config.memory_bytes / u64::from(plan.shards);
    ShardConfig {
        shares: plan.shards,
        shards: if plan.slots.is_in_turn(plan.shards) { plan.shards } else { 0 },
        shard: id,
        dir: plan.data.as_ref().map(|data| data.shard_dir(id)).unwrap_or_default(),
        durability: config.durability,
        sync_interval_ms: config.sync_interval_ms,
        memory_bytes,
        tail_bytes: (memory_bytes / 8).min(TAIL_BYTES_MAX),
        body_bytes: memory_bytes / 8,
        log_segment_bytes: config.log_segment_bytes,
        log_bytes_max: config.log_bytes_max,
        checkpoint_log_bytes: (config.log_bytes_max / 4).min(memory_bytes / 4).min(CHECKPOINT_LOG_BYTES_MAX),
        checkpoint_interval_ms: config.checkpoint_interval_ms,
        compaction_bytes_per_second: (config.compaction_bytes_per_second / u64::from(plan.shards)).max(1),
        compaction_memory_bytes: usize::try_from(memory_bytes / 16)
            .unwrap_or(usize::MAX)
            .min(COMPACTION_MEMORY_BYTES_MAX),
        metric_resources_max: (METRIC_RESOURCES_MAX / usize::from(plan.shards)).max(1),
        hash_seed: plan.hash_seed,
        on_thread_start: Some(Arc::new(unpin_this_thread)),
    }
}

fn route(id: ShardId, plan: &Arc<Plan>, shard: &LocalShard, mesh: &Rc<Mesh<Message>>) -> Router {
    let config = RouterConfig {
        shard: id,
        shards: plan.shards,
        slots: Arc::clone(&plan.slots),
        auto_create: plan.config.auto_create,
    };
    let out = Rc::clone(mesh);
    #[expect(clippy::result_large_err, reason = "the message comes back to be dropped, not to travel on")]
    let send = Box::new(move |to: ShardId, message| out.send(usize::from(to.0), message));
    let router = Router::new(config, shard.clone(), send);
    let (inbox, receiver) = (Rc::clone(mesh), router.clone());
    spawn_local(async move {
        inbox.run(|from, message| receiver.receive(ShardId(from as u16), message)).await;
    })
    .detach();
    let sweeper = router.clone();
    spawn_local(async move {
        loop {
            time::sleep(SWEEP).await;
            sweeper.sweep();
        }
    })
    .detach();
    router
}

fn run_loops(shard: &LocalShard, durability: Durability) {
    spawn_local(shard.clone().run_ticks()).detach();
    if durability == Durability::Memory {
        return;
    }
    spawn_local(shard.clone().run_commits()).detach();
    spawn_local(shard.clone().run_segments()).detach();
    spawn_local(shard.clone().run_fetches()).detach();
    spawn_local(shard.clone().run_checkpoints()).detach();
    spawn_local(shard.clone().run_compactions()).detach();
    spawn_local(shard.clone().run_chills()).detach();
    if durability == Durability::Interval {
        spawn_local(shard.clone().run_interval_syncs()).detach();
    }
}

/// Serves until a stop is asked for and all connections have ended, or the time for that is over.
async fn serve(
    id: ShardId,
    plan: &Arc<Plan>,
    router: &Router,
    status: Option<Rc<Status>>,
) -> anyhow::Result<()> {
    let config = &plan.config;
    let edge = Edge::new(router.clone(), grpc_config(plan), server_facts(plan));
    let counted = Rc::clone(&edge);
    router.set_edge_stats(Box::new(move || counted.counters()));
    let connections = Connections::share_of(config.connections_max, plan.shards);
    let stop = stopped({
        let plan = Arc::clone(plan);
        async move { plan.stage.stop_asked().await }
    });
    let mut addresses = vec![config.grpc_addr];
    addresses.extend(core_address(config.core_ports, config.grpc_addr, id));
    for address in addresses {
        let listener = Listener::bind(address).context("setting grpc_addr")?;
        let edge = Rc::clone(&edge);
        let serve = move |socket, stop| serve_connection(socket, Rc::clone(&edge), stop);
        spawn_local(accept(listener, connections.clone(), stop.clone(), serve)).detach();
    }
    if id.0 == 0 {
        if let Some(status) = &status {
            status.serving(router.clone());
        }
        tracing::info!(grpc = %config.grpc_addr, http = %config.http_addr, "ready");
        let signals = plan.signals.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut signals) = signals {
            let stopping = Arc::clone(plan);
            spawn_local(async move {
                let signal = signals.next().await;
                tracing::info!(?signal, "stopping: draining connections; a second signal ends at once");
                stopping.stage.stop();
                signals.next().await;
                std::process::exit(130);
            })
            .detach();
        }
    }
    plan.stage.stop_asked().await;
    if let Some(status) = &status {
        status.stopping();
    }
    connections.drained(config.shutdown_timeout_ms).await;
    Ok(())
}

fn core_address(core_ports: Option<u16>, shared: SocketAddr, id: ShardId) -> Option<SocketAddr> {
    let mut address = shared;
    address.set_port(core_ports?.checked_add(id.0)?);
    Some(address)
}

/// An address as clients are told it: without the host if that stands for every address, which nobody can connect to.
fn told(address: SocketAddr) -> String {
    if address.ip().is_unspecified() { format!(":{}", address.port()) } else { address.to_string() }
}

fn grpc_config(plan: &Plan) -> GrpcConfig {
    let config = &plan.config;
    let defaults = GrpcConfig::default();
    // With little memory not all of it goes to requests.
    let share = config.memory_bytes / u64::from(plan.shards) / 4;
    let large_request_bytes_max =
        defaults.large_request_bytes_max.min(usize::try_from(share).unwrap_or(usize::MAX));
    GrpcConfig {
        large_request_bytes_max,
        keepalive_interval: Duration::from_millis(config.keepalive_ms),
        streams_max: config.connection_streams_max,
        handshake_timeout: Duration::from_millis(config.handshake_timeout_ms),
        keepalive_timeout: Duration::from_millis(config.keepalive_timeout_ms),
        idle_timeout: config.idle_timeout_ms.map_or(Duration::MAX, Duration::from_millis),
        drain_timeout: Duration::from_millis(config.shutdown_timeout_ms),
        ..defaults
    }
}

fn server_facts(plan: &Plan) -> ServerFacts {
    let shard_addresses = (0..plan.shards).map(ShardId).map(|id| {
        core_address(plan.config.core_ports, plan.config.grpc_addr, id).map_or_else(String::new, told)
    });
    ServerFacts {
        version: env!("CARGO_PKG_VERSION"),
        started_at: plan.started_at,
        durability: plan.config.durability,
        auto_create: plan.config.auto_create,
        shared_address: told(plan.config.grpc_addr),
        shard_addresses: shard_addresses.collect(),
        slots: Arc::clone(&plan.slots),
        slot_map_version: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_no_host_that_they_cannot_connect_to() {
        for (listens, is_told) in [
            ("0.0.0.0:50051", ":50051"),
            ("[::]:50051", ":50051"),
            ("10.0.0.7:50051", "10.0.0.7:50051"),
            ("[::1]:50051", "[::1]:50051"),
        ] {
            assert_eq!(told(listens.parse().unwrap()), is_told);
        }
    }
}
