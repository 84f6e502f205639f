//! Fresh names. Promises: unique among all writers, sortable by time of making; chance and time are handed in.

use tapedeck_common::Timestamp;
use uuid::Uuid;

/// A version 7 UUID made at `now`.
pub fn fresh_uuid(now: Timestamp, rng: &mut fastrand::Rng) -> Uuid {
    let mut random = [0; 10];
    rng.fill(&mut random);
    // A clock before 1970 only costs the order of names, never their uniqueness.
    let millis = u64::try_from(now.millis_floor()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}
