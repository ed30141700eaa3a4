//! Streams in bulk: batches, pipelines, subscriptions.

use std::cell::RefCell;

use super::fill;
use super::lab::Lab;
use super::row::{Goal, Row, Unit};
use crate::baseline::disk;
use crate::load::{Follow, LoadResult, OpKind, OpSpec, Work};

/// Records that a subscription reads from memory: 64 MB, a part of what a shard keeps there.
const TAIL_RECORDS: u64 = 640_000;
/// Bytes of a large record.
const LARGE: u32 = 4096;

/// Batches of 100 and of 500 records of 100 bytes.
pub fn append_batches(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    [(100, 3e6), (500, 4.5e6)].into_iter().map(|(batch, target)| append_batch(lab, batch, target)).collect()
}

fn append_batch(lab: &Lab, batch: u32, target: f64) -> anyhow::Result<Row> {
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    let op = OpSpec::new(OpKind::Append).batch(batch);
    let what = format!("unary append, 100-byte records in batches of {batch}");
    let shapes = [(4, 8), (8, 8), (16, 8), (16, 16)];
    let specs = shapes.map(|shape| {
        let name = format!("{what}, {} connections × {}", shape.0, shape.1);
        lab.spec(&name, vec![Lab::calls(op, server.grpc, "bench", shape)], Some(server.pid()))
    });
    let best = lab.best(specs.into(), |load| load.items_per_s)?;
    let (rounds, loads) = lab.repeat(&best, |load| load.items_per_s)?;
    Ok(Row::new(&best.name, Unit::RecordsPerS, Goal::AtLeast(target), "", rounds).with_loads(loads))
}

/// 4 KiB records through AppendStream against the disk's large writes.
pub fn append_pipelined(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    let what = "pipelined append, 4 KiB records";
    let mut specs = Vec::new();
    for (connections, batch, window) in [(1, 16, 64), (2, 16, 64), (4, 16, 32), (4, 64, 16), (8, 32, 16)] {
        let work = Work::Produce { batch, value_bytes: LARGE, window };
        let name =
            format!("{what}, {connections} producers, {batch} records a message, {window} messages ahead");
        let group = Lab::group(work, server.grpc, "bench", (connections, 1));
        specs.push(lab.spec(&name, vec![group], Some(server.pid())));
    }
    let best = lab.best(specs, |load| load.items_per_s)?;
    let loads = RefCell::new(Vec::new());
    let rounds = lab.rounds(
        || disk::large_writes(lab.scratch(), Some(lab.server_cpu), 1, lab.duration),
        || {
            let load = best.run()?;
            let figure = load.megabytes_per_s;
            loads.borrow_mut().push(load);
            Ok(figure)
        },
    )?;
    let goal = Goal::ShareAtLeast(0.40);
    Ok(vec![
        Row::new(&best.name, Unit::MegabytesPerS, goal, "bare sequential write", rounds)
            .with_loads(loads.into_inner()),
    ])
}

/// A subscription to what is in memory, and one that follows a producer.
pub fn subscribe(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    fill::records(server.grpc, "tail", TAIL_RECORDS, 100)?;
    let consume = |follow| Work::Consume { follow, value_bytes: 100 };
    let name = format!("subscribe, 100-byte records, the last {TAIL_RECORDS} again and again");
    let group = Lab::group(consume(Follow::All), server.grpc, "tail", (1, 1));
    let spec = lab.spec(&name, vec![group], Some(server.pid()));
    let (rounds, loads) = lab.repeat(&spec, |load| load.items_per_s)?;
    let read = Row::new(name, Unit::RecordsPerS, Goal::AtLeast(3e6), "", rounds).with_loads(loads);

    let name = "subscribe, 100-byte records, behind a producer of batches of 500";
    let produce = Work::Calls(vec![OpSpec::new(OpKind::Append).batch(500)]);
    let groups = vec![
        Lab::group(consume(Follow::Tail), server.grpc, "live", (1, 1)),
        Lab::group(produce, server.grpc, "live", (4, 8)),
    ];
    fill::records(server.grpc, "live", 1, 100)?;
    let spec = lab.spec(name, groups, Some(server.pid()));
    let received = |load: &LoadResult| load.ops.first().map_or(0.0, |op| op.items_per_s);
    let (rounds, loads) = lab.repeat(&spec, received)?;
    let delay = loads.last().and_then(|load| load.ops.first()).map_or(0.0, |op| op.latency.p99_us);
    let follow = Row::new(name, Unit::RecordsPerS, Goal::None, "", rounds)
        .with_loads(loads)
        .with_note(&format!("p99 from append to consumer {:.0} ms", delay / 1000.0));
    Ok(vec![read, follow])
}
