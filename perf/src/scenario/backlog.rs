//! Reading what is no longer in memory, and many streams at once.

use std::cell::RefCell;
use std::time::Duration;

use flowmesh_proto::v1;

use super::fill;
use super::lab::{Guest, Lab};
use super::row::{Goal, Round, Row, Unit};
use crate::baseline::disk;
use crate::http2::UnaryClient;
use crate::load::ops::paths;
use crate::load::{Follow, GroupSpec, LoadResult, OpKind, OpSpec, Work};

/// Bytes of a record's value.
const VALUE_BYTES: u32 = 1024;

/// Records of the stream that is read cold: half a gigabyte.
const COLD_RECORDS: u64 = 512 * 1024;

/// Records that stay in memory: 64 MB.
const TAIL_RECORDS: u64 = 64 * 1024;

/// Everything is soon in segment files, so that nothing is in memory after the next start.
const CHECKPOINT_OFTEN: [&str; 2] = ["--checkpoint-interval-ms", "100ms"];

/// Streams that exist beside each other.
const STREAMS: u64 = 10_000;

/// A server with a stream that is in segment files only.
fn cold_server(lab: &Lab) -> anyhow::Result<Guest> {
    let mut guest = lab.start(1, &CHECKPOINT_OFTEN)?;
    fill::records(guest.server()?.grpc, "cold", COLD_RECORDS, VALUE_BYTES)?;
    std::thread::sleep(Duration::from_secs(2));
    let server = guest.restart()?;
    let replayed = server.recovered().facts;
    anyhow::ensure!(replayed == 0, "{replayed} facts were still in the log: their records are in memory");
    Ok(guest)
}

fn consume(target: std::net::SocketAddr, stream: &str) -> GroupSpec {
    Lab::group(Work::Consume { follow: Follow::All, value_bytes: VALUE_BYTES }, target, stream, (1, 1))
}

/// One consumer reads a stream from its start to its end again and again: from segment files, and from memory.
pub fn catch_up(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = cold_server(lab)?;
    let server = guest.server()?;
    let what = "catch-up read of cold data, 1 KiB records";
    let spec = lab.spec(what, vec![consume(server.grpc, "cold")], Some(server.pid()));
    let loads = RefCell::new(Vec::new());
    let rounds = lab.rounds(
        || disk::large_reads(lab.scratch(), Some(lab.server_cpu), lab.duration),
        || {
            let load = spec.run()?;
            let figure = load.megabytes_per_s;
            loads.borrow_mut().push(load);
            Ok(figure)
        },
    )?;
    let cold = Row::new(what, Unit::MegabytesPerS, Goal::ShareAtLeast(0.50), "bare sequential read", rounds)
        .with_loads(loads.into_inner());

    fill::records(server.grpc, "tail", TAIL_RECORDS, VALUE_BYTES)?;
    let what = "catch-up read from memory, 1 KiB records";
    let spec = lab.spec(what, vec![consume(server.grpc, "tail")], Some(server.pid()));
    let (rounds, loads) = lab.repeat(&spec, |load| load.megabytes_per_s)?;
    let tail = Row::new(what, Unit::MegabytesPerS, Goal::AtLeast(600.0), "", rounds).with_loads(loads);
    Ok(vec![cold, tail])
}

/// What a consumer that reads segment files costs those who append meanwhile, at a rate that leaves the core room.
pub fn cold_reader(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = cold_server(lab)?;
    let server = guest.server()?;
    fill::records(server.grpc, "live", 1, 100)?;
    let what = "append of 100 at 2 000 calls/s beside a cold reader, p99";
    let producers = GroupSpec {
        rate: Some(2_000.0),
        ..Lab::calls(OpSpec::new(OpKind::Append).batch(100), server.grpc, "live", (4, 8))
    };
    let alone = lab.spec(what, vec![producers.clone()], Some(server.pid()));
    let beside = lab.spec(what, vec![producers, consume(server.grpc, "cold")], Some(server.pid()));
    let p99 = |load: &LoadResult| load.ops.first().map_or(0.0, |op| op.latency.p99_us);
    let (mut rounds, mut loads) = (Vec::new(), Vec::new());
    for _ in 0..lab.rounds {
        let (without, with) = (alone.run()?, beside.run()?);
        rounds.push(Round { bare: Some(p99(&without)), measured: p99(&with) });
        loads.extend([without, with]);
    }
    let goal = Goal::TimesAtMost(1.5);
    Ok(vec![
        Row::new(what, Unit::Microseconds, goal, "the same without the reader", rounds).with_loads(loads),
    ])
}

/// What a stream that nobody uses takes in memory, of many.
pub fn idle_streams(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &CHECKPOINT_OFTEN)?;
    let server = guest.server()?;
    let mut client = UnaryClient::connect(server.grpc, &[paths::CREATE, paths::APPEND])?;
    // The first stream brings what all share.
    make_stream(&mut client, 0)?;
    std::thread::sleep(Duration::from_secs(1));
    let before = server.memory()?.anonymous_bytes;
    for number in 1..=STREAMS {
        make_stream(&mut client, number)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let grown = server.memory()?.anonymous_bytes.saturating_sub(before);
    let kibibytes = grown as f64 / STREAMS as f64 / 1024.0;
    let rounds = vec![Round { bare: None, measured: grown as f64 / f64::from(1 << 20) }];
    let row = Row::new(
        format!("memory of {STREAMS} streams with a record each"),
        Unit::Mebibytes,
        Goal::AtMost(STREAMS as f64 * 2.0 / 1024.0),
        "",
        rounds,
    );
    Ok(vec![row.with_note(&format!("{kibibytes:.2} KiB a stream"))])
}

fn make_stream(client: &mut UnaryClient, number: u64) -> anyhow::Result<()> {
    let name = format!("idle-{number}");
    let create = v1::CreateResourceRequest {
        kind: v1::Kind::Stream.into(),
        name: name.clone(),
        or_existing: true,
        ..Default::default()
    };
    client.call::<v1::CreateResourceResponse>(paths::CREATE, &create)?;
    let record = v1::Record { value: b"one".as_slice().into(), ..Default::default() };
    let append = v1::AppendRequest { stream: name, records: vec![record], ..Default::default() };
    client.call::<v1::AppendResponse>(paths::APPEND, &append)?;
    Ok(())
}
