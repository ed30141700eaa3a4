//! Looking into JSON text: from left to right, down along one path, passing over all else.
//!
//! Depth is bounded: only the steps of the path are calls within calls, and what is passed over is skipped in a loop. A
//! text that does not match is left as soon as that is known. One that does is read to its end: it must be JSON as a whole.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::path::Segment;

/// A JSON value without parts.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    /// A whole number, however it is written.
    Integer(i128),
    /// Any other number.
    Float(f64),
    Text(String),
}

impl Scalar {
    /// Reads JSON text. The error is the byte where it goes wrong, and why.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let fault =
            |at| (at, "a string in double quotes, a number, true, false or null is needed".to_owned());
        let start = text.len() - text.trim_start().len();
        if text.trim_start().starts_with(['[', '{']) {
            return Err(fault(start));
        }
        serde_json::from_str(text).map_err(|error| {
            let before: usize =
                text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
            fault((before + error.column().saturating_sub(1)).min(text.len()))
        })
    }

    /// Whole numbers are equal to integers, whichever way they are written.
    fn of_float(number: f64) -> Self {
        // Below this a whole double is an i128 exactly.
        const WHOLE_MAX: f64 = 1e38;
        if number.fract() == 0.0 && number.abs() < WHOLE_MAX {
            Self::Integer(number as i128)
        } else {
            Self::Float(number)
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON scalar")
            }
            fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
                Ok(Scalar::Null)
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(value))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(value.into()))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(value.into()))
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar::of_float(value))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// Whether `text` is JSON that has `wanted` at the end of `path`. Of members with the same name the first counts.
pub(super) fn has(text: &[u8], path: &[Segment], wanted: &Scalar) -> bool {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let found = At { path, wanted }.deserialize(&mut reader).is_ok();
    // What was passed over was not checked to be text.
    found && reader.end().is_ok() && std::str::from_utf8(text).is_ok()
}

/// Reads one value: `Ok` if it has what is wanted.
#[derive(Clone, Copy)]
struct At<'a> {
    path: &'a [Segment],
    wanted: &'a Scalar,
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.path.split_first() {
            None => deserializer.deserialize_any(IsWanted(self.wanted)),
            Some((Segment::Name(name), path)) => {
                deserializer.deserialize_any(Member { name, then: At { path, ..self } })
            }
            Some((Segment::Index(index), path)) => {
                deserializer.deserialize_any(Element { index: *index, then: At { path, ..self } })
            }
        }
    }
}

/// Ends the reading; nobody sees the message.
fn no_match<T, E: Error>() -> Result<T, E> {
    Err(E::custom(""))
}

fn only<E: Error>(equal: bool) -> Result<(), E> {
    if equal { Ok(()) } else { no_match() }
}

struct IsWanted<'a>(&'a Scalar);

impl<'de> Visitor<'de> for IsWanted<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON scalar")
    }
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        only(*self.0 == Scalar::Null)
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        only(*self.0 == Scalar::Bool(value))
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        only(*self.0 == Scalar::Integer(value.into()))
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        only(*self.0 == Scalar::Integer(value.into()))
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        only(*self.0 == Scalar::of_float(value))
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        only(matches!(self.0, Scalar::Text(text) if text == value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        no_match()
    }
    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        no_match()
    }
}

struct Member<'a> {
    name: &'a str,
    then: At<'a>,
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(found) = map.next_key_seed(IsName(self.name))? {
            if !found {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            map.next_value_seed(self.then)?;
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        no_match()
    }
}

struct Element<'a> {
    index: u32,
    then: At<'a>,
}

impl<'de> Visitor<'de> for Element<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for _ in 0..self.index {
            if items.next_element::<IgnoredAny>()?.is_none() {
                return no_match();
            }
        }
        if items.next_element_seed(self.then)?.is_none() {
            return no_match();
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Whether a member has this name, without keeping the name.
struct IsName<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for IsName<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsName<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}
