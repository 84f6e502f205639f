//! An object of another length is noticed, and no broken file stops the process. That every single wrong bit is noticed stands
//! beside the log, which vouches for the bytes: `table_log/flips.rs`.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use tapedeck_common::{ErrorKind, Position, Span};
use tapedeck_storage::segment::{Projection, Scan, SegmentReader, WriterOptions, verify_object};

use crate::kit::{Event, events_of, write};

fn small() -> (Bytes, tapedeck_common::commit::SegmentRef) {
    let events = (0..20).map(|n| Event::plain(n as i32 % 3, n, format!("value {n}").into_bytes()));
    let mut events: Vec<Event> = events.collect();
    events.sort_by_key(|event| event.partition);
    write(&WriterOptions::default(), &[events])
}

#[tokio::test]
async fn a_longer_a_shorter_and_an_absent_object_are_noticed() {
    let (object, by) = small();
    let store = InMemory::new();
    let key = Path::from("x.parquet");
    let longer = [&object[..], b"x"].concat();
    for wrong in [longer, object[..object.len() - 1].to_vec(), Vec::new()] {
        store.put(&key, wrong.into()).await.expect("stored");
        let error = verify_object(&store, &key, &by).await.expect_err("broken");
        assert!(error.to_string().contains("x.parquet") && error.to_string().contains("bytes"), "{error}");
    }
    let error = verify_object(&store, &Path::from("gone"), &by).await.expect_err("absent");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

/// Whatever single byte is wrong, reading ends: with an error that is `Corrupt`, or with events (where the byte lay in a
/// payload; that is what the BLAKE3 is for).
#[test]
fn a_broken_file_never_stops_the_process() {
    let (object, _) = small();
    for at in 0..object.len() {
        for wrong in [0x00, 0xff, object[at] ^ 0x10] {
            let mut broken = object.to_vec();
            broken[at] = wrong;
            let Ok(reader) = SegmentReader::from_bytes("broken", broken.into()).map_err(|error| {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            }) else {
                continue;
            };
            for batch in reader.batches(Scan::default()) {
                let Err(error) = batch else { continue };
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            }
        }
    }
}

/// Several row groups of everything that a segment may hold.
fn large() -> Bytes {
    let mut noise = fastrand::Rng::with_seed(11);
    let event = |position: u64| {
        let value: Vec<u8> = (0..40).map(|_| noise.u8(..)).collect();
        let mut event = Event::plain(0, position, value);
        event.key = event.key.filter(|_| !position.is_multiple_of(3));
        event.value = event.value.filter(|_| !position.is_multiple_of(11));
        event.epoch = event.epoch.filter(|_| !position.is_multiple_of(5));
        event.properties = vec![("raw".to_owned(), position.to_string())];
        event
    };
    let events: Vec<Event> = (0..300).map(event).collect();
    let chunks: Vec<Vec<Event>> = events.chunks(75).map(<[Event]>::to_vec).collect();
    write(&WriterOptions { row_group_bytes: 8_000, ..WriterOptions::default() }, &chunks).0
}

/// Reads a broken file to its end, whole or by positions; answers how many events came out.
fn read_broken(object: Vec<u8>, what: &str) -> usize {
    let span = Span::new(Position::new(100), Position::new(200)).expect("forward");
    let lanes = Some(BTreeMap::from([(0, span)]));
    let mut events = 0;
    for scan in [Scan::default(), Scan { projection: Projection::Rows, lanes, ..Scan::default() }] {
        let reader = match SegmentReader::from_bytes("broken", object.clone().into()) {
            Ok(reader) => reader,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
                return events;
            }
        };
        for batch in reader.batches(scan) {
            match batch {
                Ok(batch) => events += events_of(&batch).len(),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}"),
            }
        }
    }
    events
}

/// Behind the checksum, so where nothing but the decoder stands: flips of some bits and cuts at any length. Reading ends each
/// time, without more events than there could be.
#[test]
fn the_decoder_survives_whatever_the_checksum_would_have_refused() {
    const SEED: u64 = 20_261_121;
    let (said, heard) = mpsc::sync_channel(1);
    let work = std::thread::spawn(move || {
        let (object, mut chance) = (large(), fastrand::Rng::with_seed(SEED));
        let mut decoded = 0;
        for round in 0..3_000 {
            let mut broken = object.to_vec();
            let what = format!("seed {SEED}, round {round}");
            if round % 6 == 0 {
                broken.truncate(chance.usize(..object.len()));
            } else {
                // Half of them in the footer, which says where everything else is.
                let from = if chance.bool() { object.len() - object.len() / 4 } else { 0 };
                for _ in 0..chance.usize(1..4) {
                    broken[chance.usize(from..object.len())] ^= 1 << chance.u8(..8);
                }
            }
            // Should the decoder hang, this is the round to look at.
            let _ = said.try_send(what.clone());
            let events = read_broken(broken, &what);
            assert!(events <= 1_000_000, "{what}: {events} events out of 300");
            decoded += usize::from(events > 0);
        }
        assert!(decoded > 100, "only {decoded} broken files were decoded at all");
    });
    let mut last = String::new();
    loop {
        match heard.recv_timeout(Duration::from_secs(60)) {
            Ok(what) => last = what,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("the decoder hangs: {last}"),
        }
    }
    work.join().expect("the decoder panicked past its guard");
}
