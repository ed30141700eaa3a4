//! Jobs from enqueued to acknowledged: one a call, and in batches.

use std::cell::RefCell;
use std::time::Duration;

use super::fill;
use super::lab::Lab;
use super::row::{Goal, Round, Row, Unit};
use super::unary::ECHO;
use crate::load::{LoadResult, LoadSpec, OpKind, OpSpec, Work};

/// Jobs of 100 bytes through their whole life, three unary calls each, 256 in flight, against the echo: a third is the
/// limit.
pub fn job_calls(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    const SHAPE: (usize, usize) = (16, 16);
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    let what = "enqueue, reserve, ack, one job a call, 16 connections × 16";
    let work = Work::Jobs { batch: 1, value_bytes: 100 };
    let spec = lab.spec(what, vec![Lab::group(work, server.grpc, "bench", SHAPE)], Some(server.pid()));
    let echo = lab.echo()?;
    let echo_spec = lab.echo_spec(&echo, OpSpec::new(OpKind::Append), SHAPE);
    let loads = RefCell::new(Vec::new());
    let run = |spec: &LoadSpec, figure: fn(&LoadResult) -> f64| {
        let load = spec.run()?;
        let value = figure(&load);
        loads.borrow_mut().push(load);
        Ok(value)
    };
    let echoes = || run(&echo_spec, |load| load.calls_per_s);
    let rounds = lab.rounds(echoes, || run(&spec, |load| load.items_per_s))?;
    Ok(vec![
        Row::new(what, Unit::JobsPerS, Goal::ShareAtLeast(0.28), ECHO, rounds).with_loads(loads.into_inner()),
    ])
}

/// Jobs of 100 bytes through their whole life, 64 a call, every call synced.
pub fn jobs(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    let what = "enqueue, reserve, ack, 64 jobs a call";
    let shapes = [(4, 8), (8, 8), (16, 16)];
    let specs = shapes.map(|shape| {
        let name = format!("{what}, {} connections × {}", shape.0, shape.1);
        let work = Work::Jobs { batch: 64, value_bytes: 100 };
        lab.spec(&name, vec![Lab::group(work, server.grpc, "bench", shape)], Some(server.pid()))
    });
    let best = lab.best(specs.into(), |load| load.items_per_s)?;
    let (rounds, loads) = lab.repeat(&best, |load| load.items_per_s)?;
    Ok(vec![Row::new(&best.name, Unit::JobsPerS, Goal::AtLeast(500_000.0), "", rounds).with_loads(loads)])
}

/// Jobs that wait in a deep queue, and in a shallow one.
const DEEP: u64 = 10_000_000;
const SHALLOW: u64 = 1_000;

/// Jobs of 100 bytes through their whole life beside ten million that wait before them, against a thousand; what those take
/// in memory, and how long a start with them takes after kill -9.
pub fn deep_queue(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    const SHAPE: (usize, usize) = (16, 16);
    let mut guest = lab.start(1, &["--memory-bytes", "1500MiB"])?;
    let server = guest.server()?;
    let mut loads = Vec::new();
    let mut run = |name: &str| {
        let work = Work::Jobs { batch: 1, value_bytes: 100 };
        let group = Lab::group(work, server.grpc, "deep", SHAPE);
        // Long enough for checkpoints to take part.
        let spec = lab.spec(name, vec![group], Some(server.pid()));
        let load = LoadSpec { duration: lab.duration.max(Duration::from_secs(12)), ..spec }.run()?;
        let rate = load.items_per_s;
        loads.push(load);
        anyhow::Ok(rate)
    };
    fill::jobs(server.grpc, "deep", SHALLOW, 100)?;
    server.settle()?;
    let shallow = run("with 1 000 waiting")?;
    fill::jobs(server.grpc, "deep", DEEP, 100)?;
    server.settle()?;
    let deep = run("with 10 M waiting")?;
    server.settle()?;
    let memory = server.memory()?.resident_bytes as f64 / f64::from(1 << 20);
    guest.kill();
    let started = guest.restart()?.ready_after.as_secs_f64() * 1e6;
    let one = |measured| vec![Round { bare: None, measured }];
    Ok(vec![
        Row::new(
            "enqueue, reserve, ack with 10 M jobs waiting",
            Unit::JobsPerS,
            Goal::ShareAtLeast(0.80),
            "the same with 1 000",
            vec![Round { bare: Some(shallow), measured: deep }],
        )
        .with_loads(loads),
        Row::new("memory with 10 M jobs waiting", Unit::Mebibytes, Goal::AtMost(1536.0), "", one(memory)),
        Row::new(
            "start with 10 M jobs after kill -9",
            Unit::Microseconds,
            Goal::AtMost(1e7),
            "",
            one(started),
        ),
    ])
}
