//! Compaction in the background: how fast it is, and what it costs those who append meanwhile.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flowmesh_proto::v1;

use super::fill;
use super::lab::Lab;
use super::process::Server;
use super::row::{Goal, Round, Row, Unit};
use crate::http2::UnaryClient;
use crate::load::ops::paths;
use crate::load::{GroupSpec, LoadResult, OpKind, OpSpec};

/// Records of the stream that is compacted: more than a gigabyte.
const RECORDS: u64 = 10_000_000;
/// Keys of it.
const KEYS: u64 = 100_000;
/// Bytes of a value.
const VALUE_BYTES: usize = 100;
/// Records in one call.
const BATCH: u64 = 1_000;
/// Checkpoints come often: what is not in segment files is not compacted.
const CHECKPOINT_OFTEN: [&str; 2] = ["--checkpoint-interval-ms", "200ms"];
/// How long a compaction may take.
const DEADLINE: Duration = Duration::from_mins(2);

/// The whole stream as fast as the server may, and appends to another one alone and beside it.
pub fn compaction(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &CHECKPOINT_OFTEN)?;
    let server = guest.server()?;
    fill::records(server.grpc, "live", 1, 100)?;
    let live = GroupSpec {
        rate: Some(2_000.0),
        ..Lab::calls(OpSpec::new(OpKind::Append).batch(100), server.grpc, "live", (4, 8))
    };
    let what = "append of 100 at 2 000 calls/s beside compaction, p99";
    let spec = lab.spec(what, vec![live], Some(server.pid()));
    let p99 = |load: &LoadResult| load.ops.first().map_or(0.0, |op| op.latency.p99_us);
    let loads = RefCell::new(Vec::new());
    let (mut speeds, mut delays, mut ended_early) = (Vec::new(), Vec::new(), 0);
    for round in 0..lab.rounds {
        let stream = format!("alone-{round}");
        fill_keys(server, &stream)?;
        let speed = switch_on(server, &stream)?.finish(server)?;
        speeds.push(Round { bare: None, measured: speed });

        let stream = format!("beside-{round}");
        fill_keys(server, &stream)?;
        let alone = spec.run()?;
        let running = switch_on(server, &stream)?;
        let beside = spec.run()?;
        ended_early += u32::from(running.is_done(server)?);
        running.finish(server)?;
        delays.push(Round { bare: Some(p99(&alone)), measured: p99(&beside) });
        loads.borrow_mut().extend([alone, beside]);
    }
    let speed = "compaction of 10 M records over 100 k keys, 100-byte values";
    let speed = Row::new(speed, Unit::RecordsPerS, Goal::AtLeast(1e6), "", speeds);
    let delay = Row::new(what, Unit::Microseconds, Goal::TimesAtMost(1.5), "the same without it", delays)
        .with_loads(loads.into_inner());
    let delay = if ended_early > 0 { delay.with_note("the compaction ended first") } else { delay };
    Ok(vec![speed, delay])
}

/// Writes the stream that is to be compacted, and waits until it is in segment files.
fn fill_keys(server: &Server, stream: &str) -> anyhow::Result<()> {
    server.create(v1::Kind::Stream, stream)?;
    let mut client = UnaryClient::connect(server.grpc, &[paths::APPEND])?;
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let mut number = 0u64;
    while number < RECORDS {
        let record = |at: u64| v1::Record {
            // Every key comes in another order each time, as no cache likes it.
            key: Some(format!("key-{:06}", at.wrapping_mul(7_919) % KEYS).into()),
            value: value.clone(),
            ..Default::default()
        };
        let records = (number..number + BATCH).map(record).collect();
        let append = v1::AppendRequest { stream: stream.to_owned(), records, ..Default::default() };
        client.call::<v1::AppendResponse>(paths::APPEND, &append)?;
        number += BATCH;
    }
    // What writing it left to do must not count.
    std::thread::sleep(Duration::from_secs(4));
    Ok(())
}

/// A compaction that was asked for.
struct Started {
    compactions: f64,
    records: f64,
    seconds: f64,
}

/// Sets that the stream is compacted, and waits until that begins.
fn switch_on(server: &Server, stream: &str) -> anyhow::Result<Started> {
    let started = Started {
        compactions: server.metric("flowmesh_compaction_duration_seconds_count")?,
        records: server.metric("flowmesh_compaction_records_read_total")?,
        seconds: server.metric("flowmesh_compaction_duration_seconds_sum")?,
    };
    let disk_bytes = server.metric("flowmesh_compaction_disk_bytes_total")?;
    let stream_settings = v1::StreamSettings { compaction: Some(true), ..Default::default() };
    let settings = v1::Settings { kind: Some(v1::settings::Kind::Stream(stream_settings)) };
    let update = v1::UpdateResourceRequest {
        kind: v1::Kind::Stream.into(),
        name: stream.to_owned(),
        settings: Some(settings),
    };
    let mut client = UnaryClient::connect(server.grpc, &[paths::UPDATE])?;
    client.call::<v1::UpdateResourceResponse>(paths::UPDATE, &update)?;
    let began = Instant::now();
    while server.metric("flowmesh_compaction_disk_bytes_total")? <= disk_bytes {
        anyhow::ensure!(began.elapsed() < DEADLINE, "no compaction began");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(started)
}

impl Started {
    fn is_done(&self, server: &Server) -> anyhow::Result<bool> {
        Ok(server.metric("flowmesh_compaction_duration_seconds_count")? > self.compactions)
    }

    /// Waits for its end. Returns records a second, of those that it rewrote.
    fn finish(&self, server: &Server) -> anyhow::Result<f64> {
        let began = Instant::now();
        while !self.is_done(server)? {
            anyhow::ensure!(began.elapsed() < DEADLINE, "the compaction did not end");
            std::thread::sleep(Duration::from_millis(50));
        }
        let records = server.metric("flowmesh_compaction_records_read_total")? - self.records;
        let seconds = server.metric("flowmesh_compaction_duration_seconds_sum")? - self.seconds;
        Ok(records / seconds)
    }
}
