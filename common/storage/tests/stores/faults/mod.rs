//! What records and segments survive between us and a real S3 server. The server is versitygw; before it stands a proxy that
//! answers in its place, loses its answers, closes connections, lets requests land late, and cuts answers short.
//!
//! Each fault is one that a client of a real store met: see the names of the traps beside them.

mod links;
mod log;
mod reads;
mod uploads;

use tapedeck_testbed::{FaultProxy, HttpFault, shared_s3};

use crate::kit::{Given, options};
use tapedeck_storage::store::{StoreOptions, open_store};

/// The bucket of these tests.
const BUCKET: &str = "faults";

/// A store behind a proxy that does as it is told, and the same store without it.
struct Behind {
    proxy: FaultProxy,
    given: Given,
    direct: Given,
}

impl Behind {
    fn new() -> Self {
        let upstream = options().endpoint.expect("set by the test that starts this one");
        let proxy = FaultProxy::before(upstream.trim_start_matches("http://").parse().expect("an address")).expect("starts");
        let through = StoreOptions { endpoint: Some(proxy.endpoint()), ..options() };
        let given = Given::of(open_store(&through).expect("opens"));
        Self { proxy, given, direct: crate::kit::given() }
    }
}

/// Starts the tests in a process that has the credentials.
#[test]
fn records_and_segments_survive_what_lies_between() {
    let server = shared_s3();
    server.make_bucket(BUCKET).expect("makes a bucket");
    let environment = crate::kit::s3_environment(&format!("s3://{BUCKET}/some/prefix"), &server.endpoint());
    for test in [
        "log::each_fault_of_a_create_leaves_every_record_once",
        "log::a_create_is_looked_for_before_it_is_sent_again",
        "log::late_creates_land_among_writers_and_every_record_is_once",
        "log::writers_in_a_storm_leave_every_record_once",
        "uploads::each_fault_of_a_small_segment_ends_with_the_whole_of_it",
        "uploads::each_fault_of_a_large_segment_ends_with_the_whole_of_it",
        "uploads::an_upload_that_the_store_forgot_is_told_and_leaves_nothing",
        "uploads::an_upload_that_went_away_between_two_parts_is_told",
        "uploads::an_upload_that_nobody_could_give_up_shows_nothing",
        "uploads::a_storm_of_faults_ends_with_every_segment_whole",
        "links::connections_that_swallow_everything_cost_one_time_limit",
        "links::a_narrow_link_carries_a_large_segment",
        "reads::an_answer_that_was_cut_is_read_to_its_end_or_refused",
    ] {
        crate::kit::again(&format!("faults::{test}"), environment.clone());
    }
}

/// What a store says when it is not well, and has done nothing.
fn before() -> Vec<HttpFault> {
    vec![
        HttpFault::instead(500, "InternalError"),
        HttpFault::instead(503, "SlowDown"),
        HttpFault::instead(429, "TooManyRequests"),
        // S15: they pass when clocks are set and tokens renewed.
        HttpFault::instead(403, "RequestTimeTooSkewed"),
        HttpFault::instead(400, "ExpiredToken"),
        HttpFault::CloseBefore,
    ]
}

/// It has done it, and nobody learns.
fn after() -> Vec<HttpFault> {
    vec![HttpFault::after(500, "InternalError"), HttpFault::after(503, "SlowDown"), HttpFault::CloseAfter]
}
