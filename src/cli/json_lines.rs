//! Records and jobs as JSON lines.
//!
//! A value, payload, key or header that is a JSON string is its text; any other JSON value is kept as JSON text.
//! `key_base64` and `value_base64` take bytes that are no text, so that what `stream read --output json` writes can be
//! appended again.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use flowmesh_proto::v1;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::queue::backoff;
use super::{args, base64};

/// A record's line. The last three are what `stream read` adds; they are passed over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordLine<'a> {
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    key_base64: Option<Cow<'a, str>>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    value_base64: Option<Cow<'a, str>>,
    #[serde(default)]
    headers: HeaderMap,
    timestamp_ms: Option<u64>,
    #[serde(rename = "partition")]
    _partition: Option<u64>,
    #[serde(rename = "offset")]
    _offset: Option<u64>,
    #[serde(rename = "appended_at_ms")]
    _appended_at_ms: Option<u64>,
}

/// A job's line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JobLine<'a> {
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    payload_base64: Option<Cow<'a, str>>,
    priority: Option<u8>,
    #[serde(borrow)]
    delay: Option<&'a RawValue>,
    max_attempts: Option<u32>,
    key: Option<String>,
    #[serde(borrow)]
    key_window: Option<&'a RawValue>,
    group: Option<String>,
    #[serde(borrow)]
    run_at: Option<&'a RawValue>,
    #[serde(borrow)]
    ttl: Option<&'a RawValue>,
    #[serde(borrow)]
    backoff: Option<Cow<'a, str>>,
    after: Option<Vec<u32>>,
    after_jobs: Option<Vec<u64>>,
    after_any_end: Option<bool>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    #[serde(default)]
    headers: HeaderMap,
}

/// One line as a record.
pub fn record(line: &[u8]) -> Result<v1::Record, String> {
    let parsed: RecordLine<'_> = parse(line, "key, value, headers and timestamp_ms")?;
    Ok(v1::Record {
        key: optional_bytes("key", parsed.key, parsed.key_base64)?,
        value: optional_bytes("value", parsed.value, parsed.value_base64)?.unwrap_or_default(),
        headers: parsed.headers.0,
        timestamp_ms: parsed.timestamp_ms,
    })
}

/// What a job's line may have.
const JOB_NAMES: &str = "payload, headers, priority, delay, max_attempts, key, key_window, group, run_at, ttl, backoff, \
                         after, after_jobs, after_any_end, traceparent and tracestate";

/// One line as a job; what it leaves out is as in `base`.
pub fn job(line: &[u8], base: &v1::NewJob) -> Result<v1::NewJob, String> {
    let parsed: JobLine<'_> = parse(line, JOB_NAMES)?;
    // A line's own time goes before a delay of the flags, and the other way round.
    let own_time = parsed.delay.is_some() || parsed.run_at.is_some();
    let (delay_ms, run_at_ms) = if own_time { (0, 0) } else { (base.delay_ms, base.run_at_ms) };
    let mut headers = base.headers.clone();
    headers.extend(parsed.headers.0);
    // A state belongs to its parent.
    let (parent, state) =
        if parsed.traceparent.is_some() { ("", "") } else { (&*base.traceparent, &*base.tracestate) };
    let retry = parsed.backoff.map(|text| backoff(&text).map_err(|e| format!("backoff: {e}"))).transpose()?;
    Ok(v1::NewJob {
        payload: optional_bytes("payload", parsed.payload, parsed.payload_base64)?.unwrap_or_default(),
        priority: parsed.priority.map_or(base.priority, u32::from),
        headers,
        delay_ms: span_ms("delay", parsed.delay)?.unwrap_or(delay_ms),
        max_attempts: parsed.max_attempts.or(base.max_attempts),
        key: parsed.key.unwrap_or_else(|| base.key.clone()),
        key_window_ms: span_ms("key_window", parsed.key_window)?.unwrap_or(base.key_window_ms),
        group: parsed.group.unwrap_or_else(|| base.group.clone()),
        run_at_ms: moment_ms("run_at", parsed.run_at)?.unwrap_or(run_at_ms),
        ttl_ms: span_ms("ttl", parsed.ttl)?.unwrap_or(base.ttl_ms),
        retry: retry.or(base.retry),
        after: parsed.after.unwrap_or_default(),
        after_jobs: parsed.after_jobs.unwrap_or_else(|| base.after_jobs.clone()),
        after_any_end: parsed.after_any_end.unwrap_or(base.after_any_end),
        traceparent: parsed.traceparent.unwrap_or_else(|| parent.to_owned()),
        tracestate: parsed.tracestate.unwrap_or_else(|| state.to_owned()),
    })
}

/// A span of time, as text or as a number of milliseconds.
fn span_ms(name: &str, raw: Option<&RawValue>) -> Result<Option<u64>, String> {
    let span = raw.map(|raw| args::duration(&plain_text(raw)?).map(args::millis));
    span.transpose().map_err(|error| format!("{name}: {error}"))
}

/// A moment, as text or as a number of milliseconds since the epoch.
fn moment_ms(name: &str, raw: Option<&RawValue>) -> Result<Option<u64>, String> {
    let moment = raw.map(|raw| {
        let text = plain_text(raw)?;
        text.parse().or_else(|_| args::moment(&text))
    });
    moment.transpose().map_err(|error| format!("{name}: {error}"))
}

/// Reads a line; what is wrong with it is said with the names it may have.
pub fn parse<'a, T: Deserialize<'a>>(line: &'a [u8], names: &str) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| {
        // A line of its own: that the error is in serde's line 1 says nothing.
        let problem = error.to_string().replace(" at line 1 column ", " at column ");
        format!("is not a JSON object with {names}: {problem}")
    })
}

/// A string's text, or any other value's JSON; `null` is nothing.
fn plain_text(raw: &RawValue) -> Result<Cow<'_, str>, String> {
    if raw.get().starts_with('"') {
        serde_json::from_str(raw.get()).map(Cow::Owned).map_err(|error| error.to_string())
    } else {
        Ok(Cow::Borrowed(raw.get()))
    }
}

/// Bytes that are given plain, or in base64 under another name.
pub fn optional_bytes(
    name: &str,
    plain: Option<&RawValue>,
    coded: Option<Cow<'_, str>>,
) -> Result<Option<Bytes>, String> {
    match (plain.filter(|raw| raw.get() != "null"), coded) {
        (Some(_), Some(_)) => Err(format!("has both {name} and {name}_base64")),
        (Some(raw), None) => Ok(Some(match plain_text(raw)? {
            Cow::Owned(text) => Bytes::from(text),
            Cow::Borrowed(text) => Bytes::copy_from_slice(text.as_bytes()),
        })),
        (None, Some(coded)) => match base64::decode(&coded) {
            Some(bytes) => Ok(Some(Bytes::from(bytes))),
            None => Err(format!("{name}_base64 is not padded base64")),
        },
        (None, None) => Ok(None),
    }
}

/// Headers in their order: an object of name to value, or to a list of values.
#[derive(Default)]
struct HeaderMap(Vec<v1::Header>);

#[derive(Deserialize)]
#[serde(untagged)]
enum HeaderValue {
    Text(String),
    Coded { base64: String },
    List(Vec<HeaderValue>),
    Number(serde_json::Number),
    Truth(bool),
}

impl<'de> Deserialize<'de> for HeaderMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = HeaderMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of header names and values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderMap, A::Error> {
        let mut headers = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, HeaderValue>()? {
            push_header(&mut headers, &name, value).map_err(serde::de::Error::custom)?;
        }
        Ok(HeaderMap(headers))
    }
}

fn push_header(headers: &mut Vec<v1::Header>, name: &str, value: HeaderValue) -> Result<(), String> {
    let bytes = match value {
        HeaderValue::Text(text) => Bytes::from(text),
        HeaderValue::Number(number) => Bytes::from(number.to_string()),
        HeaderValue::Truth(truth) => Bytes::from(truth.to_string()),
        HeaderValue::Coded { base64: coded } => base64::decode(&coded)
            .map(Bytes::from)
            .ok_or_else(|| format!("header `{name}` is not padded base64"))?,
        HeaderValue::List(values) => {
            return values.into_iter().try_for_each(|value| push_header(headers, name, value));
        }
    };
    headers.push(v1::Header { name: name.to_owned(), value: bytes });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_text_and_other_values_stay_json() {
        let text =
            record(br#"{"key":"k","value":"a\nb","headers":{"n":"v","list":["1",2],"b":{"base64":"/w=="}}}"#);
        let text = text.unwrap();
        assert_eq!((text.key.as_deref(), &*text.value), (Some(&b"k"[..]), &b"a\nb"[..]));
        let headers: Vec<_> = text.headers.iter().map(|h| (h.name.as_str(), &*h.value)).collect();
        assert_eq!(headers, [("n", &b"v"[..]), ("list", b"1"), ("list", b"2"), ("b", &[0xFF])]);
        let object = record(br#"{"value":{"z":1, "a":[true]},"key":7,"timestamp_ms":5}"#).unwrap();
        assert_eq!(&*object.value, br#"{"z":1, "a":[true]}"#, "as it was written, order kept");
        assert_eq!((object.key.as_deref(), object.timestamp_ms), (Some(&b"7"[..]), Some(5)));
        assert_eq!(record(b"{\"value\":null}").unwrap().value, "");
        assert_eq!(&*record(br#"{"value_base64":"/w=="}"#).unwrap().value, &[0xFF]);
    }

    #[test]
    fn a_line_of_another_shape_is_refused_with_what_is_allowed() {
        for (line, part) in [
            ("x", "is not a JSON object with key, value"),
            ("[]", "is not a JSON object with key, value"),
            (r#"{"vaule":1}"#, "unknown field `vaule`"),
            (r#"{"value":"a","value_base64":"YQ=="}"#, "has both value and value_base64"),
            (r#"{"value_base64":"?"}"#, "value_base64 is not padded base64"),
            (r#"{"headers":{"a":null}}"#, "is not a JSON object"),
        ] {
            let message = record(line.as_bytes()).unwrap_err();
            assert!(message.contains(part), "`{part}` is missing from: {message}");
        }
    }

    #[test]
    fn a_job_line_overrides_the_flags() {
        let base = v1::NewJob { priority: 3, delay_ms: 9, max_attempts: Some(2), ..Default::default() };
        let plain = job(br#"{"payload":{"to":"ada"}}"#, &base).unwrap();
        assert_eq!((plain.priority, plain.delay_ms, plain.max_attempts), (3, 9, Some(2)));
        assert_eq!(&*plain.payload, br#"{"to":"ada"}"#);
        let own = job(br#"{"payload":"x","priority":5,"delay":"10s","max_attempts":1}"#, &base).unwrap();
        assert_eq!((own.priority, own.delay_ms, own.max_attempts), (5, 10_000, Some(1)));
        assert_eq!(job(br#"{"delay":250}"#, &base).unwrap().delay_ms, 250);
        assert!(job(br#"{"delay":"soon"}"#, &base).unwrap_err().contains("delay: allowed:"));
    }

    #[test]
    fn a_job_line_has_all_that_a_job_can_have() {
        let (group, tracestate) = ("g".into(), "a=1".into());
        let base = v1::NewJob { delay_ms: 9, group, tracestate, ..Default::default() };
        let line =
            br#"{"key":"k","key_window":"1h","run_at":"@5000","ttl":"1d","backoff":"fixed:1s","after":[0],
            "after_jobs":[7],"after_any_end":true,"traceparent":"00-a-b-01"}"#;
        let full = job(line, &base).unwrap();
        let retry = v1::RetryPolicy { backoff: 2, initial_ms: 1_000, ..Default::default() };
        let wanted = v1::NewJob {
            key: "k".into(),
            key_window_ms: 3_600_000,
            group: "g".into(),
            run_at_ms: 5_000,
            ttl_ms: 86_400_000,
            retry: Some(retry),
            after: vec![0],
            after_jobs: vec![7],
            after_any_end: true,
            traceparent: "00-a-b-01".into(),
            ..Default::default()
        };
        assert_eq!(full, wanted, "a time and a trace of its own go before those of the flags");
        assert_eq!(job(b"{}", &base).unwrap().tracestate, "a=1");
        assert_eq!(job(br#"{"run_at":5000}"#, &base).unwrap().run_at_ms, 5_000);
        for (line, part) in [
            (r#"{"ttl":"long"}"#, "ttl: allowed:"),
            (r#"{"run_at":"soon"}"#, "run_at: allowed:"),
            (r#"{"backoff":"slow:1s"}"#, "backoff: allowed:"),
            (r#"{"after":"1"}"#, "is not a JSON object with payload, headers"),
        ] {
            assert!(job(line.as_bytes(), &base).unwrap_err().contains(part), "{line}");
        }
    }
}
