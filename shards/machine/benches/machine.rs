//! What the machine alone can do on one core: `cargo bench -p flowmesh-machine`, and with `-- trees` those alone. Numbers,
//! not verdicts.
//!
//! Each line is the best of some rounds. A round of a change is decide, encode the facts, apply; the log, the disk and
//! the network are not in it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a benchmark fails by panicking

mod trees;

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use flowmesh_machine::{Decision, EntryContext, Machine, MachineConfig};
use flowmesh_model::command::{LeaseRef, NewJob, ReadFrom, SetEntry, SetIf, SetTtl};
use flowmesh_model::record::{PackedRecords, RecordPacker, RecordView};
use flowmesh_model::{
    Batch, CatalogCommand, Command, Fact, Kind, KvCommand, Lsn, Millis, PartitionRef, QueueCommand, Reply,
    ResourceId, ResourcePath, Settings, ShardId, StreamCommand,
};

const KEYS: u64 = 200_000;
const ROUNDS: usize = 5;

struct Shard {
    machine: Machine,
    lsn: Lsn,
    now: Millis,
    log: Vec<u8>,
}

impl Shard {
    fn new() -> Self {
        let config = MachineConfig {
            shard: ShardId(0),
            catalog_owner: true,
            shards: 1,
            shares: 1,
            hash_seed: 1,
            checkpoints: true,
        };
        Self { machine: Machine::new(config), lsn: Lsn(0), now: Millis(1), log: Vec::with_capacity(1 << 20) }
    }

    fn run(&mut self, command: &Command) -> Reply {
        let reply = match self.machine.decide(self.now, self.lsn.next(), command).unwrap() {
            Decision::Change { facts, reply } => {
                self.log.clear();
                self.lsn = self.lsn.next();
                let at = EntryContext { lsn: self.lsn, time: self.machine.clamp(self.now) };
                for fact in facts {
                    fact.encode(&mut self.log);
                    self.machine.apply(at, fact);
                }
                reply
            }
            Decision::Answer { reply, .. } => reply,
            other => panic!("{other:?}"),
        };
        self.machine.forget_woken();
        reply
    }

    fn create(&mut self, kind: Kind) -> ResourceId {
        let path = ResourcePath::parse(kind, "bench").unwrap();
        let create =
            CatalogCommand::Create { path, settings: Settings::default_for(kind), or_existing: true };
        let Reply::Resource { info, .. } = self.run(&Command::Catalog(create)) else { panic!() };
        self.machine.set_catalog(self.machine.catalog_snapshot());
        info.id
    }
}

/// Prints the best rate of some rounds of `count` things.
fn measure(name: &str, count: u64, mut round: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        round();
        best = best.min(start.elapsed().as_secs_f64());
    }
    let (rate, each) = (count as f64 / best / 1e6, best * 1e9 / count as f64);
    println!("{name:<44} {rate:>8.2} M/s {each:>8.0} ns");
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("user:{:012}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % 1_000_000_007))
}

fn set(key: &Bytes, ttl: SetTtl) -> Command {
    let value = Bytes::from_static(&[7; 100]);
    let entry = SetEntry { key: key.clone(), value, ttl, condition: SetIf::Always };
    Command::Kv(ResourceId(1), KvCommand::Set { entries: Batch::from_elem(entry, 1) })
}

fn stores() {
    let (mut shard, mut before) = (Shard::new(), Vec::new());
    let keys: Vec<Bytes> = (0..KEYS).map(key).collect();
    let sets: Vec<Command> = keys.iter().map(|key| set(key, SetTtl::Default)).collect();
    let gets: Vec<Command> = keys
        .iter()
        .map(|key| Command::Kv(ResourceId(1), KvCommand::Get { keys: Batch::from_elem(key.clone(), 1) }))
        .collect();
    measure("set, new keys", KEYS, || {
        // Taking it apart is not measured.
        before.push(std::mem::replace(&mut shard, Shard::new()));
        shard.create(Kind::Kv);
        for command in &sets {
            black_box(shard.run(command));
        }
    });
    drop(before);
    println!("memory by its own count: {} bytes a key", shard.machine.memory_bytes() / KEYS);
    measure("get, 200 k keys of 100 bytes", KEYS, || {
        for command in &gets {
            black_box(shard.run(command));
        }
    });
    measure("set, known keys", KEYS, || {
        for command in &sets {
            black_box(shard.run(command));
        }
    });
    let mut hot = 0;
    measure("get, 100 hot keys", KEYS, || {
        for _ in 0..KEYS {
            hot = (hot + 7) % 100;
            black_box(shard.run(&gets[hot]));
        }
    });
    let expiring: Vec<Command> = keys.iter().map(|key| set(key, SetTtl::Millis(60_000))).collect();
    measure("set with a time to live", KEYS, || {
        shard.now = shard.now.plus(1);
        for command in &expiring {
            black_box(shard.run(command));
        }
    });
    let mut writes = Vec::new();
    let mut sealed = 0;
    measure("checkpoint of all keys, in steps of 512", KEYS, || {
        for command in &sets {
            shard.run(command);
        }
        let start = Instant::now();
        shard.machine.seal_ranges();
        writes.clear();
        while !shard.machine.collect(512, &mut writes) {}
        shard.machine.sealed_written();
        sealed = start.elapsed().as_millis();
    });
    println!("  of which seal and collect: {sealed} ms for {} writes", writes.len());
}

fn packed(records: usize) -> PackedRecords {
    let mut packer = RecordPacker::default();
    for _ in 0..records {
        packer.push(&RecordView { value: &[7; 100], ..RecordView::default() });
    }
    PackedRecords::check(packer.finish()).unwrap()
}

fn streams() {
    let at = PartitionRef { resource: ResourceId(1), partition: 0 };
    for records in [1, 100] {
        let mut shard = Shard::new();
        shard.create(Kind::Stream);
        let append = Command::Stream(at, StreamCommand::append(packed(records)));
        let count = 400_000 / records as u64;
        measure(&format!("append of {records} records of 100 bytes"), count, || {
            for _ in 0..count {
                black_box(shard.run(&append));
            }
            // As a checkpoint would, so that memory is used again.
            shard.machine.seal_ranges();
            while !shard.machine.collect(512, &mut Vec::new()) {}
            shard.machine.sealed_written();
            shard.machine.evict_tails(0, usize::MAX);
        });
        for _ in 0..count {
            shard.run(&append);
        }
        let Reply::StreamStatus { next, .. } = shard.run(&Command::Stream(at, StreamCommand::Status)) else {
            panic!()
        };
        let from = ReadFrom::Offset(flowmesh_model::Offset(next.0 - 5_000));
        let read = StreamCommand::Read {
            from,
            records_max: 1_000,
            bytes_max: 1 << 20,
            bytes_min: 0,
            wait_until: None,
        };
        let read = Command::Stream(at, read);
        measure(&format!("read of 1000 records, appended {records} at a time"), 1_000, || {
            for _ in 0..1_000 {
                black_box(shard.run(&read));
            }
        });
    }
}

fn queues() {
    for batch in [1, 64] {
        let mut shard = Shard::new();
        let queue = shard.create(Kind::Queue);
        let new = NewJob { payload: Bytes::from_static(&[7; 100]), ..NewJob::default() };
        let enqueue = Command::Queue(queue, QueueCommand::enqueue(Batch::from_elem(new, batch)));
        let reserve = Command::Queue(
            queue,
            QueueCommand::Reserve {
                jobs_max: batch as u32,
                visibility_timeout_ms: None,
                worker: Bytes::from_static(b"worker-1"),
                wait_until: None,
            },
        );
        // Some jobs are always waiting, as in life.
        for _ in 0..10_000 / batch {
            shard.run(&enqueue);
        }
        let count = 128_000 / batch as u64;
        measure(&format!("enqueue, reserve, ack: whole jobs, {batch} a call"), count * batch as u64, || {
            for _ in 0..count {
                shard.now = shard.now.plus(u64::from(batch > 1));
                shard.run(&enqueue);
                let Reply::Reserved(leased) = shard.run(&reserve) else { panic!() };
                let leases = leased.iter().map(|job| LeaseRef { job: job.job, token: job.token });
                black_box(shard.run(&Command::Queue(queue, QueueCommand::ack(leases))));
            }
        });
    }
}

/// Facts of all kinds, as recovery reads them.
fn replay() {
    let mut shard = Shard::new();
    let store = shard.create(Kind::Kv);
    let queue = shard.create(Kind::Queue);
    let mut log: Vec<(EntryContext, Fact)> = Vec::new();
    let mut at = EntryContext { lsn: Lsn(2), time: Millis(1) };
    let held = |id, kind| Fact::ResourceHeld { id, path: ResourcePath::parse(kind, "bench").unwrap() };
    log.push((at, held(store, Kind::Kv)));
    log.push((at, held(queue, Kind::Queue)));
    for number in 1..=100_000 {
        at.lsn = at.lsn.next();
        let job = flowmesh_model::JobId(number);
        let payload = Bytes::from_static(&[7; 100]);
        let enqueued = Fact::JobEnqueued {
            queue,
            job,
            ready_at: at.time,
            max_attempts: 3,
            priority: 0,
            headers: Bytes::new(),
            payload: payload.clone(),
            options: None,
        };
        let token = flowmesh_model::LeaseToken(number);
        let leased =
            Fact::JobLeased { queue, job, token, until: Millis(9_000), worker: Bytes::from_static(b"w") };
        let set = Fact::KeySet { store, key: key(number % 50_000), value: payload, expires_at: None };
        for fact in [enqueued, leased, Fact::JobDone { queue, job }, set] {
            log.push((at, fact));
        }
    }
    let count = log.len() as u64;
    let mut encoded = Vec::new();
    for (_, fact) in &log {
        fact.encode(&mut encoded);
    }
    let encoded = Bytes::from(encoded);
    measure("decode and apply: facts of jobs and keys", count, || {
        let mut machine = Machine::new(MachineConfig {
            shards: 1,
            shares: 1,
            shard: ShardId(1),
            catalog_owner: false,
            hash_seed: 1,
            checkpoints: true,
        });
        let mut reader = flowmesh_model::codec::Reader::new(encoded.clone());
        for (at, _) in &log {
            machine.apply(*at, Fact::decode(&mut reader).unwrap());
        }
        black_box(machine.memory_bytes());
    });
}

fn main() {
    if std::env::args().any(|arg| arg == "trees") {
        return trees::trees();
    }
    stores();
    streams();
    queues();
    replay();
    trees::trees();
}
