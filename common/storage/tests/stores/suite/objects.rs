//! Single objects: creates, reads, listings, names.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tapedeck_storage::layout;
use tapedeck_storage::store::{Outcome, Store, classify, is_throttled};

use super::{folder, lists_in_order};
use crate::kit::Given;

/// Rounds of the race: a store that looks first and stores later was caught by fewer.
const ROUNDS: usize = 10;
const CREATORS: usize = 8;

/// More than the thousand that a page of a listing holds.
const LISTED: usize = 1_040;

/// A create. Whoever is only put off comes again: a cloud may let an object be changed about once a second.
async fn create(store: &Store, key: &Path, body: &str) -> Result<(), Outcome> {
    loop {
        let created = store.store.put_opts(key, Bytes::from(body.to_owned()).into(), PutOptions::from(PutMode::Create)).await;
        match created {
            Ok(_) => return Ok(()),
            Err(error) if is_throttled(&error) => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
            Err(error) => return Err(classify(&error)),
        }
    }
}

async fn read(store: &Store, key: &Path) -> Bytes {
    store.patient.get(key).await.expect("it is there").bytes().await.expect("it is whole")
}

async fn listed(store: &Store, folder: &Path) -> Vec<Path> {
    store.patient.list(Some(folder)).map_ok(|object| object.location).try_collect().await.expect("lists")
}

pub(super) async fn a_create_refuses_what_exists(given: &mut Given) {
    let key = folder(given).join("created");
    assert_eq!(create(&given.store, &key, "first").await, Ok(()));
    assert_eq!(create(&given.store, &key, "second").await, Err(Outcome::Exists));
    assert_eq!(read(&given.store, &key).await, "first");
}

pub(super) async fn of_eight_creators_one_wins(given: &mut Given) {
    let folder = folder(given);
    for round in 0..ROUNDS {
        let key = folder.clone().join(format!("race-{round}"));
        let creators = (0..CREATORS).map(|number| {
            let (store, key) = (given.store.clone(), key.clone());
            tokio::spawn(async move { create(&store, &key, &number.to_string()).await })
        });
        let answers = futures::future::join_all(creators).await;
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("no panic")).collect();
        let winners: Vec<usize> = (0..CREATORS).filter(|number| answers[*number].is_ok()).collect();
        assert_eq!(winners.len(), 1, "round {round}: {answers:?}");
        assert_eq!(answers.iter().filter(|answer| **answer == Err(Outcome::Exists)).count(), CREATORS - 1, "{answers:?}");
        assert_eq!(read(&given.store, &key).await, winners[0].to_string());
    }
}

pub(super) async fn what_was_stored_is_read_and_listed_at_once(given: &mut Given) {
    let folder = folder(given);
    for number in 0..20 {
        let key = folder.clone().join(format!("{number:02}"));
        assert_eq!(create(&given.store, &key, "here").await, Ok(()));
        assert_eq!(given.store.patient.head(&key).await.expect("it is there").size, 4);
        assert_eq!(read(&given.store, &key).await, "here");
        assert_eq!(listed(&given.store, &folder).await.len(), number + 1);
    }
}

pub(super) async fn a_listing_is_whole_and_begins_after_its_offset(given: &mut Given) {
    let folder = folder(given);
    let key = |number: usize| folder.clone().join(format!("{number:05}"));
    let puts = (0..LISTED).map(|number| {
        let (store, key) = (given.store.clone(), key(number));
        async move { store.store.put(&key, "x".into()).await.map(|_| ()) }
    });
    futures::stream::iter(puts).buffer_unordered(16).try_collect::<Vec<_>>().await.expect("stores");
    let in_order = |mut found: Vec<Path>| {
        if !lists_in_order(given.store.kind) {
            found.sort();
        }
        found
    };
    let all: Vec<Path> = (0..LISTED).map(key).collect();
    assert_eq!(in_order(listed(&given.store, &folder).await), all);
    // An offset need not be a key.
    for (offset, rest) in
        [(key(LISTED - 5), &all[LISTED - 4..]), (folder.clone().join("00999x"), &all[1_000..]), (folder.clone().join("!"), &all)]
    {
        let found = given.store.patient.list_with_offset(Some(&folder), &offset);
        let found = found.map_ok(|object| object.location).try_collect().await.expect("lists");
        assert_eq!(in_order(found), rest, "after {offset}");
    }
    let below = given.store.patient.list_with_delimiter(folder.parent().as_ref()).await.expect("lists");
    assert!(below.common_prefixes.contains(&folder) && below.objects.is_empty(), "{below:?}");
}

pub(super) async fn parts_of_an_object_can_be_read(given: &mut Given) {
    let key = folder(given).join("ranges");
    let body: Vec<u8> = (0..1_000_u32).map(|at| (at * 7 % 251) as u8).collect();
    given.store.store.put(&key, body.clone().into()).await.expect("stores");
    let store = &given.store.patient;
    assert_eq!(store.get_range(&key, 10..20).await.expect("reads"), body[10..20]);
    let several = store.get_ranges(&key, &[0..1, 500..600, 990..1_000]).await.expect("reads");
    assert_eq!(several, [&body[0..1], &body[500..600], &body[990..]]);
    for (range, expected) in [
        (GetRange::Suffix(8), &body[992..]),
        (GetRange::Suffix(5_000), &body[..]),
        (GetRange::Offset(900), &body[900..]),
        (GetRange::Bounded(900..5_000), &body[900..]),
    ] {
        let options = GetOptions { range: Some(range.clone()), ..GetOptions::default() };
        let read = store.get_opts(&key, options).await.unwrap_or_else(|error| panic!("{range}: {error}"));
        assert_eq!((read.meta.size, read.bytes().await.expect("whole")), (1_000, Bytes::from(expected.to_vec())), "{range}");
    }
}

/// Every character that [`layout`] lets into a key, and names that needed escaping.
pub(super) async fn every_name_becomes_a_key_that_can_be_used(given: &mut Given) {
    let names = ["orders", "audit.eu_west-1", "_archive", "..", "a/b", "50%~", "größe", "k=v", "a b+c&d?e#f", "AZaz09._=-", ""];
    let long = "x".repeat(300);
    for name in names.into_iter().chain([long.as_str()]) {
        let path = format!("topic={}/date=2026-11-19/hour=07/{}.parquet", layout::escape(name), given.name());
        let key = layout::table_object(&format!("keys {name}"), &path);
        assert_eq!(create(&given.store, &key, name).await, Ok(()), "{key}");
        assert_eq!(create(&given.store, &key, "another").await, Err(Outcome::Exists), "{key}");
        assert_eq!(read(&given.store, &key).await, name, "{key}");
        let folder = key.parent().expect("a folder");
        assert_eq!(listed(&given.store, &folder).await, [key]);
    }
}

pub(super) async fn an_object_may_be_empty(given: &mut Given) {
    let folder = folder(given);
    let key = folder.clone().join("empty");
    assert_eq!(create(&given.store, &key, "").await, Ok(()));
    assert_eq!(create(&given.store, &key, "more").await, Err(Outcome::Exists));
    assert_eq!((given.store.patient.head(&key).await.expect("it is there").size, read(&given.store, &key).await.len()), (0, 0));
    assert_eq!(listed(&given.store, &folder).await, [key]);
}

pub(super) async fn what_was_deleted_is_gone(given: &mut Given) {
    let folder = folder(given);
    let keys: Vec<Path> = (0..3).map(|number| folder.clone().join(format!("{number}"))).collect();
    for key in &keys {
        assert_eq!(create(&given.store, key, "x").await, Ok(()));
    }
    let doomed = futures::stream::iter(keys[..2].to_vec()).map(Ok).boxed();
    let deleted: Vec<Path> = given.store.store.delete_stream(doomed).try_collect().await.expect("deletes");
    assert_eq!(deleted.len(), 2);
    let error = given.store.patient.head(&keys[0]).await.expect_err("deleted");
    assert_eq!(classify(&error), Outcome::NotFound);
    assert_eq!(listed(&given.store, &folder).await, keys[2..]);
}
