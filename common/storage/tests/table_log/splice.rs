//! Checkpoints made from checkpoints: whatever happened in between, they say what the records say, and cost what changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::RowGroupMetaData;
use proptest::prelude::*;
use proptest::sample::Index;
use tapedeck_common::Timestamp;
use tapedeck_sim::{Call, Fault, FaultyStore, When};
use tapedeck_storage::log::checkpoint::{Shape, write_checkpoint};
use tapedeck_storage::log::record::Removed;
use tapedeck_storage::log::{History, LogPaths, LogReader, Slice, TableView};
use tapedeck_storage::store::Store;

use crate::hand_log::HandLog;
use crate::kit::*;

/// Groups so small that a few segments make many of them, and parts so small that every file has several.
const SMALL: Shape = Shape { group_rows: 4, changes_max: 12, part_bytes: 700 };

const TOPICS: [&str; 3] = ["orders", "a/b", "clicks"];

async fn checkpoint(store: &Store, version: u64, shape: Shape) {
    write_checkpoint(&LogReader::new(store, TABLE), version, shape).await.expect("writes");
}

async fn load(store: &Store, at: Option<u64>, history: History) -> TableView {
    TableView::load(store, TABLE, at, history).await.expect("reads")
}

/// From the newest checkpoint on, from record 0 on, and in a slice: all the same.
async fn agree(store: &Store, at: Option<u64>, slice: &Slice) -> Result<(), TestCaseError> {
    use History::{Recent, Whole};
    let segments = |view: &TableView| view.segments.iter().map(|live| live.segment.clone()).collect::<Vec<_>>();
    let (recent, whole) = (load(store, at, Recent).await, load(store, at, Whole).await);
    prop_assert_eq!(segments(&recent), segments(&whole));
    prop_assert_eq!(
        (recent.version, recent.positions, recent.table_id),
        (whole.version, whole.positions.clone(), whole.table_id.clone())
    );
    let part = TableView::load_matching(store, TABLE, at, slice).await.expect("reads");
    let mut chosen = segments(&whole);
    chosen.retain(|segment| slice.holds(segment));
    prop_assert_eq!(segments(&part), chosen);
    let tally = TableView::tally(
        store,
        TABLE,
        at,
        || (0, 0),
        |sum, segment| {
            sum.0 += 1;
            sum.1 += segment.rows;
        },
    );
    let rows = whole.segments.iter().map(|live| live.segment.rows).sum();
    prop_assert_eq!(tally.await.expect("reads").1, (whole.segments.len(), rows));
    let removed: BTreeSet<String> = whole.removed.keys().cloned().collect();
    let add = |paths: &mut BTreeSet<String>, removed: &Removed| {
        paths.insert(removed.path.clone());
    };
    let tally = TableView::tally_with_removed(store, TABLE, at, BTreeSet::new, |_, _| {}, add);
    prop_assert_eq!(&tally.await.expect("reads").1, &removed);
    let mut visited = BTreeSet::new();
    let visit = TableView::visit_removed(store, TABLE, whole.version, |removed| add(&mut visited, removed));
    visit.await.expect("reads");
    prop_assert_eq!(visited, removed);
    Ok(())
}

#[derive(Debug, Clone)]
enum Step {
    Write { adds: Vec<(usize, i64)>, removes: Vec<Index> },
    Checkpoint,
    Damage(Index),
}

fn any_step() -> impl Strategy<Value = Step> {
    let adds = prop::collection::vec((0..TOPICS.len(), 0_i64..30), 0..9);
    let removes = prop::collection::vec(any::<Index>(), 0..5);
    prop_oneof![
        6 => (adds, removes).prop_map(|(adds, removes)| Step::Write { adds, removes }),
        3 => Just(Step::Checkpoint),
        1 => any::<Index>().prop_map(Step::Damage),
    ]
}

fn any_slice() -> impl Strategy<Value = Slice> {
    let time = || prop::option::of((0_i64..30, prop_oneof![Just(0), Just(5), Just(10), Just(3_600_000_000)]));
    let moment = |(number, micros): (i64, i64)| Timestamp::from_micros(hour(number).start().micros() + micros);
    (prop::collection::btree_set(0..TOPICS.len(), 0..3), time(), time()).prop_map(move |(topics, from, until)| Slice {
        topics: topics.into_iter().map(|topic| TOPICS[topic].to_owned()).collect(),
        from: from.map(moment),
        until: until.map(moment),
    })
}

async fn run(steps: Vec<Step>, slices: Vec<Slice>) -> Result<(), TestCaseError> {
    let below: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let store = Store::of(Arc::clone(&below));
    let mut log = HandLog::begin(&store).await;
    let mut slices = slices.into_iter().cycle();
    let mut newest = None;
    for step in steps {
        match step {
            Step::Write { adds, removes } => {
                let mut paths: Vec<String> = Vec::new();
                for index in removes.iter().filter(|_| !log.live.is_empty()) {
                    let path = log.live.keys().nth(index.index(log.live.len())).cloned();
                    paths.extend(path.filter(|path| !paths.contains(path)));
                }
                let adds: Vec<_> = adds.iter().map(|(topic, hour)| (TOPICS[*topic], *hour)).collect();
                log.step(&adds, &paths).await;
            }
            Step::Checkpoint => {
                checkpoint(&store, log.next - 1, SMALL).await;
                newest = Some(log.next - 1);
                agree(&store, None, &slices.next().unwrap_or_default()).await?;
            }
            Step::Damage(at) => {
                let Some(newest) = newest else { continue };
                let key = LogPaths::of(TABLE).checkpoint(newest);
                let mut bytes = below.get(&key).await.expect("there").bytes().await.expect("reads").to_vec();
                let footer = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().expect("four")) as usize;
                let at = 4 + at.index(bytes.len() - footer - 12);
                bytes[at] ^= 0x10;
                below.put(&key, bytes.into()).await.expect("puts");
            }
        }
        agree(&store, None, &slices.next().unwrap_or_default()).await?;
    }
    let at = newest.map_or(0, |newest| newest + 1).min(log.next - 1);
    agree(&store, Some(at), &slices.next().unwrap_or_default()).await
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn a_checkpoint_of_any_history_says_what_its_records_say(
        steps in prop::collection::vec(any_step(), 1..24),
        slices in prop::collection::vec(any_slice(), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("starts");
        runtime.block_on(run(steps, slices))?;
    }
}

async fn bytes_of(store: &FaultyStore, version: u64) -> bytes::Bytes {
    let key = LogPaths::of(TABLE).checkpoint(version);
    store.below().get(&key).await.expect("there").bytes().await.expect("reads")
}

/// The bytes of each row group of a checkpoint, and how many rows it has.
async fn groups(store: &FaultyStore, version: u64) -> Vec<(i64, bytes::Bytes)> {
    let bytes = bytes_of(store, version).await;
    let file = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).expect("Parquet");
    let place = |group: &RowGroupMetaData| {
        let ranges = group.columns().iter().map(|column| column.byte_range());
        let (from, until) = ranges.fold((u64::MAX, 0), |(from, until), (at, length)| (from.min(at), until.max(at + length)));
        (group.num_rows(), bytes.slice(from as usize..until as usize))
    };
    file.metadata().row_groups().iter().map(place).collect()
}

/// 40 segments in as many hours, and their checkpoint.
async fn forty(faulty: &FaultyStore, shape: Shape) -> HandLog {
    let store = Store::of(Arc::new(faulty.clone()));
    let mut log = HandLog::begin(&store).await;
    for number in 0..40 {
        log.step(&[("orders", number)], &[]).await;
    }
    checkpoint(&store, 41, shape).await;
    log
}

#[tokio::test]
async fn row_groups_that_nothing_changed_in_are_copied_byte_for_byte() {
    let faulty = FaultyStore::default();
    let store = Store::of(Arc::new(faulty.clone()));
    let mut log = forty(&faulty, SMALL).await;
    let old = groups(&faulty, 41).await;
    assert_eq!(old.iter().map(|(rows, _)| *rows).collect::<Vec<_>>(), [3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]);
    // One more in the middle, one less near the end, three more at the end.
    let removed = log.live.keys().nth(33).cloned().expect("there are forty");
    log.step(&[("orders", 13), ("orders", 50), ("orders", 51), ("orders", 52)], std::slice::from_ref(&removed)).await;
    // One record adds, the next one takes out.
    checkpoint(&store, 43, SMALL).await;
    let new = groups(&faulty, 43).await;
    assert_eq!(new.iter().map(|(rows, _)| *rows).collect::<Vec<_>>(), [3, 1, 4, 4, 4, 3, 2, 4, 4, 4, 4, 3, 4, 3]);
    let lost: Vec<_> = (1..old.len()).filter(|number| !new.contains(&old[*number])).collect();
    assert_eq!(lost, [4, 9], "those of hour 13 and of the removed one; the last was only filled up");
    agree(&store, None, &Slice::default()).await.expect("they agree");
}

#[tokio::test]
async fn groups_that_became_small_join_their_neighbours() {
    let faulty = FaultyStore::default();
    let store = Store::of(Arc::new(faulty.clone()));
    let shape = Shape { group_rows: 8, changes_max: 100, ..SMALL };
    let mut log = forty(&faulty, shape).await;
    let most: Vec<String> = log.live.keys().filter(|path| !path.contains("hour=03")).cloned().collect();
    log.step(&[], &most).await;
    checkpoint(&store, 42, shape).await;
    let rows: Vec<_> = groups(&faulty, 42).await.iter().map(|(rows, _)| *rows).collect();
    assert_eq!(rows, [3, 8, 8, 8, 8, 6, 2], "38 removed ones, and two live ones that lay in different groups");
    log.step(&[], &log.live.keys().take(1).cloned().collect::<Vec<_>>()).await;
    checkpoint(&store, 43, shape).await;
    let rows: Vec<_> = groups(&faulty, 43).await.iter().map(|(rows, _)| *rows).collect();
    assert_eq!(rows, [3, 8, 8, 8, 8, 7, 1]);
    agree(&store, None, &Slice::default()).await.expect("they agree");
}

#[tokio::test]
async fn a_slice_costs_the_row_groups_that_may_hold_it() {
    let faulty = FaultyStore::default();
    forty(&faulty, SMALL).await;
    // A footer of this size comes with the head, and with everything else of so small a file.
    let fresh = faulty.other_view();
    let slice = Slice { from: Some(hour(20).start()), until: Some(hour(21).start()), ..Slice::default() };
    let view = TableView::load_matching(&Store::of(Arc::new(fresh.clone())), TABLE, None, &slice).await.expect("reads");
    assert_eq!(view.segments.len(), 1);
    assert_eq!(fresh.calls(Call::Get, "00041.checkpoint"), 2, "the end with the head, and one row group");
    assert_eq!((fresh.calls(Call::Get, "00040.json"), fresh.calls(Call::Get, "00041.json")), (0, 1));
    let whole = faulty.other_view();
    load(&Store::of(Arc::new(whole.clone())), None, History::Recent).await;
    assert_eq!(whole.calls(Call::Get, "00041.checkpoint"), 1 + 10);
}

#[tokio::test]
async fn a_long_log_without_checkpoints_is_made_up_for_in_steps() {
    let faulty = FaultyStore::default();
    let store = Store::of(Arc::new(faulty.clone()));
    let mut log = HandLog::begin(&store).await;
    for number in 0..40 {
        log.step(&[("orders", number)], &[]).await;
    }
    checkpoint(&store, 41, SMALL).await;
    for version in [13, 25, 37, 41] {
        assert_eq!(groups(&faulty, version).await.iter().map(|(rows, _)| *rows).sum::<i64>(), 3 + version as i64 - 1);
    }
    agree(&store, None, &Slice::default()).await.expect("they agree");
}

#[tokio::test]
async fn a_checkpoint_that_is_replaced_while_it_is_read_is_not_mixed_up() {
    let faulty = FaultyStore::default();
    let store = Store::of(Arc::new(faulty.clone()));
    let mut log = forty(&faulty, SMALL).await;
    log.step(&[("orders", 60)], &[]).await;
    checkpoint(&store, 42, SMALL).await;
    let other = bytes_of(&faulty, 41).await;
    // The first look at the file is answered, then it is another one.
    let fresh = faulty.other_view();
    fresh.inject(When::at(Call::Get).to("00042.checkpoint").after(1).once(), Fault::HangBefore);
    let reading = tokio::spawn({
        let store = Store::of(Arc::new(fresh.clone()));
        async move { load(&store, None, History::Recent).await.segments.len() }
    });
    fresh.until_hanging().await;
    faulty.below().put(&LogPaths::of(TABLE).checkpoint(42), other.into()).await.expect("puts");
    fresh.release();
    assert_eq!(reading.await.expect("no panic"), 41);
}

#[tokio::test]
async fn an_upload_that_fails_leaves_no_checkpoint_and_the_next_one_is_whole() {
    for fault in [Call::Begin, Call::Part, Call::Complete, Call::Put] {
        let faulty = FaultyStore::default();
        let store = Store::of(Arc::new(faulty.clone()));
        let mut log = forty(&faulty, SMALL).await;
        log.step(&[("orders", 60)], &[]).await;
        faulty.inject(When::at(fault).to("00042.checkpoint").once(), Fault::FailBefore);
        let shape = if fault == Call::Put { Shape::default() } else { SMALL };
        let written = write_checkpoint(&LogReader::new(&store, TABLE), 42, shape).await;
        assert!(written.is_err(), "{fault:?}");
        assert!(faulty.below().head(&LogPaths::of(TABLE).checkpoint(42)).await.is_err(), "{fault:?}");
        agree(&store, None, &Slice::default()).await.expect("they agree");
        checkpoint(&store, 42, shape).await;
        agree(&store, None, &Slice::default()).await.expect("they agree");
    }
}
