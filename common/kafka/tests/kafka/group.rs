//! Members that come and go: nothing lost, nothing committed twice, membership kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::{Consumer, Incoming};
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::Position;
use tapedeck_kafka::config::GroupProtocol;
use tapedeck_testbed::Loader;

use crate::support::{
    LIMIT, Member, SharedArchive, admin, broker, consumer, event, eventually, named, next, produce, settings_by, topic,
};

/// Every claim of this file, with both protocols.
macro_rules! with_both_protocols {
    ($($claim:ident)*) => {
        mod classic {
            use super::GroupProtocol;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                super::$claim(GroupProtocol::Classic).await;
            })*
        }
        mod kip_848 {
            use super::GroupProtocol;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                super::$claim(GroupProtocol::Consumer).await;
            })*
        }
    };
}

with_both_protocols! {
    members_come_and_go_and_every_event_is_committed_once
    a_member_that_is_dropped_leaves_the_group_and_nothing_is_lost
    a_revoked_lane_stays_ours_until_its_guard_is_dropped
    a_guard_that_is_never_dropped_holds_the_group_up_for_ten_seconds_at_most
    no_room_for_longer_than_the_session_keeps_the_membership_and_loses_nothing
    a_rebalance_while_there_is_no_room_loses_nothing
    after_a_seek_nothing_from_before_is_handed_over
    what_is_committed_is_acknowledged_to_the_group
    a_static_member_that_comes_back_in_time_finds_its_lanes
}

/// Produces round robin, so slowly that every partition is read to its end again and again, until told to stop.
fn trickle(topic: &str, partitions: i32, stop: &Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let (topic, stop) = (topic.to_owned(), Arc::clone(stop));
    thread::spawn(move || {
        let loader = Loader::new(&broker(), &[("linger.ms", "0")]).expect("a producer");
        let mut number = 0;
        while !stop.load(Ordering::Acquire) {
            let partition = i32::try_from(number % u64::try_from(partitions).expect("small")).expect("small");
            loader.send(&topic, Some(partition), &event(&format!("{topic} {number}"))).expect("sent");
            number += 1;
            if number % 16 == 0 {
                loader.flush().expect("delivered");
                // The pace of the producer, not a wait for anything.
                thread::sleep(Duration::from_millis(2));
            }
        }
        loader.finish().expect("delivered");
        number
    })
}

/// Two members join and leave again and again while events trickle in and every partition keeps reaching its end: with the
/// client's own batch read this is where the event after an end is skipped (docs/decisions/0002).
async fn members_come_and_go_and_every_event_is_committed_once(protocol: GroupProtocol) {
    let name = topic(&named(protocol, "come-and-go"), 8);
    let archive = SharedArchive::default();
    let stop = Arc::new(AtomicBool::new(false));
    let producer = trickle(&name, 8, &stop);
    let join = || Member::join(settings_by(protocol, &name, &[&name]), &archive).run();

    let first = join();
    eventually("the first member owns all", || first.lanes() == 8).await;
    for _ in 0..4 {
        let rows = archive.rows();
        let second = join();
        eventually("both own half", || first.lanes() == 4 && second.lanes() == 4).await;
        eventually("both go on", || archive.rows() > rows + 500).await;
        second.leave().await;
        eventually("the first owns all again", || first.lanes() == 8).await;
    }
    stop.store(true, Ordering::Release);
    let produced = producer.join().expect("the producer did not fail");
    eventually("all is committed", || archive.rows() as u64 >= produced).await;
    first.leave().await;
    archive.assert_holds_once((0..produced).map(|number| format!("{name} {number}")));
}

async fn a_member_that_is_dropped_leaves_the_group_and_nothing_is_lost(protocol: GroupProtocol) {
    let name = topic(&named(protocol, "dropped"), 4);
    let archive = SharedArchive::default();
    let stop = Arc::new(AtomicBool::new(false));
    let producer = trickle(&name, 4, &stop);
    let (first, second) = (0..2)
        .map(|_| Member::join(settings_by(protocol, &name, &[&name]), &archive).run())
        .fold((None, None), |(_, one), other| (one, Some(other)));
    let (first, second) = (first.expect("two"), second.expect("two"));
    eventually("both own half", || first.lanes() == 2 && second.lanes() == 2).await;
    first.drop_it();
    eventually("the other one owns all", || second.lanes() == 4).await;
    stop.store(true, Ordering::Release);
    let produced = producer.join().expect("the producer did not fail");
    eventually("all is committed", || archive.rows() as u64 >= produced).await;
    second.leave().await;
    archive.assert_holds_once((0..produced).map(|number| format!("{name} {number}")));
}

async fn a_revoked_lane_stays_ours_until_its_guard_is_dropped(protocol: GroupProtocol) {
    let name = topic(&named(protocol, "guarded"), 2);
    produce(&name, 0, 0..10);
    produce(&name, 1, 10..20);
    let archive = SharedArchive::default();
    let mut first = Member::join(settings_by(protocol, &name, &[&name]), &archive);
    first.until("all is read", |member| member.archive.rows() == 20).await;
    let second = Member::join(settings_by(protocol, &name, &[&name]), &archive).run();
    let (lanes, guard) = loop {
        match next(&mut first.consumer).await.expect("no failure") {
            Incoming::Revoking(lanes, guard) => break (lanes, guard),
            other => first.take(other).await,
        }
    };
    assert_eq!(lanes.len(), 1);
    first.lanes.retain(|lane, _| !lanes.contains(lane));
    // Long enough for the other member to get the lane, were it free.
    let held_until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < held_until {
        assert_eq!(second.lanes(), 0, "the lane is still guarded");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(guard);
    let first = first.run();
    eventually("the lane moved", || first.lanes() == 1 && second.lanes() == 1).await;
    first.leave().await;
    second.leave().await;
}

async fn a_guard_that_is_never_dropped_holds_the_group_up_for_ten_seconds_at_most(protocol: GroupProtocol) {
    let name = topic(&named(protocol, "held-up"), 2);
    let archive = SharedArchive::default();
    let mut first = Member::join(settings_by(protocol, &name, &[&name]), &archive);
    first.until("both are assigned", |member| member.lanes.len() == 2).await;
    let second = Member::join(settings_by(protocol, &name, &[&name]), &archive).run();
    let mut kept = None;
    let began = Instant::now();
    let lost = loop {
        match tokio::time::timeout(LIMIT, next(&mut first.consumer)).await.expect("in time").expect("no failure") {
            Incoming::Revoking(_, guard) => kept = Some(guard),
            Incoming::Lost(lanes) => break lanes,
            other => first.take(other).await,
        }
    };
    assert!(kept.is_some() && lost.len() == 1);
    assert!(began.elapsed() > Duration::from_secs(9), "{:?}", began.elapsed());
    eventually("the lane moved", || second.lanes() == 1).await;
    second.leave().await;
}

/// No room for longer than the session time-out: the member stays, nothing is lost, nothing is committed twice.
async fn no_room_for_longer_than_the_session_keeps_the_membership_and_loses_nothing(protocol: GroupProtocol) {
    let name = topic(&named(protocol, "no-room"), 4);
    let mut expected = Vec::new();
    for partition in 0..4 {
        let numbers = u64::try_from(partition).expect("small") * 10_000..u64::try_from(partition + 1).expect("small") * 10_000;
        produce(&name, partition, numbers.clone());
        expected.extend(numbers.map(|number| format!("{name} {number}")));
    }
    let archive = SharedArchive::default();
    let budget = ByteBudget::new(2 << 20);
    let mut member = Member::join_within(settings_by(protocol, &name, &[&name]), &archive, &budget);
    let mut held = Vec::new();
    let full = loop {
        match tokio::time::timeout(Duration::from_secs(2), next(&mut member.consumer)).await {
            Ok(Ok(Incoming::Deliveries(runs))) => held.extend(runs),
            Ok(other) => member.take(other.expect("no failure")).await,
            Err(_) => break Instant::now(),
        }
    };
    assert!(budget.used() <= budget.capacity(), "{} bytes", budget.used());
    while full.elapsed() < Duration::from_secs(8) {
        let quiet = tokio::time::timeout(Duration::from_millis(500), next(&mut member.consumer)).await;
        assert!(quiet.is_err(), "nothing may come while there is no room: {quiet:?}");
        // With the other protocol the broker does not tell this client; a lost membership would have come as a revocation.
        if protocol == GroupProtocol::Classic {
            assert_eq!(admin().group_members(&name).expect("the group").0, 1);
        }
    }
    assert!(member.consumer.counters().backpressure() > Duration::from_secs(6));
    for run in held {
        member.take(Incoming::Deliveries(vec![run])).await;
    }
    member.until("all is read", |member| member.archive.rows() == 40_000).await;
    archive.assert_holds_once(expected);
    assert_eq!(archive.look(|archive| archive.refused), 0);
}

/// While there is no room another member comes and goes: the client throws away what it had fetched, and fetches it again.
async fn a_rebalance_while_there_is_no_room_loses_nothing(protocol: GroupProtocol) {
    let name = topic(&named(protocol, "no-room-rebalance"), 2);
    produce(&name, 0, 0..30_000);
    produce(&name, 1, 30_000..60_000);
    let archive = SharedArchive::default();
    let budget = ByteBudget::new(2 << 20);
    let mut first = Member::join_within(settings_by(protocol, &name, &[&name]), &archive, &budget);
    let mut held = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_secs(2), next(&mut first.consumer)).await {
            Ok(Ok(Incoming::Deliveries(runs))) => held.extend(runs),
            Ok(other) => first.take(other.expect("no failure")).await,
            Err(_) => break,
        }
    }
    let second = Member::join(settings_by(protocol, &name, &[&name]), &archive).run();
    // The revocation comes although there is no room; what is held is committed first, as the pipeline does.
    let guard = loop {
        match tokio::time::timeout(LIMIT, next(&mut first.consumer)).await.expect("in time").expect("no failure") {
            Incoming::Revoking(lanes, guard) => break (lanes, guard),
            Incoming::Deliveries(runs) => held.extend(runs),
            other => first.take(other).await,
        }
    };
    for run in held {
        first.take(Incoming::Deliveries(vec![run])).await;
    }
    first.take(Incoming::Revoking(guard.0, guard.1)).await;
    let first = first.run();
    eventually("all is read", || archive.rows() >= 60_000).await;
    second.leave().await;
    first.leave().await;
    archive.assert_holds_once((0..60_000).map(|number| format!("{name} {number}")));
}

async fn after_a_seek_nothing_from_before_is_handed_over(protocol: GroupProtocol) {
    let name = topic(&named(protocol, "seek"), 1);
    produce(&name, 0, 0..5_000);
    let archive = SharedArchive::default();
    let budget = ByteBudget::new(64 << 20);
    let mut consumer = consumer(settings_by(protocol, &name, &[&name]), &budget);
    let Incoming::Assigned(lanes) = next(&mut consumer).await.expect("no failure") else {
        panic!("first of all comes the assignment")
    };
    let lane = lanes[0].lane.clone();
    drop(archive);
    consumer.resume(vec![(lane.clone(), Position::new(0))]).await.expect("resumed");
    // Each seek goes back while more is on its way; what comes next begins exactly there.
    for (seek, read) in [(0_u64, 1_500_u64), (700, 2_000), (4_000, 4_200), (0, 5_000)] {
        consumer.resume(vec![(lane.clone(), Position::new(seek))]).await.expect("resumed");
        let mut at = Position::new(seek);
        while at.get() < read {
            match tokio::time::timeout(LIMIT, next(&mut consumer)).await.expect("in time").expect("no failure") {
                Incoming::Deliveries(runs) => {
                    for run in runs {
                        assert_eq!(run.span.from(), at);
                        assert_eq!(run.events.positions[0], at.as_i64());
                        at = run.span.until();
                    }
                }
                Incoming::Idle(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    Box::new(consumer).close().await;
}

async fn what_is_committed_is_acknowledged_to_the_group(protocol: GroupProtocol) {
    let name = topic(&named(protocol, "acknowledged"), 2);
    produce(&name, 0, 0..10);
    produce(&name, 1, 10..40);
    let archive = SharedArchive::default();
    let member = Member::join(settings_by(protocol, &name, &[&name]), &archive).run();
    eventually("the broker knows", || {
        let committed = admin().committed(&name, &name).expect("offsets");
        committed.get(&0) == Some(&10) && committed.get(&1) == Some(&30)
    })
    .await;
    member.leave().await;
}

/// A static member that ends and comes back within its session keeps its lane, and nobody else gets it meanwhile.
async fn a_static_member_that_comes_back_in_time_finds_its_lanes(protocol: GroupProtocol) {
    let name = topic(&named(protocol, "static"), 2);
    let archive = SharedArchive::default();
    let join = |instance: &str| {
        let mut settings = settings_by(protocol, &name, &[&name]);
        settings.membership.instance = Some(instance.to_owned());
        Member::join(settings, &archive).run()
    };
    let (first, second) = (join("a"), join("b"));
    eventually("both own half", || first.lanes() == 1 && second.lanes() == 1).await;
    first.leave().await;
    let again = join("a");
    eventually("its lane is back", || {
        assert_eq!(second.lanes(), 1, "the other one must not get it meanwhile");
        again.lanes() == 1
    })
    .await;
    produce(&name, 0, 0..10);
    produce(&name, 1, 10..20);
    eventually("all is read", || archive.rows() == 20).await;
    again.leave().await;
    second.leave().await;
}

/// Two members of one name: with the classic protocol the older one is put out, for good and with a word that names the mend.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_members_of_one_name_the_older_ends_and_says_why() {
    let name = topic("twins", 1);
    let archive = SharedArchive::default();
    let join = || {
        let mut settings = settings_by(GroupProtocol::Classic, &name, &[&name]);
        settings.membership.instance = Some("twin".to_owned());
        Member::join(settings, &archive)
    };
    let mut first = join();
    first.until("it is assigned", |member| member.lanes.len() == 1).await;
    let second = join().run();
    let ended = loop {
        match tokio::time::timeout(LIMIT, next(&mut first.consumer)).await.expect("in time") {
            Ok(incoming) => first.take(incoming).await,
            Err(error) => break error,
        }
    };
    assert!(ended.kind() == ErrorKind::Invalid && ended.to_string().contains("group_instance_id"), "{ended}");
    eventually("the younger has the lane", || second.lanes() == 1).await;
    second.leave().await;
}

/// With the protocol of KIP-848 the younger one waits, as long as the older is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_members_of_one_name_the_younger_waits_by_kip_848() {
    let name = topic("twins-848", 1);
    let archive = SharedArchive::default();
    let join = || {
        let mut settings = settings_by(GroupProtocol::Consumer, &name, &[&name]);
        settings.membership.instance = Some("twin".to_owned());
        Member::join(settings, &archive)
    };
    let first = join().run();
    eventually("it is assigned", || first.lanes() == 1).await;
    let mut second = join();
    let refused = loop {
        match tokio::time::timeout(LIMIT, next(&mut second.consumer)).await.expect("in time") {
            Ok(incoming) => second.take(incoming).await,
            Err(error) => break error,
        }
    };
    assert!(refused.kind() == ErrorKind::Unavailable && refused.to_string().contains("group_instance_id"), "{refused}");
    assert_eq!(first.lanes(), 1);
    first.leave().await;
    let third = join().run();
    eventually("the name is free", || third.lanes() == 1).await;
    third.leave().await;
}
