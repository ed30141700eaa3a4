//! The two shapes every stored byte is made of: LEB128 variable-length integers, and length-prefixed bytes.
//!
//! A [`Reader`] never panics on what it is given: everything it reads comes from outside.

use bytes::{Buf, BufMut, Bytes};

/// Stored bytes do not have the shape they must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub struct Malformed(pub &'static str);

/// Below this, what is kept for long is copied out of the buffer it arrived in, so that it does not keep a whole
/// network or log buffer alive.
pub const COPY_BELOW_BYTES: usize = 16 * 1024;

/// The same bytes, in memory of their own if they are few (see [`COPY_BELOW_BYTES`]).
#[must_use]
pub fn detached(bytes: &Bytes) -> Bytes {
    if bytes.len() < COPY_BELOW_BYTES { Bytes::copy_from_slice(bytes) } else { bytes.clone() }
}

/// Appends a LEB128 integer: seven bits a byte, low first, the high bit says that more follow.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value as u8) | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Appends bytes with their length before them.
pub fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// How many bytes [`put_varint`] takes.
#[must_use]
pub const fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// How many bytes [`put_bytes`] takes.
#[must_use]
pub const fn bytes_len(len: usize) -> usize {
    varint_len(len as u64) + len
}

/// Reads what `put_*` wrote, without copying.
#[derive(Clone, Debug)]
pub struct Reader(Bytes);

impl Reader {
    /// A reader of these bytes.
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How much is left.
    pub fn remaining(&self) -> usize {
        self.0.len()
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        if self.0.is_empty() { Err(Malformed("ends early")) } else { Ok(self.0.get_u8()) }
    }

    /// A LEB128 integer.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let (value, used) = read_varint(&self.0)?;
        self.0.advance(used);
        Ok(value)
    }

    /// A LEB128 integer that fits 32 bits.
    pub fn varint_u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed("integer above 32 bits"))
    }

    /// Length-prefixed bytes, sharing the reader's buffer.
    pub fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let len = usize::try_from(self.varint()?).map_err(|_| Malformed("length above memory"))?;
        if len > self.0.len() {
            return Err(Malformed("length beyond the end"));
        }
        Ok(self.0.split_to(len))
    }

    /// So many bytes, sharing the reader's buffer.
    pub fn take(&mut self, len: usize) -> Result<Bytes, Malformed> {
        if len > self.0.len() { Err(Malformed("ends early")) } else { Ok(self.0.split_to(len)) }
    }

    /// Length-prefixed UTF-8.
    pub fn text(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| Malformed("text is not UTF-8"))
    }
}

/// A LEB128 integer at the start of `bytes`, and how many bytes it takes.
#[inline]
pub fn read_varint(bytes: &[u8]) -> Result<(u64, usize), Malformed> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            if index == 9 && byte > 1 {
                return Err(Malformed("integer above 64 bits"));
            }
            return Ok((value, index + 1));
        }
    }
    Err(Malformed(if bytes.len() < 10 { "ends early" } else { "integer above 64 bits" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_and_bytes_round_trip(value: u64, text: Vec<u8>) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            put_bytes(&mut out, &text);
            prop_assert_eq!(out.len(), varint_len(value) + bytes_len(text.len()));
            let mut reader = Reader::new(out.into());
            prop_assert_eq!(reader.varint().unwrap(), value);
            prop_assert_eq!(reader.bytes().unwrap(), text);
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(noise: Vec<u8>) {
            let mut reader = Reader::new(noise.into());
            while reader.bytes().is_ok() && !reader.is_empty() {}
            let _ = reader.varint();
            let _ = reader.byte();
        }
    }
}
