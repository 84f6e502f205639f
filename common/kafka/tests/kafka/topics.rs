//! Topics and partitions that appear, disappear and come again.

use std::collections::BTreeSet;

use crate::support::{Member, SharedArchive, admin, produce, settings, topic};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_partitions_are_picked_up_from_their_first_event() {
    let name = topic("growing", 1);
    produce(&name, 0, 0..10);
    let archive = SharedArchive::default();
    let mut member = Member::join(settings("growing", &[&name]), &archive);
    member.until("the first partition is read", |member| member.archive.rows() == 10).await;
    admin().add_partitions(&name, 3).expect("grown");
    produce(&name, 2, 10..20);
    member.until("the new ones are read", |member| member.archive.rows() == 20).await;
    assert_eq!(member.lanes.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_begin_to_match_and_named_topics_that_appear_are_picked_up() {
    let first = topic("pick.1", 1);
    produce(&first, 0, 0..5);
    let archive = SharedArchive::default();
    let mut member = Member::join(settings("pick", &[r"^pick\.\d+$", "pick-late"]), &archive);
    member.until("the first topic is read", |member| member.archive.rows() == 5).await;
    let second = topic("pick.22", 1);
    produce(&second, 0, 5..10);
    topic("pick.no", 1);
    member.until("the matching topic is read", |member| member.archive.rows() == 10).await;
    let late = topic("pick-late", 1);
    produce(&late, 0, 10..15);
    member.until("the named topic is read", |member| member.archive.rows() == 15).await;
    let topics: BTreeSet<&str> = member.lanes.values().map(|topic| &**topic).collect();
    assert_eq!(topics, BTreeSet::from(["pick.1", "pick.22", "pick-late"]));
}

/// The nastiest case: the new topic is longer than the old one was, so the old position is a valid one there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_anew_is_another_source_read_from_its_start() {
    let name = topic("anew", 1);
    produce(&name, 0, 0..10);
    let archive = SharedArchive::default();
    // The client fetches again only after the new topic has grown past the old position: to it, all is well.
    let mut settings = settings("anew", &[&name]);
    settings.cluster.client.insert("fetch.error.backoff.ms".to_owned(), "3000".to_owned());
    settings.cluster.client.insert("topic.metadata.refresh.interval.ms".to_owned(), "60000".to_owned());
    let mut member = Member::join(settings, &archive);
    member.until("the old topic is read", |member| member.archive.rows() == 10).await;
    let old = member.lanes.keys().next().expect("one lane").clone();
    admin().delete_topic(&name).expect("deleted");
    topic(&name, 1);
    produce(&name, 0, 100..130);
    member.until("the new topic is read", |member| member.archive.rows() >= 40).await;
    let rows = archive.look(|archive| archive.rows.clone());
    for row in &rows {
        let number: u64 = row.value.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a number");
        assert_eq!(row.lane == old, number < 100, "{row:?} under the wrong source");
    }
    archive.assert_holds_once((0..10).chain(100..130).map(|number| format!("{name} {number}")));
}
