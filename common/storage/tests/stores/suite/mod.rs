//! What any store of an archive must keep. One function for each promise; [`holds`] asks for all of them.
//!
//! The last ones are the archive's own machinery: probe, table log, segments, verification.

mod machinery;
mod objects;
mod parts;

use object_store::path::Path;
use tapedeck_storage::store::StoreKind;

use crate::kit::Given;

pub(crate) use machinery::store_segment;

/// The store keeps every promise. Leaves some objects and a table in it.
pub(crate) async fn holds(mut given: Given) {
    let given = &mut given;
    objects::a_create_refuses_what_exists(given).await;
    objects::of_eight_creators_one_wins(given).await;
    objects::what_was_stored_is_read_and_listed_at_once(given).await;
    objects::a_listing_is_whole_and_begins_after_its_offset(given).await;
    objects::parts_of_an_object_can_be_read(given).await;
    objects::every_name_becomes_a_key_that_can_be_used(given).await;
    objects::an_object_may_be_empty(given).await;
    objects::what_was_deleted_is_gone(given).await;
    parts::parts_become_one_object_and_show_nothing_before(given).await;
    parts::an_upload_that_was_given_up_leaves_nothing(given).await;
    parts::an_upload_that_the_store_forgot_is_told(given).await;
    machinery::the_probe_lets_it_pass(given).await;
    machinery::writers_share_a_log_and_their_segments_verify(given).await;
}

/// A folder that nobody else has.
fn folder(given: &mut Given) -> Path {
    Path::from(format!("suite/{}", given.name()))
}

/// True for a store whose listings are promised to be in the order of keys. The archive never leans on it.
fn lists_in_order(kind: StoreKind) -> bool {
    matches!(kind, StoreKind::S3 | StoreKind::Gcs | StoreKind::Azure)
}
