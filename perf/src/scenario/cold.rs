//! A store four times as large as the memory there is for it.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use flowmesh_proto::v1;
use rustix::fs::{Advice, fadvise};

use super::lab::{Guest, Lab};
use super::process::Server;
use super::row::{Goal, Round, Row, Unit};
use crate::baseline::disk;
use crate::http2::UnaryClient;
use crate::load::keys::{key_bytes, stamp};
use crate::load::ops::paths;
use crate::load::random::Random;
use crate::load::{GroupSpec, KeySpace, LoadResult, LoadSpec, OpKind, OpSpec};

/// The store.
const STORE: &str = "bench";
/// Bytes of each value.
const VALUE_BYTES: u32 = 1024;
/// Keys: a gibibyte of values.
const KEYS: u64 = 1024 * 1024;
/// Keys that are asked for all the time: a small part of what memory has room for.
const HOT: u64 = 10_000;
/// The server's memory, a quarter of what values take.
const LITTLE: [&str; 2] = ["--memory-bytes", "256MiB"];
const ENOUGH: [&str; 2] = ["--memory-bytes", "4GiB"];
/// Connections and calls of each that get hot keys, and of those that get any: mostly cold ones where memory is little.
const HOT_SHAPE: (usize, usize) = (4, 1);
const COLD_SHAPE: (usize, usize) = (1, 1);

/// Gets of hot keys beside gets of any, with a quarter of the memory that all takes, beside the same load with enough memory; and
/// how long those of cold keys take, beside bare reads of the disk.
pub fn cold(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let mut guest = lab.start(1, &LITTLE)?;
    fill(guest.server()?.grpc)?;
    guest.server()?.settle()?;
    let shard = guest.dir().join("shard-000");
    let (mut hot, mut cold) = (Vec::new(), Vec::new());
    let (mut loads, mut read, mut resident) = (Vec::new(), 0.0, 0);
    for _ in 0..lab.rounds {
        let (with_enough, _) = measure(lab, &mut guest, &ENOUGH, &shard)?;
        let bare = disk::small_reads(lab.scratch(), Some(lab.server_cpu), lab.duration)?.summary();
        let (with_little, read_share) = measure(lab, &mut guest, &LITTLE, &shard)?;
        (read, resident) = (read_share, guest.server()?.memory()?.resident_bytes);
        hot.push(Round { bare: Some(p99(&with_enough, 0)?), measured: p99(&with_little, 0)? });
        cold.push(Round { bare: Some(bare.p99_us), measured: p99(&with_little, 1)? });
        loads.extend([with_enough, with_little]);
    }
    let row = |what: &str, times, base: &str, rounds| {
        Row::new(what, Unit::Microseconds, Goal::TimesAtMost(times), base, rounds)
    };
    let note = format!(
        "{:.0} MiB resident; {:.0} % of the gets of any key were read from the index",
        resident as f64 / f64::from(1 << 20),
        read * 100.0,
    );
    Ok(vec![
        row(
            "get of 10 k hot keys, 4 connections × 1, beside one client that gets any of 1 M, memory a quarter of the values: p99",
            1.5,
            "the same with all in memory",
            hot,
        )
        .with_note(&note)
        .with_loads(loads),
        row("get of any of 1 M keys beside them: p99", 5.0, "bare read of 4 KiB, p99", cold),
    ])
}

/// Starts the server with these arguments, with nothing of the index in the system's cache, and puts the load on it. Returns also
/// which share of the gets of any key was read from the index.
fn measure(lab: &Lab, guest: &mut Guest, args: &[&str], shard: &Path) -> anyhow::Result<(LoadResult, f64)> {
    let server = guest.restart_with(args)?;
    let gets = |keys, shape| {
        let op = OpSpec::new(OpKind::Get).value_bytes(VALUE_BYTES).by_chance();
        GroupSpec { keys, ..Lab::calls(op, server.grpc, STORE, shape) }
    };
    let groups = vec![gets(KeySpace::new(HOT, None), HOT_SHAPE), gets(KeySpace::new(KEYS, None), COLD_SHAPE)];
    let what = format!("gets of hot keys and of any, {}", args.join(" "));
    // The thread that reads the index needs a core: the generator leaves it some of its own.
    let spec = LoadSpec { spin: false, ..lab.spec(&what, groups, Some(server.pid())) };
    // What is hot is in memory then.
    let warm = LoadSpec { duration: Duration::from_secs(2), ..spec.clone() };
    warm.run()?;
    forget_cached(shard)?;
    let before = read_values(server)?;
    let load = spec.run()?;
    let per_s = load.ops.get(1).context("an operation without a result")?.calls_per_s;
    let gets = (spec.warmup + spec.duration).as_secs_f64() * per_s;
    Ok((load, (read_values(server)? - before) / gets))
}

fn read_values(server: &Server) -> anyhow::Result<f64> {
    server.metric("flowmesh_cold_values_read_total")
}

fn p99(load: &LoadResult, op: usize) -> anyhow::Result<f64> {
    Ok(load.ops.get(op).context("an operation without a result")?.latency.p99_us)
}

/// Sets all keys, to values that no compression makes smaller.
fn fill(target: SocketAddr) -> anyhow::Result<()> {
    const EACH: u64 = 500;
    let mut client = UnaryClient::connect(target, &[paths::SET])?;
    let mut random = Random::new(1);
    for first in (0..KEYS).step_by(EACH as usize) {
        let mut entry = |number| {
            let mut value = stamp(number).to_vec();
            value.resize_with(VALUE_BYTES as usize, || random.any() as u8);
            v1::SetEntry { key: key_bytes(number).to_vec().into(), value: value.into(), ..Default::default() }
        };
        let entries = (first..(first + EACH).min(KEYS)).map(&mut entry).collect();
        let request = v1::SetRequest { store: STORE.to_owned(), entries };
        let answer: v1::SetResponse = client.call(paths::SET, &request)?;
        let failed = answer.outcomes.iter().find_map(|outcome| outcome.error.as_ref());
        anyhow::ensure!(failed.is_none(), "setting keys {first} and on failed: {failed:?}");
    }
    Ok(())
}

/// Takes all files of a directory out of the system's cache.
fn forget_cached(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            forget_cached(&path)?;
        } else {
            fadvise(File::open(&path)?, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}
