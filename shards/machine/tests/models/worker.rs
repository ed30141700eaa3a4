//! Workers are a map of names, each with what it said last and when.

use std::collections::BTreeMap;

use flowmesh_model::worker::fact::WorkerChange;
use flowmesh_model::worker::{Registration, WorkerFilter, WorkerReply, WorkerState, WorkerStatus};
use flowmesh_model::{Command, Fact, Lsn, Millis, Reject, Reply, WorkerCommand, WorkerPath};
use proptest::prelude::*;

use crate::common::{Outcome, World, cases, restored, written_afresh};

const NAMES: [&str; 4] = ["a", "b{tag}", "acme/prod/a", "z"];

#[derive(Clone, Copy, Debug)]
enum Step {
    Register {
        name: usize,
        session_ms: u64,
        retention_ms: u64,
    },
    /// With the epoch of so many registrations before.
    Heartbeat {
        name: usize,
        back: usize,
    },
    Leave {
        name: usize,
        back: usize,
    },
    Stop {
        name: usize,
    },
    Forget {
        name: usize,
    },
    Pass {
        ms: u64,
    },
    Tick {
        facts_max: usize,
    },
    Seal,
    Collect {
        items: usize,
    },
    Write,
    Fail,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    let back = prop_oneof![4 => Just(0usize), 1 => 1usize..3];
    prop_oneof![
        4 => (name.clone(), 1_000u64..3_000, 0u64..3_000)
            .prop_map(|(name, session_ms, retention_ms)| Step::Register { name, session_ms, retention_ms }),
        6 => (name.clone(), back.clone()).prop_map(|(name, back)| Step::Heartbeat { name, back }),
        1 => (name.clone(), back).prop_map(|(name, back)| Step::Leave { name, back }),
        1 => name.clone().prop_map(|name| Step::Stop { name }),
        1 => name.prop_map(|name| Step::Forget { name }),
        5 => (0u64..1_500).prop_map(|ms| Step::Pass { ms }),
        4 => (2usize..4).prop_map(|facts_max| Step::Tick { facts_max }),
        2 => Just(Step::Seal),
        3 => (1usize..4).prop_map(|items| Step::Collect { items }),
        2 => Just(Step::Write),
        1 => Just(Step::Fail),
        1 => Just(Step::Restart),
    ]
}

struct Known {
    epoch: Lsn,
    session_ms: u64,
    retention_ms: u64,
    state: WorkerState,
    since: Millis,
    told_to_stop: bool,
    deaths: u64,
    /// `None`: not since the start.
    heard: Option<Millis>,
}

#[derive(Default)]
struct Test {
    world: World,
    known: BTreeMap<WorkerPath, Known>,
    /// All epochs that a name ever had.
    epochs: BTreeMap<WorkerPath, Vec<Lsn>>,
}

fn path(name: usize) -> WorkerPath {
    WorkerPath::parse(NAMES[name]).unwrap()
}

fn registration(session_timeout_ms: u64, retention_ms: u64) -> Registration {
    let queues = vec!["default/default/queue/mail".into()];
    let said = Registration { queues, concurrency: 1, ..Registration::default() };
    Registration { session_timeout_ms, retention_ms, ..said }
}

impl Test {
    fn ask(&mut self, command: WorkerCommand) -> Result<WorkerStatus, Reject> {
        match self.world.run(&Command::Worker(command)) {
            Outcome::Changed(Reply::Worker(WorkerReply::Status(status, true)), _)
            | Outcome::Answered(Reply::Worker(WorkerReply::Status(status, false)), _) => Ok(*status),
            Outcome::Rejected(reject) => Err(reject),
            other => panic!("{other:?}"),
        }
    }

    /// An epoch that the name had, and what becomes of who speaks in it.
    fn spoken(&self, path: &WorkerPath, back: usize) -> Option<(Lsn, Option<Reject>)> {
        let epochs = self.epochs.get(path)?;
        let epoch = *epochs.iter().rev().nth(back).or(epochs.first())?;
        let name = path.to_string();
        let refused = match self.known.get(path) {
            None => Some(Reject::WorkerNotFound { path: name }),
            Some(known) if known.epoch > epoch => {
                Some(Reject::StaleWorker { path: name, given: epoch, current: known.epoch })
            }
            Some(_) => None,
        };
        Some((epoch, refused))
    }

    fn step(&mut self, step: Step) {
        let now = self.world.now;
        match step {
            Step::Register { name, session_ms, retention_ms } => {
                let path = path(name);
                let registration = Box::new(registration(session_ms, retention_ms));
                let status = self.ask(WorkerCommand::Register { path: path.clone(), registration }).unwrap();
                let epochs = self.epochs.entry(path.clone()).or_default();
                assert!(epochs.iter().all(|before| *before < status.epoch), "epochs only grow");
                epochs.push(status.epoch);
                let (epoch, state) = (status.epoch, WorkerState::Alive);
                let new = Known {
                    epoch,
                    session_ms,
                    retention_ms,
                    state,
                    since: now,
                    told_to_stop: false,
                    deaths: 0,
                    heard: Some(now),
                };
                self.known.insert(path, new);
            }
            Step::Heartbeat { name, back } => {
                let path = path(name);
                let Some((epoch, refused)) = self.spoken(&path, back) else { return };
                let answer = self.ask(WorkerCommand::Heartbeat { path: path.clone(), epoch });
                if let Some(reject) = refused {
                    return assert_eq!(answer, Err(reject));
                }
                let known = self.known.get_mut(&path).unwrap();
                match known.state {
                    WorkerState::Left => {
                        let gone = Reject::WorkerGone { path: path.to_string(), state: known.state };
                        return assert_eq!(answer, Err(gone));
                    }
                    WorkerState::Dead => {
                        let state =
                            if known.told_to_stop { WorkerState::Stopping } else { WorkerState::Alive };
                        (known.state, known.since) = (state, now);
                    }
                    WorkerState::Alive | WorkerState::Stopping => {}
                }
                known.heard = Some(now);
                assert_eq!(answer.unwrap().state, known.state);
            }
            Step::Leave { name, back } => {
                let path = path(name);
                let Some((epoch, refused)) = self.spoken(&path, back) else { return };
                let answer = self.ask(WorkerCommand::Leave { path: path.clone(), epoch });
                if let Some(reject) = refused {
                    return assert_eq!(answer, Err(reject));
                }
                let known = self.known.get_mut(&path).unwrap();
                if known.state != WorkerState::Left {
                    (known.state, known.since) = (WorkerState::Left, now);
                }
                assert_eq!(answer.unwrap().state, WorkerState::Left);
            }
            Step::Stop { name } => {
                let answer = self.ask(WorkerCommand::Stop(path(name)));
                match self.known.get_mut(&path(name)) {
                    None => assert!(matches!(answer, Err(Reject::WorkerNotFound { .. }))),
                    Some(known) if !known.state.is_present() => {
                        assert!(matches!(answer, Err(Reject::WorkerGone { .. })));
                    }
                    Some(known) => {
                        if known.state == WorkerState::Alive {
                            (known.state, known.since, known.told_to_stop) =
                                (WorkerState::Stopping, now, true);
                        }
                        assert_eq!(answer.unwrap().state, WorkerState::Stopping);
                    }
                }
            }
            Step::Forget { name } => {
                let answer = self.ask(WorkerCommand::Forget(path(name)));
                match self.known.get(&path(name)).map(|known| known.state) {
                    None => assert!(matches!(answer, Err(Reject::WorkerNotFound { .. }))),
                    Some(state) if state.is_present() => {
                        assert!(matches!(answer, Err(Reject::WorkerPresent { .. })));
                    }
                    Some(state) => {
                        assert_eq!(answer.unwrap().state, state);
                        self.known.remove(&path(name));
                    }
                }
            }
            Step::Pass { ms } => self.world.now = now.plus(ms),
            Step::Tick { facts_max } => self.tick(facts_max),
            Step::Seal if self.world.sealed.is_none() => self.world.seal(),
            Step::Seal => {}
            Step::Collect { items } => self.world.collect(items),
            Step::Write => {
                self.world.write();
            }
            Step::Fail => self.world.unseal(),
            Step::Restart => {
                self.world.crash();
                self.known.values_mut().for_each(|known| known.heard = None);
            }
        }
    }

    /// Who was silent for a session is dead, who was gone for long is forgotten, and nobody else.
    fn tick(&mut self, facts_max: usize) {
        let now = self.world.now;
        let mut expected: Vec<(WorkerPath, WorkerChange)> = Vec::new();
        for (path, known) in &mut self.known {
            if known.state.is_present() {
                let heard = *known.heard.get_or_insert(now);
                if heard.plus(known.session_ms) <= now {
                    (known.state, known.since) = (WorkerState::Dead, now);
                    known.deaths += 1;
                    expected.push((path.clone(), WorkerChange::Died));
                }
            }
            // One that is dead from now on may be forgotten at once.
            if !known.state.is_present() && known.since.plus(known.retention_ms) <= now {
                expected.push((path.clone(), WorkerChange::Forgotten));
            }
        }
        self.known.retain(|path, _| !expected.contains(&(path.clone(), WorkerChange::Forgotten)));
        let mut found: Vec<(WorkerPath, WorkerChange)> = Vec::new();
        for fact in self.world.tick(facts_max) {
            let Fact::Worker(fact) = fact else { panic!("{fact:?}") };
            found.push((fact.path, fact.change));
        }
        let order = |of: &(WorkerPath, WorkerChange)| (of.0.clone(), of.1 == WorkerChange::Forgotten);
        found.sort_by_key(order);
        expected.sort_by_key(order);
        assert_eq!(found, expected);
    }

    fn check(&mut self) {
        self.world.machine.check_all();
        let list = WorkerCommand::List { after: None, filter: WorkerFilter::default(), workers_max: 100 };
        let Outcome::Answered(Reply::Worker(WorkerReply::List { workers, next: None }), _) =
            self.world.run(&Command::Worker(list))
        else {
            panic!("no list")
        };
        let shown = workers.iter().map(|status| {
            let WorkerStatus { path, epoch, state, since, deaths, heard_at, .. } = status;
            (path, *epoch, *state, *since, *deaths, *heard_at)
        });
        let known = self
            .known
            .iter()
            .map(|(path, known)| (path, known.epoch, known.state, known.since, known.deaths, known.heard));
        for (shown, known) in shown.clone().zip(known.clone()) {
            assert_eq!(
                (shown.0, shown.1, shown.2, shown.3, shown.4),
                (known.0, known.1, known.2, known.3, known.4)
            );
            // Of one that is not there it does not matter.
            assert!(shown.5 == known.5 || !shown.2.is_present(), "{shown:?} {known:?}");
        }
        assert_eq!(shown.count(), known.count());
    }
}

proptest! {
    #![proptest_config(cases(300))]
    #[test]
    fn workers_are_a_map(steps in prop::collection::vec(step(), 1..100)) {
        let mut test = Test::default();
        test.world.machine.set_catalog(test.world.machine.catalog_snapshot());
        for step in steps {
            test.step(step);
            test.check();
            let recovered = test.world.recovered();
            recovered.check_all();
            prop_assert_eq!(recovered.dump(), test.world.machine.dump());
        }
        test.world.write();
        test.world.seal();
        test.world.write();
        prop_assert_eq!(&written_afresh(test.world.replayed(test.world.lsn)), &test.world.index);
        prop_assert_eq!(restored(&test.world.index).dump(), test.world.machine.dump());
    }
}
