//! Patterns of names as Redis has them.

/// Whether `text` matches: `*` any bytes, `?` one, `[a-z]` and `[^x]` one of these or none of them, `\` the next as it is.
/// Takes at most the product of both lengths: where it fails behind a `*`, only the last one takes a byte more.
pub(in crate::kv) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut rest, mut at) = (pattern, 0);
    let mut star: Option<(&[u8], usize)> = None;
    loop {
        if let [b'*', behind @ ..] = rest {
            star = Some((behind, at));
            rest = behind;
            continue;
        }
        match (text.get(at), one(rest)) {
            (Some(&byte), Some((takes, behind))) if takes.has(byte) => {
                (rest, at) = (behind, at + 1);
            }
            (None, None) => return true,
            _ => match star {
                Some((behind, from)) if from < text.len() => {
                    star = Some((behind, from + 1));
                    (rest, at) = (behind, from + 1);
                }
                _ => return false,
            },
        }
    }
}

/// Which byte one part of a pattern takes.
enum Takes<'a> {
    Any,
    This(u8),
    Class { bytes: &'a [u8], inside: bool },
}

impl Takes<'_> {
    fn has(&self, byte: u8) -> bool {
        match self {
            Self::Any => true,
            Self::This(this) => *this == byte,
            Self::Class { bytes, inside } => in_class(bytes, byte) == *inside,
        }
    }
}

fn in_class(mut class: &[u8], byte: u8) -> bool {
    loop {
        let (from, to, rest) = match class {
            [] => return false,
            [b'\\', this, rest @ ..] => (this, this, rest),
            [from, b'-', to, rest @ ..] => (from.min(to), from.max(to), rest),
            [this, rest @ ..] => (this, this, rest),
        };
        if (*from..=*to).contains(&byte) {
            return true;
        }
        class = rest;
    }
}

/// The first part of a pattern that has no `*` there, and what follows it; nothing at its end. A class that is not closed
/// goes to the end.
fn one(pattern: &[u8]) -> Option<(Takes<'_>, &[u8])> {
    Some(match pattern {
        [] => return None,
        [b'?', rest @ ..] => (Takes::Any, rest),
        [b'[', b'^', class @ ..] => class_of(class, false),
        [b'[', class @ ..] => class_of(class, true),
        [b'\\', this, rest @ ..] | [this, rest @ ..] => (Takes::This(*this), rest),
    })
}

fn class_of(class: &[u8], inside: bool) -> (Takes<'_>, &[u8]) {
    let mut end = 0;
    while let Some(&byte) = class.get(end) {
        match byte {
            b'\\' => end += 2,
            b']' => break,
            _ => end += 1,
        }
    }
    let (bytes, behind) = class.split_at(end.min(class.len()));
    (Takes::Class { bytes, inside }, behind.get(1..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::matches;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let rows = [
            ("*", "", true),
            ("*", "anything", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hallo", true),
            ("h\\*llo", "h*llo", true),
            ("h\\*llo", "hello", false),
            ("h[\\]]llo", "h]llo", true),
            ("a*b*c", "aXXbYYc", true),
            ("a*b*c", "aXXbYY", false),
            ("user:[0-9]*:name", "user:42:name", true),
            ("[abc", "b", true),
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
        ];
        for (pattern, text, expected) in rows {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    /// The rule itself, without thought for its cost.
    fn plain(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => plain(rest, text) || (!text.is_empty() && plain(pattern, &text[1..])),
            ([b'?', rest @ ..], [_, text @ ..]) => plain(rest, text),
            ([a, rest @ ..], [b, text @ ..]) if a == b => plain(rest, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn stars_and_marks_match_as_the_rule_says(pattern in "[ab?*]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                plain(pattern.as_bytes(), text.as_bytes())
            );
        }

        #[test]
        fn no_pattern_makes_it_panic(pattern: Vec<u8>, text: Vec<u8>) {
            let _ = matches(&pattern, &text);
        }
    }
}
