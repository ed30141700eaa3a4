//! One key of a store as a [`Model`]: bytes, a counter or a list, with its version.

use bytes::Bytes;

use super::linear::Model;

/// What a key holds. Counters and bytes are the text that is read of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Held {
    #[default]
    Nothing,
    Text(Bytes),
    List(Vec<Bytes>),
}

/// A key. Of a write whose answer was lost the version is not known; then `version` is one that it is above.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key {
    pub held: Held,
    pub version: u64,
    pub is_known: bool,
}

#[derive(Clone, Debug)]
pub enum KeyOperation {
    Get,
    Set(Bytes),
    SetIfVersion(u64, Bytes),
    SetIfValue(Bytes, Bytes),
    Increment(i64),
    Append(Bytes),
    Delete,
    PushBack(Bytes),
    PopFront,
    Range,
}

/// Answers; those to what was done come with the version of the key afterwards, 0 if it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyAnswer {
    Done(u64),
    Value(Option<Bytes>, u64),
    Integer(i64, u64),
    Flag(bool, u64),
    Members(Vec<Bytes>, u64),
    /// With the version of the key that did not have the one, or the value, that was asked for.
    ConditionFailed(u64),
    WrongType,
    NotANumber,
}

/// What an operation comes to, apart from versions.
enum Outcome {
    /// What the key holds then.
    Changed(Held, KeyAnswer),
    Kept(KeyAnswer),
}

impl Key {
    fn text(&self) -> Result<Option<&Bytes>, KeyAnswer> {
        match &self.held {
            Held::Nothing => Ok(None),
            Held::Text(text) => Ok(Some(text)),
            Held::List(_) => Err(KeyAnswer::WrongType),
        }
    }

    fn list(&self) -> Result<&[Bytes], KeyAnswer> {
        match &self.held {
            Held::Nothing => Ok(&[]),
            Held::Text(_) => Err(KeyAnswer::WrongType),
            Held::List(list) => Ok(list),
        }
    }

    /// What an operation comes to, or why it is refused, with 0 for versions.
    fn outcome(&self, operation: &KeyOperation) -> Result<Outcome, KeyAnswer> {
        use KeyOperation as Do;
        let set = |value: &Bytes| Outcome::Changed(Held::Text(value.clone()), KeyAnswer::Done(0));
        Ok(match operation {
            Do::Get => Outcome::Kept(KeyAnswer::Value(self.text()?.cloned(), 0)),
            Do::Set(value) | Do::SetIfVersion(_, value) => set(value),
            Do::SetIfValue(wanted, value) => {
                if self.text()? != Some(wanted) {
                    return Err(KeyAnswer::ConditionFailed(0));
                }
                set(value)
            }
            Do::Increment(by) => {
                let text = self.text()?.map_or(Ok("0"), |text| std::str::from_utf8(text));
                let number = text.ok().and_then(|text| text.parse::<i64>().ok());
                let sum = number.ok_or(KeyAnswer::NotANumber)? + by;
                Outcome::Changed(Held::Text(sum.to_string().into()), KeyAnswer::Integer(sum, 0))
            }
            Do::Append(more) => {
                let text = [self.text()?.map_or(&[][..], |text| text), more].concat();
                let len = text.len() as i64;
                Outcome::Changed(Held::Text(text.into()), KeyAnswer::Integer(len, 0))
            }
            Do::Delete if self.held == Held::Nothing => Outcome::Kept(KeyAnswer::Flag(false, 0)),
            Do::Delete => Outcome::Changed(Held::Nothing, KeyAnswer::Flag(true, 0)),
            Do::PushBack(value) => {
                let list = [self.list()?, std::slice::from_ref(value)].concat();
                let len = list.len() as i64;
                Outcome::Changed(Held::List(list), KeyAnswer::Integer(len, 0))
            }
            Do::PopFront => match self.list()? {
                [] => Outcome::Kept(KeyAnswer::Members(Vec::new(), 0)),
                [first] => Outcome::Changed(Held::Nothing, KeyAnswer::Members(vec![first.clone()], 0)),
                [first, rest @ ..] => {
                    Outcome::Changed(Held::List(rest.to_vec()), KeyAnswer::Members(vec![first.clone()], 0))
                }
            },
            Do::Range => Outcome::Kept(KeyAnswer::Members(self.list()?.to_vec(), 0)),
        })
    }

    /// The key as it is, if this can be its version.
    fn at(&self, version: u64) -> Option<Self> {
        if self.held == Held::Nothing {
            return (version == 0).then(|| self.clone());
        }
        let may_be = if self.is_known { version == self.version } else { version > self.version };
        may_be.then(|| Self { held: self.held.clone(), version, is_known: true })
    }

    /// The key after a change, with the version that was answered, if it can have come to it.
    fn changed(&self, held: Held, version: Option<u64>) -> Option<Self> {
        match (version, &held) {
            (Some(0), Held::Nothing) | (None, _) => {
                Some(Self { held, version: self.version, is_known: false })
            }
            (Some(version), Held::Text(_) | Held::List(_)) if version > self.version => {
                Some(Self { held, version, is_known: true })
            }
            _ => None,
        }
    }
}

impl KeyAnswer {
    /// The answer without its version.
    fn parted(&self) -> (Self, u64) {
        match self {
            Self::Done(version) => (Self::Done(0), *version),
            Self::Value(value, version) => (Self::Value(value.clone(), 0), *version),
            Self::Integer(number, version) => (Self::Integer(*number, 0), *version),
            Self::Flag(flag, version) => (Self::Flag(*flag, 0), *version),
            Self::Members(members, version) => (Self::Members(members.clone(), 0), *version),
            Self::ConditionFailed(version) => (Self::ConditionFailed(0), *version),
            other => (other.clone(), 0),
        }
    }
}

impl Model for Key {
    type Operation = KeyOperation;
    type Answer = KeyAnswer;
    type State = Self;

    fn step(state: &Self, operation: &KeyOperation, answer: Option<&KeyAnswer>) -> Option<Self> {
        let said = answer.map(KeyAnswer::parted);
        let mut state = state.clone();
        if let KeyOperation::SetIfVersion(wanted, _) = operation {
            match &said {
                Some((KeyAnswer::ConditionFailed(_), actual)) => {
                    // A key that is absent has no version, 0 neither.
                    let fails = actual != wanted || state.held == Held::Nothing;
                    return state.at(*actual).filter(|_| fails);
                }
                _ if state.held == Held::Nothing => return None,
                _ => state = state.at(*wanted)?,
            }
        }
        match (state.outcome(operation), said) {
            (Ok(Outcome::Kept(_)) | Err(_), None) => None,
            (Ok(Outcome::Changed(held, _)), None) => state.changed(held, None),
            (Ok(Outcome::Changed(held, expected)), Some((said, version))) => {
                (said == expected).then(|| state.changed(held, Some(version))).flatten()
            }
            (
                Ok(Outcome::Kept(expected)) | Err(expected @ KeyAnswer::ConditionFailed(_)),
                Some((said, version)),
            ) => (said == expected).then(|| state.at(version)).flatten(),
            (Err(expected), Some((said, _))) => (said == expected).then_some(state),
        }
    }
}
