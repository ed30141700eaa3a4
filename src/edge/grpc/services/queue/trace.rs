//! The trace context of a new job: two fields that become headers, so that it is kept, and given out, as all headers are.

use bytes::{Bytes, BytesMut};
use flowmesh_model::Reject;
use flowmesh_model::record::{RecordSlices, put_header, split_header};
use flowmesh_model::trace::{TRACEPARENT, TRACESTATE, check_parent, check_state};
use flowmesh_proto::v1;

/// Packed headers of a job, and behind them its trace context.
///
/// # Errors
/// `ILLEGAL_TRACE_CONTEXT`; `INVALID_ARGUMENT` if there is a header of such a name, or a state without a parent.
pub fn with_context(headers: &Bytes, job: &v1::NewJob) -> Result<Bytes, Reject> {
    let v1::NewJob { traceparent, tracestate, .. } = job;
    let given = [(TRACEPARENT, traceparent), (TRACESTATE, tracestate)];
    let given = given.into_iter().filter(|(_, value)| !value.is_empty());
    if traceparent.is_empty() && !tracestate.is_empty() {
        return Err(Reject::invalid(TRACESTATE, "goes with traceparent; give both"));
    }
    let mut out = BytesMut::with_capacity(headers.len() + traceparent.len() + tracestate.len() + 64);
    out.extend_from_slice(headers);
    for (name, value) in given {
        if name == TRACEPARENT { check_parent(value) } else { check_state(value) }?;
        put_header(&mut out, name.as_bytes(), value.as_bytes());
    }
    // With a parent of its own, a job has no state of another one either.
    let clashes = |header: &[u8]| {
        split_header(header)
            .is_ok_and(|(name, _)| [TRACEPARENT, TRACESTATE].map(str::as_bytes).contains(&name))
    };
    let has_context = !traceparent.is_empty();
    if has_context && RecordSlices::new(headers).any(|header| header.is_ok_and(clashes)) {
        return Err(Reject::invalid(
            "headers",
            "has `traceparent` or `tracestate`, which is also given as a field; give the field alone",
        ));
    }
    Ok(out.freeze())
}
