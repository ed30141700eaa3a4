//! A command of the user's, run by `/bin/sh -c` for one item: its data on standard input, the rest in its environment,
//! its exit code as the verdict.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use flowmesh_model::limits::TEXT_BYTES_MAX;
use flowmesh_proto::v1;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};

use super::output::note;

/// Runs `command` with `input`. Dropping the future kills it, and what it started.
///
/// # Errors
/// Why it failed: the last line it wrote on standard error, else how it ended.
pub async fn run(
    command: &str,
    environment: &[(String, String)],
    input: Bytes,
    time_limit: Option<Duration>,
) -> Result<(), String> {
    let mut child =
        start(command, environment).map_err(|error| format!("cannot start `{command}`: {error}"))?;
    let group = Group(child.id());
    let verdict = match time_limit {
        None => finish(&mut child, input).await,
        Some(limit) => tokio::time::timeout(limit, finish(&mut child, input))
            .await
            .unwrap_or_else(|_| Err(format!("killed: took longer than {} s", limit.as_secs_f32()))),
    };
    drop(group);
    verdict
}

/// A header as an environment variable, if its name and value can be one.
pub fn header_variable(header: &v1::Header) -> Option<(String, String)> {
    let value = std::str::from_utf8(&header.value).ok().filter(|value| !value.contains('\0'))?;
    Some((variable(&header.name)?, value.to_owned()))
}

fn start(command: &str, environment: &[(String, String)]) -> std::io::Result<Child> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).envs(environment.iter().map(|(name, value)| (name, value)));
    // A group of its own: Ctrl-C reaches this process alone, which lets what runs finish.
    shell.process_group(0).kill_on_drop(true).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// The environment variable of a header: `FLOWMESH_HEADER_CONTENT_TYPE`.
fn variable(header: &str) -> Option<String> {
    let word: String = header
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
        .collect();
    (!word.is_empty()).then(|| format!("FLOWMESH_HEADER_{word}"))
}

/// The run's process group, killed with what it started when this is dropped before its end (or after: a group that
/// is gone is none).
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0.and_then(|id| libc::pid_t::try_from(id).ok()).filter(|id| *id > 1) {
            // SAFETY: no memory is involved; a group that no longer exists is answered with ESRCH.
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
    }
}

async fn finish(child: &mut Child, input: Bytes) -> Result<(), String> {
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A command that does not read its input may still succeed.
            let _ = stdin.write_all(&input).await;
        }
    };
    let stderr = child.stderr.take();
    let ((), last_line, status) = tokio::join!(feed, pass_on(stderr), child.wait());
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(last_line.unwrap_or_else(|| status.to_string())),
        Err(error) => Err(format!("lost the command: {error}")),
    }
}

/// Copies standard error to ours, line by line, and keeps the last line that says something.
async fn pass_on(stderr: Option<ChildStderr>) -> Option<String> {
    let mut reader = BufReader::new(stderr?);
    let (mut line, mut last) = (Vec::new(), None);
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return last,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                note(text.trim_end());
                if !text.trim().is_empty() {
                    last = Some(shortened(text.trim()));
                }
            }
        }
    }
}

/// As much of an error as the server keeps.
fn shortened(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_cut_between_characters() {
        let long = "ü".repeat(TEXT_BYTES_MAX);
        assert_eq!(shortened(&long).len(), TEXT_BYTES_MAX);
        let odd = format!("x{long}");
        assert_eq!(shortened(&odd).len(), TEXT_BYTES_MAX - 1);
    }
}
