//! How many connections a core has open, and how many it may have.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use flowmesh_rt::time;

/// How often a draining core looks whether all connections are gone.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

/// One core's open connections, of all its listeners together. Cheap to clone; stays on its core.
#[derive(Clone, Debug)]
pub struct Connections {
    open: Rc<Cell<u32>>,
    max: u32,
}

/// A connection's place in the count, given back when this is dropped.
#[derive(Debug)]
pub struct Place(Rc<Cell<u32>>);

impl Connections {
    /// A core's equal share of what the whole server may have open, at least one.
    #[must_use]
    pub fn share_of(server_max: u32, cores: u16) -> Self {
        Self { open: Rc::default(), max: (server_max / u32::from(cores.max(1))).max(1) }
    }

    /// How many may be open at a time.
    #[must_use]
    pub fn max(&self) -> u32 {
        self.max
    }

    /// A place for one more; `None` if there is none.
    #[must_use]
    pub fn admit(&self) -> Option<Place> {
        let open = self.open.get();
        if open >= self.max {
            return None;
        }
        self.open.set(open + 1);
        Some(Place(Rc::clone(&self.open)))
    }

    /// Returns once all connections are gone, or after `patience_ms`.
    pub async fn drained(&self, patience_ms: u64) {
        let deadline = time::now_ms().saturating_add(patience_ms);
        while self.open.get() > 0 && time::now_ms() < deadline {
            time::sleep(DRAIN_LOOK).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_limit_nobody_is_admitted_until_somebody_leaves() {
        let connections = Connections::share_of(5, 2);
        let first = connections.admit().unwrap();
        let second = connections.clone().admit().unwrap();
        assert!(connections.admit().is_none(), "two of five are this core's");
        drop(first);
        let third = connections.admit().unwrap();
        assert!(connections.admit().is_none());
        drop((second, third));
        assert_eq!(connections.open.get(), 0);
    }

    #[test]
    fn every_core_may_have_one() {
        assert_eq!(Connections::share_of(1, 8).max(), 1);
    }
}
