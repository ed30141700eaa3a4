//! The arguments of a command, taken one after the other; what is wrong with one is said with its name and the command's
//! syntax.

use bytes::Bytes;
use flowmesh_proto::v1;

use super::SyntaxError;

/// Arguments that are still to be read.
pub struct Args<'a> {
    command: &'static str,
    syntax: &'static str,
    rest: &'a [Bytes],
}

impl<'a> Args<'a> {
    /// The arguments behind a command's name.
    pub fn new(command: &'static str, syntax: &'static str, rest: &'a [Bytes]) -> Self {
        Self { command, syntax, rest }
    }

    /// The command as it is wrong.
    pub fn wrong(&self, problem: impl Into<String>) -> SyntaxError {
        SyntaxError { command: self.command.to_owned(), problem: problem.into(), syntax: Some(self.syntax) }
    }

    /// Other arguments of the same command.
    pub fn with<'b>(&self, rest: &'b [Bytes]) -> Args<'b> {
        Args { command: self.command, syntax: self.syntax, rest }
    }

    /// All that are left, without taking them.
    pub fn peek(&self) -> &'a [Bytes] {
        self.rest
    }

    /// Whether all are read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.rest.len()
    }

    /// The next one.
    pub fn next(&mut self, what: &str) -> Result<Bytes, SyntaxError> {
        let Some((first, rest)) = self.rest.split_first() else {
            return Err(self.wrong(format!("{what} is missing")));
        };
        self.rest = rest;
        Ok(first.clone())
    }

    /// All that are left, at least one.
    pub fn all(&mut self, what: &str) -> Result<Vec<Bytes>, SyntaxError> {
        if self.rest.is_empty() {
            return Err(self.wrong(format!("{what} is missing")));
        }
        Ok(std::mem::take(&mut self.rest).to_vec())
    }

    /// So many.
    pub fn many(&mut self, count: usize, what: &str) -> Result<Vec<Bytes>, SyntaxError> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken.to_vec())
            }
            None => {
                Err(self.wrong(format!("{count} of {what} were announced, {} are there", self.rest.len())))
            }
        }
    }

    /// The next one in capital letters, if there is one.
    pub fn word(&mut self) -> Option<String> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(String::from_utf8_lossy(first).to_ascii_uppercase())
    }

    /// Takes the next one if it is this word.
    pub fn take(&mut self, word: &str) -> bool {
        match self.rest.split_first() {
            Some((first, rest)) if first.eq_ignore_ascii_case(word.as_bytes()) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// A word of a command that has no such word.
    pub fn unknown(&self, word: &str) -> SyntaxError {
        self.wrong(format!("does not know `{word}` here"))
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), SyntaxError> {
        match self.rest.first() {
            None => Ok(()),
            Some(more) => Err(self.unknown(&String::from_utf8_lossy(more))),
        }
    }

    /// A whole number.
    pub fn integer(&mut self, what: &str) -> Result<i64, SyntaxError> {
        let text = self.next(what)?;
        std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            self.wrong(format!("{what} is `{}`; allowed: a 64-bit integer", String::from_utf8_lossy(&text)))
        })
    }

    /// A whole number that is not below `min`.
    pub fn count(&mut self, what: &str, min: u64) -> Result<u64, SyntaxError> {
        let value = self.integer(what)?;
        u64::try_from(value)
            .ok()
            .filter(|&value| value >= min)
            .ok_or_else(|| self.wrong(format!("{what} is {value}; allowed: {min} or more")))
    }

    /// A number that may be infinite and is not NaN.
    pub fn decimal(&mut self, what: &str) -> Result<f64, SyntaxError> {
        let text = self.next(what)?;
        self.to_decimal(what, &text)
    }

    /// The number that a text is.
    pub fn to_decimal(&self, what: &str, text: &[u8]) -> Result<f64, SyntaxError> {
        std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse::<f64>().ok())
            .filter(|value| !value.is_nan())
            .ok_or_else(|| {
                self.wrong(format!(
                    "{what} is `{}`; allowed: a number, inf, -inf",
                    String::from_utf8_lossy(text)
                ))
            })
    }

    /// `numkeys key [key …]`: the first key and the others.
    pub fn numbered_keys(&mut self) -> Result<(Bytes, Vec<Bytes>), SyntaxError> {
        let count = self.count("numkeys", 1)?;
        let mut keys = self.many(usize::try_from(count).unwrap_or(usize::MAX), "numkeys")?.into_iter();
        let first = keys.next().unwrap_or_default();
        Ok((first, keys.collect()))
    }

    /// `numkeys key`, of a command that is for one key here.
    pub fn one_numbered_key(&mut self) -> Result<Bytes, SyntaxError> {
        let (key, others) = self.numbered_keys()?;
        if !others.is_empty() {
            return Err(self.wrong(format!(
                "looks at one key here, not at {}: use it once for each, in order",
                others.len() + 1
            )));
        }
        Ok(key)
    }

    /// A span that begins now, in the unit's milliseconds; one that is over is a time long past.
    pub fn span(&mut self, what: &str, unit_ms: i64) -> Result<v1::End, SyntaxError> {
        let value = self.scaled(what, unit_ms)?;
        Ok(if value == 0 { at(1) } else { v1::End { end: Some(v1::end::End::InMs(value)) } })
    }

    /// A time, in the unit's milliseconds since the Unix epoch.
    pub fn moment(&mut self, what: &str, unit_ms: i64) -> Result<v1::End, SyntaxError> {
        self.scaled(what, unit_ms).map(|value| at(value.max(1)))
    }

    /// A span that must be longer than nothing, in milliseconds.
    pub fn positive(&mut self, what: &str, unit_ms: i64) -> Result<u64, SyntaxError> {
        match self.scaled(what, unit_ms)? {
            0 => Err(self.wrong(format!("{what} must be above 0"))),
            value => Ok(value),
        }
    }

    /// A number times a unit; what is below 0 is 0.
    fn scaled(&mut self, what: &str, unit_ms: i64) -> Result<u64, SyntaxError> {
        let value = self.integer(what)?;
        match value.checked_mul(unit_ms) {
            Some(value) => Ok(u64::try_from(value).unwrap_or(0)),
            None => Err(self.wrong(format!("{what} is {value}, which is beyond the end of time"))),
        }
    }
}

/// An end at that time.
pub fn at(ms: u64) -> v1::End {
    v1::End { end: Some(v1::end::End::AtMs(ms)) }
}

/// No end.
pub fn never() -> v1::End {
    v1::End { end: Some(v1::end::End::Never(true)) }
}
