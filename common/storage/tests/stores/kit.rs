//! A real clock, programs started again with credentials, lanes and segments made by hand.

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tapedeck_common::columns::{Columns, EventFields};
use tapedeck_common::commit::{Advance, SegmentRef};
use tapedeck_common::event::TimeKind;
use tapedeck_common::{Clock, LaneId, Position, Span, Timestamp, Window, limits};
use tapedeck_storage::ids::fresh_uuid;
use tapedeck_storage::layout;
use tapedeck_storage::segment::{SegmentWriter, WriterOptions};
use tapedeck_storage::store::{Store, StoreOptions, open_store};
use tapedeck_testbed::S3Server;

pub(crate) const SOURCE: &str = "kafka/cluster/AAAAAAAAAAAAAAAAAAAAAA/0";

#[derive(Debug)]
pub(crate) struct RealClock(Instant);

#[async_trait::async_trait]
impl Clock for RealClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        Timestamp::default() + since
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep_until(&self, deadline: Duration) {
        tokio::time::sleep(deadline.saturating_sub(self.monotonic())).await;
    }
}

pub(crate) fn real_clock() -> Arc<dyn Clock> {
    Arc::new(RealClock(Instant::now()))
}

/// A store, a clock, and chance that no other run had.
pub(crate) struct Given {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: fastrand::Rng,
}

impl Given {
    pub(crate) fn of(store: Store) -> Self {
        let clock = real_clock();
        let rng = fastrand::Rng::with_seed(clock.now().micros() as u64 ^ u64::from(std::process::id()).rotate_left(40));
        Self { store, clock, rng }
    }

    /// A name that nobody else has.
    pub(crate) fn name(&mut self) -> String {
        fresh_uuid(self.clock.now(), &mut self.rng).to_string()
    }
}

/// Variables that would lead a client elsewhere.
const FOREIGN: [&str; 5] = ["AWS_", "GOOGLE_", "AZURE_", "AZURITE_", "TEST_"];

/// Runs an ignored test of this program in a process of its own, with this environment and no credentials but those in it.
pub(crate) fn again<N: AsRef<str>, V: AsRef<str>>(test: &str, environment: impl IntoIterator<Item = (N, V)>) {
    let output = run(test, environment);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(output.status.success(), "{test} failed:\n{}", text(&output.stderr));
}

/// True if that test passes.
pub(crate) fn passes<N: AsRef<str>, V: AsRef<str>>(test: &str, environment: impl IntoIterator<Item = (N, V)>) -> bool {
    run(test, environment).status.success()
}

fn run<N: AsRef<str>, V: AsRef<str>>(test: &str, environment: impl IntoIterator<Item = (N, V)>) -> Output {
    let mut again = Command::new(std::env::current_exe().expect("this program"));
    again.args(["--exact", test, "--ignored", "--nocapture"]);
    let names = std::env::vars().map(|(name, _)| name);
    for name in names.filter(|name| FOREIGN.iter().any(|part| name.starts_with(part)) || name.to_lowercase().ends_with("_proxy"))
    {
        again.env_remove(name);
    }
    for (name, value) in environment {
        again.env(name.as_ref(), value.as_ref());
    }
    // Its output is ours to show, so that nobody counts its tests as well.
    again.output().expect("starts")
}

/// The environment of a client of an S3 server: credentials, and for [`options`] where it is.
pub(crate) fn s3_environment(url: &str, endpoint: &str) -> Vec<(String, String)> {
    let own = [("TEST_URL", url), ("TEST_ENDPOINT", endpoint), ("TEST_REGION", S3Server::REGION)];
    S3Server::environment().into_iter().chain(own).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The store that the test which started this one means.
pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        endpoint: variable("TEST_ENDPOINT"),
        region: variable("TEST_REGION"),
        ca_file: variable("TEST_CA_FILE").map(Into::into),
        ..StoreOptions::at(variable("TEST_URL").expect("set by the test that starts this one"))
    }
}

pub(crate) fn given() -> Given {
    Given::of(open_store(&options()).expect("opens"))
}

/// False if the machine is known not to have a server; then it was said where all is summed up.
pub(crate) fn has(server: &str) -> bool {
    let without = variable("TAPEDECK_STORES_WITHOUT").unwrap_or_default();
    let has = !without.split_whitespace().any(|name| name == server);
    if !has {
        println!("not tested: {server}, since TAPEDECK_STORES_WITHOUT names it");
    }
    has
}

pub(crate) fn lane(partition: i32) -> LaneId {
    LaneId::new(SOURCE, partition)
}

/// What a lane needs to go from `from` to `until`; its first step goes nowhere.
pub(crate) fn advance(partition: i32, expected: Option<u64>, until: u64, rows: u64) -> Advance {
    let from = Position::new(expected.unwrap_or(until));
    Advance {
        lane: lane(partition),
        expected: expected.map(Position::new),
        span: Span::new(from, Position::new(until)).expect("forward"),
        rows,
        skipped: 0,
        gap: None,
    }
}

/// A segment of `rows` events with values of `value_bytes` that no encoder makes smaller.
pub(crate) struct Made {
    pub(crate) parts: Vec<Bytes>,
    pub(crate) by: SegmentRef,
}

pub(crate) fn segment(given: &mut Given, partition: i32, from: u64, rows: u64, value_bytes: usize) -> Made {
    let hour = Window::of(Timestamp::from_micros(495_000 * 3_600_000_000));
    let mut columns = Columns::default();
    for row in 0..rows {
        let mut value = vec![0; value_bytes];
        given.rng.fill(&mut value);
        let fields = EventFields {
            position: Position::new(from + row),
            time: Timestamp::from_micros(hour.start().micros() + row as i64),
            time_kind: TimeKind::Create,
            leader_epoch: None,
            key: None,
            value: Some(&value),
        };
        columns.push(fields, std::iter::empty(), std::iter::empty());
    }
    let now = given.clock.now();
    let mut writer = SegmentWriter::new(Arc::from("orders"), Arc::from(SOURCE), hour, now, &WriterOptions::default());
    writer.write_chunk(vec![(partition, columns)]);
    let mut parts = writer.take_parts(limits::PART_BYTES);
    let mut finished = writer.finish();
    parts.extend(finished.take_parts());
    let name = fresh_uuid(now, &mut given.rng);
    let by = finished.into_ref(layout::segment_path("orders", hour, &name), now);
    Made { parts, by }
}
