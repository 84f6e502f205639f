//! Links that do not carry: connections that swallow everything, and too little bandwidth.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tapedeck_storage::layout;
use tapedeck_storage::segment::verify_object;
use tapedeck_storage::store::{StoreOptions, open_store};
use tapedeck_testbed::{SlowLink, Weather};

use crate::kit::{Given, options, segment, variable};
use crate::suite::store_segment;

/// A store behind a link.
fn behind_a_link() -> (SlowLink, Given) {
    let endpoint = options().endpoint.expect("set by the test that starts this one");
    let server: SocketAddr = endpoint.trim_start_matches("http://").parse().expect("an address");
    let link = SlowLink::to(server, Duration::ZERO).expect("a link");
    let through = StoreOptions { endpoint: Some(format!("http://{}", link.address())), ..options() };
    (link, Given::of(open_store(&through).expect("opens")))
}

/// Four connections are idle when a firewall forgets them. By the library's own means each of them costs a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn connections_that_swallow_everything_cost_one_time_limit() {
    let (link, mut given) = behind_a_link();
    let keys: Vec<_> = (0..4).map(|number| Path::from(format!("links/{}/{number}", given.name()))).collect();
    let put = |key| given.store.store.put(key, "small".into());
    assert!(join_all(keys.iter().map(put)).await.iter().all(Result::is_ok));
    let dead = link.half_open();
    assert!(dead >= 2, "{dead} connections");
    let began = Instant::now();
    while put(&keys[0]).await.is_err() {}
    println!("{dead} dead connections cost {:?}", began.elapsed());
    assert!(link.struck() > 0 && began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
}

/// `TAPEDECK_LINK_BYTES` and `TAPEDECK_SEGMENT_MIB` make it narrower and larger: 125000 and 16 are 1 Mbit/s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn a_narrow_link_carries_a_large_segment() {
    let (link, mut given) = behind_a_link();
    let number = |name: &str, default: u64| variable(name).map_or(default, |text| text.parse().expect("a number"));
    link.set(Weather { bytes_per_second: Some(number("TAPEDECK_LINK_BYTES", 2_000_000)), ..Weather::default() });
    let made = segment(&mut given, 0, 0, number("TAPEDECK_SEGMENT_MIB", 9), 1 << 20);
    let (began, segments) = (Instant::now(), given.store.segments(Arc::clone(&given.clock)));
    store_segment(&segments, "orders", &made, given.rng.fork()).await.expect("waits as long as it takes");
    println!("{} bytes took {:?}", made.by.size, began.elapsed());
    link.heal();
    let key = layout::table_object("orders", &made.by.path);
    verify_object(&*given.store.patient, &key, &made.by).await.expect("whole");
}
