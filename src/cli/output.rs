//! What goes to standard output: values, columns or JSON lines; and progress on standard error.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use flowmesh_proto::v1;
use indicatif::{ProgressBar, ProgressStyle};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::base64;
use super::failure::Failure;

/// Buffered standard output. What it holds is written when it is flushed or full.
#[derive(Debug)]
pub struct Out(BufWriter<StdoutLock<'static>>);

impl Out {
    /// Takes standard output for this process.
    pub fn new() -> Self {
        Self(BufWriter::with_capacity(64 * 1024, io::stdout().lock()))
    }

    /// Writes bytes as they are, and a line break.
    pub fn line(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).and_then(|()| self.0.write_all(b"\n")).map_err(closed_pipe)
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).map_err(closed_pipe)
    }

    /// Writes one JSON object and a line break.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.0, value).map_err(|error| closed_pipe(error.into()))?;
        self.raw(b"\n")
    }

    /// Writes columns: a row of names, then the rows. No rows, no names.
    pub fn table(&mut self, names: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut table = Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(names);
        table.add_rows(rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.lines() {
            self.line(line.trim_end().as_bytes())?;
        }
        Ok(())
    }

    /// Hands everything to whoever reads.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.0.flush().map_err(closed_pipe)
    }
}

fn closed_pipe(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::ClosedPipe
    } else {
        Failure::Io { action: "write to standard output".to_owned(), source: error }
    }
}

/// Bytes as text if they are UTF-8.
pub fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Bytes in base64 if they are not UTF-8: the other half of [`text`].
pub fn base64_text(bytes: &[u8]) -> Option<String> {
    text(bytes).is_none().then(|| base64::encode(bytes))
}

/// Bytes for people: text, without what would disturb a terminal.
pub fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { '·' } else { c }).collect()
}

/// Headers as a JSON object: name to text; a name that stands more than once gets a list, bytes that are no text an
/// object with `base64`.
#[derive(Debug)]
pub struct Headers<'a>(pub &'a [v1::Header]);

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (index, header) in self.0.iter().enumerate() {
            let is_same = |other: &&v1::Header| other.name == header.name;
            if self.0.iter().take(index).any(|other| is_same(&other)) {
                continue;
            }
            let values: Vec<BytesJson<'_>> =
                self.0.iter().filter(is_same).map(|header| BytesJson(&header.value)).collect();
            match values.as_slice() {
                [value] => map.serialize_entry(&header.name, value)?,
                _ => map.serialize_entry(&header.name, &values)?,
            }
        }
        map.end()
    }
}

/// Bytes in JSON: text, or an object with `base64`.
#[derive(Debug)]
pub struct BytesJson<'a>(pub &'a [u8]);

impl Serialize for BytesJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(text) = text(self.0) {
            return serializer.serialize_str(text);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("base64", &base64::encode(self.0))?;
        map.end()
    }
}

/// Milliseconds since the epoch for people: UTC, as in RFC 3339.
pub fn time(ms: u64) -> String {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (seconds, ms) = (rest / 1000, rest % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// The calendar date of a day since 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// A line on standard error. A reader that is gone is no reason to stop.
pub fn note(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Counts on standard error while long work goes on, if that is a terminal.
pub fn progress(what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} {msg}, {per_sec}, {elapsed}");
    let bar = ProgressBar::new_spinner().with_message(what);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn header(name: &str, value: &'static [u8]) -> v1::Header {
        v1::Header { name: name.to_owned(), value: Bytes::from_static(value) }
    }

    #[test]
    fn headers_keep_every_value() {
        let headers = [header("a", b"1"), header("b", &[0xFF]), header("a", b"2")];
        assert_eq!(
            serde_json::to_string(&Headers(&headers)).unwrap(),
            r#"{"a":["1","2"],"b":{"base64":"/w=="}}"#
        );
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(1_763_696_760_123), "2025-11-21T03:46:00.123Z");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(readable(b"a\x1b[2Jb\n"), "a·[2Jb·");
    }
}
