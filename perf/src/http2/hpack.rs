//! What an answer's header block says (RFC 7541): the HTTP status, the gRPC status, the gRPC message.
//!
//! The peer's encoder keeps a table of what it sent before, so every block must be decoded, in order. But after the
//! first answers of a connection its blocks are a few bytes of indexes that repeat: a block that left the table as it
//! was is remembered, and recognised by its bytes for as long as the table stays as it is.

use std::collections::VecDeque;

use super::huffman;

/// Bytes of the table we decode with: HTTP/2's default, so the settings need not mention it.
const TABLE_BYTES_MAX: usize = 4096;

/// What an entry counts beyond its text (RFC 7541, 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// Blocks remembered: answers and trailers of all methods look alike.
const KNOWN_MAX: usize = 8;

/// The entries of the static table that an answer can use: status codes, and the names a server sends.
const STATIC_NAMES: [&str; 61] = [
    ":authority",
    ":method",
    ":method",
    ":path",
    ":path",
    ":scheme",
    ":scheme",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "accept",
    "access-control-allow-origin",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
];

/// The values of entries 8 to 14, the only ones with values that matter in an answer.
const STATIC_STATUS: [&str; 7] = ["200", "204", "206", "304", "400", "404", "500"];

/// A block that breaks HPACK; the connection is lost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What a header block says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// `:status`; 0 in trailers.
    pub http_status: u16,
    /// `grpc-status`; a number that is none counts as 2 (UNKNOWN).
    pub grpc_status: Option<u32>,
}

type Field = (Vec<u8>, Vec<u8>);

/// One connection's decoder.
#[derive(Debug)]
pub struct Decoder {
    table: VecDeque<Field>,
    table_bytes: usize,
    table_bytes_max: usize,
    known: Vec<(Vec<u8>, Answer)>,
    message: String,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            table: VecDeque::new(),
            table_bytes: 0,
            table_bytes_max: TABLE_BYTES_MAX,
            known: Vec::new(),
            message: String::new(),
        }
    }
}

impl Decoder {
    /// Decodes a whole block.
    ///
    /// # Errors
    /// [`Malformed`].
    #[inline]
    pub fn decode(&mut self, block: &[u8]) -> Result<Answer, Malformed> {
        match self.known.iter().find(|(bytes, _)| bytes == block) {
            Some((_, answer)) => Ok(*answer),
            None => self.decode_new(block),
        }
    }

    /// The last `grpc-message` of a failed call, as it came (percent-encoded).
    pub fn message(&self) -> &str {
        &self.message
    }

    fn decode_new(&mut self, block: &[u8]) -> Result<Answer, Malformed> {
        let mut answer = Answer::default();
        let mut changed = false;
        let mut input = block;
        while let Some(&first) = input.first() {
            if first & 0xe0 == 0x20 {
                let bytes_max = take_integer(&mut input, 5)?;
                self.resize(bytes_max)?;
                changed = true;
                continue;
            }
            let (field, insert) = self.take_field(&mut input, first)?;
            self.note(&mut answer, &field);
            if insert {
                self.insert(field);
                changed = true;
            }
        }
        if changed {
            self.known.clear();
        } else if self.known.len() < KNOWN_MAX && answer.grpc_status.unwrap_or(0) == 0 {
            self.known.push((block.to_vec(), answer));
        }
        Ok(answer)
    }

    fn take_field(&self, input: &mut &[u8], first: u8) -> Result<(Field, bool), Malformed> {
        if first & 0x80 != 0 {
            return Ok((self.entry(take_integer(input, 7)?)?, false));
        }
        let insert = first & 0x40 != 0;
        let index = take_integer(input, if insert { 6 } else { 4 })?;
        let name = if index == 0 { take_string(input)? } else { self.entry(index)?.0 };
        Ok(((name, take_string(input)?), insert))
    }

    fn entry(&self, index: usize) -> Result<Field, Malformed> {
        if let Some(dynamic) = index.checked_sub(STATIC_NAMES.len() + 1) {
            return self.table.get(dynamic).cloned().ok_or(Malformed);
        }
        let name = index.checked_sub(1).and_then(|at| STATIC_NAMES.get(at)).ok_or(Malformed)?;
        let value = index.checked_sub(8).and_then(|at| STATIC_STATUS.get(at)).unwrap_or(&"");
        Ok((name.as_bytes().to_vec(), value.as_bytes().to_vec()))
    }

    fn note(&mut self, answer: &mut Answer, (name, value): &Field) {
        let text = String::from_utf8_lossy(value);
        match &name[..] {
            b":status" => answer.http_status = text.parse().unwrap_or(0),
            b"grpc-status" => answer.grpc_status = Some(text.parse().unwrap_or(2)),
            b"grpc-message" => self.message = text.into_owned(),
            _ => {}
        }
    }

    fn resize(&mut self, bytes_max: usize) -> Result<(), Malformed> {
        if bytes_max > TABLE_BYTES_MAX {
            return Err(Malformed);
        }
        self.table_bytes_max = bytes_max;
        self.evict();
        Ok(())
    }

    fn insert(&mut self, field: Field) {
        self.table_bytes += field.0.len() + field.1.len() + ENTRY_OVERHEAD;
        self.table.push_front(field);
        self.evict();
    }

    fn evict(&mut self) {
        while self.table_bytes > self.table_bytes_max {
            let Some((name, value)) = self.table.pop_back() else { break };
            self.table_bytes -= name.len() + value.len() + ENTRY_OVERHEAD;
        }
    }
}

/// An integer whose first byte has `prefix` bits of it (RFC 7541, 5.1).
fn take_integer(input: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let (&first, mut rest) = input.split_first().ok_or(Malformed)?;
    let mask = (1usize << prefix) - 1;
    let mut value = usize::from(first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (&byte, tail) = rest.split_first().ok_or(Malformed)?;
            rest = tail;
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 28 {
                return Err(Malformed);
            }
        }
    }
    *input = rest;
    Ok(value)
}

fn take_string(input: &mut &[u8]) -> Result<Vec<u8>, Malformed> {
    let huffman_coded = input.first().ok_or(Malformed)? & 0x80 != 0;
    let length = take_integer(input, 7)?;
    let (text, rest) = input.split_at_checked(length).ok_or(Malformed)?;
    *input = rest;
    if huffman_coded { huffman::decode(text).ok_or(Malformed) } else { Ok(text.to_vec()) }
}

/// Appends an integer with `prefix` bits in the first byte, whose other bits are `pattern`.
pub fn put_integer(out: &mut Vec<u8>, pattern: u8, prefix: u32, value: usize) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a string as it is.
pub fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    put_integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn literal(out: &mut Vec<u8>, insert: bool, name: &str, value: &str) {
        out.push(if insert { 0x40 } else { 0 });
        put_string(out, name.as_bytes());
        put_string(out, value.as_bytes());
    }

    #[test]
    fn answers_are_recognised_by_their_bytes_once_the_table_rests() {
        let mut decoder = Decoder::default();
        let mut block = vec![0x88];
        literal(&mut block, true, "content-type", "application/grpc");
        let ok = Answer { http_status: 200, grpc_status: None };
        assert_eq!(decoder.decode(&block).unwrap(), ok);
        let mut trailers = Vec::new();
        literal(&mut trailers, true, "grpc-status", "0");
        let done = Answer { http_status: 0, grpc_status: Some(0) };
        assert_eq!(decoder.decode(&trailers).unwrap(), done);
        for _ in 0..3 {
            assert_eq!(decoder.decode(&[0x88, 0xbf]).unwrap(), ok);
            assert_eq!(decoder.decode(&[0xbe]).unwrap(), done);
        }
        assert_eq!(decoder.known.len(), 2);
        let mut failed = Vec::new();
        literal(&mut failed, true, "grpc-status", "8");
        literal(&mut failed, false, "grpc-message", "log%20is full");
        assert_eq!(decoder.decode(&failed).unwrap().grpc_status, Some(8));
        assert_eq!(decoder.message(), "log%20is full");
        assert_eq!(decoder.decode(&[0xbe]).unwrap().grpc_status, Some(8), "the table moved on");
        assert_eq!(decoder.decode(&[0xbf]).unwrap(), done);
    }

    #[test]
    fn a_smaller_table_forgets_the_oldest() {
        let mut decoder = Decoder::default();
        let mut block = Vec::new();
        literal(&mut block, true, "grpc-status", "0");
        literal(&mut block, true, "grpc-status", "5");
        decoder.decode(&block).unwrap();
        assert_eq!(decoder.decode(&[0xbf]).unwrap().grpc_status, Some(0));
        let mut shrink = Vec::new();
        put_integer(&mut shrink, 0x20, 5, 50);
        decoder.decode(&shrink).unwrap();
        assert_eq!(decoder.decode(&[0xbe]).unwrap().grpc_status, Some(5));
        assert_eq!(decoder.decode(&[0xbf]), Err(Malformed));
        let mut grow = Vec::new();
        put_integer(&mut grow, 0x20, 5, TABLE_BYTES_MAX + 1);
        assert_eq!(decoder.decode(&grow), Err(Malformed));
    }

    proptest! {
        #[test]
        fn integers_read_back(value in 0usize..1 << 28, prefix in 1u32..8) {
            let mut bytes = Vec::new();
            put_integer(&mut bytes, 0, prefix, value);
            let mut input = &bytes[..];
            prop_assert_eq!(take_integer(&mut input, prefix).unwrap(), value);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn noise_never_panics(blocks: Vec<Vec<u8>>) {
            let mut decoder = Decoder::default();
            for block in blocks {
                let _ = decoder.decode(&block);
                prop_assert!(decoder.table_bytes <= decoder.table_bytes_max);
            }
        }
    }
}
