//! The headers of replayed records, put behind those they have: stored bytes stay as they are.

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::codec::{bytes_len, put_bytes, put_varint};
use flowmesh_model::record::{ITEM_TAG, RecordSlices};
use flowmesh_model::replay::{REPLAY_HEADER, REPLAY_SESSION_HEADER};
use flowmesh_proto::v1;

const NAME_TAG: u8 = 0x0A;
const VALUE_TAG: u8 = 0x12;

/// What every record of a session has.
#[derive(Clone, Debug)]
pub struct Mark {
    session: String,
    packed: Bytes,
}

impl Mark {
    /// The headers of a session of that name.
    pub fn of(session: &str) -> Self {
        let mut packed = BytesMut::new();
        for (name, value) in [(REPLAY_HEADER, "true"), (REPLAY_SESSION_HEADER, session)] {
            let (name, value) = (name.as_bytes(), value.as_bytes());
            packed.put_u8(ITEM_TAG);
            put_varint(&mut packed, (2 + bytes_len(name.len()) + bytes_len(value.len())) as u64);
            packed.put_u8(NAME_TAG);
            put_bytes(&mut packed, name);
            packed.put_u8(VALUE_TAG);
            put_bytes(&mut packed, value);
        }
        Self { session: session.to_owned(), packed: packed.freeze() }
    }

    /// Packed records with the headers.
    pub fn mark(&self, records: &[u8], count: u32) -> Bytes {
        let mut out = BytesMut::with_capacity(records.len() + count as usize * (self.packed.len() + 2));
        // They were checked when they were appended.
        for record in RecordSlices::new(records).flatten() {
            out.put_u8(ITEM_TAG);
            put_varint(&mut out, (record.len() + self.packed.len()) as u64);
            out.put_slice(record);
            out.put_slice(&self.packed);
        }
        out.freeze()
    }

    /// The headers as messages have them.
    pub fn headers(&self) -> [v1::Header; 2] {
        [(REPLAY_HEADER, "true"), (REPLAY_SESSION_HEADER, self.session.as_str())].map(|(name, value)| {
            v1::Header { name: name.to_owned(), value: Bytes::copy_from_slice(value.as_bytes()) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::record::{RecordPacker, RecordView};
    use prost::Message;

    #[test]
    fn records_keep_what_they_have_and_get_the_headers() {
        let mut packer = RecordPacker::default();
        packer.push(&RecordView {
            key: Some(b"k"),
            value: b"v",
            headers: vec![(b"n", b"w")],
            timestamp_ms: Some(9),
        });
        packer.push(&RecordView { value: &[7; 300], ..RecordView::default() });
        let mark = Mark::of("late");
        let marked = mark.mark(&packer.finish(), 2);
        let records: Vec<v1::Record> =
            RecordSlices::new(&marked).map(|record| v1::Record::decode(record.unwrap()).unwrap()).collect();
        assert_eq!((records[0].key.as_deref(), &records[0].value[..]), (Some(&b"k"[..]), &b"v"[..]));
        assert_eq!((records[0].timestamp_ms, records[0].headers[0].name.as_str()), (Some(9), "n"));
        assert_eq!(records[0].headers[1..], mark.headers());
        assert_eq!((records[1].value.len(), &records[1].headers[..]), (300, &mark.headers()[..]));
        assert_eq!(records[1].headers[1].value, "late");
    }
}
