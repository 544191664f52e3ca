//! Values for property tests, of types that are not ours.

use jiff::Timestamp;
use proptest::prelude::*;
use uuid::Uuid;

pub(super) fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

pub(super) fn some_uuid() -> impl Strategy<Value = Option<Uuid>> {
    proptest::option::of(uuid())
}

/// Any nanosecond from 1970 to 2100.
pub(super) fn time() -> impl Strategy<Value = Timestamp> {
    const LAST: i128 = 4_102_444_800_000_000_000;
    (0..LAST).prop_map(|nanosecond| Timestamp::from_nanosecond(nanosecond).unwrap_or_default())
}

pub(super) fn some_time() -> impl Strategy<Value = Option<Timestamp>> {
    proptest::option::of(time())
}
