//! Messages between cores: from every core to every core, bounded, without locks, and without ever waiting for room.
//!
//! ```text
//!  core 0: send(1, m) ──► overflow ──► ring 0→1 ──► core 1: run(|from, m| …)
//!                          (local)     (shared)
//! ```
//! Each pair of cores has a ring of its own; what does not fit waits in the sender's own overflow, in order, up to a
//! bound. Beyond the bound [`Mesh::send`] gives the message back: nobody ever awaits a send, so cores that all send to
//! each other cannot deadlock.
//!
//! Waking: a receiver that found nothing raises `sleeping` and looks once more; a sender lowers it after a push and
//! wakes the receiver if it was up. So a wake-up is paid once for each time the receiver ran dry, not once a message.
//! A sender that overflows raises `starved` for its ring; the receiver lowers it after taking from the ring and wakes
//! the sender, whose own [`Mesh::run`] moves the overflow on.
//!
//! The rings are not glommio's: its receiver wakes the sender's core for each message taken, and hides its depth.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use crossbeam_queue::ArrayQueue;
use futures::task::AtomicWaker;

use crate::core::yield_now;

/// Slots of a ring. More only take memory: a burst beyond them waits in the sender's overflow.
const RING_SLOTS_MAX: usize = 1024;

/// Messages taken from one peer before the next one's turn.
const TURN_MESSAGES: usize = 256;

/// On cache lines of its own: two, as CPUs fetch them in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Aligned<T>(T);

struct Inbox {
    /// The receiver found nothing; whoever sends must wake it.
    sleeping: Aligned<AtomicBool>,
    waker: AtomicWaker,
}

impl Inbox {
    fn new() -> Self {
        Self { sleeping: Aligned(AtomicBool::new(false)), waker: AtomicWaker::new() }
    }

    /// Makes the receiver look. After a push: the fence orders the push before the look at `sleeping`, as the
    /// receiver's orders its raising before its last look at the rings; one of the two sees the other.
    fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.0.load(Ordering::Relaxed) && self.sleeping.0.swap(false, Ordering::Relaxed) {
            self.waker.wake();
        }
    }
}

struct Lane<M> {
    ring: ArrayQueue<M>,
    /// The sender has overflow for this ring.
    starved: Aligned<AtomicBool>,
}

struct Shared<M> {
    cores: usize,
    overflow_max: usize,
    /// By `from * cores + to`.
    lanes: Box<[Lane<M>]>,
    inboxes: Box<[Inbox]>,
    taken: Mutex<Vec<bool>>,
}

impl<M> Shared<M> {
    fn lane(&self, from: usize, to: usize) -> &Lane<M> {
        #[expect(
            clippy::indexing_slicing,
            reason = "callers pass cores below `cores`; a panic here is a bug"
        )]
        &self.lanes[from * self.cores + to]
    }

    fn inbox(&self, core: usize) -> &Inbox {
        #[expect(
            clippy::indexing_slicing,
            reason = "callers pass cores below `cores`; a panic here is a bug"
        )]
        &self.inboxes[core]
    }
}

/// Makes the mesh before the cores start; each core then takes its own end.
pub struct MeshBuilder<M> {
    shared: Arc<Shared<M>>,
}

impl<M> Clone for MeshBuilder<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M: Send + 'static> MeshBuilder<M> {
    /// A mesh of `cores`, in which at most `capacity` messages wait from one core to another.
    pub fn new(cores: usize, capacity: usize) -> Self {
        let slots = capacity.clamp(1, RING_SLOTS_MAX);
        let lane = |_| Lane { ring: ArrayQueue::new(slots), starved: Aligned::default() };
        let shared = Shared {
            cores,
            overflow_max: capacity.saturating_sub(slots),
            lanes: (0..cores * cores).map(lane).collect(),
            inboxes: (0..cores).map(|_| Inbox::new()).collect(),
            taken: Mutex::new(vec![false; cores]),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The end of one core, to be used on that core only.
    ///
    /// # Panics
    /// If there is no such core, or its end was taken before.
    pub fn take(&self, core: usize) -> Mesh<M> {
        let mut taken = self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = taken.get_mut(core);
        assert!(slot.as_ref().is_some_and(|taken| !**taken), "core {core} has no end of the mesh to take");
        if let Some(slot) = slot {
            *slot = true;
        }
        Mesh {
            shared: Arc::clone(&self.shared),
            core,
            overflow: (0..self.shared.cores).map(|_| RefCell::default()).collect(),
            overflowing: Cell::new(0),
        }
    }
}

/// One core's end of the mesh.
pub struct Mesh<M> {
    shared: Arc<Shared<M>>,
    core: usize,
    /// By receiver: what did not fit its ring.
    overflow: Box<[RefCell<VecDeque<M>>]>,
    /// How many of them hold something.
    overflowing: Cell<usize>,
}

impl<M: Send + 'static> Mesh<M> {
    /// Hands a message to another core (or to this one). Messages from one core to another stay in order. Never
    /// waits, never calls the receiver.
    ///
    /// # Errors
    /// The message itself if as many as the mesh's capacity wait for that core already, or there is no such core.
    pub fn send(&self, to: usize, message: M) -> Result<(), M> {
        let Some(overflow) = self.overflow.get(to) else { return Err(message) };
        let lane = self.shared.lane(self.core, to);
        let mut overflow = overflow.borrow_mut();
        let refused = if overflow.is_empty() { lane.ring.push(message) } else { Err(message) };
        if let Err(message) = refused {
            if overflow.len() >= self.shared.overflow_max {
                return Err(message);
            }
            if overflow.is_empty() {
                self.overflowing.set(self.overflowing.get() + 1);
            }
            overflow.push_back(message);
            self.refill(to, &mut overflow);
        }
        self.shared.inbox(to).notify();
        Ok(())
    }

    /// Moves overflow into its ring as far as there is room, and asks to be woken when there is more.
    fn refill(&self, to: usize, overflow: &mut VecDeque<M>) {
        let lane = self.shared.lane(self.core, to);
        // Raised before the attempt: room made after a failed push is then announced.
        lane.starved.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while let Some(message) = overflow.pop_front() {
            if let Err(message) = lane.ring.push(message) {
                overflow.push_front(message);
                return;
            }
        }
        lane.starved.0.store(false, Ordering::Relaxed);
        self.overflowing.set(self.overflowing.get() - 1);
    }

    fn refill_all(&self) {
        if self.overflowing.get() == 0 {
            return;
        }
        for (to, overflow) in self.overflow.iter().enumerate() {
            let mut overflow = overflow.borrow_mut();
            if !overflow.is_empty() {
                self.refill(to, &mut overflow);
                self.shared.inbox(to).notify();
            }
        }
    }

    /// Calls `on_message(from, message)` for every message that arrives, and moves this core's own overflow on. Runs
    /// until it is dropped; each core must run it, once. `on_message` must not block; it may send.
    pub async fn run(&self, mut on_message: impl FnMut(usize, M)) {
        loop {
            let taken = self.take_turn(&mut on_message);
            self.refill_all();
            if taken == 0 {
                self.wait().await;
            } else {
                // What the messages woke goes first; meanwhile more arrive, and are taken together.
                yield_now().await;
            }
        }
    }

    fn take_turn(&self, on_message: &mut impl FnMut(usize, M)) -> usize {
        let mut taken = 0;
        for from in 0..self.shared.cores {
            let lane = self.shared.lane(from, self.core);
            let mut of_this = 0;
            while of_this < TURN_MESSAGES
                && let Some(message) = lane.ring.pop()
            {
                of_this += 1;
                on_message(from, message);
            }
            if of_this > 0 {
                taken += of_this;
                fence(Ordering::SeqCst);
                if lane.starved.0.load(Ordering::Relaxed) {
                    self.shared.inbox(from).notify();
                }
            }
        }
        taken
    }

    /// Returns when there may be something to take or to move on.
    async fn wait(&self) {
        let inbox = self.shared.inbox(self.core);
        poll_fn(|cx| {
            inbox.waker.register(cx.waker());
            inbox.sleeping.0.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.has_work() {
                inbox.sleeping.0.store(false, Ordering::Relaxed);
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    fn has_work(&self) -> bool {
        let cores = 0..self.shared.cores;
        cores.clone().any(|from| !self.shared.lane(from, self.core).ring.is_empty())
            || self.overflowing.get() > 0
                && cores.into_iter().any(|to| {
                    self.overflow.get(to).is_some_and(|overflow| !overflow.borrow().is_empty())
                        && !self.shared.lane(self.core, to).ring.is_full()
                })
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        self.shared.cores
    }

    /// Messages of this core that the other has not taken yet.
    pub fn depth_to(&self, to: usize) -> usize {
        match self.overflow.get(to) {
            Some(overflow) => self.shared.lane(self.core, to).ring.len() + overflow.borrow().len(),
            None => 0,
        }
    }

    /// Messages of this core that any core has not taken yet.
    pub fn depth_out(&self) -> usize {
        (0..self.shared.cores).map(|to| self.depth_to(to)).sum()
    }

    /// Messages for this core that it has not taken yet, without what still overflows at their senders.
    pub fn depth_in(&self) -> usize {
        (0..self.shared.cores).map(|from| self.shared.lane(from, self.core).ring.len()).sum()
    }
}
