//! Idempotent producers send in order, again and again until they hear an answer, whatever is lost on the way; servers
//! crash and write checkpoints meanwhile. What a partition holds is then each record once, in order.

use std::collections::BTreeMap;

use flowmesh_model::{
    Command, Offset, PartitionRef, ProducerId, ProducerStamp, Reject, Reply, ResourceId, Settings,
    StreamCommand, StreamSettings,
};
use proptest::prelude::*;

use crate::common::{Outcome, World, cases, pack, values};

#[derive(Clone, Debug)]
enum Step {
    /// A producer makes a new batch.
    Produce {
        producer: usize,
        partition: u32,
        records: u8,
    },
    /// It sends its oldest batch without an answer, and those behind it; answers before `heard` arrive.
    Send {
        producer: usize,
        partition: u32,
        batches: usize,
        heard: usize,
    },
    /// A batch on its way arrives late, once more.
    Echo {
        which: usize,
    },
    /// A producer starts again under its name: what has no answer is sent again by the new incarnation.
    Restart {
        producer: usize,
    },
    /// Somebody else appends.
    Other {
        partition: u32,
    },
    Seal,
    Collect {
        items: usize,
    },
    Write,
    Fail,
    Evict,
    Crash,
}

const PRODUCERS: usize = 3;
const PARTITIONS: u32 = 2;

fn step() -> impl Strategy<Value = Step> {
    let (producer, partition) = (0..PRODUCERS, 0..PARTITIONS);
    prop_oneof![
        6 => (producer.clone(), partition.clone(), 1u8..4)
            .prop_map(|(producer, partition, records)| Step::Produce { producer, partition, records }),
        8 => (producer.clone(), partition.clone(), 1usize..6, 0usize..6)
            .prop_map(|(producer, partition, batches, heard)| Step::Send { producer, partition, batches, heard }),
        3 => any::<usize>().prop_map(|which| Step::Echo { which }),
        1 => producer.prop_map(|producer| Step::Restart { producer }),
        1 => partition.prop_map(|partition| Step::Other { partition }),
        2 => Just(Step::Seal),
        3 => (1usize..4).prop_map(|items| Step::Collect { items }),
        2 => Just(Step::Write),
        1 => Just(Step::Fail),
        1 => Just(Step::Evict),
        1 => Just(Step::Crash),
    ]
}

#[derive(Clone, Debug)]
struct Batch {
    sequence: u64,
    values: Vec<Vec<u8>>,
}

/// One producer in one partition.
#[derive(Default)]
struct Lane {
    next: u64,
    unanswered: Vec<Batch>,
    /// All that it made, in order.
    made: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Producer {
    id: ProducerId,
    epoch: u32,
    lanes: BTreeMap<u32, Lane>,
}

struct Driver {
    world: World,
    stream: ResourceId,
    producers: Vec<Producer>,
    /// All that was ever sent, to arrive once more.
    sent: Vec<(u32, ProducerStamp, Batch)>,
    /// Where each batch went, by who asked first.
    answers: BTreeMap<(ProducerId, u32, u32, u64), Offset>,
    made: u32,
}

impl Driver {
    fn new() -> Self {
        let mut world = World::default();
        let settings = StreamSettings { partitions: PARTITIONS, ..StreamSettings::default() };
        let stream = world.create_with("logs", Settings::Stream(settings));
        let mut driver = Self {
            world,
            stream,
            producers: Vec::new(),
            sent: Vec::new(),
            answers: BTreeMap::new(),
            made: 0,
        };
        for number in 0..PRODUCERS {
            driver.producers.push(Producer::default());
            driver.init(number);
        }
        driver
    }

    fn run(&mut self, partition: u32, command: StreamCommand) -> Outcome {
        self.world.run(&Command::Stream(PartitionRef { resource: self.stream, partition }, command))
    }

    fn init(&mut self, number: usize) {
        let name = format!("producer {number}").into();
        match self.run(0, StreamCommand::InitProducer { name }).reply() {
            Reply::Producer { id, epoch } => {
                let producer = &mut self.producers[number];
                assert!(epoch == 0 || (id == producer.id && epoch == producer.epoch + 1));
                (producer.id, producer.epoch) = (id, epoch);
                for partition in (1..PARTITIONS).filter(|_| epoch > 0) {
                    self.run(partition, StreamCommand::FenceProducer { id, epoch }).reply();
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn append(&mut self, partition: u32, stamp: ProducerStamp, batch: &Batch) -> Outcome {
        let slices: Vec<&[u8]> = batch.values.iter().map(Vec::as_slice).collect();
        let append =
            StreamCommand::Append { records: pack(&slices), producer: Some(stamp), expected_offset: None };
        let outcome = self.run(partition, append);
        let key = (stamp.id, stamp.epoch, partition, stamp.sequence);
        match &outcome {
            Outcome::Changed(Reply::Appended { base, duplicate, .. }, _) => {
                assert!(!duplicate);
                assert!(self.answers.insert(key, *base).is_none(), "the same batch twice");
            }
            Outcome::Answered(Reply::Appended { base, duplicate, .. }, _) => {
                assert!(duplicate);
                assert_eq!(self.answers[&key], *base, "the first answer");
            }
            Outcome::Rejected(_) => {}
            other => panic!("{other:?}"),
        }
        outcome
    }

    fn produce(&mut self, producer: usize, partition: u32, records: u8) {
        let lane = self.producers[producer].lanes.entry(partition).or_default();
        if lane.unanswered.len() > 20 {
            return;
        }
        let values: Vec<Vec<u8>> = (0..u32::from(records))
            .map(|n| format!("{producer} {partition} {}", self.made + n).into_bytes())
            .collect();
        self.made += u32::from(records);
        lane.made.extend(values.clone());
        lane.unanswered.push(Batch { sequence: lane.next, values });
        lane.next += u64::from(records);
    }

    fn send(&mut self, number: usize, partition: u32, batches: usize, heard: usize) {
        let (id, epoch) = (self.producers[number].id, self.producers[number].epoch);
        let lane = self.producers[number].lanes.entry(partition).or_default();
        let batches: Vec<Batch> = lane.unanswered.iter().take(batches).cloned().collect();
        for (index, batch) in batches.into_iter().enumerate() {
            let stamp = ProducerStamp { id, epoch, sequence: batch.sequence };
            self.sent.push((partition, stamp, batch.clone()));
            let outcome = self.append(partition, stamp, &batch);
            assert!(!matches!(outcome, Outcome::Rejected(_)), "sent in order: {outcome:?}");
            if index < heard {
                self.producers[number].lanes.get_mut(&partition).unwrap().unanswered.remove(0);
            }
        }
    }

    fn echo(&mut self, which: usize) {
        let Some((partition, stamp, batch)) = self.sent.get(which % self.sent.len().max(1)).cloned() else {
            return;
        };
        let current = self.producers.iter().find(|producer| producer.id == stamp.id).unwrap().epoch;
        match self.append(partition, stamp, &batch) {
            Outcome::Rejected(Reject::ProducerFenced { epoch, .. }) => assert!(epoch < current),
            Outcome::Rejected(Reject::DuplicateSequence { .. }) => assert_eq!(stamp.epoch, current),
            Outcome::Rejected(other) => panic!("{other:?}"),
            _ => assert_eq!(stamp.epoch, current, "an older epoch is fenced"),
        }
    }

    /// The new incarnation does not know what became of what has no answer: it looks, as a program does that keeps its
    /// place in the stream itself, and makes the rest anew.
    fn restart(&mut self, number: usize) {
        self.init(number);
        for partition in 0..PARTITIONS {
            let there = self.of_producer(number, partition).len();
            let lane = self.producers[number].lanes.entry(partition).or_default();
            lane.unanswered.clear();
            lane.made.truncate(there);
            lane.next = 0;
        }
    }

    /// What a partition holds of a producer.
    fn of_producer(&self, number: usize, partition: u32) -> Vec<Vec<u8>> {
        let prefix = format!("{number} {partition} ").into_bytes();
        self.all(partition).into_iter().filter(|value| value.starts_with(&prefix)).collect()
    }

    /// All records of a partition, as the log has them.
    fn all(&self, partition: u32) -> Vec<Vec<u8>> {
        let at = PartitionRef { resource: self.stream, partition };
        let mut records = Vec::new();
        for fact in self.world.log.iter().flat_map(|(_, facts)| facts) {
            let (place, base, count, bytes) = match fact {
                flowmesh_model::Fact::RecordsAppended { at, base, count, records }
                | flowmesh_model::Fact::RecordsProduced { at, base, count, records, .. } => {
                    (at, base, count, records)
                }
                _ => continue,
            };
            if *place == at {
                assert_eq!(base.0, records.len() as u64, "offsets are dense");
                let run = flowmesh_model::reply::RecordRun {
                    base: *base,
                    count: *count,
                    appended_at: flowmesh_model::Millis(0),
                    records: bytes.clone(),
                };
                records.extend(values(&[run]));
            }
        }
        records
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Produce { producer, partition, records } => self.produce(producer, partition, records),
            Step::Send { producer, partition, batches, heard } => {
                self.send(producer, partition, batches, heard);
            }
            Step::Echo { which } => self.echo(which),
            Step::Restart { producer } => self.restart(producer),
            Step::Other { partition } => {
                self.run(partition, StreamCommand::append(pack(&[b"other"])));
            }
            Step::Seal if self.world.sealed.is_none() => self.world.seal(),
            Step::Seal => {}
            Step::Collect { items } => self.world.collect(items),
            Step::Write => {
                self.world.write();
            }
            Step::Fail => self.world.unseal(),
            Step::Evict => while !self.world.machine.evict_tails(100, 1) {},
            Step::Crash => {
                let before = self.world.machine.dump();
                self.world.crash();
                assert_eq!(self.world.machine.dump(), before);
            }
        }
        self.world.machine.check_all();
    }

    /// All producers get all their answers at last.
    fn finish(&mut self) {
        for number in 0..PRODUCERS {
            for partition in 0..PARTITIONS {
                self.send(number, partition, usize::MAX, usize::MAX);
                let made = &self.producers[number].lanes[&partition].made;
                assert_eq!(&self.of_producer(number, partition), made, "each record once and in order");
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(300))]
    #[test]
    fn whatever_is_lost_or_comes_twice_each_record_is_there_once(steps in prop::collection::vec(step(), 1..120)) {
        let mut driver = Driver::new();
        for step in &steps {
            driver.step(step);
        }
        driver.finish();
        let recovered = driver.world.recovered();
        recovered.check_all();
        prop_assert_eq!(recovered.dump(), driver.world.machine.dump());
    }
}

/// Two that expect the same offset: one gets it, the other is told the next one.
#[test]
fn of_two_conditional_appends_one_wins() {
    let mut driver = Driver::new();
    for expected in 0..20u64 {
        let append = StreamCommand::Append {
            records: pack(&[b"x"]),
            producer: None,
            expected_offset: Some(Offset(expected)),
        };
        let base = match driver.run(1, append.clone()).reply() {
            Reply::Appended { base, .. } => base,
            other => panic!("{other:?}"),
        };
        assert_eq!(base, Offset(expected));
        let lost = driver.run(1, append);
        let reject = Reject::OffsetMismatch { expected: Offset(expected), next: Offset(expected + 1) };
        assert_eq!(lost, Outcome::Rejected(reject));
    }
}
