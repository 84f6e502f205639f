use super::*;
use crate::{Manners, PlainS3};

/// A request over a connection of its own; the answer to its end, empty if there was none.
fn ask(proxy: &FaultProxy, method: &str, target: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(proxy.address).expect("it listens");
    let length = body.len();
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: x\r\nX-Test: a: b\r\nContent-Length: {length}\r\n\r\n{body}")
        .expect("writes");
    stream.shutdown(Shutdown::Write).expect("no more to say");
    let mut answer = String::new();
    // A connection that is reset is an answer too: none.
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn world() -> (PlainS3, FaultProxy) {
    let store = PlainS3::start(Manners::Good).expect("starts");
    let proxy = FaultProxy::before(store.address()).expect("starts");
    (store, proxy)
}

fn holds(proxy: &FaultProxy, key: &str) -> bool {
    proxy.heal();
    ask(proxy, "GET", key, "").starts_with("HTTP/1.1 200")
}

#[test]
fn what_no_rule_names_passes_and_is_written_down() {
    let (_store, proxy) = world();
    assert!(ask(&proxy, "PUT", "/b/k%3D1?x=1", "body").starts_with("HTTP/1.1 200"));
    assert!(ask(&proxy, "GET", "/b/k%3D1", "").ends_with("\r\n\r\nbody"));
    let seen = proxy.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str(), seen[0].body.as_str()), ("PUT", "/b/k%3D1?x=1", "body"));
    assert_eq!((seen[0].header("x-test"), proxy.struck()), (Some("a: b"), 0));
}

#[test]
fn each_fault_reaches_the_server_or_not_and_the_client_learns_what_it_should() {
    let cases = [
        (HttpFault::instead(503, "SlowDown"), "HTTP/1.1 503", false),
        (HttpFault::after(500, "InternalError"), "HTTP/1.1 500", true),
        (HttpFault::CloseBefore, "", false),
        (HttpFault::CloseAfter, "", true),
        (HttpFault::Late, "", false),
    ];
    for (fault, answer, stored) in cases {
        let (_store, proxy) = world();
        proxy.strike(Which::of("PUT").with("/k").times(1), fault.clone());
        let answered = ask(&proxy, "PUT", "/b/k", "body");
        assert!(if answer.is_empty() { answered.is_empty() } else { answered.starts_with(answer) }, "{fault:?}: {answered}");
        assert_eq!((holds(&proxy, "/b/k"), proxy.struck()), (stored, 1), "{fault:?}");
        assert_eq!((proxy.struck_by(&fault), proxy.struck_by(&HttpFault::Cut(7))), (1, 0));
    }
}

#[test]
fn a_late_request_lands_when_it_is_let() {
    let (_store, proxy) = world();
    proxy.strike(Which::of("PUT").times(1), HttpFault::Late);
    ask(&proxy, "PUT", "/b/k", "body");
    assert_eq!((proxy.late(), holds(&proxy, "/b/k")), (1, false));
    assert_eq!(proxy.land(), [Some(200)]);
    assert!(holds(&proxy, "/b/k"));
}

#[test]
fn an_answer_is_cut_where_it_is_told() {
    let (_store, proxy) = world();
    ask(&proxy, "PUT", "/b/k", "whole body");
    proxy.strike(Which::of("GET").times(1), HttpFault::Cut(5));
    assert!(ask(&proxy, "GET", "/b/k", "").ends_with("\r\n\r\nwhole"));
}

#[test]
fn a_rule_counts_and_chaos_follows_its_seed() {
    let (_store, proxy) = world();
    proxy.strike(Which::of("PUT").with("/k").after(1).times(1), HttpFault::instead(500, "InternalError"));
    let statuses: Vec<bool> = (0..3).map(|_| ask(&proxy, "PUT", "/b/k", "x").starts_with("HTTP/1.1 200")).collect();
    assert_eq!(statuses, [true, false, true]);
    let story = |seed| {
        proxy.unleash(Which::all(), seed, 0.5, &[HttpFault::instead(500, "InternalError")]);
        (0..16).map(|_| ask(&proxy, "GET", "/b/k", "").starts_with("HTTP/1.1 200")).collect::<Vec<_>>()
    };
    assert_eq!(story(7), story(7));
    assert_ne!(story(7), story(8));
}

#[test]
fn a_forgetful_proxy_still_counts() {
    let (_store, proxy) = world();
    proxy.forget();
    proxy.strike(Which::of("PUT").times(1), HttpFault::CloseAfter);
    ask(&proxy, "PUT", "/b/k", "body");
    assert!(holds(&proxy, "/b/k"));
    assert_eq!((proxy.seen().len(), proxy.struck()), (0, 1));
}
