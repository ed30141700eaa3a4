//! A key with all it holds as lines of JSON: what `kv export` writes and `kv import` reads.
//!
//! ```text
//! {"key":"k","type":"bytes","value":"v","expires_at_ms":1795262400000}
//! {"key":"n","type":"counter","value":"5"}
//! {"key":"h","type":"hash","fields":[["a","1"],["b","2",1795262400000]]}
//! {"key":"s","type":"set","members":["a",{"base64":"/w=="}]}
//! {"key":"z","type":"sorted_set","scores":[["a",1.5],["b","inf"]]}
//! {"key":"l","type":"list","values":["x","y"]}
//! {"key":"l","type":"list","values":["z"],"more":true}
//! ```
//! A large collection takes several lines; those with `more` go on with the key. A field that ends has its end behind it.
//! Bytes that are not UTF-8 are objects with `base64`, or, as a key or a value, `key_base64` and `value_base64`.

use std::borrow::Cow;

use bytes::Bytes;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::run::DecimalJson;
use crate::cli::base64;
use crate::cli::json_lines::{optional_bytes, parse};
use crate::cli::output::BytesJson;

/// A field of a hash, its value, and when it ends, if it does.
pub type Field = (Bytes, Bytes, Option<u64>);

/// A key, and all or a part of what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The key.
    pub key: Bytes,
    /// What it holds.
    pub content: Content,
    /// When it ends, ms since the epoch, if it does.
    pub expires_at_ms: Option<u64>,
    /// A line before this one has the beginning.
    pub more: bool,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Bytes.
    Bytes(Bytes),
    /// A number, as text.
    Counter(Number),
    /// Fields.
    Hash(Vec<Field>),
    /// Members.
    Set(Vec<Bytes>),
    /// Members with scores.
    SortedSet(Vec<(Bytes, f64)>),
    /// Values.
    List(Vec<Bytes>),
}

/// What a counter holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Whole.
    Integer(i64),
    /// Another.
    Decimal(f64),
}

impl Number {
    /// The number that a counter's text is.
    pub fn of(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let decimal = || text.parse().ok().filter(|value: &f64| value.is_finite()).map(Self::Decimal);
        text.parse().ok().map(Self::Integer).or_else(decimal)
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(value) => value.fmt(f),
            Self::Decimal(value) => value.fmt(f),
        }
    }
}

struct FieldJson<'a>(&'a Field);

impl Serialize for FieldJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (field, value, end) = self.0;
        match end {
            None => (BytesJson(field), BytesJson(value)).serialize(serializer),
            Some(end) => (BytesJson(field), BytesJson(value), end).serialize(serializer),
        }
    }
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        put_bytes(&mut map, ["key", "key_base64"], &self.key)?;
        match &self.content {
            Content::Bytes(value) => {
                map.serialize_entry("type", "bytes")?;
                put_bytes(&mut map, ["value", "value_base64"], value)?;
            }
            Content::Counter(number) => {
                map.serialize_entry("type", "counter")?;
                map.serialize_entry("value", &number.to_string())?;
            }
            Content::Hash(fields) => {
                map.serialize_entry("type", "hash")?;
                map.serialize_entry("fields", &Seq(|| fields.iter().map(FieldJson)))?;
            }
            Content::Set(members) => {
                map.serialize_entry("type", "set")?;
                map.serialize_entry("members", &Seq(|| members.iter().map(|member| BytesJson(member))))?;
            }
            Content::SortedSet(members) => {
                map.serialize_entry("type", "sorted_set")?;
                map.serialize_entry(
                    "scores",
                    &Seq(|| members.iter().map(|(member, score)| (BytesJson(member), DecimalJson(*score)))),
                )?;
            }
            Content::List(values) => {
                map.serialize_entry("type", "list")?;
                map.serialize_entry("values", &Seq(|| values.iter().map(|value| BytesJson(value))))?;
            }
        }
        if let Some(end) = self.expires_at_ms {
            map.serialize_entry("expires_at_ms", &end)?;
        }
        if self.more {
            map.serialize_entry("more", &true)?;
        }
        map.end()
    }
}

fn put_bytes<M: SerializeMap>(map: &mut M, names: [&'static str; 2], bytes: &[u8]) -> Result<(), M::Error> {
    let [plain, coded] = names;
    match std::str::from_utf8(bytes) {
        Ok(text) => map.serialize_entry(plain, text),
        Err(_) => map.serialize_entry(coded, &base64::encode(bytes)),
    }
}

/// A list that is made while it is written.
struct Seq<F>(F);

impl<I: Iterator<Item: Serialize>, F: Fn() -> I> Serialize for Seq<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LineJson<'a> {
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    key_base64: Option<Cow<'a, str>>,
    #[serde(borrow)]
    r#type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    value_base64: Option<Cow<'a, str>>,
    #[serde(borrow)]
    fields: Option<Vec<Vec<&'a RawValue>>>,
    #[serde(borrow)]
    members: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    scores: Option<Vec<Vec<&'a RawValue>>>,
    #[serde(borrow)]
    values: Option<Vec<&'a RawValue>>,
    expires_at_ms: Option<u64>,
    #[serde(default)]
    more: bool,
    /// What `kv scan` shows; a key gets a new one.
    #[serde(rename = "version")]
    _version: Option<u64>,
}

const NAMES: &str = "key, type, value, fields, members, scores, values, expires_at_ms, more";

/// Reads a line.
pub fn read(line: &[u8]) -> Result<Line, String> {
    let json: LineJson<'_> = parse(line, NAMES)?;
    let word = json.r#type.as_deref().unwrap_or("bytes");
    let given = [
        ("value", json.value.is_some() || json.value_base64.is_some()),
        ("fields", json.fields.is_some()),
        ("members", json.members.is_some()),
        ("scores", json.scores.is_some()),
        ("values", json.values.is_some()),
    ];
    let wanted = match word {
        "bytes" | "counter" => "value",
        "hash" => "fields",
        "set" => "members",
        "sorted_set" => "scores",
        "list" => "values",
        other => {
            return Err(format!("type is `{other}`; allowed: bytes, counter, hash, set, sorted_set, list"));
        }
    };
    if let Some((other, _)) = given.iter().find(|(name, is_given)| *is_given && *name != wanted) {
        return Err(format!("has {other}, but a {word} has {wanted}"));
    }
    if json.more && wanted == "value" {
        return Err(format!("has more, but a {word} has one line"));
    }
    let key = optional_bytes("key", json.key, json.key_base64)?.ok_or("has no key")?;
    let value = optional_bytes("value", json.value, json.value_base64)?;
    let missing = || format!("has no {wanted}, which a {word} has");
    let content = match word {
        "bytes" => Content::Bytes(value.ok_or_else(missing)?),
        "counter" => {
            let text = value.ok_or_else(missing)?;
            let number = Number::of(&text).ok_or("value is no number, but the type is counter")?;
            Content::Counter(number)
        }
        "hash" => Content::Hash(each(&json.fields.ok_or_else(missing)?, "fields", |items| field(items))?),
        "set" => Content::Set(each(&json.members.ok_or_else(missing)?, "members", |raw| bytes(raw))?),
        "sorted_set" => {
            Content::SortedSet(each(&json.scores.ok_or_else(missing)?, "scores", |items| scored(items))?)
        }
        _ => Content::List(each(&json.values.ok_or_else(missing)?, "values", |raw| bytes(raw))?),
    };
    if json.expires_at_ms == Some(0) {
        return Err("expires_at_ms is 0; allowed: 1 and up, or none".to_owned());
    }
    Ok(Line { key, content, expires_at_ms: json.expires_at_ms, more: json.more })
}

fn each<T, R>(items: &[T], name: &str, read: impl Fn(&T) -> Result<R, String>) -> Result<Vec<R>, String> {
    if items.is_empty() {
        return Err(format!("{name} is empty; a collection has at least one"));
    }
    let numbered = items.iter().enumerate();
    numbered.map(|(place, item)| read(item).map_err(|error| format!("{name}[{place}] {error}"))).collect()
}

fn bytes(raw: &RawValue) -> Result<Bytes, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Coded {
        base64: String,
    }
    let refused = || "is no string and no object with base64".to_owned();
    if raw.get().starts_with('"') {
        return serde_json::from_str::<String>(raw.get()).map(Bytes::from).map_err(|_| refused());
    }
    let coded: Coded = serde_json::from_str(raw.get()).map_err(|_| refused())?;
    base64::decode(&coded.base64).map(Bytes::from).ok_or_else(|| "is not padded base64".to_owned())
}

fn field(items: &[&RawValue]) -> Result<Field, String> {
    match items {
        [field, value] => Ok((bytes(field)?, bytes(value)?, None)),
        [field, value, end] => {
            let end = end.get().parse().ok().filter(|&end: &u64| end > 0);
            let end = end.ok_or("has an end that is no time in milliseconds")?;
            Ok((bytes(field)?, bytes(value)?, Some(end)))
        }
        _ => Err("is no list of a field, a value and perhaps an end".to_owned()),
    }
}

/// The score is read by the language: JSON's reader would lose its last bit.
fn scored(items: &[&RawValue]) -> Result<(Bytes, f64), String> {
    let [member, score] = items else {
        return Err("is no list of a member and a score".to_owned());
    };
    let score = score.get().trim_matches('"').parse().ok().filter(|score: &f64| !score.is_nan());
    Ok((bytes(member)?, score.ok_or("has a score that is no number")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn b(text: &'static [u8]) -> Bytes {
        Bytes::from_static(text)
    }

    fn line(content: Content) -> Line {
        Line { key: b(b"k"), content, expires_at_ms: None, more: false }
    }

    #[test]
    fn lines_look_as_documented() {
        let rows = [
            (
                Line { expires_at_ms: Some(5), ..line(Content::Bytes(b(b"v"))) },
                r#"{"key":"k","type":"bytes","value":"v","expires_at_ms":5}"#,
            ),
            (line(Content::Bytes(b(&[0xFF]))), r#"{"key":"k","type":"bytes","value_base64":"/w=="}"#),
            (line(Content::Counter(Number::Integer(-5))), r#"{"key":"k","type":"counter","value":"-5"}"#),
            (line(Content::Counter(Number::Decimal(0.5))), r#"{"key":"k","type":"counter","value":"0.5"}"#),
            (
                line(Content::Hash(vec![(b(b"a"), b(b"1"), None), (b(b"b"), b(&[0xFF]), Some(7))])),
                r#"{"key":"k","type":"hash","fields":[["a","1"],["b",{"base64":"/w=="},7]]}"#,
            ),
            (line(Content::Set(vec![b(b"a")])), r#"{"key":"k","type":"set","members":["a"]}"#),
            (
                line(Content::SortedSet(vec![(b(b"a"), 1.5), (b(b"b"), f64::INFINITY)])),
                r#"{"key":"k","type":"sorted_set","scores":[["a",1.5],["b","inf"]]}"#,
            ),
            (
                Line { more: true, ..line(Content::List(vec![b(b"x")])) },
                r#"{"key":"k","type":"list","values":["x"],"more":true}"#,
            ),
        ];
        for (line, text) in rows {
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
            assert_eq!(read(text.as_bytes()), Ok(line));
        }
        let scanned = br#"{"key":"k","value":{"a":1},"version":7}"#;
        assert_eq!(read(scanned), Ok(line(Content::Bytes(b(br#"{"a":1}"#)))));
    }

    #[test]
    fn a_line_that_is_wrong_is_refused_with_what_is_wrong() {
        for (line, part) in [
            ("x", "is not a JSON object with key, type"),
            (r#"{"value":"v"}"#, "has no key"),
            (r#"{"key":"k"}"#, "has no value, which a bytes has"),
            (r#"{"key":"k","type":"zset"}"#, "type is `zset`; allowed: bytes, counter"),
            (r#"{"key":"k","type":"set","values":["a"]}"#, "has values, but a set has members"),
            (r#"{"key":"k","type":"set","members":[]}"#, "members is empty"),
            (r#"{"key":"k","type":"set","members":[7]}"#, "members[0] is no string"),
            (r#"{"key":"k","type":"counter","value":"x"}"#, "value is no number"),
            (r#"{"key":"k","type":"counter","value":"nan"}"#, "value is no number"),
            (r#"{"key":"k","type":"sorted_set","scores":[["a","nan"]]}"#, "scores[0] has a score"),
            (r#"{"key":"k","type":"hash","fields":[["a","1"],["b"]]}"#, "fields[1] is no list"),
            (r#"{"key":"k","type":"hash","fields":[["a","1",0]]}"#, "fields[0] has an end"),
            (r#"{"key":"k","value":"v","expires_at_ms":0}"#, "expires_at_ms is 0"),
            (r#"{"key":"k","value":"v","more":true}"#, "a bytes has one line"),
            (r#"{"key":"k","value":"v","ttl":1}"#, "unknown field `ttl`"),
        ] {
            let error = read(line.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    proptest! {
        #[test]
        fn scores_and_bytes_survive_the_way_through_json(
            scores in proptest::collection::vec((any::<Vec<u8>>(), any::<f64>()), 1..5),
            key: Vec<u8>,
            end in proptest::option::of(1u64..),
        ) {
            let scores: Vec<(Bytes, f64)> = scores.into_iter()
                .filter(|(_, score)| !score.is_nan())
                .map(|(member, score)| (Bytes::from(member), score)).collect();
            prop_assume!(!scores.is_empty());
            let content = Content::SortedSet(scores);
            let line = Line { key: key.into(), content, expires_at_ms: end, more: false };
            prop_assert_eq!(read(&serde_json::to_vec(&line).unwrap()), Ok(line));
        }
    }
}
