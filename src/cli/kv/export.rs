//! `flowmesh kv export`: keys as lines of JSON. Keys in byte order; what one key holds is read with one call if it is
//! small, page by page if it is large.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use flowmesh_proto::v1;
use v1::operation::Action;
use v1::operation_outcome::Result as Came;
use v1::page::Items;

use super::lines::{Content, Line, Number};
use super::{KvClient, operation};
use crate::cli::args::Server;
use crate::cli::connection::client;
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::{Out, note, progress};

/// Keys of one page of the scan.
const KEYS_MAX: u32 = 500;

/// Collections that are looked at with one call.
const LOOKED_MAX: usize = 100;

/// Items of a page of a collection, and about how many bytes it is to have.
const PAGE_ITEMS_MAX: u64 = 1_000;
const PAGE_BYTES: u64 = 512 * 1024;

/// Arguments of `kv export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The store
    store: String,
    /// Where to; - is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only keys that start with this
    #[arg(short, long, default_value = "")]
    prefix: String,
    #[command(flatten)]
    server: Server,
}

/// Where lines go.
enum Sink {
    Out(Out),
    File(BufWriter<File>, PathBuf),
}

impl Sink {
    fn open(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            return Ok(Self::Out(Out::new()));
        }
        let file = File::create(path).map_err(Failure::io(format!("create {}", path.display())))?;
        Ok(Self::File(BufWriter::new(file), path.to_owned()))
    }

    fn write(&mut self, line: &Line) -> Result<(), Failure> {
        match self {
            Self::Out(out) => out.json(line),
            Self::File(file, path) => serde_json::to_writer(&mut *file, line)
                .map_err(std::io::Error::from)
                .and_then(|()| file.write_all(b"\n"))
                .map_err(Failure::io(format!("write {}", path.display()))),
        }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Self::Out(out) => out.flush(),
            Self::File(file, path) => file
                .flush()
                .and_then(|()| file.get_ref().sync_all())
                .map_err(Failure::io(format!("write {}", path.display()))),
        }
    }
}

impl ExportArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let kv = client!(kv_client::KvClient, self.server.connect().await?);
        let sink = Sink::open(&self.file)?;
        let bar = progress("keys");
        let mut export = Export { args: &self, kv, sink, bar, keys: 0 };
        let outcome = export.all().await;
        export.bar.finish_and_clear();
        outcome?;
        note(format_args!("{} keys exported", export.keys));
        Ok(())
    }
}

struct Export<'a> {
    args: &'a ExportArgs,
    kv: KvClient,
    sink: Sink,
    bar: indicatif::ProgressBar,
    keys: u64,
}

/// What is known of a key before what it holds is read.
struct Known {
    key: Bytes,
    info: v1::KeyInfo,
}

impl Known {
    /// Items of a page that is not too large.
    fn page_items(&self) -> u64 {
        let each = (self.info.memory_bytes / self.info.len.max(1)).max(1);
        (PAGE_BYTES / each).clamp(1, PAGE_ITEMS_MAX)
    }
}

/// Where the next page of a collection begins.
enum PageStart {
    First,
    After(Bytes),
    Index(i64),
}

impl Export<'_> {
    async fn all(&mut self) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let request = v1::ScanRequest {
                store: self.args.store.clone(),
                prefix: Bytes::copy_from_slice(self.args.prefix.as_bytes()),
                after,
                limit: KEYS_MAX,
                ..v1::ScanRequest::default()
            };
            let page = self.kv.scan(self.args.server.request(request)).await?.into_inner();
            self.page(page.entries).await?;
            after = page.next;
            if after.is_none() {
                return self.sink.flush();
            }
        }
    }

    async fn page(&mut self, entries: Vec<v1::ScanEntry>) -> Result<(), Failure> {
        let mut open = VecDeque::new();
        for entry in entries {
            match plain(entry.r#type(), entry.value) {
                Some(content) => {
                    let expires_at_ms = entry.expires_at_ms;
                    self.write(&Line { key: entry.key, content, expires_at_ms, more: false })?;
                }
                None => open.push_back(entry.key),
            }
        }
        while !open.is_empty() {
            let keys: Vec<Bytes> = open.drain(..open.len().min(LOOKED_MAX)).collect();
            // A key that meanwhile holds something else is looked at once more.
            let changed = self.collections(keys).await?;
            open.extend(changed);
        }
        Ok(())
    }

    fn write(&mut self, line: &Line) -> Result<(), Failure> {
        self.keys += u64::from(!line.more);
        self.bar.inc(u64::from(!line.more));
        self.sink.write(line)
    }

    async fn run(&mut self, operations: Vec<v1::Operation>) -> Result<Vec<v1::OperationOutcome>, Failure> {
        let request =
            v1::RunRequest { store: self.args.store.clone(), operations, atomic: false, as_of: None };
        Ok(self.kv.run(self.args.server.request(request)).await?.into_inner().outcomes)
    }

    /// Writes keys with all they hold; gives back those that hold something else by now.
    async fn collections(&mut self, keys: Vec<Bytes>) -> Result<Vec<Bytes>, Failure> {
        let inspect = |key: &Bytes| operation(key.clone(), Action::Inspect(v1::KeyInspect {}));
        let outcomes = self.run(keys.iter().map(inspect).collect()).await?;
        let mut changed = Vec::new();
        let (mut small, mut bytes) = (Vec::new(), 0);
        for (key, outcome) in keys.into_iter().zip(outcomes) {
            // What is gone meanwhile is not exported.
            let Came::Info(info) = came(outcome)? else { continue };
            if !info.found {
                continue;
            }
            let known = Known { key, info };
            let is_large = known.info.len > PAGE_ITEMS_MAX || known.info.memory_bytes > PAGE_BYTES;
            if is_large {
                changed.extend(self.paged(known).await?);
                continue;
            }
            if bytes + known.info.memory_bytes > PAGE_BYTES {
                changed.extend(self.small(std::mem::take(&mut small)).await?);
                bytes = 0;
            }
            bytes += known.info.memory_bytes;
            small.push(known);
        }
        changed.extend(self.small(small).await?);
        Ok(changed)
    }

    /// Keys that fit one call.
    async fn small(&mut self, keys: Vec<Known>) -> Result<Vec<Bytes>, Failure> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let read = |known: &Known| operation(known.key.clone(), whole(known.info.r#type()));
        let outcomes = self.run(keys.iter().map(read).collect()).await?;
        let mut changed = Vec::new();
        let mut lines = Vec::new();
        for (known, outcome) in keys.into_iter().zip(outcomes) {
            if is_refused(&outcome, "WRONG_TYPE") {
                changed.push(known.key);
                continue;
            }
            if is_refused(&outcome, "TOO_LARGE") {
                changed.extend(self.paged(known).await?);
                continue;
            }
            if let Some(content) = content(known.info.r#type(), came(outcome)?) {
                let expires_at_ms = known.info.expires_at_ms;
                lines.push(Line { key: known.key, content, expires_at_ms, more: false });
            }
        }
        self.field_ends(&mut lines).await?;
        for line in &lines {
            self.write(line)?;
        }
        Ok(changed)
    }

    /// A key page by page; itself if it holds something else before its first page.
    async fn paged(&mut self, known: Known) -> Result<Option<Bytes>, Failure> {
        let (mut from, mut more) = (PageStart::First, false);
        let mut limit = known.page_items();
        loop {
            let read = page(known.info.r#type(), &from, limit);
            let outcome = self.run(vec![operation(known.key.clone(), read)]).await?.into_iter().next();
            let outcome = outcome.unwrap_or_default();
            // A page of values that are larger than most.
            if is_refused(&outcome, "TOO_LARGE") && limit > 1 {
                limit /= 2;
                continue;
            }
            if is_refused(&outcome, "WRONG_TYPE") {
                if !more {
                    return Ok(Some(known.key));
                }
                note(format_args!(
                    "flowmesh: {} was replaced while it was read; its line is what it held before",
                    crate::cli::output::readable(&known.key)
                ));
                return Ok(None);
            }
            let came = came(outcome)?;
            let next = match (&came, &from) {
                (Came::Page(page), _) => page.next.clone().map(PageStart::After),
                (Came::Members(values), from) => {
                    let begin = if let PageStart::Index(index) = from { *index } else { 0 };
                    let read = i64::try_from(values.members.len()).unwrap_or(i64::MAX);
                    // A page of a list may be cut short; only an empty one is the end.
                    (read > 0).then_some(PageStart::Index(begin + read))
                }
                _ => None,
            };
            if let Some(content) = content(known.info.r#type(), came) {
                let (key, expires_at_ms) = (known.key.clone(), known.info.expires_at_ms);
                let mut lines = [Line { key, content, expires_at_ms, more }];
                self.field_ends(&mut lines).await?;
                lines.iter().try_for_each(|line| self.write(line))?;
                more = true;
            }
            match next {
                Some(next) => from = next,
                None => return Ok(None),
            }
        }
    }

    /// Adds to fields when they end.
    async fn field_ends(&mut self, lines: &mut [Line]) -> Result<(), Failure> {
        let mut operations = Vec::new();
        for line in &*lines {
            if let Content::Hash(fields) = &line.content {
                let fields = fields.iter().map(|(field, ..)| field.clone()).collect();
                operations.push(operation(line.key.clone(), Action::HashEnds(v1::HashEnds { fields })));
            }
        }
        if operations.is_empty() {
            return Ok(());
        }
        let mut outcomes = self.run(operations).await?.into_iter();
        for line in lines {
            let Content::Hash(fields) = &mut line.content else { continue };
            // Where the key holds something else by now, its fields are shown without ends.
            let Some(Came::Ends(ends)) = outcomes.next().and_then(|outcome| outcome.result) else { continue };
            for ((.., end), found) in fields.iter_mut().zip(ends.ends) {
                *end = found.expires_at_ms;
            }
        }
        Ok(())
    }
}

fn came(outcome: v1::OperationOutcome) -> Result<Came, Failure> {
    match outcome.error {
        Some(error) => Err(Failure::Refused(Refusal::of_item(&error))),
        None => Ok(outcome.result.unwrap_or(Came::Done(true))),
    }
}

fn is_refused(outcome: &v1::OperationOutcome, reason: &str) -> bool {
    outcome.error.as_ref().is_some_and(|error| error.reason == reason)
}

/// What a scan shows of a key, if that is all it holds.
fn plain(holds: v1::KeyType, value: Bytes) -> Option<Content> {
    match holds {
        v1::KeyType::Bytes | v1::KeyType::Unspecified => Some(Content::Bytes(value)),
        v1::KeyType::Counter => Number::of(&value).map(Content::Counter),
        v1::KeyType::Hash | v1::KeyType::Set | v1::KeyType::SortedSet | v1::KeyType::List => None,
    }
}

/// Reads all that a key holds.
fn whole(holds: v1::KeyType) -> Action {
    match holds {
        v1::KeyType::Hash => Action::HashAll(v1::HashAll {}),
        v1::KeyType::Set => Action::SetAll(v1::SetAll {}),
        v1::KeyType::SortedSet => {
            let ranks = v1::RankRange { first: 0, last: -1 };
            let part = Some(v1::SortedPart { part: Some(v1::sorted_part::Part::Ranks(ranks)) });
            Action::SortedRange(v1::SortedGetRange { part, ..Default::default() })
        }
        v1::KeyType::List => Action::ListRange(v1::ListRange { first: 0, last: -1 }),
        v1::KeyType::Bytes | v1::KeyType::Counter | v1::KeyType::Unspecified => Action::Get(v1::BytesGet {}),
    }
}

/// Reads a page of what a key holds.
fn page(holds: v1::KeyType, from: &PageStart, limit: u64) -> Action {
    let after = if let PageStart::After(after) = from { Some(after.clone()) } else { None };
    let page = Some(v1::PageOf { after, glob: None, limit: u32::try_from(limit).unwrap_or(u32::MAX) });
    match holds {
        v1::KeyType::Hash => Action::HashScan(v1::HashScan { page }),
        v1::KeyType::Set => Action::SetScan(v1::SetScan { page }),
        v1::KeyType::SortedSet => Action::SortedScan(v1::SortedScan { page }),
        v1::KeyType::List => {
            let first = if let PageStart::Index(index) = from { *index } else { 0 };
            let last = first + i64::try_from(limit).unwrap_or(i64::MAX) - 1;
            Action::ListRange(v1::ListRange { first, last })
        }
        v1::KeyType::Bytes | v1::KeyType::Counter | v1::KeyType::Unspecified => whole(holds),
    }
}

/// What came of such an operation; `None` if there is nothing.
fn content(holds: v1::KeyType, came: Came) -> Option<Content> {
    let came = match came {
        Came::Page(page) => match page.items? {
            Items::Members(members) => Came::Members(members),
            Items::Pairs(pairs) => Came::Pairs(pairs),
            Items::Scored(scored) => Came::Scored(scored),
        },
        other => other,
    };
    match came {
        Came::Value(value) => plain(holds, value.value?),
        Came::Pairs(pairs) if !pairs.pairs.is_empty() => {
            Some(Content::Hash(pairs.pairs.into_iter().map(|pair| (pair.field, pair.value, None)).collect()))
        }
        Came::Scored(scored) if !scored.members.is_empty() => {
            Some(Content::SortedSet(scored.members.into_iter().map(|one| (one.member, one.score)).collect()))
        }
        Came::Members(all) if !all.members.is_empty() => Some(match holds {
            v1::KeyType::List => Content::List(all.members),
            _ => Content::Set(all.members),
        }),
        _ => None,
    }
}
