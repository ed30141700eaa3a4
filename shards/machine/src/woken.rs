//! For what something became available, so that whoever waits is looked at again.
//!
//! A queue or partition remembers the round in which it was last listed, so that it is listed once however much
//! arrives, and forgetting the whole list is one addition.
//!
//! Beside it, queues whose next jobs should come into memory.

use std::collections::{BTreeSet, VecDeque};

use flowmesh_model::ResourceId;

use crate::decision::WaitKey;

/// Keys in the order in which something became available.
#[derive(Debug)]
pub(crate) struct Woken {
    keys: VecDeque<WaitKey>,
    round: u64,
    ahead: BTreeSet<ResourceId>,
}

impl Default for Woken {
    fn default() -> Self {
        Self { keys: VecDeque::new(), round: 1, ahead: BTreeSet::new() }
    }
}

impl Woken {
    /// Lists a key whose owner was last listed in round `listed`.
    #[inline]
    pub fn wake(&mut self, listed: &mut u64, key: WaitKey) {
        if *listed != self.round {
            *listed = self.round;
            self.keys.push_back(key);
        }
    }

    /// Lists a queue of which the next jobs should come into memory.
    pub fn look_ahead(&mut self, queue: ResourceId) {
        self.ahead.insert(queue);
    }

    /// Whether there is such a queue.
    #[inline]
    pub fn looks_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Takes such a queue off the list.
    pub fn pop_ahead(&mut self) -> Option<ResourceId> {
        self.ahead.pop_first()
    }

    /// The first key of the list; its owner must forget that it was listed.
    pub fn pop(&mut self) -> Option<WaitKey> {
        self.keys.pop_front()
    }

    /// Empties the list.
    #[inline]
    pub fn forget(&mut self) {
        if !self.keys.is_empty() {
            self.keys.clear();
            self.round += 1;
        }
    }
}
