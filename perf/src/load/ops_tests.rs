use flowmesh_proto::v1;
use prost::Message;

use super::*;

fn operation(text: &str) -> Operation {
    let mut operation = Operation::new(text.parse().unwrap(), "things", &mut Methods::default());
    for place in 0..operation.keys() {
        operation.set_key(place, 100 + place as u64);
    }
    operation
}

fn request<M: Message + Default>(operation: &Operation) -> M {
    let (head, body) = operation.bytes().split_at(GRPC_HEAD_BYTES);
    assert_eq!(head[0], 0);
    assert_eq!(u32::from_be_bytes(head[1..].try_into().unwrap()) as usize, body.len());
    M::decode(body).unwrap()
}

#[test]
fn a_mix_reads_as_it_is_written() {
    let op: OpSpec = "append*500/4096=3".parse().unwrap();
    assert_eq!(
        op,
        OpSpec { kind: OpKind::Append, batch: 500, value_bytes: 4096, weight: 3, by_chance: false }
    );
    assert_eq!("get".parse::<OpSpec>().unwrap(), OpSpec::new(OpKind::Get));
    assert_eq!(op.to_string(), "append*500/4096");
    for bad in ["", "put", "get*0", "get*x", "get=0", "get/16777217", "get*20000", "*2"] {
        assert!(bad.parse::<OpSpec>().is_err(), "{bad:?} was read");
    }
}

#[test]
fn requests_are_what_the_api_says() {
    let append: v1::AppendRequest = request(&operation("append*3/300"));
    assert_eq!((append.stream.as_str(), append.partition, append.records.len()), ("things", None, 3));
    assert!(append.records.iter().all(|record| record.value == keys::value(0, 300)));

    let read: v1::ReadRequest = request(&operation("read*50"));
    assert_eq!((read.max_records, read.start), (50, Some(v1::read_request::Start::Earliest(true))));

    let get: v1::GetRequest = request(&operation("get*2"));
    assert_eq!(get.keys, [&b"key-000000000100"[..], b"key-000000000101"]);

    let set: v1::SetRequest = request(&operation("set*2/5"));
    assert_eq!(set.entries[1].key, &b"key-000000000101"[..]);
    assert_eq!(set.entries[1].value, keys::value(101, 5));
    let set: v1::SetRequest = request(&operation("set*2/200"));
    assert_eq!(set.entries[0].value, keys::value(100, 200));

    let delete: v1::DeleteRequest = request(&operation("delete*2"));
    assert_eq!((delete.store.as_str(), delete.keys.len()), ("things", 2));

    let enqueue: v1::EnqueueRequest = request(&operation("enqueue*4/10"));
    assert_eq!(
        (enqueue.queue.as_str(), enqueue.jobs.len(), enqueue.jobs[3].payload.len()),
        ("things", 4, 10)
    );
}

fn get_entry(number: u64) -> v1::GetEntry {
    v1::GetEntry {
        found: true,
        value: keys::value(number, 100).into(),
        version: 9,
        ..v1::GetEntry::default()
    }
}

#[test]
fn a_get_is_checked_for_every_key() {
    let check = |entries: Vec<v1::GetEntry>, may_miss| {
        let answer = v1::GetResponse { entries }.encode_to_vec();
        operation("get*2").check(&[7, 8], &answer, true, may_miss)
    };
    assert_eq!(check(vec![get_entry(7), get_entry(8)], false), Ok((2, 200)));
    assert!(check(vec![get_entry(8), get_entry(7)], false).is_err());
    assert!(check(vec![get_entry(7)], false).is_err());
    assert!(check(vec![get_entry(7), get_entry(8), get_entry(9)], false).is_err());
    let missing = v1::GetEntry::default();
    assert!(check(vec![get_entry(7), missing.clone()], false).is_err());
    assert!(check(vec![get_entry(7), missing], true).is_ok());
}

#[test]
fn failed_items_are_seen() {
    let fine = v1::SetOutcome { version: 4, error: None };
    let failed = v1::SetOutcome { version: 0, error: Some(v1::Error { code: 9, ..Default::default() }) };
    let check = |outcomes| {
        let answer = v1::SetResponse { outcomes }.encode_to_vec();
        operation("set*2").check(&[7, 8], &answer, false, false)
    };
    assert!(check(vec![fine.clone(), fine.clone()]).is_ok());
    assert!(check(vec![fine.clone(), failed]).is_err());
    assert!(check(vec![fine]).is_err());
}

#[test]
fn appends_deletes_and_enqueues_are_counted() {
    let appended = |count| v1::AppendResponse { count, base_offset: 5, ..Default::default() }.encode_to_vec();
    assert!(operation("append*3").check(&[], &appended(3), false, false).is_ok());
    assert!(operation("append*3").check(&[], &appended(2), false, false).is_err());
    let deleted = v1::DeleteResponse { deleted: vec![true, false] }.encode_to_vec();
    assert!(operation("delete*2").check(&[1, 2], &deleted, false, false).is_ok());
    assert!(operation("delete*3").check(&[1, 2, 3], &deleted, false, false).is_err());
    let enqueued =
        v1::EnqueueResponse { job_ids: vec![1, 300, 70_000], existing: Vec::new() }.encode_to_vec();
    assert!(operation("enqueue*3").check(&[], &enqueued, false, false).is_ok());
    assert!(operation("enqueue*2").check(&[], &enqueued, false, false).is_err());
}

#[test]
fn records_read_are_checked() {
    let record = |bytes| v1::Record { value: keys::value(0, bytes).into(), ..Default::default() };
    let batch = |records: Vec<v1::Record>, count| v1::RecordBatch {
        base_offset: 3,
        records,
        count,
        ..Default::default()
    };
    let check = |batches, text: &str| {
        let answer = v1::ReadResponse { batches, next_offset: 1, ..Default::default() }.encode_to_vec();
        operation(text).check(&[], &answer, true, false)
    };
    for bytes in [1usize, 100, 127, 128, 4096, 20_000] {
        let text = format!("read*2/{bytes}");
        let fine = batch(vec![record(bytes), record(bytes)], 2);
        assert_eq!(check(vec![fine.clone(), fine], &text), Ok((4, 4 * bytes as u64)));
        assert!(check(vec![batch(vec![record(bytes)], 2)], &text).is_err());
        assert!(check(vec![batch(vec![record(bytes + 1)], 1)], &text).is_err());
    }
    assert!(check(vec![], "read*2").is_err());
}

#[test]
fn calls_go_to_many_resources_in_turn() {
    let mut operation = Operation::new("append".parse().unwrap(), "many-##", &mut Methods::default());
    let mut names = Vec::new();
    for _ in 0..101 {
        operation.turn();
        let (_, body) = operation.bytes().split_at(GRPC_HEAD_BYTES);
        names.push(v1::AppendRequest::decode(body).unwrap().stream);
    }
    assert_eq!(
        (names[0].as_str(), names[42].as_str(), names[99].as_str()),
        ("many-00", "many-42", "many-99")
    );
    assert_eq!(names[100], "many-00");
}
