//! Large values go into the log in pieces, one with each commit, so that the commits of others go between them.
//!
//! | phase | what happens |
//! |---|---|
//! | decided | facts with large values are not logged: their command stands in line |
//! | its turn | with each commit one piece, an entry with a `ValuePart`, goes into the log, and into the memory that the value will have |
//! | all pieces are logged | it is decided on again, and its entry names the pieces; if the values are others by now, it stands in line again |
//!
//! One command at a time, so the pieces of two never mix. A checkpoint waits until it is through ([`Large::hold`]), so recovery
//! finds the pieces of every entry that it applies. Pieces of a command that was given up, or that a crash cut short, change nothing.

use std::collections::VecDeque;

use bytes::Bytes;
use flowmesh_model::codec::Malformed;
use flowmesh_model::limits::{
    KV_LARGE_BYTES_MAX, KV_LARGE_TRIES_MAX, KV_LARGE_WAITING_BYTES_MAX, LOG_PIECE_BYTES,
};
use flowmesh_model::{Batch, Command, Fact, Millis, Reject, ResourceId};
use flowmesh_store::disk::Disk;

use crate::metrics::Operation;
use crate::metrics::resources::counted_for;
use crate::pump::{Effects, LogRefusal};
use crate::release::Outgoing;
use crate::shard::State;
use crate::sink::ReplySink;

/// Commands with large values.
#[derive(Default)]
pub(crate) struct Large {
    line: VecDeque<InLine>,
    /// Bytes of the values in line and of those that are passing.
    bytes: usize,
    passing: Option<Passage>,
    /// So many wait for a moment without pieces of which the entry is still to come.
    holds: usize,
}

/// A command with its large values, as it was decided.
pub(crate) struct InLine {
    command: Command,
    sink: Box<dyn ReplySink>,
    started_ns: u64,
    store: ResourceId,
    values: Vec<Bytes>,
    tries: u32,
}

impl InLine {
    fn bytes(&self) -> usize {
        self.values.iter().map(Bytes::len).sum()
    }

    fn refused(self, reject: Reject) -> Outgoing {
        let (operation, _) = Operation::of(&self.command);
        let counted_for = counted_for(&self.command);
        Outgoing {
            sink: self.sink,
            outcome: Err(reject),
            operation,
            counted_for,
            started_ns: self.started_ns,
        }
    }
}

/// The values of a command on their way into the log.
pub(crate) struct Passage {
    of: InLine,
    /// As far as they are in the log, in memory of exactly their size.
    own: Vec<Vec<u8>>,
    logged: usize,
    total: usize,
    /// Once all are.
    passed: Option<Passed>,
}

/// Values that are in the log, each in memory of its own.
pub(crate) struct Passed {
    /// As it was given, as it is kept, and its place in the pieces.
    values: Vec<(Bytes, Bytes, u64)>,
    tries: u32,
}

impl Passage {
    fn new(of: InLine) -> Self {
        let own = of.values.iter().map(|value| Vec::with_capacity(value.len())).collect();
        let total = of.bytes();
        Self { of, own, logged: 0, total, passed: None }
    }

    /// The next piece, which is of one value, and of which; `None` if all are in the log.
    fn next_piece(&self) -> Option<(usize, Fact)> {
        let (index, value, from) = (self.of.values.iter().zip(&self.own).enumerate())
            .map(|(index, (value, own))| (index, value, own.len()))
            .find(|(_, value, from)| value.len() > *from)?;
        let bytes = value.slice(from..value.len().min(from + LOG_PIECE_BYTES));
        let (place, total) = (self.logged as u64, self.total as u64);
        Some((index, Fact::ValuePart { store: self.of.store, place, total, bytes }))
    }

    fn logged(&mut self, index: usize, piece: &Fact) {
        let Fact::ValuePart { bytes, .. } = piece else { return };
        self.logged += bytes.len();
        if let Some(own) = self.own.get_mut(index) {
            own.extend_from_slice(bytes);
        }
    }

    /// All of it is in the log.
    fn pass(&mut self) -> Passed {
        self.passed.take().unwrap_or_else(|| {
            let mut place = 0;
            let own = std::mem::take(&mut self.own);
            let values = self.of.values.iter().zip(own).map(|(given, own)| {
                let value = (given.clone(), Bytes::from(own), place);
                place += given.len() as u64;
                value
            });
            Passed { values: values.collect(), tries: self.of.tries }
        })
    }
}

impl Passed {
    fn find(&self, value: &Bytes) -> Option<(&Bytes, u64)> {
        // Of a value that was given, and not made, the very same bytes come again.
        let same = |given: &Bytes| given.as_ptr() == value.as_ptr() && given.len() == value.len();
        let mut all = self.values.iter();
        let found = all
            .find(|(given, ..)| same(given))
            .or_else(|| self.values.iter().find(|(given, ..)| given == value));
        found.map(|(_, own, place)| (own, *place))
    }

    /// Whether all large values of these facts are in the log.
    pub fn has_all(&self, facts: &[Fact]) -> bool {
        facts.iter().filter_map(Fact::large_value).all(|value| self.find(value).is_some())
    }

    /// Puts the facts' large values into memory of their own. Returns what stands in the log of each, where that is not the
    /// fact itself.
    pub fn name(&self, facts: &mut [Fact]) -> Vec<Option<Fact>> {
        let name = |fact: &mut Fact| {
            let (own, place) = self.find(fact.large_value()?)?;
            let Fact::KeySet { store, key, value, expires_at } = fact else { return None };
            *value = own.clone();
            let (store, key, len) = (*store, key.clone(), own.len() as u64);
            Some(Fact::KeySetOfParts { store, key, place, len, expires_at: *expires_at })
        };
        facts.iter_mut().map(name).collect()
    }
}

impl Large {
    /// Whether a command stands in line or passes.
    pub fn waits(&self) -> bool {
        !self.line.is_empty() || self.passing.is_some()
    }

    /// Whether there are pieces in the log of which the entry is still to come.
    pub fn is_passing(&self) -> bool {
        self.passing.is_some()
    }

    /// No further command begins until [`Large::release`].
    pub fn hold(&mut self) {
        self.holds += 1;
    }

    /// Ends a [`Large::hold`].
    pub fn release(&mut self) {
        self.holds -= 1;
    }

    fn take_all(&mut self) -> Vec<InLine> {
        self.bytes = 0;
        let passing = self.passing.take().map(|passage| passage.of);
        passing.into_iter().chain(self.line.drain(..)).collect()
    }

    /// The next command whose client is still there, unless all wait.
    fn begin(&mut self) {
        while self.holds == 0
            && let Some(next) = self.line.pop_front()
        {
            if next.sink.is_closed() {
                self.bytes -= next.bytes();
            } else {
                self.passing = Some(Passage::new(next));
                return;
            }
        }
    }

    /// Gives up the one that passes if its client is gone.
    fn drop_closed(&mut self) {
        if self.passing.as_ref().is_some_and(|passage| passage.of.sink.is_closed()) {
            self.take_passing();
        }
    }

    fn take_passing(&mut self) -> Option<Passage> {
        let passage = self.passing.take()?;
        self.bytes -= passage.total;
        Some(passage)
    }
}

impl<D: Disk> State<D> {
    /// Puts a command in line whose facts have large values that are not in the log.
    pub fn line_up(
        &mut self,
        command: Command,
        outgoing: Outgoing,
        facts: &[Fact],
        passed: Option<&Passed>,
        effects: &mut Effects,
    ) {
        let Outgoing { sink, started_ns, .. } = outgoing;
        let values: Vec<Bytes> = facts.iter().filter_map(Fact::large_value).cloned().collect();
        let tries = passed.map_or(0, |passed| passed.tries + 1);
        let Command::Kv(store, _) = command else { panic!("only keys of stores have large values") };
        let line = InLine { command, sink, started_ns, store, values, tries };
        match self.admit(&line) {
            Ok(()) => {
                self.large.bytes += line.bytes();
                self.large.line.push_back(line);
                effects.commit = true;
            }
            Err(reject) => {
                // When it comes again there is more, if there can be.
                (effects.chill, effects.checkpoint) = (true, true);
                effects.released.push(line.refused(reject));
            }
        }
    }

    fn admit(&self, line: &InLine) -> Result<(), Reject> {
        let overloaded = |what, retry_after_ms| Err(Reject::Overloaded { what, retry_after_ms });
        if line.tries >= KV_LARGE_TRIES_MAX {
            return overloaded("large values that others change at the same time", 100);
        }
        let bytes = self.large.bytes + line.bytes();
        if self.large.waits() && bytes > KV_LARGE_WAITING_BYTES_MAX {
            return overloaded("large values on their way to the log", 100);
        }
        // What is there leaves memory for it, where it can.
        let over = (self.machine.memory_bytes() + bytes as u64).saturating_sub(self.memory_bytes_max);
        if over > 0 && !self.can_free(over) && !self.machine.can_make_room(line.store) {
            return overloaded("memory budget", 1_000);
        }
        Ok(())
    }

    /// With each commit: one piece of a large value, and behind the last one the entry.
    pub fn pass_large(&mut self, now: Millis, now_ns: u64, effects: &mut Effects) {
        self.large.drop_closed();
        if !self.large.is_passing() {
            if !self.may_begin(effects) {
                return;
            }
            self.large.begin();
        }
        match self.log_piece(now, effects) {
            Ok(true) => self.pass(now, now_ns, effects),
            Ok(false) | Err(LogRefusal::NoRoom) => {}
            Err(LogRefusal::Reject(reject)) => {
                let passage = self.large.take_passing();
                effects.released.extend(passage.map(|passage| passage.of.refused(reject)));
            }
        }
    }

    /// Whether another command's values may go into the log.
    fn may_begin(&mut self, effects: &mut Effects) -> bool {
        if !self.large.waits() || !self.is_log_full() {
            return self.large.waits();
        }
        effects.checkpoint = true;
        if let Some(reject) = self.log_refusal() {
            self.fail_large(&reject, effects);
        }
        false
    }

    /// Logs the next piece of what passes. Returns whether that was the last one.
    fn log_piece(&mut self, now: Millis, effects: &mut Effects) -> Result<bool, LogRefusal> {
        let next = self.large.passing.as_ref().map(Passage::next_piece);
        let Some(Some((index, piece))) = next else { return Ok(next.is_some()) };
        self.log_and_apply(now, Batch::from_elem(piece.clone(), 1), effects)?;
        let passing = self.large.passing.as_mut();
        Ok(passing.is_some_and(|passage| {
            passage.logged(index, &piece);
            passage.logged == passage.total
        }))
    }

    /// All pieces of what passes are in the log: its entry follows.
    fn pass(&mut self, now: Millis, now_ns: u64, effects: &mut Effects) {
        let Some(mut passage) = self.large.take_passing() else { return };
        let passed = passage.pass();
        let InLine { command, sink, started_ns, .. } = passage.of;
        let ran = self.try_run(command, sink, (now, now_ns, started_ns), Some(&passed), effects);
        if let Some((command, sink)) = ran {
            let of = InLine { command, sink, ..passage.of };
            self.large.bytes += passage.total;
            self.large.passing = Some(Passage { of, passed: Some(passed), ..passage });
        }
    }

    /// Tells all who stand in line, or pass.
    pub fn fail_large(&mut self, reject: &Reject, effects: &mut Effects) {
        let all = self.large.take_all().into_iter();
        effects.released.extend(all.map(|line| line.refused(reject.clone())));
    }
}

/// Puts large values together again as the log is read.
#[derive(Default)]
pub(crate) struct Parts {
    total: usize,
    bytes: Vec<u8>,
    /// Once all are there.
    whole: Bytes,
}

impl Parts {
    /// The fact with its value; `None`: a part, which says nothing by itself.
    ///
    /// # Errors
    /// [`Malformed`] if parts are missing.
    pub fn join(&mut self, fact: Fact) -> Result<Option<Fact>, Malformed> {
        match fact {
            Fact::ValuePart { place, total, bytes, .. } => self.add(place, total, &bytes).map(|()| None),
            Fact::KeySetOfParts { store, key, place, len, expires_at } => {
                let value =
                    self.value(place, len).ok_or(Malformed("a large value whose parts are missing"))?;
                Ok(Some(Fact::KeySet { store, key, value, expires_at }))
            }
            other => Ok(Some(other)),
        }
    }

    fn add(&mut self, place: u64, total: u64, bytes: &[u8]) -> Result<(), Malformed> {
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        if place == 0 {
            if total > KV_LARGE_BYTES_MAX {
                return Err(Malformed("large values that are larger than may be"));
            }
            *self = Self { total, bytes: Vec::with_capacity(total), whole: Bytes::new() };
        }
        let follows = place == self.bytes.len() as u64 && total == self.total;
        if !follows || self.bytes.len() + bytes.len() > total {
            return Err(Malformed("a part of a large value without those before it"));
        }
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() == total {
            self.whole = std::mem::take(&mut self.bytes).into();
        }
        Ok(())
    }

    /// One that is alone has the memory that it came together in, any other memory of its own.
    fn value(&self, place: u64, len: u64) -> Option<Bytes> {
        let (start, len) = (usize::try_from(place).ok()?, usize::try_from(len).ok()?);
        let value = self.whole.get(start..start.checked_add(len)?)?;
        Some(if len == self.whole.len() { self.whole.clone() } else { Bytes::copy_from_slice(value) })
    }
}
