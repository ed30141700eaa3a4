//! Workers that jobs are pushed to: many jobs, one job, jobs whose time comes, none at all.

use std::time::Duration;

use flowmesh_proto::v1;

use super::fill::Delayed;
use super::lab::Lab;
use super::row::{Goal, Round, Row, Unit};
use super::unary::SYNC_WRITE;
use crate::baseline::disk;
use crate::load::ops::paths;
use crate::load::workers::{queue_of, unix_ns};
use crate::load::{GroupSpec, LoadResult, OpResult, Work};

/// Bytes of each payload.
const VALUE_BYTES: u32 = 100;

/// The operation of a run whose name begins so.
fn op<'a>(load: &'a LoadResult, name: &str) -> anyhow::Result<&'a OpResult> {
    let found = load.ops.iter().find(|op| op.op.starts_with(name));
    found.ok_or_else(|| anyhow::anyhow!("no {name} in {:?}", load.name))
}

/// How long deliveries took after the moment that their jobs say.
fn delivery(load: &LoadResult) -> anyhow::Result<&crate::load::stats::LatencySummary> {
    let latency = &op(load, "work.delivery")?.latency;
    anyhow::ensure!(latency.count > 0, "no job was delivered in {:?}", load.name);
    Ok(latency)
}

/// Jobs of 100 bytes through their whole life: enqueued 64 a call, pushed to workers, acknowledged as they come. Counted are
/// acknowledgements that were answered.
pub fn streaming(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    let what = "enqueue 64 jobs a call, streaming workers with a credit of 1 000";
    let specs = [(2, 4, 4), (4, 8, 8), (8, 8, 8), (8, 16, 16)].map(|(connections, streams, workers)| {
        let name = format!("{what}, {connections} connections × {streams}, {workers} workers");
        let enqueue = Work::Stamped { batch: 64, value_bytes: VALUE_BYTES };
        let work = Work::Work { credit: 1_000, value_bytes: VALUE_BYTES };
        let groups = vec![
            Lab::group(enqueue, server.grpc, "bench", (connections, streams)),
            Lab::group(work, server.grpc, "bench", (workers, 1)),
        ];
        lab.spec(&name, groups, Some(server.pid()))
    });
    // The workers' acknowledgements are the only primary operation.
    let best = lab.best(specs.into(), |load| load.items_per_s)?;
    let (rounds, loads) = lab.repeat(&best, |load| load.items_per_s)?;
    Ok(vec![Row::new(&best.name, Unit::JobsPerS, Goal::AtLeast(500_000.0), "", rounds).with_loads(loads)])
}

/// One worker that waits at an empty queue: from enqueueing a job until it has it.
pub fn lone(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    /// Jobs a second: each is acknowledged, synced, before the next, and no core has gone to sleep meanwhile.
    const RATE: f64 = 1_500.0;
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    let what = "lone worker on an idle queue, enqueue to delivery, p50";
    let enqueue =
        Lab::group(Work::Stamped { batch: 1, value_bytes: VALUE_BYTES }, server.grpc, "lone", (1, 1));
    let work = Work::Work { credit: 16, value_bytes: VALUE_BYTES };
    let groups =
        vec![GroupSpec { rate: Some(RATE), ..enqueue }, Lab::group(work, server.grpc, "lone", (1, 1))];
    let spec = lab.spec(what, groups, Some(server.pid()));
    let (mut loads, mut rounds) = (Vec::new(), Vec::new());
    for _ in 0..lab.rounds {
        let bare = disk::sync_writes(lab.scratch(), Some(lab.server_cpu), lab.duration)?.summary();
        let load = spec.run()?;
        rounds.push(Round { bare: Some(bare.p50_us), measured: delivery(&load)?.p50_us });
        loads.push(load);
    }
    let bare = format!("{SYNC_WRITE} p50");
    Ok(vec![Row::new(what, Unit::Microseconds, Goal::TimesAtMost(1.4), &bare, rounds).with_loads(loads)])
}

/// Jobs that wait for their time, and how long all of them take to come due; and a tenth of them, at the same rate.
const WAITING: u64 = 10_000_000;
const SPAN: Duration = Duration::from_hours(1);
const TENTH: u32 = 10;
/// How long enqueueing them, and the checkpoints after it, may take; and fewer.
const LEAD: Duration = Duration::from_secs(90);
const LEAD_FEW: Duration = Duration::from_secs(30);

/// What was enqueued comes to the index some seconds after, not half a minute; so a run has checkpoints of its own, too.
const CHECKPOINT_SOON: [&str; 2] = ["--checkpoint-interval-ms", "5s"];

/// Ten million jobs that are due over an hour, in another order than they were enqueued, and a worker: how late they come
/// to it, and what each costs beside as many that are due while fewer wait, or none: those have never left memory.
pub fn delayed(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let window = lab.duration.max(Duration::from_secs(10));
    let due = WAITING * window.as_secs() / SPAN.as_secs();
    let few = due_in(lab, due, window, LEAD_FEW, window)?;
    let tenth = due_in(lab, WAITING / u64::from(TENTH), SPAN / TENTH, LEAD_FEW, window)?;
    let many = due_in(lab, WAITING, SPAN, LEAD, window)?;
    let late = vec![Round { bare: None, measured: delivery(&many)?.p99_us }];
    let cost = |load: &LoadResult| load.server.as_ref().map_or(0.0, |server| server.us_per_item);
    let cores = |load: &LoadResult| load.server.as_ref().map_or(0.0, |server| server.cores * 100.0);
    let note = format!(
        "{:.0} jobs/s; p50 {:.2} ms, max {:.2} ms; {:.1} % of a core, {:.1} % with 1 M waiting, {:.1} % with none but those due",
        many.items_per_s,
        delivery(&many)?.p50_us / 1e3,
        delivery(&many)?.max_us / 1e3,
        cores(&many),
        cores(&tenth),
        cores(&few),
    );
    let beside = |less: &LoadResult| vec![Round { bare: Some(cost(less)), measured: cost(&many) }];
    let what = "processor time a job due, 10 M delayed";
    let (of_tenth, of_few) = (beside(&tenth), beside(&few));
    Ok(vec![
        Row::new(
            "lateness at a streaming worker, p99, of 10 M delayed jobs due over an hour",
            Unit::Microseconds,
            Goal::AtMost(10_000.0),
            "",
            late,
        )
        .with_note(&note)
        .with_loads(vec![many]),
        Row::new(what, Unit::Microseconds, Goal::TimesAtMost(1.5), "the same with 1 M", of_tenth)
            .with_loads(vec![tenth]),
        Row::new(what, Unit::Microseconds, Goal::None, "the same with none but those due", of_few)
            .with_loads(vec![few]),
    ])
}

/// A worker's run of `window` on a queue of its own, with `count` jobs due over `span`, the first of them at its start.
fn due_in(
    lab: &Lab,
    count: u64,
    span: Duration,
    lead: Duration,
    window: Duration,
) -> anyhow::Result<LoadResult> {
    let guest = lab.start(1, &[&["--memory-bytes", "1500MiB"], &CHECKPOINT_SOON[..]].concat())?;
    let server = guest.server()?;
    let first_ns = unix_ns() + lead.as_nanos() as u64;
    let delayed = Delayed {
        count,
        first_ms: first_ns / 1_000_000,
        span_ms: span.as_millis() as u64,
        value_bytes: VALUE_BYTES,
    };
    delayed.fill(server.grpc, "delayed")?;
    server.settle()?;
    let work = Work::Work { credit: 1_000, value_bytes: VALUE_BYTES };
    let groups = vec![Lab::group(work, server.grpc, "delayed", (1, 1))];
    let spec = lab.spec(&format!("{count} jobs due over {span:?}"), groups, Some(server.pid()));
    let spec = crate::load::LoadSpec { duration: window, ..spec };
    let left = first_ns.checked_sub(unix_ns() + spec.warmup.as_nanos() as u64);
    let left = left.ok_or_else(|| anyhow::anyhow!("enqueueing {count} jobs took longer than {lead:?}"))?;
    std::thread::sleep(Duration::from_nanos(left));
    spec.run()
}

/// Ten thousand queues without jobs, each with a worker that waits.
pub fn idle(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    /// Connections and workers on each.
    const SHAPE: (usize, usize) = (40, 250);
    const QUEUE: &str = "idle-#";
    /// Until all workers wait and nothing is left to do of their coming.
    const SETTLE: Duration = Duration::from_secs(10);
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    let mut client = server.client()?;
    for number in 0..SHAPE.0 * SHAPE.1 {
        let name = queue_of(QUEUE, number);
        let create = v1::CreateResourceRequest { kind: v1::Kind::Queue.into(), name, ..Default::default() };
        client.call::<v1::CreateResourceResponse>(paths::CREATE, &create)?;
    }
    let work = Work::Work { credit: 1, value_bytes: VALUE_BYTES };
    let groups = vec![Lab::group(work, server.grpc, QUEUE, SHAPE)];
    let spec = lab.spec("10 000 idle workers", groups, Some(server.pid()));
    let duration = lab.duration.max(Duration::from_secs(10));
    let load = crate::load::LoadSpec { warmup: SETTLE, duration, ..spec }.run()?;
    let cores = load.server.as_ref().map_or(f64::NAN, |server| server.cores);
    let memory = server.memory()?.resident_bytes as f64 / f64::from(1 << 20);
    let rounds = vec![Round { bare: None, measured: cores * 100.0 }];
    let what = "10 000 idle queues with a streaming worker each";
    Ok(vec![
        Row::new(what, Unit::CorePercent, Goal::AtMost(2.0), "", rounds)
            .with_note(&format!("{memory:.0} MiB"))
            .with_loads(vec![load]),
    ])
}
