//! Jobs go from this shard's queues to other queues and streams, wherever they are.
//!
//! A **lane** is a queue and one target. What its machine says is next is read as any client reads, so it is on disk when
//! it leaves; the target's answer comes once what it took in is on disk there; then the queue is told. A crash in between
//! only means that the same is sent again, which the target recognises.
//!
//! ```text
//! next (durable here) ─► transport ─► receive (durable there) ─► sent ─► next …
//!                            └──────── refused: again, later, or never ◄┘
//! ```
//!
//! Nothing is done while nothing is on its way: facts wake the loop, and so does the time of another try.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flowmesh_model::limits::TEXT_BYTES_MAX;
use flowmesh_model::transfer::{Arrival, Incoming};
use flowmesh_model::{
    Code, Command, PartitionRef, QueueCommand, Reject, Reply, ResourceId, TransferCommand, TransferReply,
};
use flowmesh_store::disk::Disk;
use futures::StreamExt;
use futures::channel::oneshot;
use futures::future::{Either, select};
use futures::stream::FuturesUnordered;

use crate::shard::Shard;
use crate::sink::{ReplySink, SinkFn};
use crate::timer::Timer;

/// Lanes that send at the same time: enough to fill what is on its way to the disks, few enough to bound what is held.
const CONCURRENT: usize = 32;

/// The wait after a first failure, and the longest one.
const RETRY: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The way to queues and streams of all shards.
pub trait Transport: 'static {
    /// Hands jobs to the shard that has the queue or the partition. `sink` gets [`TransferReply::Received`] once they are on
    /// its disk, or why not; `RESOURCE_NOT_FOUND` only if there is no such queue or stream any more.
    fn deliver(&self, to: PartitionRef, arrival: Arrival, sink: Box<dyn ReplySink>);
}

/// A queue and a target.
type Lane = (ResourceId, PartitionRef);

/// What a try came to.
enum Tried {
    /// There was nothing to send.
    Empty,
    /// It arrived, or never will: there may be more.
    Gone,
    /// Not now.
    Later(Reject),
}

/// Lanes, and when their turn is.
#[derive(Default)]
struct Lanes {
    /// Those that have something to send, first come first served.
    ready: BTreeSet<(u64, Lane)>,
    turn: u64,
    /// Those that wait for another try: by the moment, in nanoseconds of the monotonic clock.
    waiting: BTreeSet<(u64, Lane)>,
    /// Those being sent, and whether they got more meanwhile.
    running: BTreeMap<Lane, bool>,
    /// Tries that failed in a row.
    failures: BTreeMap<Lane, u32>,
}

impl Lanes {
    fn push(&mut self, lane: Lane) {
        self.ready.insert((self.turn, lane));
        self.turn += 1;
    }

    /// A lane has something.
    fn begun(&mut self, lane: Lane) {
        if let Some(more) = self.running.get_mut(&lane) {
            *more = true;
        } else if !self.failures.contains_key(&lane) {
            self.push(lane);
        }
    }

    fn wake(&mut self, now_ns: u64) {
        while let Some((_, lane)) = self.waiting.first().copied().filter(|(at, _)| *at <= now_ns) {
            self.waiting.pop_first();
            self.push(lane);
        }
    }

    fn take(&mut self) -> Option<Lane> {
        let (_, lane) = self.ready.pop_first()?;
        self.running.insert(lane, false);
        Some(lane)
    }

    fn tried(&mut self, lane: Lane, tried: &Tried, now_ns: u64) {
        let more = self.running.remove(&lane).unwrap_or(false);
        match tried {
            Tried::Later(reject) => {
                let failures = self.failures.entry(lane).or_default();
                let wait = RETRY.saturating_mul(1 << (*failures).min(16)).min(RETRY_MAX);
                let asked = Duration::from_millis(reject.retry_after_ms().unwrap_or(0));
                *failures += 1;
                let wait_ns = u64::try_from(wait.max(asked).as_nanos()).unwrap_or(u64::MAX);
                self.waiting.insert((now_ns.saturating_add(wait_ns), lane));
            }
            Tried::Gone => {
                self.failures.remove(&lane);
                self.push(lane);
            }
            Tried::Empty => {
                self.failures.remove(&lane);
                if more {
                    self.push(lane);
                }
            }
        }
    }
}

impl<D: Disk, T: Timer> Shard<D, T> {
    /// Sends what queues have for others. To be run once every shard has recovered and knows the catalog; runs until it is
    /// dropped.
    pub async fn run_transfers(self, transport: impl Transport) {
        let transport = Rc::new(transport);
        let (mut lanes, mut running) = (Lanes::default(), FuturesUnordered::new());
        loop {
            let begun = self.inner.state.borrow_mut().machine.take_outgoing();
            for lane in begun {
                lanes.begun(lane);
            }
            lanes.wake(self.inner.timer.monotonic_ns());
            while running.len() < CONCURRENT
                && let Some(lane) = lanes.take()
            {
                running.push(self.try_lane(Rc::clone(&transport), lane));
            }
            let woken = std::pin::pin!(self.inner.signals.transfer.wait());
            let rest = std::pin::pin!(self.rest(lanes.waiting.first().map(|(at, _)| *at)));
            let woken = select(woken, rest);
            if running.is_empty() {
                woken.await;
            } else if let Either::Left((Some((lane, tried)), _)) = select(running.next(), woken).await {
                let error = match &tried {
                    Tried::Later(reject) => short(reject),
                    Tried::Empty | Tried::Gone => Bytes::new(),
                };
                self.inner.state.borrow_mut().machine.note_transfer(lane.0, lane.1, &error);
                lanes.tried(lane, &tried, self.inner.timer.monotonic_ns());
            }
        }
    }

    /// Returns at a moment of the monotonic clock, or never.
    async fn rest(&self, until_ns: Option<u64>) {
        match until_ns {
            None => std::future::pending().await,
            Some(until_ns) => {
                let left_ns = until_ns.saturating_sub(self.inner.timer.monotonic_ns());
                self.inner.timer.sleep(Duration::from_nanos(left_ns)).await;
            }
        }
    }

    async fn try_lane(&self, transport: Rc<impl Transport>, lane: Lane) -> (Lane, Tried) {
        let tried = self.send_next(&*transport, lane).await;
        (lane, tried.unwrap_or_else(Tried::Later))
    }

    /// Sends the oldest of a lane, and tells the queue what came of it.
    async fn send_next(&self, transport: &impl Transport, (source, to): Lane) -> Result<Tried, Reject> {
        let jobs = match self.ask(source, TransferCommand::Next { to }).await {
            Ok(Reply::Transfer(TransferReply::Next(jobs))) => jobs,
            // The queue is gone, and all that it had to send.
            Err(Reject::ResourceNotFound { .. }) => return Ok(Tried::Empty),
            Ok(_) => return Err(WRONG_REPLY),
            Err(reject) => return Err(reject),
        };
        let (Some(first), Some(last)) = (jobs.first().cloned(), jobs.last().map(|job| job.sequence)) else {
            return Ok(Tried::Empty);
        };
        let told = match deliver(transport, source, to, jobs).await {
            Ok(upto) => TransferCommand::Sent { to, upto },
            Err(reject @ Reject::ResourceNotFound { .. }) => {
                TransferCommand::Failed { to, upto: last, error: short(&reject) }
            }
            Err(reject) if !is_final(&reject) => return Err(reject),
            // One of them is the reason: the others go without it.
            Err(_) => {
                let upto = first.sequence;
                match deliver(transport, source, to, vec![first]).await {
                    Ok(upto) => TransferCommand::Sent { to, upto },
                    Err(reject) if is_final(&reject) => {
                        TransferCommand::Failed { to, upto, error: short(&reject) }
                    }
                    Err(reject) => return Err(reject),
                }
            }
        };
        if let TransferCommand::Failed { error, upto, .. } = &told {
            let (shard, why) = (self.inner.config.shard, String::from_utf8_lossy(error));
            tracing::warn!(%shard, queue = %source, %to, upto, %why, "jobs will never get to their target; they stay");
        }
        self.ask(source, told).await?;
        Ok(Tried::Gone)
    }

    /// Asks a queue of this shard.
    async fn ask(&self, queue: ResourceId, command: TransferCommand) -> Result<Reply, Reject> {
        let (sink, answer) = answer();
        self.submit(Command::Queue(queue, QueueCommand::Transfer(command)), sink);
        answer.await.unwrap_or(Err(Reject::Cancelled))
    }
}

const WRONG_REPLY: Reject = Reject::Internal("a transfer was answered with another reply");

async fn deliver(
    transport: &impl Transport,
    source: ResourceId,
    to: PartitionRef,
    jobs: Vec<Incoming>,
) -> Result<u64, Reject> {
    let (sink, answer) = answer();
    transport.deliver(to, Arrival { source, jobs }, sink);
    match answer.await.unwrap_or(Err(Reject::Cancelled))? {
        Reply::Transfer(TransferReply::Received { upto }) => Ok(upto),
        _ => Err(WRONG_REPLY),
    }
}

type Answer = oneshot::Receiver<Result<Reply, Reject>>;

fn answer() -> (Box<dyn ReplySink>, Answer) {
    let (sender, receiver) = oneshot::channel();
    // Nobody waits any more if the loop was dropped.
    (Box::new(SinkFn(move |outcome| drop(sender.send(outcome)))), receiver)
}

/// Whether a refusal is one for ever: what is refused is wrong, not the moment.
fn is_final(reject: &Reject) -> bool {
    match reject.code() {
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::OutOfRange => true,
        Code::FailedPrecondition => {
            matches!(reject, Reject::SandboxQueue { .. } | Reject::QueueNotSandbox { .. })
        }
        Code::ResourceExhausted
        | Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Internal => false,
    }
}

/// A refusal as it is kept.
fn short(reject: &Reject) -> Bytes {
    let mut text = format!("{}: {reject}", reject.reason());
    let mut len = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    text.truncate(len);
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(queue: u64) -> Lane {
        (ResourceId(queue), PartitionRef { resource: ResourceId(9), partition: 0 })
    }

    fn later() -> Tried {
        Tried::Later(Reject::ShuttingDown)
    }

    #[test]
    fn lanes_take_turns_and_one_that_got_more_while_it_was_sent_has_another() {
        let mut lanes = Lanes::default();
        for queue in [1, 2] {
            lanes.begun(lane(queue));
        }
        assert_eq!((lanes.take(), lanes.take(), lanes.take()), (Some(lane(1)), Some(lane(2)), None));
        lanes.begun(lane(2));
        lanes.tried(lane(1), &Tried::Gone, 0);
        lanes.tried(lane(2), &Tried::Empty, 0);
        assert_eq!((lanes.take(), lanes.take(), lanes.take()), (Some(lane(1)), Some(lane(2)), None));
        lanes.tried(lane(1), &Tried::Empty, 0);
        lanes.tried(lane(2), &Tried::Empty, 0);
        assert_eq!(lanes.take(), None, "nothing is asked for what is empty");
        assert!(lanes.waiting.is_empty() && lanes.failures.is_empty());
    }

    #[test]
    fn a_lane_that_fails_waits_longer_each_time_and_no_longer_than_the_longest() {
        let (mut lanes, mut now_ns, mut waits) = (Lanes::default(), 0, Vec::new());
        lanes.begun(lane(1));
        for _ in 0..12 {
            assert_eq!(lanes.take(), Some(lane(1)));
            lanes.tried(lane(1), &later(), now_ns);
            lanes.begun(lane(1));
            assert_eq!(lanes.take(), None, "more to send is no reason to try sooner");
            let (at, _) = *lanes.waiting.first().unwrap();
            waits.push(at - now_ns);
            lanes.wake(at - 1);
            assert_eq!(lanes.take(), None);
            now_ns = at;
            lanes.wake(now_ns);
        }
        assert!(waits.is_sorted() && waits[0] == RETRY.as_nanos() as u64);
        assert_eq!(*waits.last().unwrap(), RETRY_MAX.as_nanos() as u64);
        assert_eq!(lanes.take(), Some(lane(1)));
        lanes.tried(lane(1), &Tried::Gone, now_ns);
        assert!(lanes.failures.is_empty(), "one that arrived makes up for all that failed");
    }

    #[test]
    fn what_is_wrong_for_ever_is_told_from_what_is_wrong_for_now() {
        for reject in [
            Reject::ShuttingDown,
            Reject::DiskFull,
            Reject::Cancelled,
            Reject::Overloaded { what: "memory budget", retry_after_ms: 1 },
            Reject::Fenced { reason: "sync".into() },
            Reject::Internal("a bug"),
        ] {
            assert!(!is_final(&reject), "{reject}");
        }
        let path = || "q".to_owned();
        for reject in [
            Reject::ResourceNotFound { path: path() },
            Reject::SandboxQueue { path: path() },
            Reject::TooLarge { what: "batch", size: 2, max: 1 },
        ] {
            assert!(is_final(&reject), "{reject}");
        }
    }
}
