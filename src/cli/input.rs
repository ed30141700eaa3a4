//! Lines of a file or of standard input, in batches, read on a thread of their own.
//!
//! A batch is what one read gave, so a slow pipe (`tail -f … | flowmesh stream append …`) delivers each line as it
//! comes, and a file delivers large batches.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;

use bytes::{Bytes, BytesMut};
use flowmesh_model::limits::{KV_VALUE_BYTES_MAX, VALUE_BYTES_MAX};
use tokio::sync::mpsc;

use super::failure::Failure;

/// One read asks for so much.
const CHUNK_BYTES: usize = 256 * 1024;

/// A batch is sent once it has so many bytes; with one more line of at most 1 MiB it still fits a message (4 MiB), and with one
/// of 16 MiB a message that sets keys (20 MiB).
const BATCH_BYTES: usize = 1 << 20;

/// A JSON line carries a value, of which every byte may be escaped with five more, and what is around it.
const LINE_BYTES_MAX: usize = 6 * KV_VALUE_BYTES_MAX + VALUE_BYTES_MAX;

/// Batches read ahead.
const BATCHES_AHEAD: usize = 8;

/// Where lines come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

impl Source {
    /// The file of that name; `-` is standard input.
    pub fn of_path(path: &Path) -> Self {
        if path.as_os_str() == "-" { Self::Stdin } else { Self::File(path.to_owned()) }
    }

    fn open(&self) -> Result<Box<dyn Read + Send>, Failure> {
        match self {
            Self::Stdin => Ok(Box::new(io::stdin())),
            Self::File(path) => match File::open(path) {
                Ok(file) => Ok(Box::new(file)),
                Err(source) => Err(Failure::Io { action: format!("open {}", path.display()), source }),
            },
        }
    }

    /// Everything, as one value of at most so many bytes.
    pub fn read_whole(&self, bytes_max: usize) -> Result<Bytes, Failure> {
        let mut bytes = Vec::new();
        // One byte beyond the limit is enough for the server to refuse it by name.
        let mut limited = self.open()?.take(bytes_max as u64 + 1);
        limited.read_to_end(&mut bytes).map_err(Failure::io(format!("read {self}")))?;
        Ok(bytes.into())
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

/// Items made of consecutive lines.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// What the lines became.
    pub items: Vec<T>,
    /// The number of the first line, from 1.
    pub first_line: u64,
    /// The number of the last.
    pub last_line: u64,
    /// Bytes of the lines.
    pub bytes: usize,
}

/// Opens `source` and reads its lines, each made into an item by `parse` (`None`: a line to pass over), in batches of at
/// most `items_max`. Ends with the input, or with the first failure.
pub fn batches<T: Send + 'static>(
    source: &Source,
    items_max: usize,
    parse: impl Fn(Bytes) -> Result<Option<T>, String> + Send + 'static,
) -> Result<mpsc::Receiver<Result<Batch<T>, Failure>>, Failure> {
    let mut input = source.open()?;
    let name = source.to_string();
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
    let work = move || {
        let mut splitter = Splitter { name, items_max, parse, sender: &sender, line: 0, batch: None };
        if let Err(Some(failure)) = splitter.run(&mut input) {
            let _ = sender.blocking_send(Err(failure));
        }
    };
    thread::Builder::new().name("input".to_owned()).spawn(work).map_err(Failure::io("start a thread"))?;
    Ok(receiver)
}

/// Items that are there already, in batches, as if they were lines.
pub fn ready<T: Send + 'static>(
    items: impl IntoIterator<Item = T>,
    items_max: usize,
    bytes_of: impl Fn(&T) -> usize,
) -> mpsc::Receiver<Result<Batch<T>, Failure>> {
    let (mut found, mut line) = (Vec::<Batch<T>>::new(), 0);
    for item in items {
        line += 1;
        let bytes = bytes_of(&item);
        match found.last_mut().filter(|batch| batch.items.len() < items_max && batch.bytes < BATCH_BYTES) {
            Some(batch) => {
                batch.items.push(item);
                batch.last_line = line;
                batch.bytes += bytes;
            }
            None => found.push(Batch { items: vec![item], first_line: line, last_line: line, bytes }),
        }
    }
    let (sender, receiver) = mpsc::channel(found.len().max(1));
    for batch in found {
        let _ = sender.try_send(Ok(batch));
    }
    receiver
}

/// Cuts the input into lines and gathers the items.
struct Splitter<'a, T, P> {
    name: String,
    items_max: usize,
    parse: P,
    sender: &'a mpsc::Sender<Result<Batch<T>, Failure>>,
    /// Lines seen.
    line: u64,
    batch: Option<Batch<T>>,
}

/// `Err(None)`: nobody wants any more.
type Step = Result<(), Option<Failure>>;

impl<T, P: Fn(Bytes) -> Result<Option<T>, String>> Splitter<'_, T, P> {
    fn run(&mut self, input: &mut dyn Read) -> Step {
        let mut pending = BytesMut::new();
        loop {
            let start = pending.len();
            pending.resize(start + CHUNK_BYTES, 0);
            let (count, ended) = match input.read(pending.get_mut(start..).unwrap_or_default()) {
                Ok(count) => (count, count == 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (0, false),
                Err(error) => return Err(Some(Failure::io(format!("read {}", self.name))(error))),
            };
            pending.truncate(start + count);
            self.take_lines(&mut pending, start)?;
            if ended {
                if !pending.is_empty() {
                    self.take_line(pending.split().freeze())?;
                }
                return self.send();
            }
            if pending.len() > LINE_BYTES_MAX {
                return Err(Some(self.bad_line(&format!("is longer than {LINE_BYTES_MAX} bytes"))));
            }
            self.send()?;
        }
    }

    /// Takes all complete lines off the front; there is no line break before `searched`.
    fn take_lines(&mut self, pending: &mut BytesMut, searched: usize) -> Step {
        let fresh = pending.get(searched..).unwrap_or_default();
        let Some(last) = fresh.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let mut lines = pending.split_to(searched + last + 1).freeze();
        while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
            let mut line = lines.split_to(end + 1);
            line.truncate(end);
            self.take_line(line)?;
        }
        Ok(())
    }

    fn take_line(&mut self, line: Bytes) -> Step {
        self.line += 1;
        let bytes = line.len();
        let item = match (self.parse)(line) {
            Ok(Some(item)) => item,
            Ok(None) => return Ok(()),
            Err(problem) => {
                let failure = self.bad_line(&problem);
                self.send()?;
                return Err(Some(failure));
            }
        };
        let (line, capacity) = (self.line, self.items_max.min(1024));
        let batch = self.batch.get_or_insert_with(|| Batch {
            items: Vec::with_capacity(capacity),
            first_line: line,
            last_line: line,
            bytes: 0,
        });
        batch.items.push(item);
        batch.last_line = line;
        batch.bytes += bytes;
        if batch.items.len() >= self.items_max || batch.bytes >= BATCH_BYTES { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Step {
        match self.batch.take() {
            Some(batch) => self.sender.blocking_send(Ok(batch)).map_err(|_| None),
            None => Ok(()),
        }
    }

    fn bad_line(&self, problem: &str) -> Failure {
        Failure::Input(format!("{} line {}: {problem}", self.name, self.line.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn read(text: &[u8], items_max: usize) -> (Vec<Batch<Bytes>>, Option<Failure>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        let parse = |line: Bytes| match &*line {
            b"bad" => Err("is bad".to_owned()),
            b"skip" => Ok(None),
            _ => Ok(Some(line)),
        };
        let mut receiver = batches(&Source::of_path(file.path()), items_max, parse).unwrap();
        let mut found = Vec::new();
        while let Some(batch) = receiver.blocking_recv() {
            match batch {
                Ok(batch) => found.push(batch),
                Err(failure) => return (found, Some(failure)),
            }
        }
        (found, None)
    }

    fn lines(batches: &[Batch<Bytes>]) -> Vec<&[u8]> {
        batches.iter().flat_map(|batch| batch.items.iter().map(|line| &**line)).collect()
    }

    #[test]
    fn lines_are_kept_exactly_and_numbered() {
        let (batches, failure) = read(b"a\n\nskip\nb\r\nlast", 2);
        assert!(failure.is_none());
        assert_eq!(lines(&batches), [&b"a"[..], b"", b"b\r", b"last"]);
        let numbers: Vec<_> = batches.iter().map(|b| (b.first_line, b.last_line)).collect();
        assert_eq!(numbers, [(1, 2), (4, 4), (5, 5)], "a last line without a break comes with the end");
    }

    #[test]
    fn what_comes_before_a_bad_line_is_delivered_and_the_line_is_named() {
        let (batches, failure) = read(b"a\nbad\nb\n", 10);
        assert_eq!(lines(&batches), [&b"a"[..]]);
        let message = failure.unwrap().message().unwrap();
        assert!(message.ends_with("line 2: is bad"), "{message}");
    }

    #[test]
    fn a_line_larger_than_anything_allowed_is_refused() {
        let (batches, failure) = read(&vec![b'x'; LINE_BYTES_MAX + CHUNK_BYTES + 1], 10);
        assert!(batches.is_empty());
        assert!(failure.unwrap().message().unwrap().contains("line 1: is longer than"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let missing = Source::of_path(Path::new("/nonexistent/lines"));
        let failure = batches(&missing, 1, |line| Ok(Some(line))).unwrap_err();
        assert!(failure.message().unwrap().contains("/nonexistent/lines"));
    }

    proptest! {
        #[test]
        fn every_line_arrives_once_and_in_order(
            wanted in proptest::collection::vec("[a-z]{0,8}", 0..50), items_max in 1usize..20,
        ) {
            let text = wanted.iter().fold(String::new(), |text, line| text + line + "\n");
            prop_assume!(!wanted.iter().any(|line| line == "bad" || line == "skip"));
            let (batches, _) = read(text.as_bytes(), items_max);
            prop_assert!(batches.iter().all(|batch| batch.items.len() <= items_max));
            prop_assert_eq!(lines(&batches), wanted.iter().map(String::as_bytes).collect::<Vec<_>>());
        }
    }
}
