//! Runs the real binaries as a user would, and does to them what the world does: TERM, kill -9, freeze.
//!
//! Output goes to files, so a chatty program never blocks on a full pipe. A program still running when its [`Running`] is dropped,
//! or when the test is killed, is killed too.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::leash::Leash;
use crate::memory_limit::MemoryLimit;
use crate::wait::wait_until;

/// A program about to be started.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// The binary at `path`: in an integration test `env!("CARGO_BIN_EXE_archiver")`.
    pub fn at(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned(), arguments: Vec::new(), environment: Vec::new() }
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|text| text.as_ref().to_owned()));
        self
    }

    /// Adds environment variables to those of the test.
    pub fn envs<N: AsRef<OsStr>, V: AsRef<OsStr>>(mut self, environment: impl IntoIterator<Item = (N, V)>) -> Self {
        self.environment
            .extend(environment.into_iter().map(|(name, value)| (name.as_ref().to_owned(), value.as_ref().to_owned())));
        self
    }

    /// The same program in a limit of memory, which must outlive it.
    #[must_use]
    pub fn within(&self, limit: &MemoryLimit) -> Self {
        // The shell is in the group before it becomes the program.
        let enter = [OsString::from("-c"), r#"echo $$ >"$0/cgroup.procs" && exec "$@""#.into(), limit.folder().into()];
        let arguments = enter.into_iter().chain([self.path.clone().into()]).chain(self.arguments.iter().cloned());
        Self { path: "/bin/sh".into(), arguments: arguments.collect(), environment: self.environment.clone() }
    }

    /// Starts it; its output goes to files of its own.
    pub fn start(&self) -> Result<Running> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tapedeck-program-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder)?;
        let child = Command::new(&self.path)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(File::create(folder.join("stdout"))?)
            .stderr(File::create(folder.join("stderr"))?)
            .spawn()
            .with_context(|| format!("{} can't be started", self.path.display()))?;
        let leash = Leash::on_process(child.id())?;
        Ok(Running { child, folder, peak_rss: 0, cpu: Duration::ZERO, _leash: leash })
    }

    /// Starts it and waits for its end.
    pub fn run(&self, limit: Duration) -> Result<Ended> {
        self.start()?.wait(limit)
    }
}

/// A started program. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    folder: PathBuf,
    peak_rss: u64,
    cpu: Duration,
    _leash: Leash,
}

/// How a program ended, and all that it said.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
    /// Highest resident memory seen, in bytes (sampled while it was waited for).
    pub peak_rss: u64,
    /// CPU time seen, user and system (sampled likewise).
    pub cpu: Duration,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        read_lossy(&self.folder.join("stdout"))
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        read_lossy(&self.folder.join("stderr"))
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Stops it from running at all (SIGSTOP), as a paused machine would.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen program go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill9(mut self) -> Result<Ended> {
        self.sample();
        self.child.kill()?;
        let status = self.child.wait()?;
        Ok(self.ended(status))
    }

    /// Has it ended yet?
    pub fn has_ended(&mut self) -> Result<bool> {
        self.sample();
        Ok(self.child.try_wait()?.is_some())
    }

    /// An error that shows how it ended and what it said last, unless it still runs.
    pub fn must_run(&mut self) -> Result<()> {
        self.sample();
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("ended by itself, {status}; it said last:\n{}", tail(&self.stderr())),
        }
    }

    /// Waits for its end; past `limit` it is killed, and that is an error that shows what it said last.
    pub fn wait(mut self, limit: Duration) -> Result<Ended> {
        let deadline = Instant::now() + limit;
        loop {
            self.sample();
            if let Some(status) = self.child.try_wait()? {
                return Ok(self.ended(status));
            }
            if Instant::now() >= deadline {
                let said = tail(&self.stderr());
                bail!("still running after {} s; it said last:\n{said}", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until `text` shows up on either output. Its end before that is an error.
    pub fn wait_for_text(&mut self, text: &str, limit: Duration) -> Result<()> {
        let what = format!("for {text:?}");
        wait_until(&what, limit, || {
            let ended = self.has_ended()?;
            if self.stderr().contains(text) || self.stdout().contains(text) {
                return Ok(true);
            }
            if ended {
                bail!("ended without saying {text:?}; it said last:\n{}", tail(&self.stderr()));
            }
            Ok(false)
        })
        .with_context(|| tail(&self.stderr()))
    }

    /// Highest resident memory so far, in bytes.
    pub fn peak_rss(&mut self) -> u64 {
        self.sample();
        self.peak_rss
    }

    /// CPU time used so far, user and system.
    pub fn cpu(&mut self) -> Duration {
        self.sample();
        self.cpu
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("{signal:?} to {pid:?}"))
    }

    // The kernel forgets both figures when the process ends, so they are taken on the way.
    fn sample(&mut self) {
        let pid = self.child.id();
        if let Some(bytes) = high_water_mark(pid) {
            self.peak_rss = self.peak_rss.max(bytes);
        }
        if let Some(cpu) = cpu_time(pid) {
            self.cpu = self.cpu.max(cpu);
        }
    }

    fn ended(&self, status: ExitStatus) -> Ended {
        Ended {
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout(),
            stderr: self.stderr(),
            peak_rss: self.peak_rss,
            cpu: self.cpu,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn read_lossy(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn high_water_mark(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces; the counted fields come after it.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let user: u64 = fields.get(11)?.parse().ok()?;
    let system: u64 = fields.get(12)?.parse().ok()?;
    // Linux counts these in hundredths of a second on every machine we know.
    Some(Duration::from_millis((user + system) * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Program {
        Program::at("/bin/sh").args(["-c", script])
    }

    #[test]
    fn output_and_exit_code_are_kept() {
        let mut asleep = shell("echo awake >&2; read -r _").start().expect("start");
        let error = wait_until("its end", SOON, || asleep.must_run().map(|()| false)).expect_err("its input has ended");
        assert!(error.to_string().contains("exit status: 1") && error.to_string().contains("awake"), "{error:#}");
        let ended = shell("echo out; echo err >&2; exit 78").run(SOON).expect("it ends");
        assert_eq!(ended.code, Some(78));
        assert_eq!(ended.stdout, "out\n");
        assert_eq!(ended.stderr, "err\n");
    }

    #[test]
    fn term_reaches_the_program_and_kill9_ends_a_frozen_one() {
        let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
        let mut polite = shell(script).start().expect("start");
        polite.wait_for_text("ready", SOON).expect("it is up");
        assert!(polite.peak_rss() > 0);
        polite.terminate().expect("term");
        assert_eq!(polite.wait(SOON).expect("it ends").code, Some(7));

        let mut frozen = shell(script).start().expect("start");
        frozen.wait_for_text("ready", SOON).expect("it is up");
        frozen.freeze().expect("freeze");
        assert_eq!(frozen.kill9().expect("killed").signal, Some(9));
    }

    #[test]
    fn waiting_has_a_limit() {
        let error = shell("echo busy >&2; sleep 60").run(Duration::from_millis(300)).expect_err("too slow");
        assert!(error.to_string().contains("busy"), "{error:#}");
    }
}
