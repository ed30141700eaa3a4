//! Writes what a scenario reads.

use std::net::SocketAddr;

use flowmesh_proto::v1;
use prost::Message;

use crate::http2::{Methods, UnaryClient};
use crate::load::KeySpace;
use crate::load::ops::{OpKind, OpSpec, Operation, paths};
use crate::load::workers::payload;

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

/// Enqueues jobs that are due in equal steps over a time, in another order than they are due; each says when it is.
#[derive(Clone, Copy, Debug)]
pub struct Delayed {
    /// How many.
    pub count: u64,
    /// When the first is due, in ms since the Unix epoch.
    pub first_ms: u64,
    /// Milliseconds in which all of them are due.
    pub span_ms: u64,
    /// Bytes of each payload.
    pub value_bytes: u32,
}

impl Delayed {
    /// When the job is due that is enqueued at this place. All moments there are, each once: the factor has no divisor in
    /// common with any count that is not a multiple of this prime.
    fn due_ms(&self, at: u64) -> u64 {
        const PRIME: u64 = 2_147_483_629;
        let place = u128::from(at) * u128::from(PRIME) % u128::from(self.count.max(1));
        self.first_ms + (place * u128::from(self.span_ms) / u128::from(self.count.max(1))) as u64
    }

    /// Enqueues them all.
    ///
    /// # Errors
    /// A call failed.
    pub fn fill(&self, target: SocketAddr, queue: &str) -> anyhow::Result<()> {
        let mut client = UnaryClient::connect(target, &[paths::ENQUEUE])?;
        let batch = u64::from(batch_of(self.value_bytes));
        let job = |at| {
            let run_at_ms = self.due_ms(at);
            let payload = payload(run_at_ms * 1_000_000, self.value_bytes as usize).into();
            v1::NewJob { payload, run_at_ms, ..Default::default() }
        };
        for first in (0..self.count).step_by(batch as usize) {
            let jobs: Vec<_> = (first..(first + batch).min(self.count)).map(job).collect();
            let request = v1::EnqueueRequest { queue: queue.to_owned(), jobs, wait_ms: 0 };
            client.call::<v1::EnqueueResponse>(paths::ENQUEUE, &request)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_has_one_job() {
        let delayed = Delayed { count: 3_600, first_ms: 1_000, span_ms: 36_000, value_bytes: 100 };
        let mut due: Vec<u64> = (0..3_600).map(|at| delayed.due_ms(at)).collect();
        assert!(!due.is_sorted());
        due.sort_unstable();
        assert_eq!(due, (0..3_600).map(|at| 1_000 + at * 10).collect::<Vec<_>>());
    }
}
