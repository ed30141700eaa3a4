//! What has gone wrong, counted: a fault that never comes proves nothing.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

/// Something that went wrong, or that was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Happening {
    /// A process was killed.
    Kill,
    /// A machine stopped.
    Crash,
    /// Power failed at an operation of a disk.
    PowerCut,
    /// A crash left some sectors of a page of a write, and not the others.
    TornPage,
    /// A crash left some whole pages of a write, and not the others.
    TornWrite,
    /// A crash left all of a write that came after one of which it left nothing.
    Reordered,
    /// A write failed.
    FailedWrite,
    /// A sync failed.
    FailedSync,
    /// A read failed.
    FailedRead,
    /// A file could not be made.
    FailedCreate,
    /// An operation of the index failed.
    FailedIndex,
    /// The index found no space.
    FullIndex,
    /// There was no space for what was to be written.
    NoSpace,
    /// A bit of what was on the disk is another one.
    DecayedBit,
    /// A start was refused, and the damage named.
    RefusedStart,
    /// A command was refused, and the damage named.
    NamedDamage,
    /// A command was refused, and the failed read named.
    NamedFailure,
    /// A start failed because an operation of the disk did.
    FailedStart,
    /// Power failed, or the process was killed, during a start.
    EndedStart,
    /// A disk became slow.
    SlowDisk,
    /// A core stood still.
    StalledCore,
    /// The clock on the wall went forward at once.
    ClockForward,
    /// The clock on the wall went back.
    ClockBack,
    /// A client gave up before the answer.
    Disconnect,
}

impl Happening {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::Kill,
        Self::Crash,
        Self::PowerCut,
        Self::TornPage,
        Self::TornWrite,
        Self::Reordered,
        Self::FailedWrite,
        Self::FailedSync,
        Self::FailedRead,
        Self::FailedCreate,
        Self::FailedIndex,
        Self::FullIndex,
        Self::NoSpace,
        Self::DecayedBit,
        Self::RefusedStart,
        Self::NamedDamage,
        Self::NamedFailure,
        Self::FailedStart,
        Self::EndedStart,
        Self::SlowDisk,
        Self::StalledCore,
        Self::ClockForward,
        Self::ClockBack,
        Self::Disconnect,
    ];
}

/// How often each happened.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([u64; Happening::ALL.len()]);

impl Counts {
    /// How often this happened.
    #[must_use]
    pub fn of(&self, happening: Happening) -> u64 {
        self.0[happening as usize]
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        for (here, there) in self.0.iter_mut().zip(other.0) {
            *here += there;
        }
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let happened = Happening::ALL.into_iter().filter(|happening| self.of(*happening) > 0);
        f.debug_map().entries(happened.map(|happening| (happening, self.of(happening)))).finish()
    }
}

/// Counts what happens. Clones are the same.
#[derive(Clone, Default)]
pub struct Happened(Rc<Cell<Counts>>);

impl Happened {
    /// It happened once more.
    pub fn note(&self, happening: Happening) {
        self.note_times(happening, 1);
    }

    /// It happened so many times more.
    pub fn note_times(&self, happening: Happening, times: u64) {
        let mut counts = self.0.get();
        counts.0[happening as usize] += times;
        self.0.set(counts);
    }

    /// How often each did.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.get()
    }
}
