//! Two shards: what a hop between cores costs, in throughput and in time.
//!
//! On a machine of two cores the generator has to share them with the shards; it does so alike in what is compared.

use flowmesh_model::path::{Kind, ResourcePath};
use flowmesh_model::placement::{PlacementHash, SlotMap};
use flowmesh_proto::v1;

use super::fill;
use super::lab::Lab;
use super::process::Server;
use super::row::{Goal, Round, Row, Unit};
use crate::load::{GroupSpec, KeySpace, LoadResult, LoadSpec, OpKind, OpSpec};
use crate::meter;

const STORE: &str = "spread";
const KEYS: u64 = 20_000;
const SHARDS: u16 = 2;

/// The keys of the store that a shard of a fresh server holds.
fn keys_of(shard: u16) -> anyhow::Result<KeySpace> {
    let path = ResourcePath::parse(Kind::Kv, STORE)?;
    let (placement, slots) = (PlacementHash::of(&path), SlotMap::new(SHARDS));
    let keys: Vec<u64> = (0..KEYS)
        .filter(|number| slots.shard(placement.key_slot(&crate::load::keys::key_bytes(*number))).0 == shard)
        .collect();
    anyhow::ensure!(!keys.is_empty(), "shard {shard} holds no key");
    Ok(KeySpace::only(keys))
}

fn filled(server: &Server) -> anyhow::Result<[(std::net::SocketAddr, KeySpace); 2]> {
    server.create(v1::Kind::Kv, STORE)?;
    fill::keys(server.grpc, STORE, &KeySpace::new(KEYS, None), 100)?;
    match server.cores.as_slice() {
        [first, second] => Ok([(*first, keys_of(0)?), (*second, keys_of(1)?)]),
        other => anyhow::bail!("{} cores listen, not two", other.len()),
    }
}

fn group(op: OpSpec, target: std::net::SocketAddr, keys: &KeySpace, shape: (usize, usize)) -> GroupSpec {
    GroupSpec { keys: keys.clone(), ..Lab::calls(op, target, STORE, shape) }
}

/// Every request to the core that does not own its key, against every request to the one that does.
pub fn wrong_core(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(usize::from(SHARDS), &[])?;
    let server = guest.server()?;
    let [first, second] = filled(server)?;
    let mut rows = Vec::new();
    for kind in [OpKind::Get, OpKind::Set] {
        let op = OpSpec::new(kind);
        let spec = |name: &str, first_keys, second_keys| {
            let groups =
                vec![group(op, first.0, first_keys, (8, 32)), group(op, second.0, second_keys, (8, 32))];
            // One thread of the generator beside each shard, so that both shards are disturbed alike.
            let cpus = (0..2).map(|at| (lab.server_cpu + at) % meter::cores()).collect();
            LoadSpec { cpus, ..lab.spec(&format!("{}, {name}", kind.name()), groups, Some(server.pid())) }
        };
        let right = spec("right core", &first.1, &second.1);
        let wrong = spec("wrong core", &second.1, &first.1);
        let loads = std::cell::RefCell::new(Vec::new());
        let run = |spec: &LoadSpec| {
            let load = spec.run()?;
            let figure = load.calls_per_s;
            loads.borrow_mut().push(load);
            Ok(figure)
        };
        let rounds = lab.rounds(|| run(&right), || run(&wrong))?;
        let what = format!("two shards, every {} to the wrong core", kind.name());
        rows.push(
            Row::new(what, Unit::CallsPerS, Goal::ShareAtLeast(0.70), "the right core", rounds)
                .with_loads(loads.into_inner()),
        );
    }
    Ok(rows)
}

/// A lone get through the other core, while the owner is saturated by calls that are cheap to make.
pub fn hop(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(usize::from(SHARDS), &[])?;
    let server = guest.server()?;
    let [first, second] = filled(server)?;
    // Looking for keys that are not there costs the owner more than the generator, and queues up for less than 0.2 ms:
    // what is measured is the hop, not the queue.
    let busy = OpSpec::new(OpKind::Get).batch(20);
    let lone = OpSpec::new(OpKind::Get);
    let missing =
        KeySpace::only((KEYS..KEYS + 5_000).filter(|number| is_on(*number, 1)).collect::<Vec<u64>>());
    let saturate = GroupSpec { filled: false, ..group(busy, second.0, &missing, (2, 16)) };
    let spec = |name: &str, target| {
        let groups = vec![group(lone, target, &second.1, (1, 1)), saturate.clone()];
        // The generator stays off the saturated core.
        LoadSpec { cpus: vec![lab.server_cpu], ..lab.spec(name, groups, Some(server.pid())) }
    };
    let (through, direct) = (spec("through the other core", first.0), spec("to the owner", second.0));
    let p99 = |load: &LoadResult| load.ops.first().map_or(0.0, |op| op.latency.p99_us);
    let (mut rounds, mut loads) = (Vec::new(), Vec::new());
    for _ in 0..lab.rounds {
        let (near, far) = (direct.run()?, through.run()?);
        rounds.push(Round { bare: Some(p99(&near)), measured: p99(&far) });
        loads.extend([near, far]);
    }
    let owner =
        loads.last().and_then(|load| load.server.as_ref()).map_or(0.0, |server| server.busiest_thread_cores);
    let row = Row::new(
        "a get through the other core to a saturated one, p99",
        Unit::Microseconds,
        Goal::AtMost(1000.0),
        "the same without the hop",
        rounds,
    )
    .with_loads(loads)
    .with_note(&format!("the saturated core was {:.0} % busy", owner * 100.0));
    Ok(vec![row])
}

fn is_on(number: u64, shard: u16) -> bool {
    let Ok(path) = ResourcePath::parse(Kind::Kv, STORE) else { return false };
    let slot = PlacementHash::of(&path).key_slot(&crate::load::keys::key_bytes(number));
    SlotMap::new(SHARDS).shard(slot).0 == shard
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_holds_about_half_of_the_keys_and_both_all() {
        let (first, second) = (keys_of(0).unwrap(), keys_of(1).unwrap());
        assert_eq!(first.count() + second.count(), KEYS);
        assert!(first.count().abs_diff(second.count()) < KEYS / 10);
    }
}
