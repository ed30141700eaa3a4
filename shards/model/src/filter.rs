//! Which records a reader wants: a few conditions that must all hold, decided on packed records as they rest.
//!
//! Conditions on key and headers look at the record's bytes and copy nothing. A condition on the value reads it as JSON once,
//! from left to right, without building it ([`json`]); [`path`] says which paths there are. What is not well-formed does not
//! match: not JSON, no such member, another type.

mod hex;
mod json;
mod path;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits::{
    FILTER_CONDITIONS_MAX, HEADER_NAME_BYTES_MAX, HEADER_VALUE_BYTES_MAX, JSON_SCALAR_BYTES_MAX,
    KEY_BYTES_MAX,
};
use crate::record::{Field, Fields, split_header};
use crate::reject::Reject;

use json::Scalar;
pub use path::{JsonPath, Segment};

/// One condition on a record, as a client writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Condition {
    /// The record has this key.
    KeyEquals(#[serde(with = "hex")] Bytes),
    /// The record has a key that starts with this; empty: any key.
    KeyPrefix(#[serde(with = "hex")] Bytes),
    /// One of the headers has this name and this value.
    HeaderEquals {
        /// The header's name.
        #[serde(with = "hex")]
        name: Bytes,
        /// Its value.
        #[serde(with = "hex")]
        value: Bytes,
    },
    /// One of the headers has this name.
    HeaderExists {
        /// The header's name.
        #[serde(with = "hex")]
        name: Bytes,
    },
    /// The value is JSON and has this scalar at this place. Integers of 64 bits are compared exactly, other numbers as
    /// IEEE doubles: `3`, `3.0` and `30e-1` are equal.
    JsonEquals {
        /// The place, see [`JsonPath::parse`].
        path: String,
        /// A string, number, boolean or null, as JSON text.
        value: String,
    },
}

/// Conditions in the form in which they are decided. All must hold; without any, every record matches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordFilter {
    keys: Vec<KeyTest>,
    headers: Vec<HeaderTest>,
    json: Vec<JsonTest>,
}

#[derive(Clone, Debug, PartialEq)]
enum KeyTest {
    Is(Bytes),
    StartsWith(Bytes),
}

#[derive(Clone, Debug, PartialEq)]
struct HeaderTest {
    name: Bytes,
    /// `None`: any.
    value: Option<Bytes>,
}

#[derive(Clone, Debug, PartialEq)]
struct JsonTest {
    path: JsonPath,
    wanted: Scalar,
}

/// What is wrong with one condition, before it has its number.
struct Fault {
    part: &'static str,
    at: usize,
    problem: String,
}

impl RecordFilter {
    /// Checks conditions and prepares them.
    ///
    /// # Errors
    /// [`Reject::IllegalFilter`] with the first condition that is wrong, and where in it.
    pub fn new(conditions: impl IntoIterator<Item = Condition>) -> Result<Self, Reject> {
        let mut filter = Self::default();
        for (number, condition) in (0u32..).zip(conditions) {
            filter.add(number, condition).map_err(|Fault { part, at, problem }| Reject::IllegalFilter {
                condition: number,
                part,
                at: at as u64,
                problem,
            })?;
        }
        Ok(filter)
    }

    fn add(&mut self, number: u32, condition: Condition) -> Result<(), Fault> {
        if number as usize >= FILTER_CONDITIONS_MAX {
            let problem = format!("one more than the {FILTER_CONDITIONS_MAX} that are allowed");
            return Err(Fault { part: "condition", at: 0, problem });
        }
        match condition {
            Condition::KeyEquals(key) => {
                check_size("key", &key, KEY_BYTES_MAX)?;
                self.keys.push(KeyTest::Is(key));
            }
            Condition::KeyPrefix(prefix) => {
                check_size("key prefix", &prefix, KEY_BYTES_MAX)?;
                self.keys.push(KeyTest::StartsWith(prefix));
            }
            Condition::HeaderEquals { name, value } => {
                check_name(&name)?;
                check_size("header value", &value, HEADER_VALUE_BYTES_MAX)?;
                self.headers.push(HeaderTest { name, value: Some(value) });
            }
            Condition::HeaderExists { name } => {
                check_name(&name)?;
                self.headers.push(HeaderTest { name, value: None });
            }
            Condition::JsonEquals { path, value } => {
                let path = JsonPath::parse(&path).map_err(|fault| Fault {
                    part: "JSON path",
                    at: fault.at,
                    problem: fault.problem.to_owned(),
                })?;
                check_size("JSON value", value.as_bytes(), JSON_SCALAR_BYTES_MAX)?;
                let wanted = Scalar::parse(&value).map_err(|(at, problem)| Fault {
                    part: "JSON value",
                    at,
                    problem,
                })?;
                self.json.push(JsonTest { path, wanted });
            }
        }
        Ok(())
    }

    /// Whether there is no condition, so that every record matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.headers.is_empty() && self.json.is_empty()
    }

    /// Whether one packed record (without its tag and length) meets every condition. Of a field that stands twice the last
    /// one counts, as everywhere.
    #[must_use]
    pub fn matches(&self, record: &[u8]) -> bool {
        let (mut key, mut value, mut headers_met) = (None, &[][..], 0u32);
        for field in Fields::new(record) {
            match field {
                Ok(Field::Key(bytes)) => key = Some(bytes),
                Ok(Field::Value(bytes)) => value = bytes,
                Ok(Field::Header(header)) => headers_met |= self.met_by(header),
                Ok(Field::Time(_)) => {}
                Err(_) => return false,
            }
        }
        headers_met.count_ones() as usize == self.headers.len()
            && self.keys.iter().all(|test| test.holds(key))
            && self.json.iter().all(|test| json::has(value, test.path.segments(), &test.wanted))
    }

    /// The header conditions that one header meets, a bit each.
    fn met_by(&self, header: &[u8]) -> u32 {
        if self.headers.is_empty() {
            return 0;
        }
        let Ok((name, value)) = split_header(header) else { return 0 };
        let meets =
            |test: &HeaderTest| test.name == name && test.value.as_ref().is_none_or(|wanted| wanted == value);
        (0u32..).zip(&self.headers).filter(|(_, test)| meets(test)).fold(0, |met, (bit, _)| met | 1 << bit)
    }
}

impl KeyTest {
    fn holds(&self, key: Option<&[u8]>) -> bool {
        key.is_some_and(|key| match self {
            Self::Is(wanted) => wanted == key,
            Self::StartsWith(prefix) => key.starts_with(prefix),
        })
    }
}

fn check_name(name: &[u8]) -> Result<(), Fault> {
    let fault = |at, problem: &str| Fault { part: "header name", at, problem: problem.to_owned() };
    if name.is_empty() {
        return Err(fault(0, "is empty"));
    }
    check_size("header name", name, HEADER_NAME_BYTES_MAX)?;
    std::str::from_utf8(name).map(drop).map_err(|error| fault(error.valid_up_to(), "is not UTF-8"))
}

fn check_size(part: &'static str, bytes: &[u8], max: usize) -> Result<(), Fault> {
    if bytes.len() <= max {
        return Ok(());
    }
    Err(Fault { part, at: max, problem: format!("has {} bytes; at most {max} are allowed", bytes.len()) })
}
