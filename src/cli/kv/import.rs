//! `flowmesh kv import`: keys from lines of JSON.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_proto::v1;
use indicatif::ProgressBar;
use v1::operation::Action;

use super::lines::{Content, Field, Line, Number, read};
use super::{KvClient, operation};
use crate::cli::args::Server;
use crate::cli::connection::client;
use crate::cli::failure::{Failure, Refusal};
use crate::cli::input::{Source, batches};
use crate::cli::output::{note, progress};

/// Lines read ahead at once.
const LINES_MAX: usize = 1_000;

/// Items of one operation, and bytes of them: several fit into one call.
const PART_ITEMS_MAX: usize = 1_000;
const PART_BYTES_MAX: usize = 1 << 20;

/// Bytes of one call, below the limit of a message with one more operation.
const CALL_BYTES_MAX: usize = 2 << 20;

/// Arguments of `kv import`.
#[derive(Args, Debug)]
pub struct ImportArgs {
    /// The store
    store: String,
    /// A file as `kv export` writes it; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    server: Server,
}

/// An operation, and what it weighs.
struct Step {
    line: u64,
    operation: v1::Operation,
    items: usize,
    bytes: usize,
}

impl ImportArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let number = std::sync::atomic::AtomicU64::new(0);
        let parse = move |line: Bytes| {
            let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            if line.trim_ascii().is_empty() { Ok(None) } else { read(&line).map(|line| Some((number, line))) }
        };
        let mut batches = batches(&Source::of_path(&self.file), LINES_MAX, parse)?;
        let channel = self.server.connect().await?;
        let ends_by_itself = self.has_default_ttl(channel.clone()).await?;
        let mut import = Import {
            args: &self,
            kv: client!(kv_client::KvClient, channel),
            bar: progress("keys"),
            steps: Vec::new(),
            items: 0,
            bytes: 0,
            keys: 0,
        };
        let outcome = import.all(&mut batches, ends_by_itself).await;
        import.bar.finish_and_clear();
        let imported = format!("{} keys imported", import.keys);
        match outcome {
            Ok(()) => {
                note(imported);
                Ok(())
            }
            Err(failure) => {
                let problem = failure.message().unwrap_or_default();
                let report = format!("{problem}\n{imported} before that; importing again is safe");
                Err(Failure::Partly { report, code: failure.exit_code() })
            }
        }
    }

    /// Whether a key without an end would get one.
    async fn has_default_ttl(&self, channel: tonic::transport::Channel) -> Result<bool, Failure> {
        let mut admin = client!(admin_client::AdminClient, channel);
        let request = v1::DescribeResourceRequest { kind: v1::Kind::Kv.into(), name: self.store.clone() };
        let described = match admin.describe_resource(self.server.request(request)).await {
            Ok(described) => described.into_inner(),
            // It is made by the first write, with default settings.
            Err(status) if Refusal::of_status(&status).reason == "RESOURCE_NOT_FOUND" => return Ok(false),
            Err(status) => return Err(status.into()),
        };
        let settings = described.resource.and_then(|resource| resource.settings);
        Ok(match settings.and_then(|settings| settings.kind) {
            Some(v1::settings::Kind::Kv(kv)) => kv.default_ttl_ms.is_some_and(|ttl| ttl > 0),
            _ => false,
        })
    }
}

struct Import<'a> {
    args: &'a ImportArgs,
    kv: KvClient,
    bar: ProgressBar,
    steps: Vec<Step>,
    items: usize,
    bytes: usize,
    keys: u64,
}

type Batches = tokio::sync::mpsc::Receiver<Result<crate::cli::input::Batch<(u64, Line)>, Failure>>;

impl Import<'_> {
    async fn all(&mut self, batches: &mut Batches, ends_by_itself: bool) -> Result<(), Failure> {
        while let Some(batch) = batches.recv().await {
            let mut keys = 0;
            for (number, line) in batch?.items {
                keys += u64::from(!line.more);
                for operation in operations(line, ends_by_itself) {
                    let (items, bytes) = weight(&operation);
                    self.push(Step { line: number, operation, items, bytes }).await?;
                }
            }
            self.send().await?;
            self.keys += keys;
            self.bar.inc(keys);
        }
        Ok(())
    }

    async fn push(&mut self, step: Step) -> Result<(), Failure> {
        let is_full = self.steps.len() >= BATCH_ITEMS_MAX
            || self.items + step.items > BATCH_ITEMS_MAX
            || self.bytes + step.bytes > CALL_BYTES_MAX;
        if is_full {
            self.send().await?;
        }
        self.items += step.items;
        self.bytes += step.bytes;
        self.steps.push(step);
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Failure> {
        if self.steps.is_empty() {
            return Ok(());
        }
        (self.items, self.bytes) = (0, 0);
        let mut lines = Vec::with_capacity(self.steps.len());
        let mut operations = Vec::with_capacity(self.steps.len());
        for step in self.steps.drain(..) {
            lines.push(step.line);
            operations.push(step.operation);
        }
        let request =
            v1::RunRequest { store: self.args.store.clone(), operations, atomic: false, as_of: None };
        let response = self.kv.run(self.args.server.request(request)).await?.into_inner();
        for (line, outcome) in lines.into_iter().zip(response.outcomes) {
            if let Some(error) = &outcome.error {
                let mut refusal = Refusal::of_item(error);
                refusal.message = format!("line {line}: {}", refusal.message);
                return Err(Failure::Refused(refusal));
            }
        }
        Ok(())
    }
}

/// What an operation weighs: items that it names, and bytes of it.
fn weight(operation: &v1::Operation) -> (usize, usize) {
    let items = match &operation.action {
        Some(Action::HashSet(set)) => set.fields.len(),
        Some(Action::SetAdd(add)) => add.members.len(),
        Some(Action::SortedAdd(add)) => add.members.len(),
        Some(Action::ListPush(push)) => push.values.len(),
        _ => 0,
    };
    (items, prost::Message::encoded_len(operation))
}

/// What makes a key hold what a line says. Without an end it gets none, also where the store would give one.
fn operations(line: Line, ends_by_itself: bool) -> Vec<v1::Operation> {
    let Line { key, content, expires_at_ms, more } = line;
    let mut actions = Vec::new();
    if !more && !matches!(content, Content::Bytes(_)) {
        actions.push(Action::Delete(v1::KeyDelete {}));
    }
    match content {
        Content::Bytes(value) => {
            let ttl = expires_at_ms.map(v1::bytes_set::Ttl::ExpiresAtMs);
            actions.push(Action::Set(v1::BytesSet { value, ttl, with_old: false }));
        }
        Content::Counter(Number::Integer(by)) => {
            actions.push(Action::Increment(v1::BytesIncrement { by }));
        }
        Content::Counter(Number::Decimal(by)) => {
            actions.push(Action::IncrementFloat(v1::BytesIncrementFloat { by }));
        }
        Content::Hash(fields) => hash(fields, &mut actions),
        Content::Set(members) => {
            for members in parts(members, Bytes::len) {
                actions.push(Action::SetAdd(v1::SetAdd { members }));
            }
        }
        Content::SortedSet(members) => {
            for part in parts(members, |(member, _)| member.len()) {
                let members =
                    part.into_iter().map(|(member, score)| v1::ScoredMember { member, score }).collect();
                actions.push(Action::SortedAdd(v1::SortedAdd { members, ..Default::default() }));
            }
        }
        Content::List(values) => {
            for values in parts(values, Bytes::len) {
                let side = v1::Side::Back.into();
                actions.push(Action::ListPush(v1::ListPush { side, values, if_present: false }));
            }
        }
    }
    let is_set = matches!(actions.as_slice(), [Action::Set(_)]);
    let end = match expires_at_ms {
        Some(at) if !is_set => Some(v1::end::End::AtMs(at)),
        None if ends_by_itself => Some(v1::end::End::Never(true)),
        _ => None,
    };
    if let Some(end) = end {
        let end = Some(v1::End { end: Some(end) });
        actions.push(Action::Expire(v1::KeyExpire { end, only: v1::EndIf::Always.into() }));
    }
    actions.into_iter().map(|action| operation(key.clone(), action)).collect()
}

/// Fields, those in a row that end at the same time in one operation.
fn hash(fields: Vec<Field>, actions: &mut Vec<Action>) {
    for part in parts(fields, |(field, value, _)| field.len() + value.len()) {
        for same in part.chunk_by(|(.., left), (.., right)| left == right) {
            let ttl = same
                .first()
                .and_then(|(.., end)| *end)
                .map(|at| v1::hash_set::Ttl::End(v1::End { end: Some(v1::end::End::AtMs(at)) }));
            let pair =
                |(field, value, _): &Field| v1::FieldValue { field: field.clone(), value: value.clone() };
            let fields = same.iter().map(pair).collect();
            actions.push(Action::HashSet(v1::HashSet { fields, if_absent: false, ttl }));
        }
    }
}

/// Items in order, cut into parts that fit one call.
fn parts<T>(items: Vec<T>, bytes_of: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = bytes_of(&item);
        let open = |part: &&mut Vec<T>| part.len() < PART_ITEMS_MAX && bytes + more <= PART_BYTES_MAX;
        if let Some(part) = parts.last_mut().filter(open) {
            part.push(item);
        } else {
            bytes = 0;
            parts.push(vec![item]);
        }
        bytes += more;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(content: Content, expires_at_ms: Option<u64>, more: bool) -> Line {
        Line { key: "k".into(), content, expires_at_ms, more }
    }

    fn names(line: Line, ends_by_itself: bool) -> Vec<&'static str> {
        let name = |operation: v1::Operation| match operation.action.unwrap() {
            Action::Delete(_) => "delete",
            Action::Set(_) => "set",
            Action::Increment(_) => "increment",
            Action::IncrementFloat(_) => "increment_float",
            Action::HashSet(_) => "hash_set",
            Action::SetAdd(_) => "set_add",
            Action::Expire(expire) => match expire.end.unwrap().end.unwrap() {
                v1::end::End::Never(_) => "never",
                _ => "expire",
            },
            other => panic!("{other:?}"),
        };
        operations(line, ends_by_itself).into_iter().map(name).collect()
    }

    #[test]
    fn a_line_replaces_what_the_key_held_and_one_with_more_goes_on() {
        let bytes = || Content::Bytes("v".into());
        assert_eq!(names(line(bytes(), None, false), false), ["set"]);
        assert_eq!(names(line(bytes(), Some(5), false), true), ["set"]);
        assert_eq!(names(line(bytes(), None, false), true), ["set", "never"]);
        let counter = Content::Counter(Number::Decimal(0.5));
        assert_eq!(names(line(counter, Some(5), false), false), ["delete", "increment_float", "expire"]);
        let set = || Content::Set(vec!["a".into()]);
        assert_eq!(names(line(set(), None, false), false), ["delete", "set_add"]);
        assert_eq!(names(line(set(), None, true), false), ["set_add"]);
        let field = |end| ("f".into(), "v".into(), end);
        let hash = Content::Hash(vec![field(None), field(None), field(Some(7)), field(None)]);
        assert_eq!(names(line(hash, None, false), false), ["delete", "hash_set", "hash_set", "hash_set"]);
    }

    #[test]
    fn large_collections_are_cut_into_what_fits_a_call() {
        let small: Vec<Bytes> = vec!["a".into(); 2_500];
        let lens: Vec<usize> = parts(small, Bytes::len).iter().map(Vec::len).collect();
        assert_eq!(lens, [1_000, 1_000, 500]);
        let large: Vec<Bytes> = vec![vec![0; 600_000].into(); 3];
        assert_eq!(parts(large, Bytes::len).len(), 3);
        let huge: Vec<Bytes> = vec![vec![0; 2 << 20].into(), "a".into()];
        assert_eq!(parts(huge, Bytes::len).len(), 2, "one that is too large is refused by the server");
    }
}
