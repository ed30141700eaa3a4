//! Record batches on their way out: the stored bytes, with the few fields around them.

use bytes::{BufMut, BytesMut};
use flowmesh_model::reply::{RecordRun, RecordRuns};

use crate::edge::grpc::wire::{integer_len, put_integer, put_length};

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

/// Writes a `ReadResponse`.
pub fn put_read_response(out: &mut BytesMut, partition: u32, records: &RecordRuns) {
    for run in &records.runs {
        put_length(out, 1, batch_len(partition, run));
        put_batch(out, partition, run);
    }
    put_integer(out, 2, records.next.get());
    put_integer(out, 3, records.earliest.get());
    put_integer(out, 4, records.high_watermark.get());
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
    }
}
