//! Signals, logs and panics of a real process. The process is this very test program, started again with a role to play.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tapedeck_daemon::shutdown::Orders;
use tapedeck_daemon::telemetry::LogFormat;
use tapedeck_daemon::{Exit, Shutdown, run, shutdown, telemetry};
use tokio::sync::watch;

const ROLE: &str = "TAPEDECK_TEST_ROLE";

/// Not a test by itself: what the started process does. Without a role there is nothing to play.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    // Whoever started this process holds its stdin: without them it ends.
    std::thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()).map(|_| std::process::exit(99)));
    telemetry::start(LogFormat::Json, None, &[]).expect("logs");
    let grace = Duration::from_millis(if role == "stuck" || role == "abandons" { 3_500 } else { 60_000 });
    let shutdown = shutdown::install(grace, || "2 uploads".to_owned()).expect("signals");
    // An order is only seen by whoever asked before it came.
    let orders = shutdown.orders();
    say("ready");
    let exit = run::block_on(1, play(&role, &shutdown, orders)).expect("runtime");
    shutdown.ended();
    std::process::exit(i32::from(exit.code()));
}

async fn play(role: &str, shutdown: &Shutdown, mut orders: watch::Receiver<Orders>) -> Exit {
    match role {
        "panics" => {
            let _ = std::thread::Builder::new().name("doomed".to_owned()).spawn(|| panic!("on purpose")).expect("thread").join();
            Exit::Done
        }
        "obeys" => loop {
            tokio::select! {
                () = shutdown.stopping().cancelled() => return Exit::Done,
                changed = orders.changed() => {
                    changed.expect("the sender lives");
                    let orders = *orders.borrow_and_update();
                    say(&format!("seal {} reload {}", orders.seal, orders.reload));
                }
            }
        },
        "abandons" => {
            shutdown.overdue().cancelled().await;
            Exit::Unfinished
        }
        _ => {
            shutdown.stopping().cancelled().await;
            say("stopping");
            // The worst case: the only worker is blocked for good.
            loop {
                std::thread::park();
            }
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{line}").expect("stdout");
    out.flush().expect("stdout");
}

struct Process {
    child: Child,
    out: BufReader<ChildStdout>,
    err: ChildStderr,
}

impl Process {
    fn start(role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "role", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env_remove("RUST_LOG")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let err = child.stderr.take().expect("piped");
        let mut process = Self { child, out, err };
        process.wait_for("ready");
        process
    }

    fn wait_for(&mut self, wanted: &str) {
        for line in self.out.by_ref().lines() {
            if line.expect("line") == wanted {
                return;
            }
        }
        panic!("the process ended without saying {wanted:?}");
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("pid")).expect("pid");
        kill_process(pid, signal).expect("signal");
    }

    /// The exit code and the log.
    fn end(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.err.read_to_string(&mut log).expect("log");
        (self.child.wait().expect("wait").code(), log)
    }
}

#[test]
fn the_first_term_drains_and_leaves_with_zero() {
    for signal in [Signal::TERM, Signal::INT] {
        let process = Process::start("obeys");
        process.signal(signal);
        let (code, log) = process.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("draining within the grace period"), "{log}");
    }
}

#[test]
fn a_second_term_aborts_at_once_and_says_that_nothing_is_lost() {
    let mut process = Process::start("never ends");
    process.signal(Signal::TERM);
    process.wait_for("stopping");
    process.signal(Signal::TERM);
    let (code, log) = process.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("aborted at once; nothing is lost"), "{log}");
}

#[test]
fn orders_arrive_and_do_not_stop_the_process() {
    let mut process = Process::start("obeys");
    process.signal(Signal::USR1);
    process.wait_for("seal 1 reload 0");
    process.signal(Signal::HUP);
    process.wait_for("seal 1 reload 1");
    process.signal(Signal::USR1);
    process.wait_for("seal 2 reload 1");
    process.signal(Signal::TERM);
    assert_eq!(process.end().0, Some(0));
}

#[test]
fn past_the_grace_period_the_work_is_told_and_the_pending_are_named() {
    let process = Process::start("abandons");
    process.signal(Signal::TERM);
    let (code, log) = process.end();
    assert_eq!(code, Some(1), "{log}");
    let countdown = log.lines().find(|line| line.contains("\"left_s\":")).expect("a countdown line");
    let line: serde_json::Value = serde_json::from_str(countdown).expect("json");
    assert_eq!(line["pending"], "2 uploads");
    assert!(log.contains("the grace period is over: abandoning"), "{log}");
}

#[test]
fn a_process_that_is_stuck_is_ended_from_outside_its_loop() {
    let mut process = Process::start("stuck");
    process.signal(Signal::TERM);
    process.wait_for("stopping");
    let (code, log) = process.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("did not leave by itself; nothing is lost"), "{log}");
}

#[test]
fn a_panic_is_one_line_of_the_log() {
    let (code, log) = Process::start("panics").end();
    assert_eq!(code, Some(0), "{log}");
    let line = log.lines().find(|line| line.contains("a thread panicked")).expect("the line");
    let line: serde_json::Value = serde_json::from_str(line).expect("json");
    assert_eq!((&line["panic"], &line["thread"], &line["level"]), (&"on purpose".into(), &"doomed".into(), &"ERROR".into()));
    assert!(line["location"].as_str().is_some_and(|place| place.contains("signals.rs")), "{line}");
}
