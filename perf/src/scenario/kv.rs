//! Key-value stores: many keys a call, what feeds, histories and caches cost, one hot counter, a sorted set of ten million members, ten million entries.

use std::cell::RefCell;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use flowmesh_proto::v1;

use super::fill;
use super::lab::Lab;
use super::row::{Goal, Round, Row, Unit, median};
use super::unary::ECHO;
use crate::http2::UnaryClient;
use crate::load::keys::{KEY_BYTES, key_bytes};
use crate::load::ops::paths;
use crate::load::random::Random;
use crate::load::{GroupSpec, KeySpace, LoadResult, LoadSpec, OpKind, OpSpec, run_ops};

/// The store.
const STORE: &str = "bench";
/// Keys or operations in one call.
const BATCH: u32 = 64;
/// Bytes of each value.
const VALUE_BYTES: u32 = 100;
/// What is written comes to the index soon.
const CHECKPOINT_SOON: [&str; 2] = ["--checkpoint-interval-ms", "5s"];

/// Reads and sets of 64 keys a call, uniform over a million in memory, beside an echo of the same bytes.
pub fn multi(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    const SHAPE: (usize, usize) = (8, 8);
    let keys = KeySpace::new(1_000_000, None);
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    fill::keys(server.grpc, STORE, &keys, VALUE_BYTES)?;
    server.settle()?;
    let echo = lab.echo()?;
    let mut rows = Vec::new();
    for (kind, what, goal) in
        [(OpKind::Get, "multi-get", 3_000_000.0), (OpKind::Set, "multi-set, synced,", 2_000_000.0)]
    {
        let op = OpSpec::new(kind).batch(BATCH).value_bytes(VALUE_BYTES);
        let name = format!("{what} of 64 keys of 1 M, {} connections × {} calls", SHAPE.0, SHAPE.1);
        let group = GroupSpec { keys: keys.clone(), ..Lab::calls(op, server.grpc, STORE, SHAPE) };
        let spec = lab.spec(&name, vec![group], Some(server.pid()));
        let echo_spec = lab.echo_spec(&echo, op, SHAPE);
        let (rounds, loads) = in_turn(lab, &echo_spec, &spec, |load| load.items_per_s)?;
        let row = Row::new(&name, Unit::KeysPerS, Goal::AtLeast(goal), ECHO, rounds);
        rows.push(row.with_loads(loads));
    }
    Ok(rows)
}

/// Sets of 64 keys a call in stores that also keep each change in a feed, keep what was before, or are full caches, beside the same
/// sets in a plain store of the same server.
pub fn kept(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    const SHAPE: (usize, usize) = (8, 8);
    const KEYS: u64 = 100_000;
    let keys = KeySpace::new(KEYS, None);
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    fill::keys(server.grpc, STORE, &keys, VALUE_BYTES)?;
    let feed = |stream: &str, old_values| {
        let feed = v1::FeedSettings {
            stream: stream.to_owned(),
            old_values: Some(old_values),
            ..Default::default()
        };
        v1::KvSettings { feed: Some(feed), ..Default::default() }
    };
    let half = v1::KvSettings {
        mode: Some(v1::KvMode::Cache.into()),
        entries_max: Some(KEYS / 2),
        ..Default::default()
    };
    let mut client = UnaryClient::connect(server.grpc, &[paths::CREATE])?;
    let mut rows = Vec::new();
    for (name, what, settings) in [
        ("fed", "with a feed", feed("changes", false)),
        ("fed-old", "with a feed that has old values", feed("changes-old", true)),
        ("past", "with a history", v1::KvSettings { history_ms: Some(3_600_000), ..Default::default() }),
        ("cache", "that is a cache with room for half of the keys", half),
    ] {
        let settings = Some(v1::Settings { kind: Some(v1::settings::Kind::Kv(settings)) });
        let create = v1::CreateResourceRequest {
            kind: v1::Kind::Kv.into(),
            name: name.to_owned(),
            settings,
            ..Default::default()
        };
        client.call::<v1::CreateResourceResponse>(paths::CREATE, &create)?;
        fill::keys(server.grpc, name, &keys, VALUE_BYTES)?;
        server.settle()?;
        let op = OpSpec::new(OpKind::Set).batch(BATCH).value_bytes(VALUE_BYTES);
        let spec = |store: &str, text: &str| {
            let group = GroupSpec { keys: keys.clone(), ..Lab::calls(op, server.grpc, store, SHAPE) };
            lab.spec(text, vec![group], Some(server.pid()))
        };
        let text = format!("multi-set of 64 keys of 100 k, synced, in a store {what}");
        let (plain, kept) = (spec(STORE, "multi-set, plain"), spec(name, &text));
        let (rounds, loads) = in_turn(lab, &plain, &kept, |load| load.items_per_s)?;
        let row = Row::new(&text, Unit::KeysPerS, Goal::None, "the same in a plain store", rounds);
        rows.push(row.with_loads(loads));
    }
    Ok(rows)
}

/// Increments of one counter that all clients share, one a call, 256 in flight.
pub fn counter(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    const SHAPE: (usize, usize) = (16, 16);
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    let what = "increment of one hot counter, 16 connections × 16";
    let op = OpSpec::new(OpKind::Increment);
    let spec = lab.spec(what, vec![Lab::calls(op, server.grpc, STORE, SHAPE)], Some(server.pid()));
    let echo = lab.echo()?;
    let echo_spec = lab.echo_spec(&echo, op, SHAPE);
    let (rounds, loads) = in_turn(lab, &echo_spec, &spec, |load| load.calls_per_s)?;
    let row = Row::new(what, Unit::CallsPerS, Goal::ShareAtLeast(0.80), ECHO, rounds);
    Ok(vec![row.with_loads(loads)])
}

/// The echo and the server in turn.
fn in_turn(
    lab: &Lab,
    echo: &LoadSpec,
    server: &LoadSpec,
    figure: fn(&LoadResult) -> f64,
) -> anyhow::Result<(Vec<Round>, Vec<LoadResult>)> {
    let loads = RefCell::new(Vec::new());
    let run = |spec: &LoadSpec| {
        let load = spec.run()?;
        let value = figure(&load);
        loads.borrow_mut().push(load);
        Ok(value)
    };
    let rounds = lab.rounds(|| run(echo), || run(server))?;
    Ok((rounds, loads.into_inner()))
}

/// Members of the sorted set.
const MEMBERS: u64 = 10_000_000;

/// What the server's processor works for adds to, ranks in and ranges of a sorted set of ten million members, 64 operations
/// a call; what an operation costs that only finds the key is taken off.
pub fn sorted(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    const SHAPE: (usize, usize) = (4, 8);
    let guest = lab.start(1, &CHECKPOINT_SOON)?;
    let server = guest.server()?;
    let before = server.memory()?.anonymous_bytes;
    fill_sorted(server.grpc, MEMBERS)?;
    server.settle()?;
    let grown = server.memory()?.anonymous_bytes.saturating_sub(before);
    let spec = |kind: OpKind, keys| {
        let op = OpSpec::new(kind).batch(BATCH);
        let group = GroupSpec { keys, ..Lab::calls(op, server.grpc, STORE, SHAPE) };
        lab.spec(kind.name(), vec![group], Some(server.pid()))
    };
    let idle = spec(OpKind::Inspect, KeySpace::new(1, None));
    // Numbers so many that members of nearly all adds are new.
    let all_there_can_be = KeySpace::new(1_000_000_000_000, None);
    let there = KeySpace::new(MEMBERS, None);
    let firsts = KeySpace::new(MEMBERS - run_ops::RANGE + 1, None);
    let mut rows = Vec::new();
    for (kind, what, keys) in [
        (OpKind::SortedRank, "rank", there),
        (OpKind::SortedRange, "range of 10", firsts),
        (OpKind::SortedAdd, "add", all_there_can_be),
    ] {
        let work = spec(kind, keys);
        let (mut rounds, mut loads, mut idles) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..lab.rounds {
            let (bare, load) = (idle.run()?, work.run()?);
            let (idle_us, whole_us) = (us_per_item(&bare)?, us_per_item(&load)?);
            rounds.push(Round { bare: None, measured: whole_us - idle_us });
            idles.push(idle_us);
            loads.extend([bare, load]);
        }
        let what = format!("sorted set of 10 M members: {what}, server's processor time an operation");
        let rates = loads.iter().skip(1).step_by(2).map(|load| load.items_per_s);
        let note = format!(
            "the {:.2} µs of an inspect in such a batch taken off; {:.0} k operations/s; the set takes {:.1} bytes a member in memory",
            median(idles.into_iter()),
            median(rates) / 1e3,
            grown as f64 / MEMBERS as f64,
        );
        let row = Row::new(what, Unit::Microseconds, Goal::AtMost(5.0), "", rounds);
        rows.push(row.with_note(&note).with_loads(loads));
        server.settle()?;
    }
    Ok(rows)
}

fn us_per_item(load: &LoadResult) -> anyhow::Result<f64> {
    Ok(load.server.as_ref().context("the server's processor time is not known")?.us_per_item)
}

/// Adds members 0 to `count`, many an operation.
fn fill_sorted(target: SocketAddr, count: u64) -> anyhow::Result<()> {
    const EACH: u64 = 5_000;
    let mut client = UnaryClient::connect(target, &[paths::RUN])?;
    for first in (0..count).step_by(EACH as usize) {
        let member = |number| v1::ScoredMember {
            member: key_bytes(number).to_vec().into(),
            score: run_ops::score(number),
        };
        let members = (first..(first + EACH).min(count)).map(member).collect();
        let add = v1::SortedAdd { members, ..Default::default() };
        let operation = v1::Operation {
            key: run_ops::SORTED_SET.into(),
            condition: None,
            action: Some(v1::operation::Action::SortedAdd(add)),
        };
        let request = v1::RunRequest {
            store: STORE.to_owned(),
            operations: vec![operation],
            atomic: false,
            as_of: None,
        };
        let answer: v1::RunResponse = client.call(paths::RUN, &request)?;
        let failed = answer.outcomes.iter().find_map(|outcome| outcome.error.as_ref());
        anyhow::ensure!(failed.is_none(), "adding members {first} and on failed: {failed:?}");
    }
    Ok(())
}

/// Entries, and the bytes of key and value of each.
const ENTRIES: u64 = 10_000_000;
const ENTRY_BYTES: f64 = KEY_BYTES as f64 + VALUE_BYTES as f64;

/// Ten million entries at rest: what they take in memory and on disk, and how long a start with them takes after kill -9.
pub fn entries(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let mut guest = lab.start(1, &CHECKPOINT_SOON)?;
    let server = guest.server()?;
    let before = server.memory()?;
    fill_entries(server.grpc, ENTRIES)?;
    server.settle()?;
    let after = server.memory()?;
    let shard = guest.dir().join("shard-000");
    let on_disk = bytes_under(&shard)?;
    let log = bytes_under(&shard.join("log"))?;
    guest.kill();
    let server = guest.restart()?;
    let started_us = server.ready_after.as_secs_f64() * 1e6;
    let request = v1::StoreStatusRequest { store: STORE.to_owned() };
    let mut client = UnaryClient::connect(server.grpc, &[paths::STORE_STATUS])?;
    let status: v1::StoreStatusResponse = client.call(paths::STORE_STATUS, &request)?;
    anyhow::ensure!(status.keys == ENTRIES, "{} of {ENTRIES} keys are there after the start", status.keys);
    let restarted = server.memory()?;
    let overhead =
        |bytes: u64| bytes.saturating_sub(before.anonymous_bytes) as f64 / ENTRIES as f64 - ENTRY_BYTES;
    let one = |measured| vec![Round { bare: None, measured }];
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let whole = ENTRIES as f64 * ENTRY_BYTES;
    let disk = Round { bare: Some(whole / f64::from(1 << 20)), measured: mebibytes(on_disk - log) };
    Ok(vec![
        Row::new(
            "10 M entries of 16 + 100 bytes: memory beside key and value, an entry",
            Unit::Bytes,
            Goal::AtMost(80.0),
            "",
            one(overhead(after.anonymous_bytes)),
        )
        .with_note(&format!(
            "{:.0} MiB resident; {:.1} bytes an entry once started again; {:.1} bytes by the server's own estimate",
            mebibytes(after.resident_bytes),
            overhead(restarted.anonymous_bytes),
            status.memory_bytes as f64 / ENTRIES as f64 - ENTRY_BYTES,
        )),
        Row::new(
            "10 M entries of 16 + 100 bytes, values by chance: the index on disk once at rest",
            Unit::Mebibytes,
            Goal::TimesAtMost(1.3),
            "bytes of keys and values",
            vec![disk],
        )
        .with_note(&format!("and {:.0} MiB of log, which is kept for what comes next", mebibytes(log))),
        Row::new(
            "10 M entries: start after kill -9",
            Unit::Microseconds,
            Goal::AtMost(1e7),
            "",
            one(started_us),
        ),
    ])
}

/// Sets keys 0 to `count` to values by chance, which no compression makes smaller.
fn fill_entries(target: SocketAddr, count: u64) -> anyhow::Result<()> {
    const EACH: u64 = 1_000;
    let mut client = UnaryClient::connect(target, &[paths::SET])?;
    let mut random = Random::new(1);
    for first in (0..count).step_by(EACH as usize) {
        let mut entry = |number| v1::SetEntry {
            key: key_bytes(number).to_vec().into(),
            value: (0..VALUE_BYTES).map(|_| random.any() as u8).collect::<Vec<u8>>().into(),
            ..Default::default()
        };
        let entries = (first..(first + EACH).min(count)).map(&mut entry).collect();
        let request = v1::SetRequest { store: STORE.to_owned(), entries };
        let answer: v1::SetResponse = client.call(paths::SET, &request)?;
        let failed = answer.outcomes.iter().find_map(|outcome| outcome.error.as_ref());
        anyhow::ensure!(failed.is_none(), "setting keys {first} and on failed: {failed:?}");
    }
    Ok(())
}

/// Bytes that the files of a directory take on disk.
fn bytes_under(dir: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_under(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}
