//! Answers on their way to a stream's client: sinks put them in, the call takes all that gathered as one message.
//!
//! A message with a repeated field is the concatenation of its items, so each item is encoded once, where it becomes
//! known, behind the others.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::edge::grpc::message::{PREFIX_BYTES, put_message};

/// What gathered, and how much is still to come.
#[derive(Debug, Default)]
pub struct Outbox {
    items: RefCell<BytesMut>,
    pending: Cell<usize>,
    pending_bytes: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

/// Bounds what one stream has in flight: once reached, its client is not read until answers come.
const PENDING_MAX: usize = 4096;

/// The same in bytes of requests.
const PENDING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The promise that an answer comes.
#[derive(Debug)]
pub struct Ticket {
    outbox: Rc<Outbox>,
    bytes: usize,
}

impl Outbox {
    /// Announces an answer to a request of that many bytes.
    pub fn expect(self: &Rc<Self>, bytes: usize) -> Ticket {
        self.pending.set(self.pending.get() + 1);
        self.pending_bytes.set(self.pending_bytes.get() + bytes);
        Ticket { outbox: Rc::clone(self), bytes }
    }

    /// Whether so much is in flight that no further request should be taken.
    pub fn is_full(&self) -> bool {
        self.pending.get() >= PENDING_MAX || self.pending_bytes.get() >= PENDING_BYTES_MAX
    }

    /// Whether nothing is in flight and nothing gathered.
    pub fn is_idle(&self) -> bool {
        self.pending.get() == 0 && self.items.borrow().is_empty()
    }

    /// Adds an item of the repeated field `number`.
    pub fn push(&self, number: u8, item: &impl Message) {
        let mut items = self.items.borrow_mut();
        items.put_u8(number << 3 | 2);
        // Fails only if the buffer is full, and it grows.
        let _ = item.encode_length_delimited(&mut *items);
    }

    /// Everything that gathered, as one message with its prefix.
    pub fn take(&self) -> Option<Bytes> {
        let items = std::mem::take(&mut *self.items.borrow_mut());
        if items.is_empty() {
            return None;
        }
        let mut out = BytesMut::with_capacity(PREFIX_BYTES + items.len());
        put_message(&mut out, |out| out.put_slice(&items));
        Some(out.freeze())
    }

    /// Has the task woken when something gathers.
    pub fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
}

impl Ticket {
    /// Where the answer goes. It is due when the ticket is dropped.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let outbox = &self.outbox;
        outbox.pending.set(outbox.pending.get() - 1);
        outbox.pending_bytes.set(outbox.pending_bytes.get() - self.bytes);
        if let Some(waker) = outbox.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}
