//! Micro-benchmarks of the pure pieces that every request goes through: `cargo bench -p flowmesh-perf`.
//!
//! They say what a piece costs by itself, so that a slower whole can be told from a slower part. What a server reaches
//! is measured by `scripts/bench`.

#![allow(clippy::unwrap_used, missing_docs, reason = "benchmarks")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flowmesh_model::fact::decode_all;
use flowmesh_model::ids::{Lsn, Millis, Offset, PartitionRef, ResourceId};
use flowmesh_model::placement::{PlacementHash, SlotMap};
use flowmesh_model::record::PackedRecords;
use flowmesh_model::{Fact, Kind, ResourcePath};
use flowmesh_perf::http2::hpack::Decoder;
use flowmesh_perf::load::ops::{OpKind, OpSpec, put_records};
use flowmesh_store::log::format::{ENTRY_HEADER_BYTES, Run, seal_entry};

/// Packed records as they arrive.
fn packed(batch: u32) -> Bytes {
    let mut bytes = Vec::new();
    put_records(&mut bytes, OpSpec::new(OpKind::Append).batch(batch));
    bytes.into()
}

fn appended(batch: u32) -> Fact {
    let at = PartitionRef { resource: ResourceId(7), partition: 0 };
    Fact::RecordsAppended { at, base: Offset(1_000_000), count: batch, records: packed(batch) }
}

fn key_set() -> Fact {
    let (key, value) = (Bytes::from_static(b"key-000000001234"), Bytes::from(vec![b'.'; 100]));
    Fact::KeySet { store: ResourceId(7), key, value, expires_at: None }
}

fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("check packed records of 100 bytes");
    for batch in [1, 100, 500] {
        let bytes = packed(batch);
        group.throughput(Throughput::Elements(u64::from(batch)));
        group.bench_function(batch.to_string(), |b| {
            b.iter(|| PackedRecords::check(black_box(bytes.clone())).unwrap());
        });
    }
    group.finish();
}

fn facts(c: &mut Criterion) {
    for (name, fact) in [("records appended, 100", appended(100)), ("key set", key_set())] {
        let mut body = Vec::new();
        fact.encode(&mut body);
        let bytes = Bytes::from(body.clone());
        let mut group = c.benchmark_group(format!("fact: {name}"));
        group.bench_function("encode", |b| {
            b.iter(|| {
                body.clear();
                black_box(&fact).encode(&mut body);
            });
        });
        group.bench_function("decode", |b| b.iter(|| decode_all(black_box(bytes.clone())).unwrap()));
        group.finish();
    }
}

fn log(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal a log entry (header and CRC32C)");
    for body_bytes in [128usize, 4096, 65_536] {
        let mut entry = vec![7u8; ENTRY_HEADER_BYTES + body_bytes];
        group.throughput(Throughput::Bytes(body_bytes as u64));
        group.bench_function(body_bytes.to_string(), |b| {
            b.iter(|| seal_entry(black_box(&mut entry), body_bytes, Run::new(1), Lsn(9), Millis(5)));
        });
    }
    group.finish();
}

fn placement(c: &mut Criterion) {
    let store = PlacementHash::of(&ResourcePath::parse(Kind::Kv, "sessions").unwrap());
    let slots = SlotMap::new(8);
    c.bench_function("shard of a key", |b| {
        b.iter(|| slots.shard(store.key_slot(black_box(b"key-000000001234"))));
    });
}

fn client(c: &mut Criterion) {
    let mut decoder = Decoder::default();
    // :status 200, and content-type put into the table; from then on two bytes.
    let mut first = vec![0x88, 0x40, 12];
    first.extend_from_slice(b"content-type");
    first.push(16);
    first.extend_from_slice(b"application/grpc");
    decoder.decode(&first).unwrap();
    c.bench_function("client: head of an answer", |b| {
        b.iter(|| decoder.decode(black_box(&[0x88, 0xbe])).unwrap());
    });
}

criterion_group!(benches, records, facts, log, placement, client);
criterion_main!(benches);
