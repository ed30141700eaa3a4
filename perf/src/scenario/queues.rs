//! Jobs in batches, from enqueued to acknowledged.

use super::lab::Lab;
use super::row::{Goal, Row, Unit};
use crate::load::Work;

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
    Ok(vec![Row::new(&best.name, Unit::JobsPerS, Goal::AtLeast(300_000.0), "", rounds).with_loads(loads)])
}
