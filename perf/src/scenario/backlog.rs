//! Reading what is no longer in memory, and many streams at once.

use std::cell::RefCell;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use flowmesh_proto::v1;

use super::fill;
use super::lab::{Guest, Lab};
use super::process::Server;
use super::row::{Goal, Round, Row, Unit};
use crate::baseline::disk;
use crate::http2::UnaryClient;
use crate::load::ops::paths;
use crate::load::{Follow, GroupSpec, LoadResult, LoadSpec, OpKind, OpSpec, Work};

/// Bytes of a record's value.
const VALUE_BYTES: u32 = 1024;

/// Records of the stream that is read cold: half a gigabyte.
const COLD_RECORDS: u64 = 512 * 1024;

/// Records that stay in memory: 64 MB.
const TAIL_RECORDS: u64 = 64 * 1024;

/// Everything is soon in segment files, so that nothing is in memory after the next start.
const CHECKPOINT_OFTEN: [&str; 2] = ["--checkpoint-interval-ms", "100ms"];

/// What was written comes to index and files some seconds after, unless the log has grown by a checkpoint's worth before.
const CHECKPOINT_SOON: [&str; 2] = ["--checkpoint-interval-ms", "5s"];

/// How many checkpoints there were.
const CHECKPOINTS: &str = "flowmesh_checkpoint_duration_seconds_count";

/// A run that is to have checkpoints of its own lasts so many times as long as others: some ten seconds.
const WITH_CHECKPOINTS: u32 = 4;

/// How long checkpoints may take to bring all of them to files.
const DEADLINE: Duration = Duration::from_mins(1);

/// How long a server does nothing until its memory is looked at: freed memory goes back to the system after a second, whole
/// arenas of it after ten.
const AT_REST: Duration = Duration::from_secs(12);

/// Streams that exist beside each other.
const STREAMS: u64 = 10_000;

/// The length of each segment file of a shard that has much: all together 50 GB.
const SPARSE_BYTES: u64 = 5_000_000;

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

/// Small appends to ten thousand streams in turn, beside the same to one. Either begins once the checkpoint of what was
/// written before is through, and lasts long enough for checkpoints of its own: they are what it costs to have many streams.
pub fn many_streams(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &CHECKPOINT_SOON)?;
    let server = guest.server()?;
    let mut client = UnaryClient::connect(server.grpc, &[paths::CREATE, paths::APPEND])?;
    for number in 0..STREAMS {
        make_stream(&mut client, &format!("many-{number:04}"))?;
    }
    make_stream(&mut client, "one")?;
    let what = "append to 10 000 streams in turn, 16 connections × 32";
    let append = |stream| Lab::calls(OpSpec::new(OpKind::Append), server.grpc, stream, (16, 32));
    let long = |stream| {
        let spec = lab.spec(what, vec![append(stream)], Some(server.pid()));
        LoadSpec { duration: lab.duration * WITH_CHECKPOINTS, ..spec }
    };
    let (one, many) = (long("one"), long("many-####"));
    let (loads, checkpoints) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    let run = |spec: &LoadSpec| {
        all_checkpointed(server)?;
        let before = server.metric(CHECKPOINTS)?;
        let load = spec.run()?;
        checkpoints.borrow_mut().push(server.metric(CHECKPOINTS)? - before);
        let figure = load.calls_per_s;
        loads.borrow_mut().push(load);
        Ok(figure)
    };
    let rounds = lab.rounds(|| run(&one), || run(&many))?;
    let row = Row::new(what, Unit::CallsPerS, Goal::ShareAtLeast(0.80), "the same to one stream", rounds);
    let counts = checkpoints.into_inner().iter().map(|count| format!("{count:.0}")).collect::<Vec<_>>();
    let note =
        format!("checkpoints that ended within a run, one stream and many in turn: {}", counts.join(", "));
    Ok(vec![row.with_loads(loads.into_inner()).with_note(&note)])
}

/// Waits until a checkpoint has brought all that was written to index and files, and is through with what it does after.
fn all_checkpointed(server: &Server) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let (last, written) =
            (server.metric("flowmesh_log_entries_total")?, server.metric("flowmesh_checkpoint_lsn")?);
        if written >= last {
            std::thread::sleep(Duration::from_secs(1));
            return Ok(());
        }
        anyhow::ensure!(
            began.elapsed() < DEADLINE,
            "after {DEADLINE:?} no checkpoint has all {last} entries"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Start of a server with ten thousand streams, without and with 50 GB in their files.
pub fn opening(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let mut guest = lab.start(1, &CHECKPOINT_OFTEN)?;
    let mut client = UnaryClient::connect(guest.server()?.grpc, &[paths::CREATE, paths::APPEND])?;
    for number in 0..STREAMS {
        make_stream(&mut client, &format!("many-{number:04}"))?;
    }
    let segments = guest.dir().join("shard-000/streams");
    all_in_files(&segments, STREAMS)?;
    let (mut rounds, mut files) = (Vec::new(), 0);
    for _ in 0..lab.rounds {
        let small = restart_us(&mut guest)?;
        guest.kill();
        files = each_file(&segments, |path| {
            Ok(File::options().write(true).open(path)?.set_len(SPARSE_BYTES)?)
        })?;
        rounds.push(Round { bare: Some(small), measured: restart_us(&mut guest)? });
    }
    let what = "start with 10 000 streams and 50 GB of segments";
    let row = Row::new(what, Unit::Microseconds, Goal::AtMost(2e6), "the same without the bytes", rounds);
    Ok(vec![row.with_note(&format!("{files} files of {} MB, sparse", SPARSE_BYTES / 1_000_000))])
}

/// How long a start takes until the server is ready.
fn restart_us(guest: &mut Guest) -> anyhow::Result<f64> {
    guest.kill();
    let began = Instant::now();
    guest.restart()?;
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

/// Waits until checkpoints have brought the records of so many streams to their files.
fn all_in_files(segments: &Path, streams: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let files = if segments.is_dir() { each_file(segments, |_| Ok(()))? } else { 0 };
        if files >= streams {
            // The checkpoint that wrote the last one is to end.
            std::thread::sleep(Duration::from_secs(1));
            return Ok(());
        }
        anyhow::ensure!(began.elapsed() < DEADLINE, "after {DEADLINE:?} there are {files} segment files");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Does something with every file below a directory. Returns how many there are.
fn each_file(dir: &Path, mut work: impl FnMut(&Path) -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let (mut files, mut dirs) = (0, vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                work(&path)?;
                files += 1;
            }
        }
    }
    Ok(files)
}

/// What a stream that nobody uses takes in memory: what a server grows by from ten to thirty thousand of them. The first ten
/// bring it to where what is bounded, as the index's memory for its newest keys, no longer grows.
pub fn idle_streams(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &CHECKPOINT_OFTEN)?;
    let server = guest.server()?;
    let segments = guest.dir().join("shard-000/streams");
    let mut client = UnaryClient::connect(server.grpc, &[paths::CREATE, paths::APPEND])?;
    let mut memory_with = |numbers: std::ops::Range<u64>| {
        let upto = numbers.end;
        for number in numbers {
            make_stream(&mut client, &format!("idle-{number}"))?;
        }
        all_in_files(&segments, upto)?;
        std::thread::sleep(AT_REST);
        anyhow::Ok(server.memory()?.anonymous_bytes)
    };
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (few, some) = (memory_with(0..1)?, memory_with(1..STREAMS)?);
    let many = memory_with(STREAMS..3 * STREAMS)?;
    let grown = many.saturating_sub(some);
    let kibibytes = grown as f64 / (2 * STREAMS) as f64 / 1024.0;
    let note = format!(
        "{kibibytes:.2} KiB a stream; {:.1} MiB with one, {:.1} with {STREAMS}, {:.1} with {}",
        mebibytes(few),
        mebibytes(some),
        mebibytes(many),
        3 * STREAMS
    );
    let row = Row::new(
        format!("memory of {} more streams with a record each", 2 * STREAMS),
        Unit::Mebibytes,
        Goal::AtMost((2 * STREAMS) as f64 * 2.0 / 1024.0),
        "",
        vec![Round { bare: None, measured: mebibytes(grown) }],
    );
    Ok(vec![row.with_note(&note)])
}

fn make_stream(client: &mut UnaryClient, name: &str) -> anyhow::Result<()> {
    let create = v1::CreateResourceRequest {
        kind: v1::Kind::Stream.into(),
        name: name.to_owned(),
        or_existing: true,
        ..Default::default()
    };
    client.call::<v1::CreateResourceResponse>(paths::CREATE, &create)?;
    let record = v1::Record { value: b"one".as_slice().into(), ..Default::default() };
    let append = v1::AppendRequest { stream: name.to_owned(), records: vec![record], ..Default::default() };
    client.call::<v1::AppendResponse>(paths::APPEND, &append)?;
    Ok(())
}
