//! The machine, step by step.

use super::*;

fn moment(seconds: u64) -> Moment {
    Moment { monotonic: Duration::from_secs(seconds), wall: Timestamp::default(), chance: 0.5 }
}

fn genesis() -> Genesis {
    Genesis { table_id: "id".to_owned(), table: "t".to_owned(), created_ms: 0, writers: Default::default() }
}

fn begun() -> Known {
    let (mut known, genesis) = (Known::default(), genesis());
    let (mut work, _) = Protocol::start(Goal::Begin(&genesis), identity("a"), &mut known, moment(0)).expect("starts");
    work.step(&mut known, Reply::NotFound, moment(0)).expect("creates");
    work.step(&mut known, Reply::Created, moment(0)).expect("done");
    known
}

fn identity(txn_id: &str) -> Identity {
    Identity { engine: "tapedeck/test".to_owned(), writer: "w".to_owned(), txn_id: txn_id.to_owned() }
}

fn start_of_a_lane() -> Record {
    use tapedeck_common::commit::Advance;
    let span = tapedeck_common::Span::empty_at(tapedeck_common::Position::new(7));
    let lane = tapedeck_common::LaneId::new("s", 0);
    Record { advances: vec![Advance { lane, expected: None, span, rows: 0, skipped: 0, gap: None }], segments: vec![] }
}

/// A process that was stopped while its create was under way must not believe the answer at once.
#[test]
fn a_success_that_comes_after_a_long_sleep_is_trusted_only_above_the_log_that_was_known() {
    for (listed, trusted) in
        [(vec![0, 1], true), (vec![0, 1, 2, 3], true), (vec![], false), (vec![1], false), (vec![1, 2], false)]
    {
        let (mut known, record) = (begun(), start_of_a_lane());
        let (mut work, step) = Protocol::start(Goal::Append(&record), identity("b"), &mut known, moment(1)).expect("starts");
        assert!(matches!(step, Step::Call(Call::Create(1, _))));
        let step = work.step(&mut known, Reply::Created, moment(3_600)).expect("goes on");
        assert!(matches!(step, Step::Call(Call::List(0))), "{step:?}");
        let step = work.step(&mut known, Reply::Unknown, moment(3_601)).expect("goes on");
        assert!(matches!(step, Step::Call(Call::Wait(_))), "{step:?}");
        let step = work.step(&mut known, Reply::Waited, moment(3_602)).expect("goes on");
        assert!(matches!(step, Step::Call(Call::List(0))), "{step:?}");
        let step = match work.step(&mut known, Reply::Listed(listed.clone()), moment(3_603)) {
            // What the listing does not show is asked for.
            Ok(Step::Call(Call::Get(0))) => work.step(&mut known, Reply::NotFound, moment(3_604)),
            step => step,
        };
        match step {
            Ok(Step::Done(Settled::Appended(Outcome::Committed { version: 1 }))) => assert!(trusted, "{listed:?}"),
            Ok(step) => panic!("{listed:?}: {step:?}"),
            Err(error) => assert!(!trusted && error.kind() == ErrorKind::Corrupt, "{listed:?}: {error}"),
        }
    }
}

#[test]
fn a_listing_that_lags_behind_stops_nobody() {
    let (mut known, record) = (begun(), start_of_a_lane());
    let (mut work, _) = Protocol::start(Goal::Append(&record), identity("b"), &mut known, moment(3_600)).expect("starts");
    let step = work.step(&mut known, Reply::Listed(vec![]), moment(3_601)).expect("goes on");
    assert!(matches!(step, Step::Call(Call::Get(0))), "{step:?}");
    let step = work.step(&mut known, Reply::Unknown, moment(3_602)).expect("goes on");
    assert!(matches!(step, Step::Call(Call::Wait(_))), "{step:?}");
    let step = work.step(&mut known, Reply::Waited, moment(3_603)).expect("goes on");
    assert!(matches!(step, Step::Call(Call::Get(0))), "{step:?}");
    let there = Text::read(&Text::write(&work.header(&known, moment(0)), Content::Genesis(&genesis()))).expect("a record");
    let step = work.step(&mut known, Reply::Found(there), moment(3_604)).expect("goes on");
    assert!(matches!(step, Step::Call(Call::Get(1))), "{step:?}");
}

#[test]
fn after_a_lost_create_the_same_bytes_go_to_the_same_version() {
    let (mut known, record) = (begun(), start_of_a_lane());
    let (mut work, step) = Protocol::start(Goal::Append(&record), identity("b"), &mut known, moment(1)).expect("starts");
    let Step::Call(first) = step else { panic!("{step:?}") };
    for second in 2..50 {
        let step = work.step(&mut known, Reply::Unknown, moment(second)).expect("goes on");
        assert!(matches!(step, Step::Call(Call::Get(1))), "{step:?}");
        let step = work.step(&mut known, Reply::NotFound, moment(second)).expect("goes on");
        assert!(matches!(step, Step::Call(Call::Wait(_))), "{step:?}");
        match work.step(&mut known, Reply::Waited, moment(second)).expect("goes on") {
            Step::Call(again) => assert_eq!(again, first),
            step => panic!("{step:?}"),
        }
    }
    assert_eq!(work.tally().creates, 49);
}
