//! A line as it is typed into redis-cli, cut into words.

use bytes::Bytes;

/// The words of a line: separated by blanks, in double quotes with `\n`, `\r`, `\t`, `\b`, `\a`, `\xHH` and `\` before
/// what is meant as it is, in single quotes with `\'` alone.
///
/// # Errors
/// What is wrong: a quote that is not closed, or that something follows at once.
pub fn split(line: &[u8]) -> Result<Vec<Bytes>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii_start();
    while let Some(&first) = rest.first() {
        let (word, after) = match first {
            b'"' => double_quoted(rest.get(1..).unwrap_or_default())?,
            b'\'' => single_quoted(rest.get(1..).unwrap_or_default())?,
            _ => {
                let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                (word.to_vec(), after)
            }
        };
        if after.first().is_some_and(|next| !next.is_ascii_whitespace()) {
            return Err("a blank must follow a closing quote".to_owned());
        }
        words.push(Bytes::from(word));
        rest = after.trim_ascii_start();
    }
    Ok(words)
}

type Quoted<'a> = Result<(Vec<u8>, &'a [u8]), String>;

fn double_quoted(mut rest: &[u8]) -> Quoted<'_> {
    let mut word = Vec::new();
    loop {
        match rest {
            [] => return Err("a double quote is not closed".to_owned()),
            [b'"', after @ ..] => return Ok((word, after)),
            [b'\\', b'x', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                word.push(digit(*high) << 4 | digit(*low));
                rest = after;
            }
            [b'\\', escaped, after @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest = after;
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

fn single_quoted(mut rest: &[u8]) -> Quoted<'_> {
    let mut word = Vec::new();
    loop {
        match rest {
            [] => return Err("a single quote is not closed".to_owned()),
            [b'\\', b'\'', after @ ..] => {
                word.push(b'\'');
                rest = after;
            }
            [b'\'', after @ ..] => return Ok((word, after)),
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

fn digit(hex: u8) -> u8 {
    match hex {
        b'0'..=b'9' => hex - b'0',
        _ => (hex.to_ascii_lowercase() - b'a') + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_as_redis_cli_does() {
        let rows: [(&str, &[&[u8]]); 7] = [
            ("", &[]),
            ("  set  k\tv ", &[b"set", b"k", b"v"]),
            (r#"set "a b" 'c d'"#, &[b"set", b"a b", b"c d"]),
            (r#""\n\r\t\x41\xff\"\\" '\n\'"' "#, &[b"\n\r\tA\xff\"\\", b"\\n'\""]),
            (r#""" ''"#, &[b"", b""]),
            (r#"a"b"#, &[b"a\"b"]),
            (r#""\xg1""#, &[b"xg1"]),
        ];
        for (line, words) in rows {
            assert_eq!(split(line.as_bytes()).unwrap(), words, "{line}");
        }
        for (line, problem) in [
            (r#"set "a"#, "double quote is not closed"),
            ("set 'a", "single quote is not closed"),
            (r#"set "a"b"#, "a blank must follow"),
        ] {
            assert!(split(line.as_bytes()).unwrap_err().contains(problem), "{line}");
        }
    }
}
