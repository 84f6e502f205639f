//! A limit of memory for programs, set from outside as a pod's is: a memory cgroup, of version 1 or 2. Only root may make one.
//!
//! It promises that a program is in it before its first line runs, that nothing is swapped out instead, and that it counts whom
//! the kernel killed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait::wait_until;

/// The files of a memory cgroup, by version.
struct Files {
    root: &'static str,
    limit: &'static str,
    /// Memory and swap together, or swap alone; not every kernel has it.
    swap: &'static str,
    kills: &'static str,
    peak: &'static str,
}

const VERSIONS: [Files; 2] = [
    Files {
        root: "/sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        swap: "memory.memsw.limit_in_bytes",
        kills: "memory.oom_control",
        peak: "memory.max_usage_in_bytes",
    },
    Files { root: "/sys/fs/cgroup", limit: "memory.max", swap: "memory.swap.max", kills: "memory.events", peak: "memory.peak" },
];

/// A cgroup of its own; gone on drop, when nobody is in it any more.
pub struct MemoryLimit {
    folder: PathBuf,
    files: &'static Files,
}

impl MemoryLimit {
    /// A limit of so many bytes. An error where the machine gives none, or not to us.
    pub fn new(bytes: u64) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tapedeck-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let Some(files) = VERSIONS.iter().find(|files| Path::new(files.root).is_dir()) else {
            bail!("this machine has no cgroups")
        };
        let folder = Path::new(files.root).join(name);
        std::fs::create_dir(&folder)
            .with_context(|| format!("a limit of memory needs a cgroup, and root: {}", folder.display()))?;
        let limit = Self { folder, files };
        limit.write(files.limit, bytes)?;
        // After the limit of memory alone, below which it may not be.
        drop(limit.write(files.swap, if files.root.ends_with("memory") { bytes } else { 0 }));
        Ok(limit)
    }

    /// The folder to whose `cgroup.procs` a process writes itself.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many processes the kernel killed for want of memory.
    pub fn kills(&self) -> Result<u64> {
        let text = self.read(self.files.kills)?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).context("no count of kills")?;
        Ok(count.trim().parse()?)
    }

    /// The most that was in use, what the kernel keeps of files included.
    pub fn peak(&self) -> Result<u64> {
        Ok(self.read(self.files.peak)?.trim().parse()?)
    }

    fn read(&self, file: &str) -> Result<String> {
        std::fs::read_to_string(self.folder.join(file)).with_context(|| format!("{file} of {}", self.folder.display()))
    }

    fn write(&self, file: &str, value: u64) -> Result<()> {
        let file = self.folder.join(file);
        std::fs::write(&file, value.to_string()).with_context(|| format!("{} can't be set", file.display()))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Who was killed a moment ago may still be on its way out.
        let gone = || Ok(std::fs::remove_dir(&self.folder).is_ok());
        drop(wait_until("the cgroup to be empty", Duration::from_secs(2), gone));
    }
}
