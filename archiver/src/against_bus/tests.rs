//! Positions against ranges, as a table.

use super::*;

const CLUSTER: &str = "kafka/c/";

fn lane(topic_id: &str, partition: i32) -> LaneId {
    LaneId::new(format!("{CLUSTER}{topic_id}/0"), partition)
}

fn bus(ranges: &[(u64, u64)]) -> Bus {
    let lanes = ranges.iter().enumerate().map(|(partition, (begin, end))| BusLane {
        lane: lane("id", partition as i32),
        begin: Ok(Position::new(*begin)),
        end: Ok(Position::new(*end)),
    });
    let topic = BusTopic { name: "orders".to_owned(), table: "orders".to_owned(), lanes: lanes.collect() };
    Bus {
        prefixes: BTreeSet::from([CLUSTER.to_owned()]),
        names: BTreeSet::from([format!("{CLUSTER}orders"), format!("{CLUSTER}other")]),
        topics: vec![topic],
        missing: Vec::new(),
    }
}

fn logs(lanes: &[(LaneId, u64, u64)]) -> Logs {
    let positions = lanes.iter().map(|(lane, _, next)| (lane.clone(), Position::new(*next))).collect();
    let known = lanes.iter().map(|(lane, from, _)| (lane.clone(), Known { from: Position::new(*from), lost: 0 }));
    Logs { positions: BTreeMap::from([("orders".to_owned(), positions)]), known: known.collect(), ..Logs::default() }
}

/// 2026-11-20T10:00:00Z and a half hour.
const ASKED: Timestamp = Timestamp::from_micros(1_795_170_600_000_000);

#[test]
fn each_way_to_stand_is_told_from_the_others() {
    use Standing::{Ahead, Archived, Behind, Lost};
    // From, next, bus begin, bus end; standing, behind, lost, ahead, before.
    let cases = [
        ((0, 9, 0, 9), (Archived, 0, 0, 0, 0)),
        ((0, 9, 9, 9), (Archived, 0, 0, 0, 0)),
        ((0, 9, 5, 12), (Behind, 3, 0, 0, 0)),
        ((0, 9, 9, 12), (Behind, 3, 0, 0, 0)),
        ((0, 9, 10, 12), (Lost, 2, 1, 0, 0)),
        ((0, 9, 12, 12), (Lost, 0, 3, 0, 0)),
        ((0, 9, 0, 8), (Ahead, 0, 0, 1, 0)),
        ((0, 9, 0, 0), (Ahead, 0, 0, 9, 0)),
        ((5, 9, 2, 9), (Archived, 0, 0, 0, 3)),
    ];
    for ((from, next, begin, end), wanted) in cases {
        let compared = compare(&bus(&[(begin, end)]), &logs(&[(lane("id", 0), from, next)]), ASKED);
        let found = &compared.lanes[0];
        let got = (found.state, found.behind, found.lost, found.ahead, found.before);
        assert_eq!(got, wanted, "[{from}, {next}) against [{begin}, {end})");
        assert_eq!(compared.topics[0].complete_up_to.is_some(), found.state == Archived);
        let verdict = if matches!(found.state, Lost | Ahead) { Verdict::Broken } else { Verdict::Fine };
        assert_eq!(compared.verdict, verdict);
    }
}

#[test]
fn a_topic_is_complete_up_to_the_question_if_each_partition_is() {
    let known = logs(&[(lane("id", 0), 0, 9), (lane("id", 1), 0, 4)]);
    let topic = &compare(&bus(&[(0, 9), (2, 4)]), &known, ASKED).topics[0];
    assert_eq!(topic.complete_up_to.as_deref(), Some("2026-11-20T10:30:00Z"));
    assert_eq!(topic.complete_hour.as_deref(), Some("2026-11-20T09"));
    let compared = compare(&bus(&[(0, 9), (2, 6)]), &known, ASKED);
    let topic = &compared.topics[0];
    assert_eq!((topic.complete_up_to.as_deref(), topic.incomplete_partitions, topic.behind), (None, 1, 2));
    assert!(compared.may_come() && compared.verdict == Verdict::Fine);
}

#[test]
fn a_log_that_was_read_later_may_be_further_than_the_bus_was() {
    let mut known = logs(&[(lane("id", 0), 0, 12)]);
    let before = compare(&bus(&[(0, 9)]), &known, ASKED);
    assert!(before.lanes[0].state == Standing::Ahead && !before.may_come());
    known.read_later = true;
    let compared = compare(&bus(&[(0, 9)]), &known, ASKED);
    assert_eq!((compared.lanes[0].state, compared.lanes[0].ahead), (Standing::Archived, 0));
    assert!(compared.topics[0].complete_up_to.is_some());
}

#[test]
fn a_partition_without_a_lane_is_a_finding_once_it_holds_something() {
    let known = logs(&[(lane("id", 0), 0, 9)]);
    let cases =
        [((0, 0), 0, Verdict::Fine, true), ((0, 3), 3, Verdict::Unarchived, false), ((3, 3), 0, Verdict::Unarchived, false)];
    for (range, behind, verdict, complete) in cases {
        let compared = compare(&bus(&[(0, 9), range]), &known, ASKED);
        assert_eq!((compared.lanes[1].state, compared.lanes[1].behind), (Standing::Unarchived, behind), "{range:?}");
        assert_eq!((compared.verdict, compared.topics[0].complete_up_to.is_some()), (verdict, complete), "{range:?}");
    }
}

#[test]
fn lanes_that_the_bus_has_no_more_are_sorted_by_what_became_of_their_topic() {
    let source = |id: &str| format!("{CLUSTER}{id}/0");
    let elsewhere = LaneId::new("kafka/another/id/0", 0);
    let mut known = logs(&[
        (lane("before", 0), 0, 9),
        (lane("deleted", 0), 0, 9),
        (lane("other", 0), 0, 9),
        (lane("silent", 0), 0, 0),
        (elsewhere.clone(), 0, 9),
    ]);
    known.topics = BTreeMap::from([
        (source("before"), "orders".to_owned()),
        (source("deleted"), "deleted".to_owned()),
        (source("other"), "other".to_owned()),
        (elsewhere.source.to_string(), "orders".to_owned()),
    ]);
    let compared = compare(&bus(&[(0, 0)]), &known, ASKED);
    let states: BTreeMap<&str, Standing> = compared.lanes.iter().map(|lane| (lane.lane.as_str(), lane.state)).collect();
    for (lane, state) in [
        (lane("before", 0), Standing::Recreated),
        (lane("deleted", 0), Standing::Gone),
        (lane("other", 0), Standing::NotCompared),
        (lane("silent", 0), Standing::NotCompared),
        (elsewhere, Standing::NotCompared),
    ] {
        assert_eq!(states.get(lane.to_string().as_str()), Some(&state), "{lane}");
    }
    assert_eq!(compared.verdict, Verdict::Fine);
}

#[test]
fn a_partition_that_cannot_be_asked_is_no_proof() {
    let mut bus = bus(&[(0, 9)]);
    bus.topics[0].lanes[0].end = Err("leader not available".to_owned());
    let compared = compare(&bus, &logs(&[(lane("id", 0), 0, 9)]), ASKED);
    assert_eq!(compared.lanes[0].problem.as_deref(), Some("leader not available"));
    assert_eq!((compared.verdict, compared.topics[0].incomplete_partitions), (Verdict::Unknown, 1));
}

#[test]
fn a_topic_that_moved_to_another_table_is_looked_up_there_first() {
    let mut known = logs(&[(lane("id", 0), 0, 9)]);
    assert_eq!(compare(&bus(&[(0, 9)]), &known, ASKED).lanes[0].table, "orders");
    let old = known.positions.remove("orders").expect("there");
    known.positions.insert("all".to_owned(), old);
    assert_eq!(compare(&bus(&[(0, 9)]), &known, ASKED).lanes[0].table, "all");
    known.positions.insert("orders".to_owned(), BTreeMap::from([(lane("id", 0), Position::new(4))]));
    let compared = compare(&bus(&[(0, 9)]), &known, ASKED);
    assert_eq!((&*compared.lanes[0].table, compared.lanes[0].behind, compared.lanes.len()), ("orders", 5, 1));
}
