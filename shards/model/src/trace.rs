//! Trace context: which distributed trace a job is a part of ([W3C Trace Context](https://www.w3.org/TR/trace-context/)). It
//! travels as two headers of the job, as it does in HTTP.
//!
//! ```text
//! traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
//!              │  trace: 32 hex digits             parent: 16       flags
//!              version
//! ```

use crate::limits::{TRACE_STATE_BYTES_MAX, TRACE_STATE_MEMBERS_MAX};
use crate::reject::Reject;

/// The header, and the field of a new job, that names trace and parent.
pub const TRACEPARENT: &str = "traceparent";

/// The header, and the field of a new job, with what tracing systems say to each other.
pub const TRACESTATE: &str = "tracestate";

/// Bytes of version 0.
const PARENT_BYTES: usize = 55;

fn illegal(field: &'static str, problem: impl Into<String>) -> Reject {
    Reject::IllegalTrace { field, problem: problem.into() }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Checks a `traceparent`: of version 0, or a later one that begins as that does.
///
/// # Errors
/// `ILLEGAL_TRACE_CONTEXT`
pub fn check_parent(text: &str) -> Result<(), Reject> {
    let refused = |problem: String| Err(illegal(TRACEPARENT, problem));
    let mut parts = text.splitn(5, '-');
    let mut part = |name: &str, digits: usize| match parts.next() {
        Some(part) if part.len() == digits && is_hex(part) => Ok(part),
        part => {
            let is = part.map_or_else(|| "is missing".to_owned(), |part| format!("is `{}`", shown(part)));
            Err(illegal(TRACEPARENT, format!("{name} {is}; allowed: {digits} of the digits 0-9, a-f")))
        }
    };
    let version = part("the version", 2)?;
    if version == "ff" {
        return refused("version ff is none; allowed: 00 to fe".to_owned());
    }
    for (name, digits) in [("the trace's id", 32), ("the parent's id", 16)] {
        if part(name, digits)?.bytes().all(|byte| byte == b'0') {
            return refused(format!("{name} is all zeros; allowed: any other"));
        }
    }
    part("flags", 2)?;
    if version == "00" && text.len() != PARENT_BYTES {
        return refused(format!("has {} bytes; allowed in version 00: {PARENT_BYTES}", text.len()));
    }
    Ok(())
}

/// As much of a text as a message has.
fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Checks a `tracestate`: `key=value` members with commas between them, each key once.
///
/// # Errors
/// `ILLEGAL_TRACE_CONTEXT`
pub fn check_state(text: &str) -> Result<(), Reject> {
    if text.len() > TRACE_STATE_BYTES_MAX {
        let problem = format!("has {} bytes; allowed: {TRACE_STATE_BYTES_MAX}", text.len());
        return Err(illegal(TRACESTATE, problem));
    }
    let mut keys: Vec<&str> = Vec::new();
    for member in text.split(',').map(|member| member.trim_matches([' ', '\t'])) {
        // The standard allows empty ones.
        if member.is_empty() {
            continue;
        }
        let Some((key, value)) = member.split_once('=').filter(|(key, value)| is_key(key) && is_value(value))
        else {
            let problem = format!("`{}` is no member; allowed: key=value", shown(member));
            return Err(illegal(TRACESTATE, problem));
        };
        debug_assert!(!value.is_empty());
        if keys.contains(&key) {
            return Err(illegal(TRACESTATE, format!("has `{}` twice", shown(key))));
        }
        keys.push(key);
    }
    if keys.len() > TRACE_STATE_MEMBERS_MAX {
        let problem = format!("has {} members; allowed: {TRACE_STATE_MEMBERS_MAX}", keys.len());
        return Err(illegal(TRACESTATE, problem));
    }
    Ok(())
}

/// `key`, or `tenant@system`.
fn is_key(key: &str) -> bool {
    let is_rest = |text: &str| {
        text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/".contains(&b))
    };
    let begins = |text: &str, digits: bool| {
        text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || (digits && b.is_ascii_digit()))
    };
    match key.split_once('@') {
        None => key.len() <= 256 && begins(key, false) && is_rest(key),
        Some((tenant, system)) => {
            let tenant = tenant.len() <= 241 && begins(tenant, true) && is_rest(tenant);
            tenant && system.len() <= 14 && begins(system, false) && is_rest(system)
        }
    }
}

/// Printable ASCII without `,` and `=`.
fn is_value(value: &str) -> bool {
    (1..=256).contains(&value.len())
        && value.bytes().all(|b| (0x20..0x7F).contains(&b) && b != b',' && b != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";

    fn parent(text: &str) -> Option<String> {
        match check_parent(text) {
            Ok(()) => None,
            Err(Reject::IllegalTrace { field: "traceparent", problem }) => Some(problem),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn state(text: &str) -> Option<String> {
        match check_state(text) {
            Ok(()) => None,
            Err(Reject::IllegalTrace { field: "tracestate", problem }) => Some(problem),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_parent_is_as_the_standard_has_it() {
        for good in [
            format!("00-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-00"),
            format!("cc-{TRACE}-{PARENT}-ff"),
            format!("cc-{TRACE}-{PARENT}-01-what-comes-later"),
        ] {
            assert_eq!(parent(&good), None, "{good}");
        }
        for (bad, words) in [
            (String::new(), "the version is ``"),
            ("00".to_owned(), "the trace's id is missing"),
            (format!("ff-{TRACE}-{PARENT}-01"), "version ff"),
            (format!("0-{TRACE}-{PARENT}-01"), "the version is `0`"),
            (format!("0G-{TRACE}-{PARENT}-01"), "the version is `0G`"),
            (format!("00-{}-{PARENT}-01", TRACE.to_uppercase()), "the trace's id is"),
            (format!("00-{}-{PARENT}-01", &TRACE[1..]), "the trace's id is"),
            (format!("00-{}-{PARENT}-01", "0".repeat(32)), "the trace's id is all zeros"),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), "the parent's id is all zeros"),
            (format!("00-{TRACE}-{PARENT}0-01"), "the parent's id is"),
            (format!("00-{TRACE}-{PARENT}"), "flags is missing"),
            (format!("00-{TRACE}-{PARENT}-1"), "flags is `1`"),
            (format!("00-{TRACE}-{PARENT}-01-more"), "has 60 bytes"),
            (format!("00-{TRACE}-{PARENT}-01-"), "has 56 bytes"),
            (format!("cc-{TRACE}-{PARENT}-01."), "flags is `01.`"),
            (format!(" 00-{TRACE}-{PARENT}-01"), "the version is ` 00`"),
        ] {
            let problem = parent(&bad).unwrap_or_else(|| panic!("{bad} is taken"));
            assert!(problem.contains(words), "{bad}: {problem}");
        }
    }

    #[test]
    fn a_state_is_a_list_of_members() {
        let most: Vec<String> = (0..TRACE_STATE_MEMBERS_MAX).map(|n| format!("k{n}=v")).collect();
        for good in [
            "",
            "rojo=00f067aa0ba902b7",
            "a=1, b = 2 ,,c=3",
            "fw529a3039@dt=FfffffeC",
            "a*/_-9=~ !",
            &most.join(","),
        ] {
            // A space before the sign belongs to the key, which has none.
            let wanted =
                good.contains("b =").then_some("`b = 2` is no member; allowed: key=value".to_owned());
            assert_eq!(state(good), wanted, "{good}");
        }
        for (bad, words) in [
            ("a".to_owned(), "`a` is no member"),
            ("a=".to_owned(), "is no member"),
            ("A=1".to_owned(), "is no member"),
            ("1a=1".to_owned(), "is no member"),
            ("a=b=c".to_owned(), "is no member"),
            ("a=\u{fc}".to_owned(), "is no member"),
            ("a@=1".to_owned(), "is no member"),
            ("a@b@c=1".to_owned(), "is no member"),
            (format!("{}=1", "k".repeat(257)), "is no member"),
            ("a=1,b=2,a=3".to_owned(), "has `a` twice"),
            (format!("{},last=v", most.join(",")), "has 33 members"),
            (format!("a={},b={}", "v".repeat(255), "v".repeat(255)), "has 515 bytes"),
        ] {
            let problem = state(&bad).unwrap_or_else(|| panic!("{bad} is taken"));
            assert!(problem.contains(words), "{bad}: {problem}");
        }
    }
}
