//! One job, one run of the command: the payload on its standard input, the rest in its environment, its exit code as the
//! verdict.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use flowmesh_model::limits::TEXT_BYTES_MAX;
use flowmesh_proto::v1;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};

use crate::cli::output::note;

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To be acknowledged.
    Done,
    /// To be given back, and why.
    Failed(String),
}

/// What all runs have in common.
#[derive(Clone, Debug)]
pub struct Handler {
    /// For `/bin/sh -c`.
    pub command: String,
    /// The queue's name, for the environment.
    pub queue: String,
    /// The server, so that the command's own `flowmesh` calls go there too.
    pub addr: String,
    /// A run that takes longer is killed.
    pub time_limit: Option<Duration>,
}

impl Handler {
    /// Runs the command for one job. Dropping the future kills it.
    pub async fn run(self: Arc<Self>, job: v1::LeasedJob) -> Verdict {
        let mut child = match self.start(&job) {
            Ok(child) => child,
            Err(error) => return Verdict::Failed(format!("cannot start `{}`: {error}", self.command)),
        };
        let group = Group(child.id());
        let verdict = match self.time_limit {
            None => finish(&mut child, job.payload).await,
            Some(limit) => match tokio::time::timeout(limit, finish(&mut child, job.payload)).await {
                Ok(verdict) => verdict,
                Err(_) => Verdict::Failed(format!("killed: took longer than {} s", limit.as_secs_f32())),
            },
        };
        drop(group);
        verdict
    }

    fn start(&self, job: &v1::LeasedJob) -> std::io::Result<Child> {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &self.command])
            .env("FLOWMESH_QUEUE", &self.queue)
            .env("FLOWMESH_ADDR", &self.addr)
            .env("FLOWMESH_JOB_ID", job.job_id.to_string())
            .env("FLOWMESH_JOB_TOKEN", job.token.to_string())
            .env("FLOWMESH_JOB_ATTEMPT", job.attempt.to_string())
            .env("FLOWMESH_JOB_PRIORITY", job.priority.to_string());
        for header in &job.headers {
            if let (Some(name), Ok(value)) = (variable(&header.name), std::str::from_utf8(&header.value))
                && !value.contains('\0')
            {
                command.env(name, value);
            }
        }
        // A group of its own: Ctrl-C reaches the worker alone, which lets current jobs finish.
        command.process_group(0).kill_on_drop(true).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()
    }
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

async fn finish(child: &mut Child, payload: bytes::Bytes) -> Verdict {
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A command that does not read its input may still succeed.
            let _ = stdin.write_all(&payload).await;
        }
    };
    let stderr = child.stderr.take();
    let ((), last_line, status) = tokio::join!(feed, pass_on(stderr), child.wait());
    match status {
        Ok(status) if status.success() => Verdict::Done,
        Ok(status) => Verdict::Failed(last_line.unwrap_or_else(|| status.to_string())),
        Err(error) => Verdict::Failed(format!("lost the command: {error}")),
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

    async fn run(command: &str, time_limit: Option<Duration>) -> Verdict {
        let handler = Handler {
            command: command.to_owned(),
            queue: "mail".to_owned(),
            addr: "http://127.0.0.1:1".to_owned(),
            time_limit,
        };
        let headers = vec![v1::Header { name: "content-type".to_owned(), value: "text".into() }];
        let job = v1::LeasedJob {
            job_id: 7,
            token: 9,
            attempt: 2,
            headers,
            payload: "hello".into(),
            ..Default::default()
        };
        Arc::new(handler).run(job).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_exit_code_is_the_verdict_and_the_last_error_line_the_reason() {
        assert_eq!(run("true", None).await, Verdict::Done);
        assert_eq!(
            run("echo a >&2; echo why >&2; echo >&2; exit 3", None).await,
            Verdict::Failed("why".to_owned())
        );
        assert_eq!(run("exit 3", None).await, Verdict::Failed("exit status: 3".to_owned()));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_command_gets_payload_and_environment() {
        let check = r#"test "$(cat)" = hello && test "$FLOWMESH_JOB_ID:$FLOWMESH_JOB_TOKEN:$FLOWMESH_JOB_ATTEMPT" = 7:9:2 &&
            test "$FLOWMESH_QUEUE" = mail && test "$FLOWMESH_HEADER_CONTENT_TYPE" = text"#;
        assert_eq!(run(check, None).await, Verdict::Done);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_run_beyond_its_limit_is_killed_with_what_it_started() {
        let verdict = run("sleep 600 & sleep 600", Some(Duration::from_millis(50))).await;
        assert_eq!(verdict, Verdict::Failed("killed: took longer than 0.05 s".to_owned()));
    }

    #[test]
    fn errors_are_cut_between_characters() {
        let long = "ü".repeat(TEXT_BYTES_MAX);
        assert_eq!(shortened(&long).len(), TEXT_BYTES_MAX);
        let odd = format!("x{long}");
        assert_eq!(shortened(&odd).len(), TEXT_BYTES_MAX - 1);
    }
}
