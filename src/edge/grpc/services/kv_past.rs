//! `Kv.Versions` and `Kv.Diff`: what was. Keys, scans and operations as of the past are asked for with the calls that ask for
//! them as they are.

use std::rc::Rc;

use bytes::Bytes;
use flowmesh_model::command::KeyScan;
use flowmesh_model::kv::Real;
use flowmesh_model::kv::change::ChangeItem;
use flowmesh_model::kv::past::{ItemDiff, KeyDiff, KeyVersion, PastAsk, PastAt};
use flowmesh_model::limits::{HISTORY_PAGE_MAX, REPLY_BYTES_MAX};
use flowmesh_model::reply::EntryValue;
use flowmesh_model::settings::within;
use flowmesh_model::{Command, KvCommand, Lsn, Millis, Reject, Reply, ShardId};
use flowmesh_proto::v1;
use futures::future::try_join_all;
use v1::diff_request::{From, To};

use super::kv::existing;
use super::kv_outcomes::key_type;
use super::stream::or_default;
use super::{answer, attempt, decode, dispatch, put};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;

/// Versions of a call that does not say how many.
const VERSIONS_DEFAULT: u32 = 100;

/// A version of all keys, which there is only where one shard has them.
pub fn at_version(field: &'static str, version: u64, shards: u16) -> Result<PastAt, Reject> {
    if shards > 1 {
        let reason = format!(
            "is an entry of one shard's log, and this server has {shards} shards: for keys of several name a time"
        );
        return Err(Reject::invalid(field, reason));
    }
    Ok(PastAt::Version(Lsn(version)))
}

/// `Kv.Versions`
pub fn versions<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::VersionsRequest = attempt!(responder, decode(message));
    attempt!(responder, within("limit", request.limit.into(), 0, HISTORY_PAGE_MAX as u64));
    let info = attempt!(responder, existing(edge, &request.store));
    let shard = edge.backend.shard_of_key(&info, &request.key);
    let ask = PastAsk::Versions {
        key: request.key,
        after: Lsn(request.after_version),
        limit: or_default(request.limit, VERSIONS_DEFAULT),
    };
    dispatch(edge, shard, Command::Kv(info.id, KvCommand::Past(ask)), responder, |reply, out| {
        let Reply::KvVersions { versions, next } = reply else { return Err(wrong_reply()) };
        let versions = versions.into_iter().map(version_message).collect();
        put(out, &v1::VersionsResponse { versions, next: next.map(Lsn::get) });
        Ok(())
    });
    None
}

fn version_message(version: KeyVersion) -> v1::KeyVersion {
    v1::KeyVersion {
        version: version.version.get(),
        at_ms: version.at.map(Millis::get),
        entry: Some(version.value.map_or_else(v1::GetEntry::default, entry_message)),
    }
}

fn entry_message(value: EntryValue) -> v1::GetEntry {
    v1::GetEntry {
        found: true,
        value: value.value,
        version: value.version.get(),
        expires_at_ms: value.expires_at.map(Millis::get),
        r#type: key_type(value.holds) as i32,
    }
}

/// `Kv.Diff`
pub fn diff<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::DiffRequest = attempt!(responder, decode(message));
    let (now, shards) = (edge.backend.now(), edge.backend.shards());
    let (from, to) = attempt!(responder, times(&request, now, shards));
    attempt!(responder, within("limit", request.limit.into(), 0, HISTORY_PAGE_MAX as u64));
    let info = attempt!(responder, existing(edge, &request.store));
    let limit = or_default(request.limit, HISTORY_PAGE_MAX as u32);
    let scan = KeyScan {
        prefix: request.prefix,
        after: request.after,
        keys_max: limit,
        with_values: !request.keys_only,
        ..KeyScan::default()
    };
    let edge = Rc::clone(edge);
    Some(Box::pin(async move {
        let call = |shard| {
            let ask = PastAsk::Diff { from, to, scan: scan.clone() };
            edge.backend.call(ShardId(shard), Command::Kv(info.id, KvCommand::Past(ask)))
        };
        let to_page = |reply| match reply {
            Reply::KvDiff { keys, next } => Ok((keys, next)),
            _ => Err(wrong_reply()),
        };
        let replies = try_join_all((0..shards).map(call)).await;
        match replies.and_then(|replies| replies.into_iter().map(to_page).collect::<Result<Vec<_>, _>>()) {
            Ok(pages) => {
                let (keys, next) = merge(pages, limit as usize);
                let keys = keys.into_iter().map(key_message).collect();
                let to_ms = if let PastAt::Time(to) = to { to.get() } else { 0 };
                answer(responder, &v1::DiffResponse { keys, next, to_ms });
            }
            Err(reject) => responder.fail(reject),
        }
    }))
}

/// The two times of a call.
fn times(request: &v1::DiffRequest, now: Millis, shards: u16) -> Result<(PastAt, PastAt), Reject> {
    let from = match request.from {
        Some(From::FromMs(at)) => PastAt::Time(Millis(at)),
        Some(From::FromVersion(version)) => at_version("from_version", version, shards)?,
        None => return Err(Reject::invalid("from", "is missing; give from_ms or from_version")),
    };
    let to = match request.to {
        Some(To::ToMs(at)) => PastAt::Time(Millis(at)),
        Some(To::ToVersion(version)) => at_version("to_version", version, shards)?,
        None => PastAt::Time(now),
    };
    Ok((from, to))
}

/// What one shard found, and if there may be more, what it looked at last.
type Page = (Vec<KeyDiff>, Option<Bytes>);

/// The first keys of all pages, and where the next page begins, if there may be more: where a page was cut short, the merged one
/// ends too.
fn merge(pages: Vec<Page>, keys_max: usize) -> Page {
    let known_to = pages.iter().filter_map(|(_, next)| next.clone()).min();
    let mut all: Vec<_> = pages.into_iter().flat_map(|(keys, _)| keys).collect();
    all.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    if let Some(known_to) = &known_to {
        all.truncate(all.partition_point(|key| key.key <= *known_to));
    }
    let (known, mut bytes) = (all.len(), 0);
    let fitting = all.iter().take(keys_max).take_while(|key| {
        bytes += key.bytes();
        bytes <= REPLY_BYTES_MAX
    });
    let fitting = fitting.count().max(1);
    all.truncate(fitting);
    let next = if all.len() < known { all.last().map(|key| key.key.clone()) } else { known_to };
    (all, next)
}

fn key_message(diff: KeyDiff) -> v1::KeyDifference {
    v1::KeyDifference {
        key: diff.key,
        before: diff.before.map(entry_message),
        after: diff.after.map(entry_message),
        items: diff.items.into_iter().map(item_message).collect(),
        more: diff.more,
    }
}

fn item_message(diff: ItemDiff) -> v1::ItemDifference {
    let item = |item: ChangeItem| v1::KvItem {
        member: item.member,
        value: item.value,
        score: item.score.map(Real::get),
        expires_at_ms: item.expires_at.map(Millis::get),
    };
    v1::ItemDifference { index: diff.index, before: diff.before.map(item), after: diff.after.map(item) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &'static str) -> KeyDiff {
        KeyDiff { key: key.into(), before: None, after: None, items: Vec::new(), more: false }
    }

    #[test]
    fn pages_of_shards_make_one_page_that_ends_where_one_was_cut_short() {
        let names = |(keys, next): Page| {
            let keys: Vec<_> = keys.iter().map(|key| String::from_utf8(key.key.to_vec()).unwrap()).collect();
            (keys.join(" "), next.map(|next| String::from_utf8(next.to_vec()).unwrap()))
        };
        let one = || (vec![key("a"), key("d"), key("f")], None);
        let other = || (vec![key("b"), key("c")], Some(Bytes::from_static(b"e")));
        assert_eq!(names(merge(vec![one(), other()], 10)), ("a b c d".into(), Some("e".into())));
        assert_eq!(names(merge(vec![one(), other()], 2)), ("a b".into(), Some("b".into())));
        assert_eq!(names(merge(vec![one()], 10)), ("a d f".into(), None));
        assert_eq!(
            names(merge(vec![(Vec::new(), Some(Bytes::from_static(b"x")))], 2)),
            (String::new(), Some("x".into()))
        );
    }

    #[test]
    fn a_version_of_several_shards_is_refused_by_name() {
        assert_eq!(at_version("at_version", 7, 1), Ok(PastAt::Version(Lsn(7))));
        let refused = at_version("from_version", 7, 2).unwrap_err();
        assert!(refused.to_string().contains("2 shards"), "{refused}");
        let nothing = times(&v1::DiffRequest::default(), Millis(5), 1).unwrap_err();
        assert!(matches!(nothing, Reject::InvalidArgument { field: "from", .. }));
    }
}
