//! Protobuf, read field by field without building anything: just enough to check answers at full speed.

/// A message that is not protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadWire;

/// One field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number.
    Number(u64),
    /// Bytes, text, a message, packed numbers.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The number; 0 for bytes.
    #[inline]
    pub fn number(self) -> u64 {
        match self {
            Self::Number(number) => number,
            Self::Bytes(_) => 0,
        }
    }

    /// The bytes; none for a number.
    #[inline]
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Number(_) => &[],
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The fields of a message in the order they came: number and value.
#[derive(Clone, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), BadWire>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = take_field(&mut self.0);
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(BadWire))
    }
}

#[inline]
fn take_field<'a>(input: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = take_varint(input)?;
    let value = match tag & 7 {
        0 => Value::Number(take_varint(input)?),
        2 => {
            let length = take_varint(input)? as usize;
            let (bytes, rest) = input.split_at_checked(length)?;
            *input = rest;
            Value::Bytes(bytes)
        }
        _ => return None,
    };
    Some((tag >> 3, value))
}

/// Takes a varint off the front.
#[inline]
pub fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = input.split_first()?;
    if first < 0x80 {
        *input = rest;
        return Some(u64::from(first));
    }
    let (mut value, mut shift, mut rest) = (u64::from(first & 0x7f), 7, rest);
    loop {
        let (&byte, tail) = rest.split_first()?;
        rest = tail;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        shift += 7;
        if byte < 0x80 {
            *input = rest;
            return Some(value);
        }
    }
}

/// Appends a varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes of [`fixed_varint`].
pub const FIXED_VARINT_BYTES: usize = 5;

/// A varint of always five bytes, so that it can be replaced where it stands. Up to 2³⁵.
#[inline]
pub fn fixed_varint(value: u64) -> [u8; FIXED_VARINT_BYTES] {
    let group = |shift: u32| (value >> shift) as u8 & 0x7f;
    [group(0) | 0x80, group(7) | 0x80, group(14) | 0x80, group(21) | 0x80, group(28)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_proto::v1;
    use proptest::prelude::*;
    use prost::Message;

    proptest! {
        #[test]
        fn varints_read_back(value: u64, small in 0u64..1 << 35) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            bytes.extend_from_slice(&fixed_varint(small));
            let mut input = &bytes[..];
            prop_assert_eq!(take_varint(&mut input), Some(value));
            prop_assert_eq!(take_varint(&mut input), Some(small));
            prop_assert!(input.is_empty());
        }

        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            for field in Fields(&noise) {
                let _ = field;
            }
        }

        #[test]
        fn fields_are_those_prost_wrote(token: u64, payload: Vec<u8>, attempt: u32) {
            let job = v1::LeasedJob { token, payload: payload.clone().into(), attempt, ..Default::default() };
            let bytes = job.encode_to_vec();
            let (mut seen_token, mut seen_payload, mut seen_attempt) = (0, Vec::new(), 0);
            for field in Fields(&bytes) {
                match field.unwrap() {
                    (2, value) => seen_token = value.number(),
                    (4, value) => seen_payload = value.bytes().to_vec(),
                    (5, value) => seen_attempt = value.number() as u32,
                    _ => {}
                }
            }
            prop_assert_eq!((seen_token, seen_payload, seen_attempt), (token, payload, attempt));
        }
    }
}
