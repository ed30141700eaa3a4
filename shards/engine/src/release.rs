//! Phase 6, release: a reply waits until what it shows is as durable as its resource asks.
//!
//! While one batch of the log is on its way to the disk, the next one gathers. A reply needs one of the two, so there
//! are two buckets, and no order by LSN: when the flight lands, its whole bucket is released.
//!
//! ```text
//! park(needs <= flight.last) ─► flying    ── batch landed ─► released
//! park(needs >  flight.last) ─► gathering ── next batch taken ─► flying
//! ```

use flowmesh_model::{Lsn, Mutation, PartitionRef, Reject, Reply};

use crate::metrics::Operation;
use crate::sink::ReplySink;

/// How durable a reply must be before it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// On disk: written and synced.
    Synced,
    /// Written; the kernel has it.
    Written,
}

/// A reply and whom it is for.
pub struct Outgoing {
    /// Who gets it.
    pub sink: Box<dyn ReplySink>,
    /// What they get.
    pub outcome: Result<Reply, Reject>,
    /// What it counts as.
    pub operation: Operation,
    /// What it is counted for, besides its operation.
    pub counted_for: Option<PartitionRef>,
    /// When the command arrived.
    pub started_ns: u64,
}

impl Outgoing {
    /// Hands the reply over.
    pub fn deliver(self) {
        self.sink.deliver(self.outcome);
    }
}

/// Replies that wait, and how far the log is.
#[derive(Default)]
pub struct Parked {
    flying: Vec<Outgoing>,
    gathering: Vec<Outgoing>,
    /// The last LSN of the batch that is being written; equals `written` when there is none.
    flight_last: Lsn,
    flight_syncs: bool,
    /// Whether a gathered reply needs a sync.
    sync_wanted: bool,
    written: Lsn,
    synced: Lsn,
}

impl Parked {
    /// Nothing waits; everything up to `recovered` is on disk.
    pub fn new(recovered: Lsn) -> Self {
        Self { flight_last: recovered, written: recovered, synced: recovered, ..Self::default() }
    }

    /// The last LSN that is on disk.
    pub fn synced(&self) -> Lsn {
        self.synced
    }

    /// How many replies wait.
    pub fn len(&self) -> usize {
        self.flying.len() + self.gathering.len()
    }

    /// How many replies wait for a flight that has not taken off.
    pub fn gathered(&self) -> usize {
        self.gathering.len()
    }

    /// Whether a gathered reply waits for a sync.
    pub fn wants_sync(&self) -> bool {
        self.sync_wanted
    }

    /// Whether a reply that shows `seen` may go out now.
    pub fn is_released(&self, seen: Lsn, need: Need) -> bool {
        if Mutation::ReleaseEarly.is_made() {
            return true;
        }
        match need {
            Need::Synced => seen <= self.synced,
            Need::Written => seen <= self.written,
        }
    }

    /// Keeps a reply until `seen` is durable. Returns whether the log must be asked for a commit.
    pub fn park(&mut self, seen: Lsn, need: Need, outgoing: Outgoing) -> bool {
        debug_assert!(!self.is_released(seen, need), "a released reply is not parked");
        let in_flight = seen <= self.flight_last && (need == Need::Written || self.flight_syncs);
        if in_flight && self.flight_last > self.written {
            self.flying.push(outgoing);
            return false;
        }
        self.sync_wanted |= need == Need::Synced;
        self.gathering.push(outgoing);
        true
    }

    /// A batch up to `last` is on its way. All that gathered flies with it.
    pub fn take_off(&mut self, last: Lsn, syncs: bool) {
        assert!(self.flying.is_empty(), "one flight at a time");
        assert!(syncs || !self.sync_wanted, "a flight that someone waits for is synced");
        std::mem::swap(&mut self.flying, &mut self.gathering);
        self.flight_last = last;
        self.flight_syncs = syncs;
        self.sync_wanted = false;
    }

    /// The flight landed: its replies move to `released`, in the order in which they were asked for: a worker that waited is
    /// told of its job before who enqueued it.
    pub fn land(&mut self, released: &mut Vec<Outgoing>) {
        self.written = self.flight_last;
        if self.flight_syncs {
            self.synced = self.flight_last;
        }
        if !self.flying.is_sorted_by_key(|outgoing| outgoing.started_ns) {
            self.flying.sort_by_key(|outgoing| outgoing.started_ns);
        }
        released.append(&mut self.flying);
    }

    /// There is no disk: what was logged counts as written and synced at once.
    pub fn advance(&mut self, lsn: Lsn) {
        self.flight_last = lsn;
        self.written = lsn;
        self.synced = lsn;
    }

    /// The log is broken: everyone who waits gets `reject` instead, since nobody knows what is on disk.
    pub fn fail_all(&mut self, reject: &Reject, released: &mut Vec<Outgoing>) {
        self.sync_wanted = false;
        self.flight_last = self.written;
        for mut outgoing in self.flying.drain(..).chain(self.gathering.drain(..)) {
            outgoing.outcome = Err(reject.clone());
            released.push(outgoing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::SinkFn;
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    type Seen = Rc<RefCell<Vec<u64>>>;

    fn reply(number: u64, seen: &Seen) -> Outgoing {
        let seen = Rc::clone(seen);
        Outgoing {
            sink: Box::new(SinkFn(move |_| seen.borrow_mut().push(number))),
            outcome: Ok(Reply::Flags(flowmesh_model::Batch::new())),
            operation: Operation::Status,
            counted_for: None,
            started_ns: 0,
        }
    }

    fn land(parked: &mut Parked) {
        let mut out = Vec::new();
        parked.land(&mut out);
        out.into_iter().for_each(Outgoing::deliver);
    }

    #[test]
    fn a_reply_that_joins_a_flight_lands_with_it() {
        let (mut parked, seen) = (Parked::new(Lsn(0)), Seen::default());
        assert!(parked.park(Lsn(1), Need::Synced, reply(1, &seen)));
        parked.take_off(Lsn(1), true);
        assert!(!parked.park(Lsn(1), Need::Synced, reply(2, &seen)));
        assert!(parked.park(Lsn(2), Need::Synced, reply(3, &seen)));
        land(&mut parked);
        assert_eq!(*seen.borrow(), [1, 2]);
        parked.take_off(Lsn(2), true);
        land(&mut parked);
        assert_eq!(*seen.borrow(), [1, 2, 3]);
    }

    #[test]
    fn a_flight_without_a_sync_releases_no_reply_that_needs_one() {
        let (mut parked, seen) = (Parked::new(Lsn(0)), Seen::default());
        parked.park(Lsn(1), Need::Written, reply(1, &seen));
        parked.take_off(Lsn(1), false);
        parked.park(Lsn(1), Need::Synced, reply(2, &seen));
        land(&mut parked);
        assert_eq!(*seen.borrow(), [1]);
        assert!(parked.wants_sync());
        parked.take_off(Lsn(1), true);
        land(&mut parked);
        assert_eq!(*seen.borrow(), [1, 2]);
    }

    #[test]
    fn who_asked_first_is_answered_first() {
        let (mut parked, seen) = (Parked::new(Lsn(0)), Seen::default());
        for (number, started_ns) in [(1, 30), (2, 10), (3, 20), (4, 10)] {
            let outgoing = Outgoing { started_ns, ..reply(number, &seen) };
            parked.park(Lsn(number), Need::Synced, outgoing);
        }
        parked.take_off(Lsn(4), true);
        land(&mut parked);
        assert_eq!(*seen.borrow(), [2, 4, 3, 1]);
    }

    proptest! {
        /// Whatever the order of parks, take-offs and landings: no reply goes out before its LSN is as durable as it
        /// needs, and after two more flights none is left.
        #[test]
        fn nothing_is_released_early_and_nothing_is_forgotten(steps in proptest::collection::vec((0u8..4, 0u64..4, any::<bool>()), 0..64)) {
            let mut parked = Parked::new(Lsn(0));
            let (mut last, mut flying) = (0u64, false);
            let (mut synced, mut written) = (0u64, 0u64);
            let mut flight = (0u64, false);
            let early = Rc::new(RefCell::new(Vec::<(u64, Need)>::new()));
            let mut out = Vec::new();
            for (step, back, sync) in steps {
                match step {
                    0 => last += 1,
                    1 => {
                        let (seen, need) = (last.saturating_sub(back), if sync { Need::Synced } else { Need::Written });
                        if !parked.is_released(Lsn(seen), need) {
                            let early = Rc::clone(&early);
                            let sink = Box::new(SinkFn(move |_| early.borrow_mut().push((seen, need))));
                            parked.park(Lsn(seen), need, Outgoing { sink, outcome: Err(Reject::Cancelled), operation: Operation::Status, counted_for: None, started_ns: 0 });
                        }
                    }
                    2 if !flying => {
                        flight = (last, sync || parked.wants_sync());
                        parked.take_off(Lsn(last), flight.1);
                        flying = true;
                    }
                    3 if flying => {
                        parked.land(&mut out);
                        written = flight.0;
                        if flight.1 { synced = flight.0; }
                        flying = false;
                    }
                    _ => {}
                }
                out.drain(..).for_each(Outgoing::deliver);
                for (seen, need) in early.borrow_mut().drain(..) {
                    let durable = if need == Need::Synced { synced } else { written };
                    prop_assert!(seen <= durable);
                }
            }
            if flying { parked.land(&mut out); }
            parked.take_off(Lsn(last), true);
            parked.land(&mut out);
            prop_assert_eq!(parked.len(), 0);
        }
    }
}
