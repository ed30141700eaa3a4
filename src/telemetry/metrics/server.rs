//! Metrics of the server as a whole that older FlowMesh servers had: calls, resources, storage. Where their name breaks
//! Prometheus' conventions, or their labels differ from ours, the name is an alias of one of ours.

use std::collections::BTreeMap;
use std::fmt;

use flowmesh_engine::metrics::Spans;
use flowmesh_model::Kind;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{Scrape, ShardLabel, put_durations};

/// A name of what this server does not have yet. It is described, so that a dashboard or an alert that names it loads, and
/// has no sample: there is nothing to count.
const NOT_YET: &[(&str, &str, MetricType)] =
    &[("flowmesh_schema_registrations", "Schemas registered", MetricType::Counter)];

/// Writes them out.
pub(super) fn encode(scrape: &Scrape, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    resources(scrape, encoder)?;
    storage(scrape, encoder)?;
    durations_of_cores(scrape, encoder)?;
    requests(scrape, encoder)?;
    request_durations(scrape, encoder)?;
    for (name, help, metric) in NOT_YET {
        let help = format!("{help}. Not there yet");
        encoder.encode_descriptor(name, &help, None, *metric)?;
    }
    Ok(())
}

fn resources(scrape: &Scrape, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    for (name, help) in [
        ("flowmesh_resources", "Resources there are"),
        ("flowmesh_resources_total", "Alias of flowmesh_resources"),
    ] {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for kind in Kind::ALL {
            let count = scrape.catalog.iter().filter(|info| info.path.kind() == kind).count();
            let labels = [("kind", kind.to_string())];
            family.encode_family(&labels)?.encode_gauge(&i64::try_from(count).unwrap_or(i64::MAX))?;
        }
    }
    Ok(())
}

fn storage(scrape: &Scrape, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help =
        "What the data directory takes on the disk, allocated files included; looked at every ten seconds";
    let mut family =
        encoder.encode_descriptor("flowmesh_storage_size_bytes", help, None, MetricType::Gauge)?;
    for (part, bytes) in scrape.storage.iter().flatten() {
        let labels = [("part", *part)];
        family.encode_family(&labels)?.encode_gauge(&i64::try_from(*bytes).unwrap_or(i64::MAX))?;
    }
    Ok(())
}

fn durations_of_cores(scrape: &Scrape, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let name = "flowmesh_grpc_call_duration_seconds";
    let help = "gRPC calls, from when they were read to when their answer, or the end of it, was handed over";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (shard, core) in scrape.cores.iter().enumerate() {
        for (method, spans) in &core.edge.durations {
            let labels = [("method", (*method).to_owned()), ("shard", shard.to_string())];
            put_durations(family.encode_family(&labels)?, spans)?;
        }
    }
    Ok(())
}

fn requests(scrape: &Scrape, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut calls: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (method, status, count) in scrape.cores.iter().flat_map(|core| &core.edge.calls) {
        *calls.entry((method, status)).or_default() += count;
    }
    let help = "Alias of flowmesh_grpc_calls_total, over all shards";
    let mut family = encoder.encode_descriptor("flowmesh_api_requests", help, None, MetricType::Counter)?;
    for ((method, status), count) in calls {
        let labels = [("method", method), ("status", status)];
        family.encode_family(&labels)?.encode_counter::<ShardLabel, _, f64>(&count, None)?;
    }
    Ok(())
}

fn request_durations(scrape: &Scrape, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut methods: BTreeMap<&str, Spans> = BTreeMap::new();
    for (method, spans) in scrape.cores.iter().flat_map(|core| &core.edge.durations) {
        methods.entry(method).or_default().add(spans);
    }
    let name = "flowmesh_api_request_duration_seconds";
    let help = "Alias of flowmesh_grpc_call_duration_seconds, over all shards";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (method, spans) in methods {
        put_durations(family.encode_family(&[("method", method)])?, &spans)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::render;
    use super::*;
    use crate::router::message::CoreStats;

    #[test]
    fn aliases_say_what_ours_say_over_all_shards() {
        let mut cores = vec![CoreStats::default(), CoreStats::default()];
        for core in &mut cores {
            let mut spans = Spans::default();
            spans.record(1_000_000);
            core.edge.calls.push(("flowmesh.v1.Kv/Get", "OK", 2));
            core.edge.durations.push(("flowmesh.v1.Kv/Get", spans));
        }
        let storage = Some([("log", 1), ("index", 2), ("streams", 3)]);
        let text = render(Scrape { cores, storage, ..Scrape::default() }).unwrap();
        for line in [
            r#"flowmesh_api_requests_total{method="flowmesh.v1.Kv/Get",status="OK"} 4"#,
            r#"flowmesh_api_request_duration_seconds_count{method="flowmesh.v1.Kv/Get"} 2"#,
            r#"flowmesh_grpc_call_duration_seconds_count{method="flowmesh.v1.Kv/Get",shard="1"} 1"#,
            r#"flowmesh_storage_size_bytes{part="streams"} 3"#,
            r#"flowmesh_resources_total{kind="queue"} 0"#,
            "# TYPE flowmesh_schema_registrations counter",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
