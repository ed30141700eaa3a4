//! Dealing partitions out to members: pure functions of who is there, what they subscribe to, and, for the sticky way,
//! whose the partitions are meant to be now. The same input gives the same output everywhere.
//!
//! Members are numbers `0..members`, in the order that decides between equals. Streams come with the members that
//! subscribe to them.
//!
//! | assignor | promises, besides: each partition of a stream with subscribers goes to one of them |
//! |---|---|
//! | range | of each stream, each subscriber gets consecutive partitions, and at most one more than another |
//! | uniform | no partition can be given to a subscriber that has two fewer; what was before does not count |
//! | sticky | the same, and where all subscribe to the same, no assignment that even keeps more partitions in place |

use std::collections::{BTreeMap, BTreeSet};

use flowmesh_model::settings::Assignor;

/// One stream to deal out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deal {
    /// Who subscribes, in order.
    pub subscribers: Vec<u32>,
    /// Whose each partition is meant to be now.
    pub current: Vec<Option<u32>>,
}

/// Whose each partition of each stream shall be; nobody's where nobody subscribes.
pub(super) fn assign(assignor: Assignor, members: usize, deals: &[Deal]) -> Vec<Vec<Option<u32>>> {
    match assignor {
        Assignor::Range => deals.iter().map(range).collect(),
        Assignor::Uniform => Even::new(members, deals, false).dealt(),
        Assignor::Sticky => Even::new(members, deals, true).dealt(),
    }
}

fn range(deal: &Deal) -> Vec<Option<u32>> {
    let (partitions, subscribers) = (deal.current.len(), deal.subscribers.len());
    if subscribers == 0 {
        return vec![None; partitions];
    }
    let (share, extra) = (partitions / subscribers, partitions % subscribers);
    let mut out = Vec::with_capacity(partitions);
    for (place, member) in deal.subscribers.iter().enumerate() {
        out.extend(std::iter::repeat_n(Some(*member), share + usize::from(place < extra)));
    }
    out
}

/// Streams with the same subscribers, which are dealt out together: whose a partition is does not depend on its stream.
struct Class {
    subscribers: Vec<u32>,
    /// The subscribers by how much they have in all classes.
    by_load: BTreeSet<(u32, u32)>,
}

/// A partition: its stream's place in the input, and its number.
type Part = (usize, usize);

/// An even distribution in the making.
struct Even {
    classes: Vec<Class>,
    /// Which classes a member is in.
    classes_of: Vec<Vec<usize>>,
    loads: Vec<u32>,
    /// What a member has of a class, in the order it got it.
    has: BTreeMap<(u32, usize), Vec<Part>>,
    out: Vec<Vec<Option<u32>>>,
}

impl Even {
    fn new(members: usize, deals: &[Deal], keep: bool) -> Self {
        let mut numbers: BTreeMap<&[u32], usize> = BTreeMap::new();
        for deal in deals {
            let next = numbers.len();
            numbers.entry(&deal.subscribers).or_insert(next);
        }
        let mut classes: Vec<(usize, Class)> = numbers
            .iter()
            .map(|(subscribers, number)| {
                (*number, Class { subscribers: subscribers.to_vec(), by_load: BTreeSet::new() })
            })
            .collect();
        classes.sort_unstable_by_key(|(number, _)| *number);
        let mut even = Self {
            classes: classes.into_iter().map(|(_, class)| class).collect(),
            classes_of: vec![Vec::new(); members],
            loads: vec![0; members],
            has: BTreeMap::new(),
            out: deals.iter().map(|deal| vec![None; deal.current.len()]).collect(),
        };
        for (number, class) in even.classes.iter_mut().enumerate() {
            for member in &class.subscribers {
                class.by_load.insert((0, *member));
                if let Some(of) = even.classes_of.get_mut(*member as usize) {
                    of.push(number);
                }
            }
        }
        let class_of = |deal: &Deal| numbers.get(deal.subscribers.as_slice()).copied().unwrap_or_default();
        let mut free = Vec::new();
        for (stream, deal) in deals.iter().enumerate() {
            let class = class_of(deal);
            for (partition, current) in deal.current.iter().enumerate() {
                let kept = current.filter(|member| keep && deal.subscribers.binary_search(member).is_ok());
                match kept {
                    Some(member) => even.give(class, (stream, partition), member),
                    None => free.push((deal.subscribers.len(), class, (stream, partition))),
                }
            }
        }
        // What few can have is dealt out first: the rest can still even it out.
        free.sort_unstable_by_key(|(subscribers, _, part)| (*subscribers, *part));
        for (_, class, part) in free {
            let least = even.classes.get(class).and_then(|class| class.by_load.first().copied());
            if let Some((_, member)) = least {
                even.give(class, part, member);
            }
        }
        even
    }

    fn load(&self, member: u32) -> u32 {
        self.loads.get(member as usize).copied().unwrap_or_default()
    }

    fn set_load(&mut self, member: u32, load: u32) {
        let before = self.load(member);
        for class in self.classes_of.get(member as usize).into_iter().flatten() {
            if let Some(class) = self.classes.get_mut(*class) {
                class.by_load.remove(&(before, member));
                class.by_load.insert((load, member));
            }
        }
        if let Some(entry) = self.loads.get_mut(member as usize) {
            *entry = load;
        }
    }

    fn give(&mut self, class: usize, part: Part, member: u32) {
        self.set_load(member, self.load(member) + 1);
        self.has.entry((member, class)).or_default().push(part);
        if let Some(out) = self.out.get_mut(part.0).and_then(|stream| stream.get_mut(part.1)) {
            *out = Some(member);
        }
    }

    /// Takes from those who have most and gives to those who have least until that no longer helps.
    fn dealt(mut self) -> Vec<Vec<Option<u32>>> {
        loop {
            let mut rich: BTreeSet<(u32, u32)> = (0..).zip(&self.loads).map(|(n, load)| (*load, n)).collect();
            let mut moved = false;
            while let Some((load, member)) = rich.pop_last() {
                if load != self.load(member) {
                    rich.insert((self.load(member), member));
                    continue;
                }
                // One that can give nothing away stays out: if others give later, the next round tries again.
                let Some((class, least)) = self.receiver(member, load) else { continue };
                self.pass_on(class, member, least);
                rich.insert((load - 1, member));
                moved = true;
            }
            if !moved {
                return self.out;
            }
        }
    }

    /// To whom a member can give one of its partitions so that things get more even: of which class, to whom.
    fn receiver(&self, member: u32, load: u32) -> Option<(usize, u32)> {
        let classes = self.classes_of.get(member as usize)?;
        let has = |class: &usize| self.has.get(&(member, *class)).is_some_and(|parts| !parts.is_empty());
        let candidates = classes.iter().filter(|class| has(class)).filter_map(|class| {
            let (least, receiver) = self.classes.get(*class)?.by_load.first()?;
            Some((*least, *receiver, *class))
        });
        let (least, receiver, class) = candidates.min()?;
        (least + 2 <= load).then_some((class, receiver))
    }

    fn pass_on(&mut self, class: usize, from: u32, to: u32) {
        let part = self.has.get_mut(&(from, class)).and_then(Vec::pop);
        if let Some(part) = part {
            self.set_load(from, self.load(from) - 1);
            self.give(class, part, to);
        }
    }
}

#[cfg(test)]
mod tests;
