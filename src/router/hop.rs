//! Requests and answers between cores. Nothing here ever waits for room in a channel: what is in flight is bounded
//! where it starts, and channels are as large as that bound.

use std::cell::Cell;
use std::rc::Rc;

use flowmesh_engine::ReplySink;
use flowmesh_model::{Command, Reject, Reply, ShardId};

use super::message::{CoreStats, Detail, Message};
use super::{HOPS_PENDING_MAX, Router};

/// The far end of a request: sends the answer home. One that is dropped says so too, or home would keep its place for
/// ever.
struct AnswerSink {
    router: Router,
    to: ShardId,
    id: u32,
    cancelled: Option<Rc<Cell<bool>>>,
    answered: bool,
}

impl AnswerSink {
    fn send(&mut self, outcome: Result<Reply, Reject>) {
        self.answered = true;
        let inner = &self.router.inner;
        if self.cancelled.is_some() {
            inner.cancels.borrow_mut().remove(&(self.to, self.id));
        }
        if (inner.send)(self.to, Message::Response { id: self.id, outcome }).is_err() {
            tracing::error!(to = %self.to, "an answer to another core was lost: its channel is full");
        }
    }
}

impl Drop for AnswerSink {
    fn drop(&mut self) {
        if !self.answered {
            self.send(Err(Reject::Cancelled));
        }
    }
}

impl ReplySink for AnswerSink {
    fn deliver(mut self: Box<Self>, outcome: Result<Reply, Reject>) {
        self.send(outcome);
    }

    fn is_closed(&self) -> bool {
        self.cancelled.as_ref().is_some_and(|cancelled| cancelled.get())
    }
}

impl Router {
    /// Sends a command to the core of another shard.
    pub(super) fn hop(&self, to: ShardId, command: Command, sink: Box<dyn ReplySink>) {
        let inner = &self.inner;
        if to.0 >= inner.config.shards {
            sink.deliver(Err(Reject::Internal("no such shard")));
            return;
        }
        let id = {
            let mut pending = inner.pending.borrow_mut();
            if pending.len() >= HOPS_PENDING_MAX {
                drop(pending);
                sink.deliver(Err(Reject::Overloaded { what: "cross-core channel", retry_after_ms: 10 }));
                return;
            }
            pending.insert(sink)
        };
        let request = Message::Request { id, catalog: inner.catalog.borrow().version(), command };
        inner.hops_out.set(inner.hops_out.get() + 1);
        if (inner.send)(to, request).is_err() {
            self.answer(id, Err(Reject::Overloaded { what: "cross-core channel", retry_after_ms: 10 }));
        }
    }

    /// Takes a message from another core.
    pub fn receive(&self, from: ShardId, message: Message) {
        match message {
            Message::Request { id, catalog, command } => {
                if catalog > self.inner.catalog.borrow().version() {
                    let early = Message::Request { id, catalog, command };
                    self.inner.early.borrow_mut().push((from, early));
                } else {
                    self.carry_out(from, id, command);
                }
            }
            Message::Response { id, outcome } => self.answer(id, outcome),
            Message::Cancel { id } => {
                if let Some(cancelled) = self.inner.cancels.borrow().get(&(from, id)) {
                    cancelled.set(true);
                }
            }
            Message::Catalog(catalog) => self.take_catalog(catalog),
            Message::StatsRequest { id, detail } => {
                let stats = Box::new(self.core_stats(&detail));
                if (self.inner.send)(from, Message::StatsResponse { id, stats }).is_err() {
                    tracing::warn!(%from, "counters were not sent: the channel is full");
                }
            }
            Message::StatsResponse { id, stats } => {
                if let Some(waiting) = self.inner.stats_pending.borrow_mut().remove(&id) {
                    let _ = waiting.send(stats);
                }
            }
        }
    }

    fn carry_out(&self, from: ShardId, id: u32, mut command: Command) {
        self.inner.hops_in.set(self.inner.hops_in.get() + 1);
        let waits = command.wait_until_mut().is_some_and(|until| until.is_some());
        let cancelled = waits.then(|| {
            let cancelled = Rc::new(Cell::new(false));
            self.inner.cancels.borrow_mut().insert((from, id), Rc::clone(&cancelled));
            cancelled
        });
        let sink = AnswerSink { router: self.clone(), to: from, id, cancelled, answered: false };
        self.dispatch(self.inner.config.shard, command, Box::new(sink));
    }

    fn answer(&self, id: u32, outcome: Result<Reply, Reject>) {
        let sink = self.inner.pending.borrow_mut().take(id);
        if let Some(sink) = sink {
            sink.deliver(outcome);
        } else {
            tracing::error!(id, "an answer that nobody waits for");
        }
    }

    /// Tells the owners of waiting commands whose client has gone. To be called every second or so.
    pub fn sweep(&self) {
        let closed = self.inner.pending.borrow().closed();
        for id in closed {
            // Which core has it is not kept: the number is unknown to all others.
            for shard in (0..self.inner.config.shards).map(ShardId).filter(|&s| s != self.inner.config.shard)
            {
                let _ = (self.inner.send)(shard, Message::Cancel { id });
            }
        }
        self.inner.shard.drop_closed_waiters();
    }

    /// This core's counters.
    pub fn core_stats(&self, detail: &Detail) -> CoreStats {
        let shard = &self.inner.shard;
        CoreStats {
            shard: match detail {
                Detail::Core | Detail::Ends(_) => shard.stats(),
                Detail::Resources => shard.stats_of_resources(),
            },
            ends: match detail {
                Detail::Ends(partitions) => shard.next_offsets(partitions),
                Detail::Core | Detail::Resources => Vec::new(),
            },
            hops_out: self.inner.hops_out.get(),
            hops_in: self.inner.hops_in.get(),
            hops_pending: self.inner.pending.borrow().len() as u64,
            edge: (self.inner.edge_stats.borrow())(),
        }
    }

    /// The counters of all cores, by shard.
    pub async fn all_stats(&self, detail: &Detail) -> Vec<CoreStats> {
        let mut waiting = Vec::new();
        for shard in (0..self.inner.config.shards).map(ShardId) {
            if shard == self.inner.config.shard {
                waiting.push(None);
                continue;
            }
            let id = self.inner.next_stats_id.get();
            self.inner.next_stats_id.set(id.wrapping_add(1));
            let (sender, receiver) = futures::channel::oneshot::channel();
            self.inner.stats_pending.borrow_mut().insert(id, sender);
            if (self.inner.send)(shard, Message::StatsRequest { id, detail: detail.clone() }).is_err() {
                self.inner.stats_pending.borrow_mut().remove(&id);
            }
            waiting.push(Some(receiver));
        }
        let mut all = Vec::with_capacity(waiting.len());
        for receiver in waiting {
            all.push(match receiver {
                None => self.core_stats(detail),
                Some(receiver) => receiver.await.map_or_else(|_| CoreStats::default(), |stats| *stats),
            });
        }
        all
    }
}
