//! What can be asked of a replay session.

use std::collections::BTreeMap;

use flowmesh_model::group::fact::GroupFact;
use flowmesh_model::group::{MemberRef, NewOffset};
use flowmesh_model::limits::{REPLAY_ERROR_BYTES_MAX, REPLAY_SPEED_MAX};
use flowmesh_model::replay::fact::ReplayFact;
use flowmesh_model::replay::{Position, ReplayAction, ReplayProgress, ReplayRange, ReplayStatus, StepMove};
use flowmesh_model::settings::within;
use flowmesh_model::{
    Batch, Fact, GroupCommand, Lsn, Millis, Offset, PartitionRef, Reject, ReplayCommand, ReplaySettings,
    Reply,
};

use super::Session;
use crate::decision::{Decision, EntryContext, WaitKey};
use crate::group;
use crate::limit::{size, wait};

/// Partitions that go elsewhere than they are.
type Moves = BTreeMap<u32, Offset>;

/// The session's settings, and what would be asked of its sandbox.
pub(crate) struct Asked<'a> {
    pub settings: &'a ReplaySettings,
    pub group: group::decide::Asked<'a>,
}

impl Asked<'_> {
    pub fn decide(&self, command: &ReplayCommand) -> Result<Decision, Reject> {
        match command {
            ReplayCommand::Begin => Ok(self.begin()),
            ReplayCommand::Start { record_time } => {
                self.act(ReplayAction::Start, ReplayFact::Started { record_time: *record_time }, true)
            }
            ReplayCommand::Pause => self.act(ReplayAction::Pause, ReplayFact::Paused, false),
            ReplayCommand::Resume { record_time } => {
                self.act(ReplayAction::Resume, ReplayFact::Resumed { record_time: *record_time }, true)
            }
            ReplayCommand::Seek { to, record_time } => self.seek(to, *record_time),
            ReplayCommand::Stop => self.act(ReplayAction::Stop, ReplayFact::Stopped, false),
            ReplayCommand::SetSpeed { speed, record_time } => {
                within("speed", speed.0, 0, REPLAY_SPEED_MAX)?;
                let (speed, record_time) = (*speed, *record_time);
                self.act(ReplayAction::SetSpeed, ReplayFact::SpeedSet { speed, record_time }, false)
            }
            ReplayCommand::Fail { error } => {
                size("error", error.as_bytes(), REPLAY_ERROR_BYTES_MAX)?;
                if error.is_empty() {
                    return Err(Reject::invalid("error", "is empty; say what went wrong"));
                }
                self.act(ReplayAction::Fail, ReplayFact::Failed { error: error.clone() }, false)
            }
            ReplayCommand::Step { moves } => self.step(moves),
            ReplayCommand::Status { known, wait_until } => self.status(*known, *wait_until),
            ReplayCommand::Member(command) => self.member(command),
            ReplayCommand::Commit { generation, member, offsets } => {
                self.commit(*generation, member, offsets)
            }
        }
    }

    /// The session as it is, or as it would begin.
    fn session(&self) -> Session {
        let speed = self.settings.speed;
        let unborn = || Session { version: Lsn(0), ..Session::begun(self.entry(), speed) };
        self.group.group.replay().cloned().unwrap_or_else(unborn)
    }

    /// The entry that would come.
    fn entry(&self) -> EntryContext {
        EntryContext { lsn: self.group.lsn, time: self.group.now }
    }

    fn at(&self, partition: u32) -> PartitionRef {
        PartitionRef { resource: self.settings.stream, partition }
    }

    fn positions(&self, moves: impl IntoIterator<Item = Position>) -> Vec<(PartitionRef, Offset)> {
        moves.into_iter().map(|(partition, offset)| (self.at(partition), offset)).collect()
    }

    /// How far each partition is after these moves.
    fn progress(&self, moves: &Moves) -> Vec<ReplayProgress> {
        let one = |range: &ReplayRange| {
            let committed = || self.group.group.committed(self.at(range.partition));
            let position = moves.get(&range.partition).copied().or_else(committed).unwrap_or(range.from);
            ReplayProgress { range: *range, position }
        };
        self.settings.partitions.iter().map(one).collect()
    }

    fn is_done(&self, moves: &Moves) -> bool {
        self.progress(moves).iter().all(ReplayProgress::is_done)
    }

    fn reply(&self, session: Session, moves: &Moves) -> Reply {
        let Session { state, since, error, generation, version, pace, records_total } = session;
        let members = u32::try_from(self.group.group.members()).unwrap_or(u32::MAX);
        let partitions = self.progress(moves);
        Reply::Replay(Box::new(ReplayStatus {
            state,
            since,
            error,
            generation,
            version,
            pace,
            records_total,
            members,
            partitions,
        }))
    }

    fn fact(&self, fact: ReplayFact) -> Fact {
        Fact::Replay(self.group.id, fact)
    }

    /// What the settings say, as a fact.
    fn begun(&self) -> Fact {
        let positions = self.settings.partitions.iter().map(|range| (range.partition, range.from));
        self.fact(ReplayFact::Begun { speed: self.settings.speed, positions: self.positions(positions) })
    }

    /// Facts about a session that has not begun come behind its beginning.
    fn with_beginning(&self, decision: Decision) -> Decision {
        match decision {
            Decision::Change { mut facts, reply } if self.group.group.replay().is_none() => {
                facts.insert(0, self.begun());
                Decision::Change { facts, reply }
            }
            other => other,
        }
    }

    fn answer(&self) -> Decision {
        Decision::Answer { reply: self.reply(self.session(), &Moves::new()), seen: self.group.seen() }
    }

    fn begin(&self) -> Decision {
        if self.group.group.replay().is_some() {
            return self.answer();
        }
        let session = Session::begun(self.entry(), self.settings.speed);
        let reply = self.reply(session, &Moves::new());
        Decision::Change { facts: Batch::from_iter([self.begun()]), reply }
    }

    /// One fact; if the session completes when there is nothing left, that comes with it.
    fn act(&self, action: ReplayAction, fact: ReplayFact, completes: bool) -> Result<Decision, Reject> {
        self.session().state.check(action)?;
        Ok(self.change(vec![fact], &Moves::new(), completes))
    }

    fn change(&self, mut facts: Vec<ReplayFact>, moves: &Moves, completes: bool) -> Decision {
        if completes && self.is_done(moves) {
            facts.push(ReplayFact::Completed);
        }
        let mut session = self.session();
        for fact in &facts {
            session.take(self.entry(), fact);
        }
        if facts.iter().any(|fact| matches!(fact, ReplayFact::Stepped { .. })) {
            session.records_total += self.passed(moves);
        }
        let reply = self.reply(session, moves);
        let facts = facts.into_iter().map(|fact| self.fact(fact)).collect();
        self.with_beginning(Decision::Change { facts, reply })
    }

    /// Records that these moves go past.
    fn passed(&self, moves: &Moves) -> u64 {
        let now = self.progress(&Moves::new());
        let moved = now.iter().filter_map(|is| Some((is.position, *moves.get(&is.range.partition)?)));
        moved.map(|(from, to)| to.0.saturating_sub(from.0)).sum()
    }

    fn range(&self, partition: u32) -> Result<ReplayRange, Reject> {
        let partitions = self.settings.partitions.len() as u32;
        self.settings.range(partition).ok_or(Reject::NoSuchPartition { partition, partitions })
    }

    /// Refuses what lies outside of the session.
    fn check_within(&self, partition: u32, requested: Offset) -> Result<(), Reject> {
        let range = self.range(partition)?;
        let next = range.until.unwrap_or(Offset(u64::MAX));
        if requested < range.from || requested > next {
            return Err(Reject::OffsetOutOfRange { requested, earliest: range.from, next });
        }
        Ok(())
    }

    fn seek(&self, to: &[Position], record_time: Option<Millis>) -> Result<Decision, Reject> {
        let state = self.session().state;
        state.check(ReplayAction::Seek)?;
        if to.is_empty() {
            return Err(Reject::invalid("to", "names no partition"));
        }
        for (partition, offset) in to {
            self.check_within(*partition, *offset)?;
        }
        let moves: Moves = to.iter().copied().collect();
        let positions = self.positions(moves.clone());
        let is_active = state.allows(ReplayAction::Pause);
        Ok(self.change(vec![ReplayFact::Sought { record_time, positions }], &moves, is_active))
    }

    fn step(&self, steps: &[StepMove]) -> Result<Decision, Reject> {
        let session = self.session();
        session.state.check(ReplayAction::Step)?;
        let now: Moves =
            self.progress(&Moves::new()).iter().map(|is| (is.range.partition, is.position)).collect();
        let mut moves = Moves::new();
        for StepMove { partition, from, to } in steps {
            self.check_within(*partition, *to)?;
            if now.get(partition) != Some(from) || to < from {
                return Err(Reject::ReplayMoved { generation: session.generation });
            }
            moves.insert(*partition, *to);
        }
        if moves.is_empty() && !self.is_done(&moves) {
            return Ok(self.answer());
        }
        let stepped = ReplayFact::Stepped { positions: self.positions(moves.clone()) };
        let facts = if moves.is_empty() { Vec::new() } else { vec![stepped] };
        Ok(self.change(facts, &moves, true))
    }

    fn status(&self, known: Option<Lsn>, wait_until: Option<Millis>) -> Result<Decision, Reject> {
        wait(wait_until, self.group.now)?;
        let session = self.session();
        let is_known = known == Some(session.version) && !session.state.is_over();
        if is_known && wait_until.is_some_and(|until| until > self.group.now) {
            return Ok(Decision::Wait(WaitKey::Group(self.group.id)));
        }
        Ok(self.answer())
    }

    /// A member joins, stays or leaves; it reads the session's stream and no other.
    fn member(&self, command: &GroupCommand) -> Result<Decision, Reject> {
        match command {
            GroupCommand::Heartbeat(heartbeat) => {
                let streams = heartbeat.subscribed.as_deref().unwrap_or_default();
                if streams.iter().any(|stream| *stream != self.settings.stream) {
                    return Err(Reject::invalid("streams", "are not the one that is replayed"));
                }
            }
            GroupCommand::Leave { .. } => {}
            GroupCommand::Remove { .. }
            | GroupCommand::Commit { .. }
            | GroupCommand::FetchOffsets { .. }
            | GroupCommand::ForgetOffsets { .. }
            | GroupCommand::Status
            | GroupCommand::Describe => {
                return Err(Reject::Internal("a member of a replay session does not do that"));
            }
        }
        Ok(self.with_beginning(self.group.decide(command)?))
    }

    /// What is good is kept; if nothing is left then, the session is completed with it.
    fn commit(&self, generation: u64, member: &MemberRef, offsets: &[NewOffset]) -> Result<Decision, Reject> {
        let session = self.session();
        session.state.check(ReplayAction::Commit)?;
        if generation != session.generation {
            return Err(Reject::ReplayMoved { generation: session.generation });
        }
        for new in offsets {
            self.check_within(new.at.partition, new.offset)?;
        }
        let decision = self.group.commit(Some(member), offsets)?;
        let Decision::Change { mut facts, reply } = decision else { return Ok(decision) };
        let moves: Moves = facts.iter().flat_map(committed_by).collect();
        if self.is_done(&moves) {
            facts.push(self.fact(ReplayFact::Completed));
        }
        Ok(Decision::Change { facts, reply })
    }
}

/// Partitions of which a fact says that an offset is committed: members read one stream only.
fn committed_by(fact: &Fact) -> Vec<Position> {
    match fact {
        Fact::Group(_, GroupFact::OffsetsCommitted(offsets)) => {
            offsets.iter().map(|new| (new.at.partition, new.offset)).collect()
        }
        _ => Vec::new(),
    }
}
