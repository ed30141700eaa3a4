//! Metrics as Prometheus reads them. Shards count in plain numbers of their own; here copies of those are written out,
//! with the shard as a label. Names follow Prometheus' conventions (base units, `_total`); names of older FlowMesh
//! servers exist beside them, as [`resources`] and [`server`] have them.

mod resources;
mod server;
mod stores;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use flowmesh_engine::metrics::{Histogram, Operation, OperationStats, Spans, Spread};
use flowmesh_model::replay::ReplayState;
use flowmesh_model::worker::WorkerState;
use flowmesh_model::{Catalog, Offset, PartitionRef};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::storage::PartBytes;
use crate::router::message::CoreStats;

/// The shard's number.
type ShardLabel = [(&'static str, String); 1];

const NO_LABELS: Option<
    &std::collections::HashMap<usize, prometheus_client::metrics::exemplar::Exemplar<ShardLabel, f64>>,
> = None;

/// All that is written out.
#[derive(Debug, Default)]
pub struct Scrape {
    /// The counters of all cores, by shard.
    pub cores: Vec<CoreStats>,
    /// Where partitions end that groups have committed offsets of, for their lag.
    pub ends: HashMap<PartitionRef, Offset>,
    /// The resources that numbers belong to.
    pub catalog: Arc<Catalog>,
    /// What the data directory takes, if somebody could look.
    pub storage: Option<PartBytes>,
}

/// All metrics of all cores, in the text format of Prometheus (OpenMetrics 1.0).
///
/// # Errors
/// None in practice: writing to a string does not fail.
pub fn render(scrape: Scrape) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// A number of a core, for a family with one value a shard.
type Number = fn(&CoreStats) -> u64;

const COUNTERS: &[(&str, &str, Number)] = &[
    ("flowmesh_log_entries", "Entries given an LSN, since the data directory was made", |c| c.shard.last_lsn),
    ("flowmesh_checkpoint_failures", "Checkpoints that failed; the log keeps everything", |c| {
        c.shard.checkpoint_failures
    }),
    ("flowmesh_compaction_records_read", "Records that compaction looked at", |c| {
        c.shard.compaction.records_in
    }),
    ("flowmesh_compaction_records_kept", "Records of them that it kept", |c| c.shard.compaction.records_out),
    ("flowmesh_compaction_bytes_read", "Packed bytes of records that compaction looked at", |c| {
        c.shard.compaction.bytes_in
    }),
    ("flowmesh_compaction_bytes_kept", "Packed bytes of records that it kept", |c| {
        c.shard.compaction.bytes_out
    }),
    ("flowmesh_compaction_disk_bytes", "Bytes that compaction read from and wrote to the disk", |c| {
        c.shard.compaction.disk_bytes
    }),
    ("flowmesh_compaction_failures", "Compactions that failed; the files are as they were", |c| {
        c.shard.compaction.failures
    }),
    ("flowmesh_cold_value_waits", "Commands that waited for values of stores that had left memory", |c| {
        c.shard.value_waits
    }),
    ("flowmesh_cold_values_read", "Values of stores read from the index", |c| c.shard.values_read),
    ("flowmesh_recovered_facts", "Facts read from the log at start", |c| c.shard.recovered_facts),
    ("flowmesh_hops_out", "Requests sent to shards of other cores", |c| c.hops_out),
    ("flowmesh_hops_in", "Requests of other cores carried out", |c| c.hops_in),
    ("flowmesh_connections", "gRPC connections accepted", |c| c.edge.connections_total),
];

const GAUGES: &[(&str, &str, Number)] = &[
    ("flowmesh_synced_lsn", "The last entry on disk", |c| c.shard.synced_lsn),
    ("flowmesh_checkpoint_lsn", "The entry of the last checkpoint", |c| c.shard.checkpoint_lsn),
    ("flowmesh_log_bytes", "Commit log that a restart would read", |c| c.shard.log_bytes),
    ("flowmesh_memory_bytes", "Estimated memory of the shard's state", |c| c.shard.memory_bytes),
    ("flowmesh_parked_replies", "Replies that wait for the disk", |c| c.shard.parked_replies),
    ("flowmesh_stalled_writes", "Writes that wait for room in the log: the disk is behind", |c| {
        c.shard.stalled_writes
    }),
    ("flowmesh_waiting_commands", "Long polls that wait for something to arrive", |c| {
        c.shard.waiting_commands
    }),
    ("flowmesh_fenced", "1 if the shard is fenced after a failed write or sync", |c| c.shard.fenced),
    ("flowmesh_hops_pending", "Requests that other cores have not answered yet: the cross-core queue", |c| {
        c.hops_pending
    }),
    ("flowmesh_connections_open", "gRPC connections open now", |c| c.edge.connections_open),
    ("flowmesh_streams", "Stream partitions with records", |c| c.shard.state.partitions),
    ("flowmesh_stream_tail_bytes", "Records in memory", |c| c.shard.state.tail_bytes),
    ("flowmesh_compaction_dirty_bytes", "Closed segments of streams with compaction that wait for it", |c| {
        c.shard.state.dirty_bytes
    }),
    ("flowmesh_stream_producers", "Idempotent producers that are remembered", |c| c.shard.state.producers),
    ("flowmesh_queues", "Queues with jobs ever", |c| c.shard.state.queues),
    ("flowmesh_schedules", "Schedules of queues", |c| c.shard.state.schedules),
    ("flowmesh_schedules_held_back", "Schedules whose time has come and whose queue has no room", |c| {
        c.shard.state.schedules_held_back
    }),
    ("flowmesh_stores", "Key-value stores with keys ever", |c| c.shard.state.stores),
    ("flowmesh_keys", "Keys of key-value stores", |c| c.shard.state.keys),
    ("flowmesh_replay_session_records", "Records that the replay sessions there are have gone past", |c| {
        c.shard.state.replay_records
    }),
];

/// A number of one operation.
type OperationNumber = fn(&OperationStats) -> u64;

type HistogramOf = fn(&CoreStats) -> &Histogram;

const SPANS: &[(&str, &str, HistogramOf)] = &[
    ("flowmesh_commit_duration_seconds", "Write and sync of one commit", |c| &c.shard.commit_ns),
    ("flowmesh_checkpoint_duration_seconds", "One checkpoint", |c| &c.shard.checkpoint_ns),
    ("flowmesh_cold_value_read_duration_seconds", "Reading the values that one command waited for", |c| {
        &c.shard.value_read_ns
    }),
    ("flowmesh_compaction_duration_seconds", "One compaction of a partition", |c| {
        &c.shard.compaction.duration_ns
    }),
];

const SIZES: &[(&str, &str, HistogramOf)] = &[
    ("flowmesh_commit_entries", "Log entries that shared a commit", |c| &c.shard.commit_entries),
    ("flowmesh_commit_bytes", "Bytes that one commit wrote", |c| &c.shard.commit_bytes),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, number) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            self.each(|label, core| {
                family.encode_family(label)?.encode_counter::<ShardLabel, _, f64>(&number(core), None)
            })?;
        }
        for (name, help, number) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            self.each(|label, core| {
                let value = i64::try_from(number(core)).unwrap_or(i64::MAX);
                family.encode_family(label)?.encode_gauge(&value)
            })?;
        }
        for (name, help, spans) in SPANS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            self.each(|label, core| put_spans(family.encode_family(label)?, spans(core)))?;
        }
        for (name, help, sizes) in SIZES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            self.each(|label, core| put_sizes(family.encode_family(label)?, sizes(core)))?;
        }
        let (name, help) = ("flowmesh_schedule_lateness_seconds", "How late jobs of schedules were enqueued");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        self.each(|label, core| put_spread(family.encode_family(label)?, &core.shard.schedule_lateness))?;
        self.jobs(&mut encoder)?;
        self.replays(&mut encoder)?;
        self.workers(&mut encoder)?;
        self.operations(&mut encoder)?;
        self.calls(&mut encoder)?;
        server::encode(self, &mut encoder)?;
        resources::encode(self, &mut encoder)?;
        stores::encode(self, &mut encoder)
    }
}

impl Scrape {
    fn each(&self, mut put: impl FnMut(&ShardLabel, &CoreStats) -> fmt::Result) -> fmt::Result {
        self.cores.iter().enumerate().try_for_each(|(shard, core)| put(&[("shard", shard.to_string())], core))
    }

    fn jobs(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family =
            encoder.encode_descriptor("flowmesh_jobs", "Jobs by state", None, MetricType::Gauge)?;
        for (shard, core) in self.cores.iter().enumerate() {
            let state = &core.shard.state;
            for (name, count) in [
                ("ready", state.jobs_ready),
                ("delayed", state.jobs_delayed),
                ("blocked", state.jobs_blocked),
                ("leased", state.jobs_leased),
                ("dead", state.jobs_dead),
                ("done", state.jobs_done),
            ] {
                let labels = [("shard", shard.to_string()), ("state", name.to_owned())];
                family.encode_family(&labels)?.encode_gauge(&i64::try_from(count).unwrap_or(i64::MAX))?;
            }
        }
        Ok(())
    }

    fn replays(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = ("flowmesh_replay_sessions", "Replay sessions by state");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (shard, core) in self.cores.iter().enumerate() {
            for (state, count) in ReplayState::ALL.iter().zip(core.shard.state.replays) {
                let labels = [("shard", shard.to_string()), ("state", state.as_str().to_owned())];
                family.encode_family(&labels)?.encode_gauge(&i64::try_from(count).unwrap_or(i64::MAX))?;
            }
        }
        Ok(())
    }

    fn workers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = ("flowmesh_workers", "Workers that registered, by state");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (shard, core) in self.cores.iter().enumerate() {
            for (state, count) in WorkerState::ALL.iter().zip(core.shard.state.workers) {
                let labels = [("shard", shard.to_string()), ("state", state.as_str().to_owned())];
                family.encode_family(&labels)?.encode_gauge(&i64::try_from(count).unwrap_or(i64::MAX))?;
            }
        }
        Ok(())
    }

    fn operations(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let numbers: [(&str, &str, OperationNumber); 3] = [
            ("flowmesh_operations", "Commands, rejected ones included", |o| o.commands),
            ("flowmesh_operation_items", "Records, jobs and keys in them", |o| o.items),
            ("flowmesh_operation_rejections", "Commands that were rejected", |o| o.rejected),
        ];
        for (name, help, number) in numbers {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            self.each_operation(|labels, stats| {
                family.encode_family(labels)?.encode_counter::<ShardLabel, _, f64>(&number(stats), None)
            })?;
        }
        let help = "From arrival on the shard to the release of the reply; long polls include their wait";
        let mut family = encoder.encode_descriptor(
            "flowmesh_operation_duration_seconds",
            help,
            None,
            MetricType::Histogram,
        )?;
        self.each_operation(|labels, stats| put_spans(family.encode_family(labels)?, &stats.latency_ns))
    }

    fn each_operation(
        &self,
        mut put: impl FnMut(&[(&'static str, String); 2], &OperationStats) -> fmt::Result,
    ) -> fmt::Result {
        for (shard, core) in self.cores.iter().enumerate() {
            for (operation, stats) in Operation::ALL.iter().zip(&core.shard.operations) {
                put(&[("operation", operation.as_str().to_owned()), ("shard", shard.to_string())], stats)?;
            }
        }
        Ok(())
    }

    fn calls(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "gRPC calls that ended, by method and status";
        let mut family = encoder.encode_descriptor("flowmesh_grpc_calls", help, None, MetricType::Counter)?;
        for (shard, core) in self.cores.iter().enumerate() {
            for (method, status, count) in &core.edge.calls {
                let labels = [
                    ("method", (*method).to_owned()),
                    ("shard", shard.to_string()),
                    ("status", (*status).to_owned()),
                ];
                family.encode_family(&labels)?.encode_counter::<ShardLabel, _, f64>(count, None)?;
            }
        }
        Ok(())
    }
}

/// A histogram of few buckets, in seconds.
fn put_durations(mut encoder: MetricEncoder<'_>, spans: &Spans) -> fmt::Result {
    let seconds = |bound: u64| if bound == u64::MAX { f64::MAX } else { bound as f64 * 1e-9 };
    let buckets: Vec<(f64, u64)> = spans.buckets().map(|(bound, count)| (seconds(bound), count)).collect();
    encoder.encode_histogram(spans.sum_ns() as f64 * 1e-9, spans.count(), &buckets, NO_LABELS)
}

/// Waits and runs of jobs, in seconds.
fn put_spread(mut encoder: MetricEncoder<'_>, spread: &Spread) -> fmt::Result {
    let seconds = |bound: u64| if bound == u64::MAX { f64::MAX } else { bound as f64 / 1e3 };
    let buckets: Vec<(f64, u64)> = spread.buckets().map(|(bound, count)| (seconds(bound), count)).collect();
    encoder.encode_histogram(spread.sum_ms() as f64 / 1e3, spread.count(), &buckets, NO_LABELS)
}

/// Powers of two from 16 µs to 8.6 s, in nanoseconds: where the histogram's own buckets end.
const SPAN_POWERS: std::ops::RangeInclusive<u32> = 14..=33;

/// Powers of two from 1 to 16 Mi.
const SIZE_POWERS: std::ops::RangeInclusive<u32> = 0..=24;

fn put_spans(encoder: MetricEncoder<'_>, histogram: &Histogram) -> fmt::Result {
    put_histogram(encoder, histogram, SPAN_POWERS, 1e-9)
}

fn put_sizes(encoder: MetricEncoder<'_>, histogram: &Histogram) -> fmt::Result {
    put_histogram(encoder, histogram, SIZE_POWERS, 1.0)
}

fn put_histogram(
    mut encoder: MetricEncoder<'_>,
    histogram: &Histogram,
    powers: std::ops::RangeInclusive<u32>,
    unit: f64,
) -> fmt::Result {
    let mut below = 0;
    let mut buckets: Vec<(f64, u64)> = powers
        .map(|power| {
            let all = histogram.at_most((1 << power) - 1);
            let count = all - below;
            below = all;
            ((1u64 << power) as f64 * unit, count)
        })
        .collect();
    buckets.push((f64::MAX, histogram.count() - below));
    encoder.encode_histogram(histogram.sum() as f64 * unit, histogram.count(), &buckets, NO_LABELS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_and_operation_is_written_out() {
        let mut cores = vec![CoreStats::default(), CoreStats::default()];
        let stats = cores[1].shard.operation_mut(Operation::KvSet);
        stats.commands = 3;
        stats.latency_ns.record(20_000);
        cores[1].edge.calls.push(("flowmesh.v1.Kv/Set", "OK", 3));
        let text = render(Scrape { cores, ..Scrape::default() }).unwrap();
        for line in [
            "flowmesh_operations_total{operation=\"kv_set\",shard=\"1\"} 3",
            "flowmesh_operations_total{operation=\"kv_set\",shard=\"0\"} 0",
            "flowmesh_operation_duration_seconds_bucket{le=\"0.000032768\",operation=\"kv_set\",shard=\"1\"} 1",
            "flowmesh_grpc_calls_total{method=\"flowmesh.v1.Kv/Set\",shard=\"1\",status=\"OK\"} 3",
            "flowmesh_fenced{shard=\"0\"} 0",
        ] {
            let has = |line: &str| text.lines().any(|found| found == line);
            assert!(has(line) || text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
