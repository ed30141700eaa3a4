//! Time that passes when nothing else can happen, and jumps when it is told to.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use flowmesh_engine::Timer;
use flowmesh_model::Millis;

/// What the clock on the wall says at first, ms since the Unix epoch.
const STARTS_AT_MS: u64 = 1_800_000_000_000;

#[derive(Default)]
struct Inner {
    ns: Cell<u64>,
    /// How far the clock on the wall is ahead or behind.
    jumped_ms: Cell<i64>,
    /// When it was set back, and what it said then.
    set_back: RefCell<Vec<(u64, Millis)>>,
    /// The latest time that it said before it was set back.
    highest: Cell<Millis>,
    sleepers: RefCell<BTreeMap<(u64, u64), Waker>>,
    slept: Cell<u64>,
}

/// When something began, and what the clock on the wall said.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    ns: u64,
    said: Millis,
}

/// The clock of all cores. Clones are the same.
#[derive(Clone, Default)]
pub struct Clock {
    inner: Rc<Inner>,
}

impl Clock {
    /// Some time passes.
    pub fn pass(&self, ns: u64) {
        self.inner.ns.set(self.inner.ns.get() + ns);
        self.wake();
    }

    /// As much time passes as the first sleeper still sleeps. False if nobody does.
    pub fn pass_to_next(&self) -> bool {
        let first = self.inner.sleepers.borrow().first_key_value().map(|((until, _), _)| *until);
        let Some(until) = first else { return false };
        self.inner.ns.set(self.inner.ns.get().max(until));
        self.wake();
        true
    }

    /// The clock on the wall is set.
    pub fn jump(&self, ms: i64) {
        self.inner.highest.set(self.highest());
        self.inner.jumped_ms.set(self.inner.jumped_ms.get() + ms);
        if ms < 0 {
            self.inner.set_back.borrow_mut().push((self.inner.ns.get(), self.now()));
        }
    }

    /// The latest time that the clock on the wall has said.
    pub fn highest(&self) -> Millis {
        self.inner.highest.get().max(self.now())
    }

    /// The earliest time that it has said since a moment at which it said this.
    pub fn lowest_since(&self, moment: Moment) -> Millis {
        let set_back = self.inner.set_back.borrow();
        let since = set_back.iter().filter(|(ns, _)| *ns >= moment.ns).map(|(_, said)| *said);
        since.min().map_or(moment.said, |lowest| lowest.min(moment.said))
    }

    /// How often it was set back.
    pub fn times_set_back(&self) -> usize {
        self.inner.set_back.borrow().len()
    }

    /// This moment.
    pub fn moment(&self) -> Moment {
        Moment { ns: self.inner.ns.get(), said: self.now() }
    }

    fn wake(&self) {
        let now = self.inner.ns.get();
        let mut awake = Vec::new();
        {
            let mut sleepers = self.inner.sleepers.borrow_mut();
            while let Some(first) = sleepers.first_entry().filter(|first| first.key().0 <= now) {
                awake.push(first.remove());
            }
        }
        awake.into_iter().for_each(Waker::wake);
    }
}

impl Timer for Clock {
    fn now(&self) -> Millis {
        let ms = STARTS_AT_MS + self.inner.ns.get() / 1_000_000;
        Millis(ms.saturating_add_signed(self.inner.jumped_ms.get()))
    }

    fn monotonic_ns(&self) -> u64 {
        self.inner.ns.get()
    }

    async fn sleep(&self, span: Duration) {
        let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1);
        let until = self.inner.ns.get().saturating_add(span);
        let sleeper = self.inner.slept.get();
        self.inner.slept.set(sleeper + 1);
        poll_fn(|context| {
            if self.inner.ns.get() >= until {
                return Poll::Ready(());
            }
            let waker = context.waker().clone();
            self.inner.sleepers.borrow_mut().insert((until, sleeper), waker);
            Poll::Pending
        })
        .await;
    }

    async fn yield_now(&self) {
        crate::disk::polls(1).await;
    }
}
