//! A partition is a list of values.

use flowmesh_model::command::ReadFrom;
use flowmesh_model::compression::Codec;
use flowmesh_model::record::PackedRecords;
use flowmesh_model::{Command, Offset, PartitionRef, Reject, Reply, Settings, StreamCommand, StreamSettings};
use proptest::prelude::*;

use crate::common::{Outcome, World, cases, pack, values};

#[derive(Clone, Debug)]
enum Step {
    Append { partition: u32, sizes: Vec<usize> },
    Read { partition: u32, from: u64, records_max: u32, bytes_max: u32 },
    Checkpoint,
    Evict { bytes_max: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u32..2, prop::collection::vec(0usize..300, 1..5))
            .prop_map(|(partition, sizes)| Step::Append { partition, sizes }),
        6 => (0u32..2, 0u64..40, 1u32..12, 0u32..900)
            .prop_map(|(partition, from, records_max, bytes_max)| Step::Read { partition, from, records_max, bytes_max }),
        1 => Just(Step::Checkpoint),
        1 => (0u64..2000).prop_map(|bytes_max| Step::Evict { bytes_max }),
    ]
}

/// What a read must give: values in order while both limits hold, the first in any case.
fn expected(list: &[Vec<u8>], from: u64, records_max: u32, bytes_max: u32) -> Vec<Vec<u8>> {
    let (mut out, mut bytes) = (Vec::new(), 0);
    for value in list.iter().skip(from as usize).take(records_max as usize) {
        bytes += pack(&[value]).bytes().len();
        if bytes > bytes_max as usize && !out.is_empty() {
            break;
        }
        out.push(value.clone());
    }
    out
}

proptest! {
    #![proptest_config(cases(200))]
    /// Compressed or not: a read gives the records that follow, no more than it may, and at least one.
    #[test]
    fn a_batch_that_rests_compressed_is_read_like_any_other(
        batches in prop::collection::vec((0usize..3, prop::collection::vec(0usize..300, 1..9)), 1..12),
        reads in prop::collection::vec((any::<prop::sample::Index>(), 1u32..20, 0u32..1500), 1..30),
    ) {
        let mut world = World::default();
        let resource = world.create_with("logs", Settings::Stream(StreamSettings::default()));
        let at = PartitionRef { resource, partition: 0 };
        let mut list: Vec<Vec<u8>> = Vec::new();
        for (codec, sizes) in batches {
            let base = list.len();
            list.extend(sizes.iter().enumerate().map(|(n, size)| vec![(base + n) as u8; *size]));
            let slices: Vec<&[u8]> = list[base..].iter().map(Vec::as_slice).collect();
            let plain = pack(&slices);
            let records = match Codec::ALL.get(codec) {
                Some(codec) => plain.compressed(*codec),
                None => plain,
            };
            world.run(&Command::Stream(at, StreamCommand::append(records)));
        }
        for (from, records_max, bytes_max) in reads {
            let from = from.index(list.len());
            let read = StreamCommand::Read { from: ReadFrom::Offset(Offset(from as u64)), records_max, bytes_max, bytes_min: 0, wait_until: None };
            let Outcome::Answered(Reply::Records(records), _) = world.run(&Command::Stream(at, read)) else { panic!() };
            let read = values(&records.runs);
            let bytes: usize = records.runs.iter().map(|run| run.records.len()).sum();
            prop_assert!(!read.is_empty() && read.len() <= records_max as usize);
            prop_assert!(bytes <= bytes_max as usize || read.len() == 1);
            prop_assert_eq!(&read[..], &list[from..from + read.len()]);
            prop_assert_eq!(records.next.0 as usize, from + read.len());
        }
    }

    #[test]
    fn a_partition_is_a_list(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::default();
        let settings = StreamSettings { partitions: 2, ..StreamSettings::default() };
        let resource = world.create_with("logs", Settings::Stream(settings));
        let mut model: [Vec<Vec<u8>>; 2] = Default::default();
        for step in steps {
            match step {
                Step::Append { partition, sizes } => {
                    let list = &mut model[partition as usize];
                    let base = list.len();
                    list.extend(sizes.iter().enumerate().map(|(n, size)| vec![(base + n) as u8; *size]));
                    let slices: Vec<&[u8]> = list[base..].iter().map(Vec::as_slice).collect();
                    let records: PackedRecords = pack(&slices);
                    let at = PartitionRef { resource, partition };
                    let reply = world.run(&Command::Stream(at, StreamCommand::append(records))).reply();
                    let appended_at = world.now;
                    prop_assert_eq!(reply, Reply::Appended { base: Offset(base as u64), count: sizes.len() as u32, appended_at, duplicate: false });
                }
                Step::Read { partition, from, records_max, bytes_max } => {
                    let (at, list) = (PartitionRef { resource, partition }, &model[partition as usize]);
                    let read = StreamCommand::Read { from: ReadFrom::Offset(Offset(from)), records_max, bytes_max, bytes_min: 0, wait_until: None };
                    let next = Offset(list.len() as u64);
                    match world.run(&Command::Stream(at, read)) {
                        Outcome::Answered(Reply::Records(records), _) => {
                            let expected = expected(list, from, records_max, bytes_max);
                            prop_assert_eq!(values(&records.runs), expected.clone());
                            prop_assert_eq!(records.next.0, from + expected.len() as u64);
                            prop_assert_eq!(records.high_watermark, next);
                        }
                        Outcome::Cold(cold) => {
                            let file = world.files.get(&at).map_or(&[][..], Vec::as_slice);
                            prop_assert_eq!(cold.0, from);
                            let end = file.last().unwrap();
                            prop_assert!(from < end.base.0 + u64::from(end.count), "only what files have is cold");
                        }
                        Outcome::Rejected(reject) => {
                            prop_assert!(from > next.0);
                            let range = Reject::OffsetOutOfRange { requested: Offset(from), earliest: Offset(0), next };
                            prop_assert_eq!(reject, range);
                        }
                        other => panic!("{other:?}"),
                    }
                }
                Step::Checkpoint => {
                    world.seal();
                    world.write();
                }
                Step::Evict { bytes_max } => {
                    while !world.machine.evict_tails(bytes_max, 2) {}
                    let kept = world.machine.stats().tail_bytes;
                    let cold = world.files.values().flatten().map(|run| run.records.len() as u64).sum::<u64>();
                    let all: u64 = model.iter().flatten().map(|value| pack(&[value]).bytes().len() as u64).sum();
                    prop_assert!(kept <= bytes_max || kept >= all - cold, "what is not in files stays");
                }
            }
            world.machine.check_all();
        }
    }
}
