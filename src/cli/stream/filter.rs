//! `--filter`: one condition on records, in a short form.
//!
//! | form | holds if |
//! |---|---|
//! | `key=VALUE` | the record has this key |
//! | `key^=PREFIX` | it has a key that starts so |
//! | `header:NAME=VALUE` | one of its headers has this name and value |
//! | `header:NAME` | one of its headers has this name |
//! | `json:PATH=VALUE` | its value is JSON with this scalar at this place; a VALUE that is no JSON is text |

use bytes::Bytes;
use clap::Args;
use flowmesh_model::filter::{Condition, RecordFilter};
use flowmesh_model::{Offset, Reject};
use flowmesh_proto::v1;
use flowmesh_proto::v1::filter_condition::Condition as Wire;

/// Which records.
#[derive(Args, Clone, Debug, Default)]
pub struct Filters {
    /// Only records for which this holds: key=VALUE, key^=PREFIX, header:NAME=VALUE, header:NAME or json:PATH=VALUE; may
    /// be repeated, then all must hold. The server leaves out the others
    #[arg(long = "filter", value_name = "CONDITION", value_parser = condition)]
    conditions: Vec<v1::FilterCondition>,
}

impl Filters {
    /// As the API takes it; `None` without conditions.
    pub fn message(&self) -> Option<v1::Filter> {
        let conditions = self.conditions.clone();
        (!conditions.is_empty()).then_some(v1::Filter { conditions })
    }
}

fn condition(text: &str) -> Result<v1::FilterCondition, String> {
    let wire = parse(text).ok_or_else(|| {
        "allowed: key=VALUE, key^=PREFIX, header:NAME=VALUE, header:NAME, json:PATH=VALUE".to_owned()
    })?;
    check(&wire)?;
    Ok(v1::FilterCondition { condition: Some(wire) })
}

fn parse(text: &str) -> Option<Wire> {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    if let Some(prefix) = text.strip_prefix("key^=") {
        Some(Wire::KeyPrefix(bytes(prefix)))
    } else if let Some(key) = text.strip_prefix("key=") {
        Some(Wire::KeyEquals(bytes(key)))
    } else if let Some(header) = text.strip_prefix("header:") {
        Some(match header.split_once('=') {
            Some((name, value)) => {
                Wire::HeaderEquals(v1::Header { name: name.to_owned(), value: bytes(value) })
            }
            None => Wire::HeaderExists(header.to_owned()),
        })
    } else {
        let (path, value) = split_json(text.strip_prefix("json:")?)?;
        Some(Wire::JsonEquals(v1::JsonEquals { path: path.to_owned(), value: scalar(value) }))
    }
}

/// The path ends at the first `=` outside of quotes.
fn split_json(text: &str) -> Option<(&str, &str)> {
    let (mut quote, mut is_escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(_), _) if is_escaped => is_escaped = false,
            (Some(_), '\\') => is_escaped = true,
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '=') => return Some((text.get(..at)?, text.get(at + 1..)?)),
            _ => {}
        }
    }
    None
}

/// A value as JSON: as it stands if it is JSON, else as a string.
fn scalar(value: &str) -> String {
    if serde_json::from_str::<serde::de::IgnoredAny>(value).is_ok() {
        value.to_owned()
    } else {
        serde_json::Value::from(value).to_string()
    }
}

/// Refuses what the server would refuse, before anything is sent.
fn check(wire: &Wire) -> Result<(), String> {
    let condition = match wire.clone() {
        Wire::KeyEquals(key) => Condition::KeyEquals(key),
        Wire::KeyPrefix(prefix) => Condition::KeyPrefix(prefix),
        Wire::HeaderEquals(v1::Header { name, value }) => {
            Condition::HeaderEquals { name: name.into(), value }
        }
        Wire::HeaderExists(name) => Condition::HeaderExists { name: name.into() },
        Wire::JsonEquals(v1::JsonEquals { path, value }) => Condition::JsonEquals { path, value },
    };
    RecordFilter::new([condition]).map(drop).map_err(|reject| match reject {
        Reject::IllegalFilter { part, at, problem, .. } => format!("{part} at byte {at}: {problem}"),
        other => other.to_string(),
    })
}

/// The offsets of a batch's records, in order.
pub fn offsets(batch: &v1::RecordBatch) -> impl Iterator<Item = u64> {
    let deltas = &batch.offset_deltas;
    (0u64..)
        .zip(&batch.records)
        .zip(0usize..)
        .map(move |((dense, _), index)| batch.base_offset + deltas.get(index).copied().unwrap_or(dense))
}

/// Where to go on behind a batch.
pub fn next_offset(batch: &v1::RecordBatch) -> u64 {
    let count = batch.offset_deltas.last().map_or(u64::from(batch.count), |last| last.saturating_add(1));
    batch.next_offset.unwrap_or(Offset(batch.base_offset).plus(count).get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(path: &str, value: &str) -> Wire {
        Wire::JsonEquals(v1::JsonEquals { path: path.to_owned(), value: value.to_owned() })
    }

    #[test]
    fn conditions_are_read_from_their_short_forms() {
        let header = |name: &str, value: &'static str| {
            Wire::HeaderEquals(v1::Header {
                name: name.to_owned(),
                value: Bytes::from_static(value.as_bytes()),
            })
        };
        for (text, wanted) in [
            ("key=a=b", Wire::KeyEquals("a=b".into())),
            ("key^=user:", Wire::KeyPrefix("user:".into())),
            ("key^=", Wire::KeyPrefix("".into())),
            ("header:source=sys=log", header("source", "sys=log")),
            ("header:source", Wire::HeaderExists("source".to_owned())),
            ("json:$.a.b=3", json("$.a.b", "3")),
            ("json:$.name=Ada", json("$.name", r#""Ada""#)),
            ("json:$.name=\"3\"", json("$.name", r#""3""#)),
            ("json:$['a=\\'b'][0]=x=y", json("$['a=\\'b'][0]", r#""x=y""#)),
            ("json:$.ok=true", json("$.ok", "true")),
        ] {
            assert_eq!(condition(text), Ok(v1::FilterCondition { condition: Some(wanted) }), "{text}");
        }
        for text in ["", "key", "value=3", "header:", "header:=x", "json:$.a", "json:a=1", "json:$.a=[1]"] {
            assert!(condition(text).is_err(), "{text}");
        }
        assert_eq!(
            condition("json:$..a=1").unwrap_err(),
            "JSON path at byte 2: descendants (..) are not supported"
        );
    }

    #[test]
    fn offsets_of_a_batch_may_have_gaps() {
        let records = vec![v1::Record::default(); 3];
        let dense = v1::RecordBatch { base_offset: 7, count: 3, records, ..Default::default() };
        assert_eq!((offsets(&dense).collect::<Vec<_>>(), next_offset(&dense)), (vec![7, 8, 9], 10));
        let gaps = v1::RecordBatch { offset_deltas: vec![0, 5, 6], next_offset: Some(40), ..dense };
        assert_eq!((offsets(&gaps).collect::<Vec<_>>(), next_offset(&gaps)), (vec![7, 12, 13], 40));
    }
}
