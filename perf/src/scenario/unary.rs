//! Unary calls: a lone writer, a few, and as many as one core can serve.

use std::cell::RefCell;

use flowmesh_proto::v1;

use super::fill;
use super::lab::Lab;
use super::row::{Goal, Round, Row, Unit};
use crate::baseline::disk;
use crate::load::{KeySpace, OpKind, OpSpec};

/// What the bare limit of synced writes is called.
pub const SYNC_WRITE: &str = "bare write + fdatasync";
/// What the bare limit of calls is called.
pub const ECHO: &str = "bare h2 echo";
/// Calls under way in the rows that saturate a core.
const MANY: (usize, usize) = (16, 32);
/// Calls under way in the rows of few writers.
const FEW: (usize, usize) = (8, 1);

/// One client, one record at a time: how far from the disk itself?
pub fn lone_append(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    let op = OpSpec::new(OpKind::Append);
    let spec = lab.spec("lone append", vec![Lab::calls(op, server.grpc, "lone", (1, 1))], Some(server.pid()));
    let (mut p50, mut p99, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..lab.rounds {
        let bare = disk::sync_writes(lab.scratch(), Some(lab.server_cpu), lab.duration)?.summary();
        let load = spec.run()?;
        p50.push(Round { bare: Some(bare.p50_us), measured: load.latency.p50_us });
        p99.push(Round { bare: Some(bare.p99_us), measured: load.latency.p99_us });
        loads.push(load);
    }
    let p99_goal = Goal::TimesPlusAtMost { times: 2.0, plus: 500.0 };
    Ok(vec![
        Row::new("lone durable append, p50", Unit::Microseconds, Goal::TimesAtMost(1.3), SYNC_WRITE, p50)
            .with_loads(loads),
        Row::new("lone durable append, p99", Unit::Microseconds, p99_goal, &format!("{SYNC_WRITE} p99"), p99),
    ])
}

/// Unary get against the echo.
pub fn get(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    against_echo(lab, "unary KV get, 16 connections × 32", OpKind::Get, 0.90)
}

/// Unary set against the echo.
pub fn set(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    against_echo(lab, "unary KV set, 16 connections × 32", OpKind::Set, 0.85)
}

/// Unary append against the echo.
pub fn append(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    against_echo(lab, "unary stream append, 16 connections × 32", OpKind::Append, 0.85)
}

fn against_echo(lab: &Lab, what: &str, kind: OpKind, share: f64) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    if kind == OpKind::Get {
        fill::keys(server.grpc, "bench", &KeySpace::new(100_000, None), 100)?;
    }
    let op = OpSpec::new(kind);
    let echo = lab.echo()?;
    let echo_spec = lab.echo_spec(&echo, op, MANY);
    let spec = lab.spec(what, vec![Lab::calls(op, server.grpc, "bench", MANY)], Some(server.pid()));
    let loads = RefCell::new(Vec::new());
    let run = |spec: &crate::load::LoadSpec| {
        let load = spec.run()?;
        let figure = load.calls_per_s;
        loads.borrow_mut().push(load);
        Ok(figure)
    };
    let rounds = lab.rounds(|| run(&echo_spec), || run(&spec))?;
    if kind == OpKind::Append {
        check_nothing_lost(server, "bench", &loads.borrow())?;
    }
    Ok(vec![
        Row::new(what, Unit::CallsPerS, Goal::ShareAtLeast(share), ECHO, rounds)
            .with_loads(loads.into_inner()),
    ])
}

/// At least as many records are there as were acknowledged while it was measured.
fn check_nothing_lost(
    server: &super::process::Server,
    stream: &str,
    loads: &[crate::load::LoadResult],
) -> anyhow::Result<()> {
    let appended = loads.iter().flat_map(|load| load.ops.iter().map(move |op| (op, load.seconds)));
    let acknowledged: f64 = appended
        .filter(|(op, _)| op.op.starts_with("append"))
        .map(|(op, seconds)| op.items_per_s * seconds)
        .sum();
    let there = server.next_offset(stream)? as f64;
    anyhow::ensure!(
        there + 0.5 >= acknowledged,
        "{acknowledged} records were acknowledged, {there} are there"
    );
    Ok(())
}

/// Eight writers, one call at a time each: they share syncs, so each waits for little more than one of them.
pub fn few_writers(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    server.create(v1::Kind::Kv, "few")?;
    server.create(v1::Kind::Stream, "few")?;
    let mut rows = Vec::new();
    for kind in [OpKind::Set, OpKind::Append] {
        let what = format!("unary {}, 8 connections × 1, mean", kind.name());
        let group = Lab::calls(OpSpec::new(kind), server.grpc, "few", FEW);
        let spec = lab.spec(&what, vec![group], Some(server.pid()));
        let loads = RefCell::new(Vec::new());
        let rounds = lab.rounds(
            || Ok(disk::sync_writes(lab.scratch(), Some(lab.server_cpu), lab.duration)?.summary().p50_us),
            || {
                let load = spec.run()?;
                let mean = load.latency.mean_us;
                loads.borrow_mut().push(load);
                Ok(mean)
            },
        )?;
        rows.push(
            Row::new(what, Unit::Microseconds, Goal::TimesAtMost(2.2), &format!("{SYNC_WRITE} p50"), rounds)
                .with_loads(loads.into_inner()),
        );
    }
    Ok(rows)
}
