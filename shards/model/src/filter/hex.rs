//! Bytes as hexadecimal text, for conditions that are kept in settings: JSON has no bytes.

use bytes::Bytes;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let text: String = digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect();
    serializer.serialize_str(&text)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8));
    let digits: Option<Vec<u8>> = digits.collect();
    let digits = digits.ok_or_else(|| D::Error::custom("not hexadecimal"))?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(D::Error::custom("half a byte"));
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
