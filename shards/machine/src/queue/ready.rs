//! Which job is next: jobs that are to be had, and the rules that hold some of them back.
//!
//! Strict priority first (or, with ageing, priority and waiting time added up); among equals the group that was served
//! least recently, so that no group starves the others; within a group the order of enqueueing. Jobs without a group count
//! as one group without rules.
//!
//! A group is **eligible** while it has a ready job, fewer leases than it may have, tokens in its bucket, and, if its jobs
//! are worked on one at a time, none of them waits for its next attempt: that one comes first.
//!
//! Rates are kept by the generic cell rate algorithm (ITU-T I.371): one moment for each bucket, not part of the state; a
//! restart fills the buckets.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flowmesh_model::settings::Rate;
use flowmesh_model::{JobId, Millis};
use rustc_hash::FxHashMap;

use super::names::Names;

const NS_PER_MS: u64 = 1_000_000;

/// When the next lease is in time, by a rate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    /// When the bucket is full again, in ns since the Unix epoch.
    full_at_ns: u64,
}

impl Bucket {
    fn interval_ns(rate: Rate) -> u64 {
        1_000_000_000 / u64::from(rate.per_second.max(1))
    }

    /// How many leases it allows at `now`.
    pub fn allows(self, rate: Rate, now: Millis) -> u64 {
        let (interval, now) = (Self::interval_ns(rate), now.0.saturating_mul(NS_PER_MS));
        let used = self.full_at_ns.saturating_sub(now).div_ceil(interval);
        u64::from(rate.burst()).saturating_sub(used)
    }

    /// Takes one lease out.
    pub fn take(&mut self, rate: Rate, now: Millis) {
        self.full_at_ns = self.full_at_ns.max(now.0.saturating_mul(NS_PER_MS)) + Self::interval_ns(rate);
    }

    /// When it allows a lease next.
    pub fn next(self, rate: Rate) -> Millis {
        let burst_ns = Self::interval_ns(rate) * u64::from(rate.burst().saturating_sub(1));
        Millis(self.full_at_ns.saturating_sub(burst_ns).div_ceil(NS_PER_MS))
    }
}

/// What settings say about who is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// For each so many milliseconds a ready job counts as one priority higher; 0: never.
    pub aging_ms: u64,
    pub group_concurrency: u32,
    pub group_rate: Option<Rate>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { aging_ms: 0, group_concurrency: 1, group_rate: None }
    }
}

impl Rules {
    /// Smaller is sooner.
    pub fn rank(&self, priority: u8, since: Millis) -> u64 {
        let rank = u64::from(u8::MAX - priority);
        since.0.checked_div(self.aging_ms).map_or(rank, |step| step + rank)
    }
}

/// What is known of a group.
#[derive(Debug, Default)]
struct Group {
    /// Its ready jobs with their ranks.
    ready: BTreeMap<JobId, u64>,
    leased: u32,
    /// Jobs that wait for another attempt.
    retrying: u32,
    /// When it was last served, in turns.
    turn: u64,
    bucket: Bucket,
    /// Its place among the eligible.
    place: Option<(u64, u64)>,
    /// When its bucket has a token again, if that is what holds it back.
    held_back: Option<Millis>,
}

/// Jobs that are to be had.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    rules: Rules,
    /// Jobs without a group, by rank.
    plain: BTreeSet<(u64, JobId)>,
    plain_turn: u64,
    turns: u64,
    names: Names,
    /// Groups by their number in `names`. Never iterated where the order could show.
    groups: FxHashMap<u32, Box<Group>>,
    /// Eligible groups by the rank of their next job, then by turn.
    eligible: BTreeSet<(u64, u64, u32)>,
    /// Groups whose buckets are empty, by when they have a token.
    held_back: BTreeSet<(Millis, u32)>,
    grouped: u64,
    /// Ready jobs of groups that are not eligible.
    blocked: u64,
}

impl Ready {
    /// Jobs that are ready, and of them those that their groups hold back.
    pub fn counts(&self) -> (u64, u64) {
        (self.plain.len() as u64 + self.grouped, self.blocked)
    }

    /// Whether any job is to be had now.
    pub fn any(&self) -> bool {
        !self.plain.is_empty() || !self.eligible.is_empty()
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// An estimate of what groups take in memory beside their jobs.
    pub fn memory_bytes(&self) -> u64 {
        self.names.memory_bytes() + self.groups.len() as u64 * (size_of::<Group>() + 64) as u64
    }

    /// The group of that key, for one more job.
    pub fn join(&mut self, key: &Bytes) -> u32 {
        let number = self.names.take(key);
        if number > 0 {
            self.groups.entry(number).or_default();
        }
        number
    }

    /// A job has left its group.
    pub fn leave(&mut self, group: u32) {
        if self.names.give_back(group) {
            self.settle(group, Millis(0));
            self.groups.remove(&group);
        }
    }

    pub fn key(&self, group: u32) -> Bytes {
        self.names.text(group)
    }

    /// A job is to be had.
    pub fn insert(&mut self, id: JobId, group: u32, rank: u64, now: Millis) -> bool {
        let Some(held) = self.groups.get_mut(&group) else { return self.plain.insert((rank, id)) };
        let new = held.ready.insert(id, rank).is_none();
        self.grouped += 1;
        self.blocked += u64::from(held.place.is_none());
        self.settle(group, now);
        new
    }

    /// A job is not to be had any more.
    pub fn remove(&mut self, id: JobId, group: u32, rank: u64, now: Millis) -> bool {
        let Some(held) = self.groups.get_mut(&group) else { return self.plain.remove(&(rank, id)) };
        let found = held.ready.remove(&id).is_some();
        self.grouped -= 1;
        self.blocked -= u64::from(held.place.is_none());
        self.settle(group, now);
        found
    }

    /// A job of the group, or one without, was leased.
    pub fn served(&mut self, group: u32, now: Millis) {
        self.turns += 1;
        match self.groups.get_mut(&group) {
            Some(held) => {
                held.turn = self.turns;
                if let Some(rate) = self.rules.group_rate {
                    held.bucket.take(rate, now);
                }
                self.settle(group, now);
            }
            None => self.plain_turn = self.turns,
        }
    }

    /// So many more or fewer jobs of the group are leased.
    pub fn leased(&mut self, group: u32, by: i32, now: Millis) {
        if let Some(held) = self.groups.get_mut(&group) {
            held.leased = held.leased.saturating_add_signed(by);
            self.settle(group, now);
        }
    }

    /// So many more or fewer jobs of the group wait for another attempt.
    pub fn retrying(&mut self, group: u32, by: i32, now: Millis) {
        if let Some(held) = self.groups.get_mut(&group) {
            held.retrying = held.retrying.saturating_add_signed(by);
            self.settle(group, now);
        }
    }

    /// Finds out anew whether a group is eligible, and its place.
    fn settle(&mut self, group: u32, now: Millis) {
        let Some(held) = self.groups.get_mut(&group) else { return };
        let may = held.leased < self.rules.group_concurrency
            && (self.rules.group_concurrency > 1 || held.retrying == 0);
        let head = held.ready.first_key_value().map(|(_, rank)| *rank).filter(|_| may);
        let empty =
            self.rules.group_rate.filter(|rate| head.is_some() && held.bucket.allows(*rate, now) == 0);
        let held_back = empty.map(|rate| held.bucket.next(rate));
        let place = head.filter(|_| empty.is_none()).map(|rank| (rank, held.turn));
        if held.held_back != held_back {
            if let Some(at) = std::mem::replace(&mut held.held_back, held_back) {
                self.held_back.remove(&(at, group));
            }
            self.held_back.extend(held_back.map(|at| (at, group)));
        }
        if held.place == place {
            return;
        }
        let jobs = held.ready.len() as u64;
        match (held.place, place) {
            (None, Some(_)) => self.blocked -= jobs,
            (Some(_), None) => self.blocked += jobs,
            _ => {}
        }
        if let Some((rank, turn)) = std::mem::replace(&mut held.place, place) {
            self.eligible.remove(&(rank, turn, group));
        }
        self.eligible.extend(place.map(|(rank, turn)| (rank, turn, group)));
    }

    /// When a group is not held back by its rate any more.
    pub fn next_due(&self) -> Option<Millis> {
        self.held_back.first().map(|(at, _)| *at)
    }

    /// Looks again at groups whose buckets have a token by now. Returns whether there were any.
    pub fn refill(&mut self, now: Millis, groups_max: usize) -> bool {
        let due = self.held_back.range(..=(now, u32::MAX)).take(groups_max);
        let due: Vec<u32> = due.map(|(_, group)| *group).collect();
        for group in &due {
            self.settle(*group, now);
        }
        !due.is_empty()
    }

    /// Takes over what settings say. If ranks are others by that, no job may be in here.
    pub fn configure(&mut self, rules: Rules, now: Millis) {
        if std::mem::replace(&mut self.rules, rules) != rules {
            let groups: Vec<u32> = self.groups.keys().copied().collect();
            for group in groups {
                self.settle(group, now);
            }
        }
    }

    /// Calls `take` with each job that is to be had now, in the order in which they would be leased one after the other,
    /// until it says no.
    pub fn each(&self, now: Millis, mut take: impl FnMut(JobId) -> bool) {
        let mut plain = self.plain.iter().peekable();
        if self.eligible.is_empty() {
            plain.all(|(_, id)| take(*id));
            return;
        }
        let (mut plain_turn, mut turns) = (self.plain_turn, self.turns);
        let mut groups = self.eligible.iter().copied().peekable();
        // Groups that were served and are still eligible, with what would be known of them then.
        let mut again: BTreeSet<(u64, u64, u32)> = BTreeSet::new();
        let mut served: FxHashMap<u32, Served> = FxHashMap::default();
        loop {
            let next = [
                plain.peek().map(|(rank, _)| (*rank, plain_turn, 0)),
                groups.peek().copied(),
                again.first().copied(),
            ];
            let Some(next) = next.into_iter().flatten().min() else { return };
            let (_, _, group) = next;
            turns += 1;
            if group == 0 {
                plain_turn = turns;
                let Some((_, id)) = plain.next() else { return };
                if !take(*id) {
                    return;
                }
                continue;
            }
            if !again.remove(&next) {
                groups.next();
            }
            let Some(held) = self.groups.get(&group) else { continue };
            let known = served.entry(group).or_insert_with(|| Served {
                last: None,
                leased: held.leased,
                bucket: held.bucket,
            });
            let Some((id, _)) = known.next(held) else { continue };
            if !take(id) {
                return;
            }
            (known.last, known.leased) = (Some(id), known.leased + 1);
            let rate = self.rules.group_rate;
            if let Some(rate) = rate {
                known.bucket.take(rate, now);
            }
            if known.leased < self.rules.group_concurrency
                && rate.is_none_or(|rate| known.bucket.allows(rate, now) > 0)
                && let Some((_, rank)) = known.next(held)
            {
                again.insert((rank, turns, group));
            }
        }
    }

    /// How long the job has been ready that is next of each rank or group: the longest.
    pub fn heads(&self) -> impl Iterator<Item = JobId> {
        let first = self.plain.first();
        let ranks = std::iter::successors(first, |(rank, _)| self.plain.range((rank + 1, JobId(0))..).next());
        let grouped = self.groups.values().filter_map(|held| held.ready.first_key_value());
        ranks.take(256).map(|(_, id)| *id).chain(grouped.take(256).map(|(id, _)| *id))
    }

    /// Checks every invariant but what depends on the jobs themselves.
    pub fn check(&self) {
        let (mut grouped, mut blocked) = (0, 0);
        for (number, held) in &self.groups {
            assert!(self.names.uses(*number) > 0, "a group without jobs");
            grouped += held.ready.len() as u64;
            match held.place {
                Some((rank, turn)) => {
                    assert!(self.eligible.contains(&(rank, turn, *number)));
                    assert!(held.leased < self.rules.group_concurrency);
                    assert_eq!(held.ready.first_key_value().map(|(_, rank)| *rank), Some(rank));
                }
                None => blocked += held.ready.len() as u64,
            }
            assert_eq!(
                held.held_back.is_some_and(|at| self.held_back.contains(&(at, *number))),
                held.held_back.is_some()
            );
        }
        assert_eq!((self.grouped, self.blocked), (grouped, blocked));
        assert!(self.eligible.iter().all(|(rank, turn, group)| {
            self.groups.get(group).is_some_and(|held| held.place == Some((*rank, *turn)))
        }));
    }

    /// Whether a job is among those that are to be had, of a group that has so many leases and retries.
    pub fn has(&self, id: JobId, group: u32, rank: u64) -> bool {
        match self.groups.get(&group) {
            Some(held) => held.ready.get(&id) == Some(&rank),
            None => self.plain.contains(&(rank, id)),
        }
    }

    /// Leases and retries of a group, as they are counted.
    pub fn group_counts(&self, group: u32) -> (u32, u32) {
        self.groups.get(&group).map_or((0, 0), |held| (held.leased, held.retrying))
    }
}

/// A group as it would be after some of its jobs were leased.
struct Served {
    last: Option<JobId>,
    leased: u32,
    bucket: Bucket,
}

impl Served {
    fn next(&self, held: &Group) -> Option<(JobId, u64)> {
        let from = self.last.map_or(JobId(0), |last| JobId(last.0 + 1));
        held.ready.range(from..).next().map(|(id, rank)| (*id, *rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { per_second: 10, burst: Some(3) };
        let mut bucket = Bucket::default();
        let now = Millis(5_000);
        assert_eq!(bucket.allows(rate, now), 3);
        for left in [2, 1, 0] {
            bucket.take(rate, now);
            assert_eq!(bucket.allows(rate, now), left);
        }
        assert_eq!(bucket.next(rate), Millis(5_100));
        assert_eq!([5_099, 5_100, 5_200, 9_000].map(|at| bucket.allows(rate, Millis(at))), [0, 1, 2, 3]);
    }

    fn order(ready: &Ready) -> Vec<u64> {
        let mut out = Vec::new();
        ready.each(Millis(0), |id| {
            out.push(id.0);
            true
        });
        out
    }

    fn of(jobs: &[(u64, &'static str, u64)], rules: Rules) -> Ready {
        let mut ready = Ready::default();
        ready.configure(rules, Millis(0));
        for (id, group, rank) in jobs {
            let group = ready.join(&Bytes::from_static(group.as_bytes()));
            assert!(ready.insert(JobId(*id), group, *rank, Millis(0)));
        }
        ready.check();
        ready
    }

    #[test]
    fn groups_take_turns_and_go_one_job_at_a_time() {
        let jobs = [(1, "a", 9), (2, "a", 9), (3, "a", 9), (4, "b", 9), (5, "", 9), (6, "", 9), (7, "c", 1)];
        let ready = of(&jobs, Rules::default());
        assert_eq!(order(&ready), [7, 5, 1, 4, 6], "one of each group, whatever is enqueued of it");
        assert_eq!(ready.counts(), (7, 0));
        let ready = of(&jobs, Rules { group_concurrency: 2, ..Rules::default() });
        assert_eq!(order(&ready), [7, 5, 1, 4, 6, 2]);
    }

    #[test]
    fn a_group_waits_for_its_lease_and_its_retry() {
        let mut ready = of(&[(1, "a", 9), (2, "a", 9), (3, "b", 9)], Rules::default());
        let a = ready.names.number(b"a").unwrap();
        ready.remove(JobId(1), a, 9, Millis(0));
        ready.served(a, Millis(0));
        ready.leased(a, 1, Millis(0));
        ready.check();
        assert_eq!((order(&ready), ready.counts()), (vec![3], (2, 1)));
        ready.leased(a, -1, Millis(0));
        ready.retrying(a, 1, Millis(0));
        assert_eq!(order(&ready), [3], "its first job comes first, when its time has come");
        ready.retrying(a, -1, Millis(0));
        assert_eq!(order(&ready), [3, 2], "the one that was served waits for the other");
    }

    #[test]
    fn a_rate_holds_a_group_back_until_it_has_a_token() {
        let rate = Some(Rate { per_second: 10, burst: Some(1) });
        let rules = Rules { group_concurrency: 5, group_rate: rate, ..Rules::default() };
        let mut ready = of(&[(1, "a", 9), (2, "a", 9)], rules);
        assert_eq!(order(&ready), [1]);
        let a = ready.names.number(b"a").unwrap();
        ready.remove(JobId(1), a, 9, Millis(0));
        ready.served(a, Millis(0));
        assert_eq!((order(&ready), ready.counts(), ready.next_due()), (vec![], (1, 1), Some(Millis(100))));
        assert!(!ready.refill(Millis(99), 10) && ready.refill(Millis(100), 10));
        assert_eq!((order(&ready), ready.next_due()), (vec![2], None));
        ready.check();
    }

    #[test]
    fn who_waits_long_enough_overtakes() {
        let rules = Rules { aging_ms: 100, ..Rules::default() };
        assert!(rules.rank(5, Millis(1_000)) < rules.rank(5, Millis(1_100)));
        assert!(rules.rank(5, Millis(1_000)) < rules.rank(9, Millis(1_500)));
        assert!(rules.rank(5, Millis(1_000)) > rules.rank(9, Millis(1_300)));
        assert!(Rules::default().rank(5, Millis(0)) > Rules::default().rank(6, Millis(999_999)));
    }
}
