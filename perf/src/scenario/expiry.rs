//! Keys that end by the hundred thousand a second while others are worked with.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use flowmesh_proto::v1;

use super::fill;
use super::lab::Lab;
use super::process::Server;
use super::row::{Goal, Round, Row, Unit};
use crate::http2::UnaryClient;
use crate::load::keys::key_bytes;
use crate::load::ops::paths;
use crate::load::{GroupSpec, KeySpace, LoadResult, OpKind, OpSpec};

/// The store.
const STORE: &str = "bench";
/// Keys that end.
const ENDING: u64 = 10_000_000;
/// How many of them end in a second.
const PER_S: u64 = 100_000;
/// Keys that do not; the load is on them.
const OTHERS: u64 = 1_000_000;
/// Bytes of each value.
const VALUE_BYTES: u32 = 100;
/// Until the first key ends: enough to set them all, to let the server come to rest, and to measure what it does without.
const LEAD: Duration = Duration::from_secs(100);
/// No key ends later than so long after it should.
const LATE_MAX: Duration = Duration::from_mins(1);

/// Gets and sets of other keys while 100 000 keys end in each second, beside the same load before the first of them ends, with the same
/// keys in memory; and what of their memory comes back.
pub fn expiry(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &[])?;
    let server = guest.server()?;
    let others = KeySpace::new(OTHERS, None);
    fill::keys(server.grpc, STORE, &others, VALUE_BYTES)?;
    server.settle()?;
    let before_bytes = server.memory()?.anonymous_bytes;
    let start = SystemTime::now() + LEAD;
    fill_ending(server.grpc, start)?;
    server.settle()?;

    let works = [
        (OpKind::Get, "unary get", (16, 32), 1),
        (OpKind::Set, "unary set", (16, 32), 1),
        (OpKind::Get, "get of 64", (8, 8), 64),
    ];
    let run = |kind, what: &str, shape, batch| {
        let op = OpSpec::new(kind).batch(batch).value_bytes(VALUE_BYTES);
        let group = GroupSpec { keys: others.clone(), ..Lab::calls(op, server.grpc, STORE, shape) };
        lab.spec(what, vec![group], Some(server.pid())).run()
    };
    let measure = || -> anyhow::Result<Vec<LoadResult>> {
        let one = |_| works.map(|(kind, what, shape, batch)| run(kind, what, shape, batch));
        (0..lab.rounds).flat_map(one).collect()
    };
    let without = measure()?;
    let mut peak_bytes = server.memory()?.anonymous_bytes;
    let left = start
        .duration_since(SystemTime::now())
        .context("keys ended before all were set and measured without")?;
    // The first second is not like those that follow it.
    std::thread::sleep(left + Duration::from_secs(1));
    let (began, keys_before) = (Instant::now(), keys(server)?);
    let with = measure()?;
    let ended_per_s = (keys_before - keys(server)?) as f64 / began.elapsed().as_secs_f64();
    anyhow::ensure!(
        keys(server)? > OTHERS,
        "all keys have ended before the load had: fewer rounds, or shorter ones"
    );
    peak_bytes = peak_bytes.max(server.memory()?.anonymous_bytes);

    let all_ended = start + Duration::from_secs(ENDING / PER_S) + LATE_MAX;
    while keys(server)? > OTHERS {
        anyhow::ensure!(
            SystemTime::now() < all_ended,
            "{} keys are left whose time is up",
            keys(server)? - OTHERS
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    server.settle()?;
    let after_bytes = server.memory()?.anonymous_bytes;

    let mut rows = Vec::new();
    for (place, (_, what, (connections, streams), batch)) in works.into_iter().enumerate() {
        let of = |loads: &[LoadResult]| -> Vec<LoadResult> {
            loads.iter().skip(place).step_by(works.len()).cloned().collect()
        };
        let (without, with) = (of(&without), of(&with));
        let round = |(bare, measured): (&LoadResult, &LoadResult)| Round {
            bare: Some(bare.items_per_s),
            measured: measured.items_per_s,
        };
        let rounds = without.iter().zip(&with).map(round).collect();
        let what = format!(
            "{what} of 1 M other keys while 100 k keys end every second, {connections} connections × {streams}"
        );
        let unit = if batch == 1 { Unit::CallsPerS } else { Unit::KeysPerS };
        let row = Row::new(what, unit, Goal::ShareAtLeast(0.90), "the same before any ends", rounds);
        let note = format!("{:.1} k keys/s were removed during the three loads", ended_per_s / 1e3);
        rows.push(row.with_note(&note).with_loads(without.into_iter().chain(with).collect()));
    }
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let took = peak_bytes.saturating_sub(before_bytes);
    let memory =
        Round { bare: Some(mebibytes(took)), measured: mebibytes(peak_bytes.saturating_sub(after_bytes)) };
    let row = Row::new(
        "10 M keys have ended: memory given back",
        Unit::Mebibytes,
        Goal::ShareAtLeast(0.90),
        "what they took at the peak",
        vec![memory],
    );
    let note = format!(
        "{:.0} MiB before they were set, {:.0} MiB at the peak, {:.0} MiB once all have ended and 1 M others are there",
        mebibytes(before_bytes),
        mebibytes(peak_bytes),
        mebibytes(after_bytes),
    );
    rows.push(row.with_note(&note));
    Ok(rows)
}

/// How many keys the store has, those included that have ended and are not removed.
fn keys(server: &Server) -> anyhow::Result<u64> {
    let mut client = UnaryClient::connect(server.grpc, &[paths::STORE_STATUS])?;
    let request = v1::StoreStatusRequest { store: STORE.to_owned() };
    Ok(client.call::<v1::StoreStatusResponse>(paths::STORE_STATUS, &request)?.keys)
}

/// When the key ends that is set at this place, in ms behind the first: in another order than they are set, and by which they lie.
fn end_ms(place: u64) -> u64 {
    const PRIME: u64 = 2_147_483_629;
    let place = u128::from(place) * u128::from(PRIME) % u128::from(ENDING);
    (place * 1000 / u128::from(PER_S)) as u64
}

fn fill_ending(target: SocketAddr, start: SystemTime) -> anyhow::Result<()> {
    const EACH: u64 = 1_000;
    let start_ms = start.duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let mut client = UnaryClient::connect(target, &[paths::SET])?;
    let entry = |place| v1::SetEntry {
        key: key_bytes(OTHERS + place).to_vec().into(),
        value: vec![b'v'; VALUE_BYTES as usize].into(),
        ttl: Some(v1::set_entry::Ttl::ExpiresAtMs(start_ms + end_ms(place))),
        ..Default::default()
    };
    for first in (0..ENDING).step_by(EACH as usize) {
        let entries = (first..first + EACH).map(entry).collect();
        let request = v1::SetRequest { store: STORE.to_owned(), entries };
        let answer: v1::SetResponse = client.call(paths::SET, &request)?;
        let failed = answer.outcomes.iter().find_map(|outcome| outcome.error.as_ref());
        anyhow::ensure!(failed.is_none(), "setting keys {first} and on failed: {failed:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_keys_end_in_each_second() {
        let mut seconds = vec![0; (ENDING / PER_S) as usize];
        (0..ENDING).for_each(|place| seconds[(end_ms(place) / 1000) as usize] += 1);
        assert!(seconds.iter().all(|keys| *keys == PER_S));
        assert!(end_ms(0).abs_diff(end_ms(1)) > 1000);
    }
}
