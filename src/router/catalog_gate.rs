//! Catalog changes, on core 0: one at a time, and known to all cores before the client hears of it.
//!
//! A resource must not be used before its creation is durable, or a crash could take back the resource of an
//! acknowledged write. So the snapshot is published when the change is released, and the next change waits until then:
//! a snapshot never shows a change that is still on its way to the disk.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use flowmesh_engine::{ReplySink, SinkFn};
use flowmesh_model::{Catalog, CatalogCommand, Command, Reject, Reply, ShardId};

use super::Router;
use super::message::Message;

/// Changes that wait for the one before them. More than this are refused.
const WAITING_MAX: usize = 4096;

/// The queue of changes.
#[derive(Default)]
pub struct CatalogGate {
    busy: Cell<bool>,
    waiting: RefCell<VecDeque<(CatalogCommand, Box<dyn ReplySink>)>>,
}

impl Router {
    /// Carries a change out once those before it are durable.
    pub(super) fn change_catalog(&self, change: CatalogCommand, sink: Box<dyn ReplySink>) {
        let gate = &self.inner.gate;
        if gate.busy.get() {
            let mut waiting = gate.waiting.borrow_mut();
            if waiting.len() < WAITING_MAX {
                waiting.push_back((change, sink));
            } else {
                drop(waiting);
                sink.deliver(Err(Reject::Overloaded { what: "catalog", retry_after_ms: 100 }));
            }
            return;
        }
        gate.busy.set(true);
        let router = self.clone();
        let published = SinkFn(move |outcome| router.catalog_changed(outcome, sink));
        self.inner.shard.submit(Command::Catalog(change), Box::new(published));
    }

    fn catalog_changed(&self, outcome: Result<Reply, Reject>, sink: Box<dyn ReplySink>) {
        if let Ok(Reply::Resource { changed: true, .. }) = &outcome {
            self.publish_catalog();
        }
        sink.deliver(outcome);
        let gate = &self.inner.gate;
        gate.busy.set(false);
        let next = gate.waiting.borrow_mut().pop_front();
        if let Some((change, sink)) = next {
            self.change_catalog(change, sink);
        }
    }

    /// Core 0: makes the catalog of its shard known to all cores.
    pub fn publish_catalog(&self) {
        let catalog = self.inner.shard.catalog_snapshot();
        for shard in (0..self.inner.config.shards).map(ShardId).filter(|&s| s != self.inner.config.shard) {
            if (self.inner.send)(shard, Message::Catalog(Arc::clone(&catalog))).is_err() {
                tracing::error!(%shard, "cannot tell a core of the new catalog: its channel is full");
            }
        }
        self.take_catalog(catalog);
    }

    /// Any core: uses a newer catalog from now on.
    pub(super) fn take_catalog(&self, catalog: Arc<Catalog>) {
        self.inner.shard.set_catalog(Arc::clone(&catalog));
        *self.inner.catalog.borrow_mut() = catalog;
        self.inner.has_catalog.set(true);
        let early = std::mem::take(&mut *self.inner.early.borrow_mut());
        for (from, message) in early {
            self.receive(from, message);
        }
    }
}
