//! Where in a JSON value a condition looks: a singular query of RFC 9535, without negative indexes.
//!
//! | part | form |
//! |---|---|
//! | the whole value | `$` |
//! | a member by a simple name | `.name`: a letter, `_` or a character beyond ASCII, then these and digits |
//! | a member by any name | `['name']` or `["name"]`, with the escapes `\b \t \n \f \r \/ \\ \uXXXX`, and `\'` or `\"` |
//! | an element | `[0]`: from 0, without leading zeros |
//!
//! Blanks may stand inside of brackets. Wildcards, slices, descendants, several selectors, filters and negative indexes
//! are refused.

use crate::limits::{JSON_PATH_BYTES_MAX, JSON_PATH_SEGMENTS_MAX};

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// To the member of an object.
    Name(String),
    /// To the element of an array, from 0.
    Index(u32),
}

/// A path that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPath(Box<[Segment]>);

/// Why a text is no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathFault {
    /// The byte where it goes wrong, from 0.
    pub at: usize,
    /// What is wrong there.
    pub problem: &'static str,
}

impl JsonPath {
    /// Reads a path.
    ///
    /// # Errors
    /// Where it goes wrong, and why.
    pub fn parse(text: &str) -> Result<Self, PathFault> {
        if text.len() > JSON_PATH_BYTES_MAX {
            return Err(PathFault { at: JSON_PATH_BYTES_MAX, problem: "a path has at most 1024 bytes" });
        }
        let mut parser = Parser { text, at: 0 };
        if !parser.eat('$') {
            return Err(parser.fault("a path starts with $"));
        }
        let mut segments = Vec::new();
        while parser.at < text.len() {
            if segments.len() == JSON_PATH_SEGMENTS_MAX {
                return Err(parser.fault("a path has at most 32 steps"));
            }
            segments.push(parser.segment()?);
        }
        Ok(Self(segments.into()))
    }

    /// Its steps, from the root.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(|c| matches!(c, ' ' | '\t' | '\n' | '\r')) {
            self.at += 1;
        }
    }

    fn fault(&self, problem: &'static str) -> PathFault {
        PathFault { at: self.at, problem }
    }

    fn segment(&mut self) -> Result<Segment, PathFault> {
        if self.eat('.') {
            return self.simple_name().map(Segment::Name);
        }
        if !self.eat('[') {
            return Err(self.fault("a step starts with . or ["));
        }
        self.skip_blanks();
        let segment = match self.peek() {
            Some(quote @ ('\'' | '"')) => Segment::Name(self.quoted(quote)?),
            Some('0'..='9') => Segment::Index(self.index()?),
            Some('-') => return Err(self.fault("indexes from the end are not supported")),
            Some('*') => return Err(self.fault("wildcards are not supported")),
            Some('?') => return Err(self.fault("filters inside of a path are not supported")),
            Some(':') => return Err(self.fault("slices are not supported")),
            _ => return Err(self.fault("brackets hold an index or a name in quotes")),
        };
        self.skip_blanks();
        match self.peek() {
            Some(']') => {
                self.at += 1;
                Ok(segment)
            }
            Some(':') => Err(self.fault("slices are not supported")),
            Some(',') => Err(self.fault("a step has one index or name only")),
            _ => Err(self.fault("a ] is missing")),
        }
    }

    fn simple_name(&mut self) -> Result<String, PathFault> {
        let start = self.at;
        match self.peek() {
            Some('.') => return Err(self.fault("descendants (..) are not supported")),
            Some('*') => return Err(self.fault("wildcards are not supported")),
            Some(first) if is_name_start(first) => {}
            _ => {
                return Err(
                    self.fault("a name is missing; other names than letters, digits and _ go in ['…']")
                );
            }
        }
        while self.peek().is_some_and(|c| is_name_start(c) || c.is_ascii_digit()) {
            self.next();
        }
        Ok(self.text.get(start..self.at).unwrap_or_default().to_owned())
    }

    fn index(&mut self) -> Result<u32, PathFault> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        let digits = self.text.get(start..self.at).unwrap_or_default();
        if digits.len() > 1 && digits.starts_with('0') {
            return Err(PathFault { at: start, problem: "an index has no leading zeros" });
        }
        digits.parse().map_err(|_| PathFault { at: start, problem: "an index is at most 4294967295" })
    }

    fn quoted(&mut self, quote: char) -> Result<String, PathFault> {
        self.at += 1;
        let mut name = String::new();
        loop {
            let start = self.at;
            match self.next() {
                None => return Err(self.fault("the closing quote is missing")),
                Some(c) if c == quote => return Ok(name),
                Some('\\') => name.push(self.escape(quote)?),
                Some(c) if c < ' ' => {
                    return Err(PathFault { at: start, problem: "a control character must be escaped" });
                }
                Some(c) => name.push(c),
            }
        }
    }

    fn escape(&mut self, quote: char) -> Result<char, PathFault> {
        let start = self.at;
        let unknown = PathFault { at: start, problem: "there is no such escape" };
        match self.next().ok_or_else(|| unknown.clone())? {
            'b' => Ok('\u{8}'),
            't' => Ok('\t'),
            'n' => Ok('\n'),
            'f' => Ok('\u{c}'),
            'r' => Ok('\r'),
            c @ ('/' | '\\') => Ok(c),
            c if c == quote => Ok(c),
            'u' => self.code_point(),
            _ => Err(unknown),
        }
    }

    /// What follows `\u`: four digits, or two times four for a character beyond U+FFFF.
    fn code_point(&mut self) -> Result<char, PathFault> {
        let start = self.at;
        let lone = PathFault { at: start, problem: "half of a surrogate pair" };
        let first = self.four_digits()?;
        let code = match first {
            0xD800..=0xDBFF => {
                if !(self.eat('\\') && self.eat('u')) {
                    return Err(lone);
                }
                let second = self.four_digits()?;
                if !(0xDC00..=0xDFFF).contains(&second) {
                    return Err(lone);
                }
                0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
            }
            code => code,
        };
        char::from_u32(code).ok_or(lone)
    }

    fn four_digits(&mut self) -> Result<u32, PathFault> {
        let fault = self.fault("four hexadecimal digits are missing");
        let digits = self.text.get(self.at..self.at + 4).ok_or_else(|| fault.clone())?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(fault);
        }
        self.at += 4;
        u32::from_str_radix(digits, 16).map_err(|_| fault)
    }
}

fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}
