//! Start and stop: settings in, one executor a core, each with its shard; in reverse at the end.
//!
//! 1. [`run`]: checks what the machine has, locks the [`datadir`], starts the cores.
//! 2. `core`: the life of one core: recover, serve, drain, checkpoint.
//! 3. `stage`: what the cores must agree on meanwhile: all recovered, stop asked, all drained.

mod core;
pub mod datadir;
mod stage;
mod timer;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use flowmesh_model::placement::SlotMap;
use flowmesh_model::{Durability, Millis, ShardId};
use flowmesh_rt::core::{CoreConfig, spawn_cores};
use flowmesh_rt::mesh::MeshBuilder;
use flowmesh_rt::signal::Signals;
use flowmesh_rt::{net, startup, time};

use crate::config::Config;
use crate::router::HOPS_PENDING_MAX;
use crate::router::message::Message;
use datadir::DataDir;
use stage::Stage;

pub use timer::RtTimer;

/// What every core gets.
struct Plan {
    config: Config,
    data: Option<DataDir>,
    shards: u16,
    slots: Arc<SlotMap>,
    hash_seed: u64,
    started_at: Millis,
    mesh: MeshBuilder<Message>,
    stage: Stage,
    signals: Mutex<Option<Signals>>,
}

/// Runs the server until SIGTERM or SIGINT asks it to stop and everything is on disk.
///
/// # Errors
/// Whatever kept it from starting, by name; or that a core died.
pub fn run(config: Config) -> anyhow::Result<()> {
    let signals = Signals::install().context("cannot take over SIGTERM and SIGINT")?;
    crate::telemetry::logs::init(&config);
    let data = match config.durability {
        Durability::Memory => None,
        _ => Some(DataDir::open(&config.data_dir, config.shards, config.shards_default)?),
    };
    let (shards, slots, hash_seed) = if let Some(data) = &data {
        let made = data.description();
        (made.shards, made.slots.clone(), made.hash_seed)
    } else {
        let shards = config.shards.unwrap_or(config.shards_default);
        (shards, SlotMap::new(shards), datadir::random_seed())
    };
    let cores: Vec<CoreConfig> = (0..shards).map(|shard| core_config(&config, ShardId(shard))).collect();
    for warning in startup::prepare(&cores)? {
        tracing::warn!("{warning}");
    }
    ensure_ports_free(&config, shards)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        shards,
        durability = config.durability.as_str(),
        data_dir = %config.data_dir.display(),
        "starting"
    );
    let plan = Arc::new(Plan {
        data,
        shards,
        slots: Arc::new(slots),
        hash_seed,
        started_at: Millis(time::now_ms()),
        mesh: MeshBuilder::new(usize::from(shards), 2 * HOPS_PENDING_MAX),
        stage: Stage::new(shards),
        signals: Mutex::new(Some(signals)),
        config,
    });
    let running = spawn_cores(&cores, "shard", move |core| core::live(core, Arc::clone(&plan)))?;
    running.join()?.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
    tracing::info!("stopped");
    Ok(())
}

fn core_config(config: &Config, shard: ShardId) -> CoreConfig {
    CoreConfig {
        cpu: Some(config.cpu_of(shard)),
        preempt_timer_us: config.preempt_us,
        spin_before_park_us: config.spin_us,
        ..CoreConfig::default()
    }
}

/// How long a server that has just died may still hold its ports: the kernel takes io_uring down in the background.
const PORT_WAIT: Duration = Duration::from_secs(3);

/// How often they are tried.
const PORT_RETRY: Duration = Duration::from_millis(10);

/// SO_REUSEPORT would let two servers share a port without a word.
fn ensure_ports_free(config: &Config, shards: u16) -> anyhow::Result<()> {
    let deadline = Instant::now() + PORT_WAIT;
    ensure_free(config.grpc_addr, deadline).context("setting grpc_addr")?;
    ensure_free(config.http_addr, deadline).context("setting http_addr")?;
    if let Some(first) = config.core_ports {
        for shard in 0..shards {
            let mut addr = config.grpc_addr;
            addr.set_port(first.saturating_add(shard));
            ensure_free(addr, deadline).context("setting core_ports")?;
        }
    }
    Ok(())
}

fn ensure_free(addr: SocketAddr, deadline: Instant) -> Result<(), net::BindError> {
    loop {
        match net::ensure_unused(addr) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(PORT_RETRY),
            outcome => return outcome,
        }
    }
}
