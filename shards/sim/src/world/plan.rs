//! What a seed decides, apart from all that happens by chance within a run.

use crate::random::Random;

/// Something that goes wrong while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A write fails, without effect.
    FailedWrite,
    /// A read fails.
    FailedRead,
    /// A sync fails; what it brought to the disk is not known.
    FailedSync,
    /// A file cannot be made.
    FailedCreate,
    /// There is no space for more, or there is again.
    NoSpace,
    /// The index finds no space.
    FullIndex,
    /// An operation of the index fails.
    FailedIndex,
    /// A bit decays that was on the disk for good.
    DecayedBits,
    /// A start fails, or ends before it is over.
    HardStarts,
    /// A core stands still, or goes on.
    StalledCore,
    /// The clock on the wall is set.
    ClockJumps,
    /// The disk becomes slower or faster.
    SlowDisk,
    /// Clients give up before the answer.
    Disconnects,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::FailedWrite,
        Self::FailedRead,
        Self::FailedSync,
        Self::FailedCreate,
        Self::NoSpace,
        Self::FullIndex,
        Self::FailedIndex,
        Self::DecayedBits,
        Self::HardStarts,
        Self::StalledCore,
        Self::ClockJumps,
        Self::SlowDisk,
        Self::Disconnects,
    ];
}

/// What clients may use, besides streams, queues and stores, which they always do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A store whose keys end.
    Ending,
    /// A cache that is full.
    Cache,
    /// A queue whose dead letters go to another queue.
    LettersToQueue,
    /// A queue whose dead letters go to a stream.
    LettersToStream,
    /// A queue with schedules.
    Schedules,
    /// A group of consumers.
    Group,
}

impl Use {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Ending,
        Self::Cache,
        Self::LettersToQueue,
        Self::LettersToStream,
        Self::Schedules,
        Self::Group,
    ];
}

/// How likely a fault is: about once in so many steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Odds {
    /// What happens.
    pub fault: Fault,
    /// How seldom.
    pub once_in: u64,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is killed; the machine goes on.
    Kill,
    /// The machine stops.
    Crash,
    /// The machine stops at an operation of the disk, which may still have an effect.
    PowerCut,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where all chance comes from.
    pub seed: u64,
    /// Shards, each on a core of its own.
    pub shards: u16,
    /// Clients of each sort.
    pub clients: u64,
    /// Processes that end, before the last one.
    pub lives: u64,
    /// About so many steps of tasks in each.
    pub steps: u64,
    /// What else clients use.
    pub uses: Vec<Use>,
    /// How fast time passes while there is work: a step takes up to 2 µs, doubled so many times.
    pub pace: u32,
    /// The most polls that an operation of the disk takes, but for one.
    pub disk_polls: u64,
    /// What goes wrong, and how often.
    pub faults: Vec<Odds>,
    /// How processes end, in turn.
    pub ends: Vec<End>,
}

impl Plan {
    /// What this seed decides.
    pub fn of(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5EED);
        // About half of them, now and then none.
        let calm = random.below(4) == 0;
        let mut odds = |fault| {
            let odds = Odds { fault, once_in: 500 << random.below(5) };
            (!calm && random.coin()).then_some(odds)
        };
        let faults = Fault::ALL.into_iter().filter_map(&mut odds).collect();
        let ends = [End::Kill, End::Crash, End::PowerCut];
        let uses = Use::ALL.into_iter().filter(|_| random.below(3) == 0).collect();
        Self {
            seed,
            shards: 1 + random.below(3) as u16,
            clients: 1 + random.below(3),
            lives: 1 + random.below(4),
            steps: 500 << random.below(5),
            uses,
            pace: random.below(9) as u32,
            disk_polls: random.below(8),
            faults,
            ends: (0..4).map(|_| ends[random.below(3) as usize]).collect(),
        }
    }

    /// Whether this goes wrong.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.iter().any(|odds| odds.fault == fault)
    }

    /// How a process ends.
    pub fn end_of(&self, life: u64) -> End {
        self.ends[life as usize % self.ends.len()]
    }

    /// Smaller plans, the smallest first: one of them may fail as this one does, and is easier to read.
    pub fn smaller(&self) -> Vec<Self> {
        let mut plans = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut plan = self.clone();
            change(&mut plan);
            if plan != *self {
                plans.push(plan);
            }
        };
        with(&|plan| plan.lives = plan.lives.min(1));
        with(&|plan| plan.lives = plan.lives.saturating_sub(1).max(1));
        with(&|plan| plan.faults.clear());
        for fault in &self.faults {
            with(&|plan| plan.faults.retain(|other| other != fault));
        }
        with(&|plan| plan.uses.clear());
        for used in &self.uses {
            with(&|plan| plan.uses.retain(|other| other != used));
        }
        with(&|plan| plan.pace = 0);
        with(&|plan| plan.shards = 1);
        with(&|plan| plan.clients = 1);
        with(&|plan| plan.steps = (plan.steps / 2).max(50));
        with(&|plan| plan.disk_polls = 0);
        with(&|plan| plan.ends = vec![End::Kill]);
        plans
    }
}
