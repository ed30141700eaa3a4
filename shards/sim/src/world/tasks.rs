//! Tasks of all cores on one thread. Which of those that can go on does so next is a matter of chance.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

/// Which tasks end together, and stand still together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Those of a core.
    Core(u16),
    /// What stands for hardware and dies with the process.
    Device,
    /// Clients.
    Client,
}

/// Tasks that were woken and not polled since, in the order of their waking.
type Ready = Arc<Mutex<Vec<u64>>>;

fn push(ready: &Ready, task: u64) {
    ready.lock().unwrap_or_else(PoisonError::into_inner).push(task);
}

struct Flag {
    task: u64,
    is_ready: AtomicBool,
    ready: Ready,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        if !self.is_ready.swap(true, Ordering::Relaxed) {
            push(&self.ready, self.task);
        }
    }
}

struct Task {
    group: Group,
    flag: Arc<Flag>,
    /// Not here while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

#[derive(Default)]
struct All {
    tasks: BTreeMap<u64, Task>,
    ready: Ready,
    next: u64,
    stalled: BTreeSet<Group>,
}

/// All tasks. Clones are the same.
#[derive(Clone, Default)]
pub struct Tasks {
    all: Rc<RefCell<All>>,
}

impl Tasks {
    /// Begins a task.
    pub fn spawn(&self, group: Group, future: impl Future<Output = ()> + 'static) {
        let mut all = self.all.borrow_mut();
        let task = all.next;
        all.next += 1;
        let flag = Arc::new(Flag { task, is_ready: AtomicBool::new(true), ready: Arc::clone(&all.ready) });
        push(&all.ready, task);
        all.tasks.insert(task, Task { group, flag, future: Some(Box::pin(future)) });
    }

    /// Lets one task go on, which one `chance` says. False if none can.
    pub fn step(&self, chance: u64) -> bool {
        let Some((task, flag, mut future)) = self.take(chance) else { return false };
        let waker = Waker::from(flag);
        let is_over = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut all = self.all.borrow_mut();
        if is_over {
            all.tasks.remove(&task);
        } else if let Some(task) = all.tasks.get_mut(&task) {
            task.future = Some(future);
        }
        true
    }

    #[expect(clippy::type_complexity, reason = "taken apart at once")]
    fn take(&self, chance: u64) -> Option<(u64, Arc<Flag>, Pin<Box<dyn Future<Output = ()>>>)> {
        let all = &mut *self.all.borrow_mut();
        let mut ready = all.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.retain(|task| all.tasks.contains_key(task));
        let can = |task: &u64| !all.stalled.contains(&all.tasks[task].group);
        let able: Vec<usize> = (0..ready.len()).filter(|place| can(&ready[*place])).collect();
        if able.is_empty() {
            return None;
        }
        let task = ready.remove(able[(chance % able.len() as u64) as usize]);
        let found = all.tasks.get_mut(&task)?;
        found.flag.is_ready.store(false, Ordering::Relaxed);
        Some((task, Arc::clone(&found.flag), found.future.take()?))
    }

    /// Ends all tasks of a process.
    pub fn end_process(&self) {
        self.end(|group| group != Group::Client);
        self.all.borrow_mut().stalled.clear();
    }

    /// Ends all clients.
    pub fn end_clients(&self) {
        self.end(|group| group == Group::Client);
    }

    fn end(&self, ends: impl Fn(Group) -> bool) {
        let ended: Vec<Task> = {
            let tasks = &mut self.all.borrow_mut().tasks;
            let ids: Vec<u64> =
                tasks.iter().filter(|(_, task)| ends(task.group)).map(|(id, _)| *id).collect();
            ids.into_iter().filter_map(|id| tasks.remove(&id)).collect()
        };
        // What they held may wake others.
        drop(ended);
    }

    /// A group stands still, or goes on.
    pub fn stall(&self, group: Group, stands: bool) {
        let stalled = &mut self.all.borrow_mut().stalled;
        if stands {
            stalled.insert(group)
        } else {
            stalled.remove(&group)
        };
    }

    /// How many tasks a group has.
    pub fn count(&self, group: Group) -> usize {
        self.all.borrow().tasks.values().filter(|task| task.group == group).count()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;
    use crate::random::Random;

    #[test]
    fn the_same_seed_gives_the_same_order_and_a_group_can_stand_still() {
        let run = |seed: u64, stalled: Option<Group>| {
            let (tasks, order, mut random) =
                (Tasks::default(), Rc::new(RefCell::new(Vec::new())), Random::new(seed));
            for task in 0..4 {
                let order = Rc::clone(&order);
                tasks.spawn(Group::Core(task), async move {
                    for step in 0..3 {
                        order.borrow_mut().push((task, step));
                        let mut is_second = false;
                        poll_fn(|context| {
                            if std::mem::replace(&mut is_second, true) {
                                return Poll::Ready(());
                            }
                            context.waker().wake_by_ref();
                            Poll::Pending
                        })
                        .await;
                    }
                });
            }
            if let Some(group) = stalled {
                tasks.stall(group, true);
            }
            while tasks.step(random.next_u64()) {}
            order.take()
        };
        assert_eq!(run(1, None), run(1, None));
        assert_ne!(run(1, None), run(2, None));
        assert_eq!(run(1, None).len(), 12);
        let without = run(1, Some(Group::Core(2)));
        assert!(without.len() == 9 && without.iter().all(|(task, _)| *task != 2));
    }
}
