//! Whether a history of concurrent operations is linearizable: whether each could have happened at one moment between its
//! call and its answer. The search is Wing and Gong's ("Testing and verifying concurrent objects", 1993) with Lowe's
//! memory of what was tried ("Testing for linearizability", 2017): the same operations done and the same state reached
//! are not looked at twice.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// What an object does, one operation after the other.
pub trait Model {
    type Operation: Debug;
    type Answer: Debug;
    type State: Clone + Eq + Hash + Debug + Default;

    /// The state after an operation that had this answer; `None` if it could not have had it. Where the answer was lost:
    /// the state if it changed something, `None` if it would not have.
    fn step(
        state: &Self::State,
        operation: &Self::Operation,
        answer: Option<&Self::Answer>,
    ) -> Option<Self::State>;
}

/// One operation of a history.
#[derive(Clone, Debug)]
pub struct Event<M: Model> {
    pub call: u64,
    /// When it was answered, and how. `None`: the answer was lost; it may happen at any time after the call, or never.
    pub answer: Option<(u64, M::Answer)>,
    pub operation: M::Operation,
}

/// Places in the order of time: a call of an event, or its answer.
#[derive(Clone, Copy)]
enum Moment {
    Call(usize),
    Answer,
}

/// Calls and answers in the order of time as a list from which an operation that happened is taken, and to which it is
/// put back. Place 0 is before all, and the end of the list.
struct Timeline {
    moments: Vec<Moment>,
    next: Vec<usize>,
    previous: Vec<usize>,
    call_at: Vec<usize>,
    answer_at: Vec<Option<usize>>,
}

impl Timeline {
    /// A call at the very time of an answer counts as concurrent with it.
    fn new<M: Model>(history: &[Event<M>]) -> Self {
        let mut times = Vec::new();
        for (index, event) in history.iter().enumerate() {
            times.push((event.call, false, index));
            if let Some((time, _)) = event.answer {
                assert!(
                    time >= event.call,
                    "answered before it was asked: {event:?}",
                    event = event.operation
                );
                times.push((time, true, index));
            }
        }
        times.sort_unstable();
        let len = times.len() + 1;
        let mut line = Self {
            moments: vec![Moment::Answer],
            next: (1..=len).map(|place| place % len).collect(),
            previous: (0..len).map(|place| (place + len - 1) % len).collect(),
            call_at: vec![0; history.len()],
            answer_at: vec![None; history.len()],
        };
        for (place, (_, is_answer, index)) in (1..).zip(times) {
            if is_answer {
                line.answer_at[index] = Some(place);
                line.moments.push(Moment::Answer);
            } else {
                line.call_at[index] = place;
                line.moments.push(Moment::Call(index));
            }
        }
        line
    }

    fn unlink(&mut self, place: usize) {
        let (previous, next) = (self.previous[place], self.next[place]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn relink(&mut self, place: usize) {
        let (previous, next) = (self.previous[place], self.next[place]);
        self.next[previous] = place;
        self.previous[next] = place;
    }

    fn take(&mut self, index: usize) {
        self.unlink(self.call_at[index]);
        if let Some(place) = self.answer_at[index] {
            self.unlink(place);
        }
    }

    fn put_back(&mut self, index: usize) {
        if let Some(place) = self.answer_at[index] {
            self.relink(place);
        }
        self.relink(self.call_at[index]);
    }
}

/// An order of the operations that explains all answers; else the longest one that was found, and the state after it.
pub fn linearize<M: Model>(history: &[Event<M>]) -> Result<Vec<usize>, (Vec<usize>, M::State)> {
    let mut line = Timeline::new(history);
    let answers = history.iter().filter(|event| event.answer.is_some()).count();
    let mut state = M::State::default();
    let mut order: Vec<(usize, M::State)> = Vec::new();
    let (mut answered, mut longest) = (0, (0, Vec::new(), M::State::default()));
    let mut happened = vec![0u64; history.len().div_ceil(64)];
    let mut tried: HashSet<(Vec<u64>, M::State)> = HashSet::new();
    let mut place = line.next[0];
    while answered < answers {
        if let (Moment::Call(index), true) = (line.moments[place], place != 0) {
            let event = &history[index];
            let after = M::step(&state, &event.operation, event.answer.as_ref().map(|(_, answer)| answer));
            happened[index / 64] ^= 1 << (index % 64);
            if let Some(after) = after
                && tried.insert((happened.clone(), after.clone()))
            {
                order.push((index, std::mem::replace(&mut state, after)));
                answered += usize::from(event.answer.is_some());
                if answered > longest.0 {
                    longest = (answered, order.iter().map(|(index, _)| *index).collect(), state.clone());
                }
                line.take(index);
                place = line.next[0];
            } else {
                happened[index / 64] ^= 1 << (index % 64);
                place = line.next[place];
            }
            continue;
        }
        // An operation must have happened before its answer, and none of those that could be first explains it.
        let Some((index, before)) = order.pop() else { return Err((longest.1, longest.2)) };
        state = before;
        happened[index / 64] ^= 1 << (index % 64);
        answered -= usize::from(history[index].answer.is_some());
        line.put_back(index);
        place = line.next[line.call_at[index]];
    }
    Ok(order.into_iter().map(|(index, _)| index).collect())
}

/// Panics with what could not be explained.
#[track_caller]
pub fn assert_linearizable<M: Model>(what: &str, history: &[Event<M>]) {
    let Err((order, state)) = linearize(history) else { return };
    let happened: HashSet<usize> = order.iter().copied().collect();
    let show = |index: &usize| {
        let Event { call, answer, operation } = &history[*index];
        format!(
            "\n  {call}..{:?}: {operation:?} -> {:?}",
            answer.as_ref().map(|a| a.0),
            answer.as_ref().map(|a| &a.1)
        )
    };
    let last: String = order.iter().rev().take(12).rev().map(show).collect();
    let mut left: Vec<usize> = (0..history.len()).filter(|index| !happened.contains(index)).collect();
    left.sort_by_key(|index| history[*index].call);
    let left: String = left.iter().take(16).map(show).collect();
    panic!(
        "{what}: no order explains the answers. The longest ends with{last}\nand comes to {state:?}\nLeft are{left}"
    );
}
