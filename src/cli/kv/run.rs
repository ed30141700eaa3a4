//! `flowmesh kv do`: commands as one types them into redis-cli, one from the command line or many from standard input.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use clap::Args;
use flowmesh::redis_syntax::show::Shown;
use flowmesh::redis_syntax::{Request, parse, words};
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_proto::{rpc, v1};
use prost::Message;
use serde::{Serialize, Serializer};
use tonic::{Code, Status};

use super::KvClient;
use super::past::{AsOfArgs, as_of};
use crate::cli::args::{Format, Output, Server};
use crate::cli::connection::client;
use crate::cli::failure::{Failure, Refusal};
use crate::cli::input::{Source, batches};
use crate::cli::output::{BytesJson, Out, note};

/// Commands that are sent at once: as many lines as a batch of input has at most.
const LINES_MAX: usize = 1_000;

/// Arguments of `kv do`. Options stand before the command.
#[derive(Args, Debug)]
pub struct DoArgs {
    /// The store
    store: String,
    /// All commands of standard input, or none of them: if one is refused, nothing is done
    #[arg(long)]
    atomic: bool,
    #[command(flatten)]
    as_of: AsOfArgs,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
    /// The command and its arguments, as in redis-cli; - reads commands from standard input, one a line
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    words: Vec<OsString>,
}

/// A command of standard input.
struct Line {
    number: u64,
    request: Request,
    /// About as many items as its operations name.
    items: usize,
}

/// Why a command has no answer.
struct Refused {
    refusal: Refusal,
    /// The operation that made a whole batch fail.
    operation: Option<usize>,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self { refusal: Refusal::of_status(&status), operation: operation_of(&status) }
    }
}

impl DoArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let words: Vec<Bytes> = self.words.iter().map(|word| Bytes::from(word.clone().into_vec())).collect();
        if words.first().is_some_and(|word| word == "-") {
            if words.len() > 1 {
                return Err(Failure::Usage(
                    "- reads commands from standard input; options stand before it".to_owned(),
                ));
            }
            return self.run_lines().await;
        }
        let request = parse(&words).map_err(|error| Failure::Usage(error.to_string()))?;
        let mut session = self.connect().await?;
        let (operations, atomic) = (request.operations.clone(), request.atomic || self.atomic);
        let shown = match session.run(&request, operations, atomic).await {
            Ok(shown) => shown,
            Err(refused) => return Err(Failure::Refused(refused.refusal)),
        };
        session.write(&shown)?;
        session.out.flush()
    }

    async fn connect(&self) -> Result<Session<'_>, Failure> {
        let kv = client!(kv_client::KvClient, self.server.connect().await?);
        Ok(Session { args: self, kv, out: Out::new(), refused: 0, code: 0 })
    }

    async fn run_lines(&self) -> Result<(), Failure> {
        let number = AtomicU64::new(0);
        let parse_line = move |line: Bytes| {
            let number = number.fetch_add(1, Ordering::Relaxed) + 1;
            let words = words::split(&line)?;
            if words.is_empty() {
                return Ok(None);
            }
            let request = parse(&words).map_err(|error| error.to_string())?;
            Ok(Some(Line { number, request, items: words.len() }))
        };
        let mut session = self.connect().await?;
        let mut batches = batches(&Source::Stdin, LINES_MAX, parse_line)?;
        let mut all = Vec::new();
        while let Some(batch) = batches.recv().await {
            // What is wrong with a line ends the input; the lines before it are done, unless all are to be.
            let batch = match batch {
                Ok(batch) => batch,
                Err(failure) => {
                    session.out.flush()?;
                    return Err(failure);
                }
            };
            if self.atomic {
                all.extend(batch.items);
            } else {
                session.each(batch.items).await?;
                session.out.flush()?;
            }
        }
        if self.atomic {
            session.together(all).await?;
        }
        session.end()
    }
}

/// A connection that commands go over, and where their answers go.
struct Session<'a> {
    args: &'a DoArgs,
    kv: KvClient,
    out: Out,
    refused: u64,
    /// The exit code of the first that was refused.
    code: u8,
}

impl Session<'_> {
    /// Carries out one command.
    async fn run(
        &mut self,
        request: &Request,
        operations: Vec<v1::Operation>,
        atomic: bool,
    ) -> Result<Shown, Refused> {
        if request.is_random() && self.args.as_of.is_past() {
            let refusal = Refusal {
                code: Code::InvalidArgument,
                reason: String::new(),
                message: "RANDOMKEY is not for what was: it draws one of the keys that are there".to_owned(),
                retry_after_ms: None,
            };
            return Err(Refused { refusal, operation: None });
        }
        if request.is_random() {
            let random = v1::RandomRequest { store: self.args.store.clone() };
            let found = self.kv.random(self.args.server.request(random)).await?.into_inner().entry;
            return Ok(found.map_or(Shown::Nil, |entry| Shown::Bytes(entry.key)));
        }
        match self.ask(operations, atomic).await {
            Ok(response) => answer(request, response.outcomes, response.now_ms),
            Err(refused) => {
                let is_precondition = refused.refusal.code == Code::FailedPrecondition;
                request.answer_to_refusal(&refused.refusal.reason, is_precondition).ok_or(refused)
            }
        }
    }

    async fn ask(
        &mut self,
        operations: Vec<v1::Operation>,
        atomic: bool,
    ) -> Result<v1::RunResponse, Refused> {
        let as_of = as_of!(run_request, self.args.as_of);
        let run = v1::RunRequest { store: self.args.store.clone(), operations, atomic, as_of };
        Ok(self.kv.run(self.args.server.request(run)).await?.into_inner())
    }

    /// Carries out commands each for itself, in as few calls as they fit into.
    async fn each(&mut self, lines: Vec<Line>) -> Result<(), Failure> {
        let (mut group, mut items) = (Vec::new(), 0);
        for line in lines {
            let alone = line.request.atomic || line.request.is_random();
            if alone || items + line.items > BATCH_ITEMS_MAX {
                self.group(std::mem::take(&mut group)).await?;
                items = 0;
            }
            if alone {
                self.alone(&line).await?;
            } else {
                items += line.items;
                group.push(line);
            }
        }
        self.group(group).await
    }

    async fn group(&mut self, lines: Vec<Line>) -> Result<(), Failure> {
        if lines.is_empty() {
            return Ok(());
        }
        let operations = lines.iter().flat_map(|line| line.request.operations.clone()).collect();
        match self.ask(operations, false).await {
            Ok(response) => self.answers(&lines, response),
            // One of them is wrong whatever its key holds, and nothing was done: which one shows when each goes alone.
            Err(refused) if refused.refusal.code == Code::InvalidArgument => {
                for line in &lines {
                    self.alone(line).await?;
                }
                Ok(())
            }
            Err(refused) => Err(Failure::Refused(refused.refusal)),
        }
    }

    async fn alone(&mut self, line: &Line) -> Result<(), Failure> {
        match self.run(&line.request, line.request.operations.clone(), line.request.atomic).await {
            Ok(shown) => self.write(&shown),
            Err(refused) if refused.refusal.is_temporary() => Err(Failure::Refused(refused.refusal)),
            Err(refused) => self.refuse(line.number, &refused.refusal),
        }
    }

    fn answers(&mut self, lines: &[Line], response: v1::RunResponse) -> Result<(), Failure> {
        let mut outcomes = response.outcomes.into_iter();
        for line in lines {
            let own = outcomes.by_ref().take(line.request.operations.len()).collect();
            match answer(&line.request, own, response.now_ms) {
                Ok(shown) => self.write(&shown)?,
                Err(refused) => self.refuse(line.number, &refused.refusal)?,
            }
        }
        Ok(())
    }

    /// Carries out all commands or none.
    async fn together(&mut self, lines: Vec<Line>) -> Result<(), Failure> {
        if lines.is_empty() {
            return Ok(());
        }
        if let Some(line) = lines.iter().find(|line| line.request.is_random()) {
            let problem = "a key by chance is not on the partition of a batch that is all or none";
            return Err(Failure::Usage(format!("standard input line {}: {problem}", line.number)));
        }
        let operations = lines.iter().flat_map(|line| line.request.operations.clone()).collect();
        match self.ask(operations, true).await {
            Ok(response) => self.answers(&lines, response),
            Err(mut refused) => {
                if let Some(line) = refused.operation.and_then(|place| line_of(&lines, place)) {
                    refused.refusal.message =
                        format!("standard input line {line}: {}", refused.refusal.message);
                }
                Err(Failure::Refused(refused.refusal))
            }
        }
    }

    /// Says that a command was refused, and goes on.
    fn refuse(&mut self, line: u64, refusal: &Refusal) -> Result<(), Failure> {
        if self.refused == 0 {
            self.code = refusal.exit_code();
        }
        self.refused += 1;
        note(format_args!("flowmesh: standard input line {line}: {refusal}"));
        if self.args.output.format == Format::Json {
            self.out.json(&ErrorJson { error: &refusal.reason, message: &refusal.message })?;
        }
        Ok(())
    }

    fn write(&mut self, shown: &Shown) -> Result<(), Failure> {
        match self.args.output.format {
            Format::Json => self.out.json(&ShownJson(shown)),
            Format::Table => {
                let mut lines = Vec::new();
                shown.write_lines(&mut lines);
                self.out.raw(&lines)
            }
        }
    }

    fn end(mut self) -> Result<(), Failure> {
        self.out.flush()?;
        match self.refused {
            0 => Ok(()),
            1 => Err(Failure::Partly { report: "1 command was refused".to_owned(), code: self.code }),
            count => {
                Err(Failure::Partly { report: format!("{count} commands were refused"), code: self.code })
            }
        }
    }
}

fn answer(request: &Request, outcomes: Vec<v1::OperationOutcome>, now_ms: u64) -> Result<Shown, Refused> {
    request
        .answer(outcomes, now_ms)
        .map_err(|error| Refused { refusal: Refusal::of_item(&error), operation: None })
}

/// The line whose operation has this place among those of all.
fn line_of(lines: &[Line], mut place: usize) -> Option<u64> {
    for line in lines {
        let operations = line.request.operations.len();
        if place < operations {
            return Some(line.number);
        }
        place -= operations;
    }
    None
}

/// The operation that the details of a status name.
fn operation_of(status: &Status) -> Option<usize> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url.ends_with("google.rpc.ErrorInfo"))?;
    let metadata: HashMap<String, String> = rpc::ErrorInfo::decode(&*info.value).ok()?.metadata;
    metadata.get("operation")?.parse().ok()
}

#[derive(Serialize)]
struct ErrorJson<'a> {
    error: &'a str,
    message: &'a str,
}

/// A number in JSON: infinite ones as text.
pub struct DecimalJson(pub f64);

impl Serialize for DecimalJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() { serializer.serialize_f64(self.0) } else { serializer.collect_str(&self.0) }
    }
}

struct ShownJson<'a>(&'a Shown);

impl Serialize for ShownJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Shown::Nil => serializer.serialize_none(),
            Shown::Word(word) => serializer.serialize_str(word),
            Shown::Integer(value) => serializer.serialize_i64(*value),
            Shown::Decimal(value) => DecimalJson(*value).serialize(serializer),
            Shown::Bytes(bytes) => BytesJson(bytes).serialize(serializer),
            Shown::List(items) => serializer.collect_seq(items.iter().map(ShownJson)),
            Shown::Pairs(pairs) => serializer
                .collect_seq(pairs.iter().map(|(first, second)| (ShownJson(first), ShownJson(second)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_in_json_keep_their_kinds() {
        let shown = Shown::List(vec![
            Shown::Nil,
            Shown::Word("OK"),
            Shown::Integer(-3),
            Shown::Decimal(2.5),
            Shown::Decimal(f64::NEG_INFINITY),
            Shown::Bytes(Bytes::from_static(b"a\"")),
            Shown::Bytes(Bytes::from_static(&[0xFF])),
            Shown::Pairs(vec![(Shown::Bytes(Bytes::from_static(b"m")), Shown::Decimal(1.0))]),
        ]);
        assert_eq!(
            serde_json::to_string(&ShownJson(&shown)).unwrap(),
            r#"[null,"OK",-3,2.5,"-inf","a\"",{"base64":"/w=="},[["m",1.0]]]"#
        );
    }
}
