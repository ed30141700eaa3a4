//! `Queue.Work`: jobs are pushed up to the worker's credit; acks, nacks and extends come back on the same call.
//!
//! ```text
//! hello, credit ─► reserve (waits for jobs) ─► jobs pushed, credit taken ─► reserve …
//! acks, nacks, extends ─► dispatched ─► outcomes into the outbox ─► all that gathered in one message
//! ```

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use flowmesh_engine::SinkFn;
use flowmesh_model::command::{LeaseRef, Nack};
use flowmesh_model::job::NackKind;
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_model::reply::{Extended, LeasedJob};
use flowmesh_model::{Batch, Command, Kind, QueueCommand, Reject, Reply, ResourceInfo, ShardId};
use flowmesh_proto::v1;
use futures::future::LocalBoxFuture;

use super::outbox::{Outbox, Ticket};
use super::queue::{acks, lease_ref, lease_refs, leased_job_len, nacks, put_leased_job, queue_shard};
use super::{decode, next_round};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::message::{PREFIX_BYTES, malformed, put_message};
use crate::edge::grpc::outbound::Gone;
use crate::edge::grpc::respond::wrong_reply;
use crate::edge::grpc::status::{Status, item_error};
use crate::edge::grpc::streaming::{Ended, StreamCall};

/// `WorkResponse.outcomes`
const OUTCOMES: u8 = 2;

/// Jobs leased at once: what the client does not take in time runs out for all of them.
const RESERVE_MAX: u32 = 1000;

/// Bytes of jobs in one message; a larger job has one for itself.
const MESSAGE_BYTES: usize = 1024 * 1024;

/// Messages of one turn before the answers get theirs.
const TURN_MAX: usize = 64;

/// Serves one worker.
pub async fn work<B: Backend>(edge: &Rc<Edge<B>>, call: &mut StreamCall) -> Result<(), Ended> {
    let Some(first) = call.next().await? else { return Err(malformed("the call has no message").into()) };
    let mut first: v1::WorkRequest = decode(first)?;
    let hello =
        first.hello.take().ok_or_else(|| Reject::invalid("hello", "is missing in the first message"))?;
    let info = edge.backend.resolve(Kind::Queue, &hello.queue, true).await?;
    call.open()?;
    let mut worker = Worker {
        shard: queue_shard(edge, &info),
        edge: Rc::clone(edge),
        info,
        name: Bytes::from(hello.worker),
        visibility_timeout_ms: hello.visibility_timeout_ms,
        credit: 0,
        reserve: None,
        outbox: Rc::default(),
        held: hello.release_on_disconnect.then(Rc::default),
        ended: None,
    };
    worker.take_request(first, 0)?;
    call.reader.release();
    let conn = Rc::clone(&call.conn);
    let mut closing = pin!(conn.closing());
    poll_fn(|cx| {
        if worker.ended.is_none() && closing.as_mut().poll(cx).is_ready() {
            worker.ended = Some(Err(Reject::ShuttingDown.into()));
        }
        worker.poll_work(call, cx)
    })
    .await
}

/// Leases, by job and token.
type Held = Rc<RefCell<BTreeSet<(u64, u64)>>>;

struct Worker<B: Backend> {
    edge: Rc<Edge<B>>,
    info: Arc<ResourceInfo>,
    shard: ShardId,
    name: Bytes,
    visibility_timeout_ms: Option<u64>,
    /// Jobs that may be pushed.
    credit: u32,
    reserve: Option<LocalBoxFuture<'static, Result<Reply, Reject>>>,
    outbox: Rc<Outbox>,
    /// Leases that are open, if they are to be given back at the end.
    held: Option<Held>,
    /// No more requests come: the call ends like this once all answers are out.
    ended: Option<Result<(), Status>>,
}

impl<B: Backend> Worker<B> {
    fn poll_work(&mut self, call: &mut StreamCall, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        self.outbox.watch(cx);
        loop {
            let more = self.take_requests(call, cx);
            let Some((_, out)) = call.split() else { return Poll::Ready(Err(Ended::Gone)) };
            match ready!(out.poll_sent(cx)) {
                Ok(()) => {}
                Err(Gone) => return Poll::Ready(Err(Ended::Gone)),
            }
            if let Some(outcomes) = self.outbox.take() {
                out.queue(outcomes);
                continue;
            }
            if self.ended.is_some() {
                // Jobs that nobody can acknowledge here are not asked for.
                self.reserve = None;
                if self.outbox.is_idle() {
                    return Poll::Ready(self.ended.take().unwrap_or(Ok(())).map_err(Ended::Status));
                }
            } else if let Poll::Ready(jobs) = self.poll_reserve(cx) {
                match jobs {
                    Ok(jobs) => out.queue(job_messages(&jobs)),
                    Err(reject) => self.ended = Some(Err(reject.into())),
                }
                continue;
            }
            if !more {
                return call.poll_gone(cx).map(|Gone| Err(Ended::Gone));
            }
        }
    }

    /// Takes requests that are there; says whether there may be more.
    fn take_requests(&mut self, call: &mut StreamCall, cx: &mut Context<'_>) -> bool {
        let mut more = false;
        for _ in 0..TURN_MAX {
            if self.ended.is_some() || self.outbox.is_full() {
                break;
            }
            match call.reader.poll_message(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(message))) => {
                    more = true;
                    let bytes = message.len();
                    let taken = decode(message).and_then(|request| self.take_request(request, bytes));
                    self.ended = taken.err().map(|reject| Err(reject.into()));
                }
                Poll::Ready(Ok(None)) => self.ended = Some(Ok(())),
                Poll::Ready(Err(status)) => self.ended = Some(Err(status)),
            }
        }
        call.reader.release();
        more
    }

    fn take_request(&mut self, request: v1::WorkRequest, bytes: usize) -> Result<(), Reject> {
        if request.hello.is_some() {
            return Err(Reject::invalid("hello", "belongs in the first message only"));
        }
        let credit = u64::from(self.credit) + u64::from(request.credit);
        if credit > BATCH_ITEMS_MAX as u64 {
            return Err(Reject::TooLarge { what: "credit", size: credit, max: BATCH_ITEMS_MAX as u64 });
        }
        self.credit = credit as u32;
        if !request.acks.is_empty() {
            let acks = acks(request.acks)?;
            let leases = acks.iter().map(|ack| ack.lease).collect();
            self.settle(bytes, leases, self.held.clone(), QueueCommand::Ack { acks });
        }
        if !request.nacks.is_empty() {
            let nacks = nacks(request.nacks)?;
            let leases = nacks.iter().map(|nack| nack.lease).collect();
            self.settle(bytes, leases, self.held.clone(), QueueCommand::Nack { nacks });
        }
        if !request.extends.is_empty() {
            let leases = lease_refs(&request.extends)?;
            let visibility_timeout_ms = request.extend_ms;
            self.settle(bytes, leases.clone(), None, QueueCommand::Extend { leases, visibility_timeout_ms });
        }
        for v1::ProgressItem { job_id, token, progress } in request.progress {
            let lease = lease_ref(job_id, token);
            self.settle(bytes, Batch::from_elem(lease, 1), None, QueueCommand::Progress { lease, progress });
        }
        Ok(())
    }

    /// Has a command carried out; leases that it ends are taken out of `held`.
    fn settle(&self, bytes: usize, leases: Batch<LeaseRef>, held: Option<Held>, command: QueueCommand) {
        let ticket = self.outbox.expect(bytes);
        let sink = SinkFn(move |outcome| {
            if let (Some(held), Ok(Reply::Settled(outcomes))) = (&held, &outcome) {
                let ended = leases.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
                let mut held = held.borrow_mut();
                for (lease, _) in ended {
                    held.remove(&(lease.job.get(), lease.token.get()));
                }
            }
            put_outcomes(&ticket, &leases, outcome);
        });
        self.edge.backend.dispatch(self.shard, Command::Queue(self.info.id, command), Box::new(sink));
    }

    /// Jobs to push, as long as there is credit.
    fn poll_reserve(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<LeasedJob>, Reject>> {
        loop {
            if self.credit == 0 && self.reserve.is_none() {
                return Poll::Pending;
            }
            let reserve = if let Some(reserve) = &mut self.reserve {
                reserve
            } else {
                let command = self.reserve_command();
                self.reserve.insert(Box::pin(self.edge.backend.call(self.shard, command)))
            };
            let outcome = ready!(Pin::new(reserve).poll(cx));
            self.reserve = None;
            match outcome? {
                Reply::Reserved(jobs) if jobs.is_empty() => {}
                Reply::Reserved(jobs) => {
                    self.credit = self.credit.saturating_sub(jobs.len() as u32);
                    if let Some(held) = &self.held {
                        held.borrow_mut().extend(jobs.iter().map(|job| (job.job.get(), job.token.get())));
                    }
                    return Poll::Ready(Ok(jobs));
                }
                _ => return Poll::Ready(Err(wrong_reply())),
            }
        }
    }

    fn reserve_command(&self) -> Command {
        let reserve = QueueCommand::Reserve {
            jobs_max: self.credit.min(RESERVE_MAX),
            visibility_timeout_ms: self.visibility_timeout_ms,
            worker: self.name.clone(),
            wait_until: Some(next_round(self.edge.backend.now())),
        };
        Command::Queue(self.info.id, reserve)
    }
}

impl<B: Backend> Drop for Worker<B> {
    /// However the call ended: gives back what is held, if that was asked for.
    fn drop(&mut self) {
        let held = self.held.take().map(|held| held.take()).unwrap_or_default();
        let nacks: Batch<Nack> = held
            .into_iter()
            .map(|(job, token)| Nack {
                lease: lease_ref(job, token),
                kind: NackKind::Released,
                delay_ms: None,
                error: Bytes::new(),
            })
            .collect();
        if !nacks.is_empty() {
            let command = Command::Queue(self.info.id, QueueCommand::Nack { nacks });
            self.edge.backend.dispatch(self.shard, command, Box::new(SinkFn(drop)));
        }
    }
}

/// Jobs as messages of bounded size, one behind the other.
fn job_messages(jobs: &[LeasedJob]) -> Bytes {
    let bytes: usize = jobs.iter().map(|job| leased_job_len(job) + 2 * PREFIX_BYTES).sum();
    let mut out = BytesMut::with_capacity(bytes);
    let mut rest = jobs;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|job| {
            bytes += leased_job_len(job);
            bytes <= MESSAGE_BYTES
        });
        let (now, later) = rest.split_at(fitting.count().max(1));
        put_message(&mut out, |out| now.iter().for_each(|job| put_leased_job(out, job)));
        rest = later;
    }
    out.freeze()
}

fn put_outcomes(ticket: &Ticket, leases: &[LeaseRef], outcome: Result<Reply, Reject>) {
    let put = |lease: &LeaseRef, outcome: Result<Option<&Extended>, &Reject>| {
        let extended = outcome.ok().flatten();
        let outcome = v1::WorkOutcome {
            job_id: lease.job.get(),
            token: lease.token.get(),
            leased_until_ms: extended.map_or(0, |extended| extended.until.get()),
            error: outcome.err().map(item_error),
            cancel_requested: extended.is_some_and(|extended| extended.cancel_requested),
        };
        ticket.outbox().push(OUTCOMES, &outcome);
    };
    match outcome {
        Ok(Reply::Settled(outcomes)) => {
            for (lease, outcome) in leases.iter().zip(&outcomes) {
                put(lease, outcome.as_ref().map(|()| None));
            }
        }
        Ok(Reply::Extended(outcomes)) => {
            for (lease, outcome) in leases.iter().zip(&outcomes) {
                put(lease, outcome.as_ref().map(Some));
            }
        }
        Ok(_) => leases.iter().for_each(|lease| put(lease, Err(&wrong_reply()))),
        Err(reject) => leases.iter().for_each(|lease| put(lease, Err(&reject))),
    }
}
