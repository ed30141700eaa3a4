//! Large values beside small calls: what those wait for while others set and get 16 MiB at a time.

use std::time::Duration;

use anyhow::Context;

use super::fill;
use super::lab::Lab;
use super::process::Beside;
use super::row::{Goal, Round, Row, Unit};
use crate::load::{GroupSpec, KeySpace, LoadResult, OpKind, OpSpec};

/// The store.
const STORE: &str = "bench";
/// Small calls of a kind a second: far from what a core can do, so that they wait for nothing but what is beside them.
const RATE: f64 = 1_000.0;
/// Large values that are held at most.
const LARGE_KEYS: &str = "20";
/// Clients that set and get them, one call at a time each.
const LARGE_CLIENTS: [&str; 2] = ["1", "2"];
/// They begin so long before it is measured, and end so long after.
const AROUND: Duration = Duration::from_secs(1);

/// Small gets and synced sets, alone and beside clients that set and get 16 MiB one after the other.
pub fn large(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for clients in LARGE_CLIENTS {
        rows.extend(beside(lab, clients)?);
    }
    Ok(rows)
}

fn beside(lab: &Lab, clients: &str) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &["--memory-bytes", "2GiB"])?;
    let server = guest.server()?;
    let keys = KeySpace::new(100_000, None);
    fill::keys(server.grpc, STORE, &keys, 100)?;
    server.settle()?;
    // Apart, so that a get never waits for a client whose set waits for the disk.
    let small = |kind| {
        let group = Lab::calls(OpSpec::new(kind), server.grpc, STORE, (4, 4));
        GroupSpec { rate: Some(RATE), keys: keys.clone(), ..group }
    };
    let spec =
        lab.spec("small gets and sets", vec![small(OpKind::Get), small(OpKind::Set)], Some(server.pid()));
    let seconds = (lab.duration + 2 * AROUND).as_secs().to_string();
    let mut args = vec!["--mix", "set/16777216,get/16777216", "--connections", clients, "--streams", "1"];
    args.extend(["--keys", LARGE_KEYS, "--resource", "large", "--warmup", "1", "--duration", &seconds]);
    let (mut alone, mut together, mut larges) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..lab.rounds {
        alone.push(spec.run()?);
        let other = Beside::start(server.grpc, lab.client_cpu, &args)?;
        std::thread::sleep(2 * AROUND);
        together.push(spec.run()?);
        larges.push(other.ended()?);
    }
    let large = larges.last().context("no round")?;
    let calls_per_s = large["calls_per_s"].as_f64().unwrap_or_default();
    let errors = large["errors"].as_u64().unwrap_or_default();
    let note = format!(
        "{calls_per_s:.1} calls with 16 MiB a second, {errors} errors; at the end {:.0} MiB resident",
        server.memory()?.resident_bytes as f64 / f64::from(1 << 20)
    );
    let mut rows = Vec::new();
    for (index, op) in ["get", "synced set"].into_iter().enumerate() {
        for (name, figure, goal) in [
            ("p99", p99 as fn(&LoadResult, usize) -> f64, Goal::TimesAtMost(2.0)),
            ("p99.9", p999, Goal::None),
        ] {
            let round = |(alone, together)| Round {
                bare: Some(figure(alone, index)),
                measured: figure(together, index),
            };
            let rounds = alone.iter().zip(&together).map(round).collect();
            let what = format!("{name} of a small {op} beside {clients} × 16 MiB");
            let row = Row::new(&what, Unit::Microseconds, goal, "alone", rounds).with_loads(together.clone());
            rows.push(row.with_note(&note));
        }
    }
    Ok(rows)
}

fn p99(load: &LoadResult, index: usize) -> f64 {
    load.ops.get(index).map_or(0.0, |op| op.latency.p99_us)
}

fn p999(load: &LoadResult, index: usize) -> f64 {
    load.ops.get(index).map_or(0.0, |op| op.latency.p999_us)
}
