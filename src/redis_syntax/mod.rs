//! Commands as Redis users write them: words to operations of `Kv.Run`, and their outcomes to answers.
//!
//! - [`words`]: a line, cut into words.
//! - [`parse`]: words to a [`Request`]; one file a group of commands, each with its table. [`args`] reads arguments.
//! - [`refused`]: the commands that have no equivalent.
//! - [`show`]: outcomes to what Redis would answer.
//!
//! `docs/redis.md` has all commands of these groups of Redis 7.4; a test compares it with the tables here.

mod args;
mod hashes;
mod keys;
mod lists;
pub mod refused;
mod sets;
pub mod show;
mod sorted;
mod strings;
#[cfg(test)]
mod tests;
pub mod words;

use std::fmt;

use bytes::Bytes;
use flowmesh_proto::v1;
use v1::operation::Action;

use args::Args;
use refused::{ELSEWHERE, REFUSED};
use show::{CURSOR_AFTER, CURSOR_START, Show, Shown};

/// A group of Redis' commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// On bytes and counters.
    String,
    /// On keys, whatever they hold.
    Generic,
    /// On hashes.
    Hash,
    /// On sets.
    Set,
    /// On sorted sets.
    SortedSet,
    /// On lists.
    List,
}

impl Group {
    /// All groups.
    pub const ALL: [Self; 6] =
        [Self::String, Self::Generic, Self::Hash, Self::Set, Self::SortedSet, Self::List];

    /// As Redis' documentation calls it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Generic => "generic",
            Self::Hash => "hash",
            Self::Set => "set",
            Self::SortedSet => "sorted set",
            Self::List => "list",
        }
    }

    /// Those of its commands that have an equivalent.
    #[must_use]
    pub const fn commands(self) -> &'static [Command] {
        match self {
            Self::String => strings::COMMANDS,
            Self::Generic => keys::COMMANDS,
            Self::Hash => hashes::COMMANDS,
            Self::Set => sets::COMMANDS,
            Self::SortedSet => sorted::COMMANDS,
            Self::List => lists::COMMANDS,
        }
    }
}

/// A command that has an equivalent.
#[derive(Clone, Copy)]
pub struct Command {
    /// Its name, in capital letters.
    pub name: &'static str,
    /// What follows the name.
    pub syntax: &'static str,
    /// One of its forms.
    pub example: &'static str,
    parse: fn(&mut Args<'_>) -> Parsed,
}

impl Command {
    const fn new(
        name: &'static str,
        syntax: &'static str,
        example: &'static str,
        parse: fn(&mut Args<'_>) -> Parsed,
    ) -> Self {
        Self { name, syntax, example, parse }
    }
}

/// What a command asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The operations, in order; none: a key by chance (`Kv.Random`).
    pub operations: Vec<v1::Operation>,
    /// All or none.
    pub atomic: bool,
    show: Show,
}

/// What a command is.
type Parsed = Result<Request, SyntaxError>;

impl Request {
    fn run(operations: Vec<v1::Operation>, show: Show) -> Self {
        Self { operations, atomic: false, show }
    }

    fn random() -> Self {
        Self::run(Vec::new(), Show::First)
    }

    /// Whether it is for a key by chance.
    #[must_use]
    pub fn is_random(&self) -> bool {
        self.operations.is_empty()
    }

    /// What Redis would answer. There is an outcome for each operation; `now_ms` is the server's clock.
    ///
    /// # Errors
    /// Why an operation was refused, if that is not part of the answer.
    pub fn answer(&self, outcomes: Vec<v1::OperationOutcome>, now_ms: u64) -> Result<Shown, v1::Error> {
        self.show.show(&self.operations, outcomes, now_ms)
    }

    /// What Redis would answer where the whole batch was refused: 0, if it is atomic and a condition did not hold.
    #[must_use]
    pub fn answer_to_refusal(&self, reason: &str, is_precondition: bool) -> Option<Shown> {
        let conditional = self.atomic && self.show == Show::OneIfDone;
        (conditional && reason == "BATCH_REFUSED" && is_precondition).then_some(Shown::Integer(0))
    }
}

/// What is wrong with a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// The command.
    pub command: String,
    /// What is wrong, and what is allowed.
    pub problem: String,
    /// What follows the command's name.
    pub syntax: Option<&'static str>,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.command, self.problem)?;
        match self.syntax {
            Some("") => write!(f, "; it takes no arguments"),
            Some(syntax) => write!(f, "; allowed: {} {syntax}", self.command),
            None => Ok(()),
        }
    }
}

impl std::error::Error for SyntaxError {}

/// Reads a command: its name, in any case, and its arguments.
///
/// # Errors
/// A name that is none here, or arguments it cannot have.
pub fn parse(words: &[Bytes]) -> Result<Request, SyntaxError> {
    let Some((name, rest)) = words.split_first() else {
        return Err(SyntaxError {
            command: "command".to_owned(),
            problem: "is missing".to_owned(),
            syntax: None,
        });
    };
    let mut commands = Group::ALL.iter().flat_map(|group| group.commands());
    let Some(command) = commands.find(|command| name.eq_ignore_ascii_case(command.name.as_bytes())) else {
        return Err(no_such(name));
    };
    let mut args = Args::new(command.name, command.syntax, rest);
    let request = (command.parse)(&mut args)?;
    args.end()?;
    Ok(request)
}

fn no_such(name: &[u8]) -> SyntaxError {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    let refused = REFUSED
        .iter()
        .find(|refused| refused.names.iter().any(|&name| is(name)))
        .map(|refused| refused.instead);
    let elsewhere = || ELSEWHERE.iter().find(|(known, _)| is(known)).map(|(_, instead)| *instead);
    let (command, problem) = if let Some(instead) = refused.or_else(elsewhere) {
        (String::from_utf8_lossy(name).to_ascii_uppercase(), format!("has no equivalent. {instead}"))
    } else {
        let problem = "is no command here; docs/redis.md lists those there are";
        (String::from_utf8_lossy(name).into_owned(), problem.to_owned())
    };
    SyntaxError { command, problem, syntax: None }
}

fn op(key: Bytes, action: Action) -> v1::Operation {
    v1::Operation { key, condition: None, action: Some(action) }
}

#[allow(clippy::unnecessary_wraps, reason = "what most commands end with")]
fn one(key: Bytes, action: Action, show: Show) -> Parsed {
    Ok(Request::run(vec![op(key, action)], show))
}

/// `cursor [MATCH pattern] [COUNT count]`, and a word that may stand there: whether it did.
fn page(args: &mut Args<'_>, word: &str) -> Result<(v1::PageOf, bool), SyntaxError> {
    let cursor = args.next("cursor")?;
    let after = match cursor.split_first() {
        _ if cursor == CURSOR_START => None,
        Some((&CURSOR_AFTER, _)) => Some(cursor.slice(1..)),
        _ => {
            return Err(args.wrong(format!(
                "cursor is `{}`; allowed: 0 to begin, then the one that the page before gave",
                String::from_utf8_lossy(&cursor)
            )));
        }
    };
    let (mut page, mut found) = (v1::PageOf { after, glob: None, limit: 0 }, false);
    while let Some(next) = args.word() {
        match next.as_str() {
            "MATCH" => page.glob = Some(args.next("pattern")?),
            "COUNT" => page.limit = u32::try_from(args.count("count", 1)?).unwrap_or(u32::MAX),
            next if next == word => found = true,
            other => return Err(args.unknown(other)),
        }
    }
    Ok((page, found))
}
