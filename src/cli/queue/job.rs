//! One job, one run of the command: the payload on its standard input, the rest in its environment, its exit code as the
//! verdict.

use std::sync::Arc;
use std::time::Duration;

use flowmesh_model::trace::{TRACEPARENT, TRACESTATE};
use flowmesh_proto::v1;

use crate::cli::exec;

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
        let environment = self.environment(&job);
        match exec::run(&self.command, &environment, job.payload, self.time_limit).await {
            Ok(()) => Verdict::Done,
            Err(why) => Verdict::Failed(why),
        }
    }

    fn environment(&self, job: &v1::LeasedJob) -> Vec<(String, String)> {
        let mut environment: Vec<(String, String)> = [
            ("FLOWMESH_QUEUE", self.queue.clone()),
            ("FLOWMESH_ADDR", self.addr.clone()),
            ("FLOWMESH_JOB_ID", job.job_id.to_string()),
            ("FLOWMESH_JOB_TOKEN", job.token.to_string()),
            ("FLOWMESH_JOB_ATTEMPT", job.attempt.to_string()),
            ("FLOWMESH_JOB_PRIORITY", job.priority.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        environment.extend(job.headers.iter().filter_map(exec::header_variable));
        // Without one, the job is no part of the trace that this process may be a part of.
        let context = [(TRACEPARENT, "TRACEPARENT"), (TRACESTATE, "TRACESTATE")].map(|(header, variable)| {
            let value = job.headers.iter().find(|found| found.name == header);
            let value = value.and_then(exec::header_variable).map(|(_, value)| value);
            (variable.to_owned(), value.unwrap_or_default())
        });
        environment.extend(context);
        environment
    }
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
        let header =
            |name: &str, value: &'static str| v1::Header { name: name.to_owned(), value: value.into() };
        let headers = vec![header("content-type", "text"), header("traceparent", "00-a-b-01")];
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
            test "$FLOWMESH_QUEUE" = mail && test "$FLOWMESH_HEADER_CONTENT_TYPE" = text &&
            test "$TRACEPARENT,$TRACESTATE" = 00-a-b-01,"#;
        assert_eq!(run(check, None).await, Verdict::Done);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_run_beyond_its_limit_is_killed_with_what_it_started() {
        let verdict = run("sleep 600 & sleep 600", Some(Duration::from_millis(50))).await;
        assert_eq!(verdict, Verdict::Failed("killed: took longer than 0.05 s".to_owned()));
    }
}
