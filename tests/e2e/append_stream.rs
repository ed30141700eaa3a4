//! AppendStream: the pipelined producer.

use std::collections::BTreeMap;

use flowmesh_proto::v1;
use tokio::sync::mpsc;
use tonic::{Code, Streaming};

use crate::common::client::record;
use crate::common::{Client, Home, within};

type Sender = mpsc::Sender<v1::AppendStreamRequest>;

/// Opens a call: what is sent into the channel goes to the server.
pub async fn open(
    client: &mut Client,
    first: v1::AppendStreamRequest,
) -> (Sender, Streaming<v1::AppendStreamResponse>) {
    let (sender, mut receiver) = mpsc::channel(64);
    sender.send(first).await.unwrap();
    let requests = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    let answers = within("the call opens", client.stream.append_stream(requests)).await.unwrap().into_inner();
    (sender, answers)
}

pub fn append(stream: &str, sequence: u64, values: &[String]) -> v1::AppendStreamRequest {
    let records = values.iter().cloned().map(record).collect();
    v1::AppendStreamRequest {
        stream: stream.into(),
        partition: None,
        records,
        sequence,
        ..Default::default()
    }
}

/// Takes answers until the call ends, or until there are `count`.
async fn acks(answers: &mut Streaming<v1::AppendStreamResponse>, count: usize) -> Vec<v1::AppendAck> {
    let mut acks = Vec::new();
    while acks.len() < count {
        match within("an answer", answers.message()).await.unwrap() {
            Some(answer) => {
                assert!(!answer.acks.is_empty());
                acks.extend(answer.acks);
            }
            None => break,
        }
    }
    acks
}

#[tokio::test]
async fn every_append_is_acknowledged_by_its_sequence_in_order() {
    const APPENDS: u64 = 500;
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let (sender, mut answers) = open(&mut client, append("logs", 1000, &["0-0".into()])).await;
    let producer = tokio::spawn(async move {
        for i in 1..APPENDS {
            let values: Vec<String> = (0..=i % 7).map(|n| format!("{i}-{n}")).collect();
            // Only the first message has to name the stream.
            sender.send(append(if i % 2 == 0 { "" } else { "logs" }, 1000 + i, &values)).await.unwrap();
        }
    });
    let acks = acks(&mut answers, usize::MAX).await;
    producer.await.unwrap();
    assert_eq!(
        acks.iter().map(|ack| ack.sequence).collect::<Vec<_>>(),
        (1000..1000 + APPENDS).collect::<Vec<_>>()
    );
    let mut next = 0;
    for (i, ack) in acks.iter().enumerate() {
        assert_eq!(
            (ack.base_offset, u64::from(ack.count), ack.error.clone()),
            (next, 1 + i as u64 % 7, None)
        );
        next += u64::from(ack.count);
    }
    let read = client.values("logs").await;
    assert_eq!(read.len() as u64, next);
    assert_eq!(read[0], "0-0");
    assert_eq!(read[1], "1-0");
}

#[tokio::test]
async fn an_append_that_fails_is_answered_and_the_others_go_on() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.set("taken", "k", "v").await.unwrap();
    let (sender, mut answers) = open(&mut client, append("logs", 1, &["a".into()])).await;
    let nowhere = v1::AppendStreamRequest { partition: Some(9), ..append("logs", 2, &["b".into()]) };
    sender.send(nowhere).await.unwrap();
    sender.send(append("a/b", 3, &["c".into()])).await.unwrap();
    sender.send(append("logs", 4, &[])).await.unwrap();
    sender.send(append("logs", 5, &["d".into()])).await.unwrap();
    drop(sender);
    let acks: BTreeMap<u64, v1::AppendAck> =
        acks(&mut answers, usize::MAX).await.into_iter().map(|ack| (ack.sequence, ack)).collect();
    assert_eq!(acks.len(), 5);
    let reason = |sequence| acks[&sequence].error.as_ref().map(|error| (error.code, error.reason.as_str()));
    assert_eq!(reason(1), None);
    assert_eq!(reason(2), Some((Code::InvalidArgument as i32, "NO_SUCH_PARTITION")));
    assert_eq!(reason(3), Some((Code::InvalidArgument as i32, "INVALID_ARGUMENT")));
    assert_eq!(reason(4), Some((Code::InvalidArgument as i32, "INVALID_ARGUMENT")));
    assert_eq!(reason(5), None);
    assert_eq!(client.values("logs").await, ["a", "d"]);
}

#[tokio::test]
async fn the_first_message_must_name_a_stream() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    let requests = futures::stream::iter([append("", 1, &["a".into()])]);
    let outcome = async {
        let mut answers = client.stream.append_stream(requests).await?.into_inner();
        answers.message().await
    };
    crate::common::refused(within("a refusal", outcome).await, Code::InvalidArgument, "INVALID_ARGUMENT");
}

#[tokio::test]
async fn several_streams_and_partitions_share_one_call() {
    let home = Home::new();
    let server = home.start();
    let mut client = server.client().await;
    client.create_stream("wide", 3).await;
    let (sender, mut answers) = open(&mut client, append("narrow", 0, &["n".into()])).await;
    for sequence in 1..=300u64 {
        let partition = Some((sequence % 3) as u32);
        let request =
            v1::AppendStreamRequest { partition, ..append("wide", sequence, &[sequence.to_string()]) };
        sender.send(request).await.unwrap();
    }
    drop(sender);
    let acks = acks(&mut answers, usize::MAX).await;
    assert_eq!(acks.len(), 301);
    assert!(acks.iter().all(|ack| ack.error.is_none()));
    for partition in 0..3u64 {
        let values: Vec<_> =
            client.read_from("wide", partition as u32, 0).await.into_iter().map(|(_, r)| r.value).collect();
        let sent: Vec<String> = (1..=300u64).filter(|i| i % 3 == partition).map(|i| i.to_string()).collect();
        assert_eq!(values, sent, "order holds within partition {partition}");
    }
}
