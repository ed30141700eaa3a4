use std::fmt::Write;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::json::{self, Scalar};
use super::*;
use crate::limits::{JSON_PATH_BYTES_MAX, JSON_PATH_SEGMENTS_MAX, VALUE_BYTES_MAX};
use crate::record::{RecordPacker, RecordSlices, RecordView};

fn packed(record: &RecordView<'_>) -> Bytes {
    let mut packer = RecordPacker::default();
    packer.push(record);
    let batch = packer.finish();
    batch.slice_ref(RecordSlices::new(&batch).next().unwrap().unwrap())
}

fn json_is(path: &str, value: &str) -> Condition {
    Condition::JsonEquals { path: path.to_owned(), value: value.to_owned() }
}

fn header_is(name: &'static str, value: &'static str) -> Condition {
    Condition::HeaderEquals {
        name: Bytes::from_static(name.as_bytes()),
        value: Bytes::from_static(value.as_bytes()),
    }
}

fn matches(conditions: impl IntoIterator<Item = Condition>, record: &RecordView<'_>) -> bool {
    RecordFilter::new(conditions).unwrap().matches(&packed(record))
}

fn value_matches(path: &str, wanted: &str, value: &str) -> bool {
    matches([json_is(path, wanted)], &RecordView { value: value.as_bytes(), ..RecordView::default() })
}

#[test]
fn every_condition_must_hold() {
    let record = RecordView {
        key: Some(b"user:7"),
        value: br#"{"a":{"b":[0,{"c":"x"}]},"n":3}"#,
        headers: vec![(b"type", b"order"), (b"type", b"paid"), (b"empty", b"")],
        timestamp_ms: Some(1),
    };
    let prefix = |text: &'static str| Condition::KeyPrefix(Bytes::from_static(text.as_bytes()));
    let exists = |name: &'static str| Condition::HeaderExists { name: Bytes::from_static(name.as_bytes()) };
    let holds = [
        Condition::KeyEquals(Bytes::from_static(b"user:7")),
        prefix("user:"),
        prefix(""),
        header_is("type", "order"),
        header_is("type", "paid"),
        header_is("empty", ""),
        exists("type"),
        json_is("$.a.b[1]['c']", r#""x""#),
        json_is("$.n", "3"),
    ];
    let fails = [
        Condition::KeyEquals(Bytes::from_static(b"user:")),
        prefix("user:77"),
        header_is("type", ""),
        header_is("order", "type"),
        exists("typ"),
        json_is("$.a.b[2]", "null"),
        json_is("$.n", r#""3""#),
    ];
    assert!(matches([], &record) && RecordFilter::new([]).unwrap().is_empty());
    assert!(matches(holds.clone(), &record));
    for fail in fails {
        assert!(!matches([fail.clone()], &record), "{fail:?}");
        assert!(!matches(holds.clone().into_iter().chain([fail.clone()]), &record), "{fail:?}");
    }
}

#[test]
fn a_record_without_a_key_matches_no_key() {
    let record = RecordView { value: b"v", ..RecordView::default() };
    assert!(!matches([Condition::KeyEquals(Bytes::new())], &record));
    assert!(!matches([Condition::KeyPrefix(Bytes::new())], &record));
    let empty = RecordView { key: Some(b""), ..record };
    assert!(matches([Condition::KeyEquals(Bytes::new()), Condition::KeyPrefix(Bytes::new())], &empty));
}

#[test]
fn numbers_are_equal_by_their_value() {
    for (wanted, found, equal) in [
        ("3", "3.0", true),
        ("3", "30e-1", true),
        ("0", "-0", true),
        ("-1", "-1.0", true),
        ("1.5", "15e-1", true),
        ("18446744073709551615", "18446744073709551615", true),
        ("18446744073709551615", "18446744073709551614", false),
        ("9007199254740993", "9007199254740992", false),
        ("-9223372036854775808", "-9223372036854775808", true),
        ("1e300", "1e300", true),
        ("1", "true", false),
        ("null", "0", false),
    ] {
        assert_eq!(value_matches("$", wanted, found), equal, "{wanted} and {found}");
    }
}

#[test]
fn what_is_no_json_or_has_no_such_place_does_not_match() {
    for value in [
        "",
        "x",
        "{",
        "{\"a\":1",
        "{\"a\":1}}",
        "{\"a\":1} x",
        "{\"a\":1,}",
        "{\"b\":1}",
        "[1]",
        "1",
        "\"a\"",
        "{\"a\":[1]}",
        "{\"a\":{\"a\":1}}",
        "{\"a\":1,\"b\":tru}",
        "{\"a\":2,\"a\":1}",
    ] {
        assert!(!value_matches("$.a", "1", value), "{value}");
    }
    assert!(value_matches("$.a", "1", " { \"b\" : [ { } ] , \"a\" : 1 } "));
    assert!(value_matches("$.a", "1", r#"{"a":1,"a":2}"#), "of two members the first counts");
    assert!(value_matches("$['\\u00e9\\ud83d\\ude00']", "1", r#"{"\u00e9\ud83d\ude00":1}"#));
    let not_text = RecordView { value: b"{\"b\":\"\xff\",\"a\":1}", ..RecordView::default() };
    assert!(!matches([json_is("$.a", "1")], &not_text));
}

#[test]
fn the_deepest_value_neither_overflows_the_stack_nor_matches() {
    let deep = "[".repeat(VALUE_BYTES_MAX);
    assert!(!value_matches("$.a", "1", &deep));
    assert!(!value_matches("$[1]", "1", &deep));
    let passed_over = format!(r#"{{"b":{}{},"a":1}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(value_matches("$.a", "1", &passed_over), "what is passed over may be as deep as it likes");
    let steps = "[0]".repeat(JSON_PATH_SEGMENTS_MAX);
    let value = format!("{}7{}", "[".repeat(JSON_PATH_SEGMENTS_MAX), "]".repeat(JSON_PATH_SEGMENTS_MAX));
    assert!(value_matches(&format!("${steps}"), "7", &value));
}

#[test]
fn illegal_filters_are_refused_with_the_place() {
    let refused = |condition: Condition| {
        let fine = Condition::KeyPrefix(Bytes::new());
        match RecordFilter::new([fine, condition]) {
            Err(Reject::IllegalFilter { condition: 1, part, at, .. }) => (part, at),
            other => panic!("{other:?}"),
        }
    };
    for (path, at) in [
        ("", 0),
        ("a", 0),
        ("$a", 1),
        ("$.", 2),
        ("$..a", 2),
        ("$.*", 2),
        ("$.a.1b", 4),
        ("$.a b", 3),
        ("$[", 2),
        ("$[*]", 2),
        ("$[?@.a]", 2),
        ("$[-1]", 2),
        ("$[01]", 2),
        ("$[4294967296]", 2),
        ("$[1:2]", 3),
        ("$[1,2]", 3),
        ("$[1", 3),
        ("$['a", 4),
        ("$['a\\x']", 5),
        ("$['a\\\"']", 5),
        ("$['a\u{1}']", 4),
        ("$['\\ud83d']", 5),
        ("$['\\u12']", 5),
        ("$['a'x]", 5),
    ] {
        assert_eq!(refused(json_is(path, "1")), ("JSON path", at), "{path}");
    }
    for (value, at) in [("", 0), ("x", 0), ("[1]", 0), ("{}", 0), ("1 2", 2), ("\"a", 1), ("tru", 2)] {
        assert_eq!(refused(json_is("$", value)), ("JSON value", at), "{value}");
    }
    let long = |bytes: usize| Bytes::from(vec![b'a'; bytes]);
    assert_eq!(refused(Condition::KeyEquals(long(KEY_BYTES_MAX + 1))), ("key", 1024));
    assert_eq!(refused(Condition::KeyPrefix(long(KEY_BYTES_MAX + 1))), ("key prefix", 1024));
    let name = |name: Bytes| Condition::HeaderExists { name };
    assert_eq!(refused(name(Bytes::new())), ("header name", 0));
    assert_eq!(refused(name(Bytes::from_static(b"ab\xff"))), ("header name", 2));
    assert_eq!(refused(name(long(HEADER_NAME_BYTES_MAX + 1))), ("header name", 255));
    let header = Condition::HeaderEquals { name: long(1), value: long(HEADER_VALUE_BYTES_MAX + 1) };
    assert_eq!(refused(header), ("header value", 1024));
}

#[test]
fn every_limit_of_a_filter_is_kept() {
    let any = || Condition::KeyPrefix(Bytes::new());
    assert!(RecordFilter::new(vec![any(); FILTER_CONDITIONS_MAX]).is_ok());
    let fault = RecordFilter::new(vec![any(); FILTER_CONDITIONS_MAX + 1]).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "filter condition 16, condition at byte 0: one more than the 16 that are allowed"
    );
    let path = |bytes: usize| format!("$.{}", "a".repeat(bytes - 2));
    assert!(JsonPath::parse(&path(JSON_PATH_BYTES_MAX)).is_ok());
    assert_eq!(JsonPath::parse(&path(JSON_PATH_BYTES_MAX + 1)).unwrap_err().at, JSON_PATH_BYTES_MAX);
    let steps = |steps: usize| format!("${}", ".a".repeat(steps));
    assert!(JsonPath::parse(&steps(JSON_PATH_SEGMENTS_MAX)).is_ok());
    let fault = JsonPath::parse(&steps(JSON_PATH_SEGMENTS_MAX + 1)).unwrap_err();
    assert_eq!(fault.at, 1 + 2 * JSON_PATH_SEGMENTS_MAX);
    let text = |bytes: usize| format!("\"{}\"", "a".repeat(bytes - 2));
    assert!(RecordFilter::new([json_is("$", &text(JSON_SCALAR_BYTES_MAX))]).is_ok());
    assert!(RecordFilter::new([json_is("$", &text(JSON_SCALAR_BYTES_MAX + 1))]).is_err());
}

/// A path in the normal form of RFC 9535.
fn written(segments: &[Segment]) -> String {
    let mut text = String::from("$");
    for segment in segments {
        match segment {
            Segment::Index(index) => write!(text, "[{index}]").unwrap(),
            Segment::Name(name) => {
                let name: String = name
                    .chars()
                    .map(|c| match c {
                        '\'' | '\\' => format!("\\{c}"),
                        c if c < ' ' => format!("\\u{:04x}", c as u32),
                        c => c.to_string(),
                    })
                    .collect();
                write!(text, "['{name}']").unwrap();
            }
        }
    }
    text
}

fn any_scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..4).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just(1.0), Just(-2.0), Just(0.5)].prop_map(|n: f64| Value::from(n)),
        "[ab\"\\\\é\n]{0,3}".prop_map(Value::from),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    any_scalar().prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[ab'é]{0,2}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_segments() -> impl Strategy<Value = Vec<Segment>> {
    prop::collection::vec(
        prop_oneof![(0u32..4).prop_map(Segment::Index), "[ab'é]{0,2}".prop_map(Segment::Name)],
        0..4,
    )
}

/// A place that there is, by taking a turn at each step.
fn existing(value: &Value, turns: &[usize]) -> Vec<Segment> {
    let Some((&turn, rest)) = turns.split_first() else { return vec![] };
    let (segment, inner) = match value {
        Value::Array(items) if !items.is_empty() => {
            let index = turn % items.len();
            (Segment::Index(index as u32), &items[index])
        }
        Value::Object(map) if !map.is_empty() => {
            let (name, inner) = map.iter().nth(turn % map.len()).unwrap();
            (Segment::Name(name.clone()), inner)
        }
        _ => return vec![],
    };
    [vec![segment], existing(inner, rest)].concat()
}

fn at<'a>(value: &'a Value, segments: &[Segment]) -> Option<&'a Value> {
    segments.iter().try_fold(value, |value, segment| match segment {
        Segment::Name(name) => value.as_object()?.get(name),
        Segment::Index(index) => value.as_array()?.get(*index as usize),
    })
}

/// Equal as the documentation says, written down a second time.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let whole = |n: &serde_json::Number| {
                n.as_i64()
                    .map(i128::from)
                    .or_else(|| n.as_u64().map(i128::from))
                    .or_else(|| n.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e38).map(|n| n as i128))
            };
            match (whole(a), whole(b)) {
                (None, None) => a.as_f64() == b.as_f64(),
                (a, b) => a == b,
            }
        }
        (Value::Array(_) | Value::Object(_), _) | (_, Value::Array(_) | Value::Object(_)) => false,
        (a, b) => a == b,
    }
}

proptest! {
    #[test]
    fn a_path_reads_back_as_it_was_written(segments in prop::collection::vec(
        prop_oneof![any::<u32>().prop_map(Segment::Index), any::<String>().prop_map(Segment::Name)], 0..8,
    )) {
        let text = written(&segments);
        prop_assume!(text.len() <= JSON_PATH_BYTES_MAX);
        let path = JsonPath::parse(&text).unwrap();
        prop_assert_eq!(path.segments(), &segments[..]);
    }

    #[test]
    fn a_json_condition_says_what_a_search_in_the_built_value_says(
        value in any_json(),
        turns in prop::collection::vec(0usize..4, 0..5),
        elsewhere in any_segments(),
        other in any_scalar(),
        pretty: bool,
    ) {
        // Through text and back: what a parser makes of the numbers.
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let built: Value = serde_json::from_str(&text).unwrap();
        for segments in [existing(&built, &turns), elsewhere] {
            let found = at(&built, &segments);
            for wanted in found.into_iter().chain([&other]) {
                let wanted_text = wanted.to_string();
                let wanted: Value = serde_json::from_str(&wanted_text).unwrap();
                let Ok(scalar) = Scalar::parse(&wanted_text) else {
                    prop_assert!(wanted.is_array() || wanted.is_object());
                    continue;
                };
                let path = JsonPath::parse(&written(&segments)).unwrap();
                let says = json::has(text.as_bytes(), path.segments(), &scalar);
                prop_assert_eq!(says, found.is_some_and(|found| equal(found, &wanted)));
            }
        }
    }

    #[test]
    fn conditions_on_key_and_headers_say_what_a_search_in_the_read_record_says(
        key in prop::option::of("[ab]{0,3}"),
        headers in prop::collection::vec(("[ab]{1,2}", "[ab]{0,1}"), 0..5),
        wanted_key in "[ab]{0,2}",
        name in "[ab]{1,2}",
        value in "[ab]{0,1}",
        which in 1u8..16,
    ) {
        let view = RecordView {
            key: key.as_deref().map(str::as_bytes),
            value: b"v",
            headers: headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect(),
            timestamp_ms: None,
        };
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let all = [
            (Condition::KeyEquals(bytes(&wanted_key)), view.key == Some(wanted_key.as_bytes())),
            (Condition::KeyPrefix(bytes(&wanted_key)), view.key.is_some_and(|key| key.starts_with(wanted_key.as_bytes()))),
            (Condition::HeaderEquals { name: bytes(&name), value: bytes(&value) }, headers.contains(&(name.clone(), value.clone()))),
            (Condition::HeaderExists { name: bytes(&name) }, headers.iter().any(|(n, _)| *n == name)),
        ];
        let chosen: Vec<_> = (0..).zip(all).filter(|(bit, _)| which >> bit & 1 == 1).map(|(_, pair)| pair).collect();
        let expected = chosen.iter().all(|(_, holds)| *holds);
        prop_assert_eq!(matches(chosen.into_iter().map(|(condition, _)| condition), &view), expected);
    }

    #[test]
    fn noise_never_panics(record: Vec<u8>, value: Vec<u8>, path: String, scalar: String) {
        let filter = RecordFilter::new([
            Condition::KeyPrefix(Bytes::new()),
            Condition::HeaderExists { name: Bytes::from_static(b"n") },
            json_is("$.a[0]", "1"),
        ]).unwrap();
        let _ = filter.matches(&record);
        if let Ok(filter) = RecordFilter::new([json_is(&path, &scalar)]) {
            let _ = filter.matches(&packed(&RecordView { value: &value, ..RecordView::default() }));
        }
        let shape = JsonPath::parse("$.a[0]").unwrap();
        let one = Scalar::parse("1").unwrap();
        if json::has(&value, shape.segments(), &one) {
            let built: Value = serde_json::from_slice(&value).unwrap();
            prop_assert_eq!(&built["a"][0], &json!(1));
        }
    }

    #[test]
    fn paths_and_values_like_those_of_clients_never_panic(
        path in "\\$?([.\\['\"\\]0-9a*?:,\\\\u -]|é){0,12}",
        value in "[\\[\\]{}\",:a0-9.eE+\\\\u -]{0,24}",
    ) {
        if let Ok(path) = JsonPath::parse(&path) {
            prop_assert_eq!(JsonPath::parse(&written(path.segments())), Ok(path.clone()));
            json::has(value.as_bytes(), path.segments(), &Scalar::Integer(1));
        }
    }
}
