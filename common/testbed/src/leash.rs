//! Ties a process that we started to our own life.
//!
//! A killed test runs no destructor, so each server and each program gets a tiny shell that waits on a pipe from us.
//! When the pipe closes without a word, we are dead, and the shell cleans up. It sleeps in `read` and costs nothing meanwhile.
//! Dropping the leash sends the word: then nothing happens.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result};

/// Runs a command if this process dies before the leash is dropped.
#[derive(Debug)]
pub struct Leash {
    shell: Child,
    word: Option<ChildStdin>,
}

impl Leash {
    /// `cleanup` is a line of shell; it sees `arguments` as `$1`, `$2` and so on, and `environment` beside ours.
    pub fn new<S: AsRef<OsStr>>(cleanup: &str, arguments: &[S], environment: &[(String, String)]) -> Result<Self> {
        let mut shell = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("read -r word && exit\n{cleanup}"))
            .arg("leash")
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C on the test must not take the cleaner too.
            .process_group(0)
            .spawn()
            .context("a leash needs /bin/sh")?;
        let word = shell.stdin.take();
        Ok(Self { shell, word })
    }

    /// Kills the process `pid` should we die.
    pub fn on_process(pid: u32) -> Result<Self> {
        Self::new(r#"kill -KILL "$1""#, &[pid.to_string()], &[])
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        if let Some(mut word) = self.word.take() {
            // The shell may be gone already; then there is nothing left to tell it.
            let _ = word.write_all(b"done\n");
        }
        let _ = self.shell.wait();
    }
}
