//! Writes what a scenario reads.

use std::net::SocketAddr;

use flowmesh_proto::v1;
use prost::Message;

use crate::http2::{Methods, UnaryClient};
use crate::load::KeySpace;
use crate::load::ops::{OpKind, OpSpec, Operation, paths};

/// Items in one call.
const BATCH: u32 = 1000;
/// Bytes of values in one call, so that it stays below the largest message.
const BATCH_BYTES: u32 = 1024 * 1024;

fn batch_of(value_bytes: u32) -> u32 {
    (BATCH_BYTES / value_bytes.max(1)).clamp(1, BATCH)
}

/// Writes every key of a store with its value.
///
/// # Errors
/// A call failed.
pub fn keys(target: SocketAddr, store: &str, keys: &KeySpace, value_bytes: u32) -> anyhow::Result<()> {
    let mut client = UnaryClient::connect(target, &[paths::SET])?;
    let spec = OpSpec::new(OpKind::Set).batch(batch_of(value_bytes)).value_bytes(value_bytes);
    let mut operation = Operation::new(spec, store, &mut Methods::default());
    let batch = operation.keys() as u64;
    for first in (0..keys.count()).step_by(batch as usize) {
        // The last batch names some keys twice, which changes nothing.
        let numbers: Vec<u64> = (first..first + batch).map(|at| keys.at(at % keys.count())).collect();
        for (place, number) in numbers.iter().enumerate() {
            operation.set_key(place, *number);
        }
        let answer = client.call_bytes(paths::SET, operation.bytes())?;
        operation.check(&numbers, &answer, false, false).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

/// Appends records until a stream of one partition has at least so many.
///
/// # Errors
/// A call failed.
pub fn records(target: SocketAddr, stream: &str, count: u64, value_bytes: u32) -> anyhow::Result<()> {
    let mut client = UnaryClient::connect(target, &[paths::APPEND])?;
    let spec = OpSpec::new(OpKind::Append).batch(batch_of(value_bytes)).value_bytes(value_bytes);
    let operation = Operation::new(spec, stream, &mut Methods::default());
    loop {
        let answer = client.call_bytes(paths::APPEND, operation.bytes())?;
        let answer = v1::AppendResponse::decode(&answer[..])?;
        if answer.base_offset + u64::from(answer.count) >= count {
            return Ok(());
        }
    }
}

/// Enqueues so many jobs.
///
/// # Errors
/// A call failed.
pub fn jobs(target: SocketAddr, queue: &str, count: u64, value_bytes: u32) -> anyhow::Result<()> {
    let mut client = UnaryClient::connect(target, &[paths::ENQUEUE])?;
    let batch = batch_of(value_bytes);
    let spec = OpSpec::new(OpKind::Enqueue).batch(batch).value_bytes(value_bytes);
    let operation = Operation::new(spec, queue, &mut Methods::default());
    for _ in 0..count.div_ceil(u64::from(batch)) {
        let answer = client.call_bytes(paths::ENQUEUE, operation.bytes())?;
        operation.check(&[], &answer, false, false).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}
