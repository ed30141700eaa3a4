//! Trace context of jobs: it is checked, kept, and handed on to whoever works on them.

use flowmesh_proto::v1;
use tonic::Code;

use super::shell::{ok, run};
use crate::common::client::{job, names_field};
use crate::common::{Home, eventually, refused};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const STATE: &str = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE";

fn traced(parent: &str, state: &str) -> v1::NewJob {
    let own = v1::Header { name: "own".into(), value: "x".into() };
    v1::NewJob { traceparent: parent.into(), tracestate: state.into(), headers: vec![own], ..job("work") }
}

fn texts(headers: &[v1::Header]) -> Vec<(&str, &str)> {
    headers.iter().map(|header| (header.name.as_str(), std::str::from_utf8(&header.value).unwrap())).collect()
}

#[tokio::test]
async fn a_trace_context_comes_back_wherever_a_job_is_shown_and_survives_a_kill() {
    let home = Home::new();
    let mut server = home.start();
    let mut client = server.client().await;
    let jobs = vec![traced(PARENT, STATE), traced(PARENT, ""), job("plain")];
    let ids = client.enqueue_jobs("mail", jobs).await.unwrap();
    server.kill9();
    server = home.start();
    client = server.client().await;
    let full = [("own", "x"), ("traceparent", PARENT), ("tracestate", STATE)];
    let wanted = [&full[..], &full[..2], &[]];
    let peek = v1::PeekRequest { queue: "mail".into(), max_jobs: 9 };
    let peeked = client.queue.peek(peek).await.unwrap().into_inner().jobs;
    let listed = client.jobs("mail", v1::JobPhase::Ready, v1::JobFilter::default()).await;
    let header = Some(v1::Header { name: "traceparent".into(), value: PARENT.into() });
    let filter = v1::JobFilter { header, ..Default::default() };
    assert_eq!(
        client.jobs("mail", v1::JobPhase::Ready, filter).await.len(),
        2,
        "a trace is found by its header"
    );
    let leased = client.reserve("mail", 9, 60_000, 0).await.unwrap();
    assert_eq!((peeked.len(), listed.len(), leased.len()), (3, 3, 3));
    for (place, wanted) in wanted.iter().enumerate() {
        assert_eq!(texts(&peeked[place].headers), *wanted);
        assert_eq!(texts(&listed[place].headers), *wanted);
        assert_eq!(texts(&leased[place].headers), *wanted);
        assert_eq!(texts(&client.job("mail", ids[place]).await.unwrap().headers), *wanted);
    }
}

#[tokio::test]
async fn a_trace_context_that_is_none_is_refused_with_what_is_wrong() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let mut enqueue = async |job: v1::NewJob| client.enqueue_jobs("mail", vec![job]).await;
    let zeros = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
    let no_parent = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
    let long = format!("a={}", "v".repeat(511));
    for (parent, state, field, words) in [
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "", "traceparent", "version ff"),
        (
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "",
            "traceparent",
            "32 of the digits 0-9, a-f",
        ),
        ("00-0af7-b7ad6b7169203331-01", "", "traceparent", "the trace's id is `0af7`"),
        (&zeros, "", "traceparent", "all zeros"),
        (&no_parent, "", "traceparent", "all zeros"),
        (PARENT, "no members", "tracestate", "allowed: key=value"),
        (PARENT, &long, "tracestate", "has 513 bytes; allowed: 512"),
    ] {
        let refusal = enqueue(traced(parent, state)).await;
        let status = refused(refusal, Code::InvalidArgument, "ILLEGAL_TRACE_CONTEXT");
        names_field(&status, field);
        assert!(status.message().contains(words), "{}", status.message());
    }
    let alone = enqueue(traced("", STATE)).await;
    names_field(&refused(alone, Code::InvalidArgument, "INVALID_ARGUMENT"), "tracestate");
    for name in ["traceparent", "tracestate"] {
        let header = v1::Header { name: name.into(), value: "x".into() };
        let twice = v1::NewJob { headers: vec![header.clone()], ..traced(PARENT, "") };
        names_field(&refused(enqueue(twice).await, Code::InvalidArgument, "INVALID_ARGUMENT"), "headers");
        // A header alone is the client's own affair.
        enqueue(v1::NewJob { headers: vec![header], ..job("x") }).await.unwrap();
    }
    let many = vec![v1::Header { name: "n".into(), value: "v".into() }; 64];
    let many = enqueue(v1::NewJob { headers: many, ..traced(PARENT, "") }).await;
    refused(many, Code::InvalidArgument, "TOO_LARGE");
    server.assert_healthy();
}

#[test]
fn a_worker_hands_the_trace_context_to_its_command() {
    let home = Home::new();
    let server = home.start();
    let enqueue = format!("flowmesh queue enqueue mail a --traceparent {PARENT} --tracestate '{STATE}'");
    ok(&server, &home, &enqueue);
    ok(&server, &home, "flowmesh queue enqueue mail b");
    let line = format!("{{\"payload\":\"c\",\"traceparent\":\"{PARENT}\"}}");
    ok(&server, &home, &format!("echo '{line}' | flowmesh queue enqueue mail --json-lines"));
    let work = "TRACEPARENT=mine TRACESTATE=m=1 flowmesh queue work mail --until-empty \
                --exec 'echo \"$(cat) [$TRACEPARENT] [$TRACESTATE]\"'";
    let said = ok(&server, &home, work);
    for line in [format!("a [{PARENT}] [{STATE}]"), "b [] []".to_owned(), format!("c [{PARENT}] []")] {
        assert!(said.lines().any(|said| said == line), "{line} is not in {said}");
    }
    let refused = run(&server, &home, "flowmesh queue enqueue mail x --traceparent 00-1-2-3");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && why.contains("the trace's id is `1`"), "{why}");
    let alone = run(&server, &home, "flowmesh queue enqueue mail x --tracestate a=1");
    assert_eq!(alone.status.code(), Some(2));
}

#[tokio::test]
async fn a_dead_letter_takes_its_trace_context_along_as_headers() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("feed", 1).await;
    client.create_queue("bin", v1::QueueSettings::default()).await;
    client
        .create_queue("play", v1::QueueSettings { sandbox: Some(true), ..v1::QueueSettings::default() })
        .await;
    for (queue, target) in [("to-stream", "stream/feed"), ("to-queue", "bin")] {
        let settings = v1::QueueSettings {
            max_attempts: Some(1),
            dead_letters_to: Some(target.into()),
            ..v1::QueueSettings::default()
        };
        client.create_queue(queue, settings).await;
        client.enqueue_jobs(queue, vec![traced(PARENT, STATE)]).await.unwrap();
        let leased = client.reserve(queue, 1, 60_000, 0).await.unwrap();
        assert_eq!(client.nack(queue, &leased[0], None).await, None);
    }
    let replay = v1::ReplayJobsRequest {
        queue: "to-stream".into(),
        phase: v1::JobPhase::Dead.into(),
        sandbox: "play".into(),
        ..v1::ReplayJobsRequest::default()
    };
    // A dead letter is copied once before it may be replayed.
    eventually("the replay is taken", || {
        let (mut client, replay) = (client.clone(), replay.clone());
        async move {
            let swept = client.queue.replay(replay).await.unwrap().into_inner();
            (swept.jobs == 1).then_some(())
        }
    })
    .await;
    let own = |headers: &[v1::Header]| {
        let own = texts(headers).into_iter().filter(|(name, _)| !name.starts_with("flowmesh-"));
        own.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>()
    };
    let wanted = [("own", "x"), ("traceparent", PARENT), ("tracestate", STATE)];
    let wanted = wanted.map(|(name, value)| (name.to_owned(), value.to_owned()));
    for queue in ["bin", "play"] {
        let copy = client.reserve(queue, 1, 60_000, 60_000).await.unwrap();
        assert_eq!(own(&copy[0].headers), wanted, "{queue}");
    }
    let record = eventually("the record is there", || {
        let mut client = client.clone();
        async move { client.read_from("feed", 0, 0).await.pop() }
    })
    .await;
    assert_eq!(own(&record.1.headers), wanted);
}
