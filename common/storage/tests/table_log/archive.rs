//! The archive's identity and the homes of its topics: made once, by whoever is first, and then fixed.

use std::sync::Arc;

use object_store::ObjectStoreExt;
use tapedeck_common::ErrorKind;
use tapedeck_sim::{Call, Fault, FaultyStore, ManualClock, When};
use tapedeck_storage::archive::{Archive, TABLE_PER_TOPIC};
use tapedeck_storage::layout;
use tapedeck_storage::log::{LogPaths, TableLog, TableOptions};
use tapedeck_storage::store::Store;

fn store(faulty: &FaultyStore) -> Store {
    Store::of(Arc::new(faulty.clone()))
}

async fn made(faulty: &FaultyStore, seed: u64) -> Archive {
    let (clock, mut rng) = (ManualClock::default(), fastrand::Rng::with_seed(seed));
    Archive::open_or_create(store(faulty), TABLE_PER_TOPIC, &clock, &mut rng).await.expect("opens")
}

#[tokio::test]
async fn an_archive_is_made_once_and_keeps_its_id() {
    let faulty = FaultyStore::default();
    let error = Archive::open(store(&faulty)).await.expect_err("there is none yet");
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("no archive at memory:///"), "{error}");
    let both = futures::future::join(made(&faulty, 1), made(&faulty, 2)).await;
    assert_eq!(both.0.config, both.1.config);
    assert_eq!(Archive::open(store(&faulty)).await.expect("opens").config, both.0.config);
}

#[tokio::test]
async fn an_archive_that_means_something_else_is_refused() {
    let faulty = FaultyStore::default();
    made(&faulty, 1).await;
    let (clock, mut rng) = (ManualClock::default(), fastrand::Rng::with_seed(2));
    let other = Archive::open_or_create(store(&faulty), "all", &clock, &mut rng).await.expect_err("another template");
    assert!(other.kind() == ErrorKind::Invalid && other.to_string().contains("\"{topic}\""), "{other}");
    let key = layout::archive_config();
    for (text, kind, part) in [
        (r#"{"id":"x","format":2,"table_template":"{topic}"}"#, ErrorKind::Invalid, "format 2"),
        ("{", ErrorKind::Corrupt, "_archive/config.json"),
    ] {
        faulty.below().put(&key, text.as_bytes().to_vec().into()).await.expect("puts");
        let error = Archive::open(store(&faulty)).await.expect_err(text);
        assert!(error.kind() == kind && error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_topic_stays_where_it_went() {
    let faulty = FaultyStore::default();
    let archive = made(&faulty, 1).await;
    let (clock, mut rng) = (ManualClock::default(), fastrand::Rng::with_seed(5));
    for (topic, table) in [("audit.eu", "audit"), ("audit.us", "audit"), ("_odd/name", "_odd/name")] {
        for _ in 0..2 {
            archive.settle_topic(topic, table, &clock, &mut rng).await.expect("agrees");
        }
    }
    let error = archive.settle_topic("audit.eu", "europe", &clock, &mut rng).await.expect_err("it went elsewhere");
    let text = error.to_string();
    for part in ["audit.eu", "table audit", "europe", "_archive/topics/audit.eu.json", "delete the object"] {
        assert!(text.contains(part), "{text}");
    }
    let topics = archive.topics().await.expect("lists");
    assert_eq!(topics.len(), 3);
    assert_eq!((&*topics["audit.us"], &*topics["_odd/name"]), ("audit", "_odd/name"));
    // A table is one that has a log.
    assert!(archive.tables().await.expect("lists").is_empty());
    for table in ["_odd/name", "audit"] {
        let options = TableOptions::of(table, "a");
        let opened = TableLog::open(&store(&faulty), options, Arc::new(clock.clone()), rng.fork(), Arc::new(())).await;
        opened.expect("opens");
    }
    assert_eq!(archive.tables().await.expect("lists"), ["_odd/name", "audit"]);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_and_conflicts_are_settled_by_reading() {
    for fault in [Fault::FailAfter, Fault::FailBefore, Fault::Conflict] {
        let faulty = FaultyStore::default();
        faulty.inject(When::at(Call::Put).times(2), fault);
        let (view, clock) = (faulty.clone(), ManualClock::default());
        let task = tokio::spawn({
            let clock = clock.clone();
            async move {
                let mut rng = fastrand::Rng::with_seed(1);
                Archive::open_or_create(store(&view), TABLE_PER_TOPIC, &clock, &mut rng).await
            }
        });
        assert!(clock.advance_until(std::time::Duration::from_secs(60), || task.is_finished()).await);
        let ours = task.await.expect("no panic").expect("made").config;
        assert_eq!(Archive::open(store(&faulty)).await.expect("opens").config, ours, "{fault}");
    }
    let denied = FaultyStore::default();
    denied.inject(When::at(Call::Put), Fault::Deny);
    let (clock, mut rng) = (ManualClock::default(), fastrand::Rng::with_seed(1));
    let error = Archive::open_or_create(store(&denied), TABLE_PER_TOPIC, &clock, &mut rng).await.expect_err("no rights");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

/// An archive in which each of `tables` has a log, and its topic a home.
async fn with_tables(faulty: &FaultyStore, tables: &[&str]) -> Archive {
    let archive = made(faulty, 1).await;
    let (clock, mut rng) = (ManualClock::default(), fastrand::Rng::with_seed(5));
    for table in tables {
        archive.settle_topic(table, table, &clock, &mut rng).await.expect("agrees");
        let options = TableOptions::of(*table, "a");
        let opened = TableLog::open(&store(faulty), options, Arc::new(clock.clone()), rng.fork(), Arc::new(())).await;
        opened.expect("opens");
    }
    archive
}

#[tokio::test]
async fn a_table_stays_in_sight_whatever_is_lost_of_it() {
    let faulty = FaultyStore::default();
    let long = "x".repeat(200);
    let tables = ["_odd/name", "orders", long.as_str()];
    let archive = with_tables(&faulty, &tables).await;
    let below = faulty.below();
    // A topic that was moved away leaves its old table without a home.
    for table in tables {
        below.delete(&layout::archive_topic(table)).await.expect("deletes");
        assert_eq!(archive.tables().await.expect("lists"), tables);
    }
    for table in &tables[..2] {
        below.put(&LogPaths::of(table).checkpoint(7), "rest".into()).await.expect("puts");
        below.delete(&LogPaths::of(table).record(0)).await.expect("deletes");
        assert_eq!(archive.tables().await.expect("lists"), tables);
    }
    // One that was cut to nothing, or in the middle, may be ours.
    for rest in ["", "{\"commitInfo\":{\"time"] {
        below.put(&LogPaths::of("orders").record(0), rest.into()).await.expect("puts");
        assert_eq!(archive.tables().await.expect("lists"), tables);
    }
    // The name of this one stood in its record 0 alone.
    below.put(&LogPaths::of(&long).hint(), "rest".into()).await.expect("puts");
    below.delete(&LogPaths::of(&long).record(0)).await.expect("deletes");
    let error = archive.tables().await.expect_err("nobody knows its name");
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(&layout::table_folder(&long)), "{error}");
}

#[tokio::test]
async fn what_is_no_table_of_ours_is_left_out() {
    let faulty = FaultyStore::default();
    let archive = with_tables(&faulty, &["orders"]).await;
    let (below, paths) = (faulty.below(), LogPaths::of("orders"));
    let ours = below.get(&paths.record(0)).await.expect("there").bytes().await.expect("reads");
    let foreign = r#"{"commitInfo":{"timestamp":1,"operation":"WRITE","engineInfo":"spark","txnId":"x"}}"#;
    for (folder, record) in [("copy", ours), ("reports", format!("{foreign}\n").into())] {
        below.put(&LogPaths::of(folder).record(0), record.into()).await.expect("puts");
    }
    below.put(&layout::table_object("notes", "readme.txt"), "no log".into()).await.expect("puts");
    assert_eq!(archive.tables().await.expect("lists"), ["orders"]);
}
