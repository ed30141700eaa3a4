//! Checks of sizes and counts that several kinds of commands share.

use flowmesh_model::limits::{BATCH_ITEMS_MAX, WAIT_MS_MAX};
use flowmesh_model::settings::within;
use flowmesh_model::{Millis, Reject};

/// Cores read the clock at different moments: a wait of exactly the limit is still one.
const WAIT_SLACK_MS: u64 = 1_000;

/// Refuses an empty batch, and one above the limit.
#[inline]
pub(crate) fn items(field: &'static str, count: usize) -> Result<(), Reject> {
    match count {
        0 => Err(Reject::invalid(field, "is empty; at least 1 is needed")),
        1..=BATCH_ITEMS_MAX => Ok(()),
        _ => Err(Reject::TooLarge { what: field, size: count as u64, max: BATCH_ITEMS_MAX as u64 }),
    }
}

/// Refuses bytes above a limit.
#[inline]
pub(crate) fn size(what: &'static str, bytes: &[u8], max: usize) -> Result<(), Reject> {
    if bytes.len() > max {
        return Err(Reject::TooLarge { what, size: bytes.len() as u64, max: max as u64 });
    }
    Ok(())
}

/// Refuses a wait that is too long.
#[inline]
pub(crate) fn wait(until: Option<Millis>, now: Millis) -> Result<(), Reject> {
    match until {
        Some(until) if until.since(now) > WAIT_MS_MAX + WAIT_SLACK_MS => {
            within("wait_ms", until.since(now), 0, WAIT_MS_MAX)
        }
        _ => Ok(()),
    }
}
