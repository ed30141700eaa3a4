//! Record batches on their way out: the stored bytes, with the few fields around them.

use bytes::{BufMut, BytesMut};
use flowmesh_model::Offset;
use flowmesh_model::codec::{put_varint, varint_len};
use flowmesh_model::reply::{RecordRun, RecordRuns};

use super::filter::PickedRun;
use crate::edge::grpc::wire::{bytes_field_len, integer_len, put_integer, put_length, put_present_integer};

/// Writes a `RecordBatch` without tag and length. The packed records are its field 3 as they are.
pub fn put_batch(out: &mut BytesMut, partition: u32, run: &RecordRun) {
    put_integer(out, 1, run.base.get());
    put_integer(out, 2, run.appended_at.get());
    out.put_slice(&run.records);
    put_integer(out, 4, partition.into());
    put_integer(out, 5, run.count.into());
}

/// Bytes that [`put_batch`] writes.
pub fn batch_len(partition: u32, run: &RecordRun) -> usize {
    integer_len(run.base.get())
        + integer_len(run.appended_at.get())
        + run.records.len()
        + integer_len(partition.into())
        + integer_len(run.count.into())
}

/// Writes a `RecordBatch` of what a filter left, without tag and length; with where to go on, if that is given.
pub fn put_picked(out: &mut BytesMut, partition: u32, run: &PickedRun, next: Option<Offset>) {
    put_integer(out, 1, run.base.get());
    put_integer(out, 2, run.appended_at.get());
    out.put_slice(&run.records);
    put_integer(out, 4, partition.into());
    put_integer(out, 5, run.count.into());
    if !run.deltas.is_empty() {
        put_length(out, 6, deltas_len(&run.deltas));
        run.deltas.iter().for_each(|delta| put_varint(out, *delta));
    }
    if let Some(next) = next {
        put_present_integer(out, 7, next.get());
    }
}

/// Bytes that [`put_picked`] writes.
pub fn picked_len(partition: u32, run: &PickedRun, next: Option<Offset>) -> usize {
    integer_len(run.base.get())
        + integer_len(run.appended_at.get())
        + run.records.len()
        + integer_len(partition.into())
        + integer_len(run.count.into())
        + bytes_field_len(deltas_len(&run.deltas))
        + next.map_or(0, |next| 1 + varint_len(next.get()))
}

fn deltas_len(deltas: &[u64]) -> usize {
    deltas.iter().map(|delta| varint_len(*delta)).sum()
}

/// Writes a `RecordBatch` without records, which only says how far a subscription is.
pub fn put_progress(out: &mut BytesMut, partition: u32, next: Offset) {
    put_integer(out, 1, next.get());
    put_integer(out, 4, partition.into());
    put_present_integer(out, 7, next.get());
}

/// Writes a `ReadResponse`.
pub fn put_read_response(out: &mut BytesMut, partition: u32, records: &RecordRuns) {
    for run in &records.runs {
        put_length(out, 1, batch_len(partition, run));
        put_batch(out, partition, run);
    }
    put_read_end(out, records.next, records.earliest, records.high_watermark);
}

/// Writes what follows the batches of a `ReadResponse`.
pub fn put_read_end(out: &mut BytesMut, next: Offset, earliest: Offset, high_watermark: Offset) {
    put_integer(out, 2, next.get());
    put_integer(out, 3, earliest.get());
    put_integer(out, 4, high_watermark.get());
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use flowmesh_model::record::{RecordPacker, RecordView};
    use flowmesh_model::{Millis, Offset};
    use flowmesh_proto::v1;
    use prost::Message;

    #[test]
    fn a_client_reads_what_was_written_by_hand() {
        let mut packer = RecordPacker::default();
        packer.push(&RecordView { key: Some(b"k"), value: b"v", ..Default::default() });
        packer.push(&RecordView { value: b"w", timestamp_ms: Some(9), ..Default::default() });
        let run = RecordRun { base: Offset(7), count: 2, appended_at: Millis(300), records: packer.finish() };
        let records = RecordRuns {
            runs: vec![run],
            next: Offset(9),
            earliest: Offset(0),
            high_watermark: Offset(1000),
        };
        let mut out = BytesMut::new();
        put_read_response(&mut out, 3, &records);
        let read = v1::ReadResponse::decode(out.freeze()).unwrap();
        assert_eq!((read.next_offset, read.earliest_offset, read.high_watermark), (9, 0, 1000));
        let batch = &read.batches[0];
        assert_eq!((batch.base_offset, batch.appended_at_ms, batch.partition, batch.count), (7, 300, 3, 2));
        assert_eq!(batch.records[0].key, Some(Bytes::from_static(b"k")));
        assert_eq!((&batch.records[1].value[..], batch.records[1].timestamp_ms), (&b"w"[..], Some(9)));
        assert_eq!((batch.offset_deltas.len(), batch.next_offset), (0, None));
    }

    #[test]
    fn a_client_reads_the_offsets_of_what_a_filter_left() {
        let mut packer = RecordPacker::default();
        packer.push(&RecordView { value: b"v", ..Default::default() });
        packer.push(&RecordView { value: b"w", ..Default::default() });
        let packed = packer.finish();
        for (deltas, next) in
            [(vec![], None), (vec![0, 300], Some(Offset(0))), (vec![0, 1 << 40], Some(Offset(9)))]
        {
            let run = PickedRun {
                base: Offset(7),
                count: 2,
                appended_at: Millis(300),
                records: packed.clone(),
                deltas,
                next: Offset(400),
            };
            let mut out = BytesMut::new();
            put_picked(&mut out, 3, &run, next);
            assert_eq!(out.len(), picked_len(3, &run, next));
            let batch = v1::RecordBatch::decode(out.freeze()).unwrap();
            assert_eq!(
                (batch.base_offset, batch.appended_at_ms, batch.partition, batch.count),
                (7, 300, 3, 2)
            );
            assert_eq!((batch.offset_deltas, batch.next_offset), (run.deltas, next.map(Offset::get)));
        }
        let mut out = BytesMut::new();
        put_progress(&mut out, 3, Offset(0));
        let batch = v1::RecordBatch::decode(out.freeze()).unwrap();
        assert_eq!(
            (batch.count, batch.records.len(), batch.partition, batch.next_offset),
            (0, 0, 3, Some(0))
        );
    }
}
