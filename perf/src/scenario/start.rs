//! Starting: from a log, from nothing; and what an idle server takes.

use std::time::Duration;

use super::lab::{Guest, Lab};
use super::row::{Goal, Round, Row, Unit};
use crate::load::{LoadSpec, OpKind, OpSpec};

/// Facts that a start must read from the log to say something; checkpoints have taken the rest.
const FACTS_MIN: f64 = 50_000.0;

/// No checkpoint, and a log that holds all of it: everything is replayed.
const KEEP_LOG: [&str; 4] = ["--checkpoint-interval-ms", "6h", "--log-bytes-max", "32GiB"];

/// Kill -9 after many writes, start again: facts replayed a second.
pub fn replay(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let single = OpSpec::new(OpKind::Set);
    [
        ("replay, 100 facts an entry (sets of 100 keys)", single.batch(100), (8, 4)),
        ("replay, one fact an entry (single sets)", single, (16, 32)),
    ]
    .into_iter()
    .map(|(what, op, shape)| replay_of(lab, what, op, shape))
    .collect()
}

fn replay_of(lab: &Lab, what: &str, op: OpSpec, shape: (usize, usize)) -> anyhow::Result<Row> {
    let mut guest = lab.start(1, &KEEP_LOG)?;
    let server = guest.server()?;
    let spec = lab.spec(what, vec![Lab::calls(op, server.grpc, "bench", shape)], Some(server.pid()));
    let duration = lab.duration.max(Duration::from_secs(2)) * 2;
    let load = LoadSpec { duration, ..spec }.run()?;
    let acknowledged = load.items_per_s * load.seconds;
    let mut rounds = Vec::new();
    let mut notes = Vec::new();
    for _ in 0..lab.rounds {
        guest.kill();
        let (facts, seconds, how) = replayed(&mut guest, acknowledged)?;
        anyhow::ensure!(
            facts >= FACTS_MIN,
            "{acknowledged} facts were acknowledged, but only {facts} were left in the log: too few to measure"
        );
        rounds.push(Round { bare: None, measured: facts / seconds });
        notes.push(format!("{facts:.0} facts in {seconds:.2} s ({how})"));
    }
    let note = notes.pop().unwrap_or_default();
    Ok(Row::new(what, Unit::FactsPerS, Goal::AtLeast(1e6), "", rounds)
        .with_loads(vec![load])
        .with_note(&note))
}

/// Starts again; returns facts and seconds as the server counts them, or else those acknowledged and the whole start.
fn replayed(guest: &mut Guest, acknowledged: f64) -> anyhow::Result<(f64, f64, &'static str)> {
    let server = guest.restart()?;
    let recovered = server.recovered();
    if recovered.facts > 0 && recovered.ms > 0 {
        Ok((recovered.facts as f64, recovered.ms as f64 / 1000.0, "by the server's own count"))
    } else {
        Ok((acknowledged, server.ready_after.as_secs_f64(), "the whole start"))
    }
}

/// An empty directory to ready, and the memory of a server that does nothing.
pub fn idle(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut ready = Vec::new();
    for _ in 0..lab.rounds {
        let guest = lab.start(1, &[])?;
        ready.push(Round { bare: None, measured: guest.server()?.ready_after.as_secs_f64() * 1e6 });
    }
    rows.push(Row::new("empty directory to ready", Unit::Microseconds, Goal::AtMost(300_000.0), "", ready));
    for shards in [1, 2] {
        let guest = lab.start(shards, &[])?;
        // Long enough for what a server does after it is ready, such as its first checkpoint.
        std::thread::sleep(Duration::from_secs(2));
        let memory = guest.server()?.memory()?;
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let measured = vec![Round { bare: None, measured: mebibytes(memory.resident_bytes) }];
        let goal = Goal::AtMost(48.0 + 24.0 * shards as f64);
        rows.push(
            Row::new(format!("idle memory, {shards} shards"), Unit::Mebibytes, goal, "", measured).with_note(
                &format!("{:.1} MiB of it without pages of files", mebibytes(memory.anonymous_bytes)),
            ),
        );
    }
    Ok(rows)
}
