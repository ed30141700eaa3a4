//! One waker for everything a connection waits for.
//!
//! While the connection's task runs, wake-ups only set a flag that it looks at before it sleeps; so replies that are
//! sent during a pass do not schedule the task again. Otherwise the first wake-up wakes the task.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use futures::task::AtomicWaker;

/// The waker and its flags. Atomic because other cores wake too; sequentially consistent because the end of a pass and
/// a wake-up each write one flag and then read the other's.
#[derive(Debug, Default)]
pub struct PassWaker {
    running: AtomicBool,
    woken: AtomicBool,
    task: AtomicWaker,
}

impl PassWaker {
    /// A pass begins; wake-ups so far are taken.
    pub fn begin(&self, task: &Waker) {
        self.task.register(task);
        self.running.store(true, Ordering::SeqCst);
        self.woken.store(false, Ordering::SeqCst);
    }

    /// Whether something woke it since it was last asked or begun.
    pub fn take(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }

    /// The pass is over: from now on wake-ups wake the task, and one that came meanwhile does so at once.
    pub fn end(&self) {
        self.running.store(false, Ordering::SeqCst);
        if self.woken.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

impl Wake for PassWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::SeqCst) && !self.running.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn wakes_during_a_pass_are_seen_at_its_end_and_only_once() {
        let count = Arc::new(Count::default());
        let task = Waker::from(Arc::clone(&count));
        let pass = Arc::new(PassWaker::default());
        let waker = Waker::from(Arc::clone(&pass));

        pass.begin(&task);
        waker.wake_by_ref();
        assert!(pass.take());
        assert!(!pass.take());
        waker.wake_by_ref();
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        pass.end();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);

        pass.begin(&task);
        pass.end();
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }
}
