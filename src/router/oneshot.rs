//! A reply to a task on the same core: a sink with an awaitable end.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use flowmesh_engine::ReplySink;
use flowmesh_model::{Reject, Reply};

#[derive(Default)]
struct Slot {
    outcome: Option<Result<Reply, Reject>>,
    waker: Option<Waker>,
    /// Set when either end is gone.
    over: bool,
}

/// The end that takes the reply.
pub struct ReplySender(Rc<RefCell<Slot>>);

/// The end that awaits it. Dropping it closes the sink.
pub struct ReplyReceiver(Rc<RefCell<Slot>>);

/// A connected pair.
pub fn reply_channel() -> (ReplySender, ReplyReceiver) {
    let slot = Rc::new(RefCell::new(Slot::default()));
    (ReplySender(Rc::clone(&slot)), ReplyReceiver(slot))
}

impl ReplySink for ReplySender {
    fn deliver(self: Box<Self>, outcome: Result<Reply, Reject>) {
        self.0.borrow_mut().outcome = Some(outcome);
    }

    fn is_closed(&self) -> bool {
        self.0.borrow().over
    }
}

impl Drop for ReplySender {
    fn drop(&mut self) {
        let waker = {
            let mut slot = self.0.borrow_mut();
            slot.over = true;
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for ReplyReceiver {
    type Output = Result<Reply, Reject>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.0.borrow_mut();
        if let Some(outcome) = slot.outcome.take() {
            return Poll::Ready(outcome);
        }
        if slot.over {
            return Poll::Ready(Err(Reject::ShuttingDown));
        }
        slot.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for ReplyReceiver {
    fn drop(&mut self) {
        self.0.borrow_mut().over = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_reply_arrives_and_a_dropped_sink_is_an_answer_too() {
        let (sender, receiver) = reply_channel();
        Box::new(sender).deliver(Err(Reject::Cancelled));
        assert_eq!(receiver.now_or_never(), Some(Err(Reject::Cancelled)));
        let (sender, mut receiver) = reply_channel();
        assert!((&mut receiver).now_or_never().is_none());
        assert!(!sender.is_closed());
        drop(sender);
        assert_eq!(receiver.now_or_never(), Some(Err(Reject::ShuttingDown)));
        let (sender, receiver) = reply_channel();
        drop(receiver);
        assert!(sender.is_closed());
    }
}
