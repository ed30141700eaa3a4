//! Protobuf by hand, where it pays: requests whose bytes are handed on as they came, and the replies that carry them.
//!
//! Everything else is encoded and decoded by the generated types.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use flowmesh_model::Reject;
use flowmesh_model::codec::{Malformed, put_varint, read_varint, varint_len};

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An integer, bool or enum.
    Integer(u64),
    /// A string, bytes or message: where it is.
    Bytes(Range<usize>),
    /// A fixed-size number; no message here has one.
    Fixed,
}

/// The fields of a message, in the order they come.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    message: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Fields<'a> {
    /// Of a whole message.
    pub fn new(message: &'a Bytes) -> Self {
        Self { message, at: 0, end: message.len() }
    }

    /// Of a message within the message.
    pub fn nested(&self, range: Range<usize>) -> Self {
        Self { message: self.message, at: range.start, end: range.end }
    }

    /// Where the next field starts.
    pub fn position(&self) -> usize {
        self.at
    }

    fn rest(&self) -> &'a [u8] {
        self.message.get(self.at..self.end).unwrap_or_default()
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let (value, used) = read_varint(self.rest())?;
        self.at += used;
        Ok(value)
    }

    fn skip(&mut self, bytes: u64) -> Result<Range<usize>, Malformed> {
        if bytes > (self.end - self.at) as u64 {
            return Err(Malformed("a field reaches beyond the end of its message"));
        }
        let start = self.at;
        self.at += bytes as usize;
        Ok(start..self.at)
    }

    /// The next field's number and value, or `None` at the end.
    pub fn next(&mut self) -> Result<Option<(u64, Value)>, Reject> {
        if self.at == self.end {
            return Ok(None);
        }
        self.read().map(Some).map_err(|malformed| Reject::invalid("message", malformed.0))
    }

    fn read(&mut self) -> Result<(u64, Value), Malformed> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            VARINT => Value::Integer(self.varint()?),
            LENGTH => {
                let len = self.varint()?;
                Value::Bytes(self.skip(len)?)
            }
            FIXED64 => self.skip(8).map(|_| Value::Fixed)?,
            FIXED32 => self.skip(4).map(|_| Value::Fixed)?,
            _ => return Err(Malformed("a field has an unknown wire type")),
        };
        Ok((tag >> 3, value))
    }

    /// Those bytes, sharing the message's buffer.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        self.message.slice(range)
    }

    /// Those bytes as text.
    pub fn text(&self, field: &'static str, range: Range<usize>) -> Result<&'a str, Reject> {
        let bytes = self.message.get(range).unwrap_or_default();
        std::str::from_utf8(bytes).map_err(|_| Reject::invalid(field, "is not UTF-8"))
    }
}

/// A field whose number is known but whose wire type is another.
pub fn wrong_type(field: &'static str) -> Reject {
    Reject::invalid(field, "has another type in this message")
}

/// An integer that must fit 32 bits.
pub fn to_u32(field: &'static str, value: u64) -> Result<u32, Reject> {
    u32::try_from(value)
        .map_err(|_| Reject::invalid(field, format!("is {value}; at most {} is allowed", u32::MAX)))
}

/// The bytes of a repeated field as they are in the message, tags and lengths included. Copied only if other fields
/// stand between.
#[derive(Debug, Default)]
pub struct RawRepeated {
    run: Range<usize>,
    copied: Option<BytesMut>,
}

impl RawRepeated {
    /// Adds the field at `field` of `message`.
    pub fn push(&mut self, message: &Bytes, field: Range<usize>) {
        if let Some(copied) = &mut self.copied {
            copied.extend_from_slice(message.get(field).unwrap_or_default());
        } else if self.run.is_empty() {
            self.run = field;
        } else if self.run.end == field.start {
            self.run.end = field.end;
        } else {
            let mut copied = BytesMut::from(message.get(self.run.clone()).unwrap_or_default());
            copied.extend_from_slice(message.get(field).unwrap_or_default());
            self.copied = Some(copied);
        }
    }

    /// All of them.
    pub fn finish(self, message: &Bytes) -> Bytes {
        match self.copied {
            Some(copied) => copied.freeze(),
            None if self.run.is_empty() => Bytes::new(),
            None => message.slice(self.run),
        }
    }
}

/// Writes an integer field, unless it has its default.
pub fn put_integer(out: &mut BytesMut, number: u8, value: u64) {
    if value != 0 {
        put_present_integer(out, number, value);
    }
}

/// Writes an integer field.
pub fn put_present_integer(out: &mut BytesMut, number: u8, value: u64) {
    out.put_u8(number << 3);
    put_varint(out, value);
}

/// Bytes that [`put_integer`] takes.
pub const fn integer_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

/// Writes a bytes field, unless it is empty.
pub fn put_bytes_field(out: &mut BytesMut, number: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_length(out, number, bytes.len());
        out.put_slice(bytes);
    }
}

/// Bytes that [`put_bytes_field`] takes.
pub const fn bytes_field_len(len: usize) -> usize {
    if len == 0 { 0 } else { 1 + varint_len(len as u64) + len }
}

/// Starts a field of `len` bytes, which the caller writes.
pub fn put_length(out: &mut BytesMut, number: u8, len: usize) {
    out.put_u8(number << 3 | LENGTH as u8);
    put_varint(out, len as u64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_proto::v1;
    use proptest::prelude::*;
    use prost::Message;

    #[test]
    fn fields_are_those_that_prost_wrote() {
        let request = v1::ReadRequest {
            stream: "logs".into(),
            partition: 3,
            start: Some(v1::read_request::Start::Offset(300)),
            ..Default::default()
        };
        let message = Bytes::from(request.encode_to_vec());
        let mut fields = Fields::new(&message);
        let (number, Value::Bytes(range)) = fields.next().unwrap().unwrap() else { panic!() };
        assert_eq!((number, fields.text("stream", range).unwrap()), (1, "logs"));
        assert_eq!(fields.next().unwrap(), Some((2, Value::Integer(3))));
        assert_eq!(fields.next().unwrap(), Some((5, Value::Integer(300))));
        assert_eq!(fields.next().unwrap(), None);
    }

    proptest! {
        #[test]
        fn noise_is_refused_or_read_but_never_panics(noise: Vec<u8>) {
            let message = Bytes::from(noise);
            let mut fields = Fields::new(&message);
            while let Ok(Some((_, value))) = fields.next() {
                if let Value::Bytes(range) = value {
                    fields.slice(range);
                }
            }
        }

        /// Pushing a message's pieces, whatever lies between, gives the pieces in order.
        #[test]
        fn raw_fields_are_joined(pieces in proptest::collection::vec((any::<bool>(), "[a-z]{1,5}"), 0..10)) {
            let mut whole = BytesMut::new();
            let mut ranges = Vec::new();
            let mut wanted = String::new();
            for (gap, piece) in &pieces {
                if *gap {
                    whole.put_slice(b"--");
                }
                ranges.push(whole.len()..whole.len() + piece.len());
                whole.put_slice(piece.as_bytes());
                wanted.push_str(piece);
            }
            let message = whole.freeze();
            let mut raw = RawRepeated::default();
            for range in ranges {
                raw.push(&message, range);
            }
            prop_assert_eq!(raw.finish(&message), wanted.as_bytes());
        }
    }
}
