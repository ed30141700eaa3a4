//! For what something became available, so that whoever waits is looked at again.
//!
//! A queue or partition remembers the round in which it was last listed, so that it is listed once however much
//! arrives, and forgetting the whole list is one addition.

use std::collections::VecDeque;

use crate::decision::WaitKey;

/// Keys in the order in which something became available.
#[derive(Debug)]
pub(crate) struct Woken {
    keys: VecDeque<WaitKey>,
    round: u64,
}

impl Default for Woken {
    fn default() -> Self {
        Self { keys: VecDeque::new(), round: 1 }
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
