//! `Kv.Scan`: the page of each shard, merged in byte order.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use flowmesh_model::command::KeyScan;
use flowmesh_model::kv::past::{PastAsk, PastAt};
use flowmesh_model::limits::{BATCH_ITEMS_MAX, REPLY_BYTES_MAX};
use flowmesh_model::reply::EntryValue;
use flowmesh_model::settings::within;
use flowmesh_model::{Command, Kind, KvCommand, Millis, Reject, Reply, ShardId};
use flowmesh_proto::v1;
use futures::future::join_all;

use super::kv::{entry_value_len, put_entry_value};
use super::kv_past::at_version;
use super::stream::or_default;
use super::{attempt, decode, dispatch};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::wire::{bytes_field_len, put_bytes_field, put_length};

/// Keys of a scan that does not say how many.
const LIMIT_DEFAULT: u32 = 1000;

/// `Kv.Scan`
pub fn scan<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ScanRequest = attempt!(responder, decode(message));
    attempt!(responder, within("limit", request.limit.into(), 0, BATCH_ITEMS_MAX as u64));
    let limit = or_default(request.limit, LIMIT_DEFAULT);
    let Some(info) = edge.backend.find(Kind::Kv, &request.store) else {
        responder.fail(missing(Kind::Kv, &request.store));
        return None;
    };
    let reverse = request.reverse;
    let shards = edge.backend.shards();
    let as_of = attempt!(responder, request.as_of.map(|at| scan_at(at, shards)).transpose());
    let command = move || {
        let scan = KeyScan {
            prefix: request.prefix.clone(),
            start: request.start.clone(),
            end: request.end.clone(),
            glob: request.glob.clone(),
            reverse,
            after: request.after.clone(),
            keys_max: limit,
            with_values: !request.keys_only,
        };
        let command = match as_of {
            None => KvCommand::Scan(scan),
            Some(at) => KvCommand::Past(PastAsk::Scan { at, scan }),
        };
        Command::Kv(info.id, command)
    };
    if shards == 1 {
        dispatch(edge, ShardId(0), command(), responder, |reply, out| {
            let Reply::Scanned { entries, next } = reply else { return Err(wrong_reply()) };
            put_page(out, &entries, next.as_deref());
            Ok(())
        });
        return None;
    }
    let edge = Rc::clone(edge);
    Some(Box::pin(async move {
        let calls = (0..edge.backend.shards()).map(|shard| edge.backend.call(ShardId(shard), command()));
        let pages = join_all(calls).await.into_iter().map(to_page).collect::<Result<Vec<_>, _>>();
        match pages {
            Ok(pages) => {
                let (entries, next) = merge(pages, reverse, limit as usize, REPLY_BYTES_MAX);
                responder.answer(0, |out| put_page(out, &entries, next.as_deref()));
            }
            Err(reject) => responder.fail(reject),
        }
    }))
}

/// When keys of all shards are looked at.
fn scan_at(at: v1::scan_request::AsOf, shards: u16) -> Result<PastAt, Reject> {
    match at {
        v1::scan_request::AsOf::AsOfMs(at) => Ok(PastAt::Time(Millis(at))),
        v1::scan_request::AsOf::AtVersion(version) => at_version("at_version", version, shards),
    }
}

/// What one shard found.
struct Page {
    entries: Vec<(Bytes, EntryValue)>,
    /// If there may be more: what it looked at last.
    next: Option<Bytes>,
}

fn to_page(reply: Result<Reply, Reject>) -> Result<Page, Reject> {
    match reply? {
        Reply::Scanned { entries, next } => Ok(Page { entries, next }),
        _ => Err(wrong_reply()),
    }
}

/// The first entries of all pages, in the order of the scan, and where the next page begins, if there may be more. A page
/// that was cut short says nothing of what comes after what it looked at last, so the merged page ends there too.
fn merge(
    pages: Vec<Page>,
    reverse: bool,
    entries_max: usize,
    bytes_max: usize,
) -> (Vec<(Bytes, EntryValue)>, Option<Bytes>) {
    let order = |a: &Bytes, b: &Bytes| if reverse { b.cmp(a) } else { a.cmp(b) };
    let known_to = pages.iter().filter_map(|page| page.next.clone()).min_by(|a, b| order(a, b));
    let mut all: Vec<_> = pages.into_iter().flat_map(|page| page.entries).collect();
    all.sort_unstable_by(|(a, _), (b, _)| order(a, b));
    if let Some(known_to) = &known_to {
        all.truncate(all.partition_point(|(key, _)| order(key, known_to).is_le()));
    }
    let known = all.len();
    all.truncate(entries_max);
    let mut bytes = 0;
    let fitting = all.iter().take_while(|(key, value)| {
        bytes += key.len() + value.value.len();
        bytes <= bytes_max
    });
    let fitting = fitting.count().max(1);
    all.truncate(fitting);
    let next = if all.len() < known { all.last().map(|(key, _)| key.clone()) } else { known_to };
    (all, next)
}

/// Writes a `ScanResponse`.
fn put_page(out: &mut BytesMut, entries: &[(Bytes, EntryValue)], next: Option<&[u8]>) {
    for (key, value) in entries {
        put_length(out, 1, bytes_field_len(key.len()) + entry_value_len(value));
        put_bytes_field(out, 1, key);
        put_entry_value(out, value);
    }
    if let Some(next) = next {
        put_bytes_field(out, 2, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::Lsn;
    use flowmesh_model::kv::KvType;
    use proptest::prelude::*;
    use prost::Message;

    fn value() -> EntryValue {
        EntryValue {
            holds: KvType::Bytes,
            value: Bytes::from_static(b"v"),
            version: Lsn(1),
            expires_at: None,
        }
    }

    #[test]
    fn a_client_reads_the_page_written_by_hand() {
        let entries = [(Bytes::from_static(b"a"), value()), (Bytes::from_static(b"b"), value())];
        let mut out = BytesMut::new();
        put_page(&mut out, &entries, Some(b"c"));
        let page = v1::ScanResponse::decode(out.freeze()).unwrap();
        assert_eq!(page.entries.len(), 2);
        assert_eq!((&page.entries[1].key[..], &page.entries[1].value[..]), (&b"b"[..], &b"v"[..]));
        assert_eq!(page.next.as_deref(), Some(&b"c"[..]));
    }

    proptest! {
        /// Page by page, whatever shard has which key, every key that is shown comes exactly once and in order; what is passed
        /// over makes pages that are shorter, or empty.
        #[test]
        fn pages_of_shards_make_one_scan(
            keys in proptest::collection::btree_set("[a-f]{1,3}", 0..60),
            shards in 1usize..4,
            limit in 1usize..9,
            reverse: bool,
            hidden in "[a-f]",
        ) {
            const LOOKED_MAX: usize = 4;
            let mut order: Vec<_> = keys.iter().cloned().collect();
            if reverse { order.reverse(); }
            let shown = |key: &String| !key.starts_with(&hidden);
            let (mut seen, mut after) = (Vec::new(), None::<String>);
            loop {
                let mut pages = Vec::new();
                for shard in 0..shards {
                    let mine: Vec<_> = order.iter()
                        .filter(|key| key.bytes().map(usize::from).sum::<usize>() % shards == shard)
                        .filter(|key| after.as_ref().is_none_or(|after| if reverse { *key < after } else { *key > after }))
                        .collect();
                    let looked: Vec<_> = mine.iter().take(LOOKED_MAX).collect();
                    let entries: Vec<_> = looked.iter().filter(|key| shown(key)).take(limit)
                        .map(|key| (Bytes::copy_from_slice(key.as_bytes()), value())).collect();
                    let last = if entries.len() == limit {
                        entries.last().map(|(key, _)| key.clone())
                    } else {
                        looked.last().map(|key| Bytes::copy_from_slice(key.as_bytes()))
                    };
                    let next = last.filter(|last| mine.last().is_some_and(|end| end.as_bytes() != &last[..]));
                    pages.push(Page { entries, next });
                }
                let (page, next) = merge(pages, reverse, limit, usize::MAX);
                prop_assert!(page.len() <= limit);
                seen.extend(page.iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()));
                let Some(next) = next else { break };
                after = Some(String::from_utf8(next.to_vec()).unwrap());
            }
            prop_assert_eq!(seen, order.into_iter().filter(|key| shown(key)).collect::<Vec<_>>());
        }
    }
}
