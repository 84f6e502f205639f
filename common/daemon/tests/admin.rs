//! The admin endpoint as a caller meets it: over a real socket.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tapedeck_common::{Clock, ErrorKind, Timestamp};
use tapedeck_daemon::admin::{Admin, AdminError, AdminServer, Component, Heartbeats, Token};
use tapedeck_daemon::telemetry::LogLevel;

/// A clock that only the test moves.
#[derive(Default)]
struct HandClock(AtomicU64);

#[async_trait::async_trait]
impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst))
    }

    async fn sleep_until(&self, _: Duration) {}
}

fn call(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
        .expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

fn get(server: &AdminServer, path: &str) -> (u16, String) {
    let (status, _, body) = call(local(server), "GET", path, "", "");
    (status, body)
}

fn post(server: &AdminServer, path: &str, headers: &str, body: &str) -> (u16, String) {
    let (status, _, body) = call(local(server), "POST", path, headers, body);
    (status, body)
}

/// Also a listener on all addresses is reached over loopback.
fn local(server: &AdminServer) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], server.address().port()))
}

fn quiet() -> Admin {
    Admin::new(Heartbeats::new(Arc::new(HandClock::default())))
}

#[test]
fn live_means_that_the_loops_tick_and_nothing_else() {
    let clock = Arc::new(HandClock::default());
    let beats = Heartbeats::new(clock.clone());
    let poll = beats.register("poll", Duration::from_secs(10));
    let not_ready = || BTreeMap::from([("bus".to_owned(), Component { ready: false, detail: "no broker answers".to_owned() })]);
    let server = Admin::new(beats).ready(not_ready).start("127.0.0.1:0").expect("start");

    assert_eq!(get(&server, "/livez").0, 200);
    let (status, body) = get(&server, "/readyz");
    assert_eq!(status, 503);
    let body: serde_json::Value = serde_json::from_str(&body).expect("json");
    assert_eq!(
        body,
        serde_json::json!({ "ready": false, "components": { "bus": { "ready": false, "detail": "no broker answers" } } })
    );

    clock.0.store(11, Ordering::SeqCst);
    let (status, body) = get(&server, "/livez");
    assert_eq!(status, 503);
    assert!(body.contains("\"poll\"") && body.contains("11"), "{body}");
    poll.tick();
    assert_eq!(get(&server, "/livez").0, 200);
}

#[test]
fn ready_needs_every_component() {
    let other = Arc::new(Mutex::new(false));
    let shared = other.clone();
    let component = |ready| Component { ready, detail: String::new() };
    let ready =
        move || BTreeMap::from([("a".to_owned(), component(true)), ("b".to_owned(), component(*shared.lock().expect("lock")))]);
    let server = quiet().ready(ready).start("127.0.0.1:0").expect("start");
    assert_eq!(get(&server, "/readyz").0, 503);
    *other.lock().expect("lock") = true;
    assert_eq!(get(&server, "/readyz").0, 200);
}

#[test]
fn metrics_are_openmetrics() {
    let counter: Counter = Counter::default();
    let mut registry = Registry::with_prefix("tapedeck_test");
    registry.register("things", "Things seen", counter.clone());
    let server = quiet().metrics(Arc::new(registry)).start("127.0.0.1:0").expect("start");
    counter.inc_by(3);
    let (status, head, body) = call(local(&server), "GET", "/metrics", "", "");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.contains("tapedeck_test_things_total 3\n") && body.ends_with("# EOF\n"), "{body}");
}

#[test]
fn status_is_what_the_closure_says_and_the_rest_does_not_exist() {
    let server = quiet().status(|| serde_json::json!({ "tables": 2 })).start("localhost:0").expect("start");
    assert_eq!(get(&server, "/api/v1/status"), (200, "{\"tables\":2}".to_owned()));
    for absent in ["/readyz", "/metrics", "/", "/api/v1/unknown"] {
        let (status, body) = get(&server, absent);
        assert_eq!(status, 404, "{absent}");
        assert!(body.contains("error"), "{absent}: {body}");
    }
    assert_eq!(post(&server, "/api/v1/seal", "", "").0, 404);
    assert_eq!(post(&server, "/api/v1/log-level", "", "info").0, 404);
    assert_eq!(get(&server, "/api/v1/seal").0, 405);
}

fn counting(seals: &Arc<AtomicU64>) -> Admin {
    let seals = seals.clone();
    quiet().seal(move || {
        seals.fetch_add(1, Ordering::SeqCst);
        Ok(serde_json::json!({ "ordered": true }))
    })
}

#[test]
fn orders_over_loopback_need_no_token_but_never_come_from_web_pages() {
    let seals = Arc::new(AtomicU64::new(0));
    let server = counting(&seals).start("127.0.0.1:0").expect("start");
    assert_eq!(post(&server, "/api/v1/seal", "", ""), (202, "{\"ordered\":true}".to_owned()));
    assert_eq!(post(&server, "/api/v1/seal", "Origin: http://evil.example\r\n", "").0, 403);
    assert_eq!(seals.load(Ordering::SeqCst), 1);
}

#[test]
fn beyond_loopback_orders_need_a_token_and_without_one_are_refused() {
    let seals = Arc::new(AtomicU64::new(0));
    let open = counting(&seals).start("0.0.0.0:0").expect("start");
    let (status, body) = post(&open, "/api/v1/seal", "Authorization: Bearer x\r\n", "");
    assert_eq!(status, 403);
    assert!(body.contains("configure a token"), "{body}");
    assert_eq!(get(&open, "/livez").0, 200, "reading needs no token");
    assert_eq!(seals.load(Ordering::SeqCst), 0);

    let token = Some(Token::Value("canary".to_owned()));
    let closed = counting(&seals).token(token).start("0.0.0.0:0").expect("start");
    for (headers, expected) in [("", 401), ("Authorization: Bearer canarY\r\n", 401), ("Authorization: Bearer canary\r\n", 202)] {
        assert_eq!(post(&closed, "/api/v1/seal", headers, "").0, expected, "{headers}");
    }
    assert_eq!(seals.load(Ordering::SeqCst), 1);
}

#[test]
fn a_token_counts_on_loopback_too() {
    let seals = Arc::new(AtomicU64::new(0));
    let server = counting(&seals).token(Some(Token::Value("canary".to_owned()))).start("127.0.0.1:0").expect("start");
    assert_eq!(post(&server, "/api/v1/seal", "", "").0, 401);
    assert_eq!(post(&server, "/api/v1/seal", "Authorization: Bearer canary\r\n", "").0, 202);
}

#[test]
fn a_refused_order_says_why() {
    let server = quiet().seal(|| Err("stopping".to_owned())).start("127.0.0.1:0").expect("start");
    assert_eq!(post(&server, "/api/v1/seal", "", ""), (409, "{\"error\":\"stopping\"}".to_owned()));
}

#[test]
fn the_log_level_changes_and_nonsense_is_refused() {
    let set = Arc::new(Mutex::new(Vec::new()));
    let seen = set.clone();
    let level = LogLevel::from_fn(move |filter| {
        "json".parse::<tapedeck_daemon::telemetry::LogFormat>()?;
        if filter == "loud" {
            return Err("loud".parse::<tapedeck_daemon::telemetry::LogFormat>().expect_err("no format"));
        }
        seen.lock().expect("lock").push(filter.to_owned());
        Ok(())
    });
    let server = quiet().log_level(level).start("127.0.0.1:0").expect("start");
    assert_eq!(post(&server, "/api/v1/log-level", "", "info,archiver=debug\n").0, 200);
    assert_eq!(post(&server, "/api/v1/log-level", "", "loud").0, 400);
    assert_eq!(post(&server, "/api/v1/log-level", "", &"x".repeat(5000)).0, 413);
    assert_eq!(*set.lock().expect("lock"), ["info,archiver=debug"]);
}

#[test]
fn an_address_in_use_and_no_address_are_clear_errors() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    let error = quiet().start(&address).expect_err("taken");
    assert!(matches!(error, AdminError::InUse { .. }) && error.kind() == ErrorKind::Invalid);
    assert!(error.to_string().contains(&address) && error.to_string().contains("admin.listen"), "{error}");
    for wrong in ["", "9464", "127.0.0.1", "127.0.0.1:99999", "http://x"] {
        let error = quiet().start(wrong).expect_err(wrong).to_string();
        assert!(error.contains("host:port"), "{error}");
    }
}

#[test]
fn a_stopped_server_gives_its_address_back_even_with_an_open_connection() {
    let server = quiet().start("127.0.0.1:0").expect("start");
    let address = server.address();
    let _idle = TcpStream::connect(address).expect("connect");
    server.stop();
    quiet().start(&address.to_string()).expect("the address is free again");
}
