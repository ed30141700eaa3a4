//! Metrics of single queues, partitions and groups, under the names of older FlowMesh servers. Only
//! [`METRIC_RESOURCES_MAX`](flowmesh_model::limits::METRIC_RESOURCES_MAX) of each kind have labels of their own; the
//! rest is added up under the name `other`, without a tenant, which no resource can have.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use flowmesh_engine::metrics::resources::{
    GroupCounts, GroupHolds, GroupPartition, Merge, OffsetCounts, OffsetHolds, PartitionCounts,
    PartitionHeld, QueueCounts, QueueHolds, Row, Rows,
};
use flowmesh_engine::metrics::{OffsetRows, Spans, Spread};
use flowmesh_model::reply::QueueStatus;
use flowmesh_model::{Catalog, PartitionRef, ResourceId, ResourceInfo, ResourcePath, Settings};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;

use super::{Scrape, ShardLabel, put_durations, put_spread};

type Queue = Row<QueueCounts, QueueHolds>;
type Partition = Row<PartitionCounts, PartitionHeld>;
type Group = Row<GroupCounts, GroupHolds>;
type Offsets = Row<OffsetCounts, OffsetHolds>;

/// A name without the suffix of its type, its help, and the number it says.
pub(super) type Numbers<T> = (&'static str, &'static str, fn(&T) -> u64);

/// A name, its help, and the durations it says.
type Durations<T> = (&'static str, &'static str, fn(&T) -> &Spans);

const QUEUE_GAUGES: &[Numbers<Queue>] = &[
    ("flowmesh_queue_depth", "Jobs that are neither done nor dead: pending and in flight", |q| {
        q.holds.held.status.waiting() + q.holds.held.status.leased
    }),
    ("flowmesh_queue_pending", "Jobs that wait for a worker, for their time or for other jobs", |q| {
        q.holds.held.status.waiting()
    }),
    ("flowmesh_queue_in_flight", "Jobs that a worker has a lease of", |q| q.holds.held.status.leased),
    ("flowmesh_queue_dlq_jobs", "Dead jobs: out of attempts, and kept", |q| q.holds.held.status.dead),
    ("flowmesh_queue_waiting_bytes", "Headers and payloads of jobs that wait", |q| {
        q.holds.held.status.waiting_bytes
    }),
    ("flowmesh_queue_paused", "1 if the queue gives no job out", |q| q.holds.paused),
    ("flowmesh_queue_schedules", "Schedules of the queue", |q| q.holds.held.schedules),
    ("flowmesh_queue_schedules_held_back", "Schedules whose time has come and that find no room", |q| {
        q.holds.held.schedules_held_back
    }),
    ("flowmesh_queue_outbox_jobs", "Jobs on their way to other queues and streams", |q| {
        q.holds.held.status.outbox
    }),
    ("flowmesh_queue_total_jobs", "Alias of flowmesh_queue_jobs_enqueued_total", |q| q.counts.enqueued),
    ("flowmesh_queue_completed_jobs", "Alias of flowmesh_queue_jobs_completed_total", |q| q.counts.completed),
    ("flowmesh_queue_failed_jobs", "Alias of flowmesh_queue_jobs_failed_total", |q| q.counts.failed),
];

const QUEUE_COUNTERS: &[Numbers<Queue>] = &[
    ("flowmesh_queue_jobs_enqueued", "Jobs enqueued", |q| q.counts.enqueued),
    ("flowmesh_queue_jobs_completed", "Jobs acknowledged", |q| q.counts.completed),
    ("flowmesh_queue_jobs_failed", "Deliveries that were given back or whose lease ran out", |q| {
        q.counts.failed
    }),
    ("flowmesh_queue_jobs_sent", "Jobs and copies of jobs that went to other queues and streams", |q| {
        q.counts.sent
    }),
    (
        "flowmesh_queue_jobs_send_failed",
        "Jobs that will never get to the queue or stream they were sent to",
        |q| q.counts.send_failed,
    ),
    ("flowmesh_queue_jobs_retried", "Attempts that failed and were followed by another", |q| {
        q.counts.tally.retried
    }),
    ("flowmesh_queue_jobs_died", "Jobs that died", |q| q.counts.tally.died),
    ("flowmesh_queue_jobs_expired", "Jobs that nobody had in their time to live", |q| q.counts.tally.expired),
    ("flowmesh_queue_jobs_cancelled", "Jobs cancelled", |q| q.counts.tally.cancelled),
    ("flowmesh_queue_jobs_dropped", "Jobs dropped because the queue was full", |q| q.counts.tally.dropped),
    ("flowmesh_queue_jobs_purged", "Dead jobs that are not kept any more", |q| q.counts.tally.purged),
    ("flowmesh_queue_leases_expired", "Leases that ran out without an answer", |q| {
        q.counts.tally.leases_expired
    }),
    ("flowmesh_queue_schedule_firings", "Jobs that schedules enqueued", |q| q.counts.tally.firings),
    ("flowmesh_queue_schedule_missed", "Times of schedules that were missed and left out", |q| {
        q.counts.tally.missed
    }),
];

/// Jobs in one state.
type JobsOf = fn(&QueueStatus) -> u64;

/// Jobs by state, as the status of a queue has them.
const STATES: [(&str, JobsOf); 6] = [
    ("ready", |status| status.ready),
    ("delayed", |status| status.delayed),
    ("blocked", |status| status.blocked),
    ("leased", |status| status.leased),
    ("dead", |status| status.dead),
    ("done", |status| status.done),
];

/// A name, its help, and the waits or runs of jobs it says.
type Spreads = (&'static str, &'static str, fn(&Queue) -> &Spread);

const QUEUE_SPREADS: &[Spreads] = &[
    ("flowmesh_queue_wait_duration_seconds", "How long jobs were ready before they were leased", |q| {
        &q.counts.tally.wait
    }),
    ("flowmesh_queue_run_duration_seconds", "How long jobs were leased before they were acknowledged", |q| {
        &q.counts.tally.run
    }),
];

const QUEUE_DURATIONS: &[Durations<Queue>] = &[
    ("flowmesh_queue_enqueue_duration_seconds", "Enqueues, on their shard", |q| &q.counts.enqueue_ns),
    ("flowmesh_queue_reserve_duration_seconds", "Reserves, on their shard, waits included", |q| {
        &q.counts.reserve_ns
    }),
];

const PARTITION_GAUGES: &[Numbers<Partition>] = &[
    ("flowmesh_stream_offset", "The offset the next record gets", |p| p.holds.next.0),
    ("flowmesh_stream_earliest_offset", "The first record there is", |p| p.holds.earliest.0),
    ("flowmesh_stream_stored_bytes", "Packed bytes of all segments", |p| p.holds.bytes),
    ("flowmesh_stream_dirty_bytes", "Closed segments that were not compacted yet", |p| p.holds.dirty_bytes),
];

const PARTITION_COUNTERS: &[Numbers<Partition>] = &[
    ("flowmesh_stream_events", "Records appended", |p| p.counts.records),
    ("flowmesh_stream_bytes_written", "Packed bytes of records appended", |p| p.counts.bytes_written),
    ("flowmesh_stream_bytes_read", "Packed bytes of records read", |p| p.counts.bytes_read),
];

const PARTITION_DURATIONS: &[Durations<Partition>] = &[
    ("flowmesh_stream_write_duration_seconds", "Appends, on their shard", |p| &p.counts.write_ns),
    ("flowmesh_stream_read_duration_seconds", "Reads, on their shard, waits included", |p| &p.counts.read_ns),
];

const GROUP_GAUGES: &[Numbers<Group>] = &[
    ("flowmesh_consumer_group_members", "Members of the group", |g| g.holds.members),
    ("flowmesh_consumer_group_partitions", "Partitions of the streams it reads", |g| g.holds.partitions),
    ("flowmesh_consumer_group_assigned_partitions", "Partitions that have the owner they shall have", |g| {
        g.holds.assigned
    }),
];

const GROUP_COUNTERS: &[Numbers<Group>] =
    &[("flowmesh_consumer_group_rebalances", "How often partitions were dealt out anew", |g| {
        g.counts.rebalances
    })];

const OFFSET_COUNTERS: &[Numbers<Offsets>] =
    &[("flowmesh_consumer_group_offset_commits", "Offsets committed", |o| o.counts.commits)];

/// What stands for all that have no labels of their own.
pub(super) const OTHER: &str = "other";

/// The rows of one kind, with their labels.
pub(super) struct Labelled<L, C, H>(pub Vec<(L, Row<C, H>)>);

/// Tenant, namespace, queue or group or store.
pub(super) type QueueLabels = [(&'static str, String); 3];

/// Tenant, namespace, stream, partition.
type PartitionLabels = [(&'static str, String); 4];

/// Tenant and namespace of the group, stream, partition, group.
type OffsetLabels = [(&'static str, String); 5];

/// Writes all families of queues, partitions and groups out.
pub(super) fn encode(scrape: &Scrape, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let queues = label(scrape.cores.iter().map(|core| &core.shard.queues), &scrape.catalog, queue_labels);
    queues.gauges(encoder, QUEUE_GAUGES)?;
    queues.counters(encoder, QUEUE_COUNTERS)?;
    let help = "For how long the oldest job that is ready has been so, about";
    let mut family =
        encoder.encode_descriptor("flowmesh_queue_oldest_job_age_seconds", help, None, MetricType::Gauge)?;
    for (labels, row) in &queues.0 {
        let oldest_ready_ms = row.holds.held.status.oldest_ready_ms;
        family.encode_family(labels)?.encode_gauge(&(oldest_ready_ms as f64 / 1e3))?;
    }
    jobs(&queues, encoder)?;
    queues.durations(encoder, QUEUE_DURATIONS)?;
    for (name, help, spread) in QUEUE_SPREADS {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, row) in &queues.0 {
            put_spread(family.encode_family(labels)?, spread(row))?;
        }
    }
    let cores = scrape.cores.iter().map(|core| &core.shard.partitions);
    let partitions = label(cores, &scrape.catalog, partition_labels);
    partitions.gauges(encoder, PARTITION_GAUGES)?;
    partitions.counters(encoder, PARTITION_COUNTERS)?;
    partitions.durations(encoder, PARTITION_DURATIONS)?;
    let cores = scrape.cores.iter().map(|core| &core.shard.groups);
    let groups = label(cores, &scrape.catalog, group_labels);
    groups.gauges(encoder, GROUP_GAUGES)?;
    groups.counters(encoder, GROUP_COUNTERS)?;
    replayed(scrape, encoder)?;
    let cores = || scrape.cores.iter().map(|core| &core.shard.offsets);
    label(cores(), &scrape.catalog, offset_labels).counters(encoder, OFFSET_COUNTERS)?;
    committed(scrape, cores(), encoder)?;
    lag(scrape, cores(), encoder)
}

/// Jobs of each queue by state.
fn jobs(
    queues: &Labelled<QueueLabels, QueueCounts, QueueHolds>,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let mut family =
        encoder.encode_descriptor("flowmesh_queue_jobs", "Jobs by state", None, MetricType::Gauge)?;
    for ([tenant, namespace, queue], row) in &queues.0 {
        for (state, count) in STATES {
            let labels = [tenant.clone(), namespace.clone(), queue.clone(), ("state", state.to_owned())];
            let count = i64::try_from(count(&row.holds.held.status)).unwrap_or(i64::MAX);
            family.encode_family(&labels)?.encode_gauge(&count)?;
        }
    }
    Ok(())
}

/// How far replay sessions are, each on the shard of its sandbox.
fn replayed(scrape: &Scrape, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let shards = || scrape.cores.iter().map(|core| &core.shard.groups);
    let (name, help) = ("flowmesh_replay_records", "Records that the session has gone past");
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    if shards().flat_map(|shard| &shard.own).all(|(_, row)| row.holds.replayed.is_none()) {
        return Ok(());
    }
    let session = |info: &'_ Arc<ResourceInfo>| match &info.settings {
        Settings::Replay(replay) => Some((replay.group.clone(), info.path.clone())),
        _ => None,
    };
    let session_of: HashMap<String, ResourcePath> = scrape.catalog.iter().filter_map(session).collect();
    let session_labels = |catalog: &Catalog, group: Option<ResourceId>| {
        const NAMES: [&str; 3] = ["tenant", "namespace", "session"];
        let Some(id) = group else { return Some(labels(["", "", OTHER], NAMES)) };
        let path = session_of.get(&catalog.get(id)?.path.to_string())?;
        Some(labels([path.tenant(), path.namespace(), path.name()], NAMES))
    };
    for (labels, row) in &label(shards(), &scrape.catalog, session_labels).0 {
        if let Some(records) = row.holds.replayed {
            family.encode_family(labels)?.encode_gauge(&i64::try_from(records).unwrap_or(i64::MAX))?;
        }
    }
    Ok(())
}

/// Committed offsets. There is none where all were forgotten.
fn committed<'a>(
    scrape: &Scrape,
    shards: impl Iterator<Item = &'a OffsetRows>,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let name = "flowmesh_consumer_group_committed_offset";
    let help = "The next offset that the group reads, as it committed it";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, row) in &label(shards, &scrape.catalog, offset_labels).0 {
        if let Some(offset) = row.holds.committed {
            family.encode_family(labels)?.encode_gauge(&i64::try_from(offset.0).unwrap_or(i64::MAX))?;
        }
    }
    Ok(())
}

/// How far groups are behind: only of those with labels of their own, since it takes a look at each partition.
fn lag<'a>(
    scrape: &Scrape,
    shards: impl Iterator<Item = &'a OffsetRows>,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let help = "Records of the partition from the committed offset on";
    let mut family =
        encoder.encode_descriptor("flowmesh_consumer_group_lag", help, None, MetricType::Gauge)?;
    for (key, row) in shards.flat_map(|shard| &shard.own) {
        let labels = offset_labels(&scrape.catalog, Some(*key));
        if let (Some(labels), Some(committed), Some(end)) =
            (labels, row.holds.committed, scrape.ends.get(&key.1))
        {
            let lag = i64::try_from(end.0.saturating_sub(committed.0)).unwrap_or(i64::MAX);
            family.encode_family(&labels)?.encode_gauge(&lag)?;
        }
    }
    Ok(())
}

fn offset_labels(catalog: &Catalog, key: Option<GroupPartition>) -> Option<OffsetLabels> {
    const NAMES: [&str; 5] = ["tenant", "namespace", "stream", "partition", "consumer_group"];
    let Some((group, at)) = key else { return Some(labels(["", "", OTHER, OTHER, OTHER], NAMES)) };
    let (group, stream) = (&catalog.get(group)?.path, &catalog.get(at.resource)?.path);
    // Most often both are of one namespace; a stream of another is named in full.
    let same = (stream.tenant(), stream.namespace()) == (group.tenant(), group.namespace());
    let stream = if same { stream.name().to_owned() } else { stream.to_string() };
    let partition = at.partition.to_string();
    Some(labels([group.tenant(), group.namespace(), &stream, &partition, group.name()], NAMES))
}

fn queue_labels(catalog: &Catalog, queue: Option<ResourceId>) -> Option<QueueLabels> {
    let Some(id) = queue else { return Some(labels(["", "", OTHER], ["tenant", "namespace", "queue"])) };
    let path = &catalog.get(id)?.path;
    Some(labels([path.tenant(), path.namespace(), path.name()], ["tenant", "namespace", "queue"]))
}

fn group_labels(catalog: &Catalog, group: Option<ResourceId>) -> Option<QueueLabels> {
    const NAMES: [&str; 3] = ["tenant", "namespace", "consumer_group"];
    let Some(id) = group else { return Some(labels(["", "", OTHER], NAMES)) };
    let path = &catalog.get(id)?.path;
    Some(labels([path.tenant(), path.namespace(), path.name()], NAMES))
}

fn partition_labels(catalog: &Catalog, at: Option<PartitionRef>) -> Option<PartitionLabels> {
    const NAMES: [&str; 4] = ["tenant", "namespace", "stream", "partition"];
    let Some(at) = at else { return Some(labels(["", "", OTHER, OTHER], NAMES)) };
    let path = &catalog.get(at.resource)?.path;
    Some(labels([path.tenant(), path.namespace(), path.name(), &at.partition.to_string()], NAMES))
}

pub(super) fn labels<const N: usize>(
    values: [&str; N],
    names: [&'static str; N],
) -> [(&'static str, String); N] {
    let mut values = values.into_iter();
    names.map(|name| (name, values.next().unwrap_or_default().to_owned()))
}

/// The rows of all shards, with labels. One that the catalog does not have any more is left out.
fn label<'a, K: Copy + 'a, C: Merge + Clone + PartialEq + 'a, H: Merge + Clone + PartialEq + 'a, L>(
    shards: impl Iterator<Item = &'a Rows<K, C, H>>,
    catalog: &Catalog,
    labels: impl Fn(&Catalog, Option<K>) -> Option<L>,
) -> Labelled<L, C, H> {
    let mut other = Row::default();
    let mut rows = Vec::new();
    for shard in shards {
        other.merge(&shard.other);
        let own = shard.own.iter();
        rows.extend(own.filter_map(|(key, row)| Some((labels(catalog, Some(*key))?, row.clone()))));
    }
    if other != Row::default() {
        rows.extend(labels(catalog, None).map(|labels| (labels, other)));
    }
    Labelled(rows)
}

impl<L: EncodeLabelSet, C, H> Labelled<L, C, H> {
    pub(super) fn gauges(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        families: &[Numbers<Row<C, H>>],
    ) -> fmt::Result {
        for (name, help, number) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, row) in &self.0 {
                let value = i64::try_from(number(row)).unwrap_or(i64::MAX);
                family.encode_family(labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    pub(super) fn counters(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        families: &[Numbers<Row<C, H>>],
    ) -> fmt::Result {
        for (name, help, number) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, row) in &self.0 {
                family.encode_family(labels)?.encode_counter::<ShardLabel, _, f64>(&number(row), None)?;
            }
        }
        Ok(())
    }

    fn durations(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        families: &[Durations<Row<C, H>>],
    ) -> fmt::Result {
        for (name, help, spans) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (labels, row) in &self.0 {
                put_durations(family.encode_family(labels)?, spans(row))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use flowmesh_model::{CatalogVersion, Kind, Millis, Offset, ResourceInfo, ResourcePath, Settings};

    use flowmesh_engine::metrics::resources::QueueHeld;

    use super::super::render;
    use super::*;
    use crate::router::message::CoreStats;

    fn catalog() -> Arc<Catalog> {
        let info = |id, kind, name| {
            let path = ResourcePath::parse(kind, name).unwrap();
            Arc::new(ResourceInfo::new(ResourceId(id), path, Settings::default_for(kind), Millis(0)))
        };
        let resources = [
            info(1, Kind::Queue, "acme/prod/mail"),
            info(2, Kind::Stream, "logs"),
            info(4, Kind::Group, "billing"),
            info(5, Kind::Group, "acme/prod/audit"),
        ];
        Arc::new(Catalog::new(CatalogVersion(1), resources))
    }

    fn core() -> CoreStats {
        let mut core = CoreStats::default();
        let mut mail = Queue::default();
        let status = QueueStatus {
            ready: 2,
            delayed: 1,
            blocked: 3,
            leased: 4,
            dead: 8,
            oldest_ready_ms: 1500,
            waiting_bytes: 99,
            paused: true,
            ..QueueStatus::default()
        };
        mail.holds = QueueHeld { status, schedules: 5, schedules_held_back: 1 }.into();
        mail.counts.tally.dropped = 6;
        mail.counts.tally.wait.record(700);
        mail.counts.enqueued = 20;
        mail.counts.enqueue_ns.record(20_000);
        let mut logs = Partition::default();
        logs.holds.next = Offset(9);
        logs.counts.bytes_read = 77;
        // The last one was deleted since the shard counted it.
        core.shard.queues.own = vec![(ResourceId(1), mail.clone()), (ResourceId(3), mail.clone())];
        let at = PartitionRef { resource: ResourceId(2), partition: 5 };
        core.shard.partitions.own = vec![(at, logs)];
        let offsets = |offset| Offsets {
            counts: OffsetCounts { commits: 3 },
            holds: OffsetHolds { committed: Some(Offset(offset)) },
        };
        let groups = [(ResourceId(4), offsets(6)), (ResourceId(5), offsets(8))];
        core.shard.offsets.own = groups.map(|(group, row)| ((group, at), row)).to_vec();
        core
    }

    fn text(cores: Vec<CoreStats>) -> String {
        let ends = HashMap::from([(PartitionRef { resource: ResourceId(2), partition: 5 }, Offset(9))]);
        render(Scrape { cores, ends, catalog: catalog(), storage: None }).unwrap()
    }

    #[test]
    fn queues_and_partitions_have_the_names_and_labels_that_were_promised() {
        let text = text(vec![core()]);
        let queue = r#"{tenant="acme",namespace="prod",queue="mail"}"#;
        let blocked = r#"{tenant="acme",namespace="prod",queue="mail",state="blocked"}"#;
        let below = r#"{le="1.0",tenant="acme",namespace="prod",queue="mail"}"#;
        let partition = r#"{tenant="default",namespace="default",stream="logs",partition="5"}"#;
        let of = |scope: &str, stream: &str, group: &str| {
            format!(r#"{{{scope},stream="{stream}",partition="5",consumer_group="{group}"}}"#)
        };
        let billing = of(r#"tenant="default",namespace="default""#, "logs", "billing");
        let audit = of(r#"tenant="acme",namespace="prod""#, "default/default/stream/logs", "audit");
        for line in [
            format!("flowmesh_queue_depth{queue} 10"),
            format!("flowmesh_queue_pending{queue} 6"),
            format!("flowmesh_queue_waiting_bytes{queue} 99"),
            format!("flowmesh_queue_paused{queue} 1"),
            format!("flowmesh_queue_schedules{queue} 5"),
            format!("flowmesh_queue_schedules_held_back{queue} 1"),
            format!("flowmesh_queue_jobs_dropped_total{queue} 6"),
            format!("flowmesh_queue_jobs{blocked} 3"),
            format!("flowmesh_queue_wait_duration_seconds_bucket{below} 1"),
            format!("flowmesh_queue_wait_duration_seconds_sum{queue} 0.7"),
            format!("flowmesh_queue_in_flight{queue} 4"),
            format!("flowmesh_queue_dlq_jobs{queue} 8"),
            format!("flowmesh_queue_oldest_job_age_seconds{queue} 1.5"),
            format!("flowmesh_queue_total_jobs{queue} 20"),
            format!("flowmesh_queue_jobs_enqueued_total{queue} 20"),
            format!("flowmesh_queue_enqueue_duration_seconds_count{queue} 1"),
            format!("flowmesh_stream_offset{partition} 9"),
            format!("flowmesh_stream_bytes_read_total{partition} 77"),
            format!("flowmesh_consumer_group_lag{billing} 3"),
            format!("flowmesh_consumer_group_committed_offset{billing} 6"),
            format!("flowmesh_consumer_group_offset_commits_total{billing} 3"),
            format!("flowmesh_consumer_group_lag{audit} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("flowmesh_queue_depth{").count(), 1, "what was deleted has no name: {text}");
        let left_out = |line: &&str| !line.starts_with('#') && line.contains(OTHER);
        assert_eq!(text.lines().find(left_out), None, "nobody was left out");
    }

    #[test]
    fn the_rest_of_all_shards_is_one_row_without_a_tenant() {
        let mut cores = vec![CoreStats::default(), CoreStats::default()];
        for core in &mut cores {
            core.shard.queues.other.counts.completed = 3;
            core.shard.queues.other.holds.held.status.leased = 5;
        }
        let text = text(cores);
        let other = r#"{tenant="",namespace="",queue="other"}"#;
        for line in [
            format!("flowmesh_queue_jobs_completed_total{other} 6"),
            format!("flowmesh_queue_in_flight{other} 10"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
