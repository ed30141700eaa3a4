//! What came of a run.

use std::collections::BTreeMap;

use serde::Serialize;

use super::spec::LoadSpec;
use super::stats::{LatencySummary, OpStats, Recorder};
use crate::meter::CpuUse;

/// A thread's part of a run.
#[derive(Debug)]
pub struct ThreadRun {
    /// Its core.
    pub cpu: usize,
    /// Seconds it was on the core.
    pub busy_s: f64,
    /// Seconds the run took.
    pub wall_s: f64,
    /// What it counted.
    pub recorder: Recorder,
}

/// One operation's figures.
#[derive(Clone, Debug, Serialize)]
pub struct OpResult {
    /// The operation, with batch and bytes of a value.
    pub op: String,
    /// Good calls (messages, for streams).
    pub calls: u64,
    /// Good calls a second.
    pub calls_per_s: f64,
    /// Items (records, jobs, keys) a second.
    pub items_per_s: f64,
    /// Bytes of values a second, in 10⁶.
    pub megabytes_per_s: f64,
    /// How long calls took.
    pub latency: LatencySummary,
    /// What went wrong, and how often.
    pub errors: BTreeMap<String, u64>,
}

/// A run's figures.
#[derive(Clone, Debug, Serialize)]
pub struct LoadResult {
    /// The run's name.
    pub name: String,
    /// Measured seconds.
    pub seconds: f64,
    /// Each operation.
    pub ops: Vec<OpResult>,
    /// Good calls of all operations.
    pub calls: u64,
    /// Calls a second of all operations.
    pub calls_per_s: f64,
    /// Items a second of all operations.
    pub items_per_s: f64,
    /// Bytes of values a second, in 10⁶.
    pub megabytes_per_s: f64,
    /// How long the calls of all operations took.
    pub latency: LatencySummary,
    /// Errors of all operations, warm-up included.
    pub errors: u64,
    /// The server's processor time.
    pub server: Option<ServerCpu>,
    /// How busy each of the generator's threads was, 0 to 1. At 1 the generator was the limit (or was told to spin).
    pub client_busy: Vec<f64>,
}

/// The server's processor time in a run.
#[derive(Clone, Debug, Serialize)]
pub struct ServerCpu {
    /// Cores in use, all threads.
    pub cores: f64,
    /// Cores in use by the busiest thread: the shard's, or one of the shards'.
    pub busiest_thread_cores: f64,
    /// Microseconds of all threads a call.
    pub us_per_call: f64,
    /// Microseconds of the busiest thread a call.
    pub busiest_us_per_call: f64,
    /// Microseconds of all threads an item.
    pub us_per_item: f64,
    /// All there is to know.
    pub detail: CpuUse,
}

impl LoadResult {
    /// Joins what the threads counted. `primary` says which operations sum up to the whole work.
    pub fn new(
        spec: &LoadSpec,
        names: Vec<String>,
        primary: &[bool],
        runs: Vec<ThreadRun>,
        server: Option<CpuUse>,
        measured_s: f64,
    ) -> Self {
        let seconds = spec.duration.as_secs_f64();
        let client_busy = runs.iter().map(|run| run.busy_s / run.wall_s.max(1e-9)).collect();
        let mut merged = vec![OpStats::default(); names.len()];
        for run in runs {
            for (into, op) in merged.iter_mut().zip(run.recorder.into_ops()) {
                into.add(&op);
            }
        }
        let mut whole = OpStats::default();
        for (op, _) in merged.iter().zip(primary).filter(|(_, primary)| **primary) {
            whole.add(op);
        }
        let errors = merged.iter().flat_map(|op| op.errors.values()).sum();
        let ops = names.into_iter().zip(&merged).map(|(name, op)| OpResult::new(name, op, seconds)).collect();
        let total = OpResult::new(String::new(), &whole, seconds);
        let server = server.map(|used| ServerCpu::new(used, measured_s, &total));
        Self {
            name: spec.name.clone(),
            seconds,
            ops,
            calls: whole.calls,
            calls_per_s: total.calls_per_s,
            items_per_s: total.items_per_s,
            megabytes_per_s: total.megabytes_per_s,
            latency: total.latency,
            errors,
            server,
            client_busy,
        }
    }
}

impl OpResult {
    fn new(op: String, stats: &OpStats, seconds: f64) -> Self {
        Self {
            op,
            calls: stats.calls,
            calls_per_s: stats.calls as f64 / seconds,
            items_per_s: stats.items as f64 / seconds,
            megabytes_per_s: stats.bytes as f64 / seconds / 1e6,
            latency: stats.latencies.summary(),
            errors: stats.errors.clone(),
        }
    }
}

impl ServerCpu {
    fn new(used: CpuUse, seconds: f64, total: &OpResult) -> Self {
        let seconds = seconds.max(1e-9);
        let (cores, busiest) = (used.total_s() / seconds, used.busiest_s() / seconds);
        let per = |cores: f64, rate: f64| if rate > 0.0 { cores * 1e6 / rate } else { 0.0 };
        Self {
            cores,
            busiest_thread_cores: busiest,
            us_per_call: per(cores, total.calls_per_s),
            busiest_us_per_call: per(busiest, total.calls_per_s),
            us_per_item: per(cores, total.items_per_s),
            detail: used,
        }
    }
}
