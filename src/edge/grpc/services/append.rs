//! An append, unary or of a pipelined producer: read without touching the records, placed, and handed to its shards.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use flowmesh_engine::SinkFn;
use flowmesh_model::placement::key_partition;
use flowmesh_model::record::{PackedRecords, RecordPacker, RecordSlices, RecordView};
use flowmesh_model::{
    Command, Offset, PartitionRef, ProducerId, ProducerStamp, Reject, Reply, ResourceInfo, Settings,
    StreamCommand,
};
use flowmesh_proto::v1;

use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::wrong_reply;
use crate::edge::grpc::shared::ConnShared;
use crate::edge::grpc::status::item_error;
use crate::edge::grpc::wire::{Fields, RawRepeated, Value, to_u32, wrong_type};

/// How an append is to be carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppendOptions {
    /// The partition, if one is named.
    pub partition: Option<u32>,
    /// Whose append it is, if it is idempotent.
    pub producer: Option<ProducerStamp>,
    /// The offset it must get, if it is conditional.
    pub expected_offset: Option<Offset>,
}

/// An `AppendRequest` or `AppendStreamRequest`; the records are as they came.
#[derive(Debug)]
pub struct AppendCall<'a> {
    /// The stream; empty in a pipelined producer's later messages.
    pub stream: &'a str,
    /// How to carry it out.
    pub options: AppendOptions,
    /// The packed records, unchecked.
    pub records: Bytes,
    /// The producer's number.
    pub sequence: u64,
}

impl<'a> AppendCall<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// It is malformed. The records are not looked at.
    pub fn read(message: &'a Bytes) -> Result<Self, Reject> {
        let mut fields = Fields::new(message);
        let (mut stream, mut options, mut sequence) = ("", AppendOptions::default(), 0);
        let mut records = RawRepeated::default();
        loop {
            let start = fields.position();
            let Some(field) = fields.next()? else { break };
            match field {
                (3, Value::Bytes(_)) => records.push(message, start..fields.position()),
                (1, Value::Bytes(range)) => stream = fields.text("stream", range)?,
                (2, Value::Integer(value)) => options.partition = Some(to_u32("partition", value)?),
                (4, Value::Integer(value)) => sequence = value,
                (5, Value::Bytes(range)) => read_producer(fields.nested(range), &mut options.producer)?,
                (6, Value::Integer(value)) => options.expected_offset = Some(Offset(value)),
                (1, _) => return Err(wrong_type("stream")),
                (2, _) => return Err(wrong_type("partition")),
                (3, _) => return Err(wrong_type("records")),
                (5, _) => return Err(wrong_type("producer")),
                (6, _) => return Err(wrong_type("expected_offset")),
                _ => {}
            }
        }
        Ok(Self { stream, options, records: records.finish(message), sequence })
    }
}

/// Reads a `Producer`; what comes again is merged, as protobuf asks.
fn read_producer(mut fields: Fields<'_>, producer: &mut Option<ProducerStamp>) -> Result<(), Reject> {
    let stamp = producer.get_or_insert(ProducerStamp { id: ProducerId(0), epoch: 0, sequence: 0 });
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Integer(id)) => stamp.id = ProducerId(id),
            (2, Value::Integer(epoch)) => stamp.epoch = to_u32("producer.epoch", epoch)?,
            (3, Value::Integer(sequence)) => stamp.sequence = sequence,
            (1..=3, _) => return Err(wrong_type("producer")),
            _ => {}
        }
    }
    Ok(())
}

/// Where the records of one append go.
#[derive(Debug, PartialEq, Eq)]
pub enum Placed {
    /// All to one partition.
    One(u32, PackedRecords),
    /// To several, by key.
    Split {
        /// By partition.
        parts: Vec<(u32, PackedRecords)>,
        /// The partition of each record in order.
        of_record: Vec<u32>,
    },
}

/// Refuses an append that would have to go to one partition but may go to any.
fn check_single(options: &AppendOptions, partitions: u32) -> Result<(), Reject> {
    let field = match options {
        AppendOptions { partition: None, producer: Some(_), .. } => "producer",
        AppendOptions { partition: None, expected_offset: Some(_), .. } => "expected_offset",
        _ => return Ok(()),
    };
    if partitions <= 1 {
        return Ok(());
    }
    let reason = format!("needs the append to name one of the stream's {partitions} partitions");
    Err(Reject::invalid(field, reason))
}

/// Checks records of an append to a stream, before they are split: of what is refused nothing is done.
///
/// # Errors
/// They are malformed, break a limit, or lack what the stream needs.
fn check_records(records: Bytes, info: &ResourceInfo) -> Result<PackedRecords, Reject> {
    let records = PackedRecords::check(records)?;
    if let Settings::Stream(settings) = &info.settings {
        records.check_for(settings)?;
    }
    Ok(records)
}

/// Places records: in the partition named, or each by its key. Those without a key go together to the partition that
/// `next_partition` names, which is asked at most once.
///
/// # Errors
/// No such partition.
pub fn place(
    records: PackedRecords,
    partition: Option<u32>,
    partitions: u32,
    next_partition: impl FnOnce() -> u32,
) -> Result<Placed, Reject> {
    match partition {
        Some(partition) if partition >= partitions => Err(Reject::NoSuchPartition { partition, partitions }),
        Some(partition) => Ok(Placed::One(partition, records)),
        None if partitions <= 1 => Ok(Placed::One(0, records)),
        None => place_by_key(records, partitions, next_partition),
    }
}

fn place_by_key(
    records: PackedRecords,
    partitions: u32,
    next_partition: impl FnOnce() -> u32,
) -> Result<Placed, Reject> {
    let mut next_partition = Some(next_partition);
    let mut keyless = None;
    let mut packers = BTreeMap::<u32, RecordPacker>::new();
    let mut of_record = Vec::with_capacity(records.count() as usize);
    for record in RecordSlices::new(records.bytes()) {
        let malformed = |error: flowmesh_model::codec::Malformed| Reject::invalid("records", error.0);
        let record = record.map_err(malformed)?;
        let partition = match RecordView::read(record).map_err(malformed)?.key {
            Some(key) => key_partition(key, partitions),
            None => *keyless.get_or_insert_with(|| next_partition.take().map_or(0, |next| next())),
        };
        packers.entry(partition).or_default().push_packed(record);
        of_record.push(partition);
    }
    if let (1, Some(&partition)) = (packers.len(), of_record.first()) {
        return Ok(Placed::One(partition, records));
    }
    let checked = |(partition, packer): (u32, RecordPacker)| {
        PackedRecords::check(packer.finish()).map(|records| (partition, records))
    };
    let parts = packers.into_iter().map(checked).collect::<Result<_, _>>()?;
    Ok(Placed::Split { parts, of_record })
}

/// Appends a request's records; `done` gets the outcome once it is as durable as the stream asks. An append to several
/// partitions fails only if all its parts do.
pub fn append<B: Backend>(
    edge: &Edge<B>,
    conn: &ConnShared,
    info: &ResourceInfo,
    options: AppendOptions,
    records: Bytes,
    done: impl FnOnce(Result<v1::AppendResponse, Reject>) + 'static,
) {
    let partitions = info.settings.partitions();
    let placed =
        check_single(&options, partitions).and_then(|()| check_records(records, info)).and_then(|records| {
            place(records, options.partition, partitions, || conn.next_partition(partitions))
        });
    match placed {
        Ok(Placed::One(partition, records)) => {
            append_part(edge, info, partition, records, options, move |outcome| {
                done(outcome.map(|part| v1::AppendResponse {
                    partition,
                    base_offset: part.base_offset,
                    count: part.count,
                    appended_at_ms: part.appended_at_ms,
                    duplicate: part.duplicate,
                    ..Default::default()
                }));
            });
        }
        Ok(Placed::Split { parts, of_record }) => append_split(edge, info, parts, of_record, done),
        Err(reject) => done(Err(reject)),
    }
}

/// What became of records that went to one partition.
#[expect(clippy::struct_field_names, reason = "named as in the answer")]
struct Appended {
    base_offset: u64,
    count: u32,
    appended_at_ms: u64,
    duplicate: bool,
}

fn append_part<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    partition: u32,
    records: PackedRecords,
    options: AppendOptions,
    done: impl FnOnce(Result<Appended, Reject>) + 'static,
) {
    let AppendOptions { producer, expected_offset, .. } = options;
    let to = edge.backend.shard_of_partition(info, partition);
    let target = PartitionRef { resource: info.id, partition };
    let command = Command::Stream(target, StreamCommand::Append { records, producer, expected_offset });
    let sink = SinkFn(move |outcome: Result<Reply, Reject>| {
        done(outcome.and_then(|reply| match reply {
            Reply::Appended { base, count, appended_at, duplicate } => {
                Ok(Appended { base_offset: base.get(), count, appended_at_ms: appended_at.get(), duplicate })
            }
            _ => Err(wrong_reply()),
        }));
    });
    edge.backend.dispatch(to, command, Box::new(sink));
}

/// The parts of one append that are on their way.
struct Split<F> {
    response: v1::AppendResponse,
    failed: Option<Reject>,
    left: usize,
    done: Option<F>,
}

fn append_split<B: Backend, F: FnOnce(Result<v1::AppendResponse, Reject>) + 'static>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    parts: Vec<(u32, PackedRecords)>,
    of_record: Vec<u32>,
    done: F,
) {
    let response = v1::AppendResponse {
        parts: vec![v1::AppendPart::default(); parts.len()],
        partition_of_record: of_record,
        ..Default::default()
    };
    let split = Split { response, failed: None, left: parts.len(), done: Some(done) };
    let split = Rc::new(RefCell::new(split));
    for (index, (partition, records)) in parts.into_iter().enumerate() {
        let split = Rc::clone(&split);
        append_part(edge, info, partition, records, AppendOptions::default(), move |outcome| {
            let finished = split.borrow_mut().take(index, partition, outcome);
            if let Some((done, outcome)) = finished {
                done(outcome);
            }
        });
    }
}

impl<F> Split<F> {
    /// Notes what became of a part; with the last one, what became of the whole.
    fn take(
        &mut self,
        index: usize,
        partition: u32,
        outcome: Result<Appended, Reject>,
    ) -> Option<(F, Result<v1::AppendResponse, Reject>)> {
        let part = match outcome {
            Ok(Appended { base_offset, count, appended_at_ms, .. }) => {
                v1::AppendPart { partition, base_offset, count, appended_at_ms, error: None }
            }
            Err(reject) => {
                let error = Some(item_error(&reject));
                self.failed.get_or_insert(reject);
                v1::AppendPart { partition, error, ..Default::default() }
            }
        };
        if let Some(place) = self.response.parts.get_mut(index) {
            *place = part;
        }
        self.left -= 1;
        if self.left > 0 {
            return None;
        }
        let response = std::mem::take(&mut self.response);
        let outcome = match self.failed.take() {
            Some(reject) if response.parts.iter().all(|part| part.error.is_some()) => Err(reject),
            _ => Ok(response),
        };
        Some((self.done.take()?, outcome))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn record(key: Option<&str>, value: &str) -> v1::Record {
        v1::Record {
            key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
            value: Bytes::copy_from_slice(value.as_bytes()),
            ..Default::default()
        }
    }

    fn packed(records: Vec<v1::Record>) -> Bytes {
        let request = v1::AppendRequest { records, ..Default::default() };
        AppendCall::read(&request.encode_to_vec().into()).unwrap().records
    }

    #[test]
    fn the_records_of_a_request_are_a_slice_of_it() {
        let request = v1::AppendRequest {
            stream: "logs".into(),
            partition: Some(2),
            records: vec![record(None, "a"), record(Some("k"), "b")],
            producer: Some(v1::Producer { id: 7, epoch: 2, sequence: 40 }),
            expected_offset: Some(0),
        };
        let message = Bytes::from(request.encode_to_vec());
        let call = AppendCall::read(&message).unwrap();
        let producer = Some(ProducerStamp { id: ProducerId(7), epoch: 2, sequence: 40 });
        let expected = AppendOptions { partition: Some(2), producer, expected_offset: Some(Offset(0)) };
        assert_eq!((call.stream, call.options), ("logs", expected));
        assert!(message.as_ptr_range().contains(&call.records.as_ptr()));
        assert_eq!(PackedRecords::check(call.records).unwrap().count(), 2);
    }

    #[test]
    fn records_between_other_fields_are_joined() {
        let one = v1::AppendRequest { records: vec![record(None, "a")], ..Default::default() };
        let two = v1::AppendStreamRequest {
            records: vec![record(None, "b")],
            sequence: 7,
            stream: "logs".into(),
            ..Default::default()
        };
        let mut bytes = one.encode_to_vec();
        bytes.extend(two.encode_to_vec());
        let message = Bytes::from(bytes);
        let call = AppendCall::read(&message).unwrap();
        assert_eq!((call.stream, call.sequence), ("logs", 7));
        assert_eq!(call.records, packed(vec![record(None, "a"), record(None, "b")]));
    }

    #[test]
    fn a_field_of_another_type_is_refused_by_name() {
        let refused = AppendCall::read(&Bytes::from_static(&[0x08, 1])).unwrap_err();
        assert!(matches!(refused, Reject::InvalidArgument { field: "stream", .. }));
    }

    #[test]
    fn a_partition_that_is_named_is_taken_or_refused() {
        let records = packed(vec![record(Some("k"), "a")]);
        let place = |partition| {
            place(PackedRecords::check(records.clone()).unwrap(), Some(partition), 3, || unreachable!())
        };
        assert!(matches!(place(2), Ok(Placed::One(2, _))));
        assert_eq!(place(3), Err(Reject::NoSuchPartition { partition: 3, partitions: 3 }));
    }

    #[test]
    fn what_needs_one_partition_is_refused_where_there_may_be_several() {
        let producer = Some(ProducerStamp { id: ProducerId(1), epoch: 0, sequence: 0 });
        let idempotent = AppendOptions { producer, ..AppendOptions::default() };
        let conditional = AppendOptions { expected_offset: Some(Offset(0)), ..AppendOptions::default() };
        for (options, field) in [(idempotent, "producer"), (conditional, "expected_offset")] {
            assert!(check_single(&options, 1).is_ok());
            assert!(check_single(&AppendOptions { partition: Some(1), ..options }, 3).is_ok());
            let refused = check_single(&options, 3).unwrap_err();
            assert!(matches!(refused, Reject::InvalidArgument { field: named, .. } if named == field));
        }
        assert!(check_single(&AppendOptions::default(), 3).is_ok());
    }

    #[test]
    fn records_without_keys_stay_together() {
        let records = packed(vec![record(None, "a"), record(None, "b")]);
        assert!(
            matches!(place(PackedRecords::check(records).unwrap(), None, 8, || 5), Ok(Placed::One(5, records)) if records.count() == 2)
        );
    }

    proptest! {
        /// Every record is in exactly the partition that is reported for it, in order, and equal keys share one.
        #[test]
        fn placing_loses_and_reorders_nothing(keys in proptest::collection::vec("[a-d]{0,2}", 1..40), partitions in 2u32..6) {
            let records: Vec<_> = keys.iter().enumerate()
                .map(|(i, key)| record((!key.is_empty()).then_some(key), &i.to_string())).collect();
            let placed = place(PackedRecords::check(packed(records.clone())).unwrap(), None, partitions, || 1).unwrap();
            let (parts, of_record) = match placed {
                Placed::One(partition, all) => (vec![(partition, all)], vec![partition; keys.len()]),
                Placed::Split { parts, of_record } => (parts, of_record),
            };
            let mut wanted = BTreeMap::<u32, Vec<v1::Record>>::new();
            for (record, &partition) in records.iter().zip(&of_record) {
                let expected = record.key.as_ref().map_or(1, |key| key_partition(key, partitions));
                prop_assert_eq!(partition, expected);
                wanted.entry(partition).or_default().push(record.clone());
            }
            let found: BTreeMap<_, _> = parts.into_iter().map(|(partition, records)| {
                (partition, v1::AppendRequest::decode(records.bytes().clone()).unwrap().records)
            }).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
