//! Reads of records that are only in segment files: the machine says where, the disk is read without holding the
//! state, and the reply goes out as any other.

use flowmesh_machine::ColdRead;
use flowmesh_model::reply::RecordRuns;
use flowmesh_model::{Lsn, Offset, Reject, Reply};
use flowmesh_store::disk::Disk;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::pump::Effects;
use crate::release::{Need, Outgoing};
use crate::shard::Shard;
use crate::timer::Timer;

/// Reads of the disk at the same time: enough to keep an NVMe queue busy, few enough to bound their buffers.
const CONCURRENT: usize = 16;

/// A read that waits for its records.
pub(crate) struct Fetch {
    /// Which records.
    pub read: ColdRead,
    /// Who gets them; the outcome is still to come.
    pub outgoing: Outgoing,
}

impl<D: Disk, T: Timer> Shard<D, T> {
    /// Serves cold reads. Runs until it is dropped.
    pub async fn run_fetches(self) {
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < CONCURRENT {
                let next = self.inner.state.borrow_mut().fetches.pop_front();
                match next {
                    Some(fetch) => running.push(self.fetch(fetch)),
                    None => break,
                }
            }
            if running.is_empty() {
                self.inner.signals.fetch.wait().await;
            } else {
                let woken = std::pin::pin!(self.inner.signals.fetch.wait());
                futures::future::select(running.next(), woken).await;
            }
        }
    }

    async fn fetch(&self, fetch: Fetch) {
        let Fetch { read, mut outgoing } = fetch;
        if outgoing.sink.is_closed() {
            return;
        }
        outgoing.outcome = self.read_segments(&read).await;
        let now_ns = self.inner.timer.monotonic_ns();
        let mut effects = Effects::default();
        {
            let mut state = self.inner.state.borrow_mut();
            let stats = state.stats.operation_mut(outgoing.operation);
            stats.commands += 1;
            match &outgoing.outcome {
                Ok(Reply::Records(records)) => {
                    stats.items += records.runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
                }
                _ => stats.rejected += 1,
            }
            // The high watermark in the reply shows everything so far.
            let (seen, need) = (state.last_lsn(), state.need_of(read.at.resource));
            let (seen, need) = if outgoing.outcome.is_ok() { (seen, need) } else { (Lsn(0), Need::Written) };
            state.park_or_release(seen, need, outgoing, now_ns, &mut effects);
        }
        self.carry_on(effects);
    }

    async fn read_segments(&self, read: &ColdRead) -> Result<Reply, Reject> {
        let Some(durable) = &self.inner.durable else {
            return Err(Reject::Internal("a cold read without a disk"));
        };
        let runs = durable
            .streams
            .read(read.at, read.from, read.records_max, read.bytes_max)
            .await
            .map_err(|error| Reject::Damaged { place: error.to_string() })?;
        let next = runs.last().map_or(read.from, |run| run.base.plus(u64::from(run.count)));
        if next <= read.from {
            // The machine knew of the record, so it must be in a segment file or, by now, trimmed.
            return Err(missing(read, next));
        }
        Ok(Reply::Records(RecordRuns {
            runs,
            next,
            earliest: read.earliest,
            high_watermark: read.high_watermark,
        }))
    }
}

fn missing(read: &ColdRead, found: Offset) -> Reject {
    Reject::Damaged {
        place: format!(
            "stream {}: record {} is in no segment file (found up to {found})",
            read.at, read.from
        ),
    }
}
