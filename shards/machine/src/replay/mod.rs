//! Replay sessions: what a sandbox group is for (see [`flowmesh_model::replay`], which draws the states).
//!
//! [`decide`] is what can be asked of one; here is what facts make of it, and its part of checkpoints. How far it is, is
//! what its group has committed.
//!
//! | from | fact | to |
//! |---|---|---|
//! | nothing | `Begun` | created |
//! | created | `Started` | active |
//! | active | `Paused` | paused |
//! | paused, error | `Resumed` | active |
//! | active, paused, error | `Failed` | error |
//! | created, active, paused, error | `Stopped` | stopped |
//! | created, active, paused, error | `Completed` | completed |
//! | completed | `Sought` | paused; others stay what they are |
//! | created, paused | `Stepped` | stays what it is |

pub(crate) mod decide;

use bytes::{BufMut, BytesMut};
use flowmesh_model::codec::{Malformed, Reader, put_bytes, put_varint};
use flowmesh_model::group::Name;
use flowmesh_model::replay::fact::ReplayFact;
use flowmesh_model::replay::{Pace, ReplayState, Speed};
use flowmesh_model::{Lsn, Millis};

use crate::decision::EntryContext;

/// What a session takes in memory besides the text of its error.
const SESSION_BYTES: u64 = size_of::<Session>() as u64;

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub state: ReplayState,
    /// When it came into this state.
    pub since: Millis,
    /// What went wrong, in the state error.
    pub error: Option<Name>,
    /// Counts how often it was moved by other than commits of its members.
    pub generation: u64,
    /// The entry that last changed state, pace or generation.
    pub version: Lsn,
    pub pace: Pace,
    /// Records that commits and steps went past.
    pub records_total: u64,
}

impl Session {
    /// `Begun`.
    pub fn begun(at: EntryContext, speed: Speed) -> Self {
        Self {
            state: ReplayState::Created,
            since: at.time,
            error: None,
            generation: 1,
            version: at.lsn,
            pace: Pace { speed, wall: at.time, record: at.time },
            records_total: 0,
        }
    }

    /// Makes a later fact true, but for what it says of positions.
    pub fn take(&mut self, at: EntryContext, fact: &ReplayFact) {
        use ReplayState::{Active, Completed, Created, Error, Paused, Stopped};
        let was = self.state;
        let goes = |from: &[ReplayState], to| {
            assert!(from.contains(&was), "a replay session that is {} cannot become {to:?}", was.as_str());
            to
        };
        let state = match fact {
            ReplayFact::Begun { .. } => panic!("a replay session begins once"),
            ReplayFact::Started { record_time } => {
                self.pace_from(at, *record_time);
                goes(&[Created], Active)
            }
            ReplayFact::Paused => goes(&[Active], Paused),
            ReplayFact::Resumed { record_time } => {
                self.pace_from(at, *record_time);
                goes(&[Paused, Error], Active)
            }
            ReplayFact::Sought { record_time, .. } => {
                self.pace_from(at, *record_time);
                self.generation += 1;
                if was == Completed { Paused } else { goes(&[Created, Active, Paused, Error], was) }
            }
            ReplayFact::Stopped => goes(&[Created, Active, Paused, Error], Stopped),
            ReplayFact::SpeedSet { speed, record_time } => {
                self.pace.speed = *speed;
                self.pace_from(at, *record_time);
                goes(&[Created, Active, Paused, Error], was)
            }
            ReplayFact::Failed { error } => {
                self.error = Some(Name::clone(error));
                goes(&[Active, Paused, Error], Error)
            }
            ReplayFact::Completed => goes(&[Created, Active, Paused, Error], Completed),
            ReplayFact::Stepped { .. } => {
                self.generation += 1;
                goes(&[Created, Paused], was)
            }
        };
        if state != Error {
            self.error = None;
        }
        if state != was {
            (self.state, self.since) = (state, at.time);
        }
        self.version = at.lsn;
    }

    /// Records of that time are due at the time of the entry.
    fn pace_from(&mut self, at: EntryContext, record_time: Option<Millis>) {
        (self.pace.wall, self.pace.record) = (at.time, record_time.unwrap_or(at.time));
    }

    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        SESSION_BYTES + self.error.as_ref().map_or(0, |error| error.len() as u64)
    }

    /// Appends the session in its form in the index: behind the counters of its group.
    ///
    /// | field | size | meaning |
    /// |---|---|---|
    /// | state | 1 | its place among all states |
    /// | since | varint | ms |
    /// | error | varint length + bytes | empty = none |
    /// | generation, version | varint each | |
    /// | speed | varint | thousandths of real time |
    /// | wall, record | varint each | ms: from when the pace counts |
    /// | records | varint | |
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(self.state as u8);
        put_varint(out, self.since.0);
        put_bytes(out, self.error.as_deref().unwrap_or_default().as_bytes());
        let Pace { speed, wall, record } = self.pace;
        for number in [self.generation, self.version.0, speed.0, wall.0, record.0, self.records_total] {
            put_varint(out, number);
        }
    }

    /// Reads what [`Session::encode`] wrote.
    pub fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        let state = usize::from(reader.byte()?);
        let state = ReplayState::ALL.get(state).ok_or(Malformed("unknown state of a replay session"))?;
        Ok(Self {
            state: *state,
            since: Millis(reader.varint()?),
            error: Some(Name::from(reader.text()?)).filter(|error| !error.is_empty()),
            generation: reader.varint()?,
            version: Lsn(reader.varint()?),
            pace: Pace {
                speed: Speed(reader.varint()?),
                wall: Millis(reader.varint()?),
                record: Millis(reader.varint()?),
            },
            records_total: reader.varint()?,
        })
    }

    /// Checks every invariant.
    pub fn check(&self) {
        assert_eq!(self.error.is_some(), self.state == ReplayState::Error);
        assert!(self.generation > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_in_the_index_never_changes() {
        let session = Session {
            state: ReplayState::Error,
            since: Millis(300),
            error: Some(Name::from("no")),
            generation: 3,
            version: Lsn(9),
            pace: Pace { speed: Speed(1000), wall: Millis(5), record: Millis(4) },
            records_total: 7,
        };
        let mut out = BytesMut::new();
        session.encode(&mut out);
        assert_eq!(&out[..], [5, 0xAC, 2, 2, b'n', b'o', 3, 9, 0xE8, 7, 5, 4, 7]);
        let mut reader = Reader::new(out.freeze());
        assert_eq!(Session::decode(&mut reader).unwrap(), session);
        assert!(reader.is_empty());
        assert!(
            Session::decode(&mut Reader::new(bytes::Bytes::from_static(&[6, 0, 0, 1, 1, 0, 0, 0, 0])))
                .is_err()
        );
    }

    #[test]
    fn the_states_on_disk_are_in_their_order() {
        for (place, state) in ReplayState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, place);
        }
    }
}
